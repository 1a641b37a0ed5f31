//! The throw-away instances that the other tests stand on.

#[path = "support/pg.rs"]
mod pg;

use pg::Instance;

#[test]
fn a_standby_replays_what_its_primary_wrote() {
    let primary = Instance::primary();
    let standby = Instance::standby_of(&primary);
    primary.sql("create table t as select generate_series(1, 10) as n");
    pg::wait_until("the rows are there", pgbaton::model::moment::Span::from_secs(10), || {
        standby.try_sql("select count(*) from t").is_ok_and(|count| count == "10")
    });
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
}
