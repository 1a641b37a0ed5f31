//! What one room sets itself, another refuses: a parameter in only one of the two lists would be dropped in silence.

use pgbaton::{model::policy_check::check_parameter, postgres::parameters::MANAGED};

#[test]
fn every_parameter_that_we_set_ourselves_is_refused_in_a_policy() {
    for name in MANAGED {
        assert!(check_parameter(name, "x").is_err(), "{name}");
    }
}
