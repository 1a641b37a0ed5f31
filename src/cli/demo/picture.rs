//! What is on the screen, as plain data.

use super::{act::Act, report::Report, watch::Told};
use crate::{api::status::Status, lab::MemberLook, model::moment::Span};
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
    /// What it says of itself, and how long ago.
    pub(super) status: Option<(Span, Status)>,
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
        let (text, state) = match (disabled.get(&act), active.get(&act), act.undo_words()) {
            (Some(why), _, _) => (act.words().to_owned(), KeyState::Disabled(why.clone())),
            (None, Some(node), Some(undo)) if node.is_empty() => (format!("{undo} etcd"), KeyState::Undoes),
            (None, Some(node), Some(undo)) => (format!("{undo} {node}"), KeyState::Undoes),
            _ => (act.words().to_owned(), KeyState::Ready),
        };
        KeyPicture { key: act.key(), text, state }
    };
    Act::ALL.into_iter().map(key).collect()
}
