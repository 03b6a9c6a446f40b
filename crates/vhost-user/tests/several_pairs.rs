//! A device of two queue pairs, and front-ends that serve the control queue themselves or do not.
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

use bench::guest::{GUEST, Guest, SIZE, USER};
use bench::{Back, F_MRG_RXBUF, F_PROTOCOL, F_VERSION_1, FrontEnd, REPLY_ACK, state};
use vionet_raw::{Descriptor, GuestAddr};

const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const MQ: u64 = 1 << 22;
const CONTROL: usize = 4;
/// The class and command of VQ_PAIRS_SET, with its data.
const SET_TWO: [u8; 4] = [4, 0, 2, 0];

/// What Cloud Hypervisor sends when a driver has settled its features (`setup_vhost_user` in its
/// `virtio-devices/src/vhost_user/vu_common_ctrl.rs`), every message with a wish for an answer:
/// SET_FEATURES, SET_MEM_TABLE, the size of every ring, then each ring's addresses, base, call and
/// kick, and when all are told, that each is enabled.
///
/// Of its features (`vhost_user/net.rs`) only MAC is left out, so CTRL_VQ and MQ come along if the
/// driver took them, MQ also where there is one pair. But the control queue is taken out of the
/// rings before: a thread of the VMM serves it, and answers VQ_PAIRS_SET without telling anybody.
fn cloud_hypervisor_starts(front: &FrontEnd, guest: &Guest, rings: usize) {
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | CTRL_VQ | MQ);
    front.tell_with(5, &guest.table(), &[guest.fd()]);
    let rings = &guest.rings[..rings];
    for ring in rings {
        front.tell_state(8, ring.index, u32::from(SIZE));
    }
    for ring in rings {
        front.tell(9, &ring.addresses(USER));
        front.tell_state(10, ring.index, 0);
        front.tell_with(13, &ring.number(), &[ring.call.as_fd()]);
        front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
    }
    for ring in rings {
        front.tell_state(18, ring.index, 1);
    }
}

fn connected() -> (Back, FrontEnd, Guest) {
    let (back, mut front) = Back::pair_with(2);
    front.tell(3, &[]);
    assert_eq!(front.ask_number(1) & (CTRL_VQ | MQ), CTRL_VQ | MQ);
    front.tell_number(16, REPLY_ACK);
    front.asks = true;
    assert_eq!(front.ask_number(17), 5);
    (back, front, Guest::with_rings(5))
}

#[test]
fn all_pairs_receive_though_the_control_queue_was_agreed_on_and_never_comes() {
    let (_back, front, mut guest) = connected();
    for boot in 0..3 {
        cloud_hypervisor_starts(&front, &guest, 4);
        for pair in [0, 1, 1, 0] {
            guest.echo_on(pair, "to and fro");
        }
        // It resets a device (`reset_vhost_user`) ring by ring.
        for ring in 0..4 {
            front.tell_state(18, ring, 0);
            assert_eq!(front.base(ring), 2, "boot {boot}");
        }
        guest.reboot();
    }
}

#[test]
fn a_front_end_with_fewer_pairs_than_the_device_uses_those() {
    let (_back, front, mut guest) = connected();
    cloud_hypervisor_starts(&front, &guest, 2);
    guest.echo("the one pair");
}

/// Starts the control ring, as the last.
fn start_control(front: &FrontEnd, guest: &Guest) {
    guest.start_ring(front, CONTROL, 0);
    front.tell_state(18, CONTROL as u32, 1);
}

/// The driver commands; the answer comes with the ring's interrupt.
fn command(guest: &mut Guest, bytes: &[u8]) -> u8 {
    let at = GUEST + guest.rings[CONTROL].at() + 0x4000;
    guest.write(at, bytes);
    guest.write(at + 0x100, &[0xee]);
    let base = GuestAddr(GUEST + guest.rings[CONTROL].at());
    let table = guest.space.ring::<Descriptor>(base, SIZE).unwrap();
    let answer = Descriptor { addr: at + 0x100, len: 1, flags: 2, next: 0 };
    table.store(SIZE - 1, answer);
    // Few commands: the last descriptor is not one that is posted first.
    guest.post_before(CONTROL, at, bytes.len() as u32, 1, SIZE - 1);
    guest.kick(CONTROL);
    guest.settle(CONTROL);
    let mut ack = [0];
    assert!(guest.space.read(GuestAddr(at + 0x100), &mut ack));
    ack[0]
}

/// NET-CTRL-MQ-05: where the control ring comes to us, the driver's commands are what counts, from
/// its start on and whatever comes after.
#[test]
fn one_pair_receives_once_the_control_queue_has_come_until_the_driver_says_more() {
    let (_back, front, mut guest) = connected();
    cloud_hypervisor_starts(&front, &guest, 4);
    start_control(&front, &guest);
    guest.post_room_on(1);
    guest.kick(2);
    guest.transmit_on(1, &[0xff; 60], true);
    guest.settle(3);
    for round in ["once", "more", "and more"] {
        guest.echo(round);
        // Said again, it gives nothing away.
        front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | CTRL_VQ | MQ);
        front.tell_state(18, 2, 0);
        front.tell_state(18, 2, 1);
        assert_eq!(guest.used(2), 0, "NET-CTRL-MQ-05");
    }
    assert_eq!(command(&mut guest, &SET_TWO), 0);
    guest.settle(2);
    guest.echo_on(1, "the second pair");
    // A machine that is paused: its driver does not say it again.
    let base = front.base(CONTROL as u32);
    guest.echo_on(1, "without its control queue");
    guest.start_ring(&front, CONTROL, base);
    guest.echo_on(1, "and with it");
}

/// The driver's filter is not ours to know where its commands are obeyed elsewhere.
#[test]
fn nothing_is_filtered_before_the_control_queue_has_come() {
    let (_back, front, mut guest) = connected();
    cloud_hypervisor_starts(&front, &guest, 0);
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | CTRL_VQ | CTRL_RX);
    guest.start_rings(&front);
    front.tell_state(18, 0, 1);
    front.tell_state(18, 1, 1);
    let group: Vec<u8> = [1, 0, 0x5e, 0, 0, 5].into_iter().chain([0; 54]).collect();
    guest.post_room();
    guest.kick(0);
    guest.transmit(&group, true);
    guest.settle(0);
}

/// What QEMU 7.2 was seen to send for a NIC of several pairs, where regions are told one by one
/// (ADD_MEM_REG): each pair's part of it tells all of them. Later ones say it once.
#[test]
fn a_region_that_is_added_for_each_pair_is_there_once_and_stops_no_ring() {
    let (back, front, mut guest) = connected();
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | MQ);
    for pair in [0, 1] {
        assert_eq!(front.outcome(37, &guest.region(), &[guest.fd()]), Some(0));
        for ring in [2 * pair, 2 * pair + 1] {
            guest.start_ring(&front, ring, 0);
            assert_eq!(front.outcome(18, &state(ring as u32, 1), &[]), Some(0));
        }
        guest.echo_on(pair, "to and fro");
    }
    let started = back.texts().into_iter().filter(|text| text.contains("started"));
    assert_eq!(started.count(), 4, "none of them twice");
    // Another file at the same place is another region.
    let other = vionet_raw::host::mmap::memory_file("other", bench::guest::LEN).unwrap();
    assert_eq!(front.outcome(37, &guest.region(), &[other.as_fd()]), Some(1));
    assert_eq!(front.outcome(38, &guest.region(), &[]), Some(0));
    assert_eq!(front.outcome(38, &guest.region(), &[]), Some(0), "and taken away for each");
    let stray = [0_u64, GUEST, 0x1000, USER, 0].into_iter().flat_map(u64::to_ne_bytes);
    assert_eq!(front.outcome(38, &stray.collect::<Vec<_>>(), &[]), Some(0));
    assert_eq!(front.outcome(37, &guest.region(), &[guest.fd()]), Some(0));
    guest.echo_on(0, "it goes on");
    guest.echo_on(1, "it goes on");
}
