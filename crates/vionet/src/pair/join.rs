//! Joining what arrives in pieces of the wire's size, for a guest that takes larger ones.
//!
//! For endpoints whose host side brings each segment by itself, in private memory: a socket, a
//! ring of frames. They deliver their batch by [`RxSink::push_joined`] instead of frame by frame.
//! Others, like a tap whose kernel has joined already, have no use for it, and pay nothing.

use vionet_frame::coalesce::{ARRIVALS_MAX, Arrival, Joined, coalesce};
use vionet_raw::ReadSpan;

use super::{BATCH, Refused, RxSink};
use crate::endpoint::RxHeader;

const _: () = assert!(BATCH == ARRIVALS_MAX, "a batch is joined at once");

impl RxSink<'_> {
    /// Delivers up to 64 frames from private memory, of which segments of one flow are joined as
    /// far as the guest takes that; all that came is delivered now. Says which frames found no
    /// room, frame `i` by bit `i`: keep them, and come again.
    pub fn push_joined(&mut self, frames: &[Arrival<'_>]) -> u64 {
        let mut left = 0_u64;
        coalesce(frames, self.takes(), |joined| {
            if self.push_one(joined) == Err(Refused::Full) {
                left |= joined.places().fold(0, |bits, place| bits | bit(place));
            }
        });
        left
    }

    fn push_one(&mut self, joined: &Joined<'_, '_>) -> Result<(), Refused> {
        let header = RxHeader {
            request: joined.request(),
            header_len: joined.header_len(),
            validated: joined.validated(),
            segments: joined.segments(),
            ..RxHeader::default()
        };
        let mut spans = [ReadSpan::local(&[]); ARRIVALS_MAX + 1];
        let mut count = 0_usize;
        for (span, piece) in spans.iter_mut().zip(joined.pieces()) {
            *span = ReadSpan::local(piece);
            count = count.wrapping_add(1);
        }
        self.push_spans(&header, joined.len(), spans.get(..count).unwrap_or(&[]))
    }
}

/// The bit of a frame.
fn bit(place: usize) -> u64 {
    let place = u32::try_from(place).unwrap_or(u32::MAX);
    1_u64.checked_shl(place).unwrap_or(0)
}
