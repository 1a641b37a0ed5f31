//! The `pgbaton` program: arguments in, exit code out.

use clap::Parser;
use pgbaton::{
    cli::{self, arguments::Arguments, exit},
    telemetry::log,
};
use std::{
    io::{self, Write as _},
    process::ExitCode,
};

fn main() -> ExitCode {
    // Wrong arguments end here, with clap's own message and exit code 2.
    let arguments = Arguments::parse();
    if !arguments.verb.logs_by_itself()
        && let Err(error) = log::init(log::Format::Text)
    {
        say(&format!("could not {error}"));
        return exit::Exit::Usage.into();
    }
    match cli::run(arguments) {
        Ok(exit) => exit.into(),
        Err(error) => {
            say(&exit::message(&error));
            exit::of(&error).into()
        }
    }
}

/// Where stderr fails, the exit code still tells: a panic would have one of its own.
fn say(why: &str) {
    let _ = writeln!(io::stderr(), "pgbaton: {why}");
}
