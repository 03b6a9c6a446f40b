//! Work to be counted in instructions: `cargo xtask count` runs each case under callgrind and
//! compares with the thresholds it knows.
//!
//! ```text
//!   count CASE BATCHES      does the work, prints how many frames that were
//! ```
//!
//! Only what runs below [`measured`] counts: the driver's side is outside.
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
    reason = "a bench may stop"
)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vionet::endpoint::{
    Capabilities, EndpointFault, EndpointQueue, RxHeader, RxSink, TxBatch, Watch,
};
use vionet::{Effect, Effects, Instant, Nic, NicConfig, Op, QueueIndex, QueuePair};
use vionet_frame::header::Offloads;
use vionet_queue::{Batch, DeviceReads, DeviceWrites, Direction, Format, Queue};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::Treadmill;

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
/// Frames a driver like DPDK's makes available at once.
const BURST: u16 = 32;
const FRAME: u32 = 64;

/// The only function under which instructions count.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> T) -> T {
    std::hint::black_box(work())
}

/// Takes all, and brings frames without end.
struct Host([u8; FRAME as usize]);

impl EndpointQueue for Host {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.sent(frames.frames().len());
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        sink.push_all(&RxHeader::PLAIN, std::iter::repeat(&self.0[..]));
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn driver(format: Format, writable: bool) -> Treadmill {
    Treadmill::new(format, writable, if writable { 2048 } else { 12 + FRAME })
}

/// A pair at work on one queue.
fn pair(driver: &Treadmill, index: QueueIndex) -> Box<QueuePair> {
    let none = Offloads::NONE;
    let capabilities = Capabilities { transmit: none, receive: none, pairs_max: 1, mtu: 1500 };
    let mut nic = Nic::new(
        NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() },
        capabilities,
    );
    let mut bits = FeatureBits::of(&[Feature::VERSION_1, Feature::MRG_RXBUF]);
    if driver.features().format == Format::Packed {
        bits = bits.with(Feature::RING_PACKED);
    }
    let (setup, cursor) = (driver.setup(), driver.cursor());
    let mut out = None;
    for op in [
        Op::Negotiate(bits),
        Op::Memory(Arc::clone(driver.space())),
        Op::EnableQueue(index, true),
        Op::StartQueue { index, setup, cursor },
    ] {
        let mut effects = Effects::default();
        nic.apply(op, &mut effects);
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(_) => {
                    let host: Box<dyn EndpointQueue> = Box::new(Host([0; FRAME as usize]));
                    nic.opened(Ok(vec![host]), &mut effects);
                }
                Effect::Start(pair) => out = Some(pair),
                Effect::Recall(_) => panic!("nothing is out yet"),
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(result) => result.expect("a good setup"),
            }
        }
    }
    out.expect("the pair is out")
}

fn service(format: Format, writable: bool, batches: u32) -> u64 {
    let mut driver = driver(format, writable);
    let mut pair = pair(&driver, if writable { RX } else { TX });
    let mut frames = 0;
    for _ in 0..batches {
        driver.post(BURST);
        let step = measured(|| pair.service(Instant::from_nanos(0)));
        assert!(step.worked && step.fault.is_none());
        frames += u64::from(BURST);
    }
    frames
}

fn verbs<D: Direction>(format: Format, batches: u32) -> u64 {
    let mut driver = driver(format, D::WRITABLE);
    let space = driver.space();
    let mut queue = driver.setup().activate(space, driver.features(), driver.cursor()).unwrap();
    let mut batch = Batch::<D>::new(Arc::clone(space), 12);
    let mut chains = 0;
    for _ in 0..batches {
        driver.post(BURST);
        chains += measured(|| turn(&mut queue, &mut batch)) as u64;
    }
    chains
}

fn turn<D: Direction>(queue: &mut Queue, batch: &mut Batch<D>) -> usize {
    let taken = queue.take(64, batch).expect("a good ring");
    queue.put(batch, taken);
    let _told = queue.publish();
    taken
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [case, batches] = words.as_slice() else {
        println!("usage: count CASE BATCHES; `cargo xtask count` runs all cases");
        return;
    };
    let batches = batches.parse().expect("a number of batches");
    let frames = match case.as_str() {
        "ring-split" => verbs::<DeviceReads>(Format::Split, batches),
        "ring-packed" => verbs::<DeviceReads>(Format::Packed, batches),
        "ring-receive-split" => verbs::<DeviceWrites>(Format::Split, batches),
        "ring-receive-packed" => verbs::<DeviceWrites>(Format::Packed, batches),
        "transmit-split" => service(Format::Split, false, batches),
        "transmit-packed" => service(Format::Packed, false, batches),
        "receive-split" => service(Format::Split, true, batches),
        "receive-packed" => service(Format::Packed, true, batches),
        other => panic!("there is no case `{other}`"),
    };
    println!("{frames}");
}
