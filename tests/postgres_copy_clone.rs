//! A clone is made beside the old directory, which is whole until the copy is; in place only where nothing else fits.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pg::{Instance, give, wait_until, wait_until_async};
use pgbaton::{
    model::{
        instance::DataDir,
        lsn::Bytes,
        moment::Span,
        node::{DataIncarnation, NodeName},
        node_file::ClonePlace,
    },
    postgres::{
        Error, Failure, Settings,
        basebackup::{self, Patience, Source, VerifiedOtherCopy},
        disk,
        place::{self, LeftoverKind},
        replace::{Way, replace},
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const LIMIT: Span = Span::from_secs(10);
const PATIENCE: Patience = Patience { total: Span::from_secs(60), standstill: Span::from_secs(20) };

fn id(text: &str) -> DataIncarnation {
    text.parse().expect("incarnation")
}

/// The node's settings, with the one role that these instances have.
fn settings(instance: &Instance) -> Settings {
    let mut settings = instance.settings();
    for role in [&mut settings.roles.replication, &mut settings.roles.monitor] {
        role.name = "postgres".to_owned();
    }
    settings
}

fn directory(instance: &Instance, name: &str) -> PathBuf {
    let path = instance.home().join(name);
    fs::create_dir(&path).expect("directory");
    give(&path);
    path
}

async fn source(target: &Settings, primary: &Instance) -> Source {
    let address = primary.settings().advertise;
    let facts = basebackup::ask(target, &address, LIMIT).await.expect("ask the source");
    assert!(facts.size > Bytes::new(1 << 20), "{facts:?}");
    Source { address, slot: None, tablespaces: facts.tablespaces }
}

fn stream_from(target: &mut Instance, primary: &Instance) {
    target.add_config(&format!("primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\nprimary_slot_name = 'clone'", primary.port));
    target.start();
    wait_until("it streams", Span::from_secs(20), || {
        primary.sql("select count(*) from pg_stat_replication where state = 'streaming'") == "1"
    });
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).expect("read").flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Every file with its content's length and its time of change.
fn listing(path: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(path).expect("metadata");
    let mut lines = vec![format!("{} {} {} {}", path.display(), metadata.mode(), metadata.size(), metadata.mtime_nsec())];
    if metadata.is_dir() {
        lines.extend(fs::read_dir(path).expect("read").flatten().flat_map(|entry| listing(&entry.path())));
    }
    lines.sort();
    lines
}

/// The second clone finds tablespace and WAL directory full of the first one's, and takes places of its own in them.
#[tokio::test]
async fn a_clone_with_tablespace_and_wal_directory_is_swapped_in_and_streams() {
    let primary = Instance::primary();
    let there = directory(&primary, "ts");
    primary.sql(&format!("create tablespace ts location '{}'", there.display()));
    primary.sql("create table t tablespace ts as select g as i, repeat('x', 500) as s from generate_series(1, 20000) g");
    primary.sql("select pg_create_physical_replication_slot('clone', true)");
    primary.sql("select pg_create_physical_replication_slot('another', true)");
    let mut target = Instance::empty();
    let (here, wal_dir) = (target.home().join("my ts=1"), target.home().join("wal"));
    let mut settings = settings(&target);
    settings.wal_dir = Some(wal_dir.clone());
    settings.tablespace_map = [(there.clone(), here.clone())].into();
    let mut source = source(&settings, &primary).await;
    assert_eq!(source.tablespaces, [there]);
    source.slot = Some("clone".parse().expect("slot"));
    for (round, id) in [id("00000001"), id("00000002"), id("00000003")].into_iter().enumerate() {
        let mut seen = Vec::new();
        basebackup::copy(&settings, &source, &id, PATIENCE, |progress| seen.push(progress)).await.expect("copy");
        let last = *seen.last().expect("progress");
        assert!(last.done > Bytes::new(8 << 20) && last.total > Bytes::new(8 << 20), "{last:?}");
        let kinds: Vec<_> = place::leftovers(&settings).await.expect("leftovers").into_iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [LeftoverKind::Copy], "round {round}");
        basebackup::swap(&settings, &id).await.expect("swap");
        basebackup::swap(&settings, &id).await.expect("swap again");
        let DataDir::Present(facts) = disk::inspect(&settings).await else { panic!("{:?}", disk::inspect(&settings).await) };
        assert!(facts.standby_signal && facts.backup_label);
        assert!(names(&target.data.join("pg_replslot")).is_empty());
        let expected = if round == 0 { wal_dir.clone() } else { wal_dir.join(format!("pgbaton-{id}")) };
        assert_eq!(fs::read_link(target.data.join("pg_wal")).expect("link"), expected);
        stream_from(&mut target, &primary);
        assert_eq!(target.sql("select count(*) from t"), "20000");
        target.stop(Signal::SIGINT);
        basebackup::discard_old(&settings, &id).await.expect("discard");
        basebackup::discard_old(&settings, &id).await.expect("discard again");
        assert_eq!(place::leftovers(&settings).await.expect("leftovers"), []);
    }
    // Of the earlier copies nothing is left, and of the last everything.
    assert_eq!(names(&wal_dir), ["pgbaton-00000003"]);
    assert_eq!(names(&here), ["pgbaton-00000003"]);
    stream_from(&mut target, &primary);
    assert_eq!(target.sql("select count(*) from t"), "20000");
}

fn program_of(path: &Path) -> Option<Pid> {
    let pids = fs::read_dir("/proc").expect("proc").flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let wanted = path.display().to_string();
    pids.into_iter()
        .find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains("pg_basebackup") && line.contains(&wanted)
        })
        .map(Pid::from_raw)
}

/// Killed, given up, or standing still: the old directory is untouched, and what was left is found and removed.
#[tokio::test]
async fn a_clone_that_is_interrupted_leaves_the_old_directory_as_it_was() {
    let primary = Instance::primary();
    primary.sql("create table t as select g as i, repeat('x', 500) as s from generate_series(1, 20000) g");
    let target = Instance::initialised();
    let settings = settings(&target);
    let source = source(&settings, &primary).await;
    let before = listing(&target.data);
    let copying = PathBuf::from(format!("{}.pgbaton-copying-00000001", target.data.display()));
    let id = id("00000001");
    // With its checkpointer stopped the source keeps the copy waiting.
    let checkpointer = primary.process("checkpointer").expect("checkpointer");
    kill(checkpointer, Signal::SIGSTOP).expect("stop");
    {
        let killed = basebackup::copy(&settings, &source, &id, PATIENCE, |_| ());
        let killer = async {
            wait_until_async("the copy has begun", LIMIT, async || copying.exists() && program_of(&copying).is_some()).await;
            kill(program_of(&copying).expect("pg_basebackup"), Signal::SIGKILL).expect("kill");
            std::future::pending::<()>().await;
        };
        let error = tokio::select! { ended = killed => ended.expect_err("killed"), () = killer => unreachable!() };
        assert!(matches!(&error, Error::Program(Failure::Status { how, .. }) if how == "signal 9"), "{error}");
        assert_eq!(place::leftovers(&settings).await.expect("leftovers"), [], "cleaned up");
    }
    let patience = Patience { standstill: Span::from_millis(500), ..PATIENCE };
    let error = basebackup::copy(&settings, &source, &id, patience, |_| ()).await.expect_err("standstill");
    assert!(matches!(error, Error::Standstill { .. }), "{error}");
    let dropped = basebackup::copy(&settings, &source, &id, PATIENCE, |_| ());
    assert!(tokio::time::timeout(Duration::from_millis(500), dropped).await.is_err());
    wait_until("the program is gone", LIMIT, || program_of(&copying).is_none());
    let left = place::leftovers(&settings).await.expect("leftovers");
    assert_eq!(left.iter().map(|it| it.kind).collect::<Vec<_>>(), [LeftoverKind::Copying]);
    assert!(matches!(basebackup::swap(&settings, &id).await, Err(Error::Refused(_))), "half a copy is not swapped in");
    assert_eq!(listing(&target.data), before);
    kill(checkpointer, Signal::SIGCONT).expect("go on");
    basebackup::copy(&settings, &source, &id, PATIENCE, |_| ()).await.expect("copy");
    assert_eq!(listing(&target.data), before);
    let left = place::leftovers(&settings).await.expect("leftovers");
    assert_eq!(left.iter().map(|it| it.kind).collect::<Vec<_>>(), [LeftoverKind::Copy], "what was left before is gone");
}

/// A crash between the two renames: no data directory, the old one and the copy beside it.
#[tokio::test]
async fn a_swap_that_was_interrupted_is_finished() {
    let primary = Instance::primary();
    let target = Instance::initialised();
    let settings = settings(&target);
    let (source, id) = (source(&settings, &primary).await, id("00000001"));
    basebackup::copy(&settings, &source, &id, PATIENCE, |_| ()).await.expect("copy");
    let old = format!("{}.pgbaton-old-{id}", target.data.display());
    fs::rename(&target.data, &old).expect("rename");
    assert!(matches!(basebackup::discard_old(&settings, &id).await, Err(Error::Refused(_))), "the last copy is kept");
    basebackup::swap(&settings, &id).await.expect("swap");
    assert!(matches!(disk::inspect(&settings).await, DataDir::Present(facts) if facts.backup_label));
    assert!(Path::new(&old).exists());
    basebackup::discard_old(&settings, &id).await.expect("discard");
    assert!(!Path::new(&old).exists());
}

/// Whichever step the agent died after: what is whole is not copied again, and nothing is left.
#[tokio::test]
async fn a_replacement_that_was_interrupted_goes_on_with_the_copy_that_it_has() {
    let primary = Instance::primary();
    let target = Instance::initialised();
    let settings = settings(&target);
    let source = source(&settings, &primary).await;
    // Whoever copies again fails there.
    let nobody = "127.0.0.1:1".parse().expect("address");
    let beside = |name: &str| PathBuf::from(format!("{}.pgbaton-{name}", target.data.display()));
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("metadata"));
    for (steps, id) in [(1, id("00000001")), (2, id("00000002")), (3, id("00000003"))] {
        let former = inode(&target.data);
        basebackup::copy(&settings, &source, &id, PATIENCE, |_| ()).await.expect("copy");
        let copied = inode(&beside(&format!("copy-{id}")));
        if steps > 1 {
            basebackup::swap(&settings, &id).await.expect("swap");
        }
        if steps > 2 {
            basebackup::discard_old(&settings, &id).await.expect("discard");
        }
        fs::create_dir(beside("copying-00000009")).expect("half a copy of another life");
        for _ in 0..2 {
            replace(&settings, &nobody, &id, &Way::Beside, PATIENCE, |_| ()).await.expect("it goes on");
            assert_eq!((inode(&target.data), place::leftovers(&settings).await.expect("leftovers")), (copied, vec![]), "{steps} steps");
        }
        assert_ne!(former, copied);
        assert!(matches!(disk::inspect(&settings).await, DataDir::Present(facts) if facts.backup_label && facts.standby_signal));
    }
    // Another life is another copy; what a former one replaced stays.
    let (before, kept) = (inode(&target.data), beside("old-00000001"));
    fs::create_dir(&kept).expect("directory");
    let fourth = id("00000004");
    let error = replace(&settings, &nobody, &fourth, &Way::Beside, PATIENCE, |_| ()).await.expect_err("nobody is there");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert_eq!(inode(&target.data), before);
    replace(&settings, &source.address, &fourth, &Way::Beside, PATIENCE, |_| ()).await.expect("replace");
    assert_ne!(inode(&target.data), before);
    let left = place::leftovers(&settings).await.expect("leftovers");
    assert_eq!(left.iter().map(|it| it.path.clone()).collect::<Vec<_>>(), [kept]);
    assert_eq!(left[0].advice(&settings.data_dir), "what a copy replaced: remove it");
    fs::remove_file(target.data.join("global/pg_control")).expect("remove");
    assert!(left[0].advice(&settings.data_dir).contains("holds no data: keep it"), "the last copy is not to be removed");
}

struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = umount(self.0);
    }
}

#[tokio::test]
async fn a_mount_point_is_cloned_in_place() {
    let primary = Instance::primary();
    primary.sql("select pg_create_physical_replication_slot('clone', true)");
    let mut target = Instance::empty();
    fs::create_dir(&target.data).expect("directory");
    let point = target.data.clone();
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some("size=256m,mode=0700")).expect("mount (needs root)");
    let mounted = Mount(&point);
    give(&point);
    fs::create_dir(point.join("lost+found")).expect("directory");
    let settings = settings(&target);
    let source = source(&settings, &primary).await;
    let found = place::place_for(&settings, Bytes::new(1 << 20)).await.expect("place");
    assert_eq!((found.place, found.why), (ClonePlace::InPlace, format!("{} is a mount point", point.display())));
    let proof = VerifiedOtherCopy { node: "n3".parse::<NodeName>().expect("name") };
    for id in [id("00000001"), id("00000002")] {
        basebackup::copy_in_place(&settings, &source, &id, &proof, PATIENCE, |_| ()).await.expect("copy");
        assert!(matches!(disk::inspect(&settings).await, DataDir::Present(facts) if facts.standby_signal));
        assert!(point.join("lost+found").exists() && !point.join(format!("pgbaton-{id}")).exists());
        stream_from(&mut target, &primary);
        target.stop(Signal::SIGINT);
    }
    // What is whole is not copied again, nor what was half moved up when the agent died.
    let (fourth, way, nobody) = (id("00000004"), Way::InPlace(proof.clone()), "127.0.0.1:1".parse().expect("address"));
    replace(&settings, &source.address, &fourth, &way, PATIENCE, |_| ()).await.expect("replace");
    replace(&settings, &nobody, &fourth, &way, PATIENCE, |_| ()).await.expect("it is there");
    let inside = point.join("pgbaton-00000004");
    fs::create_dir(&inside).expect("directory");
    for name in ["global", "base", ".pgbaton-copy"] {
        fs::rename(point.join(name), inside.join(name)).expect("rename");
    }
    replace(&settings, &nobody, &fourth, &way, PATIENCE, |_| ()).await.expect("it goes on");
    assert!(matches!(disk::inspect(&settings).await, DataDir::Present(facts) if facts.standby_signal) && !inside.exists());
    // A failure leaves nothing that could be started.
    let mut gone = source.clone();
    gone.address = "127.0.0.1:1".parse().expect("address");
    let error = basebackup::copy_in_place(&settings, &gone, &id("00000003"), &proof, PATIENCE, |_| ()).await.expect_err("no source");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    assert!(!matches!(disk::inspect(&settings).await, DataDir::Present(_)));
    drop(target);
    drop(mounted);
}

#[tokio::test]
async fn a_place_is_chosen_by_space_and_rights() {
    let target = Instance::initialised();
    let settings = settings(&target);
    let beside = place::place_for(&settings, Bytes::new(1 << 20)).await.expect("place");
    assert_eq!((beside.place, beside.why.as_str()), (ClonePlace::Beside, ""));
    let huge = place::place_for(&settings, Bytes::new(1 << 60)).await.expect("place");
    assert!(huge.place == ClonePlace::InPlace && huge.why.contains("are free beside"), "{huge:?}");
    std::os::unix::fs::chown(target.home(), Some(0), Some(0)).expect("chown");
    let locked = place::place_for(&settings, Bytes::new(1 << 20)).await.expect("place");
    assert!(locked.place == ClonePlace::InPlace && locked.why.contains("cannot be written by user id"), "{locked:?}");
}
