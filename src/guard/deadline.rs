//! The deadline: an absolute kernel timer whose signal is SIGKILL to the guard itself.
//!
//! Once armed it needs no code of ours to run: a stopped, starved or looping guard dies all the same, and what dies with it is
//! the kill mode's matter. An expiry that is already past fires at once, so no window lies between a check and the arming.

use crate::model::moment::Moment;
use nix::{
    sys::{
        signal::{SigEvent, SigevNotify, Signal},
        time::TimeSpec,
        timer::{Expiration, Timer, TimerSetTimeFlags},
    },
    time::ClockId,
};

/// The timer. Not inherited by children; gone with the process.
pub(super) struct Deadline(Timer);

impl Deadline {
    /// A timer on `CLOCK_BOOTTIME` (it counts suspend), not armed.
    pub(super) fn new() -> nix::Result<Self> {
        let kill = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        Timer::new(ClockId::CLOCK_BOOTTIME, kill).map(Self)
    }

    /// Moves the expiry to `until`. Does not return in time to tell if that is past.
    pub(super) fn arm(&mut self, until: Moment) -> nix::Result<()> {
        // A zero expiry would disarm.
        let nanos = until.as_nanos().max(1);
        let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let at = TimeSpec::new(i64::try_from(seconds).unwrap_or(i64::MAX), i64::try_from(rest).unwrap_or(0));
        self.0.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }

    /// Takes the expiry away.
    pub(super) fn disarm(&mut self) -> nix::Result<()> {
        self.0.set(Expiration::OneShot(TimeSpec::new(0, 0)), TimerSetTimeFlags::empty())
    }
}
