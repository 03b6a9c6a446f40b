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

use std::sync::atomic::{AtomicBool, Ordering};

use board::storm::{Input, Stormy, act, face_of_mmio, face_of_pci, storm, works_again};
use board::{Board, Front};
use proptest::prelude::*;
use vionet_testkit::Random;

fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.below(256) as u8).collect()
}

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

/// Two vCPUs and whoever tends the device, all at once, while a worker moves frames.
fn from_two_vcpus<F: Front + Stormy>(mut board: Board<F>, seed: u64) {
    board.bring_up(board::RING_RESET | board::SUSPEND);
    let nic = &*board.nic;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let vcpus = [0, 1].map(|vcpu| {
            scope.spawn(move || {
                let mut random = Random::new(seed * 2 + vcpu);
                for _ in 0..40 {
                    let bytes = bytes(&mut random, 200);
                    let mut input = Input(&bytes);
                    while !input.0.is_empty() {
                        act(nic, &mut input);
                    }
                }
            })
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

#[test]
fn two_vcpus_at_once_hurt_nobody() {
    for seed in 0..4 {
        from_two_vcpus(Board::pci(2), seed);
        from_two_vcpus(Board::mmio(2), seed);
    }
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
