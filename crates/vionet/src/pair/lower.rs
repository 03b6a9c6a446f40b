//! Finishing in software what the driver left open and the endpoint cannot take.
//!
//! Put around the endpoint's queue when it is opened, and only if it is needed: a device whose
//! endpoint takes everything pays nothing for it.
//!
//! ```text
//!   frames the endpoint can take     -> passed on as they are, in runs
//!   checksum left open               -> copied, completed, passed on
//!   TSO, USO, UFO, also in tunnels   -> copied, cut, passed on 64 segments at a time
//! ```
//!
//! A frame is copied once, out of the guest's memory. Its segments are made of headers written
//! beside it and of payload that stays where it is.

use alloc::boxed::Box;
use alloc::vec;

use vionet_frame::checksum::complete;
use vionet_frame::header::{CsumAt, Offloads, Request};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

use super::tx::{TxBatch, TxFrame};
use super::{BATCH, RxSink};
use crate::endpoint::{EndpointFault, EndpointQueue, Watch};
use crate::stats::DropReason;

/// An endpoint queue in front of another that can do less.
pub(crate) struct Lower {
    below: Box<dyn EndpointQueue>,
    can: Offloads,
    /// The frame in work, copied out of the guest's memory: what is summed is what is sent.
    frame: Box<[u8]>,
    /// The headers of its segments.
    headers: Box<[[u8; SEGMENT_HEADERS_MAX]; BATCH]>,
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
        let frame = vec![0; FRAME_MAX].into_boxed_slice();
        Box::new(Self { below, can, frame, headers: Box::new([[0; SEGMENT_HEADERS_MAX]; BATCH]) })
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
            (Some(_), Some(_)) => self.cut(batch, len, &frame.request),
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
        let spans = [[ReadSpan::local(bytes), ReadSpan::local(&[])]];
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
        request: &Request,
    ) -> Result<Fate, EndpointFault> {
        let Self { below, can, frame, headers } = self;
        let whole = frame.get(..len).unwrap_or(&[]);
        let Ok(mut segments) = Segments::new(whole, request) else {
            return Ok(Fate::Dropped(DropReason::Unparsable));
        };
        let mut begun = false;
        loop {
            let mut frames = [TxFrame::default(); BATCH];
            let mut spans = [[ReadSpan::local(&[]); 2]; BATCH];
            let mut count = 0_usize;
            let slots = headers.iter_mut().zip(&mut frames).zip(&mut spans);
            for ((room, frame), spans) in slots {
                let Some(segment) = segments.next_into(room) else { break };
                let request = segment.finish(room, *can);
                let head = room.get(..segment.header_len).unwrap_or(&[]);
                let len = head.len().saturating_add(segment.payload.len());
                *frame = TxFrame::private(count, len, request);
                *spans = [ReadSpan::local(head), ReadSpan::local(segment.payload)];
                count = count.wrapping_add(1);
            }
            if count == 0 {
                return Ok(Fate::Sent);
            }
            let frames = frames.get(..count).unwrap_or(&[]);
            let mut part = batch.private(frames, &spans);
            below.transmit(&mut part)?;
            let left = part.frames().len();
            batch.count_segments(frames.get(..count.saturating_sub(left)).unwrap_or(&[]));
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
