//! The printed reference against what the checks really read.

use crate::{
    config::{check::check_text, node::Config, policy_file, reference},
    model::policy::ClusterPolicy,
};
use std::{collections::BTreeSet, path::Path};

/// The reference with every commented key written out.
fn uncommented(reference: &str) -> String {
    let bare = |line: &str| {
        line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase())).unwrap_or(line).to_owned()
    };
    reference.lines().map(bare).collect::<Vec<String>>().join("\n")
}

/// The dotted paths of the catalogue, and those of the tables themselves.
fn catalogue(tables: &[reference::Table]) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    for table in tables {
        paths.extend(
            table.keys.iter().map(|key| if table.path.is_empty() { key.name.to_owned() } else { format!("{}.{}", table.path, key.name) }),
        );
        paths.extend((!table.path.is_empty()).then(|| table.path.to_owned()));
    }
    paths
}

fn named(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[test]
fn the_reference_names_every_key_that_is_read_and_no_other() {
    let text = reference::node_reference().replace("https://", "http://");
    let (config, asked) =
        check_text(Path::new("node.toml"), &text, false).map_err(|faults| faults.to_string()).expect("the reference is a valid file");
    let refused = ["password_file", "cert_file", "key_file"].map(|key| format!("postgres.superuser.{key}"));
    let unprotected = named(&["api.tls", "api.tokens_file"]);
    let later = &named(&["region", "endpoint", "notify", "telemetry.otlp", "tags.clone_from", "tags.replicate_from"]) | &unprotected;
    let certificates = ["rewind", "monitor"].map(|role| [format!("postgres.{role}.cert_file"), format!("postgres.{role}.key_file")]);
    let later = &(&later | &BTreeSet::from(refused)) | &certificates.into_iter().flatten().collect();
    assert_eq!(asked.into_iter().collect::<BTreeSet<_>>(), &catalogue(reference::NODE) | &later);
    let every_key = uncommented(&text).replace("http://", "https://");
    check_text(Path::new("node.toml"), &every_key, false).map_err(|faults| format!("{faults}\n{every_key}")).expect("every key is valid");
    assert_eq!(config.node.as_str(), "n1");

    let text = reference::policy_reference();
    let (policy, asked) = policy_file::check_text(Path::new("policy.toml"), &text).map_err(|faults| faults.to_string()).expect("valid");
    let other = named(&["parameters", "target_rto"]);
    assert_eq!(asked.into_iter().collect::<BTreeSet<_>>(), &catalogue(reference::POLICY) | &other);
    assert_eq!(policy, ClusterPolicy::default());
}

#[test]
fn the_defaults_in_the_reference_are_the_defaults() {
    let written = uncommented(&reference::policy_reference());
    let timers = ["renew_every", "hold_for", "take_after", "soft_stop", "max_connections"];
    let defaults: Vec<&str> = written.lines().filter(|line| !timers.iter().any(|timer| line.starts_with(timer))).collect();
    let policy = policy_file::check_policy(Path::new("policy.toml"), &defaults.join("\n")).map_err(|faults| faults.to_string());
    assert_eq!(policy, Ok(ClusterPolicy::default()));

    let reference = reference::node_reference();
    let with_defaults: Vec<String> = reference
        .lines()
        .map(|line| {
            if line.contains("  # default")
                || line.starts_with("#[tags]")
                || line.starts_with("#[guard]")
                || line.starts_with("#[bootstrap]")
                || line.starts_with("#[telemetry]")
                || line.starts_with("#[postgres.")
            {
                line.trim_start_matches('#').to_owned()
            } else {
                line.to_owned()
            }
        })
        .collect();
    let node =
        |text: &str| -> Config { check_text(Path::new("node.toml"), text, false).map_err(|faults| faults.to_string()).expect("valid").0 };
    let (written, left_out) = (node(&with_defaults.join("\n")), node(&reference));
    assert_eq!(serde_json::to_value(written).expect("json"), serde_json::to_value(left_out).expect("json"));
}

#[test]
fn the_reference_reads_like_this() {
    insta::assert_snapshot!("node_reference", reference::node_reference());
    insta::assert_snapshot!("policy_reference", reference::policy_reference());
}
