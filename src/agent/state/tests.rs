//! What one agent knows after which events.

use super::{lease::UNSETTLED_KEPT, *};
use crate::{
    agent::event::TxnOutcome,
    decide::decision::Purpose,
    model::{
        instance::{ControlData, Cut, DiskFacts, KillMode, Process, RecoveryTarget, ServerRole, StartAs, Whole},
        key::{Txn, Write},
        moment::Span,
        node::{Address, DataIncarnation},
        node_file::Floors,
        record::Tags,
    },
};

mod floors;
mod next;
mod view;

fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect("name")
}

fn at(millis: u64) -> Clocks {
    let boot = Moment::from_nanos(100_000_000_000).plus(Span::from_millis(millis));
    Clocks { boot, mono: boot }
}

fn state() -> State {
    let me = Me {
        node: parsed("n1"),
        agent: parsed("a1"),
        postgres: Address { host: "n1".to_owned(), port: 5432 },
        api: None,
        zone: String::new(),
        tags: Tags::default(),
        version: String::new(),
        first_policy: ClusterPolicy::default(),
        adopted_durability: crate::model::policy::Durability::Async,
        major: 15,
        boot: parsed("b1"),
        boot_is_named: true,
        peer_key: false,
    };
    State::new(me, NodeFile::fresh(parsed("c"), parsed("n1"), parsed("000000a1")), at(0))
}

fn leader(node: &str, term: u64, nonce: &str, seq: u64) -> String {
    format!(
        r#"{{"v":1,"term":{term},"holder":{{"node":"{node}","data":"000000a1","guard":"g1","postgres":"n1:5432"}},"nonce":"{nonce}","seq":{seq},"hold_ms":2800,"wait_ms":3300,"tli":1,"lsn":"0/0","state":"serving"}}"#
    )
}

const CLUSTER: &str = r#"{"v":1,"system_id":"7","uuid":"u1","generation":1,"initialised_by":"n1","initialised_at":""}"#;

/// A list with these values of `leader` and its revision.
fn listed(text: &str, revision: u64, sent: u64) -> Event {
    let entries = vec![(Key::Cluster, CLUSTER.to_owned(), 1), (Key::Leader, text.to_owned(), revision)];
    Event::Listed { entries, revision, sent: at(sent).boot }
}

/// The same of records that were made anew.
fn listed_in(generation: u64, text: &str, revision: u64, sent: u64) -> Event {
    let cluster = CLUSTER.replace(r#""generation":1"#, &format!(r#""generation":{generation}"#));
    let entries = vec![(Key::Cluster, cluster, 1), (Key::Leader, text.to_owned(), revision)];
    Event::Listed { entries, revision, sent: at(sent).boot }
}

fn changed(key: &Key, text: Option<&str>, revision: u64) -> Event {
    Event::Changed { changes: vec![(key.clone(), text.map(str::to_owned), revision)], revision }
}

/// Sends a renewal with that nonce.
fn renews(state: &mut State, nonce: &str, seq: u64, now: u64) {
    let text = leader("n1", 3, nonce, seq);
    let txn = Txn { nonce: parsed(nonce), when: Vec::new(), then: vec![Write::Put(Key::Leader, text)] };
    let mut decision = crate::decide::decide(&state.snapshot(at(now), fresh()));
    decision.actions = vec![Action::Txn(Purpose::Renew, txn)];
    state.decided(&mut decision, at(now).boot);
    state.apply(Event::TxnSent { nonce: parsed(nonce), at: at(now).boot }, at(now));
}

fn ends(state: &mut State, nonce: &str, outcome: TxnOutcome, now: u64) {
    state.apply(Event::TxnDone { nonce: parsed(nonce), task: Task::LeaderTxn, outcome }, at(now));
}

fn unknown() -> TxnOutcome {
    TxnOutcome::Unknown { why: "timed out".to_owned() }
}

fn fresh() -> Fresh {
    let data: DataIncarnation = parsed("000000ff");
    Fresh { nonce: parsed("f"), data, uuid: parsed("u"), wall: String::new() }
}

fn confirmed(state: &State) -> Option<(String, Moment)> {
    state.lease.confirmed.as_ref().map(|attempt| (attempt.nonce.to_string(), attempt.sent))
}

#[test]
fn an_applied_renewal_counts_from_its_send_and_settles_those_before_it() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    renews(&mut state, "L2", 2, 100);
    ends(&mut state, "L2", unknown(), 500);
    renews(&mut state, "L3", 2, 600);
    ends(&mut state, "L3", TxnOutcome::Applied { revision: 11, sent: at(600).boot }, 900);
    assert_eq!(confirmed(&state), Some(("L3".to_owned(), at(600).boot)));
    assert!(state.lease.unsettled.is_empty());
    assert_eq!(state.snapshot(at(900), fresh()).leader().map(|leader| leader.record.seq), Some(2), "the write shows at once");
}

#[test]
fn a_refusal_that_shows_an_earlier_nonce_of_ours_settles_that_one() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    renews(&mut state, "L2", 2, 100);
    ends(&mut state, "L2", unknown(), 500);
    renews(&mut state, "L3", 2, 600);
    let values = vec![(Key::Leader, Some(leader("n1", 3, "L2", 2)), 11)];
    ends(&mut state, "L3", TxnOutcome::Refused { values, revision: 12, sent: at(600).boot }, 700);
    assert_eq!(confirmed(&state), Some(("L2".to_owned(), at(100).boot)));
    assert!(state.lease.unsettled.is_empty());
}

#[test]
fn an_old_value_in_a_list_settles_nothing() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    renews(&mut state, "L2", 2, 100);
    ends(&mut state, "L2", unknown(), 500);
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 600), at(610));
    assert_eq!(confirmed(&state), None);
    assert_eq!(state.lease.unsettled.len(), 1);
}

#[test]
fn writes_that_compared_a_value_that_is_gone_are_forgotten() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    renews(&mut state, "L2", 2, 100);
    ends(&mut state, "L2", unknown(), 500);
    state.apply(changed(&Key::Leader, Some(&leader("n2", 4, "M1", 2)), 12), at(5_000));
    assert!(state.lease.unsettled.is_empty());
}

#[test]
fn an_outage_of_etcd_does_not_fill_the_memory() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    for round in 0..2_000_u64 {
        let nonce = format!("R{round}");
        renews(&mut state, &nonce, 2, 100 * round);
        ends(&mut state, &nonce, unknown(), 100 * round + 90);
    }
    assert_eq!(state.lease.unsettled.len(), UNSETTLED_KEPT);
}

#[test]
fn our_own_write_is_not_taken_back_by_a_list_that_was_asked_before_it() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
    renews(&mut state, "L2", 2, 100);
    ends(&mut state, "L2", TxnOutcome::Applied { revision: 11, sent: at(100).boot }, 120);
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 90), at(130));
    assert_eq!(state.records.leader.as_ref().map(|leader| leader.revision), Some(11));
    assert_eq!(state.suspect, None, "a list that was asked for before proves nothing");
}

/// Protocol 1.2, *suspect etcd*; EXP-26.
#[test]
fn an_answer_asked_for_after_the_higher_value_was_received_makes_etcd_suspect() {
    let mut state = state();
    state.apply(listed(&leader("n1", 3, "L9", 9), 30, 0), at(0));
    state.apply(listed(&leader("n1", 3, "L1", 1), 10, 50), at(60));
    assert!(state.suspect.as_ref().is_some_and(|why| why.contains("revision is 10")), "{:?}", state.suspect);
    assert_eq!(state.records.leader.as_ref().map(|leader| leader.record.seq), Some(9), "the believed view stays");
    state.apply(changed(&Key::Leader, Some(&leader("n2", 9, "M", 99)), 99), at(70));
    assert_eq!(state.records.leader.as_ref().map(|leader| leader.record.seq), Some(9), "its watch is not believed either");
    state.apply(listed(&leader("n1", 3, "L9", 9), 31, 80), at(90));
    assert_eq!(state.suspect, None);
}

/// A holder whose renewals a restored etcd refuses would else send one after the other until the next list.
#[test]
fn a_refusal_at_a_lower_revision_makes_etcd_suspect() {
    for (sent, believed) in [(50, false), (0, true)] {
        let mut state = state();
        state.apply(listed(&leader("n1", 3, "L9", 9), 30, 0), at(20));
        let values = vec![(Key::Leader, Some(leader("n1", 3, "L1", 1)), 8)];
        let refused = TxnOutcome::Refused { values, revision: 10, sent: at(sent).boot };
        state.apply(Event::TxnDone { nonce: parsed("R"), task: Task::LeaderTxn, outcome: refused }, at(60));
        assert_eq!(state.suspect.is_none(), believed, "{:?}", state.suspect);
        assert_eq!(state.records.leader.as_ref().map(|leader| leader.record.seq), Some(9), "the believed view stays");
    }
}

#[test]
fn an_empty_prefix_and_another_uuid_are_suspect() {
    for entries in [Vec::new(), vec![(Key::Cluster, CLUSTER.replace("u1", "u2"), 99)]] {
        let mut state = state();
        state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
        state.apply(Event::Listed { entries, revision: 99, sent: at(50).boot }, at(60));
        assert!(state.suspect.is_some());
    }
}

/// Who has seen less goes by the word of who has seen more, until the records are made anew.
#[test]
fn an_etcd_that_another_node_doubts_is_suspect() {
    let doubt = |node: &str| (Key::Doubt, format!(r#"{{"v":1,"node":"{node}","generation":1,"why":"its revision is 10"}}"#), 11);
    let suspect = |entries: Vec<(Key, String, u64)>| {
        let mut state = state();
        let entries = [vec![(Key::Cluster, CLUSTER.to_owned(), 1)], entries].concat();
        state.apply(Event::Listed { entries, revision: 12, sent: at(0).boot }, at(10));
        state.doubted()
    };
    assert_eq!(suspect(vec![doubt("n2")]).as_deref(), Some("n2 says: its revision is 10"));
    assert_eq!(suspect(vec![doubt("n1")]), None, "its own word of before");
    let raised = (Key::Cluster, CLUSTER.replace(r#""generation":1"#, r#""generation":2"#), 12);
    assert_eq!(suspect(vec![doubt("n2"), raised]), None, "the records were made anew since");
}

/// A wiped prefix shows itself key by key to whoever watches: what the node knows of its cluster must outlast it.
#[test]
fn a_cluster_record_that_is_deleted_makes_etcd_suspect_before_the_next_list() {
    let wiped = || vec![(Key::Cluster, None, 99), (Key::Leader, None, 99)];
    let refused = TxnOutcome::Refused { values: wiped(), revision: 99, sent: at(50).boot };
    let refused = Event::TxnDone { nonce: parsed("R"), task: Task::LeaderTxn, outcome: refused };
    for event in [Event::Changed { changes: wiped(), revision: 99 }, refused] {
        let mut state = state();
        state.apply(listed(&leader("n1", 3, "L1", 1), 10, 0), at(0));
        state.apply(event, at(60));
        assert!(state.suspect.is_some());
        assert!(state.records.cluster.is_some() && state.records.leader.is_some(), "the believed view stays");
        // Made anew, it is believed again.
        state.apply(listed(&leader("n1", 3, "L2", 2), 101, 80), at(90));
        assert_eq!(state.suspect, None);
    }
}

/// The watch may show the new records before a list does, and the older etcd's revisions were higher: no key of it may hide a new one.
#[test]
fn records_that_are_made_anew_are_not_taken_over_key_by_key() {
    let cluster = CLUSTER.replace(r#""generation":1"#, r#""generation":2"#);
    let fresh = || vec![(Key::Cluster, Some(cluster.clone()), 12), (Key::Leader, Some(leader("n1", 4, "M1", 1)), 12)];
    let refused = TxnOutcome::Refused { values: fresh(), revision: 12, sent: at(50).boot };
    let refused = Event::TxnDone { nonce: parsed("R"), task: Task::LeaderTxn, outcome: refused };
    for event in [Event::Changed { changes: fresh(), revision: 12 }, refused] {
        let mut state = state();
        state.apply(listed(&leader("n1", 3, "L9", 9), 100, 0), at(0));
        state.apply(event, at(60));
        assert!(state.suspect.as_ref().is_some_and(|why| why.contains("generation 2")), "{:?}", state.suspect);
        let entries = vec![(Key::Cluster, cluster.clone(), 12), (Key::Leader, leader("n1", 4, "M1", 1), 12)];
        state.apply(Event::Listed { entries, revision: 13, sent: at(80).boot }, at(90));
        assert_eq!(state.suspect, None);
        assert_eq!(state.records.leader.as_ref().map(|leader| leader.record.nonce.to_string()), Some("M1".to_owned()));
    }
}

fn guard(run: u64, process: fn(Run) -> Process) -> Event {
    Event::Guard(GuardStatus {
        incarnation: parsed("g1"),
        term: Term::new(3),
        armed: None,
        primary_of: None,
        process: process(Run(run)),
        kill: KillMode::Namespace,
        fenced: true,
        starting: false,
        cut: Cut::From(BTreeSet::new()),
    })
}

const RUNS: fn(Run) -> Process = |run| Process::Running { run, start: StartAs::Standby, stopping: None };

fn standby(run: u64, asked: u64) -> Event {
    let role = ServerRole::Standby {
        tli: TimelineId::FIRST,
        receive: Some(Lsn::new(50)),
        replay: Lsn::new(50),
        receiver: None,
        conninfo: String::new(),
        target: RecoveryTarget::Latest,
        pause: None,
        replay_ms: 0,
    };
    let facts = ServerFacts {
        run: Run(run),
        version_num: 150_000,
        system_id: crate::model::node::SystemId::new(7),
        role,
        walsenders: Vec::new(),
        slots: Vec::new(),
        pending_restart: Vec::new(),
        oldest_wal: None,
        sync_names: String::new(),
        weak_commits: None,
        waiting: None,
    };
    Event::Server { facts, asked: at(asked).boot }
}

fn scan(run: u64, began: u64) -> Event {
    Event::Scanned { whole: Whole { tli: TimelineId::FIRST, lsn: Lsn::new(60) }, run: Some(Run(run)), at: at(began).boot }
}

#[test]
fn what_the_server_said_is_as_old_as_the_question() {
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    state.apply(standby(1, 10), at(30));
    assert_eq!(state.server.seen_at(), Some(at(10).boot));
    state.apply(standby(1, 5), at(40));
    assert_eq!(state.server.seen_at(), Some(at(10).boot), "the older answer came last");
    state.apply(standby(1, 45), at(50));
    assert_eq!(state.server.seen_at(), Some(at(45).boot));
}

#[test]
fn facts_of_one_run_say_nothing_of_another() {
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    state.apply(standby(1, 5), at(10));
    state.apply(Event::Disk { dir: DataDir::Empty, at: at(20).boot }, at(20));
    state.apply(scan(1, 10), at(20));
    assert!(state.whole.is_some() && state.server.value().is_some());
    state.apply(guard(2, RUNS), at(30));
    assert!(state.whole.is_none() && state.server.value().is_none() && state.disk.value().is_none());
    state.apply(scan(1, 25), at(40));
    assert!(state.whole.is_none(), "a scan of an earlier run");
}

/// (Seed 9301519 once broke I2: a voter promised by a scan of the directory that was there before.)
#[test]
fn a_scan_ends_with_the_directory() {
    let mut state = state();
    let whole = Whole { tli: TimelineId::FIRST, lsn: Lsn::new(60) };
    state.apply(Event::Scanned { whole, run: None, at: at(10).boot }, at(20));
    assert!(state.whole.is_some());
    state.apply(Event::Disk { dir: DataDir::Missing, at: at(30).boot }, at(30));
    assert!(state.whole.is_none());
}

/// What was put back at rest may have less.
#[test]
fn a_scan_ends_with_another_pg_control() {
    let looked = |redo: u64, began: u64| {
        let facts = DiskFacts { control: ControlData { redo: Lsn::new(redo), ..facts().control }, ..facts() };
        Event::Disk { dir: DataDir::Present(facts), at: at(began).boot }
    };
    let mut state = state();
    state.apply(looked(40, 5), at(6));
    let whole = Whole { tli: TimelineId::FIRST, lsn: Lsn::new(60) };
    state.apply(Event::Scanned { whole, run: None, at: at(10).boot }, at(20));
    state.apply(looked(40, 30), at(31));
    assert!(state.whole.is_some());
    state.apply(looked(20, 40), at(41));
    assert!(state.whole.is_none());
}

/// Of a stopped directory in which none is found any more. A server that runs has what was found.
#[test]
fn a_scan_ends_with_one_that_finds_nothing() {
    let whole = Whole { tli: TimelineId::FIRST, lsn: Lsn::new(60) };
    let why = || "no WAL".to_owned();
    for failed in [Event::Held { task: Task::Scan, why: why() }, Event::Done { task: Task::Scan, outcome: Err(why()) }] {
        let mut state = state();
        state.apply(Event::Scanned { whole, run: None, at: at(10).boot }, at(20));
        state.apply(Event::Done { task: Task::Data, outcome: Err(why()) }, at(25));
        assert!(state.whole.is_some());
        state.apply(failed.clone(), at(30));
        assert!(state.whole.is_none());
        state.apply(guard(1, RUNS), at(40));
        state.apply(scan(1, 45), at(50));
        state.apply(failed, at(60));
        assert!(state.whole.is_some());
    }
}

/// A stream goes on to a new timeline within one run: who judges its promise has to see what that timeline grew out of.
#[test]
fn a_scan_on_a_timeline_that_was_not_there_at_the_last_look_asks_for_another_one() {
    let looked = |began: u64, tlis: &[u32]| {
        let known = |tli: &u32| (TimelineId::new(*tli).unwrap(), "1\t0/40\tx\n".to_owned());
        let facts = DiskFacts { histories: tlis.iter().map(known).collect(), ..facts() };
        Event::Disk { dir: DataDir::Present(facts), at: at(began).boot }
    };
    let on = |tli: u32| Whole { tli: TimelineId::new(tli).unwrap(), lsn: Lsn::new(60) };
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    state.apply(looked(10, &[2]), at(15));
    state.apply(Event::Scanned { whole: on(2), run: Some(Run(1)), at: at(20).boot }, at(25));
    assert!(state.disk.value().is_some());
    state.apply(Event::Scanned { whole: on(3), run: Some(Run(1)), at: at(30).boot }, at(35));
    assert!(state.disk.value().is_none() && state.whole.is_some());
    state.apply(looked(28, &[2]), at(40));
    assert!(state.disk.value().is_none(), "that look began before the scan");
    // What is not there after all is not looked for again.
    state.apply(looked(45, &[2]), at(50));
    assert!(state.disk.value().is_some() && state.whole.is_some());
}

/// Protocol 1.7 step 3: first cut, then whole.
#[test]
fn a_scan_that_began_before_the_cut_is_not_taken() {
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    state.apply(Event::StreamCut, at(20));
    state.apply(scan(1, 10), at(30));
    assert!(state.whole.is_none());
    state.apply(scan(1, 21), at(40));
    assert!(state.whole.is_some());
}

#[test]
fn after_a_cut_or_a_configuration_that_failed_nobody_knows_what_the_files_say() {
    for task in [Task::CutStream, Task::Configure] {
        let mut state = state();
        let configuration = Configuration {
            follow: None,
            recovery: RecoveryTarget::Latest,
            application_name: String::new(),
            sync_names: String::new(),
            members_only: false,
            parameters: BTreeMap::new(),
            hba: Vec::new(),
            members: Vec::new(),
            slots: crate::model::policy::SlotRetention::default(),
            wait: Span::ZERO,
        };
        state.apply(Event::Configured(Box::new(configuration)), at(0));
        state.apply(Event::Done { task, outcome: Err("the walreceiver is still there".to_owned()) }, at(10));
        assert!(state.configured.is_none(), "{task:?}");
    }
}

#[test]
fn a_new_guard_names_the_one_before_it() {
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    state.apply(Event::GuardGone { why: "killed".to_owned() }, at(10));
    assert_eq!(state.former_guard, Some(parsed("g1")));
    assert!(state.guard.value().is_none());
}

/// The end of a start that was asked of a guard of before is not that of the next one: nothing may look empty while that is on its way.
#[test]
fn a_start_goes_on_until_it_says_that_it_has_ended() {
    let mut state = state();
    state.apply(guard(1, RUNS), at(0));
    for task in [Task::Start, Task::Arm] {
        state.tasks.insert(task, at(5).boot);
    }
    state.apply(Event::GuardGone { why: "killed".to_owned() }, at(10));
    assert_eq!([Task::Start, Task::Arm].map(|task| state.tasks.contains_key(&task)), [true, false]);
    state.apply(Event::Done { task: Task::Start, outcome: Err("its guard is gone".to_owned()) }, at(20));
    assert!(!state.tasks.contains_key(&Task::Start));
}

fn facts() -> DiskFacts {
    DiskFacts {
        copied: None,
        major: 15,
        control: crate::model::instance::ControlData {
            system_id: crate::model::node::SystemId::new(7),
            state: crate::model::instance::ControlState::ShutDown,
            checkpoint_tli: TimelineId::FIRST,
            checkpoint: Lsn::ZERO,
            redo: Lsn::ZERO,
            min_recovery: Lsn::ZERO,
            min_recovery_tli: None,
            can_rewind: true,
            wal_segment: crate::model::wal_layout::Layout::DEFAULT.segment,
        },
        standby_signal: true,
        backup_label: false,
        started: true,
        rewind: None,
        histories: [(TimelineId::FIRST, String::new())].into(),
    }
}

#[test]
fn what_is_known_of_the_directory_ends_with_its_replacement() {
    let mut state = state();
    state.apply(Event::Disk { dir: DataDir::Present(facts()), at: at(0).boot }, at(0));
    state.boundary = Some(Boundary { tli: TimelineId::FIRST, lsn: Lsn::new(9) });
    state.apply(Event::Completed(Completed::Clone), at(10));
    assert!(state.disk.value().is_none() && state.histories.is_empty() && state.boundary.is_none());
}
