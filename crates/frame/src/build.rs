//! Writing the headers of a frame in front of a payload that may lie elsewhere.
//!
//! ```text
//!   room                                        anywhere, perhaps not there yet
//!   | Ethernet | IPv4 or IPv6 | TCP, UDP, ICMP |   | payload ...              |
//!   |<-------------- Built::len -------------->|
//! ```
//!
//! [`Route`] writes all headers of a frame at once. How the transport checksum comes about is the
//! caller's choice by [`Payload`]: complete, over bytes or over their sum; or left open, as the
//! pseudo header's sum, for a reader that takes NEEDS_CSUM. Then the payload is not looked at, so
//! it can go from a socket to guest memory without passing here.

use core::fmt;

use crate::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, ipv4_header_checksum};
use crate::header::{CsumAt, Gso, GsoRequest, Request};
use crate::parse::{
    Addresses, Arp, ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHERNET_LEN, ICMP_LEN,
    IPV4_LEN, IPV6_LEN, Mac, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LEN,
    TcpFlags, UDP_LEN,
};

/// Bytes of an ARP message for IPv4 over Ethernet, with its Ethernet header.
pub const ARP_FRAME_LEN: usize = 42;
/// Room enough for the headers of any frame built here.
pub const HEADERS_MAX: usize = ETHERNET_LEN + IPV6_LEN + TCP_LEN + 8;

/// Offset of the checksum in an ICMP header.
const ICMP_CSUM_OFFSET: u16 = 2;

/// Why headers could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BuildFault {
    /// The headers do not fit into the room given.
    NoRoom,
    /// The payload is longer than an IP packet can say.
    PayloadTooLong,
}

impl fmt::Display for BuildFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoRoom => "no room for the headers",
            Self::PayloadTooLong => "payload longer than an ip packet",
        })
    }
}

impl core::error::Error for BuildFault {}

/// The payload, as far as the checksum needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload<'a> {
    /// These bytes; the checksum is complete.
    Bytes(&'a [u8]),
    /// Bytes whose sum is known; the checksum is complete.
    Summed {
        /// How many bytes.
        len: usize,
        /// Their sum.
        sum: Sum,
    },
    /// This many bytes, not looked at; the checksum is left open (NEEDS_CSUM).
    Later(usize),
}

impl Payload<'_> {
    /// Bytes of payload.
    #[must_use]
    pub const fn len(&self) -> usize {
        match *self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Summed { len, .. } | Self::Later(len) => len,
        }
    }

    /// Whether there is no payload.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sum of everything that the checksum covers, or `None` if it is left open.
    fn sum(&self, pseudo: Sum, header: Sum) -> Option<Sum> {
        match *self {
            Self::Bytes(bytes) => Some(pseudo.followed_by(header).followed_by(Sum::of(bytes))),
            Self::Summed { sum, .. } => Some(pseudo.followed_by(header).followed_by(sum)),
            Self::Later(_) => None,
        }
    }
}

/// An Ethernet header without tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Ethernet {
    /// Whom the frame is for.
    pub destination: Mac,
    /// Who sends the frame.
    pub source: Mac,
    /// What the frame carries.
    pub ether_type: u16,
}

impl Ethernet {
    /// Writes the 14 bytes; returns the rest of the room.
    ///
    /// # Errors
    /// [`BuildFault::NoRoom`].
    pub fn write<'r>(&self, room: &'r mut [u8]) -> Result<&'r mut [u8], BuildFault> {
        let (header, rest) = take::<ETHERNET_LEN>(room)?;
        let [d0, d1, d2, d3, d4, d5] = self.destination;
        let [s0, s1, s2, s3, s4, s5] = self.source;
        let [t0, t1] = self.ether_type.to_be_bytes();
        *header = [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1];
        Ok(rest)
    }
}

/// Writes a whole ARP frame; returns its [`ARP_FRAME_LEN`] bytes' length.
///
/// # Errors
/// [`BuildFault::NoRoom`].
pub fn arp(
    room: &mut [u8],
    destination: Mac,
    source: Mac,
    message: &Arp,
) -> Result<usize, BuildFault> {
    let ethernet = Ethernet { destination, source, ether_type: ETHER_TYPE_ARP };
    let (body, _) = take::<28>(ethernet.write(room)?)?;
    let [o0, o1] = message.operation.to_be_bytes();
    let [a0, a1, a2, a3, a4, a5] = message.sender_mac;
    let [i0, i1, i2, i3] = message.sender_ip.octets();
    let [b0, b1, b2, b3, b4, b5] = message.target_mac;
    let [j0, j1, j2, j3] = message.target_ip.octets();
    *body = [
        0, 1, 8, 0, 6, 4, o0, o1, a0, a1, a2, a3, a4, a5, i0, i1, i2, i3, b0, b1, b2, b3, b4, b5,
        j0, j1, j2, j3,
    ];
    Ok(ARP_FRAME_LEN)
}

/// An IP header of either version, without options or extensions. Never fragmented (IPv4: DF).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct IpHeader {
    /// Source and destination; they say which version is written.
    pub addresses: Addresses,
    /// Protocol number of what follows.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class.
    pub traffic_class: u8,
    /// Identification, IPv4 only.
    pub id: u16,
}

impl IpHeader {
    /// Writes the 20 or 40 bytes for a packet with `payload_len` bytes after the IP header;
    /// returns the rest of the room.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn write<'r>(
        &self,
        room: &'r mut [u8],
        payload_len: usize,
    ) -> Result<&'r mut [u8], BuildFault> {
        let Self { protocol, hop_limit, traffic_class, .. } = *self;
        match self.addresses {
            Addresses::V4 { source, destination } => {
                let (header, rest) = take::<IPV4_LEN>(room)?;
                let [n0, n1] = length(payload_len.saturating_add(IPV4_LEN))?.to_be_bytes();
                let [i0, i1] = self.id.to_be_bytes();
                let [s0, s1, s2, s3] = source.octets();
                let [d0, d1, d2, d3] = destination.octets();
                *header = [
                    0x45,
                    traffic_class,
                    n0,
                    n1,
                    i0,
                    i1,
                    0x40,
                    0,
                    hop_limit,
                    protocol,
                    0,
                    0,
                    s0,
                    s1,
                    s2,
                    s3,
                    d0,
                    d1,
                    d2,
                    d3,
                ];
                let checksum = ipv4_header_checksum(header);
                let [_, _, _, _, _, _, _, _, _, _, c0, c1, ..] = header;
                [*c0, *c1] = checksum.to_be_bytes();
                Ok(rest)
            }
            Addresses::V6 { source, destination } => {
                let (header, rest) = take::<8>(room)?;
                let (from, rest) = take(rest)?;
                let (to, rest) = take(rest)?;
                let [n0, n1] = length(payload_len)?.to_be_bytes();
                let (class_high, class_low) = (traffic_class >> 4, traffic_class << 4);
                *header = [0x60 | class_high, class_low, 0, 0, n0, n1, protocol, hop_limit];
                *from = source.octets();
                *to = destination.octets();
                Ok(rest)
            }
        }
    }

    /// Bytes of this header.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        match self.addresses {
            Addresses::V4 { .. } => IPV4_LEN,
            Addresses::V6 { .. } => IPV6_LEN,
        }
    }
}

/// A TCP header to be written. The default is one without flags, options or numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct TcpHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Number of the first byte of payload, or of the SYN.
    pub seq: u32,
    /// Number of the next byte expected.
    pub ack: u32,
    /// The flags.
    pub flags: TcpFlags,
    /// Room at the sender, already scaled.
    pub window: u16,
    /// Option: the largest segment taken.
    pub mss: Option<u16>,
    /// Option: windows are shifted by this.
    pub window_scale: Option<u8>,
}

impl TcpHeader {
    /// Bytes of this header with its options, 20 to 28.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        let mss = if self.mss.is_some() { 4 } else { 0 };
        let window_scale = if self.window_scale.is_some() { 4 } else { 0 };
        TCP_LEN.saturating_add(mss).saturating_add(window_scale)
    }

    /// Writes the header; returns the rest of the room.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn write<'r>(
        &self,
        room: &'r mut [u8],
        addresses: &Addresses,
        payload: &Payload<'_>,
    ) -> Result<&'r mut [u8], BuildFault> {
        let len = length(self.header_len().saturating_add(payload.len()))?;
        let (header, mut rest) = take::<TCP_LEN>(room)?;
        let [p0, p1] = self.source.to_be_bytes();
        let [q0, q1] = self.destination.to_be_bytes();
        let [s0, s1, s2, s3] = self.seq.to_be_bytes();
        let [a0, a1, a2, a3] = self.ack.to_be_bytes();
        let [w0, w1] = self.window.to_be_bytes();
        let words = match (self.mss, self.window_scale) {
            (None, None) => 5,
            (Some(_), None) | (None, Some(_)) => 6,
            (Some(_), Some(_)) => 7,
        };
        let TcpFlags(flags) = self.flags;
        *header =
            [p0, p1, q0, q1, s0, s1, s2, s3, a0, a1, a2, a3, words << 4, flags, w0, w1, 0, 0, 0, 0];
        let mut sum = Sum::of(header);
        if let Some(mss) = self.mss {
            let [m0, m1] = mss.to_be_bytes();
            rest = option(rest, [2, 4, m0, m1], &mut sum)?;
        }
        if let Some(shift) = self.window_scale {
            rest = option(rest, [1, 3, 3, shift], &mut sum)?;
        }
        let pseudo = addresses.pseudo_header(PROTOCOL_TCP, u32::from(len));
        let checksum = payload.sum(pseudo, sum).map_or(pseudo.partial(), Sum::checksum);
        let [.., c0, c1, _, _] = header;
        [*c0, *c1] = checksum.to_be_bytes();
        Ok(rest)
    }
}

/// A UDP header to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct UdpHeader {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl UdpHeader {
    /// Writes the 8 bytes; returns the rest of the room.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn write<'r>(
        &self,
        room: &'r mut [u8],
        addresses: &Addresses,
        payload: &Payload<'_>,
    ) -> Result<&'r mut [u8], BuildFault> {
        let len = length(payload.len().saturating_add(UDP_LEN))?;
        let (header, rest) = take::<UDP_LEN>(room)?;
        let [p0, p1] = self.source.to_be_bytes();
        let [q0, q1] = self.destination.to_be_bytes();
        let [n0, n1] = len.to_be_bytes();
        *header = [p0, p1, q0, q1, n0, n1, 0, 0];
        let pseudo = addresses.pseudo_header(PROTOCOL_UDP, u32::from(len));
        let sum = payload.sum(pseudo, Sum::of(header));
        let [.., c0, c1] = header;
        [*c0, *c1] = sum.map_or(pseudo.partial(), Sum::udp_checksum).to_be_bytes();
        Ok(rest)
    }
}

/// An ICMP or ICMPv6 header to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct IcmpHeader {
    /// The message's type.
    pub kind: u8,
    /// The message's code.
    pub code: u8,
    /// The four bytes after the checksum: identifier and sequence number of an echo.
    pub rest: [u8; 4],
}

impl IcmpHeader {
    /// The header of an echo request or reply of this `kind`.
    #[must_use]
    pub const fn echo(kind: u8, id: u16, seq: u16) -> Self {
        let ([i0, i1], [s0, s1]) = (id.to_be_bytes(), seq.to_be_bytes());
        Self { kind, code: 0, rest: [i0, i1, s0, s1] }
    }

    /// Writes the 8 bytes, with a pseudo header in the checksum for IPv6 only; returns the rest
    /// of the room.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn write<'r>(
        &self,
        room: &'r mut [u8],
        addresses: &Addresses,
        payload: &Payload<'_>,
    ) -> Result<&'r mut [u8], BuildFault> {
        let len = length(payload.len().saturating_add(ICMP_LEN))?;
        let (header, rest) = take::<ICMP_LEN>(room)?;
        let [r0, r1, r2, r3] = self.rest;
        *header = [self.kind, self.code, 0, 0, r0, r1, r2, r3];
        let pseudo = match addresses {
            Addresses::V4 { .. } => Sum::ZERO,
            Addresses::V6 { .. } => addresses.pseudo_header(PROTOCOL_ICMPV6, u32::from(len)),
        };
        let sum = payload.sum(pseudo, Sum::of(header));
        let [_, _, c0, c1, ..] = header;
        [*c0, *c1] = sum.map_or(pseudo.partial(), Sum::checksum).to_be_bytes();
        Ok(rest)
    }
}

/// What the frames of one flow have in common below the transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Route {
    /// Whom the frames are for.
    pub destination: Mac,
    /// Who sends the frames.
    pub source: Mac,
    /// Source and destination of the packets; they say which IP version is written.
    pub addresses: Addresses,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class.
    pub traffic_class: u8,
}

/// Headers that have been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Built {
    /// Bytes of all headers: where the payload goes.
    pub len: usize,
    /// Bytes of payload that the headers promise.
    pub payload_len: usize,
    /// What the virtio header must ask for: nothing, or the checksum to be completed.
    pub request: Request,
    /// The kind of segmentation that fits these headers.
    kind: Gso,
}

impl Built {
    /// The request with segmentation into `size` bytes of payload, where it can and need be:
    /// the checksum is left open, and the payload is more than one segment.
    #[must_use]
    pub fn cut_into(&self, size: u16) -> Request {
        let due = self.request.csum.is_some() && self.kind != Gso::None && size > 0;
        if due && self.payload_len > usize::from(size) {
            let gso = GsoRequest { kind: self.kind, size, ecn: false };
            return Request { gso: Some(gso), ..self.request };
        }
        self.request
    }
}

impl Route {
    /// Writes the headers of a TCP segment.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn tcp(
        &self,
        room: &mut [u8],
        header: &TcpHeader,
        payload: &Payload<'_>,
    ) -> Result<Built, BuildFault> {
        let rest = self.below(room, PROTOCOL_TCP, header.header_len(), payload)?;
        header.write(rest, &self.addresses, payload)?;
        let kind = if self.addresses.is_v4() { Gso::TcpV4 } else { Gso::TcpV6 };
        Ok(self.built(header.header_len(), payload, TCP_CSUM_OFFSET, kind))
    }

    /// Writes the headers of a UDP datagram.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn udp(
        &self,
        room: &mut [u8],
        header: &UdpHeader,
        payload: &Payload<'_>,
    ) -> Result<Built, BuildFault> {
        let rest = self.below(room, PROTOCOL_UDP, UDP_LEN, payload)?;
        header.write(rest, &self.addresses, payload)?;
        Ok(self.built(UDP_LEN, payload, UDP_CSUM_OFFSET, Gso::UdpL4))
    }

    /// Writes the headers of an ICMP message, or an ICMPv6 message over IPv6.
    ///
    /// # Errors
    /// [`BuildFault`].
    pub fn icmp(
        &self,
        room: &mut [u8],
        header: &IcmpHeader,
        payload: &Payload<'_>,
    ) -> Result<Built, BuildFault> {
        let protocol = if self.addresses.is_v4() { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
        let rest = self.below(room, protocol, ICMP_LEN, payload)?;
        header.write(rest, &self.addresses, payload)?;
        Ok(self.built(ICMP_LEN, payload, ICMP_CSUM_OFFSET, Gso::None))
    }

    /// Bytes of the Ethernet and IP headers.
    const fn below_len(&self) -> usize {
        if self.addresses.is_v4() { ETHERNET_LEN + IPV4_LEN } else { ETHERNET_LEN + IPV6_LEN }
    }

    /// Writes the Ethernet and IP headers; returns the rest of the room.
    fn below<'r>(
        &self,
        room: &'r mut [u8],
        protocol: u8,
        header_len: usize,
        payload: &Payload<'_>,
    ) -> Result<&'r mut [u8], BuildFault> {
        let Self { destination, source, addresses, hop_limit, traffic_class } = *self;
        let ether_type = if addresses.is_v4() { ETHER_TYPE_IPV4 } else { ETHER_TYPE_IPV6 };
        let rest = Ethernet { destination, source, ether_type }.write(room)?;
        // Not fragmented, so the identification means nothing and may be 0 (RFC 6864 §4.1).
        let ip = IpHeader { addresses, protocol, hop_limit, traffic_class, id: 0 };
        ip.write(rest, header_len.saturating_add(payload.len()))
    }

    fn built(&self, header_len: usize, payload: &Payload<'_>, offset: u16, kind: Gso) -> Built {
        let l4 = self.below_len();
        let csum = match payload {
            Payload::Later(_) => u16::try_from(l4).ok().map(|start| CsumAt { start, offset }),
            Payload::Bytes(_) | Payload::Summed { .. } => None,
        };
        let request = Request { csum, ..Request::default() };
        let len = l4.saturating_add(header_len);
        Built { len, payload_len: payload.len(), request, kind }
    }
}

/// The first `N` bytes of the room, and the rest.
#[inline]
fn take<const N: usize>(room: &mut [u8]) -> Result<(&mut [u8; N], &mut [u8]), BuildFault> {
    room.split_first_chunk_mut().ok_or(BuildFault::NoRoom)
}

/// Writes 4 bytes of TCP options and adds them to the sum; returns the rest of the room.
fn option<'r>(
    room: &'r mut [u8],
    bytes: [u8; 4],
    sum: &mut Sum,
) -> Result<&'r mut [u8], BuildFault> {
    let (option, rest) = take(room)?;
    *option = bytes;
    sum.add(&bytes);
    Ok(rest)
}

/// A length as headers say it.
#[inline]
fn length(len: usize) -> Result<u16, BuildFault> {
    u16::try_from(len).map_err(|_| BuildFault::PayloadTooLong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{Network, parse};
    use core::net::{Ipv4Addr, Ipv6Addr};

    fn route(addresses: Addresses) -> Route {
        Route { destination: [2; 6], source: [4; 6], addresses, hop_limit: 64, traffic_class: 0 }
    }

    fn v4() -> Route {
        let (source, destination) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15));
        route(Addresses::V4 { source, destination })
    }

    fn v6() -> Route {
        let (source, destination) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        route(Addresses::V6 { source, destination })
    }

    #[test]
    fn an_arp_reply_reads_back() {
        let message = Arp {
            operation: 2,
            sender_mac: [4; 6],
            sender_ip: Ipv4Addr::new(10, 0, 2, 2),
            target_mac: [2; 6],
            target_ip: Ipv4Addr::new(10, 0, 2, 15),
        };
        let mut room = [0; ARP_FRAME_LEN];
        assert_eq!(arp(&mut room, [2; 6], [4; 6], &message), Ok(ARP_FRAME_LEN));
        let parsed = parse(&room, room.len()).unwrap();
        assert_eq!(parsed.network, Network::Arp(message));
        assert_eq!((parsed.destination, parsed.source), ([2; 6], [4; 6]));
        let fault = arp(&mut room[..ARP_FRAME_LEN - 1], [2; 6], [4; 6], &message);
        assert_eq!(fault, Err(BuildFault::NoRoom));
    }

    #[test]
    fn the_longest_payload_fits_and_one_more_is_refused() {
        let tcp = TcpHeader { mss: Some(1460), window_scale: Some(7), ..TcpHeader::default() };
        let mut room = [0; HEADERS_MAX];
        let mut len_of = |route: Route, payload: usize| {
            route.tcp(&mut room, &tcp, &Payload::Later(payload)).map(|built| built.len)
        };
        assert_eq!(len_of(v4(), 65_535 - 48), Ok(62));
        assert_eq!(len_of(v4(), 65_535 - 47), Err(BuildFault::PayloadTooLong));
        assert_eq!(len_of(v6(), 65_535 - 28), Ok(HEADERS_MAX));
        assert_eq!(len_of(v6(), 65_535 - 27), Err(BuildFault::PayloadTooLong));
        assert_eq!(len_of(v6(), usize::MAX), Err(BuildFault::PayloadTooLong));
    }

    #[test]
    fn only_a_long_segment_with_an_open_checksum_is_cut() {
        let mut room = [0; HEADERS_MAX];
        let mut request = |route: Route, payload: Payload<'_>, size| {
            route.tcp(&mut room, &TcpHeader::default(), &payload).unwrap().cut_into(size)
        };
        let csum = Some(CsumAt { start: 34, offset: 16 });
        let gso = Some(GsoRequest { kind: Gso::TcpV4, size: 1460, ecn: false });
        assert_eq!(request(v4(), Payload::Later(1461), 1460), Request { csum, gso, tunnel: None });
        assert_eq!(
            request(v4(), Payload::Later(1460), 1460),
            Request { csum, ..Request::default() }
        );
        assert_eq!(request(v4(), Payload::Later(1460), 0), Request { csum, ..Request::default() });
        assert_eq!(request(v4(), Payload::Bytes(&[0; 1461]), 1460), Request::default());
        let six = request(v6(), Payload::Later(1461), 1460);
        assert_eq!(six.gso.unwrap().kind, Gso::TcpV6);
        assert_eq!(six.csum, Some(CsumAt { start: 54, offset: 16 }));
    }

    #[test]
    fn a_udp_checksum_is_never_written_as_none() {
        // The two bytes of payload that bring the sum to all ones.
        let mut room = [0; HEADERS_MAX];
        let header = UdpHeader { source: 53, destination: 54 };
        let built = v4().udp(&mut room, &header, &Payload::Bytes(&[0, 0])).unwrap();
        let payload = [room[built.len - 2], room[built.len - 1]];
        v4().udp(&mut room, &header, &Payload::Bytes(&payload)).unwrap();
        assert_eq!(room[built.len - 2..built.len], [0xff, 0xff]);
    }
}
