//! Frames cut for an endpoint that takes only whole ones, and joined for a guest that takes more.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use bench::Bench;
use vionet::Next;
use vionet::endpoint::RxHeader;
use vionet::stats::DropReason;
use vionet_frame::header::{CsumAt, Gso, GsoRequest, NetHeader, Offloads, Request};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};
use vionet_spec::feature::Feature;
use vionet_spec::net::{HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO};

/// A TCP frame over IPv4 with so much payload, its checksum open.
fn tcp(payload: usize, size: u16) -> (Vec<u8>, Request) {
    let payload: Vec<u8> = (0..payload).map(|at| (at % 251) as u8).collect();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 80, 1, 1000)
        .ack(7)
        .write(&mut frame, &payload)
        .unwrap();
    let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let len = u32::try_from(frame.len()).unwrap() - 34;
    let pseudo = vionet_frame::checksum::pseudo_header_v4(source, destination, 6, len);
    frame[50..52].copy_from_slice(&pseudo.partial().to_be_bytes());
    let csum = Some(CsumAt { start: 34, offset: 16 });
    (
        frame,
        Request {
            csum,
            gso: Some(GsoRequest { kind: Gso::TcpV4, size, ecn: false }),
            tunnel: None,
        },
    )
}

fn cut(frame: &[u8], request: &Request) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(frame, request).unwrap();
    let mut room = [0; SEGMENT_HEADERS_MAX];
    let mut out = Vec::new();
    while let Some(segment) = segments.next_into(&mut room) {
        segment.finish(&mut room, Offloads::NONE);
        out.push([&room[..segment.header_len], segment.payload].concat());
    }
    out
}

#[test]
fn a_frame_of_many_segments_is_cut_whatever_the_batch() {
    let (frame, request) = tcp(60_000, 500);
    for can in [Offloads::NONE, Offloads::CSUM] {
        let mut bench = Bench::new(&[Feature::CSUM, Feature::HOST_TSO4], can);
        bench.send(&request.to_header(54), &frame, &[5, 60, 3000]);
        bench.send(&NetHeader::PLAIN, &bench::frame(60), &[]);
        let _ = bench.step();
        assert_eq!(bench.used_tx().len(), 2);
        let mut sent = bench.sent();
        assert_eq!(sent.pop(), Some(bench::frame(60)));
        if can == Offloads::CSUM {
            let left: Vec<_> = bench.host.lock().unwrap().sent.iter().map(|one| one.1).collect();
            let open = Request { csum: request.csum, ..Request::default() };
            assert_eq!(left[..120], [open; 120]);
            for segment in &mut sent {
                vionet_frame::checksum::complete(segment, request.csum.unwrap()).unwrap();
            }
        }
        assert_eq!(sent, cut(&frame, &request));
        let stats = bench.stats();
        assert_eq!(stats.tx.frames(), 2, "as the guest counts them");
    }
}

#[test]
fn a_frame_whose_header_lies_is_dropped_and_the_next_one_sent() {
    let (frame, request) = tcp(3000, 500);
    let good = request.to_header(54);
    let lies = [
        NetHeader { csum_start: 33, ..good },
        NetHeader { csum_offset: 6, ..good },
        NetHeader { csum_start: 3052, ..good },
        NetHeader { gso_size: 1, ..good },
        NetHeader { gso_size: 0, ..good },
        NetHeader { gso_type: 4, ..good },
        NetHeader { gso_type: 5, ..good },
        NetHeader { gso_type: 0x21, ..good },
    ];
    for header in lies {
        let features = [Feature::CSUM, Feature::HOST_TSO4, Feature::HOST_TSO6];
        let mut bench = Bench::new(&features, Offloads::NONE);
        bench.send(&header, &frame, &[]);
        // A wrong hdr_len is no lie that matters (NET-TX-30).
        bench.send(&NetHeader { hdr_len: 3, ..good }, &frame, &[]);
        let _ = bench.step();
        assert_eq!(bench.used_tx().len(), 2, "{header:?}");
        assert_eq!(bench.sent(), cut(&frame, &request), "{header:?}");
        let reasons = [DropReason::BadHeader, DropReason::Unparsable];
        assert_eq!(reasons.map(|reason| bench.drops(false, reason)).iter().sum::<u64>(), 1);
    }
}

#[test]
fn arrived_segments_are_joined_for_a_guest_that_takes_them_so() {
    let (frame, request) = tcp(20_000, 1448);
    let segments = cut(&frame, &request);
    for (takes, count) in [(true, 1), (false, segments.len())] {
        let mut features = vec![Feature::GUEST_CSUM, Feature::MRG_RXBUF];
        features.extend(takes.then_some(Feature::GUEST_TSO4));
        let mut bench = Bench::new(&features, Offloads::NONE);
        bench.host.lock().unwrap().by_batch = true;
        let at = bench.post(65_000);
        (1..20).for_each(|_| _ = bench.post(2000));
        segments.iter().for_each(|one| bench.deliver(one, RxHeader::default()));
        let _ = bench.step();
        let used = bench.rx.collect();
        assert_eq!(used.len(), count);
        let (header, bytes) = bench.received(at, used[0].len);
        if takes {
            assert_eq!(header, NetHeader { num_buffers: 1, ..request.to_header(54) });
            assert_eq!(bytes, frame);
        } else {
            assert_eq!(bytes, segments[0]);
        }
    }
}

#[test]
fn how_many_segments_were_joined_is_told_to_a_driver_that_asks() {
    let (frame, request) = tcp(20_000, 1448);
    let features = [
        Feature::GUEST_CSUM,
        Feature::MRG_RXBUF,
        Feature::GUEST_TSO4,
        Feature::CSUM,
        Feature::HOST_TSO4,
        Feature::RSC_EXT,
    ];
    let mut bench = Bench::new(&features, Offloads::NONE);
    bench.host.lock().unwrap().by_batch = true;
    let at = bench.post(65_000);
    let alone = bench.post(2000);
    let segments = cut(&frame, &request);
    segments.iter().for_each(|one| bench.deliver(one, RxHeader::default()));
    bench.deliver(&bench::frame(60), RxHeader::default());
    let _ = bench.step();
    let used = bench.rx.collect();
    assert_eq!(used.len(), 2);
    let told = bench.received(at, used[0].len).0;
    assert_eq!(told.flags, HDR_F_NEEDS_CSUM | HDR_F_RSC_INFO, "NET-RX-21");
    let counts = (usize::from(told.csum_start), told.csum_offset);
    assert_eq!(counts, (segments.len(), 0), "NET-RX-21: segments, duplicate acknowledgements");
    let told = bench.received(alone, 72).0;
    assert_eq!(told.flags & HDR_F_RSC_INFO, 0, "a whole frame was not joined");
}

#[test]
fn joined_frames_without_room_stay_with_the_endpoint() {
    let (frame, request) = tcp(20_000, 1448);
    let features = [Feature::GUEST_CSUM, Feature::MRG_RXBUF, Feature::GUEST_TSO4];
    let mut bench = Bench::new(&features, Offloads::NONE);
    bench.host.lock().unwrap().by_batch = true;
    bench.deliver(&bench::frame(60), RxHeader::default());
    cut(&frame, &request).iter().for_each(|one| bench.deliver(one, RxHeader::default()));
    bench.post(1000);
    bench.post(1000);
    let step = bench.step();
    assert!(matches!(step.next, Next::Wait(_)));
    assert_eq!(bench.host.lock().unwrap().to_deliver.len(), 14, "but for the short one");
    bench.post(64_000);
    let _ = bench.step();
    assert_eq!(bench.host.lock().unwrap().to_deliver.len(), 0);
    let used = bench.rx.collect();
    assert_eq!(used.len(), 3);
    assert_eq!(used.iter().map(|one| one.len).sum::<u32>(), 12 + 60 + 12 + 20_054);
    assert_eq!(bench.bells[0].rung(), 2);
}

#[test]
fn what_comes_behind_a_frame_without_room_does_not_pass_it() {
    let (frame, request) = tcp(3000, 1448);
    let features = [Feature::GUEST_CSUM, Feature::MRG_RXBUF, Feature::GUEST_TSO4];
    let mut bench = Bench::new(&features, Offloads::NONE);
    bench.host.lock().unwrap().by_batch = true;
    let segments = cut(&frame, &request);
    segments.iter().for_each(|one| bench.deliver(one, RxHeader::default()));
    // Of another flow, and short: it would fit, but who says that it is not of the same.
    bench.deliver(&bench::frame(60), RxHeader::default());
    // Room for the first segment, and not for the second.
    bench.post(1600);
    bench.post(200);
    let _ = bench.step();
    let left: Vec<_> =
        bench.host.lock().unwrap().to_deliver.iter().map(|one| one.0.len()).collect();
    assert_eq!(left, [segments[1].len(), segments[2].len(), 60]);
    assert_eq!(bench.rx.collect().len(), 1, "the first went alone");
    bench.post(4000);
    bench.post(1000);
    let _ = bench.step();
    assert_eq!(bench.host.lock().unwrap().to_deliver.len(), 0);
    let lens: Vec<_> = bench.rx.collect().iter().map(|one| one.len).collect();
    assert_eq!(lens.iter().sum::<u32>(), 12 + 54 + 1448 + 104 + 12 + 60);
}
