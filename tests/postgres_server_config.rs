//! The managed configuration on a real server: what wins, what a reload changes, who is let in.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::sys::signal::Signal;
use pg::{Instance, configuration};
use pgbaton::{
    model::{
        instance::{RecoveryTarget, Run, ServerRole, StartAs},
        managed::{MANAGED, Place},
        moment::Span,
        secret::Secret,
    },
    postgres::{
        ConfigFiles, Configuration, Credential, Error, Follow, Role, Server, Settings, Via, check_configuration,
        command::mark,
        configured_value,
        overrides::{self, overridden},
        start_command,
    },
};
use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

const LIMIT: Span = Span::from_secs(5);
const RUN: Run = Run(1);
const PASSWORD: &str = "ge:heim\\ 'x";

fn with_passwords(mut settings: Settings) -> Settings {
    let role = |name: &str| Role { name: name.to_owned(), credential: Credential::Password(Secret::new(PASSWORD.to_owned())) };
    settings.roles.replication = role("pgbaton_replication");
    settings.roles.rewind = role("pgbaton_rewind");
    settings.roles.monitor = role("pgbaton_monitor");
    settings
}

/// A primary on its managed configuration, migrated, whose roles of members log in by password.
async fn managed_primary(configuration: &Configuration) -> (Instance, Settings, Server) {
    let mut primary = Instance::initialised();
    let settings = with_passwords(primary.settings());
    primary.start_managed(&settings, configuration, StartAs::Primary).await;
    let server = Server::new(Arc::new(settings.clone()));
    server.migrate(LIMIT).await.expect("migrate");
    server.set_role_logins(LIMIT).await.expect("logins");
    (primary, settings, server)
}

fn follow(primary: &Instance) -> Option<Follow> {
    let address = format!("127.0.0.1:{}", primary.port).parse().expect("address");
    let slot = Some("pgbaton_n2".parse().expect("slot"));
    Some(Follow { address, slot, application_name: "n2_0123abcd".to_owned() })
}

fn files_below(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("directory").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found);
        } else if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            found.push(entry.path());
        }
    }
}

#[tokio::test]
async fn managed_parameters_win_and_an_override_by_alter_system_is_reported() {
    let mut primary = Instance::initialised();
    let base = primary.home().join("base.conf");
    let lines = "port = 1\nwal_level = logical\nrestart_after_crash = on\nmax_wal_senders = 20\nwork_mem = 5MB\nmaintenance_work_mem = 70MB\n\
                 data_directory = '/nowhere'\nhba_file = '/nowhere'\nsynchronous_standby_names = '*'\nwal_keep_size = 80MB\n";
    fs::write(&base, lines).expect("base");
    let mut settings = primary.settings();
    settings.base_config = Some(base);
    let mut configuration = configuration();
    configuration.parameters.insert("work_mem".to_owned(), "6MB".to_owned());
    configuration.parameters.insert("Restart_After_Crash".to_owned(), "on".to_owned());
    primary.start_managed(&settings, &configuration, StartAs::Primary).await;
    let show = |name: &str| primary.sql(&format!("show {name}"));
    assert_eq!(show("restart_after_crash"), "off");
    assert_eq!(show("synchronous_standby_names"), "");
    assert_eq!(show("port"), primary.port.to_string());
    // `logical` is more than we need, and 20 more than the least: both stay.
    assert_eq!((show("wal_level"), show("max_wal_senders")), ("logical".to_owned(), "20".to_owned()));
    assert_eq!((show("work_mem"), show("maintenance_work_mem")), ("6MB".to_owned(), "70MB".to_owned()), "the policy wins over the base");
    assert_eq!(show("wal_keep_size"), "80MB", "a default of ours gives way");
    assert_eq!(show("wal_retrieve_retry_interval"), "200ms");
    assert_eq!(show("cluster_name"), "test");

    // Whatever we set ourselves is refused in a policy: otherwise the policy's value would be dropped in silence.
    let of = |place| MANAGED.iter().filter(move |managed| managed.place == place).map(|managed| managed.name.to_owned());
    let command = start_command(&settings, &configuration, StartAs::Primary).await.expect("command");
    let set = command.args.iter().filter_map(|arg| Some(arg.to_str()?.split_once('=')?.0.to_owned()));
    // Every `recovery_target…` is refused by its beginning; those that end recovery are set aside.
    let set = set.filter(|name| name == "recovery_target_timeline" || !name.starts_with("recovery_target"));
    assert_eq!(set.collect::<BTreeSet<_>>(), of(Place::CommandLine).collect::<BTreeSet<_>>());
    let text = fs::read_to_string(ConfigFiles::main(&settings)).expect("postgresql.conf");
    let (_, last_word) = text.split_once("# Managed").expect("the managed part");
    let mut set: BTreeSet<_> = last_word.lines().filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect();
    assert!(set.remove("restore_command"), "the policy alone has one");
    assert!(!set.is_empty() && set.is_subset(&of(Place::File).collect()), "{set:?}");

    let keep = configured_value(&settings, &configuration, "maintenance_work_mem").await.expect("value");
    assert_eq!(keep, "71680", "as PostgreSQL reads it: in kB");
    assert_eq!(overridden(&settings, false).await.expect("read"), []);
    primary.sql("alter system set primary_conninfo = 'host=elsewhere password=geheim'");
    primary.sql("alter system set work_mem = '7MB'");
    let found = overridden(&settings, false).await.expect("read");
    assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["primary_conninfo"]);
    assert!(!found[0].value.contains("geheim"), "{found:?}");
    let server = Server::new(Arc::new(settings.clone()));
    assert!(matches!(server.reset_override(RUN, "work_mem", LIMIT).await, Err(Error::Refused(_))));
    server.reset_override(RUN, "primary_conninfo", LIMIT).await.expect("reset");
    assert_eq!(overridden(&settings, false).await.expect("read"), []);
}

/// Where commits wait for replicas no file outside the policy lets them go; where they wait for nobody it is the operator's own.
#[tokio::test]
async fn a_synchronous_commit_that_lets_go_what_has_to_wait_is_found_and_taken_back() {
    let mut primary = Instance::initialised();
    let base = primary.home().join("base.conf");
    fs::write(&base, "synchronous_commit = local\n").expect("base");
    let mut settings = primary.settings();
    settings.base_config = Some(base);
    let mut configuration = configuration();
    primary.start_managed(&settings, &configuration, StartAs::Primary).await;
    let show = |primary: &Instance| primary.sql("show synchronous_commit");
    assert_eq!(show(&primary), "local");
    let server = Server::new(Arc::new(settings.clone()));
    let weak = async |server: &Server| server.probe(RUN, Via::Kept, LIMIT).await.expect("sample").weak_commits;
    assert!(weak(&server).await.is_some_and(|said| said.starts_with("local in ") && said.ends_with("base.conf")));

    configuration.sync_names = "ANY 1 (\"n2_0123abcd\")".to_owned();
    ConfigFiles::new(Arc::new(settings.clone())).configure(&configuration).await.expect("configure");
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    pg::wait_until("it is on", LIMIT, || show(&primary) == "on");
    primary.sql("alter system set synchronous_commit = 'remote_apply'");
    assert_eq!(overridden(&settings, true).await.expect("read"), [], "that waits, too");
    primary.sql("alter system set synchronous_commit = 'off'");
    assert_eq!(overridden(&settings, false).await.expect("read"), []);
    let found = overridden(&settings, true).await.expect("read");
    assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["synchronous_commit"]);
    let anew = Server::new(Arc::new(settings.clone()));
    assert!(weak(&anew).await.is_some_and(|said| said.starts_with("off in ") && said.ends_with("postgresql.auto.conf")));
    server.reset_override(RUN, "synchronous_commit", LIMIT).await.expect("reset");
    let anew = Server::new(Arc::new(settings.clone()));
    assert_eq!((overridden(&settings, true).await.expect("read"), weak(&anew).await), (Vec::new(), None));
    primary.sql("alter system set synchronous_commit = 'off'");
    primary.stop(Signal::SIGINT);
    assert_eq!(overrides::strip(&settings, true).await.expect("strip").len(), 1);
    assert_eq!(overridden(&settings, true).await.expect("read"), []);
}

#[tokio::test]
async fn files_change_only_where_they_say_something_else() {
    let instance = Instance::initialised();
    let settings = with_passwords(instance.settings());
    let files = ConfigFiles::new(Arc::new(settings.clone()));
    let mut configuration = configuration();
    assert!(files.configure(&configuration).await.expect("first"));
    assert!(!files.configure(&configuration).await.expect("second"));
    configuration.wait = Span::from_secs(7);
    assert!(files.configure(&configuration).await.expect("changed"));
    // A hand that edits them changes nothing for long.
    fs::write(ConfigFiles::hba(&settings), "host all all all trust").expect("edit");
    assert!(files.configure(&configuration).await.expect("repaired"));
    let mode = fs::metadata(settings.passfile()).expect("passfile").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    configuration.parameters.insert("include".to_owned(), "/etc/passwd".to_owned());
    assert!(matches!(files.configure(&configuration).await, Err(Error::Refused(_))));
}

#[tokio::test]
async fn a_standby_follows_by_reload_and_no_password_lies_anywhere_but_in_the_passfile() {
    let configuration = configuration();
    let (primary, _, at_primary) = managed_primary(&configuration).await;
    at_primary.create_physical_slot(RUN, &"pgbaton_n2".parse().expect("slot"), LIMIT).await.expect("slot");
    let mut standby = Instance::empty();
    let passfile = standby.home().join("clone-passfile");
    fs::write(&passfile, "*:*:*:*:ge\\:heim\\\\ 'x\n").expect("passfile");
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).expect("mode");
    pg::give(&passfile);
    let mut clone = pg::as_postgres(pg::bin_dir().join("pg_basebackup"));
    clone.args(["-h", "127.0.0.1", "-p", &primary.port.to_string(), "-U", "pgbaton_replication", "-c", "fast", "--no-sync", "-D"]);
    let output = clone.arg(&standby.data).env("PGPASSFILE", &passfile).output().expect("clone");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(&passfile).expect("remove");
    fs::write(standby.data.join("standby.signal"), "").expect("signal");
    let settings = with_passwords(standby.settings());
    standby.start_managed(&settings, &configuration, StartAs::Standby).await;

    let server = Server::new(Arc::new(settings.clone()));
    let following = Configuration { follow: follow(&primary), ..configuration };
    let files = ConfigFiles::new(Arc::new(settings.clone()));
    assert!(files.configure(&following).await.expect("configure"));
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    let begin = pgbaton::clock::boot();
    pg::wait_until_async("it streams", LIMIT, || async {
        let facts = at_primary.probe(RUN, Via::Kept, LIMIT).await.expect("sample");
        let named = facts.walsenders.iter().any(|walsender| walsender.application_name == "n2_0123abcd" && walsender.streaming);
        named && facts.slots.iter().any(|slot| slot.active)
    })
    .await;
    assert!(pgbaton::clock::boot().since(begin) < Span::from_secs(2));
    let facts = server.probe(RUN, Via::Kept, LIMIT).await.expect("sample");
    let ServerRole::Standby { conninfo, .. } = facts.role else { panic!("{facts:?}") };
    assert!(!conninfo.contains("password") && conninfo.contains("passfile="), "{conninfo}");

    // A clone brings `ALTER SYSTEM` along; what it says of the stream is taken back with the cut.
    standby.sql(&format!("alter system set primary_conninfo = 'host=127.0.0.1 port={} user=postgres'", primary.port));
    server.cut_stream(RUN, &following, LIMIT).await.expect("cut");
    let facts = server.probe(RUN, Via::Kept, LIMIT).await.expect("sample");
    let ServerRole::Standby { conninfo, receiver, .. } = facts.role else { panic!("{facts:?}") };
    assert_eq!((conninfo.as_str(), receiver), ("", None));

    for instance in [&primary, &standby] {
        let mut files = Vec::new();
        files_below(instance.home(), &mut files);
        let holding = |needle: &str| -> Vec<_> {
            let holds = |path: &&std::path::PathBuf| fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(needle));
            files.iter().filter(holds).filter_map(|path| path.file_name()?.to_str()).collect()
        };
        assert_eq!(holding("heim"), ["passfile"], "passwords");
        assert!(!instance.log().contains("SCRAM-SHA-256$"), "{}", instance.log());
        assert!(instance.processes().iter().all(|(_, title)| !title.contains("heim")));
    }
}

/// Scenario 72: a standby starts with its primary's sizes, whatever its own files say.
#[tokio::test]
async fn a_standby_starts_with_at_least_the_sizes_of_its_primary() {
    let mut larger = configuration();
    larger.parameters.insert("max_connections".to_owned(), "150".to_owned());
    larger.parameters.insert("max_prepared_transactions".to_owned(), "5".to_owned());
    let (primary, ..) = managed_primary(&larger).await;
    primary.sql("create role cloner superuser login password 'x'");
    let mut standby = Instance::empty();
    let mut clone = pg::as_postgres(pg::bin_dir().join("pg_basebackup"));
    clone.args(["-h", &primary.home().join("run/postgres").display().to_string(), "-p", &primary.port.to_string(), "-U", "postgres"]);
    let output = clone.args(["-c", "fast", "--no-sync", "-D"]).arg(&standby.data).output().expect("clone");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(standby.data.join("standby.signal"), "").expect("signal");
    let settings = standby.settings();
    standby.start_managed(&settings, &configuration(), StartAs::Standby).await;
    assert_eq!(standby.sql("show max_connections"), "150");
    assert_eq!(standby.sql("show max_prepared_transactions"), "5");
}

#[tokio::test]
async fn a_replay_of_the_own_wal_sets_every_delay_target_and_source_aside() {
    let mut primary = Instance::initialised();
    let settings = primary.settings();
    let auto = "primary_conninfo = 'host=127.0.0.1 port=1'\nrecovery_min_apply_delay = '1h'\nrestore_command = 'false'\n";
    fs::write(primary.data.join("postgresql.auto.conf"), auto).expect("auto.conf");
    fs::write(primary.data.join("standby.signal"), "").expect("signal");
    mark(&settings, StartAs::Primary).await.expect("mark");
    assert!(!primary.data.join("standby.signal").exists());
    mark(&settings, StartAs::Standby).await.expect("mark");
    let own = Configuration { recovery: RecoveryTarget::Current, ..configuration() };
    primary.start_managed(&settings, &own, StartAs::Standby).await;
    let shown = "select string_agg(setting, '|' order by name) from pg_settings where name in \
                 ('primary_conninfo', 'recovery_min_apply_delay', 'recovery_target_timeline', 'restore_command')";
    assert_eq!(primary.sql(shown), "|0|current|");
}

/// What a restore to a point in time leaves behind would end recovery at its target, and promote.
#[tokio::test]
async fn a_standby_has_no_target_and_no_archive_of_its_own() {
    let mut standby = Instance::initialised();
    let settings = standby.settings();
    let auto = "recovery_target_time = '2020-01-01 00:00:00+00'\nrecovery_target_action = 'promote'\nrestore_command = 'false'\n\
                promote_trigger_file = 'promote-me'\n";
    fs::write(standby.data.join("postgresql.auto.conf"), auto).expect("auto.conf");
    fs::write(standby.data.join("standby.signal"), "").expect("signal");
    mark(&settings, StartAs::Standby).await.expect("mark");
    overrides::strip(&settings, false).await.expect("take ours out");
    standby.start_managed(&settings, &configuration(), StartAs::Standby).await;
    let set = "select string_agg(name, ' ') from pg_settings where setting <> '' and name in \
               ('promote_trigger_file', 'recovery_target', 'recovery_target_time', 'restore_command')";
    assert_eq!(standby.sql(set), "");
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
}

#[tokio::test]
async fn a_wrong_password_and_a_role_without_a_line_are_told_apart_from_a_dead_server() {
    let (mut primary, settings, _) = managed_primary(&configuration()).await;
    let address = settings.advertise.clone();
    let ask = |role: Role| {
        let (settings, address) = (settings.clone(), address.clone());
        async move { pgbaton::postgres::peer::ask(&settings, &address, &role, LIMIT).await }
    };
    let facts = ask(settings.roles.rewind.clone()).await.expect("the right password");
    assert_eq!(facts.primary_of.map(|tli| tli.get()), Some(1));
    assert_eq!(facts.checkpoint_tli.get(), 1);
    let wrong = Role { credential: Credential::Password(Secret::new("wrong".to_owned())), ..settings.roles.rewind.clone() };
    let error = ask(wrong).await.expect_err("wrong password");
    assert!(matches!(error, Error::Authentication { .. }) && !error.to_string().contains("wrong\""), "{error}");
    assert!(error.to_string().contains("password authentication failed for user \"pgbaton_rewind\""), "{error}");
    primary.stop(Signal::SIGINT);
    let error = ask(settings.roles.rewind.clone()).await.expect_err("stopped");
    assert!(matches!(error, Error::NotListening { .. }), "{error}");
}

#[tokio::test]
async fn the_managed_hba_lets_in_members_the_agent_and_whom_the_policy_names() {
    let mut strict = configuration();
    strict.hba = vec!["host all app 127.0.0.1/32 trust".to_owned()];
    strict.peers = vec!["10.255.255.1".to_owned()];
    let (primary, settings, server) = managed_primary(&strict).await;
    primary.sql("create role app login; create role other login");
    let tcp = |user: &str| primary.psql(&["-h", "127.0.0.1", "-U", user, "-d", "postgres", "-c", "select 1"], &[("PGPASSWORD", PASSWORD)]);
    assert_eq!(tcp("app"), Ok("1".to_owned()));
    assert!(tcp("other").is_err_and(|error| error.contains("no pg_hba.conf entry")));
    assert!(tcp("pgbaton_rewind").is_err_and(|error| error.contains("rejects connection")), "it is not among the peers");
    assert!(tcp("postgres").is_err_and(|error| error.contains("no pg_hba.conf entry")), "the superuser comes by the socket alone");
    strict.peers.push("127.0.0.1".to_owned());
    assert!(ConfigFiles::new(Arc::new(settings)).configure(&strict).await.expect("configure"));
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    pg::wait_until("the member is let in", LIMIT, || tcp("pgbaton_rewind") == Ok("1".to_owned()));
}

#[tokio::test]
async fn a_configuration_that_postgresql_refuses_is_refused_before_the_start() {
    let instance = Instance::initialised();
    let settings = instance.settings();
    let mut broken = configuration();
    broken.parameters.insert("work_mem".to_owned(), "many".to_owned());
    let error = check_configuration(&settings, &broken).await.expect_err("before it is written").to_string();
    assert!(error.contains("invalid value for parameter \"work_mem\": \"many\""), "{error}");
    check_configuration(&settings, &configuration()).await.expect("a good one");
    assert!(fs::read_dir(&settings.state_dir).expect("state").next().is_none(), "nothing is left of it");
    ConfigFiles::new(Arc::new(settings.clone())).configure(&broken).await.expect("configure");
    let error = start_command(&settings, &broken, StartAs::Primary).await.expect_err("refused").to_string();
    assert!(error.contains("invalid value for parameter \"work_mem\": \"many\""), "{error}");
}
