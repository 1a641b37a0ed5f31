//! `config`: the cluster policy, and the check of a node's configuration.

use super::{
    arguments::{ApplyOptions, CheckOptions, ExplainOptions, Output},
    ask::{self, Answer},
    exit::{Exit, Failure},
    table,
    target::Target,
};
use crate::{
    agent::wiring,
    config::{self, Config, Faults, reference},
    model::{policy::ClusterPolicy, record::PolicyRecord},
    postgres,
};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, fmt::Write};

pub(super) async fn show(target: &Target) -> anyhow::Result<Exit> {
    let record: PolicyRecord = target.client()?.get_json("/v1/policy").await?;
    let text = match target.output() {
        Output::Json => table::json(&record)?,
        Output::Table => format!("# version {}\n{}", record.version, toml(&record.policy)?),
    };
    table::print(&text)?;
    Ok(Exit::Done)
}

pub(super) async fn apply(target: &Target, options: &ApplyOptions) -> anyhow::Result<Exit> {
    let policy = config::read_policy(&options.file)?;
    let client = target.client()?;
    let now: PolicyRecord = client.get_json("/v1/policy").await?;
    let changes = changes(&now.policy, &policy)?;
    if changes.is_empty() {
        eprintln!("Nothing changes: version {} says the same.", now.version);
        return Ok(Exit::Done);
    }
    let version = options.version.unwrap_or(now.version);
    let plan = format!("The cluster policy will change from version {version}:\n{}", changes.join("\n"));
    if ask::confirm(&plan, &options.confirmation)? == Answer::Shown {
        return Ok(Exit::Done);
    }
    let body = json!({ "policy": policy, "version": version, "reason": options.reason });
    let record: PolicyRecord = client.put_json("/v1/policy", Some(version), &body).await?;
    match target.output() {
        Output::Json => table::print(&table::json(&record)?).map(drop)?,
        Output::Table => eprintln!("Version {} is in force.", record.version),
    }
    Ok(Exit::Done)
}

pub(super) fn check(target: &Target, options: &CheckOptions) -> anyhow::Result<Exit> {
    let file = match &options.file {
        Some(file) => file.clone(),
        None => target.config_file()?,
    };
    let outcome = if options.policy {
        config::read_policy(&file).map(drop)
    } else if options.shape_only {
        config::check_shape(&file)
    } else {
        config::read(&file).and_then(|config| check_host(&config))
    };
    let faults = outcome.err().unwrap_or_default();
    match target.output() {
        Output::Json => table::print(&table::json(&json!({ "file": file, "faults": faults_json(&faults) }))?).map(drop)?,
        Output::Table if faults.is_empty() => eprintln!("{} is well.", file.display()),
        Output::Table => table::print(&format!("{faults}\n")).map(drop)?,
    }
    Ok(if faults.is_empty() { Exit::Done } else { Exit::Config })
}

/// What the host lacks, seen with the eyes of the user that would run PostgreSQL.
pub(super) fn check_host(config: &Config) -> Result<(), Faults> {
    let Ok(owner) = wiring::owner(config) else { return config::check_environment(config) };
    let user = postgres::Owner { uid: owner.uid.as_raw(), gid: owner.gid.as_raw() };
    config::check_host(config, |path| {
        postgres::reach::may_make(user, path).map_err(|(refused, why)| {
            let (name, shown) = (&owner.name, path.display());
            if refused == path {
                return (format!("user {name}, who runs PostgreSQL, may not write in {shown}: {why}"), format!("chown {name} {shown}"));
            }
            let what =
                format!("{shown} does not exist, and user {name}, who runs PostgreSQL, may not write in {}: {why}", refused.display());
            (what, format!("make it for that user: install -d -o {name} -g {name} -m 0700 {shown}"))
        })
    })
}

pub(super) fn explain(target: &Target, options: &ExplainOptions) -> anyhow::Result<Exit> {
    if target.output() == Output::Json {
        return Err(Failure::of(Exit::Usage, "config explain prints a file to begin with, which is TOML: leave out --output json"));
    }
    table::print(&if options.policy { reference::policy_reference() } else { reference::node_reference() })?;
    Ok(Exit::Done)
}

fn faults_json(faults: &Faults) -> Vec<Value> {
    let one = |fault: &config::Fault| json!({ "file": fault.file, "line": fault.line, "key": fault.key, "what": fault.what, "remedy": fault.remedy });
    faults.as_slice().iter().map(one).collect()
}

/// What differs, a line a key.
fn changes(now: &ClusterPolicy, then: &ClusterPolicy) -> anyhow::Result<Vec<String>> {
    let (now, then) = (flat(now)?, flat(then)?);
    let keys: BTreeSet<&String> = now.keys().chain(then.keys()).collect();
    let text = |value: Option<&Value>| value.map_or_else(|| "(not set)".to_owned(), ToString::to_string);
    let changed = keys.into_iter().filter(|key| now.get(*key) != then.get(*key));
    Ok(changed.map(|key| format!("  {key}: {} -> {}", text(now.get(key)), text(then.get(key)))).collect())
}

/// Keys as dotted paths.
fn flat(policy: &ClusterPolicy) -> anyhow::Result<Map<String, Value>> {
    let mut flat = Map::new();
    for (key, value) in object(policy)? {
        match value {
            Value::Object(inner) => flat.extend(inner.into_iter().map(|(name, value)| (format!("{key}.{name}"), value))),
            value => drop(flat.insert(key, value)),
        }
    }
    Ok(flat)
}

fn object(policy: &ClusterPolicy) -> anyhow::Result<Map<String, Value>> {
    match serde_json::to_value(policy)? {
        Value::Object(object) => Ok(object),
        _ => Ok(Map::new()),
    }
}

/// The policy as the file that `config apply` reads.
fn toml(policy: &ClusterPolicy) -> anyhow::Result<String> {
    let (tables, plain): (Vec<_>, Vec<_>) = object(policy)?.into_iter().partition(|(_, value)| value.is_object());
    let mut text = String::new();
    for (key, value) in plain {
        writeln!(text, "{key} = {}", literal(&value))?;
    }
    for (key, value) in tables {
        writeln!(text, "\n[{key}]")?;
        for (name, value) in value.as_object().into_iter().flatten() {
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            // A name with a point in it (an extension's parameter) is one key, not two.
            let name = if plain { name.clone() } else { literal(&Value::String(name.clone())) };
            writeln!(text, "{name} = {}", literal(value))?;
        }
    }
    Ok(text)
}

/// Texts, numbers, booleans and lists of texts are written as in JSON, but for one letter that TOML wants escaped.
fn literal(value: &Value) -> String {
    value.to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::moment::Span;

    #[test]
    fn what_is_shown_can_be_applied_again() {
        let mut policy = ClusterPolicy { hold_for: Some(Span::from_millis(2_000)), ..ClusterPolicy::default() };
        policy.take_after = Some(Span::from_secs(3));
        policy.parameters.insert("pg_stat_statements.max".to_owned(), "5000".to_owned());
        policy.parameters.insert("archive_command".to_owned(), "cp \"%p\" 'C:\\x\u{7f}/%f'".to_owned());
        policy.hba.push("host all \"my user\" 10.0.0.0/8 scram-sha-256".to_owned());
        let text = toml(&policy).expect("text");
        assert_eq!(config::check_policy(std::path::Path::new("p.toml"), &text), Ok(policy), "{text}");
    }

    #[test]
    fn changes_name_the_keys_that_differ() {
        let now = ClusterPolicy::default();
        let mut then = ClusterPolicy { rewind: false, hold_for: Some(Span::from_secs(2)), ..ClusterPolicy::default() };
        then.parameters.insert("work_mem".to_owned(), "64MB".to_owned());
        assert_eq!(
            changes(&now, &then).expect("changes"),
            ["  hold_for: (not set) -> \"2s\"", "  parameters.work_mem: (not set) -> \"64MB\"", "  rewind: true -> false"]
        );
    }
}
