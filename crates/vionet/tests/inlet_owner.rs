//! A receive lane that others use without a pause, and whose owner wants it.
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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use bench::{Bench, EVERYTHING, RX, frame};
use vionet::endpoint::{Delivery, Inlet, RxHeader};
use vionet::{Instant, Op};
use vionet_spec::feature::Feature;

fn with_inlet() -> (Bench, Arc<Inlet>) {
    let inlet = Arc::new(Inlet::new().unwrap());
    let mut bench = Bench::idle(EVERYTHING);
    bench.host.lock().unwrap().inlet = Some(Arc::clone(&inlet));
    bench.apply(Op::Negotiate(Bench::bits(&[Feature::MRG_RXBUF]))).unwrap();
    bench.start_queues();
    (bench, inlet)
}

/// Delivers a frame and keeps the lane as long as `hold` takes.
fn deliver(inlet: &Inlet, hold: impl FnOnce()) -> Delivery {
    inlet.deliver(Instant::from_nanos(0), |sink| {
        let _ = sink.push(&RxHeader::default(), &frame(60));
        hold();
    })
}

#[test]
fn a_lane_that_is_wanted_back_is_lent_to_no_sender_any_more() {
    let (mut bench, inlet) = with_inlet();
    let wanted = Arc::new(AtomicBool::new(false));
    let later = Arc::new(AtomicU64::new(0));
    let (holds, held) = channel();
    let sender: JoinHandle<()> = spawn({
        let (wanted, later) = (Arc::clone(&wanted), Arc::clone(&later));
        move || {
            let _ = deliver(&inlet, || {
                holds.send(()).unwrap();
                while !wanted.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                // Long enough for the owner to be waiting.
                std::thread::sleep(Duration::from_millis(100));
            });
            // At once and over and over, as a guest does that has frames without end.
            for _ in 0..100 {
                let _ = deliver(&inlet, || {
                    later.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(1));
                });
            }
        }
    });
    held.recv().unwrap();
    wanted.store(true, Ordering::SeqCst);
    bench.apply(Op::StopQueue(RX)).unwrap();
    sender.join().unwrap();
    assert_eq!(later.load(Ordering::SeqCst), 0, "deliveries while the owner waits");
}

#[test]
fn a_driver_is_interrupted_while_others_deliver() {
    let (mut bench, inlet) = with_inlet();
    bench.post(200);
    let _ = bench.step();
    let rung = bench.bells[0].rung();
    assert_eq!(deliver(&inlet, || {}), Delivery::Done);
    let (holds, held) = channel();
    let (stepped, has_stepped) = channel();
    let sender = spawn(move || {
        let mut waited = Ok(());
        let _ = deliver(&inlet, || {
            holds.send(()).unwrap();
            waited = has_stepped.recv_timeout(Duration::from_secs(2));
        });
        waited
    });
    held.recv().unwrap();
    let _ = bench.step();
    assert_eq!(bench.bells[0].rung(), rung + 1);
    let _ = stepped.send(());
    assert_ne!(sender.join().unwrap(), Err(RecvTimeoutError::Timeout), "the worker had to wait");
}

#[test]
fn an_interrupt_for_what_others_delivered_is_counted_once() {
    let (mut bench, inlet) = with_inlet();
    let _ = bench.step();
    let told = bench.bells[0].rung();
    for _ in 0..3 {
        bench.post(200);
        bench.post(200);
        // Two deliveries, one interrupt: the worker had no time in between.
        let _ = (deliver(&inlet, || {}), deliver(&inlet, || {}));
        let _ = bench.step();
    }
    assert_eq!(bench.bells[0].rung(), told + 3);
    assert_eq!(bench.stats().rx.interrupts.value(), bench.bells[0].rung());
}
