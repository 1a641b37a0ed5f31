//! `guard`: runs the guard. Called with a single thread and no runtime.

use super::{arguments::GuardOptions, exit::Exit};
use crate::{agent::starter, guard, telemetry::log};
use anyhow::Context;
use std::env;

pub(super) fn run(options: &GuardOptions) -> anyhow::Result<Exit> {
    // A full disk behind stderr must not hurt a guard.
    log::init_to(log::Format::Text, || guard::log::Sink).context("could not begin to log")?;
    if options.starter {
        let program = env::current_exe().context("could not find this program")?;
        starter::serve(program).context("could not serve as the starter of guards")?;
        return Ok(Exit::Done);
    }
    let ran = match &options.settings_json {
        Some(file) => guard::server::main_from_json(file),
        None => guard::server::main_from_stdin(),
    };
    ran.context("could not run the guard")?;
    Ok(Exit::Done)
}
