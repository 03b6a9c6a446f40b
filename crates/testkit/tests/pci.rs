//! What is PCI's own about the device there.
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

use board::front::{DEVICE, ISR, common, config, set_common, set_config, switch_on};
use board::{Board, Front, MODERN, RING_RESET, until};
use vionet::QueueIndex;
use vionet::transport::{BarMove, Message, PciNic};
use vionet_spec::pci;
use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x6000;
const MSIX: u16 = 0x40;

/// The capabilities of the vendor: where they lie, by structure type.
fn capabilities(nic: &PciNic) -> Vec<(u8, u16)> {
    let mut at = config(nic, pci::HEADER_CAPABILITIES, 1) as u16;
    let mut found = Vec::new();
    while at != 0 {
        assert!(at >= 0x40 && at.is_multiple_of(4) && found.len() < 16);
        if config(nic, at, 1) == u32::from(pci::CAPABILITY_VENDOR) {
            found.push((config(nic, at + 3, 1) as u8, at));
        }
        at = config(nic, at + 1, 1) as u16;
    }
    found
}

#[test]
fn the_function_says_what_it_is() {
    let nic = Board::pci(1).nic;
    assert_eq!(config(&nic, 0, 4), 0x1041_1af4, "PCID-02, PCID-03, PCID-04");
    assert!(config(&nic, 8, 1) >= 1, "PCID-05");
    assert_eq!(config(&nic, 8, 4) >> 8, pci::CLASS_ETHERNET);
    assert!(config(&nic, pci::HEADER_SUBSYSTEM + 2, 2) >= 0x40, "PCID-06");
    assert_eq!(config(&nic, 0x0e, 1), 0, "an ordinary function");
    assert_eq!(config(&nic, pci::HEADER_INTERRUPT + 1, 1), 1, "INTA");
    assert_eq!(config(&nic, 0x100, 4), 0, "and nothing behind its 256 bytes");
    // PCID-01: what is read only stays, and every width reads the same bytes.
    let before: Vec<u32> = (0..64).map(|word| config(&nic, word * 4, 4)).collect();
    for word in (0..64).filter(|word| !matches!(word * 4, 4 | 0x10 | 0x14 | 0x3c | 0x40)) {
        if word * 4 < 0x94 {
            set_config(&nic, word * 4, u32::MAX, 4);
            assert_eq!(config(&nic, word * 4, 4), before[usize::from(word)], "{:#x}", word * 4);
        }
    }
    for at in 0..0xa0_u16 {
        let whole = before[usize::from(at / 4)].to_le_bytes();
        assert_eq!(config(&nic, at, 1), u32::from(whole[usize::from(at % 4)]), "{at:#x}");
    }
}

#[test]
fn every_structure_is_named_by_a_capability_inside_the_region() {
    let nic = Board::pci(4).nic;
    let found = capabilities(&nic);
    let kinds: Vec<u8> = found.iter().map(|(kind, _)| *kind).collect();
    // PCOM-02, PNOT-01, PISR-01, PDEV-01, PCFG-01.
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    for (kind, at) in found {
        let len = config(&nic, at + 2, 1);
        assert_eq!(len, if matches!(kind, 2 | 5) { 20 } else { 16 }, "PCAP-01");
        if kind == pci::CAP_PCI {
            continue;
        }
        let offset = u64::from(config(&nic, at + pci::CAP_OFFSET, 4));
        let length = u64::from(config(&nic, at + pci::CAP_LENGTH, 4));
        assert_eq!(config(&nic, at + pci::CAP_BAR, 1), 0, "PCAP-04");
        assert!(offset + length <= PciNic::BAR_LEN && length > 0, "PCAP-04");
        assert!(offset.is_multiple_of(4), "PCOM-01, PNOT-02, PNOT-07, PDEV-02");
        let before = config(&nic, at + pci::CAP_OFFSET, 4);
        set_config(&nic, at + pci::CAP_OFFSET, !0, 4);
        set_config(&nic, at + pci::CAP_BAR, !0, 1);
        assert_eq!(config(&nic, at + pci::CAP_OFFSET, 4), before, "PCAP-05");
        assert_eq!(config(&nic, at + pci::CAP_BAR, 1), 0, "PCAP-05");
        if kind == pci::CAP_NOTIFY {
            let multiplier = u64::from(config(&nic, at + pci::CAP_MORE, 4));
            assert_eq!(multiplier, 4, "PNOT-03, PNOT-06");
            for queue in 0..9_u32 {
                nic.select(queue);
                let place = common(&nic, pci::COMMON_QUEUE_NOTIFY_OFF, 2) * multiplier;
                assert!(place + 4 <= length, "PNOT-04, PNOT-05, PNOT-08, PNOT-09");
                assert_eq!(nic.doorbell_offset(QueueIndex(queue as u16)), Some(offset + place));
            }
            assert_eq!(nic.doorbell_offset(QueueIndex(9)), None);
        }
    }
    assert_eq!(common(&nic, pci::COMMON_NUM_QUEUES, 2), 9, "PCOM-18");
}

#[test]
fn the_region_is_sized_moved_and_switched_off() {
    let nic = Board::pci(1).nic;
    nic.reset().unwrap();
    let bar = pci::HEADER_BAR0;
    assert_eq!((config(&nic, bar, 4), config(&nic, bar + 4, 4)), (4, 0), "64 bits of memory");
    set_config(&nic, bar, !0, 4);
    set_config(&nic, bar + 4, !0, 4);
    assert_eq!((config(&nic, bar, 4), config(&nic, bar + 4, 4)), (!0x7fff | 4, !0));
    assert_eq!(nic.bar_address(), None, "it does not answer yet");
    // Byte by byte, as some firmware does.
    for (at, byte) in (bar..).zip(0x12_4000_0000_u64.to_le_bytes()) {
        assert_eq!(set_config(&nic, at, byte.into(), 1), None);
    }
    let to = Some(0x12_4000_0000);
    let on = u32::from(pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    assert_eq!(set_config(&nic, 4, on, 2), Some(BarMove { from: None, to }));
    assert_eq!(nic.bar_address(), to);
    let moved = Some(0x12_c000_0000);
    assert_eq!(set_config(&nic, bar, 0xc000_0000, 4), Some(BarMove { from: to, to: moved }));
    assert_eq!(set_config(&nic, 4, 0, 2), Some(BarMove { from: moved, to: None }));
    switch_on(&nic);
    for bar in 1_u8..6 {
        let mut data = [0xa5; 4];
        nic.read_bar(bar, 0, &mut data);
        nic.write_bar(bar, 0x14, &[1]);
        assert_eq!((data, nic.status()), ([0; 4], 0), "nothing lies in region {bar}");
    }
}

#[test]
fn a_register_reads_the_same_in_every_width_and_is_written_whole() {
    let nic = Board::pci(1).nic;
    nic.select(1);
    nic.set_areas([0x1122_3344_5566_7780, 0xa1a2_a3a4_a5a6_a7a8, 0xffff_0000_0000_1000]);
    // PCIL-01, PCIL-02: halves, and both at once.
    assert_eq!(common(&nic, pci::COMMON_QUEUE_DESC, 8), 0x1122_3344_5566_7780);
    assert_eq!(common(&nic, pci::COMMON_QUEUE_DESC + 4, 4), 0x1122_3344);
    set_common(&nic, pci::COMMON_QUEUE_DRIVER, 0x0102_0304_0506_0708, 8);
    assert_eq!(common(&nic, pci::COMMON_QUEUE_DRIVER, 8), 0x0102_0304_0506_0708);
    let whole: Vec<u8> = (0..0x40).map(|at| common(&nic, at, 1) as u8).collect();
    for len in [2, 4, 8] {
        for at in 0..0x40 - len {
            let mut data = [0xa5; 8];
            nic.read_bar(0, at as u64, &mut data[..len]);
            assert_eq!(data[..len], whole[at..at + len], "{len} at {at:#x}");
        }
    }
    assert_eq!(whole[0x38..0x3a], [0; 2], "PCOM-20: NOTIF_CONFIG_DATA is not offered");
    assert_eq!(whole[0x3c..], [0; 4], "PCOM-16, PCOM-17, PCOM-20: no administration queues");
    // PCIL-03: part of a register is not written, and nothing happens.
    for (at, len) in [(pci::COMMON_QUEUE_DESC, 1), (pci::COMMON_QUEUE_DESC + 1, 4), (0x22, 2)] {
        set_common(&nic, at, !0, len);
    }
    set_common(&nic, pci::COMMON_QUEUE_SIZE, 0xff, 1);
    assert_eq!(common(&nic, pci::COMMON_QUEUE_DESC, 8), 0x1122_3344_5566_7780);
    // PCOM-22: what can be read alone.
    let before: Vec<u64> = [4, 0x12, 0x15, 0x1e, 0x38].map(|at| common(&nic, at, 2)).to_vec();
    for (at, len) in [(0x04, 4), (0x12, 2), (0x15, 1), (0x1e, 2), (0x38, 2)] {
        set_common(&nic, at, !0, len);
    }
    let after: Vec<u64> = [4, 0x12, 0x15, 0x1e, 0x38].map(|at| common(&nic, at, 2)).to_vec();
    assert_eq!(after, before);
    for len in [0, 3, 5, 7, 9] {
        let mut data = vec![0xa5; len];
        nic.read_bar(0, 0, &mut data);
        assert_eq!(data, vec![0; len], "no such width");
        nic.write_bar(0, 0x14, &vec![0xff; len]);
    }
    for at in [PciNic::BAR_LEN - 1, PciNic::BAR_LEN, u64::MAX - 7, u64::MAX] {
        nic.write_bar(0, at, &[0xff; 8]);
        nic.read_bar(0, at, &mut [0; 8]);
    }
    assert_eq!(nic.status(), 0);
}

#[test]
fn features_of_the_driver_are_read_back_and_an_enabled_queue_is_kept() {
    let mut board = Board::pci(1);
    board.nic.choose(0, 0x1234);
    board.nic.choose(2, 0x5678);
    for (word, bits) in [(0, 0x1234), (1, 0), (2, 0x5678), (4, 0)] {
        set_common(&board.nic, pci::COMMON_DRIVER_FEATURE_SELECT, word, 4);
        assert_eq!(common(&board.nic, pci::COMMON_DRIVER_FEATURE, 4), bits, "PCOM-04, PCOM-05");
    }
    board.nic.choose(2, 0);
    board.bring_up(RING_RESET);
    board.nic.select(1);
    set_common(&board.nic, pci::COMMON_QUEUE_ENABLE, 0, 2);
    assert!(board.nic.is_enabled(), "PCOM-26");
    assert_eq!(board.nic.size_max(), 16, "PCOM-24");
    board.nic.set_size(8);
    board.nic.set_size(0x8001);
    assert_eq!(board.nic.size_max(), 16, "PCOM-23, PCOM-24");
    board.round_trip(1);
    board.nic.set_status(0);
    board.shows(0);
    board.nic.select(1);
    assert_eq!(board.nic.size_max(), 256, "PCOM-19");
    board.nic.set_size(3);
    assert_eq!(board.nic.size_max(), 256, "PCOM-23");
}

#[test]
fn the_line_is_up_until_the_isr_is_read_and_only_if_it_may() {
    let mut board = Board::pci(1);
    board.bring_up(0);
    assert!(!board.panel.is_asserted());
    board.round_trip(1);
    until("the line", || board.panel.is_asserted());
    let status = |nic: &PciNic| config(nic, pci::HEADER_STATUS, 2) & 8 != 0;
    assert!(status(&board.nic), "PISR-04");
    // Bytes behind it are not it.
    assert_eq!(common(&board.nic, ISR + 1, 4), 0);
    assert!(board.panel.is_asserted());
    assert_eq!(common(&board.nic, ISR, 4), u64::from(ISR_QUEUE), "PISR-03, PISR-05");
    assert!(!board.panel.is_asserted() && !status(&board.nic), "PISR-06");
    assert_eq!(common(&board.nic, ISR, 1), 0);
    let on = u32::from(pci::COMMAND_MEMORY | pci::COMMAND_MASTER);
    set_config(&board.nic, 4, on | u32::from(pci::COMMAND_NO_INTX), 2);
    board.nic.turn_link(false);
    assert!(!board.panel.is_asserted() && status(&board.nic), "PISR-04: switched off");
    set_config(&board.nic, 4, on, 2);
    assert!(board.panel.is_asserted());
    assert_eq!(board.nic.take_reasons(), ISR_CONFIG, "PISR-02");
}

fn map(nic: &PciNic, queue: u32, vector: u16) -> u16 {
    nic.select(queue);
    set_common(nic, pci::COMMON_QUEUE_VECTOR, vector.into(), 2);
    common(nic, pci::COMMON_QUEUE_VECTOR, 2) as u16
}

fn map_config(nic: &PciNic, vector: u16) -> u16 {
    set_common(nic, pci::COMMON_CONFIG_VECTOR, vector.into(), 2);
    common(nic, pci::COMMON_CONFIG_VECTOR, 2) as u16
}

fn message(vector: u16) -> Message {
    Message { address: 0x1_fee0_0000 + u64::from(vector), data: 0x40 + u32::from(vector) }
}

/// Fills the table, with every vector open, and enables MSI-X.
fn enable_msix(nic: &PciNic) {
    for vector in 0..nic.vectors() {
        let Message { address, data } = message(vector);
        let at = TABLE + u64::from(vector) * 16;
        nic.write_bar(0, at, &address.to_le_bytes());
        nic.write_bar(0, at + 8, &data.to_le_bytes());
        nic.write_bar(0, at + 12, &0_u32.to_le_bytes());
    }
    set_config(nic, MSIX + 2, pci::MSIX_ENABLE.into(), 2);
}

#[test]
fn any_event_maps_to_any_vector_and_to_none() {
    let board = Board::pci(2);
    let nic = &board.nic;
    let count = (config(nic, MSIX + 2, 2) & 0x7ff) as u16 + 1;
    assert_eq!((count, nic.vectors()), (6, 6), "MSIX-01, MSIX-02, MSIX-03");
    assert_eq!(config(nic, MSIX + 4, 4), TABLE as u32);
    assert_eq!(config(nic, MSIX + 8, 4), PENDING as u32);
    for vector in (0..count).chain([NO_VECTOR, 0]) {
        assert_eq!(map_config(nic, vector), vector, "MSIX-04, MSIX-05, MSIX-06, MSIX-08");
        for queue in 0..5 {
            assert_eq!(map(nic, queue, vector), vector);
        }
    }
    for wrong in [count, 0x7ff, 0x800, 0xfffe] {
        assert_eq!(map_config(nic, wrong), NO_VECTOR, "MSIX-09, MSIX-10");
        assert_eq!(map(nic, 1, wrong), NO_VECTOR);
    }
    assert_eq!((map(nic, 2, 3), map_config(nic, 1)), (3, 1));
    assert_eq!(map(nic, 77, 3), NO_VECTOR, "no such queue");
    nic.set_status(ACKNOWLEDGE);
    nic.set_status(0);
    assert_eq!(common(nic, pci::COMMON_CONFIG_VECTOR, 2), u64::from(NO_VECTOR), "MSIX-07");
    for queue in 0..5 {
        nic.select(queue);
        assert_eq!(common(nic, pci::COMMON_QUEUE_VECTOR, 2), u64::from(NO_VECTOR), "MSIX-07");
    }
}

#[test]
fn a_queue_interrupts_by_its_vector_and_not_at_all_without_one() {
    let mut board = Board::pci(1);
    enable_msix(&board.nic);
    board.negotiate(0);
    let vectors = [(0, 2), (1, 0)];
    for (queue, vector) in vectors {
        map(&board.nic, queue, vector);
    }
    map_config(&board.nic, 3);
    board.set_up(0);
    board.go();
    board.round_trip(1);
    let mut seen = Vec::new();
    until("both messages", || {
        seen.extend(board.panel.take_messages());
        seen.len() >= 2
    });
    seen.sort_by_key(|(vector, _)| *vector);
    assert_eq!(seen, [(0, message(0)), (2, message(2))]);
    assert_eq!(common(&board.nic, ISR, 1), 0, "PISR-03: with MSI-X it is not set; PISR-07");
    board.nic.turn_link(false);
    assert_eq!(board.panel.take_messages(), [(3, message(3))]);
    assert!(!board.panel.is_asserted(), "the line is not used");
    board.nic.turn_link(true);
    board.panel.take_messages();
    // MSIX-13: both on one vector. MSIX-11, MSIX-12: and on none.
    map(&board.nic, 0, 1);
    map(&board.nic, 1, 1);
    board.round_trip(2);
    until("a message", || board.panel.messages.lock().unwrap().contains(&(1, message(1))));
    for queue in [0, 1] {
        map(&board.nic, queue, NO_VECTOR);
    }
    map_config(&board.nic, NO_VECTOR);
    std::thread::sleep(Duration::from_millis(20));
    board.panel.take_messages();
    (0..10).for_each(|fill| board.round_trip(fill));
    board.nic.turn_link(false);
    assert!(board.panel.take_messages().is_empty());
    assert!(!board.panel.is_asserted());
}

#[test]
fn a_masked_vector_is_pending_until_it_may_be_sent() {
    let mut board = Board::pci(1);
    let nic = &board.nic;
    enable_msix(nic);
    assert_eq!(board.panel.routes.lock().unwrap().last(), Some(&(3, Some(message(3)))));
    let pending = |nic: &PciNic| common(nic, PENDING, 8);
    let mask = |nic: &PciNic, masked: u32| {
        nic.write_bar(0, TABLE + 2 * 16 + 12, &masked.to_le_bytes());
    };
    board.negotiate(0);
    map_config(&board.nic, 2);
    board.set_up(0);
    board.go();
    mask(&board.nic, 1);
    assert_eq!(board.panel.routes.lock().unwrap().last(), Some(&(2, None)));
    board.nic.turn_link(false);
    board.nic.turn_link(true);
    assert_eq!(pending(&board.nic), 1 << 2, "MSIX-14");
    assert!(board.panel.take_messages().is_empty());
    board.nic.write_bar(0, PENDING, &[0; 8]);
    assert_eq!(pending(&board.nic), 1 << 2, "it cannot be written");
    mask(&board.nic, 0);
    assert_eq!(board.panel.take_messages(), [(2, message(2))], "MSIX-14: once");
    assert_eq!(pending(&board.nic), 0);
    // The same with the mask of the whole function.
    let both = u32::from(pci::MSIX_ENABLE | pci::MSIX_MASK_ALL);
    set_config(&board.nic, MSIX + 2, both, 2);
    board.nic.turn_link(false);
    assert_eq!((pending(&board.nic), board.panel.take_messages().len()), (1 << 2, 0));
    // What is written to a masked entry is what is sent (with the low half first, too).
    for (word, value) in [(0_u64, 0xfee0_1000_u32), (1, 7), (2, 0x99)] {
        board.nic.write_bar(0, TABLE + 2 * 16 + word * 4, &value.to_le_bytes());
    }
    set_config(&board.nic, MSIX + 2, pci::MSIX_ENABLE.into(), 2);
    let changed = Message { address: 7 << 32 | 0xfee0_1000, data: 0x99 };
    assert_eq!(board.panel.take_messages(), [(2, changed)]);
    assert_eq!(common(&board.nic, TABLE + 2 * 16, 8), changed.address);
    // A reset forgets what is pending (RST-02).
    mask(&board.nic, 1);
    board.nic.turn_link(true);
    board.nic.set_status(0);
    board.shows(0);
    mask(&board.nic, 0);
    assert_eq!((pending(&board.nic), board.panel.take_messages().len()), (0, 0));
}

#[test]
fn a_kick_has_the_width_that_was_agreed_on_and_names_its_queue() {
    let mut board = Board::pci(1);
    let data_bit = 1 << (38 - 32);
    for (word, right, wrong) in [(0, 2, [1, 4, 8]), (data_bit, 4, [1, 2, 8])] {
        board.bring_to_sleep(word);
        let tx = board.nic.doorbell_offset(QueueIndex(1)).unwrap();
        board.post(5);
        for len in wrong {
            board.nic.write_bar(0, tx, &1_u64.to_le_bytes()[..len]);
        }
        // PNOT-13: no such queue, or another one than the place says; between places.
        for (at, value) in [(tx, 9), (tx, 0xffff), (tx, 0), (tx + 2, 1), (tx + 4000, 1)] {
            board.nic.write_bar(0, at, &u64::to_le_bytes(value)[..right]);
        }
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(board.tx.used_idx(), 1, "PNOT-11: other widths are ignored");
        // NDAT-01 to -04: whatever the data says, the ring is what counts.
        let value = if right == 4 { 0xabcd_0001 } else { 1_u32 };
        board.nic.write_bar(0, tx, &value.to_le_bytes()[..right]);
        board.comes_back(5);
    }
}

/// Sets the window, and returns where its data is.
fn window(nic: &PciNic, bar: u8, offset: u64, len: u32) -> u16 {
    let (_, at) = capabilities(nic).into_iter().find(|(kind, _)| *kind == pci::CAP_PCI).unwrap();
    set_config(nic, at + pci::CAP_BAR, bar.into(), 1);
    set_config(nic, at + pci::CAP_OFFSET, offset as u32, 4);
    set_config(nic, at + pci::CAP_LENGTH, len, 4);
    assert_eq!(config(nic, at + pci::CAP_OFFSET, 4), offset as u32, "PCFG-04");
    at + pci::CAP_MORE
}

#[test]
fn the_window_reaches_every_structure_and_nothing_else() {
    let board = Board::pci(1);
    let nic = &board.nic;
    let data = window(nic, 0, pci::COMMON_DEVICE_FEATURE_SELECT, 4);
    set_config(nic, data, 1, 4);
    let data = window(nic, 0, pci::COMMON_DEVICE_FEATURE, 4);
    assert_eq!(config(nic, data, 4), nic.offered(1), "PCFG-02, PCFG-03");
    let data = window(nic, 0, DEVICE + 4, 2);
    assert_eq!(config(nic, data, 2), 0x0100, "the end of the address");
    assert_eq!(config(nic, data, 4), 0x0100, "PCFG-03: its first bytes");
    let data = window(nic, 0, pci::COMMON_STATUS, 1);
    set_config(nic, data, (ACKNOWLEDGE | DRIVER).into(), 1);
    assert_eq!(nic.status(), ACKNOWLEDGE | DRIVER);
    // PCFG-05: out of line, or of no length there is. PCFG-06: not a structure's.
    let status = pci::COMMON_STATUS;
    for (bar, offset, len) in [
        (0, status - 3, 4),
        (0, status - 1, 2),
        (0, status, 0),
        (0, status, 3),
        (0, status, 8),
        (1, status, 1),
        (5, status, 1),
        (0xff, status, 1),
        (0, 0x7fff, 1),
        (0, 0x8000, 4),
        (0, 0xffff_fffc, 4),
        (0, pci::COMMON_LEN, 4),
        (0, 0x400c, 4),
        (0, 0x6000, 4),
    ] {
        let data = window(nic, bar, offset, len);
        set_config(nic, data, 0, 4);
        config(nic, data, 4);
        assert_eq!(nic.status(), ACKNOWLEDGE | DRIVER, "{bar} {offset:#x} {len}");
    }
    assert_eq!(common(nic, TABLE + 12, 4), 1, "the table of MSI-X was not reached");
}

#[test]
fn the_queue_of_commands_and_late_vectors_work_at_any_time() {
    let mut board = Board::pci(2);
    board.negotiate(0);
    assert_eq!(board.nic.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    board.set_up(0);
    // A queue that these features have no use for is nobody's fault.
    board.nic.select(4);
    board.nic.enable();
    board.go();
    board.round_trip(1);
    assert_eq!(board.nic.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    enable_msix(&board.nic);
    map(&board.nic, 0, 1);
    board.round_trip(2);
    until("a message", || board.panel.messages.lock().unwrap().contains(&(1, message(1))));
    board.nic.reset().unwrap();
    switch_on(&board.nic);
    assert_eq!(board.nic.status(), 0);
    assert_eq!(config(&board.nic, MSIX + 2, 2) & u32::from(pci::MSIX_ENABLE), 0);
    assert_eq!(common(&board.nic, TABLE + 12, 4), 1, "masked, as after power-on");
    board.nic.choose(1, MODERN);
    board.bring_up(0);
    board.round_trip(3);
}
