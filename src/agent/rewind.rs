//! The way back of a former primary: what a rewind waits for, and the rewind.

use super::{
    act::{DATA_LIMIT, SCAN_LIMIT, SQL_LIMIT, Tools},
    observe::chain,
};
use crate::{
    decide::decision::Source,
    model::{
        instance::RewindMark,
        lsn::Lsn,
        moment::Span,
        node::DataIncarnation,
        timeline::{Fork, TimelineId},
    },
    postgres::{self, ConfigFiles, rewind},
};
use std::sync::PoisonError;

/// How long archiving one file may take before a rewind.
const ARCHIVE_EACH: Span = Span::from_secs(120);

/// How long archiving all that wait may take before a rewind.
const ARCHIVE_ALL: Span = Span::from_secs(3_600);

/// What diverged is told before it is discarded. An unfinished rewind left blocks of both histories: it was told before that.
pub(super) async fn tell_diverged(tools: &Tools, fork: Fork) {
    if matches!(rewind::mark(&tools.settings), Ok(Some(RewindMark::Unfinished))) {
        return;
    }
    match rewind::diverged(&tools.settings, fork.parent, fork.at, SCAN_LIMIT).await {
        Ok(diverged) => tracing::warn!(
            timeline = %diverged.tli, from = %diverged.from, to = %diverged.to, bytes = diverged.bytes.get(),
            transactions = diverged.transactions, "this node's own history goes, as the cluster went on without it"
        ),
        Err(fault) => tracing::warn!(error = chain(&fault), timeline = %fork.parent, from = %fork.at, "what diverged could not be counted"),
    }
}

/// Segments that wait for the archive are deleted by a rewind: they are archived first (scenario 146).
async fn archive_waiting(tools: &Tools) -> Result<(), NotReady> {
    let rendered = tools.rendered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(rendered) = rendered else { return Ok(()) };
    let value = |name| postgres::command::configured_value(&tools.settings, &rendered, name);
    let failed = |fault: postgres::Error| NotReady::Failed(chain(&fault));
    let mode = value("archive_mode").await.map_err(failed)?;
    let command = value("archive_command").await.map_err(failed)?;
    if mode == "off" || command.trim().is_empty() || command == "(disabled)" {
        return Ok(());
    }
    let archived = rewind::archive_ready_segments(&tools.settings, &command, ARCHIVE_EACH, ARCHIVE_ALL).await.map_err(failed)?;
    match archived.why {
        Some(why) => {
            Err(NotReady::Yet(format!("{} files wait for the archive, and a rewind would delete them: {why}", archived.left.len())))
        }
        None => Ok(()),
    }
}

/// What a rewind needs and what waiting brings: a source that answers and has made its checkpoint, an archive that takes what waits for it.
/// One that is only to be finished needs none of it.
pub(super) async fn ready(tools: &Tools, source: &Source, life: &DataIncarnation) -> Result<(), NotReady> {
    if rewind::has_ended(&tools.settings, life) {
        return Ok(());
    }
    let role = &tools.settings.roles.rewind;
    let facts = postgres::peer::ask(&tools.settings, &source.address, role, SQL_LIMIT).await.map_err(|fault| match fault {
        postgres::Error::Authentication { .. } => NotReady::Failed(chain(&fault)),
        _ => NotReady::Yet(chain(&fault)),
    })?;
    match rewind::source_state(&facts, source.tli) {
        rewind::SourceState::Ready { .. } => archive_waiting(tools).await,
        other => Err(NotReady::Yet(format!("{} is not ready to be rewound to: {other}", source.node))),
    }
}

/// Why a rewind was not begun.
pub(super) enum NotReady {
    /// Waiting may help, and costs nothing.
    Yet(String),
    /// It would fail the next time, too.
    Failed(String),
}

pub(super) async fn run(tools: &Tools, source: Source, fork: Lsn, tli: TimelineId, life: &DataIncarnation) -> Result<(), String> {
    if !fork.is_zero() && !rewind::has_ended(&tools.settings, life) {
        tell_diverged(tools, Fork { parent: tli, at: fork }).await;
    }
    // WAL back to the last common checkpoint may be in the archive alone (scenario 145); the managed command has a limit of its own.
    let rendered = tools.rendered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let archive = rendered.is_some_and(|rendered| rendered.restore_command.is_some());
    let restore_by = archive.then(|| ConfigFiles::main(&tools.settings));
    let options = rewind::Options { source: source.address.clone(), restore_by, life: life.clone(), limit: DATA_LIMIT };
    match rewind::run(&tools.settings, &options, |progress| tracing::debug!(done = progress.done.get(), "rewinding")).await {
        Ok(rewind::Rewound::Done { .. }) => Ok(()),
        // The histories were compared before: equal numbers with different contents look like this to pg_rewind (EXP-7).
        Ok(rewind::Rewound::NotNeeded) => Err("pg_rewind sees no difference where there is one: this directory needs a copy".to_owned()),
        Err(fault) => Err(chain(&fault)),
    }
}
