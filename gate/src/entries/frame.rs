//! What `vionet-frame` does for each frame.

use vionet_frame::checksum::{self, Sum};
use vionet_frame::filter::Filter;
use vionet_frame::guard::Guard;
use vionet_frame::header::{self, CsumAt, HeaderLayout, NetHeader, Offloads, Request};
use vionet_frame::parse;
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};

/// A header from the guest: decoded, judged, written again for the host.
#[unsafe(no_mangle)]
pub extern "C" fn gate_header(
    bytes: &[u8; HeaderLayout::LEN_MAX],
    len: u32,
    allowed: &Offloads,
) -> u32 {
    let header = NetHeader::decode_long(bytes);
    match header::check(&header, len, *allowed) {
        Ok(request) => checksum_of(&request.to_header(0).encode_long()),
        Err(fault) => fault as u32,
    }
}

/// The leading bytes of a frame: what is in it.
#[unsafe(no_mangle)]
pub extern "C" fn gate_parse(head: &[u8], len: usize) -> u32 {
    match parse::parse(head, len) {
        Ok(parsed) => u32::from(parsed.ip().is_some()),
        Err(fault) => fault as u32,
    }
}

/// The same bytes, held against what the driver wants and what the guest may.
#[unsafe(no_mangle)]
pub extern "C" fn gate_policy(filter: &Filter, guard: &Guard, head: &[u8], len: usize) -> u32 {
    let wanted = filter.accepts(head).is_ok() && guard.receive(head).is_ok();
    u32::from(wanted) ^ u32::from(guard.transmit(head, len).is_ok())
}

/// A checksum over bytes, and one completed in place.
#[unsafe(no_mangle)]
pub extern "C" fn gate_checksum(frame: &mut [u8], at: CsumAt) -> u32 {
    let whole = checksum_of(frame);
    match checksum::complete(frame, at) {
        Ok(()) => whole,
        Err(fault) => fault as u32,
    }
}

/// A frame judged for cutting.
#[unsafe(no_mangle)]
pub extern "C" fn gate_segments(frame: &[u8], request: &Request) -> u32 {
    u32::from(Segments::new(frame, request).is_ok())
}

/// The next segment of a frame, its checksum completed.
#[unsafe(no_mangle)]
pub extern "C" fn gate_segment(
    segments: &mut Segments<'_>,
    room: &mut [u8; SEGMENT_HEADERS_MAX],
    payload: Sum,
) -> usize {
    let Some(segment) = segments.next_into(room) else { return 0 };
    segment.complete(room, payload);
    segment.payload.len()
}

fn checksum_of(bytes: &[u8]) -> u32 {
    u32::from(Sum::of(bytes).checksum())
}
