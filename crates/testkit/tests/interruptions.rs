//! A driver's life over registers, broken into at every step of it: by a reset, a pause, the reset
//! of a queue, a suspension, other memory. One thread does everything, so every life is the same.
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

use std::sync::Arc;

use board::{Board, MODERN, RING_RESET, SUSPEND, rings};
use vionet::{Hands, Instant, Next, Workers};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND as SUSPENDED};

const AGREED: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const UP: u8 = AGREED | DRIVER_OK;
const FRAMES: usize = 4;

/// What a life is made of.
#[derive(Clone, Copy, Debug)]
enum Step {
    Status(u8),
    Features(u32, u32),
    Select(u32),
    Size,
    Areas,
    Enable,
    Post(u8),
    Kick(u16),
    /// One step of the pair.
    Serve,
    /// Steps until there is nothing to do: the frame must have come back.
    Settle(u8),
}

fn life() -> Vec<Step> {
    let mut steps = vec![
        Step::Status(ACKNOWLEDGE),
        Step::Status(ACKNOWLEDGE | DRIVER),
        Step::Features(0, 0),
        Step::Features(1, MODERN | RING_RESET | SUSPEND),
        Step::Status(AGREED),
    ];
    for queue in [0, 1] {
        steps.extend([Step::Select(queue), Step::Size, Step::Areas, Step::Enable]);
    }
    steps.push(Step::Status(UP));
    for frame in 0..FRAMES as u8 {
        steps.extend([Step::Post(frame), Step::Kick(0), Step::Kick(1)]);
        steps.extend([Step::Serve, Step::Serve, Step::Settle(frame)]);
    }
    steps
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Reset,
    Pause,
    QueueReset,
    Suspend,
    Memory,
}

struct Life {
    board: Board,
    hands: Hands,
    /// The queue selected.
    queue: u32,
    /// Frames whose fate an interruption has left open.
    lost: bool,
}

impl Life {
    fn new(pci: bool) -> Self {
        let hands = Hands::new().unwrap();
        let workers = Workers::by_hand(&hands);
        let board = if pci {
            Board::pci_with(1, &workers).on_some_bus()
        } else {
            Board::mmio_with(1, &workers).on_some_bus()
        };
        Self { board, hands, queue: 0, lost: false }
    }

    fn serve(&self) -> bool {
        self.hands.service(0, Instant::default()) == Some(Next::Again)
    }

    fn step(&mut self, step: Step) {
        let nic = Arc::clone(&self.board.nic);
        match step {
            Step::Status(status) => nic.set_status(status),
            Step::Features(word, bits) => nic.choose(word, bits),
            Step::Select(queue) => {
                nic.select(queue);
                self.queue = queue;
            }
            Step::Size => nic.set_size(board::SIZE.into()),
            Step::Areas => self.set_areas(),
            Step::Enable => nic.enable(),
            Step::Post(fill) => self.board.post(fill),
            Step::Kick(queue) => nic.kick(queue),
            Step::Serve => {
                self.serve();
            }
            Step::Settle(fill) => {
                while self.serve() {}
                if !std::mem::take(&mut self.lost) {
                    self.board.comes_back(fill);
                }
                self.board.rx.collect();
                self.board.tx.collect();
            }
        }
    }

    fn set_areas(&self) {
        let ring = if self.queue == 0 { &self.board.rx } else { &self.board.tx };
        let setup = ring.setup();
        self.board.nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
    }

    /// Whatever is served, nothing moves.
    fn rests(&self) {
        let seen = |board: &Board| (board.rx.used_idx(), board.tx.used_idx(), board.sent());
        let before = seen(&self.board);
        for queue in [0, 1] {
            self.board.nic.kick(queue);
        }
        for _ in 0..3 {
            self.serve();
        }
        assert_eq!(seen(&self.board), before);
    }

    /// Breaks into the life; says whether it begins anew.
    fn interrupt(&mut self, by: Break) -> bool {
        let nic = Arc::clone(&self.board.nic);
        let up = nic.status() == UP;
        match by {
            Break::Reset => {
                nic.set_status(0);
                assert_eq!(nic.status(), 0, "every pair is at hand");
                self.rests();
                assert!(!self.board.panel.is_asserted());
                [self.board.rx, self.board.tx] = rings(&self.board.ram, 0);
                return true;
            }
            Break::Pause => {
                nic.pause().unwrap();
                self.rests();
                nic.resume().unwrap();
            }
            Break::QueueReset => {
                nic.select(1);
                if !(nic.is_enabled() && up) {
                    nic.select(self.queue);
                    return false;
                }
                nic.reset_queue();
                assert!(!nic.is_resetting() && !nic.is_enabled());
                // What was in it is the driver's again, sent or not.
                self.lost = self.board.tx.owed() > 0;
                let sent = self.board.sent();
                self.serve();
                assert_eq!(self.board.sent(), sent, "nothing is sent from it");
                // A new ring, at the place of no other.
                let [_, tx] = rings(&self.board.ram, 1);
                self.board.tx = tx;
                nic.set_size(board::SIZE.into());
                self.queue = 1;
                self.set_areas();
                nic.enable();
                assert!(nic.is_enabled());
            }
            Break::Suspend => {
                nic.set_status(AGREED | SUSPENDED);
                if up {
                    assert_eq!(nic.status(), AGREED | SUSPENDED);
                    self.rests();
                    nic.set_status(UP);
                    assert_eq!(nic.status(), UP);
                } else {
                    assert_eq!(nic.status() & SUSPENDED, 0);
                }
            }
            Break::Memory => {
                let space = vionet_raw::AddressSpace::new(Arc::clone(self.board.ram.space().map()));
                nic.set_memory(Arc::new(space)).unwrap();
            }
        }
        false
    }
}

#[test]
fn a_life_goes_on_wherever_it_is_broken_into() {
    let steps = life();
    for pci in [true, false] {
        let all = [Break::Reset, Break::Pause, Break::QueueReset, Break::Suspend, Break::Memory];
        for by in all {
            for at in 0..=steps.len() {
                let mut life = Life::new(pci);
                steps[..at].iter().for_each(|step| life.step(*step));
                let anew = life.interrupt(by);
                let rest = if anew { &steps[..] } else { &steps[at..] };
                rest.iter().for_each(|step| life.step(*step));
                assert_eq!(life.board.nic.status(), UP, "{by:?} at {at} on pci {pci}");
                life.board.post(0x42);
                [0, 1].iter().for_each(|queue| life.board.nic.kick(*queue));
                while life.serve() {}
                life.board.comes_back(0x42);
            }
        }
    }
}
