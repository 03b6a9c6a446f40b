//! Clients that want the server to stop: what they hand over, what they hold back, what they say.
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
use std::path::Path;
use std::time::{Duration, Instant};

use bench::drive::drive;
use bench::guest::{BUFFERS, Guest, LEN, RINGS};
use bench::{
    BAR, Back, CONFIG, Client, DATA_BOOL, DATA_EVENTFD, DATA_NONE, DMA_MAP, DMA_UNMAP, EINVAL,
    FEATURE, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, INTX, MASK, MIG_READ, MIG_WRITE, MSIX,
    NO_REPLY, Place, REGION_READ, REGION_WRITE, RESET, SET_IRQS, TRIGGER, UNMASK, VERSION,
    WRITE_MULTI, event, heard, irq_set, longs, message, place, range, region, words,
};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use vionet_raw::host::mmap::memory_file;
use vionet_testkit::Random;
use vionet_vfio_user::{End, Limits, Server};

/// Serves clients at a path, and ends those that stop in mid-message soon.
fn listening(place: &Place) -> Back {
    let limits = Limits { half_message: Duration::from_millis(200), ..Limits::default() };
    Back::new(Server::bind(place.path()).unwrap().with_limits(limits))
}

fn next_is_served(place: &Place) {
    let client = place.connect();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, 0x55);
}

/// A message of every command that makes sense, without descriptors.
fn sensible() -> Vec<(u16, Vec<u8>)> {
    let register = place(BAR, 0, 4);
    vec![
        (DMA_MAP, region(0x1000_0000, LEN, 0)),
        (DMA_UNMAP, range(0x1000_0000, LEN)),
        (GET_INFO, words(&[16, 0, 0, 0])),
        (GET_REGION_INFO, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (GET_IRQ_INFO, words(&[16, 0, 0, 0])),
        (SET_IRQS, irq_set(DATA_NONE | TRIGGER, MSIX, 0, 0)),
        (SET_IRQS, [irq_set(DATA_BOOL | TRIGGER, MSIX, 0, 2), vec![0, 1]].concat()),
        (REGION_READ, register.clone()),
        (REGION_WRITE, [register.clone(), vec![0; 4]].concat()),
        (RESET, Vec::new()),
        (WRITE_MULTI, [longs(&[1]), register, vec![0; 8]].concat()),
        (FEATURE, words(&[16, 1 << 17 | 2, 3, 0])),
        (MIG_READ, words(&[64, 8])),
        (FEATURE, words(&[16, 1 << 17 | 2, 4, 0])),
        (MIG_WRITE, [words(&[12, 4]), vec![0; 4]].concat()),
        (RESET, Vec::new()),
    ]
}

#[test]
fn each_message_has_its_length_to_the_byte() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    for (command, payload) in sensible() {
        let longer = [&payload[..], &[0; 40]].concat();
        for len in (0..longer.len()).filter(|len| *len != payload.len()) {
            let outcome = client.outcome(command, &longer[..len], &[]);
            assert_eq!(outcome, Err(EINVAL), "command {command}, {len} bytes");
        }
        client.outcome(command, &payload, &[]).unwrap();
    }
    // The last ones have let go of vectors and reset the device.
    guest.wire(&client);
    guest.bring_up(&client, true);
    guest.round_trip(&client, 1);
}

#[test]
fn what_cannot_be_framed_ends_the_connection_and_not_the_server() {
    let place = Place::new("frame");
    let back = listening(&place);
    let frame = |size: u32, flags: u32| {
        let mut bytes = message(1, GET_INFO, flags, &[]);
        bytes[4..8].copy_from_slice(&size.to_ne_bytes());
        bytes
    };
    for (bytes, why) in [
        (frame(0, 0), "shorter than its header"),
        (frame(15, 0), "shorter than its header"),
        (frame(16 + 4096 + 65, 0), "longer than was agreed"),
        (frame(u32::MAX, 0), "longer than was agreed"),
        (frame(16, 1), "nothing was asked"),
        (frame(16, 15), "nothing was asked"),
    ] {
        let client = place.connect();
        assert!(client.send_raw(&bytes, &[]));
        assert!(client.receive().is_none(), "{why}");
        back.wait_for_text(why);
    }
    for cut in [1, 15, 16, 20] {
        let client = place.connect();
        let whole = message(1, GET_INFO, 0, &words(&[16, 0, 0, 0]));
        assert!(client.send_raw(&whole[..cut], &[]));
        drop(client);
        back.wait_for_text("in the middle of a message");
    }
    next_is_served(&place);
}

#[test]
fn a_message_comes_in_any_pieces() {
    let (_back, client) = Back::pair();
    client.agree();
    let whole = message(77, GET_INFO, 0, &words(&[16, 0, 0, 0]));
    for at in 1..whole.len() {
        assert!(client.send_raw(&whole[..at], &[]));
        std::thread::yield_now();
        assert!(client.send_raw(&whole[at..], &[]));
        assert_eq!(client.receive().unwrap().id, 77);
    }
    let many = whole.repeat(100);
    assert!(client.send_raw(&many, &[]));
    (0..100).for_each(|_| assert_eq!(client.receive().unwrap().id, 77));
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
fn each_kind_of_message_takes_its_kind_of_descriptor_and_so_many() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    for (name, fd) in others() {
        for set in [
            irq_set(DATA_EVENTFD | TRIGGER, MSIX, 1, 1),
            irq_set(DATA_EVENTFD | TRIGGER, INTX, 0, 1),
            irq_set(DATA_EVENTFD | UNMASK, INTX, 0, 1),
        ] {
            assert_eq!(client.set_irqs(&set, &[&fd]), Err(EINVAL), "{name}");
        }
        if name != "memory" {
            assert_eq!(client.map(0x1000_0000, 4096, 0, &fd), Err(EINVAL), "{name}");
        }
    }
    let one = event();
    let too_many = irq_set(DATA_EVENTFD | TRIGGER, MSIX, 1, 1);
    assert_eq!(client.set_irqs(&too_many, &[&one, &one]), Err(EINVAL));
    let too_few = irq_set(DATA_EVENTFD | TRIGGER, MSIX, 0, 3);
    assert_eq!(client.set_irqs(&too_few, &[&one, &one]), Err(EINVAL));
    let two = irq_set(DATA_EVENTFD | TRIGGER, INTX, 0, 1);
    assert_eq!(client.set_irqs(&two, &[&one, &one]), Err(EINVAL));
    let file = guest.file.as_fd();
    let twice = client.outcome(DMA_MAP, &region(0x1000_0000, LEN, 0), &[file, file]);
    assert_eq!(twice, Err(EINVAL));
    // What a message has no use for is closed.
    client.outcome(GET_INFO, &words(&[16, 0, 0, 0]), &[one.as_fd(); 16]).unwrap();
    guest.round_trip(&client, 1);
    assert!(bench::rings(&guest.vectors[1]), "no eventfd was lost");
}

#[test]
fn interrupts_that_there_are_not_cannot_be_set() {
    let (_back, client) = Back::pair();
    client.agree();
    let guest = Guest::start(&client);
    let fd = &guest.vectors[0];
    for set in [
        irq_set(DATA_EVENTFD | TRIGGER, MSIX, 4, 1),
        irq_set(DATA_EVENTFD | TRIGGER, MSIX, u32::MAX, 1),
        irq_set(DATA_EVENTFD | TRIGGER, MSIX, 0, 0),
        irq_set(DATA_EVENTFD | MASK, INTX, 0, 1),
        irq_set(DATA_EVENTFD | TRIGGER, INTX, 1, 1),
        irq_set(DATA_EVENTFD | TRIGGER, 1, 0, 1),
        irq_set(DATA_EVENTFD | TRIGGER, 3, 0, 1),
        irq_set(DATA_EVENTFD | DATA_NONE | TRIGGER, MSIX, 0, 1),
        irq_set(DATA_EVENTFD | MASK | UNMASK, INTX, 0, 1),
        irq_set(DATA_EVENTFD, MSIX, 0, 1),
        irq_set(TRIGGER, MSIX, 0, 1),
        irq_set(DATA_EVENTFD | TRIGGER | 1 << 6, MSIX, 0, 1),
    ] {
        assert_eq!(client.set_irqs(&set, &[fd]), Err(EINVAL), "{set:?}");
    }
    for set in [
        irq_set(DATA_NONE | TRIGGER, MSIX, 2, 3),
        irq_set(DATA_NONE | TRIGGER, MSIX, 1, u32::MAX),
        irq_set(DATA_NONE | MASK, MSIX, 0, 1),
        irq_set(DATA_NONE | UNMASK, MSIX, 0, 1),
        irq_set(DATA_NONE | MASK, INTX, 0, 0),
    ] {
        assert_eq!(client.set_irqs(&set, &[]), Err(EINVAL), "{set:?}");
    }
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, 1, 0, 0), &[]).unwrap();
}

#[test]
fn more_descriptors_than_a_message_brings_end_the_connection() {
    let place = Place::new("many");
    let back = listening(&place);
    let one = event();
    let client = place.connect();
    assert!(client.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[one.as_fd(); 17]));
    assert!(client.receive().is_none());
    back.wait_for_text("more descriptors");
    next_is_served(&place);
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
fn an_eventfd_made_blocking_afterwards_holds_nobody_up() {
    let place = Place::new("block");
    let mut back = listening(&place);
    let client = place.connect();
    let mut guest = Guest::start(&client);
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    for vector in 0..3 {
        let set = irq_set(DATA_EVENTFD | TRIGGER, MSIX, vector, 1);
        client.set_irqs(&set, &[&full]).unwrap();
    }
    block(&full);
    // Whoever signals is stuck from the first round on; frames go on, and so does the client.
    for fill in 0..20 {
        guest.round_trip(&client, fill);
    }
    let start = Instant::now();
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, MSIX, 0, 0), &[]).unwrap();
    guest.wire(&client);
    client.map(0x1000_0000, LEN, 0, &guest.file).unwrap();
    client.unmap(0x1000_0000, LEN).unwrap();
    client.ask(RESET, &[]);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(client);
    back.wait_for_text("gone");
    next_is_served(&place);
    assert_eq!(back.stop().unwrap(), End::Stopped);
}

#[test]
fn it_stops_while_what_it_signals_is_full() {
    let (mut back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    client.set_irqs(&irq_set(DATA_EVENTFD | TRIGGER, MSIX, 2, 1), &[&full]).unwrap();
    block(&full);
    guest.round_trip(&client, 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(back.stop().unwrap(), End::Stopped);
}

#[test]
fn an_unmasking_eventfd_that_its_owner_empties_holds_nobody_up() {
    let (_back, client) = Back::pair();
    client.agree();
    let unmask = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    client.set_irqs(&irq_set(DATA_EVENTFD | UNMASK, INTX, 0, 1), &[&unmask]).unwrap();
    for _ in 0..1000 {
        bench::signal(&unmask);
        rustix::io::read(&unmask, &mut [0; 8]).unwrap();
    }
    client.barrier();
}

#[test]
fn a_client_that_stops_in_mid_message_makes_room_for_the_next() {
    let place = Place::new("half");
    let back = listening(&place);
    let file = memory_file("half", 4096).unwrap();
    for (bytes, with) in [(&[1, 0][..], 0), (&[5, 0, 0, 0, 1], 1), (&[0; 3], 8)] {
        let client = place.connect();
        assert!(client.send_raw(bytes, &vec![file.as_fd(); with]));
        assert!(client.receive().is_none(), "hung up");
        back.wait_for_text("not ended in time");
        next_is_served(&place);
    }
}

#[test]
fn a_client_that_sends_its_own_socket_makes_room_for_the_next() {
    let place = Place::new("own");
    let back = listening(&place);
    let whole: fn(&Client) = |client| {
        assert!(client.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[client.socket.as_fd()]));
    };
    let half: fn(&Client) = |client| assert!(client.send_raw(&[1, 0], &[client.socket.as_fd()]));
    for trick in [whole, half] {
        let client = place.connect();
        trick(&client);
        drop(client);
        back.wait_for_text("brought a socket");
        next_is_served(&place);
    }
}

#[test]
fn a_client_that_does_not_read_its_replies_is_gone() {
    let place = Place::new("deaf");
    let back = listening(&place);
    let client = place.connect();
    let ask = message(1, REGION_READ, 0, &place_of_config());
    while client.send_raw(&ask, &[]) {}
    back.wait_for_text("does not read its replies");
    next_is_served(&place);
}

fn place_of_config() -> Vec<u8> {
    place(CONFIG, 0, 256)
}

#[test]
fn a_client_that_never_pauses_does_not_keep_it_from_stopping() {
    let (mut back, client) = Back::pair();
    client.agree();
    let whole = message(1, REGION_WRITE, NO_REPLY, &[place(BAR, 0, 4), vec![0; 4]].concat());
    let many = whole.repeat(64);
    std::thread::scope(|scope| {
        scope.spawn(|| while client.send_raw(&many, &[]) {});
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(back.stop().unwrap(), End::Stopped);
    });
}

#[test]
fn a_client_maps_no_more_than_it_may() {
    const LIMIT: u64 = 1 << 30;
    let place = Place::new("limit");
    let limits = Limits { mapped_bytes: LIMIT, ..Limits::default() };
    let back = Back::new(Server::bind(place.path()).unwrap().with_limits(limits));
    let client = place.connect();
    let file = memory_file("large", 1 << 50).unwrap();
    let map = |at: u64, size: u64| client.map(at, size, 0, &file).is_ok();
    assert!(!map(0, LIMIT + 1) && !map(0, 1 << 49));
    assert!(map(0, LIMIT / 2) && map(LIMIT, LIMIT / 2));
    assert!(!map(4 * LIMIT, 4096));
    client.unmap(0, LIMIT / 2).unwrap();
    assert!(map(4 * LIMIT, 4096));
    let texts = back.texts();
    let refused = texts.iter().filter(|text| text.contains("more than 1073741824 bytes")).count();
    assert_eq!(refused, 3);
    // And no more regions than fit.
    for at in 0..510 {
        client.map((16 + at) * LIMIT, 4096, 0, &file).unwrap();
    }
    assert_eq!(client.map(1 << 60, 4096, 0, &file), Err(28), "no space");
}

#[test]
fn a_client_that_is_refused_all_the_time_does_not_fill_the_log() {
    let (back, client) = Back::pair();
    client.agree();
    for _ in 0..1000 {
        assert_eq!(client.outcome(RESET, &[0], &[]), Err(EINVAL));
    }
    assert_eq!(back.texts().iter().filter(|text| text.contains("refused")).count(), 16);
}

#[test]
fn memory_goes_while_frames_pass() {
    let place = Place::new("vanish");
    let back = listening(&place);
    let mut random = Random::new(7);
    for round in 0..30 {
        let client = place.connect();
        let mut guest = Guest::start(&client);
        guest.round_trip(&client, round);
        for _ in 0..8 {
            guest.post(round);
        }
        // Without waiting for what comes of it.
        for queue in [0, 1] {
            let at = bench::guest::DOORBELLS + 4 * u64::from(queue);
            let kick = [bench::place(BAR, at, 2), vec![queue, 0]].concat();
            assert!(client.send(REGION_WRITE, NO_REPLY, &kick, &[]));
        }
        match random.below(4) {
            0 => client.unmap(BUFFERS, LEN).unwrap(),
            1 => client.unmap(RINGS, LEN).unwrap(),
            2 => drop(client.ask(DMA_UNMAP, &[words(&[24, 2]), longs(&[0, 0])].concat())),
            // In the middle of a message.
            _ => drop(client.send_raw(&[9, 9, 9], &[])),
        }
        drop(client);
        back.wait_for_text("gone");
    }
    next_is_served(&place);
}

fn play(bytes: &[u8]) {
    let (mut back, client) = Back::pair();
    drive(bytes, &client);
    drop(client);
    // Both ends are fine, the client's and that by an error of protocol; a hang is not.
    let (Ok(_) | Err(_)) = back.end();
}

#[test]
fn every_kept_conversation_comes_to_its_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/vfio_user");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let inputs: Vec<_> = files.map(|path| std::fs::read(path).unwrap()).collect();
    assert!(inputs.len() >= 20, "the kept inputs are there");
    inputs.iter().for_each(|input| play(input));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_conversation_comes_to_its_end(input in prop::collection::vec(any::<u8>(), 0..600)) {
        play(&input);
    }
}

#[test]
fn a_version_says_anything() {
    let place = Place::new("json");
    let _back = listening(&place);
    for text in [&b"{"[..], b"\xff\0", b"{}", b"[[[[\0", b"nul\0"] {
        let client = place.knock();
        let payload = [&[0; 4][..], text].concat();
        assert_eq!(client.outcome(VERSION, &payload, &[]), Err(EINVAL), "{text:?}");
    }
    let client = place.knock();
    let deep = [&[0; 4][..], "[".repeat(4000).as_bytes(), &[0]].concat();
    assert_eq!(client.outcome(VERSION, &deep, &[]), Err(EINVAL));
    drop(client);
    let client = place.knock();
    let odd = b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":-1,\"write_multiple\":\"x\"}}\0";
    client.ask(VERSION, odd);
    client.barrier();
}
