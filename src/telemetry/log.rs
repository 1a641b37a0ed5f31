//! Log lines: on stderr, for people or as JSON.
//!
//! ERROR: a human must look. WARN: odd but handled. INFO: a state change. DEBUG: why.

use super::{
    Error,
    sink::{Last, Sink},
};
use crate::clock;
use std::{fmt, io, io::IsTerminal};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{MakeWriter, format::Writer, time::FormatTime},
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The environment variable that chooses which lines are written.
pub const VARIABLE: &str = "PGBATON_LOG";

/// From now on this process logs to stderr, and waits for it: what [`VARIABLE`] says, else INFO of ours and WARN of foreign crates.
///
/// # Errors
/// [`Error::Filter`] and [`Error::Twice`]: nothing is logged, or still where it was.
pub fn init(format: Format) -> Result<(), Error> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let subscriber = subscriber(format, filter(&wanted)?, io::stderr().is_terminal(), io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::Twice)
}

/// As [`init`], for a process that nobody who reads its log may hold up: lines that stderr does not take are dropped.
///
/// # Errors
/// As [`init`], and [`Error::Thread`]: nothing is logged.
pub fn init_apart(format: Format) -> Result<Last, Error> {
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    let filter = filter(&wanted)?;
    let sink = Sink::to_stderr().map_err(Error::Thread)?;
    let lines = sink.clone();
    let subscriber = subscriber(format, filter, io::stderr().is_terminal(), move || lines.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(|_| Error::Twice)?;
    Ok(Last(sink))
}

/// As [`init`], to another place than stderr.
///
/// # Errors
/// As [`init`].
pub fn init_to<W>(format: Format, writer: W) -> Result<(), Error>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let wanted = std::env::var(VARIABLE).unwrap_or_default();
    tracing::subscriber::set_global_default(subscriber(format, filter(&wanted)?, false, writer)).map_err(|_| Error::Twice)
}

/// A level alone is meant for our own lines; more is taken as it is written.
fn filter(wanted: &str) -> Result<EnvFilter, Error> {
    let wanted = wanted.trim();
    let level = if wanted.is_empty() { "info" } else { wanted };
    let plain = ["off", "error", "warn", "info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str());
    let directives = if plain { format!("warn,pgbaton={level}") } else { level.to_owned() };
    let bad = |why: String| Error::Filter { variable: VARIABLE, value: wanted.to_owned(), why };
    // A misspelt level would be taken for the name of a module, and the log would stay empty.
    for directive in directives.split(',') {
        let name_alone = !directive.contains(['=', ':', '[']) && directive.parse::<tracing_subscriber::filter::LevelFilter>().is_err();
        if name_alone && directive != "pgbaton" {
            return Err(bad(format!("{directive:?} is no level")));
        }
    }
    EnvFilter::try_new(directives).map_err(|error| bad(error.to_string()))
}

fn subscriber<W>(format: Format, filter: EnvFilter, colours: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A line that could not be written is lost: to tell stderr of it would end the process by a panic where that one is what fails.
    let lines = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter).with_timer(Wall).with_writer(writer);
    match format {
        Format::Text => Box::new(lines.with_ansi(colours).finish()),
        Format::Json => Box::new(lines.json().flatten_event(true).with_current_span(true).with_span_list(false).finish()),
    }
}

/// The wall clock, as the rest of the product shows it.
struct Wall;

impl FormatTime for Wall {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&clock::wall())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Seek, SeekFrom},
        process::{Child, Stdio},
        sync::{Arc, Mutex},
        time::Duration,
    };

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, wanted: &str) -> String {
        let lines = Lines::default();
        let sink = lines.clone();
        let subscriber = subscriber(format, filter(wanted).expect("filter"), false, move || sink.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(term = 7, reason = "lease lost", "stepping down");
            tracing::debug!("why");
            tracing::info!(target: "hyper", "chatter");
            tracing::warn!(target: "hyper", "odd");
        });
        let bytes = lines.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn text_lines_carry_level_and_fields() {
        let text = logged(Format::Text, "");
        assert!(text.contains(" INFO pgbaton::telemetry::log::tests: stepping down term=7 reason=\"lease lost\"\n"), "{text}");
        assert!(!text.contains("why") && !text.contains("chatter") && text.contains("odd"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn json_lines_are_objects_with_the_fields_at_the_top() {
        let text = logged(Format::Json, "info");
        let first: serde_json::Value = serde_json::from_str(text.lines().next().expect("a line")).expect("json");
        assert_eq!((&first["level"], &first["message"], &first["term"]), (&"INFO".into(), &"stepping down".into(), &7.into()));
        assert!(first["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')));
    }

    #[test]
    fn a_level_alone_is_for_our_own_lines() {
        let text = logged(Format::Text, "debug");
        assert!(text.contains("why") && !text.contains("chatter"), "{text}");
        let text = logged(Format::Text, "hyper=info");
        assert!(!text.contains("why") && text.contains("chatter"), "{text}");
    }

    #[test]
    fn a_misspelt_level_is_refused_by_name() {
        let message = filter("inof").expect_err("no level").to_string();
        assert!(message.starts_with("understand PGBATON_LOG=\"inof\": \"inof\" is no level"), "{message}");
        assert!(filter("pgbaton=loud").is_err());
    }

    /// What a process of its own does with its stderr, by name: it is this test again.
    const BEHAVIOUR: &str = "PGBATON_TEST_LOGS";

    /// Not a test by itself: it logs as [`BEHAVIOUR`] says, in the process that [`logging`] starts.
    #[test]
    fn a_process_that_logs() {
        let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return };
        let _last = match behaviour.as_str() {
            "waits" => init(Format::Text).map(|()| None),
            _ => init_apart(Format::Text).map(Some),
        }
        .expect("log");
        for count in 0..LINES {
            tracing::info!(count, "{}", "x".repeat(200));
        }
    }

    /// More than a pipe holds, and less than may wait.
    const LINES: usize = 2_000;

    #[expect(clippy::disallowed_methods, reason = "the program is this test's own")]
    fn logging(behaviour: &str, stderr: impl Into<Stdio>) -> Child {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "telemetry::log::tests::a_process_that_logs", "--nocapture", "--test-threads=1"]);
        command.env(BEHAVIOUR, behaviour).env_remove(VARIABLE).stdout(Stdio::null()).stderr(stderr).spawn().expect("start")
    }

    fn full() -> std::fs::File {
        std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a disk that is full")
    }

    fn ends_well(mut child: Child) -> bool {
        for _ in 0..1_000 {
            if let Some(status) = child.try_wait().expect("wait") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        false
    }

    #[test]
    fn a_full_disk_behind_stderr_ends_nobody() {
        assert!(ends_well(logging("waits", full())), "a verb");
        assert!(ends_well(logging("apart", full())), "an agent");
    }

    #[test]
    fn an_agent_outlives_the_reader_of_its_log() {
        let (reader, writer) = io::pipe().expect("pipe");
        drop(reader);
        assert!(ends_well(logging("apart", writer)));
    }

    #[test]
    fn an_agent_does_not_wait_for_a_reader_that_hangs() {
        let (_reader, writer) = io::pipe().expect("pipe");
        assert!(ends_well(logging("apart", writer)));
    }

    #[test]
    fn nothing_is_lost_in_a_file_not_even_what_is_said_last() {
        for behaviour in ["waits", "apart"] {
            let mut file = tempfile::tempfile().expect("file");
            assert!(ends_well(logging(behaviour, file.try_clone().expect("the same file"))));
            let mut text = String::new();
            file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text)).expect("read");
            let counts: Vec<usize> = text.lines().filter_map(|line| line.rsplit_once("count=")?.1.parse().ok()).collect();
            assert_eq!(counts, (0..LINES).collect::<Vec<_>>(), "{behaviour}");
        }
    }
}
