//! A promotion whose recovery comes no further, while somebody else could lead: nobody waits for that as long as for one that goes on.
//!
//! A startup process that hangs in a dead disk, or was stopped by hand, promotes nothing, and everything else of that server answers (EXP-16).

use super::{draft::Draft, snapshot::Snapshot};
use crate::model::{instance::ServerRole, moment::Span, node::NodeName};

/// So long recovery may come no further the first time; twice as long after each claim of ours that came to nothing.
const STANDS_STILL: Span = Span::from_secs(20);

/// Why the promotion that is under way is given up.
pub(super) fn rule(s: &Snapshot, d: &mut Draft) -> Option<String> {
    let Some(ServerRole::Standby { replay, .. }) = s.role() else { return None };
    let (replay, now, limit) = (*replay, s.now.boot, limit(s));
    let story = d.memory.claim.as_mut()?;
    let asked = story.asked?;
    if story.replayed.is_none_or(|(before, _)| before != replay) {
        story.replayed = Some((replay, now));
    }
    let since = story.replayed.map_or(now, |(_, since)| since).max(asked);
    let other = another(s)?;
    let ends = since.plus(limit);
    d.wake(ends);
    (now >= ends).then(|| format!("recovery has stood at {replay} for {}, and {other} may lead", now.since(since).rounded()))
}

fn limit(s: &Snapshot) -> Span {
    let times = 1 << s.memory.failed_claims.min(8);
    STANDS_STILL.times(times).min(s.policy.primary_start_timeout)
}

/// Somebody else who may be elected, and whose agent lives.
fn another(s: &Snapshot) -> Option<&NodeName> {
    let electable = &s.sync()?.record.electable;
    electable.iter().map(|replica| &replica.node).find(|node| **node != s.me.node && s.etcd.records.members.contains_key(node))
}
