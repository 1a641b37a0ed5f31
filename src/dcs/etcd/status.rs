//! What each member says of itself, for `doctor` and the metrics.

use super::{
    super::{EndpointStatus, MemberStatus},
    Etcd,
    endpoint::Endpoint,
    fault::Fault,
};
use crate::{clock, model::moment::Span};
use futures_util::future::join_all;

impl Etcd {
    /// Asks every endpoint by itself, side by side, each within `deadline`.
    pub async fn status(&self, deadline: Span) -> Vec<EndpointStatus> {
        join_all(self.shared.endpoints.iter().map(|endpoint| status(endpoint, deadline))).await
    }
}

async fn status(endpoint: &Endpoint, deadline: Span) -> EndpointStatus {
    let state = member(endpoint, deadline).await.map_err(|fault| fault.into_error().to_string());
    EndpointStatus { endpoint: endpoint.url.text.clone(), state }
}

async fn member(endpoint: &Endpoint, deadline: Span) -> Result<MemberStatus, Fault> {
    let ends = clock::boot().plus(deadline);
    let left = || ends.since(clock::boot());
    // Connecting is no part of the latency.
    endpoint.attempt(left(), &|client| async move { client.maintenance_client().status().await }).await?;
    let asked = clock::boot();
    let status = endpoint.attempt(left(), &|client| async move { client.maintenance_client().status().await }).await?;
    let latency = clock::boot().since(asked);
    // A member may refuse this one (3.6 wants a permission); the rest is worth showing all the same.
    let members = endpoint.attempt(left(), &|client| async move { client.cluster_client().member_list().await }).await;
    let header = status.header();
    Ok(MemberStatus {
        version: status.version().to_owned(),
        db_size: status.db_size().max(0).cast_unsigned(),
        member: header.map_or(0, |header| header.member_id()),
        leader: status.leader(),
        raft_term: status.raft_term(),
        revision: header.map_or(0, |header| header.revision().cast_unsigned()),
        cluster_id: header.map_or(0, |header| header.cluster_id()),
        members: members.map_or(0, |members| members.members().len()),
        no_space: status.errors().iter().any(|error| error.contains("NOSPACE")),
        errors: status.errors().to_vec(),
        latency,
    })
}
