//! One transaction, and what a refusal after a lost answer means.

use super::{
    super::{Error, Hedge, Present, TxnOutcome, TxnReply},
    Etcd, LARGEST_MESSAGE, Shared,
    lease::Purpose,
    race::Raced,
};
use crate::model::{
    key::{Compare, Key, Txn, Write},
    moment::Span,
};
use etcd_client::{CompareOp, PutOptions, TxnOp, TxnOpResponse, TxnResponse};
use std::collections::BTreeMap;

impl Etcd {
    /// Does all writes of `txn` in one revision, if all its conditions hold.
    ///
    /// `deadline` bounds everything, attempts included; the attempts themselves have the settings' deadline.
    /// Writes of `bootstrap` and `members/…` are attached to an etcd lease of this process, which is granted first where needed.
    ///
    /// # Errors
    /// [`Error::outcome`] tells whether it may have happened. After Unknown, only seeing it applied or a later swap of the
    /// same key settles it; a read that shows the old value does not.
    pub async fn txn(&self, txn: &Txn, hedge: Hedge, deadline: Span) -> Result<TxnReply, Error> {
        let ends = crate::clock::boot().plus(deadline);
        match self.shared.leased_txn(txn, hedge, deadline).await {
            // Refused for a lease that has ended meanwhile: nothing was done, so once more with a new one.
            Err(LeasedError::NoLease(why)) => {
                let left = ends.since(crate::clock::boot());
                self.shared.leased_txn(txn, hedge, left).await.map_err(|error| match error {
                    LeasedError::NoLease(_) => Error::Rejected(why),
                    LeasedError::Other(error) => error,
                })
            }
            Err(LeasedError::Other(error)) => Err(error),
            Ok(reply) => Ok(reply),
        }
    }
}

/// Why a transaction with leased writes failed.
enum LeasedError {
    NoLease(String),
    Other(Error),
}

impl Shared {
    async fn leased_txn(&self, txn: &Txn, hedge: Hedge, deadline: Span) -> Result<TxnReply, LeasedError> {
        let ends = crate::clock::boot().plus(deadline);
        let mut leases = BTreeMap::new();
        for purpose in txn.then.iter().filter_map(purpose) {
            let id = self.lease(purpose, ends.since(crate::clock::boot())).await.map_err(LeasedError::Other)?;
            leases.insert(purpose, id);
        }
        let request = self.request(txn, &leases);
        let left = ends.since(crate::clock::boot());
        let raced = self.race(hedge, left, |client| {
            let request = request.clone();
            async move { client.kv_client().max_decoding_message_size(LARGEST_MESSAGE).txn(request).await }
        });
        match raced.await {
            Ok(raced) => self.reply(txn, raced).map_err(LeasedError::Other),
            Err(Error::Rejected(why)) if !leases.is_empty() && why.contains("lease not found") => {
                leases.keys().for_each(|purpose| self.forget_lease(*purpose));
                Err(LeasedError::NoLease(why))
            }
            Err(error) => Err(LeasedError::Other(error)),
        }
    }

    fn request(&self, txn: &Txn, leases: &BTreeMap<Purpose, i64>) -> etcd_client::Txn {
        let when: Vec<etcd_client::Compare> = txn
            .when
            .iter()
            .map(|compare| match compare {
                Compare::Is(key, text) => etcd_client::Compare::value(self.space.path(key), CompareOp::Equal, text.as_str()),
                Compare::Missing(key) => etcd_client::Compare::create_revision(self.space.path(key), CompareOp::Equal, 0),
            })
            .collect();
        let then: Vec<TxnOp> = txn
            .then
            .iter()
            .map(|write| match write {
                Write::Put(key, text) => {
                    let lease = purpose(write).and_then(|purpose| leases.get(&purpose));
                    let options = lease.map(|id| PutOptions::new().with_lease(*id));
                    TxnOp::put(self.space.path(key), text.as_str(), options)
                }
                Write::Delete(key) => TxnOp::delete(self.space.path(key), None),
            })
            .collect();
        let otherwise: Vec<TxnOp> = touched(txn).into_iter().map(|key| TxnOp::get(self.space.path(key), None)).collect();
        etcd_client::Txn::new().when(when).and_then(then).or_else(otherwise)
    }

    fn reply(&self, txn: &Txn, raced: Raced<TxnResponse>) -> Result<TxnReply, Error> {
        let Raced { answer, sent_at, unsettled } = raced;
        let revision = answer.header().map_or(0, |header| header.revision().cast_unsigned());
        if answer.succeeded() {
            return Ok(TxnReply { outcome: TxnOutcome::Applied { revision }, sent_at });
        }
        let values = self.present(txn, &answer)?;
        let outcome = match settle(txn, &values).filter(|_| unsettled) {
            Some(revision) => TxnOutcome::Applied { revision },
            None => TxnOutcome::Refused { values, revision, unsettled },
        };
        Ok(TxnReply { outcome, sent_at })
    }

    /// The else-branch's answers, in the order in which they were asked.
    fn present(&self, txn: &Txn, answer: &TxnResponse) -> Result<Vec<Present>, Error> {
        let keys = touched(txn);
        let answers = answer.op_responses();
        if answers.len() != keys.len() {
            return Err(Error::NoAnswer(format!("{} answers to {} questions", answers.len(), keys.len())));
        }
        keys.into_iter().zip(answers).map(|(key, answer)| present(key, &answer)).collect()
    }
}

fn present(key: &Key, answer: &TxnOpResponse) -> Result<Present, Error> {
    let TxnOpResponse::Get(found) = answer else {
        return Err(Error::NoAnswer(format!("no read of {key} in the answer")));
    };
    let Some(entry) = found.kvs().first() else { return Ok((key.clone(), None, 0)) };
    let text = entry.value_str().map_err(|_| Error::NoAnswer(format!("{key} is not UTF-8")))?;
    Ok((key.clone(), Some(text.to_owned()), entry.mod_revision().cast_unsigned()))
}

fn purpose(write: &Write) -> Option<Purpose> {
    match write {
        Write::Put(Key::Bootstrap, _) => Some(Purpose::Bootstrap),
        Write::Put(Key::Member(_), _) => Some(Purpose::Member),
        _ => None,
    }
}

/// Every key that is compared or written, once.
pub(in crate::dcs) fn touched(txn: &Txn) -> Vec<&Key> {
    let written = txn.then.iter().map(|write| match write {
        Write::Put(key, _) | Write::Delete(key) => key,
    });
    let mut keys: Vec<&Key> = Vec::new();
    for key in txn.when.iter().map(Compare::key).chain(written) {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Whether a refusal shows that an earlier attempt of the same transaction was applied, and in which revision.
///
/// One text of ours with the transaction's nonce in it is proof. Without such a text, all that we put must be there.
fn settle(txn: &Txn, values: &[Present]) -> Option<u64> {
    let puts = || {
        txn.then.iter().filter_map(|write| match write {
            Write::Put(key, text) => Some((key, text)),
            Write::Delete(_) => None,
        })
    };
    let shown = |key: &Key, text: &String| {
        values.iter().find(|(other, value, _)| other == key && value.as_ref() == Some(text)).map(|(_, _, revision)| *revision)
    };
    let signed: Vec<_> = puts().filter(|(_, text)| text.contains(txn.nonce.as_str())).collect();
    if signed.is_empty() {
        let all: Option<Vec<u64>> = puts().map(|(key, text)| shown(key, text)).collect();
        return all?.into_iter().max();
    }
    signed.into_iter().find_map(|(key, text)| shown(key, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(puts: &[(Key, &str)]) -> Txn {
        let then = puts.iter().map(|(key, text)| Write::Put(key.clone(), (*text).to_owned())).collect();
        Txn { nonce: "abc123".parse().expect("nonce"), when: vec![Compare::Is(Key::Leader, "old".to_owned())], then }
    }

    fn value(key: Key, text: &str, revision: u64) -> Present {
        (key, Some(text.to_owned()), revision)
    }

    /// Scenario 32.
    #[test]
    fn a_refusal_that_shows_our_nonce_means_that_we_were_applied() {
        let txn = txn(&[(Key::Leader, "abc123"), (Key::Sync, "abc123 too")]);
        assert_eq!(settle(&txn, &[value(Key::Leader, "other", 9), value(Key::Sync, "abc123 too", 7)]), Some(7));
        assert_eq!(settle(&txn, &[value(Key::Leader, "other", 9), value(Key::Sync, "other", 9)]), None);
    }

    #[test]
    fn without_a_nonce_every_text_of_ours_must_be_there() {
        let txn = txn(&[(Key::Term, "5"), (Key::Policy, "p")]);
        assert_eq!(settle(&txn, &[value(Key::Term, "5", 9), value(Key::Policy, "p", 7)]), Some(9));
        assert_eq!(settle(&txn, &[value(Key::Term, "5", 9), value(Key::Policy, "q", 7)]), None);
    }

    #[test]
    fn a_deletion_is_never_taken_for_ours() {
        let mut txn = txn(&[]);
        txn.then = vec![Write::Delete(Key::Intent)];
        assert_eq!(settle(&txn, &[(Key::Intent, None, 0)]), None);
    }
}
