//! etcd: whether it answers, how fast, and whether its members can lose one of them.

use super::{Known, Row, records};
use crate::{
    cli::store,
    config::Config,
    dcs::{EndpointStatus, MemberStatus},
    model::moment::Span,
};

/// An endpoint that is slower costs renewals now and then.
const SLOW: Span = Span::from_millis(50);
/// One that is slower than an attempt's deadline is of no use.
const USELESS: Span = Span::from_millis(350);
/// Writes stop at etcd's quota: 2 GB by default.
const LARGE: u64 = 1_500 << 20;

pub(super) async fn rows(config: &Config, known: &mut Known) -> Vec<Row> {
    let etcd = match store::open(config).await {
        Ok(etcd) => etcd,
        Err(error) => return vec![Row::fail("etcd", format!("could not {error}"), "correct [etcd]")],
    };
    let endpoints = etcd.status(Span::from_secs(3)).await;
    let mut rows: Vec<Row> = endpoints.iter().map(endpoint).collect();
    let members: Vec<&MemberStatus> = endpoints.iter().filter_map(|endpoint| endpoint.state.as_ref().ok()).collect();
    rows.extend(together(&members, endpoints.len()));
    if members.is_empty() {
        return rows;
    }
    match records(config, known).await {
        Ok(()) => {
            let found = match &known.cluster {
                Some(cluster) => format!("cluster {} is there, initialised by {}", config.cluster, cluster.initialised_by),
                None => format!("cluster {} does not exist yet", config.cluster),
            };
            rows.push(Row::ok("etcd records", found));
        }
        Err(error) => rows.push(Row::fail("etcd records", format!("could not {error}"), "look at etcd's users, roles and alarms")),
    }
    rows
}

fn endpoint(endpoint: &EndpointStatus) -> Row {
    let (subject, name) = ("etcd", &endpoint.endpoint);
    let member = match &endpoint.state {
        Ok(member) => member,
        Err(why) => {
            return Row::warn(
                subject,
                format!("{name} does not answer: could not {why}"),
                "look at that member, the network, the certificates",
            );
        }
    };
    let found = format!("{name} answers in {} ms, version {}", millis(member.latency), member.version);
    if member.no_space {
        return Row::fail(subject, format!("{name} has the alarm NOSPACE"), "compact, defragment, then etcdctl alarm disarm");
    }
    if member.leader == 0 {
        return Row::fail(subject, format!("{name} follows no leader"), "bring a majority of the members up");
    }
    if member.latency > USELESS {
        return Row::fail(subject, found, "move etcd to faster disks or nearer hosts");
    }
    if member.latency > SLOW {
        return Row::warn(subject, found, "a slow etcd costs renewals: give it a disk of its own, or use the preset wan");
    }
    if member.db_size > LARGE {
        let found = format!("{name} holds {} MB", member.db_size >> 20);
        return Row::warn(subject, found, "turn auto-compaction on and defragment: etcd stops taking writes at its quota");
    }
    Row::ok(subject, found)
}

fn millis(span: Span) -> String {
    format!("{:.1}", span.as_secs_f64() * 1_000.0)
}

/// What only shows from all of them.
fn together(members: &[&MemberStatus], configured: usize) -> Option<Row> {
    let subject = "etcd cluster";
    let Some(first) = members.first() else {
        return Some(Row::fail(subject, "no endpoint answers", "start etcd, or correct [etcd] endpoints"));
    };
    if members.iter().any(|member| member.cluster_id != first.cluster_id) {
        return Some(Row::fail(subject, "the endpoints belong to different etcd clusters", "correct [etcd] endpoints"));
    }
    let count = members.iter().map(|member| member.members).max().unwrap_or_default();
    Some(match count {
        0 => Row::warn(subject, "how many members it has is not told to this user", "allow the user to list members"),
        1 | 2 => {
            let found = format!("{count} member{}", if count == 1 { "" } else { "s" });
            Row::warn(subject, found, "run three: it does not survive the loss of one")
        }
        even if even % 2 == 0 => {
            let found = format!("{even} members");
            Row::warn(subject, found, "add or remove one: an even number survives no more losses than one less")
        }
        odd if configured < odd => {
            let found = format!("{odd} members, of which {configured} are configured here");
            Row::warn(subject, found, "name all of them in [etcd] endpoints")
        }
        odd => Row::ok(subject, format!("{odd} members")),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn member(members: usize, cluster_id: u64) -> MemberStatus {
        MemberStatus {
            version: "3.4.23".to_owned(),
            db_size: 1 << 20,
            member: 1,
            leader: 1,
            raft_term: 2,
            revision: 10,
            cluster_id,
            members,
            no_space: false,
            errors: Vec::new(),
            latency: Span::from_millis(2),
        }
    }

    #[test]
    fn an_even_or_small_number_of_members_is_a_warning() {
        let verdict = |members, configured| together(&[&member(members, 1)], configured).map(|row| row.verdict);
        assert_eq!(verdict(3, 3), Some(Verdict::Ok));
        assert_eq!(verdict(5, 5), Some(Verdict::Ok));
        for (members, configured) in [(4, 4), (1, 1), (2, 2), (5, 3)] {
            assert_eq!(verdict(members, configured), Some(Verdict::Warn), "{members}");
        }
        assert_eq!(together(&[&member(3, 1), &member(3, 2)], 3).map(|row| row.verdict), Some(Verdict::Fail));
        assert_eq!(together(&[], 3).map(|row| row.verdict), Some(Verdict::Fail));
    }

    #[test]
    fn a_slow_full_or_leaderless_member_is_told() {
        let verdict = |member| endpoint(&EndpointStatus { endpoint: "http://e1:2379".to_owned(), state: Ok(member) }).verdict;
        assert_eq!(verdict(member(3, 1)), Verdict::Ok);
        assert_eq!(verdict(MemberStatus { latency: Span::from_millis(60), ..member(3, 1) }), Verdict::Warn);
        assert_eq!(verdict(MemberStatus { latency: Span::from_millis(400), ..member(3, 1) }), Verdict::Fail);
        assert_eq!(verdict(MemberStatus { no_space: true, ..member(3, 1) }), Verdict::Fail);
        assert_eq!(verdict(MemberStatus { leader: 0, ..member(3, 1) }), Verdict::Fail);
        assert_eq!(verdict(MemberStatus { db_size: 2 << 30, ..member(3, 1) }), Verdict::Warn);
    }
}
