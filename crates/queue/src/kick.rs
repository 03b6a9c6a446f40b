//! Kicks and interrupts: who wakes whom, and how nobody sleeps through work.
//!
//! ```text
//!   publish                                arm
//!   -------                                ---
//!   store used entries                     store "kick me past N"
//!   store used.idx        (release)        full fence
//!   full fence                             load avail.idx   (acquire)
//!   load the driver's wish                 moved?  WorkArrived : Sleep
//! ```
//!
//! Both columns are "say it, fence, look": whichever side looks second sees the other's word.
//! One fence per publish, however many entries: crossed counts as reached (SPN-05). A spurious
//! kick is normal (SPN-17); a lost one would be our fault: `tests/loom` looks for one in every
//! order of both sides' steps, with every stale value that a load may see.

/// Whether the driver wants to be interrupted for what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Published {
    /// Interrupt the driver.
    Interrupt,
    /// Nothing was published, or the driver does not want to know yet.
    Quiet,
}

/// Whether it is safe to sleep until the next kick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Armed {
    /// The next chain will come with a kick.
    Sleep,
    /// A chain has arrived meanwhile: take it.
    WorkArrived,
}

/// Whether the index went past `event` on its way from `old` to `new`; all modulo 65536, so this
/// holds across the wrap as long as a step is no longer than a queue (SPN-20).
#[inline]
pub(crate) const fn is_crossed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// The same in a packed ring, where positions run from 0 to twice the size: the second lap has the
/// other wrap counter. A step of `count` slots from `old` on; an event outside the ring is one that
/// nobody can mean, and is answered with an interrupt too many (PKN-03).
#[inline]
pub(crate) const fn is_crossed_packed(event: u16, old: Place, count: u16, size: u16) -> bool {
    let event = Place::from_bits(event);
    if event.slot >= size {
        return true;
    }
    let ahead = if event.wrap == old.wrap && event.slot >= old.slot {
        event.slot.wrapping_sub(old.slot)
    } else if event.wrap != old.wrap && event.slot < old.slot {
        event.slot.wrapping_add(size).wrapping_sub(old.slot)
    } else {
        // A lap ahead or just behind: not in a step of one lap at most.
        return false;
    };
    ahead < count
}

/// A position in a packed ring: a slot, and the wrap counter of the lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) slot: u16,
    pub(crate) wrap: bool,
}

impl Place {
    /// As the standard writes it: the slot, and the wrap counter in bit 15.
    #[inline]
    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self { slot: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }

    #[inline]
    pub(crate) const fn bits(self) -> u16 {
        self.slot | if self.wrap { 1 << 15 } else { 0 }
    }

    /// `count` slots later in a ring of `size`; `count` is no more than `size`.
    #[inline]
    pub(crate) const fn after(self, count: u16, size: u16) -> Self {
        let slot = self.slot.wrapping_add(count);
        if slot >= size {
            Self { slot: slot.wrapping_sub(size), wrap: !self.wrap }
        } else {
            Self { slot, wrap: self.wrap }
        }
    }

    /// `count` slots before, likewise.
    #[inline]
    pub(crate) const fn before(self, count: u16, size: u16) -> Self {
        if count > self.slot {
            let slot = self.slot.wrapping_add(size).wrapping_sub(count);
            Self { slot, wrap: !self.wrap }
        } else {
            Self { slot: self.slot.wrapping_sub(count), wrap: self.wrap }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_go_round_and_back() {
        for size in [1_u16, 2, 3, 7, 32_768] {
            for slot in [0, size / 2, size - 1] {
                for count in [0, 1.min(size), size / 2, size] {
                    let place = Place { slot, wrap: true };
                    let later = place.after(count, size);
                    assert!(later.slot < size);
                    assert_eq!(later.before(count, size), place);
                    assert_eq!(Place::from_bits(later.bits()), later);
                }
            }
        }
        assert_eq!(Place { slot: 2, wrap: true }.after(1, 3), Place { slot: 0, wrap: false });
    }

    /// PKN-03, against a model that walks slot by slot.
    #[test]
    fn a_packed_event_is_crossed_when_the_step_uses_its_slot() {
        for size in [1_u16, 2, 5, 8] {
            for slot in 0..size {
                for wrap in [false, true] {
                    for count in 0..=size {
                        for event in 0..size {
                            for lap in [false, true] {
                                let old = Place { slot, wrap };
                                let wanted = Place { slot: event, wrap: lap };
                                let walked = (0..count).any(|step| old.after(step, size) == wanted);
                                let crossed = is_crossed_packed(wanted.bits(), old, count, size);
                                assert_eq!(crossed, walked, "{wanted:?} from {old:?} by {count}");
                            }
                        }
                    }
                }
            }
        }
        assert!(is_crossed_packed(5, Place { slot: 0, wrap: false }, 1, 5));
    }

    #[test]
    fn an_event_inside_the_step_is_crossed_and_one_outside_is_not() {
        for old in [0_u16, 5, 65_533, 65_535] {
            for step in 0..8_u16 {
                let new = old.wrapping_add(step);
                for ahead in 0..16_u16 {
                    let event = old.wrapping_add(ahead);
                    assert_eq!(is_crossed(event, old, new), ahead < step, "{old} {step} {ahead}");
                }
            }
        }
    }
}
