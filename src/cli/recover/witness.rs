//! What every node that can be reached knows.

use crate::{
    api::{client::Client, status::Status},
    cli::{
        exit::{Exit, Failure},
        target,
    },
    config::Config,
    model::{moment::Span, node::Address, policy::ClusterPolicy, record::PolicyRecord, records::Records, timeline::TimelineId},
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How long one node is waited for.
const DEADLINE: Span = Span::from_secs(3);

/// What one node knows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Witness {
    /// Its status, with its own file.
    pub status: Status,
    /// The records that it last believed.
    pub records: Records,
    /// The history files in its `pg_wal`.
    pub histories: BTreeMap<TimelineId, String>,
    /// Where its PostgreSQL listens.
    pub postgres: Address,
    /// The policy that it has in force.
    pub policy: Option<ClusterPolicy>,
}

/// Who answered, and who did not.
pub(super) struct Asked {
    pub(super) witnesses: Vec<Witness>,
    pub(super) silent: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Facts {
    records: Records,
    histories: BTreeMap<TimelineId, String>,
    postgres: Address,
}

/// Asks the local node, the named ones, and every node whose API one of them, or etcd, knows.
pub(super) async fn ask_all(config: &Config, named: &[String], there: &Records) -> anyhow::Result<Asked> {
    let mut asked = Asked { witnesses: Vec::new(), silent: Vec::new() };
    let local = Client::unix(&target::socket(config))?;
    record(&mut asked, config, &local).await?;
    let mut seen = BTreeSet::new();
    let mut open: BTreeSet<String> = named.iter().cloned().chain(addresses(there)).collect();
    open.extend(asked.witnesses.iter().flat_map(|witness| addresses(&witness.records)));
    while let Some(address) = open.pop_first() {
        if !seen.insert(address.clone()) {
            continue;
        }
        let url = if address.contains("://") { address } else { format!("http://{address}") };
        let known = asked.witnesses.len();
        record(&mut asked, config, &Client::http(&url)?).await?;
        open.extend(asked.witnesses[known..].iter().flat_map(|witness| addresses(&witness.records)));
    }
    Ok(asked)
}

fn addresses(records: &Records) -> impl Iterator<Item = String> + '_ {
    records.members.values().filter_map(|member| member.record.api.clone())
}

async fn record(asked: &mut Asked, config: &Config, client: &Client) -> anyhow::Result<()> {
    match ask(&client.clone().within(DEADLINE)).await {
        Ok(witness) if witness.status.cluster != config.cluster => {
            let other = &witness.status.cluster;
            Err(Failure::of(Exit::Refused, format!("{} belongs to cluster {other}, not to {}", client.place(), config.cluster)))
        }
        Ok(witness) => {
            // The local node is asked over its socket, and again where the others know it.
            let name = &witness.status.node;
            let same = |known: &Witness| {
                known.status.file.data == witness.status.file.data && known.status.file.starts == witness.status.file.starts
            };
            match asked.witnesses.iter().find(|known| known.status.node == *name) {
                None => asked.witnesses.push(witness),
                Some(known) if same(known) => {}
                Some(_) => {
                    let text = format!("two agents run as {name}, one of them at {}: stop the copy first", client.place());
                    return Err(Failure::of(Exit::Refused, text));
                }
            }
            Ok(())
        }
        Err(error) => {
            asked.silent.push((client.place().to_owned(), error.to_string()));
            Ok(())
        }
    }
}

async fn ask(client: &Client) -> Result<Witness, crate::api::client::Error> {
    let status = client.get_json("/v1/status").await?;
    let Facts { records, histories, postgres } = client.get_json("/v1/records").await?;
    let policy = client.get_json::<PolicyRecord>("/v1/policy").await.ok().map(|record| record.policy);
    Ok(Witness { status, records, histories, postgres, policy })
}
