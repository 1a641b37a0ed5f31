//! One PostgreSQL, from start to verified end, over and over: the states of its process tree and what moves them.

use super::{
    StartCommand,
    data_dir::{FileIdentity, Phase},
    errand::{Errand, Found, Server},
    keeper::{self, Load},
    kernel,
    launch::{Launch, Owner},
    life::Life,
    reaper,
};
use crate::model::{
    instance::{Ended, KillMode, Process, Run, StartAs, StopMode},
    moment::{Moment, Span},
    term::Term,
};
use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

/// How often a dying tree, or what a former guard left, is looked at.
const LOOK_AGAIN: Span = Span::from_millis(5);

/// To whom an answer is owed: a connection and its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) connection: u64,
    pub(super) id: u64,
}

/// A start that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) ticket: Ticket,
    pub(super) start: StartAs,
    pub(super) term: Term,
    pub(super) command: StartCommand,
}

/// What a turn brought about.
pub(super) enum Event {
    /// The way is clear: check the term and the deadline once more and [`Instance::launch`].
    Prepared(Box<Prepared>),
    /// A request is answered.
    Answer(Ticket, Result<(), String>),
    /// A promotion was not begun, for certain.
    NotPromoted(Ticket, String),
}

/// A start whose preparations are done.
pub(super) struct Prepared {
    pub(super) wish: Wish,
    found: Found,
    log: OwnedFd,
}

/// PostgreSQL under this guard.
pub(super) struct Instance {
    data_dir: PathBuf,
    kill: KillMode,
    /// Held open by every keeper.
    lock: OwnedFd,
    runs: u64,
    state: State,
    work: Option<(Task, Errand)>,
    /// A start that waits for an errand to end.
    next: Option<Wish>,
    /// What became of starts that were called off.
    answers: Vec<Event>,
}

enum State {
    /// Processes of this data directory live that this guard did not start.
    Foreign,
    Empty {
        last: Option<Ended>,
    },
    Alive(Box<Life>),
}

enum Task {
    Prepare(Wish),
    /// A start that was called off while it was prepared.
    CallOff(Wish),
    Promote(Ticket),
    Restore,
    /// After which run.
    Settle(Run),
}

impl Instance {
    /// PostgreSQL of `data_dir`, at first as it is found.
    pub(super) fn new(data_dir: PathBuf, kill: KillMode, lock: OwnedFd) -> Self {
        let state = if reaper::is_free(&data_dir) { State::Empty { last: None } } else { State::Foreign };
        Self { data_dir, kill, lock, runs: 0, state, work: None, next: None, answers: Vec::new() }
    }

    /// As the status tells it. Processes that another started count as run 0, dying, until they are gone.
    pub(super) fn process(&self) -> Process {
        match &self.state {
            State::Foreign => Process::Dying { run: Run(0) },
            State::Empty { last } => Process::Empty { last: last.clone() },
            State::Alive(life) if life.dying.is_some() => Process::Dying { run: life.run },
            State::Alive(life) => Process::Running { run: life.run, start: life.start, stopping: life.stopping.map(|(mode, _)| mode) },
        }
    }

    /// Whether a start was accepted and is being prepared.
    pub(super) fn is_starting(&self) -> bool {
        self.next.is_some() || matches!(self.work, Some((Task::Prepare(_), _)))
    }

    /// Whether some process may live.
    pub(super) fn lives(&self) -> bool {
        !matches!(self.state, State::Empty { .. })
    }

    /// Nothing of ours lives, and nothing is being done on files.
    pub(super) fn is_at_rest(&self) -> bool {
        !matches!(self.state, State::Alive(_)) && self.work.is_none() && self.next.is_none() && self.answers.is_empty()
    }

    /// Begins a start: preparations first. Its answer comes as an [`Event`].
    pub(super) fn start(&mut self, wish: Wish) -> Result<(), String> {
        match &self.state {
            State::Empty { .. } if self.next.is_some() || matches!(self.work, Some((Task::Prepare(_) | Task::CallOff(_), _))) => {
                Err("another start is being prepared".to_owned())
            }
            State::Empty { .. } => {
                self.next = Some(wish);
                Ok(())
            }
            State::Foreign => {
                let pids: Vec<String> = reaper::seen_of_data_dir(&self.data_dir).iter().map(ToString::to_string).collect();
                let here = self.data_dir.display();
                Err(if pids.is_empty() {
                    format!(
                        "whether PostgreSQL runs on {here} cannot be told: this guard may not look at processes (CAP_SYS_PTRACE lets it)"
                    )
                } else {
                    format!("PostgreSQL runs on {here} outside this guard (processes {})", pids.join(", "))
                })
            }
            State::Alive(life) => Err(format!("run {} is not over", life.run.0)),
        }
    }

    /// Starts the processes.
    pub(super) fn launch(&mut self, prepared: Prepared) -> Result<(), String> {
        let Prepared { wish, found, log } = prepared;
        let owner = Owner { uid: wish.command.uid, gid: wish.command.gid, groups: found.groups };
        let log_path = wish.command.log_file.clone();
        let load = Load::Server(Box::new(Launch { command: wish.command, owner: owner.clone(), log }));
        let started = keeper::start(self.kill, load, Some(self.lock.as_fd()));
        self.runs += 1;
        let run = Run(self.runs);
        let keeper = started.inspect_err(|_| self.settle(&owner, 0, None, &log_path, found.log_length, run))?;
        self.state = State::Alive(Box::new(Life {
            run,
            start: wish.start,
            keeper,
            postmaster: None,
            stopping: None,
            wanted: false,
            dying: None,
            how: None,
            keeper_ended: None,
            found_none: 0,
            restoring: wish.start == StartAs::Standby,
            owner,
            log: log_path,
            log_length: found.log_length,
            not: found.lock,
        }));
        Ok(())
    }

    /// A start whose preparations are done, but which may not be: `standby.signal` goes back.
    pub(super) fn abandon(&mut self, prepared: &Prepared) {
        let command = &prepared.wish.command;
        let owner = Owner { uid: command.uid, gid: command.gid, groups: prepared.found.groups.clone() };
        self.settle(&owner, 0, None, &command.log_file, prepared.found.log_length, Run(0));
    }

    fn settle(&mut self, owner: &Owner, pid: i32, not: Option<FileIdentity>, log: &std::path::Path, log_length: u64, run: Run) {
        let server = Server { data_dir: self.data_dir.clone(), pid, not };
        match Errand::settle(owner, &server, log, log_length) {
            Ok(errand) => self.send(Task::Settle(run), errand),
            Err(why) => tracing::error!(run = run.0, reason = why, "could not put standby.signal back"),
        }
    }

    fn send(&mut self, task: Task, errand: Errand) {
        if let Some((_, former)) = self.work.replace((task, errand)) {
            former.cancel();
        }
    }

    /// Begins a stop, or makes one that goes on harder or due at another time. Nothing to do where nothing runs.
    pub(super) fn stop(&mut self, mode: StopMode, deadline: Moment) {
        self.call_off();
        let State::Alive(life) = &mut self.state else { return };
        life.wanted = true;
        life.stopping = Some((mode, deadline));
        life.signal_stop();
    }

    /// Kills everything of this data directory. Nothing to do where nothing lives.
    pub(super) fn kill(&mut self, now: Moment) {
        self.call_off();
        match &mut self.state {
            State::Empty { .. } => {}
            State::Foreign => reaper::kill_of_data_dir(&self.data_dir),
            State::Alive(life) => {
                life.wanted = true;
                life.dying.get_or_insert(now);
                life.kill(self.kill);
            }
        }
    }

    /// A stop or a kill also ends a start that has no process yet.
    fn call_off(&mut self) {
        if let Some(wish) = self.next.take() {
            self.answers.push(Event::Answer(wish.ticket, Err("a stop has called this start off".to_owned())));
        }
        self.work = match self.work.take() {
            Some((Task::Prepare(wish), errand)) => Some((Task::CallOff(wish), errand)),
            other => other,
        };
    }

    /// Begins a promotion. Its answer comes as an [`Event`].
    pub(super) fn promote(&mut self, ticket: Ticket) -> Result<(), String> {
        let State::Alive(life) = &self.state else { return Err("PostgreSQL does not run".to_owned()) };
        let Some((_, pid)) = &life.postmaster else { return Err("the postmaster has not started yet".to_owned()) };
        if life.start == StartAs::Primary {
            return Err("PostgreSQL was started as primary".to_owned());
        }
        if life.dying.is_some() || life.stopping.is_some() {
            return Err("PostgreSQL is being stopped".to_owned());
        }
        if matches!(self.work, Some((Task::Promote(_), _))) {
            return Err("a promotion is under way".to_owned());
        }
        let server = Server { data_dir: self.data_dir.clone(), pid: *pid, not: life.not };
        let errand = Errand::promote(&life.owner, &server)?;
        self.send(Task::Promote(ticket), errand);
        Ok(())
    }

    /// What to wait for.
    pub(super) fn watched(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds: Vec<BorrowedFd<'_>> = self.work.iter().map(|(_, errand)| errand.channel()).collect();
        if let State::Alive(life) = &self.state {
            if life.keeper_ended.is_none() {
                fds.push(life.keeper.channel.as_fd());
            }
            if let (Some((pidfd, _)), None) = (&life.postmaster, life.dying) {
                fds.push(pidfd.as_fd());
            }
        }
        fds
    }

    /// When to look again, if nothing happens before.
    pub(super) fn wake_at(&self, now: Moment) -> Option<Moment> {
        match &self.state {
            State::Empty { .. } => self.next.as_ref().filter(|_| self.work.is_none()).map(|_| now),
            State::Foreign => Some(now.plus(LOOK_AGAIN.times(10))),
            State::Alive(life) if life.dying.is_some() => Some(now.plus(LOOK_AGAIN)),
            State::Alive(life) => life.stopping.map(|(_, deadline)| deadline),
        }
    }

    /// Looks at everything once; never waits. `other`: a child of the guard that is none of PostgreSQL's.
    pub(super) fn turn(&mut self, now: Moment, other: Option<Pid>) -> Vec<Event> {
        let no_children = self.reap();
        let mut events = std::mem::take(&mut self.answers);
        events.extend(self.finished());
        match &mut self.state {
            State::Foreign if reaper::is_free(&self.data_dir) => self.state = State::Empty { last: None },
            State::Foreign | State::Empty { .. } => {}
            State::Alive(life) => {
                life.listen();
                life.push_on(self.kill, now);
                let spared: Vec<Pid> = self.work.iter().map(|(_, errand)| errand.pid).chain(other).collect();
                let is_over = life.is_over(self.kill, no_children, &spared);
                let opens = life.postmaster.is_some() && !life.restoring;
                life.restoring |= opens;
                if is_over {
                    self.end();
                } else if opens {
                    self.restore();
                }
            }
        }
        events.extend(self.prepare_next());
        events
    }

    /// Reaps every child that has exited; says whether none is left at all.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Err(Errno::ECHILD) => return true,
                Ok(WaitStatus::StillAlive) | Err(_) => return false,
                Ok(status) => {
                    if let State::Alive(life) = &mut self.state
                        && status.pid() == Some(life.keeper.pid)
                    {
                        life.keeper_ended = Some(status);
                    }
                }
            }
        }
    }

    fn end(&mut self) {
        let State::Alive(mut life) = std::mem::replace(&mut self.state, State::Empty { last: None }) else { return };
        // The keeper's last words may still be in the channel.
        life.listen();
        let unseen = match (life.wanted, &life.postmaster) {
            (true, _) => "killed",
            (false, Some(_)) => "killed with its parent process",
            (false, None) => "its parent process could not start it",
        };
        let how = life.how.take().unwrap_or_else(|| unseen.to_owned());
        tracing::info!(run = life.run.0, reason = how, wanted = life.wanted, "PostgreSQL has ended and no process of it is left");
        self.state = State::Empty { last: Some(Ended { run: life.run, start: life.start, how, wanted: life.wanted }) };
        if let Some((Task::Restore, errand)) = &self.work {
            errand.cancel();
        }
        let pid = life.postmaster.as_ref().map_or(0, |(_, pid)| *pid);
        self.settle(&life.owner, pid, life.not, &life.log, life.log_length, life.run);
    }

    fn prepare_next(&mut self) -> Option<Event> {
        if self.work.is_some() || self.lives() {
            return None;
        }
        let wish = self.next.take()?;
        match Errand::prepare(&wish.command, wish.start) {
            Ok(errand) => {
                self.work = Some((Task::Prepare(wish), errand));
                None
            }
            Err(why) => Some(Event::Answer(wish.ticket, Err(why))),
        }
    }

    /// Takes in the errand's outcome, if it has one.
    fn finished(&mut self) -> Option<Event> {
        let outcome = self.work.as_ref()?.1.outcome()?;
        let (task, _) = self.work.take()?;
        match (task, outcome) {
            (Task::Prepare(wish), Ok((found, Some(log)))) => Some(Event::Prepared(Box::new(Prepared { wish, found, log }))),
            (Task::Prepare(wish), Ok(_)) => Some(Event::Answer(wish.ticket, Err("the helper process brought no log".to_owned()))),
            (Task::Prepare(wish), Err(why)) => Some(Event::Answer(wish.ticket, Err(why))),
            (Task::CallOff(wish), outcome) => {
                if let Ok((found, Some(log))) = outcome {
                    self.abandon(&Prepared { wish: wish.clone(), found, log });
                }
                Some(Event::Answer(wish.ticket, Err("a stop has called this start off".to_owned())))
            }
            (Task::Promote(ticket), Ok((found, _))) => Some(match found.phase {
                Phase::Closed => Event::NotPromoted(ticket, "the server is not in recovery, or does not listen yet".to_owned()),
                Phase::Recovery | Phase::Primary => Event::Answer(ticket, self.signal_promotion(found.phase)),
            }),
            (Task::Promote(ticket), Err(why)) => Some(Event::Answer(ticket, Err(why))),
            (Task::Settle(run), Ok((found, _))) => {
                if let State::Empty { last: Some(last) } = &mut self.state
                    && last.run == run
                    && !found.tail.is_empty()
                {
                    last.how = format!("{}\n{}", last.how, found.tail);
                }
                None
            }
            (Task::Restore, Ok(_)) => None,
            (Task::Restore | Task::Settle(_), Err(why)) => {
                tracing::error!(reason = why, "could not put standby.signal back");
                None
            }
        }
    }

    fn signal_promotion(&mut self, phase: Phase) -> Result<(), String> {
        let State::Alive(life) = &self.state else { return Err("PostgreSQL has ended".to_owned()) };
        let Some((postmaster, _)) = &life.postmaster else { return Err("PostgreSQL has ended".to_owned()) };
        if phase == Phase::Recovery {
            kernel::pidfd_signal(postmaster.as_fd(), Signal::SIGUSR1).map_err(|error| format!("signal the postmaster: {error}"))?;
        }
        self.restore();
        Ok(())
    }

    /// From now on this server is, or becomes, primary: `standby.signal` goes back as soon as that is harmless.
    fn restore(&mut self) {
        let State::Alive(life) = &self.state else { return };
        let Some((_, pid)) = &life.postmaster else { return };
        let server = Server { data_dir: self.data_dir.clone(), pid: *pid, not: life.not };
        match Errand::restore(&life.owner, &server) {
            Ok(errand) => self.send(Task::Restore, errand),
            Err(why) => tracing::error!(reason = why, "could not watch for the end of recovery"),
        }
    }
}
