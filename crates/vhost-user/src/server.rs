//! Listening, one front-end at a time, until told to stop.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with};
use vionet::Device;

use crate::event::{Event, ProtocolError};
use crate::listen::{Made, listen_at};
use crate::session::{Session, State};
use crate::visit::{Door, Visits};

/// How long to wait before a front-end is accepted that there was no descriptor for.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

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
            Self::Wait(cause) => write!(f, "waiting for a front-end failed: {cause}"),
            Self::Protocol(error) => write!(f, "the front-end broke the protocol: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}

/// What one front-end may have of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of guest memory that may be mapped at a time; 1 TiB if not said otherwise.
    /// Address space is what this guards: a process has 128 TiB of it on most machines.
    pub mapped_bytes: u64,
    /// How long a message may take from its first byte to its last; 5 s if not said otherwise.
    pub half_message: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { mapped_bytes: 1 << 40, half_message: Duration::from_secs(5) }
    }
}

enum Source {
    Listener(OwnedFd),
    /// A connected socket, until it is served.
    Connected(Option<OwnedFd>),
}

/// Serves a device to front-ends, one after the other.
pub struct Server {
    /// The socket's file, if it was made here. It goes first: where there is a path, somebody
    /// listens.
    _made: Option<Made>,
    source: Source,
    one_off: bool,
    limits: Limits,
    visits: Option<Visits>,
}

impl Server {
    /// Listens at `path`, readable and writable by this user alone. A socket that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    /// When the path is taken or cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        let (socket, made) = listen_at(path)?;
        Ok(Self { _made: Some(made), ..Self::on(Source::Listener(socket)) })
    }

    fn on(source: Source) -> Self {
        Self { source, _made: None, one_off: false, limits: Limits::default(), visits: None }
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
        Ok(Self::on(source))
    }

    /// The same server, but it ends when its first front-end goes away.
    #[must_use]
    pub fn one_off(mut self) -> Self {
        self.one_off = true;
        self
    }

    /// The same server with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// A way for other threads to reach the device in the next [`Self::run`]; the last one made
    /// counts, and it is closed when that ends.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn door(&mut self) -> io::Result<Door> {
        let (door, visits) = Visits::new()?;
        self.visits = Some(visits);
        Ok(door)
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
        let end = self.serve_all(device, stop, events);
        // Who waits is told at once that nobody comes any more.
        self.visits = None;
        end
    }

    fn serve_all(
        &mut self,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<End, ServeError> {
        loop {
            let next = self.next_front_end(device, stop, events)?;
            let Some(socket) = next else { return Ok(End::Stopped) };
            events(Event::Connected);
            let mut session = Session::new(socket, device, self.limits);
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
        let mut told = false;
        loop {
            let bell = self.visits.as_ref().map_or(stop, Visits::bell);
            let [stopped, knocked, visited] = wait([stop, listener.as_fd(), bell], None)?;
            if stopped {
                return Ok(None);
            }
            if visited {
                self.visits.iter().for_each(|visits| visits.admit(device));
            }
            if !knocked {
                continue;
            }
            match accept(listener) {
                Ok(Some(socket)) => return Ok(Some(socket)),
                Ok(None) => {}
                // Others may let go of what is missing here: the front-end waits as long.
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !told {
                        events(Event::NoRoom(errno.into()));
                    }
                    told = true;
                    let [stopped] = wait([stop], Some(&PAUSE))?;
                    if stopped {
                        return Ok(None);
                    }
                }
                Err(errno) => return Err(wait_failed(errno)),
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
            let stalled = session.stalled().unwrap_or(stop);
            let bell = self.visits.as_ref().map_or(stop, Visits::bell);
            let fds = [stop, session.as_fd(), device.reports(), stalled, watched, bell];
            let [stopped, readable, reported, stalled, knocked, visited] = wait(fds, None)?;
            if stopped {
                return Ok(Ended::Stopped);
            }
            if visited {
                self.visits.iter().for_each(|visits| visits.admit(device));
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
            } else if stalled {
                return Ok(Ended::Broken(ProtocolError::Stalled));
            }
            // Not while there is something to read: a front-end that has gone makes room for the
            // one that knocks; also one that has left us its own end of the connection.
            if knocked
                && !readable
                && !session.let_go_of_backchannel()
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

enum Ended {
    Stopped,
    Gone,
    Broken(ProtocolError),
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

/// Waits until one of the descriptors has something to read or has ended, or the time is over.
fn wait<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    time: Option<&Timespec>,
) -> Result<[bool; N], ServeError> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut polled, time) {
        Ok(_) | Err(Errno::INTR) => Ok(polled.map(|fd| !fd.revents().is_empty())),
        Err(errno) => Err(wait_failed(errno)),
    }
}
