//! Which PostgreSQL lies in `bin_dir`, and whether it fits the data directory.

use super::{Error, Settings};
use crate::model::moment::Span;

/// The oldest and the newest major version that this program knows.
pub const SUPPORTED: std::ops::RangeInclusive<u32> = 14..=18;

/// A version of PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The major version, as 15.
    pub major: u32,
    /// The whole version, as `15.18` or `18beta1`.
    pub text: String,
}

impl Version {
    /// What `postgres --version` says.
    ///
    /// # Errors
    /// [`Error::Program`] where it cannot be run, [`Error::Malformed`] where it says something else.
    pub async fn of_programs(settings: &Settings) -> Result<Self, Error> {
        let ended = settings.program("postgres").arg("--version").run(Span::from_secs(10)).await?;
        let text = ended.text();
        Self::parse(&text)
            .ok_or_else(|| Error::Malformed { what: "the answer of postgres --version".to_owned(), text: text.trim().to_owned() })
    }

    /// From a line as `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    pub fn parse(line: &str) -> Option<Self> {
        let text = line.trim().strip_prefix("postgres (PostgreSQL) ")?.split_whitespace().next()?;
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { major: digits.parse().ok()?, text: text.to_owned() })
    }

    /// Whether this program knows the version, and the data directory's `PG_VERSION` (where there is one) is the same.
    ///
    /// # Errors
    /// [`Error::Refused`], with what to do.
    pub fn check(&self, settings: &Settings, data_major: Option<u32>) -> Result<(), Error> {
        let (oldest, newest) = (SUPPORTED.start(), SUPPORTED.end());
        if !SUPPORTED.contains(&self.major) {
            let text = &self.text;
            return Err(Error::Refused(format!("use PostgreSQL {text}: versions {oldest} to {newest} are supported")));
        }
        match data_major {
            Some(major) if major != self.major => Err(Error::Refused(format!(
                "start PostgreSQL {} on {}: the data directory was made by version {major} (set [postgres] bin_dir to that version's \
                 programs, or upgrade the data directory with pg_upgrade)",
                self.text,
                settings.data_dir.display()
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_and_unreleased_versions_are_understood() {
        let parse = |line: &str| Version::parse(line).map(|version| (version.major, version.text));
        let debian = parse("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n");
        assert_eq!(debian, Some((15, "15.18".to_owned())));
        assert_eq!(parse("postgres (PostgreSQL) 18beta1"), Some((18, "18beta1".to_owned())));
        assert_eq!(parse("postgres (PostgreSQL) 19devel"), Some((19, "19devel".to_owned())));
        assert_eq!(parse("psql (PostgreSQL) 15.1"), None);
    }
}
