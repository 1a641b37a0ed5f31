//! Physical replication slots of members: made, kept for a time, and dropped only where they are ours.

use super::{Error, Server, session::column};
use crate::model::{
    instance::{Run, Slot},
    moment::Span,
    node::SlotName,
    policy::SlotRetention,
};
use tokio_postgres::types::Type;

/// What the names of our slots begin with. Any other slot is somebody else's and is never touched.
pub const PREFIX: &str = "pgbaton_";

/// Why the slot of a member that is away is not kept any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// The member is away for longer than the policy keeps slots.
    Time,
    /// It holds back more WAL than the policy allows.
    Bytes,
    /// PostgreSQL has removed WAL that it needed: it is of no use to anyone.
    Lost,
}

/// Whether the slot of a member that has been away for `away` may go, and why. `None`: it is in use, not ours, or still kept.
pub fn expired(slot: &Slot, away: Span, retention: &SlotRetention) -> Option<Expired> {
    if slot.active || !is_ours(&slot.name) {
        return None;
    }
    match () {
        () if slot.lost => Some(Expired::Lost),
        () if away > retention.time => Some(Expired::Time),
        () if slot.retained > retention.bytes.get() => Some(Expired::Bytes),
        () => None,
    }
}

fn is_ours(name: &SlotName) -> bool {
    name.as_str().starts_with(PREFIX)
}

impl Server {
    /// Makes a physical slot that holds back WAL from now on. One that exists already is left as it is, unless its WAL is lost:
    /// then it is made anew.
    ///
    /// # Errors
    /// [`Error::Refused`] for a name that does not begin with [`PREFIX`], or that a logical slot bears. As for any session.
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
    /// [`Error::Refused`] for a name that does not begin with [`PREFIX`]; [`Error::Sql`] (55006) while a walsender uses it.
    pub async fn drop_slot(&self, run: Run, name: &SlotName, limit: Span) -> Result<(), Error> {
        self.only_ours(name)?;
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                   WHERE slot_name = $1 AND slot_type = 'physical' AND NOT temporary";
        self.rows(run, &format!("drop the slot {name}"), sql, &[(&name.as_str(), Type::TEXT)], limit).await.map(|_| ())
    }

    fn only_ours(&self, name: &SlotName) -> Result<(), Error> {
        if is_ours(name) {
            return Ok(());
        }
        Err(Error::Refused(format!("touch the slot {name}: only slots whose names begin with {PREFIX} are ours")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::lsn::Bytes;

    fn slot(name: &str) -> Slot {
        Slot { name: name.parse().expect("name"), active: false, retained: 10, lost: false }
    }

    const KEPT: SlotRetention = SlotRetention { time: Span::from_secs(60), bytes: Bytes::new(100) };

    #[test]
    fn a_slot_goes_by_time_bytes_or_loss() {
        let ours = slot("pgbaton_n1");
        assert_eq!(expired(&ours, Span::from_secs(60), &KEPT), None);
        assert_eq!(expired(&ours, Span::from_secs(61), &KEPT), Some(Expired::Time));
        assert_eq!(expired(&Slot { retained: 101, ..ours.clone() }, Span::ZERO, &KEPT), Some(Expired::Bytes));
        assert_eq!(expired(&Slot { lost: true, ..ours }, Span::ZERO, &KEPT), Some(Expired::Lost));
    }

    #[test]
    fn a_slot_that_is_used_or_not_ours_never_goes() {
        let long = Span::from_secs(1_000_000);
        assert_eq!(expired(&Slot { active: true, lost: true, ..slot("pgbaton_n1") }, long, &KEPT), None);
        assert_eq!(expired(&Slot { lost: true, ..slot("backup") }, long, &KEPT), None);
    }
}
