//! What is wrong in a file: where, what, and what to do about it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// One thing that is wrong. Printed as `file:line: key: what; remedy`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file that has to be changed.
    pub file: PathBuf,
    /// The line, from 1; `None` where the whole file is meant.
    pub line: Option<usize>,
    /// The key as a dotted path (`etcd.endpoints[1]`); empty where the whole file is meant.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.what, self.remedy)
    }
}

/// Everything that is wrong, in the order of the file. Printed one fault a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// A single fault of a file as a whole.
    pub(super) fn of_file(file: &Path, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        let mut faults = Self::default();
        faults.push(Fault { file: file.to_owned(), line: None, key: String::new(), what: what.into(), remedy: remedy.into() });
        faults
    }

    /// The faults, in the order of file and line.
    pub fn as_slice(&self) -> &[Fault] {
        &self.0
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn push(&mut self, fault: Fault) {
        let Fault { file, line, key, what, remedy } = fault;
        self.0.push(Fault { file, line, key: shortened(key), what: shortened(what), remedy: shortened(remedy) });
    }

    pub(super) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Sorted by line within each file; the order in which the files came stays.
    pub(super) fn sorted(mut self) -> Self {
        let mut files: Vec<PathBuf> = Vec::new();
        for fault in &self.0 {
            if !files.contains(&fault.file) {
                files.push(fault.file.clone());
            }
        }
        self.0.sort_by_key(|fault| (files.iter().position(|file| *file == fault.file), fault.line));
        self
    }

    /// `value`, unless something is wrong.
    pub(super) fn or<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.is_empty() => Ok(value),
            _ => Err(self.sorted()),
        }
    }
}

/// A text that was written by mistake may be a whole other file: its beginning is enough to recognise it.
fn shortened(mut text: String) -> String {
    const LONGEST: usize = 400;
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push('…');
    }
    text
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
