//! `demo --script`: every fault once, healing between.

use super::{
    act::Act,
    report::{self, Report},
    stage::{self, Stage},
    watch::Watch,
};
use crate::{
    cli::{arguments::Output, exit::Exit, table},
    clock,
    lab::{Conclusion, Excused, Lab},
    model::moment::Span,
};
use anyhow::{Context, Result};
use std::thread;

/// How long writes may be gone, and how long all may take to stream again.
const PATIENCE: Span = Span::from_secs(60);
/// Between two looks whether a fault is over.
const LOOK: Span = Span::from_millis(50);
/// Healthy time before a fault, which says what "no outage" means.
const BEFORE: Span = Span::from_secs(3);

/// Runs the tour; ends with [`Exit::Unhealthy`] when something was lost, when there were two writers, when not all stream in the
/// end, or when the tour did not come to its end.
///
/// # Errors
/// When the cluster does not come back, or the person interrupts.
pub(super) fn run(lab: &Lab, hold: Span, output: Output) -> Result<Exit> {
    let say = |text: &str| eprintln!("  {text}");
    let watch = Watch::default();
    let (reports, toured, conclusion) = thread::scope(|scope| {
        let _watching = watch.start(lab, scope);
        tour(lab, &watch, hold, &say)
    })?;
    let text = match output {
        Output::Table => report::table(&reports),
        Output::Json => table::json(&serde_json::json!({ "faults": reports, "conclusion": conclusion }))?,
    };
    table::print(&text)?;
    for line in conclusion.logged() {
        eprintln!("  note: {line}");
    }
    let mut wrongs = wrongs(&conclusion);
    wrongs.extend(toured.err().map(|error| format!("the tour ended early: {error:#}")));
    for wrong in &wrongs {
        eprintln!("  WRONG: {wrong}");
    }
    let (rows, lost) = reports.last().map_or((0, 0), |report| (report.acked, reports.iter().map(Report::lost_rows).sum()));
    if wrongs.is_empty() {
        eprintln!("  {rows} rows acknowledged, {lost} lost; never two writers.");
    }
    let possible = Act::ALL.iter().filter(|act| lab.can(&act.fault("n1")).is_ok()).count();
    Ok(exit(&conclusion, reports.len() == possible))
}

/// What must not have been. The tour's commits wait for a replica: nothing may be lost, announced or not.
fn wrongs(conclusion: &Conclusion) -> Vec<String> {
    conclusion.wrongs(Excused::Nothing)
}

/// How the program ends. Lines that a node logged are for people; what they led to is judged by itself.
fn exit(conclusion: &Conclusion, complete: bool) -> Exit {
    if wrongs(conclusion).is_empty() && complete { Exit::Done } else { Exit::Unhealthy }
}

type Toured = (Vec<Report>, Result<()>, Conclusion);

fn tour(lab: &Lab, watch: &Watch, hold: Span, say: &dyn Fn(&str)) -> Result<Toured> {
    let writer = stage::raise(lab, watch, say)?;
    let mut stage = Stage::new(lab, watch, &writer, hold);
    let marks = lab.log_marks()?;
    let mut reports = Vec::new();
    let toured = Act::ALL.into_iter().try_for_each(|act| {
        if let Err(why) = lab.can(&act.fault("n1")) {
            say(&format!("{}: {why}", act.words()));
            return Ok(());
        }
        reports.push(one(&mut stage, lab, act, say).with_context(|| act.words())?);
        Ok(())
    });
    lab.heal_all()?;
    let islands = stage.into_journals();
    let journals: Vec<_> = std::iter::once(writer.stop()).chain(islands).collect();
    let conclusion = lab.conclude(&journals, &marks, PATIENCE)?;
    Ok((reports, toured, conclusion))
}

fn one(stage: &mut Stage<'_>, lab: &Lab, act: Act, say: &dyn Fn(&str)) -> Result<Report> {
    let begun = clock::boot();
    lab.wait("a quiet moment", PATIENCE, || (clock::boot().since(begun) >= BEFORE).then_some(()))?;
    let trial = stage.act(act)?;
    say(&trial.injected.fault.name());
    let mut back = None;
    let over = lab.wait("writes to flow again", PATIENCE, || {
        thread::sleep(LOOK.to_std());
        if act == Act::KillPostmaster && back.is_none() && stage.all_stream() {
            back = Some(clock::boot().since(trial.at()));
        }
        stage.is_over(act, &trial).then_some(())
    });
    let mut report = stage.report(act, &trial)?;
    over?;
    let returned = if act == Act::KillPostmaster { trial.at() } else { clock::boot() };
    stage.undo(act)?;
    let streaming = stage.wait_all_stream(returned, PATIENCE)?;
    report.back = Some(back.unwrap_or(streaming)).filter(|_| act.breaks_streaming());
    // Whoever was frozen may have answered somebody just after the thaw.
    stage.end_islands();
    stage.judge(&mut report, &trial)?;
    for line in report.lines() {
        say(&format!("    {line}"));
    }
    for (after, told) in report.reasons.iter().filter(|(_, told)| told.kind == "leader" || told.kind == "alarm") {
        say(&format!("      +{} {}: {}", report::short(*after), told.node, told.text));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::verdict::{Judgement, LostTail, TwoWriters};

    fn good() -> Conclusion {
        Conclusion {
            streaming: Ok("n1".into()),
            two_writers: Vec::new(),
            lost: Vec::new(),
            broken: Vec::new(),
            errors: [("n1".into(), vec!["a line".into()])].into(),
        }
    }

    fn lost(judgement: Judgement) -> Conclusion {
        let tail = LostTail { tli: 1, nodes: ["n1".to_owned()].into(), rows: 3, bytes: Some(300), judgement, examples: Vec::new() };
        Conclusion { lost: vec![tail], ..good() }
    }

    fn two_writers() -> Conclusion {
        let (older, newer) = (("n1".to_owned(), 1), ("n2".to_owned(), 2));
        let proof =
            TwoWriters { older, newer, span: Span::from_millis(40), acks: 4, clients: ["c".to_owned()].into(), examples: Vec::new() };
        Conclusion { two_writers: vec![proof], ..good() }
    }

    #[test]
    fn a_tour_that_saw_two_writers_or_a_loss_ends_as_unhealthy() {
        for bad in [
            two_writers(),
            lost(Judgement::Within),
            lost(Judgement::Exceeds),
            lost(Judgement::Unbounded),
            lost(Judgement::Unrecorded),
            lost(Judgement::Amid),
        ] {
            assert_eq!(exit(&bad, true), Exit::Unhealthy, "{bad:?}");
        }
        let scattered = Conclusion { streaming: Err("two primaries".into()), ..good() };
        assert_eq!((exit(&scattered, true), exit(&good(), false)), (Exit::Unhealthy, Exit::Unhealthy));
        assert_eq!(exit(&good(), true), Exit::Done);
        assert_ne!(Exit::Unhealthy as u8, 0);
    }
}
