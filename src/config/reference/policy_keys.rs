//! The keys of the cluster policy.

use super::{
    Change::Live,
    Presence::{Default, Optional},
    Table, key,
};

/// The cluster policy.
pub const POLICY: &[Table] = &[
    Table {
        path: "",
        meaning: "Policy of the cluster, kept in etcd: the same for all nodes.",
        keys: &[
            key(
                "preset",
                Default,
                "\"default\"",
                "default, fast or wan",
                Live,
                "A set of timers: default for etcd's defaults, fast for heartbeat 50 ms and election 500 ms on a LAN, wan for regions apart.",
            ),
            key(
                "renew_every",
                Optional,
                "\"500ms\"",
                "time, at least 100ms; default by preset",
                Live,
                "Between two renewals of the right to write. At most a third of hold_for.",
            ),
            key("hold_for", Optional, "\"2.8s\"", "time, at most 15s; default by preset", Live, "How long a renewal is good for."),
            key(
                "take_after",
                Optional,
                "\"3.3s\"",
                "time; default by preset",
                Live,
                "How long others must see no renewal before they may follow. Not below hold_for and the time a kill takes.",
            ),
            key(
                "soft_stop",
                Optional,
                "\"200ms\"",
                "time; default by preset",
                Live,
                "How long before its end a primary that cannot renew begins to stop.",
            ),
            key(
                "max_lag",
                Default,
                "\"1MB\"",
                "bytes",
                Live,
                "How far behind a standby may be and still take over: the bound of what asynchronous replication may lose.",
            ),
            key(
                "crash_policy",
                Default,
                "\"lossless\"",
                "lossless, failover or restart",
                Live,
                "After a crash of PostgreSQL: lossless lets a standby that has everything take over, else restarts in place; failover takes any within max_lag; restart never fails over.",
            ),
            key("rewind", Default, "true", "boolean", Live, "Whether a diverged data directory may be rewound."),
            key(
                "reclone",
                Default,
                "\"never\"",
                "never, when-rewind-fails or always",
                Live,
                "When a data directory may be replaced by a fresh copy without being asked.",
            ),
            key(
                "allow_unfenced",
                Default,
                "false",
                "boolean",
                Live,
                "Whether a node whose PostgreSQL nothing would end may become primary.",
            ),
            key(
                "primary_start_timeout",
                Default,
                "\"300s\"",
                "time, 1s to 1d",
                Live,
                "How long a start as primary may take before another node gets its turn.",
            ),
            key("stop_timeout", Default, "\"60s\"", "time, 1s to 1d", Live, "How long a fast stop may take before the kill."),
            key(
                "hba",
                Default,
                "[]",
                "list of lines",
                Live,
                "Lines of pg_hba.conf, after pgbaton's own. Empty: `host all all all scram-sha-256`, which goes with the first line of your own.",
            ),
        ],
    },
    Table {
        path: "member_slot_retention",
        meaning: "What is kept for a member that is away.",
        keys: &[
            key("time", Default, "\"1d\"", "time", Live, "For how long its slot is kept."),
            key("bytes", Default, "\"10GB\"", "bytes, at least 16MB", Live, "Up to how much WAL (max_slot_wal_keep_size)."),
        ],
    },
];
