//! Nothing a front-end sends may stop the server, or make it keep anything.
//!
//! One test in this file: it counts the descriptors and threads of the process.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::cell::RefCell;
use std::time::Duration;

use bench::drive::drive;
use bench::guest::Guest;
use bench::{Back, NEED_REPLY, Place, REPLY_ACK};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vionet_vhost_user::Server;

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Open descriptors, threads, and mappings of guest memory.
fn held() -> (usize, usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guests = maps.lines().filter(|line| line.contains("memfd:guest")).count();
    (count("/proc/self/fd"), count("/proc/self/task"), guests)
}

#[test]
fn the_server_outlives_everything_and_keeps_nothing() {
    let place = Place::new("bad");
    let mut back = Back::new(Server::bind(place.path()).unwrap());
    let mut guest = Guest::new();
    let mut check = |what: &str| {
        guest.reboot();
        let mut front = place.connect();
        guest.start(&mut front);
        guest.echo(what);
        drop(front);
    };
    check("at first");
    back.wait_for_text("gone");
    let before = held();

    every_message_of_every_size(&place);
    check("after every size");

    let strategy = prop::collection::vec(any::<u8>(), 0..2000);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) };
    let mut runner = TestRunner::new(config);
    let victim = RefCell::new(Guest::new());
    runner
        .run(&strategy, |bytes| {
            drive(&bytes, &mut place.connect(), &mut victim.borrow_mut());
            Ok(())
        })
        .unwrap();
    drop(victim);
    check("after every conversation");

    // The server sees the last one off in its own time.
    let mut patience = 1000;
    while held() != before {
        patience -= 1;
        assert!(patience > 0, "before: {before:?}, now: {:?}", held());
        std::thread::sleep(Duration::from_millis(10));
    }
    back.stop().unwrap();
}

/// Each id with each size up to one more than it can have, with and without descriptors; a few
/// sizes far beyond. The server answers, refuses or hangs up; it never waits for more.
fn every_message_of_every_size(place: &Place) {
    let file = Guest::new();
    let mut front = None;
    for id in 0..=46_u32 {
        let most = match id {
            5 => 265_u32,
            24 | 25 => 269,
            _ => 41,
        };
        for size in (0..=most).chain([1024, 1025, 4096]) {
            for (fds, flags) in [(0, 0), (1, NEED_REPLY), (9, NEED_REPLY), (2, 0)] {
                let end = front.take().unwrap_or_else(|| {
                    let end = place.connect();
                    end.tell_number(16, REPLY_ACK);
                    end
                });
                let payload: Vec<u8> = (0..size).map(|at| (at * id) as u8).collect();
                let fds = vec![file.fd(); fds];
                // Whoever has been hung up on begins anew.
                if end.send(id, flags, &payload, &fds) && !drained(&end) {
                    front = Some(end);
                }
            }
        }
    }
}

/// Reads replies up to that of a barrier; true when the server has hung up.
fn drained(end: &bench::FrontEnd) -> bool {
    if !end.send(1, 0, &[], &[]) {
        return true;
    }
    // GET_FEATURES itself is one of the ids under test: its reply is the barrier's as well, and
    // what is left over is read with the next one.
    loop {
        match end.receive() {
            None => return true,
            Some(reply) if reply.id == 1 => return false,
            Some(_) => {}
        }
    }
}
