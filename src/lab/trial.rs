//! One fault from its begin until writes flow again: what demo and bench measure.

use super::{
    cluster::Lab,
    command::poll_until,
    fault::{self, Fault, Injected},
    journal::Journal,
    measure::Outage,
};
use crate::{
    clock,
    model::{
        moment::{Moment, Span},
        record::HistoryRecord,
        term::Term,
    },
};
use anyhow::{Context, Result};
use std::thread;

/// Writes flow when none of the last second had to wait longer than this for the next.
const FLOWING: Span = Span::from_millis(250);
/// Between two looks at who streams: each opens a connection, and the machine is shared.
const LOOK: Span = Span::from_millis(50);

/// A fault that is being measured.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What was done.
    pub injected: Injected,
    /// The newest term before it, where etcd could be asked.
    pub term: Option<Term>,
}

impl Trial {
    /// Notes how things stand, then injects a fault.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn begin(lab: &Lab, fault: &Fault) -> Result<Self, fault::Error> {
        let newest = |history: Vec<HistoryRecord>| history.last().map_or(Term::ZERO, |record| record.term);
        let term = lab.history().ok().map(newest);
        Ok(Self { injected: lab.inject(fault)?, term })
    }

    /// When it began.
    pub const fn at(&self) -> Moment {
        self.injected.at
    }

    /// Whether it was watched for `least` (a fault that is felt late needs more) and writes flow.
    pub fn is_over(&self, journal: &Journal, now: Moment, least: Span) -> bool {
        let second = Span::from_secs(1);
        now.since(self.at()) >= least.max(second) && journal.longest_gap(now.minus(second), now).is_some_and(|gap| gap.length() <= FLOWING)
    }

    /// What it cost so far, with the record of the newest change of primary since.
    ///
    /// # Errors
    /// When no etcd member answers, or nothing was written yet.
    pub fn outage(&self, lab: &Lab, journal: &Journal, until: Moment) -> Result<(Outage, Option<HistoryRecord>)> {
        let outage = Outage::of(journal, self.at(), until).context("no time has passed")?;
        let record = lab.history()?.pop().filter(|record| self.term.is_some_and(|term| record.term > term));
        Ok((record.iter().fold(outage, |outage, record| outage.with_history(record)), record))
    }
}

impl Lab {
    /// Waits until all other nodes stream from whoever the client writes to, as `primary` says at each look.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub fn wait_all_stream(&self, deadline: Span, mut primary: impl FnMut() -> Option<String>) -> Result<String> {
        let end = clock::boot().plus(deadline);
        let others = self.nodes().len().saturating_sub(1);
        let answer = poll_until(end, || {
            if let Err(error) = self.check_interrupted() {
                return Some(Err(error));
            }
            let found = primary().filter(|primary| self.streaming_from(primary).is_ok_and(|count| count >= others));
            if found.is_none() {
                thread::sleep(LOOK.to_std());
            }
            found.map(Ok)
        });
        answer.with_context(|| format!("waited {deadline} for all others to stream from one primary"))?
    }
}
