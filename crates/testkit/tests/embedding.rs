//! The device in an embedder's hands: without a thread of ours, and with one that tends it.
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

use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use board::{Board, Front, RING_RESET, until};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vionet::{Hands, Instant, Next, QueueIndex, Report, Workers};
use vionet_spec::pci::ISR_CONFIG;

/// The threads of this process that are ours, by name.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    tasks
        .filter_map(|task| name(task.unwrap()).ok())
        .filter(|name| name.starts_with("vionet-"))
        .count()
}

/// Tests that count threads, one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn one_thread_drives_everything() {
    let _alone = ALONE.lock();
    let hands = Hands::new().unwrap();
    let mut board = Board::pci_with(1, &Workers::by_hand(&hands));
    assert_eq!(hands.places(), 1);
    assert_eq!(hands.service(0, Instant::default()), None, "no driver yet");
    let step = |hands: &Hands| while hands.service(0, Instant::default()) == Some(Next::Again) {};
    board.negotiate(RING_RESET);
    board.set_up(0);
    board.go();
    step(&hands);
    assert!(!board.panel.is_asserted(), "MMIO-04: nothing was used yet");
    for fill in 0..20 {
        board.post(fill);
        board.nic.kick(1);
        // Nobody has done anything yet.
        assert_eq!(board.tx.used_idx(), u16::from(fill));
        step(&hands);
        assert_eq!(board.rx.collect().len(), 1);
        assert_eq!(board.tx.collect().len(), 1);
    }
    // Everything that takes pairs back is done at once.
    board.nic.select(1);
    board.nic.reset_queue();
    assert!(!board.nic.is_resetting());
    board.nic.set_status(0);
    assert_eq!(board.nic.status(), 0);
    board.bring_up(0);
    board.post(3);
    board.nic.pause().unwrap();
    step(&hands);
    assert_eq!(board.tx.used_idx(), 0);
    board.nic.resume().unwrap();
    step(&hands);
    assert_eq!(board.tx.used_idx(), 1);
    board.ram.write_u16(board.tx.setup().driver.0 + 2, 5000);
    step(&hands);
    assert!(matches!(board.nic.tend(), Some(Report::Fault(_))));
    assert_eq!(board.nic.take_reasons() & ISR_CONFIG, ISR_CONFIG);
    assert_eq!(threads(), 0);
    let host = Arc::clone(&board.host);
    drop(board);
    assert!(host.dropped.load(Ordering::SeqCst));
    assert_eq!(hands.places(), 0);
}

#[test]
fn a_keeper_tends_the_device_and_goes_with_it() {
    let _alone = ALONE.lock();
    let mut board = Board::mmio(1);
    let nic = Arc::clone(&board.nic);
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let keeper = nic.keeper(move |report| heard.lock().unwrap().push(report)).unwrap();
    board.bring_up(0);
    board.round_trip(1);
    // A reset that the driver does not wait for ends by itself.
    board.hold_worker();
    board.nic.set_status(0);
    board.host.hold(false);
    std::thread::sleep(Duration::from_millis(200));
    let before = nic.snapshot();
    assert_eq!(before.features, None, "the device has been reset");
    board.bring_up(0);
    board.ram.write_u16(board.tx.setup().driver.0 + 2, 5000);
    board.nic.kick(1);
    until("the report", || matches!(told.lock().unwrap().last(), Some(Report::Fault(_))));
    assert!(nic.doorbell(QueueIndex(1)).is_some());
    drop(board);
    drop(nic);
    drop(keeper);
    assert_eq!(threads(), 0);
}

fn is_rung(bell: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(bell, PollFlags::IN)], Some(&now)).unwrap() > 0
}

#[test]
fn a_pair_that_comes_while_others_are_served_is_not_slept_through() {
    let hands = Hands::new().unwrap();
    let mut board = Board::pci_with(2, &Workers::by_hand(&hands));
    board.negotiate(0);
    board.set_up(0);
    // In the middle of a round, a vCPU starts the pair that was looked at already.
    assert_eq!(hands.service(0, Instant::default()), None);
    board.go();
    assert_eq!(hands.service(1, Instant::default()), None);
    assert!(is_rung(hands.bell()), "the pair at place 0 waits to be served");
    while hands.service(0, Instant::default()) == Some(Next::Again) {}
    assert!(!is_rung(hands.bell()));
    // One that goes before it was served does not keep anybody awake.
    board.nic.pause().unwrap();
    board.nic.resume().unwrap();
    board.nic.pause().unwrap();
    assert_eq!(hands.service(0, Instant::default()), None);
    assert!(!is_rung(hands.bell()));
    board.nic.resume().unwrap();
    drop(board);
    let other = Board::pci_with(1, &Workers::by_hand(&hands));
    assert_eq!(hands.service(0, Instant::default()), None);
    assert!(!is_rung(hands.bell()), "nor one whose device is gone");
    drop(other);
}

#[test]
fn a_host_side_that_cannot_be_opened_calls_for_attention() {
    let mut board = Board::mmio(1);
    board.negotiate(0);
    board.set_up(0);
    board.tend();
    assert!(!board.nic.with_attention(is_rung));
    board.host.broken.store(true, Ordering::SeqCst);
    board.go();
    assert!(board.nic.with_attention(is_rung), "there is a report, and nothing else to tend");
    assert!(matches!(board.nic.tend(), Some(Report::Endpoint(_))));
}
