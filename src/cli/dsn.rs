//! `dsn`: a connection string that finds the primary by itself.

use super::{
    arguments::{DsnOptions, Output, Purpose},
    exit::{Exit, Failure},
    list::Topology,
    table,
    target::Target,
};
use crate::model::node::Address;
use serde_json::json;

pub(super) async fn run(target: &Target, options: &DsnOptions) -> anyhow::Result<Exit> {
    let topology = super::list::look(target).await?;
    let hosts = hosts(&topology);
    if hosts.is_empty() {
        return Err(Failure::of(Exit::NotFound, "no node has said where its PostgreSQL listens"));
    }
    let text = if options.uri { uri(&hosts, options) } else { pairs(&hosts, options) };
    table::print(&match target.output() {
        Output::Table => format!("{text}\n"),
        Output::Json => table::json(&json!({ "dsn": text }))?,
    })?;
    Ok(Exit::Done)
}

/// The primary first: it is found at once as long as nothing changes.
fn hosts(topology: &Topology) -> Vec<Address> {
    let mut members: Vec<_> = topology.members.iter().collect();
    members.sort_by_key(|member| !member.leader);
    members.into_iter().filter_map(|member| member.postgres.clone()).collect()
}

const fn wanted(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Writes => "read-write",
        // Needs libpq 14.
        Purpose::Reads => "prefer-standby",
    }
}

/// A host that is cut off must not hold the client: the next one is tried after so many seconds.
const CONNECT_TIMEOUT: u32 = 3;

fn pairs(hosts: &[Address], options: &DsnOptions) -> String {
    let join = |part: fn(&Address) -> String| hosts.iter().map(part).collect::<Vec<_>>().join(",");
    let user = options.user.as_ref().map(|user| format!(" user={}", quoted(user))).unwrap_or_default();
    format!(
        "host={} port={} dbname={}{user} connect_timeout={CONNECT_TIMEOUT} target_session_attrs={}",
        join(|address| address.host.clone()),
        join(|address| address.port.to_string()),
        quoted(&options.dbname),
        wanted(options.purpose)
    )
}

/// As libpq quotes values: only where needed.
fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")) }
}

fn uri(hosts: &[Address], options: &DsnOptions) -> String {
    let list: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let user = options.user.as_ref().map(|user| format!("{}@", escaped(user))).unwrap_or_default();
    format!(
        "postgresql://{user}{}/{}?connect_timeout={CONNECT_TIMEOUT}&target_session_attrs={}",
        list.join(","),
        escaped(&options.dbname),
        wanted(options.purpose)
    )
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"_-.~".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(purpose: Purpose) -> DsnOptions {
        DsnOptions { purpose, dbname: "my db".to_owned(), user: Some("o'x".to_owned()), uri: false }
    }

    fn addresses() -> Vec<Address> {
        vec!["10.0.0.1:5432".parse().expect("address"), "[fd00::1]:5433".parse().expect("address")]
    }

    #[test]
    fn both_forms_name_every_host_and_are_quoted() {
        assert_eq!(
            pairs(&addresses(), &options(Purpose::Writes)),
            "host=10.0.0.1,fd00::1 port=5432,5433 dbname='my db' user='o\\'x' connect_timeout=3 target_session_attrs=read-write"
        );
        assert_eq!(
            uri(&addresses(), &options(Purpose::Reads)),
            "postgresql://o%27x@10.0.0.1:5432,[fd00::1]:5433/my%20db?connect_timeout=3&target_session_attrs=prefer-standby"
        );
    }
}
