//! Listening, one front-end at a time, until told to stop.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::Errno;
use vionet::Device;
use vionet_socket::{ListenError, Source, wait};

use crate::event::{Event, ProtocolError};
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
    /// There is no socket to serve on.
    Listen(ListenError),
    /// Waiting or accepting failed.
    Wait(io::Error),
    /// The only front-end broke the protocol.
    Protocol(ProtocolError),
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(error) => write!(f, "{error}"),
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

/// Serves a device to front-ends, one after the other.
pub struct Server {
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
        Source::bind(path).map(Self::on).map_err(ServeError::Listen)
    }

    fn on(source: Source) -> Self {
        Self { source, one_off: false, limits: Limits::default(), visits: None }
    }

    /// Serves on an inherited socket, listening or connected (VU-PRG-03). A connected one is
    /// served once.
    ///
    /// # Errors
    /// When it is no stream socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, ServeError> {
        Source::from_fd(fd).map(Self::on).map_err(ServeError::Listen)
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
            let last = self.source.listener().is_none() || self.one_off && spoken;
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
        let connected = self.source.connected();
        let Some(listener) = self.source.listener() else { return Ok(connected) };
        let mut told = false;
        loop {
            let bell = self.visits.as_ref().map_or(stop, Visits::bell);
            let [stopped, knocked, visited] =
                wait([stop, listener, bell], None).map_err(ServeError::Wait)?;
            if stopped {
                return Ok(None);
            }
            if visited {
                self.visits.iter().for_each(|visits| visits.admit(device));
            }
            if !knocked {
                continue;
            }
            match self.source.accept() {
                Ok(Some(socket)) => return Ok(Some(socket)),
                Ok(None) => {}
                // Others may let go of what is missing here: the front-end waits as long.
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
        session: &mut Session,
        device: &mut Device,
        stop: BorrowedFd<'_>,
        events: &mut dyn FnMut(Event),
    ) -> Result<Ended, ServeError> {
        let mut listener = self.source.listener();
        loop {
            let watched = listener.unwrap_or(stop);
            let stalled = session.stalled().unwrap_or(stop);
            let bell = self.visits.as_ref().map_or(stop, Visits::bell);
            let fds = [stop, session.as_fd(), device.reports(), stalled, watched, bell];
            let [stopped, readable, reported, stalled, knocked, visited] =
                wait(fds, None).map_err(ServeError::Wait)?;
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
            if knocked && !readable && !session.let_go_of_backchannel() && listener.is_some() {
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

enum Ended {
    Stopped,
    Gone,
    Broken(ProtocolError),
}
