//! The host's rate limits on a pair: how much of a batch goes now, and when to try again.
//!
//! ```text
//!   transmit   frames --grant--> so many go; the rest stays with the guest until there is credit
//!   receive    credit? --no--> the host side is not asked     --yes--> delivered, then charged
//! ```
//!
//! A limit is asked once a batch, not for each frame. What the ports of a switch deliver to the
//! guest is paid for as well, but not held up: limit who sends there.

use super::tx::{TxBatch, TxFrame};
use crate::endpoint::{EndpointFault, EndpointQueue};
use crate::limit::{Limiter, Wire, wire};
use crate::stats::LaneStats;
use crate::time::Instant;

/// The least bytes of a TCP and of a UDP header.
const TCP: u16 = 20;
const UDP: u16 = 8;

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
    /// When transmitting and receiving may go on that were held up.
    until: [Option<Instant>; 2],
    /// What had been received when it was last paid for.
    paid: Wire,
}

impl Limited {
    /// What was received after `paid`, or from now on, is yet to be paid.
    pub(crate) fn new(limits: Limits, paid: Option<Wire>, stats: &LaneStats) -> Self {
        let paid = paid.unwrap_or_else(|| so_far(stats));
        Self { limits, until: [None; 2], paid }
    }

    /// What had been received when it was last paid for.
    pub(super) fn paid(&self) -> Wire {
        self.paid
    }

    /// Before a step: pays for what came in the last one. Whether the host side may be asked for
    /// more.
    #[cold]
    pub(super) fn begin(&mut self, now: Instant, stats: &LaneStats) -> bool {
        let all = so_far(stats);
        let bytes = all.bytes.wrapping_sub(self.paid.bytes);
        let frames = all.frames.wrapping_sub(self.paid.frames);
        self.limits.receive.charge(now, Wire { bytes, frames });
        self.paid = all;
        let receive = self.limits.receive.credit(now).err();
        stats.limited.add(u64::from(receive.is_some()));
        self.until = [None, receive];
        receive.is_none()
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

    /// Hands over what may pass.
    pub(super) fn transmit(
        &mut self,
        endpoint: &mut dyn EndpointQueue,
        batch: &mut TxBatch<'_>,
        stats: &LaneStats,
    ) -> Result<(), EndpointFault> {
        let limiter = &self.limits.transmit;
        let frames = batch.frames();
        let grant = limiter.grant(batch.now(), frames.iter().map(on_wire));
        let result = match grant.frames {
            0 => Ok(()),
            count => batch.with_part(count, |part| endpoint.transmit(part)),
        };
        // What the host had no room for was paid, and is not gone.
        let left = batch.frames().len();
        let held = frames.len().saturating_sub(grant.frames);
        let unsent = batch.frames().iter().take(left.saturating_sub(held)).map(on_wire);
        limiter.refund(unsent.fold(Wire::default(), Wire::plus));
        let [transmit, _] = &mut self.until;
        *transmit = grant.until.filter(|_| held > 0);
        stats.limited.add(u64::try_from(held).unwrap_or(0));
        let kept = frames.iter().skip(grant.frames).map(|frame| u64::from(frame.len));
        stats.limited_bytes.add(kept.sum());
        result
    }
}

fn so_far(stats: &LaneStats) -> Wire {
    Wire { bytes: stats.bytes.value(), frames: stats.frames.value() }
}

/// What a frame is on a wire. Of a frame to be cut the headers are known but for options.
fn on_wire(frame: &TxFrame) -> Wire {
    let (Some(at), Some(gso)) = (frame.request.csum, frame.request.gso) else {
        return wire(frame.len, 0, 0);
    };
    let transport = if gso.kind.is_tcp() { TCP } else { UDP };
    wire(frame.len, at.start.saturating_add(transport).into(), gso.size)
}
