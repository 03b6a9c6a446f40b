//! A device that moves from one server to another, by what a client reads here and writes there.
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

use bench::guest::{DOORBELLS, Guest, status, switch_on};
use bench::{
    BAR, Back, Client, EINVAL, FEATURE, MIG_READ, MIG_WRITE, RESET, is_silent, longs, rings, words,
};
use vionet_spec::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

const ENOTTY: u32 = 25;
const ENOSPC: u32 = 28;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const MIGRATION: u32 = 1;
const STATE: u32 = 2;

const ERROR: u32 = 0;
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;

fn feature(client: &Client, flags: u32, data: &[u8]) -> Result<Vec<u8>, u32> {
    let reply = client.outcome(FEATURE, &[&words(&[64, flags])[..], data].concat(), &[])?;
    let len = reply.len() as u32;
    assert_eq!(reply[..8], words(&[len, flags]), "its length, and what was asked");
    Ok(reply[8..].to_vec())
}

fn go_to(client: &Client, state: u32) -> Result<(), u32> {
    let data = words(&[state, u32::MAX]);
    feature(client, SET | STATE, &data).map(|reply| assert_eq!(reply, data))
}

fn state(client: &Client) -> u32 {
    let data = feature(client, GET | STATE, &[]).unwrap();
    u32::from_ne_bytes(data[..4].try_into().unwrap())
}

/// All bytes of a device that is in STOP_COPY.
fn read_all(client: &Client, piece: u32) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let reply = client.ask(MIG_READ, &words(&[4096 + 8, piece]));
        let data = &reply[8..];
        assert_eq!(reply[..8], words(&[8 + data.len() as u32, data.len() as u32]));
        all.extend_from_slice(data);
        if data.len() < piece as usize {
            return all;
        }
    }
}

fn write(client: &Client, data: &[u8]) -> Result<(), u32> {
    let len = data.len() as u32;
    client.outcome(MIG_WRITE, &[&words(&[len + 8, len])[..], data].concat(), &[]).map(drop)
}

#[test]
fn a_device_goes_on_in_another_server_where_it_stood() {
    let ((_one, here), (_two, there)) = (Back::pair(), Back::pair());
    here.agree();
    there.agree();
    let mut guest = Guest::start(&here);
    guest.round_trip(&here, 1);
    guest.vectors.iter().for_each(|fd| while !is_silent(fd) {});
    // The driver does not wait for it.
    go_to(&here, STOP).unwrap();
    guest.post(2);
    guest.kick(&here, 0);
    guest.kick(&here, 1);
    assert!(is_silent(&guest.vectors[1]) && guest.rx.collect().is_empty(), "it is at rest");
    go_to(&here, STOP_COPY).unwrap();
    let bytes = read_all(&here, 100);
    assert!(read_all(&here, 100).is_empty(), "all has been read");

    guest.map(&there);
    guest.wire(&there);
    go_to(&there, RESUMING).unwrap();
    bytes.chunks(77).for_each(|piece| write(&there, piece).unwrap());
    go_to(&there, STOP).unwrap();
    go_to(&there, RUNNING).unwrap();
    // Memory is shared here, so what was posted is there, and the kick that came is not lost.
    assert!(rings(&guest.vectors[1]) && rings(&guest.vectors[2]));
    let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(status(&there), ready);
    assert_eq!((guest.rx.collect().len(), guest.tx.collect().len()), (1, 1));
    guest.round_trip(&there, 3);
    assert!(rings(&guest.vectors[1]));
}

#[test]
fn one_that_was_stopped_or_copied_goes_on_here() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    for (fill, way) in [&[STOP][..], &[STOP_COPY], &[STOP, STOP_COPY, STOP], &[RUNNING], &[]]
        .into_iter()
        .enumerate()
    {
        way.iter().for_each(|at| go_to(&client, *at).unwrap());
        go_to(&client, RUNNING).unwrap();
        assert_eq!(state(&client), RUNNING);
        guest.round_trip(&client, fill as u8);
    }
}

#[test]
fn counters_are_of_this_server_whatever_bytes_come() {
    let (back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    guest.round_trip(&client, 1);
    go_to(&client, STOP_COPY).unwrap();
    let bytes = read_all(&client, 4096);
    go_to(&client, RUNNING).unwrap();
    guest.round_trip(&client, 2);
    go_to(&client, STOP).unwrap();
    let before = back.nic.snapshot();
    assert_eq!(before.total.transmit.frames(), 2);
    go_to(&client, RESUMING).unwrap();
    write(&client, &bytes).unwrap();
    go_to(&client, STOP).unwrap();
    let after = back.nic.snapshot();
    assert_eq!(after.total, before.total);
    assert_eq!(after.control, before.control);
}

#[test]
fn features_that_there_are_not_are_refused() {
    let (_back, client) = Back::pair();
    client.agree();
    assert_eq!(feature(&client, GET | MIGRATION, &[]), Ok(longs(&[1])), "STOP_COPY");
    for flags in [PROBE, PROBE | GET].map(|flags| flags | MIGRATION) {
        assert_eq!(feature(&client, flags, &[]), Ok(Vec::new()));
    }
    assert_eq!(feature(&client, PROBE | GET | SET | STATE, &[]), Ok(Vec::new()));
    for (flags, error) in [
        (SET | MIGRATION, ENOTTY),
        (PROBE | SET | MIGRATION, ENOTTY),
        (GET, ENOTTY),
        (GET | 6, ENOTTY),
        (PROBE | 0xffff, ENOTTY),
        (STATE, EINVAL),
        (GET | SET | STATE, EINVAL),
        (1 << 19 | GET | STATE, EINVAL),
    ] {
        assert_eq!(feature(&client, flags, &words(&[1, 2])), Err(error), "{flags:#x}");
    }
    for data in [&[][..], &[1, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 0]] {
        assert_eq!(feature(&client, SET | STATE, data), Err(EINVAL), "{data:?}");
    }
    for number in [ERROR, 5, 6, 7, 8, u32::MAX] {
        assert_eq!(go_to(&client, number), Err(EINVAL), "state {number}");
    }
    assert_eq!(state(&client), RUNNING);
}

#[test]
fn bytes_go_only_when_they_are_wanted_and_only_so_many() {
    let (_back, client) = Back::pair();
    client.agree();
    let read = |size| client.outcome(MIG_READ, &words(&[64, size]), &[]).map(drop);
    for at in [RUNNING, STOP, RESUMING] {
        go_to(&client, at).unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(read(8), Err(EINVAL), "state {at}");
        assert_eq!(write(&client, &[0]).is_ok(), at == RESUMING, "state {at}");
    }
    client.ask(RESET, &[]);
    assert_eq!(state(&client), RUNNING);
    go_to(&client, STOP_COPY).unwrap();
    assert_eq!(read(4097), Err(EINVAL));
    assert_eq!(read(u32::MAX), Err(EINVAL));
    assert_eq!(write(&client, &[0]), Err(EINVAL));
    go_to(&client, RESUMING).unwrap();
    let lie = [words(&[64, 9]), vec![0; 8]].concat();
    assert_eq!(client.outcome(MIG_WRITE, &lie, &[]), Err(EINVAL));
    let mut more = std::iter::repeat_with(|| write(&client, &[0; 4096])).take(1000);
    let full = more.find(Result::is_err);
    assert_eq!(full, Some(Err(ENOSPC)), "no more than a device can have");
}

#[test]
fn bytes_that_are_no_device_leave_one_that_only_a_reset_brings_back() {
    let (_back, client) = Back::pair();
    client.agree();
    let mut guest = Guest::start(&client);
    go_to(&client, STOP_COPY).unwrap();
    let good = read_all(&client, 4096);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [&[][..], &[0; 30], &good[..good.len() - 1], &damaged] {
        go_to(&client, RESUMING).unwrap();
        write(&client, bytes).unwrap();
        assert_eq!(go_to(&client, RUNNING), Err(EINVAL));
        assert_eq!(state(&client), ERROR);
        for at in [STOP, RUNNING, STOP_COPY, RESUMING] {
            assert_eq!(go_to(&client, at), Err(EINVAL), "from ERROR to {at}");
        }
        client.ask(RESET, &[]);
        assert_eq!(state(&client), RUNNING);
        guest.bring_up(&client, true);
        guest.round_trip(&client, 1);
    }
}

#[test]
fn a_device_whose_rings_are_not_there_is_refused_and_it_is_said_why() {
    let (back, client) = Back::pair();
    client.agree();
    let _guest = Guest::start(&client);
    go_to(&client, STOP_COPY).unwrap();
    let good = read_all(&client, 4096);
    client.unmap(bench::guest::RINGS, bench::guest::LEN).unwrap();
    go_to(&client, RESUMING).unwrap();
    write(&client, &good).unwrap();
    assert_eq!(go_to(&client, STOP), Err(EINVAL));
    back.wait_for_text("queue 0 of the state cannot start here");
}

#[test]
fn a_client_that_goes_in_the_middle_of_it_leaves_a_device_as_after_power_on() {
    let place = bench::Place::new("moving");
    let back = Back::new(vionet_vfio_user::Server::bind(place.path()).unwrap());
    for at in [STOP, STOP_COPY, RESUMING, RUNNING] {
        let client = place.connect();
        assert_eq!(state(&client), RUNNING);
        switch_on(&client);
        assert_eq!(status(&client), 0);
        let mut guest = Guest::start(&client);
        guest.round_trip(&client, 1);
        go_to(&client, at).unwrap();
        client.set(DOORBELLS, 0, 2);
        client.read(BAR, 0, &mut [0; 4]);
        drop(client);
        back.wait_for_text("gone");
    }
}
