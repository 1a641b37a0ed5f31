//! On which mount a path lies, and how much room is there.

use crate::model::lsn::Bytes;
use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// The mount point that `path` lies under; of a path that does not exist, that of its nearest ancestor that does.
pub(super) fn point_of(path: &Path) -> io::Result<PathBuf> {
    let path = existing(path)?;
    let table = fs::read("/proc/self/mountinfo")?;
    let points = table.split(|byte| *byte == b'\n').filter_map(mount_point);
    // Later mounts cover earlier ones of the same name, which makes no difference here.
    let nearest = points.filter(|point| path.starts_with(point)).max_by_key(|point| point.components().count());
    nearest.ok_or_else(|| io::Error::other(format!("no mount point above {} in /proc/self/mountinfo", path.display())))
}

/// Bytes that an ordinary user can still write on the file system of `path`.
pub(super) fn free(path: &Path) -> io::Result<Bytes> {
    let stat = nix::sys::statvfs::statvfs(&existing(path)?)?;
    Ok(Bytes::new(stat.blocks_available().saturating_mul(stat.fragment_size())))
}

fn existing(path: &Path) -> io::Result<PathBuf> {
    let there = path.ancestors().find(|ancestor| ancestor.exists());
    there.unwrap_or(Path::new("/")).canonicalize()
}

/// The fifth field of a line, in which blanks and backslashes are written in octal.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_above_a_path_is_found() {
        assert_eq!(point_of(Path::new("/proc/self/nothing-here")).expect("mount"), Path::new("/proc"));
        assert_eq!(mount_point(br"25 24 0:23 / /srv/my\040data\134x rw - tmpfs tmpfs rw"), Some(PathBuf::from(r"/srv/my data\x")));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn free_space_is_that_of_the_file_system() {
        assert!(free(Path::new("/tmp/not/there")).expect("free") > Bytes::new(0));
    }
}
