//! How faults are injected and undone.

use super::{
    cluster::Lab,
    command::{self, wait_until},
    disk,
    fault::{Direction, Error, Fault, Injected, Return, Undo},
    host::{Host, NotHere, Walls},
    host_init::{Bind, Service},
    node::{AGENT, Node},
    procfs,
    spec::{Layout, Plugged},
    switch::{Carrier, Cut, Lost},
};
use crate::{clock, model::moment::Span};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use std::{
    path::Path,
    sync::{Arc, PoisonError},
};

impl Lab {
    /// Whether this kind of lab can do that.
    ///
    /// # Errors
    /// [`NotHere`] with the reason.
    pub fn can(&self, fault: &Fault) -> Result<(), NotHere> {
        let disks = |node: &str| self.node(node).is_ok_and(|node| node.host.has_disks());
        match fault {
            Fault::Partition(_) | Fault::PortDown(_) | Fault::OneWay(..) | Fault::CutFromEtcd(_) | Fault::CutFromPeers(_) => {
                self.need_namespaces().map(|_| ())
            }
            Fault::CopiedHost(node) => {
                self.need_namespaces()?;
                if disks(node) { Err(NotHere("a node with a disk of its own is not copied".into())) } else { Ok(()) }
            }
            Fault::DiskFull(node) | Fault::DiskDead(node) => {
                self.need_namespaces()?;
                if disks(node) { Ok(()) } else { Err(NotHere("the nodes of this lab have no disks of their own".into())) }
            }
            _ => Ok(()),
        }
    }

    /// Injects a fault.
    ///
    /// # Errors
    /// [`Error::NotHere`]: nothing was done. [`Error::Failed`]: it may have been done in part.
    pub fn inject(&self, fault: &Fault) -> Result<Injected, Error> {
        self.can(fault)?;
        let mut injected = Injected { fault: fault.clone(), at: clock::boot(), undo: Vec::new() };
        let done = self.carry_out(fault, &mut injected);
        // Also a fault that failed half way: its first steps have to be undone.
        self.active().push(injected.clone());
        done.map_err(|source| Error::Failed { fault: fault.name(), source })?;
        Ok(injected)
    }

    fn active(&self) -> std::sync::MutexGuard<'_, Vec<Injected>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, fault: &Fault, injected: &mut Injected) -> Result<()> {
        let at = &mut injected.at;
        let undo = &mut injected.undo;
        match fault {
            Fault::PostmasterKill(node) => {
                let (host, pid) = (&self.node(node)?.host, self.postmaster(node)?);
                *at = clock::boot();
                host.kill_process(pid)
            }
            Fault::PowerOff(host) => self.cut_power(&[host], undo),
            Fault::AllNodesOff => {
                let names: Vec<&str> = self.nodes().iter().map(|node| node.host.name()).filter(|name| self.is_on(name)).collect();
                self.cut_power(&names, undo)
            }
            Fault::Partition(_) | Fault::PortDown(_) | Fault::OneWay(..) | Fault::CutFromEtcd(_) | Fault::CutFromPeers(_) => {
                self.harm_network(fault, undo)
            }
            Fault::Freeze(host) => {
                undo.push(Undo::Thaw(host.clone()));
                self.plugged(host)?.host.freeze()
            }
            Fault::AgentKill(node, back) => self.kill_agent(node, *back, undo),
            Fault::GuardKill(node) => {
                let host = &self.node(node)?.host;
                let guard = procfs::running_verb(&host.processes(), "guard").with_context(|| format!("no guard runs on {node}"))?;
                *at = clock::boot();
                host.kill_process(guard)
            }
            Fault::EtcdLeaderKill => {
                let leader = self.etcd.wait_leader()?.name.clone();
                undo.push(Undo::EtcdStarts);
                *at = clock::boot();
                self.etcd.kill(&leader)
            }
            Fault::EtcdFollowerKill => {
                let leader = self.etcd.wait_leader()?.name.clone();
                let follower = self.etcd.running().into_iter().find(|member| member.name != leader).context("no follower runs")?;
                undo.push(Undo::EtcdStarts);
                *at = clock::boot();
                self.etcd.kill(&follower.name)
            }
            Fault::EtcdQuorumLoss => {
                undo.push(Undo::EtcdStarts);
                let (members, running) = (self.etcd.members().len(), self.etcd.running());
                // Those that stay are no majority.
                running.iter().skip((members - 1) / 2).try_for_each(|member| self.etcd.kill(&member.name))
            }
            Fault::PrimaryAndEtcdLeader(node) => {
                let leader = self.etcd.wait_leader()?.host.name().to_owned();
                let mut hosts = vec![node.as_str(), leader.as_str()];
                hosts.dedup();
                *at = clock::boot();
                self.cut_power(&hosts, undo)
            }
            Fault::WipeData(node) => self.wipe_data(node, undo),
            Fault::DiskFull(node) => {
                let node = self.node(node)?;
                undo.push(Undo::MakeRoom(node.name.clone()));
                disk::fill(&node.host, &node.volume())
            }
            Fault::DiskDead(node) => {
                let node = self.node(node)?;
                undo.push(Undo::NewBoot(node.name.clone()));
                disk::kill(&node.host, &node.volume())
            }
            Fault::CopiedHost(node) => self.copy_host(node, undo),
            Fault::AgentUpgrade(node, program) => self.upgrade(node, program),
        }
    }

    fn harm_network(&self, fault: &Fault, undo: &mut Vec<Undo>) -> Result<()> {
        let ports = || self.etcd.members().iter().flat_map(|member| [member.client.port(), member.peer.port()]).collect::<Vec<_>>();
        let etcd = |host: &str| self.etcd.members().iter().any(|member| member.host.name() == host);
        let peer = |host: &str| self.node(host).is_ok();
        match fault {
            Fault::Partition(node) => self.cut(fault, undo, |host| both_ways(node, host, &Lost::Everything)),
            Fault::PortDown(node) => {
                undo.push(Undo::CarrierUp(node.clone()));
                self.need_namespaces()?.set_carrier(node, Carrier::Down)
            }
            Fault::OneWay(node, direction) => self.cut(fault, undo, |host| match direction {
                Direction::Outbound => vec![one_way(node, host, Lost::Packets)],
                Direction::Inbound => vec![one_way(host, node, Lost::Packets)],
            }),
            Fault::CutFromEtcd(node) => {
                self.cut(fault, undo, |host| if etcd(host) { both_ways(node, host, &Lost::Ports(ports())) } else { Vec::new() })
            }
            Fault::CutFromPeers(node) => {
                self.cut(fault, undo, |host| if peer(host) { both_ways(node, host, &Lost::AllBut(ports())) } else { Vec::new() })
            }
            other => bail!("{} is no fault of the network", other.name()),
        }
    }

    fn is_on(&self, host: &str) -> bool {
        self.plugged(host).is_ok_and(|plugged| plugged.host.is_on())
    }

    /// The postmaster of a node, by its id in the lab's PID namespace.
    ///
    /// # Errors
    /// When none runs.
    pub fn postmaster(&self, node: &str) -> Result<i32> {
        let node = self.node(node)?;
        procfs::postmaster(&node.host.processes(), &node.data_dir()).with_context(|| format!("no postmaster runs on {}", node.name))
    }

    fn cut_power(&self, hosts: &[&str], undo: &mut Vec<Undo>) -> Result<()> {
        undo.extend(hosts.iter().map(|host| Undo::PowerOn((*host).to_owned())));
        self.power_down(hosts)
    }

    /// Cuts what `cuts` names for each other host, under the fault's name.
    fn cut(&self, fault: &Fault, undo: &mut Vec<Undo>, cuts: impl Fn(&str) -> Vec<Cut>) -> Result<()> {
        let switch = self.need_namespaces()?;
        let all: Vec<Cut> = self.hosts().keys().flat_map(|host| cuts(host)).filter(|cut| cut.from != cut.to).collect();
        if all.is_empty() {
            bail!("it would cut nothing");
        }
        undo.push(Undo::Mend(fault.name()));
        switch.cut(&fault.name(), all)
    }

    fn kill_agent(&self, name: &str, back: Return, undo: &mut Vec<Undo>) -> Result<()> {
        let node = self.node(name)?;
        if back == Return::WhenUndone {
            node.host.change(AGENT, Service { restart_after: None, ..self.agent_of(node) })?;
            undo.push(Undo::AgentReturns(name.to_owned()));
        }
        node.host.kill_service(AGENT)
    }

    fn wipe_data(&self, name: &str, undo: &mut Vec<Undo>) -> Result<()> {
        let node = self.node(name)?;
        undo.push(Undo::PowerOn(name.to_owned()));
        self.power_down(&[name])?;
        // Its file system may be mounted in the host alone.
        self.power_up(&self.plugged(name)?)?;
        undo.clear();
        let data = node.data_dir().display().to_string();
        node.host.run(&["rm", "-rf", &data], Span::from_secs(30))?;
        self.start_services(name)
    }

    fn copy_host(&self, name: &str, undo: &mut Vec<Undo>) -> Result<()> {
        let node = self.node(name)?;
        let Plugged { host, number } = self.plugged(name)?;
        let copy_name = format!("{name}-copy");
        let copy_directory = self.directory().join(&copy_name);
        let (source, target) = (node.directory.display().to_string(), copy_directory.display().to_string());
        // Frozen, so that the copy is of one moment, as a snapshot of a machine is.
        host.freeze()?;
        let copied = command::run(&["cp", "-a", "--reflink=auto", &source, &target], "", Span::from_secs(60));
        host.thaw()?;
        copied?;
        let binds = vec![Bind { source: copy_directory.clone(), at: node.directory.clone() }];
        let copy = Host::new(self.name(), &copy_name, &self.program, Walls::Namespaces, Vec::new()).with_binds(binds);
        let plugged = self.add_host(Arc::new(copy), Layout::copy_number(number));
        undo.push(Undo::CopyGoes(copy_name));
        let address = |port| std::net::SocketAddr::new(super::switch::ipv4(plugged.number), port);
        let node = Node {
            host: plugged.host.clone(),
            seen_directory: copy_directory,
            postgres: address(node.postgres.port()),
            api: address(node.api.port()),
            ..node.clone()
        };
        node.configure(&self.common)?;
        // Sockets and process ids of the original are not part of its disk.
        command::run(&["find", &format!("{target}/run"), "-mindepth", "1", "-delete"], "", command::QUICK)?;
        self.power_up(&plugged)?;
        plugged.host.start(AGENT, self.agent_of(&node)).map(|_| ())
    }

    fn upgrade(&self, name: &str, program: &Path) -> Result<()> {
        let node = self.node(name)?;
        let before = node.host.service(AGENT)?.starts;
        self.replace_agent(name, program);
        node.host.change(AGENT, self.agent_of(node))?;
        // A service manager that replaces an agent leaves the guard alone; so does SIGKILL, whatever the agent does at SIGTERM.
        node.host.signal(AGENT, Signal::SIGKILL)?;
        let back = || node.host.service(AGENT).ok().filter(|state| state.starts > before && state.pid.is_some());
        wait_until("the new agent", Span::from_secs(5), back).map(|_| ())
    }

    /// Undoes a fault. Doing so twice does nothing.
    ///
    /// # Errors
    /// The first step that failed; the others were tried too.
    pub fn heal(&self, injected: &Injected) -> Result<()> {
        let known = {
            let mut active = self.active();
            let before = active.len();
            active.retain(|other| other != injected);
            active.len() < before
        };
        if !known {
            return Ok(());
        }
        let results: Vec<Result<()>> = injected.undo.iter().rev().map(|step| self.undo(step)).collect();
        results.into_iter().collect::<Result<()>>().with_context(|| format!("undo {}", injected.fault.name()))
    }

    /// Undoes every fault that is at work, the newest first.
    ///
    /// # Errors
    /// The first step that failed; the others were tried too.
    pub fn heal_all(&self) -> Result<()> {
        let active: Vec<Injected> = self.active().clone();
        let results: Vec<Result<()>> = active.iter().rev().map(|injected| self.heal(injected)).collect();
        results.into_iter().collect()
    }

    fn undo(&self, step: &Undo) -> Result<()> {
        match step {
            Undo::PowerOn(host) if self.is_on(host) => Ok(()),
            Undo::PowerOn(host) => self.power_on(host),
            Undo::Mend(name) => self.need_namespaces()?.mend(name),
            Undo::CarrierUp(host) => self.need_namespaces()?.set_carrier(host, Carrier::Up),
            Undo::NewBoot(host) => {
                self.power_down(&[host])?;
                self.power_on(host)
            }
            Undo::Thaw(host) => self.plugged(host)?.host.thaw(),
            Undo::AgentReturns(node) => {
                let node = self.node(node)?;
                node.host.change(AGENT, self.agent_of(node)).map(|_| ())
            }
            Undo::EtcdStarts => self.etcd.start_missing(),
            Undo::MakeRoom(node) => {
                let node = self.node(node)?;
                disk::empty(&node.host, &node.volume())
            }
            Undo::CopyGoes(name) => {
                self.power_down(&[name])?;
                self.remove_host(name);
                let directory = self.directory().join(name);
                std::fs::remove_dir_all(&directory).with_context(|| format!("remove {}", directory.display()))
            }
        }
    }
}

fn one_way(from: &str, to: &str, what: Lost) -> Cut {
    Cut { from: from.to_owned(), to: to.to_owned(), what }
}

fn both_ways(one: &str, other: &str, what: &Lost) -> Vec<Cut> {
    vec![one_way(one, other, what.clone()), one_way(other, one, what.clone())]
}
