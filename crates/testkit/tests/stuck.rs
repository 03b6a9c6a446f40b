//! A worker that something on the host holds up for longer than any step may take: who asks for its
//! pair hears of it, and nobody else waits.
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
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use board::{Board, Front, until};
use vionet::transport::Unsettled;
use vionet::{OpError, PairIndex, Report};
use vionet_spec::pci::ISR_CONFIG;
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

const UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

/// An access waits 20 ms for a worker; the rest is for a machine with other things to do.
const ACCESS_MAX: Duration = Duration::from_millis(250);

/// What vCPUs do until it is over: every access is soon done and reads what it should, also while
/// a verb waits. The longest of them all.
fn accesses(nic: &dyn Front, over: &AtomicBool, status: &(dyn Fn(u8) -> bool + Sync)) -> Duration {
    let mut longest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let start = Instant::now();
        let seen = nic.status();
        longest = longest.max(start.elapsed());
        assert!(status(seen), "{seen:#x}");
        let acts: [&dyn Fn(); 3] =
            [&|| nic.select(1), &|| nic.kick(1), &|| nic.config(0, &mut [0; 6])];
        for act in acts {
            let start = Instant::now();
            act();
            longest = longest.max(start.elapsed());
        }
    }
    longest
}

/// Holds a worker up, and `ask`s for its pair; meanwhile two vCPUs see `status`.
fn with_a_stuck_worker(
    board: &mut Board,
    status: &(dyn Fn(u8) -> bool + Sync),
    ask: impl FnOnce(&dyn Front),
) {
    board.bring_up(0);
    board.round_trip(1);
    board.hold_worker();
    let (nic, over) = (Arc::clone(&board.nic), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let vcpus = [0, 1].map(|_| scope.spawn(|| accesses(&*nic, &over, status)));
        ask(&*nic);
        over.store(true, Ordering::SeqCst);
        for vcpu in vcpus {
            let longest = vcpu.join().unwrap();
            assert!(longest < ACCESS_MAX, "{longest:?}");
        }
    });
}

/// Reports, as whoever waits for the descriptor of attention hears them.
type Heard = Arc<Mutex<Vec<Report>>>;

fn on_each_bus(test: impl Fn(&mut Board, &Heard) + Sync) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (board, heard) = (Board::pci(1), Heard::default());
            let told = Arc::clone(&heard);
            let _keeper = board.nic.keeper(move |report| told.lock().unwrap().push(report));
            test(&mut board.on_some_bus(), &heard);
        });
        scope.spawn(|| {
            let (board, heard) = (Board::mmio(1), Heard::default());
            let told = Arc::clone(&heard);
            let _keeper = board.nic.keeper(move |report| told.lock().unwrap().push(report));
            test(&mut board.on_some_bus(), &heard);
        });
    });
}

#[test]
fn a_verb_says_that_a_worker_is_silent_and_is_carried_out_when_it_is_not() {
    on_each_bus(|board, heard| {
        let silent = [Report::Silent(PairIndex(0))];
        with_a_stuck_worker(
            board,
            // A pause is not seen.
            &|status| status == UP,
            |nic| {
                let start = Instant::now();
                assert_eq!(nic.pause(), Err(Unsettled));
                assert!(start.elapsed() > Duration::from_secs(10));
                assert_eq!(*heard.lock().unwrap(), silent);
            },
        );
        assert_eq!(board.nic.take_reasons() & ISR_CONFIG, 0, "it is no news for the driver");
        board.host.hold(false);
        board.nic.pause().unwrap();
        board.is_left_alone();
        board.nic.resume().unwrap();
        board.comes_back(0x77);
        board.round_trip(2);
        assert_eq!(*heard.lock().unwrap(), silent);
    });
}

#[test]
fn a_reset_reads_0_only_when_a_silent_worker_has_let_go() {
    on_each_bus(|board, heard| {
        with_a_stuck_worker(board, &|status| status != 0, |nic| {
            nic.set_status(0);
            // Nobody asks for anything: it is reported by itself.
            std::thread::sleep(Duration::from_secs(11));
            assert_eq!(*heard.lock().unwrap(), [Report::Silent(PairIndex(0))]);
        });
        assert_ne!(board.nic.status(), 0);
        board.host.hold(false);
        board.shows(0);
        board.bring_up(0);
        board.round_trip(2);
    });
}

#[test]
fn an_operation_that_a_silent_worker_holds_up_is_done_later() {
    on_each_bus(|board, heard| {
        with_a_stuck_worker(board, &|status| status == UP, |nic| {
            assert_eq!(nic.set_link(false), Err(OpError::Busy));
            assert_eq!(*heard.lock().unwrap(), [Report::Silent(PairIndex(0))]);
        });
        board.host.hold(false);
        until("the link is down", || {
            let mut status = [0; 2];
            board.nic.config(6, &mut status);
            status == [0; 2]
        });
        assert_eq!(board.nic.take_reasons() & ISR_CONFIG, ISR_CONFIG);
        board.nic.set_link(true).unwrap();
        board.comes_back(0x77);
    });
}
