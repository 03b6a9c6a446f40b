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

mod delay;
mod guarded;
#[cfg(feature = "std")]
mod inlet;
mod join;
mod judge;
mod lane;
mod limited;
mod lower;
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

pub(crate) use guarded::Guarded;
#[cfg(feature = "std")]
pub use inlet::{Delivery, Inlet};
#[cfg(feature = "std")]
use inlet::{Lent, Returned};
pub(crate) use judge::{Judge, Steering};
pub(crate) use lane::Lane;
pub(crate) use limited::Limited;
pub use limited::Limits;
pub(crate) use lower::Lower;
pub use rx::Refused;
pub(crate) use sink::Bench;
pub use sink::RxSink;
pub use tx::{TxBatch, TxFrame};

use crate::control::Coalescing;
use crate::endpoint::{EndpointFault, EndpointQueue, Watch};
#[cfg(feature = "std")]
use crate::interrupt::Interrupt;
use crate::negotiate::Plan;
use crate::nic::{PairIndex, QueueIndex};
use crate::stats::{DropReason, PairStats};
use crate::time::Instant;
use rx::GuestSink;
use sink::Look;

/// The most frames one step moves in one direction.
pub(crate) const BATCH: usize = 64;

/// How soon a translation that the platform did not have is asked for again.
const TRANSLATION_REST: Duration = Duration::from_millis(1);

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
    #[inline]
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
    pub(crate) limits: Option<Limits>,
    pub(crate) bench: Option<Bench>,
}

/// Two live queues and the host side behind them. Moved to a worker, and moved back when asked.
pub struct QueuePair {
    index: PairIndex,
    plan: Plan,
    pub(crate) rx: Option<Lane<DeviceWrites>>,
    pub(crate) tx: Option<Lane<DeviceReads>>,
    frames: Box<[TxFrame; BATCH]>,
    endpoint: Box<dyn EndpointQueue>,
    /// Looks at received frames, if anything is to; a lane that its endpoint delivers into takes
    /// it along.
    bench: Option<Bench>,
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
    /// The host side is asked for them: no limit has held it up in this step.
    asks: bool,
    /// The link is up: frames may be sent.
    link_up: bool,
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
            bench: None,
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
            stats,
        }
    }

    /// Gives it a place where other pairs of the device deliver into it, if its endpoint has not.
    #[cfg(feature = "std")]
    pub(crate) fn with_inlet(mut self, inlet: Option<Arc<Inlet>>) -> Self {
        if self.inlet.is_none() {
            self.inlet = inlet;
        }
        self
    }

    /// Where its endpoint delivers, if it does.
    #[cfg(feature = "std")]
    pub(crate) fn own_inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.clone().filter(|_| self.is_delivered_to)
    }

    /// What has been decided about the pair; at home only.
    pub(crate) fn configure(&mut self, config: PairConfig) {
        let PairConfig { plan, link_up, in_use, delays, limits, bench } = config;
        (self.plan, self.link_up, self.receives) = (plan, link_up, link_up && in_use);
        self.flows = bench.as_ref().and_then(|bench| bench.judge.flows().cloned());
        self.bench = bench;
        self.asks = self.receives;
        let paid = self.limits.take().map(|limited| limited.paid());
        let stats = &self.stats.rx;
        self.limits = limits.map(|limits| Box::new(Limited::new(limits, paid, stats)));
        let [rx, tx] = delays;
        self.rx.iter_mut().for_each(|lane| lane.set_delay(rx));
        self.tx.iter_mut().for_each(|lane| lane.set_delay(tx));
    }

    /// On the way out: the receive lane goes where others can reach it.
    pub(crate) fn leaving(mut self: Box<Self>) -> Box<Self> {
        self.lend();
        self
    }

    fn lend(&mut self) {
        #[cfg(feature = "std")]
        if let Some(inlet) = self.inlet.as_ref().filter(|_| self.others_deliver())
            && let Some(mut lane) = self.rx.take()
        {
            self.kept = lane.interrupt.take();
            let bench = if self.is_delivered_to { self.bench.take() } else { None };
            let (what, stats) = ((self.index, self.plan), Arc::clone(&self.stats));
            let news = (self.kept.is_some(), self.untold.take());
            let lent = Lent::new(lane, bench, what, stats, news);
            inlet.lend(lent, self.receives);
        }
    }

    /// Back home, with all lanes.
    pub(crate) fn arrived(mut self: Box<Self>) -> Box<Self> {
        self.take_back();
        self
    }

    fn take_back(&mut self) {
        #[cfg(feature = "std")]
        if let Some(Returned { mut lane, bench, fault, due }) =
            self.inlet.as_ref().and_then(|inlet| inlet.take_back())
        {
            self.untold = fault;
            self.bench = bench.or(self.bench.take());
            lane.interrupt = self.kept.take();
            lane.owed = due;
            self.rx = Some(lane);
        }
    }

    /// Whether others deliver: the endpoint, or pairs that get frames for this one.
    #[cfg(feature = "std")]
    fn others_deliver(&self) -> bool {
        self.is_delivered_to || self.spreads()
    }

    /// Whether the receive lane may be away.
    fn has_inlet(&self) -> bool {
        #[cfg(feature = "std")]
        return self.inlet.is_some();
        #[cfg(not(feature = "std"))]
        false
    }

    /// Whether frames that come by this pair go to others.
    fn spreads(&self) -> bool {
        self.bench.as_ref().is_some_and(|bench| bench.judge.spreads())
    }

    /// Interrupts the driver for what others have delivered; says what rule it broke meanwhile.
    #[inline]
    fn attend(&mut self, now: Instant) -> Option<Fault> {
        #[cfg(not(feature = "std"))]
        let _now = now;
        #[cfg(feature = "std")]
        if let Some(inlet) = &self.inlet {
            let news = inlet.attend();
            let late = inlet.late().is_some_and(|at| at <= now);
            if late {
                inlet.not_late_any_more();
            }
            if (news.interrupt || late)
                && let Some(interrupt) = &self.kept
            {
                interrupt.raise();
                self.stats.rx.interrupts.add(1);
            }
            return news.fault.or_else(|| self.untold.take());
        }
        None
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
        if let Some(limits) = &mut self.limits {
            self.asks = limits.begin(now, &self.stats.rx) && self.receives;
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

    fn watch(&self, wish: Watch, starved: bool) -> Watch {
        let lane = self.rx.as_ref().is_some_and(|lane| lane.is_live() && lane.enabled);
        let receiving = self.asks && (lane || self.spreads());
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
        let count = tx::judge(&lane.batch, &mut self.frames, &self.plan, stats);
        let frames = self.frames.get(..count).unwrap_or(&[]);
        let mut batch = TxBatch::new(&lane.batch, frames, stats, now);
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
        outcome.stalled = settled < lane.batch.len();
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
        let usable = |lane: &&mut Lane<DeviceWrites>| lane.is_live() && lane.enabled;
        let stats = &self.stats.rx;
        let mut outcome = Outcome::default();
        if self.gone || !self.asks {
            return outcome;
        }
        let (here, plan) = (self.index, &self.plan);
        let look = self.bench.as_mut().map(|bench| Look { bench, here, plan, stats, now });
        let Some(lane) = self.rx.as_mut().filter(usable) else {
            if let Some(look) = look.filter(|look| look.bench.judge.spreads()) {
                let (host, filled) = look.receive(&mut *self.endpoint, None);
                (outcome.host, outcome.again, outcome.worked) = (host, filled.spent, filled.spent);
            }
            return outcome;
        };
        let filled = match look {
            None => {
                let (queue, batch) = (&mut lane.queue, &mut lane.batch);
                let mut sink = RxSink::guest(GuestSink::new(queue, batch, plan, stats, now));
                outcome.host = self.endpoint.receive(&mut sink).err();
                sink.finish()
            }
            Some(look) => {
                let (host, filled) = look.receive(&mut *self.endpoint, Some(lane));
                outcome.host = host;
                filled
            }
        };
        stats.host_errors.add(u64::from(outcome.host.is_some()));
        if filled.worked {
            outcome.worked = true;
            stats.batches.add(1);
            stats.batch_sizes.add(filled.frames);
            lane.publish(filled.frames, now, stats);
        }
        if let Some(fault) = filled.fault {
            outcome.fault = Some(lane.break_off(fault, stats));
        } else if filled.starved {
            stats.starved.add(1);
            outcome.stalled = true;
            if lane.batch.is_untranslated() {
                stats.untranslated.add(1);
                outcome.untranslated = true;
            } else {
                outcome.again = idle.arm(&mut lane.queue);
            }
        } else {
            lane.queue.disarm();
            outcome.again = filled.spent;
        }
        outcome
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
