//! What a descriptor is, before it is let in.
//!
//! A front-end keeps the other end of whatever it hands over. A socket could be its own end of the
//! connection, which then never closes; a file cannot be waited for; a pipe fills up. So each kind
//! of message takes the one kind of descriptor that it is about.

use std::os::fd::OwnedFd;
use std::{fmt, io};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};
use rustix::io::Errno;

/// Why a descriptor is not let in.
#[derive(Debug)]
#[non_exhaustive]
pub enum DescriptorError {
    /// The system says that it cannot be used.
    Unusable(io::Error),
    /// It is a socket, as no message brings.
    Socket,
    /// It is no eventfd.
    NotAnEventfd,
    /// It is no file that can be mapped.
    NotMemory,
}

impl fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable(error) => write!(f, "the descriptor cannot be used: {error}"),
            Self::Socket => f.write_str("it brought a socket, as no message does"),
            Self::NotAnEventfd => f.write_str("the descriptor is no eventfd"),
            Self::NotMemory => f.write_str("the descriptor is no memory file; share a memfd"),
        }
    }
}

impl std::error::Error for DescriptorError {}

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

fn bad(errno: Errno) -> DescriptorError {
    DescriptorError::Unusable(errno.into())
}

/// No message brings a socket.
pub fn check_no_socket(fd: &OwnedFd) -> Result<(), DescriptorError> {
    match kind(fd).map_err(bad)? {
        Some(FileType::Socket) => Err(DescriptorError::Socket),
        Some(_) | None => Ok(()),
    }
}

/// An eventfd to write to. It says at once that it is full, unless its other holder changes that
/// afterwards: whoever writes to it must be a thread that can be interrupted.
pub fn to_signal(fd: OwnedFd) -> Result<OwnedFd, DescriptorError> {
    let fd = eventfd(fd)?;
    rustix::io::ioctl_fionbio(&fd, true).map_err(bad)?;
    Ok(fd)
}

/// An eventfd to wait for, of which it is known that this works.
pub fn to_watch(fd: OwnedFd) -> Result<OwnedFd, DescriptorError> {
    let fd = eventfd(fd)?;
    watch(&fd)?;
    Ok(fd)
}

/// What is readable whenever the eventfd has been written to since it was last waited for, as an
/// epoll descriptor: the eventfd itself need not be read, which could wait.
pub fn watched(fd: OwnedFd) -> Result<OwnedFd, DescriptorError> {
    watch(&eventfd(fd)?)
}

fn watch(fd: &OwnedFd) -> Result<OwnedFd, DescriptorError> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(bad)?;
    epoll::add(&watch, fd, EventData::new_u64(0), EventFlags::IN | EventFlags::ET).map_err(bad)?;
    Ok(watch)
}

fn eventfd(fd: OwnedFd) -> Result<OwnedFd, DescriptorError> {
    match kind(&fd).map_err(bad)? {
        None => Ok(fd),
        Some(_) => Err(DescriptorError::NotAnEventfd),
    }
}

/// A file to map: one with a length (a memfd, a file of a huge page or other file system), or a
/// buffer of a driver, of which the mapping itself will show whether it can be mapped.
pub fn check_memory(fd: &OwnedFd) -> Result<(), DescriptorError> {
    match kind(fd).map_err(bad)? {
        Some(FileType::RegularFile) | None => Ok(()),
        Some(_) => Err(DescriptorError::NotMemory),
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

    fn accepted(check: impl Fn(OwnedFd) -> Result<(), DescriptorError>) -> Vec<&'static str> {
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
        assert!(matches!(to_watch(inner), Err(DescriptorError::Unusable(_))));
    }
}
