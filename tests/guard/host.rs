//! A guard with its own directories, and PostgreSQL under it; all gone at the end of the test.

use pgbaton::{
    clock,
    guard::{
        GuardSettings, KillChoice, StartCommand,
        client::{ArmedBy, Guard, query_status},
        socket_in,
    },
    model::{
        instance::{GuardStatus, Process, StartAs},
        moment::{Moment, Span},
        node::Incarnation,
        term::Term,
    },
};
use std::{
    collections::BTreeSet,
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};
use tokio::sync::mpsc;

pub(crate) const BIN: &str = "/usr/lib/postgresql/15/bin";
/// How long a verb may take.
pub(crate) const PATIENCE: Span = Span::from_secs(10);
pub(crate) const MODES: [KillChoice; 2] = [KillChoice::Namespace, KillChoice::Descendants];

#[expect(clippy::disallowed_methods, reason = "tests start what they test")]
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(name)
}

/// Directories, a guard, and PostgreSQL's files.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    guard: Option<Child>,
    kill: KillChoice,
    as_root: bool,
    network: Network,
    mounted: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Host {
    /// A host whose guard has not been started.
    pub(crate) fn new(kill: KillChoice) -> Self {
        let dir = tempfile::Builder::new().prefix("pgbaton-guard-").tempdir_in("/tmp").expect("directory");
        let number = |file| -> u32 {
            let out = run(program("id").args([file, "postgres"]));
            String::from_utf8_lossy(&out.stdout).trim().parse().expect("the user postgres exists")
        };
        let host =
            Self { guard: None, kill, as_root: true, network: Network::Ours, mounted: false, uid: number("-u"), gid: number("-g"), dir };
        run(program("chown").arg("postgres:postgres").arg(host.dir.path()));
        host
    }

    /// With a data directory as `initdb` makes it, and a guard that runs.
    pub(crate) async fn with_postgres(kill: KillChoice) -> Self {
        let mut host = Self::new(kill);
        host.initdb();
        host.start_guard().await;
        host
    }

    /// The guard runs as the owner of the data directory, without root.
    pub(crate) fn without_root(mut self) -> Self {
        self.as_root = false;
        self
    }

    /// The guard runs in a network of its own, which has nothing but a loopback interface.
    pub(crate) fn with_network(mut self) -> Self {
        self.network = Network::New;
        self
    }

    /// The next guard runs in this network.
    pub(crate) fn enter_network(&mut self, network: fs::File) {
        self.network = Network::Of(network);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_in(&self.path("run"))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("postgres.log")).unwrap_or_default()
    }

    pub(crate) fn guard_log(&self) -> String {
        fs::read_to_string(self.path("guard.log")).unwrap_or_default()
    }

    /// A fresh data directory, copied from a template that is made once.
    pub(crate) fn initdb(&self) {
        let template = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guard-template");
        if !template.exists() {
            let new = self.path("template");
            run(&mut self.as_postgres(&[
                &format!("{BIN}/initdb"),
                "-D",
                new.to_str().expect("utf-8"),
                "-A",
                "trust",
                "-N",
                "-U",
                "postgres",
            ]));
            run(program("cp").arg("-a").arg(&new).arg(template.with_extension(std::process::id().to_string())));
            let _ = fs::rename(template.with_extension(std::process::id().to_string()), &template);
        }
        let _ = fs::create_dir(self.data_dir());
        run(program("cp").arg("-a").arg(template.join(".")).arg(self.data_dir()));
        fs::write(self.data_dir().join("standby.signal"), "").expect("standby.signal");
        run(program("chown").arg("postgres:postgres").arg(self.data_dir().join("standby.signal")));
    }

    /// Puts the data directory on a file system of its own, which can be frozen.
    pub(crate) fn mount_data_dir(&mut self) {
        let (image, data_dir) = (self.path("image"), self.data_dir());
        fs::File::create(&image).and_then(|file| file.set_len(256 << 20)).expect("image");
        fs::create_dir(&data_dir).expect("mount point");
        run(program("mkfs.ext4").args(["-q", "-F"]).arg(&image));
        run(program("mount").args(["-o", "loop"]).arg(&image).arg(&data_dir));
        self.mounted = true;
        run(program("chown").arg("postgres:postgres").arg(&data_dir));
        run(program("chmod").arg("700").arg(&data_dir));
    }

    /// From now on whoever writes to the data directory waits, and cannot be killed.
    pub(crate) fn freeze(&self) {
        run(program("fsfreeze").arg("-f").arg(self.data_dir()));
    }

    pub(crate) fn thaw(&self) {
        let _ = program("fsfreeze").arg("-u").arg(self.data_dir()).stderr(Stdio::null()).status();
    }

    pub(crate) fn as_postgres(&self, argv: &[&str]) -> Command {
        let mut command = program("setpriv");
        command
            .args([&format!("--reuid={}", self.uid), &format!("--regid={}", self.gid), "--init-groups"])
            .args(argv)
            .current_dir(self.dir.path());
        command
    }

    pub(crate) fn settings(&self) -> GuardSettings {
        GuardSettings {
            run_dir: self.path("run"),
            data_dir: self.data_dir(),
            kill: self.kill,
            service_uid: Some(self.uid),
            service_gid: Some(self.gid),
            cluster: "test".parse().expect("name"),
            node: "n1".parse().expect("name"),
            log_file: Some(self.path("guard.log")),
            stop_timeout: Span::from_secs(10),
            detach: false,
        }
    }

    pub(crate) fn settings_file(&self, settings: &GuardSettings) -> PathBuf {
        let path = self.path("guard.json");
        fs::write(&path, serde_json::to_vec(settings).expect("json")).expect("settings");
        path
    }

    pub(crate) fn guard_command(&self) -> Command {
        let file = self.settings_file(&self.settings());
        let argv = [env!("CARGO_BIN_EXE_pgbaton"), "guard", "--settings-json", file.to_str().expect("utf-8")];
        let mut command = match (&self.network, self.as_root) {
            (Network::Ours, true) => program(argv[0]),
            (Network::Ours, false) => self.as_postgres(&argv[..1]),
            (Network::New, _) => {
                let mut command = program("unshare");
                command.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh", argv[0]]);
                command
            }
            (Network::Of(network), _) => {
                let mut command = program("nsenter");
                let path = format!("/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
                command.args([&format!("--net={path}"), "--", argv[0]]);
                command
            }
        };
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub(crate) async fn start_guard(&mut self) {
        self.guard = Some(self.guard_command().spawn().expect("guard"));
        let socket = self.socket();
        eventually("the guard answers", PATIENCE, async || query_status(&socket, Span::from_millis(500)).await.ok()).await;
    }

    pub(crate) fn guard_pid(&self) -> i32 {
        i32::try_from(self.guard.as_ref().expect("a guard").id()).expect("pid")
    }

    /// Waits for the guard's end.
    pub(crate) async fn guard_exit(&mut self) -> std::process::ExitStatus {
        let mut guard = self.guard.take().expect("a guard");
        eventually("the guard ends", PATIENCE, async || guard.try_wait().expect("wait")).await
    }

    pub(crate) fn port(&self) -> u32 {
        // Only a name within this host's own socket directory: nothing listens on TCP.
        5432
    }

    pub(crate) fn command(&self) -> StartCommand {
        let text = |path: PathBuf| path.to_str().expect("utf-8").to_owned();
        let mut args = vec!["-D".to_owned(), text(self.data_dir())];
        let sockets = format!("unix_socket_directories={}", text(self.path("")));
        for setting in ["listen_addresses=", &sockets, "shared_buffers=16MB", "fsync=off", "restart_after_crash=off", "autovacuum=off"] {
            args.extend(["-c".to_owned(), setting.to_owned()]);
        }
        StartCommand {
            program: format!("{BIN}/postgres").into(),
            args,
            env: vec![("LC_ALL".to_owned(), "C".to_owned())],
            working_dir: self.dir.path().to_owned(),
            uid: self.uid,
            gid: self.gid,
            data_dir: self.data_dir(),
            log_file: self.path("postgres.log"),
        }
    }

    pub(crate) async fn session(&self) -> (Guard, mpsc::Receiver<GuardStatus>) {
        Guard::connect(&self.socket(), agent(), PATIENCE).await.expect("session")
    }

    /// A session with a primary of `term` that serves, armed for an hour.
    pub(crate) async fn primary(&self, term: u64) -> (Guard, mpsc::Receiver<GuardStatus>) {
        let (guard, changes) = self.session().await;
        arm(&guard, term, Span::from_secs(3_600)).await;
        guard.start(StartAs::Primary, self.command(), Term::new(term), PATIENCE).await.expect("start");
        self.serves().await;
        (guard, changes)
    }

    /// Waits until SQL is answered.
    pub(crate) async fn serves(&self) {
        eventually("PostgreSQL serves", PATIENCE, async || self.try_sql("select 1").ok()).await;
    }

    pub(crate) fn psql(&self, sql: &str) -> Command {
        let mut command = program(format!("{BIN}/psql"));
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]).arg(self.dir.path());
        command.args(["-p", &self.port().to_string(), "-c", sql]).stdin(Stdio::null());
        command
    }

    pub(crate) fn try_sql(&self, sql: &str) -> Result<String, String> {
        let out = self.psql(sql).output().expect("psql");
        if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).expect(sql)
    }

    /// A statement that keeps its backend busy until it is killed.
    pub(crate) fn busy(&self, seconds: u32) -> Client {
        // A loop that does not look at the postmaster: EXP-1.
        let sql = format!(
            "do $$ declare t timestamptz := clock_timestamp() + interval '{seconds} s'; begin while clock_timestamp() < t loop end loop; end $$; \
             create table if not exists late (i int)"
        );
        let sql = sql.as_str();
        Client(self.psql(sql).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql"))
    }

    /// How many backends run what [`Self::busy`] sends.
    pub(crate) fn busy_backends(&self) -> usize {
        self.sql("select count(*) from pg_stat_activity where query like 'do $$%' and state = 'active'").parse().expect("number")
    }

    /// Living processes of PostgreSQL in the data directory.
    pub(crate) fn postgres(&self) -> BTreeSet<i32> {
        let data_dir = fs::canonicalize(self.data_dir()).expect("data directory");
        let works_here = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir)
                && fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("postgres"))
        };
        living().into_iter().map(|(pid, _)| pid).filter(works_here).collect()
    }

    /// The postmaster, by its id on this machine.
    pub(crate) fn postmaster(&self) -> i32 {
        let all = self.postgres();
        let living = living();
        let parent = |pid: &i32| living.iter().find(|(candidate, _)| candidate == pid).map(|(_, parent)| *parent);
        all.iter().copied().find(|pid| parent(pid).is_some_and(|parent| !all.contains(&parent))).expect("a postmaster")
    }

    /// The keepers: children of the guard.
    pub(crate) fn keepers(&self) -> Vec<i32> {
        let guard = self.guard_pid();
        living().into_iter().filter(|(_, parent)| *parent == guard).map(|(pid, _)| pid).collect()
    }

    pub(crate) async fn dies(&self, within: Span) {
        eventually("every process of PostgreSQL is dead", within, async || self.postgres().is_empty().then_some(())).await;
    }
}

/// Where the guard runs.
enum Network {
    /// Where this test does.
    Ours,
    /// In a new one.
    New,
    /// In this one.
    Of(fs::File),
}

/// A session of psql.
pub(crate) struct Client(Child);

impl Client {
    /// Waits for its end; whether its statement was acknowledged.
    pub(crate) fn end(mut self) -> bool {
        self.0.wait().expect("psql").success()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.mounted {
            self.thaw();
        }
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        for _ in 0..200 {
            let left = if self.data_dir().exists() { self.postgres() } else { BTreeSet::new() };
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(|pid| signal(pid, "KILL"));
            std::thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..100 {
            if !self.mounted || program("umount").arg(self.data_dir()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if std::thread::panicking() {
            eprintln!("--- guard\n{}\n--- postgres\n{}", self.guard_log(), self.log());
        }
    }
}

pub(crate) fn agent() -> Incarnation {
    clock::incarnation()
}

pub(crate) async fn arm(guard: &Guard, term: u64, ahead: Span) -> Moment {
    let until = clock::boot().plus(ahead);
    guard.arm(Term::new(term), until, ArmedBy::OwnSwap, PATIENCE).await.expect("arm");
    until
}

/// Reads changes until the tree is verified empty; when that was heard.
pub(crate) async fn emptied(changes: &mut mpsc::Receiver<GuardStatus>) -> (GuardStatus, Moment) {
    loop {
        let status = tokio::time::timeout(PATIENCE.to_std(), changes.recv()).await.expect("a status in time").expect("the session goes on");
        if matches!(status.process, Process::Empty { last: Some(_) }) {
            return (status, clock::boot());
        }
    }
}

pub(crate) fn signal(pid: i32, name: &str) {
    let _ = program("/bin/kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

pub(crate) fn run(command: &mut Command) -> Output {
    let out = command.stdin(Stdio::null()).output().expect("run");
    assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// Processes that are no zombies, with their parents.
pub(crate) fn living() -> Vec<(i32, i32)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?;
        Some((pid, fields.next()?.parse().ok()?)).filter(|_| state != "Z" && state != "X")
    })
    .collect()
}

pub(crate) fn is_alive(pid: i32) -> bool {
    living().iter().any(|(candidate, _)| *candidate == pid)
}

/// Polls until `probe` gives a value.
pub(crate) async fn eventually<T>(what: &str, within: Span, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let until = clock::boot().plus(within);
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(clock::boot() < until, "not within {within}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
