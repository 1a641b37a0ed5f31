//! Cluster policies as operators write them.

use super::Host;
use crate::{
    config::policy_file,
    model::{
        lsn::Bytes,
        moment::Span,
        policy::{ClusterPolicy, Preset},
    },
};
use std::path::Path;

#[test]
fn a_policy_file_says_what_it_says() {
    let host = Host::new();
    let text = "preset = \"wan\"\nhold_for = \"5.5s\"\nmax_lag = \"16MB\"\nhba = [\"host all all 10.0.0.0/8 scram-sha-256\"]\n\
                [member_slot_retention]\ntime = \"2h\"\n\
                [parameters]\nmax_connections = 200\nrandom_page_cost = 1.1\nfsync = true\nwork_mem = \"64MB\"\n";
    let policy = policy_file::check_policy(Path::new("policy.toml"), text).map_err(|faults| faults.to_string());
    assert_eq!(policy, Err("policy.toml:2: hold_for: (hold_for + X)(1 + ρ)/(1 − ρ) ≤ take_after does not hold: (5.5s + 1s) × 1.002 = 6.514s > 6.5s; change one of these timers, or use a preset alone".to_owned()));
    let policy = policy_file::read_policy(&host.write("policy.toml", &text.replace("5.5s", "4.5s"))).expect("good");
    assert_eq!((policy.preset, policy.hold_for, policy.max_lag), (Preset::Wan, Some(Span::from_millis(4_500)), Bytes::new(16 << 20)));
    assert_eq!(policy.member_slot_retention.time, Span::from_secs(7_200));
    let parameters: Vec<(&str, &str)> = policy.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(parameters, [("fsync", "on"), ("max_connections", "200"), ("random_page_cost", "1.1"), ("work_mem", "64MB")]);
}

#[test]
fn each_slip_in_a_policy_gets_its_own_words() {
    let host = Host::new();
    let cases = [
        (
            "renew_every = \"5\"",
            "policy.toml:1: renew_every: \"5\" is not a length of time (a number with ms, s, min, h or d, as \"500ms\" or \"2.5s\"); write it as \"500ms\"",
        ),
        ("renew_every = 5", "policy.toml:1: renew_every: the number 5 where a text with a unit belongs; write it as \"500ms\""),
        ("max_lag = \"5\"", "policy.toml:1: max_lag: \"5\" lacks a unit; write it as \"1MB\""),
        (
            "max_lag = \"5mb\"",
            "policy.toml:1: max_lag: \"5mb\" is not an amount of bytes (a whole number with B, kB, MB, GB or TB, as \"16MB\"); write it as \"1MB\"",
        ),
        ("rewind = \"yes\"", "policy.toml:1: rewind: a text where true or false belongs; write it as true or false, without quotes"),
        ("preset = \"slow\"", "policy.toml:1: preset: \"slow\" is not known here; choose one of \"default\", \"fast\" or \"wan\""),
        (
            "take_after = \"3.2s\"",
            "policy.toml:1: take_after: (hold_for + X)(1 + ρ)/(1 − ρ) ≤ take_after does not hold: (2.8s + 400ms) × 1.002 = 3.207s > 3.2s; change one of these timers, or use a preset alone",
        ),
        (
            "durability = \"sync\"",
            "policy.toml:1: durability: \"sync\" is not known here; choose one of \"auto\", \"async\", \"quorum\" or \"strict-quorum\"",
        ),
        (
            "[parameters]\nport = 5433",
            "policy.toml:2: parameters.port: is managed by pgbaton: each node has its own; set [postgres] listen in each node's configuration",
        ),
        (
            "[parameters]\nwal_level = \"minimal\"",
            "policy.toml:2: parameters.wal_level: minimal cannot work: standbys need replica or logical; choose another value, or remove it",
        ),
        (
            "[parameters]\nrecovery_target_lsn = \"0/1\"",
            "policy.toml:2: parameters.recovery_target_lsn: is managed by pgbaton: standbys follow the newest timeline to its end; remove it",
        ),
        ("[parameters]\nx = nan", "policy.toml:2: parameters.x: no value of a PostgreSQL parameter; write a text, a number, true or false"),
        ("hba = [\"host all\"]", "policy.toml:1: hba[0]: \"host all\" has 2 fields; write type, database, user, address and method"),
        ("member_slot_retention = { tiem = \"1h\" }", "policy.toml:1: member_slot_retention.tiem: unknown key; did you mean \"time\"?"),
    ];
    for (text, expected) in cases {
        assert_eq!(host.policy_faults(text), expected, "\n{text}");
    }
}

#[test]
fn a_policy_that_was_written_by_us_is_read_again() {
    let policy = ClusterPolicy {
        hold_for: Some(Span::from_millis(2_000)),
        parameters: [("work_mem".to_owned(), "64MB".to_owned())].into(),
        hba: vec!["host all all all scram-sha-256".to_owned()],
        ..ClusterPolicy::default()
    };
    let text = toml::to_string(&policy).expect("toml");
    assert_eq!(policy_file::check_policy(Path::new("policy.toml"), &text).map_err(|faults| faults.to_string()), Ok(policy));
}
