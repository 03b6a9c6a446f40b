//! Every number that a device tells, against what was done to it.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::let_underscore_must_use,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::collections::BTreeMap;

use bench::{Bench, EVERYTHING, RX, frame};
use vionet::endpoint::{EndpointFault, RxHeader};
use vionet::{ControlSnapshot, LaneSnapshot, Op};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, NetHeader, Offloads, Request};
use vionet_spec::feature::Feature;
use vionet_testkit::{Arrangement, Buffer};

const OFFLOADS: [Feature; 6] = [
    Feature::CSUM,
    Feature::HOST_TSO4,
    Feature::GUEST_CSUM,
    Feature::GUEST_TSO4,
    Feature::MRG_RXBUF,
    Feature::CTRL_VQ,
];

/// All numbers of a direction that are not 0: counters, and drops by reason behind `drop/`.
fn told(lane: &LaneSnapshot) -> BTreeMap<String, u64> {
    let counters = lane.counters().map(|(name, value)| (name.to_owned(), value));
    let drops = lane.drops().map(|(reason, value)| (format!("drop/{reason}"), value));
    counters.chain(drops).filter(|(_, value)| *value > 0).collect()
}

fn transmitted(bench: &Bench) -> BTreeMap<String, u64> {
    told(&bench.nic.snapshot().pairs[0].transmit)
}

fn received(bench: &Bench) -> BTreeMap<String, u64> {
    told(&bench.nic.snapshot().pairs[0].receive)
}

fn are<const N: usize>(numbers: [(&str, u64); N]) -> BTreeMap<String, u64> {
    numbers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn tso(payload: usize, size: u16) -> (Vec<u8>, Request) {
    let bytes = etherparse(payload);
    let csum = Some(CsumAt { start: 34, offset: 16 });
    let gso = Some(GsoRequest { kind: Gso::TcpV4, size, ecn: false });
    (bytes, Request { csum, gso, tunnel: None })
}

fn etherparse(payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1000, 80, 1, 1000)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    frame
}

#[test]
fn what_a_guest_has_sent() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    let (bytes, request) = tso(3000, 1000);
    bench.send(&NetHeader::default(), &frame(60), &[]);
    bench.send(&request.to_header(54), &bytes, &[]);
    let summed = Request { gso: None, ..request };
    bench.send(&summed.to_header(0), &etherparse(6), &[]);
    let _ = bench.step();
    let numbers = are([
        ("frames", 3),
        ("bytes", 60 + 3054 + 60),
        ("batches", 1),
        ("interrupts", 1),
        ("closed_checksums", 1),
        ("open_checksums", 2),
        ("uncut", 1),
        ("uncut_bytes", 3054),
    ]);
    assert_eq!(transmitted(&bench), numbers);
    let snapshot = bench.nic.snapshot();
    assert_eq!(snapshot.pairs[0].transmit.batch_sizes[..3], [0, 1, 0]);
    assert_eq!(snapshot.total.transmit, snapshot.pairs[0].transmit, "of one pair");
}

#[test]
fn what_was_cut_here_for_a_host_side_that_cannot() {
    let mut bench = Bench::new(&OFFLOADS, Offloads::NONE);
    let (bytes, request) = tso(2500, 1000);
    bench.send(&request.to_header(54), &bytes, &[]);
    let _ = bench.step();
    let numbers = are([
        ("frames", 1),
        ("bytes", 2554),
        ("batches", 1),
        ("interrupts", 1),
        ("open_checksums", 1),
        ("uncut", 1),
        ("uncut_bytes", 2554),
        ("segments", 3),
        ("segment_bytes", 2500 + 3 * 54),
    ]);
    assert_eq!(transmitted(&bench), numbers);
}

#[test]
fn a_chain_that_waits_is_counted_once_when_its_time_has_come() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    bench.host.lock().unwrap().room = Some(1);
    let (bytes, request) = tso(3000, 1000);
    bench.send(&NetHeader::default(), &frame(60), &[]);
    bench.send(&request.to_header(54), &bytes, &[]);
    // Neither of these is a frame, and both are behind one that waits.
    bench.send(&NetHeader { gso_type: 9, ..NetHeader::default() }, &frame(60), &[]);
    bench.send(&NetHeader::default(), &frame(9), &[]);
    for _ in 0..5 {
        let _ = bench.step();
    }
    let first = are([
        ("frames", 1),
        ("bytes", 60),
        ("batches", 1),
        ("interrupts", 1),
        ("stalled", 5),
        ("closed_checksums", 1),
    ]);
    assert_eq!(transmitted(&bench), first);
    bench.host.lock().unwrap().room = None;
    let _ = bench.step();
    let all = are([
        ("frames", 2),
        ("bytes", 60 + 3054),
        ("batches", 2),
        ("interrupts", 2),
        ("stalled", 5),
        ("closed_checksums", 1),
        ("open_checksums", 1),
        ("uncut", 1),
        ("uncut_bytes", 3054),
        ("drop/bad-header", 1),
        ("drop/too-short", 1),
    ]);
    assert_eq!(transmitted(&bench), all);
}

#[test]
fn what_was_dropped_is_counted_by_reason_and_as_nothing_else() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    bench.apply(Op::SetLink(false)).unwrap();
    let (bytes, request) = tso(3000, 1000);
    bench.send(&request.to_header(54), &bytes, &[]);
    let _ = bench.step();
    let numbers = are([("batches", 1), ("interrupts", 1), ("drop/link-down", 1)]);
    assert_eq!(transmitted(&bench), numbers);
    bench.apply(Op::SetLink(true)).unwrap();
    bench.host.lock().unwrap().fault = Some(EndpointFault::Gone);
    bench.send(&NetHeader::default(), &frame(60), &[]);
    bench.send_raw(&[0; 5], &[]);
    let _ = bench.step();
    let numbers = are([
        ("batches", 2),
        ("interrupts", 2),
        ("host_errors", 1),
        ("drop/link-down", 1),
        ("drop/endpoint-gone", 1),
        ("drop/no-header", 1),
    ]);
    assert_eq!(transmitted(&bench), numbers);
}

#[test]
fn a_broken_rule_and_an_interrupt_nobody_wants() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    let at = bench.allocate(64);
    bench.tx.ignore();
    bench.send(&NetHeader::default(), &frame(60), &[]);
    let _ = bench.step();
    bench.tx.post(&[Buffer::writable(at, 64)], Arrangement::Direct).unwrap();
    bench.tx.expose();
    let _ = bench.step();
    let numbers = are([
        ("frames", 1),
        ("bytes", 60),
        ("batches", 1),
        ("suppressed", 1),
        ("faults", 1),
        ("closed_checksums", 1),
    ]);
    assert_eq!(transmitted(&bench), numbers);
}

#[test]
fn what_a_guest_has_received() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    for _ in 0..4 {
        bench.post(4000);
    }
    let (bytes, request) = tso(3000, 1000);
    bench.deliver(&frame(60), RxHeader::default());
    bench.deliver(&bytes, RxHeader { request, segments: 3, ..RxHeader::default() });
    bench.deliver(&etherparse(6), RxHeader { validated: true, ..RxHeader::default() });
    bench.deliver(&frame(9), RxHeader::default());
    let _ = bench.step();
    let numbers = are([
        ("frames", 3),
        ("bytes", 60 + 3054 + 60),
        ("batches", 1),
        ("interrupts", 1),
        ("closed_checksums", 1),
        ("open_checksums", 1),
        ("validated", 1),
        ("uncut", 1),
        ("uncut_bytes", 3054),
        ("coalesced", 1),
        ("coalesced_bytes", 3054),
        ("drop/too-short", 1),
    ]);
    assert_eq!(received(&bench), numbers);
    let snapshot = bench.nic.snapshot();
    assert_eq!(snapshot.pairs[0].receive.batch_sizes[..3], [0, 1, 0]);
    bench.post(10);
    bench.deliver(&frame(60), RxHeader::default());
    bench.deliver(&frame(60), RxHeader::default());
    let _ = bench.step();
    let grown = received(&bench);
    assert_eq!((grown["frames"], grown["drop/no-header"], grown["starved"]), (4, 1, 1));
    bench.apply(Op::EnableQueue(RX, false)).unwrap();
    let _ = bench.step();
    assert_eq!(received(&bench)["frames"], 4);
}

#[test]
fn no_number_goes_back_while_frames_are_under_way() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    bench.host.lock().unwrap().watched = Some(bench.stats());
    let (bytes, request) = tso(3000, 1000);
    for round in 0..3 {
        for _ in 0..4 {
            bench.post(4000);
        }
        bench.deliver(&etherparse(6), RxHeader { validated: true, ..RxHeader::default() });
        bench.deliver(&frame(60), RxHeader::default());
        bench.deliver(&bytes, RxHeader { request, segments: 3, ..RxHeader::default() });
        bench.deliver(&etherparse(6), RxHeader { validated: true, ..RxHeader::default() });
        let _ = bench.step();
        assert_eq!(received(&bench)["frames"], 4 * (round + 1));
    }
    let seen = std::mem::take(&mut bench.host.lock().unwrap().seen);
    assert_eq!(seen.len(), 12);
    for [before, after] in seen.array_windows() {
        for ((name, before), (_, after)) in before.counters().zip(after.counters()) {
            assert!(before <= after && after < 20_000, "{name}: {before}, then {after}");
        }
    }
    let last = seen.last().unwrap();
    assert!(last.frames() > last.validated, "the last look was in the middle of a step");
}

#[test]
fn commands_obeyed_and_refused() {
    let mut bench = Bench::new(&OFFLOADS, EVERYTHING);
    bench.start_control();
    assert_eq!(bench.command(&[9, 9, 9], 0).0, 1);
    let control = bench.nic.snapshot().control;
    assert_eq!(control, ControlSnapshot { commands: 1, obeyed: 0, faults: 0 });
    let names: Vec<_> = control.counters().map(|(name, _)| name).collect();
    assert_eq!(names, ["commands", "obeyed", "faults"]);
}
