//! The addresses of hosts by their names, asked for under a limit.
//!
//! What takes a primary may take the resolver with it, and then the C library waits ten seconds and more for each name.

use crate::{clock, model::moment::Span};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::mpsc,
    thread,
};

/// So long names are waited for, all of them together.
pub(super) const LIMIT: Span = Span::from_millis(300);

/// What the resolver said of a name, with port 0; or why it said nothing.
pub(super) type Answer = Result<BTreeSet<SocketAddr>, String>;

/// Asks the system's resolver.
pub(super) fn system(host: &str) -> io::Result<BTreeSet<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.collect())
}

/// Each of these hosts, by `lookup`: names at the same time, each once, in a thread of its own; addresses are what they are.
///
/// A thread whose answer does not come within `limit` is left alone. For an errand, of which there is one at a time, and which takes its
/// threads with it when it ends: so they never pile up.
pub(super) fn all(hosts: BTreeSet<&str>, limit: Span, lookup: fn(&str) -> io::Result<BTreeSet<SocketAddr>>) -> BTreeMap<String, Answer> {
    let until = clock::now().mono.plus(limit);
    let (answered, answers) = mpsc::sync_channel(hosts.len());
    let mut found: BTreeMap<String, Answer> = BTreeMap::new();
    let mut asked = 0;
    for host in hosts {
        let host = host.to_owned();
        if let Ok(address) = host.parse::<IpAddr>() {
            found.insert(host, Ok(BTreeSet::from([SocketAddr::new(address, 0)])));
            continue;
        }
        let (answered, name) = (answered.clone(), host.clone());
        let ask = move || {
            let answer = lookup(&name).map_err(|error| error.to_string());
            // Nobody waits for it any more where this fails.
            let _ = answered.send((name, answer));
        };
        let answer = match thread::Builder::new().spawn(ask) {
            Ok(_) => {
                asked += 1;
                format!("no answer within {limit}")
            }
            Err(error) => format!("start a thread: {error}"),
        };
        found.insert(host, Err(answer));
    }
    for _ in 0..asked {
        let Ok((name, answer)) = answers.recv_timeout(until.since(clock::now().mono).to_std()) else { break };
        found.insert(name, answer);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    /// How often the resolver that hangs was asked.
    static ASKED: AtomicUsize = AtomicUsize::new(0);

    fn lookup(host: &str) -> io::Result<BTreeSet<SocketAddr>> {
        match host {
            "quick" => Ok(BTreeSet::from([SocketAddr::from(([192, 0, 2, 1], 0))])),
            "nobody" => Err(io::Error::other("no such name")),
            _ => {
                ASKED.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_secs(20));
                Err(io::Error::other("too late"))
            }
        }
    }

    #[test]
    fn names_that_hang_are_not_waited_for_and_addresses_are_not_asked_for() {
        let before = clock::now().mono;
        let hosts = BTreeSet::from(["hangs", "hangs-too", "nobody", "quick", "192.0.2.7", "2001:db8::7"]);
        let found = all(hosts, Span::from_millis(300), lookup);
        assert!(clock::now().mono.since(before) < Span::from_secs(10));
        let address = |text: &str| Ok(BTreeSet::from([SocketAddr::new(text.parse().expect("address"), 0)]));
        let expected = [
            ("192.0.2.7", address("192.0.2.7")),
            ("2001:db8::7", address("2001:db8::7")),
            ("hangs", Err("no answer within 300ms".to_owned())),
            ("hangs-too", Err("no answer within 300ms".to_owned())),
            ("nobody", Err("no such name".to_owned())),
            ("quick", address("192.0.2.1")),
        ];
        assert_eq!(found, expected.map(|(host, answer)| (host.to_owned(), answer)).into());
        assert_eq!(ASKED.load(Ordering::Relaxed), 2, "no thread for an address");
    }
}
