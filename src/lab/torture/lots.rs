//! Chance by a seed.

use crate::model::moment::Span;

/// splitmix64: equal seeds give equal sequences, on every machine.
#[derive(Clone, Debug)]
pub struct Lots(u64);

impl Lots {
    /// A sequence of its own for each `part` of a seed.
    pub const fn new(seed: u64, part: u64) -> Self {
        let mut lots = Self(seed ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        // Neighbouring seeds begin far from each other.
        lots.0 = lots.draw();
        lots
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.draw() % limit }
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// From `least` to `most` milliseconds.
    pub fn millis(&mut self, least: u64, most: u64) -> Span {
        Span::from_millis(least + self.below(most.saturating_sub(least) + 1))
    }

    /// One of several with weights; `None` where all weigh nothing.
    pub fn weighed<T: Copy>(&mut self, from: &[(u64, T)]) -> Option<T> {
        let mut left = self.below(from.iter().map(|(weight, _)| weight).sum());
        let hit = from.iter().find(|(weight, _)| {
            let hit = left < *weight;
            left = left.saturating_sub(*weight);
            hit
        });
        hit.map(|(_, what)| *what)
    }
}
