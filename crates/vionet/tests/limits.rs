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
use vionet::endpoint::{Delivery, Inlet, Refused, RxHeader, Watch};
use vionet::limit::{Limit, Limiter, Rate};
use vionet::stats::DropReason;
use vionet::{Instant, Limits, Next, Op};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, NetHeader, Request};
use vionet_spec::feature::Feature;

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
    assert_eq!(bench.step().next, Next::Again);
    assert_eq!(bench.rx.collect().len(), 2);
    assert_eq!(bench.host.lock().unwrap().to_deliver.len(), 4, "the rest waits with the host");
    for more in 1..=4 {
        let held = wait(&mut bench);
        assert!(!held.readable && bench.rx.collect().is_empty());
        bench.now = held.deadline.expect("a time to go on");
        assert_eq!(bench.now, Instant::from_nanos(SECOND).after(more * TENTH));
        assert_eq!(bench.step().next, Next::Again);
        assert_eq!(bench.rx.collect().len(), 1);
    }
    // With nothing to receive there is nothing to wait for but the host side.
    bench.now = bench.now.after(3 * TENTH);
    let watch = wait(&mut bench);
    assert!(watch.readable && watch.deadline.is_none());
    assert_eq!(bench.stats().rx.limited.value(), 4, "each time it began to wait");
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

/// A megabyte in a second, four frames of 1000 bytes at once.
fn shared() -> Limiter {
    Limiter::new([Arc::new(Limit::new(Some(Rate { per_second: 1_000_000, burst: 4000 }), None))])
}

/// Frames that two have moved in a second when both always have more, and share a limit; the first
/// is stepped every `pause` microseconds, the other as it asks to be, and not before the first.
fn race(
    pause: u64,
    limits: Limits,
    mut more: impl FnMut(&mut Bench),
    moved: impl Fn(&Bench) -> usize,
) -> [usize; 2] {
    let mut benches = [limited(limits.clone()), limited(limits)];
    let mut due = [Instant::from_nanos(0); 2];
    for tick in 0..10_000_u64 {
        let now = Instant::from_nanos(SECOND + tick * 100_000);
        for (at, bench) in benches.iter_mut().enumerate() {
            bench.now = now;
            let is_eager = at == 0 && pause > 0 && (tick * 100).is_multiple_of(pause);
            if now < due[at] && !is_eager {
                continue;
            }
            more(bench);
            due[at] = loop {
                let step = bench.step();
                if let Next::Wait(watch) = step.next {
                    break watch.deadline.expect("both have more");
                }
            };
        }
    }
    benches.each_ref().map(moved)
}

fn is_fair([one, other]: [usize; 2]) -> bool {
    let all = one + other;
    // A thousand in a second, the first four at once.
    (950..=1004).contains(&all) && one * 10 <= all * 6 && other * 10 <= all * 6
}

#[test]
fn those_that_share_a_limit_have_equal_shares_however_often_one_asks() {
    for pause in [0, 100] {
        let limits = Limits { transmit: shared(), ..Limits::default() };
        let more = |bench: &mut Bench| {
            let queued = bench.host.lock().unwrap().sent.len() + 8;
            bench.used_tx();
            while bench.posted < queued {
                bench.posted += 1;
                bench.send(&NetHeader::default(), &frame(1000), &[]);
            }
        };
        let sent = race(pause, limits, more, |bench| bench.sent().len());
        assert!(is_fair(sent), "asked every {pause} us: {sent:?}");
    }
}

#[test]
fn those_that_share_a_receive_limit_have_equal_shares_too() {
    for pause in [0, 100] {
        let limits = Limits { receive: shared(), ..Limits::default() };
        let more = |bench: &mut Bench| {
            bench.rx.collect();
            while bench.posted < bench.stats().rx.frames() as usize + 32 {
                bench.posted += 1;
                bench.post(1100);
            }
            while bench.host.lock().unwrap().to_deliver.len() < 16 {
                bench.deliver(&frame(1000), RxHeader::default());
            }
        };
        let got = race(pause, limits, more, |bench| bench.stats().rx.frames() as usize);
        assert!(is_fair(got), "asked every {pause} us: {got:?}");
    }
}

/// A TCP frame to be cut into segments of so many bytes, its own headers `header` bytes long.
fn to_be_cut(header: usize, payload: usize, size: u16) -> (Vec<u8>, Request) {
    let mut bytes = frame(header + payload);
    bytes[34 + 12] = u8::try_from((header - 34) / 4).unwrap() << 4;
    let csum = Some(CsumAt { start: 34, offset: 16 });
    let gso = Some(GsoRequest { kind: Gso::TcpV4, size, ecn: false });
    (bytes, Request { csum, gso, tunnel: None })
}

fn bytes(per_second: u64, burst: u64) -> Limiter {
    Limiter::new([Arc::new(Limit::new(Some(Rate { per_second, burst }), None))])
}

#[test]
fn a_sent_frame_pays_its_headers_once_a_segment_with_their_options() {
    let features = [Feature::CSUM, Feature::HOST_TSO4];
    for header in [54, 94] {
        let mut bench = Bench::new(&features, EVERYTHING);
        bench.now = Instant::from_nanos(SECOND);
        let limits = Limits { transmit: bytes(1_000_000, 100), ..Limits::default() };
        bench.apply(Op::SetLimits(Some(limits))).unwrap();
        let (bytes, request) = to_be_cut(header, 1000, 10);
        bench.send(&request.to_header(0), &bytes, &[]);
        bench.send(&NetHeader::default(), &frame(100), &[]);
        let watch = wait(&mut bench);
        assert_eq!(bench.sent().len(), 1);
        // The second one may go after a rest: when the first is paid for.
        let paid = watch.deadline.unwrap().since(bench.now).as_micros();
        assert_eq!(paid, 1000 + 100 * header as u128);
    }
}

#[test]
fn a_received_frame_pays_for_each_segment_it_is_on_a_wire() {
    let features = [Feature::GUEST_CSUM, Feature::GUEST_TSO4, Feature::MRG_RXBUF];
    for by_window in [false, true] {
        let mut bench = Bench::new(&features, EVERYTHING);
        bench.host.lock().unwrap().by_window = by_window;
        bench.now = Instant::from_nanos(SECOND);
        bench.apply(Op::SetLimits(Some(Limits { receive: ten(), ..Limits::default() }))).unwrap();
        for _ in 0..8 {
            bench.post(4000);
        }
        let (bytes, request) = to_be_cut(54, 7000, 1000);
        bench.deliver(&bytes, RxHeader { request, ..RxHeader::default() });
        bench.deliver(&frame(60), RxHeader::default());
        let start = bench.now;
        while bench.stats().rx.frames() < 2 {
            let watch = loop {
                if let Next::Wait(watch) = bench.step().next {
                    break watch;
                }
            };
            if bench.stats().rx.frames() < 2 {
                bench.now = watch.deadline.expect("held back");
            }
        }
        let waited = bench.now.since(start);
        assert!(waited >= 5 * TENTH, "seven of ten in a second, two at once: {waited:?}");
        assert!(waited <= 8 * TENTH, "{waited:?}");
    }
}

/// What is in a guest's buffers already must not vanish without being counted.
#[test]
fn no_window_is_opened_when_a_step_has_had_enough_of_bad_frames() {
    let thousand = Limiter::new([Arc::new(Limit::new(None, Some(Rate::of(1000))))]);
    for limits in [None, Some(Limits { receive: thousand, ..Limits::default() })] {
        let mut bench = Bench::new(&[], EVERYTHING);
        bench.now = Instant::from_nanos(SECOND);
        bench.apply(Op::SetLimits(limits)).unwrap();
        bench.post(2000);
        (bench.host.lock().unwrap().by_window, bench.host.lock().unwrap().bad) = (true, 64);
        bench.deliver(&frame(60), RxHeader::default());
        assert_eq!(bench.step().next, Next::Again, "the step is full, and there is more");
        assert_eq!(bench.stats().rx.frames(), 0);
        assert!(bench.step().worked);
        assert_eq!(bench.stats().rx.frames(), 1);
    }
}

fn push(bench: &Bench, inlet: &Inlet, count: usize) -> Vec<Result<(), Refused>> {
    let mut results = Vec::new();
    let delivery = inlet.deliver(bench.now, |sink| {
        for _ in 0..count {
            results.push(sink.push(&RxHeader::PLAIN, &frame(60)));
        }
    });
    assert_eq!(delivery, Delivery::Done);
    results
}

#[test]
fn what_others_deliver_is_dropped_above_the_limit_though_the_worker_sleeps() {
    let inlet = Arc::new(Inlet::new().unwrap());
    let mut bench = Bench::idle(EVERYTHING);
    bench.host.lock().unwrap().inlet = Some(Arc::clone(&inlet));
    bench.apply(Op::Negotiate(Bench::bits(&[Feature::MRG_RXBUF]))).unwrap();
    bench.start_queues();
    bench.now = Instant::from_nanos(SECOND);
    for _ in 0..40 {
        bench.post(100);
    }
    bench.apply(Op::SetLimits(Some(Limits { receive: ten(), ..Limits::default() }))).unwrap();
    // A guest that wants no interrupts never has its own worker woken.
    let passed = push(&bench, &inlet, 5).iter().filter(|pushed| pushed.is_ok()).count();
    assert_eq!(passed, 2, "the burst");
    let mut passed = 0;
    for _ in 0..20 {
        bench.now = bench.now.after(TENTH);
        passed += push(&bench, &inlet, 5).iter().filter(|pushed| pushed.is_ok()).count();
    }
    assert!((19..=21).contains(&passed), "ten in a second: {passed}");
    let told = bench.stats().rx.snapshot();
    assert_eq!(told.drops_total(), 105 - 2 - passed as u64);
    let named = told.drops().find(|(why, _)| why.name() == "rate-limited").map(|all| all.1);
    assert_eq!(named, Some(told.drops_total()));
    bench.apply(Op::SetLimits(None)).unwrap();
    assert_eq!(push(&bench, &inlet, 5), [Ok(()); 5]);
}

#[test]
fn a_frame_that_waits_is_counted_once_however_often_it_is_looked_at() {
    let mut bench = limited(Limits { transmit: ten(), ..Limits::default() });
    for len in 60..65 {
        bench.send(&NetHeader::default(), &frame(len), &[]);
    }
    for _ in 0..7 {
        wait(&mut bench);
    }
    let stats = bench.stats();
    assert_eq!((stats.tx.limited.value(), stats.tx.limited_bytes.value()), (3, 62 + 63 + 64));
}

#[test]
fn what_was_set_aside_for_a_pair_is_free_again_when_it_has_no_use_for_it() {
    let limit = Arc::new(Limit::new(None, Some(Rate { per_second: 10, burst: 2 })));
    let limits =
        || Limits { transmit: Limiter::new([Arc::clone(&limit)]), receive: Limiter::default() };
    let mut one = limited(limits());
    for _ in 0..4 {
        one.send(&NetHeader::default(), &frame(60), &[]);
    }
    wait(&mut one);
    assert_eq!(one.sent().len(), 2);
    let how: [fn(&mut Bench); 3] = [
        |bench| bench.apply(Op::Reset).unwrap(),
        |bench| bench.apply(Op::SetLimits(None)).unwrap(),
        |bench| {
            bench.apply(Op::SetLink(false)).unwrap();
            wait(bench);
            wait(bench);
        },
    ];
    for end in how {
        end(&mut one);
        let mut other = limited(limits());
        // What is given back is rounded down, by less than a nanosecond's worth.
        other.now = Instant::from_nanos(SECOND + 1).after(TENTH);
        other.send(&NetHeader::default(), &frame(60), &[]);
        wait(&mut other);
        assert_eq!(other.sent().len(), 1, "a tenth of a second is a frame");
        limit.set_frames(Some(Rate { per_second: 10, burst: 2 }));
        one = limited(limits());
        for _ in 0..4 {
            one.send(&NetHeader::default(), &frame(60), &[]);
        }
        wait(&mut one);
    }
}
