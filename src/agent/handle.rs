//! What the API may ask of the agent: what it last decided, what changed, and the few changes that operators make.
//!
//! The agent keeps a [`Seat`], everybody else a [`Handle`]. A reader never waits for the loop: the newest pair of snapshot and
//! decision lies in memory. A change is a [`Command`]; the agent serves it with etcd, beside the loop, in the order of arrival.
//!
//! *What a served command means.* A change and its `audit` record are one transaction ([`super::change`] makes it), so nothing is
//! changed without a trace. [`Refusal`] says what the asker does next; only [`Refusal::Unknown`] leaves open what happened.

use crate::{
    clock,
    decide::{answer_to, decision::Decision, snapshot::Snapshot},
    model::{
        failsafe::{Answer, Ask, Asked},
        moment::{Moment, Span},
        node::{NodeName, Nonce},
        policy::ClusterPolicy,
        policy_check::PolicyFault,
        record::{AuditRecord, HistoryRecord, IntentRecord, MemberRecord, PolicyRecord, Stored},
        request::Request,
        term::Term,
    },
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{mpsc, oneshot, watch};

pub use super::news::{EventNews, Heard, News, Reader};

/// So many commands wait for the agent; one more is refused as [`Refusal::Busy`].
const COMMANDS: usize = 16;

/// The newest pair of what was known and what was decided on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Published {
    /// What was known.
    pub snapshot: Snapshot,
    /// What was decided.
    pub decision: Decision,
    /// When each member's record last changed before our eyes (`CLOCK_BOOTTIME`), with the revision that did. For people: no decision
    /// depends on it. Filled in by [`Publisher::publish`].
    pub heard: BTreeMap<NodeName, (u64, Moment)>,
}

/// Who asks for a change, from where, and why: what its `audit` record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Who.
    pub actor: String,
    /// From where: an address, or `local`.
    pub from: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
}

/// One thing that the agent does for an operator.
#[derive(Debug)]
pub enum Command {
    /// Replace the cluster policy.
    ///
    /// One transaction: `policy` must be as it was at `version` (0: not there); it becomes `version + 1`, and an `audit` record
    /// with the verb `policy` is written. The policy was checked by whoever asks, and is checked again here.
    ReplacePolicy {
        /// The whole new policy.
        policy: Box<ClusterPolicy>,
        /// The version that the operator saw.
        version: u64,
        /// Who asks.
        asker: Asker,
        /// The record as it stands now.
        reply: oneshot::Sender<Result<PolicyRecord, Refusal>>,
    },
    /// Put an operator request where the holder finds it.
    ///
    /// One transaction: no `intent` may be there; it is written with the term that the operator saw, and with it an `audit` record.
    /// The holder takes it, or drops it when the term has changed meanwhile; that it is gone says only that it was looked at.
    PutIntent {
        /// What is asked for.
        request: Request,
        /// The term that the operator saw; [`Refusal::Conflict`] when this node knows another.
        term: Term,
        /// Who asks.
        asker: Asker,
        /// The record as it stands now.
        reply: oneshot::Sender<Result<IntentRecord, Refusal>>,
    },
    /// Every change of leadership that is kept, newest first.
    History {
        /// The records that this version can read.
        reply: oneshot::Sender<Result<Vec<HistoryRecord>, Refusal>>,
    },
    /// The newest operator changes, newest first.
    Audit {
        /// So many at the most.
        limit: usize,
        /// The records that this version can read.
        reply: oneshot::Sender<Result<Vec<AuditRecord>, Refusal>>,
    },
}

/// Why a command was not carried out, split by what the asker does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is wrong by itself: correct it.
    #[error("{} faults in the policy", .0.len())]
    Invalid(Vec<PolicyFault>),
    /// What stands in etcd is not what the asker saw: look again.
    #[error("{0}")]
    Conflict(String),
    /// It cannot be done in the present state, for this reason.
    #[error("{0}")]
    NotNow(String),
    /// Too much waits already, or the agent is ending: ask again. Nothing was done.
    #[error("the agent cannot take a request at the moment: {0}")]
    Busy(&'static str),
    /// etcd was not reached: nothing was done.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(String),
    /// It may have been done, or may still be: look before asking again.
    #[error("whether it was done is not known: {0}")]
    Unknown(String),
}

/// How the API reaches the agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    published: watch::Receiver<Option<Arc<Published>>>,
    commands: mpsc::Sender<Command>,
    asks: mpsc::Sender<Asked>,
    news: News,
}

/// The agent's end of a [`Handle`].
#[derive(Debug)]
pub struct Seat {
    /// Shows decisions.
    pub publisher: Publisher,
    /// What is asked for, in the order of arrival.
    pub commands: mpsc::Receiver<Command>,
    /// What other nodes ask of this one.
    pub asks: mpsc::Receiver<Asked>,
}

/// Shows decisions to every reader.
#[derive(Debug)]
pub struct Publisher {
    published: watch::Sender<Option<Arc<Published>>>,
    news: News,
}

/// A handle and the seat that serves it. `run`: names this run of the agent, for the ids of events.
pub fn pair(run: &str) -> (Handle, Seat) {
    let (publish, published) = watch::channel(None);
    let (command, commands) = mpsc::channel(COMMANDS);
    let (ask, asks) = mpsc::channel(COMMANDS);
    let news = News::new(run);
    let handle = Handle { published, commands: command, asks: ask, news: news.clone() };
    (handle, Seat { publisher: Publisher { published: publish, news }, commands, asks })
}

impl Publisher {
    /// Shows a decision to every reader, at once; tells the listeners what changed. Never waits.
    pub fn publish(&self, mut published: Published) {
        published.heard = heard(self.published.borrow().as_deref(), &published.snapshot);
        let published = Arc::new(published);
        let before = self.published.send_replace(Some(Arc::clone(&published)));
        self.news.tell(before.as_deref(), &published);
    }
}

fn heard(before: Option<&Published>, now: &Snapshot) -> BTreeMap<NodeName, (u64, Moment)> {
    let members = now.etcd.records.members.iter();
    let one = |(node, stored): (&NodeName, &Stored<MemberRecord>)| {
        let known = before.and_then(|before| before.heard.get(node)).filter(|(revision, _)| *revision == stored.revision);
        (node.clone(), known.copied().unwrap_or((stored.revision, now.now.boot)))
    };
    members.map(one).collect()
}

impl Seat {
    /// See [`Publisher::publish`].
    pub fn publish(&self, published: Published) {
        self.publisher.publish(published);
    }

    /// The next command; `None` once every handle is gone.
    pub async fn command(&mut self) -> Option<Command> {
        self.commands.recv().await
    }
}

impl Handle {
    /// What was last decided; `None` before the first decision. Never waits.
    pub fn published(&self) -> Option<Arc<Published>> {
        self.published.borrow().clone()
    }

    /// What changes from now on; with `after`, an id that was read before, also what was missed since and is still kept.
    pub fn listen(&self, after: Option<&str>) -> Reader {
        self.news.listen(after)
    }

    /// See [`Command::ReplacePolicy`].
    ///
    /// # Errors
    /// [`Refusal`]; an answer that does not come within `deadline` is [`Refusal::Unknown`].
    pub async fn replace_policy(&self, policy: ClusterPolicy, version: u64, asker: Asker, deadline: Span) -> Result<PolicyRecord, Refusal> {
        self.ask(deadline, |reply| Command::ReplacePolicy { policy: Box::new(policy), version, asker, reply }).await
    }

    /// See [`Command::PutIntent`].
    ///
    /// # Errors
    /// As [`Self::replace_policy`].
    pub async fn put_intent(&self, request: Request, term: Term, asker: Asker, deadline: Span) -> Result<IntentRecord, Refusal> {
        self.ask(deadline, |reply| Command::PutIntent { request, term, asker, reply }).await
    }

    /// See [`Command::History`].
    ///
    /// # Errors
    /// As [`Self::replace_policy`].
    pub async fn history(&self, deadline: Span) -> Result<Vec<HistoryRecord>, Refusal> {
        self.ask(deadline, |reply| Command::History { reply }).await
    }

    /// See [`Command::Audit`].
    ///
    /// # Errors
    /// As [`Self::replace_policy`].
    pub async fn audit(&self, limit: usize, deadline: Span) -> Result<Vec<AuditRecord>, Refusal> {
        self.ask(deadline, |reply| Command::Audit { limit, reply }).await
    }

    /// Has this node decide on a question of another one; its answer, once that stands in the node file. `None`: not within `deadline`.
    pub async fn bind(&self, ask: Ask, deadline: Span) -> Option<Answer> {
        let nonce = ask.nonce.clone();
        let mut published = self.published.clone();
        self.asks.try_send(Asked { ask, at: clock::boot() }).ok()?;
        let answered = published.wait_for(|published| answer_of(published.as_deref(), &nonce).is_some());
        let published = tokio::time::timeout(deadline.to_std(), answered).await.ok()?.ok()?;
        answer_of(published.as_deref(), &nonce)
    }

    async fn ask<T>(&self, deadline: Span, command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Busy("too many requests wait"),
            mpsc::error::TrySendError::Closed(_) => Refusal::Busy("it is ending"),
        })?;
        match tokio::time::timeout(deadline.to_std(), answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Refusal::Unknown("the agent ended before it answered".to_owned())),
            Err(_) => Err(Refusal::Unknown(format!("no answer within {deadline}"))),
        }
    }
}

fn answer_of(published: Option<&Published>, nonce: &Nonce) -> Option<Answer> {
    published.and_then(|published| answer_to(&published.snapshot, &published.decision, nonce))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_nobody_serves_is_unknown_and_one_too_many_is_refused() {
        let (handle, seat) = pair("a1");
        let soon = Span::from_millis(20);
        assert!(matches!(handle.history(soon).await, Err(Refusal::Unknown(_))));
        for _ in 1..COMMANDS {
            assert!(matches!(handle.history(Span::ZERO).await, Err(Refusal::Unknown(_))));
        }
        assert!(matches!(handle.history(soon).await, Err(Refusal::Busy(_))));
        drop(seat);
        assert_eq!(handle.audit(1, soon).await, Err(Refusal::Busy("it is ending")));
    }
}
