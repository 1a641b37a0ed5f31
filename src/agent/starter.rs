//! Starting and ending a guard where no service manager does.
//!
//! A guard needs rights that the agent gives up: an agent that was started as root therefore leaves a small child behind
//! that keeps them, and whose only word is "start the guard". It is told once, at its begin, how: whoever can write in the
//! directories of the data directory's owner must not choose what root does.

use super::observe::chain;
use crate::{
    guard::{
        GuardSettings,
        client::{self, query_status},
    },
    model::moment::Span,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// How long a guard may take to come up, self-test included.
const START_LIMIT: Span = Span::from_secs(20);

/// How to start a guard.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Our own binary.
    pub program: PathBuf,
    /// What the guard is told, on its stdin.
    pub settings: GuardSettings,
}

/// Starts and ends guards for the agent.
pub(super) struct Starter {
    launch: Launch,
    /// The child that kept root's rights; `None`: the agent starts guards itself.
    keeper: Option<Arc<Mutex<UnixStream>>>,
    started: Arc<Notify>,
    /// Told when that child is found to be gone.
    lost: Arc<Notify>,
}

/// Why no guard was started.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// It could not be, this time.
    Failed(String),
    /// The child that kept root's rights is gone: this agent can never start one again.
    Lost(String),
}

/// The child that kept root's rights. It ends with the agent.
#[derive(Debug)]
pub struct Keeper {
    stream: UnixStream,
    _child: Child,
}

impl Keeper {
    /// Forks it off, before the rights are given up: `program guard --starter`. The settings are the first line that it reads.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(launch: &Launch) -> std::io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let theirs = Stdio::from(std::os::fd::OwnedFd::from(theirs));
        #[expect(clippy::disallowed_methods, reason = "this is the one place that starts the starter")]
        let child = std::process::Command::new(&launch.program).args(["guard", "--starter"]).stdin(theirs).stdout(Stdio::null()).spawn()?;
        let mut line = serde_json::to_vec(&launch.settings)?;
        line.push(b'\n');
        ours.write_all(&line)?;
        Ok(Self { stream: ours, _child: child })
    }
}

/// The keeper's whole life: the first line on stdin holds the guard's settings. For each byte that follows one guard is started with
/// them; the answer is a line, empty when all is well.
///
/// # Errors
/// When the agent's end cannot be used, or its first line is not understood.
pub fn serve(program: PathBuf) -> std::io::Result<()> {
    use std::os::fd::AsFd;
    // stdin is one end of a socket pair.
    let mut stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let mut words = BufReader::new(stream.try_clone()?);
    let mut line = Vec::new();
    words.read_until(b'\n', &mut line)?;
    let launch = Launch { program, settings: serde_json::from_slice(&line)? };
    let mut byte = [0; 1];
    while words.read(&mut byte)? == 1 {
        let said = match start_blocking(&launch) {
            Ok(()) => "\n".to_owned(),
            Err(why) => format!("{}\n", why.replace('\n', " ")),
        };
        stream.write_all(said.as_bytes())?;
    }
    Ok(())
}

/// Starts a guard that detaches itself; its first process ends once it listens.
fn start_blocking(launch: &Launch) -> Result<(), String> {
    use std::os::unix::process::CommandExt;
    #[expect(clippy::disallowed_methods, reason = "the keeper's one errand")]
    let mut command = std::process::Command::new(&launch.program);
    command.args(["guard", "--from-stdin"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
    let failed = |fault: std::io::Error| format!("{}: {fault}", launch.program.display());
    let text = serde_json::to_vec(&launch.settings).map_err(|fault| chain(&fault))?;
    let mut child = command.spawn().map_err(failed)?;
    // A guard that dies before it has read them says why on stderr. Dropped: it reads to the end.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&text));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() { Ok(()) } else { Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())) }
}

impl Starter {
    pub(super) fn new(launch: Launch, keeper: Option<Keeper>, started: Arc<Notify>, lost: Arc<Notify>) -> Self {
        // The child ends at the end of its stdin, when the agent is gone.
        let keeper = keeper.map(|keeper| Arc::new(Mutex::new(keeper.stream)));
        Self { launch, keeper, started, lost }
    }

    /// Starts a guard, unless one answers already.
    pub(super) async fn start(&self) -> Result<(), String> {
        match query_status(&self.launch.settings.socket(), Span::from_secs(1)).await {
            Ok(_) => {}
            // Another one could not take its place.
            Err(client::Error::Rejected(why)) => return Err(why),
            Err(_) => self.start_another().await?,
        }
        self.started.notify_one();
        Ok(())
    }

    async fn start_another(&self) -> Result<(), String> {
        let launch = self.launch.clone();
        let keeper = self.keeper.clone();
        let starting = tokio::task::spawn_blocking(move || match keeper {
            Some(keeper) => ask(&keeper),
            None => start_blocking(&launch).map_err(Fault::Failed),
        });
        let done = tokio::time::timeout(START_LIMIT.to_std(), starting).await;
        let done = done.map_err(|_| format!("the guard did not come up within {START_LIMIT}"))?.map_err(|fault| chain(&fault))?;
        done.map_err(|fault| match fault {
            Fault::Failed(why) => why,
            Fault::Lost(why) => {
                self.lost.notify_one();
                why
            }
        })
    }
}

fn ask(keeper: &Mutex<UnixStream>) -> Result<(), Fault> {
    let mut stream = keeper.lock().unwrap_or_else(PoisonError::into_inner);
    let gone = |fault: std::io::Error| Fault::Lost(format!("the starter of guards is gone: {fault}"));
    stream.write_all(b"s").map_err(gone)?;
    let mut line = Vec::new();
    let mut byte = [0; 1];
    while {
        stream.read_exact(&mut byte).map_err(gone)?;
        byte[0] != b'\n'
    } {
        line.push(byte[0]);
    }
    if line.is_empty() { Ok(()) } else { Err(Fault::Failed(String::from_utf8_lossy(&line).into_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::KillChoice;

    fn starter(keeper: UnixStream, dir: &std::path::Path) -> Starter {
        let settings = GuardSettings {
            run_dir: dir.to_owned(),
            data_dir: dir.to_owned(),
            kill: KillChoice::Auto,
            service_uid: None,
            service_gid: None,
            cluster: "c".parse().expect("name"),
            node: "n1".parse().expect("name"),
            log_file: None,
            stop_timeout: Span::from_secs(1),
            detach: true,
        };
        let launch = Launch { program: PathBuf::from("/nonexistent"), settings };
        Starter { launch, keeper: Some(Arc::new(Mutex::new(keeper))), started: Arc::default(), lost: Arc::default() }
    }

    /// Whether the agent is told that its starter is gone.
    async fn is_lost(starter: &Starter) -> bool {
        let told = starter.lost.notified();
        tokio::pin!(told);
        told.as_mut().enable()
    }

    #[tokio::test]
    async fn a_starter_that_is_gone_has_started_nothing_and_the_agent_is_told() {
        let dir = tempfile::tempdir().expect("directory");
        let (ours, theirs) = UnixStream::pair().expect("pair");
        drop(theirs);
        let starter = starter(ours, dir.path());
        let why = starter.start().await.expect_err("nobody is there");
        assert!(why.starts_with("the starter of guards is gone"), "{why}");
        assert!(is_lost(&starter).await);
    }

    #[tokio::test]
    async fn a_starter_that_dies_over_its_errand_has_not_done_it() {
        let dir = tempfile::tempdir().expect("directory");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let starter = starter(ours, dir.path());
        let dies = tokio::task::spawn_blocking(move || theirs.read_exact(&mut [0]));
        let why = starter.start().await.expect_err("no answer came");
        dies.await.expect("task").expect("asked");
        assert!(why.starts_with("the starter of guards is gone"), "{why}");
        assert!(is_lost(&starter).await);
    }

    #[tokio::test]
    async fn a_guard_that_does_not_come_up_is_no_loss_of_the_starter() {
        let dir = tempfile::tempdir().expect("directory");
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        let starter = starter(ours, dir.path());
        let says = tokio::task::spawn_blocking(move || {
            theirs.read_exact(&mut [0])?;
            theirs.write_all(b"no room\n")?;
            Ok::<_, std::io::Error>(theirs)
        });
        assert_eq!(starter.start().await, Err("no room".to_owned()));
        assert!(!is_lost(&starter).await);
        drop(says.await.expect("task").expect("asked"));
    }
}
