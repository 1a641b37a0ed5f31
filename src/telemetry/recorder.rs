//! Keeps the values of the table and prints them for Prometheus.

use super::metrics::{Counter, Gauge, Histogram, Kind, Row, TABLE, Unit};
use crate::model::node::{ClusterName, NodeName};
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// How long a gauge is shown after it was last set: a member that is gone, or a role that ended, leaves no stale value.
const GAUGE_LIFE: Duration = Duration::from_secs(60);

/// So many observations are kept before they are folded into their histograms, also when nobody asks for the metrics.
const FOLD_EVERY: u32 = 512;

/// The metrics of one node. Cheap to use; calls wait for nothing but a short lock.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    observed: AtomicU32,
}

const METADATA: Metadata<'static> = Metadata::new("pgbaton", Level::INFO, Some(module_path!()));

impl Metrics {
    /// Metrics without values, but for the build's.
    pub fn new(cluster: &ClusterName, node: &NodeName) -> Self {
        let mut builder = PrometheusBuilder::new()
            .add_global_label("cluster", cluster.as_str())
            .add_global_label("node", node.as_str())
            .idle_timeout(MetricKindMask::GAUGE, Some(GAUGE_LIFE));
        for row in TABLE {
            if let Kind::Histogram(bounds) = row.kind {
                builder = with_bounds(builder, row.name, bounds);
            }
        }
        let recorder = builder.build_recorder();
        for row in TABLE {
            describe(&recorder, row);
        }
        let handle = recorder.handle();
        Self { recorder, handle, observed: AtomicU32::new(0) }
    }

    /// Sets a gauge. `labels` are the values of the row's labels, in its order.
    pub fn set(&self, gauge: Gauge, labels: &[&str], value: f64) {
        self.recorder.register_gauge(&key(&gauge.0, labels), &METADATA).set(value);
    }

    /// Sets a gauge with one label to 1 for `current` and to 0 for the other words.
    pub fn choose(&self, gauge: Gauge, words: &[&str], current: &str) {
        for word in words {
            self.set(gauge, &[word], if *word == current { 1.0 } else { 0.0 });
        }
    }

    /// Adds to a counter.
    pub fn add(&self, counter: Counter, labels: &[&str], by: u64) {
        self.recorder.register_counter(&key(&counter.0, labels), &METADATA).increment(by);
    }

    /// Adds a value to a histogram.
    pub fn observe(&self, histogram: Histogram, labels: &[&str], value: f64) {
        self.recorder.register_histogram(&key(&histogram.0, labels), &METADATA).record(value);
        if self.observed.fetch_add(1, Ordering::Relaxed) % FOLD_EVERY == FOLD_EVERY - 1 {
            self.handle.run_upkeep();
        }
    }

    /// All values in Prometheus' text format.
    pub fn render(&self) -> String {
        self.set(super::metrics::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
        self.handle.render()
    }
}

fn with_bounds(builder: PrometheusBuilder, name: &str, bounds: &[f64]) -> PrometheusBuilder {
    // Refused only without bounds; no row is.
    builder.set_buckets_for_metric(Matcher::Full(name.to_owned()), bounds).unwrap_or_default()
}

fn describe(recorder: &PrometheusRecorder, row: &Row) {
    let unit = match row.unit {
        Unit::One => metrics::Unit::Count,
        Unit::Seconds => metrics::Unit::Seconds,
        Unit::Bytes => metrics::Unit::Bytes,
    };
    let name = KeyName::from_const_str(row.name);
    match row.kind {
        Kind::Gauge => recorder.describe_gauge(name, Some(unit), row.help.into()),
        Kind::Counter => recorder.describe_counter(name, Some(unit), row.help.into()),
        Kind::Histogram(_) => recorder.describe_histogram(name, Some(unit), row.help.into()),
    }
}

fn key(row: &Row, values: &[&str]) -> Key {
    debug_assert_eq!(row.labels.len(), values.len(), "labels of {}", row.name);
    let labels: Vec<Label> = row.labels.iter().zip(values).map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(KeyName::from_const_str(row.name), labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{LAG_BYTES, ROLE};

    fn node() -> Metrics {
        Metrics::new(&"orders".parse().expect("cluster"), &"n1".parse().expect("node"))
    }

    fn record(metrics: &Metrics, row: &Row) {
        let labels: Vec<&str> = row.labels.iter().map(|_| "x").collect();
        match row.kind {
            Kind::Gauge => metrics.set(Gauge(*row), &labels, 1.5),
            Kind::Counter => metrics.add(Counter(*row), &labels, 2),
            Kind::Histogram(_) => metrics.observe(Histogram(*row), &labels, 0.003),
        }
    }

    #[test]
    fn every_metric_renders_with_help_type_and_labels() {
        let metrics = node();
        for row in TABLE {
            record(&metrics, row);
        }
        let text = metrics.render();
        for row in TABLE {
            let (kind, suffix) = match row.kind {
                Kind::Gauge => ("gauge", ""),
                Kind::Counter => ("counter", ""),
                Kind::Histogram(_) => ("histogram", "_bucket"),
            };
            let name = row.name;
            assert!(text.contains(&format!("# HELP {name} {}\n", row.help)), "{name}\n{text}");
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}\n{text}");
            let line = text.lines().find(|line| line.starts_with(&format!("{name}{suffix}{{"))).expect(name);
            for label in ["cluster=\"orders\"", "node=\"n1\""] {
                assert!(line.contains(label), "{line}");
            }
            assert!(row.labels.iter().all(|label| line.contains(&format!("{label}=\""))), "{line}");
        }
    }

    #[test]
    fn names_end_in_their_base_unit() {
        for row in TABLE {
            let unit = match (row.kind, row.unit) {
                (Kind::Counter, Unit::One) => "_total",
                (Kind::Counter, Unit::Seconds) => "_seconds_total",
                (Kind::Counter, Unit::Bytes) => "_bytes_total",
                (_, Unit::Seconds) => "_seconds",
                (_, Unit::Bytes) => "_bytes",
                (_, Unit::One) => "",
            };
            assert!(row.name.starts_with("pgbaton_") && row.name.ends_with(unit), "{}", row.name);
            assert!(unit.ends_with("_total") || !row.name.ends_with("_total"), "{}", row.name);
            assert!(row.help.ends_with('.') && !row.labels.contains(&"cluster") && !row.labels.contains(&"node"), "{}", row.name);
            assert_eq!(TABLE.iter().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
            if let Kind::Histogram(bounds) = row.kind {
                assert!(bounds.is_sorted() && !bounds.is_empty(), "{}", row.name);
            }
        }
    }

    #[test]
    fn exactly_one_role_is_on() {
        let metrics = node();
        metrics.choose(ROLE, &["primary", "replica", "down"], "replica");
        metrics.choose(ROLE, &["primary", "replica", "down"], "primary");
        let text = metrics.render();
        let roles: Vec<&str> = text.lines().filter(|line| line.starts_with("pgbaton_role{") && line.ends_with(" 1")).collect();
        assert_eq!(roles.len(), 1, "{text}");
        assert!(roles[0].contains("role=\"primary\""), "{text}");
    }

    #[test]
    fn two_nodes_in_one_process_keep_their_values_apart() {
        let (first, second) = (node(), node());
        first.set(LAG_BYTES, &["n2", "replay"], 16_384.0);
        assert!(first.render().contains("pgbaton_lag_bytes{") && !second.render().contains("pgbaton_lag_bytes{"));
    }

    #[test]
    fn histograms_count_their_values_also_when_nobody_asks_for_long() {
        let metrics = node();
        for _ in 0..3 * FOLD_EVERY {
            metrics.observe(super::super::metrics::DECISION, &[], 0.000_02);
        }
        let text = metrics.render();
        assert!(text.contains("pgbaton_decision_duration_seconds_count{cluster=\"orders\",node=\"n1\"} 1536"), "{text}");
    }
}
