//! A receive lane into which others deliver.
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
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::os::fd::AsRawFd;
use std::sync::Arc;

use bench::{Bench, EVERYTHING, RX, frame};
use vionet::endpoint::{Delivery, Inlet, Refused, RxHeader};
use vionet::{Instant, Next, Op};
use vionet_queue::Fault;
use vionet_raw::ReadSpan;
use vionet_spec::feature::Feature;
use vionet_testkit::{Arrangement, Buffer};

fn with_inlet() -> (Bench, Arc<Inlet>) {
    let inlet = Arc::new(Inlet::new().unwrap());
    let mut bench = Bench::idle(EVERYTHING);
    bench.host.lock().unwrap().inlet = Some(Arc::clone(&inlet));
    bench.apply(Op::Negotiate(Bench::bits(&[Feature::MRG_RXBUF]))).unwrap();
    bench.start_queues();
    (bench, inlet)
}

fn push(inlet: &Inlet, frames: &[Vec<u8>]) -> (Delivery, Vec<Result<(), Refused>>) {
    let mut results = Vec::new();
    let delivery = inlet.deliver(Instant::from_nanos(0), |sink| {
        for bytes in frames {
            // Two spans, as they may lie in another guest's memory.
            let (head, tail) = bytes.split_at(14);
            let spans = [ReadSpan::local(head), ReadSpan::local(tail)];
            results.push(sink.push_spans(&RxHeader::default(), bytes.len() as u32, &spans));
        }
    });
    (delivery, results)
}

#[test]
fn frames_of_others_arrive_at_once_and_the_pairs_own_worker_interrupts() {
    let (mut bench, inlet) = with_inlet();
    let places: Vec<u64> = (0..3).map(|_| bench.post(200)).collect();
    let _ = bench.step();
    let rung = bench.bells[0].rung();
    let frames = [frame(60), frame(61)];
    assert_eq!(push(&inlet, &frames), (Delivery::Done, vec![Ok(()), Ok(())]));
    let used = bench.rx.collect();
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [72, 73]);
    for (at, bytes) in places.iter().zip(&frames) {
        assert_eq!(&bench.received(*at, 12 + bytes.len() as u32).1, bytes);
    }
    // The sender does not touch what the receiver's front-end could make it wait on.
    assert_eq!(bench.bells[0].rung(), rung);
    let _ = bench.step();
    assert_eq!(bench.bells[0].rung(), rung + 1);
    let _ = bench.step();
    assert_eq!(bench.bells[0].rung(), rung + 1);
}

#[test]
fn an_interrupt_that_is_due_is_not_lost_on_the_way_home() {
    let (mut bench, inlet) = with_inlet();
    bench.post(200);
    let _ = bench.step();
    let rung = bench.bells[0].rung();
    assert_eq!(push(&inlet, &[frame(60)]).1, [Ok(())]);
    bench.apply(Op::EnableQueue(RX, true)).unwrap();
    let _ = bench.step();
    assert_eq!(bench.bells[0].rung(), rung + 1);
}

#[test]
fn a_full_guest_costs_its_sender_nothing_but_the_frame() {
    let (mut bench, inlet) = with_inlet();
    bench.post(200);
    let frames = [frame(60), frame(60)];
    assert_eq!(push(&inlet, &frames).1, [Ok(()), Err(Refused::Full)]);
    bench.post(200);
    assert_eq!(push(&inlet, &frames).1, [Ok(()), Err(Refused::Full)]);
}

#[test]
fn frames_pushed_together_fare_as_each_would_alone() {
    // Plain ones, one too short, one that takes two buffers; then there is no room.
    let frames = [60, 200, 5, 14, 300, 61, 62, 63].map(|len| frame(len.max(14))[..len].to_vec());
    let fares = |together: bool| {
        let (mut bench, inlet) = with_inlet();
        let places: Vec<u64> = (0..6).map(|_| bench.post(240)).collect();
        let mut taken = 0;
        let _ = inlet.deliver(Instant::from_nanos(0), |sink| {
            let mut all = frames.iter().map(|bytes| &bytes[..]);
            taken = if together {
                sink.push_all(&RxHeader::PLAIN, all)
            } else {
                all.position(|bytes| sink.push(&RxHeader::PLAIN, bytes) == Err(Refused::Full))
                    .unwrap()
            };
        });
        let used: Vec<_> = bench.rx.collect().iter().map(|used| used.len).collect();
        let seen: Vec<_> = places.iter().map(|at| bench.received(*at, 240).1).collect();
        (taken, used, seen)
    };
    let alone = fares(false);
    assert_eq!((alone.0, &alone.1[..]), (6, &[72, 212, 26, 240, 72, 73][..]));
    assert_eq!(fares(true), alone);
}

#[test]
fn a_lane_at_home_takes_nothing_and_goes_on_where_it_was() {
    let (mut bench, inlet) = with_inlet();
    for _ in 0..4 {
        bench.post(200);
    }
    assert_eq!(push(&inlet, &[frame(60)]).0, Delivery::Done);
    bench.apply(Op::StopQueue(RX)).unwrap();
    assert_eq!(push(&inlet, &[frame(60)]), (Delivery::Closed, vec![]));
    let cursor = bench.nic.cursor(RX).unwrap();
    assert_eq!((cursor.avail, cursor.used), (1, 1));
    bench.apply(Op::StartQueue { index: RX, setup: bench.rx.setup(), cursor }).unwrap();
    assert_eq!(push(&inlet, &[frame(60)]).1, [Ok(())]);
    bench.apply(Op::EnableQueue(RX, false)).unwrap();
    assert_eq!(push(&inlet, &[frame(60)]).0, Delivery::Closed);
    bench.apply(Op::Reset).unwrap();
    assert_eq!(push(&inlet, &[frame(60)]).0, Delivery::Closed);
    assert_eq!(bench.rx.collect().len(), 2);
}

#[test]
fn a_pair_that_is_lost_leaves_no_lane_behind() {
    let (mut bench, inlet) = with_inlet();
    bench.post(200);
    drop(bench.pair.take());
    assert_eq!(push(&inlet, &[frame(60)]).0, Delivery::Closed);
}

#[test]
fn a_rule_broken_under_anothers_delivery_is_told_once_by_the_pair_itself() {
    let (mut bench, inlet) = with_inlet();
    let readable = Buffer::readable(bench::FRAMES, 64);
    bench.rx.post(&[readable], Arrangement::Direct).unwrap();
    bench.rx.expose();
    assert!(push(&inlet, &[frame(60)]).1[0].is_err());
    assert_eq!(push(&inlet, &[frame(60)]), (Delivery::Closed, vec![]), "it stands still");
    let fd = bench.pair.as_ref().unwrap().bell_fd().expect("a bell").as_raw_fd();
    assert!(fd >= 0);
    let fault = bench.step().fault.expect("a fault");
    assert_eq!((fault.queue, fault.fault), (RX, Fault::ReadableInReceive));
    let step = bench.step();
    assert_eq!(step.fault, None);
    assert!(matches!(step.next, Next::Wait(_)));
}

#[test]
fn a_rule_broken_under_anothers_delivery_is_told_also_after_the_lane_was_called_home() {
    let (mut bench, inlet) = with_inlet();
    let readable = Buffer::readable(bench::FRAMES, 64);
    bench.rx.post(&[readable], Arrangement::Direct).unwrap();
    bench.rx.expose();
    assert!(push(&inlet, &[frame(60)]).1[0].is_err());
    bench.apply(Op::Rewire(vionet::PairIndex(0))).unwrap();
    let fault = bench.step().fault.expect("a fault");
    assert_eq!((fault.queue, fault.fault), (RX, Fault::ReadableInReceive));
    assert_eq!(bench.step().fault, None);
}
