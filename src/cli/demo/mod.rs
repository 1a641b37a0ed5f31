//! `demo`: a whole cluster on this machine, and keys to break it.
//!
//! In reading order: `act`: what can be done; `watch`: what is seen; `stage`: the cluster with its clients; `report`: what
//! a fault cost; `script`: the tour without anybody; `live`: the screen, with `picture` (what is on it) and `draw` (how).

mod act;
mod draw;
mod live;
mod picture;
mod report;
mod script;
mod stage;
mod watch;

use super::{
    arguments::{DemoOptions, DemoPreset},
    exit::{Exit, Failure},
    target::Target,
};
use crate::{
    lab::{EtcdTiming, Files, Lab, LabSpec, NotHere, Walls},
    model::policy::{Durability, Preset},
};
use anyhow::{Context, Result};
use std::{
    env, fs,
    io::{IsTerminal, stdin, stdout},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use tokio::signal::unix::{SignalKind, signal};

pub(super) fn run(target: &Target, options: &DemoOptions) -> Result<Exit> {
    if !(options.script || stdin().is_terminal() && stdout().is_terminal()) {
        return Err(Failure::of(Exit::Usage, "the screen needs a terminal; without one try: pgbaton demo --script"));
    }
    let spec = spec(options)?;
    watch_signals(&spec.interrupted)?;
    eprintln!("Three nodes and three etcd members, PostgreSQL of {}:", spec.bin_dir.display());
    let lab = Lab::build(&spec, &|step| eprintln!("  {step}"))?;
    if let (Walls::Loopback, Err(NotHere(why))) = (lab.walls(), lab.can(&act::Act::CutOff.fault("n1"))) {
        eprintln!("  on loopback ports: {why}");
    }
    let hold = spec.policy.timers().hold;
    let done = if options.script { script::run(&lab, hold, target.output()) } else { live::run(&lab, hold, &spec.interrupted) };
    let kept = options.keep_logs.as_ref().map_or(Ok(()), |directory| keep_logs(&lab, directory));
    eprintln!("Removing everything …");
    let gone = lab.teardown();
    let interrupted = spec.interrupted.load(Ordering::SeqCst);
    if interrupted {
        gone?;
        return Err(Failure::of(Exit::Failed, "interrupted: everything was removed"));
    }
    let exit = done?;
    kept.and(gone).map(|()| exit)
}

fn spec(options: &DemoOptions) -> Result<LabSpec> {
    let bin_dir = match &options.bin_dir {
        Some(directory) => directory.clone(),
        None => find_postgres().ok_or_else(|| missing("PostgreSQL 15 or newer", "postgresql-15; or name its programs by --bin-dir"))?,
    };
    for program in ["postgres", "initdb", "pg_basebackup", "pg_rewind", "psql"] {
        if !bin_dir.join(program).exists() {
            return Err(Failure::of(Exit::Failed, format!("there is no {program} in {}: name another --bin-dir", bin_dir.display())));
        }
    }
    for (program, package) in [("etcd", "etcd-server"), ("etcdctl", "etcd-client")] {
        if !on_path(program) {
            return Err(missing(program, package));
        }
    }
    let program = env::current_exe().context("could not find this program")?;
    let mut spec = LabSpec::new(&program, &bin_dir);
    spec.cluster = "demo".to_owned();
    spec.keep_files = Files::RemoveAlways;
    if options.preset == DemoPreset::Fast {
        spec.timing = EtcdTiming::FAST;
        spec.policy.preset = Preset::Fast;
    }
    spec.policy.durability = Durability::Quorum;
    Ok(spec)
}

fn missing(what: &str, package: &str) -> anyhow::Error {
    Failure::of(Exit::Failed, format!("{what} is not here: install {package} (make deps does it)"))
}

/// The programs of the newest PostgreSQL where Debian puts it, else where `PATH` finds them.
fn find_postgres() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = versions.map(|entry| entry.path()).filter(|path| path.join("bin/postgres").exists()).max_by_key(|path| number(path));
    newest.map(|path| path.join("bin")).or_else(|| path_directories().into_iter().find(|directory| directory.join("postgres").exists()))
}

fn path_directories() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn on_path(program: &str) -> bool {
    path_directories().iter().any(|directory| directory.join(program).exists())
}

/// Ctrl-C and the like set the flag, at which everything ends in order; the second one does not wait for that.
fn watch_signals(interrupted: &Arc<AtomicBool>) -> Result<()> {
    let flag = Arc::clone(interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("could not start a runtime")?;
    thread::Builder::new().name("demo-signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
            let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds else { return };
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if flag.swap(true, Ordering::SeqCst) {
                    // The hosts end with us, and the lab's janitor removes the rest.
                    std::process::exit(130);
                }
                eprintln!("\rEnding …");
            }
        });
    })?;
    Ok(())
}

/// Copies what agents, guards, PostgreSQL and etcd logged.
fn keep_logs(lab: &Lab, into: &Path) -> Result<()> {
    let copy = |from: &Path, name: &str| {
        let entries = fs::read_dir(from).into_iter().flatten().flatten().map(|entry| entry.path());
        let wanted = |path: &PathBuf| path.is_file() && path.extension().is_some_and(|kind| kind == "log" || kind == "toml");
        let target = into.join(name);
        for path in entries.filter(wanted) {
            fs::create_dir_all(&target)?;
            fs::copy(&path, target.join(path.file_name().unwrap_or_default()))?;
        }
        std::io::Result::Ok(())
    };
    let nodes = lab.nodes().iter().try_for_each(|node| {
        copy(&node.seen_directory, &node.name)?;
        copy(&node.seen_directory.join("state"), &node.name)
    });
    nodes
        .and_then(|()| copy(&lab.directory().join("etcd"), "etcd"))
        .with_context(|| format!("could not copy the logs to {}", into.display()))?;
    eprintln!("  logs: {}", into.display());
    Ok(())
}
