//! Who may write, in which term, for how long: `term` and `leader`.

use super::{Unknown, VERSION};
use crate::model::{
    lsn::Lsn,
    moment::Span,
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
    Paused {
        /// Who paused.
        by: String,
        /// Why.
        reason: String,
        /// For how long from then on, on the holder's clock.
        until: Option<Span>,
    },
    /// A state of a newer version: hold still.
    Foreign {
        /// Its name.
        name: String,
    },
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
            "paused" => LeaderState::Paused { by: wire.by.unwrap_or_default(), reason, until: wire.until },
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
            LeaderState::Paused { by, reason, until } => {
                (wire.by, wire.reason, wire.until) = (Some(by), Some(reason), until);
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
    fn every_state_survives_its_own_writing() {
        let base: LeaderRecord = serde_json::from_str(SERVING).expect("record");
        let n2: NodeName = "n2".parse().expect("name");
        let states = [
            LeaderState::Claimed,
            LeaderState::Handoff { to: n2 },
            LeaderState::Vacant { reason: "crash".to_owned() },
            LeaderState::Paused { by: "ann".to_owned(), reason: "work".to_owned(), until: Some(Span::from_secs(60)) },
        ];
        for state in states {
            let record = LeaderRecord { state, dead: Some(Term::new(3)), wal_end: Some(Lsn::new(77)), ..base.clone() };
            assert_eq!(serde_json::from_str::<LeaderRecord>(&to_text(&record)).expect("record"), record);
        }
    }
}
