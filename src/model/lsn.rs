//! Positions in the write-ahead log, and distances between them.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A position in the write-ahead log, printed as PostgreSQL prints it: `16/B374D848`.
///
/// Ordered along one history only: comparing positions of two timelines means something
/// only up to the point where they parted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "no position".
    pub const ZERO: Self = Self(0);
    /// Beyond every other.
    pub const MAX: Self = Self(u64::MAX);

    /// From the 64-bit byte position that PostgreSQL uses internally.
    pub const fn new(byte: u64) -> Self {
        Self(byte)
    }

    /// The 64-bit byte position.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How far `self` is ahead of `other`; zero where it is behind.
    pub const fn bytes_ahead_of(self, other: Self) -> Bytes {
        Bytes::new(self.0.saturating_sub(other.0))
    }

    /// The position `bytes` further on, saturating at the end of the number space.
    pub const fn plus(self, bytes: Bytes) -> Self {
        Self(self.0.saturating_add(bytes.get()))
    }

    /// Zero is PostgreSQL's "no position".
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is no log position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position (two hexadecimal numbers with a slash between, as 16/B374D848)")]
pub struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let parsed = text.split_once('/').and_then(|(high, low)| Some(half(high)? << 32 | half(low)?));
        parsed.map(Self).ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

impl TryFrom<String> for Lsn {
    type Error = NotAnLsn;

    fn try_from(text: String) -> Result<Self, NotAnLsn> {
        text.parse()
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

/// A number of bytes: of WAL, of lag, of disk. Written in configuration as `16MB`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// So many bytes.
    pub const fn new(count: u64) -> Self {
        Self(count)
    }

    /// The plain number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
        for (size, unit) in UNITS {
            if self.0 >= size {
                let tenths = (u128::from(self.0) * 10 / u128::from(size)) as u64;
                return match tenths % 10 {
                    0 => write!(f, "{} {unit}", tenths / 10),
                    rest => write!(f, "{}.{rest} {unit}", tenths / 10),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Why a text is no amount of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an amount of bytes (a whole number with B, kB, MB, GB or TB, as \"16MB\")")]
pub struct NotBytes(String);

impl FromStr for Bytes {
    type Err = NotBytes;

    fn from_str(text: &str) -> Result<Self, NotBytes> {
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "kB" | "KB" => 10,
            "MB" => 20,
            "GB" => 30,
            "TB" => 40,
            _ => return Err(NotBytes(text.to_owned())),
        };
        let count = number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
        count.map(Self).ok_or_else(|| NotBytes(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_prints_as_postgresql_prints_it() {
        assert_eq!(Lsn::new(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(Lsn::new(0x16_B374_D848)));
    }

    #[test]
    fn texts_that_are_no_position_are_refused() {
        for text in ["", "0", "/", "0/", "/0", "0/123456789", "g/0", "+1/0", "0/ 1"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_of_bytes_need_a_known_unit() {
        assert_eq!("16MB".parse(), Ok(Bytes::new(16 << 20)));
        assert_eq!("3".parse(), Ok(Bytes::new(3)));
        for text in ["", "MB", "1.5MB", "-1", "1 mb", "99999999999TB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(Bytes::new(1536).to_string(), "1.5 kB");
    }
}
