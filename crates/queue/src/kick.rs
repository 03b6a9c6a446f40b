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
//! kick is normal (SPN-17); a lost one would be our fault.

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

#[cfg(test)]
mod tests {
    use super::*;

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
