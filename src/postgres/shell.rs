//! The operator's archive and restore commands, with the meaning that PostgreSQL gives them.

use super::{Ended, Failure, Program};
use crate::model::moment::Span;
use std::path::Path;

/// What the percent signs of a command stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words<'a> {
    /// `%f`: the file's name.
    pub(super) file: &'a str,
    /// `%p`: its path, relative to the data directory.
    pub(super) path: &'a str,
    /// `%r`: the oldest file that a restart needs; only restore commands have it.
    pub(super) restart: Option<&'a str>,
}

/// The command with its percent signs replaced, as PostgreSQL does: `%%` is one, and one before any other letter stays.
pub(super) fn expand(command: &str, words: Words<'_>) -> String {
    let mut text = String::with_capacity(command.len() + 64);
    let mut letters = command.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('f') => text.push_str(words.file),
            Some('p') => text.push_str(words.path),
            Some('r') if words.restart.is_some() => text.push_str(words.restart.unwrap_or_default()),
            Some('%') => text.push('%'),
            Some(other) => text.extend(['%', other]),
            None => text.push('%'),
        }
    }
    text
}

/// Runs it by the shell in `directory`, with our environment but for our own variables; at `limit` its whole process
/// group is killed.
pub(super) async fn run(program: Program, command: &str, directory: &Path, limit: Span) -> Result<Ended, Failure> {
    let ours = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("PGBATON_");
    let environment = std::env::vars_os().filter(|(name, _)| !ours(name));
    let program = environment.fold(program, |program, (name, value)| program.env(name, value));
    program.arg("-c").arg(command).directory(directory).run_to_end(limit, |_, _| ()).await
}

/// The shell that PostgreSQL's `system()` uses.
pub(super) fn shell() -> Program {
    Program::new("/bin/sh")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_mean_what_they_mean_to_postgresql() {
        let words = Words { file: "0001", path: "pg_wal/0001", restart: None };
        assert_eq!(expand("cp %p /a/%f", words), "cp pg_wal/0001 /a/0001");
        assert_eq!(expand("date +%%s %x %r %", words), "date +%s %x %r %");
        assert_eq!(expand("clean %r", Words { restart: Some("0000"), ..words }), "clean 0000");
    }
}
