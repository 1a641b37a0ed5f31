//! Physical replication slots of members: made and dropped, and touched only where they are ours.

use super::{Error, Server, session::column};
use crate::model::{instance::Run, moment::Span, node::SlotName};
use tokio_postgres::types::Type;

impl Server {
    /// Makes a physical slot that holds back WAL from now on. One that exists already is left as it is, unless its WAL is lost:
    /// then it is made anew.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that does not begin with [`SlotName::PREFIX`], or that a logical slot bears. As for any session.
    pub async fn create_physical_slot(&self, run: Run, name: &SlotName, limit: Span) -> Result<(), Error> {
        self.only_ours(name)?;
        let doing = format!("make the slot {name}");
        let sql = "SELECT slot_type, coalesce(wal_status = 'lost', false) AS lost, active FROM pg_replication_slots WHERE slot_name = $1";
        let rows = self.rows(run, &doing, sql, &[(&name.as_str(), Type::TEXT)], limit).await?;
        if let Some(row) = rows.first() {
            if column::<&str>(row, "slot_type")? != "physical" {
                return Err(Error::Refused(format!("{doing}: a logical slot bears that name (drop or rename it)")));
            }
            if !column::<bool>(row, "lost")? || column::<bool>(row, "active")? {
                return Ok(());
            }
            self.drop_slot(run, name, limit).await?;
        }
        let sql = "SELECT pg_create_physical_replication_slot($1::name, true)";
        match self.rows(run, &doing, sql, &[(&name.as_str(), Type::TEXT)], limit).await {
            // 42710 duplicate_object: somebody else was faster, or our first attempt had come through.
            Err(Error::Sql { code, .. }) if code == "42710" => Ok(()),
            result => result.map(|_| ()),
        }
    }

    /// Drops a slot of ours that nobody uses. One that is not there is dropped already.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that does not begin with [`SlotName::PREFIX`]; [`Error::Sql`] (55006) while a walsender uses it.
    pub async fn drop_slot(&self, run: Run, name: &SlotName, limit: Span) -> Result<(), Error> {
        self.only_ours(name)?;
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                   WHERE slot_name = $1 AND slot_type = 'physical' AND NOT temporary";
        self.rows(run, &format!("drop the slot {name}"), sql, &[(&name.as_str(), Type::TEXT)], limit).await.map(|_| ())
    }

    fn only_ours(&self, name: &SlotName) -> Result<(), Error> {
        if name.is_ours() {
            return Ok(());
        }
        Err(Error::Refused(format!("touch the slot {name}: only slots whose names begin with {} are ours", SlotName::PREFIX)))
    }
}
