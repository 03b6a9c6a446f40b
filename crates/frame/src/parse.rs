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

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};

/// EtherType of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHER_TYPE_ARP: u16 = 0x0806;
/// EtherType of a customer tag (IEEE 802.1Q).
pub const ETHER_TYPE_VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;
/// EtherType of a service tag (IEEE 802.1ad).
pub const ETHER_TYPE_SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP_LEN: usize = 8;

/// The most IPv6 extension headers that are walked.
pub const EXTENSIONS_MAX: usize = 8;
/// The most bytes of headers that are read: beyond lies only payload, or a frame refused.
pub const HEAD_MAX: usize = 512;

const VLAN_LEN: usize = 4;
const EXTENSION_HOP_BY_HOP: u8 = 0;
const EXTENSION_ROUTING: u8 = 43;
const EXTENSION_FRAGMENT: u8 = 44;
const EXTENSION_DESTINATION: u8 = 60;

/// An Ethernet address.
pub type Mac = [u8; 6];

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

/// A frame, read. Offsets are from the start of the frame, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Whom the frame is for.
    pub destination: Mac,
    /// Who sent the frame.
    pub source: Mac,
    /// Tag control information of the VLAN tags, outermost first.
    pub tags: [Option<u16>; 2],
    /// EtherType after the tags.
    pub ether_type: u16,
    /// Where the network header starts.
    pub l3: usize,
    /// What is in the frame.
    pub network: Network,
}

impl Parsed {
    /// The IP packet in the frame, if there is one.
    #[must_use]
    pub const fn ip(&self) -> Option<&Ip> {
        match &self.network {
            Network::Ip(ip) => Some(ip),
            Network::Arp(_) | Network::Other => None,
        }
    }
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// An ARP message for IPv4 over Ethernet.
    Arp(Arp),
    /// An IP packet of either version.
    Ip(Ip),
    /// Something else; see [`Parsed::ether_type`].
    Other,
}

/// An ARP message for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Arp {
    /// 1 for a request, 2 for a reply.
    pub operation: u16,
    /// Ethernet address of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender.
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target; anything in a request.
    pub target_mac: Mac,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

/// Source and destination of a packet, of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Addresses {
    /// Of an IPv4 packet.
    V4 {
        /// Who sent the packet.
        source: Ipv4Addr,
        /// Whom the packet is for.
        destination: Ipv4Addr,
    },
    /// Of an IPv6 packet.
    V6 {
        /// Who sent the packet.
        source: Ipv6Addr,
        /// Whom the packet is for.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// Who sent the packet.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        match *self {
            Self::V4 { source, .. } => IpAddr::V4(source),
            Self::V6 { source, .. } => IpAddr::V6(source),
        }
    }

    /// Whom the packet is for.
    #[must_use]
    pub const fn destination(&self) -> IpAddr {
        match *self {
            Self::V4 { destination, .. } => IpAddr::V4(destination),
            Self::V6 { destination, .. } => IpAddr::V6(destination),
        }
    }

    /// Whether these are IPv4 addresses; IPv6 if not.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        matches!(self, Self::V4 { .. })
    }

    /// The addresses of a packet that goes back.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::V4 { source, destination } => {
                Self::V4 { source: destination, destination: source }
            }
            Self::V6 { source, destination } => {
                Self::V6 { source: destination, destination: source }
            }
        }
    }

    /// The sum of the pseudo header for `len` bytes of `protocol`.
    #[must_use]
    pub fn pseudo_header(&self, protocol: u8, len: u32) -> Sum {
        match *self {
            Self::V4 { source, destination } => {
                pseudo_header_v4(source, destination, protocol, len)
            }
            Self::V6 { source, destination } => {
                pseudo_header_v6(source, destination, protocol, len)
            }
        }
    }
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Fragment {
    /// What the fragments of one packet have in common.
    pub id: u32,
    /// Where this part lies in the packet's payload, in bytes.
    pub offset: u16,
    /// More parts follow.
    pub more: bool,
}

/// An IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source and destination.
    pub addresses: Addresses,
    /// Protocol number of what follows the IP header and its extensions.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// The packet is a fragment; `None` for a whole packet.
    pub fragment: Option<Fragment>,
    /// A routing header sends the packet on to addresses that are not in `addresses`.
    pub routed: bool,
    /// Where what follows the IP header and its extensions starts.
    pub l4: usize,
    /// Where the packet ends; what the frame has beyond is padding.
    pub end: usize,
    /// What follows the IP header.
    pub transport: Transport,
    /// Where the transport's payload starts: `l4` when the transport is not read.
    pub payload: usize,
    /// Bytes of the transport's payload, all within the frame.
    pub payload_len: usize,
}

/// What an IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP datagram.
    Udp(Udp),
    /// An ICMP message in IPv4, or an ICMPv6 message in IPv6.
    Icmp(Icmp),
    /// A fragment other than the first, which has no transport header.
    LaterFragment,
    /// Something else; see [`Ip::protocol`].
    Other,
}

/// The flags of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(1);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(1 << 1);
    /// Reset the connection.
    pub const RST: Self = Self(1 << 2);
    /// Push the data to the reader.
    pub const PSH: Self = Self(1 << 3);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(1 << 4);
    /// The urgent pointer counts.
    pub const URG: Self = Self(1 << 5);
    /// Echo of a congestion mark.
    pub const ECE: Self = Self(1 << 6);
    /// Congestion window reduced.
    pub const CWR: Self = Self(1 << 7);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flags in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags without those of `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl core::ops::BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// A TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Number of the first byte of payload, or of the SYN.
    pub seq: u32,
    /// Number of the next byte that the sender expects.
    pub ack: u32,
    /// The flags.
    pub flags: TcpFlags,
    /// Room at the sender, not yet scaled.
    pub window: u16,
    /// The checksum field as it stands.
    pub checksum: u16,
    /// Bytes of the header with its options, 20 to 60.
    pub header_len: usize,
    /// Option: the largest segment that the sender takes.
    pub mss: Option<u16>,
    /// Option: the sender's windows are shifted by this, at most 14 (RFC 7323 §2.3).
    pub window_scale: Option<u8>,
}

/// A UDP header (RFC 768).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The checksum field as it stands; 0 for none.
    pub checksum: u16,
}

/// An ICMP or ICMPv6 header (RFC 792, RFC 4443).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Icmp {
    /// The message's type.
    pub kind: u8,
    /// The message's code.
    pub code: u8,
    /// The checksum field as it stands.
    pub checksum: u16,
    /// Identifier of an echo; the first half of the rest in other messages.
    pub id: u16,
    /// Sequence number of an echo; the second half of the rest in other messages.
    pub seq: u16,
}

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

/// The bytes at hand, and where the packet that they are the beginning of ends.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    head: &'a [u8],
    limit: usize,
}

impl Bytes<'_> {
    /// The `N` bytes at `offset`.
    #[inline]
    fn array<const N: usize>(&self, offset: usize) -> Result<[u8; N], ParseFault> {
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
    fn limited(self, offset: usize, len: usize) -> Result<Self, ParseFault> {
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
struct Walk {
    protocol: u8,
    offset: usize,
    fragment: Option<Fragment>,
    routed: bool,
}

/// Walks the extension headers (RFC 8200 §4), at most [`EXTENSIONS_MAX`] of them. The walk ends
/// at a fragment that is not the first: what follows is the middle of something.
fn walk_extensions(packet: &Bytes<'_>, start: usize, next: u8) -> Result<Walk, ParseFault> {
    let mut walk = Walk { protocol: next, offset: start, fragment: None, routed: false };
    for _ in 0..EXTENSIONS_MAX {
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

/// The options that are of use here. Each step takes at least one byte of at most 40; a malformed
/// option ends the walk, as it does in every stack.
fn parse_tcp_options(mut options: &[u8]) -> (Option<u16>, Option<u8>) {
    let (mut mss, mut window_scale) = (None, None);
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [] | [0, ..] => break,
            [kind, len, ..] => {
                let len = usize::from(*len).max(2);
                match (*kind, options.get(..len)) {
                    (_, None) => break,
                    (2, Some([_, _, m0, m1])) => mss = Some(u16::from_be_bytes([*m0, *m1])),
                    (3, Some([_, _, shift])) => window_scale = Some((*shift).min(14)),
                    _ => {}
                }
                options.get(len..).unwrap_or(&[])
            }
            [_] => break,
        };
    }
    (mss, window_scale)
}
