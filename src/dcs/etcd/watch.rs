//! The watch: list, follow from the next revision, and notice when the stream has gone silent without ending.
//!
//! A stream can stand still while its connection lives (a frozen member, one cut off from its quorum, a bug). So one that has
//! said nothing for a little more than P (the rhythm of renewals) is asked for progress, and whether it keeps up is checked against linearizable lists: P after the newest event, and
//! every 4 P in any case. Each list is handed out, so that no decision rests on the watch alone.

use super::{
    super::{Listing, Present, Update, keys::Place, view::Order},
    Etcd, Shared,
    fault::{Fault, speaks_of_auth},
    race::jittered,
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use etcd_client::{Client, EventType, WatchOptions, WatchResponse, WatchStream};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::mpsc::Sender;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A stream that lived so long was no failure.
const LIVED: Span = Span::from_secs(2);

impl Etcd {
    /// Lists and watches, and hands every change to `updates` until its receiver is dropped. One task of the agent.
    ///
    /// When the channel is full it waits: nothing is lost, the receiver drains. Never spins: failures are repeated after
    /// 50 ms to 1 s.
    pub async fn watch(self, updates: Sender<Update>) {
        let start = clock::boot();
        let mut watcher =
            Watcher { shared: self.shared, updates, order: Order::default(), heard: start, listed: start, changed: start, avoid: None };
        let mut pause = FIRST_PAUSE;
        while let Some(lived) = watcher.round().await {
            pause = if lived >= LIVED { FIRST_PAUSE } else { pause.saturating_mul(2).min(LONGEST_PAUSE) };
            tokio::select! {
                biased;
                () = watcher.updates.closed() => return,
                () = tokio::time::sleep(jittered(pause)) => {}
            }
        }
    }
}

type ListFuture = Pin<Box<dyn Future<Output = Result<Listing, super::super::Error>> + Send>>;

struct Watcher {
    shared: Arc<Shared>,
    updates: Sender<Update>,
    order: Order,
    /// etcd's newest answer of any kind.
    heard: Moment,
    /// The newest list.
    listed: Moment,
    /// The newest event.
    changed: Moment,
    /// The endpoint whose stream failed last.
    avoid: Option<usize>,
}

/// One stream, and how far it has come.
struct Stream {
    watch: WatchStream,
    endpoint: usize,
    heard: Moment,
    asked: Moment,
    /// The highest revision of an event that it has shown, and where it began.
    shown: u64,
    /// A list showed a record of this revision, then; the stream has not shown it yet.
    owed: Option<(u64, Moment)>,
}

impl Stream {
    /// When it is asked for a sign of life: some time after its last one, and after it was asked.
    fn ask_due(&self, poll: Span) -> Moment {
        self.heard.max(self.asked).plus(poll).plus(Span::from_nanos(poll.as_nanos() / 4))
    }

    /// When it is given up: silent for 2 P, or P behind what a list has shown.
    fn given_up_at(&self, poll: Span) -> Moment {
        let silent = self.heard.plus(poll.times(2));
        self.owed.map_or(silent, |(_, since)| silent.min(since.plus(poll)))
    }
}

/// Why a stream is not followed any further.
enum End {
    /// Nobody listens any more.
    Closed,
    /// List again, and open another one. On the same endpoint where it is not to blame.
    Again { blame: bool },
}

/// What happened while following.
enum Seen {
    Closed,
    Message(Result<Option<WatchResponse>, etcd_client::Error>),
    List(Result<Listing, super::super::Error>),
    Tick,
}

impl Watcher {
    /// Lists, then follows one stream to its end. `None`: nobody listens any more. Else how long the stream lived.
    async fn round(&mut self) -> Option<Span> {
        let listed = self.list().await;
        let known = listed.is_ok();
        self.take_list(listed).await.ok()?;
        if !known {
            return Some(Span::ZERO);
        }
        let began = clock::boot();
        let Ok(mut stream) = self.open().await else { return Some(Span::ZERO) };
        let mut list: Option<ListFuture> = None;
        loop {
            match self.step(&mut stream, &mut list).await {
                Ok(()) => {}
                Err(End::Closed) => return None,
                Err(End::Again { blame }) => {
                    self.avoid = blame.then_some(stream.endpoint);
                    return Some(clock::boot().since(began));
                }
            }
        }
    }

    fn list(&self) -> ListFuture {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.list(shared.settings.attempt.times(2)).await })
    }

    async fn hand_out(&self, update: Update) -> Result<(), End> {
        self.updates.send(update).await.map_err(|_| End::Closed)
    }

    /// Hands a list out. Says whether etcd went back.
    async fn take_list(&mut self, listed: Result<Listing, super::super::Error>) -> Result<bool, End> {
        let now = clock::boot();
        self.listed = now;
        match listed {
            Ok(listing) => {
                self.heard = now;
                let Some(update) = self.order.listed(listing, now) else { return Ok(false) };
                let went_back = matches!(update, Update::Listed { went_back: true, .. });
                self.hand_out(update).await?;
                Ok(went_back)
            }
            Err(error) => {
                self.hand_out(Update::Silent { since: self.heard, why: error.to_string() }).await?;
                Ok(false)
            }
        }
    }

    /// A stream from the next revision on, at the first endpoint that gives one; last of all at the one that just failed.
    async fn open(&mut self) -> Result<Stream, Fault> {
        let mut order = self.shared.order();
        order.sort_by_key(|index| Some(*index) == self.avoid);
        let begin = self.order.seen();
        let (from, to) = self.shared.space.folder(super::super::keys::Folder::All);
        let options = WatchOptions::new().with_range(to).with_start_revision(begin.saturating_add(1).cast_signed()).with_progress_notify();
        let mut newest = Fault::NotReached("no endpoint is configured".to_owned());
        for index in order {
            let call = |client: Client| {
                let (from, options) = (from.clone(), options.clone());
                let mut client = client.watch_client().max_decoding_message_size(super::LARGEST_MESSAGE);
                async move { client.watch(from, Some(options)).await }
            };
            match self.shared.endpoints[index].attempt(self.shared.settings.attempt, &call).await {
                Ok(watch) => {
                    let now = clock::boot();
                    return Ok(Stream { watch, endpoint: index, heard: now, asked: now, shown: begin, owed: None });
                }
                Err(fault) => newest = fault,
            }
        }
        Err(newest)
    }

    /// When a list is due: P after the newest event or list, and 4 P after the newest list in any case.
    fn list_due(&self) -> Moment {
        let poll = self.shared.settings.poll;
        self.changed.max(self.listed).plus(poll).min(self.listed.plus(poll.times(4))).max(self.listed.plus(poll))
    }

    async fn step(&mut self, stream: &mut Stream, list: &mut Option<ListFuture>) -> Result<(), End> {
        let poll = self.shared.settings.poll;
        let due = self.list_due().min(stream.ask_due(poll)).min(stream.given_up_at(poll));
        // A little later than due, not a little sooner: what is due then is over.
        let tick = due.since(clock::boot()).plus(Span::from_millis(1));
        // While a list is under way its due time lies behind: look again in a moment, not at once.
        let tick = if list.is_some() { tick.max(Span::from_millis(50)) } else { tick };
        let seen = tokio::select! {
            biased;
            () = self.updates.closed() => Seen::Closed,
            message = stream.watch.message() => Seen::Message(message),
            listed = async { match list.as_mut() { Some(list) => list.await, None => std::future::pending().await } } => Seen::List(listed),
            () = tokio::time::sleep(tick.to_std()) => Seen::Tick,
        };
        match seen {
            Seen::Closed => Err(End::Closed),
            Seen::Message(message) => self.take_message(stream, message).await,
            Seen::List(listed) => {
                *list = None;
                self.compare(stream, &listed);
                if self.take_list(listed).await? { Err(End::Again { blame: false }) } else { Ok(()) }
            }
            Seen::Tick => {
                let now = clock::boot();
                if list.is_none() && now >= self.list_due() {
                    *list = Some(self.list());
                }
                self.check(stream, now).await
            }
        }
    }

    /// Whether a list shows a record that the stream has not shown yet.
    fn compare(&self, stream: &mut Stream, listed: &Result<Listing, super::super::Error>) {
        let Ok(listing) = listed else { return };
        let newest = listing.entries.iter().map(|(_, _, revision)| *revision).max().unwrap_or_default();
        if newest > stream.shown {
            stream.owed.get_or_insert((newest, clock::boot()));
        }
    }

    /// Asks the stream for a sign of life, and gives it up when there has been none, or when it lags.
    async fn check(&mut self, stream: &mut Stream, now: Moment) -> Result<(), End> {
        let poll = self.shared.settings.poll;
        if now > stream.given_up_at(poll) {
            self.shared.endpoints[stream.endpoint].doubt();
            return Err(End::Again { blame: true });
        }
        if now >= stream.ask_due(poll) {
            stream.asked = now;
            // The channel to the connection holds 100 requests, and the stream is given up long before.
            let asked = tokio::time::timeout(Duration::from_millis(50), stream.watch.request_progress()).await;
            if !matches!(asked, Ok(Ok(()))) {
                return Err(End::Again { blame: true });
            }
        }
        Ok(())
    }

    async fn take_message(&mut self, stream: &mut Stream, message: Result<Option<WatchResponse>, etcd_client::Error>) -> Result<(), End> {
        let Ok(Some(response)) = message else { return Err(End::Again { blame: true }) };
        let now = clock::boot();
        (stream.heard, self.heard) = (now, now);
        if response.canceled() {
            // Compacted, or refused. The list that follows starts anew from the present.
            if speaks_of_auth(response.cancel_reason()) {
                self.shared.endpoints[stream.endpoint].forget();
            }
            return Err(End::Again { blame: response.compact_revision() == 0 });
        }
        // Not the header's revision: a progress answer may run ahead of events still to come (etcd #15220, fixed in 3.4.25).
        let newest = response.events().iter().filter_map(|event| event.kv()).map(|kv| kv.mod_revision().cast_unsigned()).max();
        let Some(newest) = newest else { return Ok(()) };
        stream.shown = stream.shown.max(newest);
        stream.owed = stream.owed.filter(|(revision, _)| *revision > stream.shown);
        self.changed = now;
        if let Some(update) = self.order.changed(self.changes(&response), newest, now) {
            self.hand_out(update).await?;
            // While the receiver kept us waiting nothing could be heard.
            stream.heard = clock::boot();
        }
        Ok(())
    }

    fn changes(&self, response: &WatchResponse) -> Vec<Present> {
        let mut changes = Vec::new();
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let Place::Record(key) = self.shared.space.place(kv.key()) else { continue };
            let revision = kv.mod_revision().cast_unsigned();
            let text = match event.event_type() {
                // As in a list: a text that is not UTF-8 is unreadable, not missing.
                EventType::Put => Some(kv.value_str().unwrap_or_default().to_owned()),
                EventType::Delete => None,
            };
            changes.push((key, text, revision));
        }
        changes
    }
}
