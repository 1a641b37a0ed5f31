//! A node's file → [`Config`]: every key in turn, then what has to hold between them.

mod address;
mod api;
mod etcd;
mod named_files;
mod postgres;

use super::{
    fault::Faults,
    file::{self, Entry, Places, Reader, Section},
    node::{ApiConfig, BootstrapConfig, Config, GuardConfig, LogFormat, PostgresConfig, TelemetryConfig},
    policy_file,
};
use crate::model::{
    instance::KillMode,
    node::ClusterName,
    policy::{ClusterPolicy, Durability},
    record::Tags,
};
use std::path::{Path, PathBuf};

/// Reads and checks a node's configuration, the files that it names included.
///
/// # Errors
/// Everything that is wrong. Nothing was touched.
pub fn read(file: &Path) -> Result<Config, Faults> {
    check_text(file, &file::read_file(file)?, true).map(|(config, _)| config)
}

/// Checks a node's configuration by itself, without opening the files that it names: on any machine.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn check_shape(file: &Path) -> Result<(), Faults> {
    check_text(file, &file::read_file(file)?, false).map(|_| ())
}

/// The configuration that `text` describes, and the keys that were asked for. `follow`: whether named files are opened.
pub(super) fn check_text(file: &Path, text: &str, follow: bool) -> Result<(Config, Vec<String>), Faults> {
    if text.trim().is_empty() {
        return Err(Faults::of_file(file, "is empty", "start from the annotated reference that `pgbaton config explain` prints"));
    }
    file::with_document(file, text, follow, |reader, root| {
        let config = root_keys(reader, root);
        config.map(|config| (config, std::mem::take(&mut reader.asked)))
    })
}

/// `None`: a fault of it was noted. `Some(None)`: it is not written.
type Optional<T> = Option<Option<T>>;

/// Checks an entry where there is one.
fn optional<'a, T>(entry: Option<Entry<'a>>, check: impl FnOnce(&Entry<'a>) -> Option<T>) -> Optional<T> {
    entry.map_or(Some(None), |entry| check(&entry).map(Some))
}

fn root_keys(reader: &mut Reader, mut root: Section<'_>) -> Option<Config> {
    let cluster = root.require(reader, "cluster", "name the cluster: cluster = \"orders\"");
    let cluster: Option<ClusterName> = cluster.and_then(|entry| reader.parsed(&entry, "write the cluster's name"));
    let node = root.require(reader, "node", "name this node: node = \"n1\"");
    let node = node.and_then(|entry| reader.parsed(&entry, "write this node's name"));
    let zone = optional(root.get("zone"), |entry| domain(reader, entry));
    let tags = root.section(reader, "tags");
    let tags = tags_section(reader, tags);
    let own = |base: &str| cluster.as_ref().map(|cluster| PathBuf::from(format!("{base}/pgbaton/{cluster}")));
    let state_dir = optional(root.get("state_dir"), |entry| reader.absolute(entry)).and_then(|path| path.or_else(|| own("/var/lib")));
    let run_dir = optional(root.get("run_dir"), |entry| run_dir(reader, entry)).and_then(|path| path.or_else(|| own("/run")));
    let etcd = etcd::section(reader, &mut root);
    let api = api::section(reader, &mut root);
    let postgres = postgres::section(reader, &mut root);
    let bootstrap = bootstrap_section(reader, &mut root);
    let guard = guard_section(reader, &mut root);
    let telemetry = telemetry_section(reader, &mut root);
    not_yet(reader, &mut root);
    root.finish(reader);
    let config = Config {
        cluster: cluster?,
        node: node?,
        zone: zone?.unwrap_or_default(),
        tags: tags?,
        state_dir: state_dir?,
        run_dir: run_dir?,
        etcd: etcd?,
        api: api?,
        postgres: postgres?,
        bootstrap: bootstrap?,
        guard: guard?,
        telemetry: telemetry?,
        places: Places::default(),
    };
    directories(reader, &config);
    ports(reader, &config.api, &config.postgres);
    Some(Config { places: reader.places.clone(), ..config })
}

/// A failure domain; empty says that none is told.
fn domain(reader: &mut Reader, entry: &Entry<'_>) -> Option<String> {
    if entry.value.as_str() == Some("") { Some(String::new()) } else { label(reader, entry) }
}

/// A short printable text.
fn label(reader: &mut Reader, entry: &Entry<'_>) -> Option<String> {
    let text = reader.text(entry)?;
    if text.is_empty() || text.len() > 63 || text.chars().any(char::is_control) {
        reader.fault(&entry.path, format!("{text:?} is not a name of 1 to 63 printable bytes"), "shorten it, or remove the key");
        return None;
    }
    Some(text.to_owned())
}

/// The longest directory in which every Unix socket of ours fits into the kernel's 108 bytes.
const LONGEST_RUN_DIR: usize = 107 - "/postgres/.s.PGSQL.65535".len();

fn run_dir(reader: &mut Reader, entry: &Entry<'_>) -> Option<PathBuf> {
    let path = reader.absolute(entry)?;
    let length = path.as_os_str().len();
    if length > LONGEST_RUN_DIR {
        let what = format!("{length} bytes are too long for the Unix sockets in it");
        reader.fault(&entry.path, what, format!("choose a path of at most {LONGEST_RUN_DIR} bytes"));
        return None;
    }
    Some(path)
}

fn tags_section(reader: &mut Reader, mut section: Section<'_>) -> Option<Tags> {
    let defaults = Tags::default();
    let no_failover = optional(section.get("no_failover"), |entry| reader.boolean(entry));
    let priority = optional(section.get("priority"), |entry| reader.integer(entry, 0..=1_000));
    let no_sync = optional(section.get("no_sync"), |entry| reader.boolean(entry));
    let no_load_balance = optional(section.get("no_load_balance"), |entry| reader.boolean(entry));
    for key in ["clone_from", "replicate_from"] {
        if let Some(entry) = section.get(key) {
            reader.fault(&entry.path, NOT_YET, "remove it: members clone from and follow the primary");
        }
    }
    section.finish(reader);
    Some(Tags {
        no_failover: no_failover?.unwrap_or(defaults.no_failover),
        priority: priority?.unwrap_or(defaults.priority),
        no_sync: no_sync?.unwrap_or(defaults.no_sync),
        no_load_balance: no_load_balance?.unwrap_or(defaults.no_load_balance),
    })
}

fn bootstrap_section(reader: &mut Reader, root: &mut Section<'_>) -> Option<BootstrapConfig> {
    let mut section = root.section(reader, "bootstrap");
    let initdb = optional(section.get("initdb"), |entry| {
        let items = reader.items(entry)?;
        let arguments: Vec<Option<String>> = items.iter().map(|item| initdb_argument(reader, item)).collect();
        arguments.into_iter().collect::<Option<Vec<String>>>()
    });
    let policy = optional(section.get("policy"), |entry| {
        let path = reader.beside(entry)?;
        if !reader.follow {
            return Some((ClusterPolicy::default(), false));
        }
        match policy_file::read_first_policy(&path) {
            Ok(policy) => Some(policy),
            Err(faults) => {
                reader.faults.extend(faults);
                None
            }
        }
    });
    section.finish(reader);
    let initdb = initdb?.unwrap_or_default();
    let (policy, named) = policy?.unwrap_or_default();
    let adopted_durability = if named { policy.durability } else { Durability::Async };
    Some(BootstrapConfig { initdb, policy, adopted_durability })
}

/// What `initdb` is given by ourselves; the second member says why.
const OUR_INITDB: [(&str, &str); 8] = [
    ("-D", "it is postgres.data_dir"),
    ("--pgdata", "it is postgres.data_dir"),
    ("-X", "it is postgres.wal_dir"),
    ("--waldir", "it is postgres.wal_dir"),
    ("-U", "it is postgres.superuser.user"),
    ("--username", "it is postgres.superuser.user"),
    ("-W", "there is nobody to ask: use postgres.superuser.password_file"),
    ("--pwfile", "it is postgres.superuser.password_file"),
];

fn initdb_argument(reader: &mut Reader, entry: &Entry<'_>) -> Option<String> {
    let text = reader.text(entry)?;
    let name = text.split('=').next().unwrap_or(text);
    let is = |option: &str| name == option || (option.len() == 2 && text.starts_with(option) && !text.starts_with("--"));
    if let Some((_, why)) = OUR_INITDB.iter().find(|(option, _)| is(option)) {
        reader.fault(&entry.path, format!("{name} is given by pgbaton"), format!("remove it: {why}"));
        return None;
    }
    if text.is_empty() || text.contains('\0') {
        reader.fault(&entry.path, "is no argument of initdb", "remove it");
        return None;
    }
    Some(text.to_owned())
}

const NOT_YET: &str = "not available in this version";

fn guard_section(reader: &mut Reader, root: &mut Section<'_>) -> Option<GuardConfig> {
    let mut section = root.section(reader, "guard");
    let kill = [
        ("auto", None),
        ("cgroup", Some(KillMode::Cgroup)),
        ("namespace", Some(KillMode::Namespace)),
        ("descendants", Some(KillMode::Descendants)),
    ];
    let kill = optional(section.get("kill"), |entry| reader.word(entry, &kill));
    if kill == Some(Some(Some(KillMode::Cgroup))) {
        reader.fault("guard.kill", NOT_YET, "set kill = \"auto\": \"cgroup\" comes with the systemd units");
    }
    if let Some(entry) = section.get("network_fence")
        && reader.word(&entry, &[("off", false), ("auto", true)]) == Some(true)
    {
        reader.fault(&entry.path, NOT_YET, "set network_fence = \"off\"");
    }
    if let Some(entry) = section.get("watchdog")
        && reader.word(&entry, &[("off", false), ("automatic", true), ("required", true)]) == Some(true)
    {
        reader.fault(&entry.path, NOT_YET, "set watchdog = \"off\"");
    }
    if let Some(entry) = section.get("device") {
        reader.absolute(&entry);
    }
    section.finish(reader);
    Some(GuardConfig { kill: kill?.flatten() })
}

fn telemetry_section(reader: &mut Reader, root: &mut Section<'_>) -> Option<TelemetryConfig> {
    let mut section = root.section(reader, "telemetry");
    let log = optional(section.get("log"), |entry| reader.word(entry, &[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    if let Some(entry) = section.get("otlp") {
        reader.fault(&entry.path, NOT_YET, "remove it; metrics are at /metrics");
    }
    section.finish(reader);
    Some(TelemetryConfig { log: log?.unwrap_or(LogFormat::Text) })
}

/// Keys of later versions: refused aloud, because an address that is silently not moved costs an outage.
fn not_yet(reader: &mut Reader, root: &mut Section<'_>) {
    if let Some(entry) = root.get("region") {
        reader.fault(&entry.path, NOT_YET, "remove it; zone alone tells failure domains apart");
    }
    let lists = [
        ("endpoint", "remove it; route by GET /primary and /replica, or by several hosts in the connection string"),
        ("notify", "remove it; watch the log, /v1/events or /metrics"),
    ];
    for (key, remedy) in lists {
        let Some(entry) = root.get(key) else { continue };
        match entry.value.as_array() {
            Some(entries) => {
                for at in 0..entries.len() {
                    reader.fault(&format!("{key}[{at}]"), NOT_YET, remedy);
                }
            }
            None => reader.fault(&entry.path, "not a list of tables", format!("write it as [[{key}]]")),
        }
    }
}

/// No two directories of ours are the same, and a fresh copy of the data directory takes none of them with it.
fn directories(reader: &mut Reader, config: &Config) {
    let postgres = &config.postgres;
    let data_dir = &postgres.data_dir;
    let mut others = vec![("state_dir", &config.state_dir), ("run_dir", &config.run_dir)];
    others.extend(postgres.wal_dir.as_ref().map(|path| ("postgres.wal_dir", path)));
    if data_dir.parent().is_none() {
        reader.fault("postgres.data_dir", "/ is no data directory", "name the directory that holds PG_VERSION, or will");
        return;
    }
    for (key, path) in &others {
        if path.starts_with(data_dir) {
            let what = format!("{} is postgres.data_dir or inside of it: a fresh copy would remove it", path.display());
            reader.fault(key, what, "choose a directory outside of postgres.data_dir");
        }
    }
    for (index, (key, path)) in others.iter().enumerate() {
        if let Some((other, _)) = others[..index].iter().find(|(_, other)| other == path) {
            reader.fault(key, format!("{} is also {other}", path.display()), "choose another directory");
        }
    }
    let mut taken: Vec<(String, &Path)> = others.iter().map(|(key, path)| ((*key).to_owned(), path.as_path())).collect();
    for (source, target) in &postgres.tablespace_map {
        let key = format!("postgres.tablespace_map.{:?}", source.display().to_string());
        if target.starts_with(data_dir) {
            reader.fault(&key, format!("{} lies in postgres.data_dir", target.display()), "choose a directory outside of it");
        } else if let Some((other, _)) = taken.iter().find(|(_, other)| other == target) {
            reader.fault(&key, format!("{} is also {other}", target.display()), "choose another directory");
        }
        taken.push((key, target));
    }
}

/// The API and PostgreSQL do not fight for one port.
fn ports(reader: &mut Reader, api: &ApiConfig, postgres: &PostgresConfig) {
    let meet = api.listen.iter().find(|address| {
        let host = &address.host;
        let same = |other: &String| other == host || address::is_wildcard(other) || address::is_wildcard(host);
        address.port == postgres.port && postgres.listen.iter().any(same)
    });
    if let Some(address) = meet {
        reader.fault("api.listen", format!("{address} is also where PostgreSQL listens"), "give one of them another port");
    }
}
