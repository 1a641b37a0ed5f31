//! Asking a person before something is changed.

use super::{
    arguments::Confirmation,
    exit::{Exit, Failure},
};
use std::io::{self, BufRead, IsTerminal, Write};

/// What follows from the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Do it.
    Go,
    /// Nothing more than showing it was wanted.
    Shown,
}

/// Shows what will be done, and asks unless told not to.
///
/// Without a terminal there is nobody to ask: then `--yes` has to be given.
pub(super) fn confirm(plan: &str, confirmation: &Confirmation) -> anyhow::Result<Answer> {
    eprintln!("{}", plan.trim_end());
    if confirmation.dry_run {
        eprintln!("Nothing was done (--dry-run).");
        return Ok(Answer::Shown);
    }
    if confirmation.yes {
        return Ok(Answer::Go);
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::of(Exit::Usage, "there is no terminal to ask on: add --yes, or --dry-run"));
    }
    eprint!("Do it? [y/N] ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    match line.trim() {
        "y" | "Y" | "yes" => Ok(Answer::Go),
        _ => Err(Failure::of(Exit::Aborted, "nothing was done")),
    }
}
