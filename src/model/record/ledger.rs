//! The ledger of timeline ids: to whom each belongs, and what became of it.

use super::Unknown;
use crate::model::{
    lsn::Lsn,
    node::Replica,
    node_file::Boundary,
    term::Term,
    timeline::{TimelineHistory, TimelineId},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `timeline/<n>`: who may use, or used, this timeline id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimelineRecord {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// To whom it belongs.
    pub owner: Replica,
    /// The claim in which it was reserved.
    pub term: Term,
    /// The timeline it leaves; `None` for the first.
    pub parent: Option<TimelineId>,
    /// Where it leaves it; known once it is used.
    pub switch: Option<Lsn>,
    /// What became of it.
    pub state: TimelineState,
    /// The text of its history file; of a burnt id, a comment.
    pub history: String,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl TimelineRecord {
    /// The entry of `tli` once an operator has chosen a node that is at `on`, with these history files: from then on its history is the cluster's.
    ///
    /// What it came over was used, whatever was believed of it. What others went on with and it cannot reach any more leads nowhere: else its own
    /// history would contradict the ledger, and nobody could take over.
    #[must_use]
    pub fn chosen(&self, tli: TimelineId, on: Boundary, owner: &Replica, histories: &BTreeMap<TimelineId, String>) -> Self {
        let history = |text: &str| text.parse::<TimelineHistory>().unwrap_or_default();
        let line = histories.get(&on.tli).map(|text| history(text)).unwrap_or_default();
        let own = histories.get(&tli).map(|text| (text, history(text))).filter(|(_, forks)| forks.last().is_some());
        match (self.state, own) {
            (TimelineState::Burnt, Some((text, forks))) if tli == on.tli || line.leaves(tli).is_some() => Self {
                owner: if tli == on.tli { owner.clone() } else { self.owner.clone() },
                parent: forks.last().map(|fork| fork.parent),
                switch: forks.last().map(|fork| fork.at),
                state: TimelineState::Used,
                history: text.clone(),
                ..self.clone()
            },
            (TimelineState::Used, _) if tli > on.tli && history(&self.history).leaves(on.tli).is_none_or(|at| at < on.lsn) => Self {
                state: TimelineState::Burnt,
                history: format!("# timeline {tli} was given up for that of {}\n", owner.node),
                ..self.clone()
            },
            _ => self.clone(),
        }
    }
}

/// What became of a timeline id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimelineState {
    /// Given out; somebody may be promoting to it.
    Reserved,
    /// A primary served on it.
    Used,
    /// Never to be used.
    Burnt,
}

/// `timeline/base`: the timelines that were there before us, in one value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseTimelines {
    /// Format version.
    #[serde(default = "super::version")]
    pub v: u32,
    /// The timeline on which the cluster was taken over.
    pub newest: TimelineId,
    /// To whom it belonged then.
    pub owner: Replica,
    /// The history files found, by id (the newest included; timeline 1 has none).
    pub histories: BTreeMap<TimelineId, String>,
    /// Unknown fields.
    #[serde(flatten)]
    pub unknown: Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).expect("timeline")
    }

    fn entry(state: TimelineState, history: &str) -> TimelineRecord {
        let owner = Replica::new("n2".parse().expect("name"), "000000a2".parse().expect("id"));
        TimelineRecord {
            v: 1,
            owner,
            term: Term::new(5),
            parent: None,
            switch: None,
            state,
            history: history.to_owned(),
            unknown: Unknown::new(),
        }
    }

    /// n3 is on timeline 3 at 0/3000200; n2 has given that up, and went on with timeline 4.
    fn chosen(number: u32, of: &TimelineRecord) -> TimelineRecord {
        let histories = [(tli(2), "1\t0/1000000\tx\n".to_owned()), (tli(3), "1\t0/1000000\tx\n2\t0/3000100\tx\n".to_owned())].into();
        let owner = Replica::new("n3".parse().expect("name"), "000000a3".parse().expect("id"));
        of.chosen(tli(number), Boundary { tli: tli(3), lsn: Lsn::new(0x300_0200) }, &owner, &histories)
    }

    #[test]
    fn a_history_that_was_given_up_counts_again_with_the_node_that_is_chosen() {
        let after = chosen(3, &entry(TimelineState::Burnt, "# timeline 3 was given up in term 5\n"));
        assert_eq!((after.state, after.owner.node.as_str(), after.parent), (TimelineState::Used, "n3", Some(tli(2))));
        assert_eq!((after.switch, after.history.lines().count()), (Some(Lsn::new(0x300_0100)), 2));
    }

    #[test]
    fn what_others_went_on_with_is_given_up_unless_it_can_still_be_reached() {
        let beside = entry(TimelineState::Used, "1\t0/1000000\tx\n2\t0/3000100\tx\n");
        assert_eq!(chosen(4, &beside).state, TimelineState::Burnt);
        let before = entry(TimelineState::Used, "1\t0/1000000\tx\n2\t0/3000100\tx\n3\t0/3000180\tx\n");
        assert_eq!(chosen(4, &before).state, TimelineState::Burnt, "it left before what the chosen node has");
        let ahead = entry(TimelineState::Used, "1\t0/1000000\tx\n2\t0/3000100\tx\n3\t0/3000280\tx\n");
        assert_eq!(chosen(4, &ahead), ahead);
    }

    #[test]
    fn what_is_no_contradiction_stays() {
        let line = entry(TimelineState::Used, "1\t0/1000000\tx\n");
        assert_eq!(chosen(2, &line), line);
        let burnt = entry(TimelineState::Burnt, "# timeline 4 was given up in term 5\n");
        assert_eq!(chosen(4, &burnt), burnt);
        let given_out = entry(TimelineState::Reserved, "");
        assert_eq!(chosen(4, &given_out), given_out);
    }
}
