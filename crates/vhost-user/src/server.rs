//! Listening, one front-end at a time, until told to stop.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vionet::{Device, Report};

use crate::event::{Event, ProtocolError};
use crate::session::{Session, State};

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
            Self::Descriptor(cause) => {
                write!(f, "the descriptor is no stream socket: {cause}; pass a connected one")
            }
            Self::Wait(cause) => write!(f, "waiting for a front-end failed: {cause}"),
            Self::Protocol(error) => write!(f, "the front-end broke the protocol: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

enum Source {
    Listener(UnixListener),
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
        clear_stale(path)?;
        let fail = |cause: io::Error| match cause.kind() {
            ErrorKind::PermissionDenied => ServeError::Denied(path.into()),
            ErrorKind::AddrInUse => ServeError::Taken(path.into()),
            _ => ServeError::Bind(path.into(), cause),
        };
        let listener = UnixListener::bind(path).map_err(fail)?;
        let mut server = Self { source: Source::Listener(listener), made: None, one_off: false };
        let inode = fs::symlink_metadata(path).map_err(fail)?.ino();
        server.made = Some((path.into(), inode));
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
        if let Source::Listener(listener) = &server.source {
            listener.set_nonblocking(true).map_err(fail)?;
        }
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
        if kind != rustix::net::SocketType::STREAM {
            return Err(fail(Errno::PROTOTYPE));
        }
        let source = if rustix::net::sockopt::socket_acceptconn(&fd).map_err(fail)? {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(ServeError::Descriptor)?;
            Source::Listener(listener)
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
            let Some(socket) = self.next_front_end(device, stop, events)? else {
                return Ok(End::Stopped);
            };
            events(Event::Connected);
            let session = Session::new(socket, device);
            let last = self.one_off || matches!(self.source, Source::Connected(_));
            match self.serve(session, device, stop, events)? {
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
    fn next_front_end(
        &mut self,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Option<OwnedFd>, ServeError> {
        let listener = match &mut self.source {
            Source::Connected(socket) => return Ok(socket.take()),
            Source::Listener(listener) => listener,
        };
        loop {
            let ready = wait([stop, listener.as_fd(), device.reports()])?;
            let [stopped, knocked, reported] = ready;
            if stopped {
                return Ok(None);
            }
            if reported {
                drain(device, |report| tell(report, events));
            }
            if knocked && let Some(socket) = accept(listener)? {
                return Ok(Some(socket));
            }
        }
    }

    fn serve(
        &self,
        mut session: Session,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Ended, ServeError> {
        let ended = loop {
            let listener = match &self.source {
                Source::Listener(listener) => listener.as_fd(),
                Source::Connected(_) => stop,
            };
            let [stopped, readable, reported, knocked] =
                wait([stop, session.as_fd(), device.reports(), listener])?;
            if stopped {
                break Ended::Stopped;
            }
            if reported {
                drain(device, |report| session.report(report, events));
            }
            if readable {
                match session.read(device, events) {
                    Ok(State::Open) => {}
                    Ok(State::Closed) => break Ended::Gone,
                    Err(error) => break Ended::Broken(error),
                }
            }
            // After reading: a front-end that has gone makes room for the one that knocks.
            if knocked && !readable {
                self.turn_away(events)?;
            }
        };
        session.end(device);
        Ok(ended)
    }

    fn turn_away(&self, events: &mut dyn FnMut(Event)) -> Result<(), ServeError> {
        if let Source::Listener(listener) = &self.source
            && accept(listener)?.is_some()
        {
            events(Event::TurnedAway);
        }
        Ok(())
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

fn tell(report: Report, events: &mut dyn FnMut(Event)) {
    match report {
        Report::Fault(fault) => events(Event::QueueFault(fault)),
        Report::Host { pair, fault } => events(Event::HostFault { pair, fault }),
        _ => {}
    }
}

fn drain(device: &mut Device, mut each: impl FnMut(Report)) {
    while let Some(report) = device.next_report() {
        each(report);
    }
}

/// Removes a socket file that nobody listens on.
fn clear_stale(path: &Path) -> Result<(), ServeError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.into()));
        }
        Ok(_) => {}
        Err(_) => return Ok(()),
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::Taken(path.into())),
        Err(cause) if cause.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|_| ServeError::Denied(path.into()))
        }
        Err(_) => Err(ServeError::Denied(path.into())),
    }
}

/// The connection that knocks; `None` when it has gone again, or descriptors are short.
fn accept(listener: &UnixListener) -> Result<Option<OwnedFd>, ServeError> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream.into())),
        Err(cause) => match cause.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {
                Ok(None)
            }
            _ => Err(ServeError::Wait(cause)),
        },
    }
}

/// Waits until one of the descriptors has something to read, or has ended.
fn wait<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N], ServeError> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(errno) => Err(ServeError::Wait(errno.into())),
    }
}
