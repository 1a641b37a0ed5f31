//! What happened, line by line, as people read it.

use std::fmt::Write;

/// The lines of one run. Equal seeds give equal texts, byte for byte.
pub(super) struct Trace {
    kept: bool,
    text: String,
    /// Of every line, kept or not: two runs are compared by it.
    digest: u64,
}

impl Trace {
    pub(super) const fn new(kept: bool) -> Self {
        Self { kept, text: String::new(), digest: 0xCBF2_9CE4_8422_2325 }
    }

    pub(super) fn line(&mut self, now: u64, who: &str, what: &str) {
        let (seconds, micros) = (now / 1_000_000_000, now % 1_000_000_000 / 1_000);
        for byte in now.to_le_bytes().iter().chain(who.as_bytes()).chain(what.as_bytes()) {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
        if self.kept {
            // Writing to a String cannot fail.
            let _ = writeln!(self.text, "{seconds:>5}.{micros:06} {who:<5} {what}");
        }
    }

    pub(super) const fn digest(&self) -> u64 {
        self.digest
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}
