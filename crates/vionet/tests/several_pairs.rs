//! Several pairs, their workers at work: who gets which frame, and what changes under way.
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
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod many;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use many::{ERR, Guest, Host, OK, SIZE, deliver, flow, wait};
use vionet::stats::DropReason;
use vionet::{Op, PairIndex, QueueIndex};
use vionet_frame::hash::FlowHash;
use vionet_queue::Cursor;
use vionet_spec::feature::Feature;

const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];
const TCP_V4: u32 = 1 << 1;

/// RSS_CONFIG: TCP over IPv4 by `table`.
fn rss(table: &[u16], unclassified: u16, transmit: u16) -> Vec<u8> {
    rss_with(TCP_V4, table.len() as u16 - 1, table, unclassified, transmit)
}

fn rss_with(types: u32, mask: u16, table: &[u16], unclassified: u16, transmit: u16) -> Vec<u8> {
    let mut bytes = vec![4, 1];
    bytes.extend(types.to_le_bytes());
    bytes.extend(mask.to_le_bytes());
    bytes.extend(unclassified.to_le_bytes());
    bytes.extend(table.iter().flat_map(|pair| pair.to_le_bytes()));
    bytes.extend(transmit.to_le_bytes());
    bytes.push(KEY.len() as u8);
    bytes.extend(KEY);
    bytes
}

/// The pair that a table sends a frame to.
fn pair_of(frame: &[u8], table: &[u16], unclassified: u16) -> usize {
    let hashed = FlowHash::new(&KEY, TCP_V4).unwrap().of(frame);
    let at = hashed.value as usize & (table.len() - 1);
    usize::from(if hashed.report == 0 { unclassified } else { table[at] })
}

fn not_ip() -> Vec<u8> {
    let mut frame = flow(0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn is_quiet(guest: &mut Guest, wanted: &[usize]) {
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(guest.look(), wanted);
}

#[test]
fn the_control_queue_is_behind_all_pairs_with_mq_and_behind_the_first_without() {
    let mut guest = Guest::new(3, &[Feature::MQ]);
    assert_eq!(guest.control.index, QueueIndex(6), "NET-Q-02");
    assert_eq!(guest.set_pairs(3), OK);
    wait("the driver is interrupted", || guest.control.bell.rung() > 0);
    let mut guest = Guest::new(3, &[Feature::CTRL_RX]);
    assert_eq!(guest.control.index, QueueIndex(2), "NET-Q-03");
    assert_eq!(guest.set_pairs(3), ERR, "NET-CTRL-02");
    assert_eq!(guest.command(&[0, 0, 1]), OK);
    for index in [3, 4, 6] {
        let (setup, cursor) = (guest.rx[1].driver.setup(), Cursor::default());
        let start = Op::StartQueue { index: QueueIndex(index), setup, cursor };
        assert!(guest.device.apply(start).is_err(), "there is no queue {index}");
    }
    let mut guest = Guest::new(2, &[Feature::RSS]);
    assert_eq!(guest.command(&rss(&[1], 0, 1)), OK);
    assert_eq!(guest.set_pairs(1), ERR, "without MQ");
}

#[test]
fn frames_arrive_on_the_pairs_in_use_and_on_no_others() {
    let mut guest = Guest::new(4, &[Feature::MQ]);
    guest.fill();
    let bring = |guest: &Guest| (0..4).for_each(|pair| guest.host.bring(pair, [flow(7)]));
    bring(&guest);
    guest.expect(&[1, 0, 0, 0]);
    is_quiet(&mut guest, &[1, 0, 0, 0]);
    for wrong in [0, 5, 0x8000, u16::MAX] {
        assert_eq!(guest.set_pairs(wrong), ERR, "NET-CTRL-MQ-12: {wrong}");
    }
    assert_eq!(guest.device.active_pairs(), 1);
    assert_eq!(guest.set_pairs(4), OK);
    guest.expect(&[1, 1, 1, 1]);
    assert_eq!(guest.host.world().adapted.last().unwrap().active, 4);
    for pairs in [3, 2, 1] {
        assert_eq!(guest.set_pairs(pairs), OK);
        assert_eq!(guest.host.world().adapted.last().unwrap().active, pairs);
        let before = guest.look();
        bring(&guest);
        let pairs = usize::from(pairs);
        let wanted: Vec<_> =
            before.iter().enumerate().map(|(at, had)| had + usize::from(at < pairs)).collect();
        guest.expect(&wanted);
        is_quiet(&mut guest, &wanted);
        // NET-CTRL-MQ-14.
        let sent: Vec<_> = (0..4).map(|pair| guest.host.sent(pair)).collect();
        for pair in 0..4 {
            guest.send(pair, &flow(1));
        }
        for (pair, before) in sent.into_iter().enumerate() {
            wait("it is sent", || guest.host.sent(pair) == before + 1);
        }
    }
}

#[test]
fn a_table_decides_whatever_pair_a_frame_comes_by() {
    for by_window in [false, true] {
        let mut guest = Guest::new(4, &[Feature::MQ, Feature::RSS]);
        guest.host.world().by_window = by_window;
        guest.fill();
        let table = [3, 1, 2, 0, 1, 1, 3, 2];
        assert_eq!(guest.command(&rss(&table, 2, 4)), OK);
        let mut wanted = vec![Vec::new(); 4];
        for number in 0..100 {
            let frame = flow(number);
            let pair = pair_of(&frame, &table, 2);
            wanted[pair].push(frame.clone());
            guest.host.bring(usize::from(number) % 4, [frame]);
        }
        wanted[2].push(not_ip());
        guest.host.bring(1, [not_ip()]);
        let counts: Vec<_> = wanted.iter().map(Vec::len).collect();
        assert!(counts.iter().all(|count| *count > 5), "{counts:?}");
        guest.expect(&counts);
        for (got, wanted) in guest.got.iter_mut().zip(&mut wanted) {
            got.sort();
            wanted.sort();
            assert_eq!(got, wanted, "NET-RSS-03");
        }
        // Every queue's driver is told, by the queue's own interrupt.
        for queue in &guest.rx {
            wait("an interrupt for each queue", || queue.bell.rung() > 0);
        }
    }
}

#[test]
fn a_table_that_cannot_be_is_refused_and_the_one_before_stays() {
    let mut guest = Guest::new(3, &[Feature::MQ, Feature::RSS]);
    guest.fill();
    assert_eq!(guest.command(&rss(&[2], 2, 1)), OK);
    let long = vec![0; 256];
    let whole = rss(&[0, 1], 0, 1);
    let wrong = [
        rss(&[0, 3], 0, 1),
        rss(&[0, 0x8001], 0, 1),
        rss(&[0, 1], 3, 1),
        rss(&[0, 1, 0], 0, 1),
        rss(&[0, 1], 0, 0),
        rss(&[0, 1], 0, 4),
        rss(&long, 0, 1),
        rss_with(TCP_V4, u16::MAX, &[0; 8], 0, 1),
        rss_with(1 << 31, 1, &[0, 1], 0, 1),
        whole[..whole.len() - 1].to_vec(),
        vec![4, 1],
    ];
    for (at, command) in wrong.iter().enumerate() {
        assert_eq!(guest.command(command), ERR, "NET-RSS-08 to -11: {at}");
    }
    guest.host.bring(0, (0..8).map(flow));
    guest.expect(&[0, 0, 8]);
}

#[test]
fn the_last_of_both_commands_decides() {
    let mut guest = Guest::new(2, &[Feature::MQ, Feature::RSS]);
    guest.fill();
    assert_eq!(guest.command(&rss(&[1], 1, 1)), OK);
    guest.host.bring(0, (0..4).map(flow));
    guest.expect(&[0, 4]);
    assert_eq!(guest.set_pairs(1), OK, "NET-CTRL-MQ-10");
    guest.host.bring(0, (0..4).map(flow));
    guest.expect(&[4, 4]);
    assert_eq!(guest.command(&rss(&[1], 1, 1)), OK);
    assert_eq!(guest.device.active_pairs(), 2);
    guest.host.bring(0, (0..4).map(flow));
    guest.expect(&[4, 8]);
}

#[test]
fn a_frame_for_a_queue_that_is_stopped_is_dropped_and_counted() {
    let mut guest = Guest::new(2, &[Feature::MQ, Feature::RSS]);
    guest.fill();
    assert_eq!(guest.command(&rss(&[0, 1], 0, 2)), OK);
    let cursor = guest.stop(1);
    let (mut here, mut there) = (0, 0);
    for frame in (0..40).map(flow) {
        let target = pair_of(&frame, &[0, 1], 0);
        (here, there) = (here + usize::from(target == 0), there + usize::from(target == 1));
        // Also by the pair whose own queue is stopped.
        guest.host.bring((here + there) % 2, [frame]);
    }
    guest.expect(&[here, 0]);
    wait("all are counted", || guest.dropped(DropReason::QueueDown) == there as u64);
    guest.start_queue(QueueIndex(2), cursor);
    guest.host.bring(0, (0..40).map(flow));
    guest.expect(&[2 * here, there]);
}

#[test]
fn frames_that_find_no_buffer_are_counted_and_no_step_is_without_end() {
    for by_window in [false, true] {
        let mut guest = Guest::new(2, &[Feature::MQ, Feature::RSS]);
        guest.host.world().by_window = by_window;
        assert_eq!(guest.command(&rss(&[0, 1], 0, 2)), OK);
        guest.post(0, 3);
        guest.post(1, 3);
        let frames: Vec<_> = (0..1000).map(flow).collect();
        guest.host.bring(0, frames);
        // What waits at the host for a buffer is not lost; the rest is counted.
        let start = Instant::now();
        loop {
            let got: usize = guest.look().iter().sum();
            let lost = guest.dropped(DropReason::NoBuffer) as usize;
            if got + lost + guest.host.waiting() == 1000 && got == 6 {
                break;
            }
            assert!(start.elapsed() < many::PATIENCE, "{got} arrived, {lost} were counted");
            std::thread::yield_now();
        }
        assert_eq!(guest.look(), [3, 3]);
    }
}

#[test]
fn a_pair_may_go_and_come_while_others_deliver_to_it() {
    let mut guest = Guest::new(3, &[Feature::MQ, Feature::RSS, Feature::EVENT_IDX]);
    assert_eq!(guest.command(&rss(&[0, 1, 2, 1], 0, 3)), OK);
    let ends = AtomicBool::new(false);
    let host = guest.host.clone();
    std::thread::scope(|scope| {
        for by in 0..2 {
            let (host, ends) = (host.clone(), &ends);
            scope.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    if host.waiting() < 200 {
                        host.bring(by * 2, (0..64).map(flow));
                    }
                    std::thread::yield_now();
                }
            });
        }
        let changes = (0..600).map(|round| (round, 1 + round % 2));
        for (round, pair) in changes {
            guest.fill();
            let receive = PairIndex(pair as u16).receive();
            match round % 5 {
                0 => guest.device.apply(Op::Rewire(PairIndex(pair as u16))).unwrap(),
                1 => {
                    let cursor = guest.stop(pair);
                    guest.start_queue(receive, cursor);
                }
                2 => {
                    guest.device.apply(Op::EnableQueue(receive, false)).unwrap();
                    guest.device.apply(Op::EnableQueue(receive, true)).unwrap();
                }
                3 => assert_eq!(guest.command(&rss(&[2, 1, 0, 1], 0, 3)), OK),
                _ => assert_eq!(guest.command(&rss(&[0, 1, 2, 1], 0, 3)), OK),
            }
            guest.look();
        }
        ends.store(true, Ordering::Relaxed);
    });
    // Nothing is stuck: what comes now arrives, on each pair, and its driver is told.
    wait("what is left goes", || {
        host.waiting() == 0 || guest.rx.iter().any(|queue| queue.driver.owed() == 0)
    });
    let start = Instant::now();
    let before = loop {
        // Every buffer is free again when nothing has come after this.
        let before = guest.look();
        guest.fill();
        std::thread::sleep(Duration::from_millis(30));
        if host.waiting() == 0 && guest.look() == before {
            break before;
        }
        assert!(start.elapsed() < many::PATIENCE, "frames are stuck at the host");
    };
    let rung: Vec<_> = guest.rx.iter().map(|queue| queue.bell.rung()).collect();
    for queue in &mut guest.rx {
        queue.driver.listen(0);
    }
    let table = [0, 1, 2, 1];
    let mut wanted = before;
    for frame in (0..20).map(flow) {
        wanted[pair_of(&frame, &table, 0)] += 1;
        host.bring(0, [frame]);
    }
    guest.expect(&wanted);
    for (queue, rung) in guest.rx.iter().zip(rung) {
        wait("no interrupt is lost", || queue.bell.rung() > rung);
    }
}

/// RX coalescing for all queues.
fn coalesce(packets: u32, usecs: u32) -> Vec<u8> {
    [&[6, 1][..], &packets.to_le_bytes(), &usecs.to_le_bytes()].concat()
}

#[test]
fn interrupts_that_are_put_off_come_in_time_also_for_lanes_that_others_deliver_into() {
    let features = [Feature::MQ, Feature::RSS, Feature::NOTF_COAL];
    let mut guest = Guest::new(2, &features);
    guest.fill();
    assert_eq!(guest.command(&rss(&[1], 1, 2)), OK);
    assert_eq!(guest.command(&coalesce(1000, 20_000)), OK);
    std::thread::sleep(Duration::from_millis(30));
    for round in 0..5_u64 {
        let rung = guest.rx[1].bell.rung();
        let start = Instant::now();
        guest.host.bring(0, [flow(1)]);
        guest.expect(&[0, 3 * round as usize + 1]);
        guest.host.bring(0, [flow(2), flow(3)]);
        guest.expect(&[0, 3 * round as usize + 3]);
        wait("in time", || guest.rx[1].bell.rung() > rung);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(19), "NET-COAL-10: too soon, {took:?}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.rx[1].bell.rung(), rung + 1, "one for all three");
        guest.fill();
    }
    // Enough frames: at once.
    assert_eq!(guest.command(&coalesce(4, 60_000_000)), OK);
    std::thread::sleep(Duration::from_millis(10));
    let rung = guest.rx[1].bell.rung();
    guest.host.bring(0, (0..4).map(flow));
    wait("four frames", || guest.rx[1].bell.rung() == rung + 1);
    guest.look();
    guest.fill();
    // Switched off while one is put off: at once, too.
    guest.host.bring(0, [flow(9)]);
    wait("it arrives", || guest.stats(1).rx.frames() == 20);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(guest.rx[1].bell.rung(), rung + 1);
    assert_eq!(guest.command(&coalesce(0, 0)), OK);
    wait("NET-COAL-13", || guest.rx[1].bell.rung() == rung + 2);
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none_whatever_was_put_off_before() {
    let mut guest = Guest::new(2, &[Feature::MQ, Feature::RSS, Feature::NOTF_COAL]);
    guest.fill();
    assert_eq!(guest.command(&rss(&[1], 1, 2)), OK);
    assert_eq!(guest.command(&coalesce(1000, 5_000)), OK);
    std::thread::sleep(Duration::from_millis(10));
    let rung = guest.rx[1].bell.rung();
    guest.host.bring(0, [flow(1)]);
    wait("in time", || guest.rx[1].bell.rung() == rung + 1);
    guest.rx[1].driver.ignore();
    for more in 2..8 {
        guest.host.bring(0, [flow(more)]);
        guest.expect(&[0, usize::from(more)]);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(guest.rx[1].bell.rung(), rung + 1, "NET-COAL-08");
}

#[test]
fn frames_are_counted_also_when_the_driver_has_asked_for_the_first_of_them() {
    let features = [Feature::MQ, Feature::RSS, Feature::NOTF_COAL, Feature::EVENT_IDX];
    let mut guest = Guest::new(2, &features);
    guest.fill();
    assert_eq!(guest.command(&rss(&[1], 1, 2)), OK);
    assert_eq!(guest.command(&coalesce(3, 60_000_000)), OK);
    std::thread::sleep(Duration::from_millis(10));
    for queue in &mut guest.rx {
        queue.driver.listen(0);
    }
    // By an inlet, and by the queue's own worker.
    for (by, pair) in [(0, 1), (1, 1)] {
        let rung = guest.rx[pair].bell.rung();
        let before = guest.look()[pair];
        guest.rx[pair].driver.listen(0);
        for more in 1..=2 {
            guest.host.bring(by, [flow(more)]);
            guest.expect(&[0, before + usize::from(more)]);
        }
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(guest.rx[pair].bell.rung(), rung);
        guest.host.bring(by, [flow(3)]);
        wait("NET-COAL-10: three frames", || guest.rx[pair].bell.rung() == rung + 1);
        guest.look();
    }
}

#[test]
fn pairs_that_deliver_to_each_other_do_not_wait_for_each_other() {
    let host = Host::new(2);
    host.world().with_inlets = true;
    let mut guest = Guest::in_front_of(host, 2, &[Feature::MQ, Feature::RSS]);
    assert_eq!(guest.command(&rss(&[0, 1], 0, 2)), OK);
    guest.fill();
    let inlets = guest.host.world().inlets.clone();
    let frames: Vec<_> = (0..64).map(flow).collect();
    let (done, waits) = std::sync::mpsc::channel();
    for inlet in inlets {
        let (frames, done) = (frames.clone(), done.clone());
        // Not joined: a thread that waits for ever must not keep the test from failing.
        std::thread::spawn(move || {
            for _ in 0..2000 {
                assert!(deliver(&inlet, &frames));
            }
            let (Ok(()) | Err(_)) = done.send(());
        });
    }
    for _ in 0..2 {
        if waits.recv_timeout(Duration::from_secs(60)).is_err() {
            // Nor may the device be waited for, which wants its lanes back.
            std::mem::forget(guest);
            panic!("two senders wait for each other");
        }
    }
    assert!(guest.look().iter().all(|got| *got == usize::from(SIZE)));
}

#[test]
fn windows_of_a_guest_without_room_end_and_what_was_in_them_is_counted() {
    let host = Host::new(2);
    host.world().with_inlets = true;
    let mut guest = Guest::in_front_of(host, 2, &[Feature::MQ, Feature::RSS]);
    assert_eq!(guest.command(&rss(&[0], 0, 2)), OK);
    guest.post(0, 2);
    let inlet = guest.host.world().inlets[0].clone();
    let mut windows = 0;
    let delivery = inlet.deliver(many::now(), |sink| {
        while windows < 100_000
            && let Some(window) = sink.window(1514)
        {
            vionet_raw::copy_in(window, 0, &flow(1));
            sink.commit(60, &vionet::endpoint::RxHeader::PLAIN);
            windows += 1;
        }
    });
    assert_eq!(delivery, vionet::endpoint::Delivery::Done);
    assert!(windows < 100_000, "it ends");
    assert_eq!(guest.look(), [2, 0]);
    assert_eq!(guest.dropped(DropReason::NoBuffer), windows - 2);
}

#[test]
fn a_queue_that_is_enabled_later_takes_part() {
    let host = Host::new(2);
    host.world().with_inlets = true;
    let mut guest = Guest::in_front_of(host, 2, &[Feature::MQ]);
    guest.fill();
    guest.device.apply(Op::EnableQueue(QueueIndex(2), false)).unwrap();
    assert_eq!(guest.set_pairs(2), OK);
    guest.device.apply(Op::EnableQueue(QueueIndex(2), true)).unwrap();
    let inlet = guest.host.world().inlets[0].clone();
    assert!(deliver(&inlet, &(0..60).map(flow).collect::<Vec<_>>()));
    let got = guest.look();
    assert_eq!(got.iter().sum::<usize>(), 60);
    assert!(got.iter().all(|got| *got > 10), "NET-CTRL-MQ-02, -04: {got:?}");
    guest.device.apply(Op::EnableQueue(QueueIndex(2), false)).unwrap();
    guest.fill();
    assert!(deliver(&inlet, &(0..20).map(flow).collect::<Vec<_>>()));
    assert_eq!(guest.look(), [got[0] + 20, got[1]]);
}

/// A Linux guest with fewer processors than pairs starts all queues and posts buffers on some.
#[test]
fn a_pair_on_which_the_driver_never_posts_a_buffer_gets_no_flows() {
    let host = Host::new(4);
    host.world().with_inlets = true;
    let mut guest = Guest::in_front_of(host, 4, &[Feature::MQ]);
    assert_eq!(guest.set_pairs(4), OK);
    let inlet = guest.host.world().inlets[0].clone();
    let frames = (0..60).map(flow).collect::<Vec<_>>();
    assert!(deliver(&inlet, &frames[..20]));
    let lost = guest.dropped(DropReason::NoBuffer);
    assert!(lost > 0 && guest.dropped(DropReason::QueueDown) == 0, "for want of any other");
    guest.post(1, 60);
    guest.post(2, 60);
    assert!(deliver(&inlet, &frames));
    let got = guest.look();
    // A quarter of the flows each, and what would have gone to 0 and 3 goes to 1.
    assert!(got[1] > 10 && got[2] > 0, "{got:?}");
    assert_eq!((got[1] + got[2], guest.dropped(DropReason::NoBuffer)), (60, lost));
    // Those that have had some are waited for by nobody.
    assert!(deliver(&inlet, &frames) && deliver(&inlet, &frames));
    assert!(guest.dropped(DropReason::NoBuffer) > lost);
    guest.fill();
    let before = guest.look();
    assert!(deliver(&inlet, &frames));
    let got = guest.look();
    assert!(got.iter().zip(before).all(|(now, before)| now - before > 3), "all pairs: {got:?}");
    // A queue that was started anew is as new.
    let cursor = guest.stop(3);
    while guest.rx[3].driver.owed() > 0 {
        guest.start_queue(QueueIndex(6), guest.device.cursor(QueueIndex(6)).unwrap_or(cursor));
        assert!(deliver(&inlet, &frames));
        guest.look();
        guest.stop(3);
    }
    guest.start_queue(QueueIndex(6), guest.device.cursor(QueueIndex(6)).unwrap());
    (0..3).for_each(|pair| guest.post(pair, guest.rx[pair].driver.free()));
    let before = guest.look();
    assert!(deliver(&inlet, &frames));
    let got = guest.look();
    assert_eq!(got[3], before[3]);
    assert_eq!(got.iter().sum::<usize>(), before.iter().sum::<usize>() + 60);
}

#[test]
fn an_interrupt_that_comes_after_the_answer_is_raised_for_it() {
    let mut guest = Guest::new(2, &[Feature::MQ]);
    let control = guest.control.index;
    guest.device.apply(Op::SetInterrupt(control, None)).unwrap();
    assert_eq!(guest.set_pairs(2), OK);
    let bell = guest.control.bell.clone();
    let rung = bell.rung();
    let interrupt = std::sync::Arc::new(bell.clone());
    guest.device.apply(Op::SetInterrupt(control, Some(interrupt))).unwrap();
    wait("VU-MSG-05", || bell.rung() > rung);
}

#[test]
fn only_receive_and_transmit_queues_have_delays() {
    let mut guest = Guest::new(3, &[Feature::VQ_NOTF_COAL]);
    let set = |queue: u8| [6, 2, queue, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    assert_eq!([0, 1].map(|queue| guest.command(&set(queue))), [OK, OK]);
    assert_eq!([2, 3, 4].map(|queue| guest.command(&set(queue))), [ERR; 3], "NET-COAL-04");
}
