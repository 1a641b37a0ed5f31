//! PostgreSQL's programs, run to look at what they say.

use crate::config::Config;
use std::{path::Path, process::Stdio, time::Duration};

/// How long one of them may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a program printed, or why it could not say anything.
pub(super) async fn output(program: &Path, arguments: &[&std::ffi::OsStr]) -> Result<String, String> {
    #[expect(clippy::disallowed_methods, reason = "the doctor's one place that runs programs")]
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let shown = program.display();
    let child = command.spawn().map_err(|error| format!("{shown} cannot be run: {error}"))?;
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await;
    let output = output.map_err(|_| format!("{shown} does not end"))?.map_err(|error| format!("{shown}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{shown} failed ({}): {}", output.status, error.lines().last().unwrap_or_default().trim()))
}

/// The version of the server's program, as `15.6`.
pub(super) async fn server_version(config: &Config) -> Result<String, String> {
    let program = config.postgres.bin_dir.join("postgres");
    let text = output(&program, &["--version".as_ref()]).await?;
    // "postgres (PostgreSQL) 15.6 (Debian 15.6-0+deb12u1)"
    let version = text.split_whitespace().nth(2).filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    version.map(str::to_owned).ok_or_else(|| format!("{} says {:?}, which is no version", program.display(), text.trim()))
}
