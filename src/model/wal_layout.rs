//! How WAL lies on disk, as far as positions have to be compared: pages begin with a header.

use super::lsn::{Bytes, Lsn};
use serde::{Deserialize, Serialize};

/// Bytes of the header of any other page.
const SHORT_HEADER: u64 = 24;
/// Bytes of the header that begins a segment.
pub const LONG_HEADER: u64 = 40;

/// The sizes that one cluster's WAL is laid out by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Bytes a segment.
    pub segment: Bytes,
    /// Bytes a page.
    pub page: Bytes,
}

impl Layout {
    /// What `initdb` makes unless told otherwise.
    pub const DEFAULT: Self = Self { segment: Bytes::new(16 << 20), page: Bytes::new(8192) };

    /// The one way in which we write a boundary: where the next record begins.
    ///
    /// PostgreSQL calls the same place by two numbers: a record that ends with its page ends at the page's end for the
    /// startup process (`pg_last_wal_replay_lsn()`), but the next one begins behind the page header
    /// (`pg_current_wal_insert_lsn()`). Compared as numbers they differ by up to 40 bytes; in this form they are equal.
    pub const fn boundary(self, lsn: Lsn) -> Lsn {
        let (byte, page) = (lsn.get(), self.page.get());
        let header = self.header(byte - byte % page);
        if byte % page < header { Lsn::new(byte - byte % page + header) } else { lsn }
    }

    /// Bytes of the header of the page at `page_start`.
    pub const fn header(self, page_start: u64) -> u64 {
        if page_start.is_multiple_of(self.segment.get()) { LONG_HEADER } else { SHORT_HEADER }
    }
}
