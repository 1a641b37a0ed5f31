//! A standby that does not stream as it should: it cannot be told whom to follow, or what it asks for is gone.

use super::{copy, decision::Task, draft::Draft, follow::follow_of, scan, snapshot::Snapshot, stop, target};
use crate::model::{
    instance::ServerRole,
    lsn::Lsn,
    moment::Span,
    policy::Reclone,
    record::{LeaderRecord, LeaderState, MemberRole},
};

/// So long a server that lets nobody in may follow somebody else than the primary.
const MISLED_LIMIT: Span = Span::from_secs(2);

/// The same where it is not known whom it follows: a former agent told it, or could not. A recovery from a crash may take as long.
const UNTOLD_LIMIT: Span = Span::from_secs(60);

/// A server that lets nobody in cannot be told whom to follow. One that becomes consistent only by WAL that it has not got (a rewind needs the
/// log up to its end) would wait for it for good: it is stopped, judged anew, and started as a standby of the primary.
pub(super) fn misled(s: &Snapshot, d: &mut Draft, target: Option<&LeaderRecord>) {
    let target = target.filter(|target| !matches!(target.state, LeaderState::Paused { .. }));
    let (Some(target), Some(since)) = (target, s.inconsistent_since) else { return };
    let limit = match &s.configured {
        Some(configured) if configured.follow.as_ref() == Some(&follow_of(s, target)) => return,
        Some(_) => MISLED_LIMIT,
        // We tried to tell it something else: it did not hear that, and the files may say so.
        None if [Task::Configure, Task::CutStream].iter().any(|task| s.failures.contains_key(task)) => MISLED_LIMIT,
        None => UNTOLD_LIMIT,
    };
    let ends = since.plus(limit);
    d.wake(ends);
    if s.now.boot >= ends {
        d.because(
            "misled",
            format!(
                "PostgreSQL has let nobody in for {limit}, and does not follow {}: it is stopped, to be started as its standby",
                target.holder.node
            ),
        );
        stop::stop_postgres(s, d);
    }
}

/// It streams: whatever was noted of its silence is over.
pub(super) fn streams(s: &Snapshot, d: &mut Draft) {
    d.memory.untold = None;
    target::on_course(s, d);
}

/// What a replica at `position` lacks of the log of `target`, where no archive can help: what lies between is nowhere any more.
pub(super) fn missing_wal(s: &Snapshot, target: &LeaderRecord, position: Lsn) -> Option<String> {
    let member = s.etcd.records.members.get(&target.holder.node).map(|stored| &stored.record)?;
    let its_own = member.data == target.holder.data && member.role == MemberRole::Primary && member.tli == Some(target.tli);
    let archived = s.policy.parameters.contains_key("restore_command");
    let oldest = member.oldest_wal.filter(|oldest| its_own && !archived && *oldest > position)?;
    Some(format!("it needs WAL from {position} on, and that of {} begins at {oldest} (member_slot_retention)", target.holder.node))
}

/// A standby that is to stream and does not: it tries again by itself, unless what it asks for is gone. `position`: up to where it has shown
/// that it has WAL. One that has just been started may have more.
pub(super) fn cut_off(s: &Snapshot, d: &mut Draft, target: &LeaderRecord, position: Lsn) {
    let surely = if missing_wal(s, target, position).is_some() {
        let Some(whole) = scan::whole(s, d) else { return };
        missing_wal(s, target, whole.lsn)
    } else {
        None
    };
    match surely {
        None if takes_no_upstream(s, d) => {
            let node = &target.holder.node;
            d.because(
                "misled",
                format!("PostgreSQL was started to recover by its own WAL alone, and cannot be told to follow {node}: it is stopped"),
            );
            stop::stop_postgres(s, d);
        }
        None => match target::off_course(s, d, target) {
            Some(why) => {
                d.because("recovery-target", why);
                stop::stop_postgres(s, d);
            }
            None => d.waits("no-stream", no_stream(target)),
        },
        // It goes on serving readers what it has.
        Some(why) if s.policy.reclone == Reclone::Never => {
            copy::reclone(s, d, target, &why, None);
        }
        Some(why) => {
            d.because("wal-gone", format!("{why}: PostgreSQL is stopped, to be replaced by a copy"));
            stop::stop_postgres(s, d);
        }
    }
}

/// Whether it goes on showing no upstream: what its command line says (before a rewind, or where nobody led), no file can change. A former agent
/// started it, and this one does not know of that.
fn takes_no_upstream(s: &Snapshot, d: &mut Draft) -> bool {
    let empty = matches!(s.role(), Some(ServerRole::Standby { conninfo, .. }) if conninfo.is_empty());
    let Some(run) = s.run().filter(|_| empty) else {
        d.memory.untold = None;
        return false;
    };
    let since = s.memory.untold.filter(|(of, _)| *of == run).map_or(s.now.boot, |(_, since)| since);
    d.memory.untold = Some((run, since));
    let ends = since.plus(MISLED_LIMIT);
    if s.now.boot < ends {
        d.wake(ends);
        return false;
    }
    // What it was told since its last answer it cannot have shown.
    let shown = s.server.seen_at().is_some_and(|at| at >= ends);
    d.hurry |= !shown;
    shown
}

/// What a standby says whose walreceiver does not stream although everything is in place for it.
fn no_stream(target: &LeaderRecord) -> String {
    let (node, postgres) = (&target.holder.node, &target.holder.postgres);
    format!(
        "PostgreSQL is configured to stream from {node} ({postgres}), but its walreceiver does not stream: it tries again by itself; \
         if this lasts, its log and that of {node} say why (network, rights of the replication role, `pg_hba.conf`)"
    )
}
