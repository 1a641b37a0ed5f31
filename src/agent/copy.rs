//! Copies of another node's data: what one takes, and making it.

use super::{
    act::{DATA_LIMIT, SQL_LIMIT, Tools, publish, said},
    event::Event,
    observe::chain,
    rewind::tell_diverged,
};
use crate::{
    clock,
    decide::{decision::Source, snapshot::CopyPlace},
    model::{
        instance::DataDir,
        moment::{Moment, Span},
        node::NodeName,
        node_file::{ClonePlace, NodeFile},
        timeline::Fork,
    },
    postgres::{basebackup, disk, place, replace, replace::Way},
};

/// After so long without a byte a copy is given up.
const STANDSTILL: Span = Span::from_secs(120);

/// Asks the source what a copy of it takes, and looks where there is room for that.
pub(super) async fn measure(tools: &Tools, source: Source) -> Result<(), String> {
    let at = clock::boot();
    let facts = basebackup::ask(&tools.settings, &source.address, SQL_LIMIT).await.map_err(|fault| chain(&fault))?;
    if facts.in_recovery && !facts.tablespaces.is_empty() {
        // Ours are mapped by where the primary has them.
        return Err(format!(
            "{} is a replica, and may have its tablespaces where the primary does not: the primary is copied",
            source.node
        ));
    }
    let place::Place { place, why, free } = place::place_for(&tools.settings, facts.size).await.map_err(|fault| chain(&fault))?;
    publish(tools, Event::Measured(CopyPlace { source: source.node, size: facts.size, place, why, free, at })).await;
    Ok(())
}

/// Makes the data directory a copy of `source`'s.
pub(super) async fn make(
    tools: &Tools,
    source: Source,
    place: ClonePlace,
    discards: Option<Fork>,
    file: &NodeFile,
    other: Option<NodeName>,
) -> Result<(), String> {
    if let Some(fork) = discards {
        tell_diverged(tools, fork).await;
    }
    let way = match place {
        ClonePlace::Beside => Way::Beside,
        ClonePlace::InPlace => {
            if !disk::is_on_its_mount(&tools.settings).await {
                return Err(format!("{} is not on the mount where it was: is that missing?", tools.settings.data_dir.display()));
            }
            // What an interrupted copy in place has left is no data directory yet: its control file comes last.
            let half_made = matches!(tools.settings.data_dir.join("global/pg_control").try_exists(), Ok(false));
            let nothing_to_lose = match disk::inspect(&tools.settings).await {
                DataDir::Missing | DataDir::Empty => true,
                DataDir::Unusable { .. } => half_made,
                // The copy itself, to which no more is to be done than to say so.
                DataDir::Present(disk) => disk.is_copy(&file.data),
            };
            let node = other.or_else(|| nothing_to_lose.then(|| source.node.clone()));
            let node = node.ok_or_else(|| "no other healthy copy of the data is known: nothing is overwritten".to_owned())?;
            Way::InPlace(basebackup::VerifiedOtherCopy { node })
        }
    };
    let patience = basebackup::Patience { total: DATA_LIMIT, standstill: STANDSTILL };
    let mut milestones = Milestones::default();
    let see = |progress: basebackup::Progress| {
        if !milestones.reached(progress, clock::boot()) {
            return;
        }
        tracing::info!(source = %source.node, done = progress.done.get(), total = progress.total.get(), "copying");
    };
    said(replace::replace(&tools.settings, &source.address, &file.data, &way, patience, see).await)
}

/// A copy takes hours: its progress is told at each tenth, and each minute in between.
#[derive(Default)]
struct Milestones {
    /// When it was told last, and how many tenths were done.
    told: Option<(Moment, u64)>,
}

impl Milestones {
    fn reached(&mut self, progress: basebackup::Progress, now: Moment) -> bool {
        const AT_LEAST_EVERY: Span = Span::from_secs(60);
        let tenths = progress.done.get().saturating_mul(10) / progress.total.get().max(1);
        let worth = self.told.is_none_or(|(at, told)| tenths > told || now.since(at) >= AT_LEAST_EVERY);
        if worth {
            self.told = Some((now, tenths));
        }
        worth
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::lsn::Bytes;

    #[test]
    fn a_copy_is_told_at_each_tenth_and_each_minute() {
        let begin = Moment::from_nanos(0).plus(Span::from_secs(1_000));
        let mut milestones = Milestones::default();
        let mut told = Vec::new();
        // A tenth in 500 s, then the rest within 9 s.
        for (second, done) in (0..500_u64).map(|second| (second, second / 5)).chain((500..510).map(|second| (second, (second - 499) * 100)))
        {
            let progress = basebackup::Progress { done: Bytes::new(done), total: Bytes::new(1_000) };
            if milestones.reached(progress, begin.plus(Span::from_secs(second))) {
                told.push(second);
            }
        }
        assert_eq!(told, [0, 60, 120, 180, 240, 300, 360, 420, 480, 500, 501, 502, 503, 504, 505, 506, 507, 508, 509]);
    }
}
