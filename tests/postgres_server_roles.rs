//! Migrations, the roles of members and what they may do, slots, TLS, and process ids in a namespace.

#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on ends here")]

#[path = "support/pg.rs"]
mod pg;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pg::{Instance, configuration};
use pgbaton::{
    model::{
        instance::{Run, StartAs},
        moment::Span,
        secret::Secret,
    },
    postgres::{
        ConfigFiles, Configuration, Credential, Error, Follow, ReplicationTls, Role, Server, Settings, SslMode, Via,
        basebackup::{self, Patience, Source},
        peer, processes,
        rewind::{self, Options, Rewound},
        start_command,
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

const LIMIT: Span = Span::from_secs(5);
const RUN: Run = Run(1);

fn password(name: &str) -> Role {
    Role { name: name.to_owned(), credential: Credential::Password(Secret::new(format!("{name}-secret"))) }
}

fn with_passwords(mut settings: Settings) -> Settings {
    settings.roles.replication = password("streamer");
    settings.roles.rewind = password("pgbaton_rewind");
    settings.roles.monitor = password("pgbaton_monitor");
    settings
}

/// Scenario 106: migrations and roles are our own writes; they do not wait for standbys that nobody has.
#[tokio::test]
async fn migrations_run_twice_beside_roles_that_exist_and_while_no_standby_acknowledges() {
    let mut primary = Instance::initialised();
    let settings = with_passwords(primary.settings());
    let waiting = Configuration { sync_names: "ANY 1 (\"nobody\")".to_owned(), ..configuration() };
    primary.start_managed(&settings, &configuration(), StartAs::Primary).await;
    primary.sql("create role pgbaton_monitor; create role streamer");
    ConfigFiles::new(Arc::new(settings.clone())).configure(&waiting).await.expect("configure");
    let server = Server::new(Arc::new(settings));
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    pg::wait_until("commits would wait", LIMIT, || primary.sql("show synchronous_standby_names").contains("nobody"));

    let (first, second) = tokio::join!(server.migrate(LIMIT), server.migrate(LIMIT));
    let applied = first.expect("first").len() + second.expect("second").len();
    assert_eq!(applied, fs::read_dir("migrations").expect("migrations").count(), "each once, and every file is known to the program");
    assert!(server.migrate(LIMIT).await.expect("again").is_empty());
    server.set_role_logins(LIMIT).await.expect("logins");
    server.set_role_logins(LIMIT).await.expect("logins again");
    let roles = "select string_agg(rolname || rolcanlogin || rolreplication || rolsuper, ' ' order by rolname) from pg_roles \
                 where rolname like 'pgbaton%' or rolname = 'streamer'";
    let expected = "pgbaton_monitortruefalsefalse pgbaton_replicationfalsetruefalse pgbaton_rewindtruefalsefalse streamertruetruefalse";
    assert_eq!(primary.sql(roles), expected);
    assert_eq!(primary.sql("select count(*) from pg_authid where rolpassword like 'SCRAM-SHA-256$%'"), "3");
}

#[tokio::test]
async fn each_role_may_do_its_work_and_nothing_else() {
    let mut primary = Instance::initialised();
    let settings = with_passwords(primary.settings());
    primary.start_managed(&settings, &configuration(), StartAs::Primary).await;
    let server = Server::new(Arc::new(settings));
    server.migrate(LIMIT).await.expect("migrate");
    server.set_role_logins(LIMIT).await.expect("logins");
    primary.sql("create table t as select 1");
    let ask = |role: &str, sql: &str| {
        primary.psql(&["-h", "127.0.0.1", "-U", role, "-d", "postgres", "-c", sql], &[("PGPASSWORD", &format!("{role}-secret"))])
    };
    assert!(ask("pgbaton_rewind", "select count(*) from pg_ls_dir('.', true, false)").is_ok());
    assert!(ask("pgbaton_rewind", "select length(pg_read_binary_file('PG_VERSION', 0, 100, false))").is_ok());
    assert!(ask("pgbaton_monitor", "select count(*) from pg_stat_replication").is_ok());
    for (role, forbidden) in [
        ("pgbaton_rewind", "select * from t"),
        ("pgbaton_rewind", "select pg_read_file('/etc/hostname')"),
        ("pgbaton_rewind", "select pg_reload_conf()"),
        ("pgbaton_monitor", "select * from t"),
        ("pgbaton_monitor", "select pg_read_binary_file('PG_VERSION')"),
        ("pgbaton_monitor", "create role x"),
    ] {
        let error = ask(role, forbidden).expect_err(forbidden);
        assert!(error.contains("permission denied"), "{role}: {forbidden}: {error}");
    }
    let error = ask("streamer", "select 1").expect_err("an ordinary connection");
    assert!(error.contains("pg_hba.conf rejects connection"), "{error}");

    // The whole of pg_rewind, with nothing but its role.
    let mut standby = Instance::standby_of_managed(&primary, "streamer", "streamer-secret");
    standby.sql("select pg_promote()");
    pg::wait_until("promoted", LIMIT, || standby.sql("select pg_is_in_recovery()") == "f");
    standby.sql("create table diverged as select 1");
    standby.stop(Signal::SIGINT);
    let source = format!("host=127.0.0.1 port={} user=pgbaton_rewind dbname=postgres", primary.port);
    let mut rewind = pg::as_postgres(pg::bin_dir().join("pg_rewind"));
    rewind.arg("-D").arg(&standby.data).args(["--source-server", &source]).env("PGPASSWORD", "pgbaton_rewind-secret");
    let output = rewind.output().expect("pg_rewind");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn only_our_own_slots_that_nobody_uses_are_dropped() {
    let primary = Instance::primary();
    let server = Server::new(Arc::new(primary.settings()));
    let ours = "pgbaton_n2".parse().expect("name");
    server.create_physical_slot(RUN, &ours, LIMIT).await.expect("made");
    server.create_physical_slot(RUN, &ours, LIMIT).await.expect("there already");
    assert_eq!(primary.sql("select restart_lsn is not null from pg_replication_slots"), "t");
    primary.sql("select pg_create_physical_replication_slot('backup'), pg_create_physical_replication_slot('pgbaton_n3', true)");
    let foreign = server.drop_slot(RUN, &"backup".parse().expect("name"), LIMIT).await;
    assert!(matches!(foreign, Err(Error::Refused(_))), "{foreign:?}");

    let conninfo = format!("host=127.0.0.1 port={} user=postgres", primary.port);
    let mut receiver = pg::as_postgres(pg::bin_dir().join("pg_receivewal"));
    receiver.args(["-d", &conninfo, "-S", "pgbaton_n3", "-D"]).arg(primary.home().join("state"));
    let mut receiver = receiver.stderr(std::process::Stdio::null()).spawn().expect("pg_receivewal");
    pg::wait_until("the slot is used", LIMIT, || primary.sql("select count(*) from pg_replication_slots where active") == "1");
    let used = server.drop_slot(RUN, &"pgbaton_n3".parse().expect("name"), LIMIT).await;
    assert!(matches!(&used, Err(Error::Sql { code, .. }) if code == "55006"), "{used:?}");
    let _ = receiver.kill();
    let _ = receiver.wait();
    pg::wait_until("the slot is free", LIMIT, || primary.sql("select count(*) from pg_replication_slots where active") == "0");

    server.drop_slot(RUN, &ours, LIMIT).await.expect("dropped");
    server.drop_slot(RUN, &ours, LIMIT).await.expect("gone already");
    assert_eq!(primary.sql("select string_agg(slot_name, ' ' order by slot_name) from pg_replication_slots"), "backup pgbaton_n3");
    let facts = server.probe(RUN, Via::Fresh, LIMIT).await.expect("sample");
    assert_eq!(facts.slots.len(), 2);
}

/// An authority, and a certificate with its key for `name` at 127.0.0.1.
fn certificates(dir: &Path) {
    let authority_key = rcgen::KeyPair::generate().expect("key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("params");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    let authority = params.self_signed(&authority_key).expect("authority");
    fs::write(dir.join("ca.pem"), authority.pem()).expect("write");
    let issuer = rcgen::Issuer::new(params, authority_key);
    for (file, common_name, names) in [("server", "server", vec!["127.0.0.1".to_owned()]), ("client", "streamer", Vec::new())] {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::new(names).expect("params");
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let cert = params.signed_by(&key, &issuer).expect("certificate");
        fs::write(dir.join(format!("{file}.pem")), cert.pem()).expect("write");
        let key_file = dir.join(format!("{file}.key"));
        fs::write(&key_file, key.serialize_pem()).expect("write");
        fs::set_permissions(&key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        pg::give(&key_file);
    }
}

/// A cluster whose members demand TLS of each other, by the certificates in this directory.
struct Tls(PathBuf);

impl Tls {
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn configuration(&self) -> Configuration {
        let mut configuration = configuration();
        for (name, path) in [("ssl_ca_file", "ca.pem"), ("ssl_cert_file", "server.pem"), ("ssl_key_file", "server.key")] {
            configuration.parameters.insert(name.to_owned(), self.file(path).display().to_string());
        }
        configuration.parameters.insert("ssl".to_owned(), "on".to_owned());
        configuration
    }

    /// What a member says of `instance` that trusts this authority.
    fn settings(&self, instance: &Instance, mode: SslMode, authority: &str) -> Settings {
        let mut settings = with_passwords(instance.settings());
        let (cert_file, key_file) = (self.file("client.pem"), self.file("client.key"));
        settings.roles.replication.credential = Credential::Certificate { cert_file, key_file };
        settings.replication_tls = Some(ReplicationTls { mode, ca_file: Some(self.file(authority)) });
        settings
    }

    /// A primary with the members' roles.
    async fn primary() -> (Self, Instance, Settings) {
        let mut primary = Instance::initialised();
        let tls = Self(primary.home().join("state"));
        certificates(&tls.0);
        let settings = tls.settings(&primary, SslMode::VerifyFull, "ca.pem");
        primary.start_managed(&settings, &tls.configuration(), StartAs::Primary).await;
        let server = Server::new(Arc::new(settings.clone()));
        server.migrate(LIMIT).await.expect("migrate");
        server.set_role_logins(LIMIT).await.expect("logins");
        (tls, primary, settings)
    }

    /// Starts a copy of `primary` and waits until it streams over TLS.
    async fn follow(&self, standby: &mut Instance, primary: &Instance) -> Settings {
        let settings = self.settings(standby, SslMode::VerifyFull, "ca.pem");
        let follow = Follow { address: primary.settings().advertise, slot: None, application_name: "n2_0123abcd".to_owned() };
        let following = Configuration { follow: Some(follow), ..self.configuration() };
        standby.start_managed(&settings, &following, StartAs::Standby).await;
        pg::wait_until("it streams over TLS", LIMIT, || {
            let sql = "select client_dn from pg_stat_replication join pg_stat_ssl using (pid) where ssl and state = 'streaming'";
            primary.sql(sql).contains("CN=streamer")
        });
        settings
    }
}

#[tokio::test]
async fn members_stream_and_ask_each_other_over_verified_tls() {
    let (tls, primary, settings) = Tls::primary().await;
    peer::ask(&settings, &settings.advertise, &settings.roles.rewind, LIMIT).await.expect("verified");
    // The certificate is for 127.0.0.1: not for this name, which verify-ca does not look at.
    let by_name = format!("localhost:{}", primary.port).parse().expect("address");
    let refused = peer::ask(&settings, &by_name, &settings.roles.rewind, LIMIT).await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("certificate")), "{refused:?}");
    let lenient = tls.settings(&primary, SslMode::VerifyCa, "ca.pem");
    peer::ask(&lenient, &by_name, &settings.roles.rewind, LIMIT).await.expect("verify-ca");
    let stranger = tls.settings(&primary, SslMode::VerifyCa, "client.pem");
    let refused = peer::ask(&stranger, &by_name, &settings.roles.rewind, LIMIT).await;
    assert!(refused.is_err(), "another authority");
    let unencrypted = primary.psql(
        &["-d", "host=127.0.0.1 user=pgbaton_rewind dbname=postgres sslmode=disable", "-c", "select 1"],
        &[("PGPASSWORD", "pgbaton_rewind-secret")],
    );
    assert!(unencrypted.as_ref().is_err_and(|error| error.contains("no encryption")), "{unencrypted:?}");
    let mut standby = Instance::copy_of_local(&primary);
    tls.follow(&mut standby, &primary).await;
}

/// The server takes nothing unencrypted, so what succeeds went over TLS; and a server of another authority gets nothing.
#[tokio::test]
async fn members_are_cloned_and_rewound_over_verified_tls() {
    let (tls, mut primary, settings) = Tls::primary().await;
    primary.sql("create table t as select g as i from generate_series(1, 1000) g");
    let mut standby = Instance::empty();
    let id = "000000a1".parse().expect("incarnation");
    let patience = Patience { total: Span::from_secs(60), standstill: Span::from_secs(20) };
    let ours = tls.settings(&standby, SslMode::VerifyFull, "ca.pem");
    let facts = basebackup::ask(&ours, &settings.advertise, LIMIT).await.expect("ask the source");
    let source = Source { address: settings.advertise.clone(), slot: None, tablespaces: facts.tablespaces };
    let stranger = tls.settings(&standby, SslMode::VerifyFull, "client.pem");
    let refused = basebackup::copy(&stranger, &source, &id, patience, |_| ()).await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("certificate verify failed")), "{refused:?}");
    basebackup::copy(&ours, &source, &id, patience, |_| ()).await.expect("clone");
    basebackup::swap(&ours, &id).await.expect("swap");
    tls.follow(&mut standby, &primary).await;

    standby.sql("select pg_promote()");
    pg::wait_until("promoted", LIMIT, || standby.sql("select pg_is_in_recovery()") == "f");
    standby.sql("checkpoint");
    standby.sql("insert into t values (-1)");
    primary.sql("insert into t select -2 from generate_series(1, 100)");
    primary.stop(Signal::SIGINT);
    let options = Options { source: ours.advertise.clone(), restore_by: None, life: id, limit: Span::from_secs(30) };
    let stranger = tls.settings(&primary, SslMode::VerifyFull, "client.pem");
    let refused = rewind::run(&stranger, &options, |_| ()).await;
    let text = refused.as_ref().err().map(|error| format!("{error:?}")).unwrap_or_default();
    assert!(text.contains("certificate verify failed") && matches!(refused, Err(Error::Rewind { touched: false, .. })), "{refused:?}");
    let done = rewind::run(&settings, &options, |_| ()).await.expect("rewind");
    assert!(matches!(done, Rewound::Done { .. }), "{done:?}");
    tls.follow(&mut primary, &standby).await;
    pg::wait_until("it has the other's rows alone", LIMIT, || primary.sql("select count(*), min(i) from t") == "1001|-1");
}

/// Scenario 214: the ids that PostgreSQL shows are those of its own namespace.
#[tokio::test]
async fn processes_in_a_pid_namespace_are_found_by_the_ids_they_have_outside() {
    let mut primary = Instance::initialised();
    let settings = primary.settings();
    ConfigFiles::new(Arc::new(settings.clone())).configure(&configuration()).await.expect("configure");
    let start = start_command(&settings, &configuration(), StartAs::Primary).await.expect("command");
    primary.start_in_namespace(&start);
    let inner: i32 = primary.sql("select pid from pg_stat_activity where backend_type = 'checkpointer'").parse().expect("pid");
    let found = processes::processes(&primary.data).expect("look").into_iter().find(|process| process.inner == inner).expect("found");
    assert!(found.title.contains("checkpointer"), "{found:?}");
    assert_ne!(found.pid, found.inner);
    assert!(kill(Pid::from_raw(found.pid), None).is_ok());
}

#[tokio::test]
async fn lines_that_postgresql_cannot_use_are_named() {
    let mut primary = Instance::initialised();
    let settings = primary.settings();
    primary.start_managed(&settings, &configuration(), StartAs::Primary).await;
    let server = Server::new(Arc::new(settings.clone()));
    assert_eq!(server.configuration_faults(RUN, LIMIT).await.expect("none"), []);
    let mut broken = configuration();
    broken.parameters.insert("work_mem".to_owned(), "many".to_owned());
    broken.parameters.insert("max_connections".to_owned(), "77".to_owned());
    broken.hba = vec!["host all all nowhere/99 trust".to_owned()];
    ConfigFiles::new(Arc::new(settings)).configure(&broken).await.expect("configure");
    server.reload_sql(RUN, LIMIT).await.expect("reload");
    let faults = server.configuration_faults(RUN, LIMIT).await.expect("faults");
    let texts: Vec<_> = faults.iter().map(|fault| fault.what.as_str()).collect();
    assert!(texts.len() == 2 && texts[0].contains("work_mem") && texts[1].contains("nowhere"), "{faults:?}");
    assert!(faults.iter().all(|fault| fault.line > 0 && fault.file.contains("state/")), "{faults:?}");
}
