//! What a decision remembers for the next one.

use super::{decision::Published, transition::InForce};
use crate::model::{
    instance::Run,
    lsn::Lsn,
    moment::{Moment, Span},
    node::{Address, Incarnation, NodeName, Nonce, Replica},
    node_file::{Boundary, Order},
    policy::CrashPolicy,
    record::Answer,
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a decision tells the next one. Nothing here binds: what binds is in the node file and in etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Our `nodes` key was written by this run of the agent.
    pub registered: bool,
    /// A first write of it was sent by this run of the agent: only then may it show our own start.
    pub registering: bool,
    /// Our running claim.
    pub claim: Option<ClaimStory>,
    /// Not before this moment another claim of ours.
    pub no_claim_before: Option<Moment>,
    /// To whom claims of ours went since somebody served last: nobody gets a second one.
    pub handed: BTreeSet<NodeName>,
    /// What our running claim fetches from a voter that is ahead of it.
    pub fetching: Option<Fetching>,
    /// How many claims of ours came to nothing, one after the other.
    pub failed_claims: u32,
    /// A crash of PostgreSQL that is being dealt with.
    pub crash: Option<Crash>,
    /// How many starts as primary failed, one after the other.
    pub failed_starts: u32,
    /// Ends of PostgreSQL as a standby that nobody asked for.
    pub standby_ends: Option<StandbyEnds>,
    /// The vacant `leader` that was last seen, and since when.
    pub vacant: Option<Vacancy>,
    /// The term in which this agent watches its replicas, and since when: before that they may have confirmed to nobody.
    pub watching: Option<(Term, Moment)>,
    /// Which `synchronous_standby_names` we have written in the server's present run, and how far it is proven that they alone are in force.
    pub names: Option<Names>,
    /// When walsenders were last ended that did not confirm.
    pub ended_at: Option<Moment>,
    /// Since when the server shows other names than were written.
    pub foreign_names: Option<Moment>,
    /// When a standby's server last showed other names than those that were written.
    pub foreign_at: Option<Moment>,
    /// Where each peer's API was when its member key was last there.
    pub apis: BTreeMap<NodeName, String>,
    /// When a `synchronous_commit` that lets commits go was last taken back.
    pub commits_repaired: Option<Moment>,
    /// The position that the server showed first in its present run as a primary: what it came up with lies before it.
    pub came_up_with: Option<(Incarnation, Run, Lsn)>,
    /// The run in which a standby shows no `primary_conninfo` although one was written, and since when.
    pub untold: Option<(Run, Moment)>,
    /// Since when, of the leader's term, a standby does not stream that may aim at another timeline than the leader's; and in which run that began.
    pub off_course: Option<(Term, Run, Moment)>,
    /// A boundary that voters have to confirm before it is told as acknowledged.
    pub awaited: Option<Boundary>,
    /// The value of `leader` whose holder this voter finds gone.
    pub finds_gone: Option<Nonce>,
    /// From whom the kernel was last told to keep this node.
    pub cut_off: BTreeSet<Address>,
    /// As a holder that etcd does not answer: what is asked of the peers.
    pub failsafe: Option<Failsafe>,
    /// The question of a peer that was refused.
    pub refused: Option<Refused>,
    /// When this node last said in etcd that it went back.
    pub doubted: Option<Moment>,
    /// In `async`: since when commits wait for nobody in this term.
    pub joins_from: Option<(Term, Moment)>,
    /// In `async`: a replica joins once it has confirmed this, and with it all that was acknowledged before.
    pub joins_at: Option<(Term, Lsn)>,
    /// When the agents of the other members were last known to live.
    pub seen: BTreeMap<NodeName, Moment>,
    /// The term whose new primary has made its checkpoint.
    pub checkpointed: Option<Term>,
    /// The term in which the migrations were applied.
    pub migrated: Option<Term>,
    /// The version of the policy that was last read from etcd.
    pub policy: Option<u64>,
    /// The term whose history record was written.
    pub recorded: Option<Term>,
    /// Since when another agent was known under our name, and when it was last.
    pub alike: Option<(Moment, Moment)>,
    /// What was last published of us, and when.
    pub published: Option<Published>,
    /// When the server first failed to answer, while its process lives.
    pub mute_since: Option<Moment>,
    /// In which term rewinds to its holder's history failed for good: to a later one's they are tried again.
    pub rewinds_failed: Option<Term>,
    /// When this node last knew the cluster paused: what it knew of its directory then may not hold any more.
    pub paused: Option<Moment>,
    /// Since when, as the holder, it gives a paused record up.
    pub resuming: Option<Moment>,
    /// While failovers are stopped: the last end of PostgreSQL here, how many there were before, and when it may start in place.
    pub restarts: Option<((Incarnation, Run), u32, Moment)>,
    /// What became of the last request that this node took and could not carry out.
    pub answer: Option<Answer>,
    /// A rewind that is being prepared: the directory first has to reach the end of its own WAL. Or, while a clone is noted,
    /// what it discards.
    pub rewind: Option<RewindPlan>,
    /// When the file's floors and boundary were last written for their own sake.
    pub noted: Option<Moment>,
    /// The replicas that could vote, as the holder.
    pub seats: Vec<Seat>,
}

/// A replica that could vote, and how it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Which one.
    pub replica: Replica,
    /// Since when it has been fit to.
    pub fit_since: Moment,
    /// Since when it has been far behind.
    pub slow_since: Option<Moment>,
    /// Since when its agent has said nothing.
    pub mute_since: Option<Moment>,
}

/// What a holder that etcd does not answer asks of its peers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failsafe {
    /// In which term.
    pub term: Term,
    /// When they were last asked.
    pub asked: Moment,
}

/// A question of a peer that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which.
    pub nonce: Nonce,
    /// Why, for people.
    pub why: String,
    /// The higher term in which somebody serves, as this node has seen.
    pub serving: Option<Term>,
}

/// The `synchronous_standby_names` of the server's present run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Which guard counts the run.
    pub guard: Incarnation,
    /// Which run.
    pub run: Run,
    /// What may be in force.
    pub in_force: InForce,
    /// Since when the newest are in the configuration.
    pub written: Option<Moment>,
    /// When every walsender that counts or counted had confirmed something of later.
    pub heard: Option<Moment>,
}

impl Memory {
    /// What is known of the names in this run of this guard's server.
    pub(super) fn names_of(&self, guard: Option<&Incarnation>, run: Option<Run>) -> Option<&Names> {
        self.names.as_ref().filter(|names| guard == Some(&names.guard) && run == Some(names.run))
    }
}

/// Our running claim: what its history record will say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimStory {
    /// Its term.
    pub term: Term,
    /// What triggered it, for people.
    pub why: String,
    /// The former primary.
    pub from: Option<NodeName>,
    /// Whether the former primary's commits waited for whoever elects.
    #[serde(default)]
    pub lossless: bool,
    /// The former primary's newest known position.
    pub former_lsn: Option<Lsn>,
    /// How long it could act after a renewal; `None` where this run of the agent did not see its record.
    pub former_hold: Option<Span>,
    /// The verified end of its WAL, if it released.
    pub wal_end: Option<Lsn>,
    /// When the trigger was seen.
    pub triggered: Moment,
    /// When the claim was confirmed.
    pub claimed: Option<Moment>,
    /// When the promises were in, or their time was over.
    pub voted: Option<Moment>,
    /// When the promotion or start was asked for.
    pub asked: Option<Moment>,
    /// When the server was seen out of recovery.
    pub promoted: Option<Moment>,
    /// Whether PostgreSQL was stopped because the lease ran out before it was announced.
    pub ran_out: bool,
    /// When PostgreSQL was stopped, and which run of it, to be started anew on its own timeline alone before it is promoted.
    #[serde(default)]
    pub alone: Option<(Moment, Run)>,
    /// Whether it was given up before anything was promoted.
    pub given_up: bool,
    /// The operator's request that it carries out.
    #[serde(default)]
    pub order: Option<Order>,
}

impl ClaimStory {
    /// A claim of which nothing is confirmed yet, and no former primary is known.
    pub const fn begun(term: Term, why: String, triggered: Moment) -> Self {
        Self {
            term,
            why,
            from: None,
            lossless: false,
            former_lsn: None,
            former_hold: None,
            wal_end: None,
            triggered,
            claimed: None,
            voted: None,
            asked: None,
            promoted: None,
            ran_out: false,
            alone: None,
            given_up: false,
            order: None,
        }
    }
}

/// What a claim fetches before its promotion, from a voter that holds more and cannot lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetching {
    /// The claim's term, which that voter has promised.
    pub term: Term,
    /// The voter.
    pub node: NodeName,
    /// On which timeline its WAL ends.
    pub tli: TimelineId,
    /// Where.
    pub up_to: Lsn,
    /// Since when it is fetched.
    pub since: Moment,
}

/// Ends of PostgreSQL as a standby that nobody asked for, one soon after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyEnds {
    /// The last run that ended so.
    pub run: Run,
    /// How many, the first included.
    pub count: u32,
    /// Not before this moment it is started again.
    pub until: Moment,
}

/// A vacant `leader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vacancy {
    /// Which value.
    pub nonce: Nonce,
    /// When it was first seen.
    pub since: Moment,
}

/// A crash of PostgreSQL that is being dealt with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// Which run ended.
    pub run: Run,
    /// When it was seen.
    pub at: Moment,
    /// How it ended.
    pub how: String,
    /// What the policy says about it.
    pub policy: CrashPolicy,
}

/// A rewind that is being prepared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewindPlan {
    /// Where the other history left ours.
    pub fork: Lsn,
    /// The end of our own WAL.
    pub whole: Lsn,
    /// On this timeline.
    pub tli: TimelineId,
    /// The timeline that is led, to whose history it goes.
    pub target: TimelineId,
    /// The run that reached it.
    pub recovered: Option<Run>,
    /// When the recovery was started.
    pub since: Moment,
}
