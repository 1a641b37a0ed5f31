//! What lies in the data directory is told, and never touched; a new one is made whole or not at all.

#![expect(clippy::expect_used, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::Signal,
};
use pg::{Instance, give};
use pgbaton::{
    model::{
        instance::{ControlState, DataDir},
        moment::Span,
        node_file::{NodeFile, Operation},
        secret::Secret,
    },
    postgres::{
        Error, Settings,
        bootstrap::{self, InitialisedHere, Options},
        disk,
    },
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

const LIMIT: Span = Span::from_secs(60);

/// Every path from `path` down with its mode, owner, size, time of change and link target: what must not change.
fn listing(path: &Path) -> Vec<String> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Vec::new() };
    let (mode, uid, size, changed) = (metadata.mode(), metadata.uid(), metadata.size(), metadata.ctime_nsec());
    let mut lines = vec![format!("{} {mode:o} {uid} {size} {changed} {:?}", path.display(), fs::read_link(path).ok())];
    if metadata.is_dir() {
        lines.extend(fs::read_dir(path).expect("read").flatten().flat_map(|entry| listing(&entry.path())));
    }
    lines.sort();
    lines
}

/// Looks, and asserts that looking changed nothing. The reason, where it is unusable.
async fn why(settings: &Settings) -> String {
    let before = listing(&settings.data_dir);
    let found = disk::inspect(settings).await;
    assert_eq!(listing(&settings.data_dir), before);
    match found {
        DataDir::Unusable { why } => why,
        other => format!("usable: {other:?}"),
    }
}

#[tokio::test]
async fn a_data_directory_says_what_it_is() {
    let mut instance = Instance::initialised();
    let settings = instance.settings();
    fs::write(instance.data.join("pg_wal/00000002.history"), "# burnt\n").expect("write");
    let DataDir::Present(facts) = disk::inspect(&settings).await else { panic!("{:?}", disk::inspect(&settings).await) };
    assert_eq!((facts.control.state, facts.standby_signal, facts.backup_label), (ControlState::ShutDown, false, false));
    assert_eq!(facts.histories.len(), 1);
    fs::remove_file(instance.data.join("pg_wal/00000002.history")).expect("remove");
    fs::write(instance.data.join("standby.signal"), "").expect("write");
    instance.start();
    let state = async || match disk::inspect(&settings).await {
        DataDir::Present(facts) => (facts.control.state, facts.standby_signal),
        other => panic!("{other:?}"),
    };
    assert_eq!(state().await, (ControlState::InArchiveRecovery, true));
    instance.stop(Signal::SIGINT);
    assert_eq!(state().await, (ControlState::ShutDownInRecovery, true));
}

#[tokio::test]
async fn a_missing_and_an_empty_directory_can_be_made_one() {
    let instance = Instance::empty();
    let settings = instance.settings();
    assert_eq!(disk::inspect(&settings).await, DataDir::Missing);
    fs::create_dir(&instance.data).expect("directory");
    give(&instance.data);
    assert_eq!(disk::inspect(&settings).await, DataDir::Empty);
    fs::create_dir(instance.data.join("lost+found")).expect("directory");
    assert_eq!(disk::inspect(&settings).await, DataDir::Empty);
}

/// Each says what is wrong, where, and what to do.
#[tokio::test]
async fn an_unusable_directory_is_explained_and_left_alone() {
    let foreign = Instance::empty();
    fs::create_dir(&foreign.data).expect("directory");
    fs::write(foreign.data.join("thesis.txt"), "dear to somebody").expect("write");
    give(&foreign.data);
    let file = Instance::empty();
    fs::write(&file.data, "").expect("write");
    let unowned = Instance::empty();
    fs::create_dir(&unowned.data).expect("directory");
    let dangling = Instance::empty();
    symlink("/nowhere/data", &dangling.data).expect("link");
    let unmade = Instance::empty();
    let mut settings = unmade.settings();
    settings.data_dir = unmade.home().join("not/there");
    let text = why(&settings).await;
    assert!(text.contains("nor its parent") && text.contains("mount"), "{text}");
    let cases = [
        (foreign, "not empty and holds no PG_VERSION that can be read, but thesis.txt"),
        (file, "is no directory"),
        (unowned, "belongs to user id 0"),
        (dangling, "is a link to /nowhere/data, which is not there"),
    ];
    for (instance, expected) in cases {
        assert_says(&why(&instance.settings()).await, expected);
    }
}

/// Nothing is claimed for a directory that initdb could never make: it would fail for ever.
#[tokio::test]
async fn a_directory_that_its_owner_cannot_make_is_unusable() {
    let instance = Instance::empty();
    let mut settings = instance.settings();
    let parent = instance.home().join("mount");
    fs::create_dir(&parent).expect("directory");
    settings.data_dir = parent.join("data");
    let text = why(&settings).await;
    let uid = pg::owner().uid;
    assert_says(&text, &format!("cannot be made or written by user id {uid}"));
    assert_says(&text, "mount: permission denied; install -d -o");
    give(&parent);
    assert_eq!(disk::inspect(&settings).await, DataDir::Missing);
    settings.wal_dir = Some("/proc/wal".into());
    assert_says(&why(&settings).await, "/proc/wal cannot be made");
}

fn assert_says(text: &str, expected: &str) {
    assert!(text.contains(expected), "{text:?} does not say {expected:?}");
}

#[tokio::test]
async fn a_damaged_data_directory_is_explained_and_left_alone() {
    let instance = Instance::initialised();
    let (settings, data) = (instance.settings(), instance.data.clone());
    let owner = pg::owner();
    for (name, content, expected) in [
        ("PG_VERSION", "9.6\n", "says \"9.6\""),
        ("PG_VERSION", "12\n", "is of PostgreSQL 12, but the programs in"),
        ("global/pg_control", &"7".repeat(8192), "damaged"),
    ] {
        let (path, before) = (data.join(name), fs::read(data.join(name)).expect("read"));
        fs::write(&path, content).expect("write");
        assert_says(&why(&settings).await, expected);
        fs::write(&path, before).expect("write");
    }
    for (name, target, expected) in [
        ("pg_wal", "/nowhere/wal", "points to /nowhere/wal, which is not there: is its mount missing?"),
        ("pg_tblspc/16384", "/nowhere/ts", "points to /nowhere/ts"),
    ] {
        let (path, aside) = (data.join(name), instance.home().join("aside"));
        let moved = fs::rename(&path, &aside);
        symlink(target, &path).expect("link");
        assert_says(&why(&settings).await, expected);
        fs::remove_file(&path).expect("remove");
        if moved.is_ok() {
            fs::rename(&aside, &path).expect("rename");
        }
    }
    chown(&data, Some(0), Some(0)).expect("chown");
    assert_says(&why(&settings).await, "chown -R");
    chown(&data, Some(owner.uid), Some(owner.gid)).expect("chown");
    fs::set_permissions(&data, Permissions::from_mode(0o755)).expect("chmod");
    assert_says(&why(&settings).await, "chmod 0700");
    fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("chmod");
    assert!(matches!(disk::inspect(&settings).await, DataDir::Present(_)));
    fs::remove_file(data.join("global/pg_control")).expect("remove");
    assert_says(&why(&settings).await, "pg_control");
}

/// A mount that goes when the test ends.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn at(path: &'a Path) -> Self {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=128m,mode=0755")).expect("mount (needs root)");
        give(path);
        Self(path)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = umount(self.0);
    }
}

/// Scenario 119: the data directory's mount is missing at boot, and an empty mount point is there.
#[tokio::test]
async fn an_empty_mount_point_is_not_taken_for_an_empty_data_directory() {
    let instance = Instance::empty();
    let point = instance.home().join("mnt");
    fs::create_dir(&point).expect("directory");
    give(&point);
    for below in ["", "data"] {
        let mut settings = instance.settings();
        settings.data_dir = point.join(below);
        let mounted = Mount::at(&point);
        if below.is_empty() {
            // An empty file system: nothing was remembered yet.
            assert_eq!(disk::inspect(&settings).await, DataDir::Empty);
        } else {
            pg::copy(&Instance::initialised().data, &settings.data_dir);
            assert!(matches!(disk::inspect(&settings).await, DataDir::Present(_)));
        }
        disk::remember_mount(&settings).await.expect("remember");
        drop(mounted);
        let text = why(&settings).await;
        assert!(text.contains("is that mount missing?") && text.contains(point.to_str().expect("path")), "{text}");
        let error = bootstrap::initdb(&settings, &Options::default(), LIMIT).await.expect_err("initdb there");
        assert!(matches!(error, Error::Refused(_)), "{error}");
        assert_eq!(fs::read_dir(&point).expect("read").count(), 0, "nothing was written there");
        let mounted = Mount::at(&point);
        assert!(matches!(disk::inspect(&settings).await, DataDir::Empty | DataDir::Missing));
        drop(mounted);
    }
}

/// An initdb that only notes what it is given.
#[tokio::test]
async fn initdb_is_asked_for_checksums_once() {
    let instance = Instance::empty();
    let mut settings = instance.settings();
    settings.bin_dir = instance.home().join("bin");
    fs::create_dir(&settings.bin_dir).expect("directory");
    let (program, noted) = (settings.bin_dir.join("initdb"), instance.home().join("noted"));
    fs::write(&program, format!("#!/bin/sh\necho \"$@\" > {}\nexit 1\n", noted.display())).expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    for (given, wanted) in [(vec![], "--data-checksums"), (vec!["--data-checksums"], "--data-checksums"), (vec!["-k"], "-k")] {
        let options = Options { args: given.into_iter().map(str::to_owned).collect(), password: None };
        bootstrap::initdb(&settings, &options, LIMIT).await.expect_err("it makes nothing");
        let text = fs::read_to_string(&noted).expect("read");
        let asked: Vec<&str> = text.split_whitespace().filter(|arg| *arg == "-k" || arg.contains("checksums")).collect();
        assert_eq!(asked, [wanted], "{text}");
    }
}

#[tokio::test]
async fn initdb_makes_a_directory_with_checksums_that_is_at_rest() {
    let mut instance = Instance::empty();
    let mut settings = instance.settings();
    let wal_dir = instance.home().join("wal");
    settings.wal_dir = Some(wal_dir.clone());
    let options =
        Options { args: vec!["--encoding=UTF8".to_owned(), "--no-sync".to_owned()], password: Some(Secret::new("geheim".to_owned())) };
    bootstrap::initdb(&settings, &options, LIMIT).await.expect("initdb");
    let DataDir::Present(facts) = disk::inspect(&settings).await else { panic!("no data directory") };
    assert_eq!((facts.control.state, facts.control.can_rewind, facts.standby_signal), (ControlState::ShutDown, true, true));
    assert_eq!(fs::read_link(instance.data.join("pg_wal")).expect("link"), wal_dir);
    let left: Vec<_> = fs::read_dir(&settings.state_dir).expect("read").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "the password is gone: {left:?}");
    fs::remove_file(instance.data.join("standby.signal")).expect("remove");
    instance.start();
    assert_eq!(instance.sql("show data_checksums"), "on");
    let login = |password: &str| {
        instance.psql(&["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-c", "select 1"], &[("PGPASSWORD", password)])
    };
    assert_eq!(login("geheim"), Ok("1".to_owned()));
    assert!(login("falsch").expect_err("wrong password").contains("password authentication failed"));
    let again = bootstrap::initdb(&settings, &options, LIMIT).await.expect_err("there is one already");
    assert!(matches!(again, Error::Refused(_)), "{again}");
}

/// A bad option, a full disk, a deadline: what initdb made is gone, what was there is still there.
#[tokio::test]
async fn an_initdb_that_fails_leaves_nothing_behind() {
    let bad = Options { args: vec!["--locale=xx_YY.nonsense".to_owned()], password: None };
    let fine = Options { args: vec!["--no-sync".to_owned()], password: Some(Secret::new("x".to_owned())) };
    for was_there in [false, true] {
        for (options, limit) in [(&bad, LIMIT), (&fine, Span::from_millis(60))] {
            let instance = Instance::empty();
            let mut settings = instance.settings();
            settings.wal_dir = Some(instance.home().join("wal"));
            if was_there {
                fs::create_dir(&instance.data).expect("directory");
                give(&instance.data);
            }
            let error = bootstrap::initdb(&settings, options, limit).await.expect_err("it fails");
            assert!(matches!(error, Error::Program(_)), "{error}");
            let expected = if was_there { DataDir::Empty } else { DataDir::Missing };
            assert_eq!(disk::inspect(&settings).await, expected, "after {error}");
            assert!(!instance.home().join("wal").exists());
            assert_eq!(fs::read_dir(&settings.state_dir).expect("read").count(), 0);
        }
    }
}

#[tokio::test]
async fn an_initdb_on_a_full_disk_leaves_an_empty_directory() {
    let instance = Instance::empty();
    let point = instance.home().join("small");
    fs::create_dir(&point).expect("directory");
    mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), Some("size=8m,mode=0755")).expect("mount (needs root)");
    let mounted = Mount(&point);
    give(&point);
    let mut settings = instance.settings();
    settings.data_dir = point.join("data");
    let error = bootstrap::initdb(&settings, &Options::default(), LIMIT).await.expect_err("no space");
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert_eq!(disk::inspect(&settings).await, DataDir::Missing);
    drop(mounted);
}

#[tokio::test]
async fn initdb_refuses_what_is_not_its_to_take() {
    let instance = Instance::empty();
    let mut settings = instance.settings();
    let wal_dir = instance.home().join("wal");
    fs::create_dir(&wal_dir).expect("directory");
    fs::write(wal_dir.join("somebodys"), "").expect("write");
    give(&wal_dir);
    settings.wal_dir = Some(wal_dir.clone());
    let options = |arg: &str| Options { args: vec![arg.to_owned()], password: None };
    for (settings, options, expected) in
        [(&settings, Options::default(), "wal_dir"), (&instance.settings(), options("--pgdata=/x"), "given by pgbaton itself")]
    {
        let error = bootstrap::initdb(settings, &options, LIMIT).await.expect_err("refused");
        assert!(matches!(&error, Error::Refused(text) if text.contains(expected)), "{error}");
    }
    assert!(wal_dir.join("somebodys").exists() && !instance.data.exists());
}

/// A loser of the bootstrap race discards only a directory that its own file says it initialised and that never ran.
#[tokio::test]
async fn only_a_directory_that_never_ran_is_discarded() {
    let mut instance = Instance::initialised();
    let settings = instance.settings();
    let data = "0a1b2c3d".parse().expect("incarnation");
    let mut file = NodeFile::fresh(settings.cluster.clone(), settings.node.clone(), data);
    assert!(InitialisedHere::by(&file).is_none());
    file.operation = Some(Operation::InitDb);
    let proof = InitialisedHere::by(&file).expect("the file says so");
    instance.start();
    let error = bootstrap::discard(&settings, proof).await.expect_err("it runs");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    instance.stop(Signal::SIGQUIT);
    let error = bootstrap::discard(&settings, proof).await.expect_err("it ran");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    let fresh = Instance::initialised();
    bootstrap::discard(&fresh.settings(), proof).await.expect("discard");
    assert_eq!(disk::inspect(&fresh.settings()).await, DataDir::Empty);
}
