//! A data directory replaced by a copy of another server: the steps of [`basebackup`], from whatever an earlier attempt left.
//!
//! The id that the copy has stays the same until the caller has taken note that it is in its place. So a copy that is whole
//! is never made a second time, and one that has replaced the data directory is not replaced again.

use super::{
    Error, Settings,
    basebackup::{self, Patience, Progress, Source, VerifiedOtherCopy},
    durable,
    place::{LeftoverKind, Names},
    rewind,
};
use crate::model::{
    moment::Span,
    node::{Address, DataIncarnation},
};

/// How long looking at directories may take.
const LOOK_LIMIT: Span = Span::from_secs(10);
/// How long the source may take to say how large it is.
const ASK_LIMIT: Span = Span::from_secs(5);

/// Where the copy is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Beside the old directory, which stays until the copy is whole.
    Beside,
    /// In its place, as another copy is known to be healthy.
    InPlace(VerifiedOtherCopy),
}

/// How far an earlier attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is no whole copy.
    Nothing,
    /// It is whole, beside the data directory.
    Beside,
    /// It is whole, inside of the emptied data directory.
    Inside,
    /// It is the data directory.
    Replaced,
}

/// Replaces the data directory by a copy of the server at `from`, or finishes what an earlier call with the same `id` began.
/// Ends with nothing left beside it but what former copies replaced.
///
/// PostgreSQL must not run. `see` is told how far a copy has come, about once a second. May be called again, and dropped.
///
/// # Errors
/// With [`Way::Beside`] the data directory is the old one, missing between two renames (both copies are there), or the copy.
/// With [`Way::InPlace`] the former data are gone as soon as the source has answered.
pub async fn replace(
    settings: &Settings,
    from: &Address,
    id: &DataIncarnation,
    way: &Way,
    patience: Patience,
    see: impl FnMut(Progress),
) -> Result<(), Error> {
    let mut stage = stage(settings, id, way).await?;
    if stage == Stage::Nothing {
        let facts = basebackup::ask(settings, from, ASK_LIMIT).await?;
        // Without our slot there the copy takes a temporary one; the primary makes ours when it sees our key.
        let source = Source { address: from.clone(), slot: None, tablespaces: facts.tablespaces };
        stage = match way {
            Way::Beside => basebackup::copy(settings, &source, id, patience, see).await.map(|()| Stage::Beside)?,
            Way::InPlace(proof) => {
                basebackup::copy_in_place(settings, &source, id, proof, patience, see).await.map(|()| Stage::Replaced)?
            }
        };
    }
    match stage {
        Stage::Beside => basebackup::swap(settings, id).await?,
        Stage::Inside => basebackup::finish_in_place(settings, id).await?,
        Stage::Nothing | Stage::Replaced => {}
    }
    // Not before: until the copy has taken its place what lies there is still half rewound.
    rewind::forget_unfinished(settings).await?;
    basebackup::discard_old(settings, id).await?;
    basebackup::clear(settings, |leftover| leftover.kind != LeftoverKind::Old).await
}

async fn stage(settings: &Settings, id: &DataIncarnation, way: &Way) -> Result<Stage, Error> {
    let (data_dir, names, inside, id) = (settings.data_dir.clone(), Names::of(settings, id), Names::inside(settings, id), id.clone());
    let way = way.clone();
    durable::within(LOOK_LIMIT, settings.data_dir.clone(), move || {
        let moved_in_part = basebackup::is_marked(&inside, &id) || basebackup::is_marked(&data_dir, &id);
        let holds_control = |directory: &std::path::Path| directory.join("global/pg_control").exists();
        Ok(match way {
            _ if basebackup::is_whole(&data_dir, &id) => Stage::Replaced,
            Way::Beside if basebackup::is_whole(&names.copy, &id) => Stage::Beside,
            // The control file is moved up last: with one in the data directory something else lies there.
            Way::InPlace(_) if moved_in_part && holds_control(&inside) && !holds_control(&data_dir) => Stage::Inside,
            Way::Beside | Way::InPlace(_) => Stage::Nothing,
        })
    })
    .await
}
