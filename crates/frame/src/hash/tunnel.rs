//! Packets in packets: which tunnel the outer headers are of, and the packet inside
//! (VIRTIO 1.4 §5.1.9.4.4).

use vionet_spec::hash::{
    TUNNEL_GENEVE, TUNNEL_GRE_2784, TUNNEL_GRE_2890, TUNNEL_GRE_7676, TUNNEL_GRE_UDP, TUNNEL_IPIP,
    TUNNEL_NVGRE, TUNNEL_VXLAN, TUNNEL_VXLAN_GPE,
};

use super::headers::{self, Addresses, Packet, Payload, Ports};
use crate::parse::{ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, UDP_LEN};

/// IP protocol number of IPv4 in IP.
const PROTOCOL_IPIP: u8 = 4;
/// IP protocol number of GRE.
const PROTOCOL_GRE: u8 = 47;
/// EtherType of an Ethernet frame in a tunnel (RFC 1701: transparent Ethernet bridging).
const ETHER_TYPE_ETHERNET: u16 = 0x6558;

/// UDP port of GRE in UDP. Its neighbour 4755 is of the encrypted kind (RFC 8086 §8.3).
const PORT_GRE: u16 = 4754;
/// UDP port of VXLAN (RFC 7348 §8).
const PORT_VXLAN: u16 = 4789;
/// UDP port of VXLAN-GPE.
const PORT_VXLAN_GPE: u16 = 4790;
/// UDP port of Geneve (RFC 8926 §3.3).
const PORT_GENEVE: u16 = 6081;

/// GRE: a checksum and two reserved bytes follow.
const GRE_CHECKSUM: u16 = 0x8000;
/// GRE: a key follows.
const GRE_KEY: u16 = 0x2000;
/// GRE: a sequence number follows.
const GRE_SEQUENCE: u16 = 0x1000;
/// GRE: routing, strict routing and a reserved bit, each of which a receiver drops (RFC 2784
/// §2.3), and the version, which is 0.
const GRE_UNKNOWN: u16 = 0x4c07;

/// VXLAN: the network identifier is valid.
const VXLAN_I: u8 = 0x08;
/// VXLAN-GPE: the protocol field is valid.
const VXLAN_GPE_P: u8 = 0x04;
/// VXLAN-GPE: the version, which is 0, and the mark of a packet for the tunnel's end itself.
const VXLAN_GPE_UNKNOWN: u8 = 0x31;
/// Bytes of a VXLAN header of either kind.
const VXLAN_LEN: usize = 8;

/// Bytes of a Geneve header without options.
const GENEVE_LEN: usize = 8;
/// Geneve: a packet for the tunnel's end itself.
const GENEVE_CONTROL: u8 = 0x80;

/// A tunnel's headers, recognised.
pub(super) struct Tunnel<'a> {
    /// All the `TUNNEL_` types that they are of.
    pub(super) types: u32,
    /// EtherType of what is inside.
    ether_type: u16,
    /// What is inside; nothing if it lies beyond the head.
    inner: &'a [u8],
}

impl<'a> Tunnel<'a> {
    /// The packet inside.
    pub(super) fn packet(&self) -> Option<Packet<'a>> {
        match self.ether_type {
            ETHER_TYPE_ETHERNET => headers::ethernet(self.inner),
            ether_type => headers::packet(self.inner, ether_type),
        }
    }
}

/// The tunnel that `outer` is a packet of, if it is. A fragment is of none: only the first of a
/// packet would be.
pub(super) fn carried<'a>(outer: &Packet<'a>) -> Option<Tunnel<'a>> {
    let Payload { protocol, bytes } = outer.payload?;
    let is_v4 = matches!(outer.addresses, Addresses::V4(..));
    match (outer.ports, protocol) {
        (Ports::Udp(&[_, _, d0, d1]), _) => {
            let (_, bytes) = bytes.split_at_checked(UDP_LEN)?;
            match u16::from_be_bytes([d0, d1]) {
                PORT_GRE => Some(Tunnel { types: TUNNEL_GRE_UDP, ..gre(bytes, is_v4)? }),
                PORT_VXLAN => vxlan(bytes),
                PORT_VXLAN_GPE => vxlan_gpe(bytes),
                PORT_GENEVE => geneve(bytes),
                _ => None,
            }
        }
        (_, PROTOCOL_GRE) => gre(bytes, is_v4),
        (_, PROTOCOL_IPIP) if is_v4 => {
            Some(Tunnel { types: TUNNEL_IPIP, ether_type: ETHER_TYPE_IPV4, inner: bytes })
        }
        _ => None,
    }
}

/// What comes behind `len` bytes of a tunnel's headers.
fn behind(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(len..).unwrap_or_default()
}

/// GRE has four types, and a packet can be of several: with a key or without, over IPv6 or with
/// IPv6 inside, and with a virtual subnet as its key.
fn gre(bytes: &[u8], over_v4: bool) -> Option<Tunnel<'_>> {
    let &[f0, f1, t0, t1] = bytes.first_chunk()?;
    let (flags, ether_type) = (u16::from_be_bytes([f0, f1]), u16::from_be_bytes([t0, t1]));
    if flags & GRE_UNKNOWN != 0 {
        return None;
    }
    let options = flags & (GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE);
    let words = usize::try_from(options.count_ones()).ok()?.saturating_add(1);
    let is_extended = options & (GRE_KEY | GRE_SEQUENCE) != 0;
    let is_of_v6 = !over_v4 || ether_type == ETHER_TYPE_IPV6;
    // RFC 7637 §3.2: a key, and neither of the others.
    let is_nvgre = options == GRE_KEY && ether_type == ETHER_TYPE_ETHERNET;
    let types = [
        (TUNNEL_GRE_2784, over_v4 && !is_extended),
        (TUNNEL_GRE_2890, is_extended),
        (TUNNEL_GRE_7676, is_of_v6),
        (TUNNEL_NVGRE, is_nvgre),
    ];
    let types = types.iter().filter(|(_, is)| *is).fold(0, |types, (bit, _)| types | bit);
    Some(Tunnel { types, ether_type, inner: behind(bytes, words.saturating_mul(4)) })
}

fn vxlan(bytes: &[u8]) -> Option<Tunnel<'_>> {
    let inner = behind(bytes, VXLAN_LEN);
    let is_valid = bytes.first()? & VXLAN_I != 0;
    is_valid.then_some(Tunnel { types: TUNNEL_VXLAN, ether_type: ETHER_TYPE_ETHERNET, inner })
}

fn vxlan_gpe(bytes: &[u8]) -> Option<Tunnel<'_>> {
    let &[flags, _, _, next] = bytes.first_chunk()?;
    if flags & VXLAN_GPE_UNKNOWN != 0 {
        return None;
    }
    let ether_type = match next {
        _ if flags & VXLAN_GPE_P == 0 => ETHER_TYPE_ETHERNET,
        1 => ETHER_TYPE_IPV4,
        2 => ETHER_TYPE_IPV6,
        3 => ETHER_TYPE_ETHERNET,
        _ => 0,
    };
    Some(Tunnel { types: TUNNEL_VXLAN_GPE, ether_type, inner: behind(bytes, VXLAN_LEN) })
}

fn geneve(bytes: &[u8]) -> Option<Tunnel<'_>> {
    let &[version_len, flags, t0, t1] = bytes.first_chunk()?;
    if version_len >> 6 != 0 || flags & GENEVE_CONTROL != 0 {
        return None;
    }
    let options_len = usize::from(version_len & 0x3f).saturating_mul(4);
    let inner = behind(bytes, GENEVE_LEN.saturating_add(options_len));
    Some(Tunnel { types: TUNNEL_GENEVE, ether_type: u16::from_be_bytes([t0, t1]), inner })
}
