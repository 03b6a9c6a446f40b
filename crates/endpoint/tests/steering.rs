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
use vionet::stats::DropReason;
use vionet::{PairIndex, QueueIndex, Report};
use vionet_endpoint::{PortConfig, Switch};
use vionet_queue::Fault;
use vionet_spec::feature::Feature;
use vionet_testkit::{Arrangement, Buffer};

const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

fn guest(switch: &Switch, place: usize, pairs: u16) -> Guest {
    let mut guest = without_buffers(switch, place, pairs);
    guest.fill();
    guest
}

fn without_buffers(switch: &Switch, place: usize, pairs: u16) -> Guest {
    let mac = MACS[place];
    let port = switch.port(PortConfig { mac, isolated: false }).unwrap();
    let features: &[Feature] = if pairs > 1 { &[Feature::MQ] } else { &[] };
    let mut guest = Guest::with(mac, Box::new(port), Host::new(pairs), pairs, features);
    guest.start(features);
    if pairs > 1 {
        assert_eq!(guest.set_pairs(pairs), OK);
    }
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
    wait("all are sent", || one.stats(0).tx.frames() == 30);
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
    wait("all are sent", || one.stats(0).tx.frames() == 30 + 36 + 12);
    assert_eq!(many.look()[2], wanted[2]);
    assert_eq!(many.look().iter().sum::<usize>(), wanted.iter().sum::<usize>() + 12);
}

#[test]
fn a_first_pair_that_is_full_stopped_or_broken_keeps_nothing_from_the_others() {
    let switch = Switch::new("test");
    let [mut one, mut many] = [guest(&switch, 0, 1), without_buffers(&switch, 1, 3)];
    let mut sent = 0;
    let mut send = |one: &mut Guest, flows: u16| {
        (1..=flows).for_each(|port| one.send(0, &segment(MACS[0], MACS[1], [port, 80], false)));
        sent += u64::from(flows);
        wait("all are sent", || one.stats(0).tx.frames() == sent);
    };
    // Full: what is for it is lost, and nothing else.
    many.post(0, 1);
    (1..3).for_each(|pair| many.post(pair, 30));
    send(&mut one, 30);
    let full = many.look();
    let lost = many.dropped(DropReason::NoBuffer) as usize;
    assert!(full[0] == 1 && lost > 0 && full[1] > 3 && full[2] > 3, "{full:?}, {lost} lost");
    assert_eq!(full.iter().sum::<usize>() + lost, 30);
    // Stopped: its flows go to the others.
    (1..3).for_each(|pair| many.post(pair, 30));
    let cursor = many.stop(0);
    send(&mut one, 30);
    let stopped = many.look();
    assert_eq!(stopped.iter().sum::<usize>(), full.iter().sum::<usize>() + 30, "NET-CTRL-MQ-07");
    // Broken: the same.
    many.start_queue(QueueIndex(0), cursor);
    let readable = Buffer::readable(0x100_0000, 64);
    many.rx[0].driver.post(&[readable], Arrangement::Direct).unwrap();
    many.rx[0].expose();
    send(&mut one, 30);
    let start = std::time::Instant::now();
    let report = loop {
        match many.device.next_report() {
            Some(report) => break report,
            None => assert!(start.elapsed() < many::PATIENCE, "a broken rule is told"),
        }
    };
    let Report::Fault(fault) = report else { panic!("{report}") };
    assert_eq!((fault.queue, fault.fault), (PairIndex(0).receive(), Fault::ReadableInReceive));
    let broken = many.look().iter().sum::<usize>();
    (1..3).for_each(|pair| many.post(pair, many.rx[pair].driver.free()));
    send(&mut one, 30);
    assert_eq!(many.look().iter().sum::<usize>(), broken + 30);
}

#[test]
fn a_first_pair_of_which_nothing_runs_keeps_nothing_from_the_others() {
    let switch = Switch::new("test");
    let [mut one, mut many] = [guest(&switch, 0, 1), guest(&switch, 1, 2)];
    for queue in [0, 1] {
        many.device.apply(vionet::Op::StopQueue(QueueIndex(queue))).unwrap();
    }
    (1..=20).for_each(|port| one.send(0, &segment(MACS[0], MACS[1], [port, 80], false)));
    many.expect(&[0, 20]);
}
