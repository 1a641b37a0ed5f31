//! The view of etcd's keys, whatever order their changes come in.

use super::*;
use proptest::prelude::*;

/// Of four keys each revision's value: of some they are deleted, of some not readable.
fn history() -> Vec<(Key, Option<String>, u64)> {
    let keys = [Key::Bootstrap, Key::Node(parsed("n2")), Key::Leader, Key::Intent];
    (1..=24_u64)
        .map(|revision| {
            let key = keys[usize::try_from(revision % 4).unwrap_or_default()].clone();
            let text = match (revision % 5, &key) {
                // `leader` is never deleted; a view that sees it gone believes nothing any more.
                (0, key) if *key != Key::Leader => None,
                (3, _) => Some("{".to_owned()),
                (_, Key::Bootstrap) => Some(format!(r#"{{"v":1,"node":"n1","agent":"a{revision}"}}"#)),
                (_, Key::Leader) => Some(leader("n2", 3, &format!("L{revision}"), revision)),
                (_, Key::Intent) => Some(format!(
                    r#"{{"v":1,"id":"i{revision}","request":{{"kind":"remove","node":"n3"}},"term":3,"actor":"ann","at":""}}"#
                )),
                _ => Some(format!(r#"{{"v":1,"data":"000000a2","starts":{revision},"whole":"0/0","tli":null}}"#)),
            };
            (key, text, revision)
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes twice, late, or in another order: of each key the newest value that came is shown.
    #[test]
    fn the_view_never_goes_back(order in proptest::collection::vec(0_usize..24, 1..60)) {
        let history = history();
        let mut state = state();
        let mut newest: BTreeMap<Key, (u64, Option<String>)> = BTreeMap::new();
        for index in order {
            let (key, text, revision) = &history[index];
            state.apply(changed(key, text.as_deref(), *revision), at(0));
            if newest.get(key).is_none_or(|(known, _)| known < revision) {
                newest.insert(key.clone(), (*revision, text.clone()));
            }
        }
        for (key, (revision, text)) in newest {
            let shown = text.filter(|text| text != "{");
            prop_assert_eq!(state.records.text(&key), shown.as_deref(), "{} at {}", key, revision);
        }
    }
}
