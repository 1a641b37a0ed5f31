//! The end of WAL on disk is found to the record, whatever is wrong behind it.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::sys::signal::Signal;
use pg::{Instance, copy, give, run, wait_until};
use pgbaton::{
    model::{instance::Whole, lsn::Lsn, moment::Span, timeline::TimelineId},
    postgres::{
        Error, Settings, control_data, history, scan,
        scan::BadScan,
        segment::{Layout, Record},
    },
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

const LIMIT: Span = Span::from_secs(20);
const ONE: TimelineId = TimelineId::FIRST;

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).expect("timeline")
}

/// A primary with segments of 1 MB, so that records cross segments often.
fn small_segments() -> Instance {
    let mut primary = Instance::empty();
    let data = primary.data.display().to_string();
    run("initdb", &["-D", &data, "-N", "-k", "-A", "trust", "-U", "postgres", "--no-instructions", "--wal-segsize=1"]);
    primary.add_config("wal_keep_size = 1GB\nmax_wal_size = 1GB\nautovacuum = off");
    primary.start();
    primary.sql("create table t(i int, s text); alter table t alter s set storage external");
    primary
}

fn insert_position(primary: &Instance) -> Lsn {
    primary.sql("select pg_current_wal_insert_lsn()").parse().expect("position")
}

/// Small and large rows, commits and switches of segments.
fn load(primary: &Instance) {
    primary.sql("insert into t select g, repeat('x', g % 200) from generate_series(1, 3000) g");
    primary.sql("insert into t select g, repeat('y', 20000) from generate_series(1, 40) g");
    primary.sql("select pg_logical_emit_message(false, 'test', repeat('z', 1500000))");
    primary.sql("select pg_switch_wal()");
    for round in 0..20 {
        primary.sql(&format!("insert into t values ({round}, 'one')"));
    }
}

/// Every record that `pg_waldump` lists from `from` on, oldest first: the reference.
fn records(pg_wal: &Path, tli: TimelineId, from: Lsn) -> Vec<Record> {
    let mut command = pg::as_postgres(pg::bin_dir().join("pg_waldump"));
    let output = command.arg("-p").arg(pg_wal).args(["-t", &tli.to_string(), "-s", &from.to_string()]).output().expect("pg_waldump");
    String::from_utf8_lossy(&output.stdout).lines().filter_map(Record::parse).collect()
}

async fn end(settings: &Settings, pg_wal: &Path, from: Lsn, tli: TimelineId) -> Result<Lsn, Error> {
    let whole = scan::whole_in(settings, pg_wal, from, tli, LIMIT).await?;
    assert_eq!(whole.tli, tli);
    Ok(whole.lsn)
}

/// A small generator with a seed: the same damage in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Sampled insert positions are boundaries, flush positions need not be (EXP-28, EXP-31); after a crash the scan ends where
/// `pg_waldump` says that the next record would begin (EXP-23).
#[tokio::test]
async fn the_end_of_a_crashed_primary_is_the_position_that_pg_waldump_names() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    load(&primary);
    let last = insert_position(&primary);
    primary.stop(Signal::SIGQUIT);
    let settings = primary.settings();
    let pg_wal = primary.data.join("pg_wal");
    let whole = scan::whole(&settings, from, ONE, LIMIT).await.expect("scan");
    assert_eq!(whole, Whole { tli: ONE, lsn: last });
    assert_eq!(scan::whole(&settings, last, ONE, LIMIT).await.expect("from the end"), whole);
    let control = control_data::read(&settings, &settings.data_dir).await.expect("control data");
    assert_eq!(scan::whole(&settings, control.redo, ONE, LIMIT).await.expect("from redo"), whole);
    let layout = Layout::of(&pg_wal).expect("read").expect("layout");
    assert_eq!(layout.segment, control.wal_segment);
    for record in records(&pg_wal, ONE, from).iter().step_by(400) {
        assert_eq!(scan::whole(&settings, record.start, ONE, LIMIT).await.expect("from a boundary"), whole);
        let inside = Lsn::new(record.start.get() + 8);
        let error = scan::whole(&settings, inside, ONE, LIMIT).await.expect_err("inside a record");
        assert!(matches!(error, Error::Scan(BadScan::NotABoundary { .. })), "{error}");
    }
}

/// The tail's last record has no later one that `pg_waldump` could skip to (EXP-28).
#[tokio::test]
async fn a_position_inside_the_last_record_is_no_boundary_and_one_behind_the_end_is_lost_wal() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    primary.sql("select pg_logical_emit_message(false, 'test', repeat('z', 3500000))");
    let last = insert_position(&primary);
    wait_until("the record is flushed", Span::from_secs(10), || primary.sql("select pg_current_wal_flush_lsn()") == last.to_string());
    primary.stop(Signal::SIGQUIT);
    let settings = primary.settings();
    let newest = *records(&primary.data.join("pg_wal"), ONE, from).last().expect("a record");
    for inside in [newest.start.get() + 8, newest.start.get() + 20_000, last.get() - 8] {
        let error = scan::whole(&settings, Lsn::new(inside), ONE, LIMIT).await.expect_err("inside");
        let near = newest.start;
        assert!(matches!(error, Error::Scan(BadScan::NotABoundary { near: found, .. }) if found == near), "{inside:X} {error:?}");
    }
    for behind in [last.get() + 8, last.get() + 9000, last.get() + (1 << 20)] {
        let error = scan::whole(&settings, Lsn::new(behind), ONE, LIMIT).await.expect_err("behind the end");
        assert!(
            matches!(error, Error::Scan(BadScan::Short { whole, .. }) if whole == last)
                || matches!(error, Error::Scan(BadScan::NoSegment { .. })),
            "{error:?}"
        );
    }
    let error = scan::whole(&settings, Lsn::new(0x8000), ONE, LIMIT).await.expect_err("removed WAL");
    assert!(matches!(error, Error::Scan(BadScan::NoSegment { .. })), "{error:?}");
    let error = scan::whole(&settings, from, tli(7), LIMIT).await.expect_err("no such timeline");
    assert!(matches!(error, Error::Scan(BadScan::NoSegment { .. })), "{error:?}");
}

/// The WAL of one timeline as one run of bytes from its first segment on; `None` for a file that is not there.
struct Bytes {
    begin: u64,
    segment: usize,
    files: Vec<Option<Vec<u8>>>,
}

impl Bytes {
    fn of(pg_wal: &Path, layout: Layout, tli: TimelineId, first: u64, last: u64) -> Self {
        let files = (first..=last).map(|number| fs::read(pg_wal.join(layout.segment_name(tli, number))).ok()).collect();
        Self { begin: layout.segment_start(first).get(), segment: usize::try_from(layout.segment.get()).expect("size"), files }
    }

    /// Whether both say the same from `begin` to `end`.
    fn same(&self, other: &Self, begin: u64, end: u64) -> bool {
        let (mut at, end) = ((begin - self.begin) as usize, (end - self.begin) as usize);
        while at < end {
            let (file, offset) = (at / self.segment, at % self.segment);
            let stop = (offset + end - at).min(self.segment);
            let part = |bytes: &Self| bytes.files[file].as_ref().and_then(|content| content.get(offset..stop).map(<[u8]>::to_vec));
            if part(self).is_none() || part(self) != part(other) {
                return false;
            }
            at += stop - offset;
        }
        true
    }
}

/// Where the log ends, by comparing it with the undamaged one: before the first record of which a byte was changed.
fn expected(records: &[Record], end: Lsn, before: &Bytes, after: &Bytes) -> Lsn {
    let changed = |record: &Record, next: Lsn| {
        // With the header of the page that it begins; a switch without the empty rest of its segment.
        let page = record.start.get() % 8192;
        let begin = if page <= 40 { record.start.get() - page } else { record.start.get() };
        let stop =
            if record.switch { record.start.get() + 24 } else { next.get() - if next.get() % 8192 <= 40 { next.get() % 8192 } else { 0 } };
        !before.same(after, begin, stop)
    };
    let nexts = records.iter().skip(1).map(|record| record.start).chain([end]);
    records.iter().zip(nexts).find(|(record, next)| changed(record, *next)).map_or(end, |(record, _)| record.start)
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Zeroed,
    Truncated,
    Removed,
    Garbled,
    Recycled,
}

fn damage(kind: Damage, pg_wal: &Path, layout: Layout, tli: TimelineId, at: u64) {
    let number = at / layout.segment.get();
    let path = pg_wal.join(layout.segment_name(tli, number));
    let mut content = fs::read(&path).expect("read");
    let offset = usize::try_from(at % layout.segment.get()).expect("offset");
    match kind {
        Damage::Zeroed => content[offset..].fill(0),
        // PostgreSQL reads whole pages: what is left of one is not read.
        Damage::Truncated => content.truncate(offset - offset % 8192),
        Damage::Removed => return fs::remove_file(&path).expect("remove"),
        Damage::Garbled => content[offset] ^= 0x5A,
        Damage::Recycled => {
            let first = layout.segments(pg_wal, tli).expect("segments").into_values().next().expect("a segment");
            let old = fs::read(first).expect("read");
            content[offset..].copy_from_slice(&old[offset..]);
        }
    }
    fs::write(&path, content).expect("write");
}

/// Copies `pg_wal`, damages it in `rounds` ways, and compares each scan with the bytes.
async fn survive_damage(settings: &Settings, tli: TimelineId, from: Lsn, end_of_all: Lsn, rounds: u64) {
    let original = settings.data_dir.join("pg_wal");
    let layout = Layout::of(&original).expect("read").expect("layout");
    let all = records(&original, tli, from);
    let (first, last) = (layout.segment_number(from), layout.segment_number(end_of_all));
    let before = Bytes::of(&original, layout, tli, first, last);
    let mut dice = Dice(42);
    let mut shorter = 0;
    for round in 0..rounds {
        let home = tempfile::tempdir().expect("directory");
        give(home.path());
        let copied: PathBuf = home.path().join("pg_wal");
        copy(&original, &copied);
        let kind = [Damage::Zeroed, Damage::Truncated, Damage::Removed, Damage::Garbled, Damage::Recycled][(round % 5) as usize];
        let record = all[usize::try_from(dice.below(all.len() as u64)).expect("index")];
        let room = (8192 - record.start.get() % 8192).min(u64::from(record.length));
        let at = if matches!(kind, Damage::Garbled) {
            record.start.get() + dice.below(room)
        } else {
            from.get() + dice.below(end_of_all.get() - from.get())
        };
        damage(kind, &copied, layout, tli, at);
        let expected = expected(&all, end_of_all, &before, &Bytes::of(&copied, layout, tli, first, last));
        let found = end(settings, &copied, from, tli).await;
        let context = format!("{kind:?} at {}", Lsn::new(at));
        if expected == from {
            // The scan's start is damaged itself: no end, or the start.
            assert!(found.as_ref().map_or(true, |lsn| *lsn == from), "{context}: {found:?}");
        } else {
            assert_eq!(found.expect(&context), expected, "{context}");
        }
        shorter += u64::from(expected < end_of_all);
    }
    assert!(shorter > rounds / 2, "the damage was felt: {shorter} of {rounds}");
}

/// Truncated, zeroed, removed, garbled, recycled files: the end is the boundary before the first damaged record.
#[tokio::test]
async fn damaged_wal_ends_at_the_boundary_before_the_damage() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    load(&primary);
    load(&primary);
    let last = insert_position(&primary);
    primary.stop(Signal::SIGQUIT);
    survive_damage(&primary.settings(), ONE, from, last, 25).await;
}

/// The segment of the switch is copied to the new timeline: a scan from before the switch begins at the fork.
#[tokio::test]
async fn the_end_is_found_across_a_switch_of_timelines() {
    let primary = small_segments();
    let mut standby = Instance::standby_of(&primary);
    let from = insert_position(&primary);
    load(&primary);
    let sent = insert_position(&primary);
    let layout = Layout::of(&primary.data.join("pg_wal")).expect("read").expect("layout");
    wait_until("the standby has replayed", Span::from_secs(20), || {
        standby.sql("select pg_last_wal_replay_lsn()").parse::<Lsn>().is_ok_and(|lsn| layout.boundary(lsn) >= sent)
    });
    standby.sql("select pg_promote()");
    load(&standby);
    let last = insert_position(&standby);
    standby.stop(Signal::SIGQUIT);
    let settings = standby.settings();
    let pg_wal = standby.data.join("pg_wal");
    let histories = history::read_all(&pg_wal).expect("histories");
    let fork = history::of(&histories, tli(2)).expect("history").last().expect("fork");
    assert!(fork.at >= from);
    for start in [from, fork.at] {
        assert_eq!(end(&settings, &pg_wal, start, tli(2)).await.expect("scan"), last, "from {start}");
    }
    // `pg_control` and a server that has not replayed the switch name the old timeline: the log goes on upon the new one.
    let across = scan::whole_in(&settings, &pg_wal, from, ONE, LIMIT).await.expect("from the old timeline");
    assert_eq!(across, Whole { tli: tli(2), lsn: last });
    // Of a timeline that was given up only a comment is left, and of one that was never received nothing but its history.
    let named = |text: &str| fs::write(pg_wal.join("00000002.history"), text).expect("write");
    named("# given up\n");
    assert_eq!(end(&settings, &pg_wal, from, ONE).await.expect("the old timeline"), fork.at);
    named(&histories[&tli(2)]);
    fs::write(pg_wal.join("00000003.history"), format!("1\t{}\tx\n", fork.at)).expect("write");
    let nothing_of_3 = scan::whole_in(&settings, &pg_wal, from, ONE, LIMIT).await.expect("from the old timeline");
    assert_eq!(nothing_of_3, across);
    survive_damage(&settings, tli(2), fork.at, last, 10).await;
    // The timeline that left the old one is empty, and the one that holds the records left that at the same point.
    for segment in fs::read_dir(&pg_wal).expect("pg_wal").flatten() {
        if let Some(rest) = segment.file_name().to_str().and_then(|name| name.strip_prefix("00000002")).filter(|rest| !rest.contains('.')) {
            fs::rename(segment.path(), pg_wal.join(format!("00000003{rest}"))).expect("rename");
        }
    }
    fs::write(pg_wal.join("00000003.history"), format!("1\t{0}\tx\n2\t{0}\tx\n", fork.at)).expect("write");
    let beyond = scan::whole_in(&settings, &pg_wal, from, ONE, LIMIT).await.expect("from the old timeline");
    assert_eq!(beyond, Whole { tli: tli(3), lsn: last });
    // One between the two that is not empty has to be gone through, and the beginning of its child's segment is no record of that.
    fs::write(pg_wal.join("00000003.history"), format!("1\t{}\tx\n2\t{last}\tx\n", fork.at)).expect("write");
    assert_eq!(end(&settings, &pg_wal, from, ONE).await.expect("the old timeline"), fork.at);
}

/// After a switch of segments the next file may not exist yet: the end is where it would begin.
#[tokio::test]
async fn the_end_may_lie_at_the_end_of_a_segment() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    primary.sql("insert into t values (1, 'x')");
    primary.sql("select pg_switch_wal()");
    let inserted = insert_position(&primary);
    primary.stop(Signal::SIGQUIT);
    let settings = primary.settings();
    let pg_wal = primary.data.join("pg_wal");
    let layout = Layout::of(&pg_wal).expect("read").expect("layout");
    let next = layout.segment_number(from) + 1;
    let end_of_segment = layout.boundary(layout.segment_start(next));
    assert_eq!(inserted, end_of_segment, "the server writes it in the same way");
    // A background process may have written on already: its segments go.
    for (number, path) in layout.segments(&pg_wal, ONE).expect("segments") {
        if number >= next {
            fs::remove_file(path).expect("remove");
        }
    }
    for start in [from, end_of_segment, layout.segment_start(next)] {
        assert_eq!(end(&settings, &pg_wal, start, ONE).await.expect("scan"), end_of_segment, "from {start}");
    }
    // What lies behind a gap is not of this log.
    let beyond = pg_wal.join(layout.segment_name(ONE, next + 1));
    fs::copy(pg_wal.join(layout.segment_name(ONE, next - 1)), &beyond).expect("copy");
    give(&beyond);
    for start in [from, end_of_segment] {
        assert_eq!(end(&settings, &pg_wal, start, ONE).await.expect("scan"), end_of_segment, "from {start}");
    }
    fs::remove_file(beyond).expect("remove");
    // A new file of zeros, and a recycled one with its old content, are no WAL.
    let path = pg_wal.join(layout.segment_name(ONE, next));
    let old = fs::read(layout.segments(&pg_wal, ONE).expect("segments").into_values().next().expect("a segment")).expect("read");
    for content in [vec![0; old.len()], old] {
        fs::write(&path, content).expect("write");
        give(&path);
        for start in [from, end_of_segment] {
            assert_eq!(end(&settings, &pg_wal, start, ONE).await.expect("scan"), end_of_segment, "from {start}");
        }
    }
}

/// Where the programs are PostgreSQL's own but for `pg_waldump`, which is this script; `$real` is the true one.
fn with_waldump(mut settings: Settings, home: &Path, script: &str) -> Settings {
    let real = pg::bin_dir().join("pg_waldump");
    let path = home.join("pg_waldump");
    fs::write(&path, format!("#!/bin/sh\nreal={}\n{script}\n", real.display())).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
    give(&path);
    settings.bin_dir = home.to_owned();
    settings
}

/// A `pg_waldump` that is killed, or cannot open a file, has not come to the end of the log, whatever it has printed.
#[tokio::test]
async fn a_pg_waldump_that_failed_says_nothing_of_the_end() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    load(&primary);
    let last = insert_position(&primary);
    primary.stop(Signal::SIGQUIT);
    let home = tempfile::tempdir().expect("directory");
    give(home.path());
    let pg_wal = primary.data.join("pg_wal");
    // The log is read on with -q, and listed where that did not name the last record: either may fail.
    let then_listed = "case \"$*\" in *' -q '*) exit 0;; esac";
    let not_opened = "echo \"pg_waldump: error: could not open file \\\"$4\\\": Input/output error\" >&2; exit 1";
    for script in [
        "kill -KILL $$".to_owned(),
        not_opened.to_owned(),
        format!("{then_listed}\nkill -KILL $$"),
        format!("{then_listed}\n$real \"$@\" 2>/dev/null | head -50; kill -KILL $$"),
        format!("{then_listed}\n$real \"$@\" 2>/dev/null | head -50; {not_opened}"),
        // Nor does a name of a file that was listed and is gone.
        "echo 'pg_waldump: error: could not find file \"x\": No such file or directory' >&2; exit 1".to_owned(),
    ] {
        let settings = with_waldump(primary.settings(), home.path(), &script);
        let found = scan::whole_in(&settings, &pg_wal, from, ONE, LIMIT).await;
        assert!(matches!(found, Err(Error::Unreadable { .. })), "{script}: {found:?}");
    }
    let settings = with_waldump(primary.settings(), home.path(), "exec $real \"$@\"");
    assert_eq!(end(&settings, &pg_wal, from, ONE).await.expect("scan"), last);
}

/// A later segment that the kernel will not open for us is there: the log does not end before it.
#[tokio::test]
async fn a_segment_that_cannot_be_opened_is_no_end() {
    let mut primary = small_segments();
    let from = insert_position(&primary);
    load(&primary);
    let last = insert_position(&primary);
    primary.stop(Signal::SIGQUIT);
    let (settings, pg_wal) = (primary.settings(), primary.data.join("pg_wal"));
    let layout = Layout::of(&pg_wal).expect("read").expect("layout");
    let path = pg_wal.join(layout.segment_name(ONE, layout.segment_number(from) + 1));
    let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode");
    mode(0);
    let found = scan::whole_in(&settings, &pg_wal, from, ONE, LIMIT).await;
    assert!(matches!(found, Err(Error::Unreadable { .. })), "{found:?}");
    mode(0o600);
    assert_eq!(end(&settings, &pg_wal, from, ONE).await.expect("scan"), last);
}
