//! Which faults, in which order and for how long: chosen by a seed alone, so aimed at parts that are played and not at nodes.

use super::{
    super::fault::{Direction, Fault, Return},
    lots::Lots,
};
use crate::model::{moment::Span, policy::Durability};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whom a fault is aimed at, as it is found when the fault begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// Whoever clients write to.
    Primary,
    /// One of the others; the number chooses among them.
    Replica(u8),
}

/// What is done to somebody, or to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Harm {
    /// [`Fault::PostmasterKill`].
    PostmasterKill,
    /// [`Fault::GuardKill`].
    GuardKill,
    /// [`Fault::AgentKill`], back at once.
    AgentKill,
    /// [`Fault::AgentKill`], away until the end of the round.
    AgentLoss,
    /// Ctrl-C for the agent: the node hands over in order.
    Interrupt,
    /// An operator lets another node take over from a primary that is well.
    HandOver,
    /// An operator chooses other timers, and another number of standbys that have to confirm.
    Policy,
    /// Somebody sets `synchronous_standby_names` of a replica by hand, to nobody.
    Names,
    /// [`Fault::PowerOff`].
    PowerOff,
    /// [`Fault::PowerOff`] of the etcd leader's host too.
    PowerOffWithEtcdLeader,
    /// [`Fault::AllNodesOff`].
    AllNodesOff,
    /// [`Fault::Partition`].
    Partition,
    /// [`Fault::PortDown`].
    PortDown,
    /// [`Fault::OneWay`]: what it sends is lost.
    Outbound,
    /// [`Fault::OneWay`]: what is sent to it is lost.
    Inbound,
    /// [`Fault::CutFromEtcd`].
    CutFromEtcd,
    /// [`Fault::CutFromPeers`].
    CutFromPeers,
    /// [`Fault::Freeze`].
    Freeze,
    /// [`Fault::WipeData`].
    WipeData,
    /// [`Fault::EtcdLeaderKill`].
    EtcdLeaderKill,
    /// [`Fault::EtcdFollowerKill`].
    EtcdFollowerKill,
    /// [`Fault::EtcdQuorumLoss`].
    EtcdQuorumLoss,
}

impl Harm {
    /// The fault, for a node; `None` for what the lab has no fault for: an interrupt, and what people do.
    pub fn fault(self, node: String) -> Option<Fault> {
        Some(match self {
            Self::PostmasterKill => Fault::PostmasterKill(node),
            Self::GuardKill => Fault::GuardKill(node),
            Self::AgentKill => Fault::AgentKill(node, Return::AtOnce),
            Self::AgentLoss => Fault::AgentKill(node, Return::WhenUndone),
            Self::Interrupt | Self::HandOver | Self::Policy | Self::Names => return None,
            Self::PowerOff => Fault::PowerOff(node),
            Self::PowerOffWithEtcdLeader => Fault::PrimaryAndEtcdLeader(node),
            Self::AllNodesOff => Fault::AllNodesOff,
            Self::Partition => Fault::Partition(node),
            Self::PortDown => Fault::PortDown(node),
            Self::Outbound => Fault::OneWay(node, Direction::Outbound),
            Self::Inbound => Fault::OneWay(node, Direction::Inbound),
            Self::CutFromEtcd => Fault::CutFromEtcd(node),
            Self::CutFromPeers => Fault::CutFromPeers(node),
            Self::Freeze => Fault::Freeze(node),
            Self::WipeData => Fault::WipeData(node),
            Self::EtcdLeaderKill => Fault::EtcdLeaderKill,
            Self::EtcdFollowerKill => Fault::EtcdFollowerKill,
            Self::EtcdQuorumLoss => Fault::EtcdQuorumLoss,
        })
    }

    /// Whether etcd loses a member by it.
    const fn is_felt_by_etcd(self) -> bool {
        matches!(self, Self::PowerOffWithEtcdLeader | Self::EtcdLeaderKill | Self::EtcdFollowerKill | Self::EtcdQuorumLoss)
    }

    /// Whether nobody is left to be hit by a second one, or what is left must not be hit.
    const fn stands_alone(self) -> bool {
        matches!(self, Self::AllNodesOff | Self::WipeData)
    }

    /// Whether its victim may go on for a while where others cannot see it: then somebody on its host writes to it.
    pub const fn makes_an_island(self) -> bool {
        matches!(
            self,
            Self::Partition
                | Self::PortDown
                | Self::Outbound
                | Self::Inbound
                | Self::CutFromEtcd
                | Self::CutFromPeers
                | Self::AgentLoss
                | Self::EtcdQuorumLoss
        )
    }
}

/// One harm and its victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blow {
    /// What is done.
    pub harm: Harm,
    /// To whom; means nothing where etcd alone is hit.
    pub whom: Whom,
}

impl fmt::Display for Harm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HandOver => f.write_str("hand-over"),
            Self::Policy => f.write_str("other policy"),
            Self::Names => f.write_str("names by hand"),
            harm => f.write_str(harm.fault(String::new()).map_or_else(|| "interrupt".to_owned(), |fault| fault.name()).trim()),
        }
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.whom {
            Whom::Primary => write!(f, "{} of the primary", self.harm),
            Whom::Replica(number) => write!(f, "{} of replica {}", self.harm, number + 1),
        }
    }
}

/// One round: a quiet time, one or two blows, the time until all is healed, and what is waited for then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Before the first blow.
    pub quiet: Span,
    /// The first one.
    pub first: Blow,
    /// A second one, so long after the first.
    pub second: Option<(Span, Blow)>,
    /// From the last blow until everything is healed.
    pub lasts: Span,
    /// Whether the next round begins on a healthy cluster, and not as soon as somebody acknowledges a write.
    pub recovers: bool,
}

impl Round {
    /// How long it takes, without what is waited for at its end.
    pub fn length(&self) -> Span {
        self.quiet.plus(self.second.map_or(Span::ZERO, |(after, _)| after)).plus(self.lasts)
    }

    /// Its blows.
    pub fn blows(&self) -> impl Iterator<Item = Blow> {
        [Some(self.first), self.second.map(|(_, blow)| blow)].into_iter().flatten()
    }
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}: {}", self.quiet, self.first)?;
        if let Some((after, blow)) = &self.second {
            write!(f, ", {after} later {blow}")?;
        }
        write!(f, "; healed after {}{}", self.lasts, if self.recovers { ", then healthy" } else { "" })
    }
}

/// The rounds that a seed chooses. Never ends.
#[derive(Clone, Debug)]
pub struct Schedule {
    lots: Lots,
    /// How many rounds were chosen.
    count: u64,
    durability: Durability,
    /// Whether the round before ended on a healthy cluster: only then data may be wiped, or its only copy could be meant.
    healthy: bool,
}

/// What a primary suffers, by weight. Most of it costs it the leadership.
const OF_PRIMARIES: &[(u64, Harm)] = &[
    (3, Harm::PostmasterKill),
    (2, Harm::GuardKill),
    (1, Harm::AgentKill),
    (2, Harm::AgentLoss),
    (2, Harm::Interrupt),
    (2, Harm::HandOver),
    (2, Harm::Policy),
    (4, Harm::PowerOff),
    (2, Harm::PowerOffWithEtcdLeader),
    (1, Harm::AllNodesOff),
    (3, Harm::Partition),
    (1, Harm::PortDown),
    (2, Harm::Outbound),
    (2, Harm::Inbound),
    (2, Harm::CutFromEtcd),
    (1, Harm::CutFromPeers),
    (2, Harm::Freeze),
    (1, Harm::WipeData),
];

/// What costs a primary its place for certain, when it lasts and nothing else is wrong.
const DEADLY: &[(u64, Harm)] = &[
    (3, Harm::PowerOff),
    (2, Harm::PowerOffWithEtcdLeader),
    (2, Harm::Partition),
    (1, Harm::Outbound),
    (1, Harm::Inbound),
    (1, Harm::CutFromEtcd),
    (1, Harm::AgentLoss),
];

/// Every so many rounds, and in the first one, a primary is lost and nothing else: no run without a change of primary.
const CERTAIN: u64 = 4;

/// What replicas and etcd suffer.
const OF_OTHERS: &[(u64, Harm)] = &[
    (2, Harm::PostmasterKill),
    (1, Harm::GuardKill),
    (1, Harm::AgentKill),
    (2, Harm::PowerOff),
    (2, Harm::Partition),
    (1, Harm::Inbound),
    (1, Harm::CutFromEtcd),
    (2, Harm::CutFromPeers),
    (1, Harm::Freeze),
    (2, Harm::Names),
    (1, Harm::WipeData),
    (3, Harm::EtcdLeaderKill),
    (1, Harm::EtcdFollowerKill),
    (1, Harm::EtcdQuorumLoss),
];

impl Schedule {
    /// The rounds of a seed for a mode.
    pub const fn new(seed: u64, durability: Durability) -> Self {
        Self { lots: Lots::new(seed, 0), count: 0, durability, healthy: true }
    }

    fn blow(&mut self, primary_percent: u64, fits: impl Fn(Harm) -> bool) -> Blow {
        let (wanted, whom) = if self.lots.chance(primary_percent) {
            (OF_PRIMARIES, Whom::Primary)
        } else {
            (OF_OTHERS, Whom::Replica(u8::try_from(self.lots.below(2)).unwrap_or_default()))
        };
        let asynchronous = self.durability == Durability::Async;
        // A machine that stands still and goes on is outside of what `async` promises.
        let in_mode = |harm: Harm| !(asynchronous && whom == Whom::Primary && harm == Harm::Freeze);
        let fitting: Vec<(u64, Harm)> = wanted.iter().copied().filter(|(_, harm)| fits(*harm) && in_mode(*harm)).collect();
        // Neither list is ever left empty: both hold harms that fit everywhere.
        Blow { harm: self.lots.weighed(&fitting).unwrap_or(Harm::PowerOff), whom }
    }
}

impl Iterator for Schedule {
    type Item = Round;

    fn next(&mut self) -> Option<Round> {
        let (quiet, healthy) = (self.lots.millis(500, 3_000), self.healthy);
        self.count += 1;
        self.healthy = self.lots.chance(50);
        if self.count % CERTAIN == 1 {
            let first = Blow { harm: self.lots.weighed(DEADLY).unwrap_or(Harm::PowerOff), whom: Whom::Primary };
            return Some(Round { quiet, first, second: None, lasts: self.lots.millis(6_000, 8_000), recovers: self.healthy });
        }
        let first = self.blow(75, |harm| healthy || harm != Harm::WipeData);
        let second = !first.harm.stands_alone() && self.lots.chance(25);
        let second = second.then(|| {
            let after = self.lots.millis(100, 3_000);
            let etcd = first.harm.is_felt_by_etcd();
            (after, self.blow(50, |harm| !(harm.stands_alone() || (etcd && harm.is_felt_by_etcd()))))
        });
        // Either over before anybody follows, or long enough for somebody to.
        let lasts = if self.lots.chance(20) { self.lots.millis(100, 1_500) } else { self.lots.millis(4_000, 8_000) };
        Some(Round { quiet, first, second, lasts, recovers: self.healthy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(seed: u64, durability: Durability) -> Vec<Round> {
        Schedule::new(seed, durability).take(60).collect()
    }

    #[test]
    fn a_seed_is_one_schedule_and_another_seed_another() {
        assert_eq!(rounds(1, Durability::Quorum), rounds(1, Durability::Quorum));
        assert_ne!(rounds(1, Durability::Quorum), rounds(2, Durability::Quorum));
    }

    #[test]
    fn every_harm_is_chosen() {
        let all: Vec<Round> = (0..20).flat_map(|seed| rounds(seed, Durability::Quorum)).collect();
        for (list, whom) in [(OF_PRIMARIES, "Primary"), (OF_OTHERS, "Replica")] {
            for (_, harm) in list {
                let chosen = |blow: Blow| blow.harm == *harm && format!("{:?}", blow.whom).starts_with(whom);
                assert!(all.iter().any(|round| round.blows().any(chosen)), "{harm:?} of {whom} is never chosen");
            }
        }
    }

    #[test]
    fn a_primary_is_lost_for_certain_in_the_first_round_and_every_few() {
        let deadly = |round: &Round| {
            let harmful = DEADLY.iter().any(|(_, harm)| *harm == round.first.harm) && round.first.whom == Whom::Primary;
            harmful && round.second.is_none() && round.lasts >= Span::from_secs(6)
        };
        for seed in 0..20 {
            let all = rounds(seed, Durability::Async);
            assert!(deadly(&all[0]) && all.chunks(4).all(|few| few.iter().any(deadly)), "seed {seed}");
        }
    }

    /// The only copy is no victim, and nothing is left to be hit after everything was.
    #[test]
    fn data_are_wiped_on_a_healthy_cluster_alone_and_alone() {
        for seed in 0..50 {
            let mut healthy = true;
            for round in rounds(seed, Durability::StrictQuorum) {
                if round.first.harm.stands_alone() {
                    assert_eq!(round.second, None);
                }
                assert!(round.first.harm != Harm::WipeData || healthy, "{round}");
                assert!(round.second.is_none_or(|(_, blow)| !blow.harm.stands_alone()), "{round}");
                healthy = round.recovers;
            }
        }
    }

    #[test]
    fn a_frozen_primary_is_outside_of_async() {
        let frozen = |durability| {
            (0..50)
                .flat_map(|seed| rounds(seed, durability))
                .any(|round| round.blows().any(|blow| blow == Blow { harm: Harm::Freeze, whom: Whom::Primary }))
        };
        assert!(frozen(Durability::Quorum) && !frozen(Durability::Async));
    }
}
