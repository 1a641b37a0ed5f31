//! Who may write, in which term, for how long: `term` and `leader`.

use super::{Unknown, VERSION};
use crate::model::{
    lsn::Lsn,
    moment::{Moment, Span},
    node::{Address, DataIncarnation, Incarnation, NodeName, Nonce, Replica},
    term::Term,
    timeline::TimelineId,
};
use serde::{Deserialize, Serialize};

/// `term`: the newest claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TermRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// Its number.
    pub term: Term,
    /// Who claimed.
    pub holder: Replica,
}

/// `leader`: who may write, in which term, for how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "LeaderWire", into = "LeaderWire")]
pub struct LeaderRecord {
    /// The claim it belongs to.
    pub term: Term,
    /// Whom it names.
    pub holder: Holder,
    /// Makes each write differ.
    pub nonce: Nonce,
    /// Counts writes of this record; never reset.
    pub seq: u64,
    /// How long the holder may act from the send of this revision.
    pub hold: Span,
    /// How long a taker must see this very value stand still.
    pub wait: Span,
    /// The timeline on which the holder serves or last served.
    pub tli: TimelineId,
    /// A record boundary that the primary's flush has passed.
    pub lsn: Lsn,
    /// The term of that `sync` whose primary is proven dead by its releaser.
    pub dead: Option<Term>,
    /// The verified end of the dead primary's WAL.
    pub wal_end: Option<Lsn>,
    /// What the holder is doing.
    pub state: LeaderState,
    /// Automatic failovers of late; `None` where there were none.
    pub failovers: Option<Failovers>,
    /// Unknown fields.
    pub unknown: Unknown,
}

/// The node that `leader` names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Which node.
    pub node: NodeName,
    /// In which life of its data directory.
    pub data: DataIncarnation,
    /// The run of its guard: only an agent in session with that guard acts for the holder.
    pub guard: Incarnation,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
}

impl Holder {
    /// Node and data incarnation.
    pub fn replica(&self) -> Replica {
        Replica::new(self.node.clone(), self.data.clone())
    }
}

/// The state of `leader`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeaderState {
    /// The holder prepares its promotion.
    Claimed,
    /// The holder's PostgreSQL accepts writes.
    Serving,
    /// The holder has stopped, `to` may follow at once.
    Handoff {
        /// The chosen successor.
        to: NodeName,
    },
    /// Nobody holds it. Says nothing about the former holder's PostgreSQL: `dead` does.
    Vacant {
        /// Why it was released.
        reason: String,
    },
    /// Nobody may follow; see protocol 1.12.
    Paused(Box<Pause>),
    /// A state of a newer version: hold still.
    Foreign {
        /// Its name.
        name: String,
    },
}

impl LeaderState {
    /// Whether its holder has given the term up: it does nothing by it any more.
    pub const fn is_given_up(&self) -> bool {
        matches!(self, Self::Vacant { .. } | Self::Handoff { .. })
    }
}

/// A pause: nobody follows the holder, and nothing is done to PostgreSQL (protocol 1.12).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who paused.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when, for people (RFC 3339).
    pub at: String,
    /// For how long from then on; `None`: until somebody resumes.
    pub until: Option<Span>,
    /// When that is over, by the holder's `CLOCK_BOOTTIME`: says something on its host alone, and while the guard lives that the record names.
    pub ends: Option<Moment>,
    /// Why nobody held the record, where it was paused vacant, or its holder has left it: then it names the last holder.
    pub vacant: Option<String>,
}

/// Automatic failovers of late, so that there are not too many of them (protocol 1.12, *anti-flap*).
///
/// Ages instead of times of day: each renewal makes them older by what passed on the holder's clock. What passes while nobody holds the
/// record is not counted, and they stay young for longer than they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failovers {
    /// How long ago each was, as of this revision, oldest first.
    pub ages: Vec<Span>,
    /// There were too many: no other node follows until an operator acknowledges it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopped: bool,
}

impl Failovers {
    /// The same `passed` later; what is `within` no more is forgotten. `None` once nothing is left to remember.
    pub fn later(&self, passed: Span, within: Span) -> Option<Self> {
        let ages: Vec<Span> = self.ages.iter().map(|age| age.plus(passed)).filter(|age| *age < within).collect();
        (self.stopped || !ages.is_empty()).then_some(Self { ages, stopped: self.stopped })
    }
}

#[derive(Serialize, Deserialize)]
struct LeaderWire {
    v: u32,
    term: Term,
    holder: Holder,
    nonce: Nonce,
    seq: u64,
    hold_ms: u64,
    wait_ms: u64,
    tli: TimelineId,
    lsn: Lsn,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead: Option<Term>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wal_end: Option<Lsn>,
    state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    to: Option<NodeName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<Moment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vacant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failovers: Option<Failovers>,
    #[serde(flatten)]
    unknown: Unknown,
}

impl TryFrom<LeaderWire> for LeaderRecord {
    type Error = String;

    fn try_from(wire: LeaderWire) -> Result<Self, String> {
        let reason = wire.reason.unwrap_or_default();
        let state = match wire.state.as_str() {
            "claimed" => LeaderState::Claimed,
            "serving" => LeaderState::Serving,
            "handoff" => LeaderState::Handoff { to: wire.to.ok_or("state handoff lacks \"to\"")? },
            "vacant" => LeaderState::Vacant { reason },
            "paused" => LeaderState::Paused(Box::new(Pause {
                by: wire.by.unwrap_or_default(),
                reason,
                at: wire.at.unwrap_or_default(),
                until: wire.until,
                ends: wire.ends,
                vacant: wire.vacant,
            })),
            other => LeaderState::Foreign { name: other.to_owned() },
        };
        Ok(Self {
            term: wire.term,
            holder: wire.holder,
            nonce: wire.nonce,
            seq: wire.seq,
            hold: Span::from_millis(wire.hold_ms),
            wait: Span::from_millis(wire.wait_ms),
            tli: wire.tli,
            lsn: wire.lsn,
            dead: wire.dead,
            wal_end: wire.wal_end,
            state,
            failovers: wire.failovers,
            unknown: wire.unknown,
        })
    }
}

impl From<LeaderRecord> for LeaderWire {
    fn from(record: LeaderRecord) -> Self {
        let mut wire = Self {
            v: VERSION,
            term: record.term,
            holder: record.holder,
            nonce: record.nonce,
            seq: record.seq,
            hold_ms: record.hold.as_millis(),
            wait_ms: record.wait.as_millis(),
            tli: record.tli,
            lsn: record.lsn,
            dead: record.dead,
            wal_end: record.wal_end,
            state: String::new(),
            to: None,
            reason: None,
            by: None,
            until: None,
            at: None,
            ends: None,
            vacant: None,
            failovers: record.failovers,
            unknown: record.unknown,
        };
        let name = match record.state {
            LeaderState::Claimed => "claimed",
            LeaderState::Serving => "serving",
            LeaderState::Handoff { to } => {
                wire.to = Some(to);
                "handoff"
            }
            LeaderState::Vacant { reason } => {
                wire.reason = Some(reason);
                "vacant"
            }
            LeaderState::Paused(pause) => {
                (wire.by, wire.reason, wire.at) = (Some(pause.by), Some(pause.reason), Some(pause.at));
                (wire.until, wire.ends, wire.vacant) = (pause.until, pause.ends, pause.vacant);
                "paused"
            }
            LeaderState::Foreign { ref name } => name,
        };
        wire.state = name.to_owned();
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::to_text;

    const SERVING: &str = r#"{"v":1,"term":3,"holder":{"node":"n1","data":"0123abcd","guard":"g1","postgres":"10.0.0.1:5432"},"nonce":"x1","seq":9,"hold_ms":2800,"wait_ms":3300,"tli":2,"lsn":"0/3000060","state":"serving"}"#;

    #[test]
    fn a_leader_record_is_written_as_it_was_read() {
        let record: LeaderRecord = serde_json::from_str(SERVING).expect("record");
        assert_eq!(record.state, LeaderState::Serving);
        assert_eq!(to_text(&record), SERVING);
    }

    #[test]
    fn fields_of_a_newer_version_are_kept() {
        let newer = SERVING.replace("\"serving\"}", "\"serving\",\"colour\":\"green\"}");
        let record: LeaderRecord = serde_json::from_str(&newer).expect("record");
        assert_eq!(to_text(&record), newer);
    }

    #[test]
    fn a_state_of_a_newer_version_is_told_apart() {
        let newer = SERVING.replace("serving", "levitating");
        let record: LeaderRecord = serde_json::from_str(&newer).expect("record");
        assert_eq!(record.state, LeaderState::Foreign { name: "levitating".to_owned() });
    }

    #[test]
    fn failovers_grow_old_and_are_forgotten_but_a_stop_stays() {
        let before = Failovers { ages: vec![Span::from_secs(50), Span::from_secs(5)], stopped: false };
        let later = |stopped, passed| Failovers { stopped, ..before.clone() }.later(Span::from_secs(passed), Span::from_secs(60));
        assert_eq!(later(false, 10).map(|failovers| failovers.ages), Some(vec![Span::from_secs(15)]));
        assert_eq!(later(false, 55), None);
        assert_eq!(later(true, 55), Some(Failovers { ages: Vec::new(), stopped: true }));
    }

    #[test]
    fn every_state_survives_its_own_writing() {
        let base: LeaderRecord = serde_json::from_str(SERVING).expect("record");
        let n2: NodeName = "n2".parse().expect("name");
        let states = [
            LeaderState::Claimed,
            LeaderState::Handoff { to: n2 },
            LeaderState::Vacant { reason: "crash".to_owned() },
            LeaderState::Paused(Box::new(Pause {
                by: "ann".to_owned(),
                reason: "work".to_owned(),
                at: "2026-01-01T00:00:00Z".to_owned(),
                until: Some(Span::from_secs(60)),
                ends: Some(Moment::from_nanos(1_060_000_000_000)),
                vacant: Some("crash".to_owned()),
            })),
        ];
        for state in states {
            let failovers = Some(Failovers { ages: vec![Span::from_secs(9)], stopped: true });
            let record = LeaderRecord { state, dead: Some(Term::new(3)), wal_end: Some(Lsn::new(77)), failovers, ..base.clone() };
            assert_eq!(serde_json::from_str::<LeaderRecord>(&to_text(&record)).expect("record"), record);
        }
    }
}
