//! `history/` and `audit/`: appended, pruned, read on demand. And the bulk write of `etcd recover`.

use super::{
    super::{
        Error, Hedge, Listing, TxnOutcome,
        keys::{Folder, Place},
    },
    Etcd, LARGEST_MESSAGE,
};
use crate::{
    clock,
    model::{
        key::{Compare, Key, Txn, Write},
        moment::Span,
        node::Nonce,
        term::Term,
    },
};
use etcd_client::{GetOptions, SortOrder, SortTarget};

/// How many changes of leadership are kept.
const HISTORY: usize = 1_000;
/// How many accepted operator changes are kept.
const AUDIT: usize = 10_000;
/// A transaction takes 128 operations by default.
const CHUNK: usize = 100;

impl Etcd {
    /// Writes one change of leadership, and prunes: the newest 1,000 are kept, and at most a tenth more.
    ///
    /// # Errors
    /// As [`Etcd::txn`]; writing the same again is harmless. A failed pruning is no error.
    pub async fn append_history(&self, term: Term, text: String, deadline: Span) -> Result<(), Error> {
        self.append(Key::History(term), text, deadline).await?;
        self.prune(Folder::History, HISTORY, deadline).await;
        Ok(())
    }

    /// Writes one operator change, and prunes: the newest 10,000 are kept, and at most a tenth more.
    ///
    /// # Errors
    /// As [`Etcd::txn`]; writing the same again is harmless. A failed pruning is no error.
    pub async fn append_audit(&self, id: Nonce, text: String, deadline: Span) -> Result<(), Error> {
        self.append(Key::Audit(id), text, deadline).await?;
        self.prune(Folder::Audit, AUDIT, deadline).await;
        Ok(())
    }

    /// All changes of leadership that are kept, newest first: term and text.
    ///
    /// # Errors
    /// A read has no outcome: any error means that nothing is known.
    pub async fn read_history(&self, deadline: Span) -> Result<Vec<(Term, String)>, Error> {
        let entries = self.read_folder(Folder::History, HISTORY, deadline).await?;
        let terms = entries.into_iter().filter_map(|(key, text)| match key {
            Key::History(term) => Some((term, text)),
            _ => None,
        });
        let mut terms: Vec<(Term, String)> = terms.collect();
        terms.sort_by_key(|(term, _)| std::cmp::Reverse(*term));
        Ok(terms)
    }

    /// The newest `limit` operator changes, newest first: id and text.
    ///
    /// # Errors
    /// A read has no outcome: any error means that nothing is known.
    pub async fn read_audit(&self, limit: usize, deadline: Span) -> Result<Vec<(Nonce, String)>, Error> {
        let entries = self.read_folder(Folder::Audit, limit, deadline).await?;
        let audits = entries.into_iter().filter_map(|(key, text)| match key {
            Key::Audit(id) => Some((id, text)),
            _ => None,
        });
        Ok(audits.collect())
    }

    /// `etcd recover`: writes these records over what `present` shows, in their order, 100 to a transaction. Put `leader` last.
    ///
    /// Each record is compared with `present`, so that neither a change made meanwhile nor a write of ours that lay in a
    /// frozen member is overwritten or comes back later.
    ///
    /// # Errors
    /// As [`Etcd::txn`], and [`Error::Rejected`] where something changed meanwhile: list again. The records before it are written.
    pub async fn write_all(&self, records: &[(Key, String)], present: &Listing, deadline: Span) -> Result<(), Error> {
        let ends = clock::boot().plus(deadline);
        for chunk in records.chunks(CHUNK) {
            let when = chunk.iter().filter(|(key, _)| !matches!(key, Key::History(_) | Key::Audit(_))).map(|(key, _)| {
                let shown = present.entries.iter().find(|(other, ..)| other == key);
                shown.map_or_else(|| Compare::Missing(key.clone()), |(key, text, _)| Compare::Is(key.clone(), text.clone()))
            });
            let then = chunk.iter().map(|(key, text)| Write::Put(key.clone(), text.clone())).collect();
            let txn = Txn { nonce: clock::nonce(), when: when.collect(), then };
            match self.txn(&txn, Hedge::Allowed, ends.since(clock::boot())).await?.outcome {
                TxnOutcome::Applied { .. } => {}
                TxnOutcome::Refused { .. } => return Err(Error::Rejected("the records have changed meanwhile".to_owned())),
            }
        }
        Ok(())
    }

    async fn append(&self, key: Key, text: String, deadline: Span) -> Result<(), Error> {
        let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then: vec![Write::Put(key, text)] };
        match self.txn(&txn, Hedge::Allowed, deadline).await?.outcome {
            TxnOutcome::Applied { .. } => Ok(()),
            TxnOutcome::Refused { .. } => Err(Error::Rejected("an unconditional write was refused".to_owned())),
        }
    }

    async fn read_folder(&self, folder: Folder, limit: usize, deadline: Span) -> Result<Vec<(Key, String)>, Error> {
        let (from, to) = self.shared.space.folder(folder);
        let options = GetOptions::new()
            .with_range(to)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        let raced = self.shared.race(Hedge::Allowed, deadline, |client| {
            let (from, options) = (from.clone(), options.clone());
            async move { client.kv_client().max_decoding_message_size(LARGEST_MESSAGE).get(from, Some(options)).await }
        });
        let answer = raced.await?.answer;
        let entries = answer.kvs().iter().filter_map(|entry| match (self.shared.space.place(entry.key()), entry.value_str()) {
            (Place::Journal(key), Ok(text)) => Some((key, text.to_owned())),
            _ => None,
        });
        Ok(entries.collect())
    }

    /// Deletes what is older than the newest `kept`, where there is a tenth more: keys are read rarely, not at each append.
    /// Best effort: the next append tries again.
    async fn prune(&self, folder: Folder, kept: usize, deadline: Span) -> Option<()> {
        let (from, to) = self.shared.space.folder(folder);
        let read = |options: GetOptions| {
            let from = from.clone();
            self.shared.race(Hedge::Allowed, deadline, move |client| {
                let (from, options) = (from.clone(), options.clone());
                async move { client.kv_client().max_decoding_message_size(LARGEST_MESSAGE).get(from, Some(options)).await }
            })
        };
        let count = read(GetOptions::new().with_range(to.clone()).with_count_only()).await.ok()?.answer.count();
        if usize::try_from(count).ok()? <= kept + kept / 10 {
            return Some(());
        }
        let present = read(GetOptions::new().with_range(to).with_keys_only()).await.ok()?.answer;
        let places = present.kvs().iter().map(|entry| self.shared.space.place(entry.key()));
        let mut keys: Vec<Key> = places.filter_map(|place| if let Place::Journal(key) = place { Some(key) } else { None }).collect();
        // Terms by number, audit ids by their text: both are the order of time.
        keys.sort();
        let surplus = keys.len().saturating_sub(kept);
        for chunk in keys[..surplus].chunks(CHUNK) {
            let then = chunk.iter().map(|key| Write::Delete(key.clone())).collect();
            let txn = Txn { nonce: clock::nonce(), when: Vec::new(), then };
            self.txn(&txn, Hedge::Allowed, deadline).await.ok()?;
        }
        Some(())
    }
}
