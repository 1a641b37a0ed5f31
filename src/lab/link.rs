//! A client's connection: closed when it is dropped, and its warnings counted.

use super::sql::{Login, Server};
use crate::model::moment::Span;
use futures_util::stream::{StreamExt, poll_fn};
use std::{cell::Cell, rc::Rc};
use tokio::task::{AbortHandle, spawn_local};
use tokio_postgres::{AsyncMessage, Client, Error, NoTls};

/// A connection of a thread that has its network and its runtime.
pub(super) struct Link {
    pub(super) client: Client,
    driver: AbortHandle,
    warnings: Rc<Cell<u64>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // Closes the socket now: an answer that comes later is not wanted.
        self.driver.abort();
    }
}

impl Link {
    /// Connects.
    ///
    /// # Errors
    /// When the server cannot be reached within `deadline`, or refuses.
    pub(super) async fn open(login: &Login, server: &Server, deadline: Span) -> Result<Self, Error> {
        let (client, mut connection) = login.config(server.address, deadline).connect(NoTls).await?;
        let warnings = Rc::new(Cell::new(0));
        let seen = warnings.clone();
        let driver = spawn_local(async move {
            let mut messages = poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message {
                    seen.set(seen.get() + u64::from(notice.severity() == "WARNING"));
                }
            }
        });
        Ok(Self { client, driver: driver.abort_handle(), warnings })
    }

    /// Warnings so far: one that came with an answer is counted before that answer is there.
    pub(super) fn warnings(&self) -> u64 {
        self.warnings.get()
    }
}
