//! EFFECT. etcd: where the records stand, and who changed them.
//!
//! May use `model` and `clock` only. The third-party crates `etcd_client` and `tonic` have their home here.
//!
//! Port: [`Etcd`] (and [`Memory`], which behaves the same, for tests). What every caller can rely on:
//! - a transaction is Applied, Refused (with the present values of the same linearizable answer), or an [`Error`] whose
//!   [`Error::outcome`] says whether it may still have happened: everything unclear is Unknown;
//! - a lease counts from [`TxnReply::sent_at`], the send of the *earliest* attempt that may have arrived;
//! - the watch hands out revisions that never go back, except marked as such.
//!
//! In reading order: [`keys`] (paths), [`view`] (what a watcher hands out), [`etcd`], [`memory`].

pub mod etcd;
pub mod keys;
pub mod memory;
pub mod view;

pub use etcd::Etcd;
pub use memory::Memory;

use crate::model::{
    key::Key,
    moment::{Moment, Span},
    node::ClusterName,
    record::MEMBER_LEASE,
    records::Records,
};
use std::path::PathBuf;

/// What this room needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `http://host:port` or `https://host:port`, one for each etcd member.
    pub endpoints: Vec<String>,
    /// All clusters stand under this path: `/pgbaton`.
    pub prefix: String,
    /// Which cluster.
    pub cluster: ClusterName,
    /// PEM file of the authorities that signed etcd's certificates. Needed for `https`.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our certificate; together with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM file of our private key.
    pub key_file: Option<PathBuf>,
    /// etcd's user name; together with `password_file`.
    pub username: Option<String>,
    /// File that holds the password, and nothing else.
    pub password_file: Option<PathBuf>,
    /// The deadline of one attempt at one endpoint. Another endpoint is asked after a third of it.
    pub attempt: Span,
    /// A watch that has shown no event for so long is checked by a linearizable list (P).
    pub poll: Span,
    /// How long a member's record outlives its agent. Whole seconds, 2 at the least.
    pub member_ttl: Span,
}

impl Settings {
    /// Defaults: no TLS, no user, attempts of 350 ms, polls after 500 ms, members that outlive their agent by [`MEMBER_LEASE`].
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>, cluster: ClusterName) -> Self {
        Self {
            endpoints,
            prefix: prefix.into(),
            cluster,
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
            attempt: Span::from_millis(350),
            poll: Span::from_millis(500),
            member_ttl: MEMBER_LEASE,
        }
    }
}

/// Why something could not be done, split by what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong: say so and stop.
    #[error("use the etcd settings: {0}")]
    Settings(String),
    /// No endpoint was reached and nothing was sent: try again.
    #[error("reach etcd: {0}")]
    Unreachable(String),
    /// etcd refuses our certificate, user, password or permission: try again, and tell the operator.
    #[error("be let in by etcd: {0}")]
    Denied(String),
    /// etcd's database is full (alarm NOSPACE): tell the operator. The write that raises the alarm may be applied all the same: etcd
    /// looks at its quota again when it applies what it has agreed on, and then does both.
    #[error("write to etcd: its database space is exceeded (compact, defragment, disarm the alarm): {0}")]
    NoSpace(String),
    /// etcd refuses this very request, as too large for example: trying again is useless.
    #[error("have etcd accept the request: {0}")]
    Rejected(String),
    /// Sent, and no clear answer came: it may have happened, or may still happen.
    #[error("know what etcd did: {0}")]
    NoAnswer(String),
}

/// Whether something that failed may have happened all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not happened and will not.
    NotDone,
    /// It may have happened, or may still happen.
    Unknown,
}

impl Error {
    /// Whether what failed may have happened all the same.
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Settings(_) | Self::Unreachable(_) | Self::Denied(_) | Self::Rejected(_) => Outcome::NotDone,
            Self::NoSpace(_) | Self::NoAnswer(_) => Outcome::Unknown,
        }
    }
}

/// Whether a transaction may be sent more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    /// To another endpoint when the first is slow, and again when an answer is lost, until the deadline.
    ///
    /// Only for transactions that compare what they change by a value that never comes back (a nonce, a count).
    Allowed,
    /// At most one attempt reaches etcd. For what is created where nothing stands and is removed again, as an intent is:
    /// a second attempt could do it twice.
    Never,
}

/// etcd's answer to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnReply {
    /// What happened.
    pub outcome: TxnOutcome,
    /// `CLOCK_BOOTTIME` just before the earliest attempt that may have arrived was sent: a lease counts from here.
    pub sent_at: Moment,
}

/// A key, what it holds (`None`: it is not there), and the revision that wrote it (0: not there).
pub type Present = (Key, Option<String>, u64);

/// What a transaction came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All writes were done, by this attempt or an earlier one of the same transaction.
    Applied {
        /// The revision that holds them.
        revision: u64,
    },
    /// A condition did not hold.
    Refused {
        /// Every compared and every written key, as it stands at `revision`.
        values: Vec<Present>,
        /// etcd's revision at this answer.
        revision: u64,
        /// Another attempt of this transaction has no answer: it may have been applied and overwritten since, and may still
        /// be applied where its conditions come true again.
        unsettled: bool,
    },
}

/// All records of the cluster but `history/` and `audit/`, at one revision, by a linearizable read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Key, text, and the revision that wrote it.
    pub entries: Vec<(Key, String, u64)>,
    /// Keys under the prefix that this version does not know.
    pub unknown: usize,
    /// etcd's revision.
    pub revision: u64,
    /// `CLOCK_BOOTTIME` just before the request was sent.
    pub sent_at: Moment,
    /// Which etcd cluster answered.
    pub cluster_id: u64,
    /// etcd's raft term. For display: a restored snapshot may show the same (EXP-26).
    pub raft_term: u64,
}

impl Listing {
    /// The records as a view.
    pub fn records(&self) -> Records {
        Records::listed(&self.entries, self.revision)
    }
}

/// What the watch task hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// Everything: replaces the view. Comes at the start, after every doubt, and at each poll.
    Listed {
        /// The records.
        listing: Listing,
        /// A linearizable read, sent after a higher revision had been received, shows a lower one: etcd has lost writes.
        went_back: bool,
    },
    /// What changed since the last update.
    Changed {
        /// Key, text (`None`: deleted), and the revision of that change.
        changes: Vec<Present>,
        /// The newest of these revisions.
        revision: u64,
    },
    /// etcd gives no answer. Repeated while that lasts.
    Silent {
        /// `CLOCK_BOOTTIME` of its last answer; of the start where there was none.
        since: Moment,
        /// The newest error.
        why: String,
    },
}

/// One endpoint as `doctor` and the metrics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointStatus {
    /// As configured.
    pub endpoint: String,
    /// What it says, or why it says nothing.
    pub state: Result<MemberStatus, String>,
}

/// What one etcd member says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// etcd's version.
    pub version: String,
    /// Size of its database in bytes.
    pub db_size: u64,
    /// Its own id.
    pub member: u64,
    /// The id of the raft leader that it follows; 0: none.
    pub leader: u64,
    /// Its raft term.
    pub raft_term: u64,
    /// Its revision.
    pub revision: u64,
    /// Which etcd cluster it belongs to.
    pub cluster_id: u64,
    /// Members of that cluster, as it knows them; 0: it does not say.
    pub members: usize,
    /// Whether an alarm NOSPACE stands.
    pub no_space: bool,
    /// What it complains of.
    pub errors: Vec<String>,
    /// How long the answer took.
    pub latency: Span,
}
