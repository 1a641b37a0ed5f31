//! Time as a value: points on a monotonic clock, and lengths of time.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;

/// A point on one machine's `CLOCK_BOOTTIME` (or, where a field says so, `CLOCK_MONOTONIC`), in nanoseconds.
///
/// Never sent to another machine, never compared with a wall clock. Written as seconds: `"12.3s"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Moment(u64);

impl Moment {
    /// The clock's zero.
    pub const ZERO: Self = Self(0);

    /// Later than any other.
    pub const MAX: Self = Self(u64::MAX);

    /// From the clock's nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The clock's nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `span` later.
    pub const fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// The point `span` earlier, at the clock's zero at the least.
    pub const fn minus(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }

    /// How long ago `earlier` was; zero where it lies ahead.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_seconds(f, self.0)
    }
}

impl From<Moment> for String {
    fn from(moment: Moment) -> Self {
        moment.to_string()
    }
}

impl TryFrom<String> for Moment {
    type Error = NotASpan;

    fn try_from(text: String) -> Result<Self, NotASpan> {
        text.parse::<Span>().map(|span| Self(span.0))
    }
}

/// A length of time in nanoseconds, written with its unit: `"500ms"`, `"2.5s"`, `"10min"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(MILLI))
    }

    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(SECOND))
    }

    /// So many nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / MILLI
    }

    /// Rounded down to whole milliseconds, for people.
    #[must_use]
    pub const fn rounded(self) -> Self {
        Self(self.0 - self.0 % MILLI)
    }

    /// Seconds as a floating number, for metrics and people.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / SECOND as f64
    }

    /// The standard library's type.
    pub const fn to_std(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// `self` and `other` together.
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left of `self` after `other`; zero where nothing is.
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `self`, `factor` times.
    pub const fn times(self, factor: u64) -> Self {
        Self(self.0.saturating_mul(factor))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0s"),
            nanos if nanos < SECOND && nanos % MILLI == 0 => write!(f, "{}ms", nanos / MILLI),
            nanos => write_seconds(f, nanos),
        }
    }
}

fn write_seconds(f: &mut fmt::Formatter<'_>, nanos: u64) -> fmt::Result {
    match nanos % SECOND {
        0 => write!(f, "{}s", nanos / SECOND),
        rest => write!(f, "{}.{}s", nanos / SECOND, format!("{rest:09}").trim_end_matches('0')),
    }
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time (a number with ms, s, min, h or d, as \"500ms\" or \"2.5s\")")]
pub struct NotASpan(String);

impl FromStr for Span {
    type Err = NotASpan;

    fn from_str(text: &str) -> Result<Self, NotASpan> {
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, unit) = trimmed.split_at(digits);
        let unit_nanos = match unit.trim() {
            "ms" => MILLI,
            "s" => SECOND,
            "min" => 60 * SECOND,
            "h" => 3_600 * SECOND,
            "d" => 86_400 * SECOND,
            _ => return Err(NotASpan(text.to_owned())),
        };
        scaled(number, unit_nanos).map(Self).ok_or_else(|| NotASpan(text.to_owned()))
    }
}

/// `number` (decimal, at most nine digits behind the point) times `unit`, exactly.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let billionths = format!("{fraction:0<9}").parse::<u128>().ok()?;
    let total = whole.parse::<u128>().ok()?.checked_mul(u128::from(unit))? + billionths * u128::from(unit) / 1_000_000_000;
    u64::try_from(total).ok()
}

impl TryFrom<String> for Span {
    type Error = NotASpan;

    fn try_from(text: String) -> Result<Self, NotASpan> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

/// Both clocks, read one after the other.
///
/// A holder's deadlines run on `boot` (counts suspend), a taker's waits on `mono`: both err to the safe side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CLOCK_BOOTTIME`.
    pub boot: Moment,
    /// `CLOCK_MONOTONIC`.
    pub mono: Moment,
}

impl Clocks {
    /// `boot − mono`: the time spent in suspend so far. A change voids a taker's observation.
    ///
    /// The two clocks are read one after the other, so it trembles by as much as lies between: compare by [`Self::slept_since`].
    pub const fn suspended(self) -> Span {
        self.boot.since(self.mono)
    }

    /// Whether the machine was suspended since `suspended` was read, by more than two readings may differ.
    ///
    /// A shorter sleep does no harm: `CLOCK_MONOTONIC` stands still in it, and a taker waits longer.
    pub const fn slept_since(self, suspended: Span) -> bool {
        const TREMBLE: Span = Span::from_millis(5);
        let now = self.suspended();
        now.minus(suspended).plus(suspended.minus(now)).as_nanos() > TREMBLE.as_nanos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_and_read_with_their_unit() {
        for (text, millis) in [("500ms", 500), ("2.8s", 2_800), ("10min", 600_000), ("0s", 0), ("0.001s", 1)] {
            assert_eq!(text.parse(), Ok(Span::from_millis(millis)), "{text}");
        }
        assert_eq!(Span::from_millis(2_800).to_string(), "2.8s");
        assert_eq!(Span::from_millis(90_000).to_string(), "90s");
        assert_eq!(Span::from_millis(15).to_string(), "15ms");
    }

    #[test]
    fn a_span_without_a_unit_is_refused() {
        for text in ["5", "", "s", "5 seconds", ".5s", "1.s", "-1s", "1e3s", "1.2.3s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }

    #[test]
    fn readings_that_tremble_are_no_sleep_but_a_suspend_is() {
        let at = |boot: u64, mono: u64| Clocks { boot: Moment(boot), mono: Moment(mono) };
        let before = at(5_000_000_000, 4_000_000_000).suspended();
        assert!(!at(6_000_000_321, 5_000_000_000).slept_since(before));
        assert!(!at(6_000_000_000, 5_000_000_321).slept_since(before));
        assert!(at(6_100_000_000, 5_000_000_000).slept_since(before));
    }

    #[test]
    fn a_moment_survives_its_own_writing() {
        let moment = Moment::from_nanos(12_345_678_901);
        assert_eq!(Moment::try_from(moment.to_string()), Ok(moment));
    }
}
