//! The host's rate limits: who is held up, until when, and who pays for what.
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

use std::sync::Arc;
use std::time::Duration;

use bench::{Bench, EVERYTHING, frame};
use vionet::endpoint::{RxHeader, Watch};
use vionet::limit::{Limit, Limiter, Rate};
use vionet::stats::DropReason;
use vionet::{Instant, Limits, Next, Op};
use vionet_frame::header::NetHeader;

const SECOND: u64 = 1_000_000_000;
const TENTH: Duration = Duration::from_millis(100);

/// Ten frames a second, two at once.
fn ten() -> Limiter {
    Limiter::new([Arc::new(Limit::new(None, Some(Rate { per_second: 10, burst: 2 })))])
}

fn limited(limits: Limits) -> Bench {
    let mut bench = Bench::new(&[], EVERYTHING);
    // A rest, so that the first burst is whole.
    bench.now = Instant::from_nanos(SECOND);
    bench.apply(Op::SetLimits(Some(limits))).unwrap();
    bench
}

/// One step that has to end with a wait.
fn wait(bench: &mut Bench) -> Watch {
    let step = bench.step();
    let Next::Wait(watch) = step.next else { panic!("{:?}", step.next) };
    assert!(watch.deadline.is_none_or(|at| at > bench.now), "a wait for the past is none");
    watch
}

#[test]
fn frames_above_the_rate_stay_with_the_guest_until_there_is_credit() {
    let mut bench = limited(Limits { transmit: ten(), ..Limits::default() });
    for len in 60..65 {
        bench.send(&NetHeader::default(), &frame(len), &[]);
    }
    for sent in 2..5 {
        let watch = wait(&mut bench);
        assert_eq!(bench.sent().len(), sent);
        let again = wait(&mut bench);
        assert_eq!(bench.sent().len(), sent, "time stands still");
        let at = watch.deadline.expect("a time to go on");
        assert!(again.deadline == Some(at) && at <= bench.now.after(TENTH), "{at:?}");
        bench.now = at;
    }
    assert_eq!(wait(&mut bench).deadline, None);
    let lens: Vec<_> = bench.sent().iter().map(Vec::len).collect();
    assert_eq!(lens, [60, 61, 62, 63, 64], "in order, each once");
    assert_eq!(bench.used_tx().len(), 5);
    assert!(bench.stats().tx.limited.value() > 0);
}

#[test]
fn what_the_host_has_no_room_for_is_not_paid() {
    let mut bench = limited(Limits { transmit: ten(), ..Limits::default() });
    bench.host.lock().unwrap().room = Some(0);
    for _ in 0..2 {
        bench.send(&NetHeader::default(), &frame(60), &[]);
    }
    for _ in 0..5 {
        wait(&mut bench);
    }
    bench.host.lock().unwrap().room = None;
    // A refund is rounded down, by less than a nanosecond's worth.
    bench.now = bench.now.after(Duration::from_micros(1));
    wait(&mut bench);
    assert_eq!(bench.sent().len(), 2);
}

#[test]
fn nobody_waits_for_credit_that_is_not_needed_any_more() {
    let mut bench = limited(Limits { transmit: ten(), ..Limits::default() });
    for _ in 0..5 {
        bench.send(&NetHeader::default(), &frame(60), &[]);
    }
    assert!(wait(&mut bench).deadline.is_some());
    bench.apply(Op::SetLink(false)).unwrap();
    bench.now = Instant::from_nanos(9 * SECOND);
    assert_eq!(wait(&mut bench).deadline, None);
    assert_eq!(bench.drops(false, DropReason::LinkDown), 3);
}

#[test]
fn the_host_side_is_not_asked_while_the_guest_has_had_enough() {
    let mut bench = limited(Limits { receive: ten(), ..Limits::default() });
    for _ in 0..20 {
        bench.post(1600);
    }
    for _ in 0..6 {
        bench.deliver(&frame(60), RxHeader::default());
    }
    // What is there goes in one batch, and is paid afterwards.
    assert!(wait(&mut bench).readable);
    assert_eq!(bench.rx.collect().len(), 6);
    bench.deliver(&frame(60), RxHeader::default());
    let held = wait(&mut bench);
    assert!(!held.readable && bench.rx.collect().is_empty());
    bench.now = held.deadline.expect("a time to go on");
    assert!(bench.now >= Instant::from_nanos(SECOND).after(4 * TENTH), "four too many");
    wait(&mut bench);
    assert_eq!(bench.rx.collect().len(), 1);
}

#[test]
fn limits_come_and_go_while_frames_wait() {
    let mut bench = limited(Limits { transmit: ten(), ..Limits::default() });
    for _ in 0..9 {
        bench.send(&NetHeader::default(), &frame(60), &[]);
    }
    wait(&mut bench);
    assert_eq!(bench.sent().len(), 2);
    bench.apply(Op::SetLimits(None)).unwrap();
    assert!(bench.nic.limits().is_none());
    wait(&mut bench);
    assert_eq!(bench.sent().len(), 9);
}
