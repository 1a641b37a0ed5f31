//! The one source of chance: a small generator, seeded once.

/// splitmix64: equal seeds give equal sequences, on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit`; 0 where that is 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }

    /// From `least` to `most`, both included.
    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most.saturating_sub(least) + 1)
    }

    /// True so many times in a thousand.
    pub(super) fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// A length of time in nanoseconds, from `least` to `most` milliseconds.
    pub(super) fn millis(&mut self, least: u64, most: u64) -> u64 {
        self.between(least * 1_000_000, most * 1_000_000)
    }

    /// Mostly short, now and then up to ten times as long: how disks and networks are.
    pub(super) fn tailed(&mut self, least: u64, most: u64) -> u64 {
        let long = if self.chance(30) { 10 } else { 1 };
        self.millis(least, most * long)
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap_or_default()]
    }
}
