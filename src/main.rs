//! The `pgbaton` program: arguments in, exit code out.

use pgbaton::{agent, config, guard, telemetry};
use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["guard", "--settings-json", path] => {
            telemetry::log::init(telemetry::log::Format::Text).ok();
            guard::server::main_from_json(Path::new(path)).map_err(|error| format!("{error:?}"))
        }
        ["guard", "--settings-json", path, "--starter"] => {
            let exe = std::env::current_exe().unwrap_or_default();
            let launch = agent::starter::Launch {
                program: exe,
                args: vec!["guard".to_owned(), "--settings-json".to_owned(), path.to_owned()],
                socket: std::path::PathBuf::new(),
            };
            agent::starter::serve(&launch).map_err(|error| error.to_string())
        }
        ["lab-init", ..] => pgbaton::lab::host_init::run(args.get(1..).unwrap_or_default()).map_err(|error| format!("{error:#}")),
        ["agent", "--config", path] => run_agent(Path::new(path)),
        _ => Err("usage".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("pgbaton: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run_agent(path: &Path) -> Result<(), String> {
    let config = config::read(path).map_err(|faults| faults.to_string())?;
    telemetry::log::init(telemetry::log::Format::Text).map_err(|fault| fault.to_string())?;
    let exe = std::env::current_exe().map_err(|fault| fault.to_string())?;
    let why = agent::run(config, exe, |_| Box::new(|_, _| {})).map_err(|fault| fault.to_string())?;
    tracing::info!(why, "the agent ends");
    Ok(())
}
