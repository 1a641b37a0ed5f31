//! The guard: owner of PostgreSQL and of the deadline (protocol 1.5).

use super::{Mutation, node::Guard, world::World};
use crate::{
    agent::event::Event,
    model::{
        instance::{Armed, Cut, Run, StartAs},
        moment::Moment,
        node::Address,
        policy::PROMOTION_MARGIN,
        term::Term,
    },
};
use std::collections::BTreeSet;

impl World {
    /// Pushes the guard's status to the agent in session.
    pub(super) fn tell_guard(&mut self, node: usize) {
        let runs = self.nodes[node].guard.as_ref().filter(|guard| guard.stopped_until == 0);
        let Some(run) = runs.and_then(|guard| guard.session) else { return };
        let Some(status) = self.nodes[node].guard_status() else { return };
        self.deliver_after(node, run, 200_000, Event::Guard(status));
    }

    pub(super) fn start_guard(&mut self, node: usize, run: u64) {
        if self.nodes[node].guard.is_none() {
            let incarnation = self.name("g");
            let guard = Guard {
                incarnation,
                term: Term::ZERO,
                armed: None,
                primary_of: None,
                last: None,
                session: None,
                connection: 0,
                knocking: None,
                stopped_until: 0,
                stops_for: (0, None),
                unread: Vec::new(),
                halted: Vec::new(),
                runs: 0,
                starting: false,
                cut: Cut::From(BTreeSet::new()),
                kernel: BTreeSet::new(),
            };
            self.nodes[node].guard = Some(guard);
            let who = self.nodes[node].who();
            self.trace.line(self.now, &who, "guard starts");
        }
        self.attach(node, run);
    }

    /// A session is given to the agent that lives; the former one is dead.
    pub(super) fn attach(&mut self, node: usize, run: u64) {
        if self.nodes[node].agent_run() != Some(run) {
            return;
        }
        let connection = self.token();
        let Some(guard) = &mut self.nodes[node].guard else { return };
        if guard.session != Some(run) && guard.stopped_until > 0 {
            guard.knocking = Some(run);
            return;
        }
        if guard.session != Some(run) {
            (guard.session, guard.connection) = (Some(run), connection);
        }
        self.tell_guard(node);
    }

    /// The guard is killed; the kernel kills everything that it owns.
    pub(super) fn kill_guard(&mut self, node: usize, why: &str) {
        let Some(guard) = self.nodes[node].guard.take() else { return };
        let who = self.nodes[node].who();
        self.trace.line(self.now, &who, &format!("guard is gone: {why}"));
        if let Some(run) = guard.session.or(guard.knocking) {
            self.deliver_after(node, run, 300_000, Event::GuardGone { why: why.to_owned() });
        }
        for unread in guard.unread.iter().filter(|unread| guard.session == Some(unread.run) && unread.connection == guard.connection) {
            let outcome = Err("its guard is gone".to_owned());
            self.deliver_after(node, unread.run, 400_000, Event::Done { task: unread.task, outcome });
        }
        let bound = self.dies_within();
        let longest = if self.random.chance(50) { bound * 8 / 10 } else { 20 };
        let takes = self.random.millis(2, longest);
        if let Some(server) = &mut self.nodes[node].server {
            server.postmaster = false;
            server.upstream = None;
            let id = server.id;
            self.later_at(node, takes, move |world| {
                if world.server_of(node, id).is_some() {
                    world.end_server(node, "signal 9", false);
                }
            });
        }
    }

    /// The guard, where it has heard of no higher term.
    fn listening_guard(&mut self, node: usize, term: Term) -> Result<&mut Guard, String> {
        let guard = self.nodes[node].guard.as_mut().ok_or("no guard")?;
        if term < guard.term {
            return Err(format!("term {term} is below {}", guard.term));
        }
        Ok(guard)
    }

    /// The kernel lets nothing pass between this host and these servers: what streams from them is cut off at once.
    pub(super) fn cut_off(&mut self, node: usize, from: BTreeSet<Address>) -> Result<(), String> {
        let (fails, done) = (self.has_bad_luck(30), self.random.chance(500));
        let guard = self.nodes[node].guard.as_mut().ok_or("no guard")?;
        if fails {
            // The errand was killed: it may have come to its end.
            guard.cut = Cut::Unknown;
            if done {
                guard.kernel = from;
            }
            return Err("the helper process died".to_owned());
        }
        guard.cut = Cut::From(from.clone());
        guard.kernel = from;
        let upstream = self.nodes[node].server.as_ref().and_then(|server| server.upstream_node());
        if upstream.is_some_and(|to| self.is_cut_off(node, to))
            && let Some(server) = &mut self.nodes[node].server
        {
            server.drop_upstream();
        }
        Ok(())
    }

    /// Whether the kernel of `node` lets nothing pass between it and PostgreSQL on `to`.
    pub(super) fn is_cut_off(&self, node: usize, to: usize) -> bool {
        let address = self.nodes[to].address();
        let cut = self.nodes[node].guard.as_ref().is_some_and(|guard| guard.kernel.contains(&address));
        !matches!(self.options.mutation, Mutation::SettingsAlone | Mutation::CutBelieved) && cut
    }

    /// A deadline that lies in the past fires at once.
    pub(super) fn arm(&mut self, node: usize, term: Term, until: Moment) -> Result<(), String> {
        self.judge_deadline(node, until);
        let guard = self.listening_guard(node, term)?;
        guard.term = term;
        let later = guard.armed.map(|armed| armed.until).filter(|before| *before > until);
        guard.armed = Some(Armed { term, until });
        if let (Some(later), Mutation::LateArm) = (later, self.options.mutation) {
            self.nodes[node].late_until = later;
        }
        self.watch_deadline(node);
        Ok(())
    }

    /// The kernel's timer runs by the host's clock, however fast that runs.
    pub(super) fn watch_deadline(&mut self, node: usize) {
        let Some(guard) = self.nodes[node].guard.as_ref() else { return };
        let (Some(armed), incarnation) = (guard.armed, guard.incarnation.clone()) else { return };
        let at = self.nodes[node].clock.real(armed.until).max(self.now);
        self.later_at(node, at - self.now, move |world| {
            let armed = world.nodes[node].guard.as_ref().filter(|guard| guard.incarnation == incarnation).and_then(|guard| guard.armed);
            let Some(armed) = armed else { return };
            let now = world.nodes[node].clock.boot(world.now);
            if armed.until > now {
                return;
            }
            if world.nodes[node].late_until > now {
                let after = world.nodes[node].clock.real(world.nodes[node].late_until).saturating_sub(world.now);
                world.later_at(node, after, move |world| world.watch_deadline(node));
                return;
            }
            if world.options.mutation != Mutation::DeafGuard {
                world.coverage.deadlines += 1;
                world.kill_guard(node, "the deadline passed");
            }
        });
    }

    pub(super) fn disarm(&mut self, node: usize, term: Term, paused: bool) -> Result<(), String> {
        let primary =
            self.nodes[node].server.as_ref().is_some_and(|server| server.primary || server.promoting || server.start == StartAs::Primary);
        let guard = self.listening_guard(node, term)?;
        if primary && !paused {
            return Err("a primary lives: its deadline stays".to_owned());
        }
        guard.armed = None;
        Ok(())
    }

    /// What a promotion and a start as primary need.
    fn margin(&self, node: usize, term: Term) -> Result<(), String> {
        let Some(guard) = &self.nodes[node].guard else { return Err("no guard".to_owned()) };
        let least = self.nodes[node].clock.boot(self.now).plus(PROMOTION_MARGIN);
        if guard.armed.is_some_and(|armed| armed.term == term && armed.until >= least) {
            return Ok(());
        }
        Err(format!("no deadline of term {term} is armed that is at least {PROMOTION_MARGIN} away"))
    }

    pub(super) fn start_postgres(&mut self, node: usize, start: StartAs, term: Term) -> Result<(), String> {
        if self.nodes[node].server.is_some() {
            return Err("PostgreSQL runs already".to_owned());
        }
        if self.nodes[node].guard.as_ref().is_some_and(|guard| guard.starting) {
            return Err("another start is being prepared".to_owned());
        }
        if self.nodes[node].disk.is_none() {
            return Err("the data directory is not there".to_owned());
        }
        if start == StartAs::Primary {
            self.margin(node, term)?;
        }
        let guard = self.listening_guard(node, term)?;
        guard.term = term;
        guard.runs += 1;
        guard.primary_of = (start == StartAs::Primary).then_some(term);
        guard.starting = true;
        let run = Run(guard.runs);
        if start == StartAs::Primary {
            self.judge_authority(node, term, "a start as primary");
        }
        // Files are looked at, and written, before there is a process.
        let slow = if self.has_bad_luck(100) { 60 } else { 1 };
        let takes = self.random.millis(1, 20 * slow);
        let of = self.nodes[node].guard.as_ref().map(|guard| guard.incarnation.clone());
        self.in_guard(node, takes, move |world| {
            let Some(guard) = world.nodes[node].guard.as_mut().filter(|guard| Some(&guard.incarnation) == of.as_ref()) else { return };
            guard.starting = false;
            if start == StartAs::Standby || world.margin(node, term).is_ok() {
                world.launch(node, run, start);
            }
            world.tell_guard(node);
        });
        Ok(())
    }

    pub(super) fn promote(&mut self, node: usize, term: Term) -> Result<(), String> {
        self.margin(node, term)?;
        if self.nodes[node].server.as_ref().is_none_or(|server| !server.ready || server.primary || !server.postmaster) {
            return Err("PostgreSQL is not in recovery".to_owned());
        }
        let guard = self.listening_guard(node, term)?;
        (guard.term, guard.primary_of) = (term, Some(term));
        self.judge_authority(node, term, "a promotion");
        self.promote_server(node);
        self.tell_guard(node);
        Ok(())
    }
}
