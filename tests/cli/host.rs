//! A host for one test: a directory with a configuration, and the agent's API where the test wants one.

use pgbaton::{
    agent::handle::{self, Published, Seat},
    api::{self, Server, Settings},
    model::node::Address,
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};
use tempfile::TempDir;

pub(super) struct Host {
    directory: TempDir,
}

/// How a run of the program ended.
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// An agent's API without an agent.
pub(super) struct Agent {
    pub(super) server: Server,
    pub(super) seat: Seat,
}

impl Host {
    /// With a good configuration, whose etcd answers nowhere.
    pub(super) fn new() -> Self {
        Self::with_etcd("http://127.0.0.1:1")
    }

    pub(super) fn with_etcd(endpoint: &str) -> Self {
        let host = Self { directory: tempfile::Builder::new().prefix("pgbaton-cli-").tempdir().expect("directory") };
        for secret in ["replication.password", "rewind.password"] {
            let path = host.write(secret, "secret\n");
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("mode");
        }
        let directory = host.directory.path().display();
        let text = format!(
            r#"cluster = "orders"
node = "n1"
state_dir = "{directory}/state"
run_dir = "{directory}/run"

[etcd]
endpoints = ["{endpoint}"]

[api]
listen = "127.0.0.1:8008"

[postgres]
data_dir = "{directory}/pg/data"
bin_dir = "/usr/lib/postgresql/15/bin"
listen = "127.0.0.1:5432"
replication = {{ password_file = "replication.password" }}
rewind = {{ password_file = "rewind.password" }}
"#
        );
        host.write("orders.toml", &text);
        fs::create_dir(host.path("run")).expect("directory");
        fs::create_dir(host.path("pg")).expect("directory");
        // Root's own tests run PostgreSQL as another user.
        if let (true, Ok(Some(user))) = (nix::unistd::geteuid().is_root(), nix::unistd::User::from_name("postgres")) {
            fs::set_permissions(host.directory.path(), fs::Permissions::from_mode(0o755)).expect("mode");
            nix::unistd::chown(&host.path("pg"), Some(user.uid), Some(user.gid)).expect("chown");
        }
        host
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("write");
        path
    }

    /// Answers on this host's socket from now on, and on a TCP port.
    pub(super) fn agent(&self, published: Published) -> Agent {
        let mut settings = Settings::new(nix::unistd::geteuid().as_raw());
        settings.socket = Some(self.path("run/agent.sock"));
        let listeners = api::listen(&[Address { host: "127.0.0.1".to_owned(), port: 0 }]).expect("listen");
        let (handle, seat) = handle::pair("a1");
        seat.publish(published);
        Agent { server: api::start(settings, listeners, handle).expect("start"), seat }
    }

    /// Runs the program on this host, with `--config`.
    pub(super) fn run(&self, arguments: &[&str]) -> Ran {
        let config = self.path("orders.toml").display().to_string();
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--config", &config]).collect();
        let ran = run(&arguments);
        let plain = |text: &str| text.replace(&self.directory.path().display().to_string(), "<host>");
        Ran { stdout: plain(&ran.stdout), stderr: plain(&ran.stderr), ..ran }
    }
}

impl Agent {
    pub(super) fn address(&self) -> String {
        self.server.addresses()[0].to_string()
    }
}

/// Runs the program with these arguments alone.
pub(super) fn run(arguments: &[&str]) -> Ran {
    #[expect(clippy::disallowed_methods, reason = "the test runs the program under test")]
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgbaton"));
    command.args(arguments).env_clear().env("COLUMNS", "100").env("PATH", "/usr/bin:/bin").env("USER", "ann").stdin(Stdio::null());
    let output = command.output().expect("run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code().expect("an exit code"), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}
