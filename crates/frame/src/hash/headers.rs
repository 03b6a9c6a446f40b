//! The part of a frame's headers that its flow is told by: addresses and ports, as far as at hand.
//!
//! Leaner than [`crate::parse`], which reads all of a frame and refuses what is wrong with it:
//! here every packet has a flow, and what cannot be read is left out of it.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::parse::{
    Addresses, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_SERVICE_VLAN, ETHER_TYPE_VLAN,
    EXTENSIONS_MAX, IPV4_LEN, IPV6_LEN, PROTOCOL_TCP, PROTOCOL_UDP, TCP_LEN, UDP_LEN,
};

/// Bytes of the two addresses in front of the EtherType.
const MACS_LEN: usize = 12;
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
/// Its length in units of 8 bytes, without the first.
const ROUTING_TYPE_2_UNITS: usize = 2;
const OPTION_PAD_1: u8 = 0;
/// RFC 6275 §6.3.
const OPTION_HOME_ADDRESS: u8 = 201;

/// A packet, as far as its flow goes.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    pub(crate) addresses: Addresses,
    /// There are extension headers: the addresses with those of a mobile node in their places,
    /// if it gives any (NET-HASH-09).
    pub(crate) mobile: Option<Addresses>,
    pub(crate) ports: Ports,
    /// What the packet carries, unless it is a fragment, or that lies beyond the head.
    pub(crate) payload: Option<Payload>,
}

/// Source and destination port as they stand in the packet.
#[derive(Clone, Copy)]
pub(crate) enum Ports {
    Tcp([u8; 4]),
    Udp([u8; 4]),
    None,
}

/// What comes behind the IP header and its extensions.
#[derive(Clone, Copy)]
pub(crate) struct Payload {
    pub(crate) protocol: u8,
    /// Where it starts.
    pub(crate) at: usize,
    /// Where the packet says that it ends.
    end: usize,
}

/// The `N` bytes of the head at `at`, if it has them.
#[inline]
pub(crate) fn array<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}

/// The packet in the Ethernet frame that starts at `at`.
#[inline]
pub(crate) fn ethernet(head: &[u8], at: usize) -> Option<Packet> {
    let mut at = at.saturating_add(MACS_LEN);
    for _ in 0..=TAGS_MAX {
        let ether_type = u16::from_be_bytes(array(head, at)?);
        at = at.saturating_add(2);
        if !matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN) {
            return packet(head, at, ether_type);
        }
        at = at.saturating_add(2);
    }
    None
}

/// The packet of `ether_type` that starts at `at`.
#[inline]
pub(crate) fn packet(head: &[u8], at: usize, ether_type: u16) -> Option<Packet> {
    match ether_type {
        ETHER_TYPE_IPV4 => ipv4(head, at),
        ETHER_TYPE_IPV6 => ipv6(head, at),
        _ => None,
    }
}

#[inline]
fn ipv4(head: &[u8], l3: usize) -> Option<Packet> {
    let header: [u8; IPV4_LEN] = array(head, l3)?;
    let [vi, _, n0, n1, _, _, f0, f1, _, protocol, _, _, ips @ ..] = header;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = ips;
    let header_len = usize::from(vi & 0xf).saturating_mul(4);
    if vi >> 4 != 4 || header_len < IPV4_LEN {
        return None;
    }
    // More fragments, or an offset.
    let is_fragment = u16::from_be_bytes([f0, f1]) & 0x3fff != 0;
    let end = end_of(head, l3, [n0, n1]);
    let at = l3.saturating_add(header_len);
    let payload = (!is_fragment).then_some(Payload { protocol, at, end });
    let source = Ipv4Addr::new(s0, s1, s2, s3);
    let destination = Ipv4Addr::new(d0, d1, d2, d3);
    let addresses = Addresses::V4 { source, destination };
    Some(Packet { addresses, mobile: None, ports: ports(head, payload), payload })
}

#[inline]
fn ipv6(head: &[u8], l3: usize) -> Option<Packet> {
    let header: [u8; IPV6_LEN] = array(head, l3)?;
    let [v, _, _, _, n0, n1, next, _, ips @ ..] = header;
    let ([source, destination], _) = ips.as_chunks::<16>() else { return None };
    if v >> 4 != 6 {
        return None;
    }
    let (source, destination) = (Ipv6Addr::from(*source), Ipv6Addr::from(*destination));
    let at = l3.saturating_add(IPV6_LEN);
    let payload = Payload { protocol: next, at, end: end_of(head, at, [n0, n1]) };
    let mut walk = Walk { source, destination, payload };
    let whole = if is_extension(next) { walk.extensions(head) } else { Some(()) };
    let payload = whole.map(|()| walk.payload);
    Some(Packet {
        addresses: Addresses::V6 { source, destination },
        mobile: is_extension(next)
            .then_some(Addresses::V6 { source: walk.source, destination: walk.destination }),
        ports: ports(head, payload),
        payload,
    })
}

/// Where `len` bytes from `at` end. A length of 0 says nothing: it is filled in when the packet is
/// cut, or stands in an option (RFC 2675).
#[inline]
fn end_of(head: &[u8], at: usize, len: [u8; 2]) -> usize {
    match u16::from_be_bytes(len) {
        0 => head.len(),
        len => at.saturating_add(usize::from(len)),
    }
}

/// The ports, if the packet has a whole transport header and the head has that part of it.
#[inline]
fn ports(head: &[u8], payload: Option<Payload>) -> Ports {
    let Some(Payload { protocol, at, end }) = payload else { return Ports::None };
    let room = end.saturating_sub(at);
    match (protocol, array(head, at)) {
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
struct Walk {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    payload: Payload,
}

impl Walk {
    /// Walks to what is no extension header, at most [`EXTENSIONS_MAX`] on. `None` if there is no
    /// whole packet behind: it is a fragment, or a header goes beyond the head or the packet.
    ///
    /// A mobile node's addresses stand in front of the fragment header (RFC 6275 §6.3), so all
    /// fragments of a packet have them.
    fn extensions(&mut self, head: &[u8]) -> Option<()> {
        for _ in 0..EXTENSIONS_MAX {
            let at = self.payload.at;
            if at > self.payload.end {
                return None;
            }
            let kind = self.payload.protocol;
            if !is_extension(kind) {
                return Some(());
            }
            let [next, len, b2, b3] = array(head, at)?;
            let units = usize::from(len);
            let len = match kind {
                // An "atomic" fragment, without offset or more to come, is whole (RFC 6946).
                FRAGMENT if u16::from_be_bytes([b2, b3]) & 0xfff9 != 0 => return None,
                FRAGMENT => 8,
                AUTHENTICATION => units.saturating_add(2).saturating_mul(4),
                _ => units.saturating_add(1).saturating_mul(8),
            };
            let behind = at.saturating_add(len);
            if kind == ROUTING && b2 == ROUTING_TYPE_2 && units == ROUTING_TYPE_2_UNITS {
                self.destination = array::<16>(head, at.saturating_add(8))?.into();
            }
            if kind == DESTINATION {
                let options = head.get(at.saturating_add(2)..behind.min(head.len()))?;
                self.source = home_address(options).unwrap_or(self.source);
            }
            self.payload.protocol = next;
            self.payload.at = behind;
        }
        None
    }
}

/// The home address among the options of a destination options header (RFC 6275 §6.3).
fn home_address(mut options: &[u8]) -> Option<Ipv6Addr> {
    for _ in 0..OPTIONS_MAX {
        options = match options {
            [OPTION_PAD_1, rest @ ..] => rest,
            [kind, len, rest @ ..] => {
                let (value, rest) = rest.split_at_checked(usize::from(*len))?;
                if *kind == OPTION_HOME_ADDRESS {
                    return value.as_array::<16>().copied().map(Ipv6Addr::from);
                }
                rest
            }
            _ => return None,
        };
    }
    None
}
