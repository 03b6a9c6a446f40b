//! What a driver and an endpoint may rely on, shown on a whole device stepped by hand.
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

use bench::{Bench, EVERYTHING, RX, TX, frame};
use proptest::prelude::*;
use vionet::endpoint::{EndpointFault, RxHeader};
use vionet::stats::DropReason;
use vionet::{Next, Op, OpError, Refusal};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, NetHeader, Offloads, Request, Tunnel};
use vionet_queue::{Cursor, Fault};
use vionet_spec::feature::Feature;
use vionet_spec::net::{HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM};
use vionet_testkit::{Arrangement, Buffer};

const PLAIN: NetHeader = NetHeader::PLAIN;

fn open_checksum() -> NetHeader {
    NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..PLAIN }
}

proptest! {
    /// NET-TX-23: header and frame may be cut anywhere.
    #[test]
    fn a_frame_goes_out_whole_however_it_is_cut(
        len in 14_usize..3000,
        cuts in prop::collection::vec(1_usize..40, 0..20),
    ) {
        let mut bench = Bench::new(&[], EVERYTHING);
        bench.send(&PLAIN, &frame(len), &cuts);
        let _ = bench.step();
        prop_assert_eq!(bench.sent(), vec![frame(len)]);
    }

    /// NET-RX-02, NET-RX-03: the frame is spread over as few buffers as hold it, all but the
    /// last full, and the first says how many.
    #[test]
    fn a_received_frame_fills_its_buffers_in_order(
        sizes in prop::collection::vec(12_usize..700, 1..30),
        len in 14_usize..1518,
        by_window: bool,
    ) {
        let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
        bench.host.lock().unwrap().by_window = by_window;
        let places: Vec<u64> = sizes.iter().map(|size| bench.post(*size)).collect();
        bench.deliver(&frame(len), RxHeader::default());
        let _ = bench.step();
        let used = bench.rx.collect();
        if sizes.iter().sum::<usize>() < len + 12 {
            prop_assert!(used.is_empty());
            return Ok(());
        }
        let mut bytes = Vec::new();
        for (at, (used, (place, size))) in used.iter().zip(places.iter().zip(&sizes)).enumerate() {
            prop_assert!(at + 1 == used.len as usize || used.len <= *size as u32);
            if at + 1 < used_count(&sizes, len) {
                prop_assert_eq!(used.len, *size as u32);
            }
            bytes.extend(bench.ram.read(*place, used.len));
        }
        let (header, body) = bytes.split_first_chunk().unwrap();
        let header = NetHeader::decode(header);
        prop_assert_eq!(usize::from(header.num_buffers), used.len());
        prop_assert_eq!(used.len(), used_count(&sizes, len));
        prop_assert_eq!(body, &frame(len)[..]);
    }
}

fn used_count(sizes: &[usize], len: usize) -> usize {
    let mut room = 0;
    sizes
        .iter()
        .take_while(|size| {
            let more = room < len + 12;
            room += **size;
            more
        })
        .count()
}

#[test]
fn transmit_buffers_are_used_with_length_0_and_one_interrupt() {
    let mut bench = Bench::new(&[], EVERYTHING);
    let before = bench.bells[1].rung();
    for _ in 0..10 {
        bench.send(&PLAIN, &frame(60), &[]);
    }
    let _ = bench.step();
    let used = bench.used_tx();
    assert_eq!(used.len(), 10);
    assert!(used.iter().all(|used| used.len == 0), "NET-TX-24");
    assert_eq!(bench.bells[1].rung(), before + 1, "one notification per batch");
}

#[test]
fn a_header_that_breaks_a_rule_costs_its_frame_and_nothing_else() {
    let mut bench = Bench::new(&[Feature::CSUM], EVERYTHING);
    bench.send(&PLAIN, &frame(60), &[]);
    bench.send(&NetHeader { gso_type: 1, gso_size: 100, ..open_checksum() }, &frame(60), &[]);
    bench.send(&NetHeader { csum_start: 59, ..open_checksum() }, &frame(60), &[]);
    bench.send_raw(&[0; 11], &[]);
    bench.send(&PLAIN, &frame(13), &[]);
    bench.send(&open_checksum(), &frame(61), &[]);
    let step = bench.step();
    assert_eq!((step.fault, bench.used_tx().len()), (None, 6));
    assert_eq!(bench.sent(), [frame(60), frame(61)]);
    assert_eq!(bench.drops(false, DropReason::BadHeader), 2);
    assert_eq!(bench.drops(false, DropReason::NoHeader), 1);
    assert_eq!(bench.drops(false, DropReason::TooShort), 1);
}

#[test]
fn what_an_endpoint_does_not_take_stays_with_the_guest_and_comes_again_in_order() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.host.lock().unwrap().room = Some(3);
    for len in 60..70 {
        bench.send(&PLAIN, &frame(len), &[]);
    }
    let step = bench.step();
    assert!(matches!(step.next, Next::Wait(watch) if watch.writable));
    assert_eq!(bench.used_tx().len(), 3);
    bench.host.lock().unwrap().room = None;
    let _ = bench.step();
    assert_eq!(bench.used_tx().len(), 7);
    assert_eq!(bench.sent(), (60..70).map(frame).collect::<Vec<_>>());
}

#[test]
fn without_mergeable_buffers_a_frame_has_one_buffer_and_num_buffers_is_1() {
    let mut bench = Bench::new(&[], EVERYTHING);
    let small = bench.post(40);
    let large = bench.post(2000);
    bench.deliver(&frame(20), RxHeader::default());
    bench.deliver(&frame(1000), RxHeader::default());
    let _ = bench.step();
    let used = bench.rx.collect();
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [32, 1012]);
    for (at, len) in [(small, 20), (large, 1000)] {
        let (header, body) = bench.received(at, 12 + len);
        assert_eq!(header, NetHeader { num_buffers: 1, ..PLAIN }, "NET-RX-01, NET-RX-40");
        assert_eq!(body, frame(len as usize));
    }
}

#[test]
fn a_frame_too_long_for_its_only_buffer_is_dropped_and_not_cut() {
    let mut bench = Bench::new(&[], EVERYTHING);
    let at = bench.post(100);
    bench.deliver(&frame(200), RxHeader::default());
    bench.deliver(&frame(50), RxHeader::default());
    let _ = bench.step();
    assert_eq!(bench.drops(true, DropReason::NoBuffer), 1);
    assert_eq!(bench.rx.collect()[0].len, 62);
    assert_eq!(bench.received(at, 62).1, frame(50));
}

#[test]
fn a_frame_above_the_mtu_is_not_delivered() {
    let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
    for _ in 0..4 {
        bench.post(2000);
    }
    bench.deliver(&frame(1519), RxHeader::default());
    bench.deliver(&frame(1518), RxHeader::default());
    let _ = bench.step();
    assert_eq!(bench.drops(true, DropReason::TooLong), 1, "NET-CFG-05");
    assert_eq!(bench.rx.collect().len(), 1);
}

#[test]
fn frames_that_are_dropped_use_up_the_step_too() {
    for by_window in [false, true] {
        let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
        bench.host.lock().unwrap().by_window = by_window;
        for _ in 0..8 {
            bench.post(2000);
        }
        for _ in 0..100 {
            bench.deliver(&frame(1519), RxHeader::default());
        }
        let step = bench.step();
        assert_eq!(bench.drops(true, DropReason::TooLong), 64);
        assert_eq!(step.next, vionet::Next::Again, "the rest comes in the next step");
        let _ = bench.step();
        assert_eq!(bench.drops(true, DropReason::TooLong), 100);
    }
}

#[test]
fn what_the_guest_did_not_agree_to_is_not_delivered() {
    let request = Request { csum: Some(CsumAt { start: 34, offset: 16 }), ..Request::default() };
    let open = RxHeader { request, ..RxHeader::default() };
    for (features, delivered) in [(&[][..], 0), (&[Feature::GUEST_CSUM][..], 1)] {
        let mut bench = Bench::new(features, EVERYTHING);
        let at = bench.post(2000);
        bench.deliver(&frame(100), open);
        let _ = bench.step();
        assert_eq!(bench.rx.collect().len(), delivered);
        assert_eq!(bench.drops(true, DropReason::NotAgreed), 1 - delivered as u64);
        if delivered == 1 {
            assert_eq!(bench.received(at, 112).0.flags, HDR_F_NEEDS_CSUM);
        }
    }
}

/// A frame that was not cut, of this kind.
fn uncut(kind: Gso, ecn: bool, tunnel: Option<Tunnel>) -> Request {
    let start = if tunnel.is_some() { 84 } else { 34 };
    let gso = Some(GsoRequest { kind, size: 100, ecn });
    Request { csum: Some(CsumAt { start, offset: 16 }), gso, tunnel }
}

#[test]
fn each_kind_of_uncut_frame_goes_to_who_takes_it_and_to_nobody_else() {
    use Feature as F;
    let tunnel =
        |csum| Some(Tunnel { outer_th_offset: 34, inner_nh_offset: 64, over_v6: false, csum });
    let uso = [F::GUEST_USO4, F::GUEST_USO6];
    let all = [F::GUEST_TSO4, F::GUEST_TSO6, uso[0], uso[1]];
    let in_tunnel = [&all[..], &[F::GUEST_UDP_TUNNEL_GSO]].concat();
    let open_tunnel = [&in_tunnel[..], &[F::GUEST_UDP_TUNNEL_GSO_CSUM]].concat();
    let kinds: [(Request, &[Feature], &str); 8] = [
        (uncut(Gso::TcpV4, false, None), &[F::GUEST_TSO4], "NET-RX-07"),
        (uncut(Gso::TcpV6, false, None), &[F::GUEST_TSO6], "NET-RX-08"),
        (uncut(Gso::Udp, false, None), &[F::GUEST_UFO], "NET-RX-09"),
        (uncut(Gso::UdpL4, false, None), &uso, "NET-RX-10"),
        (uncut(Gso::TcpV4, true, None), &[F::GUEST_TSO4, F::GUEST_ECN], "NET-RX-13, -14"),
        (uncut(Gso::TcpV6, true, None), &[F::GUEST_TSO6, F::GUEST_ECN], "NET-RX-13, -14"),
        (uncut(Gso::TcpV4, false, tunnel(false)), &in_tunnel, "NET-RX-24, -26, -29"),
        (uncut(Gso::UdpL4, false, tunnel(true)), &open_tunnel, "NET-RX-25"),
    ];
    for (request, features, row) in &kinds {
        // All that it takes; then each time one feature less, and none at all (NET-RX-11).
        let less = (0..features.len()).map(|at| [&features[..at], &features[at + 1..]].concat());
        for (index, chosen) in [features.to_vec()].into_iter().chain(less).enumerate() {
            let mut chosen = [&chosen[..], &[F::GUEST_CSUM]].concat();
            while let Some(broken) = Bench::bits(&chosen).broken_dependency() {
                chosen.retain(|feature| *feature != broken.feature);
            }
            let mut bench = Bench::new(&chosen, EVERYTHING);
            let at = bench.post(3000);
            let header = RxHeader { request: *request, validated: true, ..RxHeader::default() };
            bench.deliver(&frame(2000), RxHeader { header_len: 90, ..header });
            let _ = bench.step();
            let used = bench.rx.collect();
            assert_eq!(used.len(), usize::from(index == 0), "{row}: {chosen:?}");
            assert_eq!(bench.drops(true, DropReason::NotAgreed), u64::from(index != 0));
            if index == 0 {
                let mut bytes = bench.ram.read(at, used[0].len);
                let len = if request.tunnel.is_some() { 24 } else { 12 };
                let mut told = [0; 24];
                told[..len].copy_from_slice(&bytes[..len]);
                let (told, bytes) = (NetHeader::decode_long(&told), bytes.split_off(len));
                let wanted = NetHeader { num_buffers: 1, ..request.to_header(90) };
                // The kind, its size and NEEDS_CSUM; not DATA_VALID, and the bytes as they came.
                assert_eq!(told, wanted, "{row}, NET-RX-12, -23, -30");
                let size = (told.gso_size, told.flags & 3);
                assert_eq!(size, (100, HDR_F_NEEDS_CSUM), "{row}, NET-RX-12, -30");
                assert_eq!(told.gso_type & 0x80 != 0, request.gso.unwrap().ecn, "NET-RX-14");
                if request.tunnel.is_some() {
                    assert_eq!(told.gso_type & 0x60, 0x20, "NET-RX-27");
                }
                assert_eq!(bytes, frame(2000), "NET-RX-17, -32, -33");
            }
        }
    }
}

#[test]
fn where_a_tunnels_headers_are_is_told_behind_the_header() {
    use Feature as F;
    let features = [
        F::GUEST_CSUM,
        F::GUEST_TSO4,
        F::GUEST_TSO6,
        F::GUEST_USO4,
        F::GUEST_USO6,
        F::GUEST_UDP_TUNNEL_GSO,
    ];
    let mut bench = Bench::new(&features, EVERYTHING);
    let at = bench.post(3000);
    let tunnel = Tunnel { outer_th_offset: 34, inner_nh_offset: 64, over_v6: true, csum: false };
    let request = uncut(Gso::TcpV4, false, Some(tunnel));
    bench.deliver(&frame(2000), RxHeader { request, ..RxHeader::default() });
    let _ = bench.step();
    assert_eq!(bench.rx.collect()[0].len, 2024, "NET-HDR-02");
    let header = bench.ram.read(at, 24);
    assert_eq!(header[1], 0x41, "NET-RX-27");
    assert_eq!(header[12..], [0, 0, 0, 0, 0, 0, 0, 0, 34, 0, 64, 0], "NET-RX-28, NET-RX-40");
    assert_eq!(bench.ram.read(at + 24, 2000), frame(2000));
}

#[test]
fn frames_up_to_the_mtu_are_sent_whole_and_longer_ones_harm_nobody() {
    let mut bench = Bench::new(&[Feature::MTU], EVERYTHING);
    let mtu = usize::from(bench.nic.mtu());
    assert_eq!(mtu, 1500);
    // With Ethernet's header alone, and with tags in it.
    let lens = [mtu + 13, mtu + 14, mtu + 18, mtu + 22];
    for len in lens {
        bench.send(&PLAIN, &frame(len), &[]);
    }
    let _ = bench.step();
    assert_eq!((bench.sent(), bench.used_tx().len()), (lens.map(frame).into(), 4), "NET-CFG-06");
    for len in [mtu + 23, 9000, 65_000, 65_550, 70_000] {
        bench.send(&PLAIN, &frame(len), &[]);
        bench.send(&PLAIN, &frame(60), &[]);
        bench.host.lock().unwrap().sent.clear();
        let step = bench.step();
        assert_eq!((step.fault, bench.used_tx().len()), (None, 2), "NET-CFG-20: {len}");
        let sent = bench.sent();
        assert_eq!(sent.last(), Some(&frame(60)), "NET-CFG-20: {len}");
        assert!(sent.len() == 1 || sent[0] == frame(len), "NET-CFG-20: whole or not at all");
    }
}

#[test]
fn a_validated_checksum_is_told_only_to_a_driver_that_knows_the_flag() {
    let valid = RxHeader { validated: true, ..RxHeader::default() };
    for (features, flags) in [(&[][..], 0), (&[Feature::GUEST_CSUM][..], HDR_F_DATA_VALID)] {
        let mut bench = Bench::new(features, EVERYTHING);
        let at = bench.post(2000);
        bench.deliver(&frame(100), valid);
        let _ = bench.step();
        assert_eq!(bench.received(at, 112).0.flags, flags, "NET-RX-05, NET-RX-19");
    }
}

#[test]
fn an_open_checksum_counts_once_however_many_buffers_its_frame_takes() {
    let request = Request { csum: Some(CsumAt { start: 34, offset: 16 }), ..Request::default() };
    let open = RxHeader { request, ..RxHeader::default() };
    for buffers in [&[2000][..], &[64, 64]] {
        let mut bench = Bench::new(&[Feature::MRG_RXBUF, Feature::GUEST_CSUM], EVERYTHING);
        for size in buffers {
            bench.post(*size);
        }
        bench.deliver(&frame(100), open);
        let _ = bench.step();
        assert_eq!(bench.rx.collect().len(), buffers.len());
        assert_eq!(bench.stats().rx.open_checksums.value(), 1);
    }
}

#[test]
fn a_starved_receive_queue_asks_for_a_kick_and_goes_on_when_it_has_buffers() {
    let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
    bench.deliver(&frame(100), RxHeader::default());
    let step = bench.step();
    assert!(matches!(step.next, Next::Wait(watch) if !watch.readable), "no poll without buffers");
    bench.post(64);
    bench.post(64);
    let step = bench.step();
    assert!(matches!(step.next, Next::Wait(watch) if watch.readable));
    assert_eq!(bench.rx.collect().len(), 2);
    assert_eq!(bench.stats().rx.frames(), 1);
}

#[test]
fn a_broken_rule_stops_its_queue_and_no_other() {
    let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
    bench.send(&PLAIN, &frame(60), &[]);
    bench.tx.post(&[Buffer::readable(0xdead_0000, 60)], Arrangement::Direct).unwrap();
    bench.tx.expose();
    let step = bench.step();
    let fault = step.fault.expect("the rule is named");
    assert_eq!((fault.queue, fault.fault), (TX, Fault::BufferUnmapped));
    assert_eq!(bench.sent(), [frame(60)], "what came before the broken chain was sent");
    assert_eq!(bench.step().fault, None, "said once");
    bench.post(200);
    bench.deliver(&frame(100), RxHeader::default());
    let _ = bench.step();
    assert_eq!(bench.rx.collect().len(), 1, "receive goes on");
    bench.apply(Op::StopQueue(TX)).unwrap();
    assert_eq!(bench.nic.cursor(TX), Some(Cursor { avail: 1, used: 1 }));
}

#[test]
fn two_queues_that_break_at_once_are_both_named() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.tx.post(&[Buffer::readable(0xdead_0000, 60)], Arrangement::Direct).unwrap();
    bench.tx.expose();
    bench.rx.post(&[Buffer::readable(bench::FRAMES, 60)], Arrangement::Direct).unwrap();
    bench.rx.expose();
    bench.deliver(&frame(60), RxHeader::default());
    let faults = [bench.step(), bench.step()].map(|step| step.fault.map(|fault| fault.queue));
    assert_eq!(faults, [Some(TX), Some(RX)]);
}

#[test]
fn a_queue_that_is_not_enabled_drops_what_it_is_given() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.apply(Op::EnableQueue(TX, false)).unwrap();
    bench.apply(Op::EnableQueue(RX, false)).unwrap();
    bench.send(&PLAIN, &frame(60), &[]);
    bench.post(200);
    bench.deliver(&frame(60), RxHeader::default());
    let _ = bench.step();
    assert_eq!((bench.used_tx().len(), bench.sent().len()), (1, 0));
    assert_eq!(bench.drops(false, DropReason::QueueDisabled), 1);
    assert!(bench.rx.collect().is_empty());
}

#[test]
fn when_the_host_side_is_gone_frames_are_dropped_and_counted() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.host.lock().unwrap().fault = Some(EndpointFault::Gone);
    bench.send(&PLAIN, &frame(60), &[]);
    assert_eq!(bench.step().host, Some(EndpointFault::Gone));
    bench.send(&PLAIN, &frame(60), &[]);
    let step = bench.step();
    assert_eq!((step.host, step.fault), (None, None), "never the guest's fault");
    assert_eq!(bench.used_tx().len(), 2);
    assert_eq!(bench.drops(false, DropReason::EndpointGone), 2);
    assert_eq!(bench.stats().tx.host_errors.value(), 1);
}

#[test]
fn after_a_failure_of_the_host_side_frames_wait_and_the_worker_sleeps() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.host.lock().unwrap().fault = Some(EndpointFault::Io(5));
    bench.send(&PLAIN, &frame(60), &[]);
    let step = bench.step();
    assert_eq!(step.host, Some(EndpointFault::Io(5)));
    assert!(matches!(step.next, Next::Wait(watch) if watch.deadline.is_some()), "no spinning");
    assert!(bench.used_tx().is_empty());
    bench.host.lock().unwrap().fault = None;
    let _ = bench.step();
    assert_eq!((bench.used_tx().len(), bench.sent().len()), (1, 1));
}

#[test]
fn features_cannot_change_while_a_queue_runs() {
    let mut bench = Bench::new(&[], EVERYTHING);
    let other = Op::Negotiate(Bench::bits(&[Feature::CSUM]));
    assert_eq!(bench.apply(other), Err(OpError::QueuesRunning));
    assert_eq!(bench.apply(Op::Negotiate(Bench::bits(&[]))), Ok(()), "the same again is fine");
    let bad = Op::Negotiate(Bench::bits(&[Feature::HOST_TSO4]));
    bench.apply(Op::Reset).unwrap();
    assert!(matches!(bench.apply(bad), Err(OpError::Refused(Refusal::Needs { .. }))));
}

#[test]
fn a_change_to_a_running_queue_recalls_the_pair_and_sends_it_back() {
    let mut bench = Bench::new(&[], EVERYTHING);
    let before = bench.recalls;
    bench.apply(Op::EnableQueue(TX, true)).unwrap();
    assert_eq!(bench.recalls, before + 1);
    assert!(bench.pair.is_some());
    bench.apply(Op::StopQueue(TX)).unwrap();
    assert!(bench.pair.is_some(), "the receive queue still runs");
    bench.apply(Op::StopQueue(RX)).unwrap();
    assert!(bench.pair.is_none(), "nothing is left to run");
}

#[test]
fn reset_takes_everything_back_and_the_next_driver_starts_afresh() {
    let mut bench = Bench::new(&[Feature::CSUM], EVERYTHING);
    bench.apply(Op::Reset).unwrap();
    assert!(bench.pair.is_none());
    let setup = bench.tx.setup();
    let start = || Op::StartQueue { index: TX, setup, cursor: Cursor::default() };
    assert_eq!(bench.apply(start()), Err(OpError::NotNegotiated));
    bench.apply(Op::Negotiate(Bench::bits(&[]))).unwrap();
    let unmapped = bench.apply(start());
    assert_eq!(unmapped, Err(OpError::Queue(TX, Fault::RingUnmapped)), "memory is let go too");
    bench.start_queues();
    let settings = bench.host.lock().unwrap().opened_with.clone();
    assert_eq!(settings[0].transmit, Offloads::CSUM);
    assert_eq!(settings.last().unwrap().transmit, Offloads::NONE);
}

#[test]
fn a_queue_goes_on_where_it_was_stopped() {
    let mut bench = Bench::new(&[], EVERYTHING);
    for round in 0..5 {
        bench.send(&PLAIN, &frame(60 + round), &[]);
        let _ = bench.step();
        assert_eq!(bench.used_tx().len(), 1);
        bench.apply(Op::StopQueue(TX)).unwrap();
        let (setup, cursor) = (bench.tx.setup(), bench.nic.cursor(TX).unwrap());
        bench.apply(Op::StartQueue { index: TX, setup, cursor }).unwrap();
    }
    assert_eq!(bench.sent().len(), 5);
}

#[test]
fn an_endpoint_that_takes_only_whole_frames_gets_the_checksum_completed() {
    use etherparse::PacketBuilder;
    let mut bench = Bench::new(&[Feature::CSUM], Offloads::NONE);
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 80, 1, 1000);
    let payload = frame(777);
    let mut whole = Vec::new();
    builder.write(&mut whole, &payload).unwrap();
    let mut open = whole.clone();
    let pseudo = vionet_frame::checksum::pseudo_header_v4(
        [10, 0, 0, 1].into(),
        [10, 0, 0, 2].into(),
        6,
        20 + 777,
    );
    open[50..52].copy_from_slice(&pseudo.partial().to_be_bytes());
    bench.send(&open_checksum(), &open, &[5, 30]);
    bench.send(&PLAIN, &frame(60), &[]);
    let _ = bench.step();
    assert_eq!(bench.sent(), [whole, frame(60)]);
    assert_eq!(bench.stats().tx.frames(), 2);
}

/// SPL-07, SPL-09: of a ring only the used part is written, of buffers only those for it.
#[test]
fn neither_descriptors_nor_what_the_driver_sends_are_written() {
    let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
    bench.send(&PLAIN, &frame(200), &[5, 30]);
    bench.post(300);
    bench.deliver(&frame(60), RxHeader::default());
    let descriptors = |bench: &Bench| {
        [bench.rx.setup(), bench.tx.setup()].map(|setup| bench.ram.read(setup.descriptors.0, 1024))
    };
    let before = (descriptors(&bench), bench.ram.read(bench::FRAMES, 212));
    let _ = bench.step();
    assert_eq!((bench.used_tx().len(), bench.rx.collect().len()), (1, 1));
    assert_eq!((descriptors(&bench), bench.ram.read(bench::FRAMES, 212)), before);
}
