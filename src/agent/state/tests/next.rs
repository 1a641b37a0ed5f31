//! When the next decision is due.

use super::*;

/// What an idle primary hears all the time is not thought about again; what only looks like it is.
#[test]
fn what_is_kept_up_is_no_news_and_everything_else_is() {
    let armed = |until: u64| GuardStatus {
        incarnation: parsed("g1"),
        term: Term::new(3),
        armed: Some(crate::model::instance::Armed { term: Term::new(3), until: at(until).boot }),
        primary_of: None,
        process: RUNS(Run(1)),
        kill: KillMode::Namespace,
        fenced: true,
        starting: false,
        cut: Cut::From(BTreeSet::new()),
    };
    let (serves, claims) = (leader("n1", 3, "L1", 1), leader("n1", 3, "L1", 1).replace("serving", "claimed"));
    let member = || Event::Done { task: Task::PutMember, outcome: Ok(()) };
    let known = |text: &str, held: &[Task]| {
        let mut state = state();
        state.apply(listed(text, 10, 0), at(0));
        state.apply(Event::Guard(armed(2_000)), at(0));
        let mut decision = crate::decide::decide(&state.snapshot(at(1), fresh()));
        decision.actions.clear();
        decision.held = held.iter().copied().collect();
        state.decided(&mut decision, at(1).boot);
        assert!(state.decide_at() > at(100).boot);
        state
    };
    let news = |mut state: State, event: Event| {
        state.apply(event, at(100));
        state.decide_at() <= at(100).boot
    };
    assert!(!news(known(&serves, &[]), Event::Guard(armed(2_500))));
    assert!(news(known(&claims, &[]), Event::Guard(armed(2_500))), "a promotion waits for it");
    assert!(news(known(&serves, &[]), Event::Guard(armed(1_500))), "it ends sooner");
    assert!(news(known(&serves, &[]), Event::Guard(GuardStatus { process: RUNS(Run(2)), ..armed(2_500) })), "another run");
    assert!(!news(known(&serves, &[]), member()));
    assert!(news(known(&serves, &[Task::PutMember]), member()), "one more was held back");
    assert!(news(known(&serves, &[]), Event::Done { task: Task::PutMember, outcome: Err("no".to_owned()) }));
    assert!(news(known(&serves, &[]), Event::Done { task: Task::WriteFile, outcome: Ok(()) }));
    assert!(!news(known(&serves, &[]), listed(&serves, 10, 50)));
    assert!(news(known(&serves, &[]), listed(&leader("n1", 3, "L2", 2), 11, 50)), "it shows more");
    assert!(news(known(&serves, &[]), listed(&leader("n1", 3, "L2", 1), 10, 50)), "the same revision, another value");
    let said = |lsn: &str, revision: u64| changed(&Key::Member(parsed("n2")), Some(&member_text(lsn)), revision);
    let mut heard = known(&serves, &[]);
    heard.apply(said("0/1", 11), at(2));
    let decision = &mut crate::decide::decide(&heard.snapshot(at(3), fresh()));
    heard.decided(decision, at(3).boot);
    assert!(!news(heard.clone(), said("0/1", 12)), "it says so again");
    assert!(news(heard, said("0/2", 12)), "its position changed");
    let less = Event::Listed { entries: vec![(Key::Leader, serves.clone(), 10)], revision: 12, sent: at(50).boot };
    assert!(news(known(&serves, &[]), less), "it shows less");
    let mut silent = known(&serves, &[]);
    silent.answered.lost(at(20).boot, "timed out");
    assert!(news(silent, listed(&serves, 10, 50)), "etcd answers again");
    let mut suspect = known(&serves, &[]);
    suspect.suspect = Some("its revision went back".to_owned());
    assert!(news(suspect, listed(&serves, 10, 50)), "it is believed again");
}

/// A state that knows `text`, has decided at 1 ms, and wants to decide again at 500 ms.
fn rests(text: &str) -> State {
    let mut state = state();
    state.apply(listed(text, 10, 0), at(0));
    let mut decision = crate::decide::decide(&state.snapshot(at(1), fresh()));
    decision.actions.clear();
    decision.wake_at = at(500).boot;
    state.decided(&mut decision, at(1).boot);
    assert_eq!(state.decide_at(), at(500).boot);
    state
}

/// A repetition brings forward what is due soon, and only that; time alone brings nothing forward.
#[test]
fn what_is_due_soon_comes_together_with_what_is_heard() {
    let text = leader("n1", 3, "L1", 1);
    let ahead = ClusterPolicy::default().timers().ahead().as_nanos() / 1_000_000;
    let heard = |now: u64| {
        let mut state = rests(&text);
        state.apply(listed(&text, 10, now), at(now));
        state.decide_at()
    };
    assert_eq!(heard(500 - ahead - 1), at(500).boot);
    assert_eq!(heard(500 - ahead), at(500 - ahead).boot);
    assert_eq!(heard(600), at(500).boot, "it was due already");
}

/// The send of a renewal changes nothing that is decided, unless it promises less time than there is.
#[test]
fn the_send_of_a_renewal_is_news_only_where_it_takes_time_away() {
    let sends = |first_hold: u64, then_hold: u64| {
        let with = |nonce: &str, hold: u64| leader("n1", 3, nonce, 1).replace("2800", &hold.to_string());
        let mut state = state();
        state.apply(listed(&with("L0", first_hold), 10, 0), at(0));
        let mut send = |nonce: &str, hold: u64, now: u64| {
            let txn = Txn { nonce: parsed(nonce), when: Vec::new(), then: vec![Write::Put(Key::Leader, with(nonce, hold))] };
            let mut decision = crate::decide::decide(&state.snapshot(at(now), fresh()));
            decision.actions = vec![Action::Txn(Purpose::Renew, txn)];
            decision.wake_at = at(now + 500).boot;
            state.decided(&mut decision, at(now).boot);
            state.apply(Event::TxnSent { nonce: parsed(nonce), at: at(now).boot }, at(now));
            let due = state.decide_at();
            state.apply(Event::TxnDone { nonce: parsed(nonce), task: Task::LeaderTxn, outcome: unknown() }, at(now + 1));
            state.settle(&parsed(nonce));
            due
        };
        send("L1", first_hold, 10);
        send("L2", then_hold, 20)
    };
    assert_eq!(sends(2_800, 2_800), at(520).boot);
    assert_eq!(sends(2_800, 3_000), at(520).boot);
    assert!(sends(2_800, 2_000) <= at(20).boot);
}

/// A taker counts from its own waking, whatever the list after it shows.
#[test]
fn after_a_suspend_the_observation_begins_anew_though_nothing_else_has_changed() {
    let text = leader("n2", 3, "L1", 1);
    let mut state = rests(&text);
    let woken = |millis: u64| Clocks { mono: at(millis).mono.minus(Span::from_secs(1)), ..at(millis) };
    state.apply(listed(&text, 10, 1_100), woken(1_100));
    assert!(state.decide_at() <= at(1_100).boot, "it was due already");
    let since = state.snapshot(woken(1_200), fresh()).standing.map(|standing| standing.since);
    assert_eq!(since, Some(woken(1_100).mono));
    assert_eq!(state.snapshot(woken(1_200), fresh()).stood_still(), Span::from_millis(100));
}

fn member_text(lsn: &str) -> String {
    format!(
        r#"{{"v":1,"data":"000000a2","postgres":"n2:5432","role":"replica","state":"streaming","tli":1,"lsn":"{lsn}","replay":"{lsn}","lag":{{}},"term":3,"zone":"","tags":{{}},"version":"1","postgres_version":"","fencing":"namespace","pending_restart":false}}"#
    )
}
