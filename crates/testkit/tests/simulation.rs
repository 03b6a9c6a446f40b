//! A driver of any manners and its device over registers, on either bus: lives by seed, broken into
//! at any step. Every chain comes back once and in order, every frame once, and nobody sleeps
//! through work: the embedder's loop serves a pair only when a doorbell, a bell or the pair says
//! so.
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
    reason = "tests may stop"
)]

mod board;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use board::{BUFFERS, Board, MODERN, RING_RESET, RINGS, SIZE, SUSPEND};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vionet::{Hands, Instant, Next, Workers};
use vionet_spec::feature::Feature;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND as SUSPENDED};
use vionet_testkit::{Arrangement, Buffer, Random, SplitDriver, each_seed};

const AGREED: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const UP: u8 = AGREED | DRIVER_OK;
/// A frame with its header.
const LEN: u32 = 72;

fn is_rung(bell: impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN)], Some(&now)).unwrap() > 0
}

/// One ring, and what its driver waits for.
struct Ring {
    driver: SplitDriver,
    /// Heads in the order they were posted, with their buffers.
    posted: VecDeque<(u16, u64)>,
    /// Posted and not shown to the device.
    hidden: usize,
    /// The driver sleeps, and has seen used entries up to here.
    asleep_at: Option<u16>,
}

struct World {
    board: Board,
    hands: Hands,
    doorbells: [Arc<OwnedFd>; 2],
    rings: [Ring; 2],
    event_idx: bool,
    /// The pair wants to be served again.
    again: bool,
    buffers: u64,
    /// Frames sent, and the next that may come back.
    sent: u32,
    back: u32,
    /// Frames before this one may be lost, by a reset.
    lost_before: u32,
}

impl World {
    fn new(pci: bool, event_idx: bool) -> Self {
        let hands = Hands::new().unwrap();
        let workers = Workers::by_hand(&hands);
        let board = if pci {
            Board::pci_with(1, &workers).on_some_bus()
        } else {
            Board::mmio_with(1, &workers).on_some_bus()
        };
        let doorbells = [0, 1].map(|queue| board.nic.doorbell(queue));
        let rings = [0, 1].map(|queue| ring(&board, queue, 0, event_idx));
        let (again, buffers, sent, back, lost_before) = (false, 0, 0, 0, 0);
        let mut world = Self {
            board,
            hands,
            doorbells,
            rings,
            event_idx,
            again,
            buffers,
            sent,
            back,
            lost_before,
        };
        world.bring_up();
        world
    }

    fn bring_up(&mut self) {
        let nic = Arc::clone(&self.board.nic);
        nic.set_status(ACKNOWLEDGE | DRIVER);
        nic.choose(0, u32::from(self.event_idx) << Feature::EVENT_IDX.bit());
        nic.choose(1, MODERN | RING_RESET | SUSPEND);
        nic.set_status(AGREED);
        (0..2).for_each(|queue| self.enable(queue));
        nic.set_status(UP);
        assert_eq!(nic.status(), UP);
    }

    fn enable(&self, queue: usize) {
        let (nic, setup) = (&self.board.nic, self.rings[queue].driver.setup());
        nic.select(queue as u32);
        nic.set_size(SIZE.into());
        nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
        nic.enable();
        assert!(nic.is_enabled());
    }

    fn post(&mut self, queue: usize) {
        self.buffers = (self.buffers + 1) % 128;
        let at = BUFFERS + 0x100 * self.buffers;
        let buffer = Buffer { at, len: LEN, writable: queue == 0 };
        // The host side keeps 64 of them.
        if self.sent - self.back.max(self.lost_before.min(self.sent)) > 32 && queue == 1 {
            return;
        }
        if let Some(head) = self.rings[queue].driver.post(&[buffer], Arrangement::Direct) {
            self.rings[queue].posted.push_back((head, at));
            self.rings[queue].hidden += 1;
            let mut bytes = [0; LEN as usize];
            if queue == 1 {
                bytes[20..24].copy_from_slice(&self.sent.to_le_bytes());
                self.sent += 1;
            }
            self.board.ram.write(at, &bytes);
        }
    }

    fn expose(&mut self, queue: usize) {
        if self.rings[queue].driver.expose() {
            self.board.nic.kick(queue as u16);
        }
        self.rings[queue].hidden = 0;
    }

    fn collect(&mut self, queue: usize) {
        self.rings[queue].asleep_at = None;
        for used in self.rings[queue].driver.collect() {
            let (head, at) = self.rings[queue].posted.pop_front().expect("used once only");
            assert_eq!((used.head, used.len), (head, if queue == 0 { LEN } else { 0 }));
            if queue == 0 {
                let number = self.board.ram.read(at + 20, 4);
                let number = u32::from_le_bytes(number.try_into().unwrap());
                let skips = self.back..=self.lost_before.max(self.back);
                assert!(skips.contains(&number), "frame {number} came for {}", self.back);
                self.back = number + 1;
            }
        }
    }

    /// The driver goes to sleep until there is an interrupt.
    fn sleep(&mut self, queue: usize) {
        self.board.nic.take_reasons();
        for queue in [queue, 1 - queue] {
            self.collect(queue);
        }
        let used = self.rings[queue].driver.used_idx();
        let waiting = self.rings[queue].driver.listen(0);
        self.rings[queue].asleep_at = (!waiting).then_some(used);
    }

    /// One turn of the embedder's loop; whether there was anything to do.
    fn serve(&mut self) -> bool {
        let mut rung = std::mem::take(&mut self.again) | is_rung(self.hands.bell());
        for bell in &self.doorbells {
            if is_rung(bell) {
                rustix::io::read(bell, &mut [0; 8]).unwrap();
                rung = true;
            }
        }
        if rung {
            self.again = self.hands.service(0, Instant::default()) == Some(Next::Again);
        }
        rung
    }

    /// The loop has nothing to do: nor has anybody left anything undone.
    fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.serve() {
                break;
            }
        }
        self.board.tend();
        let asleep = self
            .rings
            .iter()
            .any(|ring| ring.asleep_at.is_some_and(|used| ring.driver.used_idx() != used));
        assert!(!asleep || self.board.panel.is_asserted(), "the driver sleeps through a buffer");
        (0..2).for_each(|queue| self.collect(queue));
        let [rx, tx] = &self.rings;
        assert_eq!(tx.posted.len(), tx.hidden, "a frame was not sent");
        let due = self.sent - tx.hidden as u32;
        let is_back = self.back == due || due <= self.lost_before;
        assert!(is_back || rx.posted.len() == rx.hidden, "a frame has not come back");
    }

    /// Whatever is kicked and served, nothing moves.
    fn rests(&mut self) {
        let used = |world: &Self| [0, 1].map(|queue| world.rings[queue].driver.used_idx());
        let before = used(self);
        (0..2).for_each(|queue| self.expose(queue));
        (0..4).for_each(|_| {
            self.serve();
        });
        assert_eq!(used(self), before);
    }

    fn renew(&mut self, queue: usize, place: u64) {
        self.rings[queue] = ring(&self.board, queue, place, self.event_idx);
        self.lost_before = self.sent;
    }

    fn interrupt(&mut self, random: &mut Random) {
        let nic = Arc::clone(&self.board.nic);
        match random.below(6) {
            0 => {
                nic.pause().unwrap();
                self.rests();
                nic.resume().unwrap();
            }
            1 => {
                nic.set_status(0);
                assert_eq!(nic.status(), 0);
                self.rests();
                assert!(!self.board.panel.is_asserted());
                (0..2).for_each(|queue| self.renew(queue, 0));
                self.bring_up();
            }
            2 | 3 => {
                let queue = random.below(2) as usize;
                nic.select(queue as u32);
                nic.reset_queue();
                assert!(!nic.is_resetting() && !nic.is_enabled());
                let before = self.rings[queue].driver.used_idx();
                self.expose(queue);
                self.serve();
                assert_eq!(self.rings[queue].driver.used_idx(), before);
                self.renew(queue, random.below(2));
                self.enable(queue);
            }
            4 => {
                nic.set_status(AGREED | SUSPENDED);
                assert_eq!(nic.status(), AGREED | SUSPENDED);
                self.rests();
                nic.set_status(UP);
            }
            _ => {
                let map = Arc::clone(self.board.ram.space().map());
                nic.set_memory(Arc::new(vionet_raw::AddressSpace::new(map))).unwrap();
            }
        }
        assert_eq!(nic.status(), UP);
    }
}

fn ring(board: &Board, queue: usize, place: u64, event_idx: bool) -> Ring {
    let at = RINGS + 0x8000 * place + 0x4000 * queue as u64;
    board.ram.write(at, &[0; 0x4000]);
    let driver = SplitDriver::new(&board.ram, at, SIZE, event_idx, 0);
    Ring { driver, posted: VecDeque::new(), hidden: 0, asleep_at: None }
}

#[test]
fn thousands_of_steps_over_registers_by_seed() {
    each_seed(200, |seed| {
        let mut random = Random::new(seed);
        let mut world = World::new(seed % 2 == 0, random.below(2) == 0);
        for _ in 0..400 {
            let queue = random.below(2) as usize;
            match random.below(100) {
                0..35 => world.post(queue),
                35..55 => world.expose(queue),
                55..65 => world.collect(queue),
                65..72 => world.sleep(queue),
                72..75 => {
                    world.rings[queue].driver.ignore();
                    world.rings[queue].asleep_at = None;
                }
                75..90 => {
                    world.serve();
                }
                90..96 => world.settle(),
                _ => world.interrupt(&mut random),
            }
        }
        (0..2).for_each(|queue| world.expose(queue));
        world.settle();
        assert!(world.sent > 20 && world.back > 10, "{} sent, {} back", world.sent, world.back);
    });
}
