//! One slip in a good file, and the exact words that it gets.

use super::{Host, SMALLEST};
use std::fs;

/// What is changed in the smallest file, and all that is said about it.
const SLIPS: &[(&str, &str, &str)] = &[
    (
        r#"node = "n1""#,
        r#"node = "N1""#,
        r#"node.toml:2: node: "N1" is not a node name (1 to 40 of a-z, 0-9 and -); write this node's name"#,
    ),
    (r#"node = "n1""#, "node = 5", r#"node.toml:2: node: the number 5 where a text belongs; write it as "…" in double quotes"#),
    (
        r#"node = "n1""#,
        "nodes = \"n1\"",
        "node.toml: node: is missing; name this node: node = \"n1\"\nnode.toml:2: nodes: unknown key; did you mean \"node\"?",
    ),
    (r#"node = "n1""#, "node = \"n1\"\nnode = \"n2\"", "node.toml:3: duplicate key; correct the TOML here"),
    (
        r#"endpoints = ["http://10.0.0.21:2379"]"#,
        "",
        "node.toml:4: etcd.endpoints: is missing; name every member: endpoints = [\"http://10.0.0.21:2379\", \"http://10.0.0.22:2379\", \"http://10.0.0.23:2379\"]",
    ),
    (r#"["http://10.0.0.21:2379"]"#, "[]", "node.toml:5: etcd.endpoints: is empty; name at least one etcd member, better all of them"),
    (
        r#"["http://10.0.0.21:2379"]"#,
        "[\n \"http://a:1\",\n \"b:2\", \"https://c:3\"]",
        "node.toml:7: etcd.endpoints[1]: \"b:2\" is not the URL of an etcd member; write scheme, host and port: \"https://10.0.0.21:2379\"\nnode.toml:7: etcd.endpoints[2]: http and https are mixed; use one scheme for all endpoints",
    ),
    (
        "http://10.0.0.21:2379",
        "https://10.0.0.21:2379",
        "node.toml:4: etcd.ca_file: is missing, so etcd's certificates cannot be checked; name the authority's certificate, or use http://",
    ),
    (
        "[etcd]",
        "[etcd]\nca_file = \"ca.crt\"",
        "node.toml:5: etcd.ca_file: has no effect with http:// endpoints; use https:// endpoints, or remove it",
    ),
    (
        "[etcd]",
        "[etcd]\nusername = \"u\"",
        "node.toml:5: etcd.username: password_file is missing beside it; set password_file too, or remove username",
    ),
    (
        "[etcd]",
        "[etcd]\nprefix = \"a//b/\"",
        "node.toml:5: etcd.prefix: \"a//b/\" is no prefix; begin it with / and end it without: \"/pgbaton\"",
    ),
    (
        "[etcd]",
        "[etcd]\nkey_file = \"own.key\"",
        "node.toml:5: etcd.key_file: cert_file is missing beside it; set cert_file too, or remove key_file",
    ),
    (
        "10.0.0.11:8008",
        "0.0.0.0:8008",
        "node.toml:7: api.advertise: is missing, and 0.0.0.0:8008 does not say how others reach this node; set it to this host's address, for example advertise = \"10.0.0.11:8008\"",
    ),
    ("10.0.0.11:8008", "*:8008", "node.toml:8: api.listen: \"*:8008\" is not an address; write 0.0.0.0:port, or [::]:port for IPv6 too"),
    (
        "10.0.0.11:8008",
        "10.0.0.999:8008",
        "node.toml:8: api.listen: \"10.0.0.999\" is neither an IP address nor a host name; write host:port, for example \"10.0.0.11:5432\" or \"[fd00::11]:5432\"",
    ),
    (
        "10.0.0.11:8008",
        "10.0.0.11:5432",
        "node.toml:8: api.listen: 10.0.0.11:5432 is also where PostgreSQL listens; give one of them another port",
    ),
    (
        "[api]",
        "[api]\nallow = [\"10.0.0.5/8\"]",
        "node.toml:8: api.allow[0]: \"10.0.0.5/8\" has bits beyond its prefix: the network is 10.0.0.0/8; write it as \"10.0.0.0/8\", \"fd00::/8\" or a single address",
    ),
    (
        "[api]",
        "[api]\ntls = { cert_file = \"own.crt\", key_file = \"own.key\" }",
        "node.toml:8: api.tls: is not supported by this version: the API speaks plain HTTP; remove it, and bind api.listen to loopback or a trusted network, or limit it with api.allow",
    ),
    (
        "[api]",
        "[api]\ntokens_file = \"api.tokens\"",
        "node.toml:8: api.tokens_file: is not supported by this version: changes are accepted over the Unix socket alone, and reading over TCP needs no token; remove it, and bind api.listen to loopback or a trusted network, or limit it with api.allow",
    ),
    (
        "[api]",
        "[api]\npeer_key_file = \"two.password\"",
        "node.toml:8: api.peer_key_file: two.password holds 3 characters; make one of 32 or more and give every node the same: openssl rand -hex 32",
    ),
    (
        "node = \"n1\"",
        "node = \"n1\"\nregion = \"eu-west-1\"",
        "node.toml:3: region: not available in this version; remove it; zone alone tells failure domains apart",
    ),
    (
        "[etcd]",
        "guard = { network_fence = \"auto\" }\n[etcd]",
        "node.toml:4: guard.network_fence: not available in this version; set network_fence = \"off\"",
    ),
    ("/srv/data", "data", "node.toml:11: postgres.data_dir: \"data\" is a relative path; write the whole path, beginning with /"),
    ("/srv/data", "/", "node.toml:11: postgres.data_dir: / is no data directory; name the directory that holds PG_VERSION, or will"),
    (
        "/srv/data",
        "/var/lib/pgbaton",
        "node.toml: state_dir: /var/lib/pgbaton/orders is postgres.data_dir or inside of it: a fresh copy would remove it; choose a directory outside of postgres.data_dir",
    ),
    (
        "10.0.0.11:5432",
        "10.0.0.11:5432,10.0.0.12:5433",
        "node.toml:13: postgres.listen: ports 5432 and 5433 differ, but PostgreSQL has one port; use one port for all its addresses",
    ),
    (
        "10.0.0.11:5432\"",
        "10.0.0.11:5432\"\nadvertise = \"[::]:5432\"",
        "node.toml:14: postgres.advertise: :: is no address that others can reach; write the address of this host",
    ),
    (
        "replication = { password_file = \"replication.password\" }",
        "",
        "node.toml:10: postgres.replication.password_file: is missing, so the replication role cannot connect to other nodes; set password_file, or cert_file and key_file",
    ),
    (
        "rewind = { ",
        "rewind = { user = \"pg_rewind\", ",
        "node.toml:15: postgres.rewind.user: \"pg_rewind\" is no role name; use 1 to 63 letters, digits, _, -, . and @, not beginning with pg_",
    ),
    (
        "rewind = { ",
        "rewind = { user = \"postgres\", ",
        "node.toml:15: postgres.rewind.user: \"postgres\" is also the superuser role; give each role a name of its own",
    ),
    (
        "\"rewind.password\"",
        "\"lost.password\"",
        "node.toml:15: postgres.rewind.password_file: lost.password does not exist; create the file or correct the path",
    ),
    ("\"rewind.password\"", "\"directory\"", "node.toml:15: postgres.rewind.password_file: directory is a directory; name a file"),
    (
        "\"rewind.password\"",
        "\"open.password\"",
        "node.toml:15: postgres.rewind.password_file: open.password is open to every user (mode 0644); chmod 0600 open.password",
    ),
    (
        "\"rewind.password\"",
        "\"empty.password\"",
        "node.toml:15: postgres.rewind.password_file: empty.password is empty; write the secret into it",
    ),
    (
        "\"rewind.password\"",
        "\"two.password\"",
        "node.toml:15: postgres.rewind.password_file: two.password has more than one line; leave the password alone in it",
    ),
    ("\"rewind.password\"", "\"/dev/zero\"", "node.toml:15: postgres.rewind.password_file: /dev/zero is no regular file; name a file"),
    (
        "[postgres]",
        "[postgres]\nreplication_tls = { mode = \"verify-full\" }",
        "node.toml:11: postgres.replication_tls.ca_file: is missing, and mode \"verify-full\" needs it; name the authority's certificate",
    ),
    (
        "[postgres]",
        "[postgres]\nreplication_tls = { mode = \"full\" }",
        "node.toml:11: postgres.replication_tls.mode: \"full\" is not known here; choose one of \"prefer\", \"require\", \"verify-ca\" or \"verify-full\"",
    ),
    (
        "[postgres]",
        "[postgres]\nwal_dir = \"/srv/data/pg_wal\"",
        "node.toml:11: postgres.wal_dir: /srv/data/pg_wal is postgres.data_dir or inside of it: a fresh copy would remove it; choose a directory outside of postgres.data_dir",
    ),
    (
        "[postgres]",
        "[postgres]\ntablespace_map = { \"/srv/ts1\" = \"ts1\" }",
        "node.toml:11: postgres.tablespace_map.\"/srv/ts1\": \"ts1\" is a relative path; write the whole path, beginning with /",
    ),
    (
        "[etcd]",
        "[tags]\npriority = nan\n[etcd]",
        "node.toml:5: tags.priority: the number nan where a whole number from 0 to 1000 belongs; write it as 1000, without quotes",
    ),
    ("[etcd]", "[tags]\npriority = 2000\n[etcd]", "node.toml:5: tags.priority: 2000 is out of range; write a whole number from 0 to 1000"),
    (
        "[etcd]",
        "[tags]\nclone_from = true\n[etcd]",
        "node.toml:5: tags.clone_from: not available in this version; remove it: members clone from and follow the primary",
    ),
    (
        "[etcd]",
        "[guard]\nwatchdog = \"required\"\n[etcd]",
        "node.toml:5: guard.watchdog: not available in this version; set watchdog = \"off\"",
    ),
    (
        "[etcd]",
        "[bootstrap]\ninitdb = [\"-D/x\", \"--pwfile=x\"]\n[etcd]",
        "node.toml:5: bootstrap.initdb[0]: -D/x is given by pgbaton; remove it: it is postgres.data_dir\nnode.toml:5: bootstrap.initdb[1]: --pwfile is given by pgbaton; remove it: it is postgres.superuser.password_file",
    ),
    (
        "[etcd]",
        "[telemetry]\notlp = \"http://x\"\n[etcd]",
        "node.toml:5: telemetry.otlp: not available in this version; remove it; metrics are at /metrics",
    ),
    (
        "[etcd]",
        "[[endpoint]]\nkind = \"vip\"\n[[notify]]\nkind = \"webhook\"\n[etcd]",
        "node.toml:4: endpoint[0]: not available in this version; remove it; route by GET /primary and /replica, or by several hosts in the connection string\nnode.toml:6: notify[0]: not available in this version; remove it; watch the log, /v1/events or /metrics",
    ),
    ("[etcd]", "[etcd", "node.toml:4: unclosed table, expected `]`; correct the TOML here"),
    (
        "[etcd]",
        "[postgres.guard]\n[etcd]",
        "node.toml:4: postgres.guard: unknown key; remove it, or use one of data_dir, bin_dir, base_config, listen, advertise, superuser, replication, rewind, monitor, replication_tls, wal_dir, tablespace_map",
    ),
    (
        "[postgres]",
        "[postgres]\nsuperuser = { password_file = \"rewind.password\" }",
        "node.toml:11: postgres.superuser.password_file: has no effect: the agent logs in by peer, as the owner of the data directory; remove it",
    ),
    (
        "rewind = { password_file = \"rewind.password\" }",
        "rewind = { cert_file = \"own.crt\", key_file = \"own.key\" }",
        "node.toml:15: postgres.rewind.cert_file: not available in this version; set password_file instead: the replication role alone has a certificate",
    ),
    (
        "replication = { password_file = \"replication.password\" }",
        "replication = { cert_file = \"own.crt\", key_file = \"own.key\" }",
        "node.toml:14: postgres.replication.cert_file: proves nothing without TLS, and postgres.replication_tls.mode is \"prefer\"; set that mode to \"verify-full\", \"verify-ca\" or \"require\"",
    ),
];

#[test]
fn each_slip_gets_its_own_words() {
    let host = Host::new();
    host.write("open.password", "hunter2");
    host.secret("empty.password", "\n");
    host.secret("two.password", "a\nb\n");
    fs::create_dir(host.path("directory")).expect("directory");
    for (from, to, expected) in SLIPS {
        assert!(SMALLEST.contains(from), "{from}");
        let faults = host.faults(&SMALLEST.replacen(from, to, 1));
        assert_eq!(faults, *expected, "\n{to}");
    }
}
