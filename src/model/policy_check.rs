//! What a cluster policy may not say: whoever accepts one (file, API) checks it here.

use super::{
    lsn::Bytes,
    managed::{self, Managed},
    moment::Span,
    policy::{ClusterPolicy, Durability},
};
use std::collections::BTreeSet;

/// One thing that a policy may not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFault {
    /// The key, as a dotted path.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl PolicyFault {
    fn new(key: impl Into<String>, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { key: key.into(), what: what.into(), remedy: remedy.into() }
    }
}

/// Everything that is wrong with a policy.
pub fn faults(policy: &ClusterPolicy) -> Vec<PolicyFault> {
    let mut faults = Vec::new();
    if let Err(impossible) = policy.check_timers() {
        faults.push(PolicyFault::new(timer_key(policy), impossible.to_string(), "change one of these timers, or use a preset alone"));
    }
    for (key, span) in [("primary_start_timeout", policy.primary_start_timeout), ("stop_timeout", policy.stop_timeout)] {
        if span < Span::from_secs(1) || span > Span::from_secs(86_400) {
            faults.push(PolicyFault::new(key, format!("{span} is out of range"), "choose 1s to 1d"));
        }
    }
    // A slot that may hold back less than one WAL segment is lost at the first switch.
    if policy.member_slot_retention.bytes < Bytes::new(16 << 20) {
        let what = format!("{} is less than one WAL segment", policy.member_slot_retention.bytes);
        faults.push(PolicyFault::new("member_slot_retention.bytes", what, "choose at least 16MB"));
    }
    if !(1..=MOST_CONFIRM).contains(&policy.quorum_standbys) {
        let what = format!("{} is out of range", policy.quorum_standbys);
        faults.push(PolicyFault::new("quorum_standbys", what, format!("choose 1 to {MOST_CONFIRM}")));
    }
    if policy.anti_flap.failovers > MOST_FAILOVERS {
        let what = format!("{} is out of range", policy.anti_flap.failovers);
        faults.push(PolicyFault::new("anti_flap.failovers", what, format!("choose 0 to {MOST_FAILOVERS}")));
    }
    let within = policy.anti_flap.within;
    if within < Span::from_secs(60) || within > Span::from_secs(86_400) {
        faults.push(PolicyFault::new("anti_flap.within", format!("{within} is out of range"), "choose 1min to 1d"));
    }
    let set = |wanted: &str, bad: fn(&str) -> bool| {
        policy.parameters.iter().find(|(name, value)| name.eq_ignore_ascii_case(wanted) && bad(value))
    };
    if let Some((name, value)) = set("synchronous_commit", is_weak_commit).filter(|_| policy.durability != Durability::Async) {
        let what = format!("{value} lets commits be acknowledged before a replica has flushed them, and durability promises that it has");
        faults.push(PolicyFault::new(format!("parameters.{name}"), what, "choose on or remote_apply, or durability = \"async\""));
    }
    if let Some((name, value)) = set("fsync", is_off).filter(|_| policy.durability != Durability::Async) {
        let what = format!("{value} lets a replica confirm what its disk does not have, and durability promises that it has");
        faults.push(PolicyFault::new(format!("parameters.{name}"), what, "remove it, or durability = \"async\""));
    }
    if policy.durability != Durability::Async && policy.max_lag < LEAST_LAG {
        let what =
            format!("{} is less than what is always under way: no replica would keep up, and commits would wait for none", policy.max_lag);
        faults.push(PolicyFault::new("max_lag", what, format!("choose at least {LEAST_LAG}, or durability = \"async\"")));
    }
    let mut seen = BTreeSet::new();
    for (name, value) in &policy.parameters {
        let key = format!("parameters.{name}");
        if let Err((what, remedy)) = check_parameter(name, value) {
            faults.push(PolicyFault::new(key, what, remedy));
        } else if !seen.insert(name.to_ascii_lowercase()) {
            faults.push(PolicyFault::new(key, "is there twice: PostgreSQL does not tell capitals from small letters", "remove one"));
        }
    }
    for (at, line) in policy.hba.iter().enumerate() {
        if let Err((what, remedy)) = check_hba_line(line) {
            faults.push(PolicyFault::new(format!("hba[{at}]"), what, remedy));
        }
    }
    faults
}

/// The largest `anti_flap.failovers`.
pub const MOST_FAILOVERS: u32 = 16;

/// The smallest `max_lag` where commits wait for replicas that keep within it.
pub const LEAST_LAG: Bytes = Bytes::new(64 << 10);

/// The largest `quorum_standbys`.
pub const MOST_CONFIRM: u32 = 4;

/// Values of `synchronous_commit`, besides `off`, that do not wait for a replica's flush.
const WEAK_COMMITS: [&str; 2] = ["local", "remote_write"];

/// Whether commits with this `synchronous_commit` are acknowledged before a replica has flushed them.
pub fn is_weak_commit(value: &str) -> bool {
    is_off(value) || WEAK_COMMITS.iter().any(|weak| value.trim().eq_ignore_ascii_case(weak))
}

/// What PostgreSQL takes for `off`.
fn is_off(value: &str) -> bool {
    ["off", "false", "no", "0"].iter().any(|off| value.trim().eq_ignore_ascii_case(off))
}

/// The first timer that was set by hand, where one was.
fn timer_key(policy: &ClusterPolicy) -> &'static str {
    let set = [
        ("take_after", policy.take_after.is_some()),
        ("hold_for", policy.hold_for.is_some()),
        ("renew_every", policy.renew_every.is_some()),
        ("soft_stop", policy.soft_stop.is_some()),
    ];
    set.iter().find(|(_, is_set)| *is_set).map_or("preset", |(key, _)| key)
}

/// What is wrong, and what to do.
type Refusal = (String, String);

/// Values of parameters that are the operators' own otherwise.
const BAD_VALUES: [(&str, &str, &str); 3] = [
    ("wal_level", "minimal", "standbys need replica or logical"),
    ("max_wal_senders", "0", "standbys need one each, and copies two"),
    ("max_replication_slots", "0", "each member has a slot"),
];

/// Whether a policy may set this PostgreSQL parameter to this value.
///
/// # Errors
/// What is wrong and what to do.
pub fn check_parameter(name: &str, value: &str) -> Result<(), Refusal> {
    let lower = name.to_ascii_lowercase();
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_$".contains(&b))
    };
    if name.len() > 63 || name.split('.').count() > 2 || !name.split('.').all(word) {
        return Err((format!("{name:?} is no parameter name"), "use PostgreSQL's name of the parameter".to_owned()));
    }
    if let Some(Managed { why, remedy, .. }) = managed::find(name) {
        return Err((format!("is managed by pgbaton: {why}"), (*remedy).to_owned()));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err(("its value has more than one line".to_owned(), "write it in one line".to_owned()));
    }
    if lower == "default_transaction_read_only" && !is_off(value) {
        let why = format!("{value} cannot work: pg_rewind and clients with target_session_attrs look for a server that takes writes");
        return Err((why, "set it for a role or a database".to_owned()));
    }
    let bad = BAD_VALUES.iter().find(|(bad, forbidden, _)| *bad == lower && value.trim().eq_ignore_ascii_case(forbidden));
    match bad {
        Some((_, forbidden, why)) => Err((format!("{forbidden} cannot work: {why}"), "choose another value, or remove it".to_owned())),
        None => Ok(()),
    }
}

/// Whether `line` can be a line of `pg_hba.conf`.
///
/// # Errors
/// What is wrong and what to do.
pub fn check_hba_line(line: &str) -> Result<(), Refusal> {
    if line.contains(['\n', '\r', '\0']) {
        return Err(("is more than one line".to_owned(), "write one item for each line".to_owned()));
    }
    let fields: Vec<&str> = line.split_whitespace().collect();
    let least = match fields.first().copied() {
        Some("local") => 4,
        Some("host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc") => 5,
        _ => {
            let remedy = "begin it with local, host, hostssl, hostnossl, hostgssenc or hostnogssenc";
            return Err((format!("{line:?} is no line of pg_hba.conf"), remedy.to_owned()));
        }
    };
    if fields.len() < least {
        return Err((
            format!("{line:?} has {} fields", fields.len()),
            format!("write type, database, user{} and method", if least == 5 { ", address" } else { "" }),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::SlotRetention;

    #[test]
    fn the_default_policy_has_no_fault() {
        assert_eq!(faults(&ClusterPolicy::default()), []);
    }

    #[test]
    fn a_parameter_that_we_manage_is_refused_by_name_with_its_reason() {
        let refused = [
            "primary_conninfo",
            "primary_slot_name",
            "synchronous_standby_names",
            "restart_after_crash",
            "listen_addresses",
            "port",
            "unix_socket_directories",
            "hot_standby",
            "wal_log_hints",
            "cluster_name",
            "config_file",
            "hba_file",
            "data_directory",
            "recovery_target",
            "recovery_target_lsn",
            "recovery_target_timeline",
            "recovery_target_action",
            "PORT",
        ];
        for name in refused {
            let (what, remedy) = check_parameter(name, "x").expect_err(name);
            assert!(what.starts_with("is managed by pgbaton: ") && !remedy.is_empty(), "{name}: {what}");
        }
    }

    #[test]
    fn replicas_that_commits_wait_for_keep_what_they_confirm_and_keep_up() {
        let set = |durability, name: &str, value: &str| ClusterPolicy {
            durability,
            parameters: [(name.to_owned(), value.to_owned())].into(),
            ..ClusterPolicy::default()
        };
        let keys = |policy: &ClusterPolicy| faults(policy).into_iter().map(|fault| fault.key).collect::<Vec<_>>();
        for value in ["off", "NO", " 0 ", "false"] {
            assert_eq!(keys(&set(Durability::Quorum, "fsync", value)), ["parameters.fsync"]);
            assert_eq!(keys(&set(Durability::Async, "fsync", value)), [""; 0]);
        }
        assert_eq!(keys(&set(Durability::StrictQuorum, "fsync", "on")), [""; 0]);
        let near = |durability, bytes| ClusterPolicy { durability, max_lag: Bytes::new(bytes), ..ClusterPolicy::default() };
        assert_eq!(keys(&near(Durability::Auto, 0)), ["max_lag"]);
        assert_eq!(keys(&near(Durability::Quorum, LEAST_LAG.get())), [""; 0]);
        assert_eq!(keys(&near(Durability::Async, 0)), [""; 0]);
        assert_eq!(keys(&set(Durability::Async, "default_transaction_read_only", "on")), ["parameters.default_transaction_read_only"]);
        assert_eq!(keys(&set(Durability::Async, "default_transaction_read_only", "off")), [""; 0]);
    }

    #[test]
    fn other_parameters_are_the_operators_own() {
        for (name, value) in [
            ("work_mem", "64MB"),
            ("restore_command", "cp /a/%f %p"),
            ("wal_level", "logical"),
            ("pg_stat_statements.max", "5000"),
            ("TimeZone", "UTC"),
        ] {
            assert_eq!(check_parameter(name, value), Ok(()), "{name}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        for (name, value) in [
            ("wal_level", "minimal"),
            ("wal_level", " Minimal"),
            ("max_wal_senders", "0"),
            ("work_mem", "1\n2"),
            ("a b", "1"),
            ("a.b.c", "1"),
            ("", "1"),
        ] {
            assert!(check_parameter(name, value).is_err(), "{name}");
        }
    }

    #[test]
    fn hba_lines_have_a_type_and_all_their_fields() {
        for line in ["host all all 10.0.0.0/8 scram-sha-256", "local all postgres peer", "hostssl all all all cert map=m"] {
            assert_eq!(check_hba_line(line), Ok(()), "{line}");
        }
        for line in
            ["", "# comment", "host all all scram-sha-256", "local all peer", "hots all all all md5", "host all all all trust\nhost"]
        {
            assert!(check_hba_line(line).is_err(), "{line}");
        }
    }

    #[test]
    fn all_faults_come_at_once() {
        let policy = ClusterPolicy {
            take_after: Some(Span::from_secs(1)),
            stop_timeout: Span::ZERO,
            member_slot_retention: SlotRetention { bytes: Bytes::new(1), ..SlotRetention::default() },
            parameters: [("port", "1"), ("WORK_MEM", "1MB"), ("work_mem", "2MB")].map(|(name, value)| (name.into(), value.into())).into(),
            hba: vec!["x".into()],
            ..ClusterPolicy::default()
        };
        let keys: Vec<String> = faults(&policy).into_iter().map(|fault| fault.key).collect();
        assert_eq!(keys, ["take_after", "stop_timeout", "member_slot_retention.bytes", "parameters.port", "parameters.work_mem", "hba[0]"]);
    }
}
