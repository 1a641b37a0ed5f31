//! Which faults a swarm draws from.

use super::Fault;
use crate::sim::Swarm;

/// What goes wrong in every cluster.
const KINDS: &[Fault] = &[
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::AgentPaused,
    Fault::GuardKilled,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::PostmasterKilled,
    Fault::PostmasterKilled,
    Fault::ServerFrozen,
    Fault::HostLost,
    Fault::HostLost,
    Fault::HostSuspended,
    Fault::AllHostsLost,
    Fault::EtcdCut,
    Fault::EtcdDeaf,
    Fault::EtcdMute,
    Fault::Isolated,
    Fault::Isolated,
    Fault::StreamsCut,
    Fault::OneWayCut,
    Fault::EtcdElection,
    Fault::EtcdElection,
    Fault::EtcdLost,
    Fault::AmbiguousAnswers,
    Fault::AmbiguousAnswers,
    Fault::LossyNetwork,
    Fault::SlowStreams,
    Fault::SlowDisk,
    Fault::SickDisk,
    Fault::BadStarts,
    Fault::WatchStalled,
    Fault::BrittleAgents,
    Fault::BrittleAgents,
    Fault::NodeStopped,
    Fault::DirectoryWiped,
    Fault::PolicyChanged,
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
    Fault::ClockDrifts,
    Fault::WritesQueued,
    Fault::Ring,
    Fault::SlowEtcd,
    Fault::SlowServer,
    Fault::WatchGap,
    Fault::WatchReplays,
    Fault::EtcdCompacted,
    Fault::HostFrozen,
    Fault::HostRolledBack,
    Fault::FileLost,
    Fault::HostCopied,
    Fault::EtcdRestored,
    Fault::PrefixWiped,
    Fault::NamesByHand,
    Fault::PeersCut,
    Fault::EtcdFull,
    Fault::KeyDeleted,
];

/// Operators at work, and what comes in their way.
const OPERATORS: &[Fault] = &[
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
    Fault::Operator,
    Fault::AmbiguousAnswers,
    Fault::EtcdMute,
    Fault::EtcdCut,
    Fault::AgentKilled,
    Fault::AgentPaused,
    Fault::PostmasterKilled,
    Fault::HostLost,
    Fault::Isolated,
    Fault::BrittleAgents,
    Fault::ResumptionMissed,
    Fault::ResumptionMissed,
];

/// Holds and waits that change while answers are lost.
const POLICY: &[Fault] = &[
    Fault::PolicyChanged,
    Fault::PolicyChanged,
    Fault::PolicyChanged,
    Fault::AgentPaused,
    Fault::AgentPaused,
    Fault::AmbiguousAnswers,
    Fault::EtcdCut,
    Fault::EtcdMute,
    Fault::EtcdMute,
    Fault::Isolated,
];

/// etcd goes back, is wiped, forgets and repeats, while agents come and go.
const ETCD: &[Fault] = &[
    Fault::EtcdRestored,
    Fault::EtcdRestored,
    Fault::PrefixWiped,
    Fault::WatchGap,
    Fault::WatchReplays,
    Fault::EtcdCompacted,
    Fault::WatchStalled,
    Fault::EtcdElection,
    Fault::EtcdFull,
    Fault::KeyDeleted,
    Fault::KeyDeleted,
    Fault::WritesQueued,
    Fault::AgentKilled,
    Fault::AgentKilled,
    Fault::HostLost,
    Fault::PostmasterKilled,
];

/// Clocks, and hosts that stand still.
const CLOCKS: &[Fault] = &[
    Fault::HostFrozen,
    Fault::HostFrozen,
    Fault::HostSuspended,
    Fault::ClockDrifts,
    Fault::AgentPaused,
    Fault::EtcdCut,
    Fault::Isolated,
    Fault::SlowServer,
    Fault::PostmasterKilled,
    Fault::HostLost,
    Fault::StillUntilCut,
    Fault::StillUntilCut,
    Fault::StillUntilCut,
];

/// Data that goes back, is lost, or is half there.
const DATA: &[Fault] = &[
    Fault::HostRolledBack,
    Fault::HostRolledBack,
    Fault::FileLost,
    Fault::HostCopied,
    Fault::HostCopied,
    Fault::CopyAmbushed,
    Fault::DirectoryWiped,
    Fault::NodeStopped,
    Fault::BrittleAgents,
    Fault::StreamsCut,
    Fault::HostLost,
    Fault::PostmasterKilled,
    Fault::Isolated,
    Fault::SlowStreams,
];

/// Members that leave while others do not see it.
const MEMBERS: &[Fault] = &[
    Fault::WatchGap,
    Fault::WatchGap,
    Fault::WatchStalled,
    Fault::StreamsCut,
    Fault::StreamsCut,
    Fault::HostLost,
    Fault::GuardKilled,
    Fault::EtcdMute,
    Fault::Isolated,
    Fault::SyncHeld,
    Fault::SyncHeld,
    Fault::NamesByHand,
    Fault::NamesByHand,
];

/// Primaries that nobody comes to know of: they die before etcd has heard of their promotion.
const PROMOTIONS: &[Fault] = &[
    Fault::PromotionOrphaned,
    Fault::PromotionOrphaned,
    Fault::PromotionOrphaned,
    Fault::PostmasterKilled,
    Fault::PostmasterKilled,
    Fault::HostLost,
    Fault::Isolated,
    Fault::AgentKilled,
    Fault::StreamsCut,
    Fault::SlowStreams,
];

/// Agents that are replaced while what they sent is still on its way; networks in pieces.
const QUEUES: &[Fault] = &[
    Fault::WritesQueued,
    Fault::WritesQueued,
    Fault::SlowEtcd,
    Fault::LossyNetwork,
    Fault::AmbiguousAnswers,
    Fault::Ring,
    Fault::OneWayCut,
    Fault::PeersCut,
    Fault::EtcdCut,
    Fault::AgentKilled,
    Fault::PolicyChanged,
    Fault::HostLost,
    Fault::BrittleAgents,
    Fault::SyncHeld,
    Fault::SyncHeld,
    Fault::StreamsCut,
];

/// Guards that stand still, and what makes their agents ask them for something.
const GUARDS: &[Fault] = &[
    Fault::StartQueued,
    Fault::StartQueued,
    Fault::StartQueued,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::GuardStopped,
    Fault::PostmasterKilled,
    Fault::PostmasterKilled,
    Fault::PostmasterKilled,
    Fault::HostLost,
    Fault::AllHostsLost,
    Fault::Isolated,
    Fault::EtcdCut,
    Fault::AgentKilled,
    Fault::StreamsCut,
    Fault::Operator,
];

impl Swarm {
    pub(in crate::sim) const fn kinds(self) -> &'static [Fault] {
        match self {
            Self::All => KINDS,
            Self::Policy => POLICY,
            Self::Etcd => ETCD,
            Self::Clocks => CLOCKS,
            Self::Data => DATA,
            Self::Queues => QUEUES,
            Self::Members => MEMBERS,
            Self::Promotions => PROMOTIONS,
            Self::Operators => OPERATORS,
            Self::Guards => GUARDS,
        }
    }
}
