//! Edits of a snapshot: a path in its JSON, or a few words for what is said often.
//!
//! Paths: any field of the snapshot, dots between; `leader`, `sync`, `term`, `cluster`, `bootstrap`, `intent`, `timeline.<id>`, `node.<name>`,
//! `member.<name>`, `promise.<term>.<name>` are the records in etcd; `guard`, `server`, `standby`, `primary`, `disk` the facts that are known of them.
//! Values: JSON, else a text; `now`, `now - 1s`, `mono + 1s` are moments.

use super::{base, situation};
use pgbaton::{
    decide::snapshot::{Attempt, Scanned, Snapshot, Standing},
    model::{
        instance::{Armed, ControlState, DataDir, Ended, Process, RecoveryTarget, Run, ServerFacts, ServerRole, StartAs, Whole},
        moment::{Moment, Span},
        node_file::Boundary,
        observed::Observed,
        record::{DoubtRecord, IntentRecord, LeaderState, Pause, Stored, VERSION, to_text},
        records::Records,
    },
};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// When operators ask, in every script.
const AT: &str = "2026-01-01T00:00:00Z";

/// Applies one line.
pub(crate) fn apply(s: &mut Snapshot, line: &str) -> Result<(), String> {
    if words(s, line)? || situation::apply(s, line)? {
        return Ok(());
    }
    if let Some(path) = line.strip_prefix("remove ") {
        return set(s, path.trim(), None);
    }
    let (path, value) = line.split_once(" = ").ok_or("neither `path = value` nor words that are known")?;
    let value = value_of(s, value.trim())?;
    set(s, path.trim(), Some(value))
}

/// What is said often.
fn words(s: &mut Snapshot, line: &str) -> Result<bool, String> {
    let span = |text: &str| text.parse::<Span>().map_err(|fault| fault.to_string());
    if let Some(text) = line.strip_prefix("now + ") {
        let span = span(text)?;
        (s.now.boot, s.now.mono) = (s.now.boot.plus(span), s.now.mono.plus(span));
    } else if let Some(text) = line.strip_prefix("the machine sleeps for ") {
        s.now.boot = s.now.boot.plus(span(text)?);
    } else if let Some(text) = line.strip_prefix("leader has stood still for ") {
        let since = s.now.mono.minus(span(text)?);
        let nonce = s.leader().ok_or("no leader")?.record.nonce.clone();
        s.standing = Some(Standing { nonce, since, suspended: s.now.suspended() });
    } else if let Some(text) = line.strip_prefix("the scan finds ") {
        let (tli, lsn) = text.split_once(' ').ok_or("<timeline> <position>")?;
        let whole = Whole { tli: base::tli(base::parsed(tli)), lsn: base::parsed(lsn) };
        s.whole = Some(Scanned { whole, run: s.run(), at: s.now.boot });
        s.boundary = Some(Boundary { tli: whole.tli, lsn: whole.lsn });
    } else if let Some(how) = line.strip_prefix("postgres has died of ") {
        dies(s, how)?;
    } else if line == "the directory was not looked at" {
        s.disk.lost(s.now.boot, "not looked at");
    } else if let Some(state) = line.strip_prefix("the directory is ") {
        s.disk = Observed::known(directory(state)?, s.now.boot);
        let present = s.disk().and_then(|dir| if let DataDir::Present(facts) = dir { Some(facts.histories.clone()) } else { None });
        s.histories = Arc::new(present.unwrap_or_default());
    } else if line == "postgres answers as a standby" {
        answers(s, base::standby(None))?;
    } else if line == "postgres replays its own WAL alone" {
        replays_alone(s, RecoveryTarget::Timeline(base::tli(2)));
    } else if line == "postgres replays what pg_control names alone" {
        replays_alone(s, RecoveryTarget::Current);
    } else if line == "postgres answers as a primary" {
        let tli = s.whole.as_ref().map_or(base::tli(2), |scanned| scanned.whole.tli);
        answers(s, ServerRole::Primary { tli, insert: base::END, flush: base::END })?;
    } else if let Some(tli) = line.strip_prefix("postgres answers as a primary on timeline ") {
        let role = ServerRole::Primary { tli: base::tli(base::parsed(tli)), insert: base::END, flush: base::END };
        answers(s, role)?;
    } else if let Some(to) = line.strip_prefix("leader hands over to ") {
        let leader = Arc::make_mut(&mut s.etcd.records).leader.as_mut().ok_or("no leader")?;
        leader.record.state = LeaderState::Handoff { to: base::parsed(to) };
        rewrite(Arc::make_mut(&mut s.etcd.records));
    } else if let Some(text) = line.strip_prefix("ann asks for ") {
        let (request, term) = (serde_json::from_str(text).map_err(|fault| fault.to_string())?, s.leader().ok_or("no leader")?.record.term);
        let record = IntentRecord { v: VERSION, id: base::parsed("I1"), request, term, actor: "ann".to_owned(), at: AT.to_owned() };
        Arc::make_mut(&mut s.etcd.records).intent = Some(Stored::written(record, 160));
    } else if let Some(reason) = line.strip_prefix("the cluster is paused: ") {
        let (by, reason, at) = ("ann".to_owned(), reason.to_owned(), AT.to_owned());
        let pause = Pause { by, reason, at, ..Pause::default() };
        Arc::make_mut(&mut s.etcd.records).leader.as_mut().ok_or("no leader")?.record.state = LeaderState::Paused(Box::new(pause));
        rewrite(Arc::make_mut(&mut s.etcd.records));
        with_armed(s, None);
    } else if line == "a write of leader has no answer" {
        let sent = s.lease.confirmed.clone().ok_or("nothing is confirmed")?;
        s.lease.unsettled.push(Attempt { nonce: base::parsed("L41"), sent: s.now.boot, ..sent });
    } else {
        return silences(s, line);
    }
    Ok(true)
}

/// Who answers, and who does not.
fn silences(s: &mut Snapshot, line: &str) -> Result<bool, String> {
    if line == "the last processes do not die" {
        let Observed::Known { value: guard, .. } = &mut s.guard else { return Err("no guard".to_owned()) };
        let Process::Running { run, .. } = guard.process else { return Err("nothing runs".to_owned()) };
        guard.process = Process::Dying { run };
    } else if line == "postgres lets nobody in" {
        s.server.lost(s.now.boot, "recovery has not reached a consistent state yet");
        s.inconsistent_since = Some(s.now.boot);
    } else if let Some(node) = line.strip_suffix(" doubts this etcd") {
        let record = DoubtRecord { v: VERSION, node: base::parsed(node), generation: 1, why: "its revision is 10".to_owned() };
        Arc::make_mut(&mut s.etcd.records).doubt = Some(Stored::written(record, 160));
    } else if line == "postgres is asked again" {
        let Observed::Known { at, .. } = &mut s.server else { return Err("it does not answer".to_owned()) };
        *at = s.now.boot;
    } else if line == "postgres has not been asked yet" {
        s.server = Observed::never();
    } else if line == "the guard is gone" {
        s.guard = Observed::Unknown { since: s.now.boot, why: "the session ended".to_owned() };
    } else if line == "etcd is silent" {
        s.etcd.answered = Observed::Unknown { since: s.now.boot, why: "no answer".to_owned() };
    } else if let Some(why) = line.strip_prefix("etcd is silent: ") {
        s.etcd.answered = Observed::Unknown { since: s.now.boot, why: why.to_owned() };
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn with_armed(s: &mut Snapshot, armed: Option<Armed>) {
    if let Observed::Known { value: guard, .. } = &mut s.guard {
        guard.armed = armed;
    }
}

fn dies(s: &mut Snapshot, how: &str) -> Result<(), String> {
    let Observed::Known { value: guard, .. } = &mut s.guard else { return Err("no guard".to_owned()) };
    let Process::Running { run, start, stopping } = guard.process else { return Err("nothing runs".to_owned()) };
    guard.process = Process::Empty { last: Some(Ended { wanted: stopping.is_some(), ..base::ended(run, start, how) }) };
    forget_the_run(s);
    Ok(())
}

/// As the state does when a run begins or ends.
pub(crate) fn forget_the_run(s: &mut Snapshot) {
    s.server.lost(s.now.boot, "PostgreSQL was started or ended");
    s.disk.lost(s.now.boot, "PostgreSQL was started or ended");
    s.whole = None;
}

fn answers(s: &mut Snapshot, role: ServerRole) -> Result<(), String> {
    let run = match s.process() {
        Some(Process::Running { run, .. }) => *run,
        _ => {
            let Observed::Known { value: guard, .. } = &mut s.guard else { return Err("no guard".to_owned()) };
            guard.process = Process::Running { run: Run(2), start: StartAs::Standby, stopping: None };
            Run(2)
        }
    };
    let template = base::streams(2).server.value().cloned().ok_or("no facts")?;
    s.server = Observed::known(ServerFacts { run, role, ..template }, s.now.boot);
    Ok(())
}

fn directory(words: &str) -> Result<DataDir, String> {
    if let Some(why) = words.strip_prefix("unusable: ") {
        return Ok(DataDir::Unusable { why: why.to_owned() });
    }
    let state = match words {
        "missing" => return Ok(DataDir::Missing),
        "empty" => return Ok(DataDir::Empty),
        "a crashed primary's" => ControlState::InProduction,
        "a stopped primary's" => ControlState::ShutDown,
        "a killed standby's" => ControlState::InArchiveRecovery,
        "a stopped standby's" => ControlState::ShutDownInRecovery,
        other => return Err(format!("no directory is {other:?}")),
    };
    Ok(DataDir::Present(base::disk(state)))
}

fn value_of(s: &Snapshot, text: &str) -> Result<Value, String> {
    for (word, moment) in [("now", s.now.boot), ("mono", s.now.mono)] {
        if let Some(rest) = text.strip_prefix(word).filter(|rest| rest.is_empty() || rest.starts_with(' ')) {
            return moment_of(moment, rest.trim()).map(|moment| Value::String(moment.to_string()));
        }
    }
    Ok(serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())))
}

fn moment_of(from: Moment, rest: &str) -> Result<Moment, String> {
    let span = |text: &str| text.trim().parse::<Span>().map_err(|fault| fault.to_string());
    match rest.split_at_checked(1) {
        None => Ok(from),
        Some(("+", text)) => Ok(from.plus(span(text)?)),
        Some(("-", text)) => Ok(from.minus(span(text)?)),
        Some(_) => Err(format!("{rest:?} is neither + nor - a length of time")),
    }
}

fn set(s: &mut Snapshot, path: &str, value: Option<Value>) -> Result<(), String> {
    let mut all = serde_json::to_value(&*s).map_err(|fault| fault.to_string())?;
    let parts: Vec<String> = full_path(path);
    let mut at = &mut all;
    let (last, parents) = parts.split_last().ok_or("no path")?;
    for part in parents {
        at = child(at, part)?;
    }
    match (value, at) {
        (Some(value), at) => *child(at, last)? = value,
        (None, Value::Object(map)) => {
            map.remove(last).ok_or("it is not there")?;
        }
        (None, Value::Array(items)) => {
            items.remove(last.parse().map_err(|_| "no index")?);
        }
        (None, _) => return Err("nothing can be removed there".to_owned()),
    }
    let records = all.pointer_mut("/etcd/records").and_then(Value::as_object_mut);
    records.into_iter().flat_map(|records| records.values_mut()).for_each(store);
    *s = serde_json::from_value(all).map_err(|fault| fault.to_string())?;
    rewrite(Arc::make_mut(&mut s.etcd.records));
    Ok(())
}

/// A record that a script has made stands in etcd too.
fn store(of: &mut Value) {
    let Value::Object(map) = of else { return };
    if map.contains_key("record") {
        map.entry("text").or_insert_with(|| Value::String(String::new()));
        map.entry("revision").or_insert_with(|| Value::from(105));
    } else {
        map.values_mut().for_each(store);
    }
}

fn child<'v>(at: &'v mut Value, part: &str) -> Result<&'v mut Value, String> {
    if at.is_null() {
        *at = Value::Object(serde_json::Map::new());
    }
    match at {
        Value::Object(map) => Ok(map.entry(part).or_insert(Value::Null)),
        Value::Array(items) => {
            let index: usize = part.parse().map_err(|_| format!("{part:?} is no index"))?;
            if index == items.len() {
                items.push(Value::Null);
            }
            items.get_mut(index).ok_or_else(|| format!("no item {index}"))
        }
        other => Err(format!("{part:?} of {other} cannot be set")),
    }
}

/// The short names of facts and records, written out.
fn full_path(path: &str) -> Vec<String> {
    let parts: Vec<&str> = path.split('.').collect();
    let (head, rest) = (parts[0], &parts[1..]);
    let mut full: Vec<&str> = match head {
        "leader" | "sync" | "term" | "cluster" | "bootstrap" | "intent" => vec!["etcd", "records", head, "record"],
        "timeline" => vec!["etcd", "records", "timelines", rest[0], "record"],
        "node" => vec!["etcd", "records", "nodes", rest[0], "record"],
        "member" => vec!["etcd", "records", "members", rest[0], "record"],
        "promise" => vec!["etcd", "records", "promises", rest[0], rest[1], "record"],
        "guard" | "server" => vec![head, "known", "value"],
        "standby" | "primary" => vec!["server", "known", "value", "role", head],
        "disk" => vec!["disk", "known", "value", "present"],
        other => vec![other],
    };
    let used = match head {
        "timeline" | "node" | "member" => 1,
        "promise" => 2,
        _ => 0,
    };
    full.extend(&rest[used..]);
    full.into_iter().map(str::to_owned).collect()
}

/// The values as they stand in etcd follow the records.
fn rewrite(records: &mut Records) {
    fn again<T: Serialize>(stored: &mut Stored<T>) {
        stored.text = to_text(&stored.record);
    }
    records.bootstrap.iter_mut().for_each(again);
    records.cluster.iter_mut().for_each(again);
    records.term.iter_mut().for_each(again);
    records.leader.iter_mut().for_each(again);
    records.sync.iter_mut().for_each(again);
    records.base.iter_mut().for_each(again);
    records.intent.iter_mut().for_each(again);
    Arc::make_mut(&mut records.timelines).values_mut().for_each(again);
    records.nodes.values_mut().for_each(again);
    records.members.values_mut().for_each(again);
    records.promises.values_mut().flat_map(|of_term| of_term.values_mut()).for_each(again);
}

fn replays_alone(s: &mut Snapshot, recovery: RecoveryTarget) {
    if let Observed::Known { value, .. } = &mut s.server
        && let ServerRole::Standby { target, .. } = &mut value.role
    {
        *target = recovery;
    }
    if let Some(configured) = &mut s.configured {
        configured.recovery = recovery;
    }
}
