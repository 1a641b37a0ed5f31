//! Help, as it is printed. `INSTA_UPDATE=always` rewrites it.

use super::host::run;

#[test]
fn help_is_as_it_was_written() {
    let verbs: [&[&str]; 23] = [
        &[],
        &["list"],
        &["status"],
        &["why"],
        &["history"],
        &["failover"],
        &["pause"],
        &["resume"],
        &["acknowledge"],
        &["remove"],
        &["config"],
        &["config", "show"],
        &["config", "apply"],
        &["config", "check"],
        &["config", "explain"],
        &["etcd"],
        &["etcd", "recover"],
        &["dsn"],
        &["doctor"],
        &["agent"],
        &["guard"],
        &["demo"],
        &["simulate"],
    ];
    for verb in verbs {
        let ran = run(&[verb, &["--help"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{verb:?}");
        let name = if verb.is_empty() { "top".to_owned() } else { verb.join("_") };
        insta::assert_snapshot!(name, ran.stdout);
    }
}

/// `--help` and the manual say the same.
#[test]
fn every_exit_code_is_in_the_help_and_in_the_manual() {
    let manual = include_str!("../../docs/src/exit-codes.md");
    let help = run(&["--help"]).stdout;
    for (code, meaning) in pgbaton::cli::exit::TABLE {
        assert!(help.contains(&format!("  {}  {meaning}", code as u8)), "{meaning}");
        assert!(manual.contains(&format!("| {} | {meaning}", code as u8)), "{meaning}");
    }
    assert!(run(&["etcd", "recover", "--help"]).stdout.contains("ends with 4"));
    for verb in ["status", "doctor", "demo", "simulate"] {
        assert!(run(&[verb, "--help"]).stdout.to_lowercase().contains("ends with 8"), "{verb}");
    }
}

#[test]
fn hidden_verbs_are_not_offered() {
    let help = run(&["--help"]).stdout;
    for hidden in ["guard", "lab-init", "wal-fetch"] {
        assert!(!help.contains(&format!("  {hidden}")), "{hidden}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for wrong in [&["nonsense"][..], &["list", "--nonsense"], &["remove"], &["list", "-o", "yaml"], &["list", "--interval", "0"], &[]] {
        let ran = run(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong:?}");
        assert!(!ran.stderr.is_empty());
    }
}

#[test]
fn verbs_that_need_a_node_say_how_to_name_one() {
    let ran = run(&["list"]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("--config") && ran.stderr.contains("--url"), "{}", ran.stderr);
    let ran = run(&["list", "--url", "10.0.0.1:8008"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("http://host:port"), "{}", ran.stderr);
}
