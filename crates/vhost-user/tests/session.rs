//! What a front-end may rely on, shown on the real server over a real socket.
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
use std::time::Duration;

use bench::guest::{GUEST, Guest, LEN, SIZE, USER, without_fd};
use bench::{
    Back, F_MRG_RXBUF, F_PROTOCOL, F_VERSION_1, FrontEnd, MAC, MTU, NEED_REPLY, REPLY_ACK,
    UNKNOWN_TO_THE_GUEST, event, heard, state, wait_readable,
};
use proptest::prelude::*;
use vionet_raw::host::mmap::memory_file;
use vionet_vhost_user::Event;

const F_GUEST_ANNOUNCE: u64 = 1 << 21;

fn started() -> (Back, FrontEnd, Guest) {
    let (back, mut front) = Back::pair();
    let guest = Guest::new();
    guest.start(&mut front);
    (back, front, guest)
}

/// VU-SEQ-01: what QEMU says when it connects. Returns the protocol features it has set.
fn qemu_connects(front: &mut FrontEnd, guest: &Guest) -> u64 {
    let features = front.ask_number(1);
    assert_ne!(features & F_PROTOCOL, 0, "VU-FEA-01");
    let protocol = front.ask_number(15);
    front.tell_number(16, protocol);
    assert_eq!(front.ask_number(17), 3, "VU-PIT-03: rings, not pairs; one is for control");
    assert_eq!(front.ask_number(36), 512);
    front.tell(3, &[]);
    assert_eq!(front.ask_number(1), features);
    for ring in &guest.rings {
        let masked = event();
        front.tell_with(13, &ring.number(), &[masked.as_fd()]);
        front.tell_with(14, &ring.number(), &[ring.err.as_fd()]);
    }
    protocol
}

/// VU-SEQ-02 and VU-SEQ-03: from reset to running rings.
fn qemu_starts(front: &FrontEnd, guest: &Guest) {
    let sync = |id, payload: &[u8]| assert_eq!(front.outcome(id, payload, &[]), Some(0));
    sync(20, &u64::from(MTU).to_ne_bytes());
    sync(18, &state(0, 1));
    sync(18, &state(1, 1));
    // The control queue is QEMU's own: its bit is left out, and what needs it is not.
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | F_GUEST_ANNOUNCE);
    let status = front.ask_number(40);
    front.tell_number(39, status | 8);
    assert_eq!(front.outcome(37, &guest.region(), &[guest.fd()]), Some(0));
    guest.start_rings(front);
    front.tell_number(39, 15);
    assert_eq!(front.ask_number(40), 15);
}

#[test]
fn qemus_guest_boots_resets_and_boots_again() {
    let (back, mut front) = Back::pair();
    let mut guest = Guest::new();
    let protocol = qemu_connects(&mut front, &guest);
    for bit in [0, 3, 4, 9, 13, 15, 16] {
        assert_ne!(protocol & 1 << bit, 0, "protocol feature {bit} is offered");
    }
    for bit in [7, 14, 17, 18, 21, 22] {
        assert_eq!(protocol & 1 << bit, 0, "VU-PIT-10: protocol feature {bit} is not");
    }
    for boot in 0..3 {
        qemu_starts(&front, &guest);
        guest.echo("hello");
        guest.echo("again");
        assert_eq!((front.base(0), front.base(1)), (2, 2), "VU-RNG-03, boot {boot}");
        front.tell_number(39, 0);
        // VU-SEQ-07; the memory table is not taken away, but the next boot brings it anew.
        front.tell(34, &[]);
        front.tell_state(18, 0, 1);
        front.tell_state(18, 1, 1);
        assert_eq!(front.outcome(38, &guest.region(), &[]), Some(0));
        guest.reboot();
    }
    drop(front);
    let texts = {
        let mut back = back;
        back.end().unwrap();
        back.texts()
    };
    assert_eq!(texts.iter().filter(|text| text.contains("started")).count(), 6);
}

/// Everything asks for an acknowledgement, also what has a reply of its own (VU-RPL-03).
#[test]
fn cloud_hypervisors_guest_starts_pauses_and_goes_on() {
    let (_back, mut front) = Back::pair();
    let mut guest = Guest::new();
    let features = front.ask_number(1);
    let protocol = front.ask_number(15);
    front.tell_number(16, protocol);
    front.asks = true;
    assert_eq!(front.ask_number(17), 3);
    front.tell(3, &[]);
    front.tell_number(2, features & !UNKNOWN_TO_THE_GUEST);
    front.tell_with(5, &guest.table(), &[guest.fd()]);
    let config = [0_u32, 12, 0].into_iter().flat_map(u32::to_ne_bytes).chain([0; 12]);
    let answer = front.ask(24, &config.collect::<Vec<u8>>());
    assert_eq!(answer.len(), 24, "VU-FRM-04");
    assert_eq!(answer[12..18], MAC);
    for pause in 0..3_u32 {
        for ring in &guest.rings {
            front.tell_state(8, ring.index, u32::from(SIZE));
        }
        for ring in &guest.rings {
            front.tell(9, &ring.addresses(USER));
            front.tell_state(10, ring.index, 2 * pause);
            front.tell_with(13, &ring.number(), &[ring.call.as_fd()]);
            front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
        }
        front.tell_state(18, 0, 1);
        front.tell_state(18, 1, 1);
        guest.echo("one");
        guest.echo("two");
        for ring in 0..2 {
            front.tell_state(18, ring, 0);
            assert_eq!(front.base(ring), 2 * pause + 2);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Features,
    Memory,
    Size(usize),
    Base(usize),
    Addresses(usize),
    Kick(usize),
    Call(usize),
    Enable(usize),
}

/// Rings that go on, not at 0: a start before the base is known would show.
const START: u32 = 65_534;

fn steps() -> Vec<Step> {
    let each = [Step::Size, Step::Base, Step::Addresses, Step::Kick, Step::Call, Step::Enable];
    let rings = each.iter().flat_map(|step| [step(0), step(1)]);
    [Step::Features, Step::Memory].into_iter().chain(rings).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// VU-MSG-03: whatever comes last, a ring that has everything runs.
    #[test]
    fn rings_run_in_whatever_order_they_are_told(order in Just(steps()).prop_shuffle()) {
        let (_back, mut front) = Back::pair();
        let mut guest = Guest::new();
        guest.reboot_at(START as u16);
        front.tell_number(16, REPLY_ACK);
        front.asks = true;
        for step in order {
            match step {
                Step::Features => front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL),
                Step::Memory => front.tell_with(5, &guest.table(), &[guest.fd()]),
                Step::Size(ring) => front.tell_state(8, ring as u32, u32::from(SIZE)),
                Step::Base(ring) => front.tell_state(10, ring as u32, START),
                Step::Addresses(ring) => front.tell(9, &guest.rings[ring].addresses(USER)),
                Step::Kick(at) => {
                    let ring = &guest.rings[at];
                    front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
                }
                Step::Call(at) => {
                    let ring = &guest.rings[at];
                    front.tell_with(13, &ring.number(), &[ring.call.as_fd()]);
                }
                Step::Enable(ring) => front.tell_state(18, ring as u32, 1),
            }
        }
        guest.echo("any order");
    }
}

#[test]
fn without_bit_30_every_ring_is_enabled() {
    let (_back, front) = Back::pair();
    let mut guest = Guest::new();
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF);
    front.tell_with(5, &guest.table(), &[guest.fd()]);
    guest.start_rings(&front);
    guest.echo("enabled");
}

#[test]
fn a_disabled_ring_drops_what_it_is_given_and_goes_on_when_enabled() {
    let (_back, front, mut guest) = started();
    front.tell_state(18, 1, 0);
    guest.transmit(&[0; 60], true);
    guest.settle(1);
    front.tell_state(18, 1, 1);
    guest.echo("the first one that arrives");
    assert_eq!(guest.used(0), 1, "VU-RNG-09: what came before was dropped");
}

#[test]
fn buffers_that_wait_are_taken_without_a_kick() {
    let (_back, mut front) = Back::pair();
    let mut guest = Guest::new();
    guest.transmit(&[7; 60], false);
    guest.post_room();
    guest.start(&mut front);
    guest.settle(1);
    guest.settle(0);
}

#[test]
fn a_ring_without_a_kick_descriptor_is_polled() {
    let (_back, front, mut guest) = started();
    for ring in 0..2 {
        front.base(ring);
        front.tell_with(13, &u64::from(ring).to_ne_bytes(), &[guest.rings[0].call.as_fd()]);
        front.tell(12, &without_fd(ring));
    }
    for round in 1..4 {
        guest.post_room();
        guest.transmit(&[7; 60], false);
        while guest.used(1) < round || guest.used(0) < round {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_new_call_descriptor_is_signalled_once_and_the_old_one_left() {
    let (_back, front, mut guest) = started();
    guest.echo("before");
    let old = std::mem::replace(&mut guest.rings[0].call, event());
    heard(&old);
    front.tell_with(13, &guest.rings[0].number(), &[guest.rings[0].call.as_fd()]);
    assert!(wait_readable(&guest.rings[0].call), "VU-MSG-05");
    assert_eq!(heard(&guest.rings[0].call), 1);
    guest.echo("after");
    assert_eq!(heard(&old), 0);
}

#[test]
fn a_second_kick_descriptor_replaces_the_first() {
    let (_back, front, mut guest) = started();
    guest.rings[1].kick = event();
    front.tell_with(12, &guest.rings[1].number(), &[guest.rings[1].kick.as_fd()]);
    guest.echo("by the new one");
}

#[test]
fn memory_changes_under_running_rings_without_losing_a_frame() {
    let (back, front, mut guest) = started();
    guest.echo("one");
    let more = memory_file("more", 0x1000).unwrap();
    let table: Vec<u64> = vec![2, 0x1000, 0x1000, 0x5000, 0, GUEST, LEN, USER, 0];
    let table: Vec<u8> = table.into_iter().flat_map(u64::to_ne_bytes).collect();
    front.tell_with(5, &table, &[more.as_fd(), guest.fd()]);
    guest.echo("two");
    // The same memory, but at another place in the front-end.
    let moved: Vec<u64> = vec![1, GUEST, LEN, USER + LEN, 0];
    let moved: Vec<u8> = moved.into_iter().flat_map(u64::to_ne_bytes).collect();
    front.tell_with(5, &moved, &[guest.fd()]);
    for ring in &guest.rings {
        front.tell(9, &ring.addresses(USER + LEN));
    }
    guest.echo("three");
    assert_eq!((front.base(0), front.base(1)), (3, 3));
    assert!(back.texts().iter().any(|text| text.contains("started")));
}

#[test]
fn the_same_table_again_stops_no_ring() {
    let (back, front, mut guest) = started();
    back.wait_for(|event| {
        matches!(event, Event::QueueStarted { queue, .. } if queue.0 == 1).then_some(())
    });
    for _ in 0..3 {
        front.tell_with(5, &guest.table(), &[guest.fd()]);
    }
    guest.echo("undisturbed");
    assert!(!back.texts().iter().any(|text| text.contains("started")), "VU-PIT-21");
}

#[test]
fn a_ring_whose_memory_is_gone_waits_until_it_is_back() {
    let (_back, front, mut guest) = started();
    guest.echo("one");
    front.tell(38, &guest.region());
    guest.transmit(b"sent while there was no memory to be seen", true);
    front.barrier();
    assert_eq!(guest.used(1), 1, "VU-RNG-10: nothing is touched");
    front.tell_with(37, &guest.region(), &[guest.fd()]);
    guest.settle(1);
    front.tell(38, &guest.region());
    assert_eq!(front.base(1), 2, "the position is known without the memory");
}

#[test]
fn a_broken_ring_is_told_once_and_the_other_one_goes_on() {
    let (back, front, mut guest) = started();
    // A buffer outside of memory, on the ring that sends.
    guest.post(1, 0xdead_0000, 100, 0);
    guest.kick(1);
    assert!(wait_readable(&guest.rings[1].err), "VU-RNG-12");
    let text = back.wait_for_text("broke a rule");
    assert!(text.contains("queue 1"), "{text}");
    // A new table is no remedy, and no reason to say it again.
    let more = memory_file("more", 0x1000).unwrap();
    let spec: Vec<u8> =
        [0, 0x1000, 0x1000, 0x5000, 0].into_iter().flat_map(u64::to_ne_bytes).collect();
    front.tell_with(37, &spec, &[more.as_fd()]);
    guest.kick(1);
    front.tell_state(18, 0, 0);
    front.tell_state(18, 0, 1);
    assert_eq!(heard(&guest.rings[1].err), 1);
    assert!(!back.texts().iter().any(|text| text.contains("broke a rule")));
    // The driver starts over, and all is well.
    assert_eq!(front.base(1), 0, "the chain was not used up");
    assert_eq!(front.base(0), 0);
    guest.reboot();
    guest.start_rings(&front);
    guest.echo("as new");
}

#[test]
fn a_ring_that_cannot_be_stands_still_and_says_so() {
    let (back, front, mut guest) = started();
    front.base(1);
    front.tell_state(8, 1, 12);
    front.tell_with(12, &guest.rings[1].number(), &[guest.rings[1].kick.as_fd()]);
    back.wait_for_text("power of two");
    assert!(wait_readable(&guest.rings[1].err));
    assert_eq!(heard(&guest.rings[1].err), 1);
    // Corrected without another kick.
    front.tell_with(13, &guest.rings[1].number(), &[guest.rings[1].call.as_fd()]);
    front.tell_state(8, 1, u32::from(SIZE));
    guest.echo("corrected");
}

#[test]
fn a_driver_that_cannot_be_served_costs_its_rings_and_not_the_connection() {
    let (back, mut front) = Back::pair();
    let mut guest = Guest::new();
    front.tell_number(16, REPLY_ACK);
    front.asks = true;
    front.tell_number(2, F_PROTOCOL);
    back.wait_for_text("legacy driver");
    guest.start_rings(&front);
    front.tell_with(5, &guest.table(), &[guest.fd()]);
    assert_eq!(front.base(0), 0, "VU-RNG-05");
    assert_eq!(front.base(1), 0);
    guest.start(&mut front);
    guest.echo("the next driver");
}

#[test]
fn what_cannot_be_done_is_refused_and_the_connection_goes_on() {
    let (back, front, mut guest) = started();
    let refused = |id: u32, payload: &[u8]| {
        assert_eq!(front.outcome(id, payload, &[]), Some(1), "message {id}");
    };
    refused(2, &(1_u64 << 58).to_ne_bytes());
    refused(2, &(F_VERSION_1 | F_PROTOCOL).to_ne_bytes()); // rings run
    refused(16, &(1_u64 << 14).to_ne_bytes());
    refused(8, &state(3, 16));
    refused(8, &state(0, 0));
    refused(8, &state(0, 65_536));
    refused(8, &state(0, 32)); // it runs
    refused(10, &state(0, 7));
    refused(10, &state(0, 65_536));
    refused(12, &0_u64.to_ne_bytes()); // no descriptor came
    refused(13, &7_u64.to_ne_bytes());
    refused(18, &state(0, 2));
    refused(18, &state(256, 1));
    refused(20, &67_u64.to_ne_bytes());
    refused(20, &u64::from(MTU + 1).to_ne_bytes());
    refused(25, &[0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]); // offset 256
    refused(6, &[0; 16]);
    refused(21, &[]);
    refused(32, &[0; 24]);
    refused(37, &guest.region());
    refused(38, &[0; 40]);
    refused(45, &[]);
    refused(99, &[1, 2, 3]);
    let overlaps = [0, GUEST + 0x1000, 0x1000, USER + LEN, 0_u64].map(u64::to_ne_bytes).concat();
    let add = front.outcome(37, &overlaps, &[guest.fd()]);
    assert_eq!(add, Some(1), "VU-MEM-05: another region is there already");
    guest.echo("still here");
    let texts = back.texts();
    let refusals: Vec<_> = texts.iter().filter(|text| text.starts_with("refused:")).collect();
    assert_eq!(refusals.len(), 24);
    assert!(refusals.iter().any(|text| text.contains("SET_VRING_NUM: there is no ring 3")));
}

#[test]
fn the_same_without_a_way_to_say_no_ends_the_connection() {
    for (id, payload) in
        [(8, state(3, 16)), (2, (1_u64 << 58).to_ne_bytes().to_vec()), (99, vec![])]
    {
        let (mut back, front) = Back::pair();
        assert!(front.send(id, NEED_REPLY, &payload, &[]), "VU-RPL-04: not negotiated");
        assert!(front.is_closed());
        assert!(back.end().is_err());
    }
}

#[test]
fn without_need_reply_nothing_is_sent_even_if_negotiated() {
    let (_back, front) = Back::pair();
    front.tell_number(16, REPLY_ACK);
    front.tell(3, &[]);
    front.tell(4, &[]);
    // The first reply is that of the barrier.
    front.barrier();
}

#[test]
fn protocol_features_may_ask_for_their_own_acknowledgement() {
    let (_back, front) = Back::pair();
    assert_eq!(front.outcome(16, &REPLY_ACK.to_ne_bytes(), &[]), Some(0), "VU-RPL-07");
}

#[test]
fn config_beyond_256_bytes_is_answered_with_nothing() {
    let (_back, front) = Back::pair();
    let ask = |offset: u32, size: u32| {
        let header = [offset, size, 0].into_iter().flat_map(u32::to_ne_bytes);
        front.ask(24, &header.chain(vec![0; size as usize]).collect::<Vec<u8>>())
    };
    assert_eq!(ask(250, 7), []);
    assert_eq!(ask(10, 2)[12..], MTU.to_le_bytes());
    assert_eq!(ask(0, 256).len(), 268);
}

#[test]
fn what_is_written_to_the_configuration_is_not_taken() {
    let (_back, front, mut guest) = started();
    let read = [0_u32, 28, 0].into_iter().flat_map(u32::to_ne_bytes);
    let read: Vec<u8> = read.chain([0; 28]).collect();
    let before = front.ask(24, &read);
    let write = [0_u32, 28, 0].into_iter().flat_map(u32::to_ne_bytes);
    let write: Vec<u8> = write.chain([0x5a; 28]).collect();
    assert_eq!(front.outcome(25, &write, &[]), Some(0), "INIT-02: no fault");
    assert_eq!(front.ask(24, &read), before, "NET-CFG-18");
    guest.echo("unmoved");
}

#[test]
fn the_status_is_kept_as_it_is_written_and_is_0_after_a_reset() {
    let (_back, front, mut guest) = started();
    assert_eq!(front.ask_number(40), 0, "ST-01");
    // Forwards, backwards, and in steps that no driver takes (ST-05, ST-06, ST-07).
    for status in [1, 3, 11, 15, 4, 11, 0x8f, 0xff, 15] {
        front.tell_number(39, status);
        assert_eq!(front.ask_number(40), status);
        guest.echo("it runs until it is stopped");
    }
    front.tell(34, &[]);
    assert_eq!(front.ask_number(40), 0, "ST-01, RST-01");
}

#[test]
fn reset_device_forgets_the_driver_but_not_the_memory() {
    let (_back, front, mut guest) = started();
    guest.echo("before");
    front.tell(34, &[]);
    guest.reboot();
    // Rings are disabled and idle: nothing happens.
    guest.transmit(&[0; 60], true);
    front.barrier();
    assert_eq!(guest.used(1), 0);
    guest.reboot();
    front.tell_number(2, F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL);
    guest.start_rings(&front);
    front.tell_state(18, 0, 1);
    front.tell_state(18, 1, 1);
    guest.echo("after, in the same memory");
}
