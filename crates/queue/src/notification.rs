//! What a driver says with a kick when NOTIFICATION_DATA was negotiated (VIRTIO 1.4 §2.9).
//!
//! ```text
//!   31 next_wrap   30 ... 16 next_off   15 ... 0 queue
//! ```
//!
//! It is a hint of how far the driver is. The ring stays the authority: a kick with a position
//! that is old, repeated or invented is a kick.

/// The data of one notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Which queue is kicked.
    pub queue: u16,
    /// Where the driver goes on, in the form of [`crate::Cursor::avail`]: the index of a split
    /// ring, the slot and wrap counter of a packed one.
    pub position: u16,
}

impl Notification {
    /// The word that a driver writes to the notification address; any word is one.
    #[must_use]
    pub const fn decode(word: u32) -> Self {
        let [q0, q1, p0, p1] = word.to_le_bytes();
        Self { queue: u16::from_le_bytes([q0, q1]), position: u16::from_le_bytes([p0, p1]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kick::Place;

    #[test]
    fn a_word_names_the_queue_and_where_the_driver_goes_on() {
        // next_wrap 1, next_off 0x1234, queue 5
        let word = 1 << 31 | 0x1234 << 16 | 5;
        let told = Notification::decode(word);
        assert_eq!(told.queue, 5);
        assert_eq!(told.position, 0x9234, "split: bit 15 of the index is next_wrap");
        assert_eq!(Place::from_bits(told.position), Place { slot: 0x1234, wrap: true }, "packed");
    }
}
