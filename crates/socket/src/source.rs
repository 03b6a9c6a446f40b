//! Where front-ends come from: a listening socket, or one connection that is there already.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with};

use crate::listen::{ListenError, Made, listen_at};

/// A source of front-ends.
#[derive(Debug)]
pub struct Source {
    /// The socket's file, if it was made here. It goes first: where there is a path, somebody
    /// listens.
    _made: Option<Made>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Listener(OwnedFd),
    /// A connected socket, until it is served.
    Connected(Option<OwnedFd>),
}

impl Source {
    /// Listens at `path`, readable and writable by this user alone. A socket that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    /// When the path is taken or cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let (socket, made) = listen_at(path)?;
        Ok(Self { _made: Some(made), kind: Kind::Listener(socket) })
    }

    /// An inherited socket, listening or connected. A connected one is served once.
    ///
    /// # Errors
    /// When it is no stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ListenError> {
        let fail = |errno: Errno| ListenError::Descriptor(errno.into());
        let kind = rustix::net::sockopt::socket_type(&fd).map_err(fail)?;
        // Only sockets of this kind bring descriptors along.
        let domain = rustix::net::sockopt::socket_domain(&fd).map_err(fail)?;
        if (domain, kind) != (AddressFamily::UNIX, SocketType::STREAM) {
            return Err(fail(Errno::PROTOTYPE));
        }
        let kind = if rustix::net::sockopt::socket_acceptconn(&fd).map_err(fail)? {
            rustix::io::ioctl_fionbio(&fd, true).map_err(fail)?;
            Kind::Listener(fd)
        } else {
            Kind::Connected(Some(fd))
        };
        Ok(Self { _made: None, kind })
    }

    /// The listening socket, readable when a front-end knocks; `None` for one connection.
    #[must_use]
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Listener(socket) => Some(socket.as_fd()),
            Kind::Connected(_) => None,
        }
    }

    /// The one connection, when there is no listening socket, once.
    pub fn connected(&mut self) -> Option<OwnedFd> {
        match &mut self.kind {
            Kind::Listener(_) => None,
            Kind::Connected(socket) => socket.take(),
        }
    }

    /// The front-end that knocks; `None` when it has gone again.
    ///
    /// # Errors
    /// When the system has no descriptor or memory left for it, or the socket fails.
    pub fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        let Kind::Listener(socket) = &self.kind else { return Ok(None) };
        match accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Waits until one of the descriptors has something to read or has ended, or the time is over.
///
/// # Errors
/// When the system cannot wait.
pub fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    time: Option<&Timespec>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut polled, time) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(errno) => Err(errno.into()),
    }
}
