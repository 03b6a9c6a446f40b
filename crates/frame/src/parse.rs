//! Reading a frame: from the Ethernet header to the transport header, believing no length in it.
//!
//! ```text
//!   0            l3                  l4            payload          end      frame_len
//!   | Ethernet   | IPv4 or IPv6      | TCP, UDP,   | payload        | padding |
//!   | + 0-2 tags | + ext. headers    | ICMP        |                |         |
//!   |<------------- head: the bytes at hand ---------->|
//! ```
//!
//! Only `head` is read; `frame_len` is how long the frame is in all, which is what lengths are
//! held against. A header that goes beyond `head` but not beyond the frame is
//! [`ParseFault::HeadTooShort`]: come again with more bytes. [`HEAD_MAX`] bytes are enough for any
//! frame that this parser reads.
//!
//! Checksums are not looked at: whether they must hold depends on the virtio header.

mod packet;

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

pub use packet::{
    Addresses, Arp, ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_SERVICE_VLAN,
    ETHER_TYPE_VLAN, ETHERNET_LEN, Fragment, ICMP_LEN, IPV4_LEN, IPV6_LEN, Icmp, Ip, Mac, Network,
    PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, TCP_LEN, Tcp, TcpFlags,
    Transport, UDP_LEN, Udp,
};

/// The most IPv6 extension headers that are walked.
pub const EXTENSIONS_MAX: usize = 8;
/// The most bytes of headers that are read: beyond lies only payload, or a frame refused.
pub const HEAD_MAX: usize = 512;

const VLAN_LEN: usize = 4;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_DESTINATION: u8 = 60;

/// Why a frame could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ParseFault {
    /// A header goes beyond the bytes given, though not beyond the frame: give more bytes.
    HeadTooShort,
    /// A header, or a length in one, goes beyond the frame.
    Truncated,
    /// The version in the IP header is not the one that the EtherType says.
    Version,
    /// A length field is too small for the header that it is in.
    Length,
    /// The headers are more, or longer, than are walked.
    TooManyHeaders,
}

impl fmt::Display for ParseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HeadTooShort => "headers go beyond the bytes given",
            Self::Truncated => "headers go beyond the frame",
            Self::Version => "ip version differs from the ethertype",
            Self::Length => "length field smaller than its header",
            Self::TooManyHeaders => "more or longer headers than are walked",
        })
    }
}

impl core::error::Error for ParseFault {}

/// Reads a frame of `frame_len` bytes of which `head` is the beginning, or all.
///
/// # Errors
/// See [`ParseFault`]. Unknown protocols are not errors: they are `Other`.
pub fn parse(head: &[u8], frame_len: usize) -> Result<Parsed, ParseFault> {
    let head = head.get(..frame_len).unwrap_or(head);
    let bytes = Bytes { head, limit: frame_len };
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = bytes.array(0)?;
    let mut ether_type = u16::from_be_bytes([t0, t1]);
    let mut l3 = ETHERNET_LEN;
    let mut tags = [None; 2];
    for tag in &mut tags {
        if !matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN) {
            break;
        }
        let [c0, c1, t0, t1] = bytes.array(l3)?;
        *tag = Some(u16::from_be_bytes([c0, c1]));
        ether_type = u16::from_be_bytes([t0, t1]);
        l3 = l3.saturating_add(VLAN_LEN);
    }
    let network = match ether_type {
        ETHER_TYPE_IPV4 => Network::Ip(parse_ipv4(&bytes, l3)?),
        ETHER_TYPE_IPV6 => Network::Ip(parse_ipv6(&bytes, l3)?),
        ETHER_TYPE_ARP => parse_arp(&bytes, l3)?,
        _ => Network::Other,
    };
    let destination = [d0, d1, d2, d3, d4, d5];
    Ok(Parsed { destination, source: [s0, s1, s2, s3, s4, s5], tags, ether_type, l3, network })
}

/// Reads the IP packet at `l3` of the same frame, which a tunnel may have put there. Its own first
/// bits say its version; offsets are from the start of the frame, as ever.
///
/// # Errors
/// See [`ParseFault`].
pub fn parse_packet(head: &[u8], frame_len: usize, l3: usize) -> Result<Ip, ParseFault> {
    let head = head.get(..frame_len).unwrap_or(head);
    let bytes = Bytes { head, limit: frame_len };
    let [first] = bytes.array(l3)?;
    match first >> 4 {
        4 => parse_ipv4(&bytes, l3),
        6 => parse_ipv6(&bytes, l3),
        _ => Err(ParseFault::Version),
    }
}

/// The bytes at hand, and where the packet that they are the beginning of ends.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) limit: usize,
}

impl Bytes<'_> {
    /// The `N` bytes at `offset`.
    #[inline]
    pub(crate) fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N], ParseFault> {
        let bytes = self.slice(offset, N)?.first_chunk();
        bytes.copied().ok_or(ParseFault::HeadTooShort)
    }

    /// The `len` bytes at `offset`.
    ///
    /// The answer does not depend on how much more than these bytes is at hand.
    #[inline]
    fn slice(&self, offset: usize, len: usize) -> Result<&[u8], ParseFault> {
        let end = offset.saturating_add(len);
        if end > self.limit {
            return Err(ParseFault::Truncated);
        }
        if end > HEAD_MAX {
            return Err(ParseFault::TooManyHeaders);
        }
        self.head.get(offset..end).ok_or(ParseFault::HeadTooShort)
    }

    /// The same bytes with the end at `offset` plus `len`, which must lie within.
    pub(crate) fn limited(self, offset: usize, len: usize) -> Result<Self, ParseFault> {
        let limit = offset.saturating_add(len);
        if limit > self.limit {
            return Err(ParseFault::Truncated);
        }
        Ok(Self { limit, ..self })
    }
}

fn parse_arp(bytes: &Bytes<'_>, l3: usize) -> Result<Network, ParseFault> {
    // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
    if bytes.array(l3)? != [0, 1, 8, 0, 6, 4] {
        return Ok(Network::Other);
    }
    let message: [u8; 28] = bytes.array(l3)?;
    let [_, _, _, _, _, _, o0, o1, addresses @ ..] = message;
    let [a0, a1, a2, a3, a4, a5, i0, i1, i2, i3, target @ ..] = addresses;
    let [b0, b1, b2, b3, b4, b5, j0, j1, j2, j3] = target;
    Ok(Network::Arp(Arp {
        operation: u16::from_be_bytes([o0, o1]),
        sender_mac: [a0, a1, a2, a3, a4, a5],
        sender_ip: Ipv4Addr::new(i0, i1, i2, i3),
        target_mac: [b0, b1, b2, b3, b4, b5],
        target_ip: Ipv4Addr::new(j0, j1, j2, j3),
    }))
}

fn parse_ipv4(bytes: &Bytes<'_>, l3: usize) -> Result<Ip, ParseFault> {
    let header: [u8; IPV4_LEN] = bytes.array(l3)?;
    let [vi, traffic_class, n0, n1, i0, i1, f0, f1, hop_limit, protocol, _, _, ips @ ..] = header;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = ips;
    if vi >> 4 != 4 {
        return Err(ParseFault::Version);
    }
    let header_len = usize::from(vi & 0xf).saturating_mul(4);
    let total_len = usize::from(u16::from_be_bytes([n0, n1]));
    if header_len < IPV4_LEN || total_len < header_len {
        return Err(ParseFault::Length);
    }
    let packet = bytes.limited(l3, total_len)?;
    let flags = u16::from_be_bytes([f0, f1]);
    let fragment = Fragment {
        id: u32::from(u16::from_be_bytes([i0, i1])),
        offset: (flags & 0x1fff) << 3,
        more: flags & 0x2000 != 0,
    };
    let source = Ipv4Addr::new(s0, s1, s2, s3);
    let destination = Ipv4Addr::new(d0, d1, d2, d3);
    let l4 = l3.saturating_add(header_len);
    let ip = Ip {
        addresses: Addresses::V4 { source, destination },
        protocol,
        hop_limit,
        traffic_class,
        fragment: (fragment.more || fragment.offset != 0).then_some(fragment),
        routed: false,
        l4,
        end: packet.limit,
        transport: Transport::Other,
        payload: l4,
        payload_len: packet.limit.saturating_sub(l4),
    };
    with_transport(ip, &packet)
}

fn parse_ipv6(bytes: &Bytes<'_>, l3: usize) -> Result<Ip, ParseFault> {
    let header: [u8; IPV6_LEN] = bytes.array(l3)?;
    let [v, c, _, _, n0, n1, next, hop_limit, ips @ ..] = header;
    if v >> 4 != 6 {
        return Err(ParseFault::Version);
    }
    let (source, destination) = match ips.as_chunks::<16>() {
        ([source, destination], _) => (Ipv6Addr::from(*source), Ipv6Addr::from(*destination)),
        _ => return Err(ParseFault::Truncated),
    };
    let start = l3.saturating_add(IPV6_LEN);
    let packet = bytes.limited(start, usize::from(u16::from_be_bytes([n0, n1])))?;
    let walk = walk_extensions(&packet, start, next)?;
    let ip = Ip {
        addresses: Addresses::V6 { source, destination },
        protocol: walk.protocol,
        hop_limit,
        traffic_class: v << 4 | c >> 4,
        fragment: walk.fragment,
        routed: walk.routed,
        l4: walk.offset,
        end: packet.limit,
        transport: Transport::Other,
        payload: walk.offset,
        payload_len: packet.limit.saturating_sub(walk.offset),
    };
    with_transport(ip, &packet)
}

/// How far the walk along the extension headers has come.
pub(crate) struct Walk {
    pub(crate) protocol: u8,
    pub(crate) offset: usize,
    pub(crate) fragment: Option<Fragment>,
    routed: bool,
    /// In a fragment, the transport does not follow the fragment header at once.
    pub(crate) buried: bool,
}

/// Walks the extension headers (RFC 8200 §4), at most [`EXTENSIONS_MAX`] of them. The walk ends
/// at a fragment that is not the first: what follows is the middle of something.
pub(crate) fn walk_extensions(
    packet: &Bytes<'_>,
    start: usize,
    next: u8,
) -> Result<Walk, ParseFault> {
    let mut walk =
        Walk { protocol: next, offset: start, fragment: None, routed: false, buried: false };
    for _ in 0..EXTENSIONS_MAX {
        let is_fragment = walk.fragment.is_some();
        let len = match walk.protocol {
            EXTENSION_FRAGMENT => {
                let [next, _, o0, o1, id @ ..] = packet.array::<8>(walk.offset)?;
                let field = u16::from_be_bytes([o0, o1]);
                let (offset, more) = (field & 0xfff8, field & 1 != 0);
                // An "atomic" fragment is a whole packet (RFC 6946).
                if more || offset != 0 {
                    let id = u32::from_be_bytes(id);
                    walk.fragment = Some(Fragment { id, offset, more });
                }
                walk.protocol = next;
                8
            }
            EXTENSION_HOP_BY_HOP | EXTENSION_ROUTING | EXTENSION_DESTINATION => {
                let [next, len, _, left] = packet.array(walk.offset)?;
                walk.routed |= walk.protocol == EXTENSION_ROUTING && left != 0;
                walk.protocol = next;
                usize::from(len).saturating_add(1).saturating_mul(8)
            }
            _ => return Ok(walk),
        };
        walk.buried |= is_fragment;
        walk.offset = walk.offset.saturating_add(len);
        if walk.offset > packet.limit {
            return Err(ParseFault::Truncated);
        }
        if walk.fragment.is_some_and(|fragment| fragment.offset != 0) {
            return Ok(walk);
        }
    }
    Err(ParseFault::TooManyHeaders)
}

/// Reads the transport header at `ip.l4`, and moves the payload behind it.
fn with_transport(ip: Ip, packet: &Bytes<'_>) -> Result<Ip, ParseFault> {
    if ip.fragment.is_some_and(|fragment| fragment.offset != 0) {
        return Ok(Ip { transport: Transport::LaterFragment, ..ip });
    }
    let room = ip.payload_len;
    let (transport, header_len, len) = match (ip.protocol, ip.addresses.is_v4()) {
        (PROTOCOL_TCP, _) => {
            let tcp = parse_tcp(packet, ip.l4)?;
            (Transport::Tcp(tcp), tcp.header_len, room)
        }
        (PROTOCOL_UDP, _) => {
            let (udp, len) = parse_udp(packet, ip.l4)?;
            // The first fragment of a datagram gives the length of the whole.
            if len > room && ip.fragment.is_none() {
                return Err(ParseFault::Truncated);
            }
            (Transport::Udp(udp), UDP_LEN, len.min(room))
        }
        (PROTOCOL_ICMP, true) | (PROTOCOL_ICMPV6, false) => {
            (Transport::Icmp(parse_icmp(packet, ip.l4)?), ICMP_LEN, room)
        }
        _ => (Transport::Other, 0, room),
    };
    let payload_len = len.checked_sub(header_len).ok_or(ParseFault::Length)?;
    Ok(Ip { transport, payload: ip.l4.saturating_add(header_len), payload_len, ..ip })
}

fn parse_udp(packet: &Bytes<'_>, l4: usize) -> Result<(Udp, usize), ParseFault> {
    let [s0, s1, d0, d1, n0, n1, c0, c1] = packet.array(l4)?;
    let udp = Udp {
        source: u16::from_be_bytes([s0, s1]),
        destination: u16::from_be_bytes([d0, d1]),
        checksum: u16::from_be_bytes([c0, c1]),
    };
    Ok((udp, usize::from(u16::from_be_bytes([n0, n1]))))
}

fn parse_icmp(packet: &Bytes<'_>, l4: usize) -> Result<Icmp, ParseFault> {
    let [kind, code, c0, c1, i0, i1, s0, s1] = packet.array(l4)?;
    Ok(Icmp {
        kind,
        code,
        checksum: u16::from_be_bytes([c0, c1]),
        id: u16::from_be_bytes([i0, i1]),
        seq: u16::from_be_bytes([s0, s1]),
    })
}

fn parse_tcp(packet: &Bytes<'_>, l4: usize) -> Result<Tcp, ParseFault> {
    let header: [u8; TCP_LEN] = packet.array(l4)?;
    let [s0, s1, d0, d1, q0, q1, q2, q3, a0, a1, a2, a3, rest @ ..] = header;
    let [offset, flags, w0, w1, c0, c1, _, _] = rest;
    let header_len = usize::from(offset >> 4).saturating_mul(4);
    if header_len < TCP_LEN {
        return Err(ParseFault::Length);
    }
    let options_len = header_len.saturating_sub(TCP_LEN);
    let options = packet.slice(l4.saturating_add(TCP_LEN), options_len)?;
    let (mss, window_scale) = parse_tcp_options(options);
    Ok(Tcp {
        source: u16::from_be_bytes([s0, s1]),
        destination: u16::from_be_bytes([d0, d1]),
        seq: u32::from_be_bytes([q0, q1, q2, q3]),
        ack: u32::from_be_bytes([a0, a1, a2, a3]),
        flags: TcpFlags(flags),
        window: u16::from_be_bytes([w0, w1]),
        checksum: u16::from_be_bytes([c0, c1]),
        header_len,
        mss,
        window_scale,
    })
}

/// The options that are of use here. Each step takes at least one byte of at most 40; an option
/// shorter than its own head or longer than the rest ends the walk, as it does in every stack.
fn parse_tcp_options(mut options: &[u8]) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut window_scale) = (None, None);
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [] | [0, ..] => break,
            [kind, len, ..] => {
                let Some((option, rest)) = options.split_at_checked(usize::from(*len)) else {
                    break;
                };
                match (*kind, option) {
                    (_, [] | [_]) => break,
                    (2, [_, _, m0, m1]) => mss = Some(u16::from_be_bytes([*m0, *m1])),
                    (3, [_, _, shift]) => window_scale = Some((*shift).min(14)),
                    _ => {}
                }
                rest
            }
            [_] => break,
        };
    }
    (mss, window_scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use std::vec::Vec;

    const ETHERNET: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn read(parts: &[&[u8]]) -> Result<Parsed, ParseFault> {
        let frame = [&[&ETHERNET[..]], parts].concat().concat();
        parse(&frame, frame.len())
    }

    fn ipv4(total_len: u8, fragment: [u8; 2], protocol: u8) -> Vec<u8> {
        let [f0, f1] = fragment;
        let ip = [
            8, 0, 0x45, 0, 0, total_len, 0x12, 0x34, f0, f1, 64, protocol, 0, 0, 10, 0, 2, 15, 1,
            1, 1, 1,
        ];
        ip.to_vec()
    }

    fn ipv6(payload_len: u16, next: u8) -> Vec<u8> {
        let [n0, n1] = payload_len.to_be_bytes();
        [&[0x86, 0xdd, 0x60, 0, 0, 0, n0, n1, next, 64][..], &[0xfd; 32]].concat()
    }

    const UDP: [u8; 8] = [0, 53, 0, 54, 0, 8, 0xab, 0xcd];

    #[test]
    fn an_arp_request_is_read() {
        let body =
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2];
        let parsed = read(&[&[8, 6], &body, &[0; 18]]).unwrap();
        let arp = Arp {
            operation: 1,
            sender_mac: [2, 0, 0, 0, 0, 2],
            sender_ip: Ipv4Addr::new(10, 0, 2, 15),
            target_mac: [0; 6],
            target_ip: Ipv4Addr::new(10, 0, 2, 2),
        };
        assert_eq!(parsed.network, Network::Arp(arp));
        assert_eq!((parsed.destination, parsed.source), ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]));
        assert_eq!(read(&[&[8, 6], &body[..27]]), Err(ParseFault::Truncated));
        let other = [0, 6, 8, 0, 6, 4];
        assert_eq!(read(&[&[8, 6], &other, &[0; 22]]).unwrap().network, Network::Other);
    }

    #[test]
    fn unknown_ethertypes_and_a_third_tag_are_other() {
        for ether_type in [[0x00, 0x2e], [0x88, 0xcc], [0x86, 0xde]] {
            assert_eq!(read(&[&ether_type]).unwrap().network, Network::Other);
        }
        let tags = [0x88, 0xa8, 0, 1, 0x81, 0, 0xe0, 2, 0x81, 0, 0, 3, 8, 0];
        let parsed = read(&[&tags]).unwrap();
        assert_eq!(parsed.tags, [Some(1), Some(0xe002)]);
        assert_eq!((parsed.ether_type, parsed.l3), (ETHER_TYPE_VLAN, 22));
        assert_eq!(parsed.network, Network::Other);
        assert_eq!(read(&[&tags[..9]]), Err(ParseFault::Truncated));
    }

    #[test]
    fn ipv4_fragments_are_told_apart() {
        let first = read(&[&ipv4(28, [0x20, 0], 17), &UDP]).unwrap();
        let ip = first.ip().unwrap();
        assert_eq!(ip.fragment, Some(Fragment { id: 0x1234, offset: 0, more: true }));
        let udp = Udp { source: 53, destination: 54, checksum: 0xabcd };
        assert_eq!((ip.transport, ip.payload_len), (Transport::Udp(udp), 0));

        let last = read(&[&ipv4(28, [0x1f, 0xff], 17), &UDP]).unwrap();
        let ip = last.ip().unwrap();
        assert_eq!(ip.fragment, Some(Fragment { id: 0x1234, offset: 0xfff8, more: false }));
        assert_eq!((ip.transport, ip.payload_len), (Transport::LaterFragment, 8));

        let whole = read(&[&ipv4(28, [0x40, 0], 17), &UDP]).unwrap();
        assert_eq!(whole.ip().unwrap().fragment, None);
    }

    #[test]
    fn a_datagram_longer_than_its_packet_is_refused_unless_it_is_a_fragment() {
        let udp = [0, 53, 0, 54, 0, 100, 0, 0];
        assert_eq!(read(&[&ipv4(28, [0, 0], 17), &udp]), Err(ParseFault::Truncated));
        let first = read(&[&ipv4(28, [0x20, 0], 17), &udp]).unwrap();
        assert_eq!(first.ip().unwrap().payload_len, 0);
        let udp = [0, 53, 0, 54, 0, 7, 0, 0];
        assert_eq!(read(&[&ipv4(28, [0, 0], 17), &udp]), Err(ParseFault::Length));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut ip = ipv4(28, [0, 0], 17);
        assert_eq!(read(&[&ip, &UDP[..7]]), Err(ParseFault::Truncated));
        assert_eq!(read(&[&ip[..21]]), Err(ParseFault::Truncated));
        ip[5] = 19;
        assert_eq!(read(&[&ip, &UDP]), Err(ParseFault::Length));
        ip[5] = 27;
        assert_eq!(read(&[&ip, &UDP]), Err(ParseFault::Truncated));
        ip[2] = 0x44;
        assert_eq!(read(&[&ip, &UDP]), Err(ParseFault::Length));
        ip[2] = 0x65;
        assert_eq!(read(&[&ip, &UDP]), Err(ParseFault::Version));
        assert_eq!(read(&[&ipv6(9, 17), &UDP]), Err(ParseFault::Truncated));
        assert_eq!(read(&[&[0x86, 0xdd, 0x45], &[0; 60]]), Err(ParseFault::Version));
        let mut tcp = [0; 20];
        for (words, fault) in [(4, ParseFault::Length), (6, ParseFault::Truncated)] {
            tcp[12] = words << 4;
            assert_eq!(read(&[&ipv4(40, [0, 0], 6), &tcp, &[0; 9]]), Err(fault));
        }
    }

    #[test]
    fn ipv6_extensions_are_walked_to_the_transport() {
        let hop_by_hop = [60, 0, 5, 2, 0, 0, 0, 0];
        let options = [43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let routing = [44, 0, 4, 0, 0, 0, 0, 0];
        let fragment = [17, 0, 0, 0, 0, 0, 0, 9];
        let chain: [&[u8]; 6] = [&ipv6(48, 0), &hop_by_hop, &options, &routing, &fragment, &UDP];
        let ip = *read(&chain).unwrap().ip().unwrap();
        assert_eq!((ip.protocol, ip.l4, ip.payload), (PROTOCOL_UDP, 94, 102));
        assert_eq!((ip.fragment, ip.routed), (None, false));
        assert!(matches!(ip.transport, Transport::Udp(_)));

        let later = [17, 0, 0, 9, 0, 0, 0, 9];
        let chain: [&[u8]; 6] = [&ipv6(48, 0), &hop_by_hop, &options, &routing, &later, &UDP];
        let ip = *read(&chain).unwrap().ip().unwrap();
        assert_eq!(ip.fragment, Some(Fragment { id: 9, offset: 8, more: true }));
        assert_eq!((ip.transport, ip.payload_len), (Transport::LaterFragment, 8));

        let detour = [17, 0, 4, 1, 0, 0, 0, 0];
        assert!(read(&[&ipv6(16, 43), &detour, &UDP]).unwrap().ip().unwrap().routed);
    }

    #[test]
    fn endless_extensions_end() {
        let more = [60, 0, 0, 0, 0, 0, 0, 0].repeat(EXTENSIONS_MAX - 1);
        let last = [17, 0, 0, 0, 0, 0, 0, 0];
        let len = u16::try_from(more.len()).unwrap();
        assert_eq!(
            read(&[&ipv6(len + 24, 60), &more, &last, &last, &UDP]).map(|_| ()),
            Err(ParseFault::TooManyHeaders)
        );
        // A header that claims more than there is.
        let long = [17, 255, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&[&ipv6(16, 60), &long, &UDP]), Err(ParseFault::Truncated));
        assert_eq!(
            read(&[&ipv6(2056, 60), &long, &[0; 2040], &UDP]),
            Err(ParseFault::TooManyHeaders)
        );
    }

    #[test]
    fn malformed_tcp_options_end_the_walk_without_harm() {
        type Found = (Option<u16>, Option<u8>);
        let cases: [(&[u8], Found); 9] = [
            (&[2, 4, 5, 0xb4, 1, 3, 3, 7], (Some(1460), Some(7))),
            (&[1, 1, 2, 4, 5, 0xb4], (Some(1460), None)),
            (&[0, 2, 4, 5, 0xb4], (None, None)),
            (&[3, 3, 200], (None, Some(14))),
            (&[2, 0, 3, 3, 7], (None, None)),
            (&[2, 3, 9, 3, 3, 7], (None, Some(7))),
            (&[2, 5, 5, 0xb4], (None, None)),
            (&[2], (None, None)),
            (&[254; 40], (None, None)),
        ];
        for (options, expected) in cases {
            assert_eq!(parse_tcp_options(options), expected, "{options:?}");
        }
    }

    #[test]
    fn addresses_turn_round() {
        let (source, destination) = (Ipv4Addr::new(1, 2, 3, 4), Ipv4Addr::new(5, 6, 7, 8));
        let addresses = Addresses::V4 { source, destination };
        assert_eq!(addresses.reversed().source(), IpAddr::V4(destination));
        assert_eq!(addresses.reversed().destination(), IpAddr::V4(source));
        assert_eq!(addresses.reversed().reversed(), addresses);
    }
}
