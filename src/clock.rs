//! EFFECT. The clocks and the randomness of this machine: the one place that reads them.
//!
//! Everything else is given time and fresh names as values, so that the simulator can invent them.

use crate::model::{
    moment::{Clocks, Moment, Span},
    node::{DataIncarnation, Incarnation, Nonce},
};
use nix::time::{ClockId, clock_gettime};

fn read(clock: ClockId) -> Moment {
    // Linux has had both clocks since 2.6.39; reading them with a valid pointer cannot fail.
    let time = clock_gettime(clock).map_or((0, 0), |time| (time.tv_sec(), time.tv_nsec()));
    let seconds = u64::try_from(time.0).unwrap_or_default();
    Moment::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.1).unwrap_or_default()))
}

/// Both monotonic clocks now. Read again where something came between the two readings.
pub fn now() -> Clocks {
    const NEAR: Span = Span::from_nanos(200_000);
    const TRIES: u32 = 4;
    let mut tried = 0;
    loop {
        let mono = read(ClockId::CLOCK_MONOTONIC);
        let boot = read(ClockId::CLOCK_BOOTTIME);
        tried += 1;
        if tried == TRIES || read(ClockId::CLOCK_MONOTONIC).since(mono) < NEAR {
            return Clocks { boot, mono };
        }
    }
}

/// This boot of the machine: `CLOCK_BOOTTIME` counts from its beginning. `None` where the kernel does not tell.
pub fn boot_id() -> Option<Incarnation> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().parse().ok()
}

/// `CLOCK_BOOTTIME` now.
pub fn boot() -> Moment {
    read(ClockId::CLOCK_BOOTTIME)
}

/// Seconds since 1970 by the wall clock. For display only.
pub fn unix_seconds() -> u64 {
    read(ClockId::CLOCK_REALTIME).as_nanos() / 1_000_000_000
}

/// The wall clock as RFC 3339 in UTC, to the millisecond. For display only.
pub fn wall() -> String {
    let nanos = read(ClockId::CLOCK_REALTIME).as_nanos();
    rfc3339(nanos / 1_000_000_000, nanos % 1_000_000_000 / 1_000_000)
}

/// Days and time of day from seconds since 1970 (Gregorian calendar, UTC).
fn rfc3339(seconds: u64, millis: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil from days, counted in eras of 400 years that begin on 1 March 0000.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z", rest / 3_600, rest % 3_600 / 60, rest % 60)
}

#[expect(clippy::disallowed_methods, reason = "this file is the source of randomness")]
fn uuid() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// A name for this run of a process.
#[expect(clippy::expect_used, reason = "a uuid's text is a valid incarnation")]
pub fn incarnation() -> Incarnation {
    uuid().to_string().parse().expect("a uuid is an incarnation")
}

/// A nonce that no other write has.
#[expect(clippy::expect_used, reason = "a uuid's text is a valid nonce")]
pub fn nonce() -> Nonce {
    uuid().simple().to_string().parse().expect("a uuid is a nonce")
}

/// A new life of a data directory.
#[expect(clippy::expect_used, reason = "eight hexadecimal digits are a valid data incarnation")]
pub fn data_incarnation() -> DataIncarnation {
    uuid().simple().to_string()[..8].parse().expect("eight hexadecimal digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400, 5), "2000-02-29T00:00:00.005Z");
        assert_eq!(rfc3339(1_767_225_599, 999), "2025-12-31T23:59:59.999Z");
    }

    #[test]
    fn boottime_is_never_behind_monotonic() {
        let clocks = now();
        assert!(clocks.boot >= clocks.mono);
    }
}
