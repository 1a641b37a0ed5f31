//! The real decisions on virtual time, against faults: a few hundred fixed seeds, and proof that the oracles see.
//!
//! One seed again, with its trace: `SEED=17 cargo test --test simulation one_seed -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "support/seeds.rs"]
mod seeds;

use pgbaton::{
    decide::found_gone_after,
    model::{
        moment::Span,
        policy::{ClusterPolicy, CrashPolicy, Durability, Preset},
    },
    sim::{Coverage, Cut, Mutation, Options, Outcome, Plan, Swarm, alone, interrupt, run, run_without, sick_claimant},
};
use seeds::{command, failures, fresh, median, print_coverage, run_all_by, seldom, sum, tell, too_little};
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
};

/// Runs every seed, on all cores.
fn run_all(seeds: std::ops::Range<u64>, options: Options) -> Vec<Outcome> {
    run_all_by(seeds, |_| options)
}

fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Which faults, by the environment.
fn swarm() -> Swarm {
    std::env::var("SWARM").map_or(Swarm::All, |name| name.parse().unwrap())
}

/// Every seed that broke something, with the faults that it needs and the one command that shows them; and what was exercised.
fn judge(outcomes: &[Outcome], options: impl Fn(u64) -> Options) {
    print_coverage(outcomes);
    let told = failures(outcomes, options);
    assert!(told.is_empty(), "{} of {} seeds:\n{}", told.len(), outcomes.len(), told.join("\n"));
    let idle = [too_little(outcomes), seldom(outcomes)].concat();
    assert!(idle.is_empty() || swarm() != Swarm::All, "{}", idle.join("; "));
}

/// Catalogue A–C, E, F (venue S), oracles O1, O3, O4, O5, O8, O10, O11, O12, O16, O18.
#[test]
fn no_seed_breaks_a_promise() {
    let first = environment("FIRST", 1);
    let seeds = first..first + environment("SEEDS", 80);
    let options = Options { swarm: swarm(), ..Options::default() };
    judge(&run_all(seeds, options), |_| options);
}

/// Operators at work all the time: they pause, resume, fail over by hand and acknowledge while answers are lost and hosts fail (O14).
#[test]
fn no_seed_breaks_a_pause() {
    let first = environment("FIRST", 1);
    let seeds = first..first + environment("SEEDS", 80);
    let mode = |seed| if seed % 2 == 0 { durability(seed) } else { Durability::Async };
    let options = |seed| Options { durability: mode(seed), swarm: Swarm::Operators, ..Options::default() };
    let outcomes = run_all_by(seeds, options);
    print_coverage(&outcomes);
    let told = failures(&outcomes, options);
    assert!(told.is_empty(), "{} of {} seeds:\n{}", told.len(), outcomes.len(), told.join("\n"));
    assert!(
        median(&outcomes, |c| c.pauses) >= 2 && sum(&outcomes, |c| c.resumptions) > 0,
        "too little happens: the requests prove nothing"
    );
}

/// What commits wait for, by the environment or by the seed.
fn durability(seed: u64) -> Durability {
    match std::env::var("MODE").as_deref() {
        Ok("Async") => Durability::Async,
        Ok("Auto") => Durability::Auto,
        Ok("Quorum") => Durability::Quorum,
        Ok("StrictQuorum") => Durability::StrictQuorum,
        _ => [Durability::Quorum, Durability::Auto, Durability::Quorum, Durability::StrictQuorum][seed as usize % 4],
    }
}

/// The same with commits that wait: nothing acknowledged is lost (O2), and at no step does the set that acknowledges miss the set that elects (I2).
#[test]
fn no_seed_loses_what_voters_confirmed() {
    let first = environment("FIRST", 1);
    let seeds = first..first + environment("SEEDS", 60);
    let options = |seed| Options { durability: durability(seed), swarm: swarm(), ..Options::default() };
    judge(&run_all_by(seeds, options), options);
}

/// Fresh seeds, as `make sim` runs them: of all modes and swarms.
#[test]
#[ignore = "many minutes; part of make test-full"]
fn slow_no_fresh_seed_breaks_a_promise() {
    let first = environment("FIRST", pgbaton::clock::unix_seconds());
    println!("FIRST={first}");
    let outcomes = run_all_by(first..first + environment("SEEDS", 3_000), fresh);
    print_coverage(&outcomes);
    let told = failures(&outcomes, fresh);
    assert!(told.is_empty(), "{} of {} seeds:\n{}", told.len(), outcomes.len(), told.join("\n"));
    let coverage: Vec<Coverage> = outcomes.iter().map(|outcome| outcome.coverage.clone()).collect();
    let idle = [too_little(&outcomes), Coverage::gaps(&coverage)].concat();
    assert!(idle.is_empty(), "{}", idle.join("; "));
}

/// Seeds that once broke something, found among fresh ones.
#[test]
fn seeds_that_once_failed_are_well() {
    let first = [1110, 1204, 20385, 20456, 20665, 21257, 21260, 71133, 71155, 91390, 92095, 110375, 110830, 110876, 110975, 121080];
    let of = |durability, swarm, seed| (Options { durability, swarm, ..Options::default() }, seed);
    let later = [
        of(Durability::Async, Swarm::Etcd, 1_795_901_758),
        of(Durability::Auto, Swarm::All, 1_795_904_651),
        of(Durability::Quorum, Swarm::All, 1_795_928_445),
        of(Durability::Async, Swarm::All, 1_795_930_194),
        of(Durability::StrictQuorum, Swarm::Policy, 1_795_940_503),
        of(Durability::Quorum, Swarm::All, 1_795_962_053),
        of(Durability::Async, Swarm::All, 1_796_220_456),
        of(Durability::Quorum, Swarm::All, 1_796_220_493),
        of(Durability::Quorum, Swarm::All, 1_796_230_297),
        of(Durability::StrictQuorum, Swarm::Promotions, 1_796_330_175),
    ];
    for (options, seed) in first.into_iter().map(|seed| (Options::default(), seed)).chain(later) {
        let outcome = run(seed, options);
        assert_eq!(outcome.violations, Vec::<String>::new(), "again: {}", command(seed, options, ""));
    }
}

/// Without a fault nothing is claimed, started or given up after the beginning, and etcd is written at the pace of the renewals (O16, O17).
#[test]
fn a_quiet_cluster_stays_as_it_is() {
    let options = Options { faults: false, seconds: 120, patience: 30, ..Options::default() };
    for outcome in run_all(1..13, options) {
        let c = &outcome.coverage;
        assert_eq!(outcome.violations, Vec::<String>::new(), "seed {}", outcome.seed);
        assert_eq!((c.claims, c.leaderships, c.releases, c.rewinds, c.lost), (0, 0, 0, 0, 0), "seed {}: {c:?}", outcome.seed);
        assert!(outcome.alarms.is_empty(), "seed {}: {:?}", outcome.seed, outcome.alarms);
        let rate = c.writes as f64 / 140.0;
        assert!(rate < 8.0, "seed {}: {rate:.1} writes of etcd a second", outcome.seed);
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    let options = Options { seconds: 60, trace: true, ..Options::default() };
    for seed in [3, 4] {
        let (one, other) = (run(seed, options), run(seed, options));
        assert!(one.trace == other.trace, "seed {seed}");
        assert_eq!((one.digest, one.coverage), (other.digest, other.coverage));
    }
    assert_ne!(run(3, options).digest, run(4, options).digest);
}

/// One rule that is broken in the model around the decisions: in which world, and which oracle notices.
struct Broken {
    mutation: Mutation,
    durability: Durability,
    swarm: Swarm,
    oracles: &'static [&'static str],
    /// A seed in which one of them does.
    kept: u64,
    /// Within so many seeds another one is looked for where that one no longer shows it: each change of the model moves the seeds.
    within: u64,
}

const fn broken(mutation: Mutation, durability: Durability, swarm: Swarm, oracles: &'static [&'static str], kept: u64) -> Broken {
    Broken { mutation, durability, swarm, oracles, kept, within: 80 }
}

const RULES: &[Broken] = &[
    broken(Mutation::ValidityFromReply, Durability::Async, Swarm::All, &["O1:", "O10:", "O4:"], 2),
    broken(Mutation::DeafGuard, Durability::Async, Swarm::All, &["O1:", "O10:"], 1),
    broken(Mutation::HastyRelease, Durability::Async, Swarm::All, &["O11:", "O1:"], 4),
    broken(Mutation::Impatient, Durability::Async, Swarm::All, &["O1:", "O4:"], 3),
    broken(Mutation::OwnWait, Durability::Async, Swarm::Policy, &["O1:"], 2),
    broken(Mutation::LateArm, Durability::Async, Swarm::Policy, &["O1:", "O10:"], 11),
    broken(Mutation::ForgottenClaim, Durability::Async, Swarm::All, &["O4:"], 2),
    broken(Mutation::ForgottenPromise, Durability::Async, Swarm::All, &["O7:"], 2),
    broken(Mutation::PromiseWithdrawn, Durability::Quorum, Swarm::All, &["O7:", "O8:"], 14),
    broken(Mutation::UncheckedMembers, Durability::Async, Swarm::Members, &["O4:"], 260),
    broken(Mutation::AnyGuard, Durability::Async, Swarm::All, &["O4:"], 6),
    broken(Mutation::VacantIsDead, Durability::Quorum, Swarm::All, &["O2:", "O1:"], 4),
    broken(Mutation::NamesBelieved, Durability::Quorum, Swarm::All, &["I2:", "O2:"], 2),
    broken(Mutation::FlagBelieved, Durability::Quorum, Swarm::Policy, &["I2:", "O2:"], 9),
    broken(Mutation::MarkBelieved, Durability::Quorum, Swarm::Policy, &["I2:", "O2:"], 18),
    broken(Mutation::LateFlag, Durability::Quorum, Swarm::All, &["I2:", "O2:"], 2),
    broken(Mutation::PromisesInvented, Durability::Quorum, Swarm::All, &["O2:"], 5),
    broken(Mutation::CutBelieved, Durability::Quorum, Swarm::Clocks, &["O2:", "O7:"], 20),
    broken(Mutation::SettingsAlone, Durability::Quorum, Swarm::Clocks, &["O2:", "O7:"], 25),
    broken(Mutation::EndsByPage, Durability::Quorum, Swarm::All, &["O2:", "O5:", "I7:"], 4),
    broken(Mutation::OpenDoors, Durability::Quorum, Swarm::All, &["O15:"], 2),
    broken(Mutation::BurntThough, Durability::Quorum, Swarm::Promotions, &["O2:", "O5:", "I7:", "O16:"], 1),
    broken(Mutation::StartsUnchecked, Durability::Quorum, Swarm::Data, &["O2:", "O5:", "I2:", "I7:"], 2),
    broken(Mutation::SilentAdoption, Durability::Quorum, Swarm::Queues, &["I2:", "O2:"], 1),
    broken(Mutation::AcksFromReceipt, Durability::Async, Swarm::All, &["O10:", "O1:"], 1),
    broken(Mutation::ForgottenAck, Durability::Async, Swarm::All, &["O21:", "O1:", "O10:"], 3),
    broken(Mutation::OneAck, Durability::Async, Swarm::All, &["O1:", "O10:"], 6),
    broken(Mutation::AcksForOneSync, Durability::Async, Swarm::All, &["O1:", "O10:"], 500),
    broken(Mutation::PauseIgnored, Durability::Async, Swarm::Operators, &["O14:", "invariant:"], 1),
    broken(Mutation::PauseUnsettled, Durability::Async, Swarm::Operators, &["O1:", "O10:"], 1),
    broken(Mutation::RequestKept, Durability::Async, Swarm::Operators, &["O13:"], 3),
    broken(Mutation::ResumeUnarmed, Durability::Async, Swarm::Operators, &["O1:", "O10:"], 63),
    broken(Mutation::DoubtUnheard, Durability::Async, Swarm::Etcd, &["O1:", "O4:", "O5:"], 48),
    broken(Mutation::TargetBelieved, Durability::Quorum, Swarm::All, &["I7:"], 55),
    broken(Mutation::LossHidden, Durability::Async, Swarm::All, &["O3:"], 1),
    broken(Mutation::RoutedOn, Durability::Async, Swarm::All, &["O9:"], 1),
    broken(Mutation::Silent, Durability::Async, Swarm::All, &["O18:"], 1),
    broken(Mutation::MembersBelieved, Durability::Async, Swarm::Data, &["O12:"], 165),
    broken(Mutation::Chatty, Durability::Async, Swarm::All, &["O17:"], 1),
    broken(Mutation::LatestAck, Durability::Async, Swarm::All, &["O1:", "O10:", "O4:"], 6),
    broken(Mutation::OlderForgotten, Durability::Quorum, Swarm::Policy, &["I2:", "O2:"], 1),
    broken(Mutation::CopyGoesOn, Durability::Quorum, Swarm::Data, &["O16:", "O1:", "O2:", "O4:"], 668),
    broken(Mutation::NamesDropped, Durability::Quorum, Swarm::All, &["I2:", "O2:"], 3),
];

impl Broken {
    fn options(&self) -> Options {
        Options { mutation: self.mutation, durability: self.durability, swarm: self.swarm, ..Options::default() }
    }

    fn seen_in(&self, seed: u64) -> Option<String> {
        // Some rules keep the decisions from contradicting themselves: without them the core notices first, and stops.
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed, self.options()))).ok()?;
        outcome.violations.first().filter(|text| self.oracles.iter().any(|oracle| text.contains(oracle))).cloned()
    }

    /// Whether nothing breaks in this seed without the mutation: what breaks with it does so by it.
    fn is_well_without(&self, seed: u64) -> bool {
        run(seed, Options { mutation: Mutation::None, ..self.options() }).violations.is_empty()
    }

    /// A seed that shows it, of so many.
    fn find(&self, seeds: u64) -> Option<(u64, String)> {
        let next = AtomicU64::new(1);
        let found: Mutex<Option<(u64, String)>> = Mutex::new(None);
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed > seeds || found.lock().unwrap().is_some() {
                            break;
                        }
                        if let Some(text) = self.seen_in(seed).filter(|_| self.is_well_without(seed)) {
                            found.lock().unwrap().get_or_insert((seed, text));
                        }
                    }
                });
            }
        });
        found.into_inner().unwrap()
    }
}

/// After what time somebody may take over (O16), where etcd answers and a replica can: what the timers say.
fn noticed(plan: Plan, policy: &ClusterPolicy) -> u64 {
    let timers = policy.timers();
    let lost = match plan {
        // Whoever elects need not wait for the lease.
        Plan::HostLoss if policy.durability != Durability::Async => found_gone_after(timers.renew_every),
        Plan::HostLoss => timers.wait,
        _ => Span::ZERO,
    };
    lost.as_millis()
}

/// Promises, scans, files, a promotion, or a start with its crash recovery: what the model's disks and messages take at the worst, and in the median.
/// Together with what voters notice the latter is less than the wait for a lease: who waited for that would be found.
const WORST_MS: u64 = 2_000;
const MEDIAN_MS: u64 = 1_100;

/// A walsender that a replica does not answer holds up a stop for so long.
const STOP_MS: u64 = 3_300;

/// One fault and nothing else: over in time, and PostgreSQL is started no more often on any node than it has to be (O16): to follow, and before that
/// to end its own log where that is rewound.
#[test]
fn one_fault_costs_what_its_timers_say() {
    let presets = [Preset::Fast, Preset::Default, Preset::Wan];
    for (plan, restarts) in [(Plan::HostLoss, 2), (Plan::Crash, 2), (Plan::RestartInPlace, 1), (Plan::Handover, 1)] {
        for preset in presets {
            for durability in [Durability::Async, Durability::Quorum, Durability::StrictQuorum] {
                let crash_policy = if plan == Plan::RestartInPlace { CrashPolicy::Restart } else { CrashPolicy::Lossless };
                let policy = ClusterPolicy { preset, durability, crash_policy, ..ClusterPolicy::default() };
                let (noticed, stops) = (noticed(plan, &policy), if plan == Plan::Handover { STOP_MS } else { 0 });
                let limit = noticed + WORST_MS + stops;
                let mut outages: Vec<u64> = Vec::new();
                for seed in 1..5 {
                    let of = alone(seed, plan, &policy);
                    let told = format!("{plan:?} {preset:?} {durability:?} seed {seed}: {} ms, {} starts", of.outage_ms, of.starts);
                    assert_eq!(of.faults, Vec::<String>::new(), "{told}\n{}", of.trace);
                    assert!(of.outage_ms > 0 && of.outage_ms <= limit, "{told}; {limit} ms are allowed\n{}", of.trace);
                    assert!(of.starts <= restarts, "{told}\n{}", of.trace);
                    outages.push(of.outage_ms);
                }
                outages.sort_unstable();
                assert!(
                    !matches!(plan, Plan::HostLoss | Plan::Handover) || outages[1] <= noticed + MEDIAN_MS,
                    "{preset:?} {durability:?}: {outages:?} after {noticed} ms"
                );
                println!("{plan:?} {preset:?} {durability:?}: {outages:?} of {limit} ms");
            }
        }
    }
}

/// Oracle O20: a rule that is broken is missed, in the seed that is kept for it or in one of the first.
#[test]
fn broken_rules_are_noticed() {
    let next = AtomicUsize::new(0);
    let moved = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(rule) = RULES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if rule.seen_in(rule.kept).filter(|_| rule.is_well_without(rule.kept)).is_none() {
                        moved.lock().unwrap().push(rule);
                    }
                }
            });
        }
    });
    let mut unseen = Vec::new();
    for rule in moved.into_inner().unwrap() {
        let (mutation, kept) = (rule.mutation, rule.kept);
        match rule.find(rule.within) {
            Some((seed, _)) => println!("{mutation:?}: seed {kept} no longer shows it, seed {seed} does; keep that one"),
            None => unseen.push(format!(
                "{mutation:?}: neither in the kept seed {kept} nor in the first {}; search anew, and keep what is found: \
                 RULE={mutation:?} SEEDS=2000 cargo test --test simulation slow_every -- --ignored --nocapture",
                rule.within
            )),
        }
    }
    assert!(unseen.is_empty(), "nothing notices\n  {}", unseen.join("\n  "));
}

/// Oracle O20, in other seeds than the kept ones too; `RULE` names one rule, and `SWARM` other faults.
#[test]
#[ignore = "minutes without optimisation; part of make test-full"]
fn slow_every_broken_rule_is_noticed_within_two_thousand_seeds() {
    let only = std::env::var("RULE").ok();
    let aimed = std::env::var_os("SWARM").map(|_| swarm());
    let aimed = |rule: &Broken| Broken { swarm: aimed.unwrap_or(rule.swarm), ..*rule };
    let mut unseen = Vec::new();
    for rule in RULES.iter().map(aimed).filter(|rule| only.as_ref().is_none_or(|only| format!("{:?}", rule.mutation) == *only)) {
        let found = rule.find(environment("SEEDS", 2_000));
        println!("{:?}: {found:?}", rule.mutation);
        unseen.extend(found.is_none().then(|| format!("{:?}", rule.mutation)));
    }
    assert!(unseen.is_empty(), "nothing notices {}", unseen.join(", "));
}

/// Nobody holds a claim for ever that it cannot use: another one takes its place (protocol L1).
#[test]
fn a_claimant_whose_disk_fails_for_good_makes_way() {
    for seed in 1..9 {
        let (faults, trace) = sick_claimant(seed);
        assert!(faults.is_empty(), "seed {seed}: {}\n{trace}", faults.join("\n  "));
    }
}

/// Interrupts a plan at every step, in every way: it converges, and no oracle sees anything.
fn interrupt_at_every_step(plan: Plan, durability: Durability) {
    let cuts = [Cut::Before, Cut::After, Cut::Answer, Cut::Power];
    // Without a first node there is no cluster that could come back.
    for cut in cuts.into_iter().filter(|cut| plan != Plan::Bootstrap || *cut != Cut::Power) {
        let mut steps = 0;
        for step in 0..400 {
            let outcome = interrupt(1 + step % 3, plan, durability, step, cut, false);
            assert!(outcome.faults.is_empty(), "{plan:?} {durability:?} {cut:?} at step {step}: {}", outcome.faults.join("\n  "));
            if !outcome.reached {
                break;
            }
            steps = step + 1;
        }
        println!("{plan:?}, {durability:?}, {cut:?}: {steps} steps");
        assert!(steps >= 4, "{plan:?} {durability:?} {cut:?}: only {steps} steps");
    }
}

#[test]
fn an_interrupted_hand_over_converges() {
    interrupt_at_every_step(Plan::Handover, Durability::Async);
    interrupt_at_every_step(Plan::Handover, Durability::Quorum);
}

#[test]
fn an_interrupted_failover_of_commits_that_wait_converges() {
    interrupt_at_every_step(Plan::HostLoss, Durability::Quorum);
    interrupt_at_every_step(Plan::Crash, Durability::StrictQuorum);
}

#[test]
fn an_interrupted_bootstrap_converges() {
    interrupt_at_every_step(Plan::Bootstrap, Durability::Async);
}

#[test]
fn an_interrupted_crash_failover_converges() {
    interrupt_at_every_step(Plan::Crash, Durability::Async);
}

#[test]
fn an_interrupted_host_loss_converges() {
    interrupt_at_every_step(Plan::HostLoss, Durability::Async);
}

#[test]
fn an_interrupted_restart_in_place_converges() {
    interrupt_at_every_step(Plan::RestartInPlace, Durability::Async);
}

#[test]
fn an_interrupted_rewind_converges() {
    interrupt_at_every_step(Plan::Rewind, Durability::Async);
}

#[test]
fn an_interrupted_clone_converges() {
    interrupt_at_every_step(Plan::Clone, Durability::Async);
}

/// Prints the trace of the seed in `SEED`, in the mode in `MODE`, with the faults in `KEEP` alone. With `SHRINK=1`: which faults it needs.
#[test]
#[ignore = "for looking at one seed"]
fn one_seed() {
    let seed = environment("SEED", 1);
    let durability = if std::env::var_os("MODE").is_some() { durability(seed) } else { Durability::Async };
    let kept: Option<BTreeSet<usize>> = std::env::var("KEEP").ok().map(|text| text.split(',').filter_map(|one| one.parse().ok()).collect());
    let dropped = kept.iter().flat_map(|kept| (0..10_000).filter(|index| !kept.contains(index))).collect();
    let rule = std::env::var("RULE").ok();
    let broken = RULES.iter().map(|rule| rule.mutation).find(|mutation| rule.as_ref().is_some_and(|rule| format!("{mutation:?}") == *rule));
    let mutation = broken.unwrap_or(Mutation::None);
    let options = Options { trace: true, durability, swarm: swarm(), mutation, ..Options::default() };
    let outcome = run_without(seed, options, &dropped);
    if environment("SHRINK", 0) == 1 {
        println!("{}", tell(&outcome, Options { trace: false, ..options }, true));
        return;
    }
    println!("{}", outcome.trace);
    println!("{:#?}\n{:?}\n{:#?}", outcome.coverage, outcome.alarms, outcome.violations);
}
