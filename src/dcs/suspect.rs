//! Has etcd lost what it once said? What an answer shows, against the highest values that earlier answers showed.
//!
//! Pure. A restored snapshot has the same cluster id and may have the same raft term (EXP-26), so the records themselves are
//! compared. Only the answer to a request *sent after* the higher value was received says anything: a lagging member's read
//! or a hedged older answer proves nothing.

use crate::model::{moment::Moment, node::Incarnation, node_file::Floors, records::Records, term::Term};
use std::fmt;

/// What is wrong with an answer. While anything is, nobody claims or renews.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing stands where a cluster stood.
    EmptyPrefix,
    /// The records are those of another cluster.
    OtherCluster {
        /// The uuid that we know.
        known: Incarnation,
        /// The uuid that is shown.
        shown: Incarnation,
    },
    /// A count is lower than it was.
    WentBack {
        /// Which.
        what: Count,
        /// The highest seen.
        floor: u64,
        /// What the answer shows; 0 where the record is missing.
        shown: u64,
    },
}

/// A count that never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// etcd's revision.
    Revision,
    /// `cluster.generation`.
    Generation,
    /// `term`.
    Term,
    /// `leader.seq`.
    LeaderSeq,
    /// `sync.term`.
    SyncTerm,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Revision => "etcd's revision",
            Self::Generation => "the cluster's generation",
            Self::Term => "the term",
            Self::LeaderSeq => "the lease's sequence",
            Self::SyncTerm => "the term of sync",
        })
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyPrefix => f.write_str("nothing stands under the prefix where a cluster stood"),
            Self::OtherCluster { known, shown } => write!(f, "the records are of cluster {shown}, not of {known}"),
            Self::WentBack { what, floor, shown } => write!(f, "{what} is {shown} and was {floor}"),
        }
    }
}

/// The highest values that linearizable answers showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// As the node file keeps them.
    pub floors: Floors,
    /// The highest term that such an answer showed.
    pub term: Term,
    /// When the newest raise was received; zero for what the file says.
    pub raised_at: Moment,
}

impl Marks {
    /// What the node file remembers from before this process.
    pub const fn remembered(floors: Floors, term: Term) -> Self {
        Self { floors, term, raised_at: Moment::ZERO }
    }

    /// What is wrong with a linearizable answer that shows `records` (complete, with its revision) and was sent at `sent_at`.
    /// Empty: nothing, or the answer is too old to say.
    pub fn check(&self, records: &Records, sent_at: Moment) -> Vec<Suspicion> {
        if self.raised_at > Moment::ZERO && sent_at <= self.raised_at {
            return Vec::new();
        }
        let Some(known) = &self.floors.uuid else { return self.went_back(Count::Revision, self.floors.revision, records.revision) };
        if records.is_blank() {
            return vec![Suspicion::EmptyPrefix];
        }
        let mut found = Vec::new();
        let cluster = records.cluster.as_ref().map(|stored| &stored.record);
        if let Some(shown) = cluster.map(|cluster| &cluster.uuid).filter(|shown| *shown != known) {
            found.push(Suspicion::OtherCluster { known: known.clone(), shown: shown.clone() });
        }
        let shown = Shown::of(records);
        found.extend(self.went_back(Count::Generation, self.floors.generation, shown.generation));
        found.extend(self.went_back(Count::Term, self.term.get(), shown.term.get()));
        // `etcd recover` raises the generation, at which revision, seq and S start anew.
        if shown.generation <= self.floors.generation {
            found.extend(self.went_back(Count::Revision, self.floors.revision, records.revision));
            found.extend(self.went_back(Count::LeaderSeq, self.floors.seq, shown.seq));
            found.extend(self.went_back(Count::SyncTerm, self.floors.sync_term.get(), shown.sync_term.get()));
        }
        found
    }

    fn went_back(&self, what: Count, floor: u64, shown: u64) -> Vec<Suspicion> {
        if shown < floor { vec![Suspicion::WentBack { what, floor, shown }] } else { Vec::new() }
    }

    /// Raises the marks to what a linearizable answer, received at `received`, shows and [`Marks::check`] found nothing wrong with.
    ///
    /// Returns whether anything rose.
    pub fn raise(&mut self, records: &Records, received: Moment) -> bool {
        let before = (self.floors.clone(), self.term);
        let shown = Shown::of(records);
        if shown.generation > self.floors.generation {
            self.floors =
                Floors { uuid: self.floors.uuid.take(), generation: shown.generation, revision: 0, seq: 0, sync_term: Term::ZERO };
        }
        if self.floors.uuid.is_none() {
            self.floors.uuid = records.cluster.as_ref().map(|stored| stored.record.uuid.clone());
        }
        self.floors.revision = self.floors.revision.max(records.revision);
        self.floors.seq = self.floors.seq.max(shown.seq);
        self.floors.sync_term = self.floors.sync_term.max(shown.sync_term);
        self.term = self.term.max(shown.term);
        let rose = (&self.floors, self.term) != (&before.0, before.1);
        if rose {
            self.raised_at = received;
        }
        rose
    }
}

/// The counts that records show; zero where a record is missing.
struct Shown {
    generation: u64,
    term: Term,
    seq: u64,
    sync_term: Term,
}

impl Shown {
    fn of(records: &Records) -> Self {
        Self {
            generation: records.cluster.as_ref().map_or(0, |stored| stored.record.generation),
            term: records.term.as_ref().map_or(Term::ZERO, |stored| stored.record.term),
            seq: records.leader.as_ref().map_or(0, |stored| stored.record.seq),
            sync_term: records.sync.as_ref().map_or(Term::ZERO, |stored| stored.record.term),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{key::Key, moment::Span};

    const UUID: &str = "11111111-1111-1111-1111-111111111111";

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Span::from_millis(millis))
    }

    fn cluster(uuid: &str, generation: u64) -> String {
        format!(
            "{{\"v\":1,\"system_id\":\"7\",\"uuid\":\"{uuid}\",\"generation\":{generation},\"initialised_by\":\"a\",\
             \"initialised_at\":\"now\"}}"
        )
    }

    fn records(revision: u64, uuid: &str, generation: u64, term: u64) -> Records {
        let mut records = Records::default();
        records.apply(&Key::Cluster, Some(&cluster(uuid, generation)), revision);
        let holder = "{\"node\":\"a\",\"data\":\"0123abcd\"}";
        records.apply(&Key::Term, Some(&format!("{{\"v\":1,\"term\":{term},\"holder\":{holder}}}")), revision);
        assert!(records.unreadable.is_empty(), "{:?}", records.unreadable);
        records
    }

    fn marks() -> Marks {
        let mut marks = Marks::default();
        assert!(marks.raise(&records(100, UUID, 1, 5), at(10)));
        marks
    }

    #[test]
    fn an_answer_that_keeps_up_is_not_suspect() {
        let mut marks = marks();
        assert_eq!(marks.check(&records(100, UUID, 1, 5), at(11)), Vec::new());
        assert!(!marks.raise(&records(100, UUID, 1, 5), at(12)));
        assert!(marks.raise(&records(101, UUID, 1, 5), at(13)));
        assert_eq!(marks.raised_at, at(13));
    }

    /// Scenario 39.
    #[test]
    fn a_lower_count_is_suspect() {
        let found = marks().check(&records(99, UUID, 1, 4), at(11));
        let back = |what, floor, shown| Suspicion::WentBack { what, floor, shown };
        assert_eq!(found, vec![back(Count::Term, 5, 4), back(Count::Revision, 100, 99)]);
    }

    #[test]
    fn an_answer_that_was_sent_before_the_higher_value_came_says_nothing() {
        assert_eq!(marks().check(&records(50, UUID, 1, 1), at(10)), Vec::new());
    }

    #[test]
    fn what_the_file_remembers_counts_from_the_first_answer_on() {
        let remembered = Marks::remembered(marks().floors, Term::new(5));
        assert!(!remembered.check(&records(50, UUID, 1, 5), at(1)).is_empty());
    }

    /// Scenario 40.
    #[test]
    fn an_empty_prefix_is_suspect_where_a_cluster_stood() {
        let empty = Records { revision: 200, ..Records::default() };
        assert_eq!(marks().check(&empty, at(11)), vec![Suspicion::EmptyPrefix]);
        assert_eq!(Marks::default().check(&empty, at(11)), Vec::new());
    }

    /// Scenario 54.
    #[test]
    fn the_records_of_another_cluster_are_suspect() {
        let other = "22222222-2222-2222-2222-222222222222";
        let found = marks().check(&records(200, other, 1, 9), at(11));
        let known = UUID.parse().expect("uuid");
        assert_eq!(found, vec![Suspicion::OtherCluster { known, shown: other.parse().expect("uuid") }]);
    }

    #[test]
    fn a_higher_generation_lowers_the_floors_but_not_the_term() {
        let mut marks = marks();
        assert_eq!(marks.check(&records(3, UUID, 2, 6), at(11)), Vec::new());
        assert_eq!(marks.check(&records(3, UUID, 2, 4), at(11)).len(), 1);
        assert!(marks.raise(&records(3, UUID, 2, 6), at(12)));
        assert_eq!((marks.floors.revision, marks.floors.generation, marks.term), (3, 2, Term::new(6)));
        assert_eq!(marks.check(&records(200, UUID, 1, 6), at(13)).len(), 1, "the generation went back");
    }
}
