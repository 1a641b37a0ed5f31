//! The marker of a rewind, in the state directory: how far the newest one has come.

use super::{Error, Settings, durable};
use crate::{
    clock,
    model::node::{DataIncarnation, Incarnation},
};
use std::{fmt, fs, io, path::PathBuf};

/// What the marker says. An agent of an older version takes all but [`Marked::Done`] for unfinished, as this one does what it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// pg_rewind is about to change the directory, or has begun to. An empty file.
    Unfinished,
    /// pg_rewind has ended well. What it wrote may be in this machine's memory alone: it counts as long as that boot lasts.
    /// `ended <life> <boot>`.
    Ended {
        /// The life of the data that it ended.
        life: DataIncarnation,
        /// The kernel's `boot_id`.
        boot: Incarnation,
    },
    /// All of it is on disk. `<life>`.
    Done {
        /// The life of the data that it ended.
        life: DataIncarnation,
    },
}

impl Marked {
    fn parse(text: &str) -> Self {
        let words: Vec<&str> = text.split_whitespace().collect();
        let known = match words.as_slice() {
            [life] => life.parse().ok().map(|life| Self::Done { life }),
            ["ended", life, boot] => life.parse().ok().zip(boot.parse().ok()).map(|(life, boot)| Self::Ended { life, boot }),
            _ => None,
        };
        known.unwrap_or(Self::Unfinished)
    }

    /// Whether nothing is left to be done for this life of the data.
    pub(super) fn is_done(&self, of: &DataIncarnation) -> bool {
        matches!(self, Self::Done { life } if life == of)
    }

    /// Whether pg_rewind has ended for this life of the data, in this boot of the machine.
    pub(super) fn is_to_be_finished(&self, of: &DataIncarnation) -> bool {
        matches!(self, Self::Ended { life, boot } if life == of && clock::boot_id().as_ref() == Some(boot))
    }
}

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfinished => Ok(()),
            Self::Ended { life, boot } => write!(f, "ended {life} {boot}"),
            Self::Done { life } => write!(f, "{life}"),
        }
    }
}

/// What it says; `None` when there is none.
///
/// # Errors
/// When the state directory cannot be read.
pub(super) fn read(settings: &Settings) -> Result<Option<Marked>, Error> {
    let path = path(settings);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(Marked::parse(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", &path)(error)),
    }
}

/// Writes it durably.
///
/// # Errors
/// When the state directory cannot be written.
pub(super) fn write(settings: &Settings, marked: &Marked) -> Result<(), Error> {
    let path = path(settings);
    durable::write(&path, marked.to_string().as_bytes(), 0o600).map_err(Error::file("write", &path))
}

/// Where it lies.
pub(super) fn path(settings: &Settings) -> PathBuf {
    settings.state_dir.join("rewind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_one_that_is_not_understood_is_unfinished() {
        let life: DataIncarnation = "000000a1".parse().expect("a life");
        let boot: Incarnation = "7c1e2c1a-0001-4a2b-8c3d-000000000001".parse().expect("a boot");
        let ended = Marked::Ended { life: life.clone(), boot };
        for marked in [Marked::Unfinished, ended.clone(), Marked::Done { life: life.clone() }] {
            assert_eq!(Marked::parse(&marked.to_string()), marked);
        }
        assert_eq!(Marked::parse("000000a1\n"), Marked::Done { life: life.clone() });
        for text in ["ended", "ended 000000a1", "ended 000000a1 x y", "begun 000000a1 x", "000000a1 x"] {
            assert_eq!(Marked::parse(text), Marked::Unfinished, "{text:?}");
        }
        let here = Marked::Ended { life: life.clone(), boot: clock::boot_id().expect("a boot") };
        assert!(here.is_to_be_finished(&life) && !here.is_to_be_finished(&"000000a2".parse().expect("a life")));
        assert!(!ended.is_to_be_finished(&life), "another boot");
    }
}
