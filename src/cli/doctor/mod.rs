//! `doctor`: whether this host can do what its configuration says. Looks, and changes nothing.
//!
//! Every row is one thing that was looked at, with what to do where it is not well. In reading order: [`Row`]; `host` (programs,
//! rights, clock, fencing, ports), `etcd`, `certificates`, `data` (disk, data directory, rewind, copies); `program` runs PostgreSQL's programs.

mod certificates;
mod data;
mod etcd;
mod host;
mod program;

use super::{
    arguments::{DoctorOptions, Output},
    exit::Exit,
    store,
    table::{self, Align, columns},
    target::{self, Target},
};
use crate::{
    api::{client::Client, status::Status},
    config::{self, Config},
    model::{
        moment::Span,
        policy::ClusterPolicy,
        record::{ClusterRecord, PolicyRecord},
    },
};
use serde::Serialize;

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not in every case.
    Warn,
    /// The node cannot do its work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// What to do; empty where it is well.
    pub remedy: String,
}

impl Row {
    fn ok(subject: &str, found: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, subject: subject.to_owned(), found: found.into(), remedy: String::new() }
    }

    fn warn(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, subject: subject.to_owned(), found: found.into(), remedy: remedy.into() }
    }

    fn fail(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, subject: subject.to_owned(), found: found.into(), remedy: remedy.into() }
    }
}

/// What the agent of this node says, and what etcd holds, where they answer.
#[derive(Default)]
struct Known {
    status: Option<Status>,
    policy: Option<ClusterPolicy>,
    cluster: Option<ClusterRecord>,
}

pub(super) async fn run(target: &Target, options: &DoctorOptions) -> anyhow::Result<Exit> {
    let file = target.config_file()?;
    let mut rows = Vec::new();
    match config::read(&file) {
        Err(faults) => rows.extend(faults.as_slice().iter().map(fault)),
        Ok(config) => {
            match super::config::check_host(&config) {
                Err(faults) => rows.extend(faults.as_slice().iter().map(fault)),
                Ok(()) => rows.push(Row::ok("configuration", file.display().to_string())),
            }
            rows.extend(host_rows(&config).await);
        }
    }
    let worst = rows.iter().map(|row| row.verdict).max().unwrap_or(Verdict::Ok);
    rows.retain(|row| !options.quiet || row.verdict != Verdict::Ok);
    let text = match target.output() {
        Output::Json => table::json(&rows)?,
        Output::Table => render(&rows),
    };
    table::print(&text)?;
    Ok(if worst == Verdict::Fail { Exit::Unhealthy } else { Exit::Done })
}

fn fault(fault: &config::Fault) -> Row {
    let line = fault.line.map(|line| format!(":{line}")).unwrap_or_default();
    let key = if fault.key.is_empty() { String::new() } else { format!("{}: ", fault.key) };
    Row::fail("configuration", format!("{}{line}: {key}{}", fault.file.display(), fault.what), fault.remedy.clone())
}

async fn host_rows(config: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut known = Known::default();
    ask_agent(config, &mut known).await;
    let etcd = etcd::rows(config, &mut known).await;
    rows.push(agent(&known));
    let version = program::server_version(config).await;
    rows.push(host::version(config, version.as_ref()));
    rows.extend(host::rights(config));
    rows.push(host::clock());
    rows.push(host::fencing(&known, config));
    rows.push(host::cut(&known, config));
    rows.push(failsafe(config, &known));
    rows.extend(host::ports(config, known.status.is_some()));
    rows.extend(etcd);
    rows.extend(certificates::rows(config, crate::clock::unix_seconds()));
    rows.extend(data::rows(config, &known, version.ok()).await);
    rows
}

async fn ask_agent(config: &Config, known: &mut Known) {
    let Ok(client) = Client::unix(&target::socket(config)) else { return };
    let client = client.within(Span::from_secs(2));
    known.status = client.get_json("/v1/status").await.ok();
    known.policy = client.get_json::<PolicyRecord>("/v1/policy").await.ok().map(|record| record.policy);
}

fn agent(known: &Known) -> Row {
    let Some(status) = &known.status else {
        return Row::warn("agent", "does not answer on its socket", "start it; what only it knows is not looked at");
    };
    let own = env!("CARGO_PKG_VERSION");
    if status.version != own {
        let found = format!("runs version {}, this program is {own}", status.version);
        return Row::warn("agent", found, "restart the agent; PostgreSQL runs on");
    }
    match status.alarms.first() {
        Some(alarm) => Row::fail("agent", format!("alarm {}: {}", alarm.id, alarm.text), "see pgbaton why"),
        None => Row::ok("agent", format!("runs, {}", status.state)),
    }
}

/// What a primary on this node does while etcd is silent.
fn failsafe(config: &Config, known: &Known) -> Row {
    let subject = "failsafe";
    let wanted = known.policy.as_ref().is_none_or(|policy| policy.failsafe);
    match (&config.api.peer_key, wanted) {
        (_, false) => Row::ok(subject, "off by the policy: a primary that etcd does not answer stops"),
        (Some(file), true) => Row::ok(subject, format!("while etcd is silent the nodes know each other by {}", file.path.display())),
        (None, true) => Row::warn(
            subject,
            "there is no [api] peer_key_file: a primary that etcd does not answer stops",
            "give every node the same key: openssl rand -hex 32",
        ),
    }
}

/// The rows as text.
pub fn render(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "All is well.\n".to_owned();
    }
    let verdict = |row: &Row| match row.verdict {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Fail => "FAIL",
    };
    let lines: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let remedy = if row.remedy.is_empty() { String::new() } else { format!("; {}", row.remedy) };
            vec![verdict(row).to_owned(), row.subject.clone(), format!("{}{remedy}", row.found)]
        })
        .collect();
    columns(&[("", Align::Left), ("SUBJECT", Align::Left), ("FOUND", Align::Left)], &lines)
}

/// etcd's word on the cluster, for the rows about the data.
async fn records(config: &Config, known: &mut Known) -> Result<(), crate::dcs::Error> {
    let listing = store::open(config).await?.list(store::DEADLINE).await?;
    let records = listing.records();
    known.cluster = records.cluster.map(|cluster| cluster.record);
    if known.policy.is_none() {
        known.policy = records.policy.map(|policy| policy.record.policy);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_what_to_do() {
        let rows = [
            Row::ok("agent", "runs, streaming"),
            Row::warn("etcd", "4 members", "add or remove one: an even number survives no more losses than one less"),
            Row::fail("port", "5432 is in use", "stop what listens there"),
        ];
        let expected = "
      SUBJECT  FOUND
ok    agent    runs, streaming
warn  etcd     4 members; add or remove one: an even number survives no more losses than one less
FAIL  port     5432 is in use; stop what listens there
";
        assert_eq!(render(&rows), expected.trim_start_matches('\n'));
        assert_eq!(render(&[]), "All is well.\n");
    }
}
