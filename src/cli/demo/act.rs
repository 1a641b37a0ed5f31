//! What can be done to the cluster, by key.

use crate::{
    lab::{Fault, Return},
    model::moment::Span,
};
use serde::Serialize;

/// One thing that can be done to the cluster; most are aimed at whoever is primary at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Act {
    KillPostmaster,
    PowerOff,
    CutOff,
    Freeze,
    KillAgent,
    LoseAgent,
    KillEtcdLeader,
}

impl Act {
    /// All of them, in the order of the tour.
    pub(super) const ALL: [Self; 7] =
        [Self::KillPostmaster, Self::PowerOff, Self::CutOff, Self::Freeze, Self::KillAgent, Self::LoseAgent, Self::KillEtcdLeader];

    /// Its key.
    pub(super) const fn key(self) -> char {
        match self {
            Self::KillPostmaster => 'k',
            Self::PowerOff => 'p',
            Self::CutOff => 'c',
            Self::Freeze => 'f',
            Self::KillAgent => 'a',
            Self::LoseAgent => 'l',
            Self::KillEtcdLeader => 'e',
        }
    }

    /// The act of a key.
    pub(super) fn of(key: char) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.key() == key)
    }

    /// What it does, in few words.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::KillPostmaster => "kill the postmaster",
            Self::PowerOff => "power off the host",
            Self::CutOff => "cut the host off",
            Self::Freeze => "freeze the host",
            Self::KillAgent => "kill the agent",
            Self::LoseAgent => "lose the agent",
            Self::KillEtcdLeader => "kill etcd's leader",
        }
    }

    /// What takes it back, in few words; `None` where nothing has to be taken back.
    pub(super) const fn undo_words(self) -> Option<&'static str> {
        match self {
            Self::KillPostmaster | Self::KillAgent => None,
            Self::PowerOff => Some("power on"),
            Self::CutOff => Some("reconnect"),
            Self::Freeze => Some("thaw"),
            Self::LoseAgent => Some("start the agent of"),
            Self::KillEtcdLeader => Some("start the member of"),
        }
    }

    /// The fault, with `primary` as its aim.
    pub(super) fn fault(self, primary: &str) -> Fault {
        let node = primary.to_owned();
        match self {
            Self::KillPostmaster => Fault::PostmasterKill(node),
            Self::PowerOff => Fault::PowerOff(node),
            Self::CutOff => Fault::Partition(node),
            Self::Freeze => Fault::Freeze(node),
            Self::KillAgent => Fault::AgentKill(node, Return::AtOnce),
            Self::LoseAgent => Fault::AgentKill(node, Return::WhenUndone),
            Self::KillEtcdLeader => Fault::EtcdLeaderKill,
        }
    }

    /// Whether PostgreSQL on the primary's host outlives it, for a while at the least: then somebody there goes on writing.
    pub(super) const fn leaves_a_writer(self) -> bool {
        !matches!(self, Self::PowerOff | Self::KillEtcdLeader)
    }

    /// Whether somebody ceases to stream by it, and has to come back.
    pub(super) const fn breaks_streaming(self) -> bool {
        !matches!(self, Self::KillAgent | Self::KillEtcdLeader)
    }

    /// For how long it has to be watched at the least. What ends a lease is felt only when the lease ends.
    pub(super) fn watched(self, hold: Span) -> Span {
        match self {
            Self::KillPostmaster | Self::PowerOff | Self::CutOff | Self::Freeze => Span::from_secs(2),
            Self::KillAgent | Self::LoseAgent | Self::KillEtcdLeader => hold.plus(Span::from_secs(2)),
        }
    }
}
