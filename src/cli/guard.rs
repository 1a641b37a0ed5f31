//! `guard`: runs the guard. Called with a single thread and no runtime.

use super::{arguments::GuardOptions, exit::Exit};
use crate::{agent::starter, guard, telemetry::log};
use anyhow::Context;
use std::{env, path::PathBuf};

pub(super) fn run(options: &GuardOptions) -> anyhow::Result<Exit> {
    // A full disk behind stderr must not hurt a guard.
    log::init_to(log::Format::Text, || guard::log::Sink).context("could not begin to log")?;
    if options.starter {
        let settings = options.settings_json.display().to_string();
        let launch = starter::Launch {
            program: env::current_exe().context("could not find this program")?,
            args: vec!["guard".to_owned(), "--settings-json".to_owned(), settings],
            socket: PathBuf::new(),
        };
        starter::serve(&launch).context("could not serve as the starter of guards")?;
    } else {
        guard::server::main_from_json(&options.settings_json).context("could not run the guard")?;
    }
    Ok(Exit::Done)
}
