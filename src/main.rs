//! The `pgbaton` program: arguments in, exit code out.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["guard", "--settings-json", path] => {
            tracing_subscriber::fmt().with_ansi(false).with_writer(|| pgbaton::guard::log::Sink).init();
            match pgbaton::guard::server::main_from_json(Path::new(path)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("pgbaton guard: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => ExitCode::FAILURE,
    }
}
