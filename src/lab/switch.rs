//! The network between hosts: a bridge in a namespace of its own, a port a host, and what it does not carry.

use super::{
    command::{self, QUICK},
    host::{Host, Walls},
};
use anyhow::{Context, Result};
use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The switch of a lab. Its addresses are the same in every lab: no two of them share a network.
#[derive(Debug)]
pub struct Switch {
    host: Host,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By host: its number.
    ports: BTreeMap<String, u8>,
    /// By the name of what cut them.
    cuts: BTreeMap<String, Vec<Cut>>,
}

/// What does not come through, in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The sending host.
    pub from: String,
    /// The receiving host.
    pub to: String,
    /// What is lost.
    pub what: Lost,
}

/// What is lost of a direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Every frame.
    Everything,
    /// Everything but address resolution, whose loss would end the other direction too.
    Packets,
    /// TCP from or to these ports.
    Ports(Vec<u16>),
    /// Everything but TCP from or to these ports, and address resolution.
    AllBut(Vec<u16>),
}

/// The IPv4 address of the host with this number, 1–244.
pub const fn ipv4(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, 0, 10 + number))
}

/// The IPv6 address of the host with this number.
pub const fn ipv6(number: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x10 + number as u16))
}

impl Switch {
    /// A switch that is on, with no cable plugged in.
    ///
    /// # Errors
    /// When namespaces or bridges are not allowed here; nothing is left then.
    pub fn new(lab: &str, program: &Path) -> Result<Self> {
        let host = Host::new(lab, "switch", program, Walls::Namespaces, Vec::new());
        host.power_on()?;
        let switch = Self { host, state: Mutex::default() };
        // Without snooping: a bridge that has no querier would forget who wants neighbour solicitations.
        switch.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0\nlink set br0 up\n")?;
        Ok(switch)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ip(&self, batch: &str) -> Result<()> {
        self.call(&["ip", "-batch", "-"], batch).map(|_| ())
    }

    fn call(&self, argv: &[&str], input: &str) -> Result<String> {
        let mut all = self.host.network().prefix();
        all.extend(argv.iter().map(|argument| (*argument).to_owned()));
        command::run(&all, input, QUICK)
    }

    /// Plugs a host in as number `number`: its `eth0` gets that number's addresses and a hardware address that stays
    /// the same after a power cut, as a machine's does.
    ///
    /// # Errors
    /// When the host is off or plugged in already.
    pub fn plug(&self, host: &Host, number: u8) -> Result<()> {
        let pid = host.pid()?;
        self.ip(&format!(
            "link add p{number} type veth peer name eth0 address 02:70:67:62:00:{number:02x} netns {pid}\n\
             link set p{number} master br0\nlink set p{number} up\n"
        ))
        .with_context(|| format!("plug host {} in", host.name()))?;
        let (v4, v6) = (ipv4(number), ipv6(number));
        let batch = format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n");
        let mut argv = host.network().prefix();
        argv.extend(["ip", "-batch", "-"].map(str::to_owned));
        command::run(&argv, &batch, QUICK).with_context(|| format!("give host {} its addresses", host.name()))?;
        self.state().ports.insert(host.name().to_owned(), number);
        self.apply()
    }

    /// Pulls the cable: from now on nothing leaves or reaches the host, and its `eth0` is gone.
    ///
    /// # Errors
    /// When it is not plugged in.
    pub fn unplug(&self, host: &str) -> Result<()> {
        let number = self.state().ports.remove(host).with_context(|| format!("host {host} is not plugged in"))?;
        self.ip(&format!("link del p{number}\n")).with_context(|| format!("unplug host {host}"))
    }

    /// Takes a port down or up: the host sees its carrier go and come.
    ///
    /// # Errors
    /// When it is not plugged in.
    pub fn set_carrier(&self, host: &str, carrier: Carrier) -> Result<()> {
        let number = *self.state().ports.get(host).with_context(|| format!("host {host} is not plugged in"))?;
        let word = if carrier == Carrier::Up { "up" } else { "down" };
        self.ip(&format!("link set p{number} {word}\n")).with_context(|| format!("take the port of host {host} {word}"))
    }

    /// Stops carrying what `cuts` name, under this name; replaces the cuts of the same name.
    ///
    /// # Errors
    /// When the kernel does not take the rules: then the former ones stand.
    pub fn cut(&self, name: &str, cuts: Vec<Cut>) -> Result<()> {
        self.state().cuts.insert(name.to_owned(), cuts);
        self.apply()
    }

    /// Carries again what the cuts of this name stopped, where no other cut stops it.
    ///
    /// # Errors
    /// As [`Switch::cut`].
    pub fn mend(&self, name: &str) -> Result<()> {
        self.state().cuts.remove(name);
        self.apply()
    }

    /// Switches it off: nothing is carried any more.
    ///
    /// # Errors
    /// As [`Host::power_off`].
    pub fn power_off(&self) -> Result<()> {
        self.host.power_off()
    }

    fn apply(&self) -> Result<()> {
        let rules = self.state().rules();
        self.call(&["nft", "-f", "-"], &rules).context("set what the switch does not carry").map(|_| ())
    }
}

/// Whether a port has a carrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The cable carries.
    Up,
    /// It does not.
    Down,
}

impl State {
    /// The whole table, made anew: nft swaps it in one step.
    fn rules(&self) -> String {
        let mut text = String::from("table bridge lab\ndelete table bridge lab\ntable bridge lab {\n chain forward {\n  ");
        text.push_str("type filter hook forward priority 0; policy accept;\n");
        for cut in self.cuts.values().flatten() {
            let (Some(from), Some(to)) = (self.ports.get(&cut.from), self.ports.get(&cut.to)) else { continue };
            let pair = format!("  iifname \"p{from}\" oifname \"p{to}\"");
            for rule in cut.what.rules() {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{pair} {rule}");
            }
        }
        text.push_str(" }\n}\n");
        text
    }
}

impl Lost {
    fn rules(&self) -> Vec<String> {
        let resolution = ["ether type arp accept", "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"].map(str::to_owned);
        let set = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Everything => vec!["drop".into()],
            Self::Packets => resolution.into_iter().chain(["drop".into()]).collect(),
            Self::Ports(ports) => ["dport", "sport"].map(|side| format!("tcp {side} {{ {} }} drop", set(ports))).to_vec(),
            Self::AllBut(ports) => {
                let kept = ["dport", "sport"].map(|side| format!("tcp {side} {{ {} }} accept", set(ports)));
                resolution.into_iter().chain(kept).chain(["drop".into()]).collect()
            }
        }
    }
}
