//! What `pg_controldata` says of a data directory, running or not.

use super::{Error, Settings};
use crate::model::{
    instance::{ControlData, ControlState},
    lsn::Bytes,
    moment::Span,
    timeline::TimelineId,
};
use std::path::Path;

/// How long `pg_controldata` may take: it reads one block, so longer means a hung disk.
const LIMIT: Span = Span::from_secs(10);
/// How often a damaged file is read again, and after which pause.
const ATTEMPTS: u32 = 3;
const PAUSE: Span = Span::from_millis(20);

/// Why a text is not what `pg_controldata` prints for a usable directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotControlData {
    /// `pg_control` is damaged, or of a version that this program does not know.
    #[error("pg_control is damaged or of another major version: {0}")]
    Untrustworthy(String),
    /// A line that must be there is not.
    #[error("pg_controldata printed no line {0:?}")]
    NoLine(&'static str),
    /// A line's value cannot be read.
    #[error("pg_controldata printed {value:?} as {line:?}")]
    BadValue {
        /// The line's name.
        line: &'static str,
        /// What stood there.
        value: String,
    },
}

/// Reads `pg_control` of `data_dir` by `pg_controldata`.
///
/// # Errors
/// When it cannot be run, or when the control file is missing, unreadable, damaged or of another major version.
pub async fn read(settings: &Settings, data_dir: &Path) -> Result<ControlData, Error> {
    let program = settings.program("pg_controldata").arg("-D").arg(data_dir);
    let mut attempts = 1..=ATTEMPTS;
    loop {
        let ended = program.run(LIMIT).await?;
        match (parse(&ended.text(), &ended.stderr), attempts.next()) {
            // A running server may be writing it: up to 15 pg_controldata may then read half of each.
            (Err(NotControlData::Untrustworthy(_)), Some(_)) => tokio::time::sleep(PAUSE.to_std()).await,
            (parsed, _) => return parsed.map_err(|source| Error::ControlData { path: data_dir.to_owned(), source }),
        }
    }
}

/// Reads what the program printed, of PostgreSQL 14 to 18, in the C locale.
///
/// # Errors
/// See [`NotControlData`].
pub fn parse(stdout: &str, stderr: &str) -> Result<ControlData, NotControlData> {
    // A wrong checksum is only a warning to pg_controldata, on stdout before 14 and on stderr since, with exit status 0.
    let warning = |line: &&str| line.starts_with("WARNING") || line.starts_with("pg_controldata: warning");
    if let Some(line) = stdout.lines().chain(stderr.lines()).find(warning) {
        return Err(NotControlData::Untrustworthy(line.to_owned()));
    }
    let lines = Lines(stdout);
    let hints = lines.text("wal_log_hints setting")? == "on";
    let checksums = lines.number::<u32>("Data page checksum version")? != 0;
    let segment = "Bytes per WAL segment";
    let wal_segment = lines.parsed_with(segment, |text| text.parse().ok().filter(|size| super::segment::is_segment_size(*size)))?;
    Ok(ControlData {
        system_id: lines.parsed("Database system identifier")?,
        state: lines.state()?,
        checkpoint_tli: lines.parsed_with("Latest checkpoint's TimeLineID", timeline)?,
        checkpoint: lines.parsed("Latest checkpoint location")?,
        redo: lines.parsed("Latest checkpoint's REDO location")?,
        min_recovery: lines.parsed("Minimum recovery ending location")?,
        min_recovery_tli: TimelineId::new(lines.number("Min recovery ending loc's timeline")?),
        can_rewind: hints || checksums,
        wal_segment: Bytes::new(wal_segment),
    })
}

fn timeline(text: &str) -> Option<TimelineId> {
    text.parse().ok().and_then(TimelineId::new)
}

struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn text(&self, line: &'static str) -> Result<&'a str, NotControlData> {
        let value = |text: &'a str| text.strip_prefix(line)?.strip_prefix(':');
        self.0.lines().find_map(value).map(str::trim).ok_or(NotControlData::NoLine(line))
    }

    fn parsed_with<T>(&self, line: &'static str, parse: impl Fn(&str) -> Option<T>) -> Result<T, NotControlData> {
        let text = self.text(line)?;
        parse(text).ok_or_else(|| NotControlData::BadValue { line, value: text.to_owned() })
    }

    fn parsed<T: std::str::FromStr>(&self, line: &'static str) -> Result<T, NotControlData> {
        self.parsed_with(line, |text| text.parse().ok())
    }

    fn number<T: std::str::FromStr>(&self, line: &'static str) -> Result<T, NotControlData> {
        self.parsed(line)
    }

    fn state(&self) -> Result<ControlState, NotControlData> {
        self.parsed_with("Database cluster state", |text| match text {
            "starting up" => Some(ControlState::StartingUp),
            "shut down" => Some(ControlState::ShutDown),
            "shut down in recovery" => Some(ControlState::ShutDownInRecovery),
            "shutting down" => Some(ControlState::ShuttingDown),
            "in crash recovery" => Some(ControlState::InCrashRecovery),
            "in archive recovery" => Some(ControlState::InArchiveRecovery),
            "in production" => Some(ControlState::InProduction),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::lsn::Lsn;

    const PG15: &str = include_str!("fixtures/pg_controldata-15.txt");
    const PG18: &str = include_str!("fixtures/pg_controldata-18.txt");

    #[test]
    fn a_control_file_of_15_is_read() {
        let control = parse(PG15, "").expect("control data");
        assert_eq!(
            control,
            ControlData {
                system_id: "7711643032125445318".parse().expect("system id"),
                state: ControlState::InProduction,
                checkpoint_tli: TimelineId::FIRST,
                checkpoint: Lsn::new(0x175_2990),
                redo: Lsn::new(0x175_2990),
                min_recovery: Lsn::ZERO,
                min_recovery_tli: None,
                can_rewind: true,
                wal_segment: Bytes::new(16 << 20),
            }
        );
    }

    #[test]
    fn a_control_file_of_18_is_read() {
        assert_eq!(parse(PG18, "").map(|control| control.state), Ok(ControlState::ShutDown));
    }

    #[test]
    fn every_state_is_known_and_another_is_refused() {
        let states = [
            ("starting up", ControlState::StartingUp),
            ("shut down", ControlState::ShutDown),
            ("shut down in recovery", ControlState::ShutDownInRecovery),
            ("shutting down", ControlState::ShuttingDown),
            ("in crash recovery", ControlState::InCrashRecovery),
            ("in archive recovery", ControlState::InArchiveRecovery),
            ("in production", ControlState::InProduction),
        ];
        for (text, state) in states {
            let printed = PG15.replace("in production", text);
            assert_eq!(parse(&printed, "").map(|control| control.state), Ok(state));
        }
        let value = "unrecognized status code".to_owned();
        assert_eq!(
            parse(&PG15.replace("in production", &value), ""),
            Err(NotControlData::BadValue { line: "Database cluster state", value })
        );
    }

    #[test]
    fn rewinding_needs_checksums_or_hint_bits_in_the_log() {
        let without = PG15.replace("checksum version:           1", "checksum version:           0");
        assert_eq!(parse(&without, "").map(|control| control.can_rewind), Ok(false));
        let hints = without.replace("wal_log_hints setting:                off", "wal_log_hints setting:                on");
        assert_eq!(parse(&hints, "").map(|control| control.can_rewind), Ok(true));
    }

    #[test]
    fn a_damaged_control_file_is_not_believed() {
        let old = format!("WARNING: Calculated CRC checksum does not match value stored in file.\n{PG15}");
        assert!(matches!(parse(&old, ""), Err(NotControlData::Untrustworthy(_))));
        let new = "pg_controldata: warning: calculated CRC checksum does not match value stored in control file\n";
        assert!(matches!(parse(PG15, new), Err(NotControlData::Untrustworthy(_))));
        assert_eq!(parse("", ""), Err(NotControlData::NoLine("wal_log_hints setting")));
    }
}
