//! Frames of a tap that come one by one, held until there are no more or many, to be joined.
//!
//! For a tap whose kernel cuts what it sends, and a guest that takes it uncut. What the guest has
//! no room for stays here for the next step; nothing else does.

use vionet::endpoint::{Arrival, RxHeader, RxSink};
use vionet_spec::net::FRAME_MAX;

/// Frames that are joined at once.
pub(super) const BATCH: usize = 64;

/// Frames in private memory, in their order.
#[derive(Debug)]
pub(super) struct Held {
    room: Box<[u8]>,
    /// Where in the room each lies, and how it is to be understood.
    frames: Vec<(usize, usize, RxHeader)>,
    /// Bytes of the room that are in use.
    used: usize,
}

impl Held {
    /// Room for some frames, of which the longest takes so many bytes.
    pub(super) fn new(longest: usize) -> Self {
        let room = longest.saturating_mul(BATCH).min(FRAME_MAX.saturating_mul(2)).max(longest);
        let frames = Vec::with_capacity(BATCH);
        Self { room: vec![0; room].into_boxed_slice(), frames, used: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Room for one more frame of `longest` bytes, if there is.
    pub(super) fn free(&mut self, longest: usize) -> Option<&mut [u8]> {
        let room = self.room.get_mut(self.used..).filter(|room| room.len() >= longest)?;
        (self.frames.len() < BATCH).then_some(room)
    }

    /// Holds the frame of `len` bytes that is behind the first `lead` of the free room.
    pub(super) fn hold(&mut self, lead: usize, len: u32, header: RxHeader) {
        let start = self.used.saturating_add(lead);
        self.used = start.saturating_add(usize::try_from(len).unwrap_or(0));
        self.frames.push((start, self.used, header));
    }

    /// Delivers them, joined; false when some are left for which there is no room.
    pub(super) fn deliver(&mut self, sink: &mut RxSink<'_>) -> bool {
        if self.is_empty() {
            return true;
        }
        let mut arrivals = [Arrival::default(); BATCH];
        for (arrival, (start, end, header)) in arrivals.iter_mut().zip(&self.frames) {
            let RxHeader { request, header_len, validated, .. } = *header;
            let bytes = self.room.get(*start..*end).unwrap_or(&[]);
            *arrival = Arrival { bytes, request, header_len, validated };
        }
        let mut left = sink.push_joined(arrivals.get(..self.frames.len()).unwrap_or(&[]));
        self.frames.retain(|_| {
            let stays = left & 1 != 0;
            left >>= 1;
            stays
        });
        if self.is_empty() {
            self.used = 0;
        }
        self.is_empty()
    }
}
