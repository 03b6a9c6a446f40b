//! A guest of several pairs on a switch: a flow comes back where it was sent from.
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

use many::{Guest, Host, OK, segment, wait};
use vionet_endpoint::{PortConfig, Switch};
use vionet_spec::feature::Feature;

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

fn guest(switch: &Switch, place: usize, pairs: u16) -> Guest {
    let mac = MACS[place];
    let port = switch.port(PortConfig { mac, isolated: false }).unwrap();
    let features: &[Feature] = if pairs > 1 { &[Feature::MQ] } else { &[] };
    let mut guest = Guest::with(mac, Box::new(port), Host::new(pairs), pairs, features);
    guest.start(features);
    if pairs > 1 {
        assert_eq!(guest.set_pairs(pairs), OK);
    }
    guest.fill();
    guest
}

#[test]
fn a_flow_that_is_sent_on_a_pair_comes_back_on_it() {
    let switch = Switch::new("test");
    let [mut one, mut many] = [guest(&switch, 0, 1), guest(&switch, 1, 3)];
    let to_many = |port| segment(MACS[0], MACS[1], [port, 80], false);
    let to_one = |port| segment(MACS[1], MACS[0], [port, 80], true);
    // Nothing is known yet: any pair will do (NET-CTRL-MQ-04), and the addresses are learned.
    for port in 1..=30 {
        one.send(0, &to_many(port));
    }
    wait("all are sent", || one.stats(0).tx.frames.value() == 30);
    let got = many.look();
    assert_eq!(got.iter().sum::<usize>(), 30);
    assert!(got.iter().all(|got| *got > 0), "{got:?}");
    let mut wanted = got;
    for turn in 0..3 {
        for port in 1..=12_u16 {
            let pair = usize::from(port + turn) % 3;
            many.send(pair, &to_one(port));
            let sent = usize::from(turn * 12 + port);
            one.expect(&[sent]);
            one.fill();
            one.send(0, &to_many(port));
            wanted[pair] += 1;
            many.expect(&wanted);
            many.fill();
        }
    }
    // NET-CTRL-MQ-06: also for flows that were sent from pairs above.
    assert_eq!(many.set_pairs(2), OK);
    for port in 1..=12 {
        one.send(0, &to_many(port));
    }
    wait("all are sent", || one.stats(0).tx.frames.value() == 30 + 36 + 12);
    assert_eq!(many.look()[2], wanted[2]);
    assert_eq!(many.look().iter().sum::<usize>(), wanted.iter().sum::<usize>() + 12);
}
