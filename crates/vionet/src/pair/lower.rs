//! Finishing in software what the driver left open and the endpoint cannot take.
//!
//! Put around the endpoint's queue when it is opened, and only if it is needed: a device whose
//! endpoint takes everything pays nothing for it.
//!
//! ```text
//!   frames the endpoint can take     -> passed on as they are, in runs
//!   checksum left open               -> copied, completed, passed on
//!   TSO                              -> copied, cut, passed on 64 segments at a time
//! ```

use alloc::boxed::Box;
use alloc::vec;

use vionet_frame::checksum::{Sum, complete};
use vionet_frame::header::{CsumAt, GsoRequest, Offloads, Request};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segment, Segments};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

use super::tx::{TxBatch, TxFrame};
use super::{BATCH, RxSink};
use crate::endpoint::{EndpointFault, EndpointQueue, Watch};
use crate::stats::DropReason;

/// Bytes for a batch of segments: a whole frame's payload, and headers for each.
const ARENA: usize = FRAME_MAX + BATCH * SEGMENT_HEADERS_MAX;

/// An endpoint queue in front of another that can do less.
pub(crate) struct Lower {
    below: Box<dyn EndpointQueue>,
    can: Offloads,
    /// The frame in work, copied out of the guest's memory: what is summed is what is sent.
    frame: Box<[u8]>,
    /// Its segments, one behind the other.
    arena: Box<[u8]>,
}

/// How a frame fared.
enum Fate {
    Sent,
    Dropped(DropReason),
    /// The endpoint has no room: the frame stays with the guest.
    Full,
}

impl Lower {
    /// `below` itself if it can do all that is `agreed`, else a queue that makes up for the rest.
    pub(crate) fn around(
        below: Box<dyn EndpointQueue>,
        agreed: Offloads,
        can: Offloads,
    ) -> Box<dyn EndpointQueue> {
        if agreed.is_subset(can) {
            return below;
        }
        let zeroed = |len| vec![0; len].into_boxed_slice();
        Box::new(Self { below, can, frame: zeroed(FRAME_MAX), arena: zeroed(ARENA) })
    }

    fn finish(&mut self, batch: &TxBatch<'_>, frame: &TxFrame) -> Result<Fate, EndpointFault> {
        let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
        let Some(bytes) = self.frame.get_mut(..len) else {
            return Ok(Fate::Dropped(DropReason::TooLong));
        };
        if copy_out(batch.bytes(frame), 0, bytes) != len {
            return Ok(Fate::Dropped(DropReason::Unparsable));
        }
        match (frame.request.csum, frame.request.gso) {
            (Some(at), Some(gso)) => self.cut(batch, len, at, gso),
            (Some(at), None) => self.sum(batch, len, at),
            (None, _) => Ok(Fate::Dropped(DropReason::Unparsable)),
        }
    }

    /// Completes the checksum of the frame in work and passes it on.
    fn sum(&mut self, batch: &TxBatch<'_>, len: usize, at: CsumAt) -> Result<Fate, EndpointFault> {
        let Some(bytes) = self.frame.get_mut(..len) else { return Ok(Fate::Full) };
        if complete(bytes, at).is_err() {
            return Ok(Fate::Dropped(DropReason::Unparsable));
        }
        let frames = [TxFrame::private(0, bytes.len(), Request::default())];
        let spans = [ReadSpan::local(bytes)];
        let mut whole = batch.private(&frames, &spans);
        self.below.transmit(&mut whole)?;
        Ok(if whole.frames().is_empty() { Fate::Sent } else { Fate::Full })
    }

    /// Cuts the frame in work and passes the segments on. Segments for which there is no room
    /// after the first ones are lost, as on a wire; their sender repeats them.
    fn cut(
        &mut self,
        batch: &TxBatch<'_>,
        len: usize,
        at: CsumAt,
        gso: GsoRequest,
    ) -> Result<Fate, EndpointFault> {
        let Self { below, can, frame, arena } = self;
        let whole = frame.get(..len).unwrap_or(&[]);
        let Ok(mut segments) = Segments::new(whole, len, at, gso) else {
            return Ok(Fate::Dropped(DropReason::Unparsable));
        };
        let mut begun = false;
        loop {
            let mut frames = [TxFrame::default(); BATCH];
            let mut spans = [ReadSpan::local(&[]); BATCH];
            let mut count = 0_usize;
            let mut rest = &mut **arena;
            let mut headers = [0; SEGMENT_HEADERS_MAX];
            while count < BATCH
                && let Some(segment) = segments.next_into(&mut headers)
            {
                let request = if can.contains(Offloads::CSUM) {
                    segment.request()
                } else {
                    segment.complete(&mut headers, Sum::of(segment.payload_in(whole)));
                    Request::default()
                };
                let Some((bytes, behind)) = lay_out(rest, &headers, whole, &segment) else { break };
                rest = behind;
                if let (Some(frame), Some(span)) = (frames.get_mut(count), spans.get_mut(count)) {
                    *frame = TxFrame::private(count, bytes.len(), request);
                    *span = ReadSpan::local(bytes);
                }
                count = count.wrapping_add(1);
            }
            if count == 0 {
                return Ok(Fate::Sent);
            }
            let frames = frames.get(..count).unwrap_or(&[]);
            let mut part = batch.private(frames, &spans);
            below.transmit(&mut part)?;
            let left = part.frames().len();
            if left == count && !begun {
                return Ok(Fate::Full);
            }
            if left > 0 {
                part.dropped(left, DropReason::HostFull);
                return Ok(Fate::Sent);
            }
            begun = true;
        }
    }
}

/// Writes headers and payload of a segment to the front of `room`; returns them and the rest.
fn lay_out<'r>(
    room: &'r mut [u8],
    headers: &[u8; SEGMENT_HEADERS_MAX],
    frame: &[u8],
    segment: &Segment,
) -> Option<(&'r [u8], &'r mut [u8])> {
    let headers = headers.get(..segment.header_len)?;
    let payload = segment.payload_in(frame);
    let len = headers.len().checked_add(payload.len())?;
    let (bytes, behind) = room.split_at_mut_checked(len)?;
    let (front, back) = bytes.split_at_mut_checked(headers.len())?;
    copy(front, headers);
    copy(back, payload);
    Some((bytes, behind))
}

/// Copies between slices of one length; a difference, which no caller makes, copies nothing.
fn copy(to: &mut [u8], from: &[u8]) {
    if to.len() == from.len() {
        #[expect(clippy::disallowed_methods, reason = "the lengths were just compared")]
        to.copy_from_slice(from);
    }
}

impl EndpointQueue for Lower {
    fn transmit(&mut self, batch: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        loop {
            let can = self.can;
            let as_it_is = |frame: &&TxFrame| frame.request.needs().is_subset(can);
            let run = batch.frames().iter().take_while(as_it_is).count();
            if run > 0 {
                let mut part = batch.part(run);
                let result = self.below.transmit(&mut part);
                let left = part.frames().len();
                batch.settled_below(run.saturating_sub(left));
                result?;
                if left > 0 {
                    return Ok(());
                }
            }
            let Some(frame) = batch.frames().first().copied() else { return Ok(()) };
            match self.finish(batch, &frame)? {
                Fate::Sent => batch.sent(1),
                Fate::Dropped(reason) => batch.dropped(1, reason),
                Fate::Full => return Ok(()),
            }
        }
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        self.below.receive(sink)
    }

    fn watch(&self) -> Watch {
        self.below.watch()
    }

    #[cfg(feature = "std")]
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.below.fd()
    }

    #[cfg(feature = "std")]
    fn inlet(&self) -> Option<alloc::sync::Arc<super::Inlet>> {
        self.below.inlet()
    }
}
