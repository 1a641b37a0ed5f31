//! The form of a script.
//!
//! ```text
//! == A lease counts from the send                 a case; what follows, in prose, is why
//!
//! Prose.
//!
//! given n1 serves                                 a base: see `base`
//! lease.confirmed.sent = now - 2s                 edits: see `edit`
//! now + 100ms
//! decides
//!   renew: leader (seq 40→41) if leader           what is decided: written by UPDATE=1, never by hand
//!   because primary: this node is the primary in term 3
//! done                                            what was decided is carried out; the next step
//! decides
//! ```
//!
//! A line that begins with `#` is a comment. What a decision wants to remember is told to the next one.

use super::{base, edit, effects, show};
use pgbaton::decide::{decide, decision::Decision, snapshot::Snapshot};

/// Plays a script; returns its text with the decisions as they are made now.
pub(crate) fn play(text: &str) -> Result<String, String> {
    let mut out: Vec<String> = Vec::new();
    let mut scene: Option<(Snapshot, Option<Decision>)> = None;
    for (index, line) in text.lines().enumerate() {
        if line.starts_with(' ') {
            // A former decision.
            continue;
        }
        out.push(line.to_owned());
        let place = |fault: String| format!("line {}: {line:?}: {fault}", index + 1);
        if line.starts_with("== ") {
            scene = None;
        } else if let Some(name) = line.strip_prefix("given ") {
            scene = Some((base::named(name).map_err(place)?, None));
        } else if let Some((snapshot, last)) = &mut scene
            && !line.is_empty()
            && !line.starts_with('#')
        {
            let said = step(snapshot, last, line).map_err(place)?;
            out.extend(said.into_iter().map(|said| format!("  {said}")));
        }
    }
    Ok(out.join("\n") + "\n")
}

/// One line of a case; returns what is to be shown below it.
fn step(snapshot: &mut Snapshot, last: &mut Option<Decision>, line: &str) -> Result<Vec<String>, String> {
    match line {
        "decides" => {
            let decision = decide(snapshot);
            let said = show::decision(snapshot, &decision);
            snapshot.memory = decision.memory.clone();
            *last = Some(decision);
            Ok(said)
        }
        "done" => {
            let decision = last.take().ok_or("nothing was decided yet")?;
            effects::carry_out(snapshot, &decision);
            Ok(Vec::new())
        }
        other => edit::apply(snapshot, other).map(|()| Vec::new()),
    }
}
