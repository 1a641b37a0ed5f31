//! The tables that the clients work on, and what is left in them at the end.

use super::{
    super::{
        cluster::Lab,
        sql::{self, Login},
        verdict::Row,
    },
    hand::ACCOUNTS,
    history::{Remains, Transfer},
};
use crate::model::moment::Span;
use anyhow::{Result, bail};

/// What each account has at first.
pub const START: i64 = 1_000;

/// How long one reading of everything may take.
const READING: Span = Span::from_secs(60);

/// Not a superuser: sessions of clients that wait must not take the places that are reserved for the agent's. It uses indexes on small
/// tables too, because a serializable transaction that reads a whole table conflicts with everybody.
const ROLE: &str = "torture";

/// One number for all that a node holds.
const DIGEST: &str = "SELECT md5(concat( \
    (SELECT string_agg(concat(client, ' ', seq), ',' ORDER BY client, seq) FROM lab_writes), ';', \
    (SELECT string_agg(l::text, ',' ORDER BY key) FROM lab_lists l), ';', \
    (SELECT string_agg(t::text, ',' ORDER BY id) FROM lab_transfers t), ';', \
    (SELECT string_agg(a::text, ',' ORDER BY id) FROM lab_accounts a)))";

/// Everything at once: a letter, and what belongs to it.
const ALL: &str = "SELECT 'row', client, seq::text, '', '' FROM lab_writes \
    UNION ALL SELECT 'list', key::text, array_to_string(items, ','), '', '' FROM lab_lists \
    UNION ALL SELECT 'transfer', id::text, source::text, target::text, amount::text FROM lab_transfers \
    UNION ALL (SELECT 'balance', balance::text, '', '', '' FROM lab_accounts ORDER BY id)";

impl Lab {
    /// Makes the tables and the role; returns how the clients introduce themselves. Once in the life of a cluster.
    ///
    /// # Errors
    /// When the node does not take it.
    pub fn make_torture_ground(&self, primary: &str) -> Result<Login> {
        let text = format!(
            "{}; \
             CREATE TABLE lab_lists (key bigint PRIMARY KEY, items bigint[] NOT NULL); \
             CREATE TABLE lab_transfers (id bigint PRIMARY KEY, source int NOT NULL, target int NOT NULL, amount bigint NOT NULL); \
             CREATE TABLE lab_accounts (id int PRIMARY KEY, balance bigint NOT NULL); \
             INSERT INTO lab_accounts SELECT account, {START} FROM generate_series(1, {ACCOUNTS}) account; \
             CREATE ROLE {ROLE} LOGIN CONNECTION LIMIT 70; \
             ALTER ROLE {ROLE} SET enable_seqscan = off; \
             GRANT ALL ON lab_writes, lab_lists, lab_transfers, lab_accounts TO {ROLE}",
            sql::TABLE
        );
        self.query(primary, &text)?;
        Ok(Login { user: ROLE.to_owned(), ..self.login().clone() })
    }

    /// What is left, on the primary, and which other nodes hold something else although they had time to catch up. For after the end of all clients.
    ///
    /// # Errors
    /// When the primary does not answer, or the other nodes do not.
    pub fn remains(&self, primary: &str, deadline: Span) -> Result<Remains> {
        let differs = |node: &str, wanted: &[Vec<Option<String>>]| Ok::<_, anyhow::Error>(self.read(node, DIGEST)? != wanted);
        let others = || self.nodes().iter().map(|node| node.name.clone()).filter(|name| name != primary);
        let caught_up = || {
            // Backends that still waited for replicas when their clients left may end now.
            let wanted = self.read(primary, DIGEST).ok()?;
            others().all(|node| differs(&node, &wanted).is_ok_and(|differs| !differs)).then_some(())
        };
        let all_agree = self.wait("all nodes to hold the same", deadline, caught_up).is_ok();
        let mut remains = read_all(primary, self.read(primary, ALL)?)?;
        if !all_agree {
            let wanted = self.read(primary, DIGEST)?;
            for node in others() {
                if differs(&node, &wanted)? {
                    remains.differ.push(node);
                }
            }
        }
        Ok(remains)
    }

    fn read(&self, node: &str, text: &str) -> Result<Vec<Vec<Option<String>>>> {
        sql::query(self.client().network(), &self.node(node)?.server(), self.login(), text, READING)
    }
}

fn read_all(primary: &str, rows: Vec<Vec<Option<String>>>) -> Result<Remains> {
    let mut remains = Remains { node: primary.to_owned(), ..Remains::default() };
    for row in rows {
        let columns: Vec<&str> = row.iter().flatten().map(String::as_str).collect();
        match columns.as_slice() {
            ["row", client, seq, ..] => {
                remains.rows.insert(Row { client: (*client).to_owned(), seq: seq.parse()? });
            }
            ["list", key, items, ..] => {
                let items = items.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>()?;
                remains.lists.insert(key.parse()?, items);
            }
            ["transfer", id, from, to, amount] => {
                let transfer = Transfer { from: from.parse()?, to: to.parse()?, amount: amount.parse()? };
                remains.transfers.insert(id.parse()?, transfer);
            }
            ["balance", balance, ..] => remains.balances.push(balance.parse()?),
            other => bail!("{primary} answered {other:?}"),
        }
    }
    if i32::try_from(remains.balances.len()) != Ok(ACCOUNTS) {
        bail!("{primary} has {} accounts", remains.balances.len());
    }
    Ok(remains)
}
