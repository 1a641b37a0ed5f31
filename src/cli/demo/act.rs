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
            Self::KillEtcdLeader => Some("start etcd's member"),
        }
    }

    /// What it does while `primary` is primary, in few words.
    pub(super) fn words_with(self, primary: &str) -> String {
        match self {
            Self::CutOff => format!("cut the host of {primary} off"),
            Self::KillEtcdLeader => self.words().to_owned(),
            _ => format!("{} of {primary}", self.words()),
        }
    }

    /// What takes it back from `node`, in few words; `None` where nothing has to be taken back.
    pub(super) fn undo_words_with(self, node: &str) -> Option<String> {
        let words = self.undo_words()?;
        Some(if self == Self::KillEtcdLeader { words.to_owned() } else { format!("{words} {node}") })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_the_node_unless_it_is_etcd_that_suffers() {
        let said = |act: Act| (act.words_with("n3"), act.undo_words_with("n3"));
        assert_eq!(said(Act::CutOff), ("cut the host of n3 off".into(), Some("reconnect n3".into())));
        assert_eq!(said(Act::LoseAgent), ("lose the agent of n3".into(), Some("start the agent of n3".into())));
        assert_eq!(said(Act::KillPostmaster), ("kill the postmaster of n3".into(), None));
        assert_eq!(said(Act::KillEtcdLeader), ("kill etcd's leader".into(), Some("start etcd's member".into())));
    }
}
