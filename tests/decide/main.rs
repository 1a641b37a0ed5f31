//! The decision core by itself: scripted goldens, and laws that hold of every decision.
//!
//! A script (`*.txt` beside this file) tells a situation and what is decided in it. `UPDATE=1 cargo test --test decide` writes
//! what is decided now; read the difference before you keep it. How to write one: [`script`].
#![expect(clippy::unwrap_used, reason = "tests")]

mod base;
mod edit;
mod effects;
mod laws;
mod script;
mod show;
mod situation;

use pgbaton::{
    decide::{SILENT_AFTER, decide, decision::Action, snapshot::Snapshot},
    model::{instance::ServerRole, moment::Span, record::Stored},
};
use std::{fs, path::Path, sync::Arc};

/// Scripts lie beside this file.
fn scripts() -> Vec<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/decide");
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    found.sort();
    found
}

#[test]
fn every_script_says_what_is_decided() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let mut cases = 0;
    for path in scripts() {
        let text = fs::read_to_string(&path).unwrap();
        cases += text.lines().filter(|line| line.starts_with("== ")).count();
        let now = script::play(&text).unwrap_or_else(|fault| panic!("{}: {fault}", path.display()));
        if now == text {
            continue;
        }
        if update {
            fs::write(&path, now).unwrap();
        } else {
            wrong.push(format!("{}:\n{}", path.display(), first_difference(&text, &now)));
        }
    }
    assert!(wrong.is_empty(), "other decisions than the scripts say (UPDATE=1 rewrites them):\n{}", wrong.join("\n"));
    assert!(cases >= 40, "{cases} cases");
}

/// What the primary says of itself is what the others wait for.
#[test]
fn only_the_first_primary_tells_that_its_roles_are_not_made_yet() {
    let told = |edits: &[&str]| {
        let mut s = base::named("n1 serves").unwrap();
        edits.iter().for_each(|edit| edit::apply(&mut s, edit).unwrap());
        let decision = pgbaton::decide::decide(&s);
        let said = decision.actions.into_iter().find_map(|action| match action {
            pgbaton::decide::decision::Action::PutMember(record) => Some(record.roles_missing),
            _ => None,
        });
        said.expect("a member record")
    };
    let failed = r#"failures.migrate = {"count": 1, "at": "0s", "why": "lock timeout"}"#;
    assert!(told(&["leader.term = 1"]));
    assert!(!told(&["leader.term = 1", "memory.migrated = 1"]));
    assert!(told(&["leader.term = 1", "memory.migrated = 1", "tasks.migrate = now"]));
    assert!(told(&["leader.term = 1", "memory.migrated = 1", failed]));
    assert!(!told(&[]));
}

/// What is true already is said again only so often that silence means something.
#[test]
fn what_etcd_shows_of_a_node_is_seldom_written_again() {
    let mut s = base::named("n2 streams").unwrap();
    let said = |s: &pgbaton::decide::snapshot::Snapshot| {
        let decision = pgbaton::decide::decide(s);
        let record = decision.actions.into_iter().find_map(|action| match action {
            pgbaton::decide::decision::Action::PutMember(record) => Some(*record),
            _ => None,
        });
        (record, decision.memory)
    };
    let (record, memory) = said(&s);
    let record = record.expect("nothing was said yet");
    s.memory = memory;
    let written = s.now.boot;
    s.now.boot = written.plus(pgbaton::model::moment::Span::from_millis(2_500));
    assert!(said(&s).0.is_some(), "etcd shows something else");
    std::sync::Arc::make_mut(&mut s.etcd.records).members.get_mut(&s.me.node).unwrap().record = record;
    assert_eq!(said(&s).0, None);
    edit::apply(&mut s, "server.role.standby.replay = 0/2FFFF00").unwrap();
    assert!(said(&s).0.is_some(), "its position changed");
    std::sync::Arc::make_mut(&mut s.etcd.records).members.clear();
    assert!(said(&s).0.is_some(), "its key is gone");
}

#[test]
fn a_node_that_has_nothing_new_to_say_is_not_silent() {
    let (writes, longest) = says_for_a_minute(|_| {});
    assert!((12..=21).contains(&writes), "{writes} in a minute");
    assert!(longest.plus(Span::from_secs(1)) < SILENT_AFTER, "{longest}");
}

/// A walreceiver that comes and goes with every look: what others act on is told, and etcd is not flooded (oracle O17).
#[test]
fn a_node_whose_state_changes_again_and_again_says_so_now_and_then() {
    let (writes, longest) = says_for_a_minute(|s| {
        let streams = s.role().is_some_and(ServerRole::streams);
        edit::apply(s, if streams { "standby.receiver.streaming = false" } else { "standby.receiver.streaming = true" }).unwrap();
    });
    assert!((120..=140).contains(&writes), "{writes} in a minute");
    assert!(longest.plus(Span::from_secs(1)) < SILENT_AFTER, "{longest}");
}

/// How often a standby says something of itself within a minute, and its longest silence. `change`: what is new before each decision.
fn says_for_a_minute(change: impl Fn(&mut Snapshot)) -> (u64, Span) {
    let mut s = base::named("n2 streams").unwrap();
    let (mut writes, mut last, mut longest) = (0, s.now.boot, Span::ZERO);
    let end = s.now.boot.plus(Span::from_secs(60));
    while s.now.boot < end {
        change(&mut s);
        let decision = decide(&s);
        for action in decision.actions {
            if let Action::PutMember(record) = action {
                writes += 1;
                longest = longest.max(s.now.boot.since(last));
                last = s.now.boot;
                let stored = Stored::written(*record, 200 + writes);
                Arc::make_mut(&mut s.etcd.records).members.insert(s.me.node.clone(), stored);
            }
        }
        s.memory = decision.memory;
        s.now.boot = decision.wake_at.min(s.now.boot.plus(Span::from_millis(25)));
    }
    (writes, longest)
}

/// Migrations that failed are not forgotten with the decision that asked for them.
#[test]
fn migrations_that_failed_are_made_again() {
    let mut s = base::named("n1 serves").unwrap();
    let migrates =
        |s: &pgbaton::decide::snapshot::Snapshot| pgbaton::decide::decide(s).actions.contains(&pgbaton::decide::decision::Action::Migrate);
    edit::apply(&mut s, "memory.migrated = 3").unwrap();
    assert!(!migrates(&s));
    edit::apply(&mut s, r#"failures.migrate = {"count": 1, "at": "0s", "why": "lock timeout"}"#).unwrap();
    assert!(migrates(&s));
}

/// A few lines around the first difference.
fn first_difference(before: &str, now: &str) -> String {
    let (before, now): (Vec<&str>, Vec<&str>) = (before.lines().collect(), now.lines().collect());
    let at = before.iter().zip(&now).take_while(|(one, other)| one == other).count();
    let title = before[..at.min(before.len())].iter().rev().find(|line| line.starts_with("== ")).unwrap_or(&"");
    let part = |lines: &[&str]| lines.iter().skip(at).take(8).map(|line| format!("    {line}\n")).collect::<String>();
    format!("  {title}\n  line {}, the script says\n{}  decided is\n{}", at + 1, part(&before), part(&now))
}

/// An operator who reads an id in a log finds it in the guide.
#[test]
fn every_reason_stands_in_the_guide() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (alarms, reasons) = (read("docs/src/alarms.md"), read("docs/src/reasons.md"));
    let mut found = 0;
    let mut missing = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/decide")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for (call, page) in [("alarm(", &alarms), ("waits(", &reasons), ("refused(", &reasons), ("because(", &reasons)] {
            for after in text.split(&format!("d.{call}")).skip(1) {
                let Some(id) = after.trim_start().strip_prefix('"').and_then(|text| text.split('"').next()) else { continue };
                found += 1;
                if !page.contains(&format!("`{id}`")) {
                    missing.push(format!("{id} ({call}…)"));
                }
            }
        }
    }
    assert!(found > 80, "only {found} reasons were found in the rules");
    assert!(missing.is_empty(), "not in the guide: {missing:?}");
}
