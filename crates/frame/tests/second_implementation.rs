//! Parser and builders held against a second implementation, `etherparse`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may stop"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::SlicedPacket;
use proptest::collection::vec as many;
use proptest::option;
use proptest::prelude::*;
use vionet_frame::build::{
    BuildFault, Built, HEADERS_MAX, IcmpHeader, Payload, Route, TcpHeader, UdpHeader,
};
use vionet_frame::checksum::{Sum, complete};
use vionet_frame::parse::{
    Addresses, HEAD_MAX, Network, ParseFault, Parsed, TcpFlags, Transport, parse,
};

mod other;

use other::{GUEST, HOST, assert_checksums, compare, plans};

proptest! {
    #[test]
    fn both_read_the_same_in_a_good_frame(plan in plans(many(any::<u8>(), 0..200))) {
        let frame = plan.frame();
        let ours = parse(&frame, frame.len()).unwrap();
        let theirs = SlicedPacket::from_ethernet(&frame).unwrap();
        compare(&frame, &ours, &theirs);
        let ip = ours.ip().unwrap();
        prop_assert_eq!(ip.end, frame.len() - plan.padding);
        if let Transport::Tcp(tcp) = ip.transport {
            prop_assert_eq!((tcp.mss, tcp.window_scale), (plan.mss, plan.window_scale));
        }
    }

    #[test]
    fn what_both_can_read_of_a_damaged_frame_they_read_alike(
        plan in plans(many(any::<u8>(), 0..60)),
        damage in many((0_usize..100, any::<u8>()), 1..4),
        cut in 0_usize..200
    ) {
        let mut frame = plan.frame();
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut).max(20));
        if let Ok(ours) = parse(&frame, frame.len()) {
            if let Some(ip) = ours.ip() {
                prop_assert!(ours.l3 < ip.l4 && ip.l4 <= ip.payload);
                prop_assert!(ip.payload + ip.payload_len <= ip.end && ip.end <= frame.len());
            }
            // The other also reads a third tag, MACsec and authentication headers.
            let theirs = SlicedPacket::from_ethernet(&frame).ok();
            let theirs = theirs.filter(|theirs| {
                let tags = ours.tags.iter().flatten().count();
                theirs.link_exts.len() == tags && ours.ip().is_none_or(|ip| ip.protocol != 51)
            });
            if let Some(theirs) = theirs {
                compare(&frame, &ours, &theirs);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in many(any::<u8>(), 0..200), more in 0_usize..100) {
        if let Ok(Parsed { network: Network::Ip(ip), .. }) = parse(&bytes, bytes.len() + more) {
            prop_assert!(ip.payload + ip.payload_len <= bytes.len() + more);
        }
    }

    #[test]
    fn the_beginning_of_a_frame_gives_the_same_or_asks_for_more(
        plan in plans(many(any::<u8>(), 0..100)), cut in 0_usize..300
    ) {
        let frame = plan.frame();
        let whole = parse(&frame, frame.len());
        let head = &frame[..cut.min(frame.len())];
        let part = parse(head, frame.len());
        prop_assert!(part == whole || part == Err(ParseFault::HeadTooShort));
        prop_assert_eq!(parse(&frame[..frame.len().min(HEAD_MAX)], frame.len()), whole);
        // The rest of a buffer, behind the frame, is not part of it.
        prop_assert_ne!(parse(&frame, cut.min(frame.len())), Err(ParseFault::HeadTooShort));
    }
}

fn route(v6: bool) -> Route {
    let addresses = if v6 {
        let source = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        Addresses::V6 { source, destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15) }
    } else {
        let source = Ipv4Addr::new(10, 0, 2, 2);
        Addresses::V4 { source, destination: Ipv4Addr::new(10, 0, 2, 15) }
    };
    Route { destination: GUEST, source: HOST, addresses, hop_limit: 64, traffic_class: 0xb9 }
}

/// The three ways to a checksum must give one frame.
fn frames_built(
    payload: &[u8],
    build: impl Fn(&mut [u8], &Payload<'_>) -> Result<Built, BuildFault>,
) -> [Vec<u8>; 3] {
    let summed = Payload::Summed { len: payload.len(), sum: Sum::of(payload) };
    [Payload::Bytes(payload), summed, Payload::Later(payload.len())].map(|how| {
        let mut room = [0xcc; HEADERS_MAX];
        let built = build(&mut room, &how).unwrap();
        assert!(room[built.len..].iter().all(|byte| *byte == 0xcc));
        let mut frame = [&room[..built.len], payload].concat();
        if let Some(at) = built.request.csum {
            assert!(matches!(how, Payload::Later(_)));
            complete(&mut frame, at).unwrap();
        }
        for len in 0..built.len {
            assert_eq!(build(&mut room[..len], &how), Err(BuildFault::NoRoom));
        }
        frame
    })
}

proptest! {
    #[test]
    fn built_frames_read_back_with_right_checksums(
        v6: bool, transport in 0..3, source: u16, destination: u16, seq: u32, flags: u8,
        mss: Option<u16>, window_scale in option::of(0_u8..14), window: u16,
        payload in many(any::<u8>(), 0..300)
    ) {
        let route = route(v6);
        let ack = !seq;
        let flags = TcpFlags(flags);
        let tcp = TcpHeader { source, destination, seq, ack, flags, window, mss, window_scale };
        let [frame, summed, later] = frames_built(&payload, |room, payload| match transport {
            0 => route.tcp(room, &tcp, payload),
            1 => route.udp(room, &UdpHeader { source, destination }, payload),
            _ => route.icmp(
                room, &IcmpHeader::echo(if v6 { 128 } else { 8 }, source, destination), payload,
            ),
        });
        prop_assert_eq!(&frame, &summed);
        prop_assert_eq!(&frame, &later);
        assert_checksums(&frame);
        let parsed = parse(&frame, frame.len()).unwrap();
        compare(&frame, &parsed, &SlicedPacket::from_ethernet(&frame).unwrap());
        prop_assert_eq!((parsed.source, parsed.destination), (HOST, GUEST));
        let ip = parsed.ip().unwrap();
        prop_assert_eq!(ip.addresses, route.addresses);
        prop_assert_eq!((ip.hop_limit, ip.traffic_class), (64, 0xb9));
        prop_assert_eq!(&frame[ip.payload..], &payload);
        match ip.transport {
            Transport::Tcp(got) => {
                prop_assert_eq!((got.seq, got.ack, got.flags), (seq, ack, flags));
                prop_assert_eq!((got.mss, got.window_scale), (mss, window_scale));
                prop_assert_eq!((got.source, got.destination), (source, destination));
                prop_assert_eq!(got.window, window);
            }
            Transport::Udp(got) => {
                prop_assert_eq!((got.source, got.destination), (source, destination));
            }
            Transport::Icmp(got) => {
                prop_assert_eq!((got.id, got.seq), (source, destination));
            }
            other => panic!("{other:?}"),
        }
    }
}
