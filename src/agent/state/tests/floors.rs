//! What etcd must not fall below.

use super::*;

#[test]
fn an_answer_that_keeps_up_is_believed() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 50), at(60));
    assert_eq!(state.suspect, None);
}

/// Each count by itself: the others keep up.
#[test]
fn a_count_that_went_back_is_named() {
    for (text, revision, what) in
        [(leader("n1", 3, "L9", 9), 19, "revision"), (leader("n1", 3, "L8", 8), 21, "leader.seq"), (leader("n1", 2, "L9", 9), 21, "term")]
    {
        let mut state = state();
        state.apply(listed(&leader("n1", 3, "L9", 9), 20, 0), at(0));
        state.apply(listed(&text, revision, 50), at(60));
        assert!(state.suspect.as_ref().is_some_and(|why| why.starts_with(&format!("its {what} is "))), "{what}: {:?}", state.suspect);
    }
}

#[test]
fn what_the_file_remembers_counts_from_the_first_answer_on() {
    let mut state = state();
    state.file.floors = Floors { uuid: Some(parsed("u1")), generation: 1, revision: 100, ..Floors::default() };
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 5), at(10));
    assert!(state.suspect.as_ref().is_some_and(|why| why.contains("has seen 100")), "{:?}", state.suspect);
}

/// An agent that starts with a file that has noted revision 100 of generation 1.
fn noted() -> State {
    let floors = Floors { uuid: Some(parsed("u1")), generation: 1, revision: 100, ..Floors::default() };
    State::new(state().me, NodeFile { floors, ..state().file }, at(0))
}

/// A watch that tells of some change first takes nothing away of what the file knew when the list was asked for.
#[test]
fn what_the_file_remembers_counts_for_a_list_that_a_change_has_overtaken() {
    let mut state = noted();
    state.apply(Event::Changed { changes: vec![(Key::Leader, Some(leader("n1", 3, "L1", 1)), 11)], revision: 11 }, at(20));
    state.apply(listed(&leader("n1", 3, "L1", 1), 11, 15), at(30));
    assert!(state.suspect.as_ref().is_some_and(|why| why.contains("has seen 100")), "{:?}", state.suspect);
}

/// Once an operator has had the records made anew, what the file knew of those before says nothing of a refusal either.
#[test]
fn what_the_file_remembers_is_over_with_a_raised_generation() {
    let mut state = noted();
    let cluster = CLUSTER.replace(r#""generation":1"#, r#""generation":2"#);
    let entries = vec![(Key::Cluster, cluster, 2), (Key::Leader, leader("n1", 4, "M1", 1), 3)];
    state.apply(Event::Listed { entries, revision: 3, sent: at(10).boot }, at(20));
    state.apply(Event::Changed { changes: vec![(Key::Leader, Some(leader("n1", 4, "M2", 2)), 4)], revision: 4 }, at(40));
    let outcome = TxnOutcome::Refused { values: vec![(Key::Leader, Some(leader("n1", 4, "M2", 2)), 4)], revision: 4, sent: at(30).boot };
    state.apply(Event::TxnDone { nonce: parsed("R"), task: Task::LeaderTxn, outcome }, at(50));
    assert_eq!(state.suspect, None);
}

/// `etcd recover` raises the generation, at which revision, seq and S start anew.
#[test]
fn a_raised_generation_lowers_the_floors() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L9", 9), 100, 0), at(0));
    state.file.floors = state.newest_floors();
    let cluster = CLUSTER.replace(r#""generation":1"#, r#""generation":2"#);
    let entries = vec![(Key::Cluster, cluster, 2), (Key::Leader, leader("n1", 4, "M1", 1), 3)];
    state.apply(Event::Listed { entries, revision: 3, sent: at(50).boot }, at(60));
    assert_eq!(state.suspect, None);
    let floors = Floors { uuid: Some(parsed("u1")), generation: 2, revision: 3, seq: 1, sync_term: Term::ZERO, term: Term::new(4) };
    assert_eq!(state.newest_floors(), floors);
    // Nor does a term that this node has seen in the etcd of before, while another one was not there to tell: it claims above it, and that is all.
    (state.file.term, state.file.floors) = (Term::new(10), floors);
    state.apply(listed_in(2, &leader("n1", 4, "M3", 3), 5, 62), at(64));
    assert_eq!(state.suspect, None);
    state.apply(listed_in(2, &leader("n1", 3, "M4", 4), 6, 65), at(67));
    assert!(state.suspect.as_ref().is_some_and(|why| why.starts_with("its term is 3")), "{:?}", state.suspect);
    // The etcd of before, brought back, has seen more of everything else.
    state.apply(listed(&leader("n1", 5, "L99", 99), 900, 70), at(80));
    assert!(state.suspect.as_ref().is_some_and(|why| why.starts_with("its generation is 1")), "{:?}", state.suspect);
}
