//! The shape of a TOML file: typed values by key, each with its line, and every fault on the way collected.
//!
//! Walked by hand rather than deserialised: a derived reader stops at its first fault, and an operator at night wants them all.

use super::{
    fault::{Fault, Faults},
    secret,
};
use crate::model::lsn::Bytes;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Where each key of a file stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Places {
    file: PathBuf,
    lines: BTreeMap<String, usize>,
}

impl Places {
    /// A fault of `key`, with the line of the nearest key that is written.
    pub(super) fn fault(&self, key: &str, what: impl Into<String>, remedy: impl Into<String>) -> Fault {
        let parents = std::iter::successors(Some(key), |key| key.rfind(['.', '[']).map(|end| &key[..end]));
        let line = parents.into_iter().find_map(|key| self.lines.get(key)).copied();
        Fault { file: self.file.clone(), line, key: key.to_owned(), what: what.into(), remedy: remedy.into() }
    }
}

/// A file that is being checked: its places and what was found wrong.
pub(super) struct Reader {
    /// Where the keys stand.
    pub(super) places: Places,
    /// What is wrong so far.
    pub(super) faults: Faults,
    /// Every key that was asked for, as a dotted path.
    pub(super) asked: Vec<String>,
    /// Whether the files that this one names are opened.
    pub(super) follow: bool,
    /// Where the text could not be read as TOML: what seems missing may stand in the unread part.
    broken: Vec<Option<usize>>,
    line_starts: Vec<usize>,
}

/// One table of the file. `None` stands for a table that is not written: all its keys have their defaults.
pub(super) struct Section<'a> {
    path: String,
    table: Option<&'a DeTable<'a>>,
    asked: Vec<&'static str>,
}

/// A value with its dotted path.
pub(super) struct Entry<'a> {
    /// The dotted path.
    pub(super) path: String,
    /// The value.
    pub(super) value: &'a DeValue<'a>,
}

/// Reads a configuration file as text.
///
/// # Errors
/// One fault of the whole file: missing, a directory, unreadable, too long, not UTF-8.
pub(super) fn read_file(file: &Path) -> Result<String, Faults> {
    secret::read_text(file).map_err(|(what, remedy)| {
        let what = what.strip_prefix(&format!("{} ", file.display())).unwrap_or(&what).to_owned();
        Faults::of_file(file, what, remedy)
    })
}

/// One missing quote breaks every line after it: the first faults tell it.
const MOST_SYNTAX_FAULTS: usize = 10;

/// Parses `text` and hands its root table to `check`; faults of syntax stand in the reader before it is called.
pub(super) fn with_document<T>(
    file: &Path,
    text: &str,
    follow: bool,
    check: impl FnOnce(&mut Reader, Section<'_>) -> Option<T>,
) -> Result<T, Faults> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader::new(file, text, follow);
    reader.index("", root.get_ref());
    reader.syntax(&errors);
    let value = check(&mut reader, Section { path: String::new(), table: Some(root.get_ref()), asked: Vec::new() });
    reader.faults.or(value)
}

impl Reader {
    fn new(file: &Path, text: &str, follow: bool) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let places = Places { file: file.to_owned(), lines: BTreeMap::new() };
        Self { places, faults: Faults::default(), asked: Vec::new(), follow, broken: Vec::new(), line_starts }
    }

    fn line(&self, span: &Range<usize>) -> usize {
        self.line_starts.partition_point(|start| *start <= span.start)
    }

    /// Notes what could not be read as TOML.
    fn syntax(&mut self, errors: &[toml::de::Error]) {
        self.broken = errors.iter().map(|error| error.span().map(|span| self.line(&span))).collect();
        for (index, error) in errors.iter().take(MOST_SYNTAX_FAULTS + 1).enumerate() {
            let line = self.broken[index];
            let (what, remedy) = match index {
                MOST_SYNTAX_FAULTS => (format!("{} more faults of syntax from here on", errors.len() - index), "correct the first ones"),
                _ => (error.message().replace('\n', ", "), "correct the TOML here"),
            };
            let file = self.places.file.clone();
            self.faults.push(Fault { file, line, key: String::new(), what, remedy: remedy.to_owned() });
        }
    }

    /// Notes the line of every key below `table`.
    fn index(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(path, key.get_ref());
            let line = self.line(&key.span());
            self.index_value(path, value, line);
        }
    }

    fn index_value(&mut self, path: String, value: &Spanned<DeValue<'_>>, line: usize) {
        match value.get_ref() {
            DeValue::Table(table) => self.index(&path, table),
            DeValue::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.index_value(format!("{path}[{at}]"), item, self.line(&item.span()));
                }
            }
            _ => {}
        }
        self.places.lines.insert(path, line);
    }

    /// Notes a fault of `key`. On a line that is no TOML it would be one of what the parser made of it.
    pub(super) fn fault(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        let fault = self.places.fault(key, what, remedy);
        if fault.line.is_none() || !self.broken.contains(&fault.line) {
            self.faults.push(fault);
        }
    }

    /// Notes that nobody knows `key`. Below what could not be read it may belong to a table whose head was not.
    fn unknown(&mut self, key: &str, remedy: String) {
        let fault = self.places.fault(key, "unknown key", remedy);
        if !self.broken.iter().any(|line| *line <= fault.line) {
            self.faults.push(fault);
        }
    }

    /// Notes that `key` is missing.
    pub(super) fn missing(&mut self, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        if self.broken.is_empty() {
            self.fault(key, what, remedy);
        }
    }

    fn wrong_type(&mut self, entry: &Entry<'_>, wanted: &str, example: &str) {
        self.fault(&entry.path, format!("{} where {wanted} belongs", describe(entry.value)), format!("write it as {example}"));
    }

    /// A text.
    pub(super) fn text<'a>(&mut self, entry: &Entry<'a>) -> Option<&'a str> {
        let text = entry.value.as_str();
        if text.is_none() {
            self.wrong_type(entry, "a text", "\"…\" in double quotes");
        }
        text
    }

    /// A text that `T` accepts; its error says what is wrong, `remedy` what to do.
    pub(super) fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, entry: &Entry<'_>, remedy: &str) -> Option<T> {
        let text = self.text(entry)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(&entry.path, format!("{error}"), remedy);
                None
            }
        }
    }

    /// A quantity with its unit, which is easily forgotten.
    pub(super) fn quantity<T: FromStr<Err: std::fmt::Display>>(&mut self, entry: &Entry<'_>, example: &str) -> Option<T> {
        if entry.value.as_str().is_some() {
            return self.parsed(entry, &format!("write it as {example}"));
        }
        self.wrong_type(entry, "a text with a unit", example);
        None
    }

    /// An amount of bytes; its unit may not be left out.
    pub(super) fn bytes(&mut self, entry: &Entry<'_>, example: &str) -> Option<Bytes> {
        match entry.value.as_str() {
            Some(text) if text.ends_with(|last: char| last.is_ascii_digit()) => {
                self.fault(&entry.path, format!("{text:?} lacks a unit"), format!("write it as {example}"));
                None
            }
            _ => self.quantity(entry, example),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, entry: &Entry<'_>) -> Option<bool> {
        let value = entry.value.as_bool();
        if value.is_none() {
            self.wrong_type(entry, "true or false", "true or false, without quotes");
        }
        value
    }

    /// A whole number within `range`.
    pub(super) fn integer(&mut self, entry: &Entry<'_>, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let between = format!("a whole number from {} to {}", range.start(), range.end());
        let Some(number) = entry.value.as_integer() else {
            self.wrong_type(entry, &between, &format!("{}, without quotes", range.end()));
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).ok().and_then(|value| u32::try_from(value).ok());
        let value = value.filter(|value| range.contains(value));
        if value.is_none() {
            self.fault(&entry.path, format!("{} is out of range", number.as_str()), format!("write {between}"));
        }
        value
    }

    /// One of a few words.
    pub(super) fn word<T: Clone>(&mut self, entry: &Entry<'_>, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(entry)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.fault(&entry.path, format!("{text:?} is not known here"), format!("choose one of {}", quoted(&names)));
        }
        found
    }

    /// The items of an array.
    pub(super) fn items<'a>(&mut self, entry: &Entry<'a>) -> Option<Vec<Entry<'a>>> {
        let Some(items) = entry.value.as_array() else {
            self.wrong_type(entry, "a list", "[\"…\", \"…\"]");
            return None;
        };
        let items = items.iter().enumerate();
        Some(items.map(|(at, item)| Entry { path: format!("{}[{at}]", entry.path), value: item.get_ref() }).collect())
    }

    /// The entries of a table whose keys are the operator's own.
    pub(super) fn pairs<'a>(&mut self, entry: &Entry<'a>) -> Option<Vec<(&'a str, Entry<'a>)>> {
        let Some(table) = entry.value.as_table() else {
            self.wrong_type(entry, "a table", "{ \"…\" = \"…\" }");
            return None;
        };
        let pairs = table.iter().map(|(key, value)| {
            let key: &str = key.get_ref();
            (key, Entry { path: join(&entry.path, key), value: value.get_ref() })
        });
        Some(pairs.collect())
    }

    /// A path that does not depend on anybody's working directory.
    pub(super) fn absolute(&mut self, entry: &Entry<'_>) -> Option<PathBuf> {
        let path = self.path(entry)?;
        if !path.is_absolute() {
            self.fault(
                &entry.path,
                format!("{:?} is a relative path", path.display().to_string()),
                "write the whole path, beginning with /",
            );
            return None;
        }
        Some(path)
    }

    /// A path; a relative one is meant from the directory of this file.
    pub(super) fn beside(&mut self, entry: &Entry<'_>) -> Option<PathBuf> {
        let path = self.path(entry)?;
        Some(self.places.file.parent().map_or_else(|| path.clone(), |directory| directory.join(&path)))
    }

    fn path(&mut self, entry: &Entry<'_>) -> Option<PathBuf> {
        let text = self.text(entry)?;
        let parts = Path::new(text).components();
        if text.is_empty() || text.contains(['\n', '\0']) {
            self.fault(&entry.path, format!("{text:?} is no path"), "write a path, or remove the key");
            return None;
        }
        // Components drop a slash at the end and doubled ones, so that equal directories compare equal.
        Some(parts.collect())
    }
}

impl<'a> Section<'a> {
    /// The dotted path of `key` in this table.
    pub(super) fn path(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// The value of `key`, where it is written.
    pub(super) fn get(&mut self, key: &'static str) -> Option<Entry<'a>> {
        self.asked.push(key);
        let value = self.table?.get(key)?;
        Some(Entry { path: self.path(key), value: value.get_ref() })
    }

    /// The value of `key`; its absence is a fault.
    pub(super) fn require(&mut self, reader: &mut Reader, key: &'static str, remedy: &str) -> Option<Entry<'a>> {
        let entry = self.get(key);
        if entry.is_none() {
            reader.missing(&self.path(key), "is missing", remedy);
        }
        entry
    }

    /// The table at `key`.
    pub(super) fn section(&mut self, reader: &mut Reader, key: &'static str) -> Section<'a> {
        let entry = self.get(key);
        let table = entry.as_ref().and_then(|entry| entry.value.as_table());
        if let (Some(entry), None) = (&entry, table) {
            let path = &entry.path;
            reader.wrong_type(entry, "a table", &format!("[{path}] with its keys below it, or {key} = {{ … }}"));
        }
        Section { path: self.path(key), table, asked: Vec::new() }
    }

    /// Notes a fault for every key that nobody asked for.
    pub(super) fn finish(self, reader: &mut Reader) {
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            let key: &str = key.get_ref();
            if !self.asked.contains(&key) {
                reader.unknown(&self.path(key), suggestion(key, &self.asked));
            }
        }
        reader.asked.extend(self.asked.iter().map(|key| self.path(key)));
    }
}

fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A value as its writer would recognise it; never the text itself, which may be a secret in the wrong place.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::String(_) => "a text".into(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}

/// `"a", "b" or "c"`.
pub(super) fn quoted(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

fn suggestion(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (distance(key, name), *name)).min();
    match nearest {
        Some((steps, name)) if steps <= (key.chars().count() / 3).max(1) => format!("did you mean {name:?}?"),
        _ if known.is_empty() => "remove it".to_owned(),
        _ => format!("remove it, or use one of {}", known.join(", ")),
    }
}

/// How many letters have to be changed, added, dropped or swapped with their neighbour (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().take(64).collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut steps = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *b && to[j - 1] == *a {
                steps = steps.min(rows[i - 1][j - 1] + 1);
            }
            row.push(steps);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_is_recognised() {
        assert_eq!(suggestion("endpoins", &["endpoints", "prefix"]), "did you mean \"endpoints\"?");
        assert_eq!(suggestion("perfix", &["endpoints", "prefix"]), "did you mean \"prefix\"?");
        assert_eq!(suggestion("zebra", &["endpoints", "prefix"]), "remove it, or use one of endpoints, prefix");
    }
}
