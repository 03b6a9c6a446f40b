//! The host's rate limits on a pair: how much of a batch goes now, and when to try again.
//!
//! ```text
//!   transmit   frames --grant--> so many go; the rest stays with the guest until its turn comes
//!   receive    credit? --no--> the host side is not asked
//!                     --yes--> it delivers until the credit is used up (meter.rs)
//! ```
//!
//! A limit is asked once a batch, not for each frame.

use super::meter::{Meter, on_wire};
use super::tx::{TxBatch, TxFrame};
use crate::endpoint::{EndpointFault, EndpointQueue};
use crate::limit::{Limiter, Turn, Wire};
use crate::stats::LaneStats;
use crate::time::Instant;

/// The limits of both directions of a device, shared by its pairs; with limits that other devices
/// have, too, if they are to share them.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// What the guest sends.
    pub transmit: Limiter,
    /// What the guest gets.
    pub receive: Limiter,
}

impl Limits {
    /// Whether neither direction has a limit.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.transmit.is_open() && self.receive.is_open()
    }
}

/// The same as a pair has them.
#[derive(Debug)]
pub(crate) struct Limited {
    limits: Limits,
    transmit: Turn,
    receive: Turn,
    /// When transmitting and receiving may go on that were held up.
    until: [Option<Instant>; 2],
    /// What may be received in this step, where that is limited.
    credit: Option<Wire>,
    /// Frames for transmit were looked at in the last step.
    was_asked: bool,
    /// So many of the first that wait have been counted as held back.
    counted: usize,
}

impl Limited {
    pub(crate) fn new(limits: Limits) -> Self {
        let (transmit, receive) =
            (Turn::new(limits.transmit.clone()), Turn::new(limits.receive.clone()));
        let until = [None; 2];
        Self { limits, transmit, receive, until, credit: None, was_asked: false, counted: 0 }
    }

    /// What limits others who deliver to the guest.
    #[cfg(feature = "std")]
    pub(super) fn receive_limiter(&self) -> Option<&Limiter> {
        Some(&self.limits.receive).filter(|limiter| !limiter.is_open())
    }

    /// Before a step in which the host side would be asked for frames if it `asks`: whether it may
    /// be.
    #[cold]
    pub(super) fn begin(&mut self, now: Instant, asks: bool, stats: &LaneStats) -> bool {
        // Nobody waits for what is not needed any more.
        if !core::mem::take(&mut self.was_asked) {
            self.transmit.give_up();
            self.counted = 0;
        }
        (self.until, self.credit) = ([None; 2], None);
        if !asks {
            self.receive.give_up();
        } else if !self.limits.receive.is_open() {
            let waits = self.receive.waits(now).is_some();
            match self.receive.credit(now) {
                Ok(credit) => self.credit = Some(credit),
                Err(at) => {
                    stats.limited.add(u64::from(!waits));
                    self.until = [None, Some(at)];
                    return false;
                }
            }
        }
        true
    }

    /// Whether frames of the guest are held up.
    pub(super) fn holds_transmit(&self) -> bool {
        let [transmit, _] = self.until;
        transmit.is_some()
    }

    /// When transmitting and receiving may go on that this step has held up.
    pub(super) fn until(&self) -> [Option<Instant>; 2] {
        self.until
    }

    /// What counts the frames received in this step, where that is limited.
    pub(super) fn meter(&self) -> Option<Meter> {
        self.credit.map(Meter::holding)
    }

    /// Pays for what was received in this step.
    #[cold]
    pub(super) fn received(&mut self, now: Instant, passed: Wire) {
        if self.credit.take().is_some() {
            self.receive.charge(now, passed);
        }
    }

    /// Hands over what may pass.
    #[inline(never)]
    pub(super) fn transmit(
        &mut self,
        endpoint: &mut dyn EndpointQueue,
        batch: &mut TxBatch<'_>,
        stats: &LaneStats,
    ) -> Result<(), EndpointFault> {
        self.was_asked = true;
        let frames = batch.frames();
        let paid = |frame: &TxFrame| on_wire(frame.len, &frame.request, batch.bytes(frame));
        // Seen once: what is refunded is what was paid, whatever the guest writes meanwhile.
        let mut wires = [Wire::NONE; super::BATCH];
        for (slot, frame) in wires.iter_mut().zip(frames) {
            *slot = paid(frame);
        }
        let wires = wires.get(..frames.len()).unwrap_or(&wires);
        let grant = self.transmit.grant(batch.now(), wires.iter().copied());
        let result = match grant.frames {
            0 => Ok(()),
            count => batch.with_part(count, |part| endpoint.transmit(part)),
        };
        // What the host had no room for was paid, and is not gone.
        let sent = frames.len().saturating_sub(batch.frames().len());
        let unsent = wires.get(sent..grant.frames).unwrap_or(&[]);
        self.transmit.refund(unsent.iter().copied().fold(Wire::NONE, Wire::plus));
        let held = frames.get(grant.frames..).unwrap_or(&[]);
        let [transmit, _] = &mut self.until;
        *transmit = grant.until.filter(|_| !held.is_empty());
        // Those that were held back before come first.
        let new = held.get(self.counted.saturating_sub(grant.frames)..).unwrap_or(&[]);
        stats.limited.add(u64::try_from(new.len()).unwrap_or(0));
        stats.limited_bytes.add(new.iter().map(|frame| u64::from(frame.len)).sum());
        self.counted = if held.is_empty() { 0 } else { batch.frames().len() };
        result
    }
}
