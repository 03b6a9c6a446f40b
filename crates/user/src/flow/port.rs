//! The engine's way to the guest: frames delivered, room asked for, drops counted.
//!
//! The endpoint's sink in the product, a plain list in tests: the engine does not know.

use vionet::endpoint::{Refused, RxHeader, RxSink};
use vionet::stats::DropReason;
use vionet_frame::header::Offloads;
use vionet_raw::WriteSpan;

/// Where frames for the guest go.
pub(crate) trait Port {
    /// Room for a frame of `want` bytes, nothing consumed.
    fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]>;
    /// The window's first `len` bytes are a frame.
    fn commit(&mut self, len: u32, header: &RxHeader);
    /// Delivers a frame from private memory.
    fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused>;
    /// The longest frame that fits now.
    fn room(&mut self) -> u32;
    /// Whether to fetch a frame of up to `len` bytes now; if not, we are called when it is time.
    fn has_room(&mut self, len: u32) -> bool;
    /// What the guest takes unfinished now.
    fn takes(&self) -> Offloads;
    /// Counts a frame that never became one.
    fn dropped(&mut self, reason: DropReason);
}

impl Port for RxSink<'_> {
    fn takes(&self) -> Offloads {
        RxSink::takes(self)
    }

    fn window(&mut self, want: u32) -> Option<&[WriteSpan<'_>]> {
        RxSink::window(self, want)
    }

    fn commit(&mut self, len: u32, header: &RxHeader) {
        RxSink::commit(self, len, header);
    }

    fn push(&mut self, header: &RxHeader, frame: &[u8]) -> Result<(), Refused> {
        RxSink::push(self, header, frame)
    }

    fn room(&mut self) -> u32 {
        RxSink::room(self)
    }

    fn has_room(&mut self, len: u32) -> bool {
        RxSink::has_room(self, len)
    }

    fn dropped(&mut self, reason: DropReason) {
        RxSink::dropped(self, reason);
    }
}
