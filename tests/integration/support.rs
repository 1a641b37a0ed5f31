//! A cluster under test: its clients, its evidence, and what has to be true at the end.

use anyhow::{Context, Result, anyhow, bail};
use pgbaton::{
    clock,
    lab::{Excused, Fault, Injected, Journal, Lab, LabSpec, LogMarks, Node, Writer, sql, verdict, writer::next_ack},
    model::{
        lsn::Bytes,
        moment::{Moment, Span},
        policy::Durability,
    },
};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_pgbaton");

/// For whatever has to happen sooner or later. Generous: nothing here measures time.
pub(crate) const SOON: Span = Span::from_secs(45);

/// PostgreSQL's programs: `PGBATON_TEST_BIN`, Debian's 15 else.
pub(crate) fn bin_dir() -> PathBuf {
    std::env::var_os("PGBATON_TEST_BIN").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// A lab of the binary under test, with what a test wants to be different.
pub(crate) fn spec(change: impl FnOnce(&mut LabSpec)) -> LabSpec {
    let mut spec = LabSpec::new(Path::new(PROGRAM), &bin_dir());
    spec.env.extend(std::env::var("PGBATON_LOG").ok().map(|wanted| ("PGBATON_LOG".to_owned(), wanted)));
    change(&mut spec);
    spec
}

/// A lab whose nodes have small disks of their own. Old WAL may not take most of one: by default 512 MB of it are kept, and a standby
/// removes none for five minutes, in which a soak changes primaries twenty times.
pub(crate) fn small_disks() -> LabSpec {
    spec(|spec| {
        spec.disk = Some(Bytes::new(1 << 30));
        for name in ["wal_keep_size", "max_wal_size"] {
            spec.policy.parameters.insert(name.to_owned(), "96MB".to_owned());
        }
    })
}

/// Adds lines to a section of a node's configuration.
pub(crate) fn insert_below(node: &Node, section: &str, lines: &str) -> Result<()> {
    let path = node.seen_directory.join("pgbaton.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let head = format!("[{section}]\n");
    fs::write(&path, text.replace(&head, &format!("{head}{lines}"))).with_context(|| format!("write {}", path.display()))
}

/// A cluster that was healthy once.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    /// What all clients were told so far.
    journals: Vec<Journal>,
    clients: u32,
    /// Which losses are no wrong here.
    excused: Excused,
}

/// One run on a cluster: who was primary when it began, and who writes.
pub(crate) struct Run<'a> {
    pub(crate) lab: &'a Lab,
    /// The primary at the begin.
    pub(crate) primary: String,
    /// The others, in the order of their names.
    pub(crate) replicas: Vec<String>,
    /// When it began.
    pub(crate) began: Moment,
    writer: Writer,
    islands: Vec<Writer>,
    prefix: String,
    /// The primary's at the begin.
    postmaster: i32,
}

impl Cluster {
    /// Builds a lab, starts its agents, and waits until all nodes stream and may be elected.
    pub(crate) fn start(spec: &LabSpec) -> Result<Self> {
        Self::begin(Lab::build(spec, &|_| ())?, spec.policy.durability)
    }

    /// Starts the agents of a lab, and waits as [`Cluster::start`] does.
    pub(crate) fn begin(lab: Lab, durability: Durability) -> Result<Self> {
        lab.start_agents()?;
        let cluster = Self { lab, journals: Vec::new(), clients: 0, excused: Excused::by(durability) };
        let started = cluster.healthy().and_then(|primary| cluster.lab.make_table(&primary));
        if let Err(error) = started {
            cluster.keep_logs("start", &LogMarks::new());
            return Err(error.context("the cluster did not come up"));
        }
        Ok(cluster)
    }

    /// From now on: an operator has a node lead that may lack what was acknowledged, so a loss that is recorded is no wrong.
    pub(crate) fn accept_loss(&mut self) {
        self.excused = Excused::Announced;
    }

    /// Forgets what was judged well and cannot change any more: rows that are lost, as was recorded, and writes of unknown outcome. What is there
    /// has to stay there.
    pub(crate) fn forget_losses(&mut self) -> Result<()> {
        let there = self.lab.survivors(&self.healthy()?)?;
        for Journal { client, acks, indeterminate, .. } in &mut self.journals {
            acks.retain(|ack| there.contains(&verdict::Row { client: client.clone(), seq: ack.seq }));
            indeterminate.clear();
        }
        Ok(())
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.lab.nodes().iter().map(|node| node.name.as_str()).collect()
    }

    /// Waits until all nodes stream from one primary that serves, and all others may be elected.
    pub(crate) fn healthy(&self) -> Result<String> {
        let primary = self.lab.wait_streaming(&self.names(), SOON)?;
        let others = self.names().len() - 1;
        let ready = || {
            let records = self.lab.records("").ok()?;
            let (sync, policy) = (records.get("sync")?, records.get("policy")?);
            // By the present lives of their data: one that is gone neither votes nor takes over.
            let lives = |replica: &serde_json::Value| {
                let of = records.get(&format!("nodes/{}", replica.get("node")?.as_str()?))?;
                Some(of.get("data")? == replica.get("data")?)
            };
            let count = |of: &str| Some(sync.get(of)?.as_array()?.iter().filter(|replica| lives(replica) == Some(true)).count());
            // Where commits are to wait, they do.
            let waits = policy.pointer("/policy/durability").is_some_and(|mode| mode != "async");
            let votes = !waits || count("voters")? == others;
            (sync.pointer("/primary/node")?.as_str()? == primary && count("electable")? == others && votes).then_some(())
        };
        self.lab.wait("all replicas to be electable, and to vote where commits wait", SOON, ready)?;
        Ok(primary)
    }

    /// One run: begins healthy, is written to all the time, does `what`, and has to end well. `expected` names the
    /// reasons of alarms that the fault explains. The evidence of all runs on this cluster is judged together.
    pub(crate) fn run(&mut self, name: &str, expected: &[&str], what: impl FnOnce(&mut Run<'_>) -> Result<()>) -> Result<()> {
        let marks = self.lab.log_marks()?;
        let result = self.try_run(expected, &marks, what).with_context(|| name.to_owned());
        if result.is_err() {
            self.journals.clear();
            self.keep_logs(name, &marks);
        }
        result
    }

    fn try_run(&mut self, expected: &[&str], marks: &LogMarks, what: impl FnOnce(&mut Run<'_>) -> Result<()>) -> Result<()> {
        let primary = self.healthy().context("before the fault")?;
        self.clients += 1;
        let prefix = format!("c{}", self.clients);
        let writer = self.lab.writer(&prefix)?;
        next_ack(&writer, Moment::ZERO, SOON).context("before the fault")?;
        let replicas = self.names().into_iter().filter(|name| *name != primary).map(str::to_owned).collect();
        let postmaster = self.lab.postmaster(&primary)?;
        let began = clock::boot();
        let mut run = Run { lab: &self.lab, primary, replicas, began, writer, islands: Vec::new(), prefix, postmaster };
        let done = what(&mut run);
        let Run { writer, islands, .. } = run;
        self.lab.heal_all().context("heal")?;
        let healthy = done.and_then(|()| self.healthy());
        let last = healthy.as_ref().ok().map(|_| next_ack(&writer, clock::boot(), SOON));
        self.journals.push(writer.stop());
        self.journals.extend(islands.into_iter().map(Writer::stop));
        let healthy = healthy.map(|_| ());
        healthy?;
        last.transpose()?;
        let conclusion = self.lab.conclude(&self.journals, marks, SOON)?;
        let unexplained =
            |line: &str| line.contains(" logged: ") && expected.iter().any(|reason| line.contains(&format!("reason=\"{reason}\"")));
        let complaints: Vec<String> = conclusion.complaints(self.excused).into_iter().filter(|line| !unexplained(line)).collect();
        if complaints.is_empty() { Ok(()) } else { Err(anyhow!("{}", complaints.join("\n    "))) }
    }

    /// Keeps the logs of a failed run where CI finds them, and says where.
    pub(crate) fn keep_logs(&self, name: &str, marks: &LogMarks) -> PathBuf {
        let slug: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab-out").join(slug);
        let kept = fs::create_dir_all(&directory).context("make the directory").and_then(|()| self.copy_logs(&directory, marks));
        match kept {
            Ok(()) => eprintln!("the logs of {name:?} are in {}", directory.display()),
            Err(error) => eprintln!("the logs of {name:?} are lost: {error:#}"),
        }
        directory
    }

    fn copy_logs(&self, directory: &Path, marks: &LogMarks) -> Result<()> {
        for node in self.lab.nodes() {
            let mark = marks.get(&node.name).copied().unwrap_or_default();
            let directories = [node.seen_directory.clone(), node.seen_directory.join("state")];
            let entries = directories.iter().flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
            for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log")) {
                let bytes = fs::read(&path)?;
                let from = match &path {
                    path if *path == node.log() => mark.agent,
                    path if *path == node.guard_log() => mark.guard,
                    _ => 0,
                };
                let file = path.file_name().unwrap_or_default().to_string_lossy();
                let text = String::from_utf8_lossy(&bytes);
                let fatal: Vec<&str> = text.lines().rev().filter(|line| line.contains("FATAL: ")).take(3).collect();
                fatal.iter().rev().for_each(|line| eprintln!("{} logged in {file}: {line}", node.name));
                fs::write(directory.join(format!("{}-{file}", node.name)), &bytes[usize::try_from(from)?.min(bytes.len())..])?;
            }
            if let Ok(reasons) = self.lab.ask(&node.name, "/v1/reasons") {
                fs::write(directory.join(format!("{}-reasons.json", node.name)), serde_json::to_vec_pretty(&reasons)?)?;
                // Of a run on another machine nothing but what it printed is left.
                eprintln!("{} says: {reasons}", node.name);
            }
        }
        if let Ok(records) = self.lab.records("") {
            fs::write(directory.join("etcd.json"), serde_json::to_vec_pretty(&records)?)?;
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Injects a fault.
    pub(crate) fn inject(&self, fault: Fault) -> Result<Injected> {
        self.lab.inject(&fault).with_context(|| fault.name())
    }

    /// Undoes it.
    pub(crate) fn heal(&self, injected: &Injected) -> Result<()> {
        self.lab.heal(injected)
    }

    /// An adversary on a node's own host goes on writing to that node until the end of the run.
    pub(crate) fn island(&mut self, node: &str) -> Result<()> {
        let node = self.lab.node(node)?;
        let client = format!("{}-island-{}", self.prefix, node.name);
        let island = Writer::island(&client, node.host.network(), node.server(), self.lab.login())?;
        self.islands.push(island);
        let writes = || self.islands.last().and_then(|island| island.look(|journal| journal.acks.last().map(|_| ())));
        self.lab.wait("the island to write", SOON, writes)
    }

    /// Waits until another node than these acknowledges a write; returns it.
    pub(crate) fn moved_from(&self, former: &[&str]) -> Result<String> {
        let from = clock::boot();
        self.lab.wait("another primary that takes writes", SOON, || {
            self.writer.look(|journal| {
                journal
                    .acks
                    .iter()
                    .rev()
                    .take_while(|ack| ack.at > from)
                    .find(|ack| !former.contains(&ack.node.as_str()))
                    .map(|ack| ack.node.clone())
            })
        })
    }

    /// Waits for the next acknowledged write, whoever takes it.
    pub(crate) fn written(&self) -> Result<String> {
        Ok(next_ack(&self.writer, clock::boot(), SOON)?.node)
    }

    /// Waits until so much time has passed since a moment and writes go on.
    pub(crate) fn goes_on_for(&self, span: Span) -> Result<String> {
        Ok(next_ack(&self.writer, clock::boot().plus(span), SOON)?.node)
    }

    /// Fails unless only this node acknowledged writes since the begin of the run.
    pub(crate) fn stayed(&self, node: &str) -> Result<()> {
        let others: BTreeSet<String> = self.writer.look(|journal| {
            journal.acks.iter().filter(|ack| ack.at > self.began && ack.node != node).map(|ack| ack.node.clone()).collect()
        });
        if others.is_empty() { Ok(()) } else { bail!("{others:?} took writes, and not {node} alone") }
    }

    /// Waits until the primary's postmaster of the begin is gone, and somebody takes writes again.
    pub(crate) fn outage(&self) -> Result<()> {
        self.lab.wait("the old PostgreSQL to be gone", SOON, || {
            self.lab.postmaster(&self.primary).map_or(true, |pid| pid != self.postmaster).then_some(())
        })?;
        self.written().map(|_| ())
    }

    /// How many lines of a node's log hold this.
    pub(crate) fn log_lines(&self, node: &str, word: &str) -> Result<usize> {
        lines_with(&self.lab.node(node)?.log(), word)
    }

    /// The same of its PostgreSQL.
    pub(crate) fn postgres_lines(&self, node: &str, word: &str) -> Result<usize> {
        lines_with(&self.lab.node(node)?.seen_directory.join("state/postgresql.log"), word)
    }

    /// Who may be elected, as etcd says; nobody where it does not answer.
    pub(crate) fn electable(&self) -> Vec<String> {
        let sync = self.lab.records("sync").ok().and_then(|records| records.get("sync")?.get("electable")?.as_array().cloned());
        sync.into_iter().flatten().filter_map(|replica| Some(replica.get("node")?.as_str()?.to_owned())).collect()
    }

    /// The newest timeline of the ledger: its id, state and owner.
    pub(crate) fn newest_timeline(&self) -> Result<(u64, String, String)> {
        let records = self.lab.records("timeline/")?;
        let newest = records.iter().filter_map(|(key, record)| {
            let id = key.strip_prefix("timeline/")?.parse().ok()?;
            Some((id, record.get("state")?.as_str()?.to_owned(), record.pointer("/owner/node")?.as_str()?.to_owned()))
        });
        newest.max_by_key(|(id, ..): &(u64, _, _)| *id).context("a timeline in the ledger")
    }

    /// Whether a node that nobody else reaches is out of recovery; `None` where it does not answer.
    pub(crate) fn promoted_alone(&self, node: &str) -> Option<bool> {
        let node = self.lab.node(node).ok()?;
        let text = "SELECT NOT pg_is_in_recovery()";
        let rows = sql::query(node.host.network(), &node.server(), self.lab.login(), text, Span::from_millis(500)).ok()?;
        Some(rows.first()?.first()?.as_deref() == Some("t"))
    }
}

fn lines_with(path: &Path, word: &str) -> Result<usize> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().filter(|line| line.contains(word)).count())
}
