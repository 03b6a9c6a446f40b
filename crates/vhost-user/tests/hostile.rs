//! Front-ends that want the server to stop: what they hand over, and what they hold back.
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

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bench::guest::Guest;
use bench::{Back, FrontEnd, NEED_REPLY, Place, REPLY_ACK, heard};
use rustix::event::{EventfdFlags, eventfd};
use vionet_raw::host::mmap::memory_file;
use vionet_vhost_user::{End, Limits, Server};

/// Serves front-ends at a path, and ends those that stop in mid-message soon.
fn listening(place: &Place) -> Back {
    let limits = Limits { half_message: Duration::from_millis(200), ..Limits::default() };
    Back::new(Server::bind(place.path()).unwrap().with_limits(limits))
}

fn next_is_served(place: &Place) {
    let mut front = place.connect();
    let mut guest = Guest::new();
    guest.start(&mut front);
    guest.echo("next");
}

/// A descriptor that the other side has handed over already becomes one that blocks its writers.
fn block(fd: &OwnedFd) {
    rustix::io::ioctl_fionbio(fd, true).unwrap();
    heard(fd);
    while rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).is_err() {
        heard(fd);
    }
    rustix::io::ioctl_fionbio(fd, false).unwrap();
}

#[test]
fn a_call_descriptor_made_blocking_afterwards_holds_nobody_up() {
    let place = Place::new("call");
    let mut back = listening(&place);
    let mut front = place.connect();
    let mut guest = Guest::new();
    guest.start(&mut front);
    let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    front.tell_with(13, &guest.rings[1].number(), &[call.as_fd()]);
    // A new descriptor is signalled once; only then is it filled, or nothing would be used.
    while rustix::io::read(&call, &mut [0; 8]).is_err() {
        std::thread::yield_now();
    }
    block(&call);
    for _ in 0..8 {
        guest.transmit(&[0; 60], true);
    }
    while guest.used(1) == 0 {
        std::thread::yield_now();
    }
    // Its worker waits in the write now, or soon; the front-end hears its answers all the same.
    std::thread::sleep(Duration::from_millis(50));
    front.base(1);
    drop(front);
    back.wait_for_text("gone");
    next_is_served(&place);
    assert_eq!(back.stop().unwrap(), End::Stopped);
}

#[test]
fn an_err_descriptor_made_blocking_afterwards_holds_nobody_up() {
    let place = Place::new("err");
    let mut back = listening(&place);
    let mut front = place.connect();
    let mut guest = Guest::new();
    guest.start(&mut front);
    let err = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    front.tell_with(14, &guest.rings[1].number(), &[err.as_fd()]);
    block(&err);
    guest.post(1, 0xdead_0000, 100, 0);
    guest.kick(1);
    back.wait_for_text("broke a rule");
    front.barrier();
    drop(front);
    back.wait_for_text("gone");
    next_is_served(&place);
    assert_eq!(back.stop().unwrap(), End::Stopped);
}

#[test]
fn it_stops_while_what_it_signals_is_full() {
    for message in [13, 14] {
        let (mut back, mut front) = Back::pair();
        let mut guest = Guest::new();
        guest.start(&mut front);
        let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        front.tell_with(message, &guest.rings[1].number(), &[full.as_fd()]);
        block(&full);
        guest.transmit(&[0; 60], true);
        guest.post(1, 0xdead_0000, 100, 0);
        guest.kick(1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(back.stop().unwrap(), End::Stopped);
    }
}

/// What is no eventfd, by name.
fn others() -> Vec<(&'static str, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    vec![
        ("memory", memory_file("other", 4096).unwrap()),
        ("reader", reader),
        ("writer", writer),
        ("device", File::open("/dev/zero").unwrap().into()),
        ("folder", File::open("/").unwrap().into()),
    ]
}

#[test]
fn rings_are_kicked_and_signalled_by_eventfds_only() {
    let (back, mut front) = Back::pair();
    let mut guest = Guest::new();
    guest.start(&mut front);
    for message in 12..=14 {
        for (name, fd) in others() {
            let answer = front.outcome(message, &guest.rings[1].number(), &[fd.as_fd()]);
            assert_eq!(answer, Some(1), "{name} as descriptor of message {message}");
        }
    }
    guest.echo("nothing has changed");
    let texts = back.texts();
    assert!(!texts.iter().any(|text| text.contains("queue pair")), "no trouble of the host");
    assert_eq!(texts.iter().filter(|text| text.contains("is no eventfd")).count(), 15);
    drop(front);

    // Without a way to say no, the connection ends.
    let (mut back, front) = Back::pair();
    let (_, pipe) = others().swap_remove(1);
    front.tell_with(12, &0_u64.to_ne_bytes(), &[pipe.as_fd()]);
    assert!(front.is_closed());
    assert!(back.end().unwrap_err().to_string().contains("is no eventfd"));
}

#[test]
fn memory_is_a_file_that_can_be_mapped() {
    let (_back, mut front) = Back::pair();
    let mut guest = Guest::new();
    guest.start(&mut front);
    let spec: Vec<u8> =
        [0, 0x1000, 0x1000, 0x5000, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
    for (name, fd) in others().into_iter().skip(1) {
        assert_eq!(front.outcome(37, &spec, &[fd.as_fd()]), Some(1), "{name} as memory");
    }
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert_eq!(front.outcome(37, &spec, &[event.as_fd()]), Some(1), "it has no length");
    let (_, file) = others().swap_remove(0);
    assert_eq!(front.outcome(37, &spec, &[file.as_fd()]), Some(0));
    guest.echo("still here");
}

/// Every way in which a front-end can leave its own end of the connection with the server.
#[test]
fn a_front_end_that_sends_its_own_socket_makes_room_for_the_next() {
    let place = Place::new("own");
    let back = listening(&place);
    let whole: fn(&FrontEnd) = |front| {
        let message = front.send(14, 0, &0_u64.to_ne_bytes(), &[front.socket.as_fd()]);
        assert!(message);
    };
    let useless: fn(&FrontEnd) = |front| assert!(front.send(3, 0, &[], &[front.socket.as_fd()]));
    let half: fn(&FrontEnd) = |front| assert!(front.send_raw(&[1, 0], &[front.socket.as_fd()]));
    let at_the_end: fn(&FrontEnd) = |front| {
        assert!(front.send_raw(&[1, 0, 0], &[]));
        assert!(front.send_raw(&[0, 1, 0, 0], &[front.socket.as_fd()]));
    };
    let with_reason: fn(&FrontEnd) = |front| {
        assert!(front.send(21, 0, &0_u64.to_ne_bytes(), &[front.socket.as_fd()]));
        front.barrier();
    };
    let front = place.connect();
    with_reason(&front);
    drop(front);
    next_is_served(&place);
    for trick in [whole, useless, half, at_the_end] {
        let front = place.connect();
        trick(&front);
        drop(front);
        back.wait_for_text("brought a socket");
        next_is_served(&place);
    }
}

#[test]
fn a_front_end_that_stops_in_mid_message_makes_room_for_the_next() {
    let place = Place::new("half");
    let back = listening(&place);
    let file = memory_file("half", 4096).unwrap();
    let payload = [0; 4];
    for (bytes, with) in [(&[1, 0][..], 0), (&[5, 0, 0, 0, 1], 1), (&payload, 8)] {
        let front = place.connect();
        front.barrier();
        assert!(front.send_raw(bytes, &vec![file.as_fd(); with]));
        assert!(front.receive().is_none(), "hung up");
        back.wait_for_text("not ended in time");
        next_is_served(&place);
    }
}

#[test]
fn more_bytes_of_a_message_bring_no_more_time_and_its_end_brings_all() {
    let place = Place::new("drip");
    let back = listening(&place);
    let front = place.connect();
    // Slowly, but each message in time.
    for _ in 0..4 {
        let message: Vec<u8> = [1_u32, 1, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        assert!(front.send_raw(&message[..5], &[]));
        std::thread::sleep(Duration::from_millis(80));
        assert!(front.send_raw(&message[5..], &[]));
        assert!(front.receive().is_some());
    }
    let sent = (0..100).take_while(|_| {
        std::thread::sleep(Duration::from_millis(20));
        front.send_raw(&[1], &[])
    });
    assert!(sent.count() < 100);
    back.wait_for_text("connection ended");
}

#[test]
fn mapped_memory_is_bounded_and_room_comes_back() {
    const LIMIT: u64 = 1 << 30;
    let place = Place::new("space");
    let limits = Limits { mapped_bytes: LIMIT, ..Limits::default() };
    let back = Back::new(Server::bind(place.path()).unwrap().with_limits(limits));
    let file = memory_file("huge", 1 << 50).unwrap();
    let front = place.connect();
    front.tell_number(16, REPLY_ACK);
    let region = |at: u64, size: u64| [at, size, at, 0].into_iter().flat_map(u64::to_ne_bytes);
    let single = |at, size| [0; 8].into_iter().chain(region(at, size)).collect::<Vec<u8>>();
    let add = |at, size| front.outcome(37, &single(at, size), &[file.as_fd()]);
    assert_eq!(add(0, LIMIT + 1), Some(1));
    assert_eq!(add(0, 1 << 49), Some(1));
    assert_eq!(add(0, LIMIT / 2), Some(0));
    assert_eq!(add(LIMIT, LIMIT / 2), Some(0));
    assert_eq!(add(4 * LIMIT, 4096), Some(1));
    assert_eq!(front.outcome(38, &single(0, LIMIT / 2), &[]), Some(0));
    assert_eq!(add(4 * LIMIT, 4096), Some(0));
    let table = |size: u64| -> Vec<u8> {
        let regions = (0..2).flat_map(|at| region(at * 8 * LIMIT, size));
        [2, 0, 0, 0, 0, 0, 0, 0].into_iter().chain(regions).collect()
    };
    let fds = [file.as_fd(), file.as_fd()];
    assert_eq!(front.outcome(5, &table(LIMIT / 2 + 1), &fds), Some(1));
    assert_eq!(front.outcome(5, &table(u64::MAX / 2 + 1), &fds), Some(1));
    assert_eq!(front.outcome(5, &table(LIMIT / 2), &fds), Some(0));
    let texts = back.texts();
    let refused = texts.iter().filter(|text| text.contains("more than 1073741824 bytes")).count();
    assert_eq!(refused, 5);
}

#[test]
fn a_message_that_was_half_said_can_still_be_refused() {
    let place = Place::new("slow");
    let _back = listening(&place);
    let front = place.connect();
    front.tell_number(16, REPLY_ACK);
    let words = [12_u32, 1 | NEED_REPLY, 8].into_iter().flat_map(u32::to_ne_bytes);
    let message: Vec<u8> = words.chain([9, 0, 0, 0, 0, 0, 0, 0]).collect();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    assert!(front.send_raw(&message[..3], &[event.as_fd()]));
    assert!(front.send_raw(&message[3..], &[]));
    assert_eq!(front.receive().unwrap().payload, 1_u64.to_ne_bytes(), "there is no ring 9");
    std::thread::sleep(Duration::from_millis(300));
    front.barrier();
}
