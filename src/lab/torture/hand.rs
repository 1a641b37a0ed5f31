//! The part of a client that speaks with one server: chooses transactions, has them carried out, writes down how they end.

use super::{
    super::sql::Server,
    crowd::{Kind, Shared},
    history::{Entry, Outcome, Place, Step, Transfer, Work},
    lots::Lots,
    session::Session,
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use std::rc::Rc;
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Between two transactions with a primary.
const EVERY: Span = Span::from_millis(20);
/// A server in recovery is asked every so many ticks only.
const REPLICA: u64 = 5;
/// How long a transaction may take before it is given up.
const PATIENCE: Span = Span::from_secs(1);
/// After a transaction that was given up: what waits for replicas goes on waiting in the server, and such sessions must not pile up.
const REST: Span = Span::from_millis(1_000);
/// After a failed attempt to connect.
const AGAIN: Span = Span::from_millis(100);
/// How many lists are appended to at a time.
const OPEN_LISTS: u64 = 6;
/// After how many appends the oldest of them is left for a new one: a list gets about as many items.
const LIST_GROWS_BY: u64 = 10;
/// How many accounts there are.
pub(super) const ACCOUNTS: i32 = 8;

/// One client at one server.
pub(super) struct Hand {
    pub(super) shared: Rc<Shared>,
    pub(super) client: String,
    pub(super) kind: Kind,
    pub(super) server: Server,
    pub(super) lots: Lots,
    pub(super) session: Option<Session>,
    pub(super) rests_until: Moment,
}

impl Hand {
    /// Works until the crowd is stopped.
    pub(super) async fn work(mut self) {
        let mut ticks = interval(EVERY.to_std());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut count = 0;
        while !self.shared.is_stopped() {
            ticks.tick().await;
            count += 1;
            let reads_only = self.session.as_ref().is_some_and(|session| session.place == Place::Replica);
            if clock::boot() < self.rests_until || (reads_only && count % REPLICA != 0) {
                continue;
            }
            match self.prepare().await {
                Some(place) => self.transact(place).await,
                None => self.leave(AGAIN),
            }
        }
    }

    fn leave(&mut self, rest: Span) {
        self.session = None;
        self.rests_until = clock::boot().plus(rest);
    }

    /// Connects where needed, and asks what the server is; `None` without an answer in time.
    async fn prepare(&mut self) -> Option<Place> {
        if self.session.is_none() {
            let opened = Session::open(&self.shared.login, &self.server, PATIENCE);
            self.session = timeout(PATIENCE.to_std(), opened).await.ok()?.ok();
        }
        let session = self.session.as_mut()?;
        timeout(PATIENCE.to_std(), session.look()).await.ok()?.ok()?;
        Some(session.place)
    }

    async fn transact(&mut self, place: Place) {
        let Some(mut work) = self.choose(place) else { return };
        let Some(session) = &self.session else { return };
        let (id, warned, sent) = (self.shared.number(), session.warnings(), clock::boot());
        let done = session.carry_out(id, &self.client, &self.server.node, &mut work);
        let answer = timeout(PATIENCE.to_std(), done).await.ok();
        let at = clock::boot();
        let lost = answer.as_ref().is_none_or(|answer| answer.as_ref().is_err_and(|error| error.as_db_error().is_none()));
        let outcome = session.outcome(answer, session.warnings() != warned);
        let stuck = match &outcome {
            Outcome::Acknowledged(_) => false,
            // A transaction that failed in a session that lives on is ended there.
            Outcome::Refused(_) if !lost => timeout(PATIENCE.to_std(), session.end()).await.map_or(true, |ended| ended.is_err()),
            _ => true,
        };
        let (client, node) = (self.client.clone(), self.server.node.clone());
        self.shared.note(Entry { id, client, node, place, sent, at, work, outcome });
        if stuck {
            self.leave(if at.since(sent) >= PATIENCE { REST } else { AGAIN });
        }
    }

    fn choose(&mut self, place: Place) -> Option<Work> {
        let (lots, writes) = (&mut self.lots, place != Place::Replica);
        match self.kind {
            Kind::Rows => writes.then_some(Work::Insert),
            Kind::Bank if writes && lots.chance(75) => {
                let accounts = u64::from(ACCOUNTS.unsigned_abs());
                let from = lots.below(accounts);
                let to = (from + 1 + lots.below(accounts - 1)) % accounts;
                let account = |number: u64| i32::try_from(number + 1).unwrap_or(1);
                let amount = 1 + i64::try_from(lots.below(9)).unwrap_or_default();
                Some(Work::Transfer(Transfer { from: account(from), to: account(to), amount }))
            }
            Kind::Bank => Some(Work::Balances(Vec::new())),
            Kind::Lists => Some(Work::Lists(self.steps(writes))),
        }
    }

    /// Up to four steps in the order of the keys, so that appends do not wait for each other in a circle.
    fn steps(&mut self, writes: bool) -> Vec<Step> {
        let lots = &mut self.lots;
        let oldest = self.shared.appended() / LIST_GROWS_BY;
        let writes = writes && lots.chance(70);
        let mut steps = Vec::new();
        for _ in 0..=(1 + lots.below(3)) {
            // Now and then one that nobody appends to any more.
            let key = if lots.chance(10) { lots.below(oldest + 1) } else { oldest + lots.below(OPEN_LISTS) };
            let appended = |step: &Step| *step == Step::Append(key);
            if writes && key >= oldest && lots.chance(50) && !steps.iter().any(appended) {
                self.shared.appends();
                steps.push(Step::Append(key));
            } else {
                steps.push(Step::Read(key, Vec::new()));
            }
        }
        steps.sort_by_key(|step| match step {
            Step::Append(key) | Step::Read(key, _) => *key,
        });
        steps
    }
}
