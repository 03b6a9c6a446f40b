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
//! Transmit knows its frames and asks before ([`Turn::grant`]). Receive learns how long a frame is
//! when it has it: it asks what credit there is and pays afterwards.
//!
//! Whoever has to wait pays at once for what it waits for, and is told when that may pass
//! ([`Turn`]). So those that share a limit are served in the order in which they came, and nobody
//! gains by asking more often. Pairs of one NIC have one place in that order, and take turns at it:
//! nobody gains by having more of them.
//!
//! All that share a limit tell time from one origin.

mod bucket;
mod line;
#[cfg(test)]
mod tests;
mod turn;

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::time::Instant;
use bucket::{Bucket, Level, parts};
pub(crate) use line::Line;
pub use turn::{Grant, Turn};

/// The most limits that hold for one direction of a pair: its NIC's, and those of groups.
pub const LIMITS_MAX: usize = 4;

/// How often a bucket is taken from against others who take at the same time.
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
    /// Nothing.
    pub const NONE: Self = Self { bytes: 0, frames: 0 };

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            frames: self.frames.saturating_add(other.frames),
        }
    }

    /// What this is more than `other`.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            frames: self.frames.saturating_sub(other.frames),
        }
    }

    /// Whether neither its bytes nor its frames are more than those of `room`.
    #[must_use]
    pub const fn fits(self, room: Self) -> bool {
        self.bytes <= room.bytes && self.frames <= room.frames
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

    /// Changes the rate of bytes, counted as in [`Wire`]; the burst is there anew. What waits
    /// already does so for as long as it was told: a NIC looks again at once when it is given its
    /// limits once more ([`Op::SetLimits`](crate::Op::SetLimits)).
    pub fn set_bytes(&self, rate: Option<Rate>) {
        self.bytes.set(rate);
    }

    /// Changes the rate of frames, likewise.
    pub fn set_frames(&self, rate: Option<Rate>) {
        self.frames.set(rate);
    }

    /// The rates of bytes and frames.
    #[must_use]
    pub fn rates(&self) -> [Option<Rate>; 2] {
        [self.bytes.rate(), self.frames.rate()]
    }
}

/// The limits that hold for one direction of a pair, all of them at once.
#[derive(Clone, Debug, Default)]
pub struct Limiter {
    limits: Vec<Arc<Limit>>,
}

/// The levels of all buckets that limit something, of bytes and of frames.
struct Levels {
    all: [(Option<Level>, Option<Level>); LIMITS_MAX],
    /// What one that looks at them has taken before, and may have; they are told without it.
    prepaid: Wire,
}

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

    fn levels(&self, here: u64, prepaid: Wire) -> Levels {
        let mut all = [(None, None); LIMITS_MAX];
        for ((bytes, frames), limit) in all.iter_mut().zip(&self.limits) {
            *bytes = limit.bytes.level(here).map(|level| level.without(prepaid.bytes));
            *frames = limit.frames.level(here).map(|level| level.without(prepaid.frames));
        }
        Levels { all, prepaid }
    }

    /// Takes `units` from all buckets in place of what was prepaid, or from none.
    fn take(&self, here: u64, levels: &Levels, units: Wire) -> bool {
        let prepaid = levels.prepaid;
        if units == prepaid && units == Wire::NONE {
            return true;
        }
        let both = self.limits.iter().zip(&levels.all);
        let mut buckets = both.flat_map(|(limit, (bytes, frames))| {
            let bytes = (&limit.bytes, bytes, [units.bytes, prepaid.bytes]);
            [bytes, (&limit.frames, frames, [units.frames, prepaid.frames])]
        });
        let taken = |(bucket, level, [units, _]): (&Bucket, &Option<Level>, [u64; 2])| {
            level.is_none_or(|level| bucket.take(here, &level, units))
        };
        let all = buckets.clone();
        let Some(failed) = buckets.position(|one| !taken(one)) else { return true };
        for (bucket, level, [units, prepaid]) in all.take(failed) {
            if let Some(level) = level {
                bucket.untake(level, units, prepaid);
            }
        }
        false
    }

    /// Takes from all buckets, whether or not there is room.
    fn charge(&self, now: Instant, units: Wire) {
        if units == Wire::NONE {
            return;
        }
        let here = parts(now);
        for limit in &self.limits {
            limit.bytes.charge(here, units.bytes);
            limit.frames.charge(here, units.frames);
        }
    }

    /// Gives back what was taken and is not gone.
    fn refund(&self, units: Wire) {
        if units == Wire::NONE {
            return;
        }
        for limit in &self.limits {
            limit.bytes.refund(units.bytes);
            limit.frames.refund(units.frames);
        }
    }
}

impl Levels {
    /// What may pass now: what fits, and what is prepaid at least.
    fn room(&self) -> Wire {
        let Wire { bytes, frames } = self.least(Level::room);
        Wire { bytes: bytes.max(self.prepaid.bytes), frames: frames.max(self.prepaid.frames) }
    }

    /// The least of what all buckets say; without a limit there is no end.
    fn least(&self, of: impl Fn(&Level) -> u64) -> Wire {
        let mut least = Wire { bytes: u64::MAX, frames: u64::MAX };
        for (bytes, frames) in &self.all {
            least.bytes = bytes.as_ref().map_or(u64::MAX, &of).min(least.bytes);
            least.frames = frames.as_ref().map_or(u64::MAX, &of).min(least.frames);
        }
        least
    }

    /// What those that wait take at a time; nothing of what is not limited.
    fn quantum(&self) -> Wire {
        let Wire { bytes, frames } = self.least(Level::quantum);
        let limited = |units: u64| if units == u64::MAX { 0 } else { units };
        Wire { bytes: limited(bytes), frames: limited(frames) }
    }

    /// Whether a frame may pass alone, however long it is.
    fn fit(&self, frame: Wire) -> bool {
        self.all.iter().all(|(bytes, frames)| {
            bytes.is_none_or(|level| level.fits(frame.bytes))
                && frames.is_none_or(|level| level.fits(frame.frames))
        })
    }

    /// After so much was taken, how long to wait until all buckets have room for what is booked.
    fn wait(&self, taken: Wire, booked: Wire) -> u64 {
        self.all.iter().fold(0, |most, (bytes, frames)| {
            let bytes = bytes.map_or(0, |at| at.wait(taken.bytes, booked.bytes));
            let frames = frames.map_or(0, |at| at.wait(taken.frames, booked.frames));
            most.max(bytes).max(frames)
        })
    }
}
