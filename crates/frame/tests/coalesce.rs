//! Joining held against cutting: what is joined comes apart again, and what was cut comes back.
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

use proptest::collection::vec as many;
use proptest::prelude::*;
use vionet_frame::checksum::{Sum, complete};
use vionet_frame::coalesce::{ARRIVALS_MAX, Arrival, coalesce};
use vionet_frame::header::{CsumAt, Offloads, Request};
use vionet_frame::parse::{Addresses, TcpFlags, Transport, parse};

mod other;

use other::{PLAIN, Plan, assert_checksums, cut, plans, request_to_cut};

/// A frame as it was delivered.
#[derive(Clone, PartialEq, Debug)]
struct Delivered {
    bytes: Vec<u8>,
    request: Request,
    places: Vec<usize>,
    validated: bool,
}

fn join(arrivals: &[Arrival<'_>], can: Offloads) -> Vec<Delivered> {
    let mut all = Vec::new();
    coalesce(arrivals, can, |joined| {
        let bytes = joined.pieces().collect::<Vec<_>>().concat();
        assert_eq!(u32::try_from(bytes.len()), Ok(joined.len()));
        assert!(joined.pieces().count() <= ARRIVALS_MAX + 1);
        let places: Vec<usize> = joined.places().collect();
        assert_eq!(places.len(), usize::from(joined.segments()));
        let (request, validated) = (joined.request(), joined.validated());
        if request.gso.is_some() && places.len() > 1 {
            let payload = parse(&bytes, bytes.len()).unwrap().ip().unwrap().payload;
            assert_eq!(usize::from(joined.header_len()), payload);
        }
        all.push(Delivered { bytes, request, places, validated });
    });
    all
}

fn arrivals(frames: &[Vec<u8>]) -> Vec<Arrival<'_>> {
    frames.iter().map(|bytes| Arrival { bytes, ..Arrival::default() }).collect()
}

/// A frame to be cut, as a driver posts it: the pseudo header's sum in the checksum's place.
fn open(plan: &Plan, size: u16) -> (Vec<u8>, Request) {
    let mut frame = plan.unpadded();
    let ecn = plan.transport == 0 && TcpFlags(plan.flags).contains(TcpFlags::CWR);
    let (request, at) = request_to_cut(&frame, size, ecn);
    let ip = *parse(&frame, frame.len()).unwrap().ip().unwrap();
    let pseudo = ip.addresses.pseudo_header(ip.protocol, (ip.end - ip.l4) as u32).partial();
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    (frame, request)
}

fn usual(plan: Plan, udp: bool) -> Plan {
    Plan { transport: usize::from(udp), ip_options: 0, extensions: vec![], padding: 0, ..plan }
}

/// A TCP segment of 1000 bytes, or of so many.
fn tcp(index: u32, len: usize) -> Vec<u8> {
    changed(index, len, |_| {}, |_| {})
}

/// The same with its headers changed before the checksums are taken.
fn changed(
    index: u32,
    len: usize,
    plan: impl Fn(&mut Plan),
    bytes: impl Fn(&mut Vec<u8>),
) -> Vec<u8> {
    let mut it = Plan {
        ports: (1000, 80),
        seq: 0_u32.wrapping_sub(1500).wrapping_add(index * 1000),
        flags: 0x10,
        payload: (0..len).map(|at| (at % 251) as u8).collect(),
        ..PLAIN
    };
    plan(&mut it);
    let mut frame = it.frame();
    let ip = *parse(&frame, frame.len()).unwrap().ip().unwrap();
    if !it.v6 {
        let id = 0xfffe_u16.wrapping_add(index as u16);
        let at = 18 + it.tags.len() * 4;
        frame[at..at + 2].copy_from_slice(&id.to_be_bytes());
    }
    if it.transport == 0 {
        frame[ip.l4 + 8..ip.l4 + 12].copy_from_slice(&[1, 2, 3, 4]);
    }
    bytes(&mut frame);
    right(&mut frame);
    frame
}

/// Takes all checksums of a frame anew.
fn right(frame: &mut [u8]) {
    let ip = *parse(frame, frame.len()).unwrap().ip().unwrap();
    let l3 = parse(frame, frame.len()).unwrap().l3;
    if let Addresses::V4 { .. } = ip.addresses {
        frame[l3 + 10..l3 + 12].fill(0);
        let checksum = Sum::of(&frame[l3..ip.l4]).checksum();
        frame[l3 + 10..l3 + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    let offset = if ip.protocol == 6 { 16 } else { 6 };
    let pseudo = ip.addresses.pseudo_header(ip.protocol, (ip.end - ip.l4) as u32);
    let at = ip.l4 + offset;
    frame[at..at + 2].copy_from_slice(&pseudo.partial().to_be_bytes());
    complete(&mut frame[..ip.end], CsumAt { start: ip.l4 as u16, offset: offset as u16 }).unwrap();
}

/// How many frames a batch comes to.
fn count(frames: &[Vec<u8>]) -> usize {
    join(&arrivals(frames), Offloads::ALL).len()
}

proptest! {
    #[test]
    fn what_was_cut_comes_back_as_it_was(
        plan in plans(Just(vec![])), len in 2_usize..60_000, udp: bool, pieces in 2_u16..=64,
        fin: bool, psh: bool, cwr: bool, validated: bool, is_open: bool
    ) {
        let flags = 0x10 | u8::from(fin) | u8::from(psh) << 3 | u8::from(cwr) << 7;
        let payload = (0..len).map(|at| (at % 251) as u8).collect();
        let plan = Plan { flags, payload, ..usual(plan, udp) };
        let size = plan.payload.len().div_ceil(usize::from(pieces)) as u16;
        let (whole, request) = open(&plan, size);
        let mut frames = cut(&whole, &request).unwrap();
        prop_assert!(frames.len() <= 64 || size == 1);
        prop_assume!(frames.len() > 1);
        let mut arrived = arrivals(&frames);
        let left_open: Vec<Vec<u8>> = frames.iter().map(|frame| {
            // As from this host: the checksum not taken yet.
            let mut frame = frame.clone();
            let ip = *parse(&frame, frame.len()).unwrap().ip().unwrap();
            let at = ip.l4 + usize::from(request.csum.unwrap().offset);
            frame[at..at + 2].fill(0);
            frame
        }).collect();
        if is_open {
            arrived = arrivals(&left_open);
            for one in &mut arrived {
                one.request.csum = request.csum;
            }
        }
        for one in &mut arrived {
            one.validated = validated;
        }
        let joined = join(&arrived, Offloads::ALL);
        prop_assert_eq!(joined.len(), 1);
        prop_assert_eq!(&joined[0].bytes, &whole);
        prop_assert_eq!(joined[0].request, request);
        frames.iter_mut().for_each(|frame| assert_checksums(frame));
    }

    #[test]
    fn what_is_joined_comes_apart_again_flow_by_flow_in_order(
        flows in many((0_u16..3, any::<bool>(), any::<bool>()), 1..10),
        order in many((0_usize..10, 0_usize..7), 1..=ARRIVALS_MAX),
        damage in many((0_usize..64, 0_usize..90, any::<u8>(), any::<bool>()), 0..4),
        without in 0_usize..4
    ) {
        let mut sent = [0_u32; 10];
        let mut frames: Vec<Vec<u8>> = Vec::new();
        for (flow, what) in order {
            let (port, v6, udp) = flows[flow % flows.len()];
            let index = &mut sent[flow % flows.len()];
            let frame = changed(*index, if what == 1 { 300 } else { 1000 }, |plan| {
                plan.ports = (port, flow as u16);
                (plan.v6, plan.transport) = (v6, usize::from(udp));
                plan.flags |= [0, 0, 8, 1, 0x80, 2, 0][what];
                plan.padding = usize::from(what == 6);
            }, |_| {});
            *index += 1;
            frames.push(frame);
        }
        for (frame, at, value, mend) in damage {
            let len = frames.len();
            let frame = &mut frames[frame % len];
            frame[at] = value;
            if mend && parse(frame, frame.len()).is_ok_and(|parsed| parsed.ip().is_some_and(|ip| {
                matches!(ip.transport, Transport::Tcp(_) | Transport::Udp(_))
            })) {
                right(frame);
            }
        }
        let can = [Offloads::ALL, Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6,
            Offloads::CSUM | Offloads::USO, Offloads::NONE][without];
        let joined = join(&arrivals(&frames), can);
        let mut places: Vec<usize> = joined.iter().flat_map(|one| one.places.clone()).collect();
        for one in &joined {
            prop_assert!(one.request.needs().is_subset(can));
            prop_assert!(one.places.is_sorted());
            if one.places.len() == 1 {
                prop_assert_eq!(&one.bytes, &frames[one.places[0]]);
                continue;
            }
            let apart = cut(&one.bytes, &one.request).unwrap();
            prop_assert_eq!(apart.len(), one.places.len());
            for (cut, place) in apart.iter().zip(&one.places) {
                let mut came = frames[*place].clone();
                let l3 = parse(&came, came.len()).unwrap().l3;
                if came[l3] == 0x45 && came[l3 + 6] & 0x40 != 0 {
                    // An identification without a meaning may have been counted on.
                    came[l3 + 4..l3 + 6].copy_from_slice(&cut[l3 + 4..l3 + 6]);
                    right(&mut came);
                }
                prop_assert_eq!(cut, &came);
                assert_checksums(cut);
            }
        }
        // Each frame went once, and those of one flow in their order.
        let key = |place: usize| {
            let parsed = parse(&frames[place], frames[place].len()).ok()?;
            let ip = *parsed.ip()?;
            let link = frames[place].get(..parsed.l3)?.to_vec();
            Some((link, ip.addresses, ip.protocol, frames[place].get(ip.l4..ip.l4 + 4)?.to_vec()))
        };
        for (at, place) in places.iter().enumerate() {
            let earlier = places[at..].iter().filter(|later| *later < place);
            for later in earlier {
                prop_assert!(key(*later).is_none() || key(*later) != key(*place));
            }
        }
        places.sort_unstable();
        prop_assert_eq!(places, (0..frames.len()).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_come_through_as_they_were(
        frames in many(many(any::<u8>(), 0..100), 0..70), start: u16, offset: u16
    ) {
        let csum = Some(CsumAt { start, offset });
        let request = Request { csum, ..Request::default() };
        let arrived: Vec<_> = frames.iter()
            .map(|bytes| Arrival { bytes, request, ..Arrival::default() }).collect();
        let mut joined = join(&arrived, Offloads::ALL);
        joined.sort_by_key(|one| one.places[0]);
        let bytes: Vec<_> = joined.into_iter().map(|one| one.bytes).collect();
        prop_assert_eq!(bytes.as_slice(), &frames[..frames.len().min(ARRIVALS_MAX)]);
    }
}

#[test]
fn segments_in_order_are_joined_and_shorter_ones_end_it() {
    let whole: Vec<_> = (0..5).map(|index| tcp(index, 1000)).collect();
    assert_eq!(count(&whole), 1);
    let mut short = whole.clone();
    short[2] = tcp(2, 999);
    assert_eq!(count(&short), 2);
    short[2] = tcp(2, 1001);
    assert_eq!(count(&short), 3);
}

#[test]
fn what_cutting_does_not_change_must_be_the_same() {
    type Change = fn(&mut Plan);
    let plans: [Change; 7] = [
        |plan| plan.traffic_class = 3,
        |plan| plan.flags = 0x18 | 0x20,
        |plan| plan.flags = 0x90,
        |plan| plan.flags = 0x50,
        |plan| plan.mss = Some(1400),
        |plan| plan.seq += 1,
        |plan| plan.tags = vec![1],
    ];
    let three = |plan: Change, bytes: fn(&mut Vec<u8>)| {
        [tcp(0, 1000), changed(1, 1000, plan, bytes), tcp(2, 1000)]
    };
    for (at, plan) in plans.into_iter().enumerate() {
        assert!(count(&three(plan, |_| {})) > 1, "plan {at}");
    }
    type Touch = fn(&mut Vec<u8>);
    let touches: [Touch; 8] = [
        |frame| frame[0] ^= 1,
        |frame| frame[18] ^= 1,
        |frame| frame[20] &= !0x40,
        |frame| frame[22] -= 1,
        |frame| frame[45] ^= 1,
        |frame| frame[46] |= 1,
        |frame| frame[48] ^= 1,
        |frame| frame[47] ^= 1,
    ];
    for (at, touch) in touches.into_iter().enumerate() {
        assert!(count(&three(|_| {}, touch)) > 1, "touch {at}");
    }
    assert_eq!(count(&three(|_| {}, |_| {})), 1);
}

#[test]
fn push_and_fin_end_a_group_and_are_handed_on() {
    for flags in [0x18, 0x11, 0x19] {
        let last = |index| changed(index, 1000, |plan| plan.flags = flags, |_| {});
        let frames = [tcp(0, 1000), last(1), tcp(2, 1000)];
        let joined = join(&arrivals(&frames), Offloads::ALL);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[0].bytes[47], flags);
        assert_eq!(joined[0].places, [0, 1]);
        // None begins with one.
        assert_eq!(count(&[last(0), tcp(1, 1000)]), 2);
    }
}

#[test]
fn congestion_marks_begin_a_group_only_for_who_takes_them() {
    let first = changed(0, 1000, |plan| plan.flags = 0x90, |_| {});
    let frames = [first, tcp(1, 1000), tcp(2, 1000)];
    let joined = join(&arrivals(&frames), Offloads::ALL);
    assert_eq!(joined.len(), 1);
    assert!(joined[0].request.gso.unwrap().ecn);
    let joined = join(&arrivals(&frames), Offloads::ALL.difference(Offloads::ECN));
    assert_eq!(joined.len(), 2);
}

#[test]
fn wrong_checksums_are_delivered_and_never_joined() {
    for at in [24, 50, 700] {
        let mut frames = [tcp(0, 1000), tcp(1, 1000), tcp(2, 1000)];
        frames[1][at] ^= 0x10;
        let joined = join(&arrivals(&frames), Offloads::ALL);
        assert_eq!(joined.len(), 3);
        assert_eq!(joined[1].bytes, frames[1]);
        assert_eq!([0, 1, 2].map(|at| joined[at].validated), [true, false, true]);
    }
    // Somebody has looked; but a wrong IPv4 header would be made right.
    let mut frames = [tcp(0, 1000), tcp(1, 1000)];
    let trusted = |frames: &[Vec<u8>]| {
        let mut arrived = arrivals(frames);
        arrived.iter_mut().for_each(|one| one.validated = true);
        join(&arrived, Offloads::ALL).len()
    };
    frames[1][50] ^= 0x10;
    assert_eq!(trusted(&frames), 1);
    frames[1][24] ^= 0x10;
    assert_eq!(trusted(&frames), 2);
}

#[test]
fn a_frame_of_the_flow_that_cannot_be_joined_does_not_overtake() {
    let ack = changed(1, 0, |_| {}, |_| {});
    let fragment = changed(1, 1000, |_| {}, |frame| frame[20] = 0x20);
    let mut broken = tcp(1, 1000);
    broken.truncate(40);
    for odd in [ack, fragment, broken] {
        let frames = [tcp(0, 1000), odd, tcp(1, 1000)];
        let joined = join(&arrivals(&frames), Offloads::ALL);
        let order: Vec<_> = joined.iter().flat_map(|one| one.places.clone()).collect();
        assert_eq!((joined.len(), order), (3, vec![0, 1, 2]));
    }
}

#[test]
fn more_flows_than_are_joined_at_once_lose_nothing() {
    let flow = |at: usize, port: u16| changed(at as u32, 1000, |plan| plan.ports.0 = port, |_| {});
    let frames: Vec<_> = (0..4).flat_map(|at| (0..16).map(move |port| flow(at, port))).collect();
    let joined = join(&arrivals(&frames), Offloads::ALL);
    let places: usize = joined.iter().map(|one| one.places.len()).sum();
    assert_eq!(places, 64);
    let eight: Vec<_> = (0..8).flat_map(|at| (0..8).map(move |port| flow(at, port))).collect();
    assert_eq!(count(&eight), 8);
}
