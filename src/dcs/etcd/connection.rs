//! One connection: proven before it carries a request, asked for a sign of life when in doubt.

use super::{
    super::Settings,
    fault::{Fault, is_auth_disabled},
    security::password,
};
use crate::{
    clock,
    model::moment::{Moment, Span},
};
use etcd_client::Client;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Connecting and authenticating may outlast an attempt (a password takes etcd 60 ms of processor time, more on a busy
/// machine), and then goes on under the next attempt; after this long it is begun anew.
pub(super) const PATIENCE: Span = Span::from_secs(2);

type Proof = Shared<BoxFuture<'static, Result<(), Fault>>>;

/// A client for one endpoint.
pub(super) struct Connection {
    client: Client,
    settings: Arc<Settings>,
    built_at: Moment,
    proven: AtomicBool,
    /// An attempt on it had no answer: the next one first asks whether anybody is there. A member without a quorum is, and
    /// keeps its connection and token.
    doubtful: AtomicBool,
    /// Authentication was off when it was last asked for, so requests carry no token.
    tokenless: Arc<AtomicBool>,
    /// What the attempts wait for together.
    proof: Mutex<Option<(Moment, Proof)>>,
}

impl Connection {
    pub(super) fn new(client: Client, settings: Arc<Settings>) -> Self {
        Self {
            client,
            settings,
            built_at: clock::boot(),
            proven: AtomicBool::new(false),
            doubtful: AtomicBool::new(false),
            tokenless: Arc::default(),
            proof: Mutex::default(),
        }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Whether it has not been proven for too long.
    pub(super) fn is_given_up(&self) -> bool {
        !self.is_proven() && clock::boot().since(self.built_at) >= PATIENCE
    }

    pub(super) fn doubt(&self) {
        self.doubtful.store(true, Ordering::Relaxed);
    }

    /// Proves it by a request that changes nothing: authentication, or the member's status.
    ///
    /// Dropping this future does not undo its progress; the next call goes on.
    pub(super) async fn prove(&self, why: &str) -> Result<(), Fault> {
        let proof = self.proof(why);
        let outcome = proof.clone().await;
        let mut slot = self.proof.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|(_, present)| present.ptr_eq(&proof)) {
            *slot = None;
        }
        drop(slot);
        if outcome.is_ok() {
            self.proven.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn proof(&self, why: &str) -> Proof {
        let now = clock::boot();
        let mut slot = self.proof.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some((since, proof)) if now.since(*since) < PATIENCE => proof.clone(),
            _ => {
                let (client, settings) = (self.client.clone(), Arc::clone(&self.settings));
                let (tokenless, why) = (Arc::clone(&self.tokenless), why.to_owned());
                let proof = async move { authenticate(client, &settings, &tokenless, &why).await }.boxed().shared();
                *slot = Some((now, proof.clone()));
                proof
            }
        }
    }

    /// Whether a connection in doubt still answers.
    pub(super) async fn answers(&self) -> bool {
        if !self.doubtful.load(Ordering::Relaxed) {
            return true;
        }
        let patience = self.settings.attempt.to_std() / 3;
        let answers = matches!(tokio::time::timeout(patience, self.client().status()).await, Ok(Ok(_)));
        self.doubtful.store(!answers, Ordering::Relaxed);
        answers
    }

    /// Without a token etcd takes the certificate's common name for the user, and says that *that* is not permitted: when
    /// authentication has been switched on meanwhile, this is how it shows.
    pub(super) fn fault(&self, error: etcd_client::Error) -> Fault {
        match Fault::from(error) {
            Fault::Denied(why) if self.tokenless.load(Ordering::Relaxed) => Fault::Stale(why),
            other => other,
        }
    }
}

/// Gets a token with the password that the file holds now. Without a user, asks for the member's status instead: answered by
/// the member alone, needs no leader, and changes nothing.
async fn authenticate(mut client: Client, settings: &Settings, tokenless: &AtomicBool, why: &str) -> Result<(), Fault> {
    let (Some(user), Some(file)) = (&settings.username, &settings.password_file) else {
        return match why {
            "" => client.status().await.map(drop).map_err(not_sent),
            why => Err(Fault::Denied(format!("{why} (no user is configured)"))),
        };
    };
    let password = password(file).await.map_err(|fault| Fault::Denied(fault.to_string()))?;
    match client.update_user(Some((user.clone(), password))).await {
        Ok(()) => {
            tokenless.store(false, Ordering::Relaxed);
            Ok(())
        }
        Err(error) if is_auth_disabled(&error) => {
            tokenless.store(true, Ordering::Relaxed);
            client.update_user(None).await.map_err(not_sent)
        }
        Err(error) => Err(not_sent(error)),
    }
}

/// A fault met before the caller's request was sent.
fn not_sent(error: etcd_client::Error) -> Fault {
    match Fault::from(error) {
        Fault::Unclear(why) => Fault::NotReached(why),
        other => other,
    }
}
