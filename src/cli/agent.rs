//! `agent`: runs a node.

use super::{
    arguments::AgentOptions,
    exit::{Exit, Failure},
    target::Target,
};
use crate::{
    agent::{self, wiring::Attach},
    api,
    config::node::LogFormat,
    peers,
    telemetry::log,
};
use anyhow::Context;
use std::{env, sync::Arc};

pub(super) fn run(target: &Target, _options: &AgentOptions) -> anyhow::Result<Exit> {
    let config = target.config()?;
    let _last = log::init_apart(match config.telemetry.log {
        LogFormat::Text => log::Format::Text,
        LogFormat::Json => log::Format::Json,
    })
    .context("could not begin to log")?;
    crate::config::check_environment(&config)?;
    let program = env::current_exe().context("could not find this program")?;
    let listeners = api::listen(&config.api.listen).map_err(|fault| Failure::of(Exit::Failed, no_api(&fault)))?;
    let attach = |attach| serve_api(attach, listeners);
    let why = agent::run(config, program, attach).map_err(|fault| Failure::of(Exit::Failed, agent::chain(&fault)))?;
    tracing::info!(why, "the agent ends");
    Ok(Exit::Done)
}

fn serve_api(attach: Attach, listeners: api::Listeners) -> Result<api::Server, String> {
    let Attach { handle, metrics, config, service_uid } = attach;
    let rendered = Arc::clone(&metrics);
    let settings = api::Settings {
        socket: Some(config.run_dir.join("agent.sock")),
        allow: config
            .api
            .allow
            .iter()
            .map(|network| network.parts())
            .map(|(address, prefix)| api::allow::Network::new(address, prefix))
            .collect(),
        render: Arc::new(move || rendered.render()),
        door: config.api.peer_key.as_ref().map(|file| {
            let key = peers::Key::new(&file.content);
            Arc::new(peers::Door::new(key, config.cluster.clone(), config.node.clone()))
        }),
        metrics: Some(metrics),
        ..api::Settings::new(service_uid)
    };
    api::start(settings, listeners, handle).map_err(|fault| no_api(&fault))
}

fn no_api(fault: &api::Error) -> String {
    let remedy = fault.remedy().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("could not start the API: {}{remedy}", agent::chain(fault))
}
