//! Interrupts for several frames together, when the driver has asked for that (VIRTIO 1.4
//! §5.1.9.5.10).
//!
//! ```text
//!   frames become used    1st     2nd            3rd           nth
//!                          |-- max_usecs -->|                   |
//!   interrupt                               here, or here, whichever comes first
//! ```
//!
//! Only what the driver wants to hear of at all is put off: suppression comes first (NET-COAL-08).

use core::time::Duration;

use crate::control::Coalescing;
use crate::time::Instant;

/// An interrupt that is put off, or none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delay {
    wish: Coalescing,
    /// Frames since the last interrupt, while one is put off.
    frames: u32,
    /// When the one that is put off is due at the latest.
    due: Option<Instant>,
}

impl Delay {
    /// What the driver wants from now on. One that is put off is judged anew (NET-COAL-13).
    pub(super) fn set(&mut self, wish: Coalescing) {
        if wish == self.wish {
            return;
        }
        let first = self.due.map(|due| due.before(self.limit()));
        self.wish = wish;
        self.due = first.map(|first| if wish.is_on() { first.after(self.limit()) } else { first });
    }

    fn limit(&self) -> Duration {
        Duration::from_micros(self.wish.max_usecs.into())
    }

    /// The driver is to be interrupted for so many frames more: whether that is put off.
    #[inline(never)]
    pub(super) fn holds(&mut self, frames: usize, now: Instant) -> bool {
        let holds = self.wish.is_on() && !self.put_off(frames, now);
        if !holds {
            self.done();
        }
        holds
    }

    /// Whether one that was put off is due, and put off no longer.
    #[inline(never)]
    pub(super) fn ends(&mut self, now: Instant) -> bool {
        let ends = self.is_due(now);
        if ends {
            self.done();
        }
        ends
    }

    /// Whether so many frames more are due at once.
    fn put_off(&mut self, frames: usize, now: Instant) -> bool {
        let limit = self.limit();
        self.frames = self.frames.saturating_add(u32::try_from(frames).unwrap_or(u32::MAX));
        let due = *self.due.get_or_insert_with(|| now.after(limit));
        self.frames >= self.wish.max_packets || due <= now
    }

    fn is_due(&self, now: Instant) -> bool {
        let enough = self.frames >= self.wish.max_packets;
        self.due.is_some_and(|due| due <= now || enough)
    }

    /// When the one that is put off is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The driver is interrupted.
    pub(super) fn done(&mut self) {
        (self.frames, self.due) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    fn delay(max_packets: u32, max_usecs: u32) -> Delay {
        let mut delay = Delay::default();
        delay.set(Coalescing { max_packets, max_usecs });
        delay
    }

    #[test]
    fn enough_frames_are_due_before_the_time() {
        let mut delay = delay(10, 50);
        assert!(!delay.put_off(4, at(1000)));
        assert!(!delay.put_off(5, at(1010)));
        assert!(delay.put_off(1, at(1020)));
        delay.done();
        assert!(!delay.put_off(9, at(1030)), "counting begins anew");
    }

    #[test]
    fn the_time_since_the_first_frame_is_due_before_enough_frames() {
        let mut delay = delay(10, 50);
        assert!(!delay.put_off(1, at(1000)));
        assert!(!delay.put_off(1, at(1049)));
        assert!(!delay.is_due(at(1049)) && delay.is_due(at(1050)));
        assert_eq!(delay.due(), Some(at(1050)));
        delay.done();
        assert!(!delay.is_due(at(5000)), "nothing is put off");
    }

    #[test]
    fn a_change_is_in_force_for_what_is_put_off_already() {
        let mut later = delay(10, 50);
        assert!(!later.put_off(3, at(1000)));
        later.set(Coalescing { max_packets: 10, max_usecs: 70 });
        assert!(!later.is_due(at(1069)) && later.is_due(at(1070)));
        later.set(Coalescing { max_packets: 3, max_usecs: 70 });
        assert!(later.is_due(at(1001)), "NET-COAL-13");
        let mut off = delay(10, 50);
        assert!(!off.put_off(3, at(1000)));
        off.set(Coalescing::default());
        assert!(off.is_due(at(1000)), "without a delay everything is due");
    }
}
