//! What workers tell the control plane, and the box they leave it in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use super::held;
use crate::endpoint::{EndpointFault, OpenError};
use crate::nic::PairIndex;
use crate::pair::PairFault;

/// What a worker has to say to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A driver broke a rule; that queue stands still until it is stopped.
    Fault(PairFault),
    /// The host side of a pair failed.
    Host {
        /// The pair.
        pair: PairIndex,
        /// What happened.
        fault: EndpointFault,
    },
    /// A pair was lost by a defect of ours; the others go on.
    Lost(PairIndex),
    /// A worker has not given a pair back for ten seconds, which takes microseconds: something on
    /// the host holds it up. Behind registers the pair is waited for on; a blocking
    /// [`Device::apply`](crate::Device::apply) gives it up, and the others go on.
    Silent(PairIndex),
    /// The host side did not take a change of what was agreed.
    Endpoint(OpenError),
    /// The device configuration has changed: a front that has told it to its VMM tells it again.
    ConfigChanged,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "{fault}"),
            Self::Host { pair, fault } => write!(f, "queue pair {}: {fault}", pair.0),
            Self::Lost(pair) => write!(f, "queue pair {} is lost by a defect of ours", pair.0),
            Self::Silent(pair) => {
                let pair = pair.0;
                write!(f, "the worker of queue pair {pair} has not answered for 10 s: see what ")?;
                f.write_str("holds its host side up")
            }
            Self::Endpoint(error) => write!(f, "{error}"),
            Self::ConfigChanged => f.write_str("the device configuration has changed"),
        }
    }
}

/// Where workers leave the reports on a device's pairs.
#[derive(Clone)]
pub(crate) struct ReportBox {
    sender: Sender<Report>,
    bell: Arc<OwnedFd>,
    homecomings: Arc<Homecomings>,
}

/// How many answers to recalls have come. Who waits for one waits for the next, and holds nothing.
#[derive(Default)]
pub(crate) struct Homecomings {
    count: Mutex<u64>,
    more: Condvar,
}

impl Homecomings {
    pub(crate) fn count(&self) -> u64 {
        *held(&self.count)
    }

    fn add(&self) {
        let mut count = held(&self.count);
        *count = count.wrapping_add(1);
        self.more.notify_all();
    }

    /// Waits until there are others than `seen`, not longer than `patience`.
    pub(crate) fn wait(&self, seen: u64, patience: Duration) {
        let waited = self.more.wait_timeout_while(held(&self.count), patience, |now| *now == seen);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl ReportBox {
    pub(crate) fn new() -> io::Result<(Self, Receiver<Report>)> {
        let (sender, receiver) = channel();
        let homecomings = Arc::default();
        Ok((Self { sender, bell: Arc::new(super::bell()?), homecomings }, receiver))
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    pub(crate) fn put(&self, report: Report) {
        // Nobody listens any more only while the device is being dropped.
        if self.sender.send(report).is_ok() {
            self.ring();
        }
    }

    pub(crate) fn ring(&self) {
        super::ring(&self.bell);
    }

    /// A recall has been answered: calls for attention, and wakes who waits for it.
    pub(super) fn answered(&self) {
        self.homecomings.add();
        self.ring();
    }

    pub(crate) fn homecomings(&self) -> &Arc<Homecomings> {
        &self.homecomings
    }
}
