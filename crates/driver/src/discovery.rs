//! What frames say that smoltcp does not tell: the router's advertisement, and the MTU of a lease.
//!
//! smoltcp's own address configuration believes any prefix that is advertised; here a prefix must
//! be one that a host may use (RFC 4862 §5.5.3).

use std::net::Ipv6Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6Packet, Ipv6Repr, NdiscPrefixInfoFlags,
    NdiscPrefixInformation, NdiscRepr, UdpPacket,
};

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_ROUTERS_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 2]);
/// Neighbour discovery's hop limit, which no router passes on (RFC 4861 §6.1.2).
const ON_LINK: u8 = 255;
const PREFIX_LEN: u8 = 64;
const DHCP_CLIENT: u16 = 68;
const DHCP_MTU: u8 = 26;

/// What a router advertises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advert {
    pub(crate) router: Ipv6Addr,
    pub(crate) prefix: Ipv6Addr,
    pub(crate) mtu: Option<u16>,
}

/// What has been heard so far.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) advert: Option<Advert>,
    pub(crate) lease_mtu: Option<u16>,
}

impl Heard {
    /// Reads a frame, which may be anything.
    pub(crate) fn listen(&mut self, frame: &[u8]) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        match frame.ethertype() {
            EthernetProtocol::Ipv4 => {
                self.lease_mtu = lease_mtu(frame.payload()).or(self.lease_mtu)
            }
            EthernetProtocol::Ipv6 => self.advert = advert(frame.payload()).or(self.advert),
            _ => {}
        }
    }
}

/// The MTU that a DHCP server's answer brings (RFC 2132 §5.1).
fn lease_mtu(packet: &[u8]) -> Option<u16> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    if packet.next_header() != IpProtocol::Udp {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != DHCP_CLIENT {
        return None;
    }
    let answer = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let option = answer.options().find(|option| option.kind == DHCP_MTU)?;
    option.data.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn advert(packet: &[u8]) -> Option<Advert> {
    let packet = Ipv6Packet::new_checked(packet).ok()?;
    let router = packet.src_addr();
    let on_link = packet.hop_limit() == ON_LINK && router.is_unicast_link_local();
    if packet.next_header() != IpProtocol::Icmpv6 || !on_link {
        return None;
    }
    let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
    let every = ChecksumCapabilities::default();
    let Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert { mtu, prefix_info, .. }) =
        Icmpv6Repr::parse(&router, &packet.dst_addr(), &message, &every).ok()?
    else {
        return None;
    };
    let prefix = prefix_info.filter(is_usable)?.prefix;
    let mtu = mtu.map(|mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
    Some(Advert { router, prefix, mtu })
}

fn is_usable(info: &NdiscPrefixInformation) -> bool {
    let prefix = info.prefix;
    let local = prefix.is_multicast() || prefix.is_unicast_link_local() || prefix.is_loopback();
    info.prefix_len == PREFIX_LEN
        && info.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
        && info.valid_lifetime.total_micros() > 0
        && !(local || prefix.is_unspecified())
}

/// The address that a host with this MAC makes itself in a /64 (RFC 4291, appendix A).
pub(crate) fn address_in(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = prefix.octets();
    let [m0, m1, m2, m3, m4, m5] = mac;
    Ipv6Addr::from([p0, p1, p2, p3, p4, p5, p6, p7, m0 ^ 2, m1, m2, 0xff, 0xfe, m3, m4, m5])
}

/// The frame that asks routers to advertise themselves, from a host that has no address yet.
pub(crate) fn router_solicitation(mac: [u8; 6]) -> Vec<u8> {
    let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
    let ip = Ipv6Repr {
        src_addr: Ipv6Addr::UNSPECIFIED,
        dst_addr: ALL_ROUTERS,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: ON_LINK,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(mac),
        dst_addr: ALL_ROUTERS_MAC,
        ethertype: EthernetProtocol::Ipv6,
    };
    let head = ethernet.buffer_len().saturating_add(ip.buffer_len());
    let mut frame = vec![0; head.saturating_add(message.buffer_len())];
    let mut outer = EthernetFrame::new_unchecked(&mut frame);
    ethernet.emit(&mut outer);
    let mut packet = Ipv6Packet::new_unchecked(outer.payload_mut());
    ip.emit(&mut packet);
    let every = ChecksumCapabilities::default();
    let mut inner = Icmpv6Packet::new_unchecked(packet.payload_mut());
    message.emit(&Ipv6Addr::UNSPECIFIED, &ALL_ROUTERS, &mut inner, &every);
    frame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::time::Duration;
    use smoltcp::wire::NdiscRouterFlags;

    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

    fn prefix(text: &str) -> NdiscPrefixInformation {
        NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: Duration::from_secs(100),
            preferred_lifetime: Duration::from_secs(100),
            prefix: text.parse().unwrap(),
        }
    }

    fn advertised(info: NdiscPrefixInformation, source: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
        let message = Icmpv6Repr::Ndisc(NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: NdiscRouterFlags::empty(),
            router_lifetime: Duration::from_secs(100),
            reachable_time: Duration::ZERO,
            retrans_time: Duration::ZERO,
            lladdr: None,
            mtu: Some(9000),
            prefix_info: Some(info),
        });
        let ip = Ipv6Repr {
            src_addr: source,
            dst_addr: ALL_NODES,
            next_header: IpProtocol::Icmpv6,
            payload_len: message.buffer_len(),
            hop_limit,
        };
        let mut frame = vec![0; 14 + 40 + message.buffer_len()];
        frame[12..14].copy_from_slice(&[0x86, 0xdd]);
        let mut packet = Ipv6Packet::new_unchecked(&mut frame[14..]);
        ip.emit(&mut packet);
        let mut inner = Icmpv6Packet::new_unchecked(packet.payload_mut());
        message.emit(&source, &ALL_NODES, &mut inner, &ChecksumCapabilities::default());
        frame
    }

    fn heard(frame: &[u8]) -> Option<Advert> {
        let mut heard = Heard::default();
        heard.listen(frame);
        heard.advert
    }

    #[test]
    fn an_advertised_prefix_makes_an_address() {
        let advert = heard(&advertised(prefix("2001:db8::"), ROUTER, 255)).unwrap();
        assert_eq!((advert.router, advert.mtu), (ROUTER, Some(9000)));
        let address = address_in(advert.prefix, MAC);
        assert_eq!(address, "2001:db8::5054:ff:fe01:203".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn a_prefix_that_no_host_may_use_is_not_believed() {
        for wrong in ["ff02::", "fe80::", "::"] {
            assert_eq!(heard(&advertised(prefix(wrong), ROUTER, 255)), None, "{wrong}");
        }
        let good = prefix("2001:db8::");
        let longer = NdiscPrefixInformation { prefix_len: 80, ..good };
        let over = NdiscPrefixInformation { valid_lifetime: Duration::ZERO, ..good };
        let routed = NdiscPrefixInformation { flags: NdiscPrefixInfoFlags::ON_LINK, ..good };
        for wrong in [longer, over, routed] {
            assert_eq!(heard(&advertised(wrong, ROUTER, 255)), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_advertisement_from_beyond_the_link_or_damaged_is_not_believed() {
        let good = prefix("2001:db8::");
        assert_eq!(heard(&advertised(good, ROUTER, 254)), None);
        assert_eq!(heard(&advertised(good, "2001:db8::1".parse().unwrap(), 255)), None);
        let mut damaged = advertised(good, ROUTER, 255);
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(heard(&damaged), None);
    }

    #[test]
    fn a_solicitation_is_one_that_routers_take() {
        let frame = router_solicitation(MAC);
        let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
        assert_eq!((ethernet.dst_addr(), ethernet.src_addr().0), (ALL_ROUTERS_MAC, MAC));
        let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
        assert_eq!((ip.hop_limit(), ip.src_addr()), (255, Ipv6Addr::UNSPECIFIED));
        let message = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        let read = Icmpv6Repr::parse(
            &ip.src_addr(),
            &ip.dst_addr(),
            &message,
            &ChecksumCapabilities::default(),
        );
        assert_eq!(read, Ok(Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None })));
    }

    proptest! {
        #[test]
        fn any_frame_may_be_heard(
            at in 0..100_usize,
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            cut in 0..130_usize,
        ) {
            let mut frame = advertised(prefix("2001:db8::"), ROUTER, 255);
            for (byte, new) in frame.iter_mut().skip(at).zip(bytes) {
                *byte = new;
            }
            frame.truncate(cut);
            heard(&frame);
        }
    }
}
