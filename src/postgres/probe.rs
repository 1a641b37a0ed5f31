//! Samples of the running server: one statement for everything, one more question on a standby.

use super::{
    Error, Server,
    command::Floors,
    conninfo::without_password,
    replication::{Identity, left},
    server::{KEPT_STATEMENT, Seldom, Watch},
    session::column,
};
use crate::{
    clock,
    model::{
        instance::{Pause, Receiver, RecoveryTarget, Run, ServerFacts, ServerRole, Slot, Waiting, Walsender},
        lsn::Lsn,
        moment::{Moment, Span},
        node::{Address, SystemId},
        policy_check::is_weak_commit,
        timeline::TimelineId,
    },
};
use serde::Deserialize;
use tokio_postgres::{
    Row,
    types::{Json, PgLsn, Type},
};

/// How old `pending_restart`, `weak_commits` and `oldest_wal` may be: reading all settings costs as much as the rest of a sample.
const SELDOM: Span = Span::from_secs(5);

/// How old the reason of a pause may be: finding it starts a program.
const PAUSE_REASON_EVERY: Span = Span::from_secs(2);

/// A kept session that has not answered for so long is replaced: perhaps it is that one backend alone that hangs.
const REPLACE_SILENT_AFTER: Span = Span::from_secs(5);

/// Over which connection a sample is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The kept session: cheap, and has its place when clients have taken all others.
    Kept,
    /// A new one: shows that the postmaster still lets somebody in (scenario 124) and what new sessions get as settings.
    Fresh,
}

/// The sample. Columns are computed in their written order: the insert position before the flush position, so that a
/// boundary which an earlier sample saw can only be found flushed too late, never too early; replay before receive.
/// `pg_is_in_recovery()` is asked once: a promotion in between is seen by the next sample.
fn sample_sql(major: u32) -> String {
    // PG 14 release notes: pg_get_wal_replay_pause_state() tells "pause requested" from "paused".
    let pause = if major >= 14 { "pg_get_wal_replay_pause_state() = 'paused'" } else { "pg_is_wal_replay_paused()" };
    format!(
        "SELECT r AS in_recovery,
            CASE WHEN NOT r THEN pg_current_wal_insert_lsn() END AS insert,
            CASE WHEN NOT r THEN pg_current_wal_flush_lsn() END AS flush,
            CASE WHEN NOT r THEN pg_walfile_name(pg_current_wal_insert_lsn()) END AS walfile,
            CASE WHEN r THEN pg_last_wal_replay_lsn() END AS replay,
            CASE WHEN r THEN pg_last_wal_receive_lsn() END AS receive,
            CASE WHEN r THEN (extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000)::float8 END AS replay_age,
            CASE WHEN r THEN {pause} END AS paused,
            current_setting('primary_conninfo') AS conninfo,
            current_setting('recovery_target_timeline') AS target,
            current_setting('synchronous_standby_names') AS sync_names,
            CASE WHEN NOT r AND current_setting('synchronous_standby_names') <> '' THEN
                (SELECT json_build_object('sessions', count(*),
                    'ms', coalesce(max(extract(epoch FROM clock_timestamp() - state_change)) * 1000, 0)::bigint)
                FROM pg_stat_activity WHERE wait_event = 'SyncRep') END AS waiting,
            CASE WHEN r THEN (SELECT json_build_object('status', status, 'host', sender_host, 'port', sender_port,
                'tli', received_tli, 'latest_end', latest_end_lsn) FROM pg_stat_wal_receiver) END AS receiver,
            CASE WHEN r THEN EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'walreceiver') END AS has_receiver,
            (SELECT coalesce(json_agg(json_build_object('application_name', application_name, 'state', state,
                'sent', sent_lsn, 'write', write_lsn, 'flush', flush_lsn, 'replay', replay_lsn,
                'replay_ms', extract(epoch FROM replay_lag) * 1000,
                'reply', (extract(epoch FROM reply_time) * 1000000)::bigint)), '[]')
                FROM pg_stat_replication
                WHERE NOT (application_name = 'pgbaton' AND client_addr IS NULL AND state = 'startup')) AS walsenders,
            (SELECT coalesce(json_agg(json_build_object('name', slot_name, 'active', active, 'lost', wal_status = 'lost',
                'restart', restart_lsn)), '[]')
                FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary) AS slots
        FROM (SELECT pg_is_in_recovery() AS r OFFSET 0) AS role"
    )
}

#[derive(Deserialize)]
struct ReceiverRow {
    status: String,
    host: Option<String>,
    port: Option<u16>,
    tli: Option<u32>,
    latest_end: Option<Lsn>,
}

#[derive(Deserialize)]
struct WaitingRow {
    sessions: u32,
    ms: u64,
}

#[derive(Deserialize)]
struct WalsenderRow {
    application_name: String,
    state: Option<String>,
    sent: Option<Lsn>,
    write: Option<Lsn>,
    flush: Option<Lsn>,
    replay: Option<Lsn>,
    replay_ms: Option<f64>,
    reply: Option<i64>,
}

#[derive(Deserialize)]
struct SlotRow {
    name: String,
    active: bool,
    lost: Option<bool>,
    restart: Option<Lsn>,
}

impl Server {
    /// What the server says of itself, within `limit`.
    ///
    /// Over the kept session a sample is one round trip on a primary and two on a standby; the first one of a run opens it.
    ///
    /// # Errors
    /// [`Error::NotListening`], [`Error::NotReady`]: it does not run, or lets nobody in yet. [`Error::TooManySessions`]: it lives.
    /// [`Error::Timeout`]: it hangs, or the machine does. [`Error::Authentication`]: an operator has to look.
    pub async fn probe(&self, run: Run, via: Via, limit: Span) -> Result<ServerFacts, Error> {
        let end = clock::boot().plus(limit);
        let kept = match via {
            Via::Kept => self.take(run),
            Via::Fresh => None,
        };
        if let Some(watch) = kept {
            match self.kept_sample(run, watch, end).await {
                // A dead socket says nothing of the server: its own session may have been ended by somebody.
                Err(Error::Gone { .. }) => {}
                result => return result,
            }
        }
        let mut watch = self.watch(end).await?;
        match via {
            Via::Kept => self.kept_sample(run, watch, end).await,
            Via::Fresh => self.sample(run, &mut watch, end).await,
        }
    }

    /// A sample over a session that is kept afterwards, even where it did not answer in time: a new one for each sample of a server
    /// that hangs would take all of its connections. One that has hung for long is given up, and ended by the server.
    async fn kept_sample(&self, run: Run, mut watch: Watch, end: Moment) -> Result<ServerFacts, Error> {
        let result = self.sample(run, &mut watch, end).await;
        let now = clock::boot();
        watch.silent_since = match &result {
            Err(Error::Timeout { .. }) => watch.silent_since.or(Some(now)),
            _ => None,
        };
        if watch.silent_since.is_none_or(|since| now.since(since) < REPLACE_SILENT_AFTER) {
            self.keep(run, watch);
        }
        result
    }

    async fn watch(&self, end: Moment) -> Result<Watch, Error> {
        let doing = "prepare to sample the server";
        let session = self.connect(left(end), KEPT_STATEMENT).await?;
        let sql = "SELECT current_setting('server_version_num')::int AS version, \
                   (SELECT system_identifier FROM pg_control_system()) AS system_id";
        let rows = session.rows(doing, sql, &[], left(end)).await?;
        let row = rows.first().ok_or_else(|| Error::Malformed { what: doing.to_owned(), text: String::new() })?;
        let version_num = u32::try_from(column::<i32>(row, "version")?).unwrap_or_default();
        let sample = session.prepare(doing, &sample_sql(version_num / 10_000), left(end)).await?;
        Ok(Watch {
            session,
            sample,
            version_num,
            system_id: column::<i64>(row, "system_id")?.cast_unsigned(),
            seldom: Seldom::default(),
            parameters_pause: None,
            identity: None,
            silent_since: None,
        })
    }

    async fn sample(&self, run: Run, watch: &mut Watch, end: Moment) -> Result<ServerFacts, Error> {
        let row = watch.session.prepared_row("sample the server", &watch.sample, left(end)).await?;
        let in_recovery: bool = column(&row, "in_recovery")?;
        let role = if in_recovery { self.standby(&row, watch, end).await? } else { primary(&row)? };
        if in_recovery != watch.identity.is_some() {
            watch.identity = None;
        }
        self.seldom(watch, in_recovery, end).await?;
        let newest = match &role {
            ServerRole::Primary { insert, .. } => *insert,
            ServerRole::Standby { receive, replay, .. } => receive.map_or(*replay, |receive| receive.max(*replay)),
        };
        Ok(ServerFacts {
            run,
            version_num: watch.version_num,
            system_id: SystemId::new(watch.system_id),
            role,
            walsenders: column::<Json<Vec<WalsenderRow>>>(&row, "walsenders")?.0.into_iter().map(walsender).collect(),
            slots: column::<Json<Vec<SlotRow>>>(&row, "slots")?.0.into_iter().filter_map(|slot| slot_fact(slot, newest)).collect(),
            pending_restart: watch.seldom.pending_restart.clone(),
            oldest_wal: watch.seldom.oldest_wal.filter(|_| !in_recovery),
            sync_names: column(&row, "sync_names")?,
            weak_commits: watch.seldom.weak_commits.clone().filter(|_| !in_recovery),
            waiting: column::<Option<Json<WaitingRow>>>(&row, "waiting")?
                .map(|waiting| Waiting { sessions: waiting.0.sessions, longest: Span::from_millis(waiting.0.ms) }),
        })
    }

    /// What costs as much as the rest of a sample is asked seldom.
    async fn seldom(&self, watch: &mut Watch, in_recovery: bool, end: Moment) -> Result<(), Error> {
        let now = clock::boot();
        if watch.seldom.at.is_some_and(|at| now.since(at) <= SELDOM) {
            return Ok(());
        }
        let sql = "SELECT name FROM pg_settings WHERE pending_restart ORDER BY name";
        let rows = watch.session.rows("look for settings that wait for a restart", sql, &[], left(end)).await?;
        let pending_restart = rows.iter().map(|row| column(row, "name")).collect::<Result<_, _>>()?;
        let (mut oldest_wal, mut weak_commits) = (None, None);
        if !in_recovery {
            // Our own sessions have another one than all others.
            let sql = "SELECT setting, sourcefile FROM pg_file_settings WHERE name = 'synchronous_commit' AND applied ORDER BY seqno DESC LIMIT 1";
            let rows = watch.session.rows("look for synchronous_commit in the files", sql, &[], left(end)).await?;
            if let Some(row) = rows.first() {
                let (value, file): (String, String) = (column(row, "setting")?, column(row, "sourcefile")?);
                weak_commits = is_weak_commit(&value).then(|| format!("{value} in {file}"));
            }
            // A segment's name: timeline, and its number in two parts of eight digits each.
            let sql = "SELECT min(substr(name, 9)) AS oldest, pg_size_bytes(current_setting('wal_segment_size')) AS segment \
                       FROM pg_ls_dir('pg_wal') AS name WHERE name ~ '^[0-9A-F]{24}$'";
            let rows = watch.session.rows("look for the oldest segment of WAL", sql, &[], left(end)).await?;
            oldest_wal = rows.first().map(oldest).transpose()?.flatten();
        }
        watch.seldom = Seldom { at: Some(now), pending_restart, weak_commits, oldest_wal };
        Ok(())
    }

    async fn standby(&self, row: &Row, watch: &mut Watch, end: Moment) -> Result<ServerRole, Error> {
        let replay = lsn(row, "replay")?.unwrap_or_default();
        let receive = lsn(row, "receive")?.filter(|lsn| !lsn.is_zero());
        let age = column::<Option<f64>>(row, "replay_age")?;
        let caught_up = receive.is_some_and(|receive| replay >= receive);
        let pause = match column::<Option<bool>>(row, "paused")?.unwrap_or(false) {
            true => Some(self.why_paused(watch, end).await?),
            false => {
                watch.parameters_pause = None;
                None
            }
        };
        Ok(ServerRole::Standby {
            tli: self.replayed_timeline(watch, end).await?,
            receive,
            replay,
            receiver: receiver(row)?,
            conninfo: without_password(column(row, "conninfo")?),
            target: RecoveryTarget::of_parameter(&column::<String>(row, "target")?).unwrap_or(RecoveryTarget::Current),
            pause,
            replay_ms: if caught_up { 0 } else { age.map_or(0, millis) },
        })
    }

    async fn replayed_timeline(&self, watch: &mut Watch, end: Moment) -> Result<TimelineId, Error> {
        if let Some(mut identity) = watch.identity.take()
            && let Ok(tli) = identity.timeline(left(end)).await
        {
            watch.identity = Some(identity);
            return Ok(tli);
        }
        let mut identity = Identity::open(self).await?;
        let tli = identity.timeline(left(end)).await?;
        watch.identity = Some(identity);
        Ok(tli)
    }

    /// PostgreSQL pauses in the same way for both reasons; `pg_control` holds what the primary had (EXP-14). It is read seldom.
    async fn why_paused(&self, watch: &mut Watch, end: Moment) -> Result<Pause, Error> {
        let now = clock::boot();
        if let Some((at, pause)) = watch.parameters_pause
            && now.since(at) < PAUSE_REASON_EVERY
        {
            return Ok(pause);
        }
        let needed = Floors::of_control_file(&self.settings).await?;
        let names: Vec<&str> = needed.0.iter().map(|(name, _)| *name).collect();
        let sql = "SELECT name, setting::bigint AS value FROM pg_settings WHERE name = ANY ($1)";
        let doing = "compare settings with the primary's";
        let rows = watch.session.rows(doing, sql, &[(&names, Type::TEXT_ARRAY)], left(end)).await?;
        let mut pause = Pause::Requested;
        for row in &rows {
            let (name, value) = (column::<&str>(row, "name")?, column::<i64>(row, "value")?);
            if needed.0.iter().any(|(needed, least)| *needed == name && i64::from(*least) > value) {
                pause = Pause::Parameters;
            }
        }
        watch.parameters_pause = Some((now, pause));
        Ok(pause)
    }
}

/// Where the oldest segment begins.
fn oldest(row: &Row) -> Result<Option<Lsn>, Error> {
    let Some(name) = column::<Option<String>>(row, "oldest")? else { return Ok(None) };
    let segment = column::<i64>(row, "segment")?.cast_unsigned();
    let part = |digits: Option<&str>| digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let (high, low) = (part(name.get(..8)), part(name.get(8..)));
    Ok(high.zip(low).map(|(high, low)| Lsn::new((high << 32) + low.saturating_mul(segment))))
}

fn primary(row: &Row) -> Result<ServerRole, Error> {
    let walfile: String = column(row, "walfile")?;
    let tli = walfile.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(TimelineId::new);
    let missing = |what: &str| Error::Malformed { what: what.to_owned(), text: walfile.clone() };
    Ok(ServerRole::Primary {
        tli: tli.ok_or_else(|| missing("the name of a WAL file"))?,
        insert: lsn(row, "insert")?.ok_or_else(|| missing("the insert position"))?,
        flush: lsn(row, "flush")?.ok_or_else(|| missing("the flush position"))?,
    })
}

fn receiver(row: &Row) -> Result<Option<Receiver>, Error> {
    let shown = column::<Option<Json<ReceiverRow>>>(row, "receiver")?.map(|json| json.0);
    let Some(shown) = shown else {
        // The view hides a walreceiver that has not connected yet; the process is there all the same.
        let lives = column::<Option<bool>>(row, "has_receiver")?.unwrap_or(false);
        return Ok(lives.then_some(Receiver { streaming: false, sender: None, tli: None, latest_end: None }));
    };
    let sender = shown.host.zip(shown.port).map(|(host, port)| Address { host, port });
    Ok(Some(Receiver {
        streaming: shown.status == "streaming",
        sender,
        tli: shown.tli.and_then(TimelineId::new),
        latest_end: shown.latest_end.filter(|lsn| !lsn.is_zero()),
    }))
}

fn walsender(row: WalsenderRow) -> Walsender {
    Walsender {
        application_name: row.application_name,
        streaming: row.state.as_deref() == Some("streaming"),
        sent: row.sent,
        write: row.write,
        flush: row.flush,
        replay: row.replay,
        replay_ms: row.replay_ms.map(millis),
        reply: row.reply,
    }
}

fn slot_fact(row: SlotRow, newest: Lsn) -> Option<Slot> {
    let retained = row.restart.map_or(0, |restart| newest.bytes_ahead_of(restart).get());
    Some(Slot { name: row.name.parse().ok()?, active: row.active, retained, lost: row.lost.unwrap_or(false) })
}

fn lsn(row: &Row, name: &str) -> Result<Option<Lsn>, Error> {
    Ok(column::<Option<PgLsn>>(row, name)?.map(|lsn| Lsn::new(lsn.into())))
}

/// A clock that was set back makes negative ages: they count as none.
fn millis(value: f64) -> u64 {
    // A cast from float saturates at both ends.
    value as u64
}
