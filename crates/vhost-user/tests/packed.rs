//! Rings of the packed format, and rings that change under a running driver.
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

use bench::guest::{Guest, SIZE, USER};
use bench::packed::PackedGuest;
use bench::{Back, F_MRG_RXBUF, F_PACKED, F_PROTOCOL, F_VERSION_1, FrontEnd, REPLY_ACK};

/// Where a packed ring begins, in the form of 32 bits.
const START: u32 = 0x8000_8000;

const FEATURES: u64 = F_VERSION_1 | F_MRG_RXBUF | F_PROTOCOL | F_PACKED;

/// A connection on which features are agreed and memory is known.
fn prepared(guest: &PackedGuest) -> (Back, FrontEnd) {
    let (back, mut front) = Back::pair();
    let offered = front.ask_number(1);
    for bit in [34, 35, 36] {
        assert_ne!(offered & 1 << bit, 0, "feature {bit} is shown to the front-end");
    }
    assert_eq!(offered & 1 << 40, 0, "VU-PIT-06: a front-end would not pass a reset on");
    front.tell_number(16, REPLY_ACK);
    front.asks = true;
    front.tell_number(2, FEATURES);
    front.tell_with(5, &guest.guest.table(), &[guest.guest.fd()]);
    (back, front)
}

#[test]
fn packed_rings_of_any_size_go_round_and_go_on_where_they_stopped() {
    let mut guest = PackedGuest::new([5, 7]);
    let (_back, front) = prepared(&guest);
    let mut bases = [START; 2];
    for round in 0..20 {
        guest.start_ring(&front, 0, bases[0]);
        guest.start_ring(&front, 1, bases[1]);
        for count in 0..=round % 4 {
            guest.echo(&format!("round {round}, frame {count}"));
        }
        bases = [front.base(0), front.base(1)];
        assert_eq!(bases, guest.lanes.map(|lane| lane.position()), "VU-RNG-04, round {round}");
    }
}

#[test]
fn a_packed_ring_begins_with_its_wrap_counters_at_one() {
    let mut guest = PackedGuest::new([8, 8]);
    let (_back, front) = prepared(&guest);
    assert_eq!((front.base(0), front.base(1)), (START, START), "VU-RNG-05");
    // Some front-ends send 16 bits.
    guest.start_ring(&front, 0, 0x8000);
    guest.start_ring(&front, 1, 0x8000);
    for _ in 0..20 {
        guest.echo("from the start");
    }
}

#[test]
fn a_packed_position_may_be_told_before_the_format() {
    let mut guest = PackedGuest::new([8, 6]);
    let (_back, mut front) = Back::pair();
    front.tell_number(16, REPLY_ACK);
    front.asks = true;
    guest.start_ring(&front, 0, START);
    guest.start_ring(&front, 1, START);
    front.tell_with(5, &guest.guest.table(), &[guest.guest.fd()]);
    front.tell_number(2, FEATURES);
    guest.echo("at last");
}

#[test]
fn a_packed_ring_keeps_its_position_when_memory_changes() {
    let mut guest = PackedGuest::new([5, 5]);
    let (_back, front) = prepared(&guest);
    guest.start_ring(&front, 0, START);
    guest.start_ring(&front, 1, START);
    for moved in [0x1000_0000, 0x2000_0000, 0] {
        for _ in 0..7 {
            guest.echo("round and round");
        }
        let table = [1, bench::guest::GUEST, bench::guest::LEN, USER + moved, 0];
        let table: Vec<u8> = table.into_iter().flat_map(u64::to_ne_bytes).collect();
        front.tell_with(5, &table, &[guest.guest.fd()]);
        for ring in &guest.guest.rings {
            front.tell(9, &ring.addresses(USER + moved));
        }
    }
    guest.echo("at the old place again");
}

#[test]
fn packed_areas_that_cannot_be_stand_still_and_are_told() {
    let guest = PackedGuest::new([8, 8]);
    let (back, front) = prepared(&guest);
    // The descriptor area off its alignment, the areas in no memory, a position past the ring.
    let place = |desc: u64, driver: u64, device: u64| -> Vec<u8> {
        let places = [0, USER + desc, USER + device, USER + driver, 0];
        places.into_iter().flat_map(u64::to_ne_bytes).collect()
    };
    let ring = &guest.guest.rings[0];
    for (what, addresses, base) in [
        ("descriptors", place(8, 0x1000, 0x2000), START),
        ("driver", place(0, 0x1001, 0x2000), START),
        ("device", place(0, 0x1000, 0x2002), START),
        ("end", place(bench::guest::LEN - 64, 0x1000, 0x2000), START),
        ("position", place(0, 0x1000, 0x2000), START + 8),
    ] {
        front.tell_with(14, &ring.number(), &[ring.err.as_fd()]);
        front.tell_state(8, 0, 8);
        front.tell_state(10, 0, base);
        front.tell(9, &addresses);
        front.tell_with(12, &ring.number(), &[ring.kick.as_fd()]);
        assert!(bench::wait_readable(&ring.err), "{what}");
        bench::heard(&ring.err);
        let text = back.wait_for_text("cannot start");
        assert!(text.contains("queue 0"), "{what}: {text}");
        front.base(0);
    }
}

/// What a front-end does that resets a ring: it is stopped, and comes back with another size while
/// the other one runs on.
#[test]
fn a_live_packed_ring_is_resized() {
    let mut guest = PackedGuest::new([5, 4]);
    let (back, front) = prepared(&guest);
    guest.start_ring(&front, 0, START);
    guest.start_ring(&front, 1, START);
    for (ring, size) in [(1, 16), (0, 3), (1, 1), (0, 16)] {
        for _ in 0..9 {
            guest.echo("before the next size");
        }
        front.tell_state(18, ring as u32, 0);
        front.base(ring as u32);
        guest.reset(ring, size);
        guest.start_ring(&front, ring, START);
    }
    guest.echo("after all sizes");
    assert!(!back.texts().iter().any(|text| text.contains("rule")));
}

#[test]
fn a_live_split_ring_is_resized() {
    let (_back, mut front) = Back::pair();
    let mut guest = Guest::new();
    guest.start(&mut front);
    for size in [SIZE / 2, SIZE / 4, SIZE] {
        guest.echo("before the next size");
        for ring in 0..2 {
            front.base(ring);
        }
        guest.resize(size);
        guest.start_rings(&front);
        for _ in 0..40 {
            guest.echo("with it");
        }
    }
}
