//! Faults: what can go wrong, and what was done so far about it.

use super::host::NotHere;
use crate::model::moment::Moment;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What can go wrong. Nodes and hosts are given by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL for a node's postmaster alone; its backends live on until they notice (EXP-1).
    PostmasterKill(String),
    /// The power of a node's host, or of any other host, goes.
    PowerOff(String),
    /// All hosts of the database nodes lose power at once.
    AllNodesOff,
    /// Nothing reaches a node's host, nothing leaves it.
    Partition(String),
    /// The port of a node's host goes down: its `eth0` sees no carrier.
    PortDown(String),
    /// One direction of a node's host is lost.
    OneWay(String, Direction),
    /// A node loses etcd, and nothing else.
    CutFromEtcd(String),
    /// A node loses the other nodes, and nothing else.
    CutFromPeers(String),
    /// Everything on a node's host stands still.
    Freeze(String),
    /// SIGKILL for a node's agent.
    AgentKill(String, Return),
    /// SIGKILL for a node's guard.
    GuardKill(String),
    /// SIGKILL for the etcd leader.
    EtcdLeaderKill,
    /// SIGKILL for one etcd member that follows.
    EtcdFollowerKill,
    /// SIGKILL for so many etcd members that the rest is no majority.
    EtcdQuorumLoss,
    /// The power of a node's host and of the etcd leader's goes at once.
    PrimaryAndEtcdLeader(String),
    /// A node loses power and its data directory before it comes back.
    WipeData(String),
    /// A node's disk is full.
    DiskFull(String),
    /// A node's disk answers nothing but EIO.
    DiskDead(String),
    /// A second machine with a copy of a node's disk joins the network: same name, another address.
    CopiedHost(String),
    /// A node's agent is replaced by another binary.
    AgentUpgrade(String, PathBuf),
}

/// A direction, as the faulty host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What it sends is lost.
    Outbound,
    /// What is sent to it is lost.
    Inbound,
}

/// Whether an agent that was killed is started again at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Return {
    /// As a service manager would.
    AtOnce,
    /// Not until the fault is undone.
    WhenUndone,
}

/// A fault at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Which.
    pub fault: Fault,
    /// When it began: read just before its first step.
    pub at: Moment,
    pub(super) undo: Vec<Undo>,
}

/// One step back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Undo {
    PowerOn(String),
    Mend(String),
    CarrierUp(String),
    NewBoot(String),
    Thaw(String),
    AgentReturns(String),
    EtcdStarts,
    MakeRoom(String),
    CopyGoes(String),
}

/// Why a fault was not injected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be done in this lab; nothing was done.
    #[error(transparent)]
    NotHere(#[from] NotHere),
    /// It failed on the way; what was done by then is undone by [`Lab::heal_all`].
    #[error("{fault}: {source:#}")]
    Failed {
        /// Its name.
        fault: String,
        /// Why.
        source: anyhow::Error,
    },
}

impl Fault {
    /// A name for logs and reports: `postmaster-kill n1`.
    pub fn name(&self) -> String {
        match self {
            Self::PostmasterKill(node) => format!("postmaster-kill {node}"),
            Self::PowerOff(host) => format!("power-off {host}"),
            Self::AllNodesOff => "all-nodes-off".into(),
            Self::Partition(node) => format!("partition {node}"),
            Self::PortDown(node) => format!("port-down {node}"),
            Self::OneWay(node, Direction::Outbound) => format!("one-way-outbound {node}"),
            Self::OneWay(node, Direction::Inbound) => format!("one-way-inbound {node}"),
            Self::CutFromEtcd(node) => format!("cut-from-etcd {node}"),
            Self::CutFromPeers(node) => format!("cut-from-peers {node}"),
            Self::Freeze(node) => format!("freeze {node}"),
            Self::AgentKill(node, Return::AtOnce) => format!("agent-kill {node}"),
            Self::AgentKill(node, Return::WhenUndone) => format!("agent-loss {node}"),
            Self::GuardKill(node) => format!("guard-kill {node}"),
            Self::EtcdLeaderKill => "etcd-leader-kill".into(),
            Self::EtcdFollowerKill => "etcd-follower-kill".into(),
            Self::EtcdQuorumLoss => "etcd-quorum-loss".into(),
            Self::PrimaryAndEtcdLeader(node) => format!("power-off-with-etcd-leader {node}"),
            Self::WipeData(node) => format!("wipe-data {node}"),
            Self::DiskFull(node) => format!("disk-full {node}"),
            Self::DiskDead(node) => format!("disk-dead {node}"),
            Self::CopiedHost(node) => format!("copied-host {node}"),
            Self::AgentUpgrade(node, _) => format!("agent-upgrade {node}"),
        }
    }
}
