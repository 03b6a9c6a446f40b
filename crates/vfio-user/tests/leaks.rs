//! What clients leave behind: no descriptor, no mapping, no thread.
//!
//! One test in this file: it counts what the process holds.
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

use std::os::fd::AsFd;

use bench::guest::{Guest, LEN};
use bench::{
    Back, DATA_EVENTFD, DMA_MAP, GET_INFO, INTX, Place, SET_IRQS, TRIGGER, UNMASK, event, irq_set,
    message, region, words,
};
use vionet_vfio_user::Server;

fn held() -> [usize; 3] {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let memory = maps.lines().filter(|line| line.contains("memfd:")).count();
    [count("/proc/self/fd"), count("/proc/self/task"), memory]
}

/// A client that does whatever can leave something behind, and then goes as `way` says.
fn visit(place: &Place, way: u8) {
    let client = place.connect();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, way);
    let (line, unmask) = (event(), event());
    for (what, fd) in [(TRIGGER, &line), (UNMASK, &unmask)] {
        client.set_irqs(&irq_set(DATA_EVENTFD | what, INTX, 0, 1), &[fd]).unwrap();
        client.set_irqs(&irq_set(DATA_EVENTFD | what, INTX, 0, 1), &[fd]).unwrap();
    }
    let file = guest.file.as_fd();
    // Refused, with all they bring.
    client.outcome(DMA_MAP, &region(0, u64::MAX, 0), &[file]).unwrap_err();
    client.outcome(DMA_MAP, &region(1 << 40, LEN, 0), &[file; 3]).unwrap_err();
    client.outcome(SET_IRQS, &irq_set(0, 0, 0, 0), &[line.as_fd(); 9]).unwrap_err();
    client.map(1 << 40, LEN, 0, &guest.file).unwrap();
    match way {
        0 => {}
        1 => drop(client.send_raw(&message(1, GET_INFO, 0, &[0; 16])[..20], &[file; 16])),
        2 => drop(client.send_raw(&[1], &[file; 16])),
        3 => drop(client.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[file; 40])),
        _ => {
            guest.post(1);
            guest.kick(&client, 1);
        }
    }
}

#[test]
fn a_client_that_is_gone_has_left_nothing_behind() {
    let place = Place::new("leaks");
    let back = Back::new(Server::bind(place.path()).unwrap());
    let mut before = None;
    for round in 0..20 {
        visit(&place, round % 5);
        back.wait_for_text("gone");
        match before {
            // The first has started the device's workers.
            None => before = Some(held()),
            Some(before) => assert_eq!(held(), before, "round {round}"),
        }
    }
}
