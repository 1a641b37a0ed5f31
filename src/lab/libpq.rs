//! A second client: libpq with all hosts in its connection string, as an application without an endpoint uses it.
//!
//! `psql` is fed one insert every 10 ms; when an answer takes longer than 200 ms, or `psql` ends, the next one is
//! started. libpq tries the hosts one after the other and waits at least 2 s for one that is silent
//! (PG 15 manual, "connect_timeout"), which is what this row of the report shows.

use super::{
    command::command,
    host::Network,
    journal::{Ack, Indeterminate, Journal},
    sql::{Login, Server},
    writer::{EVERY, GIVE_UP, position},
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// How long `psql` may look for a server that takes writes before it is started anew.
const CONNECTING: Span = Span::from_secs(30);
/// Between two starts of `psql`: more would measure the machine's forks.
const AGAIN: Span = Span::from_millis(50);

/// A libpq client at work. Dropping it stops it too.
#[derive(Debug)]
pub struct LibpqWriter {
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
    thread: Option<JoinHandle<()>>,
}

impl LibpqWriter {
    /// Starts it in a network. `bin_dir` holds `psql`.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(client: &str, network: &Network, servers: Vec<Server>, login: &Login, bin_dir: &Path) -> Result<Self> {
        let (stop, journal) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Journal::new(client))));
        let work = Work {
            argv: argv(network, &servers, login, bin_dir),
            password: login.password.clone(),
            client: client.to_owned(),
            servers,
            stop: stop.clone(),
            journal: journal.clone(),
        };
        let thread = thread::Builder::new().name("lab-libpq".into()).spawn(move || work.run())?;
        Ok(Self { stop, journal, thread: Some(thread) })
    }

    /// Looks at what it has so far.
    pub fn look<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&self.journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops it and takes its journal.
    pub fn stop(mut self) -> Journal {
        self.end();
        std::mem::take(&mut *self.journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // What it wrote down still counts.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            self.journal.lock().unwrap_or_else(PoisonError::into_inner).broken.push("its thread".to_owned());
        }
    }
}

impl Drop for LibpqWriter {
    fn drop(&mut self) {
        self.end();
    }
}

fn argv(network: &Network, servers: &[Server], login: &Login, bin_dir: &Path) -> Vec<String> {
    let join = |text: fn(&Server) -> String| servers.iter().map(text).collect::<Vec<_>>().join(",");
    let (hosts, ports) = (join(|server| server.address.ip().to_string()), join(|server| server.address.port().to_string()));
    let target = format!(
        "host={hosts} port={ports} user={} dbname={} target_session_attrs=read-write connect_timeout=2 application_name=pgbaton-lab",
        login.user, login.database
    );
    let mut argv = network.prefix();
    argv.push(bin_dir.join("psql").display().to_string());
    argv.extend(["-XqAt", "-v", "ON_ERROR_STOP=1", "-d", &target].map(str::to_owned));
    argv
}

struct Work {
    argv: Vec<String>,
    password: Option<String>,
    client: String,
    servers: Vec<Server>,
    stop: Arc<AtomicBool>,
    journal: Arc<Mutex<Journal>>,
}

struct Psql {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Work {
    fn run(self) {
        let mut seq = 0;
        while !self.stopped() {
            match self.connect() {
                Ok(mut psql) => while !self.stopped() && self.write(&mut psql, &mut seq) {},
                Err(error) => {
                    let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
                    journal.last_refusal = Some(format!("{error:#}"));
                    drop(journal);
                    thread::sleep(AGAIN.to_std());
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn connect(&self) -> Result<Psql> {
        let (program, arguments) = self.argv.split_first().context("no psql")?;
        let mut psql = command(program);
        psql.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        psql.envs(self.password.iter().map(|password| ("PGPASSWORD", password)));
        let mut child = psql.spawn().context("start psql")?;
        let (input, output) = (child.stdin.take().context("psql's input")?, child.stdout.take().context("psql's output")?);
        // One answer is outstanding at a time; a full channel holds the reader, and with it psql.
        let (sender, lines) = sync_channel(4);
        thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut psql = Psql { child, input, lines };
        writeln!(psql.input, "SELECT 'ready';").context("ask psql")?;
        self.answer(&psql, CONNECTING).context("psql found no server that takes writes")?;
        Ok(psql)
    }

    /// The next line, unless it takes longer than `deadline`, or the client is stopped.
    fn answer(&self, psql: &Psql, deadline: Span) -> Option<String> {
        let end = clock::boot().plus(deadline);
        loop {
            match psql.lines.recv_timeout(GIVE_UP.min(deadline).to_std()) {
                Ok(line) => return Some(line),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if self.stopped() || clock::boot() >= end => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Writes one row; false when psql is of no more use.
    fn write(&self, psql: &mut Psql, seq: &mut u64) -> bool {
        *seq += 1;
        let sent = clock::boot();
        let statement = format!(
            "INSERT INTO lab_writes (client, seq, node) VALUES ('{}', {seq}, host(inet_server_addr()) || ':' || inet_server_port()) \
             RETURNING node, pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn();\n",
            self.client
        );
        let asked = psql.input.write_all(statement.as_bytes()).is_ok();
        let answer = if asked { self.answer(psql, GIVE_UP) } else { None };
        let at = clock::boot();
        let acked = answer.as_deref().and_then(|line| self.ack(line, *seq, sent, at));
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let good = acked.is_some();
        match acked {
            Some(ack) => journal.acks.push(ack),
            None => journal.indeterminate.push(Indeterminate {
                seq: *seq,
                node: String::new(),
                sent,
                why: if at.since(sent) >= GIVE_UP { "given up" } else { "psql ended" }.to_owned(),
            }),
        }
        drop(journal);
        thread::sleep(EVERY.minus(at.since(sent)).to_std());
        good
    }

    fn ack(&self, line: &str, seq: u64, sent: Moment, at: Moment) -> Option<Ack> {
        let mut parts = line.split('|');
        let (address, file, lsn) = (parts.next()?, parts.next()?, parts.next()?);
        let node = self.servers.iter().find(|server| format!("{}:{}", server.address.ip(), server.address.port()) == address)?;
        let (tli, lsn) = position(file, lsn);
        Some(Ack { seq, node: node.node.clone(), tli, lsn, sent, at })
    }
}
