//! A listening socket at a path: there from one moment to the next, and only if nobody else is.
//!
//! ```text
//!   bind at .PID-N, beside PATH --> only this user may --> listen
//!                                                            |   the directory is locked:
//!      move to PATH  <-- nobody answers, or nothing is there --- who answers at PATH?
//! ```
//!
//! So whoever sees the path can connect, and of two that start at once one is told that the path
//! is taken.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat, renameat_with,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// How many front-ends may wait for their turn.
const BACKLOG: i32 = 16;

/// How many names to try for the socket before it moves.
const NAME_TRIES: usize = 16;

/// How many milliseconds to wait for others that start in the same directory.
const LOCK_TRIES: usize = 1000;

/// Why there is no socket to serve on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// Another process listens there.
    Taken(PathBuf),
    /// Something that is no socket is there.
    NotASocket(PathBuf),
    /// This user may not make a socket there.
    Denied(PathBuf),
    /// The socket cannot be made.
    Bind(PathBuf, io::Error),
    /// The descriptor is no socket to serve on.
    Descriptor(io::Error),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken(path) => write!(
                f,
                "{}: another process listens there; end it, or choose another path",
                path.display()
            ),
            Self::NotASocket(path) => write!(
                f,
                "{}: a file that is no socket is in the way; remove it, or choose another path",
                path.display()
            ),
            Self::Denied(path) => write!(
                f,
                "{}: permission denied; choose a directory of yours, for example $XDG_RUNTIME_DIR",
                path.display()
            ),
            Self::Bind(path, cause) => write!(
                f,
                "{}: no socket can be made there: {cause}; choose another path, in a directory \
                 that exists",
                path.display()
            ),
            Self::Descriptor(cause) => write!(
                f,
                "the descriptor is no socket to serve on: {cause}; pass a Unix stream socket, \
                 listening or connected"
            ),
        }
    }
}

impl std::error::Error for ListenError {}

/// A socket file of ours; removed at the end if it is still the one we made.
#[derive(Debug)]
pub struct Made {
    path: PathBuf,
    inode: u64,
}

impl Drop for Made {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|found| found == self.inode) {
            // If it cannot be removed, the next start replaces it.
            let (Ok(()) | Err(_)) = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, readable and writable by this user alone, without blocking; a socket that
/// nobody listens on any more is replaced.
///
/// # Errors
/// When the path is taken or cannot be used.
pub fn listen_at(path: &Path) -> Result<(OwnedFd, Made), ListenError> {
    let fail = |errno: Errno| failed(path, errno);
    // Another name is bound, but this one must be short enough to connect to.
    SocketAddrUnix::new(path).map_err(fail)?;
    let socket = stream_socket().map_err(fail)?;
    let name = bind_beside(&socket, path).map_err(fail)?;
    let bad = |cause| ListenError::Bind(path.into(), cause);
    let mut made = Made { inode: inode(&name).map_err(bad)?, path: name };
    fs::set_permissions(&made.path, fs::Permissions::from_mode(0o600)).map_err(bad)?;
    listen(&socket, BACKLOG).map_err(fail)?;
    let _lock = lock_folder(path);
    let result = if is_stale(path)? {
        renameat(CWD, &made.path, CWD, path)
    } else {
        move_to_free(&made.path, path)
    };
    match result {
        Ok(()) => made.path = path.into(),
        // One that asks nobody was quicker.
        Err(Errno::EXIST) => return Err(ListenError::Taken(path.into())),
        Err(errno) => return Err(fail(errno)),
    }
    Ok((socket, made))
}

/// A lock that all who start at this path take, until it is dropped. Others may hold it for reasons
/// of their own, and not every directory can be locked: then it is left at that.
fn lock_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = open(folder.unwrap_or(Path::new(".")), flags, Mode::empty()).ok()?;
    for _ in 0..LOCK_TRIES {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_millis(1)),
            result => return result.is_ok().then_some(folder),
        }
    }
    None
}

/// Binds at a name in the same directory; one that died here under our number may have left some.
fn bind_beside(socket: &OwnedFd, path: &Path) -> Result<PathBuf, Errno> {
    let mut result = Err(Errno::ADDRINUSE);
    for _ in 0..NAME_TRIES {
        let name = beside(path);
        result = bind(socket, &SocketAddrUnix::new(&name)?).map(|()| name);
        if !matches!(result, Err(Errno::ADDRINUSE)) {
            break;
        }
    }
    result
}

fn failed(path: &Path, errno: Errno) -> ListenError {
    match errno {
        Errno::ACCESS | Errno::PERM | Errno::ROFS => ListenError::Denied(path.into()),
        _ => ListenError::Bind(path.into(), errno.into()),
    }
}

/// A short name in the same directory that nobody uses.
fn beside(path: &Path) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{:x}-{number:x}", std::process::id()))
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::symlink_metadata(path).map(|found| found.ino())
}

/// Moves a file to a name that nothing has.
fn move_to_free(from: &Path, to: &Path) -> Result<(), Errno> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot do it in one.
        Err(Errno::INVAL | Errno::NOSYS) if inode(to).is_ok() => Err(Errno::EXIST),
        Err(Errno::INVAL | Errno::NOSYS) => renameat(CWD, from, CWD, to),
        other => other,
    }
}

/// Whether a socket file is at the path that nobody listens on; false for nothing at all.
fn is_stale(path: &Path) -> Result<bool, ListenError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(ListenError::NotASocket(path.into())),
        Err(_) => return Ok(false),
    }
    let fail = |errno: Errno| failed(path, errno);
    let probe = stream_socket().map_err(fail)?;
    match connect(&probe, &SocketAddrUnix::new(path).map_err(fail)?) {
        // Full of waiting front-ends is taken, and so is a socket of another kind.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(ListenError::Taken(path.into())),
        Err(Errno::CONNREFUSED) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(fail(errno)),
    }
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}
