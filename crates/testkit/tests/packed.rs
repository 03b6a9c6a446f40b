//! An honest driver of any manners against the packed queue: every list comes back exactly once,
//! in order, with its bytes, and nobody sleeps through work. And hostile ones.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "tests may stop"
)]

use std::collections::VecDeque;

use proptest::prelude::*;
use vionet_queue::{
    Armed, Batch, Cursor, DeviceReads, DeviceWrites, Direction, Fault, Format, Published, Queue,
    QueueSetup, RingFeatures,
};
use vionet_raw::{GuestAddr, copy_out};
use vionet_testkit::{Buffer, GuestRam, PackedDriver, Random, each_seed};

const RING: u64 = 0x10_0000;
const BUFFERS: u64 = 0x4000;
const TABLES: u64 = 0x20_0000;
const REGIONS: &[(u64, usize)] =
    &[(BUFFERS, 0x4000), (0x8000, 0x4000), (RING, 0x9_0000), (TABLES, 0x1_0000)];

const FEATURES: RingFeatures =
    RingFeatures { format: Format::Packed, event_idx: true, indirect: true, in_order: false };

#[derive(Clone, Debug)]
enum Move {
    Post {
        buffers: Vec<(u16, u16)>,
        table: bool,
    },
    Expose,
    Collect,
    Listen(usize),
    Ignore,
    Take(usize),
    Put(usize),
    Untake,
    Publish,
    Arm,
    Disarm,
    Restart,
    /// The queue is reset and comes back with so many slots.
    Resize(u16),
}

fn any_move() -> impl Strategy<Value = Move> {
    let buffer = (0..0x7000_u16, prop_oneof![1..20_u16, 1..2000_u16]);
    let buffers = prop::collection::vec(buffer, 1..6);
    prop_oneof![
        6 => (buffers, any::<bool>()).prop_map(|(buffers, table)| Move::Post { buffers, table }),
        4 => Just(Move::Expose),
        3 => Just(Move::Collect),
        2 => prop_oneof![Just(0), 0..9_usize].prop_map(Move::Listen),
        1 => Just(Move::Ignore),
        5 => prop_oneof![Just(64), 0..6_usize].prop_map(Move::Take),
        4 => (0..6_usize).prop_map(Move::Put),
        1 => Just(Move::Untake),
        4 => Just(Move::Publish),
        3 => Just(Move::Arm),
        1 => Just(Move::Disarm),
        1 => Just(Move::Restart),
    ]
}

/// What a direction can tell of a taken list.
trait Side: Direction + Sized {
    fn settle(batch: &mut Batch<Self>, count: usize);
    fn bytes(batch: &Batch<Self>, index: usize) -> Option<Vec<u8>>;
}

impl Side for DeviceReads {
    fn settle(_: &mut Batch<Self>, _: usize) {}
    fn bytes(batch: &Batch<Self>, index: usize) -> Option<Vec<u8>> {
        let row = batch.row(index).unwrap();
        let mut bytes = vec![0; row.bytes() as usize];
        let lead = copy_out(batch.lead(row), 0, &mut bytes);
        copy_out(batch.payload(row), 0, &mut bytes[lead..]);
        Some(bytes)
    }
}

impl Side for DeviceWrites {
    fn settle(batch: &mut Batch<Self>, count: usize) {
        for index in 0..count.min(batch.len()) {
            let bytes = batch.row(index).unwrap().bytes();
            batch.set_written(index, bytes);
        }
    }
    fn bytes(_: &Batch<Self>, _: usize) -> Option<Vec<u8>> {
        None
    }
}

struct World<D: Side> {
    ram: GuestRam,
    driver: PackedDriver,
    queue: Option<Queue>,
    batch: Batch<D>,
    /// Lists in the order they were posted: id, length, contents.
    order: VecDeque<(u16, u32, Vec<u8>)>,
    /// Of these, how many are in the batch, put, published.
    counts: [usize; 3],
    hidden: usize,
    tables: u64,
    asleep: bool,
    /// The driver sleeps until so many more lists are published.
    listening: Option<usize>,
}

impl<D: Side> World<D> {
    fn new(size: u16, features: RingFeatures, from: Cursor) -> Self {
        let ram = GuestRam::new(REGIONS);
        let pattern: Vec<u8> = (0..0x8000_u32).map(|at| (at % 251) as u8).collect();
        ram.write(BUFFERS, &pattern);
        let driver = PackedDriver::new(&ram, RING, features, size, from);
        let queue = driver.setup().activate(ram.space(), driver.features(), from).unwrap();
        let batch = Batch::new(ram.space().clone(), 12);
        let (order, counts, listening) = (VecDeque::new(), [0; 3], None);
        let queue = Some(queue);
        Self {
            ram,
            driver,
            queue,
            batch,
            order,
            counts,
            hidden: 0,
            tables: 0,
            asleep: false,
            listening,
        }
    }

    fn queue(&mut self) -> &mut Queue {
        self.queue.as_mut().unwrap()
    }

    fn apply(&mut self, step: Move) {
        match step {
            Move::Post { buffers, table } => self.post(&buffers, table),
            Move::Expose => {
                let kick = self.driver.expose();
                assert!(kick || !self.asleep || self.hidden == 0, "a sleeping device is kicked");
                self.asleep &= self.hidden == 0;
                self.hidden = 0;
            }
            Move::Collect => self.collect(),
            Move::Listen(ahead) => {
                let waiting = self.driver.listen(ahead);
                // Those it does not have yet cannot be waited for by place.
                let can = ahead < self.driver.owed();
                self.listening = (!waiting && can).then_some(ahead);
            }
            Move::Ignore => {
                self.driver.ignore();
                self.listening = None;
            }
            Move::Take(limit) => self.take(limit),
            Move::Put(count) => self.put(count),
            Move::Untake => {
                let Self { queue, batch, .. } = self;
                queue.as_mut().unwrap().untake(batch);
                self.counts[0] = 0;
            }
            Move::Publish => self.publish(),
            Move::Arm => {
                self.asleep = self.queue().arm() == Armed::Sleep && self.counts[0] == 0;
            }
            Move::Disarm => {
                self.queue().disarm();
                self.asleep = false;
            }
            Move::Restart => self.restart(),
            Move::Resize(size) => self.resize(size),
        }
    }

    fn post(&mut self, buffers: &[(u16, u16)], table: bool) {
        let buffers: Vec<_> = buffers
            .iter()
            .map(|(at, len)| Buffer {
                at: BUFFERS + u64::from(*at),
                len: u32::from(*len),
                writable: D::WRITABLE,
            })
            .collect();
        self.tables = (self.tables + 1) % 512;
        let table = table.then_some(TABLES + 112 * self.tables);
        if let Some(id) = self.driver.post(&buffers, table) {
            let bytes: Vec<u8> =
                buffers.iter().flat_map(|buffer| self.ram.read(buffer.at, buffer.len)).collect();
            self.order.push_back((id, bytes.len() as u32, bytes));
            self.hidden += 1;
        }
    }

    fn take(&mut self, limit: usize) {
        let [held, put, published] = self.counts;
        let Self { queue, batch, .. } = self;
        let taken = queue.as_mut().unwrap().take(limit, batch).expect("an honest driver");
        let visible = self.order.len() - self.hidden;
        let before = held + put + published;
        assert_eq!(taken, limit.min(visible - before), "all that is visible, nothing hidden");
        for index in held..held + taken {
            let (_, len, bytes) = &self.order[put + published + index];
            assert_eq!(self.batch.row(index).unwrap().bytes(), *len);
            if let Some(found) = D::bytes(&self.batch, index) {
                assert_eq!(&found, bytes);
            }
        }
        self.counts[0] += taken;
        assert_eq!(self.queue().has_work(), visible > before + taken);
    }

    fn put(&mut self, count: usize) {
        let count = count.min(self.counts[0]);
        let Self { queue, batch, .. } = self;
        D::settle(batch, count);
        queue.as_mut().unwrap().put(batch, count);
        self.counts[0] -= count;
        self.counts[1] += count;
    }

    fn publish(&mut self) {
        let told = self.queue().publish();
        let step = std::mem::take(&mut self.counts[1]);
        if let Some(ahead) = self.listening {
            let event_idx = self.driver.features().event_idx;
            let due = if event_idx { ahead < step } else { step > 0 };
            assert!(!due || told == Published::Interrupt, "the driver sleeps through a buffer");
            self.listening = if due { None } else { ahead.checked_sub(step) };
        }
        self.counts[2] += step;
    }

    fn collect(&mut self) {
        let used = self.driver.collect();
        assert_eq!(used.len(), self.counts[2], "all that is published, nothing before");
        for used in used {
            let (id, bytes, _) = self.order.pop_front().expect("used once only");
            assert_eq!(used.head, id, "in order");
            assert_eq!(used.len, if D::WRITABLE { bytes } else { 0 });
        }
        self.counts[2] = 0;
        self.listening = None;
    }

    /// A live position is saved and gone on from.
    fn restart(&mut self) {
        self.apply(Move::Untake);
        self.publish();
        let cursor = self.queue.take().unwrap().stop().unwrap();
        let (setup, features) = (self.driver.setup(), self.driver.features());
        self.queue = Some(setup.activate(self.ram.space(), features, cursor).unwrap());
        self.asleep = false;
    }

    /// A queue reset: what is still with the device is taken back, and all begins anew.
    fn resize(&mut self, size: u16) {
        self.drain();
        let features = self.driver.features();
        let start = Cursor::start(Format::Packed);
        assert!(self.queue.take().unwrap().stop().is_ok());
        self.driver = PackedDriver::new(&self.ram, RING, features, size, start);
        let setup = self.driver.setup();
        self.queue = Some(setup.activate(self.ram.space(), features, start).unwrap());
        self.asleep = false;
    }

    /// Everything that was posted comes back.
    fn drain(&mut self) {
        self.apply(Move::Expose);
        while self.counts[2] < self.order.len() {
            self.take(64);
            self.put(usize::MAX);
            self.publish();
        }
        self.collect();
        assert_eq!(self.driver.owed(), 0);
    }

    fn finish(mut self) {
        self.drain();
        assert!(self.queue.unwrap().stop().is_ok());
    }
}

/// What either side does next, by chance.
fn random_move(random: &mut Random) -> Move {
    let below = |random: &mut Random, most: u64| random.below(most) as usize;
    match random.below(200) {
        0..40 => {
            let count = 1 + random.below(4);
            let buffers = (0..count).map(|_| {
                let len =
                    if random.below(2) == 0 { 1 + random.below(20) } else { 1 + random.below(200) };
                (random.below(0x7000) as u16, len as u16)
            });
            Move::Post { buffers: buffers.collect(), table: random.below(4) == 0 }
        }
        40..68 => Move::Expose,
        68..88 => Move::Collect,
        88..100 => Move::Listen(below(random, 9)),
        100..106 => Move::Ignore,
        106..136 => Move::Take(if random.below(2) == 0 { 64 } else { below(random, 6) }),
        136..160 => Move::Put(below(random, 6)),
        160..166 => Move::Untake,
        166..188 => Move::Publish,
        188..194 => Move::Arm,
        194..198 => Move::Disarm,
        198 => Move::Restart,
        _ => Move::Resize([1, 2, 3, 7, 64, 100, 256][below(random, 7)]),
    }
}

fn simulate<D: Side>(seed: u64, steps: u32) {
    let mut random = Random::new(seed);
    let (event_idx, in_order) = (random.below(2) == 0, random.below(2) == 0);
    let features = RingFeatures { event_idx, in_order, ..FEATURES };
    let mut world = World::<D>::new(7, features, Cursor::start(Format::Packed));
    for _ in 0..steps {
        let step = random_move(&mut random);
        world.apply(step);
    }
    world.finish();
}

/// Five million steps of driver and device, each life a seed that can be lived again.
#[test]
fn millions_of_steps_by_seed() {
    each_seed(1000, |seed| match seed % 2 {
        0 => simulate::<DeviceReads>(seed, 5_000),
        _ => simulate::<DeviceWrites>(seed, 5_000),
    });
}

fn run<D: Side>(moves: Vec<Move>, size: u16, features: RingFeatures, slot: u16, wrap: bool) {
    let at = (slot % size) | (u16::from(wrap) << 15);
    let mut world = World::<D>::new(size, features, Cursor { avail: at, used: at });
    moves.into_iter().for_each(|step| world.apply(step));
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// PKD-01 to PKD-20, PKN-01 to PKN-07.
    #[test]
    fn whatever_both_sides_do_each_list_comes_back_once_and_nobody_sleeps_through_work(
        moves in prop::collection::vec(any_move(), 1..200),
        size in prop::sample::select(vec![1_u16, 2, 3, 7, 64, 100, 256]),
        (event_idx, in_order) in any::<(bool, bool)>(),
        (slot, wrap) in any::<(u16, bool)>(),
        writable: bool,
    ) {
        let features = RingFeatures { event_idx, in_order, ..FEATURES };
        if writable {
            run::<DeviceWrites>(moves, size, features, slot, wrap);
        } else {
            run::<DeviceReads>(moves, size, features, slot, wrap);
        }
    }
}

#[test]
fn the_largest_ring_goes_round() {
    let start = Cursor::start(Format::Packed);
    let mut world = World::<DeviceReads>::new(32_768, FEATURES, start);
    for round in 0..70_000_u32 {
        let buffers = vec![(0, (1 + round % 1500) as u16)];
        world.apply(Move::Post { buffers, table: false });
        world.apply(Move::Expose);
        world.apply(Move::Take(8));
        world.apply(Move::Put(8));
        world.apply(Move::Publish);
        world.apply(Move::Collect);
        world.apply(Move::Arm);
    }
    world.finish();
}

const READ: u16 = 0x80;
const NEXT: u16 = 0x81;

/// A ring of 4 in its first lap, with these descriptors: address, length, id, flags.
fn taken(descriptors: &[(u64, u32, u16, u16)]) -> Result<usize, Fault> {
    let ram = GuestRam::new(REGIONS);
    let setup = QueueSetup {
        size: 4,
        descriptors: GuestAddr(RING),
        driver: GuestAddr(RING + 64),
        device: GuestAddr(RING + 68),
    };
    for (slot, (addr, len, id, flags)) in descriptors.iter().enumerate() {
        ram.write_descriptor(RING + 16 * slot as u64, *addr, *len, *id, *flags);
    }
    let start = Cursor::start(Format::Packed);
    let mut queue = setup.activate(ram.space(), FEATURES, start).unwrap();
    let mut batch = Batch::<DeviceReads>::new(ram.space().clone(), 12);
    let taken = queue.take(64, &mut batch);
    assert_eq!(queue.fault(), taken.err(), "a fault is latched");
    taken
}

#[test]
fn each_broken_rule_has_its_name() {
    let good = (BUFFERS, 60, 0, READ);
    assert_eq!(taken(&[good, good]), Ok(2));
    assert_eq!(taken(&[(BUFFERS, 60, 0, NEXT), good]), Ok(1));
    assert_eq!(taken(&[(BUFFERS, 60, 0, 0x8080)]), Ok(0), "used, not available");
    assert_eq!(taken(&[(BUFFERS, 60, 0, 0x8000)]), Ok(0), "of the lap before");
    // PKD-26, PKD-18
    assert_eq!(taken(&[(BUFFERS, 60, 0, NEXT)]), Err(Fault::ListIncomplete));
    // PKD-24
    assert_eq!(taken(&[(BUFFERS, 60, 0, NEXT); 4]), Err(Fault::ListIncomplete));
    // PKD-25
    assert_eq!(taken(&[(BUFFERS, 60, 0, READ | 2)]), Err(Fault::WritableInTransmit));
    // PKD-27
    let table = (TABLES, 16, 0, READ | 4);
    assert_eq!(taken(&[(BUFFERS, 60, 0, NEXT), table]), Err(Fault::IndirectWithNext));
    assert_eq!(taken(&[(TABLES, 16, 0, NEXT | 4), good]), Err(Fault::IndirectWithNext));
    assert_eq!(taken(&[(TABLES, 0, 0, READ | 4)]), Err(Fault::IndirectLength));
    assert_eq!(taken(&[(TABLES, 17, 0, READ | 4)]), Err(Fault::IndirectLength));
    assert_eq!(taken(&[(0, 16, 0, READ | 4)]), Err(Fault::IndirectUnmapped));
    assert_eq!(taken(&[table]), Err(Fault::BufferEmpty), "PKD-09: WRITE beside INDIRECT");
    assert_eq!(taken(&[(TABLES, 16, 0, READ | 6)]), Err(Fault::BufferEmpty));
    assert_eq!(taken(&[(BUFFERS, 0, 0, READ)]), Err(Fault::BufferEmpty));
    assert_eq!(taken(&[(0, 60, 0, READ)]), Err(Fault::BufferUnmapped));
    assert_eq!(taken(&[(u64::MAX, 60, 0, READ)]), Err(Fault::BufferUnmapped));
}

#[test]
fn a_slot_that_was_not_given_back_cannot_be_available_again() {
    let ram = GuestRam::new(REGIONS);
    let start = Cursor::start(Format::Packed);
    let driver = PackedDriver::new(&ram, RING, FEATURES, 2, start);
    let mut queue = driver.setup().activate(ram.space(), FEATURES, start).unwrap();
    let mut batch = Batch::<DeviceReads>::new(ram.space().clone(), 12);
    for slot in 0..2 {
        ram.write_descriptor(RING + 16 * slot, BUFFERS, 60, 0, READ);
    }
    assert_eq!(queue.take(64, &mut batch), Ok(2));
    // The second lap: AVAIL clear, USED set.
    ram.write_descriptor(RING, BUFFERS, 60, 0, 0x8000);
    assert_eq!(queue.take(64, &mut batch), Err(Fault::SlotsOverrun));
    queue.untake(&mut batch);
    assert!(queue.stop().is_ok());
}

#[test]
fn setups_that_make_no_ring_are_refused() {
    let ram = GuestRam::new(REGIONS);
    let good = QueueSetup {
        size: 5,
        descriptors: GuestAddr(RING),
        driver: GuestAddr(RING + 80),
        device: GuestAddr(RING + 84),
    };
    let start = Cursor::start(Format::Packed);
    let refused = |setup: QueueSetup, from| setup.activate(ram.space(), FEATURES, from).err();
    assert_eq!(refused(good, start), None);
    assert_eq!(refused(QueueSetup { size: 0, ..good }, start), Some(Fault::BadSize));
    assert_eq!(refused(QueueSetup { size: 32_769, ..good }, start), Some(Fault::BadSize));
    let at = |at| GuestAddr(RING + at);
    for bad in [
        QueueSetup { descriptors: at(8), ..good },
        QueueSetup { driver: at(82), ..good },
        QueueSetup { device: at(82), ..good },
    ] {
        assert_eq!(refused(bad, start), Some(Fault::Misaligned), "PKD-22");
    }
    let far = QueueSetup { device: GuestAddr(0x40_0000), ..good };
    assert_eq!(refused(far, start), Some(Fault::RingUnmapped));
    let beyond = Cursor { avail: 5, used: 0 };
    assert_eq!(refused(good, beyond), Some(Fault::BadPosition));
}

/// Bytes of any kind in the ring, in its events and in tables; memory ends at pages that fault.
fn hostile<D: Side>(random: &mut Random) {
    let ram = GuestRam::new(&[(RING, 0x1000), (BUFFERS, 0x4000)]);
    let size = 1 + random.below(40) as u16;
    let features = RingFeatures {
        event_idx: random.below(2) == 0,
        in_order: random.below(2) == 0,
        ..FEATURES
    };
    let start = Cursor { avail: random.below(size.into()) as u16 | 1 << 15, used: 1 << 15 };
    let driver = PackedDriver::new(&ram, RING, features, size, start);
    let mut queue = driver.setup().activate(ram.space(), features, start).unwrap();
    let mut batch = Batch::<D>::new(ram.space().clone(), 12);
    for _ in 0..8 {
        for _ in 0..random.below(12) {
            let slot = random.below(u64::from(size) + 1);
            let addr = match random.below(8) {
                0 => random.next(),
                1 => RING + random.below(0x1010),
                _ => BUFFERS + random.below(0x3f00),
            };
            let len =
                if random.below(9) == 0 { random.next() as u32 } else { 16 << random.below(4) };
            let lap = [0x80, 0x8000, 0x8080, 0][random.below(4) as usize];
            let odd = if random.below(4) == 0 { random.below(8) as u16 } else { 0 };
            let flags = lap | odd | u16::from(D::WRITABLE) << 1;
            ram.write_descriptor(RING + 16 * slot, addr, len, random.next() as u16, flags);
        }
        let _ = queue.take(random.below(70) as usize, &mut batch);
        D::settle(&mut batch, 64);
        queue.put(&mut batch, random.below(20) as usize);
        let _ = (queue.publish(), queue.arm(), queue.has_work());
        if random.below(4) == 0 {
            queue.untake(&mut batch);
        }
    }
    queue.untake(&mut batch);
    let _ = queue.publish();
    assert!(queue.stop().is_ok(), "all was given back");
}

#[test]
fn fifty_thousand_hostile_rings_do_no_harm() {
    let mut random = Random::new(0x1af4);
    for _ in 0..25_000 {
        hostile::<DeviceReads>(&mut random);
        hostile::<DeviceWrites>(&mut random);
    }
}
