//! Whatever a driver has done to its registers, the device is saved, restored, and goes on.
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

use board::front::{capability, common, config, set_common, set_config};
use board::storm::{blow, face_of_mmio, face_of_pci, works_again};
use board::{Board, Front, RING_RESET, SUSPEND, until};
use proptest::prelude::*;
use vionet::state::{RestoreError, SaveError};
use vionet::transport::{Message, MmioNic, PciNic};
use vionet_spec::pci;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, SUSPEND as SUSPEND_BIT};

const PENDING: u64 = 0x6000;

fn move_pci(board: &mut Board<PciNic>) {
    board.nic.pause().unwrap();
    let face = |nic: &PciNic| {
        // Beside the window: what is read there may be gone then.
        let bytes = (0..256).filter(|at| !(0xa4..0xa8).contains(at));
        let config: Vec<u32> = bytes.map(|at| config(nic, at, 1)).collect();
        (config, face_of_pci(nic), nic.bar_address())
    };
    let before = face(&board.nic);
    board.move_nic(|device, wiring| PciNic::new(device, wiring).unwrap());
    assert_eq!(face(&board.nic), before, "the driver sees no difference");
    board.nic.resume().unwrap();
}

fn move_mmio(board: &mut Board<MmioNic>) {
    board.nic.pause().unwrap();
    let before = face_of_mmio(&board.nic);
    board.move_nic(|device, wiring| MmioNic::new(device, wiring).unwrap());
    assert_eq!(face_of_mmio(&board.nic), before, "the driver sees no difference");
    board.nic.resume().unwrap();
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn a_nic_on_pci_goes_on_elsewhere_from_wherever_it_is(parts in [bytes(), bytes(), bytes()]) {
        let mut board = Board::pci(2);
        for part in parts {
            blow(&mut board, &part);
            move_pci(&mut board);
        }
        works_again(&mut board);
    }

    #[test]
    fn a_nic_on_mmio_goes_on_elsewhere_from_wherever_it_is(parts in [bytes(), bytes(), bytes()]) {
        let mut board = Board::mmio(2);
        for part in parts {
            blow(&mut board, &part);
            move_mmio(&mut board);
        }
        works_again(&mut board);
    }
}

/// What fuzzing has found worth keeping.
#[test]
fn the_committed_inputs_can_be_saved_and_restored() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/registers");
    let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(inputs.len() > 50);
    for input in inputs {
        let bytes = std::fs::read(input.path()).unwrap();
        match bytes.split_first() {
            Some((bus, rest)) if bus & 1 == 0 => {
                let mut board = Board::pci(1);
                blow(&mut board, rest);
                move_pci(&mut board);
                works_again(&mut board);
            }
            Some((_, rest)) => {
                let mut board = Board::mmio(1);
                blow(&mut board, rest);
                move_mmio(&mut board);
                works_again(&mut board);
            }
            None => {}
        }
    }
}

fn set_vector(nic: &PciNic, vector: u64, masked: bool) {
    let entry = PciNic::TABLE.start + 16 * vector;
    let words = [0xfee0_0000, 0, 0x40 + vector, u64::from(masked)];
    for (place, word) in (entry..).step_by(4).zip(words) {
        set_common(nic, place, word, 4);
    }
}

#[test]
fn masks_and_what_is_pending_behind_them_go_along() {
    let mut board = Board::pci(1);
    board.negotiate(0);
    board.set_up(0);
    for vector in 0..3 {
        board.nic.select(vector);
        set_common(&board.nic, pci::COMMON_QUEUE_VECTOR, u64::from(vector), 2);
        set_vector(&board.nic, vector.into(), vector == 1);
    }
    set_common(&board.nic, pci::COMMON_CONFIG_VECTOR, 2, 2);
    let msix = capability(&board.nic, pci::CAPABILITY_MSIX) + 2;
    set_config(&board.nic, msix, pci::MSIX_ENABLE.into(), 2);
    board.go();
    board.round_trip(1);
    // The transmit queue's vector is masked: its message waits.
    until("it is pending", || common(&board.nic, PENDING, 4) == 2);
    let before = board.panel.take_messages();
    assert!(before.iter().any(|(vector, _)| *vector == 0) && before.iter().all(|at| at.0 != 1));
    move_pci(&mut board);
    assert_eq!(common(&board.nic, PENDING, 4) & 2, 2);
    let message = |data| Message { address: 0xfee0_0000, data };
    let routes: Vec<_> = std::mem::take(&mut *board.panel.routes.lock().unwrap());
    assert_eq!(routes, [(0, Some(message(0x40))), (2, Some(message(0x42)))]);
    board.panel.take_messages();
    set_vector(&board.nic, 1, false);
    assert!(board.panel.take_messages().contains(&(1, message(0x41))));
    board.round_trip(2);
    until("queues interrupt by their vectors", || {
        let sent = board.panel.take_messages();
        sent.contains(&(0, message(0x40))) || sent.contains(&(1, message(0x41)))
    });
    board.nic.turn_link(false);
    assert!(board.panel.take_messages().contains(&(2, message(0x42))), "the configuration, too");
}

#[test]
fn an_asserted_line_stays_asserted_on_either_bus() {
    let mut board = Board::pci(1);
    board.bring_up(0);
    board.round_trip(1);
    until("the line is asserted", || board.panel.is_asserted());
    move_pci(&mut board);
    assert!(board.panel.is_asserted());
    assert_ne!(board.nic.take_reasons(), 0);
    assert!(!board.panel.is_asserted());
    let mut board = Board::mmio(1);
    board.bring_up(0);
    board.round_trip(1);
    until("the line is asserted", || board.panel.is_asserted());
    move_mmio(&mut board);
    assert!(board.panel.is_asserted());
    assert_ne!(board.nic.take_reasons(), 0);
    assert!(!board.panel.is_asserted());
}

#[test]
fn only_a_nic_at_rest_is_saved_and_only_one_that_nobody_uses_restored() {
    let mut board = Board::mmio(1);
    assert_eq!(board.nic.save(), Err(SaveError::NotPaused));
    board.bring_up(RING_RESET | SUSPEND);
    assert_eq!(board.nic.save(), Err(SaveError::NotPaused));
    // A driver's own pause is none of the embedder's.
    board.nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | SUSPEND_BIT);
    assert_eq!(board.nic.save(), Err(SaveError::NotPaused));
    board.nic.pause().unwrap();
    let state = board.nic.save().unwrap();
    assert_eq!(board.nic.restore(&state), Err(RestoreError::InUse));
    board.nic.reset().unwrap();
    board.nic.restore(&state).unwrap();
    assert_eq!(board.nic.save(), Ok(state.clone()), "it is paused then");
    board.nic.resume().unwrap();
    board.nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    board.round_trip(2);
    // As after power-on, it may begin anew.
    board.nic.reset().unwrap();
    board.nic.restore(&state).unwrap();
}
