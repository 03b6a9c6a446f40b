//! Rate limits: how many bytes and frames may pass in a second, together, for all that share one.
//!
//! ```text
//!   time of a bucket                 a frame moves it ahead by what it costs at the rate
//!   ----|===========>|............|--->   it may pass while this stays within the burst
//!      now         ahead     now + burst
//! ```
//!
//! A bucket is one number: the time at which it is full again, as in the generic cell rate
//! algorithm (ITU-T I.371). Looking is a load, taking is one compare and exchange for each *batch*;
//! there is no lock and nobody fills the bucket. Pairs of a NIC share its limit, NICs of a group
//! share another.
//!
//! Frames are charged as what they will be on a wire: a frame that is still to be cut costs its
//! headers once for each segment ([`wire`]). What was granted and then not sent is refunded, so a
//! host side that is full costs nothing.
//!
//! Transmit knows its frames and asks before ([`Limiter::grant`]). Receive learns how long a frame
//! is when it has it: it asks whether there is any credit and pays afterwards.
//!
//! All that share a limit tell time from one origin.

#[cfg(test)]
mod tests;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::time::Instant;

/// The most limits that hold for one direction of a pair: its NIC's, and those of groups.
pub const LIMITS_MAX: usize = 4;

/// Parts of a nanosecond in which buckets count, so that short frames at high rates are not
/// charged by rounding.
const PARTS: u64 = 256;
const PARTS_PER_SECOND: u64 = 1_000_000_000 * PARTS;
/// The longest burst and the longest debt: over an hour.
const FAR: u64 = 1 << 50;
/// A bucket that is ahead by more than this is not ahead: its time is from long ago.
const FARTHEST: u64 = FAR << 4;
/// A bucket whose rate has been changed and not been used since: it is full.
const FULL: u64 = 0;
/// Nobody is woken for less than a millisecond's worth, unless the burst is shorter.
const WORTHWHILE: u64 = 1_000_000 * PARTS;
/// How often a grant is tried against others who take at the same time.
const ATTEMPTS: usize = 8;

/// What a frame is on a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wire {
    /// Bytes from the Ethernet headers on, without preamble, checksum and gap.
    pub bytes: u64,
    /// Frames.
    pub frames: u64,
}

impl Wire {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            frames: self.frames.saturating_add(other.frames),
        }
    }
}

/// What a frame of `len` bytes is on a wire when it is cut into segments of `gso_size` bytes of
/// payload behind `header_len` bytes of headers each; with a `gso_size` of 0 it is not cut.
#[inline]
#[must_use]
pub fn wire(len: u32, header_len: u32, gso_size: u16) -> Wire {
    let whole = Wire { bytes: u64::from(len), frames: 1 };
    let payload = len.saturating_sub(header_len);
    match u32::from(gso_size) {
        0 => whole,
        size if payload <= size => whole,
        size => {
            let segments = u64::from(payload.div_ceil(size));
            let repeated = segments.saturating_sub(1).saturating_mul(u64::from(header_len));
            Wire { bytes: whole.bytes.saturating_add(repeated), frames: segments }
        }
    }
}

/// A rate and what may pass at once above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes or frames in a second.
    pub per_second: u64,
    /// Bytes or frames that may pass at once after a rest. A frame larger than this passes when
    /// there has been a rest, so no burst is too small; less than a millisecond's worth costs
    /// throughput. What counts is at most what the rate gives in an hour.
    pub burst: u64,
}

impl Rate {
    /// So many in a second, with a tenth of them at once.
    #[must_use]
    pub const fn of(per_second: u64) -> Self {
        Self { per_second, burst: per_second.div_ceil(10) }
    }
}

/// One rate's state.
#[derive(Debug, Default)]
struct Bucket {
    /// 0 for no limit.
    per_second: AtomicU64,
    burst: AtomicU64,
    /// When the bucket is full again, in parts of a nanosecond, modulo 2^64.
    full_at: AtomicU64,
}

/// A bucket at one moment.
#[derive(Clone, Copy)]
struct Level {
    seen: u64,
    per_second: u64,
    /// How long it takes until the bucket is full.
    ahead: u64,
    /// The same for an empty bucket.
    burst: u64,
}

impl Bucket {
    fn set(&self, rate: Option<Rate>) {
        let rate = rate.unwrap_or(Rate { per_second: 0, burst: 0 });
        self.burst.store(rate.burst, Ordering::Relaxed);
        self.per_second.store(rate.per_second, Ordering::Relaxed);
        self.full_at.store(FULL, Ordering::Relaxed);
    }

    fn rate(&self) -> Option<Rate> {
        let per_second = self.per_second.load(Ordering::Relaxed);
        let burst = self.burst.load(Ordering::Relaxed);
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// `None` without a limit.
    #[inline]
    fn level(&self, now: u64) -> Option<Level> {
        let Rate { per_second, burst } = self.rate()?;
        let seen = self.full_at.load(Ordering::Relaxed);
        let ahead = seen.wrapping_sub(now);
        let ahead = if seen == FULL || ahead > FARTHEST { 0 } else { ahead };
        Some(Level { seen, per_second, ahead, burst: time_of(burst, per_second) })
    }

    /// Takes `units` if nobody has taken any since `level` was seen.
    fn take(&self, now: u64, level: &Level, units: u64) -> bool {
        let after = now.wrapping_add(level.ahead).wrapping_add(time_of(units, level.per_second));
        let taken =
            self.full_at.compare_exchange(level.seen, after, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok()
    }

    /// Takes `units`, which are gone already.
    fn charge(&self, now: u64, units: u64) {
        let Some(level) = self.level(now) else { return };
        // If others were quicker the bucket is not full any more, and time can be added to it.
        if level.ahead > 0 || !self.take(now, &level, units) {
            self.full_at.fetch_add(time_of(units, level.per_second), Ordering::Relaxed);
        }
    }

    fn refund(&self, units: u64) {
        let per_second = self.per_second.load(Ordering::Relaxed);
        // Rounded down: what is lost is less than a part of a nanosecond.
        let time = time_of(units, per_second).saturating_sub(1);
        if per_second > 0 {
            self.full_at.fetch_sub(time, Ordering::Relaxed);
        }
    }
}

impl Level {
    /// The units that fit now.
    fn room(&self) -> u64 {
        let time = u128::from(self.burst.saturating_sub(self.ahead));
        let units = time.saturating_mul(u128::from(self.per_second));
        let units = units.checked_div(u128::from(PARTS_PER_SECOND)).unwrap_or(0);
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    /// Whether `units` may pass: there is room, or there has been a rest.
    fn fits(&self, units: u64) -> bool {
        self.ahead == 0 || units <= self.room()
    }

    /// After so many units were taken, how long to wait for `next` more.
    fn wait(&self, taken: u64, next: u64) -> u64 {
        let ahead = self.ahead.saturating_add(time_of(taken, self.per_second));
        let worthwhile = WORTHWHILE.min(self.burst >> 1);
        let wanted = time_of(next, self.per_second).max(worthwhile).min(self.burst);
        ahead.saturating_add(wanted).saturating_sub(self.burst)
    }
}

/// How long `units` take at a rate, in parts of a nanosecond, rounded up.
#[inline]
fn time_of(units: u64, per_second: u64) -> u64 {
    let parts = u128::from(units).saturating_mul(u128::from(PARTS_PER_SECOND));
    let rate = u128::from(per_second.max(1));
    u64::try_from(parts.div_ceil(rate)).map_or(FAR, |time| time.min(FAR))
}

/// What may pass in one direction. Shared by all that it holds for, and changed under way.
#[derive(Debug, Default)]
pub struct Limit {
    bytes: Bucket,
    frames: Bucket,
}

impl Limit {
    /// A limit with these rates; `None` is without limit.
    #[must_use]
    pub fn new(bytes: Option<Rate>, frames: Option<Rate>) -> Self {
        let limit = Self::default();
        limit.set_bytes(bytes);
        limit.set_frames(frames);
        limit
    }

    /// Changes the rate of bytes, counted as in [`Wire`]; the burst is there anew.
    pub fn set_bytes(&self, rate: Option<Rate>) {
        self.bytes.set(rate);
    }

    /// Changes the rate of frames; the burst is there anew.
    pub fn set_frames(&self, rate: Option<Rate>) {
        self.frames.set(rate);
    }

    /// The rates of bytes and frames.
    #[must_use]
    pub fn rates(&self) -> [Option<Rate>; 2] {
        [self.bytes.rate(), self.frames.rate()]
    }
}

/// What a batch may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Grant {
    /// So many of its frames may pass, first to last. They are paid.
    pub frames: usize,
    /// What was paid for them.
    pub paid: Wire,
    /// If not all: when it is worth asking again.
    pub until: Option<Instant>,
}

/// The limits that hold for one direction of a pair, all of them at once.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    limits: Vec<Arc<Limit>>,
}

/// The levels of all buckets that limit something.
type Levels = [(Option<Level>, Option<Level>); LIMITS_MAX];

impl Limiter {
    /// A limiter that holds all of `limits`, at most [`LIMITS_MAX`]; what is beyond is left out.
    #[must_use]
    pub fn new(limits: impl IntoIterator<Item = Arc<Limit>>) -> Self {
        Self { limits: limits.into_iter().take(LIMITS_MAX).collect() }
    }

    /// Whether nothing is ever held up. Limits without rates count as limits here: they may get
    /// some.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.limits.is_empty()
    }

    /// How many of these frames may pass now, first to last. They are paid with this; what is
    /// then not sent is to be refunded.
    pub fn grant(&self, now: Instant, frames: impl Iterator<Item = Wire> + Clone) -> Grant {
        let here = parts(now);
        for _ in 0..ATTEMPTS {
            let levels = self.levels(here);
            let (count, paid, next) = share(&levels, frames.clone());
            if count == 0 || self.take(here, &levels, paid) {
                let wait = next.map(|next| wait(&levels, paid, next));
                return Grant { frames: count, paid, until: wait.map(|wait| later(now, wait)) };
            }
        }
        // Others take without a pause: they get on, and this one comes again.
        Grant { frames: 0, paid: Wire::default(), until: Some(now) }
    }

    /// Gives back what was granted and then not sent.
    pub fn refund(&self, unsent: Wire) {
        if unsent == Wire::default() {
            return;
        }
        for limit in &self.limits {
            limit.bytes.refund(unsent.bytes);
            limit.frames.refund(unsent.frames);
        }
    }

    /// What may pass now at least, of frames not known yet; to be paid with [`Self::charge`]. A
    /// frame begun within the credit may exceed it.
    ///
    /// # Errors
    /// When it is worth asking again.
    pub fn credit(&self, now: Instant) -> Result<Wire, Instant> {
        let levels = self.levels(parts(now));
        let mut credit = Wire { bytes: u64::MAX, frames: u64::MAX };
        for (bytes, frames) in &levels {
            credit.bytes = bytes.map_or(u64::MAX, |level| level.room().max(1)).min(credit.bytes);
            credit.frames = frames.map_or(u64::MAX, |level| level.room().max(1)).min(credit.frames);
        }
        let one = Wire { bytes: 1, frames: 1 };
        let has_any = levels.iter().all(|(bytes, frames)| {
            bytes.is_none_or(|level| level.fits(1)) && frames.is_none_or(|level| level.fits(1))
        });
        if has_any { Ok(credit) } else { Err(later(now, wait(&levels, Wire::default(), one))) }
    }

    /// Pays for frames that have passed.
    pub fn charge(&self, now: Instant, passed: Wire) {
        if passed == Wire::default() {
            return;
        }
        let here = parts(now);
        for limit in &self.limits {
            limit.bytes.charge(here, passed.bytes);
            limit.frames.charge(here, passed.frames);
        }
    }

    fn levels(&self, here: u64) -> Levels {
        let mut levels = [(None, None); LIMITS_MAX];
        for (slot, limit) in levels.iter_mut().zip(&self.limits) {
            *slot = (limit.bytes.level(here), limit.frames.level(here));
        }
        levels
    }

    /// Takes from all buckets, or from none.
    fn take(&self, here: u64, levels: &Levels, paid: Wire) -> bool {
        let mut buckets = self.limits.iter().zip(levels).flat_map(|(limit, (bytes, frames))| {
            [(&limit.bytes, bytes, paid.bytes), (&limit.frames, frames, paid.frames)]
        });
        let taken = |(bucket, level, units): (&Bucket, &Option<Level>, u64)| match level {
            Some(level) => bucket.take(here, level, units),
            None => true,
        };
        let all = buckets.clone();
        let Some(failed) = buckets.position(|one| !taken(one)) else { return true };
        for (bucket, level, units) in all.take(failed) {
            if level.is_some() {
                bucket.refund(units);
            }
        }
        false
    }
}

/// How many frames fit into all buckets, what they cost, and the first that does not fit.
fn share(levels: &Levels, frames: impl Iterator<Item = Wire>) -> (usize, Wire, Option<Wire>) {
    let (mut bytes_room, mut frames_room) = (u64::MAX, u64::MAX);
    for (bytes, frames) in levels {
        bytes_room = bytes.as_ref().map_or(u64::MAX, Level::room).min(bytes_room);
        frames_room = frames.as_ref().map_or(u64::MAX, Level::room).min(frames_room);
    }
    let (mut count, mut paid) = (0_usize, Wire::default());
    for frame in frames {
        let after = paid.plus(frame);
        let fits = after.bytes <= bytes_room && after.frames <= frames_room;
        if !fits && (count > 0 || !fits_one(levels, frame)) {
            return (count, paid, Some(frame));
        }
        (count, paid) = (count.saturating_add(1), after);
    }
    (count, paid, None)
}

/// Whether a frame may pass alone, however long it is.
fn fits_one(levels: &Levels, frame: Wire) -> bool {
    levels.iter().all(|(bytes, frames)| {
        bytes.is_none_or(|level| level.fits(frame.bytes))
            && frames.is_none_or(|level| level.fits(frame.frames))
    })
}

/// How long to wait until all buckets have room for `next`.
fn wait(levels: &Levels, paid: Wire, next: Wire) -> u64 {
    levels.iter().fold(0, |most, (bytes, frames)| {
        let bytes = bytes.map_or(0, |level| level.wait(paid.bytes, next.bytes));
        let frames = frames.map_or(0, |level| level.wait(paid.frames, next.frames));
        most.max(bytes).max(frames)
    })
}

fn parts(now: Instant) -> u64 {
    now.nanos().wrapping_mul(PARTS)
}

fn later(now: Instant, wait: u64) -> Instant {
    now.after(Duration::from_nanos(wait.div_ceil(PARTS)))
}
