//! How often each harm was done in a run, and how often it could not be.

use anyhow::{Result, ensure};
use pgbaton::lab::torture::Harm;
use std::{collections::BTreeMap, fmt};

/// Counts of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    done: usize,
    failed: usize,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strikes(BTreeMap<Harm, Count>);

impl Strikes {
    pub(crate) fn note(&mut self, harm: Harm, done: &Result<()>) {
        let count = self.0.entry(harm).or_default();
        count.done += usize::from(done.is_ok());
        count.failed += usize::from(done.is_err());
    }

    /// How many harms were done.
    pub(crate) fn done(&self) -> usize {
        self.0.values().map(|count| count.done).sum()
    }

    fn failed(&self) -> usize {
        self.0.values().map(|count| count.failed).sum()
    }

    /// Fails unless most of them were done: a victim may be gone, but not as a rule.
    pub(crate) fn ensure_done(&self) -> Result<()> {
        let (done, failed) = (self.done(), self.failed());
        ensure!(done > 0 && failed <= done, "only {done} of {} harms were done: {self}", done + failed);
        Ok(())
    }
}

impl fmt::Display for Strikes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(harm, count): (&Harm, &Count)| match count.failed {
            0 => format!("{harm} {}", count.done),
            failed => format!("{harm} {} ({failed} failed)", count.done),
        };
        f.write_str(&self.0.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

#[test]
fn a_run_in_which_most_harms_could_not_be_done_proves_nothing() {
    let failed = || Err(anyhow::anyhow!("no postmaster runs"));
    let mut strikes = Strikes::default();
    assert!(strikes.ensure_done().is_err(), "nothing was done");
    strikes.note(Harm::Freeze, &Ok(()));
    strikes.note(Harm::Policy, &failed());
    assert!(strikes.ensure_done().is_ok());
    strikes.note(Harm::Policy, &failed());
    let said = strikes.ensure_done().expect_err("most of them failed").to_string();
    assert_eq!(said, "only 1 of 3 harms were done: other policy 0 (2 failed), freeze 1");
}
