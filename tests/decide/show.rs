//! A decision in a few lines: one an action, of records only what changes, one a reason.

use pgbaton::{
    decide::{
        decision::{Action, Decision},
        snapshot::Snapshot,
    },
    model::{
        instance::RecoveryTarget,
        key::{Compare, Key, Txn, Write},
        moment::{Moment, Span},
    },
};
use serde::Serialize;
use serde_json::Value;

/// With nothing else to wait for a decision is taken again after this: not worth a line.
const IDLE: Span = Span::from_secs(2);

/// What is shown below `decides`. What a node says of itself (`members`) is left out.
pub(crate) fn decision(s: &Snapshot, decision: &Decision) -> Vec<String> {
    let mut lines: Vec<String> =
        decision.actions.iter().filter(|action| !matches!(action, Action::PutMember(_))).map(|one| action(s, one)).collect();
    for reason in &decision.reasons {
        let kind = format!("{:?}", reason.kind).to_lowercase();
        lines.push(format!("{kind} {}: {}", reason.id, reason.text));
    }
    if let Some(writes) = decision.routing.writes {
        lines.push(format!("writes come here: term {}, for {}", writes.term, after(s, writes.until)));
    }
    if decision.wake_at < s.now.boot.plus(IDLE) {
        lines.push(format!("decides again after {}", after(s, decision.wake_at)));
    }
    if lines.is_empty() {
        lines.push("nothing".to_owned());
    }
    lines
}

fn after(s: &Snapshot, moment: Moment) -> String {
    if moment < s.now.boot { format!("-{}", s.now.boot.since(moment)) } else { moment.since(s.now.boot).to_string() }
}

fn alone(recovery: RecoveryTarget) -> String {
    if recovery == RecoveryTarget::Latest { String::new() } else { format!(", recovery {recovery}") }
}

fn action(s: &Snapshot, action: &Action) -> String {
    match action {
        Action::Txn(purpose, txn) => transaction(s, &format!("{purpose:?}").to_lowercase(), txn),
        Action::WriteFile(file) => format!("file: {}", changes(Some(&json(&s.file)), &json(file))),
        Action::Configure(wanted) => match &s.configured {
            Some(configured) => format!("configure: {}", changes(Some(&json(configured)), &json(wanted))),
            None => {
                let follow = wanted.follow.as_ref().map_or("nobody", |follow| follow.node.as_str());
                format!("configure: follow {follow}{}", alone(wanted.recovery))
            }
        },
        Action::Arm { term, until } => format!("arm: term {term}, for {}", after(s, *until)),
        Action::Disarm { term } => format!("disarm: term {term}"),
        Action::DisarmPaused { term } => format!("disarm, paused: term {term}"),
        Action::Start { start, term } => format!("start: as {}, term {term}", format!("{start:?}").to_lowercase()),
        Action::Stop { mode, deadline } => format!("stop: {}, at most {}", format!("{mode:?}").to_lowercase(), after(s, *deadline)),
        Action::Promote { term } => format!("promote: term {term}"),
        Action::Scan { from, tli } => format!("scan: from {from} on timeline {tli}"),
        Action::WriteHistories(texts) => {
            let mark = |text: &str| if text.starts_with('#') { " (burnt)" } else { "" };
            let ids: Vec<String> = texts.iter().map(|(tli, text)| format!("{tli}{}", mark(text))).collect();
            format!("write histories: {}", ids.join(", "))
        }
        Action::AppendHistory(record) => format!("append history: {}", changes(None, &json(record))),
        other => short(&json(other)),
    }
}

fn transaction(s: &Snapshot, purpose: &str, txn: &Txn) -> String {
    let writes: Vec<String> = txn.then.iter().map(|write| one_write(s, write)).collect();
    let when: Vec<String> = txn
        .when
        .iter()
        .map(|compare| match compare {
            // A compared text that is not the one that was seen is worth a word.
            Compare::Is(key, text) if s.etcd.records.text(key) == Some(text) => key.to_string(),
            Compare::Is(key, text) => format!("{key} is {text}"),
            Compare::Missing(key) => format!("no {key}"),
        })
        .collect();
    format!("{purpose}: {} | if {}", writes.join("; "), when.join(", "))
}

fn one_write(s: &Snapshot, write: &Write) -> String {
    match write {
        Write::Delete(key) => format!("delete {key}"),
        Write::Put(key, text) => {
            let new: Value = serde_json::from_str(text).unwrap();
            let old = s.etcd.records.text(key).map(|text| serde_json::from_str::<Value>(text).unwrap());
            match key {
                Key::Policy => "policy".to_owned(),
                _ => format!("{key} ({})", changes(old.as_ref(), &new)),
            }
        }
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Fields that differ; of a new value all that say something.
fn changes(old: Option<&Value>, new: &Value) -> String {
    let mut found = Vec::new();
    differ("", old, new, &mut found);
    if found.is_empty() { "as it is".to_owned() } else { found.join(", ") }
}

fn differ(path: &str, old: Option<&Value>, new: &Value, found: &mut Vec<String>) {
    if old == Some(new) || ["nonce", "v"].contains(&path) {
        return;
    }
    if let (Value::Object(new), None | Some(Value::Object(_))) = (new, old) {
        let before = old.and_then(Value::as_object);
        let name = |key: &String| if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        for (key, value) in new {
            differ(&name(key), before.and_then(|before| before.get(key)), value, found);
        }
        for key in before.into_iter().flat_map(|before| before.keys()).filter(|key| !new.contains_key(*key)) {
            found.push(format!("no {}", name(key)));
        }
        return;
    }
    match old {
        Some(old) => found.push(format!("{path} {}→{}", short(old), short(new))),
        None if new.is_null() || *new == Value::Array(Vec::new()) || *new == Value::String(String::new()) => {}
        None => found.push(format!("{path} {}", short(new))),
    }
}

/// JSON without its quotes and braces; replicas by their name.
fn short(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.is_empty() => "''".to_owned(),
        Value::String(text) => text.trim_end().replace(['\n', '\t'], " "),
        Value::Array(items) => format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => match (map.get("node"), map.get("data")) {
            (Some(node), Some(data)) if map.len() == 2 => format!("{}/{}", short(node), short(data)),
            _ => map.iter().map(|(key, value)| format!("{key} {}", short(value))).collect::<Vec<_>>().join(" "),
        },
        other => other.to_string(),
    }
}
