//! What is done, in words: a verb with its object, as after "could not".

use super::decision::{Action, Purpose, Task};
use crate::model::instance::{StartAs, StopMode};
use std::fmt;

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Txn(purpose, _) => write!(f, "{purpose}"),
            Self::Arm { term, .. } => write!(f, "set the deadline of term {term}"),
            Self::Disarm { .. } | Self::DisarmPaused { .. } => f.write_str("take the deadline away"),
            Self::Start { start: StartAs::Primary, .. } => f.write_str("start PostgreSQL as a primary"),
            Self::Start { start: StartAs::Standby, .. } => f.write_str("start PostgreSQL as a standby"),
            Self::Stop { mode: StopMode::Immediate, .. } => f.write_str("stop PostgreSQL at once"),
            Self::InitDb => f.write_str("run initdb"),
            Self::DiscardInitialised => f.write_str("remove the directory that initdb made"),
            Self::Clone { source, .. } => write!(f, "clone from {}", source.node),
            Self::Rewind { source, .. } => write!(f, "rewind to the history of {}", source.node),
            Self::CreateSlot(name) => write!(f, "create the slot {name}"),
            Self::DropSlot(name) => write!(f, "drop the slot {name}"),
            Self::StopGuard => f.write_str("end the guard"),
            other => write!(f, "{}", other.task()),
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bootstrap => "ask to initialise the cluster",
            Self::FirstClaim => "make the first claim",
            Self::Renew => "renew the lease",
            Self::Adopt => "take the lease over from our former agent",
            Self::Claim => "claim the lease",
            Self::Prepare => "write `sync` and reserve a timeline",
            Self::Serve => "record that this node serves",
            Self::Release => "release the lease",
            Self::Handoff => "hand the claim over",
            Self::Pause => "pause the cluster",
            Self::Resume => "end the pause",
            Self::Acknowledge => "let failovers go on",
            Self::Membership => "change who may take over",
            Self::Promise => "publish the promise",
            Self::Register => "publish this node's present life",
            Self::Intent => "take the operator's request",
            Self::Prune => "remove old records",
            Self::Policy => "put the policy back",
            Self::Doubt => "say whether this etcd went back",
        })
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaderTxn => "write the leader record",
            Self::Txn => "write to etcd",
            Self::PutMember => "publish the member record",
            Self::AppendHistory => "record the change of primary",
            Self::WriteFile => "write the node file",
            Self::StartGuard => "start the guard",
            Self::Arm => "set the deadline",
            Self::Start => "start PostgreSQL",
            Self::Stop => "stop PostgreSQL",
            Self::Kill => "kill PostgreSQL",
            Self::Promote => "promote PostgreSQL",
            Self::Configure => "write the managed configuration",
            Self::Cut => "cut this host off in the kernel",
            Self::AskPeers => "ask the peers not to take over",
            Self::Probe => "ask the primary's PostgreSQL for an answer",
            Self::CutStream => "cut the stream",
            Self::InspectDisk => "look at the data directory",
            Self::MeasureCopy => "look where a copy can be made",
            Self::Scan => "find the end of the WAL",
            Self::WriteHistories => "write the history files",
            Self::Data => "make or replace the data directory",
            Self::Checkpoint => "make a checkpoint",
            Self::ShowNames => "see synchronous_standby_names in force",
            Self::EndWalsenders => "end walsenders",
            Self::Slot => "create or drop a slot",
            Self::Migrate => "apply the migrations and let the roles log in",
            Self::Exit => "end",
        })
    }
}

/// `once`, or `3 times`.
pub(super) fn times(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{decide::decision::Source, model::node_file::ClonePlace};

    #[test]
    fn actions_read_as_a_verb_with_its_object() {
        let source = Source {
            node: "n2".parse().expect("node"),
            address: "10.0.0.2:5432".parse().expect("address"),
            tli: crate::model::timeline::TimelineId::FIRST,
        };
        let clone = Action::Clone { source, place: ClonePlace::Beside, other: None, discards: None };
        let slot = Action::CreateSlot("pgbaton_n2".parse().expect("slot"));
        let read: Vec<String> = [clone, slot, Action::InitDb, Action::Migrate].iter().map(ToString::to_string).collect();
        assert_eq!(read, ["clone from n2", "create the slot pgbaton_n2", "run initdb", "apply the migrations and let the roles log in"]);
    }
}
