//! Whether a data directory may follow a history, must be rewound to it, or be replaced (protocol 1.13).

use super::{ledger, scan, snapshot::Snapshot};
use crate::model::{
    instance::{DiskFacts, Whole},
    lsn::Lsn,
    record::TimelineState,
    timeline::{TimelineHistory, TimelineId},
};

/// What a stopped directory has to go through before it may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It holds nothing that the other history lacks.
    Streams,
    /// It went its own way from `fork` on.
    Diverged {
        /// Where the histories part.
        fork: Lsn,
    },
    /// No common history is known.
    Unrelated(String),
}

/// Compares a stopped directory, whose WAL ends at `whole`, with the history of timeline `target`.
pub(super) fn stopped(s: &Snapshot, disk: &DiskFacts, whole: Whole, target: TimelineId) -> Verdict {
    let own = scan::disk_history(&disk.histories, whole.tli);
    let Some(history) = ledger::history(s, target) else {
        return Verdict::Unrelated(format!("the ledger does not know the history of timeline {target}"));
    };
    if let Some(promoted) = s.file.promoted.filter(|promoted| promoted.tli == whole.tli) {
        let entry = ledger::entry(s, promoted.tli);
        let owns =
            entry.is_some_and(|entry| entry.owner == s.myself() && entry.term == promoted.term && entry.state == TimelineState::Used);
        // Equal numbers prove nothing: two nodes may have promoted to one id (EXP-7).
        if !owns {
            let elsewhere = entry.is_some_and(|entry| entry.state == TimelineState::Used);
            return if elsewhere {
                Verdict::Unrelated(format!("this node and another one each made a timeline {}", promoted.tli))
            } else {
                common(&own, &history, whole.tli, target).map_or_else(
                    || Verdict::Unrelated(format!("timeline {} has no ancestor in common with {target}", whole.tli)),
                    |fork| Verdict::Diverged { fork },
                )
            };
        }
    }
    compare(&own, &history, whole, target)
}

/// Compares an end of WAL on a history with the history of `target`.
pub(super) fn compare(own: &TimelineHistory, history: &TimelineHistory, whole: Whole, target: TimelineId) -> Verdict {
    if whole.tli == target {
        return Verdict::Streams;
    }
    match history.leaves(whole.tli) {
        Some(fork) if whole.lsn <= fork => Verdict::Streams,
        Some(fork) => Verdict::Diverged { fork },
        None => common(own, history, whole.tli, target).map_or_else(
            || Verdict::Unrelated(format!("timeline {} has no ancestor in common with {target}", whole.tli)),
            |fork| Verdict::Diverged { fork },
        ),
    }
}

/// Where the two histories part: on the newest timeline that both run over, at the earlier of the two switch points.
fn common(own: &TimelineHistory, history: &TimelineHistory, tli: TimelineId, target: TimelineId) -> Option<Lsn> {
    let theirs = |parent: TimelineId| if parent == target { Some(Lsn::new(u64::MAX)) } else { history.leaves(parent) };
    let forks = own.forks().iter().rev().map(|fork| (fork.parent, fork.at));
    let mut candidates = std::iter::once((tli, Lsn::new(u64::MAX))).chain(forks);
    candidates.find_map(|(parent, at)| theirs(parent).map(|there| there.min(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).expect("timeline")
    }

    fn history(text: &str) -> TimelineHistory {
        text.parse().expect("history")
    }

    fn whole(number: u32, lsn: u64) -> Whole {
        Whole { tli: tli(number), lsn: Lsn::new(lsn) }
    }

    #[test]
    fn a_directory_that_ends_at_the_switch_point_streams() {
        let target = history("1\t0/100\tx\n");
        assert_eq!(compare(&history(""), &target, whole(1, 0x100), tli(2)), Verdict::Streams);
    }

    #[test]
    fn a_directory_that_went_on_beyond_the_switch_point_diverged_there() {
        let target = history("1\t0/100\tx\n");
        assert_eq!(compare(&history(""), &target, whole(1, 0x101), tli(2)), Verdict::Diverged { fork: Lsn::new(0x100) });
    }

    #[test]
    fn two_children_of_one_parent_part_at_the_earlier_switch() {
        let (own, target) = (history("1\t0/80\tx\n"), history("1\t0/100\tx\n"));
        assert_eq!(compare(&own, &target, whole(2, 0x90), tli(3)), Verdict::Diverged { fork: Lsn::new(0x80) });
    }

    #[test]
    fn a_child_of_the_target_itself_parts_where_it_left_it() {
        let own = history("1\t0/80\tx\n");
        assert_eq!(compare(&own, &history(""), whole(2, 0x90), tli(1)), Verdict::Diverged { fork: Lsn::new(0x80) });
    }

    #[test]
    fn without_a_common_ancestor_nothing_is_claimed() {
        let (own, target) = (history("5\t0/80\tx\n"), history("1\t0/100\tx\n"));
        assert!(matches!(compare(&own, &target, whole(6, 0x90), tli(2)), Verdict::Unrelated(_)));
    }
}
