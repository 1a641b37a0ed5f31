//! `guard`: runs the guard. Called with a single thread and no runtime.

use super::{
    arguments::GuardOptions,
    exit::{Exit, Failure},
    target::Target,
};
use crate::{
    agent::{starter, wiring},
    guard::{self, GuardSettings},
    telemetry::log,
};
use anyhow::Context;
use std::env;

pub(super) fn run(target: &Target, options: &GuardOptions) -> anyhow::Result<Exit> {
    // A full disk behind stderr must not hurt a guard.
    log::init_to(log::Format::Text, || guard::log::Sink).context("could not begin to log")?;
    if options.starter {
        let program = env::current_exe().context("could not find this program")?;
        starter::serve(program).context("could not serve as the starter of guards")?;
        return Ok(Exit::Done);
    }
    let ran = match &options.settings_json {
        Some(file) => guard::server::main_from_json(file),
        None if options.from_stdin => guard::server::main_from_stdin(),
        None => guard::server::run(of_configuration(target)?),
    };
    ran.context("could not run the guard")?;
    Ok(Exit::Done)
}

/// As the agent of this configuration would start it.
fn of_configuration(target: &Target) -> anyhow::Result<GuardSettings> {
    let config = target.config()?;
    crate::config::check_environment(&config)?;
    let owner = wiring::prepare(&config).map_err(|fault| Failure::of(Exit::Failed, format!("{:#}", anyhow::Error::from(fault))))?;
    Ok(wiring::guard_settings(&config, &owner))
}
