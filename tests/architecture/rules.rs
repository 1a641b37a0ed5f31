//! The difference between what the sources use and what the table allows.

use super::{
    SourceFile,
    source::{self, Token, UsedPath},
    table::{EMPTY_NAMES, EXCEPTIONS, HOMES, Layer, NOT_PURE_PATHS, NOT_PURE_WORDS, PURE_FILES, ROOMS, Room},
};

/// Everything that is not as the table says, one a line.
pub(crate) fn violations(files: &[SourceFile]) -> Vec<String> {
    files.iter().flat_map(check).collect()
}

fn check(file: &SourceFile) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    found.extend(empty_name(&file.path));
    let tokens = source::tokens(&file.text);
    let paths = source::paths(&tokens);
    let is_root = matches!(file.path.as_str(), "lib.rs" | "main.rs");
    let Some(room) = room_of(&file.path) else {
        if is_root {
            found.extend(homeless(file, &paths));
        } else {
            found.push(format!("src/{}: is in no row of tests/architecture/table.rs", file.path));
        }
        return found;
    };
    found.extend(front_page(file, room));
    // Test modules of their own are no part of the product.
    if is_test_file(&file.path) {
        return found;
    }
    found.extend(arrows(file, room, &paths));
    found.extend(homeless(file, &paths));
    if room.layer == Layer::Pure || PURE_FILES.iter().any(|pure| is_below(&file.path, pure)) {
        found.extend(impure(file, &tokens, &paths));
    }
    found
}

fn room_of(path: &str) -> Option<&'static Room> {
    let name = path.split('/').next().unwrap_or_default().trim_end_matches(".rs");
    ROOMS.iter().find(|room| room.name == name)
}

fn is_test_file(path: &str) -> bool {
    path.split('/').skip(1).any(|part| part == "tests" || part == "tests.rs")
}

/// Whether `path` is the file or folder `place`, written without `.rs`.
fn is_below(path: &str, place: &str) -> bool {
    let bare = path.trim_end_matches(".rs");
    bare == place || bare.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
}

fn empty_name(path: &str) -> Option<String> {
    let bare = path.trim_end_matches(".rs");
    let bad = bare.split('/').find(|part| EMPTY_NAMES.contains(part))?;
    Some(format!("src/{path}: the name {bad:?} says nothing about what is inside"))
}

/// A room's front page begins with its layer.
fn front_page(file: &SourceFile, room: &Room) -> Option<String> {
    let is_front_page = file.path == format!("{}/mod.rs", room.name) || file.path == format!("{}.rs", room.name);
    let expected = format!("//! {}. ", room.layer.word());
    (is_front_page && !file.text.starts_with(&expected)).then(|| format!("src/{}:1: does not begin with {expected:?}", file.path))
}

/// Uses of other rooms that the table does not name.
fn arrows(file: &SourceFile, room: &Room, paths: &[UsedPath]) -> Vec<String> {
    let more = EXCEPTIONS.iter().filter(|(place, _)| is_below(&file.path, place)).flat_map(|(_, rooms)| *rooms);
    let allowed: Vec<&str> = room.may_use.iter().chain(more).copied().collect();
    let mut found = Vec::new();
    for path in paths {
        let Some(target) = within_crate(&file.path, &path.segments) else { continue };
        let Some(other) = target.first().filter(|name| ROOMS.iter().any(|room| room.name == name.as_str())) else { continue };
        let used = target.join("::");
        let named = |may: &str| used == may || used.strip_prefix(may).is_some_and(|rest| rest.starts_with("::"));
        if other != room.name && !allowed.iter().any(|may| named(may)) {
            found.push(format!("src/{}:{}: {} may not use crate::{used}", file.path, path.line, room.name));
        }
    }
    found
}

/// The path from the crate's root, where it is one of ours.
fn within_crate(file: &str, segments: &[String]) -> Option<Vec<String>> {
    match segments.first()?.as_str() {
        "crate" => Some(segments[1..].to_vec()),
        "super" => {
            let supers = segments.iter().take_while(|segment| *segment == "super").count();
            let module: Vec<&str> = file.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
            let kept = module.len().checked_sub(supers)?;
            Some(module[..kept].iter().map(|part| (*part).to_owned()).chain(segments[supers..].iter().cloned()).collect())
        }
        _ => None,
    }
}

/// How paths into this crate begin.
const OWN: [&str; 3] = ["crate", "super", "self"];

/// Foreign crates outside of their homes.
fn homeless(file: &SourceFile, paths: &[UsedPath]) -> Vec<String> {
    let mut found = Vec::new();
    // `use crate::telemetry::metrics` makes `metrics` a name of ours.
    let ours = |name: &str| {
        paths.iter().any(|path| OWN.contains(&path.segments[0].as_str()) && path.segments.last().is_some_and(|last| last == name))
    };
    for path in paths {
        let Some((name, homes)) = HOMES.iter().find(|(name, _)| path.segments[0] == *name) else { continue };
        if !ours(name) && !homes.iter().any(|home| is_below(&file.path, home)) {
            found.push(format!("src/{}:{}: {name} lives in {}", file.path, path.line, homes.join(", ")));
        }
    }
    found
}

/// What a pure file may not hold.
fn impure(file: &SourceFile, tokens: &[Token], paths: &[UsedPath]) -> Vec<String> {
    let mut found = Vec::new();
    for path in paths {
        let used = path.segments.join("::");
        let bad =
            NOT_PURE_PATHS.iter().find(|(start, _)| used == *start || used.strip_prefix(start).is_some_and(|rest| rest.starts_with("::")));
        if let Some((start, why)) = bad {
            found.push(format!("src/{}:{}: {start} in a pure file: it {why}", file.path, path.line));
        }
    }
    for token in tokens {
        if let Some((word, why)) = NOT_PURE_WORDS.iter().find(|(word, _)| token.text == *word) {
            found.push(format!("src/{}:{}: {word} in a pure file: it {why}", file.path, token.line));
        }
    }
    found
}
