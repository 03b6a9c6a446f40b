//! What a driver sees through registers, on either bus.
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

use std::sync::atomic::Ordering;
use std::time::Duration;

use board::{BUFFERS, Board, MAC, MODERN, RING_RESET, RINGS, SIZE, on_each_bus, quickly, until};
use vionet::Report;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE};
use vionet_spec::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, SUSPEND,
};
use vionet_testkit::{GuestRam, SplitDriver};

const AGREED: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;
const UP: u8 = AGREED | DRIVER_OK;

#[test]
fn a_driver_that_goes_by_the_standard_moves_frames_again_and_again() {
    on_each_bus(|board| {
        for round in 1..=3 {
            board.bring_up(0);
            (0..40).for_each(|fill| board.round_trip(fill));
            assert_eq!(board.sent(), round * 40);
            assert!(board.panel.is_asserted());
            assert_eq!(board.nic.take_reasons(), ISR_QUEUE, "MMIO-03, MMIO-04, PISR-03");
            assert!(!board.panel.is_asserted(), "PISR-05, PISR-06, MMIO-19");
        }
    });
}

#[test]
fn every_word_of_the_features_shows_its_bits_and_no_other() {
    on_each_bus(|board| {
        let words: Vec<u32> = (0..4).map(|word| board.nic.offered(word)).collect();
        let has = |feature: Feature| {
            let bit = usize::from(feature.bit());
            words[bit / 32] >> (bit % 32) & 1 == 1
        };
        for feature in [
            Feature::VERSION_1,
            Feature::RING_RESET,
            Feature::NOTIFICATION_DATA,
            Feature::SUSPEND,
            Feature::GUEST_UDP_TUNNEL_GSO,
            Feature::MAC,
        ] {
            assert!(has(feature), "{feature:?}");
        }
        // ADMIN_VQ and SR_IOV, NOTIF_CONFIG_DATA, and no platform without an IOMMU.
        for bit in [41, 37, 39, 33] {
            assert_eq!(words[1] >> (bit - 32) & 1, 0, "MMIO-23: bit {bit}");
        }
        for word in [4, 5, 0x100, u32::MAX] {
            assert_eq!(board.nic.offered(word), 0, "PCOM-03, MMIO-15: word {word}");
        }
    });
}

#[test]
fn features_are_accepted_whole_or_not_at_all_and_then_stay() {
    on_each_bus(|board| {
        let refused = [
            (1, 0),                             // a legacy driver
            (1, MODERN | 1 << 9),               // ADMIN_VQ was not offered
            (0, 1 << Feature::HOST_TSO4.bit()), // without CSUM
            (3, 1 << 31),                       // nobody's
            (4, 1),
            (u32::MAX, 1), // past all there can be
        ];
        for (word, bits) in refused {
            board.nic.set_status(0);
            board.shows(0);
            board.nic.set_status(ACKNOWLEDGE | DRIVER);
            board.nic.choose(1, MODERN);
            board.nic.choose(word, bits);
            board.nic.set_status(AGREED);
            assert_eq!(board.nic.status(), ACKNOWLEDGE | DRIVER, "{word}: {bits:#x}");
            board.nic.set_status(UP);
            assert_eq!(board.nic.status(), ACKNOWLEDGE | DRIVER, "there is nothing to be OK about");
        }
        // Another choice is possible, and is the last.
        board.nic.set_status(0);
        board.nic.choose(1, 0);
        board.nic.set_status(AGREED);
        board.nic.choose(1, MODERN);
        board.nic.set_status(AGREED);
        assert_eq!(board.nic.status(), AGREED);
        board.nic.choose(1, MODERN | RING_RESET);
        board.nic.set_status(AGREED);
        board.set_up(0);
        board.go();
        board.nic.select(1);
        board.nic.reset_queue();
        assert!(!board.nic.is_resetting(), "FEAT-08, INIT-03: it was too late for RING_RESET");
        board.round_trip(7);
    });
}

#[test]
fn nothing_is_touched_before_the_driver_is_ready_and_nothing_kicked_for_is_lost() {
    on_each_bus(|board| {
        board.negotiate(0);
        board.set_up(0);
        board.post(9);
        board.is_left_alone();
        board.panel.rises.store(0, Ordering::SeqCst);
        board.go();
        board.comes_back(9);
        // INIT-05: what waits is looked at, kicked for or not.
        board.negotiate(0);
        board.set_up(0);
        board.post(10);
        board.go();
        board.comes_back(10);
    });
}

#[test]
fn each_queue_has_registers_of_its_own_and_one_that_is_not_there_has_none() {
    on_each_bus(|board| {
        board.negotiate(0);
        let max = board.nic.size_max();
        for queue in 0..3 {
            board.nic.select(queue);
            assert_eq!(board.nic.size_max(), 256, "PCOM-19");
            assert!(!board.nic.is_enabled(), "PCOM-08, MMIO-06");
        }
        for queue in [3, 4, 0xfffe, 0xffff] {
            board.nic.select(queue);
            assert_eq!(board.nic.size_max(), 0, "PCOM-14, MMIO-16: {queue}");
            board.nic.set_size(16);
            board.nic.set_areas([RINGS; 3]);
            board.nic.enable();
            board.nic.reset_queue();
            assert!(!board.nic.is_enabled() && !board.nic.is_resetting());
            assert_eq!(board.nic.size_max(), 0);
        }
        board.nic.select(0);
        assert_eq!(board.nic.size_max(), max, "and the others have not changed");
    });
}

#[test]
fn a_size_that_cannot_be_leaves_the_queue_disabled() {
    on_each_bus(|board| {
        board.negotiate(0);
        for wrong in [0, 3, 15, 257, 512, 0xffff] {
            board.nic.select(0);
            board.nic.set_size(wrong);
            board.nic.enable();
            assert!(!board.nic.is_enabled(), "MMIO-26: {wrong}");
        }
        // With a packed ring any number will do (PCOM-15).
        board.negotiate(1 << (Feature::RING_PACKED.bit() - 32));
        board.nic.select(0);
        board.nic.set_size(15);
        board.nic.enable();
        assert!(board.nic.is_enabled());
    });
}

#[test]
fn an_enabled_queue_does_not_change() {
    on_each_bus(|board| {
        board.bring_up(0);
        for queue in [0, 1] {
            board.nic.select(queue);
            board.nic.set_size(8);
            board.nic.set_areas([0x5000; 3]);
            board.nic.enable();
        }
        // What it starts from again is what it had.
        board.nic.pause().unwrap();
        board.nic.resume().unwrap();
        (0..40).for_each(|fill| board.round_trip(fill));
    });
}

#[test]
fn a_reset_shows_when_it_is_over_and_keeps_nobody_waiting() {
    on_each_bus(|board| {
        board.bring_up(RING_RESET);
        board.hold_worker();
        board.nic.select(1);
        quickly(|| board.nic.reset_queue());
        assert!(board.nic.is_resetting());
        quickly(|| board.nic.set_status(0));
        for _ in 0..5 {
            assert_ne!(quickly(|| board.nic.status()), 0, "RST-03: a worker has not let go");
        }
        // What is written meanwhile is dropped (PCOM-25); a second reset is the same one.
        quickly(|| board.nic.set_status(ACKNOWLEDGE));
        quickly(|| board.nic.set_status(0));
        board.nic.select(0);
        board.nic.enable();
        assert!(!board.nic.is_enabled(), "INIT-07");
        board.host.hold(false);
        board.shows(0);
        for queue in 0..3 {
            board.nic.select(queue);
            assert!(!board.nic.is_enabled(), "PCOM-08, MMIO-06");
            assert!(!board.nic.is_resetting(), "PCOM-09, MMIO-09");
        }
        assert!(!board.panel.is_asserted(), "MMIO-05");
        // RST-02, INIT-09: nothing is touched any more.
        board.post(3);
        board.is_left_alone();
        assert_eq!(board.nic.take_reasons(), 0);
        board.bring_up(0);
        board.round_trip(4);
    });
}

#[test]
fn a_reset_goes_on_by_itself_when_the_worker_lets_go() {
    on_each_bus(|board| {
        board.bring_up(0);
        board.hold_worker();
        board.nic.set_status(0);
        board.host.hold(false);
        // No register is looked at: whoever tends the device is called, and that is enough.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(10));
            board.tend();
        }
        board.nic.pause().unwrap();
        assert_eq!(board.nic.status(), 0);
    });
}

#[test]
fn a_queue_is_reset_alone_and_comes_back_elsewhere() {
    on_each_bus(|board| {
        board.bring_up(RING_RESET);
        board.round_trip(1);
        board.nic.select(1);
        assert!(!board.nic.is_resetting(), "PCOM-10, MMIO-10");
        board.hold_worker();
        quickly(|| board.nic.reset_queue());
        assert!(quickly(|| board.nic.is_resetting()), "PCOM-12, MMIO-12");
        board.host.hold(false);
        until("the queue is reset", || !board.nic.is_resetting());
        assert!(!board.nic.is_enabled(), "PCOM-13, MMIO-13");
        assert_eq!(board.nic.size_max(), 256, "VQR-04: as when it was found");
        // VQR-03, VQR-06, PCOM-27: its memory is the driver's again, whatever is posted there.
        board.post(2);
        let before = (board.tx.used_idx(), board.sent());
        board.nic.kick(1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((board.tx.used_idx(), board.sent()), before);
        // VQR-05, VQR-07: another size at another place, from the beginning.
        board.tx = SplitDriver::new(&board.ram, RINGS + 0xc000, SIZE / 2, false, 0);
        let setup = board.tx.setup();
        board.nic.set_size(setup.size.into());
        board.nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
        board.nic.enable();
        assert!(board.nic.is_enabled() && !board.nic.is_resetting());
        until("the frame from before", || !board.rx.collect().is_empty());
        (0..20).for_each(|fill| board.round_trip(fill));
        assert_eq!(board.nic.status(), UP);
    });
}

#[test]
fn a_broken_ring_needs_a_reset_and_is_left_alone_until_then() {
    on_each_bus(|board| {
        board.bring_up(0);
        board.round_trip(1);
        board.nic.take_reasons();
        // An index that no driver reaches (SPL-20).
        board.ram.write_u16(board.tx.setup().driver.0 + 2, 5000);
        board.nic.kick(1);
        until("the report", || matches!(board.nic.tend(), Some(Report::Fault(_))));
        assert_eq!(board.nic.status(), UP | DEVICE_NEEDS_RESET, "ST-03");
        until("the interrupt", || board.nic.take_reasons() & ISR_CONFIG != 0); // ST-04
        // ST-08: the receive queue has broken no rule, and rests, too.
        board.nic.set_status(UP);
        board.is_left_alone();
        assert_eq!(board.nic.status(), UP | DEVICE_NEEDS_RESET);
        board.bring_up(0);
        board.round_trip(2);
    });
}

#[test]
fn a_queue_in_no_memory_or_out_of_line_needs_a_reset() {
    on_each_bus(|board| {
        for areas in [[0x4000, RINGS, RINGS], [RINGS + 1, RINGS, RINGS], [u64::MAX; 3]] {
            board.negotiate(0);
            board.set_up(0);
            board.nic.set_status(0);
            board.negotiate(0);
            board.nic.select(1);
            board.nic.set_size(16);
            board.nic.set_areas(areas);
            board.nic.enable();
            board.go();
            board.shows(UP | DEVICE_NEEDS_RESET);
            assert_eq!(board.nic.take_reasons(), ISR_CONFIG);
        }
        board.bring_up(0);
        board.round_trip(2);
    });
}

#[test]
fn status_bits_stay_and_a_driver_that_has_failed_is_left_alone() {
    on_each_bus(|board| {
        board.bring_up(0);
        board.nic.set_status(ACKNOWLEDGE);
        assert_eq!(board.nic.status(), UP, "ST-06");
        board.round_trip(1);
        board.nic.set_status(UP | FAILED);
        board.post(2);
        board.is_left_alone();
        assert_eq!(board.nic.status(), UP | FAILED, "ST-07");
        board.bring_up(0);
        board.round_trip(3);
        // ST-05: everything at once, from nothing.
        board.nic.set_status(0);
        board.shows(0);
        board.nic.choose(1, MODERN);
        board.set_up(0);
        board.nic.set_status(!(FAILED | SUSPEND | DEVICE_NEEDS_RESET));
        assert_eq!(board.nic.status(), UP);
        board.round_trip(4);
    });
}

#[test]
fn the_configuration_is_read_in_any_width_and_written_in_none() {
    on_each_bus(|board| {
        let mut whole = [0; 32];
        for (at, byte) in (0..).zip(&mut whole) {
            board.nic.config(at, std::slice::from_mut(byte));
        }
        assert_eq!(whole[..6], MAC, "CFG-01: before anything is agreed");
        assert_eq!(whole[28..], [0; 4], "CFG-06");
        for width in [1, 2, 4, 8] {
            for at in 0..32 - width {
                let mut part = [0xa5; 8];
                board.nic.config(at as u64, &mut part[..width]);
                assert_eq!(part[..width], whole[at..at + width], "CFG-04: {width} at {at}");
            }
        }
        for width in [1, 2, 4, 8] {
            board.nic.write_config(0, &[0xff; 8][..width]);
        }
        let mut mac = [0; 6];
        board.nic.config(0, &mut mac[..4]);
        board.nic.config(4, &mut mac[4..]);
        assert_eq!(mac, MAC, "NET-CFG-18, INIT-02");
        let mut far = [0xa5; 4];
        board.nic.config(0xe00, &mut far);
        assert_eq!(far, [0; 4]);
    });
}

#[test]
fn a_change_of_the_configuration_has_a_new_generation_and_an_interrupt() {
    on_each_bus(|board| {
        board.bring_up(0);
        let before = board.nic.generation();
        board.nic.turn_link(false);
        assert_ne!(board.nic.generation(), before, "PCOM-06, MMIO-07");
        assert_eq!(board.nic.take_reasons(), ISR_CONFIG, "INIT-06, PISR-02");
        let mut status = [0; 2];
        board.nic.config(6, &mut status);
        assert_eq!(status, [0; 2]);
        board.nic.turn_link(true);
        assert_eq!(board.nic.take_reasons(), ISR_CONFIG);
        board.round_trip(1);
    });
}

#[test]
fn a_suspended_device_rests_and_goes_on_where_it_was() {
    on_each_bus(|board| {
        // Without the feature, or before it is up, the bit is ignored (SUS-01, SUS-10).
        board.bring_up(0);
        board.nic.set_status(AGREED | SUSPEND);
        assert_eq!(board.nic.status(), UP);
        board.negotiate(board::SUSPEND);
        board.nic.set_status(AGREED | SUSPEND);
        assert_eq!(board.nic.status(), AGREED);
        board.bring_up(board::SUSPEND);
        board.round_trip(1);
        board.nic.take_reasons();
        board.nic.set_status(AGREED | SUSPEND);
        board.shows(AGREED | SUSPEND); // SUS-02, SUS-04
        let generation = board.nic.generation();
        board.post(2);
        board.is_left_alone(); // SUS-05, SUS-11
        board.nic.turn_link(false);
        let mut status = [0; 2];
        board.nic.config(6, &mut status);
        assert_eq!((status, board.nic.generation()), ([1, 0], generation), "SUS-05");
        for width in [1, 2, 4, 8] {
            board.nic.write_config(0, &[0xff; 8][..width]);
        }
        let mut mac = [0; 6];
        board.nic.config(0, &mut mac[..4]);
        board.nic.config(4, &mut mac[4..]);
        assert_eq!(mac, MAC, "SUS-06");
        assert_eq!(board.nic.take_reasons(), 0, "SUS-07");
        board.nic.turn_link(true);
        board.nic.set_status(UP);
        assert_eq!(board.nic.status(), UP, "SUS-09");
        assert_ne!(board.nic.generation(), generation);
        assert_eq!(board.nic.take_reasons() & ISR_CONFIG, ISR_CONFIG, "SUS-08");
        board.comes_back(2);
        (0..20).for_each(|fill| board.round_trip(fill));
    });
}

#[test]
fn suspending_ends_what_is_in_progress_before_it_shows() {
    on_each_bus(|board| {
        board.bring_up(board::SUSPEND);
        board.hold_worker();
        quickly(|| board.nic.set_status(AGREED | SUSPEND));
        assert_eq!(board.nic.status(), UP, "SUS-03");
        board.host.hold(false);
        board.shows(AGREED | SUSPEND);
        board.nic.set_status(UP);
        board.comes_back(0x77);
    });
}

#[test]
fn a_pause_is_not_seen_by_the_driver() {
    on_each_bus(|board| {
        board.bring_up(0);
        for fill in 0..20 {
            board.round_trip(fill);
            board.nic.pause().unwrap();
            assert_eq!(board.nic.status(), UP);
            board.post(fill ^ 0xff);
            board.is_left_alone();
            board.nic.resume().unwrap();
            board.comes_back(fill ^ 0xff);
        }
        // What the driver asks for meanwhile is done then.
        board.nic.pause().unwrap();
        board.bring_up(0);
        board.post(5);
        board.is_left_alone();
        board.nic.resume().unwrap();
        board.comes_back(5);
    });
}

#[test]
fn memory_is_added_and_taken_away_under_a_running_driver() {
    on_each_bus(|board| {
        board.bring_up(0);
        board.round_trip(1);
        let regions = |map: &GuestRam| map.space().map().regions().to_vec();
        let more = GuestRam::new(&[(0x100_0000, 0x1_0000)]);
        let all = [regions(&board.ram), regions(&more)].concat();
        let all = vionet_raw::MemoryMap::new(all).unwrap();
        let all = vionet_raw::AddressSpace::new(std::sync::Arc::new(all));
        board.nic.set_memory(std::sync::Arc::new(all)).unwrap();
        board.round_trip(2);
        // A frame from the new memory.
        more.write(0x100_0000, &[0; 72]);
        let frame = vionet_testkit::Buffer::readable(0x100_0000, 72);
        board.tx.post(&[frame], vionet_testkit::Arrangement::Direct).unwrap();
        board.tx.expose();
        board.nic.kick(1);
        until("it is sent", || !board.tx.collect().is_empty());
        assert_eq!(board.nic.status(), UP);
        // Without the memory its rings are in, the driver has a device that needs a reset.
        board.nic.set_memory(std::sync::Arc::clone(more.space())).unwrap();
        assert_eq!(board.nic.status(), UP | DEVICE_NEEDS_RESET);
        let _keep = BUFFERS;
    });
}

#[test]
fn dropping_the_nic_ends_its_workers_and_frees_the_host_side() {
    for held in [false, true] {
        let mut board = Board::pci(2);
        board.bring_up(0);
        board.round_trip(1);
        if held {
            board.hold_worker();
            let host = std::sync::Arc::clone(&board.host);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                host.hold(false);
            });
        }
        let Board { nic, host, ram, rx, tx, .. } = board;
        drop((rx, tx));
        quickly(|| drop(nic));
        assert!(host.dropped.load(Ordering::SeqCst));
        assert_eq!(std::sync::Arc::strong_count(ram.space()), 1, "nobody has the memory");
    }
}

#[test]
fn the_drivers_commands_are_obeyed_by_whoever_tends() {
    on_each_bus(|board| {
        let bits = FeatureBits::of(&[Feature::CTRL_VQ, Feature::CTRL_RX]);
        board.nic.set_status(0);
        board.nic.set_status(ACKNOWLEDGE | DRIVER);
        board.nic.choose(0, bits.0 as u32);
        board.nic.choose(1, MODERN);
        board.nic.set_status(AGREED);
        board.set_up(0);
        let mut control = SplitDriver::new(&board.ram, RINGS + 0x8000, SIZE, false, 0);
        let setup = control.setup();
        board.nic.select(2);
        board.nic.set_size(SIZE.into());
        board.nic.set_areas([setup.descriptors.0, setup.driver.0, setup.device.0]);
        board.nic.enable();
        board.go();
        for round in 0..5 {
            board.nic.take_reasons();
            board.ram.write(BUFFERS + 0x100, &[0, 0, 1, 0xaa]);
            let request = vionet_testkit::Buffer::readable(BUFFERS + 0x100, 3);
            let answer = vionet_testkit::Buffer::writable(BUFFERS + 0x103, 1);
            control.post(&[request, answer], vionet_testkit::Arrangement::Direct).unwrap();
            control.expose();
            board.nic.kick(2);
            until("the command is obeyed", || {
                assert!(board.nic.tend().is_none());
                !control.collect().is_empty()
            });
            assert_eq!(board.ram.read(BUFFERS + 0x103, 1), [0], "round {round}");
            assert_eq!(board.nic.take_reasons(), ISR_QUEUE);
        }
        board.round_trip(1);
    });
}
