//! Verbs for the guard in session, and what is published of their answers.

use super::{act::Tools, event::Event, guard_link, observe::chain};
use crate::{
    guard::{self, client::Guard},
    model::{
        instance::{GuardStatus, StartAs},
        moment::Span,
        term::Term,
    },
    postgres,
};
use std::sync::PoisonError;
use tokio::sync::{mpsc, watch};

/// How long the guard may take to answer a verb.
pub(super) const GUARD_LIMIT: Span = Span::from_secs(2);
/// How long it may take to end.
pub(super) const QUIT_LIMIT: Span = Span::from_secs(5);

/// What the guard says to a verb.
type Answer = Result<GuardStatus, guard::client::Error>;

fn session(tools: &Tools) -> Result<Guard, String> {
    tools.guard.borrow().clone().ok_or_else(|| "no guard is in session".to_owned())
}

/// Asks the guard in session, and publishes what its answer says of it.
pub(super) async fn guarded(tools: &Tools, asks: impl AsyncFnOnce(&Guard) -> Answer) -> Result<(), String> {
    let guard = session(tools)?;
    let answer = asks(&guard).await;
    heard(&tools.events, &tools.guard, &guard, answer).await
}

/// The guard's answer carries its status; it is published like any other. Where there is no answer, or the session has ended since, that is
/// published before: what was known of the guard shall not be taken for what is.
async fn heard(
    events: &mpsc::Sender<Event>,
    session: &watch::Receiver<Option<Guard>>,
    guard: &Guard,
    answer: Answer,
) -> Result<(), String> {
    let (status, outcome) = match answer {
        Ok(status) => (Some(status), Ok(())),
        Err(guard::client::Error::Refused { why, status }) => (Some(*status), Err(why)),
        Err(fault) => (None, Err(chain(&fault))),
    };
    let told = match status {
        Some(status) => guard_link::tell(guard, status, events).await.unwrap_or_default(),
        None => false,
    };
    if !told && guard.has_ended() {
        guard_link::told_of_the_end(guard, session).await;
    }
    outcome
}

/// Starts PostgreSQL. Its settings are asked for first: the start is one for the guard that is in session now.
pub(super) async fn start_postgres(tools: &Tools, start: StartAs, term: Term) -> Result<(), String> {
    let guard = session(tools)?;
    let rendered = tools.rendered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let rendered = rendered.ok_or_else(|| "the managed configuration has not been written yet".to_owned())?;
    let command = postgres::start_command(&tools.settings, &rendered, start).await.map_err(|fault| chain(&fault))?;
    let text = |word: std::ffi::OsString| word.into_string().map_err(|word| format!("{word:?} is no UTF-8"));
    let command = guard::StartCommand {
        program: command.program,
        args: command.args.into_iter().map(text).collect::<Result<_, _>>()?,
        env: command.env.into_iter().map(|(name, value)| Ok((text(name)?, text(value)?))).collect::<Result<_, String>>()?,
        working_dir: command.cwd,
        uid: command.uid,
        gid: command.gid,
        data_dir: tools.settings.data_dir.clone(),
        log_file: command.log_file,
    };
    let answer = guard.start(start, command, term, GUARD_LIMIT).await;
    heard(&tools.events, &tools.guard, &guard, answer).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::instance::{Cut, KillMode, Process};
    use std::{collections::BTreeSet, sync::Arc};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
        sync::Notify,
    };

    fn status() -> GuardStatus {
        GuardStatus {
            incarnation: "g1".parse().expect("name"),
            term: Term::ZERO,
            armed: None,
            primary_of: None,
            process: Process::Empty { last: None },
            kill: KillMode::Namespace,
            fenced: true,
            starting: false,
            cut: Cut::From(BTreeSet::new()),
        }
    }

    /// What happens to the tree is not known from the moment on at which the verb counts as over: its end comes behind that.
    #[tokio::test]
    async fn a_verb_without_an_answer_is_over_only_when_the_guard_is_no_longer_known() {
        const LONG: std::time::Duration = std::time::Duration::from_secs(10);
        let dir = tempfile::tempdir().expect("directory");
        let socket = dir.path().join("guard.sock");
        let listener = UnixListener::bind(&socket).expect("listen");
        let (session_in, mut session) = watch::channel(None);
        let (events_in, mut events) = mpsc::channel(16);
        let link = guard_link::keep(socket, "a1".parse().expect("name"), session_in, Arc::new(Notify::new()), events_in.clone());
        let test = async {
            let (mut theirs, _) = listener.accept().await.expect("accept");
            let welcome = serde_json::json!({ "welcome": { "protocol": guard::protocol::VERSION, "status": status() } });
            theirs.write_all(format!("{welcome}\n").as_bytes()).await.expect("welcome");
            let guard = session.wait_for(Option::is_some).await.expect("a link").clone().expect("a session");
            // From now on it stands still, and reads nothing.
            let answer = guard.kill(Term::new(1), Span::from_millis(50)).await;
            heard(&events_in, &session, &guard, answer).await.expect_err("no answer");
            assert_eq!(events.recv().await, Some(Event::Guard(status())));
            assert_eq!(events.try_recv(), Ok(Event::GuardGone { why: "the guard does not answer".to_owned() }));
            // What it said before comes to nobody after that.
            heard(&events_in, &session, &guard, Ok(status())).await.expect("an answer of before");
            assert_eq!(events.try_recv(), Err(mpsc::error::TryRecvError::Empty));
            let mut unread = String::new();
            theirs.read_to_string(&mut unread).await.expect("the connection is closed");
            assert!(unread.ends_with("\"kill\"}\n"), "{unread}");
            // The next session is asked for at once.
            listener.accept().await.expect("accept");
        };
        tokio::select! {
            () = link => panic!("the link ends"),
            done = tokio::time::timeout(LONG, test) => done.expect("in time"),
        }
    }
}
