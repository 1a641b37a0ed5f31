//! Whether a data directory may follow a history, must be rewound to it, or be replaced (protocol 1.13).

use super::{ledger, scan, snapshot::Snapshot};
use crate::model::{
    instance::{DiskFacts, Whole},
    lsn::Lsn,
    policy::Reclone,
    record::TimelineState,
    timeline::{TimelineHistory, TimelineId},
    wal_layout::Layout,
};

/// After so many rewinds that failed, another way is taken.
pub(super) const REWIND_TRIES: u32 = 3;

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

/// Compares a stopped directory, whose WAL ends at `whole`, with the `history` of timeline `target`.
pub(super) fn stopped(s: &Snapshot, disk: &DiskFacts, whole: Whole, history: &TimelineHistory, target: TimelineId) -> Verdict {
    let own = scan::disk_history(&disk.histories, whole.tli);
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
                common(&own, history, whole.tli, target).map_or_else(
                    || Verdict::Unrelated(format!("timeline {} has no ancestor in common with {target}", whole.tli)),
                    |fork| Verdict::Diverged { fork },
                )
            };
        }
    }
    if ledger::is_of_another(s, whole.tli, &disk.histories) {
        return Verdict::Unrelated(format!(
            "timeline {} of this directory is not the one of the cluster: their histories differ",
            whole.tli
        ));
    }
    compare(s.layout, &own, history, whole, target)
}

/// Whether the WAL that is here brings a stopped directory to where it is consistent. What a rewind or a copy has left may need more: an end
/// that its label alone tells is what it needs, and not what it has.
pub(super) fn is_consistent(s: &Snapshot, disk: &DiskFacts, whole: Whole) -> bool {
    disk.control.min_recovery <= whole.lsn && scan::end_by_label(s, disk).is_none()
}

/// Whether a stopped directory can become consistent on the `history` of timeline `target`: PostgreSQL refuses one that left its timeline
/// before that (`tliOfPointInHistory`, by the numbers as they are written).
pub(super) fn becomes_consistent(disk: &DiskFacts, history: &TimelineHistory, target: TimelineId) -> bool {
    let of = disk.control.min_recovery_tli.unwrap_or(target);
    of == target || history.leaves(of).is_none_or(|fork| disk.control.min_recovery <= fork)
}

/// Why a directory that is not consistent cannot be used, for people.
pub(super) fn falls_short(disk: &DiskFacts, whole: Whole) -> String {
    let here = if whole.lsn < disk.control.min_recovery { whole.lsn.to_string() } else { "too little".to_owned() };
    format!("what its last rewind or copy left is whole only with WAL up to {}, which is lost; {here} is here", disk.control.min_recovery)
}

/// Why a directory that went its own way cannot be rewound to the history of timeline `target`, but has to be copied.
pub(super) fn cannot_rewind(s: &Snapshot, disk: &DiskFacts, whole: Whole, target: TimelineId) -> Option<String> {
    if !s.policy.rewind || s.policy.reclone == Reclone::Always {
        return Some("the policy does not want a rewind".to_owned());
    }
    if !disk.control.can_rewind {
        return Some("a rewind needs data checksums or wal_log_hints, and this directory has neither".to_owned());
    }
    if !is_consistent(s, disk, whole) {
        return Some(falls_short(disk, whole));
    }
    // PG source, `findCommonAncestorTimeline`: by what each line says of its own timeline.
    if ledger::history(s, target).is_some_and(|history| history.goes_back()) {
        return Some(format!("the switch points of timeline {target} go back, and pg_rewind would take a later one for where they part"));
    }
    let led_in = s.leader().map(|leader| leader.record.term);
    (led_in.is_some() && s.memory.rewinds_failed == led_in).then(|| format!("{REWIND_TRIES} rewinds failed"))
}

/// Compares an end of WAL on a history with the history of `target`.
///
/// A history file writes a switch at the end of a page where the next record would begin behind that page's header (`layout`).
pub(super) fn compare(layout: Layout, own: &TimelineHistory, history: &TimelineHistory, whole: Whole, target: TimelineId) -> Verdict {
    if whole.tli == target {
        return Verdict::Streams;
    }
    match history.leaves(whole.tli) {
        Some(fork) if whole.lsn <= layout.boundary(fork) => Verdict::Streams,
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
    let forks = own.forks().iter().rev().filter_map(|fork| Some((fork.parent, own.leaves(fork.parent)?)));
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
        assert_eq!(compare(Layout::DEFAULT, &history(""), &target, whole(1, 0x100), tli(2)), Verdict::Streams);
    }

    #[test]
    fn a_directory_that_went_on_beyond_the_switch_point_diverged_there() {
        let target = history("1\t0/100\tx\n");
        assert_eq!(compare(Layout::DEFAULT, &history(""), &target, whole(1, 0x101), tli(2)), Verdict::Diverged { fork: Lsn::new(0x100) });
    }

    /// PostgreSQL writes the switch as it ends the last record; what comes next would begin behind the header of the new page, or segment.
    #[test]
    fn a_switch_at_the_end_of_a_page_is_where_the_next_record_begins() {
        for (fork, end) in [("0/302000", 0x30_2018), ("0/4000000", 0x400_0028)] {
            let target = history(&format!("1\t{fork}\tx\n"));
            assert_eq!(compare(Layout::DEFAULT, &history(""), &target, whole(1, end), tli(2)), Verdict::Streams, "{fork}");
            let beyond = compare(Layout::DEFAULT, &history(""), &target, whole(1, end + 8), tli(2));
            assert!(matches!(beyond, Verdict::Diverged { .. }), "{fork}");
        }
    }

    #[test]
    fn two_children_of_one_parent_part_at_the_earlier_switch() {
        let (own, target) = (history("1\t0/80\tx\n"), history("1\t0/100\tx\n"));
        assert_eq!(compare(Layout::DEFAULT, &own, &target, whole(2, 0x90), tli(3)), Verdict::Diverged { fork: Lsn::new(0x80) });
    }

    #[test]
    fn a_child_of_the_target_itself_parts_where_it_left_it() {
        let own = history("1\t0/80\tx\n");
        assert_eq!(compare(Layout::DEFAULT, &own, &history(""), whole(2, 0x90), tli(1)), Verdict::Diverged { fork: Lsn::new(0x80) });
    }

    #[test]
    fn without_a_common_ancestor_nothing_is_claimed() {
        let (own, target) = (history("5\t0/80\tx\n"), history("1\t0/100\tx\n"));
        assert!(matches!(compare(Layout::DEFAULT, &own, &target, whole(6, 0x90), tli(2)), Verdict::Unrelated(_)));
    }

    use proptest::prelude::*;

    /// A tree of timelines: of each but the first the parent and where it was left, not before where the parent begins.
    fn trees() -> impl Strategy<Value = Vec<(usize, u64)>> {
        proptest::collection::vec((any::<proptest::sample::Index>(), 0_u64..40), 1..7).prop_map(|drawn| {
            // Behind the header of its page, where a record can begin.
            let mut tree = vec![(0, 64)];
            for (parent, more) in drawn {
                let parent = parent.index(tree.len());
                let begins = tree[parent].1;
                tree.push((parent, begins + more));
            }
            tree
        })
    }

    /// The path to a timeline: which ones, and where each is left.
    fn path(tree: &[(usize, u64)], leaf: usize, end: u64) -> Vec<(usize, u64)> {
        let mut path = vec![(leaf, end)];
        let mut at = leaf;
        while at != 0 {
            path.insert(0, (tree[at].0, tree[at].1));
            at = tree[at].0;
        }
        path
    }

    fn forks(tree: &[(usize, u64)], leaf: usize) -> TimelineHistory {
        let path = path(tree, leaf, 0);
        let forks = path[..path.len() - 1].iter();
        TimelineHistory::new(forks.map(|(parent, at)| crate::model::timeline::Fork { parent: id(*parent), at: Lsn::new(*at) }).collect())
    }

    fn id(index: usize) -> TimelineId {
        tli(u32::try_from(index).unwrap_or_default() + 1)
    }

    /// Up to where both paths are one, found by walking them.
    fn shared(one: &[(usize, u64)], other: &[(usize, u64)]) -> u64 {
        let mut up_to = 0;
        for (ours, theirs) in one.iter().zip(other) {
            if ours.0 != theirs.0 {
                break;
            }
            up_to = ours.1.min(theirs.1);
            if ours.1 != theirs.1 {
                break;
            }
        }
        up_to
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn histories_part_where_their_paths_part(tree in trees(), own in any::<proptest::sample::Index>(), to in any::<proptest::sample::Index>(), more in 0_u64..40) {
            let (own, to) = (own.index(tree.len()), to.index(tree.len()));
            let end = tree[own].1 + more;
            let parted = shared(&path(&tree, own, end), &path(&tree, to, u64::MAX));
            match compare(Layout::DEFAULT, &forks(&tree, own), &forks(&tree, to), Whole { tli: id(own), lsn: Lsn::new(end) }, id(to)) {
                Verdict::Streams => prop_assert_eq!(parted, end),
                Verdict::Diverged { fork } => prop_assert_eq!(fork, Lsn::new(parted)),
                Verdict::Unrelated(why) => prop_assert!(false, "{}", why),
            }
        }

        #[test]
        fn who_streams_with_more_streams_with_less(tree in trees(), own in any::<proptest::sample::Index>(), to in any::<proptest::sample::Index>(), more in 1_u64..40) {
            let (own, to) = (own.index(tree.len()), to.index(tree.len()));
            let verdict = |lsn: u64| compare(Layout::DEFAULT, &forks(&tree, own), &forks(&tree, to), Whole { tli: id(own), lsn: Lsn::new(lsn) }, id(to));
            let begins = tree[own].1;
            if verdict(begins + more) == Verdict::Streams {
                prop_assert_eq!(verdict(begins), Verdict::Streams);
            }
        }
    }
}
