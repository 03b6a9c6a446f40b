//! Registers under attack: any access in any order, from one vCPU and from two at once.
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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use board::storm::{Input, Stormy, act, face_of_mmio, face_of_pci, feed, storm, works_again};
use board::{BUFFERS, Board, Front, RINGS, until};
use proptest::prelude::*;
use vionet::transport::{MmioNic, PciNic};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use vionet_testkit::{GuestRam, Random};

const UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_order_of_accesses_hurts_the_device_on_pci(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut board = Board::pci(1);
        let face = face_of_pci(&board.nic);
        storm(&mut board, &bytes);
        board.nic.power_on();
        prop_assert_eq!(face_of_pci(&board.nic), face);
    }

    #[test]
    fn no_order_of_accesses_hurts_the_device_on_mmio(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut board = Board::mmio(1);
        let face = face_of_mmio(&board.nic);
        storm(&mut board, &bytes);
        board.nic.power_on();
        prop_assert_eq!(face_of_mmio(&board.nic), face);
    }
}

/// Where the two vCPUs wait for each other.
#[derive(Default)]
struct Meeting(AtomicU64);

impl Meeting {
    fn meet(&self) {
        let place = self.0.fetch_add(1, Ordering::SeqCst);
        until("the other vCPU comes", || self.0.load(Ordering::SeqCst) > place | 1);
    }
}

/// Two vCPUs that do as `life` says, a third that feeds the rings, and whoever tends the device,
/// all at once. A life begins anew whenever it calls what it is given: the device is then brought
/// up, and moves frames.
fn from_two_vcpus<F: Front + Stormy>(
    mut board: Board<F>,
    life: impl Fn(&F, &GuestRam, u64, &dyn Fn()) + Sync,
) {
    let (nic, ram, host) = (&*board.nic, &board.ram, &board.host);
    let (over, meeting) = (AtomicBool::new(false), Meeting::default());
    let sent = || host.sent.load(Ordering::SeqCst);
    let begin = |vcpu: u64| {
        meeting.meet();
        if vcpu == 0 {
            nic.power_on();
            nic.turn_link(true);
            let before = sent();
            act(nic, ram, &mut Input(&[24]));
            until("frames move", || {
                // Rings that are laid out under the feeder's hands may be broken once.
                (nic.status() != UP).then(|| act(nic, ram, &mut Input(&[24])));
                sent() > before
            });
        }
        meeting.meet();
    };
    std::thread::scope(|scope| {
        let vcpus = [0, 1].map(|vcpu| {
            let (life, begin) = (&life, &begin);
            scope.spawn(move || life(nic, ram, vcpu, &|| begin(vcpu)))
        });
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                (0..2).for_each(|ring| feed(ram, ring, 8));
                (0..2).for_each(|queue| nic.kick(queue));
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                drop(nic.tend());
                std::thread::yield_now();
            }
        });
        let ends = vcpus.map(|vcpu| vcpu.join());
        over.store(true, Ordering::SeqCst);
        for end in ends {
            end.unwrap();
        }
    });
    works_again(&mut board);
}

/// The device is struck by chance, again and again.
fn by_chance<F: Stormy>(seed: u64) -> impl Fn(&F, &GuestRam, u64, &dyn Fn()) + Sync {
    move |nic, ram, vcpu, begin| {
        let mut random = Random::new(seed * 2 + vcpu);
        for _ in 0..60 {
            begin();
            let bytes: Vec<u8> = (0..200).map(|_| random.below(256) as u8).collect();
            let mut input = Input(&bytes);
            while !input.0.is_empty() {
                act(nic, ram, &mut input);
            }
        }
    }
}

#[test]
fn two_vcpus_at_once_hurt_nobody() {
    for seed in 0..4 {
        from_two_vcpus(Board::pci(2), by_chance(seed));
        from_two_vcpus(Board::mmio(2), by_chance(seed));
    }
}

/// Every place and width, with every class of values, in an order by chance.
fn every_access(random: &mut Random, places: &[u64]) -> Vec<(u64, usize, Option<u64>)> {
    let values = [0, 1, 2, 0x8000, 0xffff, 0x1_0000, 1 << 31, u64::MAX, RINGS, BUFFERS + 1];
    let mut all = Vec::new();
    for at in places {
        for len in [1, 2, 3, 4, 8] {
            all.push((*at, len, None));
            all.extend(values.map(|value| (*at, len, Some(value))));
        }
    }
    for place in (1..all.len()).rev() {
        all.swap(place, random.below(place as u64 + 1) as usize);
    }
    all
}

/// Goes through all accesses, between activation and reset, with frames moving.
fn exhaustively<F: Stormy>(
    places: Vec<u64>,
    access: impl Fn(&F, u64, usize, Option<u64>) + Sync,
) -> impl Fn(&F, &GuestRam, u64, &dyn Fn()) + Sync {
    move |nic, _, vcpu, begin| {
        let mut random = Random::new(vcpu);
        for (number, (at, len, value)) in every_access(&mut random, &places).into_iter().enumerate()
        {
            if number % 20 == 0 {
                begin();
            }
            let start = Instant::now();
            access(nic, at, len, value);
            assert!(start.elapsed() < Duration::from_secs(1), "{at:#x}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn every_register_takes_every_width_and_value_from_two_vcpus() {
    let pages = (0..8).flat_map(|page| [0, 1, 2, 4, 8, 0x1c, 0xffc].map(|at| page << 12 | at));
    let places: Vec<u64> = (0..0x40).chain(pages).chain([0x7fff, 0x8000, u64::MAX]).collect();
    from_two_vcpus(
        Board::pci(2),
        exhaustively(places, |nic: &PciNic, at, len, value| match value {
            Some(value) => nic.write_bar(0, at, &value.to_le_bytes()[..len]),
            None => nic.read_bar(0, at, &mut [0; 8][..len]),
        }),
    );
    from_two_vcpus(
        Board::pci(2),
        exhaustively((0..0x104).collect(), |nic: &PciNic, at, len, value| match value {
            Some(value) => drop(nic.write_config(at as u16, &value.to_le_bytes()[..len])),
            None => nic.read_config(at as u16, &mut [0; 8][..len]),
        }),
    );
    let places = (0..0x130).chain([0x1fc, 0x200, u64::MAX]).collect();
    from_two_vcpus(
        Board::mmio(2),
        exhaustively(places, |nic: &MmioNic, at, len, value| match value {
            Some(value) => nic.write(at, &value.to_le_bytes()[..len]),
            None => nic.read(at, &mut [0; 8][..len]),
        }),
    );
}

/// What fuzzing has found worth keeping.
#[test]
fn the_committed_inputs_hurt_nobody() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/registers");
    let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(inputs.len() > 50);
    for input in inputs {
        let bytes = std::fs::read(input.path()).unwrap();
        match bytes.split_first() {
            Some((bus, rest)) if bus & 1 == 0 => storm(&mut Board::pci(1), rest),
            Some((_, rest)) => storm(&mut Board::mmio(1), rest),
            None => {}
        }
    }
}
