//! What the host decides about a device: queue pairs, addresses, what the guest may send.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

mod served;

use std::process::Command;
use std::time::{Duration, Instant};

use vionet_driver::{FRAME_MAX, FrontEnd, Guest, GuestOptions, Nic, Received};
use vionet_spec::feature::{Feature, FeatureBits};

use served::{PATIENCE, Server};

fn offered(server: &Server, index: usize) -> FeatureBits {
    FeatureBits(FrontEnd::connect(&server.socket(index)).unwrap().offered().into())
}

#[test]
fn options_of_a_device_show_in_what_the_driver_is_offered() {
    let nics = [
        "endpoint=null",
        "endpoint=null,queues=4,speed=10000,lock-mac",
        "endpoint=null,guard=mac",
        "endpoint=null,guard=dhcp",
        "endpoint=user,queues=4",
    ];
    let server = Server::start("offered", &[], &nics);
    let features = [Feature::MQ, Feature::CTRL_MAC_ADDR];
    let shown = |index| features.map(|feature| offered(&server, index).has(feature));
    assert_eq!(shown(0), [false, true]);
    assert_eq!(shown(1), [true, false]);
    assert_eq!(shown(2), [false, false], "its address is held to");
    assert_eq!(shown(3), [false, true]);
    assert_eq!(shown(4), [true, true], "the built-in network has as many pairs as are wanted");
    server.end();
}

#[test]
fn what_an_endpoint_cannot_do_is_refused_with_what_can() {
    let refused = |nic: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vionet"));
        let nic = format!("socket-path=/nowhere/x,{nic}");
        let output = command.args(["serve", "--nic", &nic]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (nic, code, words) in [
        ("endpoint=user,lease=10.1.0.5/24", 2, "--endpoint tap:NAME"),
        ("endpoint=switch:a,lease=10.1.0.5/24@10.2.0.1", 3, "10.2.0.1"),
        ("endpoint=switch:a,lease=10.1.0.5/24,dns=::1", 2, "port 53"),
        ("endpoint=switch:a,dns=9.9.9.9", 2, "--endpoint user"),
    ] {
        let (got, said) = refused(nic);
        assert_eq!(got, Some(code), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_guest_on_a_switch_is_leased_the_address_that_was_given_for_it() {
    let nics = ["endpoint=switch:lan,mac=02:00:00:00:00:01,lease=10.1.0.5/24@10.1.0.1,dns=9.9.9.9"];
    let server = Server::start("lease", &[], &nics);
    let options = GuestOptions { mac: [2, 0, 0, 0, 0, 1], ..GuestOptions::default() };
    let mut guest = Guest::start(&server.socket(0), &options).unwrap();
    let lease = guest.lease().unwrap();
    assert_eq!((lease.address, lease.prefix), ([10, 1, 0, 5].into(), 24));
    assert_eq!(lease.router, Some([10, 1, 0, 1].into()));
    drop(guest);
    server.end();
}

/// The numbers of the frames that come until none has come for a while.
fn numbers(nic: &mut Nic) -> Vec<u8> {
    let (mut room, mut got, mut last) = (vec![0; FRAME_MAX], Vec::new(), Instant::now());
    while last.elapsed() < Duration::from_millis(200) {
        match nic.receive(&mut room).unwrap() {
            Received::Frame(_) => {
                got.push(room[59]);
                last = Instant::now();
            }
            Received::Nothing | Received::Damaged => nic.wait(Duration::from_millis(5)).unwrap(),
        }
    }
    got
}

#[test]
fn a_guard_lets_through_what_its_rules_allow_and_nothing_else() {
    let nics = [
        "endpoint=switch:lan,mac=02:00:00:00:00:01,guard=arp",
        "endpoint=switch:lan,mac=02:00:00:00:00:02",
    ];
    let server = Server::start("guard", &[], &nics);
    let mut pair = [0, 1].map(|index| Nic::attach(&server.socket(index)).unwrap());
    let [from, to] = &mut pair;
    let start = Instant::now();
    // ARP in the name of another is refused.
    for (number, sender) in [(1, 1), (2, 2), (3, 1)] {
        let own = [2, 0, 0, 0, 0, sender];
        let arp = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
        let mut frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &arp, &own, &[10, 1, 0, 1]].concat();
        frame.resize(59, 0);
        frame.push(number);
        while !from.can_send().unwrap() {
            assert!(start.elapsed() < PATIENCE, "the ring stays full");
        }
        from.send(&mut frame).unwrap();
    }
    from.flush();
    assert_eq!(numbers(to), [1, 3]);
    drop(pair);
    server.end();
}
