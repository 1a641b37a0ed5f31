//! What is allowed: the table "Who may use whom" of ARCHITECTURE.md, and the home of each foreign crate.

/// What a room is, as the first line of its front page says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    Pure,
    Effect,
    Shell,
    Surface,
    Input,
    Proving,
}

impl Layer {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Pure => "PURE",
            Self::Effect => "EFFECT",
            Self::Shell => "SHELL",
            Self::Surface => "SURFACE",
            Self::Input => "INPUT",
            Self::Proving => "PROVING",
        }
    }
}

/// A folder of `src/`, or a file that is a room by itself.
pub(crate) struct Room {
    pub(crate) name: &'static str,
    pub(crate) layer: Layer,
    /// Rooms that it may use: `model`, or a part of one: `agent::handle`.
    pub(crate) may_use: &'static [&'static str],
}

const fn room(name: &'static str, layer: Layer, may_use: &'static [&'static str]) -> Room {
    Room { name, layer, may_use }
}

const SETTINGS: &[&str] = &[
    "model",
    "dcs::Settings",
    "guard::Settings",
    "postgres::Settings",
    "peers::Settings",
    "endpoint::Settings",
    "telemetry::Settings",
    "api::Settings",
];

const EVERYTHING: &[&str] =
    &["model", "clock", "decide", "agent", "dcs", "postgres", "guard", "peers", "endpoint", "telemetry", "api", "config", "sim", "lab"];

pub(crate) const ROOMS: &[Room] = &[
    room("model", Layer::Pure, &[]),
    room("decide", Layer::Pure, &["model"]),
    room("clock", Layer::Effect, &["model"]),
    room("dcs", Layer::Effect, &["model", "clock"]),
    room("guard", Layer::Effect, &["model", "clock"]),
    room("postgres", Layer::Effect, &["model", "clock"]),
    room("peers", Layer::Effect, &["model", "clock"]),
    room("endpoint", Layer::Effect, &["model", "clock"]),
    room("telemetry", Layer::Effect, &["model", "clock"]),
    room("config", Layer::Input, SETTINGS),
    room("agent", Layer::Shell, &["model", "clock", "decide", "dcs", "guard", "postgres", "peers", "endpoint", "telemetry"]),
    room("api", Layer::Surface, &["model", "clock", "decide", "agent::handle", "peers", "telemetry"]),
    room("cli", Layer::Surface, EVERYTHING),
    // Its time and its randomness come from the seed: the clock would end that.
    room("sim", Layer::Proving, &["model", "decide", "agent::event", "agent::state"]),
    room("lab", Layer::Proving, &["model", "clock", "config", "api::client"]),
];

/// Files that may use more than their room: where they are, and what else they use.
pub(crate) const EXCEPTIONS: &[(&str, &[&str])] = &[("agent/wiring", &["config"])];

/// Files outside of the pure rooms that are pure all the same.
pub(crate) const PURE_FILES: &[&str] =
    &["agent/change", "agent/event", "agent/state", "lab/torture/check", "lab/torture/history", "lab/torture/lots", "lab/torture/schedule"];

/// Each foreign crate that is not for everybody, and its homes: rooms, or files of one.
pub(crate) const HOMES: &[(&str, &[&str])] = &[
    ("etcd_client", &["dcs"]),
    ("tonic", &["dcs"]),
    ("axum", &["api"]),
    ("hyper", &["api"]),
    ("hyper_util", &["api"]),
    ("tower_service", &["api"]),
    ("reqwest", &["peers", "telemetry/notify", "api/client"]),
    ("tokio_postgres", &["postgres", "endpoint/pgbouncer", "lab"]),
    ("deadpool_postgres", &["postgres", "endpoint/pgbouncer", "lab"]),
    ("tokio_postgres_rustls", &["postgres", "lab"]),
    ("refinery", &["postgres"]),
    ("x509_cert", &["postgres"]),
    ("ring", &["peers"]),
    ("rustls", &["dcs", "postgres", "peers", "api", "lab"]),
    ("nix", &["guard", "postgres", "lab", "clock", "cli", "agent/wiring"]),
    ("libc", &["guard", "postgres", "lab", "clock", "cli"]),
    ("rtnetlink", &["guard", "endpoint"]),
    ("netlink_sys", &["guard", "endpoint"]),
    ("netlink_packet_netfilter", &["guard", "endpoint"]),
    ("netlink_packet_sock_diag", &["guard", "endpoint"]),
    ("netlink_packet_route", &["guard", "endpoint"]),
    ("nftables", &["guard", "endpoint"]),
    ("tracing_subscriber", &["telemetry"]),
    ("metrics", &["telemetry"]),
    ("metrics_exporter_prometheus", &["telemetry"]),
    ("metrics_util", &["telemetry"]),
    ("toml", &["config", "lab"]),
    ("uuid", &["clock"]),
    ("rand", &["clock"]),
    ("clap", &["cli", "main"]),
    ("ratatui", &["cli"]),
    ("crossterm", &["cli"]),
    ("anyhow", &["cli", "lab", "main"]),
];

/// Path beginnings that a pure file does not hold, each with why.
pub(crate) const NOT_PURE_PATHS: &[(&str, &str)] = &[
    ("tokio", "waits"),
    ("futures_util", "waits"),
    ("tracing", "logs"),
    ("metrics", "measures"),
    ("nix", "asks the kernel"),
    ("libc", "asks the kernel"),
    ("rand", "draws lots"),
    ("uuid", "draws lots"),
    ("std::fs", "touches the disk"),
    ("std::net", "touches the network"),
    ("std::process", "starts processes"),
    ("std::env", "reads the environment"),
    ("std::thread", "starts threads"),
    ("std::io", "reads or writes"),
    ("std::os", "asks the kernel"),
    ("std::time::Instant", "reads a clock"),
    ("std::time::SystemTime", "reads a clock"),
    ("std::collections::hash_map", "iterates in no order"),
];

/// Words that a pure file does not hold, each with why.
pub(crate) const NOT_PURE_WORDS: &[(&str, &str)] = &[
    ("async", "waits"),
    ("await", "waits"),
    ("HashMap", "iterates in no order: use BTreeMap"),
    ("HashSet", "iterates in no order: use BTreeSet"),
    ("RandomState", "draws lots"),
    ("Instant", "reads a clock"),
    ("SystemTime", "reads a clock"),
    ("println", "prints"),
    ("eprintln", "prints"),
    ("dbg", "prints"),
];

/// Names that say nothing about what is inside.
pub(crate) const EMPTY_NAMES: &[&str] =
    &["util", "utils", "helper", "helpers", "common", "misc", "manager", "managers", "types", "prelude"];
