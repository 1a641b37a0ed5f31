//! From the checked configuration to a running agent.

use super::{
    act::{Tools, node_file},
    event::Event,
    file, guard_link,
    handle::{self, Handle, Seat},
    measure::Measure,
    observe::{self, Pace},
    run::Loop,
    serve,
    starter::{Keeper, Launch, Starter},
    state::State,
};
use crate::{
    clock,
    config::{self, Config},
    dcs::{self, Etcd},
    decide::snapshot::Me,
    guard::{GuardSettings, KillChoice, client::Guard},
    model::{
        failsafe::Ack,
        instance::KillMode,
        moment::Span,
        node::Incarnation,
        node_file::{NodeFile, Operation},
    },
    peers,
    postgres::{self, Owner, Server},
    telemetry::Metrics,
};
use nix::unistd::{Gid, Uid, User, chown, geteuid, setgid, setgroups, setuid};
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

/// So many events wait for the loop; an adapter that has more waits.
const EVENTS: usize = 256;

/// Why an agent could not begin. Nothing was touched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory of ours cannot be made or given to the owner of the data directory.
    #[error("could not prepare {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody to run PostgreSQL as.
    #[error("{0}")]
    Owner(String),
    /// The node file.
    #[error(transparent)]
    File(#[from] file::Error),
    /// etcd's settings.
    #[error("could not {0}")]
    Etcd(#[from] dcs::Error),
    /// PostgreSQL's programs.
    #[error("could not {0}")]
    Postgres(#[from] postgres::Error),
    /// The client of peers.
    #[error("could not {0}")]
    Peers(#[source] peers::client::Error),
    /// The API could not be started.
    #[error("{0}")]
    Api(String),
    /// The child that kept root's rights is gone, and a guard is needed: this agent cannot start one, another one can.
    #[error(
        "start a guard: the child that keeps root's rights is gone; this agent ends, so that its supervisor starts another one as root"
    )]
    StarterGone,
    /// The system refused something.
    #[error("could not {doing}")]
    System {
        /// What.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { doing, source }
}

/// Runs one agent to its end; returns why it ended.
///
/// Started as root, it leaves a child with root's rights behind that starts guards, and becomes the owner of the data directory.
/// `attach` is called once that is done: it starts the API; what it returns is held until the agent ends.
///
/// # Errors
/// The agent could not begin.
pub fn run<A>(config: Config, program: PathBuf, attach: impl FnOnce(Attach) -> Result<A, String>) -> Result<String, Error> {
    let owner = prepare(&config)?;
    let launch = Launch { program, settings: guard_settings(&config, &owner) };
    let keeper = if geteuid().is_root() { Some(Keeper::spawn(&launch).map_err(system("start the starter of guards"))?) } else { None };
    become_owner(&owner)?;
    // One thread: nothing here computes for long, and waking another costs more than most events. Files are written on threads of
    // their own, the API has a runtime of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("start the runtime"))?;
    runtime.block_on(agent(config, owner, launch, keeper, attach))
}

/// Makes the directories of agent and guard; returns who owns them.
///
/// # Errors
/// [`Error::Owner`], [`Error::Directory`].
pub fn prepare(config: &Config) -> Result<DataOwner, Error> {
    let owner = owner(config)?;
    for (path, mode) in [(&config.state_dir, 0o700), (&config.run_dir, 0o755)] {
        directory(path, mode, &owner)?;
    }
    Ok(owner)
}

/// What the API is given.
pub struct Attach {
    /// How it reaches the agent.
    pub handle: Handle,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The node's configuration.
    pub config: Arc<Config>,
    /// The user that the agent runs as.
    pub service_uid: u32,
}

/// Who owns the data directory: PostgreSQL runs as this user, and so does the agent.
pub struct DataOwner {
    /// The user's id.
    pub uid: Uid,
    /// The user's own group.
    pub gid: Gid,
    /// The user's name.
    pub name: String,
}

/// Whom an agent that this user starts would run PostgreSQL as.
///
/// # Errors
/// [`Error::Owner`]: there is no such user.
pub fn owner(config: &Config) -> Result<DataOwner, Error> {
    let me = geteuid();
    let data_dir = &config.postgres.data_dir;
    let found = fs::metadata(data_dir).ok().map(|metadata| Uid::from_raw(metadata.uid())).filter(|uid| !uid.is_root());
    let uid = if me.is_root() { found } else { Some(me) };
    let user = match uid {
        Some(uid) => User::from_uid(uid),
        None => User::from_name("postgres"),
    };
    let user = user.ok().flatten().ok_or_else(|| {
        Error::Owner(format!(
            "PostgreSQL refuses to run as root, and neither does {} belong to another user, nor is there a user postgres: create it, or give \
             the directory to the user that shall run PostgreSQL",
            data_dir.display()
        ))
    })?;
    Ok(DataOwner { uid: user.uid, gid: user.gid, name: user.name })
}

fn directory(path: &Path, mode: u32, owner: &DataOwner) -> Result<(), Error> {
    let failed = |source| Error::Directory { path: path.to_owned(), source };
    if !path.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    if geteuid().is_root() {
        chown(path, Some(owner.uid), Some(owner.gid)).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

/// What a guard of this configuration is told.
pub fn guard_settings(config: &Config, owner: &DataOwner) -> GuardSettings {
    GuardSettings {
        run_dir: config.run_dir.clone(),
        data_dir: config.postgres.data_dir.clone(),
        kill: match config.guard.kill {
            None => KillChoice::Auto,
            Some(KillMode::Namespace) => KillChoice::Namespace,
            Some(KillMode::Cgroup) => KillChoice::Cgroup,
            Some(KillMode::Descendants) => KillChoice::Descendants,
        },
        service_uid: Some(owner.uid.as_raw()),
        service_gid: Some(owner.gid.as_raw()),
        cluster: config.cluster.clone(),
        node: config.node.clone(),
        log_file: Some(config.state_dir.join("guard.log")),
        stop_timeout: config.bootstrap.policy.stop_timeout,
        detach: true,
    }
}

/// Gives up root's rights for good.
fn become_owner(owner: &DataOwner) -> Result<(), Error> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let failed = |errno: nix::errno::Errno| Error::System { doing: "become the owner of the data directory", source: errno.into() };
    setgroups(&[owner.gid]).map_err(failed)?;
    setgid(owner.gid).map_err(failed)?;
    setuid(owner.uid).map_err(failed)
}

async fn agent<A>(
    config: Config,
    owner: DataOwner,
    launch: Launch,
    keeper: Option<Keeper>,
    attach: impl FnOnce(Attach) -> Result<A, String>,
) -> Result<String, Error> {
    let config = Arc::new(config);
    let settings = Arc::new(postgres_settings(&config, &owner));
    let programs = postgres::version::Version::of_programs(&settings).await?;
    programs.check(&settings, None)?;
    let major = programs.major;
    let known = clock::boot_id();
    let named = known.is_some();
    let boot = known.unwrap_or_else(clock::incarnation);
    let (store, file) = open_file(&config, &boot, named)?;
    let etcd = Etcd::connect(etcd_settings(&config)).await?;
    let metrics = Arc::new(Metrics::new(&config.cluster, &config.node));
    let (events_in, events) = mpsc::channel(EVENTS);
    let (session_in, session) = watch::channel(None);
    let (pace, paced) = watch::channel(Pace { run: None, every: Span::from_millis(500), calm: true });
    let (started, lost) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let server = Arc::new(Server::new(Arc::clone(&settings)));
    let agent = clock::incarnation();
    tracing::info!(cluster = %config.cluster, node = %config.node, %agent, data = %file.data, starts = file.starts, "the agent starts");
    tell_leftovers(&settings, &file).await;
    let me = me(&config, agent.clone(), major, boot, named);
    let stopping = session.clone();
    let tools = Arc::new(Tools {
        node: config.node.clone(),
        etcd: etcd.clone(),
        settings: Arc::clone(&settings),
        server: Arc::clone(&server),
        initdb: config.bootstrap.initdb.clone(),
        program: launch.program.clone(),
        peers: peers(&config, &agent)?,
        guard: session,
        starter: Starter::new(launch.clone(), keeper, Arc::clone(&started), Arc::clone(&lost)),
        store: Arc::new(Mutex::new(store)),
        rendered: Mutex::new(None),
        events: events_in.clone(),
    });
    let (handle, seat) = handle::pair(agent.as_str());
    let service_uid = owner.uid.as_raw();
    let attached = attach(Attach { handle, metrics: Arc::clone(&metrics), config: Arc::clone(&config), service_uid });
    let _attached = attached.map_err(Error::Api)?;
    let Seat { publisher, commands, asks } = seat;
    let looped = Loop {
        state: State::new(me, file, clock::now()),
        tools,
        events,
        pace,
        measure: Measure::new(metrics),
        publisher,
        running: JoinSet::new(),
        doing: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    let to_loop = events_in.clone();
    // Each in a task of its own: what wakes one of them is no work for the others. They end with the set.
    let mut parts = JoinSet::new();
    parts.spawn(async move { Ok(looped.run().await) });
    parts.spawn(async move { Ok(signals(to_loop, stopping).await) });
    parts.spawn(without_starter(lost));
    let link = guard_link::keep(launch.settings.socket(), agent, session_in, started, events_in.clone());
    part(&mut parts, "the guard's link", link);
    part(&mut parts, "the watch of etcd", observe::etcd(etcd.clone(), events_in.clone()));
    part(&mut parts, "the commands", serve::commands(etcd.clone(), commands));
    part(&mut parts, "the upkeep of etcd leases", async move { etcd.keep_up().await });
    part(&mut parts, "the questions of peers", observe::asks(asks, events_in.clone()));
    part(&mut parts, "the samples of the server", observe::server(server, paced, events_in));
    match parts.join_next().await {
        Some(Ok(why)) => why,
        // Nobody cancels one of them: it panicked, and so does the agent. The guard's deadline stands.
        Some(Err(fault)) => std::panic::resume_unwind(fault.into_panic()),
        None => Ok("nothing was left to do".to_owned()),
    }
}

/// Ends the agent once it can start no guard any more. PostgreSQL, and a guard that lives, go on: the next agent takes the session.
async fn without_starter(lost: Arc<Notify>) -> Result<String, Error> {
    lost.notified().await;
    Err(Error::StarterGone)
}

/// Adds one of the agent's parts, whose end is the agent's.
fn part(parts: &mut JoinSet<Result<String, Error>>, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    parts.spawn(async move {
        work.await;
        Ok(format!("{name} ended"))
    });
}

/// What former copies left takes room, and nobody else looks there. A clone that goes on uses it, or removes it.
async fn tell_leftovers(settings: &postgres::Settings, file: &NodeFile) {
    if matches!(file.operation, Some(Operation::Clone { .. })) {
        return;
    }
    match postgres::place::leftovers(settings).await {
        Ok(left) => left.iter().for_each(|leftover| {
            tracing::warn!(path = %leftover.path.display(), "{}", leftover.advice(&settings.data_dir));
        }),
        Err(fault) => tracing::debug!(error = %fault, "whether copies left anything is not known"),
    }
}

/// Ctrl-C stops the node in order, a second one kills PostgreSQL and ends the agent. SIGTERM ends the agent alone: PostgreSQL goes on under its
/// guard until the lease runs out, and a new agent takes over before.
async fn signals(events: mpsc::Sender<Event>, session: watch::Receiver<Option<Guard>>) -> String {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else { return std::future::pending().await };
    let mut asked = false;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return "SIGTERM: the agent ends, PostgreSQL goes on under its guard".to_owned(),
            _ = interrupt.recv() => {
                if asked {
                    let guard = session.borrow().clone();
                    kill(guard).await;
                    return "interrupted twice: PostgreSQL was killed".to_owned();
                }
                asked = true;
                tracing::info!("interrupted: this node is stopped in order; once more kills PostgreSQL");
                drop(events.send(Event::Stop).await);
            }
        }
    }
}

/// Kills PostgreSQL without more ado.
async fn kill(guard: Option<Guard>) {
    const LIMIT: Span = Span::from_secs(2);
    let Some(guard) = guard else { return };
    // In the newest term that it has heard: it refuses older ones.
    if let Ok(status) = guard.status(LIMIT).await {
        drop(guard.kill(status.term, LIMIT).await);
    }
}

/// Opens the node file and counts this start, on disk, before anything else.
///
/// Where the kernel does not name this boot, a word that was given before counts as given now: how long it still binds nobody can tell.
fn open_file(config: &Config, boot: &Incarnation, named: bool) -> Result<(file::Store, NodeFile), Error> {
    let path = node_file(&config.state_dir);
    let (mut store, found) = file::Store::open(&path, &config.cluster, &config.node, clock::data_incarnation())?;
    let ack = found.ack.clone().map(|ack| if named { ack } else { Ack { boot: boot.clone(), at: clock::boot(), ..ack } });
    let file = NodeFile { starts: found.starts.saturating_add(1), ack, ..found };
    store.write(&file)?;
    Ok((store, file))
}

fn me(config: &Config, agent: Incarnation, major: u32, boot: Incarnation, named: bool) -> Me {
    Me {
        node: config.node.clone(),
        agent,
        postgres: config.postgres.advertise.clone(),
        api: Some(format!("http://{}", config.api.advertise)),
        zone: config.zone.clone(),
        tags: config.tags.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        first_policy: config.bootstrap.policy.clone(),
        adopted_durability: config.bootstrap.adopted_durability,
        major,
        // Without a name of the boot nobody could tell after a restart how long a word still binds: none is given.
        peer_key: config.api.peer_key.is_some() && named,
        boot,
        boot_is_named: named,
    }
}

/// Whoever holds the cluster's key asks the others, and is answered.
fn peers(config: &Config, run: &Incarnation) -> Result<Option<peers::Client>, Error> {
    let key = config.api.peer_key.as_ref().map(|file| peers::Key::new(&file.content));
    key.map(|key| peers::Client::new(key, config.cluster.clone(), run.clone())).transpose().map_err(Error::Peers)
}

/// The etcd room's settings.
pub fn etcd_settings(config: &Config) -> dcs::Settings {
    let etcd = &config.etcd;
    let mut settings = dcs::Settings::new(etcd.endpoints.clone(), etcd.prefix.clone(), config.cluster.clone());
    settings.ca_file = etcd.ca.as_ref().map(|file| file.path.clone());
    settings.cert_file = etcd.client.as_ref().map(|pair| pair.certificate.path.clone());
    settings.key_file = etcd.client.as_ref().map(|pair| pair.key.path.clone());
    settings.username = etcd.user.as_ref().map(|user| user.name.clone());
    settings.password_file = etcd.user.as_ref().map(|user| user.password.path.clone());
    settings
}

/// What the `postgres` room is told of a configuration.
pub fn postgres_settings(config: &Config, owner: &DataOwner) -> postgres::Settings {
    let pg = &config.postgres;
    postgres::Settings {
        cluster: config.cluster.clone(),
        node: config.node.clone(),
        data_dir: pg.data_dir.clone(),
        bin_dir: pg.bin_dir.clone(),
        base_config: pg.base_config.clone(),
        listen: pg.listen.clone(),
        port: pg.port,
        advertise: pg.advertise.clone(),
        wal_dir: pg.wal_dir.clone(),
        tablespace_map: pg.tablespace_map.clone(),
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        socket_dirs: Vec::new(),
        roles: postgres::Roles {
            superuser: pg.superuser.user.clone(),
            replication: role(&pg.replication),
            rewind: role(&pg.rewind),
            monitor: role(&pg.monitor),
        },
        replication_tls: replication_tls(config),
        owner: Owner { uid: owner.uid.as_raw(), gid: owner.gid.as_raw() },
        owner_name: owner.name.clone(),
    }
}

fn role(role: &config::node::Role) -> postgres::Role {
    let credential = match (&role.password, &role.certificate) {
        (_, Some(pair)) => postgres::Credential::Certificate { cert_file: pair.certificate.path.clone(), key_file: pair.key.path.clone() },
        (Some(password), None) => postgres::Credential::Password(password.content.clone()),
        (None, None) => postgres::Credential::None,
    };
    postgres::Role { name: role.user.clone(), credential }
}

fn replication_tls(config: &Config) -> Option<postgres::ReplicationTls> {
    use config::node::TlsMode;
    let tls = &config.postgres.replication_tls;
    let mode = match tls.mode {
        TlsMode::Prefer => return None,
        TlsMode::Require => postgres::SslMode::Require,
        TlsMode::VerifyCa => postgres::SslMode::VerifyCa,
        TlsMode::VerifyFull => postgres::SslMode::VerifyFull,
    };
    Some(postgres::ReplicationTls { mode, ca_file: tls.ca.as_ref().map(|file| file.path.clone()) })
}
