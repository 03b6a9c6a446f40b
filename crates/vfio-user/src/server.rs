//! Listening, one client at a time, until told to stop.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::Errno;
use vionet_socket::{ListenError, Source, wait};

use crate::event::{Event, ProtocolError};
use crate::function::Function;
use crate::session::{Events, Session, State};

/// How long to wait before a client is accepted that there was no descriptor for.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// The most reports of the device passed on at a time.
const REPORTS: usize = 64;

/// How a server ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// The only client it serves is gone.
    ClientGone,
}

/// Why a server cannot serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// There is no socket to serve on.
    Listen(ListenError),
    /// Waiting or accepting failed.
    Wait(io::Error),
    /// The only client broke the protocol.
    Protocol(ProtocolError),
    /// The system has no descriptor, memory or thread left for the only client.
    NoRoom(io::Error),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => write!(f, "{error}"),
            Self::Wait(cause) => write!(f, "waiting for a client failed: {cause}"),
            Self::Protocol(error) => write!(f, "the client broke the protocol: {error}"),
            Self::NoRoom(cause) => {
                write!(f, "the only client cannot be served: {cause}; raise the limit")
            }
        }
    }
}

impl std::error::Error for ServeError {}

/// What one client may have of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of memory that may be mapped at a time; 1 TiB if not said otherwise.
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

/// Serves a function to clients, one after the other.
pub struct Server {
    source: Source,
    one_off: bool,
    limits: Limits,
}

enum Ended {
    Stopped,
    Gone,
    Broken(ProtocolError),
}

impl Server {
    /// Listens at `path`, readable and writable by this user alone. A socket that nobody listens
    /// on any more is replaced.
    ///
    /// # Errors
    /// When the path is taken or cannot be used.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        Source::bind(path).map(Self::on).map_err(ServeError::Listen)
    }

    /// Serves on an inherited socket, listening or connected. A connected one is served once.
    ///
    /// # Errors
    /// When it is no stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ServeError> {
        Source::from_fd(fd).map(Self::on).map_err(ServeError::Listen)
    }

    fn on(source: Source) -> Self {
        Self { source, one_off: false, limits: Limits::default() }
    }

    /// The same server, but it ends when its first client goes away.
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

    /// Serves until `stop` becomes readable, or until the only client is gone. The device is
    /// tended meanwhile: it needs no keeper.
    ///
    /// # Errors
    /// When waiting fails, or the only client broke the protocol or found no room.
    pub fn run(
        &mut self,
        function: &Function,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<End, ServeError> {
        let attention = function.nic().with_attention(|fd| fd.try_clone_to_owned());
        let attention = attention.map_err(ServeError::Wait)?;
        loop {
            let next = self.next_client(function, stop, attention.as_fd(), events)?;
            let Some(socket) = next else { return Ok(End::Stopped) };
            let mut session = match Session::new(socket, function, self.limits) {
                Ok(session) => session,
                Err(cause) if self.source.listener().is_none() => {
                    return Err(ServeError::NoRoom(cause));
                }
                Err(cause) => {
                    // It is turned away: there would be no way to interrupt its driver.
                    events(Event::NoRoom(cause));
                    continue;
                }
            };
            events(Event::Connected);
            let ended = self.serve(&mut session, function, stop, attention.as_fd(), events);
            let spoken = session.end(events);
            let last = self.source.listener().is_none() || self.one_off && spoken;
            match ended? {
                Ended::Stopped => return Ok(End::Stopped),
                Ended::Gone if last => return Ok(End::ClientGone),
                Ended::Broken(error) if last => return Err(ServeError::Protocol(error)),
                Ended::Gone => {}
                Ended::Broken(error) => events(Event::ProtocolError(error)),
            }
            events(Event::Disconnected);
        }
    }

    /// Waits for a client; `None` when told to stop.
    fn next_client(
        &mut self,
        function: &Function,
        stop: BorrowedFd<'_>,
        attention: BorrowedFd<'_>,
        events: Events<'_>,
    ) -> Result<Option<OwnedFd>, ServeError> {
        let connected = self.source.connected();
        let Some(listener) = self.source.listener() else { return Ok(connected) };
        let mut told = false;
        loop {
            let fds = [stop, listener, attention];
            let [stopped, knocked, reported] = wait(fds, None).map_err(ServeError::Wait)?;
            if stopped {
                return Ok(None);
            }
            if reported {
                tend(function, events);
            }
            if !knocked {
                continue;
            }
            match self.source.accept() {
                Ok(Some(socket)) => return Ok(Some(socket)),
                Ok(None) => {}
                // Others may let go of what is missing here: the client waits as long.
                Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if !told {
                        events(Event::NoRoom(errno.into()));
                    }
                    told = true;
                    let [stopped] = wait([stop], Some(&PAUSE)).map_err(ServeError::Wait)?;
                    if stopped {
                        return Ok(None);
                    }
                }
                Err(errno) => return Err(ServeError::Wait(errno.into())),
            }
        }
    }

    fn serve(
        &self,
        session: &mut Session<'_>,
        function: &Function,
        stop: BorrowedFd<'_>,
        attention: BorrowedFd<'_>,
        events: Events<'_>,
    ) -> Result<Ended, ServeError> {
        let mut listener = self.source.listener();
        loop {
            let stalled = session.stalled().unwrap_or(stop);
            let unmasking = session.unmasking().unwrap_or(stop);
            let knocking = listener.unwrap_or(stop);
            let fds = [stop, session.as_fd(), attention, stalled, unmasking, knocking];
            let [stopped, readable, reported, stalled, unmasked, knocked] =
                wait(fds, None).map_err(ServeError::Wait)?;
            if stopped {
                return Ok(Ended::Stopped);
            }
            if reported {
                tend(function, events);
            }
            if unmasked {
                session.unmask();
            }
            if readable {
                match session.read(events) {
                    Ok(State::Open) => {}
                    Ok(State::Closed) => return Ok(Ended::Gone),
                    Err(error) => return Ok(Ended::Broken(error)),
                }
            } else if stalled {
                return Ok(Ended::Broken(ProtocolError::Stalled));
            }
            // Not while there is something to read: a client that has gone makes room for the one
            // that knocks.
            if knocked && !readable && listener.is_some() {
                match self.source.accept() {
                    Ok(Some(_closed)) => events(Event::TurnedAway),
                    Ok(None) => {}
                    // No descriptor left to turn it away with: it waits until this one is gone.
                    Err(_) => listener = None,
                }
            }
        }
    }
}

/// Does what waits in the device, and passes on what it has to say.
fn tend(function: &Function, events: Events<'_>) {
    for _ in 0..REPORTS {
        let Some(report) = function.nic().tend() else { return };
        events(Event::Device(report));
    }
}
