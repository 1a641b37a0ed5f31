//! Everything at one revision, by a linearizable read.

use super::{
    super::{Error, Hedge, Listing, keys::Place},
    Etcd, LARGEST_MESSAGE, Shared,
    race::Raced,
};
use crate::model::moment::Span;
use etcd_client::{GetOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use std::sync::atomic::Ordering;

impl Etcd {
    /// Reads all records but `history/` and `audit/`, in one read-only transaction (which takes no raft write).
    ///
    /// # Errors
    /// A read has no outcome: any error means that nothing is known.
    pub async fn list(&self, deadline: Span) -> Result<Listing, Error> {
        self.shared.list(deadline).await
    }
}

impl Shared {
    pub(super) async fn list(&self, deadline: Span) -> Result<Listing, Error> {
        let ranges: Vec<TxnOp> =
            self.space.records().into_iter().map(|(from, to)| TxnOp::get(from, Some(GetOptions::new().with_range(to)))).collect();
        let request = Txn::new().and_then(ranges);
        let raced = self.race(Hedge::Allowed, deadline, |client| {
            let request = request.clone();
            async move { client.kv_client().max_decoding_message_size(LARGEST_MESSAGE).txn(request).await }
        });
        let listing = self.listing(&raced.await?);
        // An etcd that was made anew, from a snapshot or without one, counts its terms anew.
        self.raft_term.store(listing.raft_term, Ordering::Relaxed);
        Ok(listing)
    }

    fn listing(&self, raced: &Raced<TxnResponse>) -> Listing {
        let Raced { answer, sent_at, .. } = raced;
        let header = answer.header();
        let mut listing = Listing {
            entries: Vec::new(),
            unknown: 0,
            revision: header.map_or(0, |header| header.revision().cast_unsigned()),
            sent_at: *sent_at,
            cluster_id: header.map_or(0, |header| header.cluster_id()),
            raft_term: header.map_or(0, |header| header.raft_term()),
        };
        for response in answer.op_responses() {
            let TxnOpResponse::Get(found) = response else { continue };
            for entry in found.kvs() {
                match (self.space.place(entry.key()), entry.value_str()) {
                    (Place::Record(key), Ok(text)) => {
                        listing.entries.push((key, text.to_owned(), entry.mod_revision().cast_unsigned()));
                    }
                    (Place::Journal(_), _) => {}
                    // A record that is not UTF-8 is shown as one that this version cannot read, not as missing.
                    (Place::Record(key), Err(_)) => {
                        listing.entries.push((key, String::new(), entry.mod_revision().cast_unsigned()));
                    }
                    (Place::Unknown, _) => listing.unknown += 1,
                }
            }
        }
        listing
    }
}
