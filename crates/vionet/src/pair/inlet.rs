//! An inlet: the home of a receive lane into which others deliver.
//!
//! ```text
//!   worker of NIC A                                    worker of NIC B
//!   transmit(batch) --> switch --> [inlet of B: lane]     bell: interrupts B's driver,
//!                        lock, copy, publish, unlock ----> tells of a broken rule
//! ```
//!
//! A pair that is out with its worker has its receive lane here, if its endpoint asked for that;
//! at home the lane is in the pair again. So a lane still has one place, and whoever holds the lock
//! is its one owner: no frame waits in between, and none is copied twice.
//!
//! A lock serves whoever is quickest, and senders come without a pause: its owner would wait as
//! long as they like. So it never races them. To interrupt its driver it needs no lock, and to take
//! its lane home it closes the door first.
//!
//! The interrupt stays with the pair's own worker: its descriptor came from B's front-end, which
//! can make a write to it wait, and that must be nobody's trouble but B's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vionet_queue::{DeviceWrites, Fault};

use super::{Lane, RxSink};
use crate::negotiate::Plan;
use crate::stats::PairStats;
use crate::time::Instant;

/// The most frames of one delivery: a sender's batch may be cut into many.
const FRAMES_MAX: usize = 4096;

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// The guest has no live receive queue: nothing was called, nothing delivered.
    Closed,
    /// The closure had its sink; what it pushed is with the guest.
    Done,
}

/// Where the receive lane of a pair lives while others deliver into it; one for each pair.
pub struct Inlet {
    lent: Mutex<Option<Lent>>,
    /// Whether a sender may lock: the lane is here, works, and is not wanted back.
    open: AtomicBool,
    /// The driver is to be interrupted.
    due: AtomicBool,
    /// The pair's own worker has to attend to something.
    news: AtomicBool,
    /// Wakes that worker.
    bell: OwnedFd,
}

struct Lent {
    lane: Lane<DeviceWrites>,
    plan: Plan,
    stats: Arc<PairStats>,
    fault: Option<Fault>,
    has_interrupt: bool,
}

/// What the pair's own worker has to attend to.
#[derive(Default)]
pub(super) struct News {
    /// The rule that the driver has broken, told once.
    pub(super) fault: Option<Fault>,
    /// The driver is to be interrupted.
    pub(super) interrupt: bool,
}

impl Inlet {
    /// An inlet that is closed until its pair goes to work.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let [open, due, news] = [const { AtomicBool::new(false) }; 3];
        Ok(Self { lent: Mutex::new(None), open, due, news, bell })
    }

    /// Calls `fill` with the guest's buffers; then publishes once, and has the pair's worker
    /// interrupt once. A frame that the guest has no room for is not waited for: the guest is not
    /// asked to say when it has.
    pub fn deliver(&self, now: Instant, fill: impl FnOnce(&mut RxSink<'_>)) -> Delivery {
        if !self.is_open() {
            return Delivery::Closed;
        }
        let mut place = self.lock();
        // Its owner may have come while others had it.
        let Some(Lent { lane, plan, stats, fault, has_interrupt }) =
            place.as_mut().filter(|_| self.is_open())
        else {
            return Delivery::Closed;
        };
        let stats = &stats.rx;
        lane.queue.disarm();
        let sink = RxSink::new(&mut lane.queue, &mut lane.batch, plan, stats, now);
        let mut sink = sink.with_budget(FRAMES_MAX);
        fill(&mut sink);
        let filled = sink.finish();
        if filled.worked {
            stats.batches.add(1);
            stats.batch_sizes.add(filled.frames);
            lane.publish(filled.frames, now, stats);
        }
        stats.starved.add(u64::from(filled.starved));
        let owed = lane.take_owed() && *has_interrupt;
        let wanted = owed && !self.due.swap(true, Ordering::AcqRel);
        if let Some(rule) = filled.fault {
            *fault = Some(lane.break_off(rule, stats));
            self.open.store(false, Ordering::Release);
        }
        lane.forget_translations();
        if wanted || filled.fault.is_some() {
            self.ring();
        }
        Delivery::Done
    }

    /// Readable when the pair's worker has something to hear.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the lane in, without its interrupt.
    pub(super) fn lend(
        &self,
        mut lane: Lane<DeviceWrites>,
        plan: Plan,
        stats: Arc<PairStats>,
        has_interrupt: bool,
    ) {
        let opens = lane.is_live() && lane.enabled;
        self.due.store(lane.take_owed() && has_interrupt, Ordering::Release);
        *self.lock() = Some(Lent { lane, plan, stats, fault: None, has_interrupt });
        self.open.store(opens, Ordering::Release);
        self.ring();
    }

    /// The lane, and whether an interrupt is due; nobody delivers any more when this returns.
    pub(super) fn take_back(&self) -> Option<(Lane<DeviceWrites>, bool)> {
        self.open.store(false, Ordering::SeqCst);
        let lane = self.lock().take()?.lane;
        Some((lane, self.due.swap(false, Ordering::AcqRel)))
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// What is to be attended to, if anything.
    #[inline]
    pub(super) fn attend(&self) -> News {
        if self.news.load(Ordering::Relaxed) { self.hear() } else { News::default() }
    }

    #[cold]
    fn hear(&self) -> News {
        // In the reverse of the order of `ring`, and before looking: what is told from here on
        // rings again, and a bell that rings is always heard. Empty means silent already.
        self.news.store(false, Ordering::SeqCst);
        let (Ok(_) | Err(_)) = rustix::io::read(&self.bell, &mut [0; 8]);
        let interrupt = self.due.swap(false, Ordering::AcqRel);
        // A rule was broken only where the door is closed: nobody is at the lock for long.
        let fault = if self.is_open() {
            None
        } else {
            self.lock().as_mut().and_then(|lent| lent.fault.take())
        };
        News { fault, interrupt }
    }

    fn ring(&self) {
        // Full means rung already.
        let (Ok(_) | Err(_)) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        self.news.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lent>> {
        // A sender that panicked has lost its own pair; the lane's state is whole between verbs.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Inlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("inlet")
    }
}
