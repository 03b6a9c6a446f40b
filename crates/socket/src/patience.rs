//! How long a message may stay half said.
//!
//! One front-end is served at a time. One that stops in the middle of a message, and keeps the
//! connection open or is gone in a way that does not show, would keep all others waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// A timer that runs while a message is half said.
#[derive(Debug)]
pub struct Patience {
    limit: Timespec,
    /// Made when it is first needed, which most front-ends never see to.
    timer: Option<OwnedFd>,
    /// The message it runs for, by its number on the connection.
    message: Option<u64>,
}

impl Patience {
    /// A timer that gives each message this long.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        // A limit beyond what the kernel counts, or none at all, is a very long one.
        let limit = Timespec::try_from(limit).ok().filter(|limit| *limit > NEVER);
        let limit = limit.unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        Self { limit, timer: None, message: None }
    }

    /// Says which message is half said now, if one is. More bytes of the same one bring no more
    /// time.
    ///
    /// # Errors
    /// When the system has no timer left.
    pub fn watch(&mut self, message: Option<u64>) -> io::Result<()> {
        if message == self.message {
            return Ok(());
        }
        self.message = message;
        let value = if message.is_some() { self.limit } else { NEVER };
        if self.timer.is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            self.timer = Some(timerfd_create(TimerfdClockId::Monotonic, flags)?);
        }
        if let Some(timer) = &self.timer {
            let setting = Itimerspec { it_interval: NEVER, it_value: value };
            timerfd_settime(timer, TimerfdTimerFlags::empty(), &setting)?;
        }
        Ok(())
    }

    /// Readable when the time is over; nothing is waited for before there was a half message.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn is_over(patience: &Patience, within: Duration) -> bool {
        let fd = patience.fd().unwrap();
        let timeout = Timespec::try_from(within).unwrap();
        poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
    }

    #[test]
    fn it_ends_for_the_message_it_began_with_and_not_for_the_next() {
        let mut patience = Patience::new(Duration::from_millis(50));
        patience.watch(None).unwrap();
        assert!(patience.fd().is_none());
        patience.watch(Some(1)).unwrap();
        patience.watch(Some(1)).unwrap();
        assert!(is_over(&patience, Duration::from_secs(20)));
        patience.watch(None).unwrap();
        assert!(!is_over(&patience, Duration::from_millis(100)));
        patience.watch(Some(2)).unwrap();
        assert!(is_over(&patience, Duration::from_secs(20)));
    }

    #[test]
    fn no_limit_at_all_is_a_long_one() {
        for limit in [Duration::ZERO, Duration::MAX] {
            let mut patience = Patience::new(limit);
            patience.watch(Some(1)).unwrap();
            assert!(!is_over(&patience, Duration::from_millis(20)));
        }
    }
}
