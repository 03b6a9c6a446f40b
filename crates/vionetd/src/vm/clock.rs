//! The one place of the guest rig that reads the clock.

use std::time::{Duration, Instant};

/// The time now, on the monotonic clock.
#[allow(
    clippy::disallowed_methods,
    reason = "the rig waits for another program; nothing of the datapath comes here"
)]
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Counts down a limit that several waits share.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    start: Instant,
    limit: Duration,
}

impl Stopwatch {
    /// Starts to count; `limit` is the time that all waits together may take.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { start: now(), limit }
    }

    /// The time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        now().saturating_duration_since(self.start)
    }

    /// What is left of the limit; `None` when it is used up.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.limit.checked_sub(self.elapsed()).filter(|left| !left.is_zero())
    }
}
