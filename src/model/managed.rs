//! The PostgreSQL parameters that pgbaton sets by itself: a policy may not, and the managed configuration is made of them.

/// Where a managed parameter is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the postmaster's command line, where nothing overrides it.
    CommandLine,
    /// In the managed `postgresql.conf`, as it changes while the server runs: what `ALTER SYSTEM` says above it is taken back.
    File,
    /// Nowhere: it must not be set at all.
    Nowhere,
}

/// A parameter that pgbaton sets by itself, or leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Managed {
    /// PostgreSQL's name of it, in small letters.
    pub name: &'static str,
    /// Where it is set.
    pub place: Place,
    /// Why it is not the operators' own.
    pub why: &'static str,
    /// Where the operators' say is.
    pub remedy: &'static str,
}

const fn row(name: &'static str, place: Place, why: &'static str, remedy: &'static str) -> Managed {
    Managed { name, place, why, remedy }
}

/// All of them, by name.
pub const MANAGED: &[Managed] = &[
    row("archive_recovery", Place::Nowhere, "recovery is started by standby.signal", "remove it"),
    row("cluster_name", Place::CommandLine, "it carries the cluster's name", "remove it"),
    row(
        "config_file",
        Place::CommandLine,
        "the managed postgresql.conf is started",
        "put your settings under [parameters], or into [postgres] base_config",
    ),
    row("data_directory", Place::CommandLine, "each node has its own", "set [postgres] data_dir in each node's configuration"),
    row("external_pid_file", Place::CommandLine, "the guard owns the postmaster", "remove it"),
    row(
        "full_page_writes",
        Place::CommandLine,
        "it is on: a torn page after a crash cannot be repaired, and pg_rewind refuses to run",
        "remove it",
    ),
    row("hba_file", Place::CommandLine, "the managed pg_hba.conf is started", "put your lines into hba"),
    row("hot_standby", Place::CommandLine, "a standby that cannot be asked cannot be elected", "remove it"),
    row("ident_file", Place::CommandLine, "the managed pg_ident.conf is started", "remove it"),
    row("include", Place::Nowhere, "it is a directive, not a parameter", "use [postgres] base_config"),
    row("include_dir", Place::Nowhere, "it is a directive, not a parameter", "use [postgres] base_config"),
    row("include_if_exists", Place::Nowhere, "it is a directive, not a parameter", "use [postgres] base_config"),
    row("listen_addresses", Place::CommandLine, "each node has its own", "set [postgres] listen in each node's configuration"),
    row("max_slot_wal_keep_size", Place::File, "it follows from the retention of member slots", "set member_slot_retention.bytes"),
    row("port", Place::CommandLine, "each node has its own", "set [postgres] listen in each node's configuration"),
    row("primary_conninfo", Place::File, "it names the current primary and is empty elsewhere", "remove it"),
    row("primary_slot_name", Place::File, "each member has a slot of its own", "remove it"),
    row("promote_trigger_file", Place::File, "a promotion without a claim would make a second primary", "remove it"),
    row("recovery_end_command", Place::Nowhere, "it would run before the new primary is known to others", "remove it"),
    row("recovery_target_timeline", Place::CommandLine, "standbys follow the newest timeline to its end", "remove it"),
    row("restart_after_crash", Place::CommandLine, "a server that restarts by itself escapes its deadline", "choose with crash_policy"),
    row("standby_mode", Place::Nowhere, "recovery is started by standby.signal", "remove it"),
    row("synchronous_standby_names", Place::File, "it lists the voters of the current term", "remove it"),
    row("trigger_file", Place::Nowhere, "a promotion without a claim would make a second primary", "remove it"),
    row(
        "unix_socket_directories",
        Place::CommandLine,
        "the agent connects through its own directory",
        "set run_dir in each node's configuration",
    ),
    row("wal_log_hints", Place::CommandLine, "it is on, because pg_rewind needs it", "remove it"),
    row("wal_receiver_status_interval", Place::File, "it is 1s: a standby that reports rarely counts as silent", "remove it"),
    row("wal_receiver_timeout", Place::File, "it follows from the wait of the timers", "choose timers by preset or take_after"),
    row("wal_retrieve_retry_interval", Place::File, "it bounds how fast a standby follows a new primary", "remove it"),
];

/// Every other parameter whose name begins with `recovery_target`.
const TARGETS: Managed = row("recovery_target", Place::Nowhere, "standbys follow the newest timeline to its end", "remove it");

/// What is known of a parameter that is not the operators' own. PostgreSQL's names do not distinguish upper and lower case.
pub fn find(name: &str) -> Option<&'static Managed> {
    let lower = name.to_ascii_lowercase();
    let listed = MANAGED.iter().find(|managed| managed.name == lower);
    listed.or_else(|| lower.starts_with(TARGETS.name).then_some(&TARGETS))
}

/// Whether pgbaton sets the parameter in that place.
pub fn is_set_in(place: Place, name: &str) -> bool {
    find(name).is_some_and(|managed| managed.place == place)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// They read it there, and the message of a refusal is the same.
    #[test]
    fn the_operators_guide_lists_every_managed_parameter() {
        let guide = include_str!("../../docs/src/policy.md");
        for Managed { name, why, remedy, .. } in MANAGED.iter().filter(|managed| !managed.name.starts_with(TARGETS.name)) {
            let line = format!("| `{name}` | {why} ({remedy}) |");
            assert!(guide.lines().any(|other| other == line), "{line}");
        }
        let rows = guide.lines().skip_while(|line| *line != "| parameter | why |").skip(2).take_while(|line| line.starts_with('|'));
        let targets = MANAGED.iter().filter(|managed| managed.name.starts_with(TARGETS.name)).count();
        assert_eq!(rows.count(), MANAGED.len() - targets + 1, "one row for recovery_target*");
    }

    #[test]
    fn each_is_listed_once() {
        assert!(MANAGED.is_sorted_by(|one, next| one.name < next.name));
    }
}
