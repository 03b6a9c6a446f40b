//! The host's rate limits on a pair: how much of a batch goes now, and when to try again.
//!
//! ```text
//!   transmit   frames --grant--> so many go; the rest stays with the guest until its turn comes
//!   receive    credit? --no--> the host side is not asked
//!                     --yes--> it delivers until the credit is used up (meter.rs)
//! ```
//!
//! A limit is asked once a batch, not for each frame.

use alloc::sync::Arc;

use super::meter::{Meter, on_wire};
use super::tx::{TxBatch, TxFrame};
use crate::endpoint::{EndpointFault, EndpointQueue};
use crate::limit::{Limiter, Line, Turn, Wire};
use crate::nic::PairIndex;
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

/// The same with the lines of the device's pairs in front of them, of which a single pair has none.
#[derive(Clone)]
pub(crate) struct DeviceLimits {
    limits: Limits,
    lines: Option<[Arc<Line>; 2]>,
}

impl DeviceLimits {
    pub(crate) fn new(limits: Limits, pairs: u16) -> Self {
        let line = || Arc::new(Line::new(pairs));
        Self { limits, lines: (pairs > 1).then(|| [line(), line()]) }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn transmit(&self, pair: PairIndex) -> Turn {
        let place = self.lines.as_ref().map(|[transmit, _]| transmit.place(pair.0, true));
        Turn::among(self.limits.transmit.clone(), place)
    }

    /// `comes_again` when told to.
    fn receive(&self, pair: PairIndex, comes_again: bool) -> Turn {
        let place = self.lines.as_ref().map(|[_, receive]| receive.place(pair.0, comes_again));
        Turn::among(self.limits.receive.clone(), place)
    }
}

/// The same as a pair has them.
pub(crate) struct Limited {
    limits: DeviceLimits,
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
    pub(crate) fn new(limits: DeviceLimits, pair: PairIndex) -> Self {
        let (transmit, receive) = (limits.transmit(pair), limits.receive(pair, true));
        let (until, credit, was_asked, counted) = ([None; 2], None, false, 0);
        Self { limits, transmit, receive, until, credit, was_asked, counted }
    }

    /// The place of others who deliver into this pair, if they are limited.
    #[cfg(feature = "std")]
    pub(super) fn turn_of_others(&self, pair: PairIndex) -> Option<Turn> {
        let is_open = self.limits.limits.receive.is_open();
        (!is_open).then(|| self.limits.receive(pair, false))
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
        } else if !self.limits.limits.receive.is_open() {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{Limit, Rate};

    /// Limits that are used up at `now`, shared by whoever gets them.
    fn used_up(now: Instant) -> Limits {
        let rate = Rate { per_second: 1_000_000, burst: 3000 };
        let limiter = Limiter::new([Arc::new(Limit::new(Some(rate), None))]);
        Turn::new(limiter.clone()).charge(now, Wire { bytes: 3000, frames: 3 });
        Limits { transmit: limiter.clone(), receive: limiter }
    }

    #[test]
    fn pairs_of_a_device_book_one_after_the_other_and_those_of_two_together() {
        let now = Instant::from_nanos(1_000_000_000);
        let frames = [Wire { bytes: 1000, frames: 1 }; 2];
        for receives in [false, true] {
            let ask = |limited: &mut Limited| {
                if receives {
                    limited.receive.credit(now).unwrap_err()
                } else {
                    limited.transmit.grant(now, frames.into_iter()).until.unwrap()
                }
            };
            let pair =
                |limits: &DeviceLimits, index| Limited::new(limits.clone(), PairIndex(index));
            let shared = used_up(now);
            let [one, other] = [(); 2].map(|()| DeviceLimits::new(shared.clone(), 2));
            let (mut first, mut second) = (pair(&one, 0), pair(&one, 1));
            let mut third = pair(&other, 0);
            let due = ask(&mut first);
            assert!(ask(&mut second) > due, "behind its sibling");
            // Had the second one booked, too, this would be due after 3 ms.
            assert_eq!(ask(&mut third).since(now).as_micros(), 2000);
        }
    }
}
