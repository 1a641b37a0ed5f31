//! `/v1/events`.

use super::{
    published::{Builder, primary, reason, replica},
    seat::Api,
};
use pgbaton::{
    agent::handle::{self, Heard},
    api::client::Event,
    decide::decision::ReasonKind,
    model::moment::Span,
};

fn saying(id: &str) -> pgbaton::agent::handle::Published {
    Builder { reasons: vec![reason(ReasonKind::Waits, id, "a sentence")], ..replica() }.build()
}

#[tokio::test]
async fn changes_are_heard_as_they_come_and_again_after_a_break() {
    let api = Api::showing(replica().build());
    let client = api.local();
    let mut events = client.events(None).await.expect("events");
    api.seat.publish(saying("one"));
    // The same with other numbers is no news.
    let mut again = saying("one");
    again.decision.reasons[0].text = "another number".to_owned();
    api.seat.publish(again);
    api.seat.publish(saying("two"));
    let mut heard = Vec::new();
    for _ in 0..3 {
        let Some(Event::News(id, news)) = events.next().await.expect("event") else { panic!("an event") };
        heard.push((id, news.kind, news.id));
    }
    let words: Vec<(&str, &str)> = heard.iter().map(|(_, kind, id)| (kind.as_str(), id.as_str())).collect();
    assert_eq!(words, [("waits", "one"), ("waits", "two"), ("ended", "one")]);
    // Who comes back with the first id hears what followed it.
    let mut back = api.remote().events(Some(&heard[0].0)).await.expect("events");
    let Some(Event::News(id, news)) = back.next().await.expect("event") else { panic!("an event") };
    assert_eq!((id, news.id.as_str()), (heard[1].0.clone(), "two"));
    // An id of another run of the agent: everything that is kept.
    let mut other = api.remote().events(Some("zz-77")).await.expect("events");
    let Some(Event::News(_, news)) = other.next().await.expect("event") else { panic!("an event") };
    assert_eq!(news.kind, "leader");
}

#[tokio::test]
async fn a_change_of_the_leader_and_of_the_route_are_news() {
    let api = Api::start();
    let mut events = api.local().events(None).await.expect("events");
    api.seat.publish(primary(Span::from_secs(30)).build());
    let Some(Event::News(_, leader)) = events.next().await.expect("event") else { panic!("an event") };
    let Some(Event::News(_, routing)) = events.next().await.expect("event") else { panic!("an event") };
    assert_eq!(leader.text, "n1 serves in term 5 on timeline 2");
    assert_eq!((routing.kind.as_str(), routing.term.get()), ("routing", 5));
}

#[tokio::test]
async fn before_etcd_was_read_nothing_is_said_of_the_leader() {
    let api = Api::start();
    let mut events = api.local().events(None).await.expect("events");
    let mut unread = replica().build();
    unread.snapshot.etcd.records = std::sync::Arc::default();
    api.seat.publish(unread);
    api.seat.publish(primary(Span::from_secs(30)).build());
    let Some(Event::News(_, first)) = events.next().await.expect("event") else { panic!("an event") };
    assert_eq!(first.text, "n1 serves in term 5 on timeline 2");
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_how_much_it_missed() {
    let (handle, seat) = handle::pair("a1");
    seat.publish(replica().build());
    let mut reader = handle.listen(None);
    for index in 0..300 {
        seat.publish(saying(&format!("r{index}")));
    }
    assert!(matches!(reader.next().await, Some(Heard::Missed(count)) if count > 300), "two changes each, 256 are kept");
    assert!(matches!(reader.next().await, Some(Heard::Event(..))));
}

#[tokio::test]
async fn listeners_are_few() {
    let api = Api::showing(replica().build());
    let client = api.local();
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(client.events(None).await.expect("events"));
    }
    let refused = client.events(None).await.expect_err("too many").to_string();
    assert!(refused.contains("32 clients"), "{refused}");
    drop(held);
}
