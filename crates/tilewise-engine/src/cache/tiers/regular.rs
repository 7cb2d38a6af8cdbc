//! Files that are only files: what else stands under a name is never waited for.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// Opens a file to read; `None` where there is none, or a link, a pipe, a device or a folder in its place.
///
/// # Errors
/// As [`File::open`].
pub(super) fn open(path: &Path) -> io::Result<Option<File>> {
    let file = match options().open(path) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

#[cfg(unix)]
fn options() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = OpenOptions::new();
    // To open a pipe waits for whoever writes into it.
    options.read(true).custom_flags(flags.bits().cast_signed());
    options
}

#[cfg(not(unix))]
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    options
}

fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || is_link(error)
}

#[cfg(unix)]
fn is_link(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // The second is a socket's.
    [Errno::LOOP, Errno::NXIO].iter().any(|other| error.raw_os_error() == Some(other.raw_os_error()))
}

#[cfg(not(unix))]
fn is_link(_error: &io::Error) -> bool {
    false
}
