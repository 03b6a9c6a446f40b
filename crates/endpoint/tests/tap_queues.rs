//! A guest of several pairs on a tap whose driver makes no use of some.
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

#[path = "../../vionet/tests/many/mod.rs"]
mod many;
mod namespace;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use many::{Guest, Host, MAC, OK, PATIENCE};
use namespace::{in_namespace, ip};
use vionet_endpoint::Tap;
use vionet_spec::feature::Feature;

/// How many datagrams have arrived on each pair, beside what the kernel sends by itself.
fn datagrams(guest: &mut Guest) -> Vec<usize> {
    guest.look();
    let is_one = |frame: &&Vec<u8>| frame.len() == 14 + 20 + 8 + 1;
    guest.got.iter().map(|got| got.iter().filter(is_one).count()).collect()
}

/// The host sends a datagram of each of so many flows; where they arrive.
fn send(guest: &mut Guest, socket: &UdpSocket, flows: u16) -> Vec<usize> {
    let before = datagrams(guest);
    (1000..1000 + flows).for_each(|port| _ = socket.send_to(b"x", ("10.9.9.2", port)).unwrap());
    let start = Instant::now();
    loop {
        let now = datagrams(guest);
        let new: Vec<_> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        if new.iter().sum::<usize>() == usize::from(flows) {
            return new;
        }
        assert!(start.elapsed() < PATIENCE, "{new:?} of {flows} have arrived");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_kernel_uses_a_queue_when_its_driver_has_posted_buffers_or_sent() {
    if !in_namespace("the_kernel_uses_a_queue_when_its_driver_has_posted_buffers_or_sent") {
        return;
    }
    ip("tuntap add dev several mode tap multi_queue vnet_hdr");
    ip("addr add 10.9.9.1/24 dev several");
    ip("link set several up");
    ip("neigh add 10.9.9.2 lladdr 02:00:00:00:00:01 dev several");
    let tap = Tap::open("several", 3).unwrap();
    let features = [Feature::MQ];
    let mut guest = Guest::with(MAC, Box::new(tap), Host::new(3), 3, &features);
    guest.start(&features);
    assert_eq!(guest.set_pairs(3), OK);
    let fill = |guest: &mut Guest, pairs: std::ops::Range<usize>| {
        for pair in pairs {
            guest.post(pair, guest.rx[pair].driver.free());
        }
    };
    fill(&mut guest, 0..2);
    let socket = UdpSocket::bind("10.9.9.1:0").unwrap();
    // The kernel sees a moment after its opening that the tap has a carrier, and the worker a
    // moment after the driver that there are buffers.
    let start = Instant::now();
    while datagrams(&mut guest)[..2].contains(&0) {
        (0..30).for_each(|port| _ = socket.send_to(b"x", ("10.9.9.2", 2000 + port)).unwrap());
        assert!(start.elapsed() < PATIENCE, "flows arrive on two pairs");
        std::thread::sleep(Duration::from_millis(10));
        datagrams(&mut guest);
        fill(&mut guest, 0..2);
    }
    std::thread::sleep(Duration::from_millis(50));
    datagrams(&mut guest);
    fill(&mut guest, 0..2);
    let got = send(&mut guest, &socket, 50);
    assert!(got[0] > 5 && got[1] > 5 && got[2] == 0, "{got:?}");
    // What is sent on a pair goes out, and what there is for it comes when there are buffers.
    fill(&mut guest, 0..3);
    let before = guest.stats(2).tx.frames();
    guest.send(2, &[[0xff; 12].as_slice(), &[0x88, 0xb5], &[0; 46]].concat());
    many::wait("it is sent", || guest.stats(2).tx.frames() == before + 1);
    let got = send(&mut guest, &socket, 60);
    assert!(got.iter().all(|got| *got > 5), "{got:?}");
}
