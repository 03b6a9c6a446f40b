//! What is MMIO's own about the device there.
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

use std::time::Duration;

use board::front::{get, set};
use board::{Board, Front, RING_RESET, until};
use vionet_spec::mmio;
use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE};

#[test]
fn the_window_says_what_it_is() {
    let nic = Board::mmio(1).nic;
    assert_eq!(get(&nic, mmio::MAGIC_VALUE), 0x7472_6976, "MMIO-01");
    assert_eq!(get(&nic, mmio::VERSION), 2, "MMIO-02");
    assert_eq!(get(&nic, mmio::DEVICE_ID), 1, "MMIO-14");
    for at in [mmio::SHM_LEN_LOW, mmio::SHM_LEN_HIGH, mmio::SHM_BASE_LOW, mmio::SHM_BASE_HIGH] {
        assert_eq!(get(&nic, at), u32::MAX, "MMIO-21, SHM-01");
    }
}

#[test]
fn what_is_no_register_reads_0_and_takes_nothing() {
    let nic = Board::mmio(1).nic;
    let readable =
        [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x44, 0x60, 0x70, 0xb0, 0xb4, 0xb8, 0xbc, 0xc0, 0xfc];
    nic.select(0);
    for at in (0..0x100).filter(|at| !readable.contains(at)) {
        assert_eq!(get(&nic, at), 0, "MMIO-24: {at:#x}");
    }
    let before: Vec<u32> = readable.iter().map(|at| get(&nic, *at)).collect();
    for at in [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xb0, 0xfc, 0x18, 0x1c, 0x28, 0xf0] {
        set(&nic, at, u32::MAX);
    }
    let after: Vec<u32> = readable.iter().map(|at| get(&nic, *at)).collect();
    assert_eq!(after, before, "MMIO-24");
    // MMIO-25: registers have 32 bits, in line.
    for len in [0, 1, 2, 3, 5, 8] {
        for at in 0..0x100 {
            let mut data = vec![0xa5; len];
            nic.read(at, &mut data);
            assert_eq!(data, vec![0; len], "{len} at {at:#x}");
            nic.write(at, &vec![0xff; len]);
        }
    }
    for at in (0..0x100).filter(|at| at % 4 != 0) {
        set(&nic, at, u32::MAX);
        assert_eq!(get(&nic, at), 0, "{at:#x}");
    }
    for at in [0x1000, u64::MAX, u64::MAX - 3, mmio::CONFIG + 28] {
        set(&nic, at, u32::MAX);
        assert_eq!(get(&nic, at), 0);
    }
    assert_eq!(nic.status(), 0);
}

#[test]
fn interrupts_stay_until_they_are_acknowledged_one_by_one() {
    let mut board = Board::mmio(1);
    board.bring_up(0);
    assert_eq!(get(&board.nic, mmio::INTERRUPT_STATUS), 0, "MMIO-04");
    board.round_trip(1);
    board.nic.turn_link(false);
    let both = u32::from(ISR_QUEUE | ISR_CONFIG);
    until("both", || get(&board.nic, mmio::INTERRUPT_STATUS) == both);
    assert!(board.panel.is_asserted(), "MMIO-19");
    set(&board.nic, mmio::INTERRUPT_ACK, 0xffff_fffc);
    assert_eq!(get(&board.nic, mmio::INTERRUPT_STATUS), both, "MMIO-29");
    set(&board.nic, mmio::INTERRUPT_ACK, ISR_QUEUE.into());
    assert_eq!(get(&board.nic, mmio::INTERRUPT_STATUS), u32::from(ISR_CONFIG), "MMIO-03");
    assert!(board.panel.is_asserted());
    set(&board.nic, mmio::INTERRUPT_ACK, ISR_CONFIG.into());
    assert!(!board.panel.is_asserted());
    board.nic.turn_link(true);
    board.nic.set_status(0);
    board.shows(0);
    assert_eq!(get(&board.nic, mmio::INTERRUPT_STATUS), 0, "MMIO-05");
    assert!(!board.panel.is_asserted());
}

#[test]
fn a_queue_that_is_made_unready_is_left_alone_and_may_be_made_ready_again() {
    let mut board = Board::mmio(1);
    board.bring_up(RING_RESET);
    board.round_trip(1);
    board.hold_worker();
    board.nic.select(1);
    board::quickly(|| set(&board.nic, mmio::QUEUE_READY, 0));
    assert_eq!(get(&board.nic, mmio::QUEUE_READY), 1, "MMIO-28: a worker is still at it");
    set(&board.nic, mmio::QUEUE_DESC_LOW, 0x5000);
    board.host.hold(false);
    until("unready", || get(&board.nic, mmio::QUEUE_READY) == 0);
    until("the frame from before", || !board.rx.collect().is_empty());
    let used = board.tx.used_idx();
    board.post(2);
    board.nic.kick(1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(board.tx.used_idx(), used, "MMIO-08");
    // MMIO-27, MMIO-31: from the beginning of a new ring, where it said before.
    board.nic.select(0);
    set(&board.nic, mmio::QUEUE_READY, 0);
    until("unready", || get(&board.nic, mmio::QUEUE_READY) == 0);
    board.set_up(1);
    (0..20).for_each(|fill| board.round_trip(fill));
}

#[test]
fn a_kick_names_its_queue_by_its_value() {
    let mut board = Board::mmio(1);
    for word in [0, 1 << (38 - 32)] {
        board.bring_to_sleep(word);
        board.post(3);
        for wrong in [3, 0xffff, 0x1_0003] {
            set(&board.nic, mmio::QUEUE_NOTIFY, wrong);
        }
        if word == 0 {
            set(&board.nic, mmio::QUEUE_NOTIFY, 0x1_0001);
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(board.tx.used_idx(), 1);
        set(&board.nic, mmio::QUEUE_NOTIFY, if word == 0 { 1 } else { 0x8001_0001 }); // MMIO-20
        board.comes_back(3);
    }
}
