//! The `pgbaton` program: arguments in, exit code out.

use clap::Parser;
use pgbaton::{
    cli::{self, arguments::Arguments, exit},
    telemetry::log,
};
use std::process::ExitCode;

fn main() -> ExitCode {
    // Wrong arguments end here, with clap's own message and exit code 2.
    let arguments = Arguments::parse();
    if !arguments.verb.logs_by_itself()
        && let Err(error) = log::init(log::Format::Text)
    {
        eprintln!("pgbaton: could not {error}");
        return exit::Exit::Usage.into();
    }
    match cli::run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("pgbaton: {}", exit::message(&error));
            exit::of(&error).into()
        }
    }
}
