//! Every key of the node configuration and of the cluster policy: type, default, and what a change takes.
//!
//! The printed reference is itself a valid file: required keys stand with an example, the others commented out with
//! their defaults. A test holds it to what the checks really read.

mod node_keys;
mod policy_keys;

pub use node_keys::NODE;
pub use policy_keys::POLICY;
use std::fmt::Write;

/// What a changed value takes to be in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing: the new value is in force at once.
    Live,
    /// A restart of the agent. PostgreSQL runs on.
    Agent,
    /// A restart of PostgreSQL on this node.
    Postgres,
    /// Not to be changed while the node is a member, or read only once.
    Fixed,
}

impl Change {
    /// As the reference prints it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Agent => "agent restart",
            Self::Postgres => "PostgreSQL restart",
            Self::Fixed => "fixed",
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name within its table.
    pub name: &'static str,
    /// Type and unit, for people.
    pub kind: &'static str,
    /// As TOML: the default, or an example where the key is required or has none.
    pub value: &'static str,
    /// Whether it must be written, has a default, or may be absent.
    pub presence: Presence,
    /// What a change takes.
    pub change: Change,
    /// What it means.
    pub meaning: &'static str,
}

/// Whether a key must be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Its absence is a fault.
    Required,
    /// `value` is the default.
    Default,
    /// No default: `value` is an example.
    Optional,
}

/// One table of a file.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its dotted path; empty for the keys at the top.
    pub path: &'static str,
    /// What it is for.
    pub meaning: &'static str,
    /// Its keys, in the order in which they are best read.
    pub keys: &'static [Key],
}

const fn key(
    name: &'static str,
    presence: Presence,
    value: &'static str,
    kind: &'static str,
    change: Change,
    meaning: &'static str,
) -> Key {
    Key { name, kind, value, presence, change, meaning }
}

/// The annotated node configuration: a valid file.
pub fn node_reference() -> String {
    let mut text = render(NODE);
    text.push_str("\n# Not available in this version: api.tls, api.tokens_file, region, [[endpoint]], [[notify]],\n");
    text.push_str("# telemetry.otlp, tags.clone_from, tags.replicate_from.\n");
    text
}

/// The annotated cluster policy: a valid file.
pub fn policy_reference() -> String {
    let mut text = render(POLICY);
    text.push_str(concat!(
        "\n# PostgreSQL parameters of all nodes, by PostgreSQL's names. Those that pgbaton manages are refused.\n",
        "# Change: live, where PostgreSQL can; else the node is shown as pending restart.\n",
        "#[parameters]\n",
        "#max_connections = 200\n",
        "\n# Not available in this version: target_rto.\n",
    ));
    text
}

fn render(tables: &[Table]) -> String {
    let mut text = String::new();
    for table in tables {
        let blank = if table.path.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{blank}# {}", table.meaning);
        if !table.path.is_empty() {
            let comment = if table.keys.iter().any(|key| key.presence == Presence::Required) { "" } else { "#" };
            let _ = writeln!(text, "{comment}[{}]", table.path);
        }
        for key in table.keys {
            render_key(&mut text, key);
        }
    }
    text
}

fn render_key(text: &mut String, key: &Key) {
    let (presence, comment) = match key.presence {
        Presence::Required => ("required", ""),
        Presence::Default => ("default", "#"),
        Presence::Optional => ("optional, an example", "#"),
    };
    let _ = writeln!(text, "\n# {}\n# {}. Change: {}.", key.meaning, key.kind, key.change.as_str());
    let _ = writeln!(text, "{comment}{} = {}  # {presence}", key.name, key.value);
}
