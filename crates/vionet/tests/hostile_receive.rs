//! A guest that makes whoever delivers to it work for nothing.
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
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bench::{Bench, EVERYTHING, FRAMES, RX, frame};
use vionet::endpoint::{Inlet, Refused, RxHeader};
use vionet::stats::DropReason;
use vionet::{Instant, Next, Op};
use vionet_queue::{Cursor, QueueSetup};
use vionet_raw::{GuestAddr, SharedIndex, SharedRing, UsedElem};
use vionet_spec::feature::Feature;

/// Entries of the receive ring: as many as there can be.
const SIZE: u16 = 32_768;
/// Where it lies.
const SETUP: QueueSetup = QueueSetup {
    size: SIZE,
    descriptors: GuestAddr(FRAMES + 0x10_0000),
    driver: GuestAddr(FRAMES + 0x20_0000),
    device: GuestAddr(FRAMES + 0x30_0000),
};
/// No device writes this as a used chain.
const UNUSED: UsedElem = UsedElem { id: u32::MAX, len: u32::MAX };

/// A receive ring as its driver has it in hand.
struct Ring {
    avail: SharedIndex,
    used: SharedRing<UsedElem>,
    /// Chains seen to be used.
    seen: u16,
}

impl Ring {
    /// Posts all entries: one and the same buffer of one byte, too short for any header.
    fn start(bench: &mut Bench) -> Self {
        bench.ram.write_descriptor(SETUP.descriptors.0, FRAMES, 1, 2, 0);
        let avail = bench.ram.space().index(GuestAddr(SETUP.driver.0 + 2)).unwrap();
        let used = bench.ram.space().ring(GuestAddr(SETUP.device.0 + 4), SIZE).unwrap();
        (0..SIZE).for_each(|entry| used.store(entry, UNUSED));
        avail.store(SIZE);
        bench.apply(Op::StopQueue(RX)).unwrap();
        let start = Op::StartQueue { index: RX, setup: SETUP, cursor: Cursor::default() };
        bench.apply(start).unwrap();
        Self { avail, used, seen: 0 }
    }

    /// Posts each entry again as soon as it is used, though nobody has been told yet.
    fn turn(&mut self) {
        if self.used.load(self.seen) != UNUSED {
            self.used.store(self.seen, UNUSED);
            self.seen = self.seen.wrapping_add(1);
            self.avail.store(SIZE.wrapping_add(self.seen));
        }
    }
}

#[test]
fn a_delivery_ends_although_the_guest_posts_chains_too_short_without_end() {
    let inlet = Arc::new(Inlet::new().unwrap());
    let mut bench = Bench::idle(EVERYTHING);
    bench.host.lock().unwrap().inlet = Some(Arc::clone(&inlet));
    bench.apply(Op::Negotiate(Bench::bits(&[Feature::MRG_RXBUF]))).unwrap();
    bench.start_queues();
    let mut ring = Ring::start(&mut bench);
    let ends = Arc::new(AtomicBool::new(false));
    let guest = std::thread::spawn({
        let ends = Arc::clone(&ends);
        let start = std::time::Instant::now();
        move || {
            while !ends.load(Ordering::Relaxed) && start.elapsed() < Duration::from_secs(2) {
                ring.turn();
            }
        }
    });
    let mut result = Ok(());
    let _ = inlet.deliver(Instant::from_nanos(0), |sink| {
        result = sink.push(&RxHeader::default(), &frame(60));
    });
    ends.store(true, Ordering::Relaxed);
    guest.join().unwrap();
    assert_eq!(result, Err(Refused::Full));
    let skipped = bench.drops(true, DropReason::NoHeader);
    assert!((1..=4096).contains(&skipped), "{skipped} chains for one frame");
}

#[test]
fn chains_too_short_use_up_a_step_like_frames() {
    let mut bench = Bench::new(&[Feature::MRG_RXBUF], EVERYTHING);
    let _ring = Ring::start(&mut bench);
    bench.deliver(&frame(60), RxHeader::default());
    let step = bench.step();
    assert_eq!(step.next, Next::Again, "there is more to do, in another step");
    let skipped = bench.drops(true, DropReason::NoHeader);
    assert!((1..=64).contains(&skipped), "{skipped} chains in a step");
}
