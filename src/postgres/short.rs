//! The segment of a fork that a walreceiver had only begun to fill.
//!
//! A standby that goes over to a newer timeline streams the segment of the fork from its beginning once more, under the new timeline's name. Where it
//! ends before the fork has been reached again, that file holds less than the one of the former timeline beside it. Recovery takes a segment of
//! the newest timeline that has it (`XLogFileReadAnyTLI`), and this one breaks off below what was replayed: the next start dies of it, or waits for
//! ever for what is here under the other name. It is put aside, not removed, and streamed anew.

use super::{
    Error, Settings, durable, history,
    segment::{Header, Layout},
};
use crate::model::{instance::Whole, lsn::Lsn, moment::Span, timeline::TimelineHistory};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// How long the disk may take.
const LIMIT: Span = Span::from_secs(10);

/// So many bytes are compared at a time.
const CHUNK: u64 = 1 << 16;

/// What is put aside ends with this: PostgreSQL gives such a name no meaning, and `pg_wal` may hold it.
const ASIDE: &str = "pgbaton-short";

/// Puts aside what the files of newer timelines lack of a segment that lies here whole under the timeline on which our WAL ends; their new paths.
///
/// `whole`: the end of our WAL by a scan. It found nothing on those timelines, and all of the former one up to there. For a start only: nothing may run
/// on the directory.
///
/// # Errors
/// When the disk cannot be read, or the file cannot be renamed.
pub async fn set_aside(settings: &Settings, whole: Whole) -> Result<Vec<PathBuf>, Error> {
    let pg_wal = settings.data_dir.join("pg_wal");
    durable::within(LIMIT, pg_wal.clone(), move || in_wal(&pg_wal, whole)).await
}

fn in_wal(pg_wal: &Path, whole: Whole) -> Result<Vec<PathBuf>, Error> {
    let read = |source| Error::File { doing: "read", path: pg_wal.to_owned(), source };
    let Some(layout) = Layout::of(pg_wal).map_err(read)? else { return Ok(Vec::new()) };
    let mut put = Vec::new();
    for (tli, text) in history::read_all(pg_wal)? {
        let Some(fork) = TimelineHistory::left(&text, whole.tli).filter(|at| layout.boundary(*at) == whole.lsn) else { continue };
        let number = layout.segment_number(fork);
        let own = pg_wal.join(layout.segment_name(whole.tli, number));
        let newer = pg_wal.join(layout.segment_name(tli, number));
        let start = layout.segment_start(number);
        if !newer.is_file() || !is_as_named(&own, layout, start)? {
            continue;
        }
        // Behind the fork each goes its own way.
        if !begin_alike(&own, &newer, fork.get().saturating_sub(start.get())).map_err(Error::file("compare", &newer))? {
            let aside = newer.with_extension(ASIDE);
            durable::rename(&newer, &aside).map_err(Error::file("rename", &newer))?;
            put.push(aside);
        }
    }
    Ok(put)
}

fn is_as_named(path: &Path, layout: Layout, start: Lsn) -> Result<bool, Error> {
    let header = Header::read(path).map_err(Error::file("read", path))?;
    Ok(header.is_some_and(|header| header.layout == layout && header.start == start))
}

/// Whether two files hold the same, up to `length` bytes.
fn begin_alike(one: &Path, other: &Path, length: u64) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?.take(length), File::open(other)?.take(length));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    loop {
        for (file, bytes) in [(&mut one, &mut ours), (&mut other, &mut theirs)] {
            bytes.clear();
            file.by_ref().take(CHUNK).read_to_end(bytes)?;
        }
        if ours != theirs || ours.is_empty() {
            return Ok(ours == theirs);
        }
    }
}
