//! The part of a frame's headers that its flow is told by: addresses and ports, as far as at hand.
//!
//! Leaner than [`crate::parse`], which reads all of a frame and refuses what is wrong with it:
//! here every packet has a flow, and what cannot be read is left out of it.

use crate::parse::{
    ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_SERVICE_VLAN, ETHER_TYPE_VLAN, ETHERNET_LEN,
    EXTENSIONS_MAX, IPV4_LEN, IPV6_LEN, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LEN, UDP_LEN,
};

/// Bytes of a VLAN tag, the EtherType behind it included.
const TAG_LEN: usize = 4;
/// The most VLAN tags that are skipped.
const TAGS_MAX: usize = 2;
/// The most options that are walked in search of a home address. Its alignment, 8n + 6, asks for
/// four bytes of padding in front (RFC 6275 §6.3).
const OPTIONS_MAX: usize = 8;

// Next Header values that are extension headers (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// The routing header of a mobile node's packets (RFC 6275 §6.4).
const ROUTING_TYPE_2: u8 = 2;
/// Its bytes: eight, and the address.
const ROUTING_TYPE_2_LEN: usize = 24;
const OPTION_PAD_1: u8 = 0;
/// RFC 6275 §6.3.
const OPTION_HOME_ADDRESS: u8 = 201;

/// A packet, as far as its flow goes: where in the head it stands.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) addresses: Addresses<'a>,
    /// There are extension headers: the addresses with those of a mobile node in their places,
    /// if it gives any (NET-HASH-09).
    pub(crate) mobile: Option<Addresses<'a>>,
    pub(crate) ports: Ports<'a>,
    /// What the packet carries, unless it is a fragment, or that lies beyond the head.
    pub(crate) payload: Option<Payload<'a>>,
}

/// Source and destination address.
#[derive(Clone, Copy)]
pub(crate) enum Addresses<'a> {
    V4(&'a [u8; 4], &'a [u8; 4]),
    V6(&'a [u8; 16], &'a [u8; 16]),
}

/// Source and destination port.
#[derive(Clone, Copy)]
pub(crate) enum Ports<'a> {
    Tcp(&'a [u8; 4]),
    Udp(&'a [u8; 4]),
    None,
}

/// What comes behind the IP header and its extensions.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    pub(crate) protocol: u8,
    /// From its first byte to the end of the head, which may lie beyond the packet's.
    pub(crate) bytes: &'a [u8],
}

/// The packet in an Ethernet frame.
#[inline]
pub(crate) fn ethernet(frame: &[u8]) -> Option<Packet<'_>> {
    let (&[.., t0, t1], mut rest) = frame.split_first_chunk::<ETHERNET_LEN>()?;
    let mut ether_type = u16::from_be_bytes([t0, t1]);
    for _ in 0..TAGS_MAX {
        if !matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN) {
            break;
        }
        let (&[.., t0, t1], behind) = rest.split_first_chunk::<TAG_LEN>()?;
        ether_type = u16::from_be_bytes([t0, t1]);
        rest = behind;
    }
    packet(rest, ether_type)
}

/// The packet of `ether_type` that `bytes` begin with.
#[inline]
pub(crate) fn packet(bytes: &[u8], ether_type: u16) -> Option<Packet<'_>> {
    match ether_type {
        ETHER_TYPE_IPV4 => ipv4(bytes),
        ETHER_TYPE_IPV6 => ipv6(bytes),
        _ => None,
    }
}

#[inline]
fn ipv4(bytes: &[u8]) -> Option<Packet<'_>> {
    let header: &[u8; IPV4_LEN] = bytes.first_chunk()?;
    let &[vi, _, n0, n1, _, _, f0, f1, _, protocol, ..] = header;
    let (source, destination) = two(header)?;
    let header_len = usize::from(vi & 0xf).saturating_mul(4);
    if vi >> 4 != 4 || header_len < IPV4_LEN {
        return None;
    }
    // More fragments, or an offset.
    let is_fragment = u16::from_be_bytes([f0, f1]) & 0x3fff != 0;
    let payload = bytes.get(header_len..).filter(|_| !is_fragment);
    let payload = payload.map(|bytes| Payload { protocol, bytes });
    let room = told([n0, n1], bytes).saturating_sub(header_len);
    let addresses = Addresses::V4(source, destination);
    Some(Packet { addresses, mobile: None, ports: ports(payload, room), payload })
}

#[inline]
fn ipv6(bytes: &[u8]) -> Option<Packet<'_>> {
    let (header, bytes) = bytes.split_first_chunk::<IPV6_LEN>()?;
    let &[v, _, _, _, n0, n1, protocol, ..] = header;
    let (source, destination) = two(header)?;
    if v >> 4 != 6 {
        return None;
    }
    let addresses = Addresses::V6(source, destination);
    let room = told([n0, n1], bytes);
    let next = Payload { protocol, bytes };
    if !is_extension(protocol) {
        let payload = Some(next);
        return Some(Packet { addresses, mobile: None, ports: ports(payload, room), payload });
    }
    let mut walk = Walk { source, destination, next, room };
    let payload = walk.extensions();
    let mobile = Some(Addresses::V6(walk.source, walk.destination));
    Some(Packet { addresses, mobile, ports: ports(payload, walk.room), payload })
}

/// The two addresses that an IP header ends with.
#[inline]
fn two<const N: usize>(header: &[u8]) -> Option<(&[u8; N], &[u8; N])> {
    let (rest, destination) = header.split_last_chunk()?;
    Some((rest.last_chunk()?, destination))
}

/// The length that a header tells, in bytes. 0 says nothing, and all that is at hand counts: it is
/// filled in when the packet is cut, or stands in an option (RFC 2675).
#[inline]
fn told(len: [u8; 2], bytes: &[u8]) -> usize {
    match u16::from_be_bytes(len) {
        0 => bytes.len(),
        len => usize::from(len),
    }
}

/// The ports, if there is room for a whole transport header, and that part of it is at hand.
#[inline]
fn ports(payload: Option<Payload<'_>>, room: usize) -> Ports<'_> {
    let Some(Payload { protocol, bytes }) = payload else { return Ports::None };
    match (protocol, bytes.first_chunk()) {
        (PROTOCOL_TCP, Some(ports)) if room >= TCP_LEN => Ports::Tcp(ports),
        (PROTOCOL_UDP, Some(ports)) if room >= UDP_LEN => Ports::Udp(ports),
        _ => Ports::None,
    }
}

#[inline]
const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION | MOBILITY)
}

/// How far the walk along IPv6's extension headers has come.
struct Walk<'a> {
    source: &'a [u8; 16],
    destination: &'a [u8; 16],
    next: Payload<'a>,
    /// Bytes from there to the packet's end.
    room: usize,
}

impl<'a> Walk<'a> {
    /// Walks to what is no extension header, at most [`EXTENSIONS_MAX`] on. `None` if there is no
    /// whole packet behind: it is a fragment, or a header goes beyond the head or the packet.
    ///
    /// A mobile node's addresses stand in front of the fragment header (RFC 6275 §6.3), so all
    /// fragments of a packet have them.
    fn extensions(&mut self) -> Option<Payload<'a>> {
        for _ in 0..EXTENSIONS_MAX {
            let Payload { protocol: kind, bytes } = self.next;
            if !is_extension(kind) {
                return Some(self.next);
            }
            let &[protocol, len, b2, b3] = bytes.first_chunk()?;
            let units = usize::from(len);
            let len = match kind {
                // An "atomic" fragment, without offset or more to come, is whole (RFC 6946).
                FRAGMENT if u16::from_be_bytes([b2, b3]) & 0xfff9 != 0 => return None,
                FRAGMENT => 8,
                AUTHENTICATION => units.saturating_add(2).saturating_mul(4),
                _ => units.saturating_add(1).saturating_mul(8),
            };
            let (header, bytes) = bytes.split_at_checked(len)?;
            self.room = self.room.checked_sub(len)?;
            if kind == ROUTING && b2 == ROUTING_TYPE_2 && len == ROUTING_TYPE_2_LEN {
                self.destination = header.last_chunk()?;
            }
            if kind == DESTINATION {
                self.source = home_address(header).unwrap_or(self.source);
            }
            self.next = Payload { protocol, bytes };
        }
        None
    }
}

/// The home address among the options of a destination options header (RFC 6275 §6.3).
fn home_address(header: &[u8]) -> Option<&[u8; 16]> {
    let (_, mut options) = header.split_first_chunk::<2>()?;
    for _ in 0..OPTIONS_MAX {
        options = match options {
            [OPTION_PAD_1, rest @ ..] => rest,
            [kind, len, rest @ ..] => {
                let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                if *kind == OPTION_HOME_ADDRESS {
                    return value.as_array();
                }
                rest
            }
            _ => return None,
        };
    }
    None
}
