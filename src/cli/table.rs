//! What is printed for people: columns, and quantities in few letters.

use crate::model::lsn::Bytes;
use std::fmt::Write;

/// On which side a column is ragged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Columns as wide as their widest cell, two spaces apart, nothing at the end of a line. Empty cells print as `-`.
pub(super) fn columns(heads: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let cell = |row: &[String], index: usize| match row.get(index).map(String::as_str) {
        None | Some("") => "-".to_owned(),
        Some(text) => text.to_owned(),
    };
    let width = |index: usize| {
        let widest = rows.iter().map(|row| cell(row, index).chars().count()).max().unwrap_or_default();
        widest.max(heads[index].0.chars().count())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::new();
        for (index, (_, align)) in heads.iter().enumerate() {
            let width = widths[index];
            // Writing into a string cannot fail.
            let _ = match align {
                Align::Left => write!(text, "{:<width$}  ", cells[index]),
                Align::Right => write!(text, "{:>width$}  ", cells[index]),
            };
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&heads.iter().map(|(head, _)| (*head).to_owned()).collect::<Vec<_>>());
    for row in rows {
        text.push_str(&line(&(0..heads.len()).map(|index| cell(row, index)).collect::<Vec<_>>()));
    }
    text
}

/// An amount of bytes, or `?` where it is not known.
pub(super) fn bytes(count: Option<u64>) -> String {
    count.map_or_else(|| "?".to_owned(), |count| Bytes::new(count).to_string())
}

/// Milliseconds as people read them: `350ms`, `2.5s`, `12min`.
pub(super) fn millis(count: u64) -> String {
    match count {
        0 => "0s".to_owned(),
        1..1_000 => format!("{count}ms"),
        1_000..120_000 => format!("{:.1}s", count as f64 / 1_000.0),
        120_000..7_200_000 => format!("{}min", count / 60_000),
        _ => format!("{}h", count / 3_600_000),
    }
}

/// Seconds as people read them.
pub(super) fn seconds(count: f64) -> String {
    // Nothing that is printed lasts for ages; a negative number is a clock's, and prints as none.
    millis((count.max(0.0) * 1_000.0) as u64)
}

/// JSON for programs, with a newline at the end.
pub(super) fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Whether somebody still reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    There,
    Gone,
}

/// Data goes to stdout. A reader that has gone away (`| head`) is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<Reader> {
    use std::io::{ErrorKind, Write as _, stdout};
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let rows = [vec!["n1".to_owned(), "5".to_owned(), String::new()], vec!["long-name".to_owned(), "12".to_owned()]];
        let text = columns(&[("NODE", Align::Left), ("TL", Align::Right), ("NOTE", Align::Left)], &rows);
        assert_eq!(text, "NODE       TL  NOTE\nn1          5  -\nlong-name  12  -\n");
    }

    #[test]
    fn times_are_short() {
        for (count, text) in [(0, "0s"), (350, "350ms"), (2_500, "2.5s"), (120_000, "2min"), (7_200_000, "2h")] {
            assert_eq!(millis(count), text);
        }
        assert_eq!(seconds(-1.0), "0s");
    }
}
