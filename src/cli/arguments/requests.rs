//! Verbs that ask the cluster for something.

use super::Confirmation;
use crate::model::moment::Span;
use clap::Args;

/// What every request takes.
#[derive(Clone, Debug, Args)]
pub struct Asking {
    /// Why, for the audit trail
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Wait so many seconds for it
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    pub timeout: u64,
    /// What every change takes.
    #[command(flatten)]
    pub confirmation: Confirmation,
}

/// `remove`.
#[derive(Debug, Args)]
pub struct RemoveOptions {
    /// The node to forget
    pub node: String,
    /// What every request takes.
    #[command(flatten)]
    pub asking: Asking,
}

/// `pause`.
#[derive(Debug, Args)]
pub struct PauseOptions {
    /// For how long, as 30min or 2h [default: until somebody resumes]
    #[arg(long, value_name = "TIME", value_parser = length)]
    pub until: Option<Span>,
    /// What every request takes.
    #[command(flatten)]
    pub asking: Asking,
}

fn length(text: &str) -> Result<Span, String> {
    let span: Span = text.parse().map_err(|fault| format!("{fault}"))?;
    if span >= Span::from_secs(1) { Ok(span) } else { Err("choose at least 1s".to_owned()) }
}

/// `resume`.
#[derive(Debug, Args)]
pub struct ResumeOptions {
    /// I have made sure that PostgreSQL of the node that holds the paused cluster is dead
    #[arg(long)]
    pub assert_dead: bool,
    /// What every request takes.
    #[command(flatten)]
    pub asking: Asking,
}

/// `failover`.
#[derive(Debug, Args)]
pub struct FailoverOptions {
    /// The node that is to be primary
    #[arg(long, value_name = "NODE")]
    pub to: String,
    /// Also if it lacks what was acknowledged: that is lost
    #[arg(long)]
    pub accept_loss: bool,
    /// I have made sure that PostgreSQL of the present primary is dead
    #[arg(long)]
    pub assert_dead: bool,
    /// What every request takes.
    #[command(flatten)]
    pub asking: Asking,
}

/// `acknowledge`.
#[derive(Debug, Args)]
pub struct AcknowledgeOptions {
    /// What every request takes.
    #[command(flatten)]
    pub asking: Asking,
}

pub(super) const REMOVE: &str =
    "Removes the node's keys, its place among those who may take over, and its replication slot on the primary. Its data directory is not \
touched. A node whose agent still runs comes back by itself: stop it first. The primary cannot be removed.

Examples:
  pgbaton remove n3 --dry-run
  pgbaton remove n3 --reason 'host scrapped' --yes";

pub(super) const PAUSE: &str =
    "Writes go on. Nobody takes over, whatever happens to the primary, and PostgreSQL is neither started nor stopped, promoted or \
rewound, and no slot is dropped. What commits wait for is kept in order. A node that joins waits for the end.

Examples:
  pgbaton pause --reason 'kernel upgrade of n1' --until 1h
  pgbaton pause --reason 'let me look' --yes";

pub(super) const RESUME: &str =
    "Ends on the node that holds the paused cluster: its PostgreSQL serves on, or, where it is down, another node takes over as after a \
crash. If that node is gone for good, nobody but you can know whether its PostgreSQL is dead: --assert-dead says so. If it is wrong there \
are two primaries, and what one of them acknowledges is lost.

Examples:
  pgbaton resume
  pgbaton resume --assert-dead --reason 'n1 burnt down'";

pub(super) const FAILOVER: &str =
    "A primary that is there stops PostgreSQL in the fast way and hands over: nothing is lost, and writes are out for the stop and the \
promotion. One that is gone is followed once its lease is over, or at once with --assert-dead. A pause ends with it.

A node that is behind, or does not stand among those who may take over, may with --accept-loss: it shows first how much that can be. It is \
about data alone. --assert-dead is about the former primary: if it is wrong there are two primaries. Both are recorded under your name.

Examples:
  pgbaton failover --to n2
  pgbaton failover --to n3 --accept-loss --dry-run
  pgbaton failover --to n3 --accept-loss --assert-dead --reason 'n1 and n2 burnt down'";

pub(super) const ACKNOWLEDGE: &str =
    "After too many automatic failovers within the policy's anti_flap.within no other node takes over by itself: something is wrong that \
one more would not mend. Look, mend it, then acknowledge.

Examples:
  pgbaton acknowledge --reason 'switch replaced'";
