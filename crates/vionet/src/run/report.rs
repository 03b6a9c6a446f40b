//! What workers tell the control plane, and the box they leave it in.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::{fmt, io};

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
}

impl ReportBox {
    pub(crate) fn new() -> io::Result<(Self, Receiver<Report>)> {
        let (sender, receiver) = channel();
        Ok((Self { sender, bell: Arc::new(super::bell()?) }, receiver))
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
}
