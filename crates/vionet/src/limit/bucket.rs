//! A bucket: the state of one rate, in one number that is loaded, and exchanged if nobody was
//! quicker.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::{ATTEMPTS, Rate};
use crate::time::Instant;

/// Parts of a nanosecond in which buckets count, so that short frames at high rates are not
/// charged by rounding. Fewer parts, and 64 bits last for longer: 18 years here.
pub(super) const PARTS: u64 = 32;
const PARTS_PER_SECOND: u64 = 1_000_000_000 * PARTS;
/// The longest burst, and the longest a charge can take: over an hour.
const FAR: u64 = 1 << 47;
/// The longest debt. A bucket that is ahead by more than this is not ahead: its time is from long
/// ago.
const FARTHEST: u64 = FAR << 4;
/// Below this it is no time but a name, of a bucket whose rate has been changed and that has not
/// been used since: it is full.
const NAMES: u64 = 1 << 16;
/// Nobody is woken for less than a millisecond's worth, unless the burst is shorter.
const WORTHWHILE: u64 = 1_000_000 * PARTS;

/// One rate's state.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// 0 for no limit.
    per_second: AtomicU64,
    burst: AtomicU64,
    /// When the bucket is full again, in parts of a nanosecond, modulo 2^64.
    full_at: AtomicU64,
    /// How often the rate has been changed: what was seen before is told from what is now.
    changes: AtomicU64,
}

/// A bucket at one moment.
#[derive(Clone, Copy)]
pub(super) struct Level {
    seen: u64,
    per_second: u64,
    /// How long it takes until the bucket is full.
    ahead: u64,
    /// The same for an empty bucket.
    burst: u64,
}

impl Bucket {
    pub(super) fn set(&self, rate: Option<Rate>) {
        let rate = rate.unwrap_or(Rate { per_second: 0, burst: 0 });
        self.burst.store(rate.burst, Ordering::Relaxed);
        self.per_second.store(rate.per_second, Ordering::Relaxed);
        let name = self.changes.fetch_add(1, Ordering::Relaxed).wrapping_rem(NAMES);
        self.full_at.store(name, Ordering::Relaxed);
    }

    pub(super) fn rate(&self) -> Option<Rate> {
        let per_second = self.per_second.load(Ordering::Relaxed);
        let burst = self.burst.load(Ordering::Relaxed);
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// `None` without a limit.
    #[inline]
    pub(super) fn level(&self, now: u64) -> Option<Level> {
        let Rate { per_second, burst } = self.rate()?;
        let seen = self.full_at.load(Ordering::Relaxed);
        let ahead = seen.wrapping_sub(now);
        let ahead = if seen < NAMES || ahead > FARTHEST { 0 } else { ahead };
        Some(Level { seen, per_second, ahead, burst: time_of(burst, per_second) })
    }

    /// Takes `units` if nobody has taken any since `level` was seen.
    pub(super) fn take(&self, now: u64, level: &Level, units: u64) -> bool {
        let ahead = level.ahead.saturating_add(time_of(units, level.per_second)).min(FARTHEST);
        let after = now.wrapping_add(ahead);
        let taken =
            self.full_at.compare_exchange(level.seen, after, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok()
    }

    /// Takes `units`, whether or not there is room for them.
    pub(super) fn charge(&self, now: u64, units: u64) {
        for _ in 0..ATTEMPTS {
            let Some(level) = self.level(now) else { return };
            if self.take(now, &level, units) {
                return;
            }
        }
        // Others are quicker, so it is not full any more, and time can be added to it.
        let per_second = self.per_second.load(Ordering::Relaxed);
        self.full_at.fetch_add(time_of(units, per_second), Ordering::Relaxed);
    }

    pub(super) fn refund(&self, units: u64) {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second > 0 {
            self.full_at.fetch_sub(back(units, per_second), Ordering::Relaxed);
        }
    }

    /// Undoes a [`Self::take`] of `units` from a level without `prepaid`.
    pub(super) fn untake(&self, level: &Level, units: u64, prepaid: u64) {
        self.full_at.fetch_sub(back(units, level.per_second), Ordering::Relaxed);
        self.full_at.fetch_add(back(prepaid, level.per_second), Ordering::Relaxed);
    }
}

impl Level {
    /// The units that fit now.
    pub(super) fn room(&self) -> u64 {
        self.units(self.burst.saturating_sub(self.ahead))
    }

    /// Whether `units` may pass: there is room, or there has been a rest.
    pub(super) fn fits(&self, units: u64) -> bool {
        self.ahead == 0 || units <= self.room()
    }

    /// What those that wait take at a time: as much as it is worth waking for.
    pub(super) fn quantum(&self) -> u64 {
        self.units(WORTHWHILE.min(self.burst >> 1)).max(1)
    }

    /// The same bucket, had `prepaid` units not been taken before.
    pub(super) fn without(self, prepaid: u64) -> Self {
        let ahead = self.ahead.saturating_sub(back(prepaid, self.per_second));
        Self { ahead, ..self }
    }

    /// After so many units were taken, how long to wait for those that are `booked`.
    pub(super) fn wait(&self, taken: u64, booked: u64) -> u64 {
        let ahead = self.ahead.saturating_add(time_of(taken, self.per_second));
        let wanted = time_of(booked, self.per_second).min(self.burst);
        ahead.saturating_add(wanted).saturating_sub(self.burst)
    }

    /// The units that take so long.
    fn units(&self, time: u64) -> u64 {
        let units = u128::from(time).saturating_mul(u128::from(self.per_second));
        let units = units.checked_div(u128::from(PARTS_PER_SECOND)).unwrap_or(0);
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

/// How long `units` take at a rate, in parts of a nanosecond, rounded up.
#[inline]
fn time_of(units: u64, per_second: u64) -> u64 {
    let parts = u128::from(units).saturating_mul(u128::from(PARTS_PER_SECOND));
    let rate = u128::from(per_second.max(1));
    u64::try_from(parts.div_ceil(rate)).map_or(FAR, |time| time.min(FAR))
}

/// The time for which units are given back: the same, rounded down.
fn back(units: u64, per_second: u64) -> u64 {
    let parts = u128::from(units).saturating_mul(u128::from(PARTS_PER_SECOND));
    let time = parts.checked_div(per_second.into()).unwrap_or(0);
    u64::try_from(time).map_or(FAR, |time| time.min(FAR))
}

/// A time as buckets count it.
pub(super) fn parts(now: Instant) -> u64 {
    now.nanos().wrapping_mul(PARTS)
}

/// The time so many parts later.
pub(super) fn later(now: Instant, wait: u64) -> Instant {
    now.after(Duration::from_nanos(wait.div_ceil(PARTS)))
}
