//! Cutting a frame in software where the host side does not do it: TSO, USO, both also within a
//! UDP tunnel, and UFO.
//!
//! ```text
//!   frame      | headers | payload                                  |
//!                        |<- size ->|<- size ->|<- size ->|<- less ->|
//!   segment 0  | headers'| payload  |
//!   segment 1  | headers'           | payload  |                      seq + size, id + 1
//!   ...
//!   last       | headers'                                 | payload  |  FIN and PSH only here
//!
//!   headers      Ethernet, IP, TCP or UDP
//!   in a tunnel  Ethernet, IP, UDP, what the tunnel likes, IP, TCP or UDP
//! ```
//!
//! The headers are written anew for each segment into the caller's room; the payload stays where
//! it is. The checksum is at first left open, as in a frame with NEEDS_CSUM; [`Segment::complete`]
//! closes it over the payload's sum, for a host side that takes only whole frames. The outer
//! checksum of a tunnel is always closed: that takes no look at the payload, since an inner packet
//! with a right checksum has a sum that its pseudo header tells.
//!
//! Where the headers end is found by parsing: `hdr_len` is the driver's word (NET-TX-30). What a
//! header says of a frame that the frame does not bear out has its [`SegmentFault`].

mod fragment;

use core::fmt;

use crate::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET};
use crate::header::{CsumAt, Gso, Offloads, Request, Tunnel};
use crate::parse::{
    IPV4_LEN, IPV6_LEN, Ip, ParseFault, Parsed, TCP_LEN, TcpFlags, Transport, UDP_LEN, parse,
    parse_packet,
};
use fragment::Fragments;

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
    /// The headers of the tunnel are not where they are said to be.
    OtherTunnel,
    /// The checksum left open is not that of the transport header found.
    ChecksumElsewhere,
    /// The frame is a fragment, or routed by an IPv6 header so that its checksum is not ours.
    NotWhole,
    /// A datagram with IPv6 extension headers is to become fragments.
    Extensions,
    /// More than [`SEGMENT_HEADERS_MAX`] bytes of headers.
    HeadersTooLong,
    /// More than [`SEGMENTS_MAX`] segments, or of 0 bytes each, or fragments of less than 8.
    TooManySegments,
}

impl fmt::Display for SegmentFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable(fault) => return write!(f, "frame to be cut: {fault}"),
            Self::OtherKind => "headers are not of the kind of segmentation asked for",
            Self::OtherTunnel => "headers of the tunnel are not where they are said to be",
            Self::ChecksumElsewhere => "open checksum is not that of the transport header",
            Self::NotWhole => "frame to be cut is a fragment or has a routing header",
            Self::Extensions => "datagram to be fragmented has ipv6 extension headers",
            Self::HeadersTooLong => "headers too long to be repeated",
            Self::TooManySegments => "segments too small for the frame",
        })
    }
}

impl core::error::Error for SegmentFault {}

/// The segments of one frame, in order; see [`Segments::next_into`].
#[derive(Clone, Debug)]
pub struct Segments<'f> {
    /// The frame's headers, nothing behind.
    headers: &'f [u8],
    /// The payload of all segments.
    payload: &'f [u8],
    way: Way,
    /// Payload bytes of a segment but the last.
    size: usize,
    /// Payload bytes in the segments before.
    done: usize,
    /// Segments before.
    index: u16,
    is_over: bool,
}

/// What becomes of the headers.
#[derive(Clone, Debug)]
enum Way {
    /// They are repeated: TSO and USO.
    Repeat { outer: Option<Outer>, packet: Packet, transport: Origin, csum: CsumAt },
    /// Those of IP are repeated: UFO.
    Fragment(Fragments),
}

/// An IP header, and where what follows it starts.
#[derive(Clone, Copy, Debug)]
struct Packet {
    l3: usize,
    l4: usize,
    /// The sum of the pseudo header, but for the length.
    pseudo: Sum,
    /// What IPv4 has in its header; `None` for IPv6.
    v4: Option<V4>,
}

/// What the transport headers of all segments are made from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    /// The sum of what is the same in all: TCP's header but for sequence number, flags and their
    /// word, and checksum; UDP's ports.
    sum: Sum,
    /// TCP's sequence number, header length and flags.
    seq: u32,
    offset: u8,
    flags: TcpFlags,
}

/// What is the same in the IPv4 headers of all segments.
#[derive(Clone, Copy, Debug)]
struct V4 {
    id: u16,
    /// The sum of the header, but for length, identification and checksum.
    sum: Sum,
}

/// The headers of the tunnel around a packet.
#[derive(Clone, Copy, Debug)]
struct Outer {
    packet: Packet,
    /// The UDP header has a checksum.
    csum: bool,
}

/// One segment: its headers are in the caller's room, its payload is still in the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'f> {
    /// Bytes of headers in the room.
    pub header_len: usize,
    /// Its payload.
    pub payload: &'f [u8],
    /// No segment follows.
    pub is_last: bool,
    /// The checksum that is left open, and the sum of all that it covers but the payload; fragments
    /// have none.
    csum: Option<(CsumAt, Sum)>,
}

impl<'f> Segments<'f> {
    /// Judges whether a frame can be cut as it is asked for.
    ///
    /// # Errors
    /// [`SegmentFault`].
    pub fn new(frame: &'f [u8], request: &Request) -> Result<Self, SegmentFault> {
        let (Some(csum), Some(gso)) = (request.csum, request.gso) else {
            return Err(SegmentFault::OtherKind);
        };
        let parsed = parse(frame, frame.len()).map_err(SegmentFault::Unreadable)?;
        let ip = parsed.ip().ok_or(SegmentFault::OtherKind)?;
        let (outer, l3, ip) = match &request.tunnel {
            None => (None, parsed.l3, *ip),
            Some(tunnel) => {
                let outer = Outer::of(frame, parsed.l3, ip, tunnel)?;
                let l3 = usize::from(tunnel.inner_nh_offset);
                let inner = parse_packet(frame, ip.end, l3);
                (Some(outer), l3, inner.map_err(SegmentFault::Unreadable)?)
            }
        };
        let offset = match (gso.kind, ip.transport, ip.addresses.is_v4()) {
            (Gso::TcpV4, Transport::Tcp(_), true) => TCP_CSUM_OFFSET,
            (Gso::TcpV6, Transport::Tcp(_), false) => TCP_CSUM_OFFSET,
            (Gso::UdpL4, Transport::Udp(_), _) => UDP_CSUM_OFFSET,
            (Gso::Udp, Transport::Udp(_), _) if outer.is_none() => UDP_CSUM_OFFSET,
            _ => return Err(SegmentFault::OtherKind),
        };
        if csum.offset != offset || usize::from(csum.start) != ip.l4 {
            return Err(SegmentFault::ChecksumElsewhere);
        }
        if ip.fragment.is_some() || ip.routed {
            return Err(SegmentFault::NotWhole);
        }
        let unreadable = SegmentFault::Unreadable(ParseFault::Truncated);
        let packet = Packet::of(frame, l3, &ip).ok_or(unreadable)?;
        let size = usize::from(gso.size);
        let (way, split, size) = if gso.kind == Gso::Udp {
            let (fragments, size) = Fragments::of(frame, packet, ip.end, size)?;
            (Way::Fragment(fragments), ip.l4, size)
        } else {
            let transport = Origin::of(frame, &ip).ok_or(unreadable)?;
            (Way::Repeat { outer, packet, transport, csum }, ip.payload, size)
        };
        if ip.payload > SEGMENT_HEADERS_MAX {
            return Err(SegmentFault::HeadersTooLong);
        }
        // To the packet's end by the IP header's word even for UDP: what a driver writes as the
        // length of a datagram yet to be cut differs.
        let whole = frame.get(..ip.end).and_then(|packet| packet.split_at_checked(split));
        let (headers, payload) = whole.ok_or(unreadable)?;
        if size == 0 || payload.len() > size.saturating_mul(SEGMENTS_MAX) {
            return Err(SegmentFault::TooManySegments);
        }
        Ok(Self { headers, payload, way, size, done: 0, index: 0, is_over: false })
    }

    /// Writes the headers of the next segment into `room`; `None` after the last one.
    ///
    /// The checksum is left open: the field holds the pseudo header's sum, as
    /// [`Segment::request`] says.
    #[inline(always)]
    pub fn next_into(&mut self, room: &mut [u8; SEGMENT_HEADERS_MAX]) -> Option<Segment<'f>> {
        if self.is_over {
            return None;
        }
        let rest = self.payload.get(self.done..)?;
        let (payload, is_last) = match rest.split_at_checked(self.size) {
            Some((payload, [_, ..])) => (payload, false),
            Some(_) | None => (rest, true),
        };
        let repeated = room.get_mut(..self.headers.len())?;
        if repeated.len() == self.headers.len() {
            #[expect(clippy::disallowed_methods, reason = "the lengths were just compared")]
            repeated.copy_from_slice(self.headers);
        }
        let segment = match &self.way {
            Way::Repeat { outer, packet, transport, csum } => {
                let end = self.headers.len().saturating_add(payload.len());
                packet.write_lengths(repeated, end, self.index)?;
                let is_udp = csum.offset == UDP_CSUM_OFFSET;
                let (open, changed) = if is_udp {
                    packet.write_udp(repeated, end)?
                } else {
                    packet.write_tcp(repeated, end, transport, (self.done, is_last))?
                };
                if let Some(outer) = outer {
                    outer.write(repeated, end, self.index, packet.l4, open)?;
                }
                let sum = open.followed_by(transport.sum).followed_by(changed);
                let header_len = self.headers.len();
                Segment { header_len, payload, is_last, csum: Some((*csum, sum)) }
            }
            Way::Fragment(fragments) => fragments.write(room, payload, self.done, is_last)?,
        };
        self.done = self.done.saturating_add(payload.len());
        self.index = self.index.wrapping_add(1);
        self.is_over = is_last;
        Some(segment)
    }
}

impl Origin {
    fn of(frame: &[u8], ip: &Ip) -> Option<Self> {
        let header = frame.get(ip.l4..ip.payload)?;
        let Transport::Tcp(tcp) = ip.transport else {
            let sum = Sum::of(header.get(..4)?);
            return Some(Self { sum, seq: 0, offset: 0, flags: TcpFlags::default() });
        };
        let (fixed, options) = header.split_first_chunk::<TCP_LEN>()?;
        let [p0, p1, p2, p3, _, _, _, _, a0, a1, a2, a3, offset, _, w0, w1, _, _, u0, u1] = *fixed;
        let mut sum = Sum::of(&[p0, p1, p2, p3, a0, a1, a2, a3, w0, w1, u0, u1]);
        sum.add(options);
        Some(Self { sum, seq: tcp.seq, offset, flags: tcp.flags })
    }
}

impl Packet {
    fn of(frame: &[u8], l3: usize, ip: &Ip) -> Option<Self> {
        let header = frame.get(l3..ip.l4)?;
        let v4 = if ip.addresses.is_v4() {
            let (fixed, options) = header.split_first_chunk::<IPV4_LEN>()?;
            let [v, tos, _, _, i0, i1, f0, f1, ttl, protocol, _, _, addresses @ ..] = *fixed;
            let mut sum = Sum::of(&[v, tos, f0, f1, ttl, protocol]);
            sum.add(&addresses);
            sum.add(options);
            Some(V4 { id: u16::from_be_bytes([i0, i1]), sum })
        } else {
            None
        };
        Some(Self { l3, l4: ip.l4, pseudo: ip.addresses.pseudo_header(ip.protocol, 0), v4 })
    }

    /// IPv4: total length, identification one more for each segment, header checksum.
    /// IPv6: payload length. The packet ends at `end` of the segment.
    #[inline]
    fn write_lengths(&self, headers: &mut [u8], end: usize, index: u16) -> Option<()> {
        let packet_len = end.checked_sub(self.l3)?;
        let header = headers.get_mut(self.l3..self.l4)?;
        let Some(V4 { id, mut sum }) = self.v4 else {
            let len = u16::try_from(packet_len.checked_sub(IPV6_LEN)?).ok()?;
            let [_, _, _, _, n0, n1, ..] = header.first_chunk_mut::<IPV6_LEN>()?;
            [*n0, *n1] = len.to_be_bytes();
            return Some(());
        };
        let len = u16::try_from(packet_len).ok()?;
        let id = id.wrapping_add(index);
        sum.add_u16(len);
        sum.add_u16(id);
        let [_, _, n0, n1, i0, i1, _, _, _, _, c0, c1, ..] =
            header.first_chunk_mut::<IPV4_LEN>()?;
        [*n0, *n1] = len.to_be_bytes();
        [*i0, *i1] = id.to_be_bytes();
        [*c0, *c1] = sum.checksum().to_be_bytes();
        Some(())
    }

    /// The pseudo header's sum for a transport that ends at `end` of the segment, and its length.
    fn transport(&self, end: usize) -> Option<(Sum, u16)> {
        let len = u16::try_from(end.checked_sub(self.l4)?).ok()?;
        let mut pseudo = self.pseudo;
        pseudo.add_u16(len);
        Some((pseudo, len))
    }

    /// UDP (NET-TX-18): its own length. Returns the pseudo header's sum, which it leaves in the
    /// checksum's place, and the sum of what else it has written.
    fn write_udp(&self, headers: &mut [u8], end: usize) -> Option<(Sum, Sum)> {
        let (pseudo, len) = self.transport(end)?;
        let header = headers.get_mut(self.l4..)?;
        let [_, _, _, _, n0, n1, c0, c1] = header.first_chunk_mut::<UDP_LEN>()?;
        [*n0, *n1] = len.to_be_bytes();
        [*c0, *c1] = pseudo.partial().to_be_bytes();
        Some((pseudo, Sum::from_partial(len)))
    }

    /// TCP (NET-TX-17): sequence number on by the payload before, FIN and PSH in the last segment
    /// only, CWR in the first only (NET-TX-20). Returns the same sums as for UDP.
    #[inline]
    fn write_tcp(
        &self,
        headers: &mut [u8],
        end: usize,
        from: &Origin,
        (done, is_last): (usize, bool),
    ) -> Option<(Sum, Sum)> {
        let (pseudo, _) = self.transport(end)?;
        let seq = from.seq.wrapping_add(u32::try_from(done).ok()?);
        let mut flags = from.flags;
        if !is_last {
            flags = flags.difference(TcpFlags::FIN | TcpFlags::PSH);
        }
        // Whether or not the ECN bit announced it: a second CWR would tell the receiver that the
        // mark it echoed since has been answered too (RFC 3168 §6.1.2).
        if done > 0 {
            flags = flags.difference(TcpFlags::CWR);
        }
        let header = headers.get_mut(self.l4..)?;
        let [_, _, _, _, s0, s1, s2, s3, rest @ ..] = header.first_chunk_mut::<TCP_LEN>()?;
        let [_, _, _, _, _, f, _, _, c0, c1, _, _] = rest;
        [*s0, *s1, *s2, *s3] = seq.to_be_bytes();
        *f = flags.0;
        [*c0, *c1] = pseudo.partial().to_be_bytes();
        let mut changed = Sum::from_partial(u16::from_be_bytes([from.offset, flags.0]));
        changed.add_u32(seq);
        Some((pseudo, changed))
    }
}

impl Outer {
    /// The tunnel's headers, which must be where `tunnel` says (NET-TX-34).
    fn of(frame: &[u8], l3: usize, ip: &Ip, tunnel: &Tunnel) -> Result<Self, SegmentFault> {
        let Transport::Udp(udp) = ip.transport else { return Err(SegmentFault::OtherTunnel) };
        let inner = usize::from(tunnel.inner_nh_offset);
        let is_there = usize::from(tunnel.outer_th_offset) == ip.l4
            && (ip.payload..ip.end.min(frame.len())).contains(&inner);
        if !is_there {
            return Err(SegmentFault::OtherTunnel);
        }
        if ip.fragment.is_some() || ip.routed {
            return Err(SegmentFault::NotWhole);
        }
        let unreadable = SegmentFault::Unreadable(ParseFault::Truncated);
        let packet = Packet::of(frame, l3, ip).ok_or(unreadable)?;
        // One that is complete for the first segments would be wrong in a shorter last one
        // (NET-TX-36): it is taken anew whatever the driver says, unless there is none at all.
        Ok(Self { packet, csum: tunnel.csum || udp.checksum != 0 })
    }

    /// The outer headers of a segment (NET-TX-21): lengths, identification, and the UDP checksum
    /// (NET-TX-22). `open` is the pseudo header's sum of the inner packet's transport at `inner`.
    fn write(
        &self,
        headers: &mut [u8],
        end: usize,
        index: u16,
        inner: usize,
        open: Sum,
    ) -> Option<()> {
        self.packet.write_lengths(headers, end, index)?;
        let (pseudo, _) = self.packet.write_udp(headers, end)?;
        let header = headers.get_mut(self.packet.l4..inner)?;
        let [.., c0, c1] = header.first_chunk_mut::<UDP_LEN>()?;
        [*c0, *c1] = [0, 0];
        if self.csum {
            // With its checksum right, the inner transport's bytes and its pseudo header come to
            // "all ones" together, so those bytes alone come to the complement.
            let below = Sum::from_partial(open.checksum());
            let sum = pseudo.followed_by(Sum::of(header)).followed_by(below);
            let [.., c0, c1] = header.first_chunk_mut::<UDP_LEN>()?;
            [*c0, *c1] = sum.udp_checksum().to_be_bytes();
        }
        Some(())
    }
}

/// Whether the outer checksum of a frame in a tunnel is what a receiver of the whole frame expects:
/// the pseudo header's sum where it is left open (NET-RX-32), else none (NET-RX-33). `head` is the
/// frame's beginning, up to the tunnel's UDP header, and `len` the bytes of all of it.
///
/// One that is complete over the whole would do as well. It is not looked for: no sender can have
/// meant it for the segments that are cut from the frame.
#[must_use]
pub fn is_summed_as_said(head: &[u8], len: u32, tunnel: &Tunnel) -> bool {
    let parsed = usize::try_from(len).ok().and_then(|len| parse(head, len).ok());
    let Some(ip) = parsed.as_ref().and_then(Parsed::ip) else { return false };
    let Transport::Udp(udp) = ip.transport else { return false };
    if ip.fragment.is_some() || ip.l4 != usize::from(tunnel.outer_th_offset) {
        return false;
    }
    if !tunnel.csum {
        return udp.checksum == 0;
    }
    let len = u32::try_from(ip.end.saturating_sub(ip.l4)).unwrap_or(u32::MAX);
    !ip.routed && ip.addresses.pseudo_header(ip.protocol, len).partial() == udp.checksum
}

impl Segment<'_> {
    /// What the segment asks for as it was written: the checksum to be completed.
    #[must_use]
    pub const fn request(&self) -> Request {
        let csum = match self.csum {
            Some((at, _)) => Some(at),
            None => None,
        };
        Request { csum, gso: None, tunnel: None }
    }

    /// Makes the segment one for a receiver that can do what `can` says: its checksum is completed
    /// if that is not left to the receiver. Returns what is left open.
    #[inline]
    pub fn finish(&self, room: &mut [u8; SEGMENT_HEADERS_MAX], can: Offloads) -> Request {
        if can.contains(Offloads::CSUM) {
            return self.request();
        }
        self.complete(room, Sum::of(self.payload));
        Request::default()
    }

    /// Completes the checksum in the segment's headers, given the sum of its payload (NET-TX-16).
    #[inline]
    pub fn complete(&self, room: &mut [u8; SEGMENT_HEADERS_MAX], payload: Sum) {
        let Some((at, sum)) = self.csum else { return };
        let sum = sum.followed_by(payload);
        let is_udp = at.offset == UDP_CSUM_OFFSET;
        let checksum = if is_udp { sum.udp_checksum() } else { sum.checksum() };
        let field = usize::from(at.start).saturating_add(at.offset.into());
        if let Some(field) = room.get_mut(field..).and_then(<[u8]>::first_chunk_mut) {
            *field = checksum.to_be_bytes();
        }
    }
}
