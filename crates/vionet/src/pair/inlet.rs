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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::event::{EventfdFlags, eventfd};
use vionet_queue::{DeviceWrites, Fault};

use super::judge::Door;
use super::meter::Meter;
use super::rx::{Filled, GuestSink};
use super::sink::{Bench, Look};
use super::{Lane, Refused, RxSink};
use crate::limit::Turn;
use crate::negotiate::Plan;
use crate::nic::PairIndex;
use crate::stats::{DropReason, PairStats};
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
    /// The driver has posted buffers since the queue was started.
    stocked: AtomicBool,
    /// The driver is to be interrupted.
    due: AtomicBool,
    /// When it is to be interrupted, in nanoseconds, where that is put off; else 0.
    late: AtomicU64,
    /// The pair's own worker has to attend to something.
    news: AtomicBool,
    /// Wakes that worker.
    bell: OwnedFd,
}

/// A receive lane away from its pair.
pub(super) struct Lent {
    lane: Lane<DeviceWrites>,
    /// Looks at frames, if anything is to.
    bench: Option<Bench>,
    /// What may be delivered, if that is limited: what is above is dropped.
    turn: Option<Turn>,
    pair: PairIndex,
    plan: Plan,
    stats: Arc<PairStats>,
    fault: Option<Fault>,
    has_interrupt: bool,
}

/// A lane that comes home.
pub(super) struct Returned {
    pub(super) lane: Lane<DeviceWrites>,
    pub(super) bench: Option<Bench>,
    /// The rule that the driver has broken, if that is still to be told.
    pub(super) fault: Option<Fault>,
    /// The driver is to be interrupted.
    pub(super) due: bool,
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
        let [open, stocked, due, news] = [const { AtomicBool::new(false) }; 4];
        let (lent, late) = (Mutex::new(None), AtomicU64::new(0));
        Ok(Self { lent, open, stocked, due, late, news, bell })
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
        let Some(Lent { lane, bench, turn, pair, plan, stats, .. }) =
            place.as_mut().filter(|_| self.is_open())
        else {
            return Delivery::Closed;
        };
        let stats = &stats.rx;
        self.take_stock(lane);
        lane.queue.disarm();
        let sink = GuestSink::new(&mut lane.queue, &mut lane.batch, plan, stats, now);
        let meter = turn.as_mut().map(|turn| Meter::policing(turn.credit(now).unwrap_or_default()));
        let here = *pair;
        let look = bench.as_mut().map(|bench| Look { bench, here });
        let sink = match (&look, &meter) {
            (None, None) => RxSink::guest(sink),
            (Some(_), _) | (_, Some(_)) => {
                RxSink::apart(look, Some(sink), meter, (plan, stats, now))
            }
        };
        let mut sink = sink.with_budget(FRAMES_MAX);
        fill(&mut sink);
        let (filled, passed) = (sink.finish(), sink.passed());
        // What it has open of other pairs is closed first.
        drop(sink);
        if let Some(turn) = turn {
            turn.charge(now, passed);
        }
        self.settle(&mut place, &filled, now);
        Delivery::Done
    }

    /// Opens the door for frames that have been looked at; `None` when the guest has no live
    /// receive queue, or others are at it and this one may not wait. What was pushed is published
    /// when it is dropped.
    pub(super) fn open(&self, now: Instant, may_wait: bool) -> Option<Opened<'_>> {
        if !self.is_open() {
            return None;
        }
        let mut place = if may_wait { self.lock() } else { self.try_lock()? };
        let lent = place.as_mut().filter(|_| self.is_open())?;
        lent.lane.queue.disarm();
        Some(Opened { inlet: self, place, filled: Filled::default(), now })
    }

    /// Publishes what was filled, and leaves the rest to the pair's own worker.
    fn settle(&self, place: &mut Option<Lent>, filled: &Filled, now: Instant) {
        let Some(Lent { lane, stats, fault, has_interrupt, .. }) = place else { return };
        let stats = &stats.rx;
        self.forget_raised(lane);
        if filled.worked {
            stats.batches.add(1);
            stats.batch_sizes.add(filled.frames);
            lane.publish(filled.frames, now, stats);
        }
        stats.starved.add(u64::from(filled.starved));
        let owed = lane.take_owed() && *has_interrupt;
        let mut news = owed && !self.due.swap(true, Ordering::AcqRel);
        let late = lane.due().filter(|_| *has_interrupt).map_or(0, Instant::nanos);
        news |= self.late.swap(late, Ordering::AcqRel) != late && late != 0;
        if let Some(rule) = filled.fault {
            *fault = Some(lane.break_off(rule, stats));
            self.open.store(false, Ordering::Release);
            news = true;
        }
        lane.forget_translations();
        if news {
            self.ring();
        }
    }

    /// Readable when the pair's worker has something to hear.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the lane in, without its interrupt. The door stays closed unless it `opens`.
    pub(super) fn lend(&self, mut lent: Lent, opens: bool) {
        let lane = &mut lent.lane;
        let opens = opens && lane.is_live() && lane.enabled;
        self.due.store(lane.take_owed() && lent.has_interrupt, Ordering::Release);
        let late = lane.due().map_or(0, Instant::nanos);
        self.late.store(late, Ordering::Release);
        self.stocked.store(lane.is_stocked(), Ordering::Relaxed);
        *self.lock() = Some(lent);
        self.open.store(opens, Ordering::Release);
        self.ring();
    }

    /// The lane, and what is to be told; nobody delivers any more when this returns.
    pub(super) fn take_back(&self) -> Option<Returned> {
        self.open.store(false, Ordering::SeqCst);
        let Lent { mut lane, bench, fault, .. } = self.lock().take()?;
        self.forget_raised(&mut lane);
        self.late.store(0, Ordering::Release);
        Some(Returned { lane, bench, fault, due: self.due.swap(false, Ordering::AcqRel) })
    }

    /// An interrupt that was put off is over when the pair's worker has raised it.
    fn forget_raised(&self, lane: &mut Lane<DeviceWrites>) {
        if let Some(delay) = lane.delay.as_mut().filter(|delay| delay.due().is_some())
            && self.late.load(Ordering::Acquire) == 0
        {
            delay.done();
        }
    }

    /// When the driver is to be interrupted, where that is put off.
    pub(super) fn late(&self) -> Option<Instant> {
        let late = self.late.load(Ordering::Acquire);
        (late != 0).then(|| Instant::from_nanos(late))
    }

    /// It is interrupted now: also for what was put off until now by others, which is seen here.
    pub(super) fn not_late_any_more(&self) {
        self.late.swap(0, Ordering::AcqRel);
    }

    /// Whether frames can be delivered now.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// What a frame that may go elsewhere finds here.
    #[inline]
    pub(super) fn door(&self) -> Door {
        match (self.is_open(), self.stocked.load(Ordering::Relaxed)) {
            (false, _) => Door::Closed,
            (true, true) => Door::Open,
            (true, false) => self.look_for_stock(),
        }
    }

    #[cold]
    fn look_for_stock(&self) -> Door {
        let mut place = self.try_lock();
        if let Some(Some(Lent { lane, .. })) = place.as_deref_mut() {
            self.take_stock(lane);
        }
        if self.stocked.load(Ordering::Relaxed) { Door::Open } else { Door::Empty }
    }

    #[inline]
    fn take_stock(&self, lane: &mut Lane<DeviceWrites>) {
        if !self.stocked.load(Ordering::Relaxed) {
            self.stocked.store(lane.is_stocked(), Ordering::Relaxed);
        }
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

    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Lent>>> {
        match self.lent.try_lock() {
            Ok(place) => Some(place),
            Err(TryLockError::Poisoned(place)) => Some(place.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Lent>> {
        // A sender that panicked has lost its own pair; the lane's state is whole between verbs.
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lent {
    pub(super) fn new(
        lane: Lane<DeviceWrites>,
        (bench, turn): (Option<Bench>, Option<Turn>),
        (pair, plan): (PairIndex, Plan),
        stats: Arc<PairStats>,
        (has_interrupt, fault): (bool, Option<Fault>),
    ) -> Self {
        Self { lane, bench, turn, pair, plan, stats, fault, has_interrupt }
    }
}

/// An inlet with its door open.
pub(super) struct Opened<'a> {
    inlet: &'a Inlet,
    place: MutexGuard<'a, Option<Lent>>,
    filled: Filled,
    now: Instant,
}

impl Opened<'_> {
    /// Pushes a frame. A guest without room loses it.
    pub(super) fn push(
        &mut self,
        push: impl FnOnce(&mut GuestSink<'_>) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let Some(Lent { lane, plan, stats, .. }) = self.place.as_mut() else {
            return Err(Refused::Dropped);
        };
        if self.filled.fault.is_some() {
            return Err(Refused::Dropped);
        }
        let stats = &stats.rx;
        let mut sink = GuestSink::new(&mut lane.queue, &mut lane.batch, plan, stats, self.now);
        let pushed = push(&mut sink);
        if pushed == Err(Refused::Full) {
            sink.dropped(DropReason::NoBuffer);
        }
        let filled = sink.finish();
        self.filled.worked |= filled.worked;
        self.filled.starved |= filled.starved;
        self.filled.frames = self.filled.frames.saturating_add(filled.frames);
        self.filled.fault = filled.fault;
        pushed
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.inlet.settle(&mut self.place, &self.filled, self.now);
    }
}

impl std::fmt::Debug for Inlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("inlet")
    }
}
