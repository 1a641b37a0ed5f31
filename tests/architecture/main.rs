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

/// Files that were longer when the rule came, with their length. They may only shrink; who shortens one lowers its number here.
const STILL_LONGER: &[(&str, usize)] =
    &[("agent/state.rs", 670), ("model/record.rs", 631), ("sim/executor.rs", 565), ("sim/server.rs", 663)];

#[test]
fn no_file_grows_past_its_length() {
    let mut found = Vec::new();
    let files = sources().expect("src can be read");
    for file in &files {
        let lines = file.text.lines().count();
        let allowed = STILL_LONGER.iter().find(|(path, _)| *path == file.path).map(|(_, lines)| *lines);
        match allowed {
            None if lines > LONGEST => {
                found.push(format!("src/{}: {lines} lines, more than {LONGEST}: split it by what it is about", file.path))
            }
            Some(allowed) if lines > allowed => {
                found.push(format!("src/{}: {lines} lines, more than its {allowed}: it may only shrink", file.path))
            }
            Some(_) if lines <= LONGEST => found.push(format!("src/{}: {lines} lines: take it out of STILL_LONGER", file.path)),
            Some(allowed) if lines < allowed => {
                found.push(format!("src/{}: {lines} lines: lower its {allowed} in STILL_LONGER", file.path))
            }
            _ => {}
        }
    }
    for (path, _) in STILL_LONGER {
        if !files.iter().any(|file| file.path == *path) {
            found.push(format!("src/{path} is gone: take it out of STILL_LONGER"));
        }
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}
