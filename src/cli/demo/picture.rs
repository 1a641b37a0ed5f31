//! What is on the screen, as plain data.

use super::{act::Act, report::Report, watch::Told};
use crate::{
    api::status::{LeaderStatus, Status},
    lab::MemberLook,
    model::{
        lsn::Lsn,
        moment::Span,
        record::{Lag, MemberRole},
        term::Term,
        timeline::TimelineId,
    },
};
use std::collections::BTreeMap;

/// One frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    /// Since the cluster stood.
    pub(super) up: Span,
    /// What separates the hosts.
    pub(super) hosts: String,
    pub(super) nodes: Vec<NodePicture>,
    pub(super) etcd: BTreeMap<String, MemberLook>,
    pub(super) writer: WriterPicture,
    /// Newest last, with when by the picture's clock.
    pub(super) events: Vec<(Span, Told)>,
    pub(super) report: Option<Report>,
    /// How many reports there are.
    pub(super) reports: usize,
    /// What goes on at the moment.
    pub(super) busy: Option<String>,
    pub(super) keys: Vec<KeyPicture>,
    pub(super) panel: Panel,
}

/// What the large panel shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Panel {
    /// The last fault and the events, side by side.
    #[default]
    Both,
    /// The reasons of the last fault.
    Why,
    Help,
}

/// One node.
#[derive(Clone, Debug, Default)]
pub(super) struct NodePicture {
    pub(super) name: String,
    /// What was done to it: `off`, `frozen`, `cut off`, `no agent`.
    pub(super) harm: Option<&'static str>,
    /// What it says of itself; `None` while it says nothing.
    pub(super) says: Option<Says>,
}

/// What a node says of itself and of those that it sees.
#[derive(Clone, Debug)]
pub(super) struct Says {
    /// How long ago.
    pub(super) age: Span,
    pub(super) role: MemberRole,
    pub(super) state: String,
    pub(super) tli: Option<TimelineId>,
    pub(super) lsn: Option<Lsn>,
    pub(super) term: Term,
    pub(super) lease_seconds_left: Option<f64>,
    pub(super) leader: Option<LeaderStatus>,
    /// How far each node is behind.
    pub(super) lags: BTreeMap<String, Lag>,
}

impl Says {
    pub(super) fn of(status: &Status, age: Span) -> Self {
        let own = status.members.iter().find(|member| member.node == status.node);
        Self {
            age,
            role: status.role,
            state: status.state.clone(),
            tli: own.and_then(|own| own.tli),
            lsn: own.and_then(|own| own.lsn),
            term: status.term,
            lease_seconds_left: status.lease_seconds_left,
            leader: status.leader.clone(),
            lags: status.members.iter().map(|member| (member.node.to_string(), member.lag)).collect(),
        }
    }
}

/// The client.
#[derive(Clone, Debug, Default)]
pub(super) struct WriterPicture {
    /// Acknowledged in the last second.
    pub(super) rate: u64,
    /// The same for each half second, newest last.
    pub(super) rates: Vec<u64>,
    pub(super) acked: usize,
    pub(super) to: Option<String>,
    /// Since the newest acknowledgement.
    pub(super) gap: Span,
    /// The longest gap of the last minute.
    pub(super) longest: Span,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyPicture {
    pub(super) key: char,
    pub(super) text: String,
    pub(super) state: KeyState,
}

/// Whether a key works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyState {
    Ready,
    /// The next press takes it back.
    Undoes,
    /// It cannot work, for this reason.
    Disabled(String),
}

/// The keys of all acts: what each does now, or why it cannot.
pub(super) fn keys(active: &BTreeMap<Act, String>, disabled: &BTreeMap<Act, String>) -> Vec<KeyPicture> {
    let key = |act: Act| {
        let undo = active.get(&act).and_then(|node| act.undo_words_with(node));
        let (text, state) = match (disabled.get(&act), undo) {
            (Some(why), _) => (act.words().to_owned(), KeyState::Disabled(why.clone())),
            (None, Some(undo)) => (undo, KeyState::Undoes),
            (None, None) => (act.words().to_owned(), KeyState::Ready),
        };
        KeyPicture { key: act.key(), text, state }
    };
    Act::ALL.into_iter().map(key).collect()
}
