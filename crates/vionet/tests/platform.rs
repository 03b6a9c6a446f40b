//! A device behind an IOMMU: what is translated, what is missing, what is denied.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use std::time::{Duration, Instant as Clock};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vionet::endpoint::{
    Capabilities, Delivery, Endpoint, EndpointFault, EndpointQueue, Inlet, OpenError, RxHeader,
    RxSink, Settings, TxBatch, Watch,
};
use vionet::stats::PairStats;
use vionet::transport::{Lines, Message, MmioNic, Wiring};
use vionet::{
    Device, Effect, Effects, Instant, Next, Nic, NicConfig, Op, OpError, QueueIndex, QueuePair,
    Step,
};
use vionet_frame::header::Offloads;
use vionet_queue::{Cursor, Fault, Format, QueueSetup, RingFeatures};
use vionet_raw::{Access, AddressSpace, GuestAddr, Translate, Untranslated, copy_out};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::mmio;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{Arrangement, Buffer, GuestRam, PackedDriver, SplitDriver};

const RX: QueueIndex = QueueIndex(0);
const TX: QueueIndex = QueueIndex(1);
const CONTROL: QueueIndex = QueueIndex(2);
const SIZE: u16 = 16;
const PAGE: u64 = 4096;
/// Device addresses are guest addresses and this.
const OFFSET: u64 = 0x7000_0000_0000;
const RINGS: u64 = 0x1_0000;
const FRAMES: u64 = 0x10_0000;

/// Pages by device address: where they are, and what is allowed.
#[derive(Debug, Default)]
struct Iommu {
    pages: Mutex<BTreeMap<u64, (u64, Access)>>,
    /// How often it was asked.
    asked: AtomicUsize,
    /// What it answers instead of the truth, if anything.
    lie: Mutex<Option<(u64, usize)>>,
}

impl Iommu {
    /// From now on the first page of the frames is another one, or none.
    fn move_frames(&self, guest: Option<u64>) {
        let mut pages = self.pages.lock().unwrap();
        match guest {
            Some(guest) => pages.insert(FRAMES + OFFSET, (guest, Access::Both)),
            None => pages.remove(&(FRAMES + OFFSET)),
        };
    }

    fn allow(&self, guest: u64, pages: u64, access: Access) {
        for page in guest / PAGE..guest / PAGE + pages {
            let at = page * PAGE;
            self.pages.lock().unwrap().insert(at + OFFSET, (at, access));
        }
    }
}

impl Translate for Iommu {
    fn translate(
        &self,
        at: u64,
        len: usize,
        access: Access,
    ) -> Result<(GuestAddr, usize), Untranslated> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Some((place, count)) = *self.lie.lock().unwrap() {
            return Ok((GuestAddr(place), count));
        }
        let within = at % PAGE;
        let pages = self.pages.lock().unwrap();
        let (place, allowed) = pages.get(&(at - within)).ok_or(Untranslated::Missing)?;
        if *allowed != Access::Both && *allowed != access {
            return Err(Untranslated::Denied);
        }
        Ok((GuestAddr(place + within), len.min((PAGE - within) as usize)))
    }
}

/// Keeps what is sent, and has one frame to deliver.
#[derive(Default)]
struct Host {
    sent: Vec<Vec<u8>>,
    bring: Option<Vec<u8>>,
    /// It takes no frame now.
    full: bool,
    inlet: Option<Arc<Inlet>>,
}

struct Side(Arc<Mutex<Host>>);

impl EndpointQueue for Side {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        while !self.0.lock().unwrap().full
            && let Some(frame) = frames.frames().first()
        {
            let mut bytes = vec![0; frame.len as usize];
            copy_out(frames.bytes(frame), 0, &mut bytes);
            self.0.lock().unwrap().sent.push(bytes);
            frames.sent(1);
        }
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let mut host = self.0.lock().unwrap();
        if let Some(frame) = &host.bring
            && sink.push(&RxHeader::default(), frame).is_ok()
        {
            host.bring = None;
        }
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { writable: self.0.lock().unwrap().full, ..Watch::default() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.0.lock().unwrap().inlet.clone()
    }
}

enum Driver {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl Driver {
    fn setup(&self) -> QueueSetup {
        match self {
            Self::Split(driver) => driver.setup(),
            Self::Packed(driver) => driver.setup(),
        }
    }

    fn post(&mut self, buffers: &[Buffer], table: Option<u64>) {
        match (self, table) {
            (Self::Split(driver), None) => {
                driver.post(buffers, Arrangement::Direct).unwrap();
                driver.expose();
            }
            (Self::Split(driver), Some(table)) => {
                let how = Arrangement::Indirect { direct: 0, table, reversed: false };
                driver.post(buffers, how).unwrap();
                driver.expose();
            }
            (Self::Packed(driver), table) => {
                driver.post(buffers, table).unwrap();
                driver.expose();
            }
        }
    }

    fn used(&mut self) -> usize {
        match self {
            Self::Split(driver) => driver.collect().len(),
            Self::Packed(driver) => driver.collect().len(),
        }
    }
}

struct Bench {
    iommu: Arc<Iommu>,
    host: Arc<Mutex<Host>>,
    ram: GuestRam,
    driver: Driver,
    nic: Nic,
    pair: Option<Box<QueuePair>>,
}

impl Bench {
    /// A device with one queue running; its ring is translated, nothing else is.
    fn new(format: Format, index: QueueIndex, features: FeatureBits) -> Self {
        Self::with(Host::default(), format, index, features)
    }

    fn with(host: Host, format: Format, index: QueueIndex, features: FeatureBits) -> Self {
        let ram = GuestRam::new(&[(RINGS, 0x1_0000), (FRAMES, 0x4_0000)]);
        let iommu = Arc::new(Iommu::default());
        iommu.allow(RINGS, 16, Access::Both);
        let driver = match format {
            Format::Split => Driver::Split(SplitDriver::new(&ram, RINGS, SIZE, false, 0)),
            Format::Packed => {
                let features =
                    RingFeatures { format, event_idx: false, indirect: true, in_order: false };
                let from = Cursor::start(format);
                Driver::Packed(PackedDriver::new(&ram, RINGS, features, SIZE, from))
            }
        };
        let none = Offloads::NONE;
        let capabilities = Capabilities { transmit: none, receive: none, pairs_max: 1, mtu: 1500 };
        let config = NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() };
        let nic = Nic::new(config, capabilities).behind_platform();
        let host = Arc::new(Mutex::new(host));
        let mut bench = Self { iommu, host, ram, driver, nic, pair: None };
        let platform = Arc::clone(&bench.iommu);
        let map = Arc::clone(bench.ram.space().map());
        let space = Arc::new(AddressSpace::translated(map, platform));
        let packed = if format == Format::Packed {
            FeatureBits::of(&[Feature::RING_PACKED])
        } else {
            FeatureBits::NONE
        };
        let base = FeatureBits::of(&[Feature::VERSION_1, Feature::INDIRECT_DESC]);
        bench.apply(Op::Negotiate(base | packed | features)).unwrap();
        bench.apply(Op::Memory(space)).unwrap();
        bench.apply(Op::EnableQueue(index, true)).unwrap();
        let by = if features.has(Feature::ACCESS_PLATFORM) { OFFSET } else { 0 };
        let QueueSetup { size, descriptors, driver, device } = bench.driver.setup();
        let [descriptors, driver, device] =
            [descriptors, driver, device].map(|GuestAddr(at)| GuestAddr(at + by));
        let setup = QueueSetup { size, descriptors, driver, device };
        bench.apply(Op::StartQueue { index, setup, cursor: Cursor::start(format) }).unwrap();
        bench
    }

    fn apply(&mut self, op: Op) -> Result<(), OpError> {
        let mut effects = Effects::default();
        self.nic.apply(op, &mut effects);
        let mut result = Ok(());
        while let Some(effect) = effects.next_effect() {
            match effect {
                Effect::Open(_) => {
                    let side: Box<dyn EndpointQueue> = Box::new(Side(Arc::clone(&self.host)));
                    self.nic.opened(Ok(vec![side]), &mut effects);
                }
                Effect::Start(pair) => self.pair = Some(pair),
                Effect::Recall(index) => {
                    let pair = self.pair.take();
                    self.nic.returned(index, pair, &mut effects);
                }
                Effect::Adapt(_)
                | Effect::Interrupt(_)
                | Effect::ControlFault(_)
                | Effect::ConfigChanged => {}
                Effect::Done(outcome) => result = outcome,
            }
        }
        result
    }

    fn step(&mut self) -> Step {
        self.pair.as_mut().unwrap().service(Instant::from_nanos(1000))
    }

    fn stats(&self) -> Arc<PairStats> {
        Arc::clone(self.nic.stats().next().unwrap())
    }

    /// A frame of `len` bytes with its header at the end of a page, so that it goes on in the next.
    fn across(&self, len: usize) -> (u64, Vec<u8>) {
        let at = FRAMES + PAGE - 20;
        let frame: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
        self.ram.write(at, &[&[0; 12][..], &frame].concat());
        (at, frame)
    }
}

/// Frames as they are brought, and what is seen of one in the guest's memory.
const FRAME: [u8; 60] = [7; 60];

impl Bench {
    /// A receive queue with four buffers in the frames' first page, of which one was filled.
    fn with_stock(host: Host, format: Format) -> Self {
        let mut bench = Self::with(host, format, RX, platform());
        bench.iommu.allow(FRAMES, 1, Access::Write);
        for buffer in 0..4 {
            bench.driver.post(&[Buffer::writable(FRAMES + OFFSET + buffer * 1024, 1024)], None);
        }
        bench
    }

    fn bring(&mut self) -> Step {
        self.host.lock().unwrap().bring = Some(FRAME.to_vec());
        self.step()
    }

    fn is_filled(&self, at: u64) -> bool {
        self.ram.read(at + 12, 60) == FRAME
    }
}

fn platform() -> FeatureBits {
    FeatureBits::of(&[Feature::ACCESS_PLATFORM])
}

const BOTH: [Format; 2] = [Format::Split, Format::Packed];

#[test]
fn a_frame_in_two_pages_is_found_wherever_they_are() {
    for format in BOTH {
        for table in [None, Some(FRAMES + 3 * PAGE)] {
            let mut bench = Bench::new(format, TX, platform());
            bench.iommu.allow(FRAMES, 4, Access::Read);
            let (at, frame) = bench.across(100);
            let buffer = Buffer::readable(at + OFFSET, 112);
            // The table is written to the guest's memory; its address is the device's.
            match table {
                None => bench.driver.post(&[buffer], None),
                Some(table) => {
                    bench.ram.write(table, &(at + OFFSET).to_le_bytes());
                    bench.ram.write(table + 8, &112_u32.to_le_bytes());
                    let pages = bench.ram.space().map().regions().len();
                    assert_eq!(pages, 2);
                    bench.iommu.pages.lock().unwrap().insert(table, (table, Access::Read));
                    bench.driver.post(&[buffer], Some(table));
                }
            }
            let step = bench.step();
            assert_eq!((step.fault, step.worked), (None, true), "{format:?} {table:?}");
            assert_eq!(bench.host.lock().unwrap().sent, [frame]);
            assert_eq!(bench.driver.used(), 1);
        }
    }
}

#[test]
fn what_is_missing_waits_without_spinning_and_goes_on_when_it_is_there() {
    for format in BOTH {
        let mut bench = Bench::new(format, TX, platform());
        bench.iommu.allow(FRAMES + 2 * PAGE, 1, Access::Read);
        let (at, frame) = bench.across(100);
        bench.ram.write(FRAMES + 2 * PAGE, &[0; 72]);
        // One that is there, then one whose second page is not, then one that is there again.
        let there = Buffer::readable(FRAMES + 2 * PAGE + OFFSET, 72);
        bench.driver.post(&[there], None);
        bench.driver.post(&[Buffer::readable(at + OFFSET, 112)], None);
        bench.driver.post(&[there], None);
        bench.iommu.allow(FRAMES, 1, Access::Read);
        for looks in 1..=3 {
            let step = bench.step();
            assert_eq!((step.fault, step.worked), (None, looks == 1));
            let soon = Instant::from_nanos(1_001_000);
            let Next::Wait(watch) = step.next else { panic!("it spins") };
            assert_eq!(watch.deadline, Some(soon));
            assert_eq!(bench.stats().tx.untranslated.value(), looks);
            assert_eq!(bench.host.lock().unwrap().sent.len(), 1, "nothing overtakes");
        }
        bench.iommu.allow(FRAMES, 2, Access::Read);
        let step = bench.step();
        assert_eq!((step.fault, step.worked), (None, true));
        assert_eq!(bench.host.lock().unwrap().sent[1], frame);
        assert_eq!((bench.host.lock().unwrap().sent.len(), bench.driver.used()), (3, 3));
    }
}

#[test]
fn receive_waits_for_translations_too() {
    for format in BOTH {
        let mut bench = Bench::new(format, RX, platform());
        bench.driver.post(&[Buffer::writable(FRAMES + OFFSET, 2000)], None);
        bench.host.lock().unwrap().bring = Some(vec![7; 60]);
        let Next::Wait(watch) = bench.step().next else { panic!("it spins") };
        assert!(watch.deadline.is_some());
        assert_eq!(bench.stats().rx.untranslated.value(), 1);
        bench.iommu.allow(FRAMES, 1, Access::Write);
        assert!(bench.step().worked);
        assert_eq!(bench.ram.read(FRAMES + 12, 60), [7; 60]);
        assert_eq!(bench.driver.used(), 1);
    }
}

#[test]
fn the_wrong_direction_is_denied_and_stops_that_queue() {
    for format in BOTH {
        let mut bench = Bench::new(format, TX, platform());
        bench.iommu.allow(FRAMES, 1, Access::Write);
        bench.driver.post(&[Buffer::readable(FRAMES + OFFSET, 100)], None);
        assert_eq!(bench.step().fault.unwrap().fault, Fault::BufferUnmapped);
        let mut bench = Bench::new(format, RX, platform());
        bench.iommu.allow(FRAMES, 1, Access::Read);
        bench.driver.post(&[Buffer::writable(FRAMES + OFFSET, 100)], None);
        bench.host.lock().unwrap().bring = Some(vec![7; 60]);
        assert_eq!(bench.step().fault.unwrap().fault, Fault::BufferUnmapped);
    }
}

#[test]
fn answers_that_make_no_sense_harm_nobody() {
    for format in BOTH {
        for (lie, fault) in [
            ((FRAMES, 0), None),
            ((FRAMES, usize::MAX), None),
            ((0, 100), Some(Fault::BufferUnmapped)),
            ((u64::MAX, 100), Some(Fault::BufferUnmapped)),
            ((FRAMES + 0x4_0000, 100), Some(Fault::BufferUnmapped)),
        ] {
            let mut bench = Bench::new(format, TX, platform());
            bench.driver.post(&[Buffer::readable(FRAMES + OFFSET, 100)], None);
            *bench.iommu.lie.lock().unwrap() = Some(lie);
            let step = bench.step();
            assert_eq!(step.fault.map(|fault| fault.fault), fault, "{lie:?}");
            let sent = bench.host.lock().unwrap().sent.clone();
            assert_eq!(sent.len(), usize::from(lie.1 == usize::MAX), "{lie:?}");
            assert!(sent.iter().all(|frame| frame.len() == 88), "no more than was asked for");
        }
        // A byte at a time: more pieces than a batch holds, and no more than that.
        let mut bench = Bench::new(format, TX, platform());
        bench.driver.post(&[Buffer::readable(FRAMES + OFFSET, 5000)], None);
        *bench.iommu.lie.lock().unwrap() = Some((FRAMES, 1));
        assert_eq!(bench.step().fault.unwrap().fault, Fault::ChainTooLong);
    }
}

#[test]
fn without_the_feature_addresses_are_the_guests_own() {
    for format in BOTH {
        let mut bench = Bench::new(format, TX, FeatureBits::NONE);
        let (at, frame) = bench.across(100);
        bench.driver.post(&[Buffer::readable(at, 112)], None);
        assert!(bench.step().worked, "RSV-05");
        assert_eq!(bench.host.lock().unwrap().sent, [frame]);
    }
}

#[test]
fn the_feature_is_offered_only_behind_a_platform() {
    let none = Offloads::NONE;
    let capabilities = Capabilities { transmit: none, receive: none, pairs_max: 1, mtu: 1500 };
    let nic = Nic::new(
        NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() },
        capabilities,
    );
    assert!(!nic.offer().has(Feature::ACCESS_PLATFORM));
    assert!(nic.behind_platform().offer().has(Feature::ACCESS_PLATFORM), "RSV-03");
}

#[test]
fn a_ring_that_is_not_one_piece_does_not_start() {
    let mut bench = Bench::new(Format::Split, TX, platform());
    bench.apply(Op::StopQueue(TX)).unwrap();
    let at = |at: u64| GuestAddr(RINGS + OFFSET + at);
    // 256 descriptors fill a page; beginning in the middle of one they go on in the next.
    let setup = QueueSetup {
        size: 256,
        descriptors: at(PAGE / 2),
        driver: at(4 * PAGE),
        device: at(5 * PAGE),
    };
    let start = || Op::StartQueue { index: TX, setup, cursor: Cursor::default() };
    bench
        .iommu
        .pages
        .lock()
        .unwrap()
        .insert(RINGS + OFFSET + PAGE, (RINGS + 9 * PAGE, Access::Both));
    assert_eq!(bench.apply(start()), Err(OpError::Queue(TX, Fault::RingUnmapped)));
    bench.iommu.allow(RINGS, 16, Access::Both);
    assert_eq!(bench.apply(start()), Ok(()));
}

#[test]
fn a_translation_is_used_for_one_step() {
    for format in BOTH {
        let mut bench = Bench::with_stock(Host::default(), format);
        assert!(bench.bring().worked);
        assert!(bench.is_filled(FRAMES));
        // The second buffer was posted with the first, and is elsewhere now.
        bench.iommu.move_frames(Some(FRAMES + 5 * PAGE));
        assert!(bench.bring().worked);
        assert!(!bench.is_filled(FRAMES + 1024), "{format:?}: it is not the device's any more");
        assert!(bench.is_filled(FRAMES + 5 * PAGE + 1024));
        bench.iommu.move_frames(None);
        let step = bench.bring();
        assert_eq!((step.worked, step.fault), (false, None));
        assert!(!bench.is_filled(FRAMES + 5 * PAGE + 2048));
        assert_eq!(bench.stats().rx.untranslated.value(), 1);
        bench.iommu.move_frames(Some(FRAMES));
        assert!(bench.step().worked, "what was brought has waited");
        assert!(bench.is_filled(FRAMES + 2048));
        assert_eq!(bench.driver.used(), 3, "each of them once");
    }
}

#[test]
fn a_step_without_frames_asks_for_no_translation() {
    for format in BOTH {
        let mut bench = Bench::with_stock(Host::default(), format);
        let before = bench.iommu.asked.load(Ordering::Relaxed);
        assert!(!bench.step().worked);
        assert_eq!(bench.iommu.asked.load(Ordering::Relaxed), before, "{format:?}");
    }
}

#[test]
fn no_translation_outlives_a_recall() {
    for format in BOTH {
        let mut bench = Bench::with_stock(Host::default(), format);
        assert!(bench.bring().worked);
        bench.iommu.move_frames(Some(FRAMES + 5 * PAGE));
        bench.apply(Op::Rewire(RX.pair())).unwrap();
        assert!(bench.bring().worked);
        assert!(!bench.is_filled(FRAMES + 1024));
        assert!(bench.is_filled(FRAMES + 5 * PAGE + 1024));
    }
}

#[test]
fn a_translation_is_used_for_one_delivery() {
    for format in BOTH {
        let inlet = Arc::new(Inlet::new().unwrap());
        let host = Host { inlet: Some(Arc::clone(&inlet)), ..Host::default() };
        let mut bench = Bench::with_stock(host, format);
        let deliver = || {
            let mut pushed = false;
            let delivery = inlet.deliver(Instant::from_nanos(0), |sink| {
                pushed = sink.push(&RxHeader::default(), &FRAME).is_ok();
            });
            delivery == Delivery::Done && pushed
        };
        assert!(deliver());
        bench.iommu.move_frames(Some(FRAMES + 5 * PAGE));
        assert!(deliver());
        assert!(bench.is_filled(FRAMES) && !bench.is_filled(FRAMES + 1024));
        assert!(bench.is_filled(FRAMES + 5 * PAGE + 1024));
        bench.iommu.move_frames(None);
        assert!(!deliver());
        assert_eq!(bench.driver.used(), 2);
    }
}

#[test]
fn a_frame_that_waits_for_the_host_is_read_where_it_is_by_then() {
    for format in BOTH {
        let mut bench = Bench::with(Host { full: true, ..Host::default() }, format, TX, platform());
        bench.iommu.allow(FRAMES, 1, Access::Read);
        bench.driver.post(&[Buffer::readable(FRAMES + OFFSET, 72)], None);
        bench.ram.write(FRAMES + 5 * PAGE + 12, &FRAME);
        assert!(!bench.step().worked);
        bench.iommu.move_frames(Some(FRAMES + 5 * PAGE));
        bench.host.lock().unwrap().full = false;
        assert!(bench.step().worked);
        assert_eq!(bench.host.lock().unwrap().sent, [FRAME]);
    }
}

/// Buffers that are given back at each step's end are still asked for with a kick, and only once.
#[test]
fn a_guest_whose_buffers_are_too_few_is_waited_for_without_spinning() {
    for format in BOTH {
        let bits = platform() | FeatureBits::of(&[Feature::MRG_RXBUF]);
        let mut bench = Bench::new(format, RX, bits);
        bench.iommu.allow(FRAMES, 1, Access::Write);
        let post = |bench: &mut Bench, at| {
            bench.driver.post(&[Buffer::writable(FRAMES + OFFSET + at, 40)], None);
        };
        post(&mut bench, 0);
        for _ in 0..3 {
            let step = bench.bring();
            assert!(!step.worked && matches!(step.next, Next::Wait(_)), "{format:?}: {step:?}");
        }
        post(&mut bench, 40);
        assert!(bench.step().worked, "a frame of 72 bytes with its header");
        assert_eq!(bench.driver.used(), 2);
    }
}

/// Else each frame of a sender would be paid for with a walk of a thousand descriptors, as often
/// as the receiving guest likes.
#[test]
fn a_chain_that_had_to_be_left_is_not_tried_again_for_each_frame() {
    const TABLE: u64 = FRAMES + 8 * PAGE;
    for format in BOTH {
        for (buffers, translated) in [(1023, true), (500, false)] {
            let inlet = Arc::new(Inlet::new().unwrap());
            let host = Host { inlet: Some(Arc::clone(&inlet)), ..Host::default() };
            let bits = platform() | FeatureBits::of(&[Feature::MRG_RXBUF]);
            let mut bench = Bench::with(host, format, RX, bits);
            bench.iommu.allow(FRAMES, 1, Access::Write);
            for page in 0..4 {
                let at = TABLE + page * PAGE;
                bench.iommu.pages.lock().unwrap().insert(at, (at, Access::Read));
            }
            // A buffer for a part of a frame, and a chain for which there is no room beside it, or
            // whose last buffer is not translated.
            bench.driver.post(&[Buffer::writable(FRAMES + OFFSET, 20)], None);
            let mut chain = vec![Buffer::writable(FRAMES + OFFSET, 1); buffers];
            if !translated {
                chain.push(Buffer::writable(FRAMES + OFFSET + 40 * PAGE, 1));
            }
            bench.driver.post(&chain, Some(TABLE));
            let mut asked = Vec::new();
            let (Delivery::Done | Delivery::Closed) =
                inlet.deliver(Instant::from_nanos(0), |sink| {
                    for _ in 0..3 {
                        assert!(sink.push(&RxHeader::default(), &FRAME).is_err(), "{format:?}");
                        asked.push(bench.iommu.asked.load(Ordering::Relaxed));
                    }
                });
            assert!(asked[0] > 500, "{format:?}: the chain was walked: {asked:?}");
            assert_eq!(asked, [asked[0]; 3], "{format:?} {translated}");
        }
    }
}

fn commands() -> FeatureBits {
    platform() | FeatureBits::of(&[Feature::CTRL_VQ, Feature::CTRL_RX])
}

/// A command, not translated yet, and where its answer is.
const COMMAND: [Buffer; 2] =
    [Buffer::readable(FRAMES + OFFSET, 3), Buffer::writable(FRAMES + OFFSET + PAGE, 1)];

/// As pairs do: a kick is no sign of a translation.
#[test]
fn a_command_that_is_not_translated_is_asked_for_again_in_a_while() {
    for format in BOTH {
        let mut bench = Bench::new(format, CONTROL, commands());
        bench.ram.write(FRAMES, &[0, 0, 1]);
        bench.apply(Op::Commands).unwrap();
        assert_eq!(bench.nic.commands_due_in(), None, "there is none");
        bench.driver.post(&COMMAND, None);
        for pages in [0, 1] {
            bench.iommu.allow(FRAMES, pages, Access::Both);
            bench.apply(Op::Commands).unwrap();
            assert_eq!(bench.nic.commands_due_in(), Some(Duration::from_millis(1)), "{format:?}");
            assert!(!bench.nic.has_commands(), "and not at once");
        }
        bench.iommu.allow(FRAMES, 2, Access::Both);
        bench.apply(Op::Commands).unwrap();
        assert_eq!((bench.nic.commands_due_in(), bench.driver.used()), (None, 1));
        assert_eq!(bench.ram.read(FRAMES + PAGE, 1), [0]);
        // One that waits when its queue stops waits for nothing.
        bench.iommu.move_frames(None);
        bench.driver.post(&COMMAND, None);
        bench.apply(Op::Commands).unwrap();
        bench.apply(Op::StopQueue(CONTROL)).unwrap();
        assert_eq!(bench.nic.commands_due_in(), None);
    }
}

/// A host side that is never opened.
struct Nobody;

impl Endpoint for Nobody {
    fn name(&self) -> String {
        "nobody".into()
    }

    fn capabilities(&self) -> Capabilities {
        let none = Offloads::NONE;
        Capabilities { transmit: none, receive: none, pairs_max: 1, mtu: 1500 }
    }

    fn open(&mut self, _settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok(Vec::new())
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}

#[test]
fn a_device_asks_about_a_command_again_by_itself_and_does_not_spin() {
    let bench = Bench::new(Format::Split, CONTROL, commands());
    let (iommu, ram) = (Arc::clone(&bench.iommu), bench.ram);
    let mut driver = Driver::Split(SplitDriver::new(&ram, RINGS, SIZE, false, 0));
    let config = NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() };
    let device = Device::new(config, Box::new(Nobody)).unwrap();
    let mut device = device.behind_platform().unwrap();
    device.apply(Op::Negotiate(FeatureBits::of(&[Feature::VERSION_1]) | commands())).unwrap();
    let platform = Arc::clone(&iommu);
    let space = AddressSpace::translated(Arc::clone(ram.space().map()), platform);
    device.apply(Op::Memory(Arc::new(space))).unwrap();
    let QueueSetup { size, descriptors, driver: avail, device: used } = driver.setup();
    let [descriptors, avail, used] =
        [descriptors, avail, used].map(|GuestAddr(at)| GuestAddr(at + OFFSET));
    let setup = QueueSetup { size, descriptors, driver: avail, device: used };
    ram.write(FRAMES, &[0, 0, 1]);
    driver.post(&COMMAND, None);
    let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    device.set_kick(CONTROL, Some(kick)).unwrap();
    device.apply(Op::StartQueue { index: CONTROL, setup, cursor: Cursor::default() }).unwrap();
    // It attends to the device whenever that wants it, for so long; how often that was.
    let attend = |device: &mut Device, time: Duration, until: &mut dyn FnMut() -> bool| {
        let (start, mut rounds) = (Clock::now(), 0);
        while start.elapsed() < time && !until() {
            let left = Timespec::try_from(time).unwrap();
            let reports = device.reports();
            let ready = poll(&mut [PollFd::from_borrowed_fd(reports, PollFlags::IN)], Some(&left));
            if ready.unwrap() > 0 {
                rounds += 1;
                assert_eq!(device.next_report(), None);
            }
        }
        rounds
    };
    let rounds = attend(&mut device, Duration::from_millis(200), &mut || false);
    assert!((2..=202).contains(&rounds), "{rounds} times in 200 ms");
    iommu.allow(FRAMES, 2, Access::Both);
    attend(&mut device, Duration::from_secs(10), &mut || driver.used() == 1);
    assert_eq!(ram.read(FRAMES + PAGE, 1), [0], "without a kick");
    let rounds = attend(&mut device, Duration::from_millis(20), &mut || false);
    assert!(rounds <= 1, "it sleeps again");
}

/// Interrupts that nobody looks at.
struct Silent;

impl Lines for Silent {
    fn level(&self, _asserted: bool) {}

    fn message(&self, _vector: u16, _message: Message) {}
}

#[test]
fn behind_registers_a_command_is_asked_about_again_too() {
    let bench = Bench::new(Format::Split, CONTROL, commands());
    let (iommu, ram) = (Arc::clone(&bench.iommu), bench.ram);
    let mut driver = Driver::Split(SplitDriver::new(&ram, RINGS, SIZE, false, 0));
    let config = NicConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, ..NicConfig::default() };
    let device = Device::new(config, Box::new(Nobody)).unwrap();
    let platform = Arc::clone(&iommu);
    let space = AddressSpace::translated(Arc::clone(ram.space().map()), platform);
    let nic = MmioNic::new(device, &Wiring::new(Arc::new(space), Arc::new(Silent))).unwrap();
    let set = |at: u64, value: u32| nic.write(at, &value.to_le_bytes());
    let bits = FeatureBits::of(&[Feature::VERSION_1]) | commands();
    for word in [0, 1] {
        set(mmio::DRIVER_FEATURES_SEL, word);
        set(mmio::DRIVER_FEATURES, (bits.0 >> (32 * word)) as u32);
    }
    set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK).into());
    let QueueSetup { size, descriptors, driver: avail, device: used } = driver.setup();
    set(mmio::QUEUE_SEL, u32::from(CONTROL.0));
    set(mmio::QUEUE_SIZE, size.into());
    let lows = [mmio::QUEUE_DESC_LOW, mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DEVICE_LOW];
    for (low, GuestAddr(at)) in lows.into_iter().zip([descriptors, avail, used]) {
        set(low, (at + OFFSET) as u32);
        set(low + 4, ((at + OFFSET) >> 32) as u32);
    }
    set(mmio::QUEUE_READY, 1);
    ram.write(FRAMES, &[0, 0, 1]);
    ram.write(FRAMES + PAGE, &[0xff]);
    driver.post(&COMMAND, None);
    set(mmio::STATUS, (ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK).into());
    // As whoever embeds it does.
    let attend = |time: Duration, until: &mut dyn FnMut() -> bool| {
        let (start, mut rounds) = (Clock::now(), 0);
        while start.elapsed() < time && !until() {
            let left = Timespec::try_from(time).unwrap();
            let ready = nic.with_attention(|attention| {
                poll(&mut [PollFd::from_borrowed_fd(attention, PollFlags::IN)], Some(&left))
            });
            if ready.unwrap() > 0 {
                rounds += 1;
                assert_eq!(nic.tend(), None);
            }
        }
        rounds
    };
    let rounds = attend(Duration::from_millis(200), &mut || false);
    iommu.allow(FRAMES, 2, Access::Both);
    attend(Duration::from_secs(2), &mut || driver.used() == 1);
    assert_eq!(ram.read(FRAMES + PAGE, 1), [0], "without a kick");
    assert!((2..=202).contains(&rounds), "{rounds} times in 200 ms");
    assert!(attend(Duration::from_millis(20), &mut || false) <= 1, "it sleeps again");
}
