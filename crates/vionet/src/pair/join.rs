//! Joining what arrives in pieces of the wire's size, for a guest that takes larger ones.
//!
//! For endpoints whose host side brings each segment by itself: a tap whose kernel does not leave
//! frames uncut, a neighbour at the switch that cuts its own. They deliver their batch by
//! [`RxSink::push_joined`] instead of frame by frame. Others have no use for it, and pay nothing.

use vionet_frame::coalesce::{ARRIVALS_MAX, Arrival, Joined, coalesce};
use vionet_raw::ReadSpan;

use super::{BATCH, Refused, RxSink};
use crate::endpoint::RxHeader;

const _: () = assert!(BATCH == ARRIVALS_MAX, "a batch is joined at once");

impl RxSink<'_> {
    /// Delivers up to 64 frames from private memory, of which segments of one flow are joined as
    /// far as the guest takes that and has room for it; all that came is delivered now. Says which
    /// frames found no room, frame `i` by bit `i`: keep them, and come again.
    pub fn push_joined(&mut self, frames: &[Arrival<'_>]) -> u64 {
        let mut left = 0_u64;
        coalesce(frames, self.takes(), |joined| {
            // Once one has found no room, nothing that came behind it may pass.
            let mut is_full = left != 0;
            if !is_full && (joined.segments() == 1 || joined.len() <= self.room()) {
                is_full = self.push_one(joined) == Err(Refused::Full);
                if !is_full {
                    return;
                }
            }
            for place in joined.places() {
                // What is too long now may still go in parts.
                let Some(frame) = frames.get(place) else { return };
                is_full = is_full || self.push_part(frame, joined) == Err(Refused::Full);
                left |= if is_full { bit(place) } else { 0 };
            }
        });
        left
    }

    /// Delivers a frame as it came, but for what has been found out about it.
    fn push_part(&mut self, frame: &Arrival<'_>, of: &Joined<'_, '_>) -> Result<(), Refused> {
        let Arrival { bytes, request, header_len, .. } = *frame;
        let validated = of.validated();
        self.push(&RxHeader { request, header_len, validated, ..RxHeader::default() }, bytes)
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
