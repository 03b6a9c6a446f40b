//! The host's policy: what a guest may send and get, whatever it does to its memory meanwhile.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use bench::{Bench, EVERYTHING, MAC};
use vionet::endpoint::RxHeader;
use vionet::stats::DropReason;
use vionet_frame::guard::{Guard, Rule};
use vionet_frame::header::NetHeader;
use vionet_spec::feature::Feature;

const GUEST: [u8; 4] = [10, 0, 0, 5];
const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn guarded() -> Bench {
    let guard = Guard::new(MAC).with(Rule::Mac).with(Rule::DhcpServer);
    let guard = guard.allow_v4(GUEST.into(), 32).unwrap();
    let mut bench = Bench::guarded(guard, EVERYTHING);
    bench.apply(vionet::Op::Negotiate(Bench::bits(&[]))).unwrap();
    bench.start_queues();
    bench
}

/// A UDP datagram of `len` bytes of frame.
fn datagram(from: [u8; 6], source: [u8; 4], port: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&OTHER);
    frame[6..12].copy_from_slice(&from);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17]);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    frame[26..30].copy_from_slice(&source);
    frame[30..34].copy_from_slice(&[10, 0, 0, 1]);
    frame[34..36].copy_from_slice(&port.to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    frame
}

#[test]
fn frames_in_anothers_name_are_dropped_by_reason_and_the_others_pass_in_order() {
    let mut bench = guarded();
    let good: Vec<_> = [60, 200, 1400].map(|len| datagram(MAC, GUEST, 1000, len)).into();
    let plain = NetHeader::default();
    bench.send(&plain, &good[0], &[]);
    bench.send(&plain, &datagram(OTHER, GUEST, 1000, 60), &[]);
    bench.send(&plain, &datagram(MAC, [10, 0, 0, 6], 1000, 60), &[]);
    bench.send(&plain, &good[1], &[20, 100, 3]);
    bench.send(&plain, &datagram(MAC, GUEST, 67, 300), &[12, 150]);
    bench.send(&plain, &good[2], &[12]);
    let _step = bench.step();
    assert_eq!(bench.sent(), good);
    assert_eq!(bench.used_tx().len(), 6);
    for reason in
        [DropReason::GuardSourceMac, DropReason::GuardSourceIp, DropReason::GuardDhcpServer]
    {
        assert_eq!(bench.drops(false, reason), 1, "{reason}");
    }
    let stats = bench.stats();
    assert_eq!((stats.tx.frames(), stats.tx.bytes.value()), (3, 1660));
}

#[test]
fn an_endpoint_that_is_full_keeps_the_rest_with_the_guest() {
    let mut bench = guarded();
    let frames: Vec<_> = (0..5).map(|at| datagram(MAC, GUEST, 1000 + at, 100)).collect();
    for (frame, cuts) in frames.iter().zip([&[][..], &[50, 20], &[], &[70, 20], &[]]) {
        bench.send(&NetHeader::default(), frame, cuts);
    }
    for room in [1, 1, 3] {
        bench.host.lock().unwrap().room = Some(room);
        let _step = bench.step();
    }
    assert_eq!(bench.sent(), frames);
    assert_eq!(bench.stats().tx.frames(), 5);
}

#[test]
fn a_guest_that_is_held_to_its_address_is_not_offered_another() {
    assert!(!guarded().nic.offer().has(Feature::CTRL_MAC_ADDR));
}

#[test]
fn the_guest_gets_only_what_is_for_its_address() {
    let mut bench = guarded();
    let mut to_it = datagram(OTHER, [10, 0, 0, 1], 5, 60);
    to_it[..6].copy_from_slice(&MAC);
    for frame in [&datagram(OTHER, [10, 0, 0, 1], 5, 60), &to_it] {
        bench.post(2048);
        bench.deliver(frame, RxHeader::default());
    }
    let _step = bench.step();
    assert_eq!(bench.rx.collect().len(), 1);
    assert_eq!(bench.drops(true, DropReason::GuardDestinationMac), 1);
}
