//! What passes is never above the limit, in any window of any schedule, and hardly below it.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicU64 as Clock;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SECOND: u64 = 1_000_000_000;

fn at(nanos: u64) -> Instant {
    Instant::from_nanos(nanos)
}

fn turn(bytes: Option<Rate>, frames: Option<Rate>) -> (Arc<Limit>, Turn) {
    let limit = Arc::new(Limit::new(bytes, frames));
    (Arc::clone(&limit), Turn::new(Limiter::new([limit])))
}

fn plain(count: usize, len: u32) -> impl Iterator<Item = Wire> + Clone {
    core::iter::repeat_n(wire(len, 0, 0), count)
}

/// What has passed when.
#[derive(Default)]
struct Log(Vec<(u64, u64)>);

impl Log {
    /// In no window more than the rate and the burst, or one frame that is larger.
    fn holds(&self, rate: Rate, largest: u64) -> bool {
        let above = u128::from(rate.burst.max(largest)) + 1;
        (0..self.0.len()).all(|first| {
            let mut sum = 0_u128;
            self.0[first..].iter().all(|(time, units)| {
                sum += u128::from(*units);
                let earned = u128::from(rate.per_second) * u128::from(time - self.0[first].0);
                sum <= earned / u128::from(SECOND) + above
            })
        })
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|(_, units)| units).sum()
    }
}

#[test]
fn without_limits_everything_passes_at_once() {
    assert!(Limiter::default().is_open());
    let mut open = Turn::default();
    assert_eq!(open.grant(at(0), plain(64, 1514)).frames, 64);
    let (_, mut no_rates) = turn(None, None);
    let grant = no_rates.grant(at(0), plain(64, 1514));
    assert_eq!((grant.frames, grant.until), (64, None));
    assert_eq!(no_rates.credit(at(0)), Ok(Wire { bytes: u64::MAX, frames: u64::MAX }));
}

#[test]
fn a_batch_passes_as_far_as_the_burst_and_then_at_the_rate() {
    let (_, mut turn) = turn(Some(Rate { per_second: 1_000_000, burst: 5000 }), None);
    let first = turn.grant(at(7), plain(10, 1000));
    assert_eq!((first.frames, first.paid), (5, Wire { bytes: 5000, frames: 5 }));
    // A millisecond's worth, which is one frame here.
    assert_eq!(first.until, Some(at(7 + 1_000_000)));
    let early = turn.grant(at(1_000_000), plain(5, 1000));
    assert_eq!((early.frames, early.until), (0, Some(at(7 + 1_000_000))));
    let due = turn.grant(at(7 + 1_000_000), plain(5, 1000));
    assert_eq!(due.frames, 1);
    // After a rest the burst is there again, and no more.
    assert_eq!(turn.grant(at(SECOND), plain(10, 1000)).frames, 5);
}

#[test]
fn frames_are_limited_like_bytes_and_the_stricter_wins() {
    let bytes = Some(Rate { per_second: 1_000_000, burst: 4000 });
    let frames = Some(Rate { per_second: 1000, burst: 3 });
    let (limit, mut turn) = turn(bytes, frames);
    assert_eq!(limit.rates(), [bytes, frames]);
    assert_eq!(turn.grant(at(0), plain(10, 100)).frames, 3);
    assert_eq!(turn.grant(at(SECOND), plain(10, 2000)).frames, 2);
    let segments = wire(60_054, 54, 1000);
    assert_eq!(segments, Wire { bytes: 60_054 + 59 * 54, frames: 60 });
}

#[test]
fn a_frame_larger_than_the_burst_passes_after_a_rest_and_is_paid_for() {
    let (_, mut turn) = turn(Some(Rate { per_second: 1_000_000, burst: 100 }), None);
    let first = turn.grant(at(0), plain(2, 10_000));
    assert_eq!((first.frames, first.until), (1, Some(at(10_000_000))));
    assert_eq!(turn.grant(at(9_999_999), plain(1, 10_000)).frames, 0);
    assert_eq!(turn.grant(at(10_000_000), plain(1, 10_000)).frames, 1);
}

#[test]
fn what_is_refunded_may_pass_again() {
    let (_, mut turn) = turn(Some(Rate { per_second: 1_000_000, burst: 5000 }), None);
    let grant = turn.grant(at(0), plain(5, 1000));
    assert_eq!(grant.frames, 5);
    turn.refund(Wire { bytes: 3001, frames: 3 });
    assert_eq!(turn.grant(at(0), plain(5, 1000)).frames, 3);
    turn.refund(Wire::default());
    assert_eq!(turn.grant(at(0), plain(5, 1000)).frames, 0);
}

#[test]
fn what_has_passed_on_credit_is_paid_before_there_is_more() {
    let (_, mut turn) = turn(Some(Rate { per_second: 1_000_000, burst: 5000 }), None);
    assert_eq!(turn.credit(at(0)), Ok(Wire { bytes: 5000, frames: u64::MAX }));
    turn.charge(at(0), Wire { bytes: 2000, frames: 1 });
    assert_eq!(turn.credit(at(0)), Ok(Wire { bytes: 3000, frames: u64::MAX }));
    turn.charge(at(0), Wire { bytes: 13_000, frames: 9 });
    // 10 ms of debt, and a millisecond that is worth waking for.
    assert_eq!(turn.credit(at(0)), Err(at(11_000_000)));
    assert!(turn.credit(at(10_000_000)).is_err());
    assert!(turn.credit(at(11_000_000)).is_ok());
}

#[test]
fn a_changed_rate_holds_from_then_on_with_its_burst_anew() {
    let slow = Rate { per_second: 10, burst: 10_000 };
    let (limit, mut turn) = turn(Some(slow), None);
    assert_eq!(turn.grant(at(5), plain(20, 1000)).frames, 10);
    limit.set_bytes(Some(Rate { per_second: 1_000_000, burst: 3000 }));
    turn.give_up();
    assert_eq!(turn.grant(at(5), plain(20, 1000)).frames, 3);
    assert_eq!(turn.grant(at(5 + 2_000_000), plain(20, 1000)).frames, 2);
    limit.set_bytes(None);
    turn.give_up();
    assert_eq!(turn.grant(at(5), plain(20, 1000)).frames, 20);
}

#[test]
fn a_group_holds_its_members_together() {
    let group = Arc::new(Limit::new(Some(Rate { per_second: 1_000_000, burst: 6000 }), None));
    let own = |burst| Arc::new(Limit::new(Some(Rate { per_second: 1_000_000, burst }), None));
    let mut one = Turn::new(Limiter::new([own(4000), Arc::clone(&group)]));
    let mut other = Turn::new(Limiter::new([own(4000), Arc::clone(&group)]));
    assert_eq!(one.grant(at(0), plain(10, 1000)).frames, 4, "its own limit");
    // One frame more is set aside for the first of them.
    assert_eq!(other.grant(at(0), plain(10, 1000)).frames, 1, "what the group has left");
    let total: usize = (1..=100_u64)
        .map(|ms| {
            let now = at(ms * 1_000_000);
            [&mut one, &mut other].map(|turn| turn.grant(now, plain(10, 1000)).frames)
        })
        .map(|[one, other]| one + other)
        .sum();
    assert!((98..=101).contains(&total), "a hundred in a tenth of a second: {total}");
}

#[test]
fn a_bucket_forgets_what_was_long_ago_whatever_the_clock_says() {
    let (limit, mut turn) = turn(Some(Rate { per_second: 1_000_000, burst: 5000 }), None);
    let year = 365 * 24 * 3600 * SECOND;
    // The count of parts wraps after 18 years.
    for days in [0, 1, 400, 6671, 6672, 9000, 20_000] {
        let now = at(year / 365 * days);
        assert_eq!(turn.grant(now, plain(9, 1000)).frames, 5, "after {days} days");
    }
    limit.set_bytes(limit.rates()[0]);
    turn.give_up();
    let before_wrap = at((1 << 59) - 10);
    assert_eq!(turn.grant(before_wrap, plain(9, 1000)).frames, 5, "a new bucket is full");
}

#[test]
fn nobody_can_take_between_a_look_and_its_taking() {
    let bucket = Bucket::default();
    bucket.set(Some(Rate { per_second: 1000, burst: 10 }));
    let level = bucket.level(0).unwrap();
    assert!(bucket.take(0, &level, 10));
    assert!(!bucket.take(0, &level, 10), "somebody has");
}

#[test]
fn a_grant_that_fails_halfway_takes_nothing() {
    let own = Arc::new(Limit::new(Some(Rate { per_second: 1000, burst: 10 }), None));
    let group = Arc::new(Limit::new(Some(Rate { per_second: 1000, burst: 10 }), None));
    let limiter = Limiter::new([Arc::clone(&own), Arc::clone(&group)]);
    let levels = limiter.levels(0, Wire::NONE);
    group.bytes.charge(0, 1);
    assert!(!limiter.take(0, &levels, Wire { bytes: 9, frames: 1 }));
    assert!(own.bytes.level(0).unwrap().room() >= 9);
    assert_eq!(group.bytes.level(0).unwrap().room(), 9);
}

#[test]
fn threads_that_share_a_limit_do_not_exceed_it_together() {
    let rate = Rate { per_second: 50_000_000, burst: 200_000 };
    let (limit, _) = turn(Some(rate), None);
    let clock = Clock::new(1);
    let passed: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut turn = Turn::new(Limiter::new([Arc::clone(&limit)]));
                    (0..5000).fold(0, |sum, round| {
                        let now = at(clock.fetch_add(1000, Ordering::Relaxed));
                        let grant = turn.grant(now, plain(8, 1000));
                        let unsent = Wire { bytes: grant.paid.bytes / 4, frames: 0 };
                        if round % 3 == 0 {
                            turn.refund(unsent);
                            sum + grant.paid.bytes - unsent.bytes
                        } else {
                            sum + grant.paid.bytes
                        }
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let time = clock.into_inner();
    let most = rate.per_second * time / SECOND + rate.burst;
    assert!(passed <= most, "{passed} of {most}");
    assert!(passed >= most / 100 * 95, "{passed} of {most}");
}

/// From a rate of 10 to this power on.
fn any_rate(least: u64) -> impl Strategy<Value = Rate> {
    (least..12, 1_u64..10, 0_u64..8, 0_u64..10).prop_map(|(exponent, digit, burst, rest)| Rate {
        per_second: digit * 10_u64.pow(u32::try_from(exponent).unwrap()),
        burst: rest * 10_u64.pow(u32::try_from(burst).unwrap()),
    })
}

fn any_batch() -> impl Strategy<Value = Vec<Wire>> {
    let frame = (60_u32..65_554, prop_oneof![Just(0_u16), 1_u16..3000]);
    prop::collection::vec(frame.prop_map(|(len, size)| wire(len, 54, size)), 1..20)
}

proptest! {
    #[test]
    fn a_cut_frame_is_the_sum_of_its_segments(
        len in 0_u32..65_600,
        header_len in 0_u32..200,
        size in 0_u16..2000,
    ) {
        let mut sum = Wire { bytes: 0, frames: 0 };
        let mut left = len.saturating_sub(header_len);
        loop {
            let part = if size == 0 { left } else { left.min(size.into()) };
            let bytes = u64::from(part + header_len.min(len));
            sum = sum.plus(Wire { bytes, frames: 1 });
            left -= part;
            if left == 0 {
                break;
            }
        }
        prop_assert_eq!(wire(len, header_len, size), sum);
    }

    #[test]
    fn no_window_of_any_schedule_is_above_the_limit(
        bytes in any_rate(1),
        frames in any_rate(1),
        start in any::<u64>(),
        steps in prop::collection::vec((0_u64..5_000_000, any_batch(), 0_usize..3), 1..60),
    ) {
        let (_, mut turn) = turn(Some(bytes), Some(frames));
        let (mut now, mut logs) = (start / 2, [Log::default(), Log::default()]);
        let largest = steps.iter().flat_map(|(_, batch, _)| batch);
        let largest = largest.fold([0, 0], |[b, f], one| [one.bytes.max(b), one.frames.max(f)]);
        for (pause, batch, unsent) in steps {
            now += pause;
            let grant = turn.grant(at(now), batch.iter().copied());
            prop_assert!(grant.frames == batch.len() || grant.until.is_some());
            let sent = grant.frames.saturating_sub(unsent);
            let sum = |part: &[Wire]| part.iter().fold(Wire::default(), |a, b| a.plus(*b));
            turn.refund(sum(&batch[sent..grant.frames]));
            let sent = sum(&batch[..sent]);
            for (log, units) in logs.iter_mut().zip([sent.bytes, sent.frames]) {
                log.0.push((now, units));
            }
        }
        prop_assert!(logs[0].holds(bytes, largest[0]));
        prop_assert!(logs[1].holds(frames, largest[1]));
    }

    /// Whoever comes when told, or somewhat later, gets what there is.
    #[test]
    fn a_sender_that_never_rests_gets_the_rate(
        exponent in 4_u32..11,
        digit in 1_u64..10,
        burst_ms in 4_u64..200,
        len in 60_u32..1515,
        late in 0_u64..1000,
        batch in 1_usize..64,
    ) {
        let per_second = digit * 10_u64.pow(exponent);
        let burst = (per_second / 1000 * burst_ms).max(4 * 1514);
        let rate = Rate { per_second, burst };
        let (_, mut turn) = turn(Some(rate), None);
        let (mut now, mut log) = (0, Log::default());
        // What the pauses are long beyond what was asked for, in parts of the burst.
        let late = (burst / 4).saturating_mul(SECOND) / per_second * late / 1000;
        for _ in 0..1000 {
            let grant = turn.grant(at(now), plain(batch, len));
            log.0.push((now, grant.paid.bytes));
            if let Some(until) = grant.until {
                prop_assert!(until > at(now));
                now = until.nanos() + late;
            }
        }
        let due = u128::from(per_second) * u128::from(now) / u128::from(SECOND);
        prop_assert!(u128::from(log.total()) >= due * 99 / 100, "{} of {due}", log.total());
        prop_assert!(u128::from(log.total()) <= due + u128::from(burst.max(len.into())) + 1);
    }

    #[test]
    fn credit_is_exceeded_by_one_charge_at_most(
        // Slower ones are in debt for more than an hour, which is forgiven.
        rate in any_rate(3),
        steps in prop::collection::vec((0_u64..5_000_000, any_batch()), 1..60),
    ) {
        let (_, mut turn) = turn(Some(rate), None);
        let (mut now, mut log, mut largest) = (0, Log::default(), 0);
        for (pause, batch) in steps {
            now += pause;
            match turn.credit(at(now)) {
                Ok(_) => {
                    let passed = batch.iter().fold(Wire::default(), |a, b| a.plus(*b));
                    turn.charge(at(now), passed);
                    log.0.push((now, passed.bytes));
                    largest = passed.bytes.max(largest);
                }
                Err(until) => prop_assert!(until > at(now)),
            }
        }
        let most = Rate { burst: rate.burst + largest, ..rate };
        prop_assert!(log.holds(most, 0));
    }
}

#[test]
fn no_rest_is_so_long_that_it_looks_like_a_debt() {
    let hour = 3600 * SECOND;
    // Were the parts finer, their count would have come round by less than the longest debt.
    for rest in [24, 834 * 24 - 1, 834 * 24 - 15, 4 * 834 * 24 - 1, 15 * 365 * 24] {
        let bucket = Bucket::default();
        bucket.set(Some(Rate { per_second: 1000, burst: 10 }));
        bucket.charge(parts(at(hour)), 10);
        let later = parts(at(hour + rest * hour));
        assert_eq!(bucket.level(later).unwrap().room(), 10, "after {rest} hours");
    }
}

#[test]
fn no_debt_is_so_large_that_it_is_forgotten() {
    let bucket = Bucket::default();
    bucket.set(Some(Rate { per_second: 1, burst: 1 }));
    let now = parts(at(SECOND));
    for pair in 1..200 {
        bucket.charge(now, u64::MAX);
        assert_eq!(bucket.level(now).unwrap().room(), 0, "with {pair} that owe");
    }
}

#[test]
fn what_was_seen_of_a_bucket_is_worth_nothing_once_its_rate_has_changed() {
    let bucket = Bucket::default();
    bucket.set(Some(Rate { per_second: 1, burst: 1 }));
    let now = parts(at(SECOND));
    let seen = bucket.level(now).unwrap();
    bucket.set(Some(Rate { per_second: 1_000_000, burst: 1000 }));
    assert!(!bucket.take(now, &seen, 1000), "at the old rate that is a quarter of an hour");
    assert_eq!(bucket.level(now).unwrap().room(), 1000);
}

/// A pair in a race: its device, its turn, when it comes again, and what it has got.
struct Runner {
    device: usize,
    turn: Turn,
    next: u64,
    bytes: u64,
}

/// Pairs of several devices that share a limit, all of which have more to move at any time.
struct Race(Vec<Runner>);

impl Race {
    /// Of devices with so many pairs each.
    fn new(rate: Rate, devices: &[u16]) -> Self {
        let group = Arc::new(Limit::new(Some(rate), None));
        let runners = devices.iter().enumerate().flat_map(|(device, count)| {
            let line = (*count > 1).then(|| Arc::new(Line::new(*count)));
            let group = &group;
            (0..*count).map(move |index| {
                let place = line.as_ref().map(|line| line.place(index, true));
                let turn = Turn::among(Limiter::new([Arc::clone(group)]), place);
                Runner { device, turn, next: SECOND, bytes: 0 }
            })
        });
        Self(runners.collect())
    }

    /// Lets them ask so many times. Each comes when it was told to, or up to `late` nanoseconds
    /// after that; if `eager`, the first one also every 10 microseconds before.
    fn run(
        &mut self,
        asks: usize,
        (late, eager): (u64, bool),
        take: impl Fn(&mut Turn, Instant) -> u64,
    ) {
        let mut random = 1_u64;
        for _ in 0..asks {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let runners = self.0.iter_mut().enumerate();
            let (place, runner) = runners.min_by_key(|(_, runner)| runner.next).unwrap();
            let now = at(runner.next);
            runner.bytes += take(&mut runner.turn, now);
            let told = runner.turn.waits(now).map_or(runner.next, Instant::nanos);
            let comes = told + 1 + (random >> 33) % (late + 1);
            let is_eager = eager && place == 0;
            runner.next = if is_eager { comes.min(runner.next + 10_000) } else { comes };
        }
    }

    /// After what has been there at first is gone, what each has got in the same time.
    fn shares(mut self, how: (u64, bool), take: impl Fn(&mut Turn, Instant) -> u64) -> Shares {
        let (_, eager) = how;
        let asks = if eager { 100_000 } else { 10_000 };
        self.run(2000, how, &take);
        self.0.iter_mut().for_each(|runner| runner.bytes = 0);
        self.run(asks, how, &take);
        let devices = self.0.last().map_or(0, |last| last.device + 1);
        let of = |device| self.0.iter().filter(move |runner| runner.device == device);
        Shares((0..devices).map(|device| of(device).map(|runner| runner.bytes).collect()).collect())
    }
}

/// What the pairs of each device have got.
#[derive(Debug)]
struct Shares(Vec<Vec<u64>>);

impl Shares {
    /// Whether each device has its share, and each pair its share of that, but for so many parts
    /// of a hundred.
    fn are_equal(&self, devices: u64, pairs: u64) -> bool {
        let sums: Vec<u64> = self.0.iter().map(|pairs| pairs.iter().sum()).collect();
        is_even(&sums, devices) && self.0.iter().all(|all| is_even(all, pairs))
    }
}

fn is_even(all: &[u64], tolerance: u64) -> bool {
    let mean = all.iter().sum::<u64>() / u64::try_from(all.len()).unwrap();
    all.iter().all(|one| one.abs_diff(mean) * 100 <= mean * tolerance)
}

/// Sends from a full queue of frames of this length.
fn send(len: u32) -> impl Fn(&mut Turn, Instant) -> u64 {
    move |turn, now| turn.grant(now, plain(64, len)).paid.bytes
}

/// Receives from a full socket, as far as there is credit.
fn fetch(len: u32) -> impl Fn(&mut Turn, Instant) -> u64 {
    move |turn, now| {
        let Ok(credit) = turn.credit(now) else { return 0 };
        let frames = credit.bytes.div_ceil(len.into()).min(64);
        turn.charge(now, Wire { bytes: frames * u64::from(len), frames });
        frames * u64::from(len)
    }
}

#[test]
fn a_device_with_more_pairs_has_no_more_of_a_group() {
    for (megabits, len) in [(10, 1514), (100, 9000), (1000, 1514), (1000, 65_000)] {
        let rate = Rate::of(megabits * 1_000_000 / 8);
        for devices in [&[8, 1][..], &[1, 8, 2], &[4, 4], &[2]] {
            // Late by less than what a turn takes, and by all of it.
            for (late, devices_in, pairs_in) in [(0, 2, 2), (50_000, 2, 2), (1_000_000, 30, 20)] {
                let what = format!("{megabits} Mbit/s, frames of {len}, {devices:?}, late {late}");
                let sent = Race::new(rate, devices).shares((late, false), send(len));
                assert!(sent.are_equal(devices_in, pairs_in), "{what}: sent {sent:?}");
                let got = Race::new(rate, devices).shares((late, false), fetch(len));
                assert!(got.are_equal(devices_in, pairs_in), "{what}: got {got:?}");
            }
        }
    }
}

#[test]
fn a_pair_that_asks_all_the_time_gets_no_more_than_its_siblings() {
    let rate = Rate::of(125_000_000);
    for devices in [&[4][..], &[4, 1], &[1, 4]] {
        let sent = Race::new(rate, devices).shares((50_000, true), send(1514));
        assert!(sent.are_equal(3, 3), "{devices:?}: {sent:?}");
    }
}

#[test]
fn nobody_waits_for_long_for_a_pair_that_does_not_come_again() {
    let rate = Rate { per_second: 1_000_000, burst: 20_000 };
    for gone in 0..3 {
        let mut race = Race::new(rate, &[3]);
        race.run(500, (1000, false), send(1000));
        let from = race.0.iter().map(|runner| runner.next).min().unwrap();
        race.0.iter_mut().for_each(|runner| runner.bytes = 0);
        race.0[gone].next = u64::MAX;
        race.run(2000, (1000, false), send(1000));
        let to = race.0.iter().map(|runner| runner.next).min().unwrap();
        let got: u64 = race.0.iter().map(|runner| runner.bytes).sum();
        let due = rate.per_second * (to - from) / SECOND;
        assert!(got >= due / 100 * 97, "without pair {gone}: {got} of {due}");
        let others: Vec<_> = (0..3).filter(|at| *at != gone).map(|at| race.0[at].bytes).collect();
        assert!(is_even(&others, 3), "without pair {gone}: {others:?}");
    }
}

#[test]
fn what_others_deliver_waits_for_nobody_who_may_not_come() {
    let line = Arc::new(Line::new(2));
    let limit = Arc::new(Limit::new(Some(Rate { per_second: 1_000_000, burst: 2000 }), None));
    let turn = |index| {
        let limiter = Limiter::new([Arc::clone(&limit)]);
        Turn::among(limiter, Some(line.place(index, false)))
    };
    let (mut one, mut other) = (turn(0), turn(1));
    one.charge(at(SECOND), Wire { bytes: 2000, frames: 2 });
    let due = one.credit(at(SECOND)).unwrap_err();
    // The device has booked once, for whichever pair, and what is due is taken by who comes.
    assert!(other.credit(at(SECOND)).unwrap_err() >= due);
    let later = due.after(Duration::from_nanos(1_000_000));
    assert!(other.credit(later).is_ok(), "nothing more has come for the first");
}
