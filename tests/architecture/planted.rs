//! One violation of each kind is planted, and found.

use super::{LONGEST, SourceFile, rules::violations, too_long};

fn found(path: &str, text: &str) -> Vec<String> {
    violations(&[SourceFile::new(path, text)])
}

#[test]
fn a_planted_violation_of_each_kind_is_found() {
    let planted = [
        ("dcs/etcd.rs", "use crate::postgres::Pool;", "src/dcs/etcd.rs:1: dcs may not use crate::postgres::Pool"),
        ("dcs/etcd.rs", "\nuse crate::{model::x, guard};", "src/dcs/etcd.rs:2: dcs may not use crate::guard"),
        ("dcs/etcd.rs", "fn f() { crate::agent::run() }", "src/dcs/etcd.rs:1: dcs may not use crate::agent::run"),
        ("dcs/etcd.rs", "use super::super::config::Config;", "src/dcs/etcd.rs:1: dcs may not use crate::config::Config"),
        ("model/lsn.rs", "use crate::decide::x;", "src/model/lsn.rs:1: model may not use crate::decide::x"),
        ("decide/vote.rs", "use crate::clock;", "src/decide/vote.rs:1: decide may not use crate::clock"),
        ("sim/world.rs", "use crate::clock::now;", "src/sim/world.rs:1: sim may not use crate::clock::now"),
        ("sim/world.rs", "use crate::agent::run::x;", "src/sim/world.rs:1: sim may not use crate::agent::run::x"),
        ("agent/run.rs", "use crate::config::Config;", "src/agent/run.rs:1: agent may not use crate::config::Config"),
        ("api/peer.rs", "use crate::dcs::Etcd;", "src/api/peer.rs:1: api may not use crate::dcs::Etcd"),
        ("api/peer.rs", "use crate::agent::state::State;", "src/api/peer.rs:1: api may not use crate::agent::state::State"),
        ("lab/host.rs", "use crate::decide::decide;", "src/lab/host.rs:1: lab may not use crate::decide::decide"),
        ("config/check.rs", "use crate::dcs::Etcd;", "src/config/check.rs:1: config may not use crate::dcs::Etcd"),
        ("zebra/mod.rs", "", "src/zebra/mod.rs: is in no row of tests/architecture/table.rs"),
        ("decide/mod.rs", "//! The rules.\n", "src/decide/mod.rs:1: does not begin with \"//! PURE. \""),
        ("decide/utils.rs", "", "src/decide/utils.rs: the name \"utils\" says nothing about what is inside"),
        ("agent/helpers/x.rs", "", "src/agent/helpers/x.rs: the name \"helpers\" says nothing about what is inside"),
        ("agent/run.rs", "use axum::Router;", "src/agent/run.rs:1: axum lives in api"),
        ("cli/list.rs", "fn f() -> reqwest::Client {}", "src/cli/list.rs:1: reqwest lives in peers, telemetry/notify, api/client"),
        ("telemetry/log.rs", "use reqwest;", "src/telemetry/log.rs:1: reqwest lives in peers, telemetry/notify, api/client"),
        ("lib.rs", "use clap::Parser;", "src/lib.rs:1: clap lives in cli, main"),
        ("decide/vote.rs", "use tokio::time::sleep;", "src/decide/vote.rs:1: tokio in a pure file: it waits"),
        ("decide/vote.rs", "fn f() { std::fs::read(p) }", "src/decide/vote.rs:1: std::fs in a pure file: it touches the disk"),
        ("decide/vote.rs", "use std::{net::TcpStream};", "src/decide/vote.rs:1: std::net in a pure file: it touches the network"),
        ("decide/vote.rs", "use std::process;", "src/decide/vote.rs:1: std::process in a pure file: it starts processes"),
        ("decide/vote.rs", "fn f() { std::env::var(x) }", "src/decide/vote.rs:1: std::env in a pure file: it reads the environment"),
        ("decide/vote.rs", "fn f() { tracing::info!(x) }", "src/decide/vote.rs:1: tracing in a pure file: it logs"),
        ("decide/vote.rs", "async fn f() {}", "src/decide/vote.rs:1: async in a pure file: it waits"),
        ("agent/state.rs", "async fn f() {}", "src/agent/state.rs:1: async in a pure file: it waits"),
        ("agent/change.rs", "use tokio::spawn;", "src/agent/change.rs:1: tokio in a pure file: it waits"),
        ("agent/state/event.rs", "fn f(x: SystemTime) {}", "src/agent/state/event.rs:1: SystemTime in a pure file: it reads a clock"),
        ("model/lsn.rs", "fn f(x: HashMap<A, B>) {}", "src/model/lsn.rs:1: HashMap in a pure file: it iterates in no order: use BTreeMap"),
        ("model/lsn.rs", "fn f() { println!(\"{x}\") }", "src/model/lsn.rs:1: println in a pure file: it prints"),
    ];
    for (path, text, expected) in planted {
        assert_eq!(found(path, text), [expected], "{path}: {text}");
    }
}

#[test]
fn crates_that_are_impure_and_homeless_are_told_twice() {
    assert_eq!(
        found("model/lsn.rs", "use uuid::Uuid;"),
        ["src/model/lsn.rs:1: uuid lives in clock", "src/model/lsn.rs:1: uuid in a pure file: it draws lots"]
    );
}

#[test]
fn what_the_table_allows_is_not_found() {
    let allowed = [
        ("dcs/mod.rs", "//! EFFECT. etcd.\nuse crate::{clock, model::lsn::Lsn};\nuse etcd_client::Client;"),
        ("dcs/etcd.rs", "use super::keys::x;\nuse crate::dcs::view;"),
        ("agent/wiring.rs", "use crate::config::Config;"),
        ("agent/state.rs", "use crate::{decide::Snapshot, model::lsn::Lsn};"),
        ("sim/node.rs", "use crate::agent::state::State;"),
        ("lab/node.rs", "use crate::api::client::Client; use tokio_postgres::Client;"),
        ("config/mod.rs", "//! INPUT. x\nuse crate::dcs::Settings;"),
        ("decide/vote.rs", "// tokio::x\n#[cfg(test)]\nmod tests { use std::fs; async fn f() {} }"),
        ("decide/tests.rs", "use std::fs;"),
        ("agent/run.rs", "use crate::telemetry::{metrics::Recorder, log};"),
        ("agent/run.rs", "use crate::telemetry::metrics; fn f() { metrics::LAG }"),
        ("cli/mod.rs", "//! SURFACE. x\nuse crate::{agent::wiring, config::Config, lab}; use clap::Parser;"),
    ];
    for (path, text) in allowed {
        assert_eq!(found(path, text), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn a_file_that_is_too_long_is_found() {
    let lines = |count: usize| [SourceFile::new("decide/vote.rs", &"\n".repeat(count))];
    assert_eq!(too_long(&lines(LONGEST)), Vec::<String>::new());
    let expected = format!("src/decide/vote.rs: {} lines, more than {LONGEST}: split it by what it is about", LONGEST + 1);
    assert_eq!(too_long(&lines(LONGEST + 1)), [expected]);
}
