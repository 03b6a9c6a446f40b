//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo to our own addresses, and errors to the guest.
//!
//! An error quotes the packet that caused it: as much as fits the smallest MTU, from its IP header
//! on, unchanged, because the guest finds the socket concerned by it.

use std::net::{IpAddr, SocketAddr};

use vionet_frame::build::{IcmpHeader, IpHeader, Payload, UdpHeader};
use vionet_frame::parse::{
    Addresses, ICMP_LEN, IPV4_LEN, IPV6_LEN, Ip, Mac, PROTOCOL_UDP, Parsed, Transport, UDP_LEN,
};

use super::{Asked, DropReason, HOP_LIMIT, Handled, Link, ReplyBuf, answered, is_group};

pub(super) const ECHO_REQUEST_V4: u8 = 8;
pub(super) const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V4: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;
const REDIRECT_V6: u8 = 137;

/// An IPv4 error is at most 576 bytes long (RFC 1812 §4.3.2.3).
const QUOTE_MAX_V4: usize = 576 - IPV4_LEN - ICMP_LEN;
/// An IPv6 error is at most 1280 bytes long (RFC 4443 §2.4 c).
const QUOTE_MAX_V6: usize = 1280 - IPV6_LEN - ICMP_LEN;

/// What the guest is told about a packet that does not go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IcmpError {
    /// The policy refuses the destination.
    Prohibited,
    /// There is no way to the host.
    HostUnreachable,
    /// The host is there, nobody listens.
    PortUnreachable,
    /// The packet is larger than the path takes: this many bytes with its IP header.
    TooBig {
        /// What the path takes.
        mtu: u16,
    },
    /// The packet has passed too many routers.
    TimeExceeded,
}

impl IcmpError {
    const fn header(self, is_v4: bool) -> IcmpHeader {
        let (kind, code) = match (self, is_v4) {
            (Self::Prohibited, true) => (3, 13),
            (Self::HostUnreachable, true) => (3, 1),
            (Self::PortUnreachable, true) => (3, 3),
            (Self::TooBig { .. }, true) => (3, 4),
            (Self::TimeExceeded, true) => (11, 0),
            (Self::Prohibited, false) => (1, 1),
            (Self::HostUnreachable, false) => (1, 3),
            (Self::PortUnreachable, false) => (1, 4),
            (Self::TooBig { .. }, false) => (2, 0),
            (Self::TimeExceeded, false) => (3, 0),
        };
        // RFC 1191 §4 and RFC 4443 §3.2 both put the MTU into the header's last bytes.
        let [m0, m1] = if let Self::TooBig { mtu } = self { mtu.to_be_bytes() } else { [0, 0] };
        IcmpHeader { kind, code, rest: [0, 0, m0, m1] }
    }
}

/// Answers an echo request to one of our addresses with the same payload.
pub(super) fn echo(link: &Link, asked: &Asked<'_>, out: &mut ReplyBuf) -> Handled {
    let Transport::Icmp(request) = &asked.ip.transport else {
        return Handled::Dropped(DropReason::Malformed);
    };
    let from = asked.ip.addresses.source();
    if request.code != 0 || from.is_unspecified() || from.is_multicast() || is_group(asked.mac) {
        return Handled::Dropped(DropReason::Malformed);
    }
    let is_v4 = asked.ip.addresses.is_v4();
    let kind = if is_v4 { ECHO_REPLY_V4 } else { ECHO_REPLY_V6 };
    let header = IcmpHeader::echo(kind, request.id, request.seq);
    let route = link.route(asked.mac, asked.ip.addresses.reversed());
    answered(out.icmp(&route, &header, asked.payload))
}

/// An error about the packet in `parsed`, whose bytes are in `head` as far as at hand.
pub(super) fn error(
    link: &Link,
    head: &[u8],
    parsed: &Parsed,
    error: IcmpError,
    out: &mut ReplyBuf,
) -> Handled {
    let Some(ip) = parsed.ip().filter(|ip| may_be_told(parsed, ip)) else {
        return Handled::Dropped(DropReason::NoErrorAllowed);
    };
    let max = if ip.addresses.is_v4() { QUOTE_MAX_V4 } else { QUOTE_MAX_V6 };
    let end = ip.end.min(head.len()).min(parsed.l3.saturating_add(max));
    let Some(quote) = head.get(parsed.l3..end) else {
        return Handled::Dropped(DropReason::Malformed);
    };
    send(link, parsed.source, ip.addresses, None, error, quote, out)
}

/// An error about a UDP datagram that is gone; its headers are made up for the quote.
pub(super) fn udp_error(
    link: &Link,
    mac: Mac,
    (guest, peer): (SocketAddr, SocketAddr),
    reporter: Option<IpAddr>,
    error: IcmpError,
    out: &mut ReplyBuf,
) -> Handled {
    let Some(addresses) = pair(guest.ip(), peer.ip()) else {
        return Handled::Dropped(DropReason::Malformed);
    };
    let ip = IpHeader {
        addresses,
        protocol: PROTOCOL_UDP,
        hop_limit: HOP_LIMIT,
        traffic_class: 0,
        id: 0,
    };
    let udp = UdpHeader { source: guest.port(), destination: peer.port() };
    let mut quote = [0; IPV6_LEN + UDP_LEN];
    let len = ip.header_len().saturating_add(UDP_LEN);
    let is_built = ip
        .write(&mut quote, UDP_LEN)
        .and_then(|rest| udp.write(rest, &addresses, &Payload::Bytes(&[])))
        .is_ok();
    match quote.get(..len) {
        Some(quote) if is_built => send(link, mac, addresses, reporter, error, quote, out),
        _ => Handled::Dropped(DropReason::Malformed),
    }
}

fn send(
    link: &Link,
    mac: Mac,
    about: Addresses,
    reporter: Option<IpAddr>,
    error: IcmpError,
    quote: &[u8],
    out: &mut ReplyBuf,
) -> Handled {
    // Only the host itself knows its ports; all else is a router's word.
    let router = match about.source() {
        IpAddr::V4(_) => link.ipv4.map(|ours| IpAddr::V4(ours.gateway)),
        IpAddr::V6(_) => link.ipv6.map(|ours| IpAddr::V6(ours.gateway)),
    };
    let speaker = if error == IcmpError::PortUnreachable {
        Some(about.destination())
    } else {
        reporter.or(router)
    };
    match speaker.and_then(|speaker| pair(speaker, about.source())) {
        Some(addresses) => {
            let route = link.route(mac, addresses);
            answered(out.icmp(&route, &error.header(addresses.is_v4()), quote))
        }
        None => Handled::NotForUs,
    }
}

/// RFC 1122 §3.2.2 and RFC 4443 §2.4 e: no errors about errors, nor to or about groups.
fn may_be_told(parsed: &Parsed, ip: &Ip) -> bool {
    let (from, to) = (ip.addresses.source(), ip.addresses.destination());
    let is_group_address = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => addr.is_multicast() || addr.is_broadcast(),
        IpAddr::V6(addr) => addr.is_multicast(),
    };
    let is_error = match (&ip.transport, ip.addresses.is_v4()) {
        (Transport::Icmp(icmp), true) => matches!(icmp.kind, 3..=5 | 11 | 12),
        (Transport::Icmp(icmp), false) => icmp.kind < 128 || icmp.kind == REDIRECT_V6,
        (Transport::LaterFragment, _) => true,
        (Transport::Tcp(_) | Transport::Udp(_) | Transport::Other, _) => false,
    };
    !is_error
        && !from.is_unspecified()
        && !from.is_loopback()
        && !is_group_address(from)
        && !is_group_address(to)
        && !is_group(parsed.destination)
        && !is_group(parsed.source)
}

/// Both as one pair; `None` when their families differ.
const fn pair(source: IpAddr, destination: IpAddr) -> Option<Addresses> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            Some(Addresses::V4 { source, destination })
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            Some(Addresses::V6 { source, destination })
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}
