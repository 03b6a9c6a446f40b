//! The line of one device: its pairs take turns at a place in the line of all that share a limit.
//!
//! ```text
//!   bucket   ----|=========|--NIC a--|--NIC b--|--->   a booking for each NIC, not for each pair
//!   NIC a    booked by pair 2; then 5, 0, 1            whoever has waited for longest is next
//! ```
//!
//! Without this, a device with eight pairs would have eight places, and eight times the share of
//! another with one. Nobody waits for long for a pair that does not come: its worker may be held
//! up.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::turn::soon;
use crate::time::Instant;

/// How long one is waited for whose turn it is.
const PATIENCE: Duration = Duration::from_millis(5);
/// What turns are told apart by. Hardly one is shorter: what is taken at a time is more than half
/// of what a millisecond gives.
const TURN: Duration = Duration::from_micros(500);
/// How long after its time one comes whose turn it is, if its worker has nothing else to do.
const SLACK: Duration = Duration::from_micros(50);
/// In the time of a booking: it is not used yet.
const OPEN: u64 = 1;

/// The pairs of a device in front of the limits of one direction.
#[derive(Debug)]
pub(crate) struct Line {
    /// When the last booking of one of them is or was due, in nanoseconds but for [`OPEN`].
    last: AtomicU64,
    /// Since when each waits for its turn to book, in nanoseconds; 0 for one that does not.
    since: Box<[AtomicU64]>,
}

/// The place of a pair.
#[derive(Debug)]
pub(crate) struct Place {
    line: Arc<Line>,
    index: usize,
    /// It comes when it is told to; one that comes when frames do is not waited for.
    comes_again: bool,
}

impl Line {
    /// A line for so many pairs.
    pub(crate) fn new(pairs: u16) -> Self {
        Self { last: AtomicU64::new(0), since: (0..pairs).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The place of the pair with this number.
    pub(crate) fn place(self: &Arc<Self>, index: u16, comes_again: bool) -> Place {
        Place { line: Arc::clone(self), index: index.into(), comes_again }
    }

    fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    fn replace_last(&self, seen: u64, new: u64) -> bool {
        self.last.compare_exchange(seen, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Place {
    /// When to come again, if it is another's turn.
    pub(super) fn wait(&self, now: Instant) -> Option<Instant> {
        let last = self.line.last();
        if self.is_overdue(last, now) {
            return None;
        }
        let since = match self.since() {
            0 => now.nanos().max(1),
            since => since,
        };
        let older = self.count_older(since);
        if last & OPEN == 0 && older == 0 {
            return None;
        }
        if self.comes_again {
            self.set_since(since);
        }
        // Behind the one that has booked, or is to.
        Some(due(last).max(now).after(SLACK).after(TURN.saturating_mul(older)))
    }

    /// Books for the device what is due `at`, if it is this pair's turn; if not, says when to come
    /// again.
    pub(super) fn book(&self, now: Instant, at: Instant) -> Result<(), Instant> {
        let seen = self.line.last();
        if let Some(later) = self.wait(now) {
            return Err(later);
        }
        if !self.line.replace_last(seen, at.nanos() | OPEN) {
            return Err(self.wait(now).unwrap_or(soon(now)));
        }
        if self.is_overdue(seen, now) {
            // Whoever has not come lines up anew.
            self.line.since.iter().for_each(|since| since.store(0, Ordering::Relaxed));
        }
        self.leave();
        Ok(())
    }

    /// What was booked to be due `at` is used, or not needed.
    pub(super) fn done(&self, at: Instant) {
        // One who comes too late finds another's booking, and leaves it alone.
        let (true | false) = self.line.replace_last(at.nanos() | OPEN, at.nanos() & !OPEN);
    }

    /// Waits for no turn any more.
    pub(super) fn leave(&self) {
        if self.since() > 0 {
            self.set_since(0);
        }
    }

    /// Whether the turn after the last booking has not been taken for too long.
    fn is_overdue(&self, last: u64, now: Instant) -> bool {
        let patience = if self.comes_again { PATIENCE } else { Duration::ZERO };
        due(last).after(patience) < now
    }

    fn since(&self) -> u64 {
        let since = self.line.since.get(self.index);
        since.map_or(0, |since| since.load(Ordering::Relaxed))
    }

    fn set_since(&self, since: u64) {
        if let Some(slot) = self.line.since.get(self.index) {
            slot.store(since, Ordering::Relaxed);
        }
    }

    /// How many others have waited for longer than from `since` on.
    fn count_older(&self, since: u64) -> u32 {
        let all = self.line.since.iter().map(|since| since.load(Ordering::Relaxed)).enumerate();
        let older = |(index, one): &(usize, u64)| *one > 0 && (*one, *index) < (since, self.index);
        u32::try_from(all.filter(older).count()).unwrap_or(u32::MAX)
    }
}

fn due(last: u64) -> Instant {
    Instant::from_nanos(last & !OPEN)
}
