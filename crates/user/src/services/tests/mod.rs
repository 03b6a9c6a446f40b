//! Each service as the guest sees it; frames are built and checked by etherparse.

mod dhcp4;
mod dhcp6;
mod icmp;
mod ndp;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use dhcproto::v6::{self, DhcpOption as Option6, OptionCode};
use dhcproto::{Decodable, Decoder};
use etherparse::{
    Icmpv4Type, Icmpv6Type, LinkHeader, NetHeaders, PacketBuilder, PacketHeaders, TransportHeader,
};
use proptest::prelude::*;
use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr};
use vionet_frame::parse::parse;

use super::*;

const GUEST_MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OUR_MAC: Mac = [0x52, 0x55, 0x0a, 0, 2, 2];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];
const DNS: [u8; 4] = [10, 0, 2, 3];
const WORLD: [u8; 4] = [93, 184, 216, 34];

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn guest_v6() -> [u8; 16] {
    v6("fd76:696f:6e65:7400::15")
}

fn guest_link_local() -> [u8; 16] {
    v6("fe80::5054:ff:fe12:3456")
}

/// A configuration with a name for everything.
fn named() -> UserConfig {
    UserConfig {
        hostname: Some("vm0".into()),
        search: vec!["example.org".into(), "lab".into()],
        mtu: 1500,
        ..UserConfig::default()
    }
}

/// The services with their replies.
struct Net {
    services: Services,
    out: ReplyBuf,
}

impl Net {
    fn new(config: &UserConfig) -> Self {
        Self { services: Services::new(config).unwrap(), out: ReplyBuf::new() }
    }

    fn send(&mut self, frame: &[u8]) -> Handled {
        self.services.answer(frame, &mut self.out)
    }

    /// The one reply to `frame`, checked.
    fn ask(&mut self, frame: &[u8]) -> Vec<u8> {
        assert_eq!(self.send(frame), Handled::Answered);
        self.fetch()
    }

    fn fetch(&mut self) -> Vec<u8> {
        let reply = self.out.first().expect("a reply").to_vec();
        self.out.pop();
        assert!(self.out.is_empty(), "one reply");
        check(&reply);
        reply
    }
}

/// Every length fits and every checksum holds, says etherparse.
fn check(frame: &[u8]) {
    let packet = PacketHeaders::from_ethernet_slice(frame).expect("a well-formed frame");
    let Some(LinkHeader::Ethernet2(ethernet)) = &packet.link else { panic!("no ethernet") };
    assert_eq!(ethernet.source, OUR_MAC);
    let payload = packet.payload.slice();
    match (&packet.net, &packet.transport) {
        (Some(NetHeaders::Arp(_)), None) => {}
        (Some(NetHeaders::Ipv4(ip, _)), Some(transport)) => {
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(usize::from(ip.total_len), frame.len() - 14);
            let (found, right) = match transport {
                TransportHeader::Udp(udp) => {
                    (udp.checksum, udp.calc_checksum_ipv4(ip, payload).unwrap())
                }
                TransportHeader::Icmpv4(icmp) => {
                    (icmp.checksum, icmp.icmp_type.calc_checksum(payload))
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(found, right);
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(transport)) => {
            assert_eq!(usize::from(ip.payload_length), frame.len() - 54);
            let (found, right) = match transport {
                TransportHeader::Udp(udp) => {
                    (udp.checksum, udp.calc_checksum_ipv6(ip, payload).unwrap())
                }
                TransportHeader::Icmpv6(icmp) => {
                    let sum =
                        icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).unwrap();
                    (icmp.checksum, sum)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(found, right);
        }
        other => panic!("{other:?}"),
    }
}

fn built<L>(builder: etherparse::PacketBuilderStep<L>, payload: &[u8], write: Write<L>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(builder, &mut frame, payload);
    frame
}

type Write<L> = fn(etherparse::PacketBuilderStep<L>, &mut Vec<u8>, &[u8]);

fn udp_v4(to_mac: Mac, ips: [[u8; 4]; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC, to_mac)
        .ipv4(ips[0], ips[1], 64)
        .udp(ports[0], ports[1]);
    built(builder, payload, |builder, frame, payload| builder.write(frame, payload).unwrap())
}

fn udp_v6(to_mac: Mac, ips: [[u8; 16]; 2], ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC, to_mac)
        .ipv6(ips[0], ips[1], 64)
        .udp(ports[0], ports[1]);
    built(builder, payload, |builder, frame, payload| builder.write(frame, payload).unwrap())
}

fn ping_v4(to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let builder =
        PacketBuilder::ethernet2(GUEST_MAC, OUR_MAC).ipv4(GUEST, to, 64).icmpv4_echo_request(7, 9);
    built(builder, payload, |builder, frame, payload| builder.write(frame, payload).unwrap())
}

fn ping_v6(to: [u8; 16], payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC, OUR_MAC)
        .ipv6(guest_v6(), to, 64)
        .icmpv6_echo_request(7, 9);
    built(builder, payload, |builder, frame, payload| builder.write(frame, payload).unwrap())
}

/// A neighbour discovery message; `rest` is what follows type and code.
fn ndp_frame(ips: [[u8; 16]; 2], hop_limit: u8, kind: u8, rest: [u8; 4], body: &[u8]) -> Vec<u8> {
    let [_, _, _, _, _, _, _, _, _, _, _, _, m0, m1, m2, m3] = ips[1];
    let to_mac = if ips[1][0] == 0xff { [0x33, 0x33, m0, m1, m2, m3] } else { OUR_MAC };
    let builder = PacketBuilder::ethernet2(GUEST_MAC, to_mac)
        .ipv6(ips[0], ips[1], hop_limit)
        .icmpv6_raw(kind, 0, rest);
    built(builder, body, |builder, frame, payload| builder.write(frame, payload).unwrap())
}

fn solicit(target: [u8; 16], source: [u8; 16], option: &[u8]) -> Vec<u8> {
    let to = solicited(target);
    ndp_frame([source, to], 255, 135, [0; 4], &[&target[..], option].concat())
}

fn solicited(target: [u8; 16]) -> [u8; 16] {
    crate::addr::solicited_node(target.into()).octets()
}

fn arp_request(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [&BROADCAST[..], &GUEST_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    [&head[..], &GUEST_MAC, &sender, &[0; 6], &target].concat()
}

mod arp {
    use super::*;

    #[test]
    fn a_request_for_our_address_gets_this_very_reply() {
        let reply = Net::new(&named()).ask(&arp_request(GUEST, GATEWAY));
        let wanted = [
            &GUEST_MAC[..],
            &OUR_MAC,
            &[8, 6],
            &[0, 1, 8, 0, 6, 4, 0, 2],
            &OUR_MAC,
            &GATEWAY,
            &GUEST_MAC,
            &GUEST,
        ]
        .concat();
        assert_eq!(reply, wanted);
    }

    #[test]
    fn we_answer_for_each_of_our_addresses_and_for_no_other() {
        let mut config = named();
        config.map_host_loopback.v4 = Some(Ipv4Addr::new(10, 0, 2, 100));
        let mut net = Net::new(&config);
        for ours in [GATEWAY, DNS, [10, 0, 2, 100]] {
            assert_eq!(net.ask(&arp_request(GUEST, ours))[28..32], ours);
            assert_eq!(net.ask(&arp_request([0; 4], ours))[28..32], ours, "we defend it");
        }
        for other in [GUEST, [10, 0, 2, 77], WORLD] {
            assert_eq!(net.send(&arp_request([0; 4], other)), Handled::Absorbed);
        }
        let mut reply = arp_request(GUEST, GATEWAY);
        reply[21] = 2;
        assert_eq!(net.send(&reply), Handled::Absorbed);
    }

    #[test]
    fn without_ipv4_there_is_no_arp() {
        let mut net = Net::new(&UserConfig { ipv4: None, ..named() });
        assert_eq!(net.send(&arp_request(GUEST, GATEWAY)), Handled::NotForUs);
    }
}

mod learning {
    use super::*;

    #[test]
    fn the_guest_s_addresses_are_those_it_used_last() {
        let mut net = Net::new(&named());
        assert_eq!(net.services.guest_v4(), Some(GUEST.into()));
        assert_eq!(net.services.guest_v6(), Some(guest_v6().into()));
        assert_eq!(net.services.learned().mac, None);
        net.send(&udp_v4(OUR_MAC, [[10, 0, 2, 40], WORLD], [1, 2], b""));
        assert_eq!(net.services.guest_v4(), Some(Ipv4Addr::new(10, 0, 2, 40)));
        assert_eq!(net.services.learned().mac, Some(GUEST_MAC));
        let own = v6("fd76:696f:6e65:7400::abcd");
        net.send(&udp_v6(OUR_MAC, [own, v6("2001:db8::1")], [1, 2], b""));
        assert_eq!(net.services.guest_v6(), Some(own.into()));
    }

    #[test]
    fn addresses_that_cannot_be_the_guest_s_are_not_learned() {
        let mut net = Net::new(&named());
        for source in [[0; 4], GATEWAY, DNS, [10, 0, 2, 0], [10, 0, 2, 255], WORLD, [127, 0, 0, 1]]
        {
            net.send(&udp_v4(OUR_MAC, [source, WORLD], [1, 2], b""));
        }
        for source in ["::", "fe80::1", "2001:db8::9", "fd76:696f:6e65:7400::2", "::1"] {
            net.send(&udp_v6(OUR_MAC, [v6(source), v6("2001:db8::1")], [1, 2], b""));
        }
        let mut from_us = udp_v4(OUR_MAC, [[10, 0, 2, 40], WORLD], [1, 2], b"");
        for mac in [OUR_MAC, BROADCAST, [0; 6]] {
            from_us[6..12].copy_from_slice(&mac);
            net.send(&from_us);
        }
        let learned = net.services.learned();
        assert_eq!((learned.v4, learned.v6), (None, None));
        assert_eq!(learned.mac, Some(GUEST_MAC));
    }
}

mod routing {
    use super::*;

    #[test]
    fn frames_for_others_and_tagged_frames_are_not_ours() {
        let mut net = Net::new(&named());
        let mut frame = ping_v4(GATEWAY, b"");
        frame[5] ^= 1;
        assert_eq!(net.send(&frame), Handled::NotForUs);
        let ping = ping_v4(GATEWAY, b"");
        let tagged = [&ping[..12], &[0x81, 0, 0, 5], &ping[12..]].concat();
        assert_eq!(net.send(&tagged), Handled::NotForUs);
        assert_eq!(net.send(&ping[..20]), Handled::Dropped(DropReason::Malformed));
        assert!(net.services.is_own(GATEWAY.into()) && !net.services.is_own(WORLD.into()));
        assert!(net.services.is_own("fe80::2".parse().unwrap()));
    }

    #[test]
    fn wants_tells_what_answer_takes() {
        let net = Net::new(&named());
        let wants = |frame: &[u8]| net.services.wants(&parse(frame, frame.len()).unwrap());
        assert!(wants(&ping_v4(GATEWAY, b"")));
        assert!(wants(&arp_request(GUEST, WORLD)));
        assert!(!wants(&ping_v4(WORLD, b"")));
        assert!(!wants(&udp_v4(OUR_MAC, [GUEST, DNS], [1000, 53], b"")));
    }

    #[test]
    fn replies_that_nobody_fetches_are_dropped_and_counted() {
        let mut net = Net::new(&named());
        let frame = arp_request(GUEST, GATEWAY);
        for _ in 0..REPLIES_MAX {
            assert_eq!(net.send(&frame), Handled::Answered);
        }
        assert_eq!(net.send(&frame), Handled::Dropped(DropReason::QueueFull));
        assert_eq!(net.out.dropped(), 1);
    }
}

/// One good frame per service, to be damaged.
fn seeds() -> Vec<Vec<u8>> {
    let dhcp = {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(GUEST_MAC);
        message.resize(236, 0);
        message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 61, 3, 9, 9, 9, 57, 2, 5, 0xdc, 255]);
        udp_v4(BROADCAST, [[0; 4], [255; 4]], [68, 67], &message)
    };
    let solicit6 = [1, 1, 2, 3, 0, 1, 0, 2, 7, 7, 0, 3, 0, 12, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    let servers = [guest_link_local(), v6("ff02::1:2")];
    let option = [1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
    vec![
        arp_request(GUEST, GATEWAY),
        ping_v4(GATEWAY, b"ping"),
        ping_v6(v6("fe80::2"), b"ping"),
        dhcp,
        udp_v6([0x33, 0x33, 0, 1, 0, 2], servers, [546, 547], &solicit6),
        solicit(v6("fe80::2"), guest_link_local(), &option),
        ndp_frame([guest_link_local(), v6("ff02::2")], 255, 133, [0; 4], &option),
        udp_v4(OUR_MAC, [GUEST, WORLD], [1, 2], b"data"),
    ]
}

/// Gives a frame to everything that takes frames; each reply must stand the check.
fn drive(net: &mut Net, frame: &[u8]) {
    let handled = net.send(frame);
    assert_eq!(handled == Handled::Answered, !net.out.is_empty());
    if let Ok(parsed) = parse(frame, frame.len()) {
        net.services.refuse(frame, &parsed, IcmpError::TooBig { mtu: 1280 }, &mut net.out);
    }
    while let Some(reply) = net.out.first() {
        check(reply);
        net.out.pop();
    }
}

proptest! {
    #[test]
    fn no_bytes_stop_the_services(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        drive(&mut Net::new(&named()), &bytes);
    }

    #[test]
    fn no_damaged_frame_stops_the_services_or_gets_a_damaged_reply(
        seed in 0..8_usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut frame = seeds().swap_remove(seed);
        for (at, byte) in damage {
            let at = at.index(frame.len());
            frame[at] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len()));
        }
        frame.extend(tail);
        drive(&mut Net::new(&named()), &frame);
    }

    #[test]
    fn no_payload_behind_good_headers_stops_a_service(
        service in 0..4_usize,
        payload in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let frame = match service {
            0 => udp_v4(BROADCAST, [[0; 4], [255; 4]], [68, 67], &payload),
            1 => {
                let to = [guest_link_local(), v6("ff02::1:2")];
                udp_v6([0x33, 0x33, 0, 1, 0, 2], to, [546, 547], &payload)
            }
            2 => ndp_frame([guest_link_local(), v6("fe80::2")], 255, 135, [0; 4], &payload),
            _ => ndp_frame([guest_link_local(), v6("ff02::2")], 255, 133, [0; 4], &payload),
        };
        drive(&mut Net::new(&named()), &frame);
    }
}
