//! TCP that a guest sends in segments, joined for another that takes it uncut.
//!
//! ```text
//!   batch   | T1 | T2 | ARP | T3 | T4 | T5 |     T: may be a full segment of TCP
//!   runs    |<- join ->| as it is |<- join ->|
//! ```
//!
//! For guests that cut their own: without HOST_TSO, or forwarding what has come cut. It costs a
//! copy of each segment, and its sum unless that is left open, and saves the receiver all buffers
//! and headers but those of one frame. Only segments that are long and come together are taken
//! for that; a frame is never held for the next batch.

use std::iter::Peekable;
use std::ops::RangeInclusive;

use vionet::endpoint::{Arrival, RxSink};
use vionet::stats::DropReason;
use vionet_frame::header::Offloads;
use vionet_frame::parse::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, PROTOCOL_TCP};
use vionet_raw::ReadSpan;

use super::port::{BATCH, Given, copy_seen, hand_over};

/// Bytes of frames that are joined. A shorter one is hardly a full segment, behind which more come:
/// every host takes segments of 536 (RFC 9293 §3.7.1). Of longer ones no two have room in a frame.
const LENS: RangeInclusive<u32> = 536..=32_768;
/// The bytes that tell TCP, in either IP version without tags: up to the protocol of IPv4.
const SIGN: usize = 24;

/// Gives frames to a guest, runs of segments joined.
pub(super) fn deliver<'b>(
    sink: &mut RxSink<'_>,
    frames: &mut Peekable<impl Iterator<Item = Given<'b>>>,
    can: Offloads,
    room: &mut [u8],
) {
    while let Some(first) = frames.next() {
        if is_segment(&first) && frames.peek().is_some_and(is_segment) {
            join(sink, first, frames, room);
        } else {
            hand_over(sink, first, can, room);
        }
    }
}

/// Whether a frame may be a segment worth joining. What is made of it is decided of its copy.
fn is_segment((frame, _, bytes): &Given<'_>) -> bool {
    if !LENS.contains(&frame.len) || frame.request.gso.is_some() {
        return false;
    }
    let Some([.., t0, t1, _, _, _, _, _, _, v6, _, _, v4]) =
        bytes.first().and_then(ReadSpan::read::<SIGN>)
    else {
        return false;
    };
    match u16::from_be_bytes([t0, t1]) {
        ETHER_TYPE_IPV4 => v4 == PROTOCOL_TCP,
        ETHER_TYPE_IPV6 => v6 == PROTOCOL_TCP,
        _ => false,
    }
}

/// Joins the run that `first` begins, as far as there is room: a joined frame is no longer.
fn join<'b>(
    sink: &mut RxSink<'_>,
    first: Given<'b>,
    frames: &mut Peekable<impl Iterator<Item = Given<'b>>>,
    mut room: &mut [u8],
) {
    let mut arrivals = [Arrival::default(); BATCH];
    let mut count = 0_usize;
    let mut next = Some(first);
    for arrival in &mut arrivals {
        let Some(given) = next else { break };
        let len = usize::try_from(given.0.len).unwrap_or(usize::MAX);
        let Some((mine, rest)) = room.split_at_mut_checked(len) else { break };
        let request = given.0.request;
        *arrival = Arrival { bytes: copy_seen(given, mine), request, ..Arrival::default() };
        count = count.saturating_add(1);
        room = rest;
        let fits =
            |next: &Given<'_>| usize::try_from(next.0.len).is_ok_and(|len| len <= room.len());
        next = frames.next_if(|next| count < BATCH && fits(next) && is_segment(next));
    }
    let left = sink.push_joined(arrivals.get(..count).unwrap_or(&[]));
    for _ in 0..left.count_ones() {
        sink.dropped(DropReason::NoBuffer);
    }
}
