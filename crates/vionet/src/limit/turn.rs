//! A place in line: who waits at a limit, for how much, and until when.
//!
//! ```text
//!   bucket   ----|=========|--one--|--other--|--one--|--->
//!               now      burst     what each has booked, in the order in which they asked
//! ```
//!
//! Without this, whoever looks first when there is room again takes all of it: the one with the
//! lower number on a worker, or a guest that kicks all the time, and others never get anything.

use core::time::Duration;

use super::bucket::{later, parts};
use super::line::Place;
use super::{ATTEMPTS, Level, Levels, Limiter, Wire};
use crate::time::Instant;

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

/// The place of one who sends or receives in front of limits that others may share.
///
/// What it has booked is given back when it is dropped.
#[derive(Debug, Default)]
pub struct Turn {
    limiter: Limiter,
    booked: Option<Booked>,
    /// Among the pairs of its device, if there are others.
    place: Option<Place>,
    /// Until when it waits for its turn among those.
    told: Option<Instant>,
    /// What it was last told that may pass.
    credit: Wire,
}

/// What has been paid for and may pass from then on.
#[derive(Clone, Copy, Debug)]
struct Booked {
    paid: Wire,
    at: Instant,
}

/// How a batch is divided.
struct Share {
    count: usize,
    paid: Wire,
    /// What is booked of the rest: a frame at least, or nothing if there is no rest.
    booked: Wire,
}

impl Turn {
    /// A place in front of these limits; it waits for nothing.
    #[must_use]
    pub const fn new(limiter: Limiter) -> Self {
        Self { limiter, booked: None, place: None, told: None, credit: Wire::NONE }
    }

    /// The same for a pair of a device with several: they have one place together.
    pub(crate) fn among(limiter: Limiter, place: Option<Place>) -> Self {
        let mut turn = Self::new(limiter);
        turn.place = place;
        turn
    }

    /// Until when it waits, if it does.
    #[must_use]
    pub fn waits(&self, now: Instant) -> Option<Instant> {
        self.booked.map(|booked| booked.at).or(self.told).filter(|at| *at > now)
    }

    /// How many of these frames may pass now, first to last. They are paid with this; what is
    /// then not sent is to be refunded. Of the others the first are paid, too: the same frames are
    /// expected again.
    pub fn grant(&mut self, now: Instant, frames: impl Iterator<Item = Wire> + Clone) -> Grant {
        if let Err(at) = self.come(now) {
            return Grant { frames: 0, paid: Wire::NONE, until: Some(at) };
        }
        let prepaid = self.take_booked();
        let here = parts(now);
        for _ in 0..ATTEMPTS {
            let levels = self.limiter.levels(here, prepaid);
            let Share { count, paid, booked } = share(&levels, frames.clone());
            let at = later(now, levels.wait(paid, booked)).max(soon(now));
            let may_book = booked != Wire::NONE && self.may_book(now, at);
            let booked = if may_book { booked } else { Wire::NONE };
            if !self.limiter.take(here, &levels, paid.plus(booked)) {
                if may_book {
                    self.unbook(at);
                }
                continue;
            }
            if may_book {
                self.booked = Some(Booked { paid: booked, at });
            }
            let until = self.waits(now);
            if until.is_none() {
                self.leave_line();
            }
            return Grant { frames: count, paid, until };
        }
        // Others take without a pause: they get on, and this one comes again.
        self.booked = Some(Booked { paid: prepaid, at: now });
        Grant { frames: 0, paid: Wire::NONE, until: Some(now) }
    }

    /// Gives back what was granted and then not sent.
    pub fn refund(&self, unsent: Wire) {
        self.limiter.refund(unsent);
    }

    /// What may pass now at least, of frames not known yet; to be paid with [`Self::charge`]. A
    /// frame begun within the credit may exceed it.
    ///
    /// # Errors
    /// When it is worth asking again.
    pub fn credit(&mut self, now: Instant) -> Result<Wire, Instant> {
        self.come(now)?;
        let prepaid = self.booked.map_or(Wire::NONE, |booked| booked.paid);
        let levels = self.limiter.levels(parts(now), prepaid);
        let one = Wire { bytes: 1, frames: 1 };
        if prepaid != Wire::NONE || levels.fit(one) {
            let room = levels.room();
            self.credit = Wire { bytes: room.bytes.max(1), frames: room.frames.max(1) };
            return Ok(self.credit);
        }
        let paid = levels.quantum();
        let at = later(now, levels.wait(Wire::NONE, paid)).max(soon(now));
        if self.may_book(now, at) {
            self.limiter.charge(now, paid);
            self.booked = Some(Booked { paid, at });
        }
        Err(self.waits(now).unwrap_or(at))
    }

    /// Pays for frames that have passed on credit, all of them or none.
    pub fn charge(&mut self, now: Instant, passed: Wire) {
        if self.waits(now).is_none() {
            let prepaid = self.take_booked();
            // What has used it up has more to come, and keeps its place in the line.
            if passed.bytes < self.credit.bytes && passed.frames < self.credit.frames {
                self.leave_line();
            }
            let here = parts(now);
            for _ in 0..ATTEMPTS {
                let levels = self.limiter.levels(here, prepaid);
                if self.limiter.take(here, &levels, passed) {
                    return;
                }
            }
            self.limiter.charge(now, passed);
            self.limiter.refund(prepaid);
        }
    }

    /// Waits no longer: what was booked may pass elsewhere.
    pub fn give_up(&mut self) {
        let booked = self.take_booked();
        self.limiter.refund(booked);
        self.leave_line();
    }

    /// Whether it may take something now; if not, when to come again.
    fn come(&mut self, now: Instant) -> Result<(), Instant> {
        if let Some(at) = self.waits(now) {
            return Err(at);
        }
        self.told = match &self.place {
            Some(place) if self.booked.is_none() => place.wait(now),
            Some(_) | None => None,
        };
        self.told.map_or(Ok(()), Err)
    }

    /// Whether it may book what is due `at`; if not, it is told when to come again.
    fn may_book(&mut self, now: Instant, at: Instant) -> bool {
        self.told = self.place.as_ref().and_then(|place| place.book(now, at).err());
        self.told.is_none()
    }

    fn unbook(&self, at: Instant) {
        self.place.iter().for_each(|place| place.done(at));
    }

    fn leave_line(&mut self) {
        self.told = None;
        self.place.iter().for_each(Place::leave);
    }

    fn take_booked(&mut self) -> Wire {
        let Some(Booked { paid, at }) = self.booked.take() else { return Wire::NONE };
        self.unbook(at);
        paid
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// How many frames fit into all buckets, what they cost, and what is booked for those that do not
/// fit: as many of them as a quantum holds, or all of it, since more may come. Nothing that they
/// wait for beyond that would be theirs rather than anybody's.
fn share(levels: &Levels, frames: impl Iterator<Item = Wire>) -> Share {
    let room = levels.room();
    let quantum = levels.least(Level::quantum);
    let mut share = Share { count: 0, paid: Wire::NONE, booked: Wire::NONE };
    for frame in frames {
        let after = share.paid.plus(frame);
        let passes = after.fits(room) || share.count == 0 && levels.fit(frame);
        if passes && share.booked == Wire::NONE {
            share.count = share.count.saturating_add(1);
            share.paid = after;
            continue;
        }
        let more = share.booked.plus(frame);
        if share.booked != Wire::NONE && !more.fits(quantum) {
            return share;
        }
        share.booked = more;
    }
    if share.booked != Wire::NONE {
        let Wire { bytes, frames } = levels.quantum();
        let booked = share.booked;
        share.booked = Wire { bytes: booked.bytes.max(bytes), frames: booked.frames.max(frames) };
    }
    share
}

/// The next moment: nobody is told to come again at once.
pub(super) fn soon(now: Instant) -> Instant {
    now.after(Duration::from_nanos(1))
}
