//! The keys of the node configuration.

use super::{
    Change::{Agent, Fixed, Postgres},
    Presence::{Default, Optional, Required},
    Table, key,
};

/// The node configuration.
pub const NODE: &[Table] = &[
    Table {
        path: "",
        meaning: "Configuration of one node. Secrets stand in files of their own; a relative path of such a file is meant from this file's directory.",
        keys: &[
            key("cluster", Required, "\"orders\"", "text, 1 to 63 of a-z, 0-9 and -", Fixed, "The cluster that this node belongs to."),
            key("node", Required, "\"n1\"", "text, 1 to 40 of a-z, 0-9 and -", Fixed, "This node's name, unique in the cluster."),
            key("zone", Default, "\"\"", "text", Agent, "Failure domain."),
            key(
                "state_dir",
                Optional,
                "\"/var/lib/pgbaton/orders\"",
                "path; default /var/lib/pgbaton/<cluster>",
                Postgres,
                "Node file, journal, managed postgresql.conf and pg_hba.conf. Not inside of the data directory.",
            ),
            key(
                "run_dir",
                Optional,
                "\"/run/pgbaton/orders\"",
                "path, at most 83 bytes; default /run/pgbaton/<cluster>",
                Postgres,
                "Unix sockets of the guard, the agent and PostgreSQL.",
            ),
        ],
    },
    Table {
        path: "tags",
        meaning: "What this node may be used for.",
        keys: &[
            key("no_failover", Default, "false", "boolean", Agent, "Never becomes primary."),
            key("priority", Default, "100", "number, 0 to 1000", Agent, "Among equal candidates the higher is preferred."),
            key(
                "no_sync",
                Default,
                "false",
                "boolean",
                Agent,
                "Its flush never counts for a commit: shown by list and asked by /replica?tag_no_sync=true, and true of every node in this version.",
            ),
            key("no_load_balance", Default, "false", "boolean", Agent, "Not offered to readers."),
        ],
    },
    Table {
        path: "etcd",
        meaning: "Where the nodes agree. One scheme for all endpoints.",
        keys: &[
            key(
                "endpoints",
                Required,
                "[\"http://10.0.0.21:2379\", \"http://10.0.0.22:2379\", \"http://10.0.0.23:2379\"]",
                "list of URLs, http or https",
                Agent,
                "Every member of the etcd cluster.",
            ),
            key("prefix", Default, "\"/pgbaton\"", "text, begins with /", Fixed, "The records stand under <prefix>/<cluster>/."),
            key("ca_file", Optional, "\"etcd-ca.crt\"", "path of a PEM file", Agent, "Checks etcd's certificates. Required with https."),
            key(
                "cert_file",
                Optional,
                "\"etcd-client.crt\"",
                "path of a PEM file",
                Agent,
                "This node's client certificate; with key_file.",
            ),
            key("key_file", Optional, "\"etcd-client.key\"", "path of a secret PEM file", Agent, "Its private key."),
            key("username", Optional, "\"pgbaton\"", "text", Agent, "etcd user; with password_file."),
            key("password_file", Optional, "\"etcd.password\"", "path of a secret file", Agent, "That user's password."),
        ],
    },
    Table {
        path: "api",
        meaning: "This node's own API: health, status, operations, metrics.",
        keys: &[
            key("listen", Default, "\"0.0.0.0:8008\"", "host:port, several with commas between", Agent, "Where it listens."),
            key(
                "advertise",
                Required,
                "\"10.0.0.11:8008\"",
                "host:port; default the first of listen",
                Agent,
                "How others reach it. Required where listen is a wildcard.",
            ),
            key("allow", Default, "[]", "list of networks", Agent, "From where requests are accepted; empty for everywhere."),
        ],
    },
    Table {
        path: "postgres",
        meaning: "The PostgreSQL instance.",
        keys: &[
            key("data_dir", Required, "\"/var/lib/postgresql/17/main\"", "path", Fixed, "The data directory."),
            key("bin_dir", Required, "\"/usr/lib/postgresql/17/bin\"", "path", Postgres, "PostgreSQL's programs."),
            key(
                "base_config",
                Optional,
                "\"/etc/postgresql/17/main/postgresql.conf\"",
                "path",
                Agent,
                "Included first by the managed postgresql.conf: what stands there holds unless the policy or pgbaton says otherwise.",
            ),
            key(
                "listen",
                Default,
                "\"0.0.0.0:5432\"",
                "host:port, several with commas between, one port",
                Postgres,
                "Where PostgreSQL listens.",
            ),
            key(
                "advertise",
                Required,
                "\"10.0.0.11:5432\"",
                "host:port; default the first of listen",
                Agent,
                "How clients and other nodes reach it. Required where listen is a wildcard.",
            ),
            key(
                "wal_dir",
                Default,
                "\"\"",
                "path; empty for inside of the data directory",
                Agent,
                "Separate directory for the WAL, used when the data directory is made.",
            ),
            key(
                "tablespace_map",
                Default,
                "{}",
                "table, path on the source = path here",
                Agent,
                "Where tablespaces go when the data directory is copied.",
            ),
        ],
    },
    Table {
        path: "postgres.superuser",
        meaning: "The agent's own sessions, over the Unix socket, by peer authentication.",
        keys: &[key("user", Default, "\"postgres\"", "text", Fixed, "Role name.")],
    },
    Table {
        path: "postgres.replication",
        meaning: "Streaming and copying between nodes. Needs password_file, or cert_file and key_file.",
        keys: &[
            key("user", Default, "\"pgbaton_replication\"", "text", Fixed, "Role name."),
            key(
                "password_file",
                Required,
                "\"replication.password\"",
                "path of a secret file",
                Agent,
                "Its password; not needed with a certificate.",
            ),
            key("cert_file", Optional, "\"replication.crt\"", "path of a PEM file", Agent, "Client certificate; with key_file."),
            key("key_file", Optional, "\"replication.key\"", "path of a secret PEM file", Agent, "Its private key."),
        ],
    },
    Table {
        path: "postgres.rewind",
        meaning: "pg_rewind between nodes.",
        keys: &[
            key("user", Default, "\"pgbaton_rewind\"", "text", Fixed, "Role name."),
            key("password_file", Required, "\"rewind.password\"", "path of a secret file", Agent, "Its password."),
        ],
    },
    Table {
        path: "postgres.monitor",
        meaning: "Reading positions and statistics.",
        keys: &[
            key("user", Default, "\"pgbaton_monitor\"", "text", Fixed, "Role name."),
            key("password_file", Optional, "\"monitor.password\"", "path of a secret file", Agent, "Its password."),
        ],
    },
    Table {
        path: "postgres.replication_tls",
        meaning: "TLS of streaming, copying and rewinding, in libpq's terms.",
        keys: &[
            key(
                "mode",
                Optional,
                "\"verify-full\"",
                "prefer, require, verify-ca or verify-full; default prefer, with ca_file verify-full",
                Agent,
                "sslmode.",
            ),
            key(
                "ca_file",
                Optional,
                "\"postgres-ca.crt\"",
                "path of a PEM file",
                Agent,
                "sslrootcert. Required with verify-ca and verify-full.",
            ),
        ],
    },
    Table {
        path: "bootstrap",
        meaning: "Used once, by the first node of a new cluster.",
        keys: &[
            key("initdb", Default, "[\"--data-checksums\"]", "list of texts", Fixed, "Arguments of initdb beside pgbaton's own."),
            key("policy", Optional, "\"policy.toml\"", "path", Fixed, "The first cluster policy; without it the defaults."),
        ],
    },
    Table {
        path: "guard",
        meaning: "How PostgreSQL is ended when the right to write runs out.",
        keys: &[
            key(
                "kill",
                Default,
                "\"auto\"",
                "auto, cgroup, namespace or descendants",
                Postgres,
                "By which means; auto takes the best that passes its self-test.",
            ),
            key(
                "network_fence",
                Default,
                "\"off\"",
                "off; auto is not available in this version",
                Postgres,
                "The kernel's lease on the PostgreSQL port.",
            ),
            key(
                "watchdog",
                Default,
                "\"off\"",
                "off; automatic and required are not available in this version",
                Postgres,
                "Hardware or software watchdog.",
            ),
            key("device", Default, "\"/dev/watchdog\"", "path", Postgres, "The watchdog's device."),
        ],
    },
    Table {
        path: "telemetry",
        meaning: "What this node tells of itself. Metrics are always at /metrics.",
        keys: &[key("log", Default, "\"text\"", "text or json", Agent, "How log lines look; PGBATON_LOG chooses which (default info).")],
    },
];
