//! Serves what operators ask for, beside the loop, in the order of arrival.

use super::{
    change::{self, Stamp},
    handle::{Command, Refusal},
};
use crate::{
    clock,
    dcs::{self, Etcd, Hedge},
    model::{key::Txn, moment::Span, records::Records},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// How long etcd may take.
const LIMIT: Span = Span::from_secs(3);

/// Serves commands until every handle is gone, which is when the API ends.
pub(super) async fn commands(etcd: Etcd, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        serve(&etcd, command).await;
    }
    std::future::pending::<()>().await;
}

/// Who asked may be gone when the answer comes: then nobody is told.
async fn serve(etcd: &Etcd, command: Command) {
    match command {
        Command::ReplacePolicy { policy, version, asker, reply } => {
            let changed = changed(etcd, |records, stamp| change::replace_policy(records, *policy, version, asker, stamp), Hedge::Allowed);
            drop(reply.send(changed.await));
        }
        Command::PutIntent { request, term, asker, reply } => {
            let changed = changed(etcd, |records, stamp| change::put_intent(records, request, term, asker, stamp), Hedge::Never);
            drop(reply.send(changed.await));
        }
        Command::History { reply } => {
            let found = etcd.read_history(LIMIT).await.map_err(refusal).map(|rows| readable(rows.into_iter().map(|(_, text)| text)));
            drop(reply.send(found));
        }
        Command::Audit { limit, reply } => {
            let found = etcd.read_audit(limit, LIMIT).await.map_err(refusal).map(|rows| readable(rows.into_iter().map(|(_, text)| text)));
            drop(reply.send(found));
        }
    }
}

/// Makes the change from what stands in etcd now, by a linearizable read, and writes it in one transaction with its audit record.
async fn changed<T>(etcd: &Etcd, make: impl FnOnce(&Records, &Stamp) -> Result<(T, Txn), Refusal>, hedge: Hedge) -> Result<T, Refusal> {
    let records = etcd.list(LIMIT).await.map_err(refusal)?.records();
    let stamp = Stamp { nonce: clock::nonce(), seconds: clock::unix_seconds(), wall: clock::wall() };
    let (value, txn) = make(&records, &stamp)?;
    match etcd.txn(&txn, hedge, LIMIT).await.map_err(refusal)?.outcome {
        dcs::TxnOutcome::Applied { .. } => Ok(value),
        // Another attempt at it may have been carried out, and overwritten since.
        dcs::TxnOutcome::Refused { unsettled: true, .. } => {
            Err(Refusal::Unknown("etcd gave no clear answer: it may have been carried out, and changed again since".to_owned()))
        }
        dcs::TxnOutcome::Refused { .. } => Err(Refusal::Conflict("somebody else changed it at the same time; nothing was done".to_owned())),
    }
}

fn refusal(fault: dcs::Error) -> Refusal {
    match fault.outcome() {
        dcs::Outcome::NotDone => Refusal::Unreachable(fault.to_string()),
        dcs::Outcome::Unknown => Refusal::Unknown(fault.to_string()),
    }
}

/// The records that this version can read, newest first.
fn readable<T: DeserializeOwned>(texts: impl Iterator<Item = String>) -> Vec<T> {
    texts.filter_map(|text| serde_json::from_str(&text).ok()).collect()
}
