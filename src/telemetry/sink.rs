//! Where an agent's log lines go: to a thread that writes them to stderr, so that neither a reader that hangs nor a full disk holds the agent.
//!
//! A write that fails would end the process by a panic somewhere above, and one that waits would keep the agent from renewing: PostgreSQL would
//! be killed at its deadline, because of a log. What stderr does not take is dropped, and counted.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// So many bytes of lines wait for stderr at the most, and as many again are being written.
const LIMIT: usize = 1 << 20;
/// So long the end of a process waits for what it has said last.
const LAST: Duration = Duration::from_secs(1);
/// After this, stderr is tried again that takes nothing now and was set not to wait.
const AGAIN: Duration = Duration::from_millis(10);

/// Takes log lines; it never fails and never waits for whoever reads them.
#[derive(Clone)]
pub(super) struct Sink(Arc<Queue>);

impl Sink {
    /// For a new thread that writes to this process's stderr; the thread goes on until the process ends.
    pub(super) fn to_stderr() -> io::Result<Self> {
        // A descriptor of its own: whoever writes to `io::stderr` would wait for the thread that holds its lock.
        Self::to(File::from(io::stderr().as_fd().try_clone_to_owned()?))
    }

    fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let sink = Self(Arc::default());
        let queue = Arc::clone(&sink.0);
        thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_to(out))?;
        Ok(sink)
    }

    /// Waits until everything is written, and not for long.
    fn drain(&self) {
        let lines = self.0.lines();
        drop(self.0.changed.wait_timeout_while(lines, LAST, |lines| lines.writing || !lines.waiting.is_empty()));
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lines();
        if lines.waiting.len() + line.len() > LIMIT {
            lines.missing += 1;
        } else {
            lines.waiting.extend_from_slice(line);
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the last lines of a process from being lost: dropped at its end, it waits until they are written, one second at the most.
#[must_use = "what was said last is lost without it"]
pub struct Last(pub(super) Sink);

impl Drop for Last {
    fn drop(&mut self) {
        self.0.drain();
    }
}

/// What is between those who log and the thread that writes.
#[derive(Default)]
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    waiting: Vec<u8>,
    /// Whether lines that wait no more are not written yet.
    writing: bool,
    /// So many lines are lost, and nobody was told.
    missing: usize,
}

impl Queue {
    /// Never held across a write.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut out: impl Write) {
        let mut takes = true;
        loop {
            let (text, missing) = self.next(takes);
            if missing > 0 {
                // There is room for this one now. While nothing can be written it would but add to what is missing.
                tracing::warn!(missing, "log lines are missing here: stderr did not take them");
            }
            let written = write_all(&mut out, &text);
            takes = written.is_ok();
            let mut lines = self.lines();
            lines.writing = false;
            if !takes {
                lines.missing += text.split_inclusive(|byte| *byte == b'\n').count();
            }
            self.changed.notify_all();
        }
    }

    /// Waits for lines, and takes all of them; and how many are missing, where that can be told.
    fn next(&self, takes: bool) -> (Vec<u8>, usize) {
        let idle = |lines: &mut Lines| lines.waiting.is_empty() && (lines.missing == 0 || !takes);
        let mut lines = self.changed.wait_while(self.lines(), idle).unwrap_or_else(PoisonError::into_inner);
        lines.writing = true;
        let missing = if takes { std::mem::take(&mut lines.missing) } else { 0 };
        (std::mem::take(&mut lines.waiting), missing)
    }
}

/// Also to a stderr that another process has set not to wait.
fn write_all(out: &mut impl Write, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
            Err(fault) if fault.kind() == io::ErrorKind::WouldBlock => thread::sleep(AGAIN),
            Err(fault) => return Err(fault),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Takes one piece of text at a time, when it is let.
    struct Slow(mpsc::Receiver<()>, mpsc::SyncSender<usize>);

    impl Write for Slow {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.send(text.len()).map_err(io::Error::other)?;
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn waiting_and_missing(sink: &Sink) -> (usize, usize) {
        let lines = sink.0.lines();
        (lines.waiting.len(), lines.missing)
    }

    #[test]
    fn what_does_not_fit_is_dropped_by_whole_lines_and_counted() {
        let (let_it, wait) = mpsc::sync_channel(8);
        let (tell, told) = mpsc::sync_channel(8);
        let mut sink = Sink::to(Slow(wait, tell)).expect("thread");
        let line = [b'x'; 1024];
        sink.write_all(&line).expect("it never fails");
        while waiting_and_missing(&sink).0 > 0 {
            thread::yield_now();
        }
        for _ in 0..LIMIT / line.len() + 3 {
            sink.write_all(&line).expect("it never fails");
        }
        assert_eq!(waiting_and_missing(&sink), (LIMIT, 3));
        let_it.send(()).and_then(|()| let_it.send(())).expect("let it");
        sink.drain();
        assert_eq!((told.recv(), told.recv()), (Ok(line.len()), Ok(LIMIT)));
        assert_eq!(waiting_and_missing(&sink), (0, 0));
    }
}
