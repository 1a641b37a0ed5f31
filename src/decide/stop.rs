//! The node is to stop: in order, so that another one can follow at once (protocol 1.15).

use super::{
    Flow,
    decision::{Action, Task},
    draft::Draft,
    pause,
    snapshot::Snapshot,
};
use crate::model::instance::{Process, Run, StopMode};

pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Flow {
    if !s.stopping {
        return Flow::Goes;
    }
    d.because("stopping", "this node is being stopped");
    match s.process() {
        // A release that was sent ends our authority, but the agent that ends now would take it back out of its own hands.
        None | Some(Process::Empty { .. }) if s.busy(Task::LeaderTxn) => {
            d.waits("stopping", "waits for etcd's answer to the release of the lease");
            Flow::Settled
        }
        None => {
            d.act(s, Action::Exit { why: "stopped".to_owned() });
            Flow::Settled
        }
        // A holder releases first; what `leadership` does then ends in a vacant record, or its time runs out.
        Some(_) if s.authority().is_some() => Flow::Goes,
        Some(Process::Running { .. }) => {
            stop_postgres(s, d);
            Flow::Settled
        }
        Some(Process::Dying { run }) if *run != Run(0) => Flow::Settled,
        Some(Process::Empty { .. }) if pause::leaves(s, d) == Flow::Settled => Flow::Settled,
        // What another one started is none of ours to end.
        Some(Process::Empty { .. } | Process::Dying { .. }) => {
            d.act(s, Action::StopGuard);
            Flow::Settled
        }
    }
}

/// A fast stop; what is left is killed when its time is over.
pub(super) fn stop_postgres(s: &Snapshot, d: &mut Draft) {
    if matches!(s.process(), Some(Process::Running { stopping: Some(_), .. })) {
        // It was asked once; asking again at every decision would only keep guard and agent busy.
        d.waits("stopping", "PostgreSQL is stopping");
        return;
    }
    let deadline = s.now.boot.plus(s.policy.stop_timeout);
    d.act(s, Action::Stop { mode: StopMode::Fast, deadline });
}
