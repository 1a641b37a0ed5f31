//! Small file systems on image files, for disks that are full or dead.

#![expect(unsafe_code, reason = "no safe wrapper shuts an ext4 file system down")]

use super::{
    command::{self, QUICK},
    host::Host,
    host_init::Disk,
};
use anyhow::{Context, Result};
use nix::unistd::User;
use std::{fs::File, os::fd::AsRawFd, path::Path};

/// The file that takes all the room.
const FILLER: &str = "filler";

/// Makes an ext4 image of so many bytes, to be mounted at `at`, whose root directory belongs to `owner`.
///
/// # Errors
/// When the image exists or `mkfs.ext4` fails.
pub fn create(image: &Path, at: &Path, bytes: u64, owner: &str) -> Result<Disk> {
    let file = File::create_new(image).with_context(|| format!("create {}", image.display()))?;
    file.set_len(bytes).with_context(|| format!("size {}", image.display()))?;
    let user = User::from_name(owner).context("look up the owner")?.with_context(|| format!("no user {owner}"))?;
    let options = format!("root_owner={}:{},lazy_itable_init=1", user.uid, user.gid);
    let path = image.display().to_string();
    // No reserved blocks: full means full for root too.
    command::run(&["mkfs.ext4", "-q", "-F", "-m", "0", "-E", &options, &path], "", QUICK)?;
    Ok(Disk { image: image.to_owned(), at: at.to_owned() })
}

/// Fills the file system at `at` of a host to the last block.
///
/// # Errors
/// When the host is off, or there still is room.
pub fn fill(host: &Host, at: &Path) -> Result<()> {
    let filler = at.join(FILLER).display().to_string();
    let script = "dd if=/dev/zero of=\"$1\" bs=1M 2>/dev/null; dd if=/dev/zero of=\"$1\" bs=4096 oflag=append conv=notrunc 2>/dev/null; \
                  ! head -c 4096 /dev/zero > \"$1.probe\"; rm -f \"$1.probe\"";
    host.run(&["sh", "-c", script, "sh", &filler], QUICK).map(|_| ())
}

/// Makes room again.
///
/// # Errors
/// When the host is off.
pub fn empty(host: &Host, at: &Path) -> Result<()> {
    let filler = at.join(FILLER).display().to_string();
    host.run(&["rm", "-f", &filler], QUICK).map(|_| ())
}

/// Shuts the file system at `at` of a host down: from now on every read and write that needs the disk fails with EIO,
/// until the host was switched off and on.
///
/// # Errors
/// When the host is off, or the kernel refuses.
pub fn kill(host: &Host, at: &Path) -> Result<()> {
    /// `_IOR('X', 125, __u32)`, EXT4_IOC_SHUTDOWN in the kernel's fs/ext4/ext4.h.
    const SHUTDOWN: libc::c_ulong = 0x8004_587d;
    /// Without writing the log, as a disk that vanishes.
    static WITHOUT_LOG: u32 = 2;
    let path = host.path(at)?;
    let directory = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // SAFETY: the descriptor is open, and the argument points to an u32 that the kernel only reads.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), SHUTDOWN, &raw const WITHOUT_LOG) };
    nix::errno::Errno::result(done).map(|_| ()).with_context(|| format!("shut the file system at {} down", at.display()))
}
