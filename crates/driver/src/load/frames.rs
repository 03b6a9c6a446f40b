//! The frames of a load: they tell their number and their time, and are made of their number.
//!
//! ```text
//!   0             6            12       14      16         24         32
//!   | destination | source     | 88 b5  | 76 69 | number   | sent at  | filling ...
//! ```
//!
//! A back-end may swap the addresses; the rest must come back as it went.

/// Bytes up to the filling; no frame is shorter.
pub(super) const FRAME_HEAD: usize = 32;
/// EtherType of frames for experiments (IEEE 802 local experimental 1), and our mark.
const KIND: [u8; 4] = [0x88, 0xb5, 0x76, 0x69];
/// A group address that all of an Ethernet hear.
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];

/// What a frame tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The how manieth it is, from 0.
    pub(super) number: u64,
    /// When it was to be sent, in nanoseconds of the run.
    pub(super) at: u64,
}

impl Stamp {
    /// The bytes 16 to 32.
    pub(super) fn bytes(self) -> [u8; 16] {
        let [mut bytes, at] = [u128::from(self.number), u128::from(self.at)];
        bytes |= at.wrapping_shl(64);
        bytes.to_le_bytes()
    }

    /// The stamp in the head of a frame; `None` for a frame that is not ours.
    pub(super) fn of(head: &[u8; FRAME_HEAD]) -> Option<Self> {
        let (kind, rest) = head.get(12..)?.split_first_chunk::<4>()?;
        let stamp = u128::from_le_bytes(*rest.first_chunk::<16>()?);
        let half = |number: u128| u64::try_from(number & u128::from(u64::MAX)).ok();
        let (number, at) = (half(stamp)?, half(stamp.wrapping_shr(64))?);
        (*kind == KIND).then_some(Self { number, at })
    }
}

/// A word of the filling: no two frames and no two places have the same for long.
fn word(number: u64, place: u64) -> u64 {
    let seed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    seed.wrapping_add(place.wrapping_mul(0xd1b5_4a32_d192_ed03)).rotate_left(29)
}

/// Writes a whole frame over `room`.
pub(super) fn write(room: &mut [u8], destination: [u8; 6], source: [u8; 6], stamp: Stamp) {
    let head = destination.into_iter().chain(source).chain(KIND).chain(stamp.bytes());
    room.iter_mut().zip(head).for_each(|(to, byte)| *to = byte);
    let filling = room.get_mut(FRAME_HEAD..).unwrap_or(&mut []);
    for (chunk, place) in filling.chunks_mut(8).zip(0_u64..) {
        let word = word(stamp.number, place).to_le_bytes();
        match chunk.first_chunk_mut() {
            Some(whole) => *whole = word,
            None => chunk.iter_mut().zip(word).for_each(|(to, byte)| *to = byte),
        }
    }
}

/// Whether the filling is that of frame `number`.
pub(super) fn is_whole(frame: &[u8], number: u64) -> bool {
    let filling = frame.get(FRAME_HEAD..).unwrap_or(&[]);
    let words = filling.chunks(8).zip(0_u64..);
    words.into_iter().all(|(chunk, place)| {
        let word = word(number, place).to_le_bytes();
        word.get(..chunk.len()) == Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_what_was_written_and_shows_every_change() {
        for len in [32, 33, 60, 64, 1518] {
            let stamp = Stamp { number: 0x0102_0304_0506, at: u64::MAX - 3 };
            let mut frame = vec![0; len];
            write(&mut frame, BROADCAST, [2, 0, 0, 0, 0, 1], stamp);
            assert_eq!(Stamp::of(frame.first_chunk().unwrap()), Some(stamp));
            assert!(is_whole(&frame, stamp.number));
            assert!(len == 32 || !is_whole(&frame, stamp.number + 1));
            for place in FRAME_HEAD..len {
                frame[place] ^= 0x10;
                assert!(!is_whole(&frame, stamp.number), "a change at {place} of {len}");
                frame[place] ^= 0x10;
            }
            frame[13] = 0;
            assert_eq!(Stamp::of(frame.first_chunk().unwrap()), None);
        }
    }
}
