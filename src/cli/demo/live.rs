//! The screen: one thread draws and reads keys, one does what they say and measures it.

use super::{
    act::Act,
    draw,
    picture::{self, NodePicture, Panel, Picture, Says, WriterPicture},
    report::Report,
    stage::{self, Stage},
    watch::Watch,
};
use crate::{
    cli::exit::Exit,
    clock,
    lab::{Journal, Lab, NotHere, Trial, Walls, Writer},
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// Between two frames.
const FRAME: Duration = Duration::from_millis(100);
/// Between two looks at a fault that is being measured.
const LOOK: Duration = Duration::from_millis(50);
/// Writes that do not come back for so long are reported as such.
const PATIENCE: Span = Span::from_secs(60);
/// How far the writer's rates go back.
const MINUTE: Span = Span::from_secs(60);

/// Said while everybody is on the way back.
const RETURNING: &str = "waits until all nodes stream …";

/// What a key asks for.
enum Order {
    Act(Act),
    HealAll,
}

/// What the working thread shows to the drawing one.
#[derive(Default)]
struct Board {
    busy: Option<String>,
    reports: Vec<Report>,
    active: BTreeMap<Act, String>,
}

/// Runs until the person quits.
///
/// # Errors
/// When the cluster does not come up, or there is no terminal.
pub(super) fn run(lab: &Lab, hold: Span, interrupted: &AtomicBool) -> Result<Exit> {
    let watch = Watch::default();
    thread::scope(|scope| {
        let _watching = watch.start(lab, scope);
        show(lab, &watch, hold, interrupted)
    })
}

fn show(lab: &Lab, watch: &Watch, hold: Span, interrupted: &AtomicBool) -> Result<Exit> {
    let writer = stage::raise(lab, watch, &|text| eprintln!("  {text}"))?;
    let board = Mutex::new(Board::default());
    let (order, orders) = sync_channel(4);
    let mut terminal = ratatui::try_init().context("could not take over the terminal")?;
    let shown = thread::scope(|scope| {
        let work = Work { stage: Stage::new(lab, watch, &writer, hold), board: &board, lab, trial: None, returning: None, back: None };
        scope.spawn(move || work.run(&orders));
        let screen = Screen { lab, watch, writer: &writer, board: &board, since: clock::boot(), disabled: disabled(lab), interrupted };
        let shown = screen.run(&mut terminal, order);
        // The worker may be busy for a while: the terminal is the person's again before that.
        ratatui::restore();
        shown
    });
    shown?;
    let board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !board.reports.is_empty() {
        crate::cli::table::print(&super::report::table(&board.reports))?;
    }
    Ok(Exit::Done)
}

/// The acts that cannot be done in this lab, with why.
fn disabled(lab: &Lab) -> BTreeMap<Act, String> {
    Act::ALL.into_iter().filter_map(|act| lab.can(&act.fault("n1")).err().map(|NotHere(why)| (act, why))).collect()
}

fn lock<'a>(board: &'a Mutex<Board>) -> MutexGuard<'a, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Screen<'a> {
    lab: &'a Lab,
    watch: &'a Watch,
    writer: &'a Writer,
    board: &'a Mutex<Board>,
    since: Moment,
    disabled: BTreeMap<Act, String>,
    interrupted: &'a AtomicBool,
}

impl Screen<'_> {
    /// Draws and reads keys until the person quits. The channel closes with it, which ends the working thread.
    fn run(&self, terminal: &mut ratatui::DefaultTerminal, order: SyncSender<Order>) -> Result<()> {
        let mut panel = Panel::default();
        while !self.interrupted.load(Ordering::SeqCst) {
            let picture = self.picture(panel);
            terminal.draw(|frame| draw::draw(frame, &picture)).context("could not draw")?;
            if !event::poll(FRAME).context("could not read the keyboard")? {
                continue;
            }
            let Event::Key(key) = event::read().context("could not read the keyboard")? else { continue };
            if key.kind != KeyEventKind::Press {
                continue;
            }
            let other = |wanted: Panel| if panel == wanted { Panel::Both } else { wanted };
            match key.code {
                KeyCode::Char('q') => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Char('w') => panel = other(Panel::Why),
                KeyCode::Char('?') => panel = other(Panel::Help),
                KeyCode::Esc => panel = Panel::Both,
                // A full channel means that much is to be done already: the key is not heard.
                KeyCode::Char('h') => drop(order.try_send(Order::HealAll)),
                KeyCode::Char(key) => {
                    if let Some(act) = Act::of(key) {
                        match self.disabled.get(&act) {
                            Some(why) => lock(self.board).busy = Some(format!("{}: {why}", act.words())),
                            None => drop(order.try_send(Order::Act(act))),
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn picture(&self, panel: Panel) -> Picture {
        let now = clock::boot();
        let seen = self.watch.seen().clone();
        let board = lock(self.board);
        let harm = |name: &str| {
            let done = board.active.iter().find(|(act, node)| **act != Act::KillEtcdLeader && *node == name).map(|(act, _)| *act);
            done.and_then(|act| match act {
                Act::PowerOff => Some("off"),
                Act::CutOff => Some("cut off"),
                Act::Freeze => Some("frozen"),
                Act::LoseAgent => Some("no agent"),
                Act::KillPostmaster | Act::KillAgent | Act::KillEtcdLeader => None,
            })
        };
        let node = |node: &crate::lab::Node| NodePicture {
            name: node.name.clone(),
            harm: harm(&node.name),
            says: seen.nodes.get(&node.name).and_then(Option::as_ref).map(|(at, status)| Says::of(status, now.since(*at))),
        };
        Picture {
            up: now.since(self.since),
            hosts: match self.lab.walls() {
                Walls::Namespaces => "hosts: network namespaces".to_owned(),
                Walls::Loopback => "hosts: loopback ports".to_owned(),
            },
            nodes: self.lab.nodes().iter().map(node).collect(),
            etcd: seen.etcd,
            writer: self.writer.look(|journal| writer(journal, now)),
            events: seen.told.into_iter().map(|told| (told.at.since(self.since), told)).collect(),
            report: board.reports.last().cloned(),
            reports: board.reports.len(),
            busy: board.busy.clone(),
            keys: picture::keys(&board.active, &self.disabled),
            panel,
        }
    }
}

fn writer(journal: &Journal, now: Moment) -> WriterPicture {
    const HALF: Span = Span::from_millis(500);
    let begin = now.minus(MINUTE);
    let recent = &journal.acks[journal.acks.partition_point(|ack| ack.at < begin)..];
    let mut rates = vec![0; 120];
    for ack in recent {
        let index = usize::try_from(ack.at.since(begin).as_millis() / HALF.as_millis()).unwrap_or_default();
        if let Some(rate) = rates.get_mut(index) {
            *rate += 1;
        }
    }
    // The newest half second is not over.
    rates.pop();
    let second = now.minus(Span::from_secs(1));
    WriterPicture {
        rate: recent.iter().rev().take_while(|ack| ack.at >= second).count() as u64,
        rates,
        acked: journal.acks.len(),
        to: journal.last().map(|ack| ack.node.clone()),
        gap: journal.last().map_or(Span::ZERO, |ack| now.since(ack.at)),
        longest: recent.first().and_then(|first| journal.longest_gap(first.at, now)).map_or(Span::ZERO, |gap| gap.length()),
    }
}

/// The thread that does what the keys say.
struct Work<'a> {
    stage: Stage<'a>,
    board: &'a Mutex<Board>,
    lab: &'a Lab,
    /// The fault that is being measured.
    trial: Option<(Act, Trial)>,
    /// The reported fault whose victim is on its way back, since when.
    returning: Option<(Trial, Moment)>,
    /// How long a victim that comes back by itself took.
    back: Option<Span>,
}

impl Work<'_> {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let done = match orders.recv_timeout(LOOK) {
                Ok(Order::Act(act)) => self.act(act),
                Ok(Order::HealAll) => self.heal_all(),
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut board = lock(self.board);
            board.active = self.stage.active();
            if let Err(error) = done {
                board.busy = Some(format!("{error:#}"));
            }
        }
    }

    fn say(&self, text: impl Into<String>) {
        lock(self.board).busy = Some(text.into());
    }

    fn act(&mut self, act: Act) -> Result<()> {
        if let Some(node) = self.stage.active().get(&act) {
            self.say(format!("{} …", act.undo_words_with(node).unwrap_or_default()));
            let at = clock::boot();
            self.stage.undo(act)?;
            self.comes_back(at);
            return Ok(());
        }
        self.close()?;
        let words = self.stage.primary().map_or_else(|| act.words().to_owned(), |primary| act.words_with(&primary));
        self.say(format!("{words} …"));
        let trial = self.stage.act(act)?;
        self.say(format!("{}: measuring until writes flow …", trial.injected.fault.name()));
        (self.returning, self.back) = (None, None);
        self.trial = Some((act, trial));
        Ok(())
    }

    /// What failed was given back: from now on it is on its way.
    fn comes_back(&mut self, at: Moment) {
        if let Some((_, trial)) = &self.trial {
            self.returning = Some((trial.clone(), at));
        } else if let Some((_, since)) = &mut self.returning {
            *since = at;
        }
        self.say(RETURNING);
    }

    fn heal_all(&mut self) -> Result<()> {
        self.say("everything is healed …");
        let at = clock::boot();
        self.stage.active().into_keys().try_for_each(|act| self.stage.undo(act))?;
        self.lab.heal_all()?;
        self.comes_back(at);
        Ok(())
    }

    fn look(&mut self) -> Result<()> {
        if let Some((Act::KillPostmaster, trial)) = &self.trial
            && self.back.is_none()
            && self.stage.all_stream()
        {
            self.back = Some(clock::boot().since(trial.at()));
        }
        if let Some((act, trial)) = &self.trial
            && (self.stage.is_over(*act, trial) || clock::boot().since(trial.at()) > PATIENCE)
        {
            self.close()?;
        }
        if self.trial.is_none() {
            self.look_for_return()?;
        }
        Ok(())
    }

    /// Reports the fault that is being measured.
    fn close(&mut self) -> Result<()> {
        let Some((act, trial)) = self.trial.take() else { return Ok(()) };
        let report = self.stage.report(act, &trial)?;
        let mut board = lock(self.board);
        board.reports.push(report);
        board.busy = Some(what_is_left(act, &self.stage.active()));
        drop(board);
        if self.returning.is_none() {
            let at = trial.at();
            self.returning = Some((trial, at));
        }
        Ok(())
    }

    fn look_for_return(&mut self) -> Result<()> {
        let Some((trial, since)) = self.returning.clone() else { return Ok(()) };
        thread::sleep(LOOK);
        if !self.stage.all_stream() {
            return Ok(());
        }
        let back = self.back.take().unwrap_or(clock::boot().since(since));
        self.returning = None;
        self.stage.end_islands();
        let newest = lock(self.board).reports.last().cloned();
        if let Some(mut report) = newest {
            self.stage.judge(&mut report, &trial)?;
            report.back = Some(back).filter(|_| report.act.breaks_streaming());
            let mut board = lock(self.board);
            if let Some(last) = board.reports.last_mut() {
                *last = report;
            }
            board.busy = None;
        }
        Ok(())
    }
}

/// What a reported fault still needs: to be taken back, or only time.
fn what_is_left(act: Act, active: &BTreeMap<Act, String>) -> String {
    let undo = active.get(&act).and_then(|node| act.undo_words_with(node));
    undo.map_or_else(|| RETURNING.to_owned(), |undo| format!("press {} to {undo}", act.key()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_after_a_report_names_the_key_only_where_something_has_to_be_taken_back() {
        let active = BTreeMap::from([(Act::PowerOff, "n1".to_owned()), (Act::KillEtcdLeader, String::new())]);
        assert_eq!(what_is_left(Act::PowerOff, &active), "press p to power on n1");
        assert_eq!(what_is_left(Act::KillEtcdLeader, &active), "press e to start etcd's member");
        assert_eq!(what_is_left(Act::KillPostmaster, &active), RETURNING);
        assert_eq!(what_is_left(Act::Freeze, &active), RETURNING);
    }
}
