//! Segments and fragments of every kind held against a second implementation, `etherparse`.
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

use etherparse::{NetSlice, SlicedPacket};
use proptest::collection::vec as many;
use proptest::prelude::*;
use vionet_frame::header::{CsumAt, Gso, GsoRequest, Request, Tunnel};
use vionet_frame::parse::{ParseFault, Tcp, TcpFlags, Transport, parse};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, SegmentFault};

mod other;

use other::{PLAIN, Plan, assert_checksums, compare, cut, plans, request_to_cut};

/// The frame as a driver would post it to be cut, its checksum not yet complete.
fn to_be_cut(plan: &Plan, size: u16, ecn: bool) -> (Vec<u8>, Request) {
    let mut frame = plan.frame();
    let (request, at) = request_to_cut(&frame, size, ecn);
    frame[at..at + 2].fill(0xab);
    (frame, request)
}

proptest! {
    #[test]
    fn segments_are_right_each_and_make_up_the_frame(
        plan in plans(many(any::<u8>(), 0..5000)), udp: bool, size in 1_u16..2000, ecn: bool
    ) {
        let plan = Plan { transport: usize::from(udp), ..plan };
        let size = size.max(u16::try_from(plan.payload.len() / SEGMENTS_MAX + 1).unwrap());
        let (frame, request) = to_be_cut(&plan, size, ecn);
        let original = *parse(&frame, frame.len()).unwrap().ip().unwrap();
        let segments = match cut(&frame, &request) {
            Ok(segments) => segments,
            Err(fault) => {
                prop_assert_eq!(fault, SegmentFault::HeadersTooLong);
                prop_assert!(original.payload > SEGMENT_HEADERS_MAX);
                return Ok(());
            }
        };
        let count = plan.payload.len().div_ceil(usize::from(size)).max(1);
        prop_assert_eq!(segments.len(), count);
        let mut payload = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            assert_checksums(segment);
            let parsed = parse(segment, segment.len()).unwrap();
            compare(segment, &parsed, &SlicedPacket::from_ethernet(segment).unwrap());
            let ip = parsed.ip().unwrap();
            prop_assert_eq!(ip.end, segment.len());
            let is_last = index + 1 == count;
            prop_assert!(is_last || ip.payload_len == usize::from(size));
            let transports = (ip.transport, original.transport);
            if let (Transport::Tcp(tcp), Transport::Tcp(first)) = transports {
                prop_assert_eq!(tcp.seq, first.seq.wrapping_add(payload.len() as u32));
                let mut flags = first.flags;
                if !is_last {
                    flags = flags.difference(TcpFlags::FIN | TcpFlags::PSH);
                }
                if index != 0 {
                    flags = flags.difference(TcpFlags::CWR);
                }
                prop_assert_eq!(tcp.flags, flags);
                let same = |tcp: &Tcp| {
                    (tcp.ack, tcp.window, tcp.mss, tcp.window_scale, tcp.source, tcp.destination)
                };
                prop_assert_eq!(same(&tcp), same(&first));
            }
            if !plan.v6 {
                let id = u16::from_be_bytes([segment[parsed.l3 + 4], segment[parsed.l3 + 5]]);
                prop_assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            }
            payload.extend_from_slice(&segment[ip.payload..]);
        }
        prop_assert_eq!(payload, plan.payload);
    }

    #[test]
    fn fragments_make_up_the_datagram_and_its_checksum_is_right(
        plan in plans(many(any::<u8>(), 0..5000)), size in 8_u16..2000
    ) {
        let size = size.max(u16::try_from(plan.payload.len() / SEGMENTS_MAX + 16).unwrap());
        let plan = Plan { transport: 1, ..plan };
        let (frame, mut request) = to_be_cut(&plan, size, false);
        request.gso = Some(GsoRequest { kind: Gso::Udp, size, ecn: false });
        let original = *parse(&frame, frame.len()).unwrap().ip().unwrap();
        let l3 = parse(&frame, frame.len()).unwrap().l3;
        let fragments = match cut(&frame, &request) {
            Ok(fragments) => fragments,
            Err(fault) => {
                prop_assert_eq!(fault, SegmentFault::Extensions);
                prop_assert!(plan.v6 && original.l4 > l3 + 40);
                return Ok(());
            }
        };
        let (mut datagram, mut ids) = (Vec::new(), Vec::new());
        for (index, fragment) in fragments.iter().enumerate() {
            let parsed = parse(fragment, fragment.len()).unwrap();
            compare(fragment, &parsed, &SlicedPacket::from_ethernet(fragment).unwrap());
            if let Some(NetSlice::Ipv4(ip)) = SlicedPacket::from_ethernet(fragment).unwrap().net {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
            }
            let ip = parsed.ip().unwrap();
            let is_last = index + 1 == fragments.len();
            prop_assert_eq!(ip.end, fragment.len());
            let part = ip.fragment.map(|part| (usize::from(part.offset), part.more));
            prop_assert_eq!(part.unwrap_or((0, false)), (datagram.len(), !is_last));
            let piece = &fragment[ip.l4..];
            prop_assert!(piece.len() <= usize::from(size));
            prop_assert!(is_last || piece.len() == usize::from(size & !7));
            ids.extend(ip.fragment.map(|part| part.id));
            datagram.extend_from_slice(piece);
        }
        ids.dedup();
        prop_assert_eq!(ids.len(), usize::from(fragments.len() > 1));
        let whole = plan.unpadded();
        prop_assert_eq!(&datagram, &whole[original.l4..]);
        prop_assert!(fragments.len() > 1 || fragments[0] == whole);
    }

    #[test]
    fn in_a_tunnel_the_inner_frame_is_cut_as_it_would_be_alone(
        outer in plans(Just(Vec::new())), plan in plans(many(any::<u8>(), 0..5000)),
        udp: bool, size in 36_u16..2000, csum: bool, sum: Option<u16>, over_v6: bool
    ) {
        let outer = Plan { transport: 1, extensions: vec![], padding: 0, ip_options: 0, ..outer };
        let plan = Plan { transport: usize::from(udp), padding: 0, ..plan };
        let (inner, alone) = to_be_cut(&plan, size, false);
        let mut payload = b"tunnel: ".to_vec();
        payload.extend(&inner);
        let mut frame = Plan { payload, ..outer.clone() }.unpadded();
        let outside = *parse(&frame, frame.len()).unwrap().ip().unwrap();
        let sum = sum.unwrap_or(0);
        frame[outside.l4 + 6..outside.l4 + 8].copy_from_slice(&sum.to_be_bytes());
        let base = outside.l4 + 16;
        let l3 = parse(&inner, inner.len()).unwrap().l3;
        let request = Request {
            csum: alone.csum.map(|at| CsumAt { start: at.start + base as u16, ..at }),
            tunnel: Some(Tunnel {
                outer_th_offset: outside.l4 as u16,
                inner_nh_offset: (base + l3) as u16,
                over_v6,
                csum,
            }),
            ..alone
        };
        let segments = match cut(&frame, &request) {
            Ok(segments) => segments,
            Err(fault) => {
                prop_assert_eq!(fault, SegmentFault::HeadersTooLong);
                return Ok(());
            }
        };
        let inside: Vec<&[u8]> = segments.iter().map(|segment| &segment[base..]).collect();
        prop_assert_eq!(inside, cut(&inner, &alone).unwrap());
        for (index, segment) in segments.iter().enumerate() {
            let parsed = parse(segment, segment.len()).unwrap();
            let ip = *parsed.ip().unwrap();
            prop_assert_eq!((ip.l4, ip.end), (outside.l4, segment.len()));
            prop_assert_eq!(ip.payload + ip.payload_len, segment.len());
            prop_assert_eq!(&segment[base - 8..base], b"tunnel: ");
            if !outer.v6 {
                let id = u16::from_be_bytes([segment[parsed.l3 + 4], segment[parsed.l3 + 5]]);
                prop_assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            }
            if csum || sum != 0 {
                assert_checksums(segment);
            } else {
                prop_assert_eq!(&segment[ip.l4 + 6..ip.l4 + 8], &[0, 0]);
            }
        }
    }

    #[test]
    fn cutting_any_bytes_ends_and_stays_within_the_frame(
        plan in plans(many(any::<u8>(), 0..100)), damage in many((0_usize..120, any::<u8>()), 0..3),
        size: u16, kind in 0_usize..5, start: Option<u16>, offset: Option<u16>,
        tunnel: Option<[u16; 2]>, small: bool
    ) {
        let plan = Plan { transport: plan.transport % 2, ..plan };
        let (mut frame, mut request) = to_be_cut(&plan, size, true);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        let (csum, gso) = (request.csum.as_mut().unwrap(), request.gso.as_mut().unwrap());
        csum.start = start.unwrap_or(csum.start);
        csum.offset = offset.unwrap_or(csum.offset);
        gso.kind = [gso.kind, Gso::TcpV4, Gso::TcpV6, Gso::Udp, Gso::None][kind];
        request.tunnel = tunnel.map(|[outer_th_offset, inner_nh_offset]| Tunnel {
            outer_th_offset: if small { 34 } else { outer_th_offset },
            inner_nh_offset: if small { inner_nh_offset % 128 } else { inner_nh_offset },
            over_v6: false,
            csum: small,
        });
        if let Ok(segments) = cut(&frame, &request) {
            prop_assert!((1..=SEGMENTS_MAX).contains(&segments.len()));
            for segment in &segments {
                prop_assert!(parse(segment, segment.len()).is_ok());
            }
        }
    }
}

#[test]
fn frames_that_are_not_what_was_asked_for_are_not_cut() {
    let plan = PLAIN;
    let plan = Plan { payload: vec![7; 3000], ..plan };
    let (frame, request) = to_be_cut(&plan, 1000, false);
    let (csum, gso) = (request.csum.unwrap(), request.gso.unwrap());
    assert_eq!(cut(&frame, &request).unwrap().len(), 3);
    let with = |gso| cut(&frame, &Request { gso: Some(gso), ..request });
    let other = |kind| with(GsoRequest { kind, ..gso }).unwrap_err();
    for kind in [Gso::None, Gso::TcpV6, Gso::Udp, Gso::UdpL4] {
        assert_eq!(other(kind), SegmentFault::OtherKind);
    }
    for csum in [CsumAt { start: 33, ..csum }, CsumAt { offset: 6, ..csum }] {
        let request = Request { csum: Some(csum), ..request };
        assert_eq!(cut(&frame, &request), Err(SegmentFault::ChecksumElsewhere));
    }
    let sized = |size| with(GsoRequest { size, ..gso }).map(|segments| segments.len());
    assert_eq!(sized(0), Err(SegmentFault::TooManySegments));
    assert_eq!(sized(1), Err(SegmentFault::TooManySegments));
    assert_eq!(sized(2), Ok(1500));

    // Larger than the frame: one segment.
    assert_eq!(sized(u16::MAX), Ok(1));

    let mut fragment = frame.clone();
    fragment[20] |= 0x20;
    assert_eq!(cut(&fragment, &request), Err(SegmentFault::NotWhole));
    let unreadable = cut(&frame[..1000], &request);
    assert_eq!(unreadable, Err(SegmentFault::Unreadable(ParseFault::Truncated)));
    let nothing = Request { gso: None, ..request };
    assert_eq!(cut(&frame, &nothing), Err(SegmentFault::OtherKind));
    let tunnel = Tunnel { outer_th_offset: 34, inner_nh_offset: 64, over_v6: false, csum: false };
    let tunnel = Request { tunnel: Some(tunnel), ..request };
    assert_eq!(cut(&frame, &tunnel), Err(SegmentFault::OtherTunnel));
}

#[test]
fn datagrams_that_cannot_become_fragments_are_refused() {
    let plan = Plan { transport: 1, payload: vec![7; 3000], ..PLAIN };
    let cut_to = |plan: &Plan, size| {
        let (frame, mut request) = to_be_cut(plan, size, false);
        request.gso = Some(GsoRequest { kind: Gso::Udp, size, ecn: false });
        cut(&frame, &request).map(|fragments| fragments.len())
    };
    assert_eq!(cut_to(&plan, 1480), Ok(3));
    assert_eq!(cut_to(&plan, 3008), Ok(1));
    assert_eq!(cut_to(&plan, 3007), Ok(2));
    assert_eq!(cut_to(&plan, 7), Err(SegmentFault::TooManySegments));
    assert_eq!(
        cut_to(&Plan { payload: vec![7; 60_000], ..plan.clone() }, 16),
        Err(SegmentFault::TooManySegments)
    );
    let six = Plan { v6: true, extensions: vec![1], ..plan.clone() };
    assert_eq!(cut_to(&six, 1480), Err(SegmentFault::Extensions));
    // The longest packet, in the longest fragment that still has room for its header.
    let long = Plan { v6: true, payload: vec![7; 65_527], ..plan };
    assert_eq!(cut_to(&long, 65_534), Ok(2));
}
