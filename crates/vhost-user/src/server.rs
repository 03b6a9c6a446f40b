//! Listening, one front-end at a time, until told to stop.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use vionet::Device;

use crate::event::{Event, ProtocolError};
use crate::session::{Session, State};

/// How many front-ends may wait for their turn.
const BACKLOG: i32 = 16;

/// How a server ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// The only front-end it serves is gone.
    FrontEndGone,
}

/// Why a server cannot serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
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
    /// Waiting or accepting failed.
    Wait(io::Error),
    /// The only front-end broke the protocol.
    Protocol(ProtocolError),
}

impl fmt::Display for ServeError {
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
            Self::Bind(path, cause) => write!(f, "{}: {cause}", path.display()),
            Self::Descriptor(cause) => write!(
                f,
                "the descriptor is no socket to serve on: {cause}; pass a Unix stream socket, \
                 listening or connected"
            ),
            Self::Wait(cause) => write!(f, "waiting for a front-end failed: {cause}"),
            Self::Protocol(error) => write!(f, "the front-end broke the protocol: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

enum Source {
    Listener(OwnedFd),
    /// A connected socket, until it is served.
    Connected(Option<OwnedFd>),
}

/// Serves a device to front-ends, one after the other.
pub struct Server {
    source: Source,
    /// Removed at the end if it is still the file we made.
    made: Option<(PathBuf, u64)>,
    one_off: bool,
}

impl Server {
    /// Listens at `path`, readable and writable by this user alone. A socket that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    /// When the path is taken or cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let fail = |errno: Errno| match errno {
            Errno::ACCESS | Errno::PERM | Errno::ROFS => ServeError::Denied(path.into()),
            Errno::ADDRINUSE => ServeError::Taken(path.into()),
            _ => ServeError::Bind(path.into(), errno.into()),
        };
        let address = SocketAddrUnix::new(path).map_err(fail)?;
        clear_stale(path, &address)?;
        let socket = stream_socket().map_err(fail)?;
        bind(&socket, &address).map_err(fail)?;
        let mut server = Self { source: Source::Connected(None), made: None, one_off: false };
        let inode = fs::symlink_metadata(path).map(|found| found.ino());
        let inode = inode.map_err(|cause| ServeError::Bind(path.into(), cause))?;
        server.made = Some((path.into(), inode));
        // Before it listens, so that nobody else gets in meanwhile.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|cause| ServeError::Bind(path.into(), cause))?;
        listen(&socket, BACKLOG).map_err(fail)?;
        server.source = Source::Listener(socket);
        Ok(server)
    }

    /// Serves on an inherited socket, listening or connected (VU-PRG-03). A connected one is
    /// served once.
    ///
    /// # Errors
    /// When it is no stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ServeError> {
        let fail = |errno: Errno| ServeError::Descriptor(errno.into());
        let kind = rustix::net::sockopt::socket_type(&fd).map_err(fail)?;
        // Only sockets of this kind bring descriptors along.
        let domain = rustix::net::sockopt::socket_domain(&fd).map_err(fail)?;
        if (domain, kind) != (AddressFamily::UNIX, SocketType::STREAM) {
            return Err(fail(Errno::PROTOTYPE));
        }
        let source = if rustix::net::sockopt::socket_acceptconn(&fd).map_err(fail)? {
            rustix::io::ioctl_fionbio(&fd, true).map_err(fail)?;
            Source::Listener(fd)
        } else {
            Source::Connected(Some(fd))
        };
        Ok(Self { source, made: None, one_off: false })
    }

    /// The same server, but it ends when its first front-end goes away.
    #[must_use]
    pub fn one_off(mut self) -> Self {
        self.one_off = true;
        self
    }

    /// Serves until `stop` becomes readable, or until the only front-end is gone.
    ///
    /// # Errors
    /// When waiting fails, or the only front-end broke the protocol.
    pub fn run(
        &mut self,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<End, ServeError> {
        loop {
            let Some(socket) = self.next_front_end(stop)? else { return Ok(End::Stopped) };
            events(Event::Connected);
            let mut session = Session::new(socket, device);
            let ended = self.serve(&mut session, device, stop, events);
            let spoken = session.end(device, events);
            let last = match self.source {
                Source::Connected(_) => true,
                Source::Listener(_) => self.one_off && spoken,
            };
            match ended? {
                Ended::Stopped => return Ok(End::Stopped),
                Ended::Gone if last => return Ok(End::FrontEndGone),
                Ended::Broken(error) if last => return Err(ServeError::Protocol(error)),
                Ended::Gone => {}
                Ended::Broken(error) => events(Event::ProtocolError(error)),
            }
            events(Event::Disconnected);
        }
    }

    /// Waits for a front-end; `None` when told to stop.
    fn next_front_end(&mut self, stop: BorrowedFd<'_>) -> Result<Option<OwnedFd>, ServeError> {
        let listener = match &mut self.source {
            Source::Connected(socket) => return Ok(socket.take()),
            Source::Listener(listener) => listener,
        };
        loop {
            let [stopped, knocked] = wait([stop, listener.as_fd()])?;
            if stopped {
                return Ok(None);
            }
            if knocked && let Some(socket) = accept(listener).map_err(wait_failed)? {
                return Ok(Some(socket));
            }
        }
    }

    fn serve(
        &self,
        session: &mut Session,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Ended, ServeError> {
        let mut listener = match &self.source {
            Source::Listener(listener) => Some(listener),
            Source::Connected(_) => None,
        };
        loop {
            let watched = listener.map_or(stop, AsFd::as_fd);
            let [stopped, readable, reported, knocked] =
                wait([stop, session.as_fd(), device.reports(), watched])?;
            if stopped {
                return Ok(Ended::Stopped);
            }
            if reported {
                session.hear(device, events);
            }
            if readable {
                match session.read(device, events) {
                    Ok(State::Open) => {}
                    Ok(State::Closed) => return Ok(Ended::Gone),
                    Err(error) => return Ok(Ended::Broken(error)),
                }
            }
            // Not while there is something to read: a front-end that has gone makes room for the
            // one that knocks.
            if knocked
                && !readable
                && let Some(door) = listener
            {
                match accept(door) {
                    Ok(Some(_closed)) => events(Event::TurnedAway),
                    Ok(None) => {}
                    // No descriptor left to turn it away with: it waits until this one is gone.
                    Err(_) => listener = None,
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some((path, inode)) = &self.made else { return };
        let ours = fs::symlink_metadata(path).is_ok_and(|found| found.ino() == *inode);
        if ours {
            // If it cannot be removed, the next start replaces it.
            let (Ok(()) | Err(_)) = fs::remove_file(path);
        }
    }
}

enum Ended {
    Stopped,
    Gone,
    Broken(ProtocolError),
}

fn stream_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes a socket file that nobody listens on.
fn clear_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.into()));
        }
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    let probe = stream_socket().map_err(wait_failed)?;
    match connect(&probe, address) {
        // Full of waiting front-ends is taken, too.
        Ok(()) | Err(Errno::AGAIN) => Err(ServeError::Taken(path.into())),
        Err(Errno::CONNREFUSED) => {
            fs::remove_file(path).map_err(|_| ServeError::Denied(path.into()))
        }
        Err(_) => Err(ServeError::Denied(path.into())),
    }
}

/// The connection that knocks; `None` when it has gone again.
fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    match accept_with(listener, SocketFlags::CLOEXEC) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn wait_failed(errno: Errno) -> ServeError {
    ServeError::Wait(errno.into())
}

/// Waits until one of the descriptors has something to read or has ended.
fn wait<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N], ServeError> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(errno) => Err(wait_failed(errno)),
    }
}
