//! Throw-away PostgreSQL instances for tests: real servers on Unix sockets and loopback ports, gone when dropped.
//!
//! An instance is a directory of its own. `initdb` is run once and copied after that.
//! Everything runs as `postgres` (PostgreSQL refuses root) and dies with the test's thread.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot be set up ends here")]
#![expect(clippy::disallowed_methods, reason = "tests start PostgreSQL themselves, and wait by the clock")]

#[path = "port.rs"]
mod port;

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Gid, Pid, Uid, User},
};
use pgbaton::{
    clock,
    model::{instance::StartAs, moment::Span, policy::ClusterPolicy},
    postgres::{ConfigFiles, Configuration, Credential, Owner, Role, Roles, Settings, StartCommand, start_command},
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// Where PostgreSQL's programs lie: `PGBATON_TEST_BIN`, Debian's 15 else.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("PGBATON_TEST_BIN").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// Where instances lie: in memory, which is ten times faster than a busy disk, or in the temporary directory where there is none.
fn root() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// The user that PostgreSQL runs as.
pub fn owner() -> Owner {
    let user = User::from_name("postgres").expect("user database").expect("a user postgres");
    Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() }
}

/// A command that runs as `postgres` and dies with the thread that started it.
pub fn as_postgres(program: impl AsRef<Path>) -> Command {
    let owner = owner();
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={}", owner.uid), &format!("--regid={}", owner.gid)]);
    command.args(["--clear-groups", "--pdeathsig=KILL", "--"]).arg(program.as_ref());
    command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin").current_dir("/").stdin(Stdio::null());
    command
}

/// Runs one of PostgreSQL's programs to its end as `postgres`; panics with its stderr where it fails.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = as_postgres(bin_dir().join(program)).args(args).output().expect("start a program");
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks `condition` every 30 ms until it holds; panics with `what` after `limit`.
pub fn wait_until(what: &str, limit: Span, mut condition: impl FnMut() -> bool) {
    let end = clock::boot().plus(limit);
    while !condition() {
        assert!(clock::boot() < end, "not within {limit}: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// As [`wait_until`], for a condition that awaits.
pub async fn wait_until_async<F: Future<Output = bool>>(what: &str, limit: Span, mut condition: impl FnMut() -> F) {
    let end = clock::boot().plus(limit);
    while !condition().await {
        assert!(clock::boot() < end, "not within {limit}: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// One PostgreSQL instance: its directory, its port, and its postmaster while it runs.
pub struct Instance {
    home: tempfile::TempDir,
    /// PGDATA.
    pub data: PathBuf,
    /// Its port, on 127.0.0.1 and in the socket's name.
    pub port: u16,
    /// Keeps the port from others, also while it does not run.
    kept: port::Port,
    postmaster: Option<Child>,
}

impl Instance {
    /// A directory and a port, no data directory yet.
    pub fn empty() -> Self {
        let home = tempfile::Builder::new().prefix("pgbaton-test-").tempdir_in(root()).expect("temporary directory");
        let data = home.path().join("data");
        for dir in ["", "run", "run/postgres", "state"] {
            let dir = home.path().join(dir);
            fs::create_dir_all(&dir).expect("directory");
            give(&dir);
        }
        let kept = port::Port::kept();
        Self { home, data, port: kept.number(), kept, postmaster: None }
    }

    /// With a data directory by `initdb` (checksums on, `trust`); all such directories have the same system identifier.
    pub fn initialised() -> Self {
        let instance = Self::empty();
        copy(&template(), &instance.data);
        instance
    }

    /// Running as a primary, on the configuration in PGDATA.
    pub fn primary() -> Self {
        let mut instance = Self::initialised();
        instance.start();
        instance
    }

    /// A running standby of `primary`, on the configuration in PGDATA, that streams.
    pub fn standby_of(primary: &Self) -> Self {
        let mut instance = Self::copy_of(primary);
        let conninfo = format!("host=127.0.0.1 port={} user=postgres application_name=standby", primary.port);
        instance.add_config(&format!("primary_conninfo = '{conninfo}'\nwal_retrieve_retry_interval = 100ms"));
        instance.start();
        wait_until("the standby streams", Span::from_secs(20), || {
            primary.sql("select count(*) from pg_stat_replication where state = 'streaming'") != "0"
        });
        instance
    }

    /// A stopped base backup of `primary` with `standby.signal`.
    pub fn copy_of(primary: &Self) -> Self {
        let instance = Self::empty();
        let (port, data) = (primary.port.to_string(), instance.data.display().to_string());
        run("pg_basebackup", &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-D", &data, "-c", "fast", "--no-sync"]);
        fs::write(instance.data.join("standby.signal"), "").expect("standby.signal");
        give(&instance.data.join("standby.signal"));
        instance
    }

    /// A stopped base backup of `primary`, over its Unix socket, with `standby.signal`.
    pub fn copy_of_local(primary: &Self) -> Self {
        let instance = Self::empty();
        let (port, data) = (primary.port.to_string(), instance.data.display().to_string());
        let socket = primary.home().join("run/postgres").display().to_string();
        run("pg_basebackup", &["-h", &socket, "-p", &port, "-U", "postgres", "-D", &data, "-c", "fast", "--no-sync"]);
        fs::write(instance.data.join("standby.signal"), "").expect("standby.signal");
        give(&instance.data.join("standby.signal"));
        instance
    }

    /// A running standby of a managed `primary`, streaming as `role`, itself on the configuration in PGDATA.
    pub fn standby_of_managed(primary: &Self, role: &str, password: &str) -> Self {
        let mut instance = Self::copy_of_local(primary);
        let conninfo = format!("host=127.0.0.1 port={} user={role} password={password}", primary.port);
        instance.add_config(&format!("primary_conninfo = '{conninfo}'\nwal_keep_size = 512MB"));
        instance.start();
        wait_until("the standby streams", Span::from_secs(20), || {
            primary.sql("select count(*) from pg_stat_replication where state = 'streaming'") != "0"
        });
        instance
    }

    /// Starts it in a PID namespace of its own, which dies with the test, and waits until it answers.
    pub fn start_in_namespace(&mut self, start: &StartCommand) {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child=KILL", "--", "setpriv"]);
        command.args([format!("--reuid={}", start.uid), format!("--regid={}", start.gid), "--clear-groups".to_owned()]);
        command.arg("--").arg(&start.program).args(&start.args).env_clear().current_dir("/");
        command.envs(start.env.iter().map(|(name, value)| (name, value)));
        self.start_by(command);
        self.wait_ready();
    }

    /// The instance's own directory: data, `run`, `state` lie in it.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Adds lines to `postgresql.conf` in PGDATA.
    pub fn add_config(&self, lines: &str) {
        let path = self.data.join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, format!("{text}\n{lines}\n")).expect("postgresql.conf");
        give(&path);
    }

    /// What a node's configuration would say of this instance.
    pub fn settings(&self) -> Settings {
        let role = |name: &str| Role { name: name.to_owned(), credential: Credential::None };
        Settings {
            cluster: "test".parse().expect("name"),
            node: format!("n{}", self.port).parse().expect("name"),
            data_dir: self.data.clone(),
            bin_dir: bin_dir(),
            base_config: None,
            listen: vec!["127.0.0.1".to_owned()],
            port: self.port,
            advertise: format!("127.0.0.1:{}", self.port).parse().expect("address"),
            wal_dir: None,
            tablespace_map: BTreeMap::new(),
            run_dir: self.home().join("run"),
            state_dir: self.home().join("state"),
            socket_dirs: Vec::new(),
            roles: Roles {
                superuser: "postgres".to_owned(),
                replication: role("pgbaton_replication"),
                rewind: role("pgbaton_rewind"),
                monitor: role("pgbaton_monitor"),
            },
            replication_tls: None,
            owner: owner(),
            owner_name: "postgres".to_owned(),
        }
    }

    /// Starts it on the configuration in PGDATA and waits until it answers.
    pub fn start(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts it on the configuration in PGDATA.
    pub fn launch(&mut self) {
        let socket = self.home().join("run/postgres").display().to_string();
        let args = [
            format!("port={}", self.port),
            format!("unix_socket_directories={socket}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "fsync=off".to_owned(),
            "dynamic_shared_memory_type=mmap".to_owned(),
            "shared_buffers=16MB".to_owned(),
            "wal_log_hints=on".to_owned(),
        ];
        let mut command = as_postgres(bin_dir().join("postgres"));
        command.arg("-D").arg(&self.data);
        args.iter().for_each(|arg| {
            command.args(["-c", arg]);
        });
        self.start_by(command);
    }

    /// Starts it as the product does: managed configuration outside PGDATA, and waits until it answers.
    pub async fn start_managed(&mut self, settings: &Settings, configuration: &Configuration, start: StartAs) {
        ConfigFiles::new(Arc::new(settings.clone())).configure(configuration).await.expect("configure");
        let start = start_command(settings, configuration, start).await.expect("start command");
        let mut command = as_postgres(&start.program);
        command.args(&start.args).env_clear().envs(start.env.iter().map(|(name, value)| (name, value)));
        self.start_by(command);
        self.wait_ready();
    }

    /// Starts `command`, which has to be a postmaster on this data directory; its output goes to [`Instance::log`].
    pub fn start_by(&mut self, mut command: Command) {
        assert!(self.postmaster.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.home().join("log")).expect("log");
        command.stdout(log.try_clone().expect("log")).stderr(log);
        self.postmaster = Some(command.spawn().expect("start the postmaster"));
    }

    /// Waits until it answers queries.
    pub fn wait_ready(&self) {
        let end = clock::boot().plus(Span::from_secs(30));
        while self.try_sql("select 1").is_err() {
            assert!(clock::boot() < end, "it does not answer; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Everything its postmaster wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home().join("log")).unwrap_or_default()
    }

    /// The postmaster's process id. Panics where it does not run.
    pub fn pid(&self) -> Pid {
        let child = self.postmaster.as_ref().expect("it runs");
        Pid::from_raw(i32::try_from(child.id()).expect("pid"))
    }

    /// Stops it by `signal` (INT: fast, QUIT: immediate, TERM: smart, KILL: the postmaster alone) and waits for its end.
    pub fn stop(&mut self, signal: Signal) {
        if let Some(mut child) = self.postmaster.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
            kill(pid, signal).expect("signal the postmaster");
            let _ = child.wait();
        }
    }

    /// Runs SQL as `postgres` over the Unix socket; rows by line, columns by `|`. Panics where it fails.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|message| panic!("{sql}: {message}"))
    }

    /// As [`Instance::sql`], with psql's stderr as the error.
    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        let socket = self.home().join("run/postgres").display().to_string();
        self.psql(&["-h", &socket, "-U", "postgres", "-d", "postgres", "-c", sql], &[])
    }

    /// `psql` on this instance's port with `args` and `env`, as the user `postgres`.
    pub fn psql(&self, args: &[&str], env: &[(&str, &str)]) -> Result<String, String> {
        let mut command = as_postgres(bin_dir().join("psql"));
        command.args(["-XAtqw", "-v", "ON_ERROR_STOP=1", "-p", &self.port.to_string()]).args(args).envs(env.iter().copied());
        let output = command.env("PGCONNECT_TIMEOUT", "5").output().expect("start psql");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The processes that work in this data directory, with their command lines.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let here = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == self.data));
        here.map(|pid| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            (Pid::from_raw(pid), String::from_utf8_lossy(&title).replace('\0', " ").trim().to_owned())
        })
        .collect()
    }

    /// The one process whose title contains `title`.
    pub fn process(&self, title: &str) -> Option<Pid> {
        self.processes().into_iter().find(|(_, line)| line.contains(title)).map(|(pid, _)| pid)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let lines = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        if let Some(child) = &mut self.postmaster {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)), Signal::SIGQUIT);
            for _ in 0..150 {
                if !matches!(child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(30));
            }
            let _ = child.kill();
        }
        if let Some(child) = &mut self.postmaster {
            let _ = child.wait();
        }
        // Seen gone, not only signalled: a process that is still ending would write into the directory while it is removed.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            for (pid, _) in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // A killed postmaster leaves its small System V segment behind; line 7 of postmaster.pid names it.
        if let Some(id) = lines.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
            let _ = Command::new("ipcrm").args(["-m", id]).stderr(Stdio::null()).status();
        }
    }
}

/// A managed configuration for tests: small, without fsync, open to `trust` over TCP.
pub fn configuration() -> Configuration {
    let mut configuration = Configuration::of_policy(&ClusterPolicy::default(), vec!["127.0.0.1".to_owned()]);
    for (name, value) in [("fsync", "off"), ("shared_buffers", "16MB"), ("dynamic_shared_memory_type", "mmap")] {
        configuration.parameters.insert(name.to_owned(), value.to_owned());
    }
    configuration
}

/// Makes `postgres` the owner of `path`.
pub fn give(path: &Path) {
    let owner = owner();
    nix::unistd::chown(path, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid))).expect("chown");
}

/// A copy of a directory with owners and modes.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
    assert!(status.success(), "cp -a {} {}", from.display(), to.display());
}

/// The data directory that instances are copied from: made once for each set of programs.
fn template() -> PathBuf {
    let name = bin_dir().display().to_string().replace('/', "_");
    let template = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("initdb{name}"));
    if !template.exists() {
        let making = tempfile::Builder::new().prefix("initdb-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
        give(making.path());
        let data = making.path().join("data");
        run("initdb", &["-D", &data.display().to_string(), "-N", "-k", "-A", "trust", "-U", "postgres", "--no-instructions", "-E", "UTF8"]);
        // Another test may have been faster: then its directory stays and this one goes.
        let _ = fs::rename(&data, &template);
    }
    template
}
