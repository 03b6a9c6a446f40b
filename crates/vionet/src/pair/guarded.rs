//! The host's policy on what a guest sends, in front of everything else.
//!
//! ```text
//!   frame in guest memory --head copied--> Guard --no--> dropped, counted by reason
//!                                            | yes
//!                                            v
//!            [private head][rest in guest memory]  --> the endpoint      one piece behind the head
//!            [private copy of all of it]                                  several pieces
//! ```
//!
//! What was judged is what is sent: the guest can change its memory meanwhile, but not the head
//! that the policy has seen. A device without a policy has none of this.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;

use vionet_frame::guard::{GUARD_HEAD, Guard};
use vionet_raw::{ReadSpan, copy_out};
use vionet_spec::net::FRAME_MAX;

use super::tx::{TxBatch, TxFrame};
use super::{BATCH, RxSink};
use crate::endpoint::{EndpointFault, EndpointQueue, Watch};
use crate::stats::DropReason;

/// An endpoint queue behind a guard.
pub(crate) struct Guarded {
    below: Box<dyn EndpointQueue>,
    guard: Arc<Guard>,
    heads: Box<[[u8; GUARD_HEAD]; BATCH]>,
    /// A frame in several pieces, copied whole.
    frame: Box<[u8]>,
}

/// What is to be done with the first frame that is not passed on as it is.
enum Stop {
    /// All of them were.
    None,
    Drop(DropReason),
    /// It is copied whole.
    Copy,
}

impl Guarded {
    /// `below` behind `guard`, if there is one.
    pub(crate) fn around(
        below: Box<dyn EndpointQueue>,
        guard: Option<&Arc<Guard>>,
    ) -> Box<dyn EndpointQueue> {
        let Some(guard) = guard.map(Arc::clone) else { return below };
        let heads = Box::new([[0; GUARD_HEAD]; BATCH]);
        Box::new(Self { below, guard, heads, frame: vec![0; FRAME_MAX].into_boxed_slice() })
    }

    /// Passes on the first frames as far as their rest is in one piece; false when the endpoint
    /// takes no more.
    fn pass_run(&mut self, batch: &mut TxBatch<'_>) -> Result<(bool, Stop), EndpointFault> {
        let Self { below, guard, heads, .. } = self;
        let mut frames = [TxFrame::default(); BATCH];
        let mut spans = [[ReadSpan::local(&[]); 2]; BATCH];
        let (mut count, mut stop) = (0_usize, Stop::None);
        let slots = heads.iter_mut().zip(&mut frames).zip(&mut spans);
        for (frame, ((head, slot), pair)) in batch.frames().iter().zip(slots) {
            let bytes = batch.bytes(frame);
            let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
            let known = copy_out(bytes, 0, head.get_mut(..len.min(GUARD_HEAD)).unwrap_or(&mut []));
            let head = head.get(..known).unwrap_or(&[]);
            if let Err(refusal) = guard.transmit(head, len) {
                stop = Stop::Drop(refusal.into());
                break;
            }
            let Some(rest) = rest_of(bytes, known) else {
                stop = Stop::Copy;
                break;
            };
            *slot = TxFrame::private(count, len, frame.request);
            *pair = [ReadSpan::local(head), rest];
            count = count.wrapping_add(1);
        }
        if count == 0 {
            return Ok((true, stop));
        }
        let frames = frames.get(..count).unwrap_or(&[]);
        let mut part = batch.stand_in(frames, &spans);
        let result = below.transmit(&mut part);
        let left = part.frames().len();
        batch.settled_below(count.saturating_sub(left));
        result?;
        Ok((left == 0, stop))
    }

    /// Passes on the first frame as a private copy; false when the endpoint takes no more.
    fn pass_copy(&mut self, batch: &mut TxBatch<'_>) -> Result<bool, EndpointFault> {
        let Self { below, guard, frame: room, .. } = self;
        let Some(frame) = batch.frames().first().copied() else { return Ok(true) };
        let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
        let Some(bytes) = room.get_mut(..len) else {
            batch.dropped(1, DropReason::TooLong);
            return Ok(true);
        };
        let whole = copy_out(batch.bytes(&frame), 0, bytes) == len;
        // The copy is judged: what was seen of the frame before may be different by now.
        let verdict = guard.transmit(bytes.get(..GUARD_HEAD).unwrap_or(bytes), len);
        if let Err(reason) = verdict.map_err(DropReason::from) {
            batch.dropped(1, reason);
            return Ok(true);
        }
        if !whole {
            batch.dropped(1, DropReason::Unparsable);
            return Ok(true);
        }
        let frames = [TxFrame::private(0, len, frame.request)];
        let spans = [[ReadSpan::local(bytes), ReadSpan::local(&[])]];
        let mut part = batch.stand_in(&frames, &spans);
        let result = below.transmit(&mut part);
        let left = part.frames().len();
        batch.settled_below(1_usize.saturating_sub(left));
        result?;
        Ok(left == 0)
    }
}

/// What is behind the first `known` bytes, if it is in one piece.
fn rest_of<'a>(bytes: &[ReadSpan<'a>], known: usize) -> Option<ReadSpan<'a>> {
    let mut skip = known;
    let mut rest = None;
    for span in bytes {
        let (_, behind) = span.split(skip);
        skip = skip.saturating_sub(span.len());
        if !behind.is_empty() && rest.replace(behind).is_some() {
            return None;
        }
    }
    Some(rest.unwrap_or(ReadSpan::local(&[])))
}

impl EndpointQueue for Guarded {
    fn transmit(&mut self, batch: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        // Each round settles a frame, or is the last one.
        while !batch.frames().is_empty() {
            let (goes_on, stop) = self.pass_run(batch)?;
            let goes_on = goes_on
                && match stop {
                    Stop::None => true,
                    Stop::Drop(reason) => {
                        batch.dropped(1, reason);
                        true
                    }
                    Stop::Copy => self.pass_copy(batch)?,
                };
            if !goes_on {
                break;
            }
        }
        Ok(())
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
    fn inlet(&self) -> Option<Arc<super::Inlet>> {
        self.below.inlet()
    }
}
