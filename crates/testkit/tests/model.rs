//! An honest driver of any manners against the queue: every chain comes back exactly once, in
//! order, with its length, and nobody sleeps through work.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::VecDeque;

use proptest::prelude::*;
use vionet_queue::{Armed, Cursor, DeviceReads, DeviceWrites, Published};
use vionet_testkit::{Arrangement, Buffer, GuestRam, Probe, Random, Reach, SplitDriver, each_seed};

const RING: u64 = 0x10_0000;
const BUFFERS: u64 = 0x4000;
const TABLES: u64 = 0x20_0000;
/// Two regions that touch at 0x8000, so that buffers cross.
const REGIONS: &[(u64, usize)] =
    &[(BUFFERS, 0x4000), (0x8000, 0x4000), (RING, 0x4000), (TABLES, 0x1_0000)];

/// What either side does next.
#[derive(Clone, Debug)]
enum Move {
    Post { buffers: Vec<(u16, u16)>, direct: Option<usize>, reversed: bool, odd: bool },
    Expose,
    Collect,
    Listen(u16),
    Ignore,
    Shuffle(u64),
    Take(usize),
    Put(usize),
    Untake,
    Publish,
    Arm,
    Disarm,
}

fn any_move() -> impl Strategy<Value = Move> {
    let buffer = (0..0x7000_u16, prop_oneof![1..20_u16, 1..2000_u16]);
    let buffers = prop::collection::vec(buffer, 1..6);
    let post = (buffers, prop::option::of(0..3_usize), any::<bool>(), any::<bool>());
    prop_oneof![
        6 => post.prop_map(|(buffers, direct, reversed, odd)|
            Move::Post { buffers, direct, reversed, odd }),
        4 => Just(Move::Expose),
        3 => Just(Move::Collect),
        2 => prop_oneof![Just(0), 0..9_u16].prop_map(Move::Listen),
        1 => Just(Move::Ignore),
        1 => any::<u64>().prop_map(Move::Shuffle),
        5 => prop_oneof![Just(64), 0..6_usize].prop_map(Move::Take),
        4 => (0..6_usize).prop_map(Move::Put),
        1 => Just(Move::Untake),
        4 => Just(Move::Publish),
        3 => Just(Move::Arm),
        1 => Just(Move::Disarm),
    ]
}

/// Both sides of a ring, and what the one has been promised by the other.
struct World<D: Reach> {
    driver: SplitDriver,
    probe: Probe<D>,
    /// Chains in the order they were posted, with their bytes.
    order: VecDeque<(u16, u32)>,
    tables: u64,
    /// Chains posted and not exposed.
    hidden: usize,
    /// The device sleeps until a kick.
    asleep: bool,
    /// The driver sleeps until used.idx goes past this entry; chains the device has already
    /// published when it began to listen are its own to see.
    listening: Option<u16>,
}

impl<D: Reach> World<D> {
    fn new(size: u16, event_idx: bool, start: u16, lead: u32) -> Self {
        let ram = GuestRam::new(REGIONS);
        let driver = SplitDriver::new(&ram, RING, size, event_idx, start);
        let from = Cursor { avail: start, used: start };
        let probe = Probe::new(&ram, driver.setup(), driver.features(), from, lead).unwrap();
        let (order, asleep, listening) = (VecDeque::new(), false, None);
        Self { driver, probe, order, tables: 0, hidden: 0, asleep, listening }
    }

    fn apply(&mut self, step: Move) {
        match step {
            Move::Post { buffers, direct, reversed, odd } => {
                self.post(&buffers, direct, reversed, odd);
            }
            Move::Expose => {
                let kick = self.driver.expose();
                assert!(kick || !self.asleep || self.hidden == 0, "a sleeping device is kicked");
                self.asleep &= self.hidden == 0;
                self.hidden = 0;
            }
            Move::Collect => self.collect(),
            Move::Listen(ahead) => {
                let waiting = self.driver.listen(ahead);
                self.listening = (!waiting).then(|| self.driver.used_idx().wrapping_add(ahead));
            }
            Move::Ignore => {
                self.driver.ignore();
                self.listening = None;
            }
            Move::Shuffle(by) => self.driver.shuffle(by),
            Move::Take(limit) => {
                let held = self.probe.held();
                let visible = self.order.len() - self.hidden;
                let taken = self.probe.take(limit).expect("an honest driver breaks no rule");
                assert!(taken + held <= visible, "nothing hidden is taken");
            }
            Move::Put(count) => self.probe.put(count),
            Move::Untake => self.probe.untake(),
            Move::Publish => self.publish(),
            Move::Arm => {
                self.asleep = self.probe.arm() == Armed::Sleep && self.probe.held() == 0;
            }
            Move::Disarm => {
                self.probe.disarm();
                self.asleep = false;
            }
        }
    }

    fn post(&mut self, buffers: &[(u16, u16)], direct: Option<usize>, reversed: bool, odd: bool) {
        let buffers: Vec<_> = buffers
            .iter()
            .map(|(at, len)| Buffer {
                at: BUFFERS + u64::from(*at),
                len: u32::from(*len),
                writable: D::WRITABLE,
            })
            .collect();
        let arrangement = match direct {
            None => Arrangement::Direct,
            Some(direct) => {
                // A table stays until its chain is used; there are more places than chains.
                self.tables = (self.tables + 1) % 512;
                let table = TABLES + 112 * self.tables + u64::from(odd);
                Arrangement::Indirect { direct, table, reversed }
            }
        };
        if let Some(head) = self.driver.post(&buffers, arrangement) {
            let bytes = buffers.iter().map(|buffer| buffer.len).sum();
            self.order.push_back((head, bytes));
            self.hidden += 1;
        }
    }

    fn publish(&mut self) {
        let before = self.driver.used_idx();
        let told = self.probe.publish();
        let step = self.driver.used_idx().wrapping_sub(before);
        if let Some(entry) = self.listening {
            let due = if self.driver.features().event_idx {
                entry.wrapping_sub(before) < step
            } else {
                step > 0
            };
            assert!(!due || told == Published::Interrupt, "the driver sleeps through a buffer");
            if due {
                self.listening = None;
            }
        }
    }

    fn collect(&mut self) {
        for used in self.driver.collect() {
            let (head, bytes) = self.order.pop_front().expect("used once only");
            assert_eq!(used.head, head, "in order");
            assert_eq!(used.len, if D::WRITABLE { bytes } else { 0 });
        }
        self.listening = None;
    }

    /// Everything that was posted comes back in the end.
    fn finish(mut self) {
        self.driver.expose();
        loop {
            let taken = self.probe.take(64).expect("an honest driver breaks no rule");
            self.probe.put(usize::MAX);
            let _told = self.probe.publish();
            if taken == 0 {
                break;
            }
        }
        self.hidden = 0;
        self.collect();
        assert!(self.order.is_empty(), "a chain is lost");
        assert_eq!((self.driver.owed(), self.probe.queue().fault()), (0, None));
        self.probe.stop();
    }
}

fn run<D: Reach>(moves: Vec<Move>, size: u16, event_idx: bool, start: u16, lead: u32) {
    let mut world = World::<D>::new(size, event_idx, start, lead);
    moves.into_iter().for_each(|step| world.apply(step));
    world.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn whatever_both_sides_do_each_chain_comes_back_once_and_nobody_sleeps_through_work(
        moves in prop::collection::vec(any_move(), 1..200),
        size in prop::sample::select(vec![1_u16, 2, 8, 64, 256]),
        event_idx: bool,
        start in prop::sample::select(vec![0_u16, 1, 0x7fff, 0xfff0, 0xffff]),
        lead in prop::sample::select(vec![0_u32, 1, 12, 20]),
        writable: bool,
    ) {
        if writable {
            run::<DeviceWrites>(moves, size, event_idx, start, lead);
        } else {
            run::<DeviceReads>(moves, size, event_idx, start, lead);
        }
    }
}

/// What either side does next, by chance.
fn random_move(random: &mut Random) -> Move {
    let below = |random: &mut Random, most: u64| random.below(most) as usize;
    match random.below(200) {
        0..40 => {
            let count = 1 + random.below(4);
            let buffers = (0..count)
                .map(|_| (random.below(0x7000) as u16, 1 + random.below(200) as u16))
                .collect();
            let direct = (random.below(3) == 0).then(|| below(random, 3));
            let (reversed, odd) = (random.below(2) == 0, random.below(2) == 0);
            Move::Post { buffers, direct, reversed, odd }
        }
        40..68 => Move::Expose,
        68..88 => Move::Collect,
        88..100 => Move::Listen(random.below(9) as u16),
        100..106 => Move::Ignore,
        106..108 => Move::Shuffle(random.next()),
        108..136 => Move::Take(if random.below(2) == 0 { 64 } else { below(random, 6) }),
        136..160 => Move::Put(below(random, 6)),
        160..166 => Move::Untake,
        166..188 => Move::Publish,
        188..196 => Move::Arm,
        _ => Move::Disarm,
    }
}

fn simulate<D: Reach>(seed: u64, steps: u32) {
    let mut random = Random::new(seed);
    let size = 1 << random.below(9);
    let start = random.next() as u16;
    let mut world = World::<D>::new(size, random.below(2) == 0, start, random.below(20) as u32);
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

#[test]
fn the_indices_wrap_at_65536() {
    let mut world = World::<DeviceReads>::new(8, true, 0xfff0, 12);
    for round in 0..2_000_u32 {
        let len = (1 + round % 1500) as u16;
        world.apply(Move::Post {
            buffers: vec![(0, len)],
            direct: None,
            reversed: false,
            odd: false,
        });
        world.apply(Move::Expose);
        world.apply(Move::Listen(0));
        world.apply(Move::Take(8));
        world.apply(Move::Put(8));
        world.apply(Move::Publish);
        world.apply(Move::Collect);
        world.apply(Move::Arm);
    }
    world.finish();
}
