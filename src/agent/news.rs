//! What changed from one decision to the next, for those who watch: kept for a while, and handed out in order.

use super::handle::Published;
use crate::{
    decide::decision::ReasonKind,
    model::{record::LeaderState, term::Term},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// So many are kept: a reader who is further behind skips, and is told how many.
const KEPT: usize = 256;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventNews {
    /// When, for people (RFC 3339).
    pub at: String,
    /// `because`, `waits`, `refused` or `alarm`: a reason that was not given before. `ended`: one that is not given any more.
    /// `leader`: the record changed in more than its renewal. `routing`: where clients may be sent changed.
    pub kind: String,
    /// The reason's id, or `leader`, or `routing`.
    pub id: String,
    /// The sentence.
    pub text: String,
    /// The newest term that this node knew.
    pub term: Term,
}

/// The newest changes, and whoever waits for more. Cheap to clone.
#[derive(Clone, Debug)]
pub struct News {
    run: Arc<str>,
    kept: Arc<Mutex<Kept>>,
    /// The number of the newest one.
    newest: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The number of the first one in `ring`.
    first: u64,
    ring: VecDeque<EventNews>,
}

/// One reader's place in the [`News`].
#[derive(Debug)]
pub struct Reader {
    news: News,
    bell: watch::Receiver<u64>,
    next: u64,
}

/// What a [`Reader`] hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A change, with the id that a reader may come back with.
    Event(String, EventNews),
    /// So many were missed: the reader was too slow, or was away for too long.
    Missed(u64),
}

impl News {
    pub(super) fn new(run: &str) -> Self {
        let (newest, _) = watch::channel(0);
        Self { run: run.into(), kept: Arc::default(), newest: Arc::new(newest) }
    }

    /// Notes what changed. Waits for nothing but a short lock.
    pub(super) fn tell(&self, before: Option<&Published>, after: &Published) {
        let changes = changes(before, after);
        if changes.is_empty() {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            if kept.ring.len() == KEPT {
                kept.ring.pop_front();
                kept.first += 1;
            }
            kept.ring.push_back(change);
        }
        let end = kept.first + kept.ring.len() as u64;
        drop(kept);
        self.newest.send_replace(end);
    }

    pub(super) fn listen(&self, after: Option<&str>) -> Reader {
        let bell = self.newest.subscribe();
        let end = *bell.borrow();
        let next = match after.and_then(|id| id.rsplit_once('-')) {
            // An id of this run: what follows it. Of another run: everything since our start is new to the reader.
            Some((run, number)) if *run == *self.run => number.parse::<u64>().map_or(end, |number| number.saturating_add(1).min(end)),
            Some(_) => 0,
            None => end,
        };
        Reader { news: self.clone(), bell, next }
    }
}

impl Reader {
    /// The next change; waits for it. `None` once the agent is gone.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.kept() {
                return Some(heard);
            }
            self.bell.changed().await.ok()?;
        }
    }

    fn kept(&mut self) -> Option<Heard> {
        let kept = self.news.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if self.next < kept.first {
            let missed = kept.first - self.next;
            self.next = kept.first;
            return Some(Heard::Missed(missed));
        }
        let index = usize::try_from(self.next - kept.first).ok()?;
        let event = kept.ring.get(index)?.clone();
        let id = format!("{}-{}", self.news.run, self.next);
        self.next += 1;
        Some(Heard::Event(id, event))
    }
}

/// What is new. A reason is known by its id: changed numbers are no news.
fn changes(before: Option<&Published>, after: &Published) -> Vec<EventNews> {
    let leader = after.snapshot.leader().map(|leader| &leader.record);
    let term = leader.map_or(Term::ZERO, |leader| leader.term).max(after.snapshot.file.term);
    let news = |kind: &str, id: &str, text: String| EventNews {
        at: after.snapshot.fresh.wall.clone(),
        kind: kind.to_owned(),
        id: id.to_owned(),
        text,
        term,
    };
    let mut found = Vec::new();
    if let Some(tells) = leader_text(after)
        && before.and_then(leader_text).as_ref() != Some(&tells)
    {
        found.push(news("leader", "leader", tells));
    }
    let routed = before.map(|before| before.decision.routing.writes.is_some());
    let routes = after.decision.routing.writes.is_some();
    if routed.unwrap_or_default() != routes {
        let text = if routes { "writes may come to this node" } else { "writes may not come to this node any more" };
        found.push(news("routing", "routing", text.to_owned()));
    }
    let (old, new) = (before.map(reasons).unwrap_or_default(), reasons(after));
    for (id, (kind, text)) in &new {
        if old.get(id).is_none_or(|(before, _)| before != kind) {
            found.push(news(word(*kind), id, (*text).to_owned()));
        }
    }
    for (id, (_, text)) in old.iter().filter(|(id, _)| !new.contains_key(*id)) {
        found.push(news("ended", id, (*text).to_owned()));
    }
    found
}

fn reasons(published: &Published) -> BTreeMap<&str, (ReasonKind, &str)> {
    published.decision.reasons.iter().map(|reason| (reason.id.as_str(), (reason.kind, reason.text.as_str()))).collect()
}

/// How a reason's kind is written.
pub const fn word(kind: ReasonKind) -> &'static str {
    match kind {
        ReasonKind::Because => "because",
        ReasonKind::Waits => "waits",
        ReasonKind::Refused => "refused",
        ReasonKind::Alarm => "alarm",
    }
}

/// What `leader` says, without what each renewal changes. `None` as long as nothing was read from etcd: it may be there.
fn leader_text(published: &Published) -> Option<String> {
    let Some(leader) = published.snapshot.leader().map(|leader| &leader.record) else {
        let read = published.snapshot.etcd.records.revision > 0;
        return read.then(|| "there is no leader record".to_owned());
    };
    let (node, term, tli) = (&leader.holder.node, leader.term, leader.tli);
    Some(match &leader.state {
        LeaderState::Claimed => format!("{node} has claimed term {term}"),
        LeaderState::Serving => format!("{node} serves in term {term} on timeline {tli}"),
        LeaderState::Handoff { to } => format!("{node} hands term {term} over to {to}"),
        LeaderState::Vacant { reason } => format!("{node} released the lease of term {term}: {reason}"),
        LeaderState::Paused(pause) => format!("paused by {} in term {term}: {}", pause.by, pause.reason),
        LeaderState::Foreign { name } => format!("the leader record is in state {name:?}, which this version does not know"),
    })
}
