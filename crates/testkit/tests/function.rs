//! The function on PCI and what its driver switches on and off: memory, mastership, power; and its
//! reset.
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
use std::time::Duration;

use board::front::{capability, common, config, set_common, set_config, switch_on};
use board::{Board, Front, quickly, until};
use vionet::transport::{BarMove, PciNic};
use vionet_spec::pci;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

const UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
const MEMORY: u32 = pci::COMMAND_MEMORY as u32;
const ON: u32 = MEMORY | pci::COMMAND_MASTER as u32;

fn command(nic: &PciNic, command: u32) -> Option<BarMove> {
    set_config(nic, pci::HEADER_COMMAND, command, 2)
}

/// Uses MSI-X with one vector, which is open.
fn use_msix(nic: &PciNic) {
    set_config(nic, capability(nic, pci::CAPABILITY_MSIX) + 2, pci::MSIX_ENABLE.into(), 2);
    set_common(nic, TABLE, 0xfee0_0000, 8);
    set_common(nic, TABLE + 12, 0, 4);
    for queue in [0, 1] {
        nic.select(queue);
        set_common(nic, pci::COMMON_QUEUE_VECTOR, 0, 2);
    }
    set_common(nic, pci::COMMON_CONFIG_VECTOR, 0, 2);
}

#[test]
fn a_function_that_is_no_master_leaves_memory_alone_and_goes_on_where_it_was() {
    let mut board = Board::pci(1);
    // From the beginning, and in the middle of everything.
    command(&board.nic, MEMORY);
    board.bring_up(0);
    board.post(1);
    board.is_left_alone();
    command(&board.nic, ON);
    board.comes_back(1);
    use_msix(&board.nic);
    for fill in 2..20 {
        board.round_trip(fill);
        board.panel.take_messages();
        command(&board.nic, MEMORY);
        board.panel.take_messages();
        board.post(fill ^ 0xff);
        board.is_left_alone();
        board.nic.turn_link(false);
        assert!(board.panel.take_messages().is_empty(), "a message is an access to memory");
        assert_eq!(common(&board.nic, PENDING, 8), 1);
        assert_eq!(board.nic.status(), UP, "the driver sees nothing of it");
        board.nic.turn_link(true);
        command(&board.nic, ON);
        assert!(!board.panel.take_messages().is_empty());
        assert_eq!(common(&board.nic, PENDING, 8), 0);
        board.comes_back(fill ^ 0xff);
    }
    // The line is no access to memory.
    set_config(&board.nic, capability(&board.nic, pci::CAPABILITY_MSIX) + 2, 0, 2);
    command(&board.nic, MEMORY);
    board.nic.take_reasons();
    board.nic.turn_link(false);
    assert!(board.panel.is_asserted());
    // A worker that does not let go keeps nobody waiting.
    command(&board.nic, ON);
    board.nic.turn_link(true);
    board.hold_worker();
    quickly(|| command(&board.nic, MEMORY));
    quickly(|| command(&board.nic, ON));
    quickly(|| command(&board.nic, MEMORY));
    board.host.hold(false);
    until("it rests", || {
        board.tend();
        board.nic.pause().is_ok()
    });
    board.nic.resume().unwrap();
    board.is_left_alone();
    command(&board.nic, ON);
    board.comes_back(0x77);
}

#[test]
fn a_region_that_is_switched_off_does_not_answer() {
    let mut board = Board::pci(1);
    board.bring_up(0);
    board.round_trip(1);
    let nic = &board.nic;
    command(nic, pci::COMMAND_MASTER.into());
    for at in [0, pci::COMMON_STATUS, 0x1000, 0x2000, 0x3000, TABLE, PENDING, 0x7ff8] {
        assert_eq!(common(nic, at, 8), u64::MAX, "{at:#x}");
        set_common(nic, at, 0, 8);
        set_common(nic, at, 0, 1);
    }
    // The window is no part of it.
    let window = capability(nic, pci::CAPABILITY_EXPRESS) - 20;
    set_config(nic, window + pci::CAP_OFFSET, pci::COMMON_STATUS as u32, 4);
    set_config(nic, window + pci::CAP_LENGTH, 1, 4);
    assert_eq!(config(nic, window + pci::CAP_MORE, 1), u32::from(UP));
    command(nic, ON);
    assert_eq!(nic.status(), UP, "nothing of that was written");
    board.round_trip(2);
}

/// All of the configuration space.
fn face(nic: &PciNic) -> Vec<u32> {
    (0..64).map(|word| config(nic, word * 4, 4)).collect()
}

fn reset_function(nic: &PciNic) -> Option<BarMove> {
    let express = capability(nic, pci::CAPABILITY_EXPRESS);
    assert_ne!(config(nic, express + pci::EXPRESS_DEVICE, 4) & pci::EXPRESS_FLR, 0);
    let control = config(nic, express + pci::EXPRESS_CONTROL, 2);
    assert_eq!(control & u32::from(pci::EXPRESS_RESET), 0, "it reads 0");
    let control = control | u32::from(pci::EXPRESS_RESET);
    set_config(nic, express + pci::EXPRESS_CONTROL, control, 2)
}

/// What a driver polls for (PCI Express Base 4.0 §6.6.2) is anything but all ones.
fn is_back(nic: &PciNic) {
    until("it is back", || config(nic, 0, 4) == 0x1041_1af4);
}

#[test]
fn the_capabilities_of_pci_express_are_there() {
    let nic = Board::pci(1).nic;
    let express = capability(&nic, pci::CAPABILITY_EXPRESS);
    assert_eq!(config(&nic, express + pci::EXPRESS_CAPABILITIES, 2), 0x92, "integrated");
    let control = express + pci::EXPRESS_CONTROL;
    assert_eq!(config(&nic, control, 4), u32::from(pci::EXPRESS_READ_512));
    set_config(&nic, control, !0 ^ u32::from(pci::EXPRESS_RESET), 4);
    assert_eq!(config(&nic, control, 4), 0x700f, "errors to report and the size of reads");
    let before: Vec<u32> = (4..15).map(|word| config(&nic, express + word * 4, 4)).collect();
    assert_eq!(before, [0; 11], "no link, no slot, nothing of version 2");
    let power = capability(&nic, pci::CAPABILITY_POWER);
    assert_eq!(config(&nic, power + 1, 1), 0, "the last one");
    assert_eq!(config(&nic, power + pci::POWER_CAPABILITIES, 2), 3, "1.2, and D0 and D3 alone");
    assert_eq!(config(&nic, power + pci::POWER_CONTROL, 4), u32::from(pci::POWER_KEEPS));
}

#[test]
fn a_reset_of_the_function_leaves_nothing_of_before() {
    let mut board = Board::pci(2);
    board.nic.reset().unwrap();
    let new = face(&board.nic);
    for round in 0..3 {
        set_config(&board.nic, pci::HEADER_BAR0, 0xc000_0000, 4);
        switch_on(&board.nic);
        use_msix(&board.nic);
        set_config(&board.nic, pci::HEADER_INTERRUPT, 11, 1);
        board.bring_up(0);
        board.round_trip(round);
        let moved = BarMove { from: Some(0xc000_0000), to: None };
        assert_eq!(reset_function(&board.nic), Some(moved));
        is_back(&board.nic);
        assert_eq!(face(&board.nic), new);
        assert!(!board.panel.is_asserted());
        switch_on(&board.nic);
        assert_eq!(board.nic.status(), 0);
        assert_eq!(common(&board.nic, TABLE + 12, 4), 1, "masked");
        assert_eq!(common(&board.nic, TABLE, 8), 0);
        board.nic.select(1);
        assert_eq!(common(&board.nic, pci::COMMON_QUEUE_VECTOR, 2), u64::from(pci::NO_VECTOR));
        board.post(9);
        board.is_left_alone();
        board.bring_up(0);
        board.round_trip(round);
    }
    // The embedder's pause is none of the driver's business.
    board.nic.pause().unwrap();
    reset_function(&board.nic);
    is_back(&board.nic);
    switch_on(&board.nic);
    board.bring_up(0);
    board.post(7);
    board.is_left_alone();
    board.nic.resume().unwrap();
    board.comes_back(7);
}

#[test]
fn a_function_being_reset_answers_nobody_until_its_workers_have_let_go() {
    let mut board = Board::pci(1);
    board.bring_up(0);
    board.hold_worker();
    quickly(|| reset_function(&board.nic));
    for _ in 0..5 {
        assert_eq!(quickly(|| config(&board.nic, pci::HEADER_COMMAND, 4)), !0);
        quickly(|| switch_on(&board.nic));
        assert_eq!(board.nic.status(), 0xff);
        quickly(|| board.nic.set_status(ACKNOWLEDGE));
        assert!(!board.panel.is_asserted());
    }
    board.host.hold(false);
    is_back(&board.nic);
    assert_eq!(config(&board.nic, pci::HEADER_COMMAND, 2), 0, "nothing was written meanwhile");
    assert!(!board.panel.is_asserted());
    switch_on(&board.nic);
    assert_eq!(board.nic.status(), 0);
    board.bring_up(0);
    board.round_trip(1);
}

#[test]
fn kicks_and_accesses_of_another_vcpu_do_no_harm_to_a_reset_of_the_function() {
    let mut board = Board::pci(1);
    let over = AtomicBool::new(false);
    let nic = std::sync::Arc::clone(&board.nic);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                nic.kick(1);
                nic.set_status(UP);
                nic.select(0);
                nic.enable();
                config(&nic, 0, 4);
            }
        });
        for _ in 0..200 {
            board.post(3);
            reset_function(&board.nic);
            is_back(&board.nic);
            // No master, whatever the other one says: memory is left alone.
            let before = (board.rx.used_idx(), board.tx.used_idx());
            std::thread::sleep(Duration::from_micros(100));
            assert_eq!((board.rx.used_idx(), board.tx.used_idx()), before);
            switch_on(&board.nic);
            board.nic.set_status(0);
            board.nic.choose(1, board::MODERN);
            board.nic.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
            board.set_up_anyhow();
            board.go();
        }
        over.store(true, Ordering::SeqCst);
    });
    board.nic.reset().unwrap();
    switch_on(&board.nic);
    board.bring_up(0);
    board.round_trip(4);
}

#[test]
fn a_function_asleep_rests_and_wakes_up_as_it_was() {
    let mut board = Board::pci(1);
    board.bring_up(0);
    let control = capability(&board.nic, pci::CAPABILITY_POWER) + pci::POWER_CONTROL;
    for fill in 0..10 {
        board.round_trip(fill);
        board.nic.take_reasons();
        // D1 and D2 are not there.
        set_config(&board.nic, control, u32::from(fill % 2) + 1, 2);
        board.round_trip(fill);
        board.nic.take_reasons();
        set_config(&board.nic, control, 3, 2);
        assert_eq!(config(&board.nic, control, 2) & 3, 3);
        assert_eq!(board.nic.status(), 0xff);
        board.nic.turn_link(false);
        assert!(!board.panel.is_asserted());
        board.post(fill ^ 0xff);
        board.is_left_alone();
        board.nic.turn_link(true);
        assert!(!board.panel.is_asserted());
        set_config(&board.nic, control, 0, 2);
        assert!(board.panel.is_asserted());
        assert_eq!(board.nic.status(), UP);
        board.nic.kick(0);
        board.comes_back(fill ^ 0xff);
    }
}
