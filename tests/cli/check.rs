//! `config check` and `config explain`.

use super::host::{Host, run};
use std::os::unix::fs::PermissionsExt;

#[test]
fn every_fault_is_shown_at_once_with_its_line() {
    let host = Host::new();
    let file = host.write(
        "bad.toml",
        "cluster = \"Orders\"\nnode = \"n1\"\nnonsense = 1\n[etcd]\nendpoints = [\"ftp://x\"]\n[api]\nlisten = \"nowhere\"\n[postgres]\ndata_dir = \"relative\"\n",
    );
    let ran = run(&["config", "check", &file.display().to_string()]);
    assert_eq!(ran.code, 7);
    for expected in [
        "bad.toml:1: cluster: ",
        "bad.toml:3: nonsense: ",
        "bad.toml:5: etcd.endpoints[0]: ",
        "bad.toml:7: api.listen: ",
        "bad.toml:9: postgres.data_dir: ",
    ] {
        assert!(ran.stdout.contains(expected), "{expected} in\n{}", ran.stdout);
    }
    let json = run(&["config", "check", "-o", "json", &file.display().to_string()]);
    let faults: serde_json::Value = serde_json::from_str(&json.stdout).expect("json");
    assert_eq!(faults["faults"].as_array().map(Vec::len), Some(ran.stdout.lines().count()));
    assert_eq!(faults["faults"][0]["line"], 1);
}

/// What the parser makes of a line that is no TOML is not held against the operator.
#[test]
fn a_slip_in_the_toml_is_the_only_fault_that_is_told_of_it() {
    let host = Host::new();
    let beginning = "cluster = \"orders\"\nnode = \"n1\"\n";
    for (text, line) in
        [("= 5\n", 3), ("[api]\nlisten = 127.0.0.1:8008\n", 4), ("zone = \n[etcd\n", 3), ("[etcd\nendpoints = [\"http://a:2379\"]\n", 3)]
    {
        let file = host.write("broken.toml", &format!("{beginning}{text}")).display().to_string();
        let ran = run(&["config", "check", &file]);
        assert_eq!(ran.code, 7);
        assert!(ran.stdout.contains(&format!("broken.toml:{line}: ")), "{}", ran.stdout);
        assert!(ran.stdout.lines().all(|fault| fault.ends_with("; correct the TOML here")), "{text:?}: {}", ran.stdout);
    }
    // What is wrong elsewhere is still told at once.
    let file = host.write("broken.toml", &format!("nod = 1\n{beginning}= 5\nzone = 7\n")).display().to_string();
    let ran = run(&["config", "check", &file]);
    for expected in ["broken.toml:1: nod: unknown key; did you mean", "broken.toml:4: ", "broken.toml:5: zone: the number 7"] {
        assert!(ran.stdout.contains(expected), "{expected} in\n{}", ran.stdout);
    }
    assert_eq!(ran.stdout.lines().count(), 3, "{}", ran.stdout);
}

#[test]
fn a_file_that_is_not_there_is_one_fault() {
    let ran = run(&["config", "check", "/nonexistent/x.toml"]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (7, 1));
    // The same for a verb that needs it.
    let ran = run(&["list", "--config", "/nonexistent/x.toml"]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
}

#[test]
fn a_good_file_is_well_and_the_host_is_looked_at() {
    let host = Host::new();
    let ran = host.run(&["config", "check"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{}", ran.stderr);
    let text = std::fs::read_to_string(host.path("orders.toml")).expect("read").replace("/usr/lib/postgresql/15/bin", "/nonexistent");
    let file = host.write("other.toml", &text).display().to_string();
    let ran = host.run(&["config", "check", &file]);
    assert_eq!(ran.code, 7);
    assert!(ran.stdout.contains("postgres.bin_dir: /nonexistent"), "{}", ran.stdout);
    assert_eq!(host.run(&["config", "check", "--shape-only", &file]).code, 0);
}

/// initdb and copies run as the owner, not as the one who checks: what that user cannot make fails for ever.
#[test]
fn directories_that_the_owner_cannot_make_are_told_before_the_start() {
    let host = Host::new();
    let text = std::fs::read_to_string(host.path("orders.toml")).expect("read");
    let wal = format!("wal_dir = \"{}\"\nlisten = \"127.0.0.1:5432\"", host.path("wal/here").display());
    host.write("orders.toml", &text.replace("/pg/data", "/data").replace("listen = \"127.0.0.1:5432\"", &wal));
    std::fs::set_permissions(host.path(""), std::fs::Permissions::from_mode(0o555)).expect("mode");
    let ran = host.run(&["config", "check"]);
    std::fs::set_permissions(host.path(""), std::fs::Permissions::from_mode(0o755)).expect("mode");
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    for expected in [
        "orders.toml:13: postgres.data_dir: <host>/data does not exist, and user postgres, who runs PostgreSQL, may not write in <host>: permission denied",
        "install -d -o postgres -g postgres -m 0700 <host>/data",
        ": postgres.wal_dir: <host>/wal/here does not exist, and user",
    ] {
        assert!(ran.stdout.contains(expected), "{expected} in\n{}", ran.stdout);
    }
}

#[test]
fn a_policy_is_checked_by_itself() {
    let host = Host::new();
    let file = host.write("policy.toml", "preset = \"slow\"\n[parameters]\nport = 1\n").display().to_string();
    let ran = run(&["config", "check", "--policy", &file]);
    assert_eq!((ran.code, ran.stdout.lines().count()), (7, 2), "{}", ran.stdout);
}

#[test]
fn what_is_explained_is_a_file_and_no_json() {
    let ran = run(&["config", "explain", "-o", "json"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("which is TOML"), "{}", ran.stderr);
}

#[test]
fn what_is_explained_is_a_valid_file() {
    let host = Host::new();
    for arguments in [&["config", "explain"][..], &["config", "explain", "--policy"]] {
        let file = host.write("explained.toml", &run(arguments).stdout).display().to_string();
        let kind = if arguments.len() == 3 { "--policy" } else { "--shape-only" };
        let ran = run(&["config", "check", kind, &file]);
        assert_eq!(ran.code, 0, "{}", ran.stdout);
    }
}
