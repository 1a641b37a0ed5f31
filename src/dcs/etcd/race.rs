//! One request, several endpoints: hedged when the first is slow, moved on when one fails, until the deadline.

use super::{
    super::{Error, Hedge},
    Shared,
    fault::Fault,
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use etcd_client::Client;
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// How the attempts of one request ended.
pub(super) struct Raced<T> {
    pub(super) answer: T,
    /// Before the earliest attempt that may have arrived was sent.
    pub(super) sent_at: Moment,
    /// Another attempt may have arrived, and has no answer.
    pub(super) unsettled: bool,
}

/// The first pause after every endpoint has failed, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// One attempt under way: where, since when, and whether the request may have left.
#[derive(Clone)]
struct Launch {
    index: usize,
    at: Moment,
    sent: Arc<AtomicBool>,
}

impl Launch {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.sent, &other.sent)
    }

    fn is_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }
}

/// What is known of the attempts so far.
#[derive(Default)]
struct Course {
    /// Launch times of attempts that may have arrived.
    arrived: Vec<Moment>,
    newest: Option<Fault>,
    /// Endpoints whose newest answer was that we may not.
    denied: BTreeSet<usize>,
    failed: usize,
}

impl Course {
    /// Takes over a failed attempt. `Some`: no further attempt makes sense.
    fn fail(&mut self, launch: &Launch, fault: Fault, endpoints: usize, hedge: Hedge) -> Option<Fault> {
        self.failed += 1;
        match fault {
            Fault::Denied(_) | Fault::Stale(_) => self.denied.insert(launch.index),
            _ => self.denied.remove(&launch.index),
        };
        if fault.is_unclear() {
            self.arrived.push(launch.at);
        }
        let stop = fault.is_final() || (fault.is_unclear() && hedge == Hedge::Never) || self.denied.len() >= endpoints;
        self.newest = Some(fault.clone());
        stop.then_some(fault)
    }

    fn error(self, fault: Option<Fault>, deadline: Span, sent: bool) -> Error {
        let (why, deadline) = (fault.or(self.newest), deadline.rounded());
        match why {
            // The last fault is harmless, but an earlier attempt may have arrived.
            Some(fault) if !fault.is_unclear() && (sent || !self.arrived.is_empty()) => {
                Error::NoAnswer(format!("an attempt has no answer; the next failed: {}", fault.into_error()))
            }
            Some(fault) => fault.into_error(),
            None if sent => Error::NoAnswer(format!("no answer within {deadline}")),
            None => Error::Unreachable(format!("not connected within {deadline}")),
        }
    }
}

impl Shared {
    /// Sends a request within `deadline`; see [`Hedge`] for how often.
    pub(super) async fn race<T, C, F>(&self, hedge: Hedge, deadline: Span, call: C) -> Result<Raced<T>, Error>
    where
        C: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let ends = clock::boot().plus(deadline);
        let order = self.order();
        let third = Span::from_nanos(self.settings.attempt.as_nanos() / 3);
        let side_by_side = if hedge == Hedge::Allowed { order.len().min(2) } else { 1 };
        let mut course = Course::default();
        let mut in_flight = FuturesUnordered::new();
        let mut launched: Vec<Launch> = Vec::new();
        let mut turns = order.iter().cycle();
        let mut next_launch = clock::boot();
        loop {
            let now = clock::boot();
            // Too little time for another attempt would only hide what the former ones said.
            let worth = course.failed == 0 || ends.since(now).times(8) >= self.settings.attempt;
            if now >= ends || (in_flight.is_empty() && !worth) {
                return Err(course.error(None, deadline, launched.iter().any(Launch::is_sent)));
            }
            if in_flight.len() < side_by_side && worth && now >= next_launch {
                let Some(index) = turns.find(|index| launched.iter().all(|launch| launch.index != **index)).copied() else {
                    return Err(Error::Unreachable("no endpoint is configured".to_owned()));
                };
                let launch = Launch { index, at: now, sent: Arc::default() };
                launched.push(launch.clone());
                next_launch = now.plus(third);
                let patience = self.settings.attempt.min(ends.since(now));
                let (endpoint, call) = (&self.endpoints[index], &call);
                in_flight.push(async move {
                    let answer = endpoint.attempt_noting(patience, call, &launch.sent).await;
                    (launch, answer)
                });
            }
            let until = if in_flight.len() < side_by_side && worth { next_launch.min(ends) } else { ends };
            let (launch, answer) = tokio::select! {
                biased;
                Some(ended) = in_flight.next(), if !in_flight.is_empty() => ended,
                () = tokio::time::sleep(until.since(clock::boot()).to_std()) => continue,
            };
            launched.retain(|other| !other.is(&launch));
            match answer {
                Ok(answer) => {
                    self.prefer(launch.index);
                    let slow = launched.iter().filter(|other| clock::boot().since(other.at) >= third);
                    slow.for_each(|other| self.endpoints[other.index].doubt());
                    let others =
                        || course.arrived.iter().copied().chain(launched.iter().filter(|other| other.is_sent()).map(|other| other.at));
                    let sent_at = others().min().unwrap_or(launch.at).min(launch.at);
                    return Ok(Raced { answer, sent_at, unsettled: others().next().is_some() });
                }
                Err(fault) => {
                    if let Some(fault) = course.fail(&launch, fault, order.len(), hedge) {
                        return Err(course.error(Some(fault), deadline, launched.iter().any(Launch::is_sent)));
                    }
                    next_launch = clock::boot().plus(pause_after(course.failed, order.len()).into());
                }
            }
        }
    }
}

/// No pause while there is an endpoint that has not failed yet; then a growing one, jittered.
fn pause_after(failed: usize, endpoints: usize) -> Duration {
    let rounds = failed / endpoints.max(1);
    match u32::try_from(rounds) {
        Ok(0) => Duration::ZERO,
        Ok(rounds) => jittered(FIRST_PAUSE.saturating_mul(1 << rounds.min(4)).min(LONGEST_PAUSE)),
        Err(_) => LONGEST_PAUSE,
    }
}

/// Between half and all of `pause`, so that nodes that failed together do not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    let half = u64::try_from(pause.as_nanos() / 2).unwrap_or(u64::MAX);
    // The low digits of the clock are chance enough for this.
    Duration::from_nanos(half.saturating_add(clock::boot().as_nanos() % half.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_deadline_is_told_in_milliseconds() {
        let left = Span::from_nanos(699_912_345);
        assert!(Course::default().error(None, left, true).to_string().ends_with("no answer within 699ms"));
        assert!(Course::default().error(None, left, false).to_string().ends_with("not connected within 699ms"));
    }
}
