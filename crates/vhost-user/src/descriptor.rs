//! What a descriptor is, before it is let in.
//!
//! A front-end keeps the other end of whatever it hands over. A socket could be its own end of the
//! connection, which then never closes; a file cannot be waited for; a pipe fills up. So each kind
//! of message takes the one kind of descriptor that it is about.

use std::os::fd::OwnedFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;

use crate::event::ProtocolError;

/// What kind of file it is: `None` for those that are no file at all, such as eventfds.
///
/// Asks for what the kernel knows already: a file system that the front-end serves itself is not
/// waited for.
fn kind(fd: &OwnedFd) -> Result<Option<FileType>, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(fd, c"", flags, StatxFlags::TYPE)?;
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Unknown => None,
        known => Some(known),
    })
}

fn bad(errno: Errno) -> ProtocolError {
    ProtocolError::Descriptor(errno.into())
}

/// No message brings a socket.
pub(crate) fn check_no_socket(fd: &OwnedFd) -> Result<(), ProtocolError> {
    match kind(fd).map_err(bad)? {
        Some(FileType::Socket) => Err(ProtocolError::SocketBrought),
        Some(_) | None => Ok(()),
    }
}

/// An eventfd to write to. It says at once that it is full, unless its other holder changes that
/// afterwards: whoever writes to it must be a thread that can be interrupted.
pub(crate) fn to_signal(fd: OwnedFd) -> Result<OwnedFd, ProtocolError> {
    let fd = eventfd(fd)?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(bad)?;
    Ok(fd)
}

/// An eventfd to wait for, of which it is known that this works.
pub(crate) fn to_watch(fd: OwnedFd) -> Result<OwnedFd, ProtocolError> {
    let fd = eventfd(fd)?;
    let trial = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(bad)?;
    epoll::add(&trial, &fd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET).map_err(bad)?;
    Ok(fd)
}

fn eventfd(fd: OwnedFd) -> Result<OwnedFd, ProtocolError> {
    match kind(&fd).map_err(bad)? {
        None => Ok(fd),
        Some(_) => Err(ProtocolError::NotAnEventfd),
    }
}

/// A file to map: one with a length (a memfd, a file of a huge page or other file system), or a
/// buffer of a driver, of which the mapping itself will show whether it can be mapped.
pub(crate) fn check_memory(fd: &OwnedFd) -> Result<(), ProtocolError> {
    match kind(fd).map_err(bad)? {
        Some(FileType::RegularFile) | None => Ok(()),
        Some(_) => Err(ProtocolError::NotMemory),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use vionet_raw::host::mmap::memory_file;

    use super::*;

    /// One of each kind, by name.
    fn zoo() -> Vec<(&'static str, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        vec![
            ("eventfd", eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
            ("memory", memory_file("zoo", 4096).unwrap()),
            ("socket", UnixStream::pair().unwrap().0.into()),
            ("reader", reader),
            ("writer", writer),
            ("device", File::open("/dev/zero").unwrap().into()),
            ("folder", File::open("/").unwrap().into()),
        ]
    }

    fn accepted(check: impl Fn(OwnedFd) -> Result<(), ProtocolError>) -> Vec<&'static str> {
        zoo().into_iter().filter_map(|(name, fd)| check(fd).is_ok().then_some(name)).collect()
    }

    #[test]
    fn each_kind_of_message_takes_its_kind_of_descriptor() {
        assert_eq!(accepted(|fd| to_signal(fd).map(drop)), ["eventfd"]);
        assert_eq!(accepted(|fd| to_watch(fd).map(drop)), ["eventfd"]);
        assert_eq!(accepted(|fd| check_memory(&fd)), ["eventfd", "memory"]);
        assert_eq!(accepted(|fd| check_no_socket(&fd)).len(), 6);
    }

    #[test]
    fn what_cannot_be_waited_for_is_no_kick() {
        // Each watches the one before, as deep as the kernel allows.
        let new = || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut nest = vec![new()];
        while nest.len() < 100 {
            let outer = new();
            let inner = &nest[nest.len() - 1];
            if epoll::add(&outer, inner, EventData::new_u64(0), EventFlags::IN).is_err() {
                break;
            }
            nest.push(outer);
        }
        let inner = nest.pop().unwrap();
        assert!(matches!(to_watch(inner), Err(ProtocolError::Descriptor(_))));
    }
}
