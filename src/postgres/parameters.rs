//! The text of the managed `postgresql.conf`: defaults, the operator's file, the policy, and last what is ours.

use super::{Configuration, Error, Follow, Settings, conninfo::conninfo_within, durable, hba::one_line};
use crate::model::{
    instance::RecoveryTarget,
    managed::{Place, is_set_in},
    moment::Span,
};
use std::fmt::Write as _;

/// What holds where neither the operator's file nor the policy says anything.
///
/// `wal_keep_size`: pg_rewind needs the WAL back to the last common checkpoint, and failed without it (measured on 15 and 17).
pub const DEFAULTS: &[(&str, &str)] = &[("wal_keep_size", "512MB"), ("password_encryption", "scram-sha-256")];

/// Before crash recovery and after a rewind the server makes its whole directory durable: file by file that takes longer than
/// the replay (measured: 1 to 2.5 s for a new cluster of 1,000 files, in every restart after a crash), by file system a moment.
/// Where the kernel keeps failed writes from `syncfs`, PostgreSQL's own default stays.
const SYNC_BY_FILE_SYSTEM: (&str, &str) = ("recovery_init_sync_method", "syncfs");

/// What a replay of the own WAL sets aside (EXP-30), on the command line: no `ALTER SYSTEM` brings it back.
pub(super) const OWN_WAL: &[(&str, &str)] =
    &[("primary_conninfo", ""), ("primary_slot_name", ""), ("restore_command", ""), ("recovery_min_apply_delay", "0")];

/// On the command line of every start: a target that a restore to a point in time has left behind would end a standby's recovery there, and
/// promote it.
pub(super) const NO_TARGET: &[(&str, &str)] = &[
    ("recovery_target", ""),
    ("recovery_target_lsn", ""),
    ("recovery_target_name", ""),
    ("recovery_target_time", ""),
    ("recovery_target_xid", ""),
];

/// Whether this program sets the parameter itself: the policy's value is left out.
fn is_managed(name: &str) -> bool {
    is_set_in(Place::CommandLine, name) || is_reloaded(name)
}

/// Whether it does so in the file, which `ALTER SYSTEM` overrides.
pub(super) fn is_reloaded(name: &str) -> bool {
    is_set_in(Place::File, name)
}

/// The whole file.
pub(super) fn postgresql_conf(settings: &Settings, configuration: &Configuration) -> Result<String, Error> {
    let mut text = format!(
        "# Written by pgbaton for node {} of cluster {}. It is written anew whenever something changes:\n\
         # put your own settings into the cluster policy, or into the node's base_config.\n\n\
         # Defaults, for base_config and the policy to override\n",
        settings.node, settings.cluster
    );
    let quick = Some(&SYNC_BY_FILE_SYSTEM).filter(|_| durable::syncfs_reports_errors());
    DEFAULTS.iter().chain(quick).for_each(|(name, value)| set(&mut text, name, value));
    if let Some(base) = &settings.base_config {
        std::fs::metadata(base).map_err(Error::file("find the base_config", base))?;
        let _ = writeln!(text, "\n# The operator's file\ninclude {}", quoted(&base.display().to_string()));
    }
    let waits = configuration.waits() && !configuration.parameters.keys().any(|name| name.eq_ignore_ascii_case("synchronous_commit"));
    if waits {
        text.push_str("\n# Commits wait for replicas: base_config does not undo that\n");
        set(&mut text, "synchronous_commit", "on");
    }
    text.push_str("\n# The cluster policy\n");
    for (name, value) in configuration.parameters.iter().filter(|(name, _)| !is_managed(name)) {
        check_name(name)?;
        set(&mut text, name, value);
    }
    text.push_str("\n# Managed: the last word\n");
    managed(settings, configuration)?.iter().for_each(|(name, value)| set(&mut text, name, value));
    Ok(text)
}

fn managed(settings: &Settings, configuration: &Configuration) -> Result<Vec<(&'static str, String)>, Error> {
    let follow = configuration.follow.as_ref().filter(|_| configuration.recovery == RecoveryTarget::Latest);
    // PG reads sizes in whole megabytes here.
    let keep = format!("{}MB", (configuration.slot_wal_keep.get() >> 20).max(1));
    let mut lines = vec![
        ("primary_conninfo", follow.map_or(Ok(String::new()), |follow| primary_conninfo(settings, configuration, follow))?),
        ("primary_slot_name", follow.and_then(|follow| follow.slot.as_ref()).map(ToString::to_string).unwrap_or_default()),
        ("synchronous_standby_names", one_line("synchronous_standby_names", &configuration.sync_names)?.to_owned()),
        ("wal_receiver_timeout", format!("{}ms", silence(configuration))),
        ("wal_receiver_status_interval", "1s".to_owned()),
        // Its default of 5 s is what a replica loses that finds the new primary a moment too early (scenario 226).
        ("wal_retrieve_retry_interval", "200ms".to_owned()),
        ("max_slot_wal_keep_size", keep),
    ];
    // An operator's own would answer for timelines that were given up (EXP-29): it belongs into the policy.
    let restore = configuration.restore_command.as_deref().unwrap_or_default();
    lines.push(("restore_command", one_line("restore_command", restore)?.to_owned()));
    if major(settings).is_some_and(|major| major < 16) {
        lines.push(("promote_trigger_file", String::new()));
    }
    Ok(lines)
}

/// The major version of the data directory, where there is one.
fn major(settings: &Settings) -> Option<u32> {
    std::fs::read_to_string(settings.data_dir.join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// After how many milliseconds of silence a replication peer is dead: about as fast as a taker may follow, and never so fast that a
/// busy disk looks dead.
fn silence(configuration: &Configuration) -> u64 {
    configuration.wait.max(Span::from_secs(2)).as_millis()
}

/// The connection string of a walreceiver.
fn primary_conninfo(settings: &Settings, configuration: &Configuration, follow: &Follow) -> Result<String, Error> {
    // The timeout is asked of our own walsender alone: one for all would also end logical subscribers that are busy applying
    // (PG manual, "wal_sender_timeout", names this way).
    // And a walsender that is told to end says so to its receiver first: on a host that is gone that would block it, and a checkpoint that waits
    // for its slot, for a quarter of an hour.
    let silence = silence(configuration);
    let options = format!("-c wal_sender_timeout={silence} -c tcp_user_timeout={silence}");
    let more = [("application_name", follow.application_name.as_str()), ("options", &options)];
    conninfo_within(settings, &follow.address, &settings.roles.replication, configuration.wait, &more)
}

fn set(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name} = {}", quoted(value));
}

/// A value in postgresql.conf. PG source, `guc-file.l`: quotes are doubled, a backslash begins an escape.
fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r").replace('\0', "");
    format!("'{escaped}'")
}

fn check_name(name: &str) -> Result<(), Error> {
    let clean = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.$".contains(&b));
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if clean && begins && name != "include" && name != "include_dir" && name != "include_if_exists" {
        return Ok(());
    }
    Err(Error::Refused(format!("write the policy's parameter {name:?}: that is no name of a PostgreSQL parameter")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        assert_eq!(quoted("it's \\ a\nb"), r"'it''s \\ a\nb'");
    }

    #[test]
    fn names_that_would_do_something_else_are_refused() {
        for bad in ["include", "", "a b", "x\ny", "1a", "a=b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("pg_stat_statements.track").is_ok());
        assert!(is_managed("Primary_ConnInfo"));
    }
}
