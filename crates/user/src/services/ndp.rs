//! Neighbour discovery (RFC 4861): where our IPv6 addresses are, and that we are the router.
//!
//! ```text
//!   guest                                     we
//!   NS "who has ::2?"            ------>
//!                                <------      NA "::2 is at 52:55:..", router
//!   RS "any router?"             ------>
//!                                <------      RA prefix, MTU, DNS servers and domains
//!   NS from :: "is ::15 free?"   ------>      silence: all but our own addresses are free
//! ```
//!
//! Only messages with hop limit 255 count: they cannot have come from beyond the link.

use std::net::Ipv6Addr;
use std::time::Duration;

use smoltcp::time::Duration as WireDuration;
use smoltcp::wire::{
    EthernetAddress, Icmpv6Packet, NdiscNeighborFlags, NdiscOption, NdiscOptionRepr,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, NdiscRouterFlags,
};
use vionet_frame::build::IcmpHeader;
use vionet_frame::parse::{Addresses, Mac, Transport};

use super::{
    Asked, DropReason, HOP_LIMIT, Handled, Learned, Link, ReplyBuf, answered, learn_v6, names,
};
use crate::addr::solicited_node;
use crate::config::{Ipv6Guest, UserConfig};

pub(super) const ROUTER_SOLICIT: u8 = 133;
pub(super) const NEIGHBOR_ADVERT: u8 = 136;
pub(super) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(super) const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// How often an unasked router advertisement is due (RFC 4861 §6.2.1: at most 1800 s).
pub const ADVERTISE_EVERY: Duration = Duration::from_secs(600);

/// The longest that a router may claim to be one (RFC 4861 §6.2.1).
const ROUTER_LIFETIME_S: u16 = 9000;
/// RFC 4861 §6.2.1's defaults: a month and a week.
const PREFIX_VALID_S: u64 = 2_592_000;
const PREFIX_PREFERRED_S: u64 = 604_800;
/// Neighbour discovery's hop limit, which no router passes on.
const ON_LINK: u8 = 255;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

/// Our router advertisement, written once.
#[derive(Debug)]
pub(super) struct Router {
    header: IcmpHeader,
    body: Box<[u8]>,
    link_local: Ipv6Addr,
}

impl Router {
    pub(super) fn new(config: &UserConfig, net: Ipv6Guest) -> Self {
        let mut flags = NdiscRouterFlags::empty();
        // Addresses are the guest's own making; DHCPv6 has the other configuration.
        flags.set(NdiscRouterFlags::OTHER, config.dhcp);
        let advert = NdiscRepr::RouterAdvert {
            hop_limit: HOP_LIMIT,
            flags,
            router_lifetime: WireDuration::from_secs(ROUTER_LIFETIME_S.into()),
            reachable_time: WireDuration::ZERO,
            retrans_time: WireDuration::ZERO,
            lladdr: Some(EthernetAddress(config.mac).into()),
            mtu: Some(config.mtu.into()),
            prefix_info: Some(NdiscPrefixInformation {
                prefix_len: net.net.prefix_len(),
                flags: NdiscPrefixInfoFlags::ON_LINK | NdiscPrefixInfoFlags::ADDRCONF,
                valid_lifetime: WireDuration::from_secs(PREFIX_VALID_S),
                preferred_lifetime: WireDuration::from_secs(PREFIX_PREFERRED_S),
                prefix: net.net.base(),
            }),
        };
        let mut message = vec![0; advert.buffer_len()];
        advert.emit(&mut Icmpv6Packet::new_unchecked(message.as_mut_slice()));
        if config.dns {
            let mut data = dns_option_head();
            data.extend_from_slice(&net.dns.octets());
            append_option(OPTION_RDNSS, data, &mut message);
        }
        if !config.search.is_empty() {
            let mut data = dns_option_head();
            data.extend(names::encode_all(&config.search));
            append_option(OPTION_DNSSL, data, &mut message);
        }
        let (header, body) = match message.split_first_chunk::<8>() {
            Some(([kind, code, _, _, rest @ ..], body)) => {
                (IcmpHeader { kind: *kind, code: *code, rest: *rest }, body.into())
            }
            None => (IcmpHeader::default(), Box::default()),
        };
        Self { header, body, link_local: net.link_local }
    }

    pub(super) fn advertise(
        &self,
        link: &Link,
        to: Ipv6Addr,
        mac: Mac,
        out: &mut ReplyBuf,
    ) -> Handled {
        send(link, (self.link_local, to), mac, &self.header, &self.body, out)
    }
}

/// Reserved bytes and lifetime, with which both DNS options begin (RFC 8106 §5).
fn dns_option_head() -> Vec<u8> {
    let [l0, l1] = ROUTER_LIFETIME_S.to_be_bytes();
    vec![0, 0, 0, 0, l0, l1]
}

/// Appends an option, padded to a multiple of eight bytes; one too long for its length field is
/// left out.
fn append_option(kind: u8, mut data: Vec<u8>, message: &mut Vec<u8>) {
    let units = data.len().saturating_add(2).div_ceil(8);
    let Ok(length) = u8::try_from(units) else { return };
    let bytes = units.saturating_mul(8);
    data.resize(bytes.saturating_sub(2), 0);
    let mut option = vec![0; bytes];
    NdiscOptionRepr::Unknown { type_: kind, length, data: &data }
        .emit(&mut NdiscOption::new_unchecked(option.as_mut_slice()));
    message.extend(option);
}

pub(super) fn answer(
    link: &Link,
    router: Option<&Router>,
    asked: &Asked<'_>,
    learned: &mut Learned,
    out: &mut ReplyBuf,
) -> Handled {
    let malformed = Handled::Dropped(DropReason::Malformed);
    let Addresses::V6 { source, destination } = asked.ip.addresses else { return malformed };
    if asked.ip.hop_limit != ON_LINK || source.is_multicast() {
        return malformed;
    }
    let Some(message) = read(asked) else { return malformed };
    match message {
        NdiscRepr::NeighborSolicit { target_addr, lladdr } => {
            if target_addr.is_multicast() {
                return malformed;
            }
            let is_probe = source.is_unspecified();
            if is_probe && (lladdr.is_some() || destination != solicited_node(target_addr)) {
                return malformed;
            }
            if link.owns_v6(target_addr) {
                return neighbor_advert(link, asked.mac, source, target_addr, out);
            }
            if is_probe {
                // The guest is about to take this address.
                learn_v6(learned, link, target_addr);
            }
            Handled::Absorbed
        }
        NdiscRepr::RouterSolicit { lladdr } => match router {
            Some(_) if source.is_unspecified() && lladdr.is_some() => malformed,
            Some(router) if source.is_unspecified() => {
                router.advertise(link, ALL_NODES, ALL_NODES_MAC, out)
            }
            Some(router) => router.advertise(link, source, asked.mac, out),
            None => Handled::Absorbed,
        },
        NdiscRepr::NeighborAdvert { .. } => Handled::Absorbed,
        NdiscRepr::RouterAdvert { .. } | NdiscRepr::Redirect { .. } => {
            Handled::Dropped(DropReason::Unsupported)
        }
    }
}

/// Reads the message; `None` if a length in it is wrong or its code is not 0.
fn read<'a>(asked: &Asked<'a>) -> Option<NdiscRepr<'a>> {
    let Transport::Icmp(header) = &asked.ip.transport else { return None };
    let packet = Icmpv6Packet::new_checked(asked.message).ok()?;
    match header.code {
        0 => NdiscRepr::parse(&packet).ok(),
        _ => None,
    }
}

/// Says where `target` is; a probe without source address hears it as everybody (RFC 4861 §7.2.4).
fn neighbor_advert(
    link: &Link,
    mac: Mac,
    asker: Ipv6Addr,
    target: Ipv6Addr,
    out: &mut ReplyBuf,
) -> Handled {
    let (to, mac, solicited) = if asker.is_unspecified() {
        (ALL_NODES, ALL_NODES_MAC, NdiscNeighborFlags::empty())
    } else {
        (asker, mac, NdiscNeighborFlags::SOLICITED)
    };
    let advert = NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE | solicited,
        target_addr: target,
        lladdr: Some(EthernetAddress(link.mac).into()),
    };
    let mut message = [0; 32];
    advert.emit(&mut Icmpv6Packet::new_unchecked(message.as_mut_slice()));
    let [kind, code, _, _, r0, r1, r2, r3, body @ ..] = message;
    let header = IcmpHeader { kind, code, rest: [r0, r1, r2, r3] };
    send(link, (target, to), mac, &header, &body, out)
}

fn send(
    link: &Link,
    (source, destination): (Ipv6Addr, Ipv6Addr),
    mac: Mac,
    header: &IcmpHeader,
    body: &[u8],
    out: &mut ReplyBuf,
) -> Handled {
    let mut route = link.route(mac, Addresses::V6 { source, destination });
    route.hop_limit = ON_LINK;
    answered(out.icmp(&route, header, body))
}
