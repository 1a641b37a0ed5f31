//! Which questions are let in.
//!
//! A question that was heard before is refused by its count. One from before this run of the API would not be remembered, so a question names
//! the run that it is meant for, which only a reply of that run can have told.

use super::{
    SEAL,
    message::{Question, Reply, VERSION},
    seal::Key,
};
use crate::{
    clock,
    model::{
        failsafe::{Answer, Ask},
        node::{ClusterName, Incarnation, NodeName, Nonce},
    },
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// So many askers are remembered; then a new run begins, for which older questions are not meant.
const REMEMBERED: usize = 256;

/// Lets questions in: of this cluster, for this node, sealed, and each once.
#[derive(Debug)]
pub struct Door {
    key: Key,
    cluster: ClusterName,
    node: NodeName,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    run: Incarnation,
    counts: BTreeMap<Incarnation, u64>,
}

/// A question that was let in.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry {
    /// It is new: answer it.
    New(Ask),
    /// It is meant for another run, or for none: reply without an answer.
    Again(Nonce),
}

/// Why a question is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Whoever sent it does not have the key, or it was changed on its way.
    #[error("its seal ({SEAL}) is missing or wrong")]
    Forged,
    /// It cannot be read.
    #[error("it is no question of this version")]
    Unreadable,
    /// It is for another cluster or node.
    #[error("it is meant for another node")]
    Misdirected,
    /// It was heard before.
    #[error("it was heard before, or a later one was")]
    Replayed,
}

impl Door {
    /// The door of a node's API.
    pub fn new(key: Key, cluster: ClusterName, node: NodeName) -> Self {
        Self { key, cluster, node, seen: Mutex::new(Seen { run: clock::incarnation(), counts: BTreeMap::new() }) }
    }

    /// Looks at a question as it came.
    ///
    /// # Errors
    /// [`Refused`]: nothing is done about it.
    pub fn open(&self, body: &[u8], seal: Option<&str>) -> Result<Entry, Refused> {
        if !seal.is_some_and(|seal| self.key.seals_question(body, seal)) {
            return Err(Refused::Forged);
        }
        let question: Question = serde_json::from_slice(body).map_err(|_| Refused::Unreadable)?;
        if question.v != VERSION {
            return Err(Refused::Unreadable);
        }
        if question.cluster != self.cluster || question.to != self.node {
            return Err(Refused::Misdirected);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if question.to_run.as_ref() != Some(&seen.run) {
            return Ok(Entry::Again(question.ask.nonce));
        }
        if seen.counts.get(&question.from).is_some_and(|count| question.count <= *count) {
            return Err(Refused::Replayed);
        }
        if seen.counts.len() >= REMEMBERED {
            *seen = Seen { run: clock::incarnation(), counts: BTreeMap::new() };
            return Ok(Entry::Again(question.ask.nonce));
        }
        seen.counts.insert(question.from, question.count);
        Ok(Entry::New(question.ask))
    }

    /// A reply's body and its seal. `answer`: `None` asks to be asked again.
    pub fn reply(&self, nonce: &Nonce, answer: Option<Answer>) -> (Vec<u8>, String) {
        let run = self.seen.lock().unwrap_or_else(PoisonError::into_inner).run.clone();
        let body = crate::model::record::to_text(&Reply { v: VERSION, run, answer }).into_bytes();
        let seal = self.key.of_reply(nonce, &body);
        (body, seal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{lsn::Lsn, moment::Span, node::Replica, secret::Secret, term::Term, timeline::TimelineId};

    fn key(letter: &str) -> Key {
        Key::new(&Secret::new(letter.repeat(32)))
    }

    fn door() -> Door {
        Door::new(key("a"), "orders".parse().expect("cluster"), "n2".parse().expect("node"))
    }

    fn question(to_run: Option<Incarnation>, count: u64) -> Question {
        let holder = Replica::new("n1".parse().expect("node"), "000000a1".parse().expect("data"));
        let (hold, wait) = (Span::from_millis(2_800), Span::from_millis(3_300));
        let (tli, lsn) = (TimelineId::FIRST, Lsn::ZERO);
        let ask = Ask { holder, term: Term::new(3), hold, wait, tli, lsn, nonce: "q1".parse().expect("nonce") };
        let from = "a1".parse().expect("run");
        Question { v: VERSION, cluster: "orders".parse().expect("cluster"), from, count, to: "n2".parse().expect("node"), to_run, ask }
    }

    fn sent(door: &Door, question: &Question) -> Result<Entry, Refused> {
        let body = crate::model::record::to_text(question).into_bytes();
        door.open(&body, Some(&key("a").of_question(&body)))
    }

    fn run_of(door: &Door) -> Incarnation {
        let nonce = "q1".parse().expect("nonce");
        let (body, seal) = door.reply(&nonce, None);
        assert!(key("a").seals_reply(&nonce, &body, &seal));
        serde_json::from_slice::<Reply>(&body).expect("reply").run
    }

    #[test]
    fn a_question_is_let_in_once_by_the_run_that_it_names() {
        let door = door();
        assert!(matches!(sent(&door, &question(None, 0)), Ok(Entry::Again(_))));
        let run = Some(run_of(&door));
        assert!(matches!(sent(&door, &question(run.clone(), 1)), Ok(Entry::New(_))));
        assert_eq!(sent(&door, &question(run.clone(), 1)), Err(Refused::Replayed));
        assert_eq!(sent(&door, &question(run.clone(), 0)), Err(Refused::Replayed), "a late one");
        assert!(matches!(sent(&door, &question(run.clone(), 2)), Ok(Entry::New(_))));
        // After a restart nothing that was meant for the run before is taken.
        assert!(matches!(sent(&self::door(), &question(run, 3)), Ok(Entry::Again(_))));
    }

    #[test]
    fn what_is_forged_changed_misdirected_or_unreadable_is_refused() {
        let door = door();
        let asked = question(Some(run_of(&door)), 1);
        let body = crate::model::record::to_text(&asked).into_bytes();
        assert_eq!(door.open(&body, None), Err(Refused::Forged));
        assert_eq!(door.open(&body, Some(&key("b").of_question(&body))), Err(Refused::Forged));
        let changed = String::from_utf8_lossy(&body).replace("2.8s", "9.8s").into_bytes();
        assert_ne!(changed, body);
        assert_eq!(door.open(&changed, Some(&key("a").of_question(&body))), Err(Refused::Forged));
        assert_eq!(sent(&door, &Question { to: "n3".parse().expect("node"), ..asked.clone() }), Err(Refused::Misdirected));
        assert_eq!(sent(&door, &Question { cluster: "other".parse().expect("name"), ..asked.clone() }), Err(Refused::Misdirected));
        assert_eq!(sent(&door, &Question { v: 2, ..asked }), Err(Refused::Unreadable));
        assert_eq!(door.open(b"{}", Some(&key("a").of_question(b"{}"))), Err(Refused::Unreadable));
    }

    #[test]
    fn many_askers_begin_a_new_run() {
        let door = door();
        let first = run_of(&door);
        for number in 0..=REMEMBERED {
            let from = format!("a{number}").parse().expect("run");
            let entry = sent(&door, &Question { from, ..question(Some(first.clone()), 1) });
            assert_eq!(matches!(entry, Ok(Entry::New(_))), number < REMEMBERED, "{number}: {entry:?}");
        }
        assert_ne!(run_of(&door), first);
    }
}
