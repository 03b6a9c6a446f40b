//! The receive lane away from its pair: where others deliver into it, or bring frames for others.

#[cfg(feature = "std")]
use alloc::sync::Arc;

use alloc::boxed::Box;
use vionet_queue::Fault;

use super::QueuePair;
#[cfg(feature = "std")]
use super::inlet::{Inlet, Lent, Returned};
use crate::time::Instant;

impl QueuePair {
    /// Gives it a place where other pairs of the device deliver into it, if its endpoint has not.
    #[cfg(feature = "std")]
    pub(crate) fn add_inlet(&mut self, inlet: Option<Arc<Inlet>>) {
        if self.inlet.is_none() {
            self.inlet = inlet;
        }
    }

    /// Where its endpoint delivers, if it does.
    #[cfg(feature = "std")]
    pub(crate) fn own_inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.clone().filter(|_| self.is_delivered_to)
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
            // Frames that pairs pass on to each other are paid for by whoever has fetched them.
            let limited = self.limits.as_ref().filter(|_| self.is_delivered_to);
            let turn = limited.and_then(|limited| limited.turn_of_others(self.index));
            let bench = if self.is_delivered_to { self.bench.take() } else { None };
            let (what, stats) = ((self.index, self.plan), Arc::clone(&self.stats));
            let news = (self.kept.is_some(), self.untold.take());
            let lent = Lent::new(lane, (bench, turn), what, stats, news);
            inlet.lend(lent, self.receives);
        }
    }

    /// Back home, with all lanes.
    pub(crate) fn arrived(mut self: Box<Self>) -> Box<Self> {
        self.take_back();
        self
    }

    pub(super) fn take_back(&mut self) {
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

    /// Whether its endpoint delivers, and is not asked for frames.
    pub(super) fn is_delivered_to(&self) -> bool {
        #[cfg(feature = "std")]
        return self.is_delivered_to;
        #[cfg(not(feature = "std"))]
        false
    }

    /// Whether the receive lane may be away.
    pub(super) fn has_inlet(&self) -> bool {
        #[cfg(feature = "std")]
        return self.inlet.is_some();
        #[cfg(not(feature = "std"))]
        false
    }

    /// Interrupts the driver for what others have delivered; says what rule it broke meanwhile.
    #[inline]
    pub(super) fn attend(&mut self, now: Instant) -> Option<Fault> {
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
}
