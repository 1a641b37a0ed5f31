//! Which node is asked, and by which way.

use super::{
    arguments::{Global, Output},
    exit::{Exit, Failure},
};
use crate::{
    api::client::{Client, Error},
    config::{self, Config},
};
use anyhow::Context;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where configurations are looked for.
const DIRECTORY: &str = "/etc/pgbaton";

/// Which node is asked.
pub(super) struct Target {
    global: Global,
}

impl Target {
    pub(super) const fn new(global: Global) -> Self {
        Self { global }
    }

    pub(super) const fn output(&self) -> Output {
        self.global.output
    }

    /// The configuration file: the named one, else the only one there is.
    pub(super) fn config_file(&self) -> anyhow::Result<PathBuf> {
        if let Some(file) = &self.global.config {
            return Ok(file.clone());
        }
        let found = configurations(Path::new(DIRECTORY));
        match found.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(Failure::of(
                Exit::Usage,
                format!("there is no configuration in {DIRECTORY}: name one with --config, or a node with --url http://host:port"),
            )),
            several => {
                let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
                Err(Failure::of(Exit::Usage, format!("there are several configurations: choose one with --config: {}", names.join(", "))))
            }
        }
    }

    /// The node's configuration, checked.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        let file = self.config_file()?;
        config::read(&file).with_context(|| format!("the configuration {} cannot be used", file.display()))
    }

    /// Whether another node is named.
    pub(super) const fn is_remote(&self) -> bool {
        self.global.url.is_some()
    }

    /// Asks the node: by URL where one is given, else over the local socket that the configuration tells.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let client = match &self.global.url {
            Some(url) => Client::http(url)?,
            None => Client::unix(&socket(&self.config()?))?,
        };
        Ok(match person() {
            Some(name) => client.on_behalf_of(name),
            None => client,
        })
    }
}

/// The socket of the agent.
pub(super) fn socket(config: &Config) -> PathBuf {
    config.run_dir.join("agent.sock")
}

/// Whether nobody answers, so that etcd itself is worth a try.
pub(super) const fn is_down(error: &Error) -> bool {
    matches!(error, Error::Unreachable { .. } | Error::NoAnswer { .. })
}

/// The person behind this command, for the audit trail.
pub(super) fn person() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

/// A cluster's policy may stand beside the configurations, and is none.
fn configurations(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>()).unwrap_or_default();
    let is_one = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(".toml") && !name.ends_with("policy.toml") && !name.starts_with('.')
    };
    let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(is_one).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_hidden_files_are_no_configurations() {
        let directory = tempfile::tempdir().expect("directory");
        for name in ["orders.toml", "policy.toml", "orders.policy.toml", ".swp.toml", "notes.txt"] {
            fs::write(directory.path().join(name), "").expect("write");
        }
        assert_eq!(configurations(directory.path()), [directory.path().join("orders.toml")]);
        assert_eq!(configurations(Path::new("/nonexistent")), Vec::<PathBuf>::new());
    }
}
