//! `policy.toml` → [`ClusterPolicy`]: the same file for the first node's bootstrap and for `pgbaton config apply`.

use super::{
    fault::Faults,
    file::{self, Entry, Reader, Section},
};
use crate::model::{
    moment::Span,
    policy::{AntiFlap, ClusterPolicy, CrashPolicy, Depose, Durability, Preset, Reclone, SlotRetention, SyncSpread},
    policy_check::{self, MOST_CONFIRM, MOST_FAILOVERS},
};
use std::{collections::BTreeMap, path::Path};
use toml::de::DeValue;

/// Reads and checks a policy file. An empty file is the default policy.
///
/// # Errors
/// Everything that is wrong.
pub fn read_policy(file: &Path) -> Result<ClusterPolicy, Faults> {
    check_policy(file, &file::read_file(file)?)
}

/// The policy of a new cluster, and whether its file names what commits wait for.
///
/// # Errors
/// Everything that is wrong.
pub(super) fn read_first_policy(file: &Path) -> Result<(ClusterPolicy, bool), Faults> {
    let text = file::read_file(file)?;
    let policy = check_policy(file, &text)?;
    let named = text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("durability"));
    Ok((policy, named))
}

/// Checks a policy that was read from `file` (a name for the faults).
///
/// # Errors
/// Everything that is wrong.
pub fn check_policy(file: &Path, text: &str) -> Result<ClusterPolicy, Faults> {
    check_text(file, text).map(|(policy, _)| policy)
}

/// The policy, and the keys that were asked for.
pub(super) fn check_text(file: &Path, text: &str) -> Result<(ClusterPolicy, Vec<String>), Faults> {
    file::with_document(file, text, true, |reader, root| {
        let policy = root_keys(reader, root)?;
        for fault in policy_check::faults(&policy) {
            reader.fault(&fault.key, fault.what, fault.remedy);
        }
        Some((policy, std::mem::take(&mut reader.asked)))
    })
}

/// Keys of later versions: key, and what holds here instead.
const NOT_YET: [(&str, &str); 1] = [("target_rto", "remove it; choose a preset")];

fn root_keys(reader: &mut Reader, mut root: Section<'_>) -> Option<ClusterPolicy> {
    let mut policy = ClusterPolicy::default();
    let presets = [("default", Preset::Default), ("fast", Preset::Fast), ("wan", Preset::Wan)];
    let crash = [("lossless", CrashPolicy::Lossless), ("failover", CrashPolicy::Failover), ("restart", CrashPolicy::Restart)];
    let reclone = [("never", Reclone::Never), ("when-rewind-fails", Reclone::WhenRewindFails), ("always", Reclone::Always)];
    let durability = [
        ("auto", Durability::Auto),
        ("async", Durability::Async),
        ("quorum", Durability::Quorum),
        ("strict-quorum", Durability::StrictQuorum),
    ];
    let spread = [("zone", SyncSpread::Zone), ("any", SyncSpread::Any)];
    let depose = [("by-quorum", Depose::ByQuorum), ("after-lease", Depose::AfterLease)];
    // One faulty key leaves its default in place: the fault is noted, and what is checked together still can be.
    set(&mut policy.preset, root.get("preset"), |entry| reader.word(entry, &presets));
    set(&mut policy.renew_every, root.get("renew_every"), |entry| span(reader, entry, "500ms").map(Some));
    set(&mut policy.hold_for, root.get("hold_for"), |entry| span(reader, entry, "2.8s").map(Some));
    set(&mut policy.take_after, root.get("take_after"), |entry| span(reader, entry, "3.3s").map(Some));
    set(&mut policy.soft_stop, root.get("soft_stop"), |entry| span(reader, entry, "200ms").map(Some));
    set(&mut policy.durability, root.get("durability"), |entry| reader.word(entry, &durability));
    set(&mut policy.quorum_standbys, root.get("quorum_standbys"), |entry| reader.integer(entry, 1..=MOST_CONFIRM));
    set(&mut policy.sync_spread, root.get("sync_spread"), |entry| reader.word(entry, &spread));
    set(&mut policy.depose, root.get("depose"), |entry| reader.word(entry, &depose));
    set(&mut policy.failsafe, root.get("failsafe"), |entry| reader.boolean(entry));
    set(&mut policy.max_lag, root.get("max_lag"), |entry| reader.bytes(entry, "\"1MB\""));
    set(&mut policy.crash_policy, root.get("crash_policy"), |entry| reader.word(entry, &crash));
    set(&mut policy.rewind, root.get("rewind"), |entry| reader.boolean(entry));
    set(&mut policy.reclone, root.get("reclone"), |entry| reader.word(entry, &reclone));
    set(&mut policy.allow_unfenced, root.get("allow_unfenced"), |entry| reader.boolean(entry));
    set(&mut policy.primary_start_timeout, root.get("primary_start_timeout"), |entry| span(reader, entry, "5min"));
    set(&mut policy.stop_timeout, root.get("stop_timeout"), |entry| span(reader, entry, "60s"));
    set(&mut policy.parameters, root.get("parameters"), |entry| parameters(reader, entry));
    set(&mut policy.hba, root.get("hba"), |entry| {
        let items = reader.items(entry)?;
        items.iter().map(|item| reader.text(item).map(str::to_owned)).collect()
    });
    let flapping = root.section(reader, "anti_flap");
    policy.anti_flap = anti_flap(reader, flapping);
    let retention = root.section(reader, "member_slot_retention");
    policy.member_slot_retention = slot_retention(reader, retention);
    for (key, remedy) in NOT_YET {
        if let Some(entry) = root.get(key) {
            reader.fault(&entry.path, "not available in this version", remedy);
        }
    }
    root.finish(reader);
    Some(policy)
}

fn set<'a, T>(place: &mut T, entry: Option<Entry<'a>>, check: impl FnOnce(&Entry<'a>) -> Option<T>) {
    if let Some(value) = entry.and_then(|entry| check(&entry)) {
        *place = value;
    }
}

fn span(reader: &mut Reader, entry: &Entry<'_>, example: &str) -> Option<Span> {
    reader.quantity(entry, &format!("{example:?}"))
}

fn anti_flap(reader: &mut Reader, mut section: Section<'_>) -> AntiFlap {
    let mut limit = AntiFlap::default();
    set(&mut limit.failovers, section.get("failovers"), |entry| reader.integer(entry, 0..=MOST_FAILOVERS));
    set(&mut limit.within, section.get("within"), |entry| span(reader, entry, "30min"));
    section.finish(reader);
    limit
}

fn slot_retention(reader: &mut Reader, mut section: Section<'_>) -> SlotRetention {
    let mut retention = SlotRetention::default();
    set(&mut retention.time, section.get("time"), |entry| span(reader, entry, "1d"));
    set(&mut retention.bytes, section.get("bytes"), |entry| reader.bytes(entry, "\"10GB\""));
    section.finish(reader);
    retention
}

/// Values as PostgreSQL writes them: numbers and booleans may stand without quotes.
fn parameters(reader: &mut Reader, entry: &Entry<'_>) -> Option<BTreeMap<String, String>> {
    let mut parameters = BTreeMap::new();
    for (name, value) in reader.pairs(entry)? {
        let text = match value.value {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(true) => "on".to_owned(),
            DeValue::Boolean(false) => "off".to_owned(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            DeValue::Float(number) if number.as_str().parse::<f64>().is_ok_and(f64::is_finite) => number.as_str().to_owned(),
            _ => {
                reader.fault(&value.path, "no value of a PostgreSQL parameter", "write a text, a number, true or false");
                continue;
            }
        };
        parameters.insert(name.to_owned(), text);
    }
    Some(parameters)
}
