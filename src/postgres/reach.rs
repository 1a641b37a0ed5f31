//! What the owner of the data directory may write, asked of the kernel in that user's name.

use super::Owner;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags},
    unistd::{AccessFlags, Gid, Uid, faccessat, setfsgid, setfsuid},
};
use std::path::{Path, PathBuf};

/// Whether `owner` may make `path` where it is missing, or write into it where it is there.
///
/// Root may ask for anybody, another user for itself alone. What cannot be asked counts as allowed.
///
/// # Errors
/// The directory that `owner` may not write, and why.
pub fn may_make(owner: Owner, path: &Path) -> Result<(), (PathBuf, String)> {
    let there = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match may_write(owner, there) {
        Err(errno @ (Errno::EACCES | Errno::EROFS)) => Err((there.to_owned(), errno.desc().to_lowercase())),
        _ => Ok(()),
    }
}

fn may_write(owner: Owner, directory: &Path) -> Result<(), Errno> {
    let ask = || {
        // A thread of its own: these rights are the thread's, and end with it.
        setfsgid(Gid::from_raw(owner.gid));
        setfsuid(Uid::from_raw(owner.uid));
        faccessat(AT_FDCWD, directory, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
    };
    std::thread::scope(|scope| scope.spawn(ask).join()).unwrap_or(Ok(()))
}
