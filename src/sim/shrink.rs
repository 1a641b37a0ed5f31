//! A failing seed made readable: the faults that it does not need are dropped.

use super::{Options, Outcome, run_without};
use std::collections::BTreeSet;

/// What is left of a failing seed.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// The faults that are not needed, by their place in the schedule.
    pub dropped: BTreeSet<usize>,
    /// The run without them: it breaks the same promise.
    pub outcome: Outcome,
}

/// Drops as many faults of a failing seed as can be within `tries` runs; `None` where the seed does not fail.
///
/// Delta debugging: halves of the schedule first, single faults last. Another promise that breaks instead is no help.
pub fn shrink(seed: u64, options: Options, tries: u32) -> Option<Shrunk> {
    let first = run_without(seed, options, &BTreeSet::new());
    let oracle = oracle_of(&first)?;
    let mut best = Shrunk { dropped: BTreeSet::new(), outcome: first };
    let mut left = tries;
    let mut size = best.outcome.struck.len().div_ceil(2).max(1);
    loop {
        let before = best.dropped.len();
        for chunk in struck(&best).chunks(size) {
            if left == 0 {
                return Some(best);
            }
            left -= 1;
            let dropped = best.dropped.union(&chunk.iter().copied().collect()).copied().collect();
            let outcome = run_without(seed, options, &dropped);
            if oracle_of(&outcome).as_ref() == Some(&oracle) {
                best = Shrunk { dropped, outcome };
            }
        }
        if size == 1 && best.dropped.len() == before {
            return Some(best);
        }
        size = (size / 2).max(1);
    }
}

/// Which promise was broken first: `O1`, `invariant`, …
fn oracle_of(outcome: &Outcome) -> Option<String> {
    let text = outcome.violations.first()?;
    text.split(' ').find(|word| word.ends_with(':')).map(str::to_owned)
}

fn struck(of: &Shrunk) -> Vec<usize> {
    of.outcome.struck.iter().map(|(index, _)| *index).filter(|index| !of.dropped.contains(index)).collect()
}
