//! One run of torture: a cluster, its clients, rounds of faults by a seed, and the verdict on their history.

use super::{
    planted,
    strikes::Strikes,
    support::{Cluster, PROGRAM, SOON, spec},
};
use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use pgbaton::{
    clock, config,
    lab::{
        Journal, Lab, LogMark, LogMarks, Login, Walls, Writer,
        torture::{Blow, Crowd, Evidence, Harm, Limits, Round, Schedule, Told, Verdict, Whom, ground, judge},
        verdict,
    },
    model::{
        moment::{Moment, Span},
        policy::{ClusterPolicy, Durability, Reclone},
    },
};
use std::{collections::BTreeSet, fs};

/// How many findings are printed. All of them follow from the evidence that is kept.
const SHOWN: usize = 20;

/// What a standby has received may end within a record, which is not replayed: so much less than it was measured by it may have in the end.
const IN_PARTS: u64 = 128 << 10;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) durability: Durability,
    pub(crate) seed: u64,
    pub(crate) minutes: u64,
}

/// What a run consisted of, and what it proved.
pub(crate) struct Run {
    pub(crate) verdict: Verdict,
    pub(crate) rounds: usize,
    strikes: Strikes,
    /// Decisions that would have broken a safety rule, and were withheld.
    violations: Vec<String>,
}

impl Plan {
    /// As the policy calls it.
    pub(crate) fn mode(&self) -> String {
        serde_json::to_value(self.durability).ok().and_then(|mode| Some(mode.as_str()?.to_owned())).unwrap_or_default()
    }

    /// What makes this run again.
    pub(crate) fn command(&self) -> String {
        format!("make torture MINUTES={} MODE={} SEED={}", self.minutes, self.mode(), self.seed)
    }

    fn limits(&self) -> Limits {
        let lossless = self.durability != Durability::Async;
        let lease = ClusterPolicy::default().timers();
        // Who is followed without waiting may go on for the rest of its lease, and die for as long as that may take.
        let old_reads = if lossless { lease.hold.plus(lease.kill_bound) } else { Span::ZERO };
        let most = (!lossless).then(|| ClusterPolicy::default().max_lag.get() + IN_PARTS);
        Limits { lossless, most, old_reads }
    }

    /// Runs it, and fails unless all is well. What a failure leaves is in lab-out.
    pub(crate) fn run(&self) -> Result<(Run, Evidence)> {
        println!("{}", self.command());
        let cluster = Cluster::start(&spec(|spec| {
            spec.policy.durability = self.durability;
            spec.policy.reclone = Reclone::WhenRewindFails;
            // Without them most harms to the network could not be done.
            spec.walls = Some(Walls::Namespaces);
        }))?;
        let mut at_work = AtWork::begin(&cluster, *self)?;
        let judged = at_work.rounds().and_then(|()| at_work.end()).and_then(|run| run.ensure_well(self).map(|()| run));
        let judged = judged.and_then(|run| Ok((run, at_work.evidence.take().context("no evidence")?)));
        judged.map_err(|error| {
            let directory = cluster.keep_logs(&format!("torture-{}-{}", self.mode(), self.seed), &LogMarks::new());
            let error = at_work.judge_in_part(error);
            let schedule = format!("{}\n{}\n\n{error:#}\n", self.command(), at_work.told.join("\n"));
            let kept = fs::write(directory.join("schedule.txt"), schedule).map_err(anyhow::Error::from).and_then(|()| {
                let evidence = serde_json::to_vec(&at_work.evidence)?;
                Ok(fs::write(directory.join("evidence.json"), evidence)?)
            });
            kept.err().into_iter().for_each(|error| eprintln!("schedule or evidence are lost: {error:#}"));
            error.context(format!("again with: {}", self.command()))
        })
    }
}

/// A run on its way.
struct AtWork<'a> {
    cluster: &'a Cluster,
    plan: Plan,
    began: Moment,
    login: Login,
    crowd: Option<Crowd>,
    /// Those of the round: a crowd on a host that is cut off, and somebody there who waits for answers for as long as it takes.
    islands: Vec<(Writer, Crowd)>,
    journals: Vec<Journal>,
    rounds: usize,
    strikes: Strikes,
    /// What was done, for people.
    told: Vec<String>,
    /// Once it is complete, or as far as it goes.
    evidence: Option<Evidence>,
}

impl<'a> AtWork<'a> {
    fn begin(cluster: &'a Cluster, plan: Plan) -> Result<Self> {
        let primary = cluster.healthy()?;
        let lab = &cluster.lab;
        let login = lab.make_torture_ground(&primary)?;
        let crowd = Some(Crowd::start(lab.client().network(), lab.servers(), &login, plan.seed)?);
        let (islands, journals, told) = (Vec::new(), Vec::new(), Vec::new());
        let (rounds, strikes) = (0, Strikes::default());
        let at_work = Self { cluster, plan, began: clock::boot(), login, crowd, islands, journals, rounds, strikes, told, evidence: None };
        at_work.written(at_work.began)?;
        Ok(at_work)
    }

    fn lab(&self) -> &'a Lab {
        &self.cluster.lab
    }

    fn tell(&mut self, what: &str) {
        let line = format!("{:>6} {what}", format!("{}s", clock::boot().since(self.began).as_millis() / 1_000));
        println!("{line}");
        self.told.push(line);
    }

    fn pass(&self, span: Span) -> Result<()> {
        let end = clock::boot().plus(span);
        self.lab().wait("the time to pass", span.plus(SOON), || (clock::boot() >= end).then_some(()))
    }

    fn written(&self, since: Moment) -> Result<String> {
        let crowd = self.crowd.as_ref().context("no clients")?;
        self.lab().wait("an acknowledged write", SOON, || crowd.writes_to(since))
    }

    fn rounds(&mut self) -> Result<()> {
        let ends = self.began.plus(Span::from_secs(self.plan.minutes * 60));
        for round in Schedule::new(self.plan.seed, self.plan.durability) {
            if clock::boot().plus(round.length()) > ends {
                return Ok(());
            }
            self.rounds += 1;
            self.tell(&format!("round {}: {round}", self.rounds));
            self.round(&round)?;
        }
        Ok(())
    }

    fn round(&mut self, round: &Round) -> Result<()> {
        self.pass(round.quiet)?;
        let mut hit = BTreeSet::new();
        self.strike(round.first, &mut hit);
        if let Some((after, blow)) = round.second {
            self.pass(after)?;
            self.strike(blow, &mut hit);
        }
        self.pass(round.lasts)?;
        self.lab().heal_all().context("heal")?;
        let healed = clock::boot();
        let writer = self.written(healed).context("after all was healed")?;
        self.tell(&format!("  healed; {writer} acknowledges {} later", clock::boot().since(healed).rounded()));
        if round.recovers {
            self.cluster.healthy().context("after all was healed")?;
        }
        self.end_islands();
        Ok(())
    }

    fn end_islands(&mut self) {
        self.journals.extend(self.islands.drain(..).map(|(writer, _)| writer.stop()));
    }

    fn island(&mut self, node: &str) -> Result<()> {
        let (name, node) = (format!("island{}", self.journals.len() + self.islands.len() + 1), self.lab().node(node)?);
        let main = self.crowd.as_ref().context("no clients")?;
        let seed = self.plan.seed ^ self.strikes.done() as u64;
        let crowd = main.island(&name, node.host.network(), node.server(), &self.login, seed)?;
        self.islands.push((self.lab().island_as(&name, &node.name)?, crowd));
        Ok(())
    }

    /// A blow that cannot be struck any more (its victim is gone) is no failure.
    fn strike(&mut self, blow: Blow, hit: &mut BTreeSet<String>) {
        let victim = self.victim(blow.whom, hit);
        if blow.whom == Whom::Primary && blow.harm.makes_an_island() {
            // Of a host that is off already nothing is expected.
            if let Err(error) = self.island(&victim) {
                self.tell(&format!("  no island: {error:#}"));
            }
        }
        let done = match blow.harm.fault(victim.clone()) {
            Some(fault) => self.lab().inject(&fault).map(|_| ()).map_err(anyhow::Error::from),
            None => self.by_hand(blow.harm, &victim),
        };
        self.strikes.note(blow.harm, &done);
        let end = done.err().map_or_else(String::new, |error| format!(", which could not be done: {error:#}"));
        self.tell(&format!("  {blow}: {victim}{end}"));
        if blow.harm == Harm::AllNodesOff {
            hit.extend(self.cluster.names().into_iter().map(str::to_owned));
        }
        hit.insert(victim);
    }

    /// What people do, or an interrupt.
    fn by_hand(&self, harm: Harm, victim: &str) -> Result<()> {
        let lab = self.lab();
        let node = lab.node(victim)?;
        let verb = |words: &[&str]| {
            let config = node.config().display().to_string();
            node.host.run(&[&[PROGRAM, "--config", &config], words].concat(), SOON)
        };
        match harm {
            Harm::HandOver => {
                let to = self.cluster.names().into_iter().find(|name| *name != victim).context("another node")?;
                verb(&["failover", "--to", to, "--reason", "torture", "--yes"]).map(|_| ())
            }
            Harm::Policy => {
                let shown = verb(&["config", "show"])?;
                let file = "torture-policy.toml";
                fs::write(node.seen_directory.join(file), other_policy(&shown))?;
                verb(&["config", "apply", &node.config().with_file_name(file).display().to_string(), "--yes"]).map(|_| ())
            }
            Harm::Names => {
                // Of a server that leads, or is about to, it would be another harm: one that is outside of what is promised.
                let recovers = lab.query(victim, "SELECT pg_is_in_recovery()")?;
                ensure!(recovers == [[Some("t".to_owned())]], "it is no replica");
                let primary = self.writes_now().filter(|primary| *primary != victim);
                primary.context("nobody else takes writes, so it may be about to lead")?;
                lab.query(victim, "ALTER SYSTEM SET synchronous_standby_names = ''")?;
                lab.query(victim, "SELECT pg_reload_conf()").map(|_| ())
            }
            _ => node.host.signal("agent", Signal::SIGINT),
        }
    }

    /// Whoever has acknowledged a write of late.
    fn writes_now(&self) -> Option<String> {
        self.crowd.as_ref()?.writes_to(clock::boot().minus(Span::from_secs(3)))
    }

    /// Whoever plays the part and was not hit in this round.
    fn victim(&self, whom: Whom, hit: &BTreeSet<String>) -> String {
        let primary = self.writes_now().or_else(|| self.lab().primaries().first().cloned());
        let free = |name: &&str| !hit.contains(*name);
        let primary = primary.filter(|name| free(&name.as_str()));
        let others: Vec<&str> = self.cluster.names().into_iter().filter(|name| primary.as_deref() != Some(*name)).filter(free).collect();
        let other = |number: u8| others.get(usize::from(number) % others.len().max(1)).map(|name| (*name).to_owned());
        let wanted = match whom {
            Whom::Primary => primary.or_else(|| other(0)),
            Whom::Replica(number) => other(number),
        };
        wanted.unwrap_or_else(|| self.cluster.names()[0].to_owned())
    }

    /// All is healed: the evidence is taken and judged.
    fn end(&mut self) -> Result<Run> {
        let primary = self.cluster.healthy().context("at the end")?;
        self.written(clock::boot())?;
        let evidence = self.told(verdict::recorded(&self.lab().history()?))?;
        // Whatever fails from here on, what clients were told is kept.
        let evidence = self.evidence.insert(evidence);
        evidence.remains = Some(self.cluster.lab.remains(&primary, SOON)?);
        let verdict = judge(evidence);
        self.tell(&verdict.to_string());
        self.tell(&format!("struck: {}", self.strikes));
        Ok(Run { verdict, rounds: self.rounds, strikes: self.strikes.clone(), violations: self.violations()? })
    }

    /// Ends all clients and takes what they were told. Once.
    fn told(&mut self, recorded: Vec<verdict::RecordedLoss>) -> Result<Evidence> {
        self.end_islands();
        let Told { entries, broken } = self.crowd.take().context("no clients")?.stop();
        let (limits, islands) = (self.plan.limits(), std::mem::take(&mut self.journals));
        Ok(Evidence { limits, start: ground::START, entries, islands, recorded, broken, remains: None })
    }

    /// Of a run that did not come to its end: what its clients were told is kept, and judged as far as it goes. Returns the error with what was found.
    fn judge_in_part(&mut self, error: anyhow::Error) -> anyhow::Error {
        if self.evidence.is_none() {
            // Where etcd does not answer, the records stay unread: without what is left at the end nothing is judged by them.
            let recorded = self.lab().history().map_or_else(|_| Vec::new(), |history| verdict::recorded(&history));
            self.evidence = self.told(recorded).ok();
        }
        let Some(evidence) = self.evidence.as_ref().filter(|evidence| evidence.remains.is_none()) else { return error };
        let verdict = judge(evidence);
        self.tell(&format!("judged in part: {verdict}"));
        self.tell(&format!("struck: {}", self.strikes));
        let findings = listed(&verdict, &self.violations().unwrap_or_default());
        if findings.is_empty() { error } else { anyhow!("{error:#}\n{}", shown(&findings)) }
    }

    fn violations(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for name in self.cluster.names() {
            let lines = self.lab().errors_logged(name, LogMark::default())?.0;
            found.extend(
                lines.into_iter().filter(|line| line.contains("reason=\"invariant\"")).map(|line| format!("{name} logged: {line}")),
            );
        }
        Ok(found)
    }
}

impl Run {
    /// Changes of primary that clients saw.
    pub(crate) fn changes(&self) -> usize {
        self.verdict.timelines.saturating_sub(1)
    }

    /// Harms that were done.
    pub(crate) fn faults(&self) -> usize {
        self.strikes.done()
    }

    fn ensure_well(&self, plan: &Plan) -> Result<()> {
        let findings = listed(&self.verdict, &self.violations);
        ensure!(findings.is_empty(), "{}", shown(&findings));
        // A run in which nothing happened proves nothing.
        self.strikes.ensure_done()?;
        let (changes, written, wanted) = (self.changes(), self.verdict.written, 600 * plan.minutes);
        ensure!(changes > 0 && changes * 8 >= self.rounds, "only {changes} changes of primary in {} rounds", self.rounds);
        let reads = self.verdict.reads;
        ensure!(written as u64 >= wanted && reads > 0, "only {written} writes (not {wanted}) and {reads} reads were acknowledged");
        Ok(())
    }
}

fn listed(verdict: &Verdict, violations: &[String]) -> Vec<String> {
    verdict.findings.iter().map(ToString::to_string).chain(violations.iter().cloned()).collect()
}

fn shown(findings: &[String]) -> String {
    format!("{} findings:\n    {}", findings.len(), findings[..findings.len().min(SHOWN)].join("\n    "))
}

/// The other timers, and one standby more or less that has to confirm.
fn other_policy(shown: &str) -> String {
    // What is left to its default is not among it.
    let named = shown.lines().any(|line| line.trim_start().starts_with("quorum_standbys"));
    let (plain, tables) = shown.split_at(shown.find("\n[").map_or(shown.len(), |at| at + 1));
    let shown = if named { shown.to_owned() } else { format!("{plain}quorum_standbys = 1\n{tables}") };
    let swaps = [("preset", "\"default\"", "\"fast\""), ("quorum_standbys", "1", "2")];
    let lines = shown.lines().map(|line| {
        let swap = swaps.iter().find(|(key, ..)| line.split('=').next().is_some_and(|name| name.trim() == *key));
        match swap {
            Some((key, one, other)) => format!("{key} = {}\n", if line.contains(other) { one } else { other }),
            None => format!("{line}\n"),
        }
    });
    lines.collect()
}

/// Fresh seeds find more than old ones; a failing one is printed and kept.
pub(crate) fn fresh_seed() -> u64 {
    u64::from_str_radix(&clock::data_incarnation().to_string(), 16).unwrap_or(1)
}

#[test]
fn another_policy_has_other_timers_and_another_number_of_standbys() -> Result<()> {
    let read = |text: &str| -> Result<ClusterPolicy> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("policy.toml");
        fs::write(&file, text)?;
        Ok(config::read_policy(&file)?)
    };
    for mode in ["async", "quorum", "strict-quorum"] {
        let first = format!("# version 3\ndurability = \"{mode}\"\npreset = \"default\"\n\n[anti_flap]\nfailovers = 0\n");
        let (other, again) = (other_policy(&first), other_policy(&other_policy(&first)));
        let (first, other, again) = (read(&first)?, read(&other)?, read(&again)?);
        assert_eq!((first.quorum_standbys, other.quorum_standbys), (1, 2), "{mode}");
        assert_ne!(first.timers(), other.timers(), "{mode}");
        assert_eq!(again, first, "{mode}");
    }
    Ok(())
}

/// One minute of it, and the judge judged by what it says of the same evidence with a lie in it.
#[test]
fn a_minute_of_torture_in_quorum_mode_shows_one_history_and_no_loss() -> Result<()> {
    let seed = std::env::var("TORTURE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(fresh_seed);
    let (_, evidence) = Plan { durability: Durability::Quorum, seed, minutes: 1 }.run()?;
    let silent = planted::unnoticed(&evidence);
    if silent.is_empty() { Ok(()) } else { Err(anyhow!("not found in the evidence of seed {seed}: {silent:?}")) }
}
