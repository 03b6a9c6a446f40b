//! One direction of a pair: a live queue, the chains in hand, and when its driver is interrupted.

use alloc::sync::Arc;

use vionet_queue::{Batch, Cursor, Direction, Fault, Published, Queue};
use vionet_raw::AddressSpace;

use super::delay::Delay;
use crate::control::Coalescing;
use crate::interrupt::Interrupt;
use crate::negotiate::{Negotiated, Plan};
use crate::stats::LaneStats;
use crate::time::Instant;

/// One direction's live queue with what belongs to it.
pub(crate) struct Lane<D: Direction> {
    pub(super) queue: Queue,
    pub(super) batch: Batch<D>,
    pub(super) interrupt: Option<Arc<dyn Interrupt>>,
    /// Interrupts are put off, if the driver wants that, or has wanted it.
    pub(super) delay: Option<Delay>,
    pub(super) enabled: bool,
    /// The driver broke a rule: the queue stands still until it is stopped.
    broken: bool,
    /// The driver has posted something since the queue was started.
    #[cfg_attr(not(feature = "std"), expect(dead_code, reason = "others deliver with threads"))]
    stocked: bool,
    /// An interrupt is to be raised by whoever works on the lane next: never by the control
    /// plane, which nothing that a stranger gave us may hold up.
    pub(super) owed: bool,
}

impl<D: Direction> Lane<D> {
    pub(crate) fn new(queue: Queue, space: Arc<AddressSpace>, plan: &Plan, enabled: bool) -> Self {
        let batch = Batch::new(space, u32::from(plan.header_len));
        let interrupt = None;
        let (broken, stocked, owed) = (false, false, false);
        Self { queue, batch, interrupt, delay: None, enabled, broken, stocked, owed }
    }

    pub(crate) fn set_interrupt(&mut self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.interrupt = interrupt;
        // A completion may have been told to the old one only (VU-MSG-05, VU-PIT-11).
        self.owed = true;
    }

    /// A queue that has never run owes its driver no interrupt.
    pub(crate) fn begins_at(&mut self, cursor: Cursor, agreed: &Negotiated) {
        self.owed &= cursor != Cursor::start(agreed.ring().format);
    }

    pub(crate) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// How interrupts are put off from now on.
    pub(super) fn set_delay(&mut self, wish: Coalescing) {
        if wish.is_on() || self.delay.is_some() {
            self.delay.get_or_insert_default().set(wish);
        }
    }

    /// When the interrupt that is put off is due, if one is.
    pub(super) fn due(&self) -> Option<Instant> {
        self.delay.as_ref().and_then(Delay::due)
    }

    /// Gives back what is taken and ends the queue's life; its position remains.
    pub(crate) fn stop(mut self) -> Cursor {
        self.queue.untake(&mut self.batch);
        let here = self.queue.cursor();
        // Every row has just been given back, so nothing can be owed.
        self.queue.stop().unwrap_or(here)
    }

    /// Raises the interrupt that is owed, or was put off until now.
    #[inline]
    pub(super) fn settle(&mut self, now: Instant) {
        if let Some(delay) = &mut self.delay {
            self.owed |= delay.ends(now);
        }
        self.raise();
    }

    /// Raises the interrupt that is owed.
    #[inline]
    pub(super) fn raise(&mut self) {
        if self.owed
            && let Some(interrupt) = &self.interrupt
        {
            self.owed = false;
            interrupt.raise();
        }
    }

    /// Whether an interrupt is owed, which whoever asks sees to.
    #[cfg(feature = "std")]
    pub(super) fn take_owed(&mut self) -> bool {
        core::mem::take(&mut self.owed)
    }

    /// Makes the used buffers of so many frames visible, and interrupts the driver if it wants
    /// that now.
    #[inline(always)] // With two callers it would not be, at 20 instructions a batch.
    pub(super) fn publish(&mut self, frames: usize, now: Instant, stats: &LaneStats) {
        match self.queue.publish() {
            Published::Interrupt => self.interrupt(frames, now, stats),
            Published::Quiet if self.is_asked_once() => self.interrupt(frames, now, stats),
            Published::Quiet => stats.suppressed.add(1),
        }
    }

    /// A driver that asks for an interrupt by a position has asked once for all frames that are
    /// put off with it (NET-COAL-10).
    #[inline]
    fn is_asked_once(&self) -> bool {
        self.delay.as_ref().is_some_and(|delay| delay.due().is_some()) && self.queue.has_event_idx()
    }

    /// Interrupts the driver for so many frames, now or later.
    #[inline]
    fn interrupt(&mut self, frames: usize, now: Instant, stats: &LaneStats) {
        if let Some(delay) = &mut self.delay
            && delay.holds(frames, now)
        {
            return;
        }
        self.owed = true;
        self.raise();
        // One that its pair's worker has kept for itself is counted there, and there alone.
        if self.interrupt.is_some() {
            stats.interrupts.add(1);
        }
    }

    /// Latches a fault, once.
    #[cold]
    pub(super) fn break_off(&mut self, fault: Fault, stats: &LaneStats) -> Fault {
        self.queue.untake(&mut self.batch);
        self.broken = true;
        stats.faults.add(1);
        fault
    }

    /// Whether the driver has ever posted something: some leave queues that they started empty.
    #[cfg(feature = "std")]
    pub(super) fn is_stocked(&mut self) -> bool {
        self.stocked = self.stocked || !self.batch.is_empty() || self.queue.has_work();
        self.stocked
    }

    pub(super) fn is_live(&self) -> bool {
        !self.broken
    }

    /// Whether frames can be delivered into it.
    #[inline]
    pub(super) fn is_usable(&self) -> bool {
        self.is_live() && self.enabled
    }

    /// At the end of a step: nothing stays taken whose translation may be gone by the next one.
    /// Behind arming, which asks for a kick with what comes after all that was seen.
    #[inline]
    pub(super) fn forget_translations(&mut self) {
        if self.batch.is_translated() {
            self.give_back();
        }
    }

    #[cold]
    pub(super) fn give_back(&mut self) {
        self.queue.untake(&mut self.batch);
    }
}
