//! What PostgreSQL says in its present run, what it is configured to follow, and whom it hears.

use super::{State, processes::running};
use crate::{
    decide::decision::Configuration,
    model::{
        instance::{Run, ServerFacts, ServerRole},
        moment::Moment,
        node::Replica,
        node_file::Boundary,
        observed::Observed,
    },
};

impl State {
    pub(super) fn server(&mut self, facts: ServerFacts, asked: Moment, now: Moment) {
        // There are two who look: the older answer may come last.
        if matches!(&self.server, Observed::Known { value, at } if value.run == facts.run && *at > asked) {
            return;
        }
        match &facts.role {
            ServerRole::Primary { tli, insert, flush } => {
                if let Some((_, inserted)) = self.inserted.filter(|(run, inserted)| *run == facts.run && inserted.lsn <= *flush) {
                    self.learn_boundary(inserted);
                }
                self.inserted = Some((facts.run, Boundary { tli: *tli, lsn: *insert }));
                self.note_replies(&facts, now);
            }
            ServerRole::Standby { tli, receive, replay, .. } => {
                self.learn_boundary(Boundary { tli: *tli, lsn: *replay });
                if let Some(received) = receive {
                    if self.received.is_none_or(|(run, before)| run == facts.run && before < *received) {
                        self.received_at = Some(now);
                    }
                    self.received = Some((facts.run, *received));
                }
            }
        }
        self.inconsistent_since = None;
        self.server = Observed::known(facts, asked);
        self.learn_boundary_from_leader();
    }

    pub(super) fn server_silent(&mut self, run: Run, why: String, inconsistent: bool, now: Moment) {
        let lives = self.guard.value().is_some_and(|guard| running(&guard.process) == Some(run));
        if inconsistent && lives {
            self.inconsistent_since.get_or_insert(now);
        }
        if self.server.value().is_none_or(|facts| facts.run == run) {
            self.server.lost(now, why);
        }
    }

    pub(super) fn configured(&mut self, configuration: Configuration, now: Moment) {
        let same = self.configured.as_ref().is_some_and(|before| before.follow == configuration.follow);
        if !same {
            self.stream_changed(now);
        }
        if self.configured.as_ref().is_none_or(|before| before.sync_names != configuration.sync_names) {
            // What new sessions showed was before that, and so is what is being looked for now.
            (self.shown, self.names_changed) = (None, now);
        }
        self.configured = Some(configuration);
    }

    pub(super) fn stream_cut(&mut self, now: Moment) {
        self.stream_changed(now);
        if let Some(configured) = &mut self.configured {
            configured.follow = None;
        }
    }

    /// A replica has confirmed something when its row says something new.
    fn note_replies(&mut self, facts: &ServerFacts, now: Moment) {
        for row in facts.walsenders.iter().filter(|row| row.streaming) {
            let Some(replica) = Replica::from_application_name(&row.application_name) else { continue };
            let said = (row.reply, row.flush);
            if self.replies.insert(replica.clone(), said) != Some(said) {
                self.confirmed.insert(replica, now);
            }
        }
    }

    fn stream_changed(&mut self, now: Moment) {
        self.whole = None;
        self.stream_changed = now;
    }
}

/// Whether a sample differs from the one before by the time of replicas' messages alone.
pub(super) fn is_idle_repetition(known: &ServerFacts, facts: &ServerFacts) -> bool {
    let quiet = |facts: &ServerFacts| {
        let mut facts = facts.clone();
        for row in &mut facts.walsenders {
            (row.reply, row.replay_ms) = (None, None);
        }
        facts.waiting = None;
        facts
    };
    quiet(known) == quiet(facts)
}
