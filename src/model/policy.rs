//! The cluster policy: what the operators decide, and the timers that follow from it.

use super::{lsn::Bytes, moment::Span};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Cluster policy, as `policy.toml` writes it and etcd holds it (inside `policy`, versioned).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterPolicy {
    /// A named set of timers.
    pub preset: Preset,
    /// Between two renewals (P). Overrides the preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renew_every: Option<Span>,
    /// How long a holder may act from the send of a renewal. Overrides the preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Span>,
    /// How long a taker must see the record stand still. Overrides the preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub take_after: Option<Span>,
    /// How long before its deadline a holder begins to stop by itself (S). Overrides the preset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_stop: Option<Span>,
    /// What a commit waits for.
    #[serde(default = "Durability::unnamed")]
    pub durability: Durability,
    /// How many voters must flush a commit before it is acknowledged (`quorum`, `strict-quorum`). From 1 to 4.
    #[serde(skip_serializing_if = "is_one")]
    pub quorum_standbys: u32,
    /// Which replicas are chosen to vote.
    #[serde(skip_serializing_if = "SyncSpread::is_usual")]
    pub sync_spread: SyncSpread,
    /// When voters may follow a primary that they find gone.
    #[serde(skip_serializing_if = "Depose::is_usual")]
    pub depose: Depose,
    /// Whether a primary that etcd does not answer goes on by the word of its peers.
    #[serde(skip_serializing_if = "is_true")]
    pub failsafe: bool,
    /// How many bytes a candidate may be behind the last known position of the primary (`async` only).
    #[serde(with = "bytes_text")]
    pub max_lag: Bytes,
    /// What follows a crash of PostgreSQL while its agent lives.
    pub crash_policy: CrashPolicy,
    /// Whether a diverged data directory may be rewound.
    pub rewind: bool,
    /// When a data directory may be replaced by a fresh copy.
    pub reclone: Reclone,
    /// Whether a node without any fencing may become primary.
    pub allow_unfenced: bool,
    /// How long a start as primary may take before the node releases.
    pub primary_start_timeout: Span,
    /// How long a fast stop may take before the kill.
    pub stop_timeout: Span,
    /// How many automatic failovers are too many.
    #[serde(skip_serializing_if = "AntiFlap::is_usual")]
    pub anti_flap: AntiFlap,
    /// How long, and up to how much WAL, the slot of a member that is away is kept.
    pub member_slot_retention: SlotRetention,
    /// PostgreSQL parameters of all members. Those that we manage are refused.
    pub parameters: BTreeMap<String, String>,
    /// Lines of `pg_hba.conf` after our own.
    pub hba: Vec<String>,
}

/// How many automatic failovers are too many (protocol 1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AntiFlap {
    /// So many; 0: never too many.
    pub failovers: u32,
    /// Within so much time.
    pub within: Span,
}

impl Default for AntiFlap {
    fn default() -> Self {
        Self { failovers: 3, within: Span::from_secs(1_800) }
    }
}

impl AntiFlap {
    /// Agents that know nothing of it read a policy that does not name it.
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// What is kept for a member that is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SlotRetention {
    /// For how long.
    pub time: Span,
    /// Up to how much WAL (`max_slot_wal_keep_size`).
    #[serde(with = "bytes_text")]
    pub bytes: Bytes,
}

impl Default for SlotRetention {
    fn default() -> Self {
        Self { time: Span::from_secs(86_400), bytes: Bytes::new(10 << 30) }
    }
}

/// What a commit waits for (protocol 1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// `async` until a third member is admitted, `quorum` from then on.
    Auto,
    /// For nobody.
    Async,
    /// For `quorum_standbys` voters, or as many as there are.
    Quorum,
    /// For `quorum_standbys` voters, whether they are there or not.
    StrictQuorum,
}

impl Durability {
    /// What holds in a policy in etcd that does not name it: agents that knew nothing of it wrote such a one.
    const fn unnamed() -> Self {
        Self::Async
    }
}

impl SyncSpread {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
    const fn is_usual(&self) -> bool {
        matches!(self, Self::Zone)
    }
}

impl Depose {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
    const fn is_usual(&self) -> bool {
        matches!(self, Self::ByQuorum)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_one(number: &u32) -> bool {
    *number == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
const fn is_true(flag: &bool) -> bool {
    *flag
}

/// Which replicas are chosen to vote where there are more than are needed (protocol 1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncSpread {
    /// Those outside the primary's zone first, and no two of one zone where another one has one too.
    Zone,
    /// Whichever keep up best.
    Any,
}

/// When voters may follow a primary that they find gone, in the quorum modes (protocol 1.7 step 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depose {
    /// As soon as so many of them find it gone as elect.
    ByQuorum,
    /// Once its lease is over.
    AfterLease,
}

/// What follows a crash of PostgreSQL while its agent lives (protocol 1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CrashPolicy {
    /// A replica that has everything takes over; else the node restarts in place.
    Lossless,
    /// Whichever replica is within `max_lag` takes over.
    Failover,
    /// The node restarts in place.
    Restart,
}

/// When a data directory may be replaced by a fresh copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reclone {
    /// Only on an operator's word.
    Never,
    /// When a rewind is needed and cannot be done.
    WhenRewindFails,
    /// Instead of a rewind.
    Always,
}

/// A named set of timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// For etcd with heartbeat 50 ms, election 500 ms, on a LAN.
    Fast,
    /// For etcd's own defaults.
    Default,
    /// For regions apart: etcd 200/2000 ms.
    Wan,
}

impl Default for ClusterPolicy {
    fn default() -> Self {
        Self {
            preset: Preset::Default,
            renew_every: None,
            hold_for: None,
            take_after: None,
            soft_stop: None,
            durability: Durability::Auto,
            quorum_standbys: 1,
            sync_spread: SyncSpread::Zone,
            depose: Depose::ByQuorum,
            failsafe: true,
            max_lag: Bytes::new(1 << 20),
            crash_policy: CrashPolicy::Lossless,
            rewind: true,
            reclone: Reclone::Never,
            allow_unfenced: false,
            primary_start_timeout: Span::from_secs(300),
            stop_timeout: Span::from_secs(60),
            anti_flap: AntiFlap::default(),
            member_slot_retention: SlotRetention::default(),
            parameters: BTreeMap::new(),
            hba: Vec::new(),
        }
    }
}

/// The timers in force (protocol 1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timers {
    /// P: between two renewals.
    pub renew_every: Span,
    /// How long the holder may act from the send of a renewal.
    pub hold: Span,
    /// S: how long before its deadline the holder begins to stop by itself.
    pub soft_stop: Span,
    /// X: from the deadline to the last process dead.
    pub kill_bound: Span,
    /// How long a taker must see the record stand still.
    pub wait: Span,
    /// E: what an etcd election takes with the etcd timing that the preset is for (median).
    pub election: Span,
}

impl Timers {
    /// By how much a renewal may come before its time, to share one wake-up with what is heard then: an eighth of P.
    pub const fn ahead(self) -> Span {
        Span::from_nanos(self.renew_every.as_nanos() / 8)
    }

    /// How often the server is looked at: just before each renewal, which tells others what the look has shown.
    pub const fn look_every(self) -> Span {
        self.renew_every.minus(Span::from_nanos(self.renew_every.as_nanos() / 16))
    }
}

/// The largest rate error of a monotonic clock that we allow for, in parts per million (ρ).
pub const RATE_ERROR_PPM: u64 = 1_000;

/// M: how much validity a promotion, or a start as primary, must have left.
pub const PROMOTION_MARGIN: Span = Span::from_millis(500);

/// The longest hold that a record may carry (a planned restart of the agent uses it).
pub const LONGEST_HOLD: Span = Span::from_secs(15);

impl Preset {
    /// The timers of this preset.
    pub const fn timers(self) -> Timers {
        let (renew, hold, soft, kill, wait, election) = match self {
            Self::Fast => (300, 1_500, 100, 300, 2_000, 700),
            Self::Default => (500, 2_800, 200, 400, 3_300, 1_300),
            Self::Wan => (1_000, 5_000, 300, 1_000, 6_500, 2_600),
        };
        Timers {
            renew_every: Span::from_millis(renew),
            hold: Span::from_millis(hold),
            soft_stop: Span::from_millis(soft),
            kill_bound: Span::from_millis(kill),
            wait: Span::from_millis(wait),
            election: Span::from_millis(election),
        }
    }
}

/// A set of timers that cannot work, with the inequality that it breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{inequality} does not hold: {numbers}")]
pub struct ImpossibleTimers {
    inequality: &'static str,
    numbers: String,
}

impl ClusterPolicy {
    /// The timers in force: the preset's, with what overrides them.
    pub fn timers(&self) -> Timers {
        let preset = self.preset.timers();
        Timers {
            renew_every: self.renew_every.unwrap_or(preset.renew_every),
            hold: self.hold_for.unwrap_or(preset.hold),
            soft_stop: self.soft_stop.unwrap_or(preset.soft_stop),
            kill_bound: preset.kill_bound,
            wait: self.take_after.unwrap_or(preset.wait),
            election: preset.election,
        }
    }

    /// The first inequality of protocol 1.6 that the timers break.
    ///
    /// # Errors
    /// [`ImpossibleTimers`] names the inequality and its numbers.
    pub fn check_timers(&self) -> Result<(), ImpossibleTimers> {
        self.timers().check()
    }
}

impl Timers {
    /// The first inequality of protocol 1.6 that these timers break.
    ///
    /// # Errors
    /// [`ImpossibleTimers`] names the inequality and its numbers.
    pub fn check(&self) -> Result<(), ImpossibleTimers> {
        if self.renew_every < Span::from_millis(100) || self.hold > LONGEST_HOLD {
            return Err(ImpossibleTimers {
                inequality: "renew_every ≥ 100ms and hold_for ≤ 15s",
                numbers: format!("renew_every {}, hold_for {}", self.renew_every, self.hold),
            });
        }
        if self.renew_every.times(3) > self.hold {
            return Err(ImpossibleTimers {
                inequality: "renew_every ≤ hold_for / 3",
                numbers: format!("{} > {} / 3", self.renew_every, self.hold),
            });
        }
        if self.soft_stop.plus(self.renew_every.times(2)) >= self.hold {
            return Err(ImpossibleTimers {
                inequality: "soft_stop + 2 × renew_every < hold_for",
                numbers: format!("{} + 2 × {} ≥ {}", self.soft_stop, self.renew_every, self.hold),
            });
        }
        let election = self.election;
        if self.hold < self.renew_every.plus(self.soft_stop).plus(election) {
            return Err(ImpossibleTimers {
                inequality: "hold_for − renew_every − soft_stop ≥ E (an etcd election must not cost a primary)",
                numbers: format!("{} − {} − {} < {election}", self.hold, self.renew_every, self.soft_stop),
            });
        }
        let least = self.least_wait();
        if self.wait < least {
            return Err(ImpossibleTimers {
                inequality: "(hold_for + X)(1 + ρ)/(1 − ρ) ≤ take_after",
                numbers: format!("({} + {}) × 1.002 = {least} > {}", self.hold, self.kill_bound, self.wait),
            });
        }
        Ok(())
    }

    /// The shortest wait that is safe with this hold: (hold + X)(1 + ρ)/(1 − ρ), rounded up to a millisecond.
    pub fn least_wait(&self) -> Span {
        let both = u128::from(self.hold.plus(self.kill_bound).as_nanos());
        let million = 1_000_000_u128;
        let error = u128::from(RATE_ERROR_PPM);
        let nanos = (both * (million + error)).div_ceil(million - error);
        Span::from_millis(u64::try_from(nanos.div_ceil(million)).unwrap_or(u64::MAX))
    }
}

/// Amounts of bytes as texts with a unit.
mod bytes_text {
    use super::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        const UNITS: [(u64, &str); 4] = [(1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB")];
        let count = bytes.get();
        let unit = UNITS.iter().find(|(size, _)| count >= *size && count.is_multiple_of(*size));
        match unit {
            Some((size, name)) => serializer.serialize_str(&format!("{}{name}", count / size)),
            None => serializer.serialize_str(&format!("{count}B")),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_keeps_the_inequalities() {
        for preset in [Preset::Fast, Preset::Default, Preset::Wan] {
            let policy = ClusterPolicy { preset, ..ClusterPolicy::default() };
            assert_eq!(policy.check_timers(), Ok(()), "{preset:?}");
        }
    }

    #[test]
    fn a_wait_that_is_too_short_is_refused_with_its_numbers() {
        let policy = ClusterPolicy { take_after: Some(Span::from_millis(3_200)), ..ClusterPolicy::default() };
        let message = policy.check_timers().expect_err("too short").to_string();
        assert!(message.contains("take_after") && message.contains("3.207s > 3.2s"), "{message}");
    }

    #[test]
    fn renewals_that_are_too_rare_are_refused() {
        let policy = ClusterPolicy { renew_every: Some(Span::from_secs(1)), ..ClusterPolicy::default() };
        assert!(policy.check_timers().is_err());
    }

    #[test]
    fn a_policy_survives_json() {
        let policy = ClusterPolicy { hold_for: Some(Span::from_millis(2_000)), ..ClusterPolicy::default() };
        let text = serde_json::to_string(&policy).expect("json");
        assert_eq!(serde_json::from_str::<ClusterPolicy>(&text).expect("policy"), policy);
    }

    /// A file that does not name it means the default, a record that does not name it is older than it: so it is always named.
    #[test]
    fn what_commits_wait_for_is_named_in_every_policy() {
        let policy = ClusterPolicy { durability: Durability::Async, ..ClusterPolicy::default() };
        assert!(serde_json::to_string(&policy).expect("json").contains(r#""durability":"async""#));
        assert_eq!(serde_json::from_str::<ClusterPolicy>("{}").expect("policy").durability, Durability::Async);
    }
}
