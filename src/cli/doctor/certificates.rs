//! Certificates: an expired one ends all connections at once, on all nodes alike.

use super::Row;
use crate::{
    config::{Config, secret::CertificateFile},
    postgres::certificate::{Validity, validities},
};

/// Who renews by hand wants to know so many days before.
const SOON: u64 = 30;
const DAY: u64 = 86_400;

/// A row for each certificate that the configuration names. `now`: seconds since 1970.
pub(super) fn rows(config: &Config, now: u64) -> Vec<Row> {
    let postgres = &config.postgres;
    let own =
        [("etcd.cert_file", config.etcd.client.as_ref()), ("postgres.replication.cert_file", postgres.replication.certificate.as_ref())];
    let authorities =
        [("etcd.ca_file", config.etcd.ca.as_ref()), ("postgres.replication_tls.ca_file", postgres.replication_tls.ca.as_ref())];
    let own = own.into_iter().filter_map(|(key, pair)| pair.map(|pair| row(key, &pair.certificate, now, first_to_end)));
    // Of several authorities an old one may stay: what counts is the one that holds for longest.
    let authorities = authorities.into_iter().filter_map(|(key, file)| file.map(|file| row(key, file, now, last_to_end)));
    own.chain(authorities).collect()
}

fn first_to_end(all: &[Validity]) -> Option<&Validity> {
    all.iter().min_by_key(|validity| validity.until)
}

fn last_to_end(all: &[Validity]) -> Option<&Validity> {
    all.iter().max_by_key(|validity| validity.until)
}

fn row(key: &str, file: &CertificateFile, now: u64, which: fn(&[Validity]) -> Option<&Validity>) -> Row {
    let subject = "certificates";
    let name = format!("{key} {}", file.path.display());
    let remedy = "renew it on this node, then restart the agent; PostgreSQL runs on";
    let all = match validities(&file.pem) {
        Ok(all) => all,
        Err(why) => return Row::fail(subject, format!("{name} {why}"), "name the right file"),
    };
    let Some(Validity { from, until }) = which(&all).copied() else {
        return Row::fail(subject, format!("{name} holds no certificate"), "name the right file");
    };
    if now > until {
        return Row::fail(subject, format!("{name} expired {} ago", days(now - until)), remedy);
    }
    if now < from {
        return Row::fail(subject, format!("{name} holds only in {}", days(from - now)), "look at this host's clock, or renew it");
    }
    let found = format!("{name} expires in {}", days(until - now));
    if until - now < SOON * DAY { Row::warn(subject, found, remedy) } else { Row::ok(subject, found) }
}

fn days(seconds: u64) -> String {
    match seconds / DAY {
        0 => format!("{} hours", seconds / 3_600),
        1 => "1 day".to_owned(),
        days => format!("{days} days"),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    /// 2026-01-01.
    const BEGIN: u64 = 1_767_225_600;

    /// Valid from 2026-01-01 until the first of that month of 2026.
    fn until(month: u8) -> String {
        let mut params = CertificateParams::new(vec!["n1".to_owned()]).expect("parameters");
        (params.not_before, params.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2026, month, 1));
        params.self_signed(&KeyPair::generate().expect("key")).expect("certificate").pem()
    }

    fn looked_at(pem: &str, day: i64, which: fn(&[Validity]) -> Option<&Validity>) -> (Verdict, String) {
        let file = CertificateFile { path: "/etc/n1.crt".into(), pem: pem.to_owned() };
        let row = row("etcd.cert_file", &file, BEGIN.saturating_add_signed(day * 86_400), which);
        (row.verdict, row.found)
    }

    #[test]
    fn a_certificate_warns_a_month_before_its_end_and_fails_after_it() {
        let march = until(3);
        let look = |day| looked_at(&march, day, first_to_end);
        assert_eq!(look(10), (Verdict::Ok, "etcd.cert_file /etc/n1.crt expires in 49 days".to_owned()));
        assert_eq!(look(30), (Verdict::Warn, "etcd.cert_file /etc/n1.crt expires in 29 days".to_owned()));
        assert_eq!(look(61), (Verdict::Fail, "etcd.cert_file /etc/n1.crt expired 2 days ago".to_owned()));
        assert_eq!(look(-1), (Verdict::Fail, "etcd.cert_file /etc/n1.crt holds only in 1 day".to_owned()));
    }

    #[test]
    fn of_a_chain_the_first_end_counts_and_of_authorities_the_last() {
        let both = until(3) + &until(12);
        assert_eq!(looked_at(&both, 40, first_to_end).0, Verdict::Warn);
        assert_eq!(looked_at(&both, 70, last_to_end).0, Verdict::Ok);
    }

    #[test]
    fn what_is_no_certificate_fails() {
        let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", text] {
            assert_eq!(looked_at(text, 0, first_to_end).0, Verdict::Fail, "{text}");
        }
    }
}
