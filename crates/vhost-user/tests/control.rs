//! The control ring of a session: started, kicked, stopped; and what the device tells by itself.
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

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use bench::guest::{GUEST, Guest, USER};
use bench::{
    Back, F_PROTOCOL, F_VERSION_1, FrontEnd, MAC, PATIENCE, event, heard, signal, state,
    wait_readable,
};
use vionet_raw::{Descriptor, GuestAddr};

const CONTROL: u32 = 2;
const SIZE: u16 = 16;
const AT: u64 = 0x8_0000;
const STATUS: u64 = 1 << 16;
const CTRL_VQ: u64 = 1 << 17;
const CTRL_RX: u64 = 1 << 18;
const GUEST_ANNOUNCE: u64 = 1 << 21;
const CTRL_MAC_ADDR: u64 = 1 << 23;
const REPLY_ACK: u64 = 1 << 3;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;

struct Control {
    kick: std::os::fd::OwnedFd,
    call: std::os::fd::OwnedFd,
    next: u16,
}

impl Control {
    fn new() -> Self {
        Self { kick: event(), call: event(), next: 0 }
    }

    fn start(&self, front: &FrontEnd, base: u32) {
        let number = u64::from(CONTROL).to_ne_bytes();
        front.tell_state(8, CONTROL, SIZE.into());
        front.tell_state(10, CONTROL, base);
        let areas = [USER + AT, USER + AT + 0x2000, USER + AT + 0x1000, 0];
        let words = [CONTROL, 0].into_iter().flat_map(u32::to_ne_bytes);
        let addresses: Vec<u8> =
            words.chain(areas.into_iter().flat_map(u64::to_ne_bytes)).collect();
        front.tell(9, &addresses);
        front.tell_with(12, &number, &[self.kick.as_fd()]);
        front.tell_with(13, &number, &[self.call.as_fd()]);
    }

    /// A command of two buffers; not kicked.
    fn post(&mut self, guest: &Guest, command: &[u8]) -> u64 {
        let slot = self.next * 2 % SIZE;
        let at = GUEST + AT + 0x4000 + u64::from(slot) * 0x100;
        let answer = at + 0x80;
        guest.write(at, command);
        guest.write(answer, &[0xee]);
        let table = guest.space.ring::<Descriptor>(GuestAddr(GUEST + AT), SIZE).unwrap();
        let len = command.len() as u32;
        table.store(slot, Descriptor { addr: at, len, flags: 1, next: slot + 1 });
        table.store(slot + 1, Descriptor { addr: answer, len: 1, flags: 2, next: 0 });
        let avail = GUEST + AT + 0x1000;
        guest.space.ring::<u16>(GuestAddr(avail + 4), SIZE).unwrap().store(self.next, slot);
        self.next += 1;
        guest.space.index(GuestAddr(avail + 2)).unwrap().store_release(self.next);
        answer
    }

    /// Waits for the interrupt that says that all is answered; the last acknowledgement.
    fn answered(&self, guest: &Guest, answer: u64) -> u8 {
        let used = guest.space.index(GuestAddr(GUEST + AT + 0x2002)).unwrap();
        while used.load_acquire() != self.next {
            assert!(wait_readable(&self.call), "the call descriptor is signalled");
            heard(&self.call);
        }
        let mut ack = [0];
        assert!(guest.space.read(GuestAddr(answer), &mut ack));
        ack[0]
    }

    fn command(&mut self, guest: &Guest, command: &[u8]) -> u8 {
        let answer = self.post(guest, command);
        signal(&self.kick);
        self.answered(guest, answer)
    }
}

/// A session with all three rings.
fn started(features: u64) -> (Back, FrontEnd, Guest, Control) {
    let (back, mut front) = Back::pair();
    let guest = Guest::new();
    front.ask_number(1);
    front.tell_number(16, REPLY_ACK | BACKEND_REQ | CONFIG);
    front.asks = true;
    front.tell(3, &[]);
    front.tell_number(2, F_VERSION_1 | F_PROTOCOL | CTRL_VQ | features);
    front.tell_with(5, &guest.table(), &[guest.fd()]);
    for ring in 0..3 {
        front.tell_state(18, ring, 1);
    }
    guest.start_rings(&front);
    let control = Control::new();
    control.start(&front, 0);
    (back, front, guest, control)
}

#[test]
fn commands_are_answered_and_the_ring_stops_and_starts_like_any_other() {
    let (_back, front, mut guest, mut control) = started(CTRL_RX | CTRL_MAC_ADDR);
    assert_eq!(control.command(&guest, &[0, 0, 1]), 0);
    assert_eq!(control.command(&guest, &[0, 0, 1, 1]), 1, "NET-CTRL-03");
    assert_eq!(control.command(&guest, &[1, 1, 2, 0, 0, 0, 0, 9]), 0);
    assert_eq!(front.base(CONTROL), 3, "VU-RNG-03");
    // Nothing is obeyed while it is stopped, also if the old descriptor is kicked.
    let answer = control.post(&guest, &[1, 1, 2, 0, 0, 0, 0, 10]);
    signal(&control.kick);
    front.barrier();
    let mut ack = [0];
    assert!(guest.space.read(GuestAddr(answer), &mut ack));
    assert_eq!(ack, [0xee]);
    guest.echo("data goes on");
    // Started again it goes on there, without a kick (VU-RNG-01).
    heard(&control.kick);
    control.start(&front, 3);
    assert_eq!(control.answered(&guest, answer), 0);
    let config = front.ask(24, &[state(0, 6), vec![0; 4 + 6]].concat());
    assert_eq!(config[12..], [2, 0, 0, 0, 0, 10], "NET-CTRL-MAC-03");
    for round in 0..50 {
        assert_eq!(control.command(&guest, &[0, 0, round & 1]), 0);
        let base = front.base(CONTROL);
        assert_eq!(base, 5 + u32::from(round));
        control.start(&front, base);
    }
    guest.echo("and on");
}

#[test]
fn a_call_descriptor_that_comes_late_is_signalled_for_what_was_answered_before() {
    let (_back, front, guest, mut control) = started(CTRL_RX);
    let number = u64::from(CONTROL).to_ne_bytes();
    front.tell_with(13, &number, &[event().as_fd()]);
    heard(&control.call);
    let answer = control.post(&guest, &[0, 0, 1]);
    signal(&control.kick);
    let used = guest.space.index(GuestAddr(GUEST + AT + 0x2002)).unwrap();
    while used.load_acquire() != 1 {
        std::thread::yield_now();
    }
    front.tell_with(13, &number, &[control.call.as_fd()]);
    assert!(wait_readable(&control.call), "VU-MSG-05");
    assert_eq!(control.answered(&guest, answer), 0);
}

#[test]
fn a_broken_control_ring_stands_still_and_the_others_go_on() {
    let (back, front, mut guest, mut control) = started(CTRL_RX);
    let table = guest.space.ring::<Descriptor>(GuestAddr(GUEST + AT), SIZE).unwrap();
    control.post(&guest, &[0, 0, 1]);
    table.store(0, Descriptor { addr: 7, len: 9, flags: 0, next: 0 });
    signal(&control.kick);
    back.wait_for_text("queue 2 stopped");
    guest.echo("data goes on");
    assert_eq!(front.base(CONTROL), 0, "it was not taken");
    // The driver mends it, before it starts: the device looks at once.
    let mut control = Control { next: 0, ..control };
    let answer = control.post(&guest, &[0, 0, 1]);
    control.start(&front, 0);
    signal(&control.kick);
    assert_eq!(control.answered(&guest, answer), 0);
}

#[test]
fn a_change_of_the_configuration_is_told_on_the_backchannel() {
    let (_back, front, guest, mut control) = started(STATUS | GUEST_ANNOUNCE);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    front.tell_with(21, &[], &[theirs.as_fd()]);
    drop(theirs);
    // SEND_RARP: this guest announces itself (NET-CTRL-ANN-02).
    front.tell(19, &[2, 0, 0, 0, 0, 7, 0, 0]);
    let mut message = [0; 12];
    (&ours).read_exact(&mut message).expect("VU-BCH");
    let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    assert_eq!([word(0), word(4), word(8)], [2, 1, 0]);
    let status = || front.ask(24, &[state(6, 2), vec![0; 4 + 2]].concat())[12..].to_vec();
    assert_eq!(status(), [3, 0]);
    assert_eq!(control.command(&guest, &[3, 0]), 0);
    assert_eq!(status(), [1, 0], "NET-CTRL-ANN-01");
    // Nobody listens any more: nobody is waited for.
    drop(ours);
    for _ in 0..3 {
        front.tell(19, &[2, 0, 0, 0, 0, 7, 0, 0]);
    }
    assert_eq!(control.command(&guest, &[3, 0]), 0);
}

#[test]
fn a_broken_ring_is_shown_in_the_status_and_told_until_the_driver_resets() {
    let (back, front, mut guest, _control) = started(0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    front.tell_with(21, &[], &[theirs.as_fd()]);
    drop(theirs);
    front.tell_number(39, 15);
    guest.post(1, 0xdead_0000, 100, 0);
    guest.kick(1);
    back.wait_for_text("broke a rule");
    assert_eq!(front.ask_number(40), 15 | 64, "ST-03");
    let mut message = [0; 12];
    (&ours).read_exact(&mut message).expect("ST-04");
    assert_eq!(message[..4], 2_u32.to_ne_bytes(), "the configuration is to be looked at");
    // What the front-end writes says nothing about the device.
    front.tell_number(39, 15);
    assert_eq!(front.ask_number(40), 15 | 64);
    front.tell_number(39, 0);
    assert_eq!(front.ask_number(40), 0, "ST-01");
    front.tell(34, &[]);
    front.tell_number(39, 15);
    assert_eq!(front.ask_number(40), 15);
    ours.set_nonblocking(true).unwrap();
    assert!((&ours).read(&mut message).is_err(), "told once");
}

#[test]
fn a_guest_that_cannot_announce_itself_is_announced_on_the_network() {
    let (_back, front, mut guest, _) = started(0);
    // Echo gives the announcement back.
    let room = guest.post_room();
    guest.kick(0);
    front.barrier();
    front.tell(19, &[2, 0, 0, 0, 0, 7, 0, 0]);
    guest.settle(0);
    let mut frame = [0; 22];
    assert!(guest.space.read(GuestAddr(room + 12), &mut frame));
    assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &MAC[..]), "VU-MSG-06");
    assert_eq!(frame[12..], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    guest.echo("and the guest's own frames go as before");
    assert_eq!(front.outcome(19, &[2, 0, 0], &[]), Some(1), "half an address");
}
