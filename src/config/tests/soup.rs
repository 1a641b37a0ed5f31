//! Files that nobody writes.

use super::FULL;
use crate::config::{check::check_text, policy_file};
use proptest::prelude::*;
use std::path::Path;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_soup_of_bytes_makes_it_panic(soup in ".{0,200}") {
        let _ = check_text(Path::new("node.toml"), &soup, false);
        let _ = policy_file::check_policy(Path::new("policy.toml"), &soup);
    }

    #[test]
    fn no_broken_file_makes_it_panic(at in 0..FULL.len(), length in 0..40_usize, junk in "[\\[\\]{}=\",.#a-z0-9\\n\\x00é-]{0,12}") {
        let end = FULL.floor_char_boundary((at + length).min(FULL.len()));
        let start = FULL.floor_char_boundary(at).min(end);
        let broken = format!("{}{junk}{}", &FULL[..start], &FULL[end..]);
        let _ = check_text(Path::new("node.toml"), &broken, false);
    }
}

#[test]
fn no_depth_of_nesting_overflows_the_stack() {
    let deep = 400_000;
    let texts = [
        format!("a = {}", "[".repeat(deep)),
        format!("a = {}", "{a=".repeat(deep)),
        format!("a{} = 1", ".a".repeat(deep)),
        format!("[a{}]", ".a".repeat(deep)),
        format!("cluster = \"{}\"", "x".repeat(deep)),
    ];
    for text in texts {
        let faults = check_text(Path::new("node.toml"), &text, false).map(|_| ()).expect_err("a fault");
        assert!(faults.to_string().len() < 4_000, "{} bytes of faults", faults.to_string().len());
    }
}
