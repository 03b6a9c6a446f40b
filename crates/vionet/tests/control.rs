//! Commands of the driver: each is obeyed whole or refused whole, and what it says is done.
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
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use bench::{Bench, CONTROL, EVERYTHING, MAC, RX, TX, frame};
use proptest::prelude::*;
use vionet::endpoint::RxHeader;
use vionet::stats::DropReason;
use vionet::{Instant, Op, QueueIndex};
use vionet_frame::header::{NetHeader, Offloads};
use vionet_queue::{Cursor, Fault};
use vionet_spec::control::{ERR, OK};
use vionet_spec::feature::Feature;
use vionet_spec::hash::{TUNNEL_GRE_2784, TUNNEL_VXLAN};
use vionet_testkit::{Arrangement, Buffer, SplitDriver};

const ALL: &[Feature] = &[
    Feature::MAC,
    Feature::STATUS,
    Feature::MTU,
    Feature::CTRL_VQ,
    Feature::CTRL_RX,
    Feature::CTRL_RX_EXTRA,
    Feature::CTRL_VLAN,
    Feature::CTRL_MAC_ADDR,
    Feature::CTRL_GUEST_OFFLOADS,
    Feature::GUEST_ANNOUNCE,
    Feature::NOTF_COAL,
    Feature::VQ_NOTF_COAL,
    Feature::DEVICE_STATS,
    Feature::CSUM,
    Feature::GUEST_CSUM,
    Feature::GUEST_TSO4,
    Feature::MRG_RXBUF,
];

fn started(features: &[Feature]) -> Bench {
    let mut bench = Bench::new(features, EVERYTHING);
    bench.start_control();
    bench
}

/// A frame of 60 bytes from somebody to `to`.
fn to(to: [u8; 6]) -> Vec<u8> {
    let mut frame = frame(60);
    frame[..6].copy_from_slice(&to);
    frame[12..14].copy_from_slice(&[0x08, 0]);
    frame
}

fn tagged(id: u16) -> Vec<u8> {
    let mut frame = to(MAC);
    frame.splice(12..12, [0x81, 0, (id >> 8) as u8, id as u8]);
    frame
}

/// Whether the guest gets a frame.
fn gets(bench: &mut Bench, frame: &[u8]) -> bool {
    bench.post(2048);
    bench.deliver(frame, RxHeader::default());
    let _step = bench.step();
    let used = bench.rx.collect();
    // A buffer that was not needed waits for the next frame.
    !used.is_empty()
}

const OTHER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn a_guest_gets_what_is_for_it_and_what_its_modes_ask_for() {
    let mut bench = started(ALL);
    let seen =
        |bench: &mut Bench| [MAC, OTHER, GROUP, BROADCAST].map(|address| gets(bench, &to(address)));
    assert_eq!(seen(&mut bench), [true, false, false, true], "NET-CTRL-MAC-01, -04");
    let steps: &[(u8, u8, [bool; 4], &str)] = &[
        (1, 1, [true, false, true, true], "NET-CTRL-RX-05"),
        (3, 1, [true, false, false, true], "NET-CTRL-RX-10, -11"),
        (3, 0, [true, false, true, true], "NOMULTI off"),
        (5, 1, [true, false, true, false], "NET-CTRL-RX-17"),
        (2, 1, [true, true, true, false], "NET-CTRL-RX-07"),
        (4, 1, [false, false, true, false], "NET-CTRL-RX-14"),
        (0, 1, [true, true, true, true], "NET-CTRL-RX-02, -03"),
        (0, 0, [false, false, true, false], "NET-CTRL-RX-01"),
    ];
    for (mode, on, wanted, row) in steps {
        assert_eq!(bench.command(&[0, *mode, *on], 0), (OK, vec![]), "{row}");
        assert_eq!(seen(&mut bench), *wanted, "{row}");
    }
    assert!(bench.drops(true, DropReason::FilterUnicast) > 0);
    assert!(bench.drops(true, DropReason::FilterMulticast) > 0);
    assert!(bench.drops(true, DropReason::FilterBroadcast) > 0);
}

#[test]
fn the_table_of_addresses_is_in_force_when_it_is_acknowledged() {
    let mut bench = started(ALL);
    let table = |unicast: &[[u8; 6]], multicast: &[[u8; 6]]| {
        let mut bytes = vec![1, 0];
        for list in [unicast, multicast] {
            bytes.extend((list.len() as u32).to_le_bytes());
            bytes.extend(list.as_flattened());
        }
        bytes
    };
    assert_eq!(bench.command(&table(&[OTHER], &[GROUP]), 0).0, OK);
    assert!(gets(&mut bench, &to(OTHER)) && gets(&mut bench, &to(GROUP)), "NET-CTRL-MAC-02");
    let short = &table(&[OTHER, OTHER], &[])[..16];
    assert_eq!(bench.command(short, 0).0, ERR, "NET-CTRL-MAC-08");
    assert_eq!(bench.command(&[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], 0).0, ERR);
    assert!(gets(&mut bench, &to(OTHER)), "the old table is kept");
    assert_eq!(bench.command(&table(&[], &[]), 0).0, OK);
    assert!(!gets(&mut bench, &to(OTHER)) && !gets(&mut bench, &to(GROUP)));
}

#[test]
fn a_new_address_is_the_devices_and_the_filters_before_it_is_acknowledged() {
    let mut bench = started(ALL);
    let generation = bench.nic.config_generation();
    assert_eq!(bench.command(&[&[1, 1], &OTHER[..]].concat(), 0).0, OK);
    assert_eq!(bench.nic.config_space()[..6], OTHER, "NET-CTRL-MAC-03");
    assert_ne!(bench.nic.config_generation(), generation, "CFG-03");
    assert!(gets(&mut bench, &to(OTHER)) && !gets(&mut bench, &to(MAC)));
    assert_eq!(bench.command(&[1, 1, 1, 2, 3, 4, 5], 0).0, ERR, "NET-CTRL-MAC-07");
    assert_eq!(bench.nic.mac(), OTHER);
    bench.apply(Op::Reset).unwrap();
    assert_eq!(bench.nic.mac(), MAC, "reset gives the address back");
    let mut alone = started(&[Feature::CTRL_VQ, Feature::MAC, Feature::CTRL_MAC_ADDR]);
    assert_eq!(alone.command(&[&[1, 1], &OTHER[..]].concat(), 0).0, OK, "NET-CTRL-MAC-09");
}

#[test]
fn tagged_frames_come_from_vlans_in_the_table_only() {
    let mut bench = started(ALL);
    assert!(gets(&mut bench, &to(MAC)), "NET-CTRL-VLAN-04: untagged");
    assert!(!gets(&mut bench, &tagged(5)), "NET-CTRL-VLAN-03");
    assert_eq!(bench.command(&[2, 0, 5, 0], 0).0, OK);
    assert!(gets(&mut bench, &tagged(5)) && !gets(&mut bench, &tagged(6)), "NET-CTRL-VLAN-02");
    assert_eq!(bench.command(&[2, 0, 0, 16], 0).0, ERR, "NET-CTRL-VLAN-05");
    assert_eq!(bench.command(&[2, 1, 5, 0], 0).0, OK);
    assert!(!gets(&mut bench, &tagged(5)));
    let mut without = started(&[Feature::CTRL_VQ]);
    assert!(gets(&mut without, &tagged(5)), "NET-CTRL-VLAN-01");
}

#[test]
fn offloads_are_off_on_both_sides_before_that_is_acknowledged() {
    let mut bench = started(ALL);
    let tso = RxHeader {
        request: vionet_frame::header::Request {
            csum: Some(vionet_frame::header::CsumAt { start: 34, offset: 16 }),
            gso: Some(vionet_frame::header::GsoRequest {
                kind: vionet_frame::header::Gso::TcpV4,
                size: 10,
                ecn: false,
            }),
            ..vionet_frame::header::Request::default()
        },
        ..RxHeader::default()
    };
    let on = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    let arrives = |bench: &mut Bench| {
        bench.post(2048);
        bench.deliver(&to(MAC), tso);
        let _step = bench.step();
        !bench.rx.collect().is_empty()
    };
    assert!(arrives(&mut bench), "NET-OFF-02");
    assert_eq!(bench.command(&on(1 << 1), 0).0, OK);
    let settings = bench.adapted.last().expect("the endpoint is told");
    assert_eq!(settings.receive, Offloads::CSUM);
    assert!(!arrives(&mut bench), "NET-OFF-03, NET-RX-07");
    assert_eq!(bench.drops(true, DropReason::NotAgreed), 1);
    assert_eq!(bench.command(&on(1 << 1 | 1 << 8), 0).0, ERR, "NET-OFF-05: TSO6 was not agreed");
    assert_eq!(bench.command(&on(1 << 40), 0).0, ERR);
    assert_eq!(bench.command(&on(1 << 1 | 1 << 7), 0).0, OK, "NET-OFF-01");
    assert!(arrives(&mut bench));
}

#[test]
fn tunnel_offloads_are_switched_by_bits_of_their_own() {
    let features = [
        Feature::CTRL_VQ,
        Feature::CTRL_GUEST_OFFLOADS,
        Feature::GUEST_CSUM,
        Feature::GUEST_TSO4,
        Feature::GUEST_TSO6,
        Feature::GUEST_USO4,
        Feature::GUEST_USO6,
        Feature::GUEST_UDP_TUNNEL_GSO,
        Feature::GUEST_UDP_TUNNEL_GSO_CSUM,
    ];
    let mut bench = started(&features);
    let mut on = |bits: u64| bench.command(&[&[5, 0][..], &bits.to_le_bytes()].concat(), 0).0;
    assert_eq!(on(1 << 46), OK, "NET-OFF-04");
    assert_eq!(on(1 << 1 | 1 << 47), OK, "NET-OFF-04");
    assert_eq!(on(1 << 48), ERR);
    let set: Vec<Offloads> = bench.adapted.iter().map(|settings| settings.receive).collect();
    assert_eq!(set, [Offloads::TUNNEL, Offloads::CSUM | Offloads::TUNNEL_CSUM]);
}

/// So Linux does since it takes the feature; refused, it could not switch any.
#[test]
fn exact_header_lengths_may_be_listed_among_the_offloads() {
    let with = [&[Feature::GUEST_HDRLEN][..], ALL].concat();
    let on = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    let mut bench = started(&with);
    assert_eq!(bench.command(&on(1 << 1 | 1 << 59), 0).0, OK);
    assert_eq!(bench.adapted.last().expect("the endpoint is told").receive, Offloads::CSUM);
    let mut without = started(ALL);
    assert_eq!(without.command(&on(1 << 1 | 1 << 59), 0).0, ERR, "NET-OFF-05");
}

#[test]
fn a_driver_that_has_switched_checksums_off_is_told_of_none() {
    let mut bench = started(ALL);
    let validated = RxHeader { validated: true, ..RxHeader::default() };
    let flags = |bench: &mut Bench| {
        let at = bench.post(2048);
        bench.deliver(&to(MAC), validated);
        let _step = bench.step();
        let used = bench.rx.collect();
        bench.received(at, used[0].len).0.flags
    };
    assert_eq!(flags(&mut bench), 2, "DATA_VALID");
    // TSO alone: without the checksum it has no use, and none of its frames comes.
    assert_eq!(bench.command(&[&[5, 0][..], &(1_u64 << 7).to_le_bytes()].concat(), 0).0, OK);
    assert_eq!(flags(&mut bench), 0, "NET-OFF-03, NET-RX-05");
}

#[test]
fn the_driver_is_asked_to_announce_itself_until_it_says_that_it_has() {
    let mut bench = started(ALL);
    let status = |bench: &Bench| bench.nic.config_space()[6];
    assert_eq!(status(&bench), 1);
    bench.apply(Op::Announce(MAC)).unwrap();
    assert_eq!((status(&bench), bench.config_changes), (3, 1), "NET-CTRL-ANN-02");
    assert_eq!(bench.other_bells[1].rung(), 1, "INIT-06");
    assert!(bench.sent().is_empty());
    assert_eq!(bench.command(&[3, 0], 0).0, OK);
    assert_eq!(status(&bench), 1, "NET-CTRL-ANN-01");
    assert_eq!(bench.command(&[3, 0], 0).0, OK, "NET-CTRL-ANN-03: once more is harmless");
    assert_eq!(bench.command(&[3, 0, 0], 0).0, ERR);
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced_by_a_rarp() {
    let mut bench = Bench::new(&[], EVERYTHING);
    bench.apply(Op::Announce(OTHER)).unwrap();
    let sent = bench.sent();
    assert_eq!((sent.len(), sent[0].len()), (1, 60), "VU-MSG-06");
    assert_eq!(
        (&sent[0][..6], &sent[0][6..12], &sent[0][12..14]),
        (&BROADCAST[..], &OTHER[..], &[0x80, 0x35][..])
    );
    assert_eq!(bench.stats().tx.frames(), 0, "it is not the guest's");
}

#[test]
fn while_the_link_is_down_nothing_moves_and_the_driver_knows() {
    let mut bench = started(ALL);
    bench.apply(Op::SetLink(false)).unwrap();
    assert_eq!((bench.nic.config_space()[6], bench.config_changes), (0, 1));
    bench.apply(Op::SetLink(false)).unwrap();
    assert_eq!(bench.config_changes, 1, "nothing has changed");
    assert!(!gets(&mut bench, &to(MAC)));
    bench.send(&vionet_frame::header::NetHeader::default(), &to(OTHER), &[]);
    let _step = bench.step();
    assert_eq!(bench.used_tx().len(), 1);
    assert_eq!(bench.drops(false, DropReason::LinkDown), 1);
    bench.apply(Op::SetLink(true)).unwrap();
    assert_eq!(bench.nic.config_space()[6], 1);
    let _step = bench.step();
    assert_eq!(bench.rx.collect().len(), 1, "what waited at the host arrives");
}

#[test]
fn interrupts_come_for_several_frames_together_or_after_the_time() {
    let mut bench = started(ALL);
    let at = |bench: &mut Bench, micros: u64| bench.now = Instant::from_nanos(micros * 1000);
    let set = |class: u8, packets: u32, usecs: u32| {
        [&[6, class][..], &packets.to_le_bytes(), &usecs.to_le_bytes()].concat()
    };
    let _step = bench.step();
    let rung = bench.bells[0].rung();
    assert_eq!(bench.command(&set(1, 3, 100), 0).0, OK);
    at(&mut bench, 1000);
    assert!(gets(&mut bench, &to(MAC)));
    at(&mut bench, 1010);
    assert!(gets(&mut bench, &to(MAC)));
    assert_eq!(bench.bells[0].rung(), rung, "NET-COAL-10: two of three, and the time is not over");
    assert!(gets(&mut bench, &to(MAC)));
    assert_eq!(bench.bells[0].rung(), rung + 1, "three");
    assert!(gets(&mut bench, &to(MAC)));
    at(&mut bench, 1110);
    let _step = bench.step();
    assert_eq!(bench.bells[0].rung(), rung + 2, "the time is over");
    assert_eq!(bench.command(&set(1, 0, 100), 0).0, OK);
    assert!(gets(&mut bench, &to(MAC)));
    assert_eq!(bench.bells[0].rung(), rung + 3, "NET-COAL-11");
}

#[test]
fn a_pair_that_waits_for_a_late_interrupt_says_until_when() {
    let mut bench = started(ALL);
    assert_eq!(bench.command(&[6, 1, 9, 0, 0, 0, 50, 0, 0, 0], 0).0, OK);
    bench.now = Instant::from_nanos(7_000);
    bench.post(2048);
    bench.deliver(&to(MAC), RxHeader::default());
    let mut step = bench.step();
    while step.next == vionet::Next::Again {
        step = bench.step();
    }
    let vionet::Next::Wait(watch) = step.next else { panic!("nothing more to do") };
    assert_eq!(watch.deadline, Some(Instant::from_nanos(57_000)));
}

#[test]
fn delays_of_one_queue_are_told() {
    let mut bench = started(ALL);
    let of = |index: u16| [6, 3, index as u8, (index >> 8) as u8, 0, 0];
    assert_eq!(bench.command(&[6, 1, 7, 0, 0, 0, 8, 0, 0, 0], 0).0, OK);
    assert_eq!(bench.command(&of(0), 8), (OK, vec![7, 0, 0, 0, 8, 0, 0, 0]), "NET-COAL-14");
    assert_eq!(bench.command(&of(1), 8), (OK, vec![0; 8]));
    // The reserved bytes hold something (NET-COAL-01).
    assert_eq!(bench.command(&[6, 2, 0, 0, 1, 1, 2, 0, 0, 0, 3, 0, 0, 0], 0).0, OK);
    assert_eq!(bench.command(&of(0), 8).1, [2, 0, 0, 0, 3, 0, 0, 0], "NET-COAL-12");
    assert_eq!(bench.command(&of(0)[..4], 8).0, OK, "some drivers leave the reserved bytes out");
    for index in [2, 3, 999] {
        assert_eq!(bench.command(&of(index), 8).0, ERR, "NET-COAL-04: {index}");
        let set = [&[6, 2][..], &index.to_le_bytes(), &[0; 2], &[1; 8]].concat();
        assert_eq!(bench.command(&set, 0).0, ERR, "NET-COAL-03, -04: {index}");
    }
    bench.apply(Op::EnableQueue(RX, false)).unwrap();
    assert_eq!(bench.command(&of(0), 8).0, ERR, "NET-COAL-04");
    bench.apply(Op::Reset).unwrap();
    bench.apply(Op::Negotiate(Bench::bits(ALL))).unwrap();
    assert_eq!(bench.nic.active_pairs(), 1);
    restart(&mut bench);
    for index in [0, 1] {
        assert_eq!(bench.command(&of(index), 8), (OK, vec![0; 8]), "NET-COAL-09");
    }
}

#[test]
fn delays_of_one_queue_end_with_its_life_and_not_with_a_pause() {
    const ALL_RX: [u8; 8] = [7, 0, 0, 0, 8, 0, 0, 0];
    const ALL_TX: [u8; 8] = [5, 0, 0, 0, 6, 0, 0, 0];
    const OWN: [u8; 8] = [1, 0, 0, 0, 3, 0, 0, 0];
    let mut bench = started(ALL);
    assert_eq!(bench.command(&[&[6, 1][..], &ALL_RX].concat(), 0).0, OK);
    assert_eq!(bench.command(&[&[6, 0][..], &ALL_TX].concat(), 0).0, OK);
    let set = |bench: &mut Bench, index: QueueIndex| {
        let command = [&[6, 2, index.0 as u8, 0, 0, 0][..], &OWN].concat();
        assert_eq!(bench.command(&command, 0).0, OK);
    };
    let told =
        |bench: &mut Bench, index: QueueIndex| bench.command(&[6, 3, index.0 as u8, 0, 0, 0], 8);
    let start = |bench: &mut Bench, index: QueueIndex, cursor: Cursor| {
        let ring = if index == RX { &bench.rx } else { &bench.tx };
        bench.apply(Op::StartQueue { index, setup: ring.setup(), cursor }).unwrap();
    };
    set(&mut bench, RX);
    set(&mut bench, TX);
    // Paused before anything has moved, and after.
    for round in 0..2 {
        for index in [RX, TX] {
            bench.apply(Op::StopQueue(index)).unwrap();
            assert_eq!(told(&mut bench, index), (OK, OWN.to_vec()), "while it rests");
            let here = bench.nic.cursor(index).unwrap();
            assert_eq!(here == Cursor::default(), round == 0);
            start(&mut bench, index, here);
            assert_eq!(told(&mut bench, index), (OK, OWN.to_vec()), "goes on at {here:?}");
        }
        assert!(gets(&mut bench, &to(MAC)), "and its frames are delivered");
        bench.send(&NetHeader::default(), &to(OTHER), &[]);
        assert!(bench.step().worked);
    }
    // A front-end stops a ring and begins it anew: there is no message for its reset.
    for (index, all, row) in [(RX, ALL_RX, "NET-COAL-06"), (TX, ALL_TX, "NET-COAL-05")] {
        bench.apply(Op::StopQueue(index)).unwrap();
        start(&mut bench, index, Cursor::default());
        assert_eq!(told(&mut bench, index), (OK, all.to_vec()), "{row}");
        set(&mut bench, index);
        // A driver resets it, though nothing has moved.
        bench.apply(Op::StopQueue(index)).unwrap();
        bench.apply(Op::EnableQueue(index, false)).unwrap();
        assert_eq!(bench.nic.cursor(index), None);
        assert_eq!(told(&mut bench, index).0, ERR, "NET-COAL-04: it is disabled");
        bench.apply(Op::EnableQueue(index, true)).unwrap();
        start(&mut bench, index, Cursor::default());
        assert_eq!(told(&mut bench, index), (OK, all.to_vec()), "{row}");
    }
}

#[test]
fn a_driver_has_nothing_of_the_one_before_though_nobody_has_told_of_a_reset() {
    let mut bench = started(ALL);
    assert_eq!(bench.command(&[1, 1, 2, 0, 0, 0, 0, 9], 0).0, OK, "another address");
    assert_eq!(bench.command(&[0, 0, 1], 0).0, OK, "promiscuous");
    assert_eq!(bench.command(&[6, 1, 7, 0, 0, 0, 8, 0, 0, 0], 0).0, OK, "delays");
    let of_rx = [6, 3, 0, 0, 0, 0];
    // A front-end pauses the machine, and says what it said before.
    bench.apply(Op::StopQueue(CONTROL)).unwrap();
    bench.apply(Op::Negotiate(Bench::bits(ALL))).unwrap();
    let (setup, cursor) = (bench.control.setup(), bench.nic.cursor(CONTROL).unwrap());
    bench.apply(Op::StartQueue { index: CONTROL, setup, cursor }).unwrap();
    assert!(gets(&mut bench, &to(OTHER)), "it is the same driver");
    assert_eq!(bench.command(&of_rx, 8).1, [7, 0, 0, 0, 8, 0, 0, 0]);
    // The machine reboots, of which the front-end has no message: its rings begin again.
    for index in [RX, TX, CONTROL] {
        bench.apply(Op::StopQueue(index)).unwrap();
    }
    bench.apply(Op::Negotiate(Bench::bits(ALL))).unwrap();
    let shown = bench.nic.config_space();
    restart(&mut bench);
    assert!(!gets(&mut bench, &to(OTHER)), "the filter is that of a new driver");
    assert!(gets(&mut bench, &to([2, 0, 0, 0, 0, 9])), "with the address that it was shown");
    assert_eq!(bench.command(&of_rx, 8), (OK, vec![0; 8]));
    assert_eq!(bench.nic.config_space(), shown, "it has read it before");
}

/// A driver that comes after a reset, its rings as new.
fn restart(bench: &mut Bench) {
    let ring = |at| SplitDriver::new(&bench.ram, at, 64, false, 0);
    [bench.rx, bench.tx, bench.control] = [0x1_0000, 0x2_0000, 0x3_0000].map(ring);
    bench.start_queues();
    bench.start_control();
}

#[test]
fn an_interrupt_that_the_driver_has_switched_off_does_not_come_when_it_is_due() {
    let mut bench = started(ALL);
    assert_eq!(bench.command(&[6, 1, 2, 0, 0, 0, 100, 0, 0, 0], 0).0, OK);
    let _step = bench.step();
    let rung = bench.bells[0].rung();
    bench.rx.ignore();
    for _ in 0..4 {
        assert!(gets(&mut bench, &to(MAC)));
    }
    assert_eq!(bench.bells[0].rung(), rung, "NET-COAL-08");
}

#[test]
fn commands_that_waited_before_the_queue_ran_are_not_lost() {
    let mut bench = Bench::new(ALL, EVERYTHING);
    let at = bench.allocate(16);
    bench.ram.write(at, &[3, 0]);
    let buffers = [Buffer::readable(at, 2), Buffer::writable(at + 8, 1)];
    bench.control.post(&buffers, Arrangement::Direct).unwrap();
    bench.control.expose();
    // A kick that comes too early.
    bench.apply(Op::Commands).unwrap();
    assert!(bench.control.collect().is_empty(), "INIT-04");
    bench.start_control();
    assert!(bench.nic.has_commands(), "INIT-05: the embedder is told to look");
    bench.apply(Op::Commands).unwrap();
    assert_eq!(bench.control.collect().len(), 1, "INIT-04, INIT-05");
    assert_eq!(bench.ram.read(at + 8, 1), [OK]);
}

/// The RSS_CONFIG, or HASH_CONFIG, of one entry: TCP over IPv4, by the published vectors' key.
fn hash_config(command: u8) -> Vec<u8> {
    let key = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    // hash types, mask and unclassified and table (or reserved), transmit queues, length of key
    let queues: &[u8] = if command == 1 { &[0, 0, 0, 0, 0, 0, 1, 0] } else { &[0; 8] };
    [&[4, command, 2, 0, 0, 0], queues, &[40], &key].concat()
}

/// A segment of TCP from 66.9.149.187:2794 to 161.142.100.80:1766.
fn segment() -> Vec<u8> {
    let mut frame = to(MAC);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 6]);
    frame[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
    frame[34..38].copy_from_slice(&[0x0a, 0xea, 0x06, 0xe6]);
    frame
}

#[test]
fn the_hash_of_a_frame_is_told_behind_its_header() {
    for (features, command) in [(&[Feature::RSS][..], 1), (&[][..], 2)] {
        let features = [ALL, &[Feature::HASH_REPORT], features].concat();
        let mut bench = started(&features);
        let told = |bench: &mut Bench| {
            let at = bench.post(2048);
            bench.deliver(&segment(), RxHeader::default());
            let _step = bench.step();
            let used = bench.rx.collect();
            assert_eq!(used[0].len, 60 + 20, "NET-HDR-02");
            assert_eq!(bench.ram.read(at + 20, 60), segment());
            bench.ram.read(at + 12, 8)
        };
        assert_eq!(told(&mut bench), [0; 8], "NET-CTRL-HASH-02, NET-HASH-11");
        assert_eq!(bench.command(&hash_config(command), 0).0, OK, "NET-HASH-04, -05");
        assert_eq!(told(&mut bench), [0x78, 0xc1, 0xcc, 0x51, 2, 0, 0, 0], "NET-HASH-06, -11");
    }
}

/// The segment in a GRE tunnel from 1.1.1.1 to 2.2.2.2.
fn tunnelled() -> Vec<u8> {
    let inner = segment()[14..].to_vec();
    let mut frame = to(MAC)[..14].to_vec();
    frame.extend([0x45, 0, 0, 70, 0, 0, 0, 0, 64, 47, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]);
    frame.extend([0, 0, 8, 0]);
    frame.extend(inner);
    frame
}

#[test]
fn inner_headers_are_hashed_while_the_driver_wants_it() {
    let features = [ALL, &[Feature::HASH_REPORT, Feature::HASH_TUNNEL]].concat();
    let mut bench = started(&features);
    let inner = [0x78, 0xc1, 0xcc, 0x51, 2, 0, 0, 0];
    let told = |bench: &mut Bench| {
        let at = bench.post(2048);
        bench.deliver(&tunnelled(), RxHeader::default());
        let _step = bench.step();
        assert_eq!(bench.rx.collect().len(), 1);
        bench.ram.read(at + 12, 8)
    };
    let set = |bench: &mut Bench, bits: u32| {
        bench.command(&[&[7, 0][..], &bits.to_le_bytes()].concat(), 0).0
    };
    assert_eq!(bench.command(&hash_config(2), 0).0, OK);
    assert_eq!(told(&mut bench), [0; 8], "NET-IHH-06");
    assert_eq!(set(&mut bench, TUNNEL_VXLAN), OK);
    assert_eq!(told(&mut bench), [0; 8], "NET-IHH-01");
    assert_eq!(set(&mut bench, TUNNEL_GRE_2784), OK);
    assert_eq!(told(&mut bench), inner, "NET-IHH-05");
    assert_eq!(set(&mut bench, 1 << 9), ERR, "NET-IHH-02");
    assert_eq!(told(&mut bench), inner);
    assert_eq!(set(&mut bench, 0), OK);
    assert_eq!(told(&mut bench), [0; 8], "NET-IHH-03");
    assert_eq!(set(&mut bench, TUNNEL_GRE_2784), OK);
    bench.apply(Op::Reset).unwrap();
    bench.apply(Op::Negotiate(Bench::bits(&features))).unwrap();
    restart(&mut bench);
    assert_eq!(bench.command(&hash_config(2), 0).0, OK);
    assert_eq!(told(&mut bench), [0; 8], "NET-IHH-04");
}

#[test]
fn a_header_of_another_length_is_read_and_written_whole() {
    let mut bench = started(&[ALL, &[Feature::HASH_REPORT]].concat());
    let mut sent = vec![0; 20];
    sent.extend(to(OTHER));
    bench.send_raw(&sent, &[7, 9, 30]);
    bench.send_raw(&sent[..19], &[]);
    let _step = bench.step();
    assert_eq!(bench.sent(), [to(OTHER)]);
    assert_eq!(bench.used_tx().len(), 2);
}

#[test]
fn statistics_are_told_for_what_was_asked_or_not_at_all() {
    let mut bench = started(ALL);
    let (ack, types) = bench.command(&[8, 0], 8);
    let types = u64::from_le_bytes(types.try_into().unwrap());
    assert_eq!((ack, types), (OK, 1 << 32 | 0b1011 << 16 | 0b1111), "NET-STAT-01, -06");
    assert!(gets(&mut bench, &to(MAC)));
    let entry =
        |queue: u16, types: u64| [&queue.to_le_bytes()[..], &[0; 6], &types.to_le_bytes()].concat();
    let get = |entries: &[Vec<u8>]| [vec![8, 1], entries.concat()].concat();
    let (ack, reply) = bench.command(&get(&[entry(0, 0b11), entry(2, 1 << 32)]), 200);
    assert_eq!((ack, reply.len()), (OK, 56 + 40 + 24), "NET-STAT-07, -10");
    assert_eq!(reply[..8], [0, 0, 0, 0, 0, 0, 56, 0]);
    assert_eq!((reply[16], reply[24]), (1, 60), "packets, bytes");
    assert_eq!(reply[56..64], [1, 0, 0, 0, 0, 0, 40, 0]);
    let checksums = reply[64..96].as_chunks::<8>().0.iter().map(|le| u64::from_le_bytes(*le));
    assert_eq!(checksums.collect::<Vec<_>>(), [0, 0, 1, 0], "valid, open, none, bad");
    assert_eq!(reply[96..104], [32, 0, 2, 0, 0, 0, 24, 0]);
    assert_eq!((reply[104], reply[112]), (2, 2), "NET-STAT-11: with this command");
    let bad = [
        (entry(3, 1), "NET-STAT-03"),
        (entry(u16::MAX, 1), "NET-STAT-03"),
        (entry(0, 1 << 63), "NET-STAT-04"),
        (entry(0, 1 | 1 << 4), "NET-STAT-04, -12"),
        (entry(0, 1 << 16), "NET-STAT-05"),
        (entry(1, 1), "NET-STAT-05"),
        (entry(2, 1), "NET-STAT-05"),
        // No feature of cutting for the guest was negotiated.
        (entry(1, 1 << 18), "NET-STAT-06"),
    ];
    for (wrong, row) in bad {
        let both = get(&[entry(0, 1), wrong]);
        assert_eq!(bench.command(&both, 200), (ERR, vec![]), "NET-STAT-02, {row}");
    }
    assert_eq!(bench.command(&get(&[entry(0, 1)])[..17], 200).0, ERR);
    let (ack, reply) = bench.command(&get(&[entry(0, 1)]), 10);
    assert_eq!((ack, reply.len()), (OK, 10), "NET-STAT-08");
}

#[test]
fn a_command_may_be_cut_anywhere_and_so_may_its_answer() {
    let mut bench = started(ALL);
    for at in 1..10 {
        let command = [6, 1, at, 0, 0, 0, 9, 0, 0, 0];
        let cuts = [usize::from(at), 1];
        assert_eq!(bench.command_cut(&command, &cuts, 0, &[]).0, OK, "NET-CTRL-05: {at}");
        let answer = bench.command_cut(&[6, 3, 0, 0, 0, 0], &[], 8, &[1, usize::from(at % 8), 1]);
        assert_eq!(answer, (OK, vec![at, 0, 0, 0, 9, 0, 0, 0]));
    }
}

#[test]
fn what_was_not_negotiated_is_not_known() {
    let mut bench = started(&[Feature::CTRL_VQ]);
    let commands: &[&[u8]] = &[
        &[0, 0, 1],
        &[0, 2, 1],
        &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 0, 1, 0],
        &hash_config(1),
        &hash_config(2),
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[6, 3, 0, 0, 0, 0],
        &[7, 0, 0, 0, 0, 0],
        &[8, 0],
        &[9, 0],
        &[77, 1],
    ];
    for command in commands {
        assert_eq!(bench.command(command, 16), (ERR, vec![]), "NET-CTRL-02: {command:?}");
    }
    let stats = bench.nic.control_stats();
    assert_eq!((stats.commands.value(), stats.obeyed.value()), (16, 0));
    assert_eq!(bench.nic.mac(), MAC);
    assert!(gets(&mut bench, &to(OTHER)), "nothing is filtered");
}

#[test]
fn a_command_is_known_by_its_own_feature_and_by_no_other() {
    let mac = [2, 0, 0, 0, 0, 9];
    let hash = hash_config(2);
    let address = [&[1, 1][..], &mac].concat();
    let commands: &[(Feature, &[u8])] = &[
        (Feature::CTRL_RX, &[0, 0, 1]),
        (Feature::CTRL_RX, &[0, 1, 1]),
        (Feature::CTRL_RX, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Feature::CTRL_RX_EXTRA, &[0, 2, 1]),
        (Feature::CTRL_RX_EXTRA, &[0, 5, 1]),
        (Feature::CTRL_MAC_ADDR, &address),
        (Feature::CTRL_VLAN, &[2, 0, 1, 0]),
        (Feature::CTRL_VLAN, &[2, 1, 1, 0]),
        (Feature::GUEST_ANNOUNCE, &[3, 0]),
        (Feature::HASH_REPORT, &hash),
        (Feature::CTRL_GUEST_OFFLOADS, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Feature::NOTF_COAL, &[6, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Feature::NOTF_COAL, &[6, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (Feature::VQ_NOTF_COAL, &[6, 2, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
        (Feature::VQ_NOTF_COAL, &[6, 3, 0, 0, 0, 0]),
        (Feature::DEVICE_STATS, &[8, 0]),
    ];
    for (one, _) in commands {
        let mut bench = started(&[Feature::CTRL_VQ, Feature::STATUS, *one]);
        for (needs, command) in commands {
            let wanted = if needs == one { OK } else { ERR };
            let what = format!("{command:?} with {one:?} alone");
            assert_eq!(bench.command(command, 16).0, wanted, "NET-CTRL-02: {what}");
        }
    }
}

#[test]
fn an_address_that_is_locked_cannot_be_set() {
    let config = vionet::NicConfig { mac_may_change: false, ..vionet::NicConfig::default() };
    let nic = vionet::Nic::new(
        config,
        vionet::endpoint::Capabilities {
            transmit: EVERYTHING,
            receive: EVERYTHING,
            pairs_max: 1,
            mtu: 1500,
        },
    );
    assert!(!nic.offer().has(Feature::CTRL_MAC_ADDR));
}

#[test]
fn odd_chains_harm_nobody() {
    let mut bench = started(ALL);
    let at = bench.allocate(64);
    let post = |bench: &mut Bench, buffers: &[Buffer]| {
        bench.control.post(buffers, Arrangement::Direct).unwrap();
        bench.control.expose();
        bench.apply(Op::Commands).unwrap();
        bench.control.collect()
    };
    // No room for the acknowledgement; no command at all; half a command (NET-CTRL-06).
    assert_eq!(post(&mut bench, &[Buffer::readable(at, 3)])[0].len, 0);
    assert_eq!(post(&mut bench, &[Buffer::writable(at, 3)])[0].len, 1);
    assert_eq!(bench.ram.read(at, 1), [ERR]);
    assert_eq!(post(&mut bench, &[Buffer::readable(at, 1), Buffer::writable(at, 1)])[0].len, 1);
    // Longer than any command.
    let long = [Buffer::readable(at, 0x10_0000), Buffer::writable(at, 1)];
    assert_eq!(post(&mut bench, &long)[0].len, 1);
    assert!(bench.control_faults.is_empty());
    // What is to be read behind what is to be written (SPL-05).
    let mixed = [Buffer::writable(at, 8), Buffer::readable(at, 8)];
    assert!(post(&mut bench, &mixed).is_empty());
    let fault = bench.control_faults[0];
    assert_eq!((fault.queue, fault.fault), (CONTROL, Fault::ReadableAfterWritable));
    bench.apply(Op::Commands).unwrap();
    assert_eq!(bench.control_faults.len(), 1, "it is told once");
    assert!(gets(&mut bench, &to(MAC)), "the other queues go on");
}

#[test]
fn many_commands_are_obeyed_a_bounded_number_at_a_time() {
    let mut bench = started(ALL);
    let at = bench.allocate(64);
    bench.ram.write(at, &[3, 0]);
    for _ in 0..16 {
        let answer = Buffer::writable(at + 8, 1);
        bench.control.post(&[Buffer::readable(at, 2), answer], Arrangement::Direct).unwrap();
    }
    bench.control.expose();
    bench.apply(Op::Commands).unwrap();
    assert_eq!(bench.control.collect().len(), 16);
    assert!(!bench.nic.has_commands());
}

#[test]
fn a_control_queue_goes_on_where_it_stopped() {
    let mut bench = started(ALL);
    assert_eq!(bench.command(&[3, 0], 0).0, OK);
    bench.apply(Op::StopQueue(CONTROL)).unwrap();
    let cursor = bench.nic.cursor(CONTROL).unwrap();
    assert_eq!((cursor.avail, cursor.used), (1, 1));
    let (index, setup) = (CONTROL, bench.control.setup());
    bench.apply(Op::StartQueue { index, setup, cursor }).unwrap();
    assert_eq!(bench.command(&[3, 0], 0).0, OK);
    assert_eq!(bench.other_bells[0].rung(), 2, "an interrupt for each");
    bench.apply(Op::EnableQueue(TX, true)).unwrap();
}

proptest! {
    #[test]
    fn whatever_is_commanded_is_answered_and_a_refusal_changes_nothing(
        class in 0..10_u8,
        command in 0..6_u8,
        data in prop::collection::vec(any::<u8>(), 0..40),
        room in 0..40_usize,
    ) {
        let mut bench = started(ALL);
        let before = (bench.nic.config_space(), bench.nic.active_pairs());
        let (ack, result) = bench.command(&[&[class, command][..], &data].concat(), room);
        prop_assert!(ack == OK || ack == ERR);
        if ack == ERR {
            prop_assert!(result.is_empty());
            prop_assert_eq!((bench.nic.config_space(), bench.nic.active_pairs()), before);
            prop_assert!(bench.adapted.is_empty());
        }
        let _step = bench.step();
        prop_assert!(bench.command(&[3, 0], 0).0 == OK, "the next one is heard");
    }
}
