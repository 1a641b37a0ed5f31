//! The command line: every verb with its options, and help that teaches by example.

mod requests;

pub use requests::{AcknowledgeOptions, Asking, FailoverOptions, PauseOptions, RemoveOptions, ResumeOptions};

use super::{exit, simulate::SimulateOptions};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// PostgreSQL with automatic failover: whoever holds the baton is the primary.
#[derive(Debug, Parser)]
#[command(name = "pgbaton", version, max_term_width = 100, after_help = exit_codes(), after_long_help = top_help())]
pub struct Arguments {
    /// What every verb takes.
    #[command(flatten)]
    pub global: Global,
    /// What is to be done.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The node's configuration [default: the only file in /etc/pgbaton/*.toml]
    #[arg(long, global = true, help_heading = "Every command", env = "PGBATON_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Ask the node at this URL (http://host:port) instead of the local one
    #[arg(long, global = true, help_heading = "Every command", env = "PGBATON_URL", hide_env_values = true, value_name = "URL")]
    pub url: Option<String>,
    /// How data is printed
    #[arg(long, short, global = true, help_heading = "Every command", value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How data is printed: `Table` for people, `Json` for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    // Without documentation comments of their own the help names both in one line.
    #[expect(missing_docs, reason = "said by the type")]
    Table,
    #[expect(missing_docs, reason = "said by the type")]
    Json,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show the nodes: role, timeline, lag
    #[command(after_help = LIST)]
    List(ListOptions),
    /// Show what one node knows: lease, routing, fencing, etcd, alarms
    #[command(after_help = STATUS)]
    Status,
    /// Say why a node does what it does, and why not something else
    #[command(after_help = WHY)]
    Why(WhyOptions),
    /// Show every change of primary: why, how long, what was lost
    #[command(after_help = HISTORY)]
    History(HistoryOptions),
    /// Let a node take over
    #[command(after_help = requests::FAILOVER)]
    Failover(FailoverOptions),
    /// Leave PostgreSQL alone, and let nobody take over, until resumed
    #[command(after_help = requests::PAUSE)]
    Pause(PauseOptions),
    /// End a pause
    #[command(after_help = requests::RESUME)]
    Resume(ResumeOptions),
    /// Let failovers go on after there were too many
    #[command(after_help = requests::ACKNOWLEDGE)]
    Acknowledge(AcknowledgeOptions),
    /// Forget a node that will not come back
    #[command(after_help = requests::REMOVE)]
    Remove(RemoveOptions),
    /// Show, check and change the cluster policy; check a node's configuration
    #[command(subcommand, after_help = CONFIG)]
    Config(ConfigVerb),
    /// Repair what stands in etcd
    #[command(subcommand, after_help = ETCD)]
    Etcd(EtcdVerb),
    /// Print a connection string that finds the primary (or replicas) by itself
    #[command(after_help = DSN)]
    Dsn(DsnOptions),
    /// Look whether this host can do what its configuration says
    #[command(after_help = DOCTOR)]
    Doctor(DoctorOptions),
    /// Run a node: decides, and keeps PostgreSQL as decided
    #[command(after_help = AGENT)]
    Agent(AgentOptions),
    /// Run the owner of PostgreSQL (internal: `pgbaton agent` starts it where none runs)
    #[command(hide = true, after_help = GUARD)]
    Guard(GuardOptions),
    /// Run a whole cluster on this machine, and break it
    #[command(after_help = DEMO)]
    Demo(DemoOptions),
    /// Run the decisions against a simulated world
    #[command(after_help = SIMULATE)]
    Simulate(SimulateOptions),
    /// The first process of a test host
    #[command(hide = true)]
    LabInit(RawOptions),
    /// What PostgreSQL's restore_command calls
    #[command(hide = true)]
    WalFetch(WalFetchOptions),
}

impl Verb {
    /// Whether it begins to log only once it has read its configuration or settings.
    pub const fn logs_by_itself(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Guard(_) | Self::LabInit(_) | Self::WalFetch(_))
    }
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListOptions {
    /// Show it again and again
    #[arg(long, short)]
    pub watch: bool,
    /// Seconds between two looks
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS", value_parser = interval)]
    pub interval: f64,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("choose 0.1 to 3600 seconds".to_owned()) }
}

/// `why`.
#[derive(Debug, Args)]
pub struct WhyOptions {
    /// Ask this node
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
}

/// `history`.
#[derive(Debug, Args)]
pub struct HistoryOptions {
    /// Show so many at the most
    #[arg(long, short = 'n', default_value_t = 20, value_name = "COUNT")]
    pub limit: usize,
}

/// What every change takes.
#[derive(Clone, Debug, Args)]
pub struct Confirmation {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigVerb {
    /// Print the cluster policy in force
    #[command(after_help = CONFIG_SHOW)]
    Show,
    /// Replace the cluster policy by that of a file
    #[command(after_help = CONFIG_APPLY)]
    Apply(ApplyOptions),
    /// Check a node's configuration, and whether this host can do what it says
    #[command(after_help = CONFIG_CHECK)]
    Check(CheckOptions),
    /// Print every key with its meaning, its default, and what a change takes
    #[command(after_help = CONFIG_EXPLAIN)]
    Explain(ExplainOptions),
}

/// `config apply`.
#[derive(Debug, Args)]
pub struct ApplyOptions {
    /// The new policy (TOML)
    pub file: PathBuf,
    /// Replace this version only [default: the one in force]
    #[arg(long, value_name = "NUMBER")]
    pub version: Option<u64>,
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// What every change takes.
    #[command(flatten)]
    pub confirmation: Confirmation,
}

/// `config check`.
#[derive(Debug, Args)]
pub struct CheckOptions {
    /// The file to check [default: the node's configuration]
    pub file: Option<PathBuf>,
    /// It is a cluster policy
    #[arg(long)]
    pub policy: bool,
    /// Only the file by itself: open no file that it names, look at nothing on this host
    #[arg(long, conflicts_with = "policy")]
    pub shape_only: bool,
}

/// `config explain`.
#[derive(Debug, Args)]
pub struct ExplainOptions {
    /// The keys of the cluster policy, instead of those of a node
    #[arg(long)]
    pub policy: bool,
}

/// `etcd`.
#[derive(Debug, Subcommand)]
pub enum EtcdVerb {
    /// Write the records anew, after etcd was wiped or restored from a backup
    #[command(after_help = RECOVER)]
    Recover(RecoverOptions),
}

/// `etcd recover`.
#[derive(Debug, Args)]
pub struct RecoverOptions {
    /// Write; without it only what would be written is shown
    #[arg(long)]
    pub confirm: bool,
    /// The node that is to be primary [default: the one that was last]
    #[arg(long, value_name = "NODE")]
    pub primary: Option<String>,
    /// I have made sure that PostgreSQL of this node is dead and stays dead (repeatable)
    #[arg(long, value_name = "NODE")]
    pub assert_dead: Vec<String>,
    /// Another node's API, as host:port (repeatable); those that etcd or the local node know are found by themselves
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Vec<String>,
}

/// `dsn`.
#[derive(Debug, Args)]
pub struct DsnOptions {
    /// For whom
    #[arg(long = "for", value_enum, default_value_t = Purpose::Writes)]
    pub purpose: Purpose,
    /// The database
    #[arg(long, short, default_value = "postgres", value_name = "NAME")]
    pub dbname: String,
    /// The role
    #[arg(long, short = 'U', value_name = "NAME")]
    pub user: Option<String>,
    /// As postgresql://… instead of keys and values
    #[arg(long)]
    pub uri: bool,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Finds the primary.
    Writes,
    /// Finds a replica, or the primary where there is none.
    Reads,
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorOptions {
    /// Show only what is not well
    #[arg(long)]
    pub quiet: bool,
}

/// `agent`.
#[derive(Debug, Args)]
pub struct AgentOptions {}

/// `guard`.
#[derive(Debug, Args)]
pub struct GuardOptions {
    /// The file that holds its settings as JSON [default: made of the node's configuration]
    #[arg(long, value_name = "FILE", conflicts_with = "from_stdin")]
    pub settings_json: Option<PathBuf>,
    /// Its settings come as JSON on stdin
    #[arg(long)]
    pub from_stdin: bool,
    /// Keep root's rights and start a guard for each word on stdin, with the settings of its first line
    #[arg(long, conflicts_with_all = ["settings_json", "from_stdin"])]
    pub starter: bool,
}

/// `demo`.
#[derive(Debug, Args)]
pub struct DemoOptions {
    /// Run the tour unattended; fail when two writers were seen or more was lost than the bound that was recorded
    #[arg(long)]
    pub script: bool,
    /// The timers of the cluster policy; `fast` also sets etcd to 50/500 ms
    #[arg(long, value_enum, default_value_t = DemoPreset::Default, value_name = "NAME")]
    pub preset: DemoPreset,
    /// PostgreSQL's programs [default: the newest in /usr/lib/postgresql, else those on PATH]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Copy all logs there at the end
    #[arg(long, value_name = "DIR")]
    pub keep_logs: Option<PathBuf>,
}

/// Timers of the demo's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoPreset {
    #[expect(missing_docs, reason = "said by the type")]
    Default,
    #[expect(missing_docs, reason = "said by the type")]
    Fast,
}

/// `wal-fetch`.
#[derive(Debug, Args)]
pub struct WalFetchOptions {
    /// The local copy of the ledger's history files
    #[arg(long, value_name = "DIRECTORY")]
    pub ledger: PathBuf,
    /// The operator's restore_command
    #[arg(long, value_name = "COMMAND")]
    pub command: Option<String>,
    /// How long that command may take
    #[arg(long, default_value = "60s", value_name = "TIME")]
    pub limit: String,
    /// %f
    pub file: String,
    /// %p
    pub path: String,
    /// %r
    pub restart: Option<String>,
}

/// Arguments that are read elsewhere.
#[derive(Debug, Args)]
pub struct RawOptions {
    /// As they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

fn exit_codes() -> String {
    let rows: Vec<String> = exit::TABLE.iter().map(|(code, meaning)| format!("  {}  {meaning}", *code as u8)).collect();
    format!("Exit codes:\n{}", rows.join("\n"))
}

fn top_help() -> String {
    format!("{TOP}\n\n{}", exit_codes())
}

const TOP: &str = "Examples:
  pgbaton list --watch               who is primary, how far the others are behind
  pgbaton why                        why this node does what it does
  pgbaton doctor                     can this host do what its configuration says?
  pgbaton demo                       three nodes on this machine, and keys to break them";

const LIST: &str = "Examples:
  pgbaton list
  pgbaton list --watch --interval 0.5
  pgbaton list -o json | jq -r '.members[] | select(.leader) | .node'

LAG is what a node has not received, REPLAY what it has not replayed, TIME how old its newest transaction is. FAILOVER says whether it \
may take over. When the agent of this node is down, etcd itself is asked.";

const STATUS: &str = "Ends with 8 when there is an alarm, or when nobody serves.

Examples:
  pgbaton status
  pgbaton status --url http://10.0.0.12:8008
  pgbaton status -o json | jq .lease_seconds_left";

const WHY: &str = "Examples:
  pgbaton why
  pgbaton why --node n2              asks n2 over its API";

const HISTORY: &str =
    "LOST is how much WAL of the former primary the new one lacks at the most (0 B: nothing). UNSEEN is for how long the former primary may \
have gone on after its last known position. Times are those of the phases together, from the trigger to serving.

Examples:
  pgbaton history
  pgbaton history -n 1 -o json | jq '.history[0].phases'";

const CONFIG: &str = "Examples:
  pgbaton config explain > /etc/pgbaton/orders.toml
  pgbaton config check
  pgbaton config show > policy.toml   # edit it, then:
  pgbaton config apply policy.toml";

const ETCD: &str = "Examples:
  pgbaton etcd recover                show what would be written
  pgbaton etcd recover --confirm";

const CONFIG_SHOW: &str = "Examples:
  pgbaton config show > policy.toml   # edit it, then:
  pgbaton config apply policy.toml";

const CONFIG_APPLY: &str = "The policy is refused as a whole when anything in it is wrong; every fault is shown. What a key means: pgbaton config explain --policy.

Examples:
  pgbaton config apply policy.toml --dry-run
  pgbaton config apply policy.toml --reason 'more memory' --yes";

const CONFIG_CHECK: &str = "Every fault is shown at once, with file, line, key and remedy. Nothing is touched.

Examples:
  pgbaton config check
  pgbaton config check /etc/pgbaton/orders.toml
  pgbaton config check --policy policy.toml
  pgbaton config check --shape-only orders.toml   # on another machine";

const CONFIG_EXPLAIN: &str = "What is printed is a valid file (TOML): begin with it.

Examples:
  pgbaton config explain > /etc/pgbaton/orders.toml
  pgbaton config explain --policy";

const RECOVER: &str =
    "Needed when etcd was wiped, or restored from a backup: then no node believes it, and nobody becomes primary. The records are written \
anew, above the highest term that any node knows. One node alone may become primary then; the others follow it.

To make another node primary than the one that was last, every former primary that any node knows of must be proven dead: by its own \
agent, which says that no process of PostgreSQL lives, or by you (--assert-dead). Nodes that cannot be asked must be asserted dead too.

Without --confirm nothing is written, and it ends with 4 (refused), so that a script does not go on.

Examples:
  pgbaton etcd recover                                   show what would be written
  pgbaton etcd recover --confirm
  pgbaton etcd recover --primary n2 --assert-dead n1 --confirm";

const DSN: &str = "Examples:
  psql \"$(pgbaton dsn)\"
  psql \"$(pgbaton dsn --for reads --dbname app --user app)\"";

const DOCTOR: &str = "Every row is ok, warn or fail, and says what to do. Ends with 8 when a row fails.

Examples:
  pgbaton doctor
  pgbaton doctor --quiet -o json";

const AGENT: &str =
    "Where no guard runs, it starts one, which outlives it. Ctrl-C stops the node in order; a second Ctrl-C kills PostgreSQL.

Examples:
  pgbaton agent --config /etc/pgbaton/orders.toml";

const GUARD: &str =
    "There is no need to run it: `pgbaton agent` starts it, and the guard outlives the agent. Started by hand it does the same: it goes to \
the background once it listens, and waits for an agent. SIGTERM ends it, and PostgreSQL before that.

Examples:
  pgbaton guard --config /etc/pgbaton/orders.toml";

const DEMO: &str =
    "As root, hosts are network namespaces. Without root they are ports of this machine, and what needs a network of its own cannot be \
tried. Everything is removed at the end.

With --script it ends with 8 when two writers were seen, when more was lost than was recorded, when not all nodes stream in the end, or \
when the tour did not come to its end. Lines that a node logged as errors are shown and do not count.

Examples:
  pgbaton demo
  pgbaton demo --preset fast
  pgbaton demo --script --keep-logs /tmp/demo-logs";

const SIMULATE: &str = "One seed decides everything: the same seed gives the same run. Ends with 8 when an oracle found something.

Examples:
  pgbaton simulate --seed 42 --trace
  pgbaton simulate --seeds 1000
  pgbaton simulate --policy policy.toml --seeds 50";
