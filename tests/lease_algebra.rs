//! The lease at the bound of what clocks may err (protocol 1.4 *Why it is safe*, 1.6): every case of two renewals in a small world.
//!
//! One holder renews twice, the second time perhaps with other timers. One taker watches. Each event happens at each of a few moments, and each
//! clock runs too slow, right, or too fast. The holder's PostgreSQL must be dead when the taker's swap is taken. Until when the holder acts is said
//! by the code that says it in production ([`Lease::until`]), how long the taker waits by the policy's own bound ([`Timers::least_wait`]).

#![expect(clippy::expect_used, reason = "tests")]

use pgbaton::{
    decide::snapshot::{Attempt, Lease},
    model::{
        moment::{Moment, Span},
        policy::{Preset, RATE_ERROR_PPM, Timers},
        term::Term,
    },
};

const MILLION: u128 = 1_000_000;

/// What the holder and the taker do, or one thing that they do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Sound,
    /// A shorter hold is armed when its renewal is answered, and not before it leaves.
    LateArm,
    /// Validity counts from the answer.
    FromReply,
    /// The taker waits as if all clocks ran alike.
    NoDrift,
}

/// A clock that is so many millionths too fast.
#[derive(Clone, Copy, Debug)]
struct Clock(i64);

impl Clock {
    fn parts(self) -> u128 {
        u128::try_from(1_000_000 + self.0).unwrap_or(MILLION)
    }

    fn shows(self, real: u128) -> Moment {
        Moment::from_nanos(u64::try_from(real * self.parts() / MILLION).unwrap_or(u64::MAX))
    }

    /// When it shows that: the latest real moment.
    fn latest(self, shown: u128) -> u128 {
        (shown * MILLION).div_ceil(self.parts())
    }
}

fn attempt(sent: Moment, hold: Span) -> Attempt {
    Attempt { nonce: "n".parse().expect("nonce"), term: Term::new(3), sent, hold, holds: true }
}

/// The second renewal.
#[derive(Clone, Copy, Debug)]
struct Second {
    sent: u128,
    /// How long after its send etcd takes it; `None`: never.
    taken: Option<u128>,
    /// How long after that the holder hears of it; `None`: never.
    heard: Option<u128>,
    /// How long after that the taker sees it.
    seen: u128,
}

/// By how much the holder's last process outlives the taker's swap; 0 where it does not.
fn overlap(rule: Rule, timers: [&Timers; 2], clocks: [Clock; 2], second: Second) -> u128 {
    let [holder, taker] = clocks;
    let wait = |timers: &Timers| match rule {
        Rule::NoDrift => u128::from(timers.hold.plus(timers.kill_bound).as_nanos()),
        _ => u128::from(timers.least_wait().as_nanos()),
    };
    // The first one is taken, heard of and seen at once, at 0.
    let first = attempt(holder.shows(0), timers[0].hold);
    let first_swap = wait(timers[0]) * MILLION / taker.parts();
    // The taker's swap compares: a renewal that comes after it is refused.
    let taken = second.taken.map(|after| second.sent + after).filter(|taken| *taken < first_swap);
    let swap = taken.map_or(first_swap, |taken| taken + second.seen + wait(timers[1]) * MILLION / taker.parts());
    let sent = attempt(holder.shows(second.sent), timers[1].hold);
    let dies =
        |until: Moment| holder.latest(u128::from(until.as_nanos()) + u128::from(timers[0].kill_bound.min(timers[1].kill_bound).as_nanos()));
    let armed = Lease { confirmed: Some(first.clone()), unsettled: if rule == Rule::LateArm { Vec::new() } else { vec![sent.clone()] } };
    let at_first = first.until();
    if holder.latest(u128::from(at_first.as_nanos())) <= second.sent {
        return dies(at_first).saturating_sub(swap);
    }
    let until = armed.until(Term::new(3)).unwrap_or(at_first);
    let heard = taken.and_then(|taken| Some(taken + second.heard?)).filter(|heard| *heard < holder.latest(u128::from(until.as_nanos())));
    let until = match heard {
        Some(heard) if rule == Rule::FromReply => holder.shows(heard).plus(timers[1].hold),
        Some(_) => Lease { confirmed: Some(sent), unsettled: Vec::new() }.until(Term::new(3)).unwrap_or(until),
        None => until,
    };
    dies(until).saturating_sub(swap)
}

/// The worst of all cases, and how many there were.
fn worst(rule: Rule) -> (u128, usize) {
    let rho = i64::try_from(RATE_ERROR_PPM).expect("small");
    let rates = [-rho, 0, rho];
    let presets = [Preset::Fast, Preset::Default, Preset::Wan].map(Preset::timers);
    let longest = Timers { hold: Span::from_secs(15), ..presets[2] };
    let all: Vec<Timers> = presets.into_iter().chain([longest]).collect();
    let (mut most, mut cases) = (0, 0);
    for (one, other) in all.iter().flat_map(|one| all.iter().map(move |other| (one, other))) {
        let hold = u128::from(one.hold.as_nanos());
        let step = |count: u128| hold * count / 8;
        let later = [0, 1, 1_000_000, step(1), step(4), step(8)];
        let outcomes = || {
            later
                .iter()
                .flat_map(|taken| later.iter().map(move |heard| (Some(*taken), Some(*heard))))
                .chain(later.iter().map(|taken| (Some(*taken), None)))
        };
        for (sent, (taken, heard)) in (0..=9).flat_map(|count| outcomes().chain([(None, None)]).map(move |outcome| (step(count), outcome)))
        {
            for seen in [0, step(2)] {
                for (holder, taker) in rates.iter().flat_map(|holder| rates.iter().map(move |taker| (Clock(*holder), Clock(*taker)))) {
                    most = most.max(overlap(rule, [one, other], [holder, taker], Second { sent, taken, heard, seen }));
                    cases += 1;
                }
            }
        }
    }
    (most, cases)
}

#[test]
fn nobody_acts_when_the_next_one_may() {
    let (most, cases) = worst(Rule::Sound);
    assert_eq!(most, 0, "{most} ns too long");
    assert!(cases > 100_000, "{cases} cases");
}

/// The world is not so small that it misses what each of the rules is there for.
#[test]
fn each_rule_of_the_lease_is_needed() {
    for rule in [Rule::LateArm, Rule::FromReply, Rule::NoDrift] {
        let (most, _) = worst(rule);
        assert!(most > 0, "{rule:?} breaks nothing");
    }
}
