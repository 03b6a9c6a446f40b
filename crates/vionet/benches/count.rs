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
use vionet_queue::{
    Batch, Cursor, DeviceReads, DeviceWrites, Direction, Format, Queue, QueueSetup, RingFeatures,
};
use vionet_raw::GuestAddr;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_testkit::GuestRam;

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
const SIZE: u16 = 256;
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
        while sink.push(&RxHeader::default(), &self.0) == Ok(()) {}
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A driver that says the same again and again, written straight into memory.
struct Driver {
    ram: GuestRam,
    format: Format,
    writable: bool,
    next: u32,
}

impl Driver {
    fn new(format: Format, writable: bool) -> Self {
        let ram = GuestRam::new(&[(RING, 0x1_0000), (BUFFERS, 0x20_0000)]);
        let driver = Self { ram, format, writable, next: 0 };
        for slot in 0..SIZE {
            let at = driver.buffer(slot);
            match format {
                Format::Split => {
                    let flags = u16::from(writable) << 1;
                    driver.ram.write_descriptor(driver.slot(slot), at, driver.len(), flags, 0);
                    driver.ram.write_u16(RING + 0x2004 + 2 * u64::from(slot), slot);
                }
                Format::Packed => driver.ram.write(driver.slot(slot), &at.to_le_bytes()),
            }
        }
        driver
    }

    fn buffer(&self, slot: u16) -> u64 {
        BUFFERS + 2048 * u64::from(slot)
    }

    fn len(&self) -> u32 {
        if self.writable { 2048 } else { 12 + FRAME }
    }

    fn slot(&self, slot: u16) -> u64 {
        RING + 16 * u64::from(slot)
    }

    fn setup(&self) -> QueueSetup {
        let [descriptors, driver, device] = [0, 0x2000, 0x4000].map(|at| GuestAddr(RING + at));
        QueueSetup { size: SIZE, descriptors, driver, device }
    }

    fn features(&self) -> RingFeatures {
        let format = self.format;
        RingFeatures { format, event_idx: false, indirect: true, in_order: false }
    }

    /// Makes one burst available.
    fn post(&mut self) {
        for _ in 0..BURST {
            if self.format == Format::Packed {
                let slot = (self.next % u32::from(SIZE)) as u16;
                let lap = (self.next / u32::from(SIZE)).is_multiple_of(2);
                let flags = if lap { 0x80 } else { 0x8000 } | (u16::from(self.writable) << 1);
                self.ram.write(self.slot(slot) + 8, &self.len().to_le_bytes());
                self.ram.write_u16(self.slot(slot) + 12, slot);
                self.ram.write_u16(self.slot(slot) + 14, flags);
            }
            self.next += 1;
        }
        if self.format == Format::Split {
            self.ram.write_u16(RING + 0x2002, self.next as u16);
        }
    }
}

/// A pair at work on one queue.
fn pair(driver: &Driver) -> Box<QueuePair> {
    let none = Offloads::NONE;
    let capabilities = Capabilities { transmit: none, receive: none, pairs_max: 1, mtu: 1500 };
    let mut nic = Nic::new(NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500 }, capabilities);
    let mut bits = FeatureBits::of(&[Feature::VERSION_1, Feature::MRG_RXBUF]);
    if driver.format == Format::Packed {
        bits = bits.with(Feature::RING_PACKED);
    }
    let index = if driver.writable { RX } else { TX };
    let (setup, cursor) = (driver.setup(), Cursor::start(driver.format));
    let mut out = None;
    for op in [
        Op::Negotiate(bits),
        Op::Memory(Arc::clone(driver.ram.space())),
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
                Effect::Done(result) => result.expect("a good setup"),
            }
        }
    }
    out.expect("the pair is out")
}

fn service(format: Format, writable: bool, batches: u32) -> u64 {
    let mut driver = Driver::new(format, writable);
    let mut pair = pair(&driver);
    let mut frames = 0;
    for _ in 0..batches {
        driver.post();
        let step = measured(|| pair.service(Instant::from_nanos(0)));
        assert!(step.worked && step.fault.is_none());
        frames += u64::from(BURST);
    }
    frames
}

fn verbs<D: Direction>(format: Format, batches: u32) -> u64 {
    let mut driver = Driver::new(format, D::WRITABLE);
    let space = driver.ram.space();
    let cursor = Cursor::start(format);
    let mut queue = driver.setup().activate(space, driver.features(), cursor).unwrap();
    let mut batch = Batch::<D>::new(Arc::clone(space), 12);
    let mut chains = 0;
    for _ in 0..batches {
        driver.post();
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
