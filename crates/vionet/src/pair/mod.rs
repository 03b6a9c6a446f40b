//! A queue pair: two live queues and the endpoint queue behind them, with one owner.
//!
//! ```text
//!   service(now)
//!     transmit: take all, judge all, hand all over, give all back, publish once   (tx.rs)
//!     receive:  the endpoint fills windows of the stock of buffers, publish once  (rx.rs)
//!     then: more to do, or what to wait for
//! ```
//!
//! A step is bounded, never blocks, allocates nothing and reads no clock. A queue whose driver has
//! broken a rule stands still from then on; the other one goes on.

mod away;
mod delay;
mod guarded;
#[cfg(feature = "std")]
mod inlet;
mod join;
mod judge;
mod lane;
mod limited;
mod lower;
mod meter;
mod rarp;
mod rx;
mod sink;
mod tx;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::time::Duration;

use vionet_frame::steer::AutoSteer;
use vionet_queue::Queue;
use vionet_queue::{Armed, DeviceReads, DeviceWrites, Fault};
use vionet_raw::Scratch;

pub(crate) use guarded::Guarded;
#[cfg(feature = "std")]
pub use inlet::{Delivery, Inlet};
pub(crate) use judge::{Judge, Steering};
pub(crate) use lane::Lane;
pub use limited::Limits;
pub(crate) use limited::{DeviceLimits, Limited};
pub(crate) use lower::Lower;
pub use rx::Refused;
use sink::Bench;
pub(crate) use sink::Inspection;
pub use sink::RxSink;
pub use tx::{TxBatch, TxFrame};

use crate::control::Coalescing;
use crate::endpoint::{EndpointFault, EndpointQueue, Watch};
#[cfg(feature = "std")]
use crate::interrupt::Interrupt;
use crate::negotiate::Plan;
use crate::nic::{PairIndex, QueueIndex};
use crate::stats::{DropReason, LaneStats, PairStats};
use crate::time::Instant;
use rx::{Filled, GuestSink};
use sink::Look;
use tx::Noted;

/// The most frames one step moves in one direction.
pub(crate) const BATCH: usize = 64;

/// How soon a translation that the platform did not have is asked for again.
pub(crate) const TRANSLATION_REST: Duration = Duration::from_millis(1);

/// How long the host side is left alone after a failure.
const HOST_REST: Duration = Duration::from_millis(100);

/// A driver's broken rule, and the queue it broke it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairFault {
    /// The queue, which stands still now.
    pub queue: QueueIndex,
    /// The rule.
    pub fault: Fault,
}

impl fmt::Display for PairFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "queue {} stopped: {}", self.queue.0, self.fault)
    }
}

impl core::error::Error for PairFault {}

/// What to do after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is more to do: step again.
    Again,
    /// Nothing to do until a kick, or until what is said here.
    Wait(Watch),
}

/// What a step has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// Frames have moved, or buffers have gone back.
    pub worked: bool,
    /// What to do now.
    pub next: Next,
    /// A rule the driver broke in this step; said once for each queue.
    pub fault: Option<PairFault>,
    /// A failure of the host side in this step.
    pub host: Option<EndpointFault>,
}

/// How a direction's part of a step ended.
#[derive(Default)]
struct Outcome {
    again: bool,
    worked: bool,
    /// Transmit: the endpoint is full. Receive: the guest has no buffers.
    stalled: bool,
    /// The platform has no translation for the next chain yet.
    untranslated: bool,
    fault: Option<Fault>,
    host: Option<EndpointFault>,
}

/// What is done about a queue in which there is nothing to take.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Idle {
    /// A kick is asked for, and the ring looked at once more.
    Arm,
    /// Nothing: the caller comes again.
    Spin,
}

impl Idle {
    /// Whether there is something to take after all.
    #[inline(always)]
    fn arm(self, queue: &mut Queue) -> bool {
        self == Self::Arm && queue.arm() == Armed::WorkArrived
    }
}

/// What the control plane has decided about a pair.
pub(crate) struct PairConfig {
    pub(crate) plan: Plan,
    pub(crate) link_up: bool,
    /// The driver uses the pair.
    pub(crate) in_use: bool,
    /// Of the receive and of the transmit queue.
    pub(crate) delays: [Coalescing; 2],
    pub(crate) limits: Option<DeviceLimits>,
    pub(crate) inspection: Option<Inspection>,
}

/// Two live queues and the host side behind them. Moved to a worker, and moved back when asked.
pub struct QueuePair {
    index: PairIndex,
    plan: Plan,
    pub(crate) rx: Option<Lane<DeviceWrites>>,
    pub(crate) tx: Option<Lane<DeviceReads>>,
    frames: Box<[TxFrame; BATCH]>,
    /// What is out of the ordinary in a batch.
    noted: Box<Noted>,
    endpoint: Box<dyn EndpointQueue>,
    /// Looks at received frames, if anything is to; a lane that its endpoint delivers into takes
    /// it along.
    bench: Option<Bench>,
    /// The room to look at frames in, while nobody does.
    spare: Option<Scratch>,
    /// Where the receive lane is while the pair is out, if others deliver into it.
    #[cfg(feature = "std")]
    inlet: Option<Arc<Inlet>>,
    /// Its endpoint delivers there, and is not asked for frames.
    #[cfg(feature = "std")]
    is_delivered_to: bool,
    /// The interrupt of a lane that is in the inlet.
    #[cfg(feature = "std")]
    kept: Option<Arc<dyn Interrupt>>,
    /// A rule that was broken in the inlet, and not told when the lane was called home.
    #[cfg(feature = "std")]
    untold: Option<Fault>,
    /// The host side is gone: frames are dropped and counted.
    gone: bool,
    /// The host's rate limits, if there are any.
    limits: Option<Box<Limited>>,
    /// Remembers which pair each flow was last sent on, if frames are spread so.
    flows: Option<Arc<AutoSteer>>,
    /// The link is up, and the driver uses the pair: frames may arrive.
    receives: bool,
    /// The host side is asked for them: no limit holds it up in this step.
    asks: bool,
    /// The link is up: frames may be sent.
    link_up: bool,
    /// Frames received and transmitted when its worker last slept.
    #[cfg(feature = "std")]
    moved: [u64; 2],
    stats: Arc<PairStats>,
}

impl QueuePair {
    pub(crate) fn new(
        index: PairIndex,
        plan: Plan,
        endpoint: Box<dyn EndpointQueue>,
        stats: Arc<PairStats>,
    ) -> Self {
        let frames = Box::new([TxFrame::default(); BATCH]);
        Self {
            index,
            plan,
            rx: None,
            tx: None,
            frames,
            noted: Box::default(),
            bench: None,
            spare: None,
            #[cfg(feature = "std")]
            is_delivered_to: endpoint.inlet().is_some(),
            #[cfg(feature = "std")]
            inlet: endpoint.inlet(),
            #[cfg(feature = "std")]
            kept: None,
            #[cfg(feature = "std")]
            untold: None,
            endpoint,
            gone: false,
            limits: None,
            flows: None,
            receives: true,
            asks: true,
            link_up: true,
            #[cfg(feature = "std")]
            moved: [stats.rx.frames(), stats.tx.frames()],
            stats,
        }
    }

    /// Lets go of the endpoint and goes on with another; at home only.
    pub(crate) fn set_endpoint(&mut self, endpoint: Box<dyn EndpointQueue>) {
        #[cfg(feature = "std")]
        {
            self.inlet = endpoint.inlet();
            self.is_delivered_to = self.inlet.is_some();
        }
        self.endpoint = endpoint;
        self.gone = false;
    }

    /// What has been decided about the pair; at home only.
    pub(crate) fn configure(&mut self, config: PairConfig) {
        let PairConfig { plan, link_up, in_use, delays, limits, inspection } = config;
        (self.plan, self.link_up, self.receives) = (plan, link_up, link_up && in_use);
        self.flows = inspection.as_ref().and_then(|by| by.judge.flows().cloned());
        let scratch = self.bench.take().map(Bench::into_scratch);
        let mut scratch = scratch.or_else(|| self.spare.take());
        self.bench = inspection.map(|by| Bench::new(by, scratch.take()));
        self.spare = scratch;
        self.asks = self.receives;
        self.limits = limits.map(|limits| Box::new(Limited::new(limits, self.index)));
        let [rx, tx] = delays;
        self.rx.iter_mut().for_each(|lane| lane.set_delay(rx));
        self.tx.iter_mut().for_each(|lane| lane.set_delay(tx));
    }

    /// Whether frames that come by this pair go to others.
    fn spreads(&self) -> bool {
        self.bench.as_ref().is_some_and(|bench| bench.by.judge.spreads())
    }

    /// Which pair of its device this is.
    #[must_use]
    pub fn index(&self) -> PairIndex {
        self.index
    }

    /// Whether the receive and the transmit queue are live.
    #[cfg(feature = "std")]
    pub(crate) fn live(&self) -> [bool; 2] {
        [self.rx.is_some(), self.tx.is_some()]
    }

    /// The driver has kicked the receive queue, or the transmit queue.
    #[cfg(feature = "std")]
    pub(crate) fn count_kick(&self, receive: bool) {
        let lane = if receive { &self.stats.rx } else { &self.stats.tx };
        lane.kicks.add(1);
    }

    /// The worker goes to sleep: what it has moved since it woke is told together.
    #[cfg(feature = "std")]
    pub(crate) fn count_wake(&mut self) {
        // What others deliver wakes nobody here.
        let receive = self.rx.is_some().then_some(&self.stats.rx);
        let lanes = [receive, Some(&self.stats.tx)];
        for (lane, before) in lanes.into_iter().zip(&mut self.moved) {
            let Some(lane) = lane else { continue };
            let all = lane.frames();
            let moved = all.wrapping_sub(core::mem::replace(before, all));
            if moved > 0 {
                lane.wake_sizes.add(usize::try_from(moved).unwrap_or(usize::MAX));
            }
        }
    }

    /// The descriptor of the host side, to wait on as [`Watch`] says.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn endpoint_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.endpoint.fd()
    }

    /// Readable when others have something to tell: to be waited on whatever [`Watch`] says.
    #[cfg(feature = "std")]
    #[must_use]
    pub fn bell_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.inlet.as_ref().map(|inlet| inlet.bell())
    }

    /// One bounded step in both directions at time `now`. When it ends with a wait, the driver
    /// has been asked for kicks.
    #[inline]
    pub fn service(&mut self, now: Instant) -> Step {
        self.step(now, Idle::Arm)
    }

    /// The same, but kicks stay unwanted: for a caller that comes again soon whatever happens,
    /// and calls [`Self::service`] before it waits.
    #[inline]
    pub fn spin(&mut self, now: Instant) -> Step {
        self.step(now, Idle::Spin)
    }

    #[inline]
    fn step(&mut self, now: Instant, idle: Idle) -> Step {
        if self.limits.is_some() {
            self.look_at_limits(now);
        }
        let tx = self.transmit(now, idle);
        // A step says one fault: after one, receiving waits for the next step.
        let rx = match tx.fault {
            None => match self.attend(now) {
                None => self.receive(now, idle),
                fault => Outcome { again: true, fault, ..Outcome::default() },
            },
            Some(_) => Outcome { again: true, ..Outcome::default() },
        };
        self.tx.iter_mut().for_each(|lane| lane.settle(now));
        if let Some(lane) = &mut self.rx {
            lane.settle(now);
            lane.forget_translations();
        }
        let broken = [(tx.fault, self.index.transmit()), (rx.fault, self.index.receive())];
        let fault = broken
            .into_iter()
            .find_map(|(fault, queue)| fault.map(|fault| PairFault { queue, fault }));
        let wish = self.endpoint.watch();
        // A full endpoint that waits for nothing has found room again while receiving.
        let room_again = tx.stalled
            && !wish.writable
            && tx.host.is_none()
            && self.limits.as_ref().is_none_or(|limits| !limits.holds_transmit());
        let next = if tx.again || rx.again || room_again {
            Next::Again
        } else {
            let watch = self.watch(wish, rx.stalled);
            let failed = tx.host.is_some() || rx.host.is_some();
            let watch = if failed { Self::rest(watch, now) } else { watch };
            let untranslated = tx.untranslated || rx.untranslated;
            let watch = if untranslated { Self::ask_again(watch, now) } else { watch };
            Next::Wait(watch)
        };
        let host = tx.host.or(rx.host);
        if host == Some(EndpointFault::Gone) {
            self.gone = true;
        }
        Step { worked: tx.worked || rx.worked, next, fault, host }
    }

    /// Whether the host side may be asked for frames in this step.
    #[cold]
    fn look_at_limits(&mut self, now: Instant) {
        let asks = self.receives && !self.gone && self.can_receive() && !self.is_delivered_to();
        if let Some(limits) = &mut self.limits {
            self.asks = limits.begin(now, asks, &self.stats.rx) && self.receives;
        }
    }

    /// Whether there is somewhere to deliver frames of the host side.
    fn can_receive(&self) -> bool {
        self.rx.as_ref().is_some_and(Lane::is_usable) || self.spreads()
    }

    fn watch(&self, wish: Watch, starved: bool) -> Watch {
        let receiving = self.asks && self.can_receive();
        let deadline = wish.deadline.filter(|_| receiving && !self.gone);
        let puts_off = self.rx.as_ref().is_some_and(|lane| lane.delay.is_some())
            || self.tx.as_ref().is_some_and(|lane| lane.delay.is_some())
            || self.has_inlet()
            || self.limits.is_some();
        Watch {
            // No poll of the host side while the guest has no room for what it would bring.
            readable: wish.readable && receiving && !starved && !self.gone,
            writable: wish.writable && !self.gone,
            deadline: if puts_off { self.soonest(deadline) } else { deadline },
        }
    }

    /// The first of `deadline`, the times at which interrupts are due that were put off, and those
    /// at which there is credit again.
    #[inline(never)]
    fn soonest(&self, deadline: Option<Instant>) -> Option<Instant> {
        #[cfg(feature = "std")]
        let lent = self.inlet.as_ref().and_then(|inlet| inlet.late());
        #[cfg(not(feature = "std"))]
        let lent = None;
        let (rx, tx) = (self.rx.as_ref(), self.tx.as_ref());
        let held = self.limits.as_ref().map_or([None; 2], |limits| limits.until());
        let all = [deadline, lent, rx.and_then(Lane::due), tx.and_then(Lane::due)];
        all.into_iter().chain(held).flatten().min()
    }

    /// After a failure of the host side: look again in a while instead of at once, for ever.
    #[cold]
    fn rest(watch: Watch, now: Instant) -> Watch {
        let later = now.after(HOST_REST);
        Watch { readable: false, deadline: Some(later), ..watch }
    }

    /// A kick is no sign of a translation: look again soon, but not at once.
    #[cold]
    fn ask_again(watch: Watch, now: Instant) -> Watch {
        let soon = now.after(TRANSLATION_REST);
        Watch { deadline: Some(watch.deadline.map_or(soon, |at| at.min(soon))), ..watch }
    }

    fn transmit(&mut self, now: Instant, idle: Idle) -> Outcome {
        let Some(lane) = self.tx.as_mut().filter(|lane| lane.is_live()) else {
            return Outcome::default();
        };
        let stats = &self.stats.tx;
        let mut outcome = Outcome::default();
        lane.queue.disarm();
        let taken = lane.queue.take(BATCH, &mut lane.batch);
        let count = tx::judge(&lane.batch, &mut self.frames, &mut self.noted, &self.plan);
        let frames = self.frames.get(..count).unwrap_or(&[]);
        let mut batch = TxBatch::new(&lane.batch, frames, self.noted.is_open, stats, now);
        if !lane.enabled {
            batch.drop_rest(DropReason::QueueDisabled);
        } else if self.gone {
            batch.drop_rest(DropReason::EndpointGone);
        } else if !self.link_up {
            batch.drop_rest(DropReason::LinkDown);
        } else if count > 0 {
            if let Some(flows) = &self.flows {
                judge::remember(flows, &batch, self.index);
            }
            outcome.host = match &mut self.limits {
                None => self.endpoint.transmit(&mut batch).err(),
                Some(limits) => limits.transmit(&mut *self.endpoint, &mut batch, stats).err(),
            };
            if outcome.host == Some(EndpointFault::Gone) {
                batch.drop_rest(DropReason::EndpointGone);
            }
        }
        stats.host_errors.add(u64::from(outcome.host.is_some()));
        let settled = batch.settled_rows();
        self.noted.count_unfit(settled, stats);
        outcome.stalled = settled < lane.batch.len();
        if outcome.stalled {
            stats.stalled.add(1);
        }
        if settled > 0 {
            outcome.worked = true;
            stats.batches.add(1);
            stats.batch_sizes.add(settled);
            lane.queue.put(&mut lane.batch, settled);
            lane.publish(settled, now, stats);
        }
        lane.queue.untake(&mut lane.batch);
        match taken {
            Err(fault) => outcome.fault = Some(lane.break_off(fault, stats)),
            Ok(_) if outcome.stalled => {}
            Ok(_) if lane.batch.is_untranslated() => {
                stats.untranslated.add(1);
                outcome.untranslated = true;
            }
            Ok(BATCH..) => outcome.again = true,
            Ok(_) => outcome.again = idle.arm(&mut lane.queue),
        }
        outcome
    }

    fn receive(&mut self, now: Instant, idle: Idle) -> Outcome {
        let mut outcome = Outcome::default();
        if self.gone || !self.asks {
            return outcome;
        }
        if self.bench.is_some() || self.limits.is_some() {
            self.receive_apart(now, idle, &mut outcome);
        } else if let Some(lane) = self.rx.as_mut().filter(|lane| lane.is_usable()) {
            let (plan, stats) = (&self.plan, &self.stats.rx);
            let (queue, batch) = (&mut lane.queue, &mut lane.batch);
            // No `drop` for it: that would be a move.
            let filled = {
                let mut sink = RxSink::guest(GuestSink::new(queue, batch, plan, stats, now));
                outcome.host = self.endpoint.receive(&mut sink).err();
                sink.finish()
            };
            outcome.settle(lane, &filled, idle, now, stats);
        }
        outcome
    }

    /// The same where frames are looked at, or limited.
    #[inline(never)]
    fn receive_apart(&mut self, now: Instant, idle: Idle, outcome: &mut Outcome) {
        let (here, plan, stats) = (self.index, &self.plan, &self.stats.rx);
        let look = self.bench.as_mut().map(|bench| Look { bench, here });
        let meter = self.limits.as_ref().and_then(|limits| limits.meter());
        let mut lane = self.rx.as_mut().filter(|lane| lane.is_usable());
        let spreads = look.as_ref().is_some_and(|look| look.bench.by.judge.spreads());
        if lane.is_none() && !spreads {
            return;
        }
        let own = lane
            .as_mut()
            .map(|lane| GuestSink::new(&mut lane.queue, &mut lane.batch, plan, stats, now));
        let mut sink = RxSink::apart(look, own, meter, (plan, stats, now));
        outcome.host = self.endpoint.receive(&mut sink).err();
        let (filled, passed) = (sink.finish(), sink.passed());
        drop(sink);
        if let Some(limits) = &mut self.limits {
            limits.received(now, passed);
        }
        match lane {
            Some(lane) => outcome.settle(lane, &filled, idle, now, stats),
            None => (outcome.again, outcome.worked) = (filled.spent, filled.spent),
        }
    }
}

impl Outcome {
    /// What follows from what has been filled.
    #[inline(always)] // With two callers it would not be, at 10 instructions a batch.
    fn settle(
        &mut self,
        lane: &mut Lane<DeviceWrites>,
        filled: &Filled,
        idle: Idle,
        now: Instant,
        stats: &LaneStats,
    ) {
        if self.host.is_some() {
            stats.host_errors.add(1);
        }
        if filled.worked {
            self.worked = true;
            stats.batches.add(1);
            stats.batch_sizes.add(filled.frames);
            lane.publish(filled.frames, now, stats);
        }
        if let Some(fault) = filled.fault {
            self.fault = Some(lane.break_off(fault, stats));
        } else if filled.starved {
            stats.starved.add(1);
            self.stalled = true;
            if lane.batch.is_untranslated() {
                stats.untranslated.add(1);
                self.untranslated = true;
            } else {
                self.again = idle.arm(&mut lane.queue);
            }
        } else {
            lane.queue.disarm();
            self.again = filled.spent;
        }
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // Nobody delivers into a pair that is no more.
        self.take_back();
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pair {}", self.index.0)
    }
}
