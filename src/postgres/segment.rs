//! How WAL lies on disk: segments, pages, and where a record ends.
//!
//! Sources: PostgreSQL's `xlog_internal.h` (page headers, segment names) and `xlogreader.c` (where records end);
//! the same in 14 to 18 but for the magic numbers, which are left to `pg_waldump`.

use super::{Error, Settings, durable};
use crate::model::wal_layout::LONG_HEADER;
pub use crate::model::wal_layout::Layout;
use crate::model::{
    lsn::{Bytes, Lsn},
    moment::Span,
    timeline::TimelineId,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Records begin at multiples of this.
const ALIGNMENT: u64 = 8;

/// A disk that does not answer for so long hangs.
const READ_LIMIT: Span = Span::from_secs(10);

/// Whether `size` is one that `initdb --wal-segsize` can make: a power of two from 1 MB to 1 GB.
pub const fn is_segment_size(size: u64) -> bool {
    size.is_power_of_two() && size >= 1 << 20 && size <= 1 << 30
}

/// How the WAL of this node's data directory is laid out; `None` when there is none to read.
///
/// # Errors
/// When it cannot be read, or the disk does not answer.
pub async fn layout(settings: &Settings) -> Result<Option<Layout>, Error> {
    let pg_wal = settings.data_dir.join("pg_wal");
    durable::within(READ_LIMIT, pg_wal.clone(), move || Layout::of(&pg_wal).map_err(Error::file("read", pg_wal))).await
}

impl Layout {
    /// The layout that the WAL in `dir` has, by the header of any segment; `None` when there is none to read.
    ///
    /// # Errors
    /// When the directory or a file in it cannot be read.
    pub fn of(dir: &Path) -> io::Result<Option<Self>> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_segment_name)
                && let Some(header) = Header::read(&entry.path())?
            {
                return Ok(Some(header.layout));
            }
        }
        Ok(None)
    }

    /// The last byte before a boundary that is no page header.
    pub const fn byte_before(self, boundary: Lsn) -> Lsn {
        let (byte, page) = (boundary.get(), self.page.get());
        let start = byte - byte % page;
        let end = if byte - start <= self.header(start) { start } else { byte };
        Lsn::new(end.saturating_sub(1))
    }

    /// Where the record after this one begins.
    pub fn end_of(self, record: Record) -> Lsn {
        let (start, page) = (record.start.get(), self.page.get());
        if record.switch {
            // xlogreader.c: an XLOG SWITCH record extends to the end of its segment.
            return self.boundary(Lsn::new(self.segment_number(record.start).saturating_add(1).saturating_mul(self.segment.get())));
        }
        let (mut at, mut left) = (start, u64::from(record.length));
        loop {
            let room = page - at % page;
            if left <= room {
                let end = at + left;
                return self.boundary(Lsn::new(end.next_multiple_of(ALIGNMENT)));
            }
            left -= room;
            at += room;
            at += self.header(at);
        }
    }

    /// The number of the segment that holds this byte.
    pub const fn segment_number(self, lsn: Lsn) -> u64 {
        lsn.get() / self.segment.get()
    }

    /// Where a segment begins.
    pub const fn segment_start(self, number: u64) -> Lsn {
        Lsn::new(number.saturating_mul(self.segment.get()))
    }

    /// The name of a segment's file.
    pub fn segment_name(self, tli: TimelineId, number: u64) -> String {
        let per_id = (1 << 32) / self.segment.get();
        format!("{:08X}{:08X}{:08X}", tli.get(), number / per_id, number % per_id)
    }

    /// Timeline and number from the name of a segment's file.
    pub fn parse_name(self, name: &str) -> Option<(TimelineId, u64)> {
        let (tli, number) = split_name(name)?;
        let per_id = (1 << 32) / self.segment.get();
        (number.1 < per_id).then_some((tli, number.0 * per_id + number.1))
    }

    /// The segments of `tli` in `dir`, by number, as they are named (whatever is in them).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn segments(self, dir: &Path, tli: TimelineId) -> io::Result<BTreeMap<u64, PathBuf>> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if let Some((of, number)) = entry.file_name().to_str().and_then(|name| self.parse_name(name))
                && of == tli
            {
                found.insert(number, entry.path());
            }
        }
        Ok(found)
    }
}

/// Whether a file in `pg_wal` bears the name of a segment.
pub fn is_segment_name(name: &str) -> bool {
    split_name(name).is_some()
}

/// The timeline that a segment's file name says.
pub fn timeline_of(name: &str) -> Option<TimelineId> {
    split_name(name).map(|(tli, _)| tli)
}

fn split_name(name: &str) -> Option<(TimelineId, (u64, u64))> {
    let plain = name.len() == 24 && name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
    let part = |range| name.get(range).and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let tli = part(0..8).and_then(TimelineId::new).filter(|_| plain)?;
    Some((tli, (u64::from(part(8..16)?), u64::from(part(16..24)?))))
}

/// What the long header at the start of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sizes.
    pub layout: Layout,
    /// Where this segment begins, by its own word: a recycled file still says where it was used before.
    pub start: Lsn,
}

impl Header {
    /// Reads it; `None` when the file is too short, gone, or begins with something else (zeros, garbage).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let mut bytes = [0; LONG_HEADER as usize];
        match File::open(path).and_then(|mut file| file.read_exact(&mut bytes)) {
            Ok(()) => Ok(Self::parse(&bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8; LONG_HEADER as usize]) -> Option<Self> {
        // magic u16, info u16, timeline u32, page address u64, remaining u32, padding, system id u64, segment u32, page u32
        let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes).map(u64::from);
        let start = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let (segment, page) = (word(32)?, word(36)?);
        let plausible = is_segment_size(segment) && page.is_power_of_two() && (1 << 10..=1 << 16).contains(&page);
        let layout = Layout { segment: Bytes::new(segment), page: Bytes::new(page) };
        (plausible && start.is_multiple_of(segment)).then_some(Self { layout, start: Lsn::new(start) })
    }
}

/// One record, as `pg_waldump` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it begins.
    pub start: Lsn,
    /// Its length without page headers and padding, in bytes.
    pub length: u32,
    /// Whether it ends its segment.
    pub switch: bool,
}

impl Record {
    /// Reads a line of `pg_waldump`:
    /// `rmgr: Heap        len (rec/tot):     54/   150, tx:        725, lsn: 0/01776958, prev 0/01776510, desc: …`.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("rmgr: ")?;
        let (manager, rest) = rest.split_once(" len (rec/tot):")?;
        let (lengths, rest) = rest.split_once(", tx:")?;
        let (_, length) = lengths.split_once('/')?;
        let (_, rest) = rest.split_once(", lsn: ")?;
        let (start, rest) = rest.split_once(", prev ")?;
        let (_, description) = rest.split_once(", desc: ")?;
        let switch = manager.trim() == "XLOG" && description.split_whitespace().next() == Some("SWITCH");
        Some(Self { start: start.trim().parse().ok()?, length: length.trim().parse().ok()?, switch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(start: u64, length: u32) -> Record {
        Record { start: Lsn::new(start), length, switch: false }
    }

    #[test]
    fn a_record_ends_where_the_next_one_begins() {
        let layout = Layout::DEFAULT;
        // Lengths are padded to eight bytes.
        assert_eq!(layout.end_of(record(0x241_8BB8, 34)), Lsn::new(0x241_8BE0));
        // One that ends with its page: the next begins behind the page header.
        assert_eq!(layout.end_of(record(0x241_9FE0, 32)), Lsn::new(0x241_A018));
        // One that goes over two pages.
        assert_eq!(layout.end_of(record(0x241_9FE0, 32 + 8168 + 8)), Lsn::new(0x241_C000 + 24 + 8));
        // One that goes into the next segment, whose first header is long.
        assert_eq!(layout.end_of(record(0x2FF_FFE0, 40)), Lsn::new(0x300_0000 + 40 + 8));
        // A switch ends its segment.
        assert_eq!(layout.end_of(Record { switch: true, ..record(0x241_8BB8, 24) }), Lsn::new(0x300_0028));
    }

    #[test]
    fn one_boundary_has_one_number() {
        let layout = Layout::DEFAULT;
        for lsn in [0x300_0000, 0x300_0010, 0x300_0028] {
            assert_eq!(layout.boundary(Lsn::new(lsn)), Lsn::new(0x300_0028));
        }
        for lsn in [0x300_2000, 0x300_2018] {
            assert_eq!(layout.boundary(Lsn::new(lsn)), Lsn::new(0x300_2018));
        }
        assert_eq!(layout.boundary(Lsn::new(0x300_2020)), Lsn::new(0x300_2020));
    }

    #[test]
    fn segments_are_named_by_timeline_and_number() {
        let layout = Layout::DEFAULT;
        let tli = TimelineId::new(0x1A).expect("id");
        assert_eq!(layout.segment_name(tli, 0x1_02), "0000001A0000000100000002");
        assert_eq!(layout.parse_name("0000001A0000000100000002"), Some((tli, 0x1_02)));
        for name in ["0000001A0000000100000100", "0000001A00000001", "00000002.history", "0000001A0000000100000002.partial"] {
            assert_eq!(layout.parse_name(name), None, "{name}");
        }
        assert_eq!(layout.parse_name("0000001a0000000100000002"), None);
        let small = Layout { segment: Bytes::new(1 << 20), ..layout };
        assert_eq!(small.parse_name("0000001A0000000100000100"), Some((tli, 0x1100)));
    }

    #[test]
    fn lines_of_pg_waldump_are_read() {
        let line = "rmgr: Heap        len (rec/tot):     54/   150, tx:        725, lsn: 0/01776A60, prev 0/01776958, desc: INSERT off 2";
        assert_eq!(Record::parse(line), Some(record(0x177_6A60, 150)));
        let switch = "rmgr: XLOG        len (rec/tot):     24/    24, tx:          0, lsn: 0/030000D8, prev 0/03000060, desc: SWITCH ";
        assert_eq!(Record::parse(switch), Some(Record { switch: true, ..record(0x300_00D8, 24) }));
        assert_eq!(Record::parse("first record is after 0/1776954, at 0/1776958, skipping over 4 bytes"), None);
    }

    #[test]
    fn only_a_plausible_header_is_believed() {
        let mut bytes = [0_u8; 40];
        assert_eq!(Header::parse(&bytes), None);
        bytes[8..16].copy_from_slice(&0x300_0000_u64.to_ne_bytes());
        bytes[32..36].copy_from_slice(&(16_u32 << 20).to_ne_bytes());
        bytes[36..40].copy_from_slice(&8192_u32.to_ne_bytes());
        assert_eq!(Header::parse(&bytes), Some(Header { layout: Layout::DEFAULT, start: Lsn::new(0x300_0000) }));
        bytes[9] = 0xFF;
        assert_eq!(Header::parse(&bytes), None);
    }
}
