//! Cutting a frame into segments in software (TSO, USO), where the host side does not do it.
//!
//! ```text
//!   frame      | headers | payload                                  |
//!                        |<- size ->|<- size ->|<- size ->|<- less ->|
//!   segment 0  | headers'| payload  |
//!   segment 1  | headers'           | payload  |                      seq + size, id + 1
//!   ...
//!   last       | headers'                                 | payload  |  FIN and PSH only here
//! ```
//!
//! The headers are written anew for each segment into the caller's room; the payload stays where
//! it is, in guest memory even, and is named by its place in the frame. The checksum is at first
//! left open, as in a frame with NEEDS_CSUM; [`Segment::complete`] closes it over the payload's
//! sum, for a host side that takes only whole frames.
//!
//! Where the headers end is found by parsing: `hdr_len` is the driver's word (NET-TX-30).
//!
//! Not here: UFO, which is IP fragmentation and is not offered without a host that does it.

use core::fmt;

use crate::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, ipv4_header_checksum};
use crate::header::{CsumAt, Gso, GsoRequest, Request};
use crate::parse::{
    Addresses, IPV4_LEN, IPV6_LEN, Ip, PROTOCOL_TCP, PROTOCOL_UDP, ParseFault, TCP_LEN, TcpFlags,
    Transport, UDP_LEN, parse,
};

/// The most bytes of headers that a segment may have.
pub const SEGMENT_HEADERS_MAX: usize = 256;
/// The most segments of one frame: 64 KiB cut by the smallest segment size that Linux uses, 36.
pub const SEGMENTS_MAX: usize = 2048;

/// Why a frame cannot be cut. It is dropped; the queue goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum SegmentFault {
    /// The headers cannot be read.
    Unreadable(ParseFault),
    /// The headers are not those of the kind of segmentation asked for.
    OtherKind,
    /// The checksum left open is not that of the transport header found.
    ChecksumElsewhere,
    /// The frame is a fragment, or routed by an IPv6 header so that its checksum is not ours.
    NotWhole,
    /// More than [`SEGMENT_HEADERS_MAX`] bytes of headers.
    HeadersTooLong,
    /// More than [`SEGMENTS_MAX`] segments, or of 0 bytes each.
    TooManySegments,
}

impl fmt::Display for SegmentFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable(fault) => return write!(f, "frame to be cut: {fault}"),
            Self::OtherKind => "headers are not of the kind of segmentation asked for",
            Self::ChecksumElsewhere => "open checksum is not that of the transport header",
            Self::NotWhole => "frame to be cut is a fragment or has a routing header",
            Self::HeadersTooLong => "headers too long to be repeated",
            Self::TooManySegments => "segments too small for the frame",
        })
    }
}

impl core::error::Error for SegmentFault {}

/// The segments of one frame, in order; see [`Segments::next_into`].
#[derive(Clone, Debug)]
pub struct Segments<'h> {
    /// The frame's headers, nothing behind.
    headers: &'h [u8],
    addresses: Addresses,
    l3: usize,
    l4: usize,
    csum: CsumAt,
    /// Payload bytes of a segment but the last.
    size: usize,
    /// Payload bytes in the segments before.
    done: usize,
    /// Payload bytes in all.
    total: usize,
    /// Segments before.
    index: u16,
    is_over: bool,
}

/// One segment: its headers are in the caller's room, its payload is still in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Segment {
    /// Bytes of headers in the room.
    pub header_len: usize,
    /// Where in the frame its payload starts.
    pub payload: usize,
    /// Bytes of payload.
    pub payload_len: usize,
    /// No segment follows.
    pub is_last: bool,
    csum: CsumAt,
}

impl<'h> Segments<'h> {
    /// Judges whether a frame of `frame_len` bytes can be cut. `head` is its beginning, at least
    /// all its headers ([`SEGMENT_HEADERS_MAX`] bytes are enough for any frame that passes).
    ///
    /// # Errors
    /// [`SegmentFault`].
    pub fn new(
        head: &'h [u8],
        frame_len: usize,
        csum: CsumAt,
        gso: GsoRequest,
    ) -> Result<Self, SegmentFault> {
        let frame = parse(head, frame_len).map_err(SegmentFault::Unreadable)?;
        let ip = frame.ip().ok_or(SegmentFault::OtherKind)?;
        let offset = match (gso.kind, ip.transport, ip.addresses.is_v4()) {
            (Gso::TcpV4, Transport::Tcp(_), true) => TCP_CSUM_OFFSET,
            (Gso::TcpV6, Transport::Tcp(_), false) => TCP_CSUM_OFFSET,
            (Gso::UdpL4, Transport::Udp(_), _) => UDP_CSUM_OFFSET,
            _ => return Err(SegmentFault::OtherKind),
        };
        if csum.offset != offset || usize::from(csum.start) != ip.l4 {
            return Err(SegmentFault::ChecksumElsewhere);
        }
        if ip.fragment.is_some() || ip.routed {
            return Err(SegmentFault::NotWhole);
        }
        if ip.payload > SEGMENT_HEADERS_MAX {
            return Err(SegmentFault::HeadersTooLong);
        }
        let headers = head.get(..ip.payload);
        let headers = headers.ok_or(SegmentFault::Unreadable(ParseFault::HeadTooShort))?;
        let size = usize::from(gso.size);
        let total = payload_of(ip);
        if size == 0 || total > size.saturating_mul(SEGMENTS_MAX) {
            return Err(SegmentFault::TooManySegments);
        }
        let Ip { addresses, l4, .. } = *ip;
        let l3 = frame.l3;
        let (done, index, is_over) = (0, 0, false);
        Ok(Self { headers, addresses, l3, l4, csum, size, done, total, index, is_over })
    }

    /// Writes the headers of the next segment into `room`; `None` after the last one.
    ///
    /// The checksum is left open: the field holds the pseudo header's sum, as
    /// [`Segment::request`] says.
    pub fn next_into(&mut self, room: &mut [u8; SEGMENT_HEADERS_MAX]) -> Option<Segment> {
        if self.is_over {
            return None;
        }
        let header_len = self.headers.len();
        let payload_len = self.total.saturating_sub(self.done).min(self.size);
        let segment = Segment {
            header_len,
            payload: header_len.saturating_add(self.done),
            payload_len,
            is_last: self.done.saturating_add(payload_len) >= self.total,
            csum: self.csum,
        };
        let headers = room.get_mut(..header_len)?;
        for (to, from) in headers.iter_mut().zip(self.headers) {
            *to = *from;
        }
        self.write_ip(headers, payload_len)?;
        self.write_transport(headers, &segment)?;

        self.done = self.done.saturating_add(payload_len);
        self.index = self.index.wrapping_add(1);
        self.is_over = segment.is_last;
        Some(segment)
    }

    /// IPv4: total length, identification one more for each segment, header checksum.
    /// IPv6: payload length.
    fn write_ip(&self, headers: &mut [u8], payload_len: usize) -> Option<()> {
        let packet_len = headers.len().saturating_add(payload_len).checked_sub(self.l3)?;
        let header = headers.get_mut(self.l3..self.l4)?;
        match self.addresses {
            Addresses::V4 { .. } => {
                let [_, _, n0, n1, i0, i1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
                [*n0, *n1] = u16::try_from(packet_len).ok()?.to_be_bytes();
                let id = u16::from_be_bytes([*i0, *i1]);
                [*i0, *i1] = id.wrapping_add(self.index).to_be_bytes();
                write_ipv4_checksum(header)
            }
            Addresses::V6 { .. } => {
                let len = u16::try_from(packet_len.checked_sub(IPV6_LEN)?).ok()?;
                let [_, _, _, _, n0, n1, ..] = header.first_chunk_mut::<IPV6_LEN>()?;
                [*n0, *n1] = len.to_be_bytes();
                Some(())
            }
        }
    }

    /// TCP (NET-TX-17): sequence number on by the payload before, FIN and PSH in the last segment
    /// only, CWR in the first only (NET-TX-20). UDP (NET-TX-18): its own length.
    fn write_transport(&self, headers: &mut [u8], segment: &Segment) -> Option<()> {
        let header = headers.get_mut(self.l4..)?;
        let len = u32::try_from(header.len().saturating_add(segment.payload_len)).ok()?;
        if self.csum.offset == UDP_CSUM_OFFSET {
            let pseudo = self.addresses.pseudo_header(PROTOCOL_UDP, len);
            let [_, _, _, _, n0, n1, c0, c1] = header.first_chunk_mut::<UDP_LEN>()?;
            [*n0, *n1] = u16::try_from(len).ok()?.to_be_bytes();
            [*c0, *c1] = pseudo.partial().to_be_bytes();
            return Some(());
        }
        let pseudo = self.addresses.pseudo_header(PROTOCOL_TCP, len);
        let [_, _, _, _, s0, s1, s2, s3, rest @ ..] = header.first_chunk_mut::<TCP_LEN>()?;
        let [_, _, _, _, _, flags, _, _, c0, c1, _, _] = rest;
        let seq = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        [*s0, *s1, *s2, *s3] = seq.wrapping_add(u32::try_from(self.done).ok()?).to_be_bytes();
        if !segment.is_last {
            *flags = TcpFlags(*flags).difference(TcpFlags::FIN | TcpFlags::PSH).0;
        }
        // Whether or not the ECN bit announced it: a second CWR would tell the receiver that the
        // mark it echoed since has been answered too (RFC 3168 §6.1.2).
        if self.index != 0 {
            *flags = TcpFlags(*flags).difference(TcpFlags::CWR).0;
        }
        [*c0, *c1] = pseudo.partial().to_be_bytes();
        Some(())
    }
}

impl Segment {
    /// Its payload in the frame that was cut.
    #[must_use]
    pub fn payload_in<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        let end = self.payload.saturating_add(self.payload_len);
        frame.get(self.payload..end).unwrap_or(&[])
    }

    /// What the segment asks for as it was written: the checksum to be completed.
    #[must_use]
    pub const fn request(&self) -> Request {
        Request { csum: Some(self.csum), gso: None }
    }

    /// Completes the checksum in the segment's headers, given the sum of its payload (NET-TX-16).
    pub fn complete(&self, room: &mut [u8; SEGMENT_HEADERS_MAX], payload: Sum) {
        let header = room.get_mut(usize::from(self.csum.start)..self.header_len);
        let Some(header) = header else { return };
        let sum = Sum::of(header).followed_by(payload);
        let is_udp = self.csum.offset == UDP_CSUM_OFFSET;
        let checksum = if is_udp { sum.udp_checksum() } else { sum.checksum() };
        let field = header.get_mut(usize::from(self.csum.offset)..);
        if let Some(field) = field.and_then(<[u8]>::first_chunk_mut) {
            *field = checksum.to_be_bytes();
        }
    }
}

/// Bytes behind the transport header to the packet's end. By the IP header's word even for UDP:
/// what a driver writes as the length of a datagram yet to be cut differs.
const fn payload_of(ip: &Ip) -> usize {
    ip.end.saturating_sub(ip.payload)
}

fn write_ipv4_checksum(header: &mut [u8]) -> Option<()> {
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
    [*c0, *c1] = [0, 0];
    let checksum = ipv4_header_checksum(header);
    let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = header.first_chunk_mut::<IPV4_LEN>()?;
    [*c0, *c1] = checksum.to_be_bytes();
    Some(())
}
