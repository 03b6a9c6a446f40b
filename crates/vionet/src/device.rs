//! A whole device in one handle: the control plane, its endpoint, its workers.

use std::boxed::Box;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::{fmt, io};

use vionet_queue::Cursor;
use vionet_spec::feature::FeatureBits;
use vionet_spec::net::CONFIG_LEN;

use crate::endpoint::Endpoint;
use crate::negotiate::Negotiated;
use crate::nic::{Effect, Effects, Nic, NicConfig, Op, OpError, PairIndex, QueueIndex};
use crate::run::{Kicks, Report, ReportBox, Seat, Workers};
use crate::stats::PairStats;

/// Why a device could not be made.
#[derive(Debug)]
pub struct DeviceError(io::Error);

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the workers of the device could not be started: {}", self.0)
    }
}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A network device with its endpoint and a seat at a worker for each queue pair. Dropping it takes
/// the pairs back, ends the workers that nobody else has a seat at, and drops the endpoint then.
pub struct Device {
    nic: Nic,
    // Before the endpoint: its queues are gone when the endpoint goes.
    seats: Vec<Seat>,
    endpoint: Box<dyn Endpoint>,
    kicks: Vec<Option<Arc<OwnedFd>>>,
    reports: ReportBox,
    inbox: Receiver<Report>,
}

impl Device {
    /// A device in its reset state in front of `endpoint`, with a thread for each pair.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left for its workers.
    pub fn new(config: NicConfig, endpoint: Box<dyn Endpoint>) -> Result<Self, DeviceError> {
        Self::with_workers(config, endpoint, &Workers::default())
    }

    /// The same, its pairs hosted by `workers`, which other devices may use too.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn with_workers(
        config: NicConfig,
        endpoint: Box<dyn Endpoint>,
        workers: &Workers,
    ) -> Result<Self, DeviceError> {
        let nic = Nic::new(config, endpoint.capabilities());
        let (reports, inbox) = ReportBox::new().map_err(DeviceError)?;
        let pairs = nic.queues().checked_div(2).unwrap_or(0);
        let seats = (0..pairs)
            .map(|index| workers.seat(PairIndex(index), reports.clone()))
            .collect::<Result<_, _>>()
            .map_err(DeviceError)?;
        let kicks = (0..nic.queues()).map(|_| None).collect();
        Ok(Self { nic, seats, endpoint, kicks, reports, inbox })
    }

    /// What the host side is, as the user wrote it.
    #[must_use]
    pub fn endpoint_name(&self) -> String {
        self.endpoint.name()
    }

    /// The features to show to the driver.
    #[must_use]
    pub fn offer(&self) -> FeatureBits {
        self.nic.offer()
    }

    /// What was agreed, once it was.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.nic.negotiated()
    }

    /// The device configuration space.
    #[must_use]
    pub fn config_space(&self) -> [u8; CONFIG_LEN] {
        self.nic.config_space()
    }

    /// The MTU shown to the driver, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.nic.mtu()
    }

    /// How many queues the device has.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.nic.queues()
    }

    /// The position of a stopped queue.
    #[must_use]
    pub fn cursor(&self, index: QueueIndex) -> Option<Cursor> {
        self.nic.cursor(index)
    }

    /// The counters of each pair, in pair order.
    pub fn stats(&self) -> impl Iterator<Item = &Arc<PairStats>> {
        self.nic.stats()
    }

    /// Does what is asked; returns when it is done and every pair runs again.
    ///
    /// # Errors
    /// When it was refused; nothing has changed then.
    pub fn apply(&mut self, op: Op) -> Result<(), OpError> {
        if matches!(op, Op::Reset) {
            self.kicks.iter_mut().for_each(|kick| *kick = None);
        }
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = Err(OpError::Busy);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(settings) => {
                    let queues = self.endpoint.open(&settings);
                    self.nic.opened(queues, &mut effects);
                }
                Effect::Recall(index) => {
                    let seat = self.seats.get(usize::from(index.0));
                    let pair = seat.and_then(Seat::recall);
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Start(pair) => {
                    let kicks = self.kicks_of(pair.index());
                    if let Some(seat) = self.seats.get(usize::from(pair.index().0)) {
                        seat.start(pair, kicks);
                    }
                }
                Effect::Done(outcome) => result = outcome,
            }
        }
        result
    }

    /// The eventfd that the driver kicks a queue with; before the queue starts or while it runs.
    ///
    /// # Errors
    /// When there is no such queue.
    pub fn set_kick(&mut self, index: QueueIndex, kick: Option<OwnedFd>) -> Result<(), OpError> {
        let slot = self.kicks.get_mut(usize::from(index.0));
        let slot = slot.ok_or(OpError::NoSuchQueue(index))?;
        let old = core::mem::replace(slot, kick.map(Arc::new));
        let result = self.apply(Op::Rewire(index.pair()));
        // The worker has let go of it now.
        drop(old);
        result
    }

    /// Readable when a worker has something to report.
    #[must_use]
    pub fn reports(&self) -> BorrowedFd<'_> {
        self.reports.bell()
    }

    /// The next report of a worker, in the order they came.
    pub fn next_report(&mut self) -> Option<Report> {
        if let Ok(report) = self.inbox.try_recv() {
            return Some(report);
        }
        // Silence the bell first, then look again: a report that came between rings anew.
        let (Ok(_) | Err(_)) = rustix::io::read(self.reports.bell(), &mut [0; 8]);
        self.inbox.try_recv().ok()
    }

    fn kicks_of(&self, pair: PairIndex) -> Kicks {
        [pair.receive(), pair.transmit()]
            .map(|index| self.kicks.get(usize::from(index.0)).cloned().flatten())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Pairs come home and their queues are given back before the workers end.
        let (Ok(()) | Err(_)) = self.apply(Op::Reset);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("nic", &self.nic).finish_non_exhaustive()
    }
}
