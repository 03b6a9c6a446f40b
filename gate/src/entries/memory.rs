//! What `vionet-raw` does for each descriptor and each copy.

use vionet_raw::{
    Descriptor, GuestAddr, Pushed, ReadSpan, SharedIndex, SharedRing, SpanStore, WriteSpan,
    copy_behind, copy_in, copy_out,
};

/// One buffer of a chain: translated, and added to the spans of its batch.
#[unsafe(no_mangle)]
pub extern "C" fn gate_translate(spans: &mut SpanStore<1024>, at: GuestAddr, len: u32) -> usize {
    match spans.push(at, len) {
        Pushed::Added(count) => count,
        Pushed::Full | Pushed::Unmapped | Pushed::Missing => 0,
    }
}

/// The spans of a chain, found again, cut and let go.
#[unsafe(no_mangle)]
pub extern "C" fn gate_spans(spans: &mut SpanStore<1024>, start: usize, count: usize) -> usize {
    spans.trim(start, count);
    spans.drop_front(start);
    spans.truncate(count);
    spans.readable(start, count).len() ^ spans.writable(start, count).len()
}

/// Bytes from the guest, to the guest, and from guest to guest.
#[unsafe(no_mangle)]
pub extern "C" fn gate_copies(
    from: &[ReadSpan<'_>],
    to: &[WriteSpan<'_>],
    offset: usize,
    bytes: &mut [u8],
) -> usize {
    copy_out(from, offset, bytes) ^ copy_in(to, offset, bytes) ^ copy_behind(from, to, offset)
}

/// A cell of a shared ring at any index, and an index beside it.
#[unsafe(no_mangle)]
pub extern "C" fn gate_ring(ring: &SharedRing<Descriptor>, index: &SharedIndex, at: u16) -> u16 {
    let descriptor = ring.load(at);
    ring.store(at, descriptor);
    index.store_release(at);
    index.load_acquire()
}
