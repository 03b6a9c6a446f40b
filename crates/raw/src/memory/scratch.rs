//! Private memory that is filled through spans, as guest memory is, and then looked at.

use alloc::boxed::Box;
use alloc::vec;
use core::ptr;

use super::span::WriteSpan;

/// A run of private memory, zeroed when it is made.
pub struct Scratch {
    bytes: Box<[u8]>,
    /// The room that was given last. It points into `bytes`, and is used while [`Self::room`]'s
    /// borrow lasts only.
    room: WriteSpan<'static>,
}

// SAFETY: the pointer in `room` is not used but under a borrow of the whole, and what it points to
// belongs to the same value.
unsafe impl Send for Scratch {}

impl Scratch {
    /// Memory of `len` bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let room = WriteSpan::raw(ptr::null_mut(), 0);
        Self { bytes: vec![0; len].into_boxed_slice(), room }
    }

    /// All of it.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// What is behind `offset`, as a list of one span; of none past the end.
    #[inline]
    pub fn room(&mut self, offset: usize) -> &[WriteSpan<'_>] {
        let Some(behind) = self.bytes.get_mut(offset..).filter(|behind| !behind.is_empty()) else {
            return &[];
        };
        // The lifetime of the span is cut to that of the borrow by the signature.
        self.room = WriteSpan::raw(behind.as_mut_ptr(), behind.len());
        core::slice::from_ref(&self.room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_through_the_span_is_there() {
        let mut scratch = Scratch::new(16);
        let [span] = scratch.room(4) else { panic!("one span") };
        assert_eq!(span.len(), 12);
        assert_eq!(span.copy_from(1, &[7; 20]), 11);
        assert_eq!(scratch.bytes(), [0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert!(scratch.room(16).is_empty() && scratch.room(99).is_empty());
    }
}
