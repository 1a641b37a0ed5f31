//! Act: hands each action to one adapter, and turns what came of it into events. Refuses at the most; never chooses.
//!
//! A result is not believed: what an action did shows in the facts that are observed after it. Facts that only the action
//! can know (a scan's end, a file that was written) are published before the action's own end.

use super::{
    copy,
    event::Event,
    file,
    observe::{chain, layout, normal},
    rewind::{self, NotReady},
    starter::Starter,
    verb::{GUARD_LIMIT, QUIT_LIMIT, guarded, start_postgres},
};
use crate::{
    clock, dcs,
    dcs::{Etcd, Hedge},
    decide::{
        decision::{Action, Configuration, Purpose, Task},
        snapshot::{Probed, Shown},
    },
    guard::client::{ArmedBy, Disarm, Guard},
    model::{
        failsafe::Ask,
        instance::{DataDir, Run, StartAs, Whole},
        key::Txn,
        lsn::Lsn,
        moment::Span,
        node::{Address, NodeName, Replica},
        node_file::NodeFile,
        record::to_text,
        term::Term,
        timeline::TimelineId,
    },
    peers,
    postgres::{self, ConfigFiles, Server, bootstrap, disk, fetch, history, overrides, scan, short},
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

/// How long one SQL statement of ours may take.
pub(super) const SQL_LIMIT: Span = Span::from_secs(5);
/// How long another server may take to answer at all.
const PROBE_LIMIT: Span = Span::from_millis(500);
/// How long a peer may take to answer: the file that binds it is fsynced.
const PEER_LIMIT: Span = Span::from_millis(1_200);
/// After so long all are asked anew, whoever has not answered yet.
const PEERS_AGAIN: Span = Span::from_millis(400);
/// How long reading the end of WAL may take.
pub(super) const SCAN_LIMIT: Span = Span::from_secs(120);
/// How long initdb, a clone, a rewind may take.
pub(super) const DATA_LIMIT: Span = Span::from_secs(7 * 86_400);
/// How long a checkpoint and the migrations may take.
const CHORE_LIMIT: Span = Span::from_secs(3_600);
/// How long a write of `leader` may take, all attempts together.
const LEADER_LIMIT: Span = Span::from_millis(700);
/// How long any other transaction may take.
const TXN_LIMIT: Span = Span::from_secs(2);

/// What the executor needs, and shares with its tasks.
pub(super) struct Tools {
    pub(super) node: NodeName,
    pub(super) etcd: Etcd,
    pub(super) settings: Arc<postgres::Settings>,
    pub(super) server: Arc<Server>,
    pub(super) initdb: Vec<String>,
    /// Our own binary: the managed `restore_command` calls it.
    pub(super) program: PathBuf,
    pub(super) guard: watch::Receiver<Option<Guard>>,
    pub(super) starter: Starter,
    /// Whom to ask while etcd is silent; `None` without a peer key.
    pub(super) peers: Option<peers::Client>,
    pub(super) store: Arc<Mutex<file::Store>>,
    /// The configuration that the files say, as the `postgres` room knows it.
    pub(super) rendered: Mutex<Option<postgres::Configuration>>,
    pub(super) events: mpsc::Sender<Event>,
}

/// What of the snapshot an executor may need beside the action itself.
#[derive(Clone, Debug)]
pub(super) struct Context {
    pub(super) run: Option<Run>,
    pub(super) file: NodeFile,
    pub(super) term: Term,
    /// The term of our own newest write of `leader` that is confirmed.
    pub(super) swapped: Option<Term>,
    /// The end of our WAL, where a scan has found it.
    pub(super) whole: Option<Whole>,
    /// The texts of the ledger's history files, where the policy has a `restore_command` that has to answer from them.
    pub(super) ledger: Option<BTreeMap<TimelineId, String>>,
}

/// Runs one action to its end, and publishes what came of it.
pub(super) async fn execute(tools: Arc<Tools>, action: Action, context: Context) {
    let task = action.task();
    if let Action::Txn(purpose, txn) = action {
        let outcome = transaction(&tools, purpose, &txn).await;
        publish(&tools, Event::TxnDone { nonce: txn.nonce, task, outcome }).await;
        return;
    }
    if let Action::Rewind { source, .. } = &action
        && let Err(fault) = rewind::ready(&tools, source, &context.file.data).await
    {
        publish(
            &tools,
            match fault {
                NotReady::Yet(why) => Event::Held { task, why },
                NotReady::Failed(why) => Event::Done { task, outcome: Err(why) },
            },
        )
        .await;
        return;
    }
    if let Action::Scan { from, tli } = action {
        publish_scan(&tools, from, tli, context.run).await;
        return;
    }
    let completes = action.completes();
    let outcome = perform(&tools, action, context).await;
    if let (Some(completed), Ok(())) = (completes, &outcome) {
        publish(&tools, Event::Completed(completed)).await;
    }
    publish(&tools, Event::Done { task, outcome }).await;
}

/// The loop drains its channel at each turn; a closed one means that the agent ends.
pub(super) async fn publish(tools: &Tools, event: Event) {
    drop(tools.events.send(event).await);
}

async fn transaction(tools: &Tools, purpose: Purpose, txn: &Txn) -> super::event::TxnOutcome {
    use super::event::TxnOutcome as Outcome;
    // What is created where nothing stands, and removed again, must reach etcd once at the most.
    let hedge = if purpose == Purpose::Intent { Hedge::Never } else { Hedge::Allowed };
    let limit = if purpose.writes_leader() { LEADER_LIMIT } else { TXN_LIMIT };
    match tools.etcd.txn(txn, hedge, limit).await {
        Ok(dcs::TxnReply { outcome: dcs::TxnOutcome::Applied { revision }, sent_at }) => Outcome::Applied { revision, sent: sent_at },
        Ok(dcs::TxnReply { outcome: dcs::TxnOutcome::Refused { unsettled: true, .. }, .. }) => {
            Outcome::Unknown { why: "refused, but an earlier attempt of it has no answer".to_owned() }
        }
        Ok(dcs::TxnReply { outcome: dcs::TxnOutcome::Refused { values, revision, .. }, sent_at }) => {
            Outcome::Refused { values, revision, sent: sent_at }
        }
        Err(fault) => match fault.outcome() {
            dcs::Outcome::NotDone => Outcome::NotDone { why: chain(&fault) },
            dcs::Outcome::Unknown => Outcome::Unknown { why: chain(&fault) },
        },
    }
}

async fn perform(tools: &Arc<Tools>, action: Action, context: Context) -> Result<(), String> {
    let Context { run, file, term, swapped, whole, ledger } = context;
    match action {
        Action::Txn(..) | Action::Scan { .. } | Action::Exit { .. } => Ok(()),
        Action::PutMember(record) => {
            tools.etcd.put_member(&tools.node, to_text(&*record), TXN_LIMIT).await.map(drop).map_err(|fault| chain(&fault))
        }
        Action::AppendHistory(record) => {
            tools.etcd.append_history(record.term, to_text(&*record), TXN_LIMIT).await.map_err(|fault| chain(&fault))
        }
        Action::WriteFile(file) => write_file(tools, *file).await,
        Action::StartGuard => tools.starter.start().await,
        Action::Arm { term, until } => {
            // The guard makes no deadline later for an agent that has not made the lease its own.
            let by = if swapped == Some(term) { ArmedBy::OwnSwap } else { ArmedBy::Caution };
            guarded(tools, async |guard| guard.arm(term, until, by, GUARD_LIMIT).await).await
        }
        Action::Disarm { term: armed } => {
            guarded(tools, async |guard| guard.disarm(term.max(armed), Disarm::NotPrimary, GUARD_LIMIT).await).await
        }
        Action::DisarmPaused { term: paused } => {
            guarded(tools, async |guard| guard.disarm(term.max(paused), Disarm::Paused, GUARD_LIMIT).await).await
        }
        Action::Start { start, term } => {
            if let Some(whole) = whole.filter(|_| run.is_none() && start == StartAs::Standby) {
                clear_the_way(tools, whole).await?;
            }
            start_postgres(tools, start, term).await
        }
        Action::Stop { mode, deadline } => {
            tools.server.disconnect();
            guarded(tools, async |guard| guard.stop(mode, deadline, term, GUARD_LIMIT).await).await
        }
        Action::Kill => guarded(tools, async |guard| guard.kill(term, GUARD_LIMIT).await).await,
        Action::Promote { term } => guarded(tools, async |guard| guard.promote(term, GUARD_LIMIT).await).await,
        Action::Configure(configuration) => configure(tools, *configuration, run, ledger).await,
        Action::Cut(from) => guarded(tools, async |guard| guard.cut(from, term, GUARD_LIMIT).await).await,
        Action::Probe(address) => probe(tools, address).await,
        Action::AskPeers { ask, of } => ask_peers(tools, ask, of).await,
        Action::CutStream => cut_stream(tools, running(run)?).await,
        Action::InspectDisk => inspect(tools).await,
        Action::MeasureCopy { source } => copy::measure(tools, source).await,
        Action::WriteHistories(texts) => write_histories(tools, texts, run, ledger).await,
        Action::InitDb => initdb(tools, &file).await,
        Action::DiscardInitialised => discard(tools, &file).await,
        Action::Clone { source, place, other, discards } => copy::make(tools, source, place, discards, &file, other).await,
        Action::Rewind { source, fork, tli, .. } => rewind::run(tools, source, fork, tli, &file.data).await,
        Action::Checkpoint => said(tools.server.checkpoint(CHORE_LIMIT).await),
        Action::ShowNames { names, checkpoints } => show_names(tools, names, checkpoints, running(run)?).await,
        Action::EndWalsenders(replicas) => {
            let names: Vec<String> = replicas.iter().map(Replica::application_name).collect();
            shown(tools, running(run)?, async |_| tools.server.end_walsenders(&names, SQL_LIMIT).await).await
        }
        Action::CreateSlot(name) => {
            shown(tools, running(run)?, async |run| tools.server.create_physical_slot(run, &name, SQL_LIMIT).await).await
        }
        Action::DropSlot(name) => shown(tools, running(run)?, async |run| tools.server.drop_slot(run, &name, SQL_LIMIT).await).await,
        Action::Migrate => migrate(tools).await,
        Action::StopGuard if tools.guard.borrow().is_none() => Ok(()),
        Action::StopGuard => guarded(tools, async |guard| guard.quit(term, QUIT_LIMIT).await).await,
    }
}

/// Recovery would die of a segment that a walreceiver had only begun to fill.
async fn clear_the_way(tools: &Tools, whole: Whole) -> Result<(), String> {
    for path in short::set_aside(&tools.settings, whole).await.map_err(|fault| chain(&fault))? {
        tracing::warn!(file = %path.display(), "a segment of the newer timeline holds less than the former one up to where that was left: put aside");
    }
    Ok(())
}

pub(super) fn said<T>(result: Result<T, postgres::Error>) -> Result<(), String> {
    result.map(drop).map_err(|fault| chain(&fault))
}

fn running(run: Option<Run>) -> Result<Run, String> {
    run.ok_or_else(|| "PostgreSQL does not run".to_owned())
}

async fn write_file(tools: &Tools, file: NodeFile) -> Result<(), String> {
    let (store, content) = (Arc::clone(&tools.store), file.clone());
    // fsync may take long: other work goes on meanwhile.
    let writing = tokio::task::spawn_blocking(move || store.lock().unwrap_or_else(PoisonError::into_inner).write(&content));
    writing.await.map_err(|fault| chain(&fault))?.map_err(|fault| chain(&fault))?;
    publish(tools, Event::FileWritten(Box::new(file))).await;
    Ok(())
}

/// The postgres room's words for what decisions say.
fn render(tools: &Tools, configuration: &Configuration) -> postgres::Configuration {
    let restores = configuration.parameters.get("restore_command").is_some_and(|command| !command.trim().is_empty());
    postgres::Configuration {
        follow: configuration.follow.as_ref().map(|follow| postgres::Follow {
            address: follow.address.clone(),
            slot: follow.slot.clone(),
            application_name: configuration.application_name.clone(),
        }),
        sync_names: configuration.sync_names.clone(),
        members_only: configuration.members_only,
        parameters: configuration.parameters.clone(),
        hba: configuration.hba.clone(),
        peers: configuration.members.clone(),
        wait: configuration.wait,
        slot_wal_keep: configuration.slots.bytes,
        restore_command: restores.then(|| fetch::wrapper(&tools.settings, &tools.program)),
        recovery: configuration.recovery,
    }
}

async fn configure(
    tools: &Tools,
    configuration: Configuration,
    run: Option<Run>,
    ledger: Option<BTreeMap<TimelineId, String>>,
) -> Result<(), String> {
    let rendered = render(tools, &configuration);
    if let Some(command) = configuration.parameters.get("restore_command").filter(|_| rendered.restore_command.is_some()) {
        said(fetch::keep_command(&tools.settings, command).await)?;
    }
    publish_ledger(tools, ledger).await?;
    let changed = ConfigFiles::new(Arc::clone(&tools.settings)).configure(&rendered).await.map_err(|fault| chain(&fault))?;
    take_back(tools, run, rendered.waits()).await.map_err(|fault| chain(&fault))?;
    *tools.rendered.lock().unwrap_or_else(PoisonError::into_inner) = Some(rendered);
    if let Some(run) = run {
        // Also where the files did not change: an earlier reload may have been lost with its agent.
        said(tools.server.reload_sql(run, SQL_LIMIT).await)?;
    }
    publish(tools, Event::Configured(Box::new(configuration))).await;
    if let Some(run) = run.filter(|_| changed) {
        tell_faults(tools, run).await;
    }
    Ok(())
}

/// PostgreSQL passes over lines that it cannot use, in its own log at best: whoever changed the policy is told here.
async fn tell_faults(tools: &Tools, run: Run) {
    match tools.server.configuration_faults(run, SQL_LIMIT).await {
        Ok(faults) => faults.iter().for_each(|fault| {
            tracing::warn!(file = fault.file, line = fault.line, "PostgreSQL cannot use a line of its configuration: {}", fault.what);
        }),
        Err(fault) => tracing::debug!(error = chain(&fault), "whether PostgreSQL can use its configuration was not to be learned"),
    }
}

/// What stands in `postgresql.auto.conf` wins over the managed file: a standby that another tool made would go on
/// following where that tool said.
async fn take_back(tools: &Tools, run: Option<Run>, waits: bool) -> Result<(), postgres::Error> {
    let found = match run {
        None => overrides::strip(&tools.settings, waits).await?,
        Some(run) => {
            let found = overrides::overridden(&tools.settings, waits).await?;
            for found in &found {
                tools.server.reset_override(run, &found.name, SQL_LIMIT).await?;
            }
            found
        }
    };
    for found in found {
        tracing::warn!(parameter = found.name, value = found.value, "postgresql.auto.conf set a managed parameter: taken back");
    }
    Ok(())
}

/// Silence is an answer, too.
async fn probe(tools: &Tools, address: Address) -> Result<(), String> {
    let at = clock::boot();
    let answered = postgres::peer::answers(&tools.settings, &address, PROBE_LIMIT).await;
    publish(tools, Event::Probed(Probed { address, answered, at })).await;
    Ok(())
}

/// Asks all at once; each answer is told when it comes.
/// Asks each peer by itself. One that fsyncs slowly answers late, and that counts; it keeps nobody from asking again.
async fn ask_peers(tools: &Arc<Tools>, ask: Ask, of: BTreeMap<NodeName, String>) -> Result<(), String> {
    if tools.peers.is_none() {
        return Err("there is no peer key".to_owned());
    }
    let mut asking: JoinSet<Option<String>> =
        of.into_iter().map(|(node, url)| ask_peer(Arc::clone(tools), ask.clone(), node, url)).collect();
    let mut faults = Vec::new();
    let round = async {
        while let Some(asked) = asking.join_next().await {
            faults.extend(asked.unwrap_or_else(|fault| Some(fault.to_string())));
        }
    };
    if tokio::time::timeout(PEERS_AGAIN.to_std(), round).await.is_err() {
        faults.push(format!("no answer of {} peers within {PEERS_AGAIN}", asking.len()));
        asking.detach_all();
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("; ")) }
}

/// Why the peer has not answered; what it answers is published.
async fn ask_peer(tools: Arc<Tools>, ask: Ask, node: NodeName, url: String) -> Option<String> {
    let sent = clock::boot();
    match tools.peers.as_ref()?.ask(&node, &url, &ask, PEER_LIMIT).await {
        Ok(answer) => {
            publish(&tools, Event::Answered { answer, ask, sent }).await;
            None
        }
        Err(fault) => Some(format!("{node}: {}", chain(&fault))),
    }
}

async fn cut_stream(tools: &Tools, run: Run) -> Result<(), String> {
    let rendered = tools.rendered.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let rendered = rendered.ok_or_else(|| "the managed configuration has not been written yet".to_owned())?;
    said(tools.server.cut_stream(run, &rendered, SQL_LIMIT).await)?;
    *tools.rendered.lock().unwrap_or_else(PoisonError::into_inner) = Some(postgres::Configuration { follow: None, ..rendered });
    publish(tools, Event::StreamCut).await;
    look(tools, run).await;
    Ok(())
}

/// Does something to the server, and looks at it at once: done again and again it would be until the next look shows it.
async fn shown<T>(tools: &Tools, run: Run, does: impl AsyncFnOnce(Run) -> Result<T, postgres::Error>) -> Result<(), String> {
    let done = said(does(run).await);
    look(tools, run).await;
    done
}

async fn show_names(tools: &Tools, names: String, checkpoints: bool, run: Run) -> Result<(), String> {
    let at = clock::boot();
    let mark = tools.server.show_names(&names, checkpoints, SQL_LIMIT, CHORE_LIMIT).await.map_err(|fault| chain(&fault))?;
    publish(tools, Event::Shown(Shown { run, names, checkpoints, mark, at, known: at })).await;
    Ok(())
}

async fn look(tools: &Tools, run: Run) {
    let asked = clock::boot();
    if let Ok(facts) = tools.server.probe(run, postgres::Via::Kept, SQL_LIMIT).await {
        publish(tools, Event::Server { facts: normal(facts, layout(&tools.server).await), asked }).await;
    }
}

async fn inspect(tools: &Tools) -> Result<(), String> {
    let at = clock::boot();
    let dir = disk::inspect(&tools.settings).await;
    if matches!(dir, DataDir::Present(_)) {
        said(disk::remember_mount(&tools.settings).await)?;
    }
    publish(tools, Event::Disk { dir, at }).await;
    Ok(())
}

/// That the log has no such end is an outcome of a scan. That it could not be read is none.
async fn publish_scan(tools: &Tools, from: Lsn, tli: TimelineId, run: Option<Run>) {
    let (task, at) = (Task::Scan, clock::boot());
    let ended = match scan::whole(&tools.settings, from, tli, SCAN_LIMIT).await {
        Ok(whole) => {
            publish(tools, Event::Scanned { whole, run, at }).await;
            Event::Done { task, outcome: Ok(()) }
        }
        Err(fault @ postgres::Error::Scan(_)) => Event::Done { task, outcome: Err(chain(&fault)) },
        Err(fault) => Event::Held { task, why: chain(&fault) },
    };
    publish(tools, ended).await;
}

async fn publish_ledger(tools: &Tools, ledger: Option<BTreeMap<TimelineId, String>>) -> Result<(), String> {
    match ledger {
        Some(ledger) => said(fetch::publish_ledger(&tools.settings, &ledger).await),
        None => Ok(()),
    }
}

async fn write_histories(
    tools: &Tools,
    texts: BTreeMap<TimelineId, String>,
    run: Option<Run>,
    ledger: Option<BTreeMap<TimelineId, String>>,
) -> Result<(), String> {
    let when = if run.is_none() { history::When::BeforeStart } else { history::When::Running };
    let written = history::write(&tools.settings, &texts, when).await.map_err(|fault| chain(&fault))?;
    for conflict in &written.conflicts {
        if !conflict.names_one_history() || run.is_some() {
            return Err(format!("the history file of timeline {} differs from the ledger's: {:?}", conflict.tli, conflict.on_disk));
        }
        tracing::warn!(timeline = %conflict.tli, "a history file is replaced by the ledger's: one of the two is the mark of a timeline that was given up");
        said(history::overwrite(&tools.settings, conflict.tli, &conflict.ledger).await)?;
    }
    publish_ledger(tools, ledger).await?;
    let there = history::there(&tools.settings).await.map_err(|fault| chain(&fault))?;
    publish(tools, Event::HistoriesWritten(there)).await;
    Ok(())
}

async fn initdb(tools: &Tools, file: &NodeFile) -> Result<(), String> {
    if let Some(proof) = bootstrap::InitialisedHere::by(file) {
        // What an interrupted initdb of ours left.
        bootstrap::discard(&tools.settings, proof).await.map_err(|fault| chain(&fault))?;
    }
    // Of a directory that was here before; what comes now was never rewound.
    postgres::rewind::forget_unfinished(&tools.settings).await.map_err(|fault| chain(&fault))?;
    let options = bootstrap::Options { args: tools.initdb.clone(), password: None };
    said(bootstrap::initdb(&tools.settings, &options, Span::from_secs(600)).await)
}

async fn discard(tools: &Tools, file: &NodeFile) -> Result<(), String> {
    let proof =
        bootstrap::InitialisedHere::by(file).ok_or_else(|| "this node's file does not say that it made the directory".to_owned())?;
    said(bootstrap::discard(&tools.settings, proof).await)
}

async fn migrate(tools: &Tools) -> Result<(), String> {
    let applied = tools.server.migrate(CHORE_LIMIT).await.map_err(|fault| chain(&fault))?;
    if !applied.is_empty() {
        tracing::info!(applied = applied.join(", "), "migrations applied");
    }
    said(tools.server.set_role_logins(SQL_LIMIT).await)
}

/// Where this room's own files lie in the state directory.
pub(super) fn node_file(state_dir: &std::path::Path) -> PathBuf {
    state_dir.join("node")
}
