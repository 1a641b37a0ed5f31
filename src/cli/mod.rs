//! SURFACE. What a person types. One file a verb.
//!
//! May use every other room. The crates `clap` and `anyhow` have their home here.
//!
//! Data goes to stdout and is stable, as table and as JSON; talk goes to stderr. What changes something says what it will do, asks,
//! takes `--yes` and `--dry-run`, and ends with an exit code of [`exit::TABLE`]. What is printed is made by pure functions of what a
//! node answered, so that it is tested without a cluster.
//!
//! In reading order: [`arguments`]: the command line; [`exit`]: how it ends; [`target`]: which node is asked; `store`: etcd itself;
//! `table`, `ask`: what is printed, what is asked; then the verbs.

mod agent;
pub mod arguments;
mod ask;
mod config;
mod demo;
pub mod doctor;
mod dsn;
pub mod exit;
mod guard;
mod history;
mod lab_init;
pub mod list;
pub mod recover;
mod remove;
mod request;
mod simulate;
pub mod status;
mod store;
mod table;
mod target;
mod wal_fetch;
mod why;

use anyhow::Context;
use arguments::{Arguments, ConfigVerb, EtcdVerb, Verb};
use exit::Exit;
use std::future::Future;
use target::Target;

/// Does what the command line says.
///
/// # Errors
/// What went wrong; [`exit::of`] tells the exit code.
pub fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let Arguments { global, verb } = arguments;
    let target = Target::new(global);
    match verb {
        // Those that run a program of their own, and the guard's with a single thread, come without a runtime.
        Verb::Agent(options) => agent::run(&target, &options),
        Verb::Guard(options) => guard::run(&target, &options),
        Verb::LabInit(options) => lab_init::run(&options),
        Verb::WalFetch(options) => block_on(wal_fetch::run(&options)),
        Verb::Demo(options) => demo::run(&target, &options),
        Verb::Simulate(options) => simulate::run(&target, &options),
        Verb::List(options) => block_on(list::run(&target, &options)),
        Verb::Status => block_on(status::run(&target)),
        Verb::Why(options) => block_on(why::run(&target, &options)),
        Verb::History(options) => block_on(history::run(&target, &options)),
        Verb::Failover(options) => block_on(request::failover(&target, &options)),
        Verb::Pause(options) => block_on(request::pause(&target, &options)),
        Verb::Resume(options) => block_on(request::resume(&target, &options)),
        Verb::Acknowledge(options) => block_on(request::acknowledge(&target, &options)),
        Verb::Remove(options) => block_on(remove::run(&target, &options)),
        Verb::Dsn(options) => block_on(dsn::run(&target, &options)),
        Verb::Doctor(options) => block_on(doctor::run(&target, &options)),
        Verb::Config(ConfigVerb::Show) => block_on(config::show(&target)),
        Verb::Config(ConfigVerb::Apply(options)) => block_on(config::apply(&target, &options)),
        Verb::Config(ConfigVerb::Check(options)) => config::check(&target, &options),
        Verb::Config(ConfigVerb::Explain(options)) => config::explain(&target, &options),
        Verb::Etcd(EtcdVerb::Recover(options)) => block_on(recover::run(&target, &options)),
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<Exit>>) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("could not start a runtime")?.block_on(future)
}
