//! When the next decision is due, and what is no reason for one.

use super::{State, server::is_idle_repetition};
use crate::{
    agent::event::Event,
    decide::decision::Task,
    model::{instance::GuardStatus, key::Key, moment::Moment, observed::Observed, record::LeaderState},
};

/// What was learned since the last decision, and when it wanted the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    /// Something that a decision could depend on has changed.
    pub(super) news: bool,
    /// When something was last heard at all.
    pub(super) heard: Option<Moment>,
    pub(super) wake_at: Moment,
}

impl State {
    /// When the next decision is due: at the newest event where anything was learned that could change it, else when the last one wanted it.
    ///
    /// Most of what an idle cluster says is said again, and does not have to be thought about again. But what is due soon after something
    /// was heard is brought forward: one wake-up for both, and a renewal carries the sample that has just come.
    pub fn decide_at(&self) -> Moment {
        let Next { news, heard, wake_at } = self.next;
        let ahead = self.policy.timers().ahead();
        match heard {
            Some(heard) if news || heard.plus(ahead) >= wake_at => heard.min(wake_at),
            None if news => Moment::ZERO,
            _ => wake_at,
        }
    }

    /// Whether an event says nothing that the next decision could depend on.
    pub(super) fn is_repetition(&self, event: &Event) -> bool {
        match event {
            Event::Guard(status) => self.guard.value().is_some_and(|known| known == status || self.is_kept_up(known, status)),
            // What they did shows elsewhere: in the guard's status, and in etcd.
            Event::Done { task: task @ (Task::Arm | Task::PutMember), outcome: Ok(()) } => {
                !self.held.contains(task) && !self.failures.contains_key(task)
            }
            Event::Server { facts, .. } => self.server.value().is_some_and(|known| is_idle_repetition(known, facts)),
            Event::Changed { changes, .. } => {
                matches!(self.answered, Observed::Known { .. })
                    && changes.iter().all(|(key, text, written)| {
                        let said_again = matches!(key, Key::Member(_)) && text.is_some() && text.as_deref() == self.records.text(key);
                        said_again || self.known_revision(key).is_some_and(|known| *written <= known)
                    })
            }
            Event::Listed { entries, .. } => self.suspect.is_none() && self.shows_all(entries),
            Event::TxnSent { nonce, .. } => self.keeps_its_time(nonce),
            _ => false,
        }
    }

    /// Whether a status shows the deadline of a serving primary moved on, and nothing else: nothing waits for that.
    fn is_kept_up(&self, known: &GuardStatus, status: &GuardStatus) -> bool {
        let serves = self.records.leader.as_ref().is_some_and(|leader| leader.record.state == LeaderState::Serving);
        let later = matches!((known.armed, status.armed), (Some(before), Some(now)) if now.term == before.term && now.until > before.until);
        serves && later && GuardStatus { armed: known.armed, ..status.clone() } == *known
    }
}
