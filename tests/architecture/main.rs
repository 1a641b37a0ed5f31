//! The house, held by a test: who may use whom, what is absent from the pure rooms, where each foreign crate lives.
//!
//! - [`source`]: what a source file uses; [`table`]: what is allowed; [`rules`]: the difference;
//! - [`planted`]: one violation of each kind, to see that it is found.

mod planted;
mod rules;
mod source;
mod table;

use std::{fs, io, path::Path};

/// A source file: its path below `src/`, and its text.
struct SourceFile {
    path: String,
    text: String,
}

impl SourceFile {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }
}

fn sources() -> io::Result<Vec<SourceFile>> {
    // Read when the test runs, so that a built test can be pointed at another checkout.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package).join("src");
    let (mut open, mut files) = (vec![root.clone()], Vec::new());
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
                files.push(SourceFile { path: name, text: fs::read_to_string(&path)? });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[test]
fn every_room_keeps_to_its_walls() {
    let files = sources().expect("src can be read");
    assert!(files.len() > 10, "only {} files found", files.len());
    let found = rules::violations(&files);
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// No file grows past this many lines.
const LONGEST: usize = 500;

#[test]
fn no_file_grows_past_its_length() {
    let found = too_long(&sources().expect("src can be read"));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn too_long(files: &[SourceFile]) -> Vec<String> {
    let lengths = files.iter().map(|file| (&file.path, file.text.lines().count()));
    let longer = lengths.filter(|(_, lines)| *lines > LONGEST);
    longer.map(|(path, lines)| format!("src/{path}: {lines} lines, more than {LONGEST}: split it by what it is about")).collect()
}
