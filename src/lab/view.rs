//! What can be seen of a lab's cluster from outside, and the clients that write to it.

use super::{
    cluster::Lab,
    command::wait_until,
    conclusion::LogMark,
    libpq::LibpqWriter,
    node::Node,
    sql::{self, Server},
    status,
    verdict::Row,
    writer::Writer,
};
use crate::model::{moment::Span, record::HistoryRecord};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    thread,
};

/// How long one question of the lab to a node may take.
const ASKING: Span = Span::from_secs(2);
/// How long a node may take to say whether it is primary.
const GLANCE: Span = Span::from_millis(500);

impl Lab {
    /// What a node's agent says under `path`, `/v1/status` for one.
    ///
    /// # Errors
    /// As [`status::get`].
    pub fn ask(&self, node: &str, path: &str) -> Result<Value> {
        status::get(&self.node(node)?.agent_socket(), path, ASKING)
    }

    /// All PostgreSQL servers.
    pub fn servers(&self) -> Vec<Server> {
        self.nodes().iter().map(Node::server).collect()
    }

    /// Runs SQL on a node from the clients' host.
    ///
    /// # Errors
    /// As [`sql::query`].
    pub fn query(&self, node: &str, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        sql::query(self.client().network(), &self.node(node)?.server(), self.login(), text, ASKING)
    }

    /// The nodes that say that they are not in recovery. More than one is not proof of two writers: an old primary that
    /// acknowledges nothing any more may say so too.
    pub fn primaries(&self) -> Vec<String> {
        let writable = |node: &Node| {
            let rows = sql::query(self.client().network(), &node.server(), self.login(), "SELECT pg_is_in_recovery()", GLANCE);
            rows.is_ok_and(|rows| rows.first().and_then(|row| row.first().cloned().flatten()).as_deref() == Some("f"))
        };
        // Side by side: a node that is silent takes its whole deadline.
        thread::scope(|scope| {
            let asked = self.nodes().iter().filter(|node| node.host.is_on()).map(|node| (node, scope.spawn(move || writable(node))));
            let asked: Vec<_> = asked.collect();
            let answers = asked.into_iter().filter_map(|(node, thread)| thread.join().is_ok_and(|yes| yes).then(|| node.name.clone()));
            answers.collect()
        })
    }

    /// Waits until exactly one node takes writes.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub fn wait_primary(&self, deadline: Span) -> Result<String> {
        self.wait("one primary", deadline, || match self.primaries().as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        })
    }

    /// Waits until one node is primary and all others of `nodes` stream from it; returns the primary.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted.
    pub fn wait_streaming(&self, nodes: &[&str], deadline: Span) -> Result<String> {
        self.wait("all others to stream from one primary", deadline, || {
            let [primary] = self.primaries().try_into().ok()?;
            (self.streaming_from(&primary).ok()? + 1 == nodes.len() && nodes.contains(&primary.as_str())).then_some(primary)
        })
    }

    /// How many standbys stream from a node.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn streaming_from(&self, primary: &str) -> Result<usize> {
        let text = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' \
                    AND application_name NOT LIKE 'pg_basebackup%' AND application_name NOT LIKE 'pg_receivewal%'";
        let rows = self.query(primary, text)?;
        let count = rows.first().and_then(|row| row.first().cloned().flatten()).context("a count")?;
        count.parse().context("read the count of standbys")
    }

    /// Waits for anything.
    ///
    /// # Errors
    /// After `deadline`, or when interrupted; says what was waited for.
    pub fn wait<T>(&self, what: &str, deadline: Span, mut question: impl FnMut() -> Option<T>) -> Result<T> {
        let answer = wait_until(what, deadline, || match self.check_interrupted() {
            Ok(()) => question().map(Ok),
            Err(error) => Some(Err(error)),
        });
        answer.flatten()
    }

    /// Makes the table that the lab's clients write to.
    ///
    /// # Errors
    /// When the node does not take it.
    pub fn make_table(&self, primary: &str) -> Result<()> {
        self.query(primary, sql::TABLE).map(|_| ())
    }

    /// Starts the measuring client.
    ///
    /// # Errors
    /// As [`Writer::start`].
    pub fn writer(&self, client: &str) -> Result<Writer> {
        Writer::start(client, self.client().network(), self.servers(), self.login())
    }

    /// Starts an adversarial client on a node's own host that writes to that node alone.
    ///
    /// # Errors
    /// As [`Writer::island`].
    pub fn island(&self, node: &str) -> Result<Writer> {
        self.island_as(&format!("island-{node}"), node)
    }

    /// The same under a name of its own: a second one on a node needs one.
    ///
    /// # Errors
    /// As [`Writer::island`].
    pub fn island_as(&self, client: &str, node: &str) -> Result<Writer> {
        let node = self.node(node)?;
        Writer::island(client, node.host.network(), node.server(), self.login())
    }

    /// Starts the libpq client.
    ///
    /// # Errors
    /// As [`LibpqWriter::start`].
    pub fn libpq(&self, client: &str) -> Result<LibpqWriter> {
        LibpqWriter::start(client, self.client().network(), self.servers(), self.login(), &self.common.bin_dir)
    }

    /// The rows that a node has.
    ///
    /// # Errors
    /// As [`sql::survivors`].
    pub fn survivors(&self, node: &str) -> Result<BTreeSet<Row>> {
        sql::survivors(self.client().network(), &self.node(node)?.server(), self.login())
    }

    /// The cluster's records in etcd below `path` (empty for all), by their paths.
    ///
    /// # Errors
    /// When no etcd member answers.
    pub fn records(&self, path: &str) -> Result<BTreeMap<String, Value>> {
        let prefix = format!("{}/{}/", self.common.prefix, self.common.cluster);
        let text = self.etcd.any(&["get", "--prefix", &format!("{prefix}{path}")])?;
        let lines: Vec<&str> = text.lines().collect();
        let pair = |pair: &[&str]| {
            let key = pair.first()?.strip_prefix(&prefix)?.to_owned();
            Some((key, serde_json::from_str(pair.get(1)?).ok()?))
        };
        Ok(lines.chunks(2).filter_map(pair).collect())
    }

    /// The cluster's history, in the order of the terms.
    ///
    /// # Errors
    /// When no etcd member answers, or a record cannot be read.
    pub fn history(&self) -> Result<Vec<HistoryRecord>> {
        let records = self.records("history/")?.into_iter();
        let mut history = records
            .map(|(key, value)| serde_json::from_value::<HistoryRecord>(value).with_context(|| format!("read {key}")))
            .collect::<Result<Vec<_>>>()?;
        history.sort_by_key(|record| record.term);
        Ok(history)
    }

    /// Lines of level ERROR in the logs of a node's agent and guard, from a mark on, with where the logs end now.
    ///
    /// # Errors
    /// When a log cannot be read. One that is not there yet is empty.
    pub fn errors_logged(&self, node: &str, from: LogMark) -> Result<(Vec<String>, LogMark)> {
        let node = self.node(node)?;
        let (mut lines, agent) = errors_in(&node.log(), from.agent)?;
        let (of_guard, guard) = errors_in(&node.guard_log(), from.guard)?;
        lines.extend(of_guard);
        Ok((lines, LogMark { agent, guard }))
    }
}

fn errors_in(path: &Path, from: u64) -> Result<(Vec<String>, u64)> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.with_context(|| format!("read {}", path.display()))?,
    };
    let start = usize::try_from(from).unwrap_or(usize::MAX).min(bytes.len());
    let text = String::from_utf8_lossy(&bytes[start..]).into_owned();
    Ok((text.lines().filter(|line| is_error(line)).map(str::to_owned).collect(), bytes.len() as u64))
}

/// Whether a line is our own and of level ERROR. The level at its head decides, not what it quotes: PostgreSQL writes "ERROR:" for
/// statements that a client got wrong.
fn is_error(line: &str) -> bool {
    if line.starts_with('{') {
        let level = serde_json::from_str::<Value>(line).ok().and_then(|line| Some(line.get("level")?.as_str()? == "ERROR"));
        return level.unwrap_or(false);
    }
    let mut words = line.split_whitespace();
    let time = words.next().is_some_and(|time| time.contains('T') && time.ends_with('Z'));
    time && words.next() == Some("ERROR")
}

#[cfg(test)]
mod tests {
    use super::is_error;

    #[test]
    fn the_level_at_the_head_of_a_line_decides() {
        for (line, expected) in [
            ("2026-01-02T03:04:05.678Z ERROR pgbaton::agent::run: could not start: ERROR:  no space left term=1", true),
            (r#"{"timestamp":"2026-01-02T03:04:05.678Z","level":"ERROR","message":"ERROR:  no space left"}"#, true),
            ("2026-01-02T03:04:05.678Z  WARN pgbaton::agent::run: psql said ERROR role missing", false),
            (r#"{"timestamp":"2026-01-02T03:04:05.678Z","level":"INFO","message":"level ERROR of \"level\":\"ERROR\""}"#, false),
            ("2026-01-02 03:04:05.678 UTC [12] ERROR:  relation \"t\" does not exist", false),
            ("2026-01-02 03:04:05.678 UTC [12] LOG:  ERROR is a word", false),
            ("", false),
        ] {
            assert_eq!(is_error(line), expected, "{line}");
        }
    }
}
