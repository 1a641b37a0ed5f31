//! Files as operators write them, good and bad, with the exact words that they get.

mod policy;
mod reference;
mod slips;
mod soup;

use super::{
    check::{self, read},
    environment::check_environment,
    node::{LogFormat, TlsMode},
    policy_file,
};
use crate::model::{instance::KillMode, policy::Preset};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A directory with the files that a configuration names.
struct Host {
    directory: TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { directory: tempfile::tempdir().expect("directory") };
        for secret in ["replication.password", "rewind.password", "etcd.password"] {
            host.secret(secret, "hunter2\n");
        }
        host.write("ca.crt", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n");
        host.write("own.crt", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n");
        host.secret("own.key", "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("write");
        path
    }

    fn secret(&self, name: &str, text: &str) {
        let path = self.write(name, text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    /// The faults of a node file with this text, with the directory's name cut off.
    fn faults(&self, text: &str) -> String {
        let file = self.write("node.toml", text);
        self.plain(&read(&file).expect_err("a fault").to_string())
    }

    fn policy_faults(&self, text: &str) -> String {
        let file = self.write("policy.toml", text);
        self.plain(&policy_file::read_policy(&file).expect_err("a fault").to_string())
    }

    fn plain(&self, message: &str) -> String {
        message.replace(&format!("{}/", self.directory.path().display()), "")
    }
}

/// The shortest file that is good.
const SMALLEST: &str = r#"cluster = "orders"
node = "n1"

[etcd]
endpoints = ["http://10.0.0.21:2379"]

[api]
listen = "10.0.0.11:8008"

[postgres]
data_dir = "/srv/data"
bin_dir = "/usr/lib/postgresql/15/bin"
listen = "10.0.0.11:5432"
replication = { password_file = "replication.password" }
rewind = { password_file = "rewind.password" }
"#;

const FULL: &str = r#"cluster = "orders"
node    = "n1"
zone    = "eu-west-1a"
tags    = { no_failover = true, priority = 200, no_sync = true, no_load_balance = true }
state_dir = "/srv/state/"
run_dir = "/run/x"

[etcd]
endpoints = ["https://10.0.0.21:2379", "https://[fd00::22]:2379/"]
prefix = "/prod/pgbaton"
ca_file = "ca.crt"
cert_file = "own.crt"
key_file = "own.key"
username = "orders"
password_file = "etcd.password"

[api]
listen = "0.0.0.0:8008, [::]:8008"
advertise = "db1.example:8008"
allow = ["10.0.0.0/8", "fd00::/8"]

[postgres]
data_dir = "/var/lib/postgresql/17/main"
bin_dir  = "/usr/lib/postgresql/17/bin"
base_config = "/etc/postgresql/17/main/postgresql.conf"
listen   = "0.0.0.0:5433"
advertise = "10.0.0.11:5433"
wal_dir = "/srv/wal"
tablespace_map = { "/srv/ts1" = "/srv/ts2" }
superuser = { user = "root" }
replication = { user = "rep", cert_file = "own.crt", key_file = "own.key" }
rewind = { user = "rew", password_file = "rewind.password" }
monitor = { user = "mon" }
replication_tls = { mode = "verify-ca", ca_file = "ca.crt" }

[bootstrap]
initdb = ["--data-checksums", "--locale=C.UTF-8"]
policy = "policy.toml"

[guard]
kill = "namespace"
network_fence = "off"
watchdog = "off"
device = "/dev/watchdog"

[telemetry]
log = "json"
"#;

#[test]
fn a_full_file_says_what_it_says() {
    let host = Host::new();
    host.write("policy.toml", "preset = \"fast\"\n");
    let config = read(&host.write("node.toml", FULL)).map_err(|faults| faults.to_string()).expect("good");
    assert_eq!((config.cluster.as_str(), config.node.as_str()), ("orders", "n1"));
    assert_eq!(config.zone, "eu-west-1a");
    assert!(config.tags.no_failover && config.tags.no_sync && config.tags.no_load_balance && config.tags.priority == 200);
    assert_eq!((config.state_dir.as_path(), config.run_dir.as_path()), (Path::new("/srv/state"), Path::new("/run/x")));
    assert_eq!(config.etcd.endpoints, ["https://10.0.0.21:2379", "https://[fd00::22]:2379"]);
    assert_eq!(config.etcd.prefix, "/prod/pgbaton");
    assert!(config.etcd.ca.as_ref().is_some_and(|ca| ca.path == host.path("ca.crt") && ca.pem.contains("CERTIFICATE")));
    assert!(config.etcd.client.as_ref().is_some_and(|pair| pair.key.content.reveal().contains("PRIVATE KEY")));
    let user = config.etcd.user.as_ref().expect("user");
    assert_eq!((user.name.as_str(), user.password.content.reveal()), ("orders", "hunter2"));
    assert_eq!(config.api.listen.len(), 2);
    assert_eq!(config.api.advertise.to_string(), "db1.example:8008");
    assert_eq!(config.api.allow.len(), 2);
    let postgres = &config.postgres;
    assert_eq!((postgres.listen.as_slice(), postgres.port), (&["0.0.0.0".to_owned()][..], 5433));
    assert_eq!(postgres.advertise.to_string(), "10.0.0.11:5433");
    assert_eq!(postgres.wal_dir.as_deref(), Some(Path::new("/srv/wal")));
    assert_eq!(postgres.tablespace_map.get(Path::new("/srv/ts1")).map(PathBuf::as_path), Some(Path::new("/srv/ts2")));
    let users = [&postgres.superuser.user, &postgres.replication.user, &postgres.rewind.user, &postgres.monitor.user];
    assert_eq!(users, ["root", "rep", "rew", "mon"]);
    assert!(postgres.replication.certificate.is_some() && postgres.replication.password.is_none());
    assert_eq!(postgres.replication_tls.mode, TlsMode::VerifyCa);
    assert_eq!(config.bootstrap.initdb, ["--data-checksums", "--locale=C.UTF-8"]);
    assert_eq!(config.bootstrap.policy.preset, Preset::Fast);
    assert_eq!(config.guard.kill, Some(KillMode::Namespace));
    assert_eq!(config.telemetry.log, LogFormat::Json);
}

#[test]
fn what_is_not_written_has_its_default() {
    let host = Host::new();
    let config = read(&host.write("node.toml", SMALLEST)).map_err(|faults| faults.to_string()).expect("good");
    assert_eq!(
        (config.state_dir.as_path(), config.run_dir.as_path()),
        (Path::new("/var/lib/pgbaton/orders"), Path::new("/run/pgbaton/orders"))
    );
    assert_eq!((config.etcd.prefix.as_str(), config.tags.priority), ("/pgbaton", 100));
    assert_eq!(config.api.advertise.to_string(), "10.0.0.11:8008");
    assert_eq!(config.postgres.advertise.to_string(), "10.0.0.11:5432");
    assert_eq!(config.postgres.replication_tls.mode, TlsMode::Prefer);
    assert_eq!(config.bootstrap.initdb, Vec::<String>::new());
    assert_eq!((config.guard.kill, config.telemetry.log), (None, LogFormat::Text));
}

#[test]
fn no_secret_is_ever_printed() {
    let host = Host::new();
    host.write("policy.toml", "");
    let config = read(&host.write("node.toml", FULL)).map_err(|faults| faults.to_string()).expect("good");
    let json = serde_json::to_string(&config).expect("json");
    assert!(json.contains("***") && !json.contains("hunter2"), "{json}");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_run_directory_that_is_too_long_for_its_sockets_is_refused() {
    let long = format!("run_dir = \"/{}\"\n{SMALLEST}", "x".repeat(100));
    let expected = "node.toml:1: run_dir: 101 bytes are too long for the Unix sockets in it; choose a path of at most 83 bytes";
    assert_eq!(Host::new().faults(&long), expected);
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let host = Host::new();
    host.write("policy.toml", "max_lag = \"5\"\nzebra = 1\n");
    let faults =
        host.faults("cluster = \"Orders\"\n[api]\nlisten = 5\n[postgres]\ndata_dir = \"x\"\n[bootstrap]\npolicy = \"policy.toml\"\n");
    let places: Vec<&str> = faults
        .lines()
        .map(|line| line.split(": ").take(2).map(str::len).sum::<usize>() + 2)
        .zip(faults.lines())
        .map(|(end, line)| &line[..end])
        .collect();
    assert_eq!(
        places,
        [
            "node.toml: node",
            "node.toml: etcd.endpoints",
            "node.toml:1: cluster",
            "node.toml:3: api.listen",
            "node.toml:4: postgres.bin_dir",
            "node.toml:4: postgres.advertise",
            "node.toml:4: postgres.replication.password_file",
            "node.toml:4: postgres.rewind.password_file",
            "node.toml:5: postgres.data_dir",
            "policy.toml:1: max_lag",
            "policy.toml:2: zebra",
        ]
    );
}

#[test]
fn files_that_cannot_be_read_are_told_apart() {
    let host = Host::new();
    let say = |path: &Path| host.plain(&read(path).expect_err("a fault").to_string());
    assert_eq!(say(&host.path("lost.toml")), "lost.toml: does not exist; create the file or correct the path");
    assert_eq!(say(host.directory.path()), format!("{}: is a directory; name a file", host.directory.path().display()));
    let empty = host.write("empty.toml", "\n \n");
    assert_eq!(say(&empty), "empty.toml: is empty; start from the annotated reference that `pgbaton config explain` prints");
    let latin = host.path("latin.toml");
    fs::write(&latin, b"cluster = \"\xe4\"").expect("write");
    assert_eq!(say(&latin), "latin.toml: is not UTF-8 text; write it as plain text in UTF-8");
}

#[test]
fn the_shape_of_a_file_can_be_checked_where_its_secrets_are_not() {
    let host = Host::new();
    let file = host.write("node.toml", &SMALLEST.replace("rewind.password", "/elsewhere/rewind.password"));
    assert!(read(&file).is_err());
    assert_eq!(check::check_shape(&file), Ok(()));
}

#[test]
fn what_the_host_lacks_is_told_with_its_line() {
    let host = Host::new();
    fs::create_dir(host.path("bin")).expect("directory");
    for program in ["postgres", "initdb", "pg_basebackup", "pg_waldump", "pg_controldata"] {
        let path = host.write(&format!("bin/{program}"), "");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    host.write("bin/pg_rewind", "");
    let text = SMALLEST.replace("/usr/lib/postgresql/15/bin", &host.path("bin").display().to_string());
    let text = text.replace("/srv/data", &host.path("own.key/data").display().to_string());
    let text = text.replace("[etcd]", &format!("[etcd] # \n#{}", "x"));
    let config = read(&host.write("node.toml", &text)).map_err(|faults| faults.to_string()).expect("good");
    let faults = host.plain(&check_environment(&config).expect_err("faults").to_string());
    assert_eq!(
        faults,
        "node.toml:12: postgres.data_dir: own.key/data cannot be looked at: it is not a directory; give the user who runs the agent access\n\
         node.toml:13: postgres.bin_dir: bin/pg_rewind is not there or not executable; it is needed for the return of a former primary; install PostgreSQL's server package, or correct the path"
    );
}
