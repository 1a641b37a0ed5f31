//! The catalogue of scenarios that the decisions alone can be tried on: which test, golden, fault or broken rule covers each, and what is
//! still owed. `UPDATE=1 cargo test --test scenarios` writes docs/src/scenarios.md.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

const TABLE: &str = include_str!("table.txt");
const PAGE: &str = "docs/src/scenarios.md";

/// What covers a scenario, by kind and name.
struct Cover<'a> {
    kind: &'a str,
    name: &'a str,
}

/// One row: number, words, covers.
struct Row<'a> {
    number: u32,
    words: &'a str,
    covers: Vec<Cover<'a>>,
}

fn rows() -> Vec<Row<'static>> {
    TABLE.lines().map(row).collect()
}

fn row(line: &'static str) -> Row<'static> {
    let mut parts = line.split(" | ");
    let number = parts.next().unwrap().parse().unwrap();
    let words = parts.next().unwrap();
    let covers = parts.next().unwrap().split("; ").map(|cover| cover.split_once(' ').unwrap());
    Row { number, words, covers: covers.map(|(kind, name)| Cover { kind, name }).collect() }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below, with its text.
fn texts(below: &Path, ending: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(texts(&path, ending));
        } else if path.extension().is_some_and(|extension| extension == ending) {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found.sort();
    found
}

/// What may cover a scenario: every source but these, which are about the list itself.
fn sources() -> Vec<String> {
    let own = root().join("tests/scenarios");
    let all = ["tests", "src"].into_iter().flat_map(|folder| texts(&root().join(folder), "rs"));
    all.filter(|(path, _)| !path.starts_with(&own)).map(|(_, text)| text).collect()
}

/// The tests whose comments name a scenario, by its number.
fn named() -> BTreeMap<u32, Vec<String>> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for text in sources() {
        let mut numbers = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(comment) = line.strip_prefix("///") {
                numbers.extend(numbers_in(comment));
            } else if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
                let name = rest.split('(').next().unwrap_or_default();
                numbers.drain(..).for_each(|number| found.entry(number).or_default().push(name.to_owned()));
            } else if !line.starts_with('#') {
                numbers.clear();
            }
        }
    }
    found
}

/// `Scenarios 30 to 32: …`, `Scenario 5, 24 and EXP-18: …`; the list ends with the first word that is none of it.
fn numbers_in(comment: &str) -> Vec<u32> {
    let Some((_, list)) = comment.split_once("cenario") else { return Vec::new() };
    let list = list.trim_start_matches('s').split([':', ';', '.']).next().unwrap_or_default();
    let number = |word: &str| word.parse::<u32>().ok();
    let listed = |word: &&str| number(word).is_some() || ["to", "and"].contains(word);
    let words: Vec<&str> = list.split([' ', ',']).filter(|word| !word.is_empty()).take_while(listed).collect();
    let mut found: Vec<u32> = words.iter().filter_map(|word| number(word)).collect();
    for three in words.windows(3).filter(|three| three[1] == "to") {
        if let (Some(first), Some(last)) = (number(three[0]), number(three[2])) {
            found.extend(first + 1..last);
        }
    }
    found
}

/// Whether what a row names is there: a row must not outlive its test.
fn exists(cover: &Cover, sources: &str, goldens: &str, faults: &str, mutations: &str) -> bool {
    match cover.kind {
        "golden" => goldens.contains(&format!("\n== {}", cover.name)) || goldens.starts_with(&format!("== {}", cover.name)),
        "test" => sources.contains(&format!("fn {}(", cover.name)) || sources.contains(&format!("mod {}", cover.name)),
        "swarm" => cover.name.split(' ').all(|fault| faults.contains(&format!("    Fault::{fault},"))),
        // One that is only searched for is no proof.
        "mutation" => {
            mutations.lines().any(|line| line.contains(&format!("    broken(Mutation::{},", cover.name)) && !line.ends_with(", 0),"))
        }
        "owed" => true,
        _ => false,
    }
}

fn page() -> String {
    let named = named();
    let rows = rows();
    let owed = rows.iter().filter(|row| row.covers.iter().all(|cover| cover.kind == "owed")).count();
    let mut text = format!(
        "# Scenarios\n\n\
         What has gone wrong elsewhere, as far as it can be tried on the decisions alone, and what tries it here. *Swarm*: these faults are drawn\n\
         in the simulator, with all its oracles. *Golden*: a scripted decision in `tests/decide`. *Mutation*: the rule is broken on purpose, and an\n\
         oracle notices. Written by `UPDATE=1 cargo test --test scenarios`.\n\n\
         {} of {} are covered, {owed} wait for what they are about.\n\n\
         | # | scenario | tried by | owed |\n| --- | --- | --- | --- |\n",
        rows.len() - owed,
        rows.len()
    );
    for row in &rows {
        let mut by: Vec<String> = Vec::new();
        for cover in row.covers.iter().filter(|cover| cover.kind != "owed") {
            by.push(format!("{} {}", cover.kind, cover.name));
        }
        by.extend(named.get(&row.number).into_iter().flatten().map(|name| format!("test {name}")));
        let owed: Vec<&str> = row.covers.iter().filter(|cover| cover.kind == "owed").map(|cover| cover.name).collect();
        // Writing into a string cannot fail.
        let _ = writeln!(text, "| {} | {} | {} | {} |", row.number, row.words, by.join("; "), owed.join(", "));
    }
    text
}

#[test]
fn what_covers_a_scenario_is_there() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let sources = sources().concat();
    let goldens: String = texts(&root().join("tests/decide"), "txt").into_iter().map(|(_, text)| text).collect();
    let (faults, mutations) = (read("src/sim/faults/swarms.rs"), read("tests/simulation.rs"));
    let rows = rows();
    let missing: Vec<String> = rows
        .iter()
        .flat_map(|row| row.covers.iter().map(move |cover| (row.number, cover)))
        .filter(|(_, cover)| !exists(cover, &sources, &goldens, &faults, &mutations))
        .map(|(number, cover)| format!("{number}: {} {}", cover.kind, cover.name))
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(rows.windows(2).all(|two| two[0].number < two[1].number), "each number once, in order");
}

#[test]
fn the_page_shows_the_table() {
    let (path, page) = (root().join(PAGE), page());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    assert!(fs::read_to_string(&path).is_ok_and(|there| there == page), "{PAGE} is stale: UPDATE=1 cargo test --test scenarios");
}

#[test]
fn a_comment_names_scenarios_by_a_list_of_numbers_alone() {
    for (comment, numbers) in [
        (" Scenarios 30 to 32: a register checker", vec![30, 32, 31]),
        (" Scenario 5, 24 and EXP-18: nobody of ours", vec![5, 24]),
        (" Scenarios 137, 145, 149; EXP-27", vec![137, 145, 149]),
        (" EXP-1 and scenario 10: a busy backend", vec![10]),
        (" Scenario 219's and 16 J's tool: a copied machine", vec![]),
        (" nobody new is let in (scenario 124)", vec![]),
    ] {
        assert_eq!(numbers_in(comment), numbers, "{comment}");
    }
}
