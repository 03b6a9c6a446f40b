//! Guests on one switch: who gets which frames, and in what state.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod guest;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::{FRAMES, Guest, RX, mac, tcp};
use rustix::event::{EventfdFlags, eventfd};
use vionet::endpoint::OpenKind;
use vionet::stats::DropReason;
use vionet::{Interrupt, Op};
use vionet_endpoint::{PortConfig, Switch};
use vionet_frame::header::NetHeader;
use vionet_spec::feature::Feature;
use vionet_spec::net::HDR_F_DATA_VALID;
use vionet_testkit::{Arrangement, Buffer};

const PLAIN: NetHeader = NetHeader::PLAIN;

fn frame(to: [u8; 6], from: [u8; 6], body: &[u8]) -> Vec<u8> {
    to.iter().chain(&from).chain(&[0x88, 0xb5]).chain(body).copied().collect()
}

const ALL: [u8; 6] = [0xff; 6];

#[test]
fn a_frame_goes_where_its_address_is_and_never_back() {
    let switch = Switch::new("lan");
    let [mut a, mut b, mut c] = [1, 2, 3].map(|last| Guest::new(&switch, last, false, &[]));
    for guest in [&mut a, &mut b, &mut c] {
        guest.post(8);
    }
    let known = frame(mac(2), mac(1), &[7; 50]);
    a.send(&PLAIN, &known);
    assert_eq!((b.frames(), c.frames(), a.frames()), (vec![known], vec![], vec![]));
    let broadcast = frame(ALL, mac(1), &[8; 50]);
    a.send(&PLAIN, &broadcast);
    assert_eq!(b.frames(), std::slice::from_ref(&broadcast));
    assert_eq!((c.frames(), a.frames()), (vec![broadcast], vec![]));
    // Nobody knows this one: everybody gets it, until it has sent.
    let unknown = frame(mac(9), mac(1), &[9; 50]);
    a.send(&PLAIN, &unknown);
    assert_eq!((b.frames().len(), c.frames().len()), (1, 1));
    c.send(&PLAIN, &frame(mac(1), mac(9), &[0; 50]));
    a.send(&PLAIN, &unknown);
    assert_eq!((b.frames().len(), c.frames().len(), a.frames().len()), (0, 1, 1));
    // To itself: it is behind its own port.
    a.send(&PLAIN, &frame(mac(1), mac(1), &[1; 50]));
    assert_eq!((a.frames().len(), b.frames().len(), c.frames().len()), (0, 0, 0));
}

#[test]
fn nobody_sends_from_anothers_address() {
    let switch = Switch::new("lan");
    let [mut a, mut b] = [1, 2].map(|last| Guest::new(&switch, last, false, &[]));
    b.post(4);
    a.send(&PLAIN, &frame(mac(2), mac(2), &[0; 50]));
    a.send(&PLAIN, &frame(ALL, mac(2), &[0; 50]));
    a.send(&PLAIN, &frame(mac(2), mac(1), &[0; 50]));
    assert_eq!(b.frames().len(), 1);
    assert_eq!(a.drops(false, DropReason::Spoofed), 2);
    let taken = switch.port(PortConfig { mac: mac(1), isolated: false }).err().unwrap();
    assert_eq!(taken.kind, OpenKind::Config);
    assert!(taken.reason.contains("02:00:00:00:00:01"), "{taken}");
    drop(a);
    assert!(switch.port(PortConfig { mac: mac(1), isolated: false }).is_ok());
}

#[test]
fn isolated_ports_talk_to_the_others_only() {
    let switch = Switch::new("lan");
    let mut up = Guest::new(&switch, 1, false, &[]);
    let [mut a, mut b] = [2, 3].map(|last| Guest::new(&switch, last, true, &[]));
    for guest in [&mut up, &mut a, &mut b] {
        guest.post(8);
    }
    a.send(&PLAIN, &frame(ALL, mac(2), &[0; 50]));
    a.send(&PLAIN, &frame(mac(3), mac(2), &[0; 50]));
    assert_eq!((up.frames().len(), b.frames().len()), (1, 0));
    up.send(&PLAIN, &frame(ALL, mac(1), &[0; 50]));
    assert_eq!((a.frames().len(), b.frames().len()), (1, 1));
}

#[test]
fn a_guest_without_room_or_with_a_broken_ring_costs_the_others_nothing() {
    let switch = Switch::new("lan");
    let [mut a, mut full, mut broken, mut good] =
        [1, 2, 3, 4].map(|last| Guest::new(&switch, last, false, &[]));
    full.post(1);
    good.post(16);
    let bad = Buffer::readable(FRAMES, 64);
    broken.rx.post(&[bad], Arrangement::Direct).unwrap();
    broken.rx.expose();
    for _ in 0..4 {
        a.send(&PLAIN, &frame(ALL, mac(1), &[0; 50]));
    }
    assert_eq!((full.frames().len(), good.frames().len()), (1, 4));
    assert_eq!(full.drops(true, DropReason::NoBuffer), 3);
    let start = Instant::now();
    let report = loop {
        if let Some(report) = broken.device.next_report() {
            break report.to_string();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "its own worker tells");
    };
    assert!(report.contains("queue 0 stopped"), "{report}");
    broken.device.apply(Op::Reset).unwrap();
    drop(good);
    a.send(&PLAIN, &frame(ALL, mac(1), &[0; 50]));
    assert_eq!(full.frames().len(), 0);
}

const TSO: [Feature; 2] = [Feature::CSUM, Feature::HOST_TSO4];

#[test]
fn a_large_frame_goes_whole_to_who_takes_it_and_cut_to_who_does_not() {
    let switch = Switch::new("lan");
    let mut a = Guest::new(&switch, 1, false, &TSO);
    let (header, whole) = tcp(20_000);
    let mut takes = Guest::new(&switch, 2, false, &[Feature::GUEST_CSUM, Feature::GUEST_TSO4]);
    takes.post(32);
    a.send(&header, &whole);
    let received = takes.received();
    assert_eq!(received.len(), 1);
    let (found, bytes) = &received[0];
    assert_eq!(bytes, &whole);
    assert_eq!((found.gso_type, found.gso_size, found.flags), (1, 1000, 1));
    drop(takes);

    for checksums in [false, true] {
        let features: &[Feature] = if checksums { &[Feature::GUEST_CSUM] } else { &[] };
        let mut plain = Guest::new(&switch, 2, false, features);
        plain.post(32);
        a.send(&header, &whole);
        let received = plain.received();
        assert_eq!(received.len(), 20);
        let mut payload = Vec::new();
        for (found, bytes) in &received {
            assert_eq!(found.gso_type, 0);
            assert_eq!(found.flags & 1 == 1, checksums, "left open where that was agreed");
            if !checksums {
                assert_good(bytes);
            }
            payload.extend_from_slice(&bytes[54..]);
        }
        assert_eq!(payload, whole[54..]);
    }
}

/// Both checksums are right, by somebody else's arithmetic.
/// NET-TX-03: of what a guest says to be valid, or says nothing of, nobody else is told that it is.
#[test]
fn a_checksum_that_the_sender_calls_valid_is_not_called_so_to_the_receiver() {
    let switch = Switch::new("lan");
    let features = [Feature::CSUM, Feature::GUEST_CSUM];
    let mut guests = [1, 2].map(|last| Guest::new(&switch, last, false, &features));
    let [one, two] = &mut guests;
    two.post(4);
    let mut wrong = tcp(100).1;
    wrong[50] ^= 0x55;
    for flags in [0, HDR_F_DATA_VALID] {
        one.send(&NetHeader { flags, ..NetHeader::default() }, &wrong);
        let received = two.received();
        assert_eq!(received.len(), 1);
        assert_eq!((received[0].0.flags, &received[0].1), (0, &wrong));
    }
}

fn assert_good(frame: &[u8]) {
    let parsed = etherparse::PacketHeaders::from_ethernet_slice(frame).unwrap();
    let (Some(etherparse::NetHeaders::Ipv4(ip, _)), Some(transport)) =
        (parsed.net, parsed.transport)
    else {
        panic!("an IPv4 packet");
    };
    assert_eq!(ip.header_checksum, ip.calc_header_checksum());
    let tcp = transport.tcp().unwrap();
    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &frame[54..]).unwrap());
}

/// An interrupt through a descriptor that its other holder may do anything to.
struct Call(OwnedFd);

impl Interrupt for Call {
    fn raise(&self) {
        let (Ok(_) | Err(_)) = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

#[test]
fn a_guest_that_cannot_be_interrupted_holds_up_itself_alone() {
    let switch = Switch::new("lan");
    let [mut a, mut stuck, mut good] = [1, 2, 3].map(|last| Guest::new(&switch, last, false, &[]));
    stuck.post(32);
    good.post(32);
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let call = Call(full.try_clone().unwrap());
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    stuck.device.apply(Op::SetInterrupt(RX, Some(Arc::new(call)))).unwrap();
    for _ in 0..20 {
        a.send(&PLAIN, &frame(ALL, mac(1), &[0; 50]));
    }
    assert_eq!((stuck.frames().len(), good.frames().len()), (20, 20));
    let start = Instant::now();
    stuck.device.apply(Op::Reset).unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    a.send(&PLAIN, &frame(ALL, mac(1), &[0; 50]));
    assert_eq!(good.frames().len(), 1);
}

#[test]
fn ports_come_and_go_in_mid_traffic() {
    let switch = Switch::new("lan");
    let mut a = Guest::new(&switch, 1, false, &[]);
    for round in 0..20 {
        let mut b = Guest::new(&switch, 2, round % 2 == 0, &[]);
        b.post(4);
        a.send(&PLAIN, &frame(mac(2), mac(1), &[round; 50]));
        assert_eq!(b.frames(), [frame(mac(2), mac(1), &[round; 50])]);
        if round % 3 == 0 {
            b.device.apply(Op::Reset).unwrap();
            a.send(&PLAIN, &frame(mac(2), mac(1), &[round; 50]));
        }
    }
    a.send(&PLAIN, &frame(mac(2), mac(1), &[0; 50]));
}
