//! The highest values that etcd has shown, and what an answer undercuts of them.
//!
//! A restored snapshot has the same cluster id and may have the same raft term (EXP-26), so the records themselves are compared. Only the
//! answer to a request *sent after* the higher value was received says anything: a lagging member's read or a hedged older answer proves
//! nothing.

use super::State;
use crate::model::{moment::Moment, node_file::Floors, records::Records, term::Term};

impl State {
    /// What this answer undercuts of the floors, if it was asked for after they were known (protocol 1.2, *suspect etcd*).
    pub(super) fn undercut(&self, records: &Records, sent: Moment) -> Option<String> {
        let floors = self.known_at(sent)?;
        let uuid = floors.uuid.as_ref()?;
        let Some(cluster) = &records.cluster else {
            return Some(format!("nothing is left under this cluster's prefix; this node knows it with uuid {uuid}"));
        };
        if self.is_foreign(records) {
            return Some(format!("the cluster there has uuid {}, this node belongs to {uuid}", cluster.record.uuid));
        }
        if cluster.record.generation > floors.generation {
            return None;
        }
        let leader = records.leader.as_ref().map(|leader| &leader.record);
        let checks = [
            ("generation", cluster.record.generation, floors.generation),
            ("revision", records.revision, floors.revision),
            ("leader.seq", leader.map_or(0, |leader| leader.seq), floors.seq),
            ("sync.term", records.sync.as_ref().map_or(0, |sync| sync.record.term.get()), floors.sync_term.get()),
            ("term", leader.map_or(0, |leader| leader.term.get()), floors.term.get()),
        ];
        checks.into_iter().find(|(_, there, floor)| there < floor).map(|(what, there, floor)| went_back(what, there, floor))
    }

    /// Whether these are the records of another cluster than this node's.
    pub(super) fn is_foreign(&self, records: &Records) -> bool {
        let ours = self.newest_floors().uuid;
        records.cluster.as_ref().zip(ours).is_some_and(|(cluster, ours)| cluster.record.uuid != ours)
    }

    /// What another node says that has seen more than this one, of the records as they are now.
    pub(super) fn doubted(&self) -> Option<String> {
        let doubt = &self.records.doubt.as_ref()?.record;
        let raised = self.records.cluster.as_ref().is_some_and(|cluster| cluster.record.generation > doubt.generation);
        (doubt.node != self.me.node && !raised).then(|| format!("{} says: {}", doubt.node, doubt.why))
    }

    /// The same of an answer that shows a few keys only: its revision says enough.
    pub(super) fn undercut_by(&self, revision: u64, sent: Moment) -> Option<String> {
        let floor = self.known_at(sent)?.revision;
        (revision < floor).then(|| went_back("revision", revision, floor))
    }

    /// The file's floors, raised by what the believed view shows.
    pub(super) fn newest_floors(&self) -> Floors {
        let Some(cluster) = &self.records.cluster else { return self.file.floors.clone() };
        let leader = self.records.leader.as_ref().map(|leader| &leader.record);
        let now = Floors {
            uuid: Some(cluster.record.uuid.clone()),
            generation: cluster.record.generation,
            revision: self.records.revision,
            seq: leader.map_or(0, |leader| leader.seq),
            sync_term: self.records.sync.as_ref().map_or(Term::ZERO, |sync| sync.record.term),
            term: leader.map_or(Term::ZERO, |leader| leader.term),
        };
        if now.generation > self.file.floors.generation {
            return now;
        }
        let old = &self.file.floors;
        Floors {
            revision: now.revision.max(old.revision),
            seq: now.seq.max(old.seq),
            sync_term: now.sync_term.max(old.sync_term),
            term: now.term.max(old.term),
            ..now
        }
    }

    /// What was known for sure when a question was sent: all that the view has shown, or what the file had noted at our start. A change that a watch
    /// told of meanwhile takes nothing of that away.
    fn known_at(&self, sent: Moment) -> Option<Floors> {
        if sent >= self.floors_at {
            return Some(self.newest_floors());
        }
        let (floors, at) = &self.noted;
        let raised = self.newest_floors().generation > floors.generation;
        (sent >= *at && !raised).then(|| floors.clone())
    }
}

fn went_back(what: &str, there: u64, floor: u64) -> String {
    format!("its {what} is {there}, and this node has seen {floor}: it was restored from an older state, or is not the same etcd")
}
