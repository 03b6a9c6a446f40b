//! What a client asks for and gets: the specification, command by command.
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

use bench::guest::{
    BUFFERS, DOORBELLS, Guest, ISR, LEN, PENDING, RINGS, TABLE, capability, msix_control,
    set_status, status, switch_on, until,
};
use bench::{
    BAR, Back, CONFIG, DATA_BOOL, DATA_EVENTFD, DATA_NONE, DMA_MAP, DMA_UNMAP, EEXIST, EINVAL,
    ENOENT, EOPNOTSUPP, GET_INFO, GET_IRQ_INFO, GET_REGION_INFO, INTX, MASK, MSIX, NO_REPLY, Place,
    REGION_READ, REGION_WRITE, RESET, TRIGGER, UNMASK, VERSION, WRITE_MULTI, event, irq_set,
    is_silent, longs, place, region, rings, signal, words,
};
use vionet_spec::pci;
use vionet_spec::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER};
use vionet_vfio_user::{End, Server};

#[test]
fn versions_are_agreed_on_first_and_once() {
    let place = Place::new("version");
    let back = Back::new(Server::bind(place.path()).unwrap());
    let client = place.knock();
    let proposal = b"\0\0\x09\0{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true}}\0";
    let reply = client.ask(VERSION, proposal);
    assert_eq!(reply[..4], [0, 0, 1, 0], "the minor version is ours");
    let text = std::str::from_utf8(reply[4..].strip_suffix(&[0]).unwrap()).unwrap();
    for part in ["\"max_msg_fds\":16", "\"max_data_xfer_size\":4096", "\"write_multiple\":true"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(client.outcome(VERSION, proposal, &[]), Err(EINVAL), "twice");
    client.barrier();
    drop(client);
    // Version data is optional.
    let client = place.knock();
    assert!(client.ask(VERSION, &[0; 4]).len() > 4);
    drop(client);
    let client = place.knock();
    assert!(client.is_closed(), "something else came first");
    back.wait_for_text("DEVICE_GET_INFO came before VERSION");
    let client = place.knock();
    assert!(client.send(VERSION, 0, &[1, 0, 0, 0], &[]));
    assert!(client.receive().is_none(), "another major version");
    back.wait_for_text("version 1 of the protocol");
}

#[test]
fn the_device_shows_what_a_pci_function_has() {
    let (_back, client) = Back::pair();
    client.agree();
    assert_eq!(client.ask(GET_INFO, &words(&[16, 0, 0, 0])), words(&[16, 3, 9, 3]));
    let info = |index| client.outcome(GET_REGION_INFO, &words(&[32, 0, index, 0, 0, 0, 0, 0]), &[]);
    for index in 0..9 {
        let (flags, size) = match index {
            BAR => (3, 0x8000),
            CONFIG => (3, 4096),
            _ => (0, 0),
        };
        let wanted = [words(&[32, flags, index, 0]), longs(&[size, 0])].concat();
        assert_eq!(info(index), Ok(wanted), "region {index}");
    }
    assert_eq!(info(9), Err(EINVAL));
    let irqs = |index| client.outcome(GET_IRQ_INFO, &words(&[16, 0, index, 0]), &[]);
    assert_eq!(irqs(INTX), Ok(words(&[16, 7, INTX, 1])), "an eventfd, masked by itself");
    assert_eq!(irqs(1), Ok(words(&[16, 0, 1, 0])), "no MSI");
    assert_eq!(irqs(MSIX), Ok(words(&[16, 1, MSIX, 4])), "three queues and the configuration");
    assert_eq!(irqs(3), Err(EINVAL), "no AER");
    let mut config = [0; 256];
    client.read(CONFIG, 0, &mut config);
    assert_eq!(config[..4], [0xf4, 0x1a, 0x41, 0x10]);
    switch_on(&client);
    let mut mac = [0; 6];
    for (at, byte) in (0x2000..).zip(&mut mac) {
        client.read(BAR, at, std::slice::from_mut(byte));
    }
    assert_eq!(mac, bench::MAC);
    // An answer that the client has no room for is none.
    assert_eq!(client.outcome(GET_INFO, &words(&[15, 0, 0, 0]), &[]), Err(EINVAL));
    let short = words(&[31, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(client.outcome(GET_REGION_INFO, &short, &[]), Err(EINVAL));
}

#[test]
fn a_driver_moves_frames_and_is_interrupted_by_its_vectors() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    for fill in 0..20 {
        guest.round_trip(&client, fill);
        assert!(rings(&guest.vectors[1]) && rings(&guest.vectors[2]), "round {fill}");
    }
    assert!(is_silent(&guest.vectors[0]), "the configuration has not changed");
    assert_eq!(client.get(ISR, 1), 0, "the line has no part in it");
}

#[test]
fn a_vector_that_has_no_eventfd_is_pending_until_it_has_one() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    let all = |what| irq_set(what | TRIGGER, MSIX, 0, 3);
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, MSIX, 0, 0), &[]).unwrap();
    guest.round_trip(&client, 1);
    until("they are pending", || client.get(PENDING, 8) == 0b110);
    assert!(is_silent(&guest.vectors[1]));
    guest.wire(&client);
    assert!(rings(&guest.vectors[1]) && rings(&guest.vectors[2]));
    assert_eq!(client.get(PENDING, 8), 0);
    // The same by taking them away one by one.
    client.set_irqs(&all(DATA_EVENTFD), &[]).unwrap();
    guest.round_trip(&client, 2);
    assert!(is_silent(&guest.vectors[2]));
    let other = event();
    client.set_irqs(&irq_set(DATA_EVENTFD | TRIGGER, MSIX, 2, 1), &[&other]).unwrap();
    assert!(rings(&other) && is_silent(&guest.vectors[2]));
}

#[test]
fn what_a_guest_writes_to_the_vector_table_is_the_clients_affair() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    for vector in 0..3 {
        client.set(TABLE + 16 * vector + 12, 1, 4);
    }
    guest.round_trip(&client, 9);
    assert!(rings(&guest.vectors[1]));
}

#[test]
fn a_client_can_fire_what_it_has_set_up() {
    let (_back, client) = Back::pair();
    client.agree();
    let guest = Guest::default();
    guest.wire(&client);
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, MSIX, 1, 1), &[]).unwrap();
    assert!(rings(&guest.vectors[1]) && is_silent(&guest.vectors[0]));
    let chosen = [irq_set(DATA_BOOL | TRIGGER, MSIX, 0, 3), vec![1, 0, 1]].concat();
    client.set_irqs(&chosen, &[]).unwrap();
    assert!(rings(&guest.vectors[0]) && rings(&guest.vectors[2]) && is_silent(&guest.vectors[1]));
    let line = event();
    client.set_irqs(&irq_set(DATA_EVENTFD | TRIGGER, INTX, 0, 1), &[&line]).unwrap();
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, INTX, 0, 1), &[]).unwrap();
    assert!(rings(&line));
}

#[test]
fn the_line_fires_once_and_again_when_it_is_unmasked() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::default();
    guest.map(&client);
    let (line, unmask) = (event(), event());
    client.set_irqs(&irq_set(DATA_EVENTFD | TRIGGER, INTX, 0, 1), &[&line]).unwrap();
    client.set_irqs(&irq_set(DATA_EVENTFD | UNMASK, INTX, 0, 1), &[&unmask]).unwrap();
    guest.bring_up(&client, false);
    guest.round_trip(&client, 1);
    assert!(rings(&line), "asserted");
    guest.round_trip(&client, 2);
    assert!(is_silent(&line), "masked by what it signalled");
    client.set_irqs(&irq_set(DATA_NONE | UNMASK, INTX, 0, 1), &[]).unwrap();
    assert!(rings(&line), "nobody has looked why");
    signal(&unmask);
    assert!(rings(&line), "nor now");
    assert_eq!(client.get(ISR, 1), 1);
    signal(&unmask);
    assert!(is_silent(&line), "the driver knows");
    client.set_irqs(&irq_set(DATA_NONE | MASK, INTX, 0, 1), &[]).unwrap();
    guest.round_trip(&client, 3);
    assert!(is_silent(&line), "masked by the client");
    let chosen = [irq_set(DATA_BOOL | UNMASK, INTX, 0, 1), vec![0]].concat();
    client.set_irqs(&chosen, &[]).unwrap();
    assert!(is_silent(&line), "not chosen");
    client.set_irqs(&irq_set(DATA_NONE | UNMASK, INTX, 0, 1), &[]).unwrap();
    assert!(rings(&line));
    client.set_irqs(&irq_set(DATA_NONE | TRIGGER, INTX, 0, 0), &[]).unwrap();
    signal(&unmask);
    guest.round_trip(&client, 4);
    assert!(is_silent(&line), "let go");
}

#[test]
fn a_reset_is_one_of_the_device_and_leaves_memory_and_eventfds() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, 1);
    client.ask(RESET, &[]);
    assert_eq!(status(&client), 0xff, "nobody answers at its registers");
    switch_on(&client);
    assert_eq!(status(&client), 0);
    let mut control = [0xff; 2];
    client.read(CONFIG, msix_control(&client), &mut control);
    assert_eq!(control[1] & 0x80, 0, "MSI-X is off");
    guest.vectors.iter().for_each(|fd| while !is_silent(fd) {});
    guest.bring_up(&client, true);
    guest.round_trip(&client, 2);
    assert!(rings(&guest.vectors[1]));
}

/// A driver resets the function by a bit of its configuration space, of which the client need not
/// know: its eventfds are still in force.
#[test]
fn a_reset_by_the_driver_leaves_eventfds_where_they_are() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, 1);
    let at = capability(&client, pci::CAPABILITY_EXPRESS) + u64::from(pci::EXPRESS_CONTROL);
    let mut control = [0; 2];
    client.read(CONFIG, at, &mut control);
    let control = u16::from_le_bytes(control) | pci::EXPRESS_RESET;
    client.write(CONFIG, at, &control.to_le_bytes());
    guest.vectors.iter().for_each(|fd| while !is_silent(fd) {});
    until("somebody answers", || {
        let mut vendor = [0; 2];
        client.read(CONFIG, 0, &mut vendor);
        u16::from_le_bytes(vendor) == pci::VENDOR_ID
    });
    guest.bring_up(&client, true);
    guest.round_trip(&client, 2);
    assert!(rings(&guest.vectors[1]) && rings(&guest.vectors[2]));
}

#[test]
fn writes_come_one_by_one_together_or_without_an_answer() {
    let (_back, client) = Back::pair();
    client.agree();
    switch_on(&client);
    let select = |queue: u64| [place(BAR, pci::COMMON_QUEUE_SELECT, 2), longs(&[queue])].concat();
    let many = [longs(&[3]), select(2), select(0), select(1)].concat();
    assert_eq!(client.ask(WRITE_MULTI, &many), longs(&[3]));
    assert_eq!(client.get(pci::COMMON_QUEUE_SELECT, 2), 1, "in order");
    let posted = [place(BAR, pci::COMMON_QUEUE_SELECT, 2), vec![2, 0]].concat();
    assert!(client.send(REGION_WRITE, NO_REPLY, &posted, &[]));
    assert!(client.send(WRITE_MULTI, NO_REPLY, &many, &[]));
    assert!(client.send(REGION_WRITE, NO_REPLY, &posted, &[]));
    assert_eq!(client.get(pci::COMMON_QUEUE_SELECT, 2), 2, "no answer came before this one");
    for wrong in [
        longs(&[1]),
        longs(&[u64::MAX]),
        [longs(&[2]), select(0)].concat(),
        [longs(&[1]), select(0), vec![0]].concat(),
        [longs(&[1]), place(BAR, 0, 9), longs(&[0])].concat(),
        [longs(&[1]), place(BAR, 0, u32::MAX), longs(&[0])].concat(),
    ] {
        assert_eq!(client.outcome(WRITE_MULTI, &wrong, &[]), Err(EINVAL), "{wrong:?}");
    }
    // Errors of what wants no answer are not told.
    assert!(client.send(WRITE_MULTI, NO_REPLY, &longs(&[9]), &[]));
    client.barrier();
}

#[test]
fn only_bytes_that_there_are_can_be_reached() {
    let (_back, client) = Back::pair();
    client.agree();
    let read = |region, offset, count| {
        client.outcome(REGION_READ, &place(region, offset, count), &[]).map(|data| data.len())
    };
    for (offset, count) in [(0, 1), (0x7ffc, 4), (0x7ff8, 8), (0x8000 - 1, 1)] {
        assert_eq!(read(BAR, offset, count), Ok(16 + count as usize));
    }
    for (offset, count) in
        [(0, 0), (0, 3), (0, 16), (0x7ffd, 4), (0x8000, 1), (u64::MAX, 1), (u64::MAX - 7, 8)]
    {
        assert_eq!(read(BAR, offset, count), Err(EINVAL), "{count} at {offset:#x}");
    }
    for (offset, count) in [(0, 4096), (4095, 1), (3, 7)] {
        assert_eq!(read(CONFIG, offset, count), Ok(16 + count as usize));
    }
    for (offset, count) in [(0, 0), (0, 4097), (0, u32::MAX), (4096, 1), (u64::MAX, 2)] {
        assert_eq!(read(CONFIG, offset, count), Err(EINVAL), "{count} at {offset:#x}");
    }
    for region in [1, 6, 8, 9, u32::MAX] {
        assert_eq!(read(region, 0, 4), Err(EINVAL), "region {region}");
    }
    let write = |place: Vec<u8>, len: usize| {
        client.outcome(REGION_WRITE, &[place, vec![0; len]].concat(), &[]).map(drop)
    };
    assert_eq!(write(place(BAR, DOORBELLS, 2), 2), Ok(()));
    for (count, len) in [(2, 1), (2, 3), (0, 0), (3, 3), (u32::MAX, 4)] {
        assert_eq!(write(place(BAR, DOORBELLS, count), len), Err(EINVAL), "{count}, {len}");
    }
    assert_eq!(write(place(CONFIG, 4095, 2), 2), Err(EINVAL));
}

#[test]
fn memory_comes_and_goes_under_a_driver_at_work() {
    let (back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, 1);
    assert_eq!(client.map(RINGS + 0x1000, 0x1000, 0, &guest.file), Err(EEXIST));
    assert_eq!(client.unmap(BUFFERS, LEN / 2), Err(ENOENT), "not a part of it");
    guest.round_trip(&client, 2);
    for fill in 3..20 {
        // More memory, and less: what is at work goes on.
        client.map(0x100_0000, LEN, 0, &guest.file).unwrap();
        guest.round_trip(&client, fill);
        client.unmap(0x100_0000, LEN).unwrap();
        guest.round_trip(&client, fill);
    }
    // The buffers go while they are posted: the driver is told that it needs a reset, at most.
    client.unmap(BUFFERS, LEN).unwrap();
    guest.post(0);
    guest.kick(&client, 0);
    guest.kick(&client, 1);
    back.wait_for_text("the driver broke a rule");
    until("the device needs a reset", || status(&client) & DEVICE_NEEDS_RESET != 0);
    // The rings go, too.
    client.unmap(RINGS, LEN).unwrap();
    guest.kick(&client, 0);
    client.barrier();
    guest.map(&client);
    guest.bring_up(&client, true);
    guest.round_trip(&client, 20);
    let all = [words(&[24, 2]), longs(&[0, 0])].concat();
    assert_eq!(client.ask(DMA_UNMAP, &all), all);
    assert_eq!(client.unmap(RINGS, LEN), Err(ENOENT), "gone with the others");
    client.ask(RESET, &[]);
    guest.map(&client);
    guest.bring_up(&client, true);
    guest.round_trip(&client, 21);
}

#[test]
fn memory_that_cannot_be_shared_is_taken_note_of() {
    let (_back, client) = Back::pair();
    client.agree();
    // As QEMU has it for ROM: without a file, or to be read only.
    client.ask(DMA_MAP, &region(0xf_0000, LEN, 0));
    let guest = Guest::default();
    let read_only = [words(&[32, 1]), longs(&[0, 0x20_0000, LEN])].concat();
    client.outcome(DMA_MAP, &read_only, &[guest.file.as_fd()]).unwrap();
    assert_eq!(client.map(0xf_0000, LEN, 0, &guest.file), Err(EEXIST));
    client.unmap(0xf_0000, LEN).unwrap();
    client.unmap(0x20_0000, LEN).unwrap();
    client.map(0xf_0000, LEN, 0, &guest.file).unwrap();
}

#[test]
fn what_is_not_offered_is_said_so() {
    let (_back, client) = Back::pair();
    client.agree();
    for command in [6, 11, 12, 14, 19, 1000] {
        assert_eq!(client.outcome(command, &[0; 16], &[]), Err(EOPNOTSUPP), "command {command}");
    }
    client.barrier();
}

#[test]
fn a_client_that_goes_leaves_a_device_as_after_power_on() {
    let place = Place::new("next");
    let mut back = Back::new(Server::bind(place.path()).unwrap());
    for fill in 0..5 {
        let client = place.connect();
        let mut command = [0xff; 2];
        client.read(CONFIG, pci::HEADER_COMMAND.into(), &mut command);
        assert_eq!(command, [0; 2]);
        switch_on(&client);
        assert_eq!(status(&client), 0);
        assert_eq!(client.get(PENDING, 8), 0, "nothing is left to be told");
        let mut guest = Guest::start(&client);
        guest.round_trip(&client, fill);
        guest.post(0);
        guest.kick(&client, 1);
        drop(client);
        back.wait_for_text("gone");
    }
    let client = place.connect();
    set_status(&client, ACKNOWLEDGE | DRIVER);
    assert!(place.knock().receive().is_none(), "one at a time");
    back.wait_for_text("turned away");
    assert_eq!(back.stop().unwrap(), End::Stopped);
    assert!(client.is_closed());
    assert!(!place.path().exists(), "nothing is left behind");
}
