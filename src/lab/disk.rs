//! Small file systems on image files, for disks that are full.

use super::{
    command::{self, QUICK},
    host::Host,
    host_init::Disk,
};
use anyhow::{Context, Result};
use nix::unistd::User;
use std::{fs::File, path::Path};

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
