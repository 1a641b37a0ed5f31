//! One client's connection to one server, and how a transaction is carried out on it.

use super::{
    super::{
        link::Link,
        sql::{Login, Server, database_error},
        writer::position,
    },
    history::{Outcome, Place, Step, Transfer, Work},
};
use crate::model::moment::Span;
use std::cell::Cell;
use tokio_postgres::{Client, Error, Statement, error::Severity};

/// Which timeline a server writes on; nothing while it is in recovery.
const PROBE: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END";
const POSITION: &str = "SELECT pg_current_wal_insert_lsn()::text";
const INSERT: &str = "INSERT INTO lab_writes (client, seq, node) VALUES ($1, $2, $3) RETURNING pg_current_wal_insert_lsn()::text";
const APPEND: &str = "INSERT INTO lab_lists VALUES ($1, ARRAY[$2::bigint]) \
    ON CONFLICT (key) DO UPDATE SET items = lab_lists.items || excluded.items";
const READ: &str = "SELECT items FROM lab_lists WHERE key = $1";
const LOG: &str = "INSERT INTO lab_transfers VALUES ($1, $2, $3, $4)";
const MOVE: &str = "UPDATE lab_accounts SET balance = balance + $2 WHERE id = $1";
const BALANCES: &str = "SELECT array_agg(balance ORDER BY id) FROM lab_accounts";

/// A connection with its statements.
pub(super) struct Session {
    link: Link,
    probe: Statement,
    position: Statement,
    insert: Statement,
    append: Statement,
    read: Statement,
    log: Statement,
    moves: Statement,
    balances: Statement,
    /// What the server said that it is.
    pub(super) place: Place,
    /// Whether a commit was asked for in the transaction at hand.
    committing: Cell<bool>,
}

impl Session {
    /// Connects, and asks what the server is.
    ///
    /// # Errors
    /// When it cannot be reached or refuses.
    pub(super) async fn open(login: &Login, server: &Server, deadline: Span) -> Result<Self, Error> {
        let link = Link::open(login, server, deadline).await?;
        let prepare = async |text: &str| link.client.prepare(text).await;
        let (probe, position, insert) = (prepare(PROBE).await?, prepare(POSITION).await?, prepare(INSERT).await?);
        let (append, read) = (prepare(APPEND).await?, prepare(READ).await?);
        let (log, moves, balances) = (prepare(LOG).await?, prepare(MOVE).await?, prepare(BALANCES).await?);
        let (place, committing) = (Place::Replica, Cell::new(false));
        let mut session = Self { link, probe, position, insert, append, read, log, moves, balances, place, committing };
        session.look().await?;
        Ok(session)
    }

    /// Asks a server that was in recovery whether it still is. One that is not stays so: else its sessions would have ended.
    pub(super) async fn look(&mut self) -> Result<(), Error> {
        if self.place == Place::Replica {
            let file: Option<String> = self.client().query_one(&self.probe, &[]).await?.try_get(0)?;
            self.place = file.map_or(Place::Replica, |file| Place::Primary(position(&file, "").0));
        }
        Ok(())
    }

    fn client(&self) -> &Client {
        &self.link.client
    }

    /// Does what a transaction is about, notes in `work` what was read, and returns the position of what was written.
    pub(super) async fn carry_out(&self, id: u64, client: &str, node: &str, work: &mut Work) -> Result<u64, Error> {
        self.committing.set(false);
        let number = i64::try_from(id).unwrap_or(i64::MAX);
        match work {
            Work::Insert => {
                // It commits by itself.
                self.committing.set(true);
                let row = self.client().query_one(&self.insert, &[&client, &number, &node]).await?;
                Ok(position("", row.try_get(0)?).1)
            }
            Work::Lists(steps) => self.lists(number, steps).await,
            Work::Transfer(transfer) => self.transfer(number, *transfer).await,
            Work::Balances(balances) => {
                *balances = self.client().query_one(&self.balances, &[]).await?.try_get(0)?;
                Ok(0)
            }
        }
    }

    async fn lists(&self, id: i64, steps: &mut [Step]) -> Result<u64, Error> {
        // A standby knows no serializable transactions.
        let isolation = if self.place == Place::Replica { "REPEATABLE READ" } else { "SERIALIZABLE" };
        self.client().batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}")).await?;
        let mut writes = false;
        for step in steps {
            match step {
                Step::Append(key) => {
                    writes = true;
                    self.client().execute(&self.append, &[&signed(*key), &id]).await?;
                }
                Step::Read(key, seen) => {
                    let row = self.client().query_opt(&self.read, &[&signed(*key)]).await?;
                    let items: Option<Vec<i64>> = row.map(|row| row.try_get(0)).transpose()?;
                    *seen = items.unwrap_or_default().into_iter().map(i64::cast_unsigned).collect();
                }
            }
        }
        self.commit(writes).await
    }

    async fn transfer(&self, id: i64, Transfer { from, to, amount }: Transfer) -> Result<u64, Error> {
        self.client().batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        self.client().execute(&self.log, &[&id, &from, &to, &amount]).await?;
        let mut moves = [(from, -amount), (to, amount)];
        // In one order for all, so that no two wait for each other.
        moves.sort_unstable();
        for (account, change) in moves {
            self.client().execute(&self.moves, &[&account, &change]).await?;
        }
        self.commit(true).await
    }

    async fn commit(&self, writes: bool) -> Result<u64, Error> {
        let lsn = match writes {
            true => position("", self.client().query_one(&self.position, &[]).await?.try_get(0)?).1,
            false => 0,
        };
        self.committing.set(true);
        self.client().batch_execute("COMMIT").await?;
        Ok(lsn)
    }

    /// Ends a transaction that failed.
    pub(super) async fn end(&self) -> Result<(), Error> {
        self.client().batch_execute("ROLLBACK").await
    }

    /// Warnings so far.
    pub(super) fn warnings(&self) -> u64 {
        self.link.warnings()
    }

    /// What an answer means; `None` for one that did not come in time.
    ///
    /// What was never asked to commit is not there. A commit whose answer was lost, or is an error that does not say that nothing was done, or
    /// came with a warning (a cancelled wait for replicas comes back as success with one, EXP-2), may be there or not.
    pub(super) fn outcome(&self, answer: Option<Result<u64, Error>>, warned: bool) -> Outcome {
        let why = match &answer {
            Some(Ok(lsn)) if !warned => return Outcome::Acknowledged(*lsn),
            Some(Ok(_)) => "acknowledged with a warning".to_owned(),
            Some(Err(error)) => format!("{:#}", database_error(error)),
            None => "given up".to_owned(),
        };
        let error = answer.and_then(Result::err);
        if !self.committing.get() || error.is_some_and(|error| was_rolled_back(&error)) {
            Outcome::Refused(why)
        } else {
            Outcome::Unclear(why)
        }
    }
}

/// Whether an error at a commit says that nothing was done: of a session that lives on, a conflict (class 40), a server that only reads (25),
/// no such table (42), no room (53).
fn was_rolled_back(error: &Error) -> bool {
    let says = |db: &tokio_postgres::error::DbError| {
        let lives = db.parsed_severity() == Some(Severity::Error);
        lives && ["40", "25", "42", "53"].iter().any(|class| db.code().code().starts_with(class))
    };
    error.as_db_error().is_some_and(says)
}

fn signed(key: u64) -> i64 {
    i64::try_from(key).unwrap_or(i64::MAX)
}
