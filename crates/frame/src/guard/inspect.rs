//! The look into a frame, header by header, as far as the rules in force need it.

use core::net::Ipv4Addr;

use super::{Guard, Refusal, Rule, Untagged};
use crate::parse::{
    Bytes, ETHER_TYPE_ARP, ETHER_TYPE_IPV4, ETHER_TYPE_IPV6, ETHER_TYPE_SERVICE_VLAN,
    ETHER_TYPE_VLAN, ETHERNET_LEN, ICMP_LEN, IPV4_LEN, IPV6_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6,
    PROTOCOL_UDP, UDP_LEN, walk_extensions,
};
use crate::vlan::VlanId;

const TAG_LEN: usize = 4;
/// The most tags that are looked behind.
const TAGS_MAX: usize = 2;
/// What some stacks take for tags besides the two of the standard.
const OTHER_TAGS: [u16; 3] = [0x9100, 0x9200, 0x9300];
/// Smaller values are not types but lengths: LLC (IEEE 802.3 §3.2.6).
const ETHER_TYPE_MIN: u16 = 0x0600;

const DHCP4_SERVER: u16 = 67;
const DHCP4_CLIENT: u16 = 68;
const DHCP6_SERVER: u16 = 547;

const ICMP_REDIRECT: u8 = 5;
/// RFC 1256.
const ICMP_ROUTER_ADVERT: u8 = 9;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOR_SOLICIT: u8 = 135;
const NEIGHBOR_ADVERT: u8 = 136;
const REDIRECT: u8 = 137;
const MLD2_REPORT: u8 = 143;

const ARP_LEN: usize = 28;
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;

/// Options of neighbour discovery: link-layer address of the source, and of the target.
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
/// The most options that are looked at; the head holds no more.
const OPTIONS_MAX: usize = 16;
const OPTION_LEN: usize = 8;

/// The transport of a packet, as far as it can be seen.
struct Inside<'a> {
    packet: Bytes<'a>,
    protocol: u8,
    l4: usize,
    is_fragment: bool,
}

impl Guard {
    pub(super) fn judge_receive(&self, head: &[u8]) -> Result<(), Refusal> {
        let header = head.first_chunk::<ETHERNET_LEN>().ok_or(Refusal::TooShort)?;
        let [d0, d1, d2, d3, d4, d5, ..] = *header;
        let is_group = d0 & 1 == 1;
        if self.has(Rule::Mac) && !is_group && [d0, d1, d2, d3, d4, d5] != self.mac {
            return Err(Refusal::DestinationMac);
        }
        self.judge_vlan(&Bytes { head, limit: head.len() })
    }

    pub(super) fn judge_transmit(&self, head: &[u8], len: usize) -> Result<(), Refusal> {
        let head = head.get(..len).unwrap_or(head);
        let header = head.first_chunk::<ETHERNET_LEN>().ok_or(Refusal::TooShort)?;
        let [_, _, _, _, _, _, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        if self.has(Rule::Mac) && [s0, s1, s2, s3, s4, s5] != self.mac {
            return Err(Refusal::SourceMac);
        }
        let frame = Bytes { head, limit: len };
        self.judge_vlan(&frame)?;
        if !self.looks_inside() {
            return Ok(());
        }
        let (ether_type, l3) = behind_tags(&frame, u16::from_be_bytes([t0, t1]))?;
        match ether_type {
            ETHER_TYPE_IPV4 => self.judge_ipv4(&frame, l3),
            ETHER_TYPE_IPV6 => self.judge_ipv6(&frame, l3),
            ETHER_TYPE_ARP if self.has(Rule::Arp) => self.judge_arp(&frame, l3),
            ETHER_TYPE_ARP => Ok(()),
            ETHER_TYPE_MIN.. if self.others => Ok(()),
            _ => Err(Refusal::EtherType),
        }
    }

    /// The outer tag decides. A tag that names no VLAN is none (IEEE 802.1Q §6.9).
    ///
    /// Behind a tag is no other, since whoever takes the first one off would see the second:
    /// only a provider's tag is there to have one behind it.
    #[inline]
    fn judge_vlan(&self, frame: &Bytes<'_>) -> Result<(), Refusal> {
        let Some((vlans, untagged)) = &self.vlans else { return Ok(()) };
        let outer = u16::from_be_bytes(frame.array(ETHERNET_LEN.saturating_sub(2))?);
        let mut id = VlanId::NONE;
        if is_tag(outer) {
            let [c0, c1, t0, t1] = frame.array::<TAG_LEN>(ETHERNET_LEN)?;
            id = VlanId::of_tag(u16::from_be_bytes([c0, c1]));
            let inner = u16::from_be_bytes([t0, t1]);
            let may_have_more = outer == ETHER_TYPE_SERVICE_VLAN && id != VlanId::NONE;
            if !may_have_more && (is_tag(inner) || OTHER_TAGS.contains(&inner)) {
                return Err(Refusal::Tags);
            }
        } else if OTHER_TAGS.contains(&outer) {
            return Err(Refusal::Tags);
        }
        let passes = match (id, untagged) {
            (VlanId::NONE, Untagged::Allowed) => true,
            (VlanId::NONE, Untagged::Refused) => false,
            _ => vlans.contains(id),
        };
        if passes { Ok(()) } else { Err(Refusal::Vlan) }
    }

    fn judge_ipv4(&self, frame: &Bytes<'_>, l3: usize) -> Result<(), Refusal> {
        let header: [u8; IPV4_LEN] = frame.array(l3)?;
        let [vi, _, n0, n1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, ..] = header;
        let header_len = usize::from(vi & 0xf).saturating_mul(4);
        let total_len = usize::from(u16::from_be_bytes([n0, n1]));
        if vi >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len {
            return Err(Refusal::Malformed);
        }
        let packet = frame.limited(l3, total_len)?;
        let l4 = l3.saturating_add(header_len);
        let flags = u16::from_be_bytes([f0, f1]);
        let inside = Inside { packet, protocol, l4, is_fragment: flags & 0x3fff != 0 };
        let source = Ipv4Addr::new(s0, s1, s2, s3);
        let is_own = self.owns_v4(source.to_bits());
        let is_asking = source.is_unspecified() && inside.asks_dhcp4();
        if !is_own && !is_asking {
            return Err(Refusal::SourceIp);
        }
        if flags & 0x1fff != 0 {
            // Types and source ports lie in the first 8 bytes, which no later fragment reaches.
            return Ok(());
        }
        match protocol {
            PROTOCOL_UDP if self.has(Rule::DhcpServer) => inside.refuse_port(DHCP4_SERVER),
            PROTOCOL_ICMP if self.has(Rule::Router) => match inside.icmp_kind()? {
                ICMP_REDIRECT => Err(Refusal::Redirect),
                ICMP_ROUTER_ADVERT => Err(Refusal::RouterAdvert),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn judge_ipv6(&self, frame: &Bytes<'_>, l3: usize) -> Result<(), Refusal> {
        let header: [u8; IPV6_LEN] = frame.array(l3)?;
        let [v, _, _, _, n0, n1, next, _, addresses @ ..] = header;
        if v >> 4 != 6 {
            return Err(Refusal::Malformed);
        }
        let source = addresses.first_chunk().map_or(0, |source| u128::from_be_bytes(*source));
        let is_named = source != 0;
        if is_named && !self.owns_v6(source) {
            return Err(Refusal::SourceIp);
        }
        let asks_more = self.has_any(&[Rule::Neighbor, Rule::DhcpServer, Rule::Router]);
        if !asks_more && (is_named || !self.bound) {
            return Ok(());
        }
        let start = l3.saturating_add(IPV6_LEN);
        let packet = frame.limited(start, usize::from(u16::from_be_bytes([n0, n1])))?;
        let walk = walk_extensions(&packet, start, next)?;
        if walk.buried {
            // Overlapped by another fragment, the headers would be other ones (RFC 5722).
            return Err(Refusal::Fragment);
        }
        let is_later = walk.fragment.is_some_and(|fragment| fragment.offset != 0);
        let is_fragment = walk.fragment.is_some();
        let inside = Inside { packet, protocol: walk.protocol, l4: walk.offset, is_fragment };
        if !is_named && self.bound && !inside.has_no_address_yet(is_later)? {
            return Err(Refusal::SourceIp);
        }
        match walk.protocol {
            _ if is_later => Ok(()),
            PROTOCOL_UDP if self.has(Rule::DhcpServer) => inside.refuse_port(DHCP6_SERVER),
            PROTOCOL_ICMPV6 => self.judge_icmpv6(&inside, is_named),
            _ => Ok(()),
        }
    }

    fn judge_icmpv6(&self, inside: &Inside<'_>, is_named: bool) -> Result<(), Refusal> {
        let (router, neighbor) = (self.has(Rule::Router), self.has(Rule::Neighbor));
        if !router && !neighbor {
            return Ok(());
        }
        let kind = inside.icmp_kind()?;
        match kind {
            ROUTER_ADVERT if router => return Err(Refusal::RouterAdvert),
            REDIRECT if router => return Err(Refusal::Redirect),
            ROUTER_SOLICIT..=REDIRECT if inside.is_fragment => return Err(Refusal::Fragment),
            _ if !neighbor => return Ok(()),
            _ => {}
        }
        let (speaks_for_target, options) = match kind {
            // A solicitation without a source claims its target (RFC 4862 §5.4.2).
            NEIGHBOR_SOLICIT => (!is_named, 24),
            NEIGHBOR_ADVERT => (true, 24),
            ROUTER_SOLICIT => (false, 8),
            ROUTER_ADVERT => (false, 16),
            _ => return Ok(()),
        };
        if speaks_for_target {
            let target: [u8; 16] = inside.packet.array(inside.l4.saturating_add(ICMP_LEN))?;
            if !self.owns_v6(u128::from_be_bytes(target)) {
                return Err(Refusal::Neighbor);
            }
        }
        self.judge_options(&inside.packet, inside.l4.saturating_add(options))
    }

    /// The link-layer addresses among the options are the NIC's own (RFC 4861 §4.6).
    fn judge_options(&self, packet: &Bytes<'_>, start: usize) -> Result<(), Refusal> {
        let mut at = start;
        for _ in 0..OPTIONS_MAX {
            if at == packet.limit {
                return Ok(());
            }
            let [kind, units, a, b, c, d, e, f] = packet.array::<OPTION_LEN>(at)?;
            let is_link = matches!(kind, SOURCE_LINK | TARGET_LINK);
            if is_link && (units != 1 || [a, b, c, d, e, f] != self.mac) {
                return Err(Refusal::Neighbor);
            }
            if units == 0 {
                return Err(Refusal::Malformed);
            }
            at = at.saturating_add(usize::from(units).saturating_mul(OPTION_LEN));
        }
        Err(Refusal::Hidden)
    }

    fn judge_arp(&self, frame: &Bytes<'_>, l3: usize) -> Result<(), Refusal> {
        let message: [u8; ARP_LEN] = frame.array(l3)?;
        let [f0, f1, f2, f3, f4, f5, o0, o1, addresses @ ..] = message;
        let [a0, a1, a2, a3, a4, a5, i0, i1, i2, i3, _, _, _, _, _, _, j0, j1, j2, j3] = addresses;
        let sender = u32::from_be_bytes([i0, i1, i2, i3]);
        let target = u32::from_be_bytes([j0, j1, j2, j3]);
        // Hardware type Ethernet, protocol type IPv4, address lengths 6 and 4.
        let is_ethernet = [f0, f1, f2, f3, f4, f5] == [0, 1, 8, 0, 6, 4];
        let speaks_for = match u16::from_be_bytes([o0, o1]) {
            // A probe claims its target (RFC 5227 §2.1.1).
            ARP_REQUEST if sender == 0 => target,
            ARP_REQUEST | ARP_REPLY => sender,
            _ => return Err(Refusal::Arp),
        };
        let is_own = [a0, a1, a2, a3, a4, a5] == self.mac && self.owns_v4(speaks_for);
        if is_ethernet && is_own { Ok(()) } else { Err(Refusal::Arp) }
    }
}

impl Inside<'_> {
    /// Source and destination port; none of a datagram that is not whole.
    fn ports(&self) -> Result<[u16; 2], Refusal> {
        let [s0, s1, d0, d1, ..] = self.packet.array::<UDP_LEN>(self.l4)?;
        Ok([u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])])
    }

    fn refuse_port(&self, server: u16) -> Result<(), Refusal> {
        let [source, _] = self.ports()?;
        if source == server { Err(Refusal::DhcpServer) } else { Ok(()) }
    }

    fn icmp_kind(&self) -> Result<u8, Refusal> {
        let [kind, ..] = self.packet.array::<ICMP_LEN>(self.l4)?;
        Ok(kind)
    }

    /// A client without an address asks for one (RFC 2131 §4.1).
    fn asks_dhcp4(&self) -> bool {
        self.protocol == PROTOCOL_UDP
            && !self.is_fragment
            && self.ports() == Ok([DHCP4_CLIENT, DHCP4_SERVER])
    }

    /// What a station says that has no IPv6 address yet: it looks whether its address is free, for
    /// routers, and joins groups for that (RFC 4862 §5.4.2, RFC 3590).
    fn has_no_address_yet(&self, is_later: bool) -> Result<bool, Refusal> {
        if self.protocol != PROTOCOL_ICMPV6 || is_later {
            return Ok(false);
        }
        let kind = self.icmp_kind()?;
        let is_first = matches!(kind, ROUTER_SOLICIT | NEIGHBOR_SOLICIT);
        Ok(is_first || matches!(kind, MLD_REPORT | MLD_DONE | MLD2_REPORT))
    }
}

/// The EtherType behind all tags, and where the network header starts.
#[inline]
fn behind_tags(frame: &Bytes<'_>, outer: u16) -> Result<(u16, usize), Refusal> {
    let (mut ether_type, mut l3) = (outer, ETHERNET_LEN);
    for _ in 0..TAGS_MAX {
        if !is_tag(ether_type) {
            break;
        }
        let [_, _, t0, t1] = frame.array::<TAG_LEN>(l3)?;
        ether_type = u16::from_be_bytes([t0, t1]);
        l3 = l3.saturating_add(TAG_LEN);
    }
    if is_tag(ether_type) || OTHER_TAGS.contains(&ether_type) {
        return Err(Refusal::Tags);
    }
    Ok((ether_type, l3))
}

const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, ETHER_TYPE_VLAN | ETHER_TYPE_SERVICE_VLAN)
}
