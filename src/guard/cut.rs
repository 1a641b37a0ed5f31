//! The cut: between this host and named servers no TCP passes any more, whichever process holds the sockets (protocol 1.7 step 3 b).
//!
//! A cleared `primary_conninfo` and a walreceiver that is gone prove too little: the startup process may be about to start one with the
//! former setting (EXP-16). One nftables table per node holds what is cut, and is replaced as a whole, in one transaction of the program `nft`.

use super::{
    GuardSettings,
    errand::{Errand, Found},
    instance::Ticket,
    reaper, resolve,
};
use crate::model::{instance::Cut, node::Address};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    path::Path,
    process::{Child, Output, Stdio},
    time::Duration,
};

/// Where the program may be; a guard's `PATH` says little.
const PROGRAMS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// So long it may take. One that hangs (another program holds the kernel's lock on the rules) is killed; whether it has cut is not known then.
const LIMIT: Duration = Duration::from_secs(5);

/// The program `nft` of this host, if it is here.
pub fn program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|path| Path::new(path).exists())
}

/// Each server that is cut off, by the addresses that it has or had.
pub(super) type Known = Vec<(Address, BTreeSet<SocketAddr>)>;

/// Why a cut was not made; what was cut before still is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Refused {
    pub(super) why: String,
    /// It cannot be made here at all, for now.
    pub(super) unable: bool,
    /// It may have been made all the same.
    pub(super) unknown: bool,
}

/// What is cut, and the errand that changes it.
pub(super) struct Wall {
    table: String,
    cut: Cut,
    known: Known,
    work: Option<(Option<Ticket>, BTreeSet<Address>, Errand)>,
}

impl Wall {
    /// Finds out whether this host can be cut off at all. `clear`: nothing of PostgreSQL lives, so what a former guard has left is removed.
    pub(super) fn new(settings: &GuardSettings, clear: bool) -> Self {
        let mut wall = Self { table: table(settings), cut: Cut::Unknown, known: Known::new(), work: None };
        if clear && let Err(why) = wall.send(None, BTreeSet::new(), settings) {
            wall.cut = Cut::Unable { why };
        }
        wall
    }

    /// As the status tells it. While a change is made neither the former state is sure nor the new one: whoever asked for it may be gone.
    pub(super) fn status(&self) -> Cut {
        if matches!(self.work, Some((Some(_), _, _))) { Cut::Unknown } else { self.cut.clone() }
    }

    /// From now on nothing passes between this host and `from`, and everything else does. Its answer comes from [`Self::turn`].
    pub(super) fn change(&mut self, ticket: Ticket, from: BTreeSet<Address>, settings: &GuardSettings) -> Result<(), String> {
        match &self.work {
            Some((Some(_), _, _)) => Err("another cut is being made".to_owned()),
            Some((None, _, _)) => Err("the guard is finding out whether it can cut: ask again".to_owned()),
            None => self.send(Some(ticket), from, settings),
        }
    }

    fn send(&mut self, ticket: Option<Ticket>, from: BTreeSet<Address>, settings: &GuardSettings) -> Result<(), String> {
        let errand = Errand::cut(&self.table, &from, &self.known, &settings.data_dir)?;
        self.work = Some((ticket, from, errand));
        Ok(())
    }

    /// What to wait for.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.work.as_ref().map(|(_, _, errand)| errand.channel())
    }

    /// The errand's child, which is none of PostgreSQL's.
    pub(super) fn errand(&self) -> Option<Pid> {
        self.work.as_ref().map(|(_, _, errand)| errand.pid)
    }

    /// Takes in the errand's outcome, if it has one; never waits.
    pub(super) fn turn(&mut self) -> Option<(Ticket, Result<(), String>)> {
        let outcome = self.work.as_ref()?.2.outcome()?;
        let (ticket, from, _) = self.work.take()?;
        let result = match outcome {
            Ok((Found { refused: Some(Refused { why, unable, unknown }), .. }, _)) => {
                if unknown {
                    self.cut = Cut::Unknown;
                }
                if unable && !matches!(&self.cut, Cut::From(from) if !from.is_empty()) {
                    self.cut = Cut::Unable { why: why.clone() };
                }
                Err(why)
            }
            Ok((Found { cut, .. }, _)) => {
                tracing::info!(addresses = ?cut, "cut off");
                (self.cut, self.known) = (Cut::From(from), cut);
                Ok(())
            }
            Err(why) => {
                self.cut = Cut::Unknown;
                Err(why)
            }
        };
        Some((ticket?, result))
    }
}

/// The table's name. Both names are `[a-z0-9-]`, and so is what `nft` takes for one behind its first letter.
fn table(settings: &GuardSettings) -> String {
    format!("pgbaton_{}_{}", settings.cluster, settings.node)
}

/// Cuts this host off from these servers: by every address that their names have, by those that they had when they were cut off first, and
/// by those that walreceivers of `data_dir` were connected to then. Returns all of them.
pub(super) fn put(table: &str, from: &BTreeSet<Address>, known: &Known, data_dir: &Path) -> Result<Known, Refused> {
    let hosts = from.iter().map(|address| address.host.as_str()).collect();
    let resolved = resolve::all(hosts, resolve::LIMIT, resolve::system);
    let all = addresses(from, known, &resolved, || peers_of_walreceivers(data_dir))?;
    nft(&script(table, &all.iter().flat_map(|(_, addresses)| addresses.iter().copied()).collect()))?;
    Ok(all)
}

/// Each server with the addresses to cut, whatever the resolver said of its name: it may be gone with the host, or may be late.
///
/// One that was cut off before has no `peers` added: since then a walreceiver may have found another server, which is to stay within reach.
fn addresses(
    from: &BTreeSet<Address>,
    known: &Known,
    resolved: &BTreeMap<String, resolve::Answer>,
    peers: impl Fn() -> BTreeSet<SocketAddr>,
) -> Result<Known, Refused> {
    let mut all = Known::new();
    let mut now = None;
    for address in from {
        let answer = resolved.get(&address.host);
        let mut addresses: BTreeSet<SocketAddr> = answer
            .into_iter()
            .flatten()
            .flatten()
            .copied()
            .map(|mut found| {
                found.set_port(address.port);
                found
            })
            .collect();
        match known.iter().find(|(before, _)| before == address) {
            Some((_, before)) => addresses.extend(before),
            None => addresses.extend(now.get_or_insert_with(&peers).iter()),
        }
        if addresses.is_empty() {
            let failed = answer.and_then(|answer| answer.as_ref().err()).map_or("there is none", String::as_str);
            return Err(Refused { why: format!("find the addresses of {}: {failed}", address.host), unable: false, unknown: false });
        }
        all.push((address.clone(), addresses));
    }
    Ok(all)
}

/// The whole table anew; where nothing is cut it goes again at once, and shows that it could have been made.
fn script(table: &str, cut: &BTreeSet<SocketAddr>) -> String {
    let mut text = format!("add table inet {table}\ndelete table inet {table}\n");
    let of = |v4: bool| {
        let chosen = cut.iter().filter(|address| address.is_ipv4() == v4);
        let texts: Vec<String> = chosen.map(|address| format!("{} . {}", address.ip(), address.port())).collect();
        if texts.is_empty() { String::new() } else { format!(" elements = {{ {} }};", texts.join(", ")) }
    };
    let _ = write!(
        text,
        "table inet {table} {{
  set cut4 {{ type ipv4_addr . inet_service;{} }}
  set cut6 {{ type ipv6_addr . inet_service;{} }}
  chain leaves {{
    type filter hook output priority -310; policy accept;
    ip daddr . tcp dport @cut4 reject with tcp reset
    ip6 daddr . tcp dport @cut6 reject with tcp reset
  }}
  chain comes {{
    type filter hook input priority -310; policy accept;
    ip saddr . tcp sport @cut4 reject with tcp reset
    ip6 saddr . tcp sport @cut6 reject with tcp reset
  }}
}}
",
        of(true),
        of(false)
    );
    if cut.is_empty() {
        let _ = writeln!(text, "delete table inet {table}");
    }
    text
}

fn nft(script: &str) -> Result<(), Refused> {
    let unable = |why: String| Refused { why, unable: true, unknown: false };
    let unknown = |why: String| Refused { why, unable: false, unknown: true };
    let program = program().ok_or_else(|| unable("there is no program `nft` here (Debian package nftables)".to_owned()))?;
    let failed = |error: std::io::Error| unknown(format!("{program}: {error}"));
    #[expect(
        clippy::disallowed_methods,
        reason = "an errand's own child: it ends with what it was asked for, and nobody else waits for it"
    )]
    let mut command = std::process::Command::new(program);
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(failed)?;
    }
    let output = within(child, LIMIT).map_err(failed)?.ok_or_else(|| unknown(format!("{program} did not end within {LIMIT:?}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = format!("{program}: {}", said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it failed and said nothing"));
    // One that was ended by a signal has said nothing about this host.
    Err(if output.status.code().is_some() { unable(why) } else { unknown(why) })
}

/// What a child said that ended by itself; `None`: it had to be killed, as it did not in time.
fn within(mut child: Child, limit: Duration) -> std::io::Result<Option<Output>> {
    let mut pause = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    while child.try_wait()?.is_none() {
        if waited >= limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        waited += pause;
        pause = (pause * 5 / 4).min(Duration::from_millis(50));
    }
    child.wait_with_output().map(Some)
}

/// Where the walreceivers of `data_dir` are connected to, as the kernel knows it: a name may mean another address by now.
fn peers_of_walreceivers(data_dir: &Path) -> BTreeSet<SocketAddr> {
    let receivers = reaper::seen_of_data_dir(data_dir).into_iter().filter(|pid| {
        // "postgres: walreceiver streaming 0/3000148", with cluster_name before it where there is one.
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| String::from_utf8_lossy(&title).contains(": walreceiver"))
    });
    receivers.flat_map(|pid| peers_of(pid.as_raw())).collect()
}

fn peers_of(pid: i32) -> Vec<SocketAddr> {
    let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default());
    let connected: BTreeMap<u64, SocketAddr> = tables.iter().flat_map(|table| table.lines().filter_map(connection)).collect();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let inodes = links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
    inodes.filter_map(|inode| connected.get(&inode).copied()).collect()
}

/// The inode and the peer of one line of `/proc/net/tcp` or `tcp6`: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn connection(line: &str) -> Option<(u64, SocketAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = fields.get(2)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok().filter(|port| *port != 0)?;
    // Words of 32 bits in the order of this machine.
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    let ip = match words?.concat().as_slice() {
        bytes if bytes.len() == 4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        bytes => {
            let v6 = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
            v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
        }
    };
    Some((fields.get(9)?.parse().ok()?, SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_replaced() {
        let cut = ["192.0.2.1:5432", "[2001:db8::1]:5433", "192.0.2.2:5432"].map(|text| text.parse().expect("an address"));
        let text = script("pgbaton_c_n-1", &BTreeSet::from(cut));
        assert!(text.starts_with("add table inet pgbaton_c_n-1\ndelete table inet pgbaton_c_n-1\ntable inet pgbaton_c_n-1 {"), "{text}");
        assert!(text.contains("elements = { 192.0.2.1 . 5432, 192.0.2.2 . 5432 };"), "{text}");
        assert!(text.contains("elements = { 2001:db8::1 . 5433 };"), "{text}");
        let nothing = script("t", &BTreeSet::new());
        assert!(nothing.contains("reject with tcp reset") && nothing.ends_with("}\ndelete table inet t\n"), "{nothing}");
    }

    #[test]
    fn a_name_without_an_answer_is_cut_off_by_what_it_had_or_by_what_is_connected() {
        let server = |host: &str| Address { host: host.to_owned(), port: 5432 };
        let at = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect::<BTreeSet<SocketAddr>>();
        let late = || Err("no answer within 300ms".to_owned());
        let resolved = BTreeMap::from([("p".to_owned(), late()), ("q".to_owned(), late()), ("r".to_owned(), Ok(at(&["192.0.2.3:0"])))]);
        let connected = || at(&["192.0.2.2:5432"]);
        let known: Known = vec![(server("p"), at(&["192.0.2.1:5432"]))];
        let all = addresses(&BTreeSet::from(["p", "q", "r"].map(server)), &known, &resolved, connected).expect("enough is known");
        let expected: Known = vec![
            (server("p"), at(&["192.0.2.1:5432"])),
            (server("q"), at(&["192.0.2.2:5432"])),
            (server("r"), at(&["192.0.2.2:5432", "192.0.2.3:5432"])),
        ];
        assert_eq!(all, expected);
        let refused = addresses(&BTreeSet::from([server("q")]), &known, &resolved, BTreeSet::new).expect_err("nothing is left");
        assert_eq!(
            (refused.why.as_str(), refused.unable, refused.unknown),
            ("find the addresses of q: no answer within 300ms", false, false)
        );
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the programs are the test's own")]
    fn a_program_that_hangs_is_ended() {
        let start = |script: &str| {
            let mut command = std::process::Command::new("/bin/sh");
            command.args(["-c", script]).stderr(Stdio::piped()).spawn().expect("start a shell")
        };
        let said = within(start("echo no >&2; exit 3"), LIMIT).expect("it runs").expect("it ends by itself");
        assert_eq!((said.status.code(), said.stderr.as_slice()), (Some(3), b"no\n".as_slice()));
        assert_eq!(within(start("exec sleep 600"), Duration::from_millis(20)).expect("it runs"), None);
    }

    #[test]
    fn a_line_of_the_kernels_table_tells_the_peer() {
        let v4 = "   1: 0A01A8C0:9C40 0100007F:1538 01 00000000:00000000 00:00000000 00000000   109        0 4711 1 0000000000000000";
        assert_eq!(connection(v4), Some((4711, "127.0.0.1:5432".parse().expect("an address"))));
        let v6 = "   0: 00000000000000000000000001000000:9C40 B80D0120000000000000000001000000:1538 01 0:0 0:0 0 109 0 12 1 0";
        assert_eq!(connection(v6), Some((12, "[2001:db8::1]:5432".parse().expect("an address"))));
        let mapped = "   0: 0:0 0000000000000000FFFF00000100007F:1538 01 0:0 0:0 0 109 0 13 1 0";
        assert_eq!(connection(mapped), Some((13, "127.0.0.1:5432".parse().expect("an address"))));
        assert_eq!(connection("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"), None);
        assert_eq!(connection("   2: 00000000:1538 00000000:0000 0A 0:0 0:0 0 109 0 14 1 0"), None, "it listens");
    }
}
