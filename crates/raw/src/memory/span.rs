//! Spans: runs of translated memory, shaped like `iovec`; and copying between them.
//!
//! There are two kinds on purpose. A device must not write what the driver made readable and
//! should not read what it made writable (VIRTIO 1.4 §2.7.5.1): with two types, doing so is a
//! compile error instead of a matter of discipline.

use core::fmt;
use core::marker::PhantomData;
use core::ptr;

use super::fill::{SHORT, string_move};
use super::map::{AddressSpace, GuestAddr};
use super::translate::Access;
use super::{once, prefetch, prefetch_to_write};

/// Memory that may be copied out of; never written, never seen as `&[u8]`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ReadSpan<'m> {
    base: *const u8,
    len: usize,
    memory: PhantomData<&'m u8>,
}

/// Memory that may be copied into; never read.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct WriteSpan<'m> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'m u8>,
}

impl<'m> ReadSpan<'m> {
    /// Private memory as a span, to send it together with guest memory.
    #[must_use]
    pub fn local(bytes: &'m [u8]) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// The span's length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes and the rest; `at` beyond the end leaves the rest empty.
    #[inline]
    #[must_use]
    pub fn split(self, at: usize) -> (Self, Self) {
        let at = at.min(self.len);
        let head = Self { len: at, ..self };
        let tail =
            Self { base: self.base.wrapping_add(at), len: self.len.wrapping_sub(at), ..self };
        (head, tail)
    }

    /// Copies from `offset` into `out`; returns the bytes copied, short at the span's end.
    #[inline]
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) -> usize {
        let (_, from) = self.split(offset);
        let len = from.len.min(out.len());
        // SAFETY: `from` lies in memory that stays mapped for 'm and `len` is within both sides.
        // Guest memory may change meanwhile; then the copy holds bytes the guest chose, in any
        // mixture, which is all a guest can be trusted to provide anyway.
        unsafe { ptr::copy_nonoverlapping(from.base, out.as_mut_ptr(), len) };
        len
    }

    /// The first `N` bytes, each fetched once whatever becomes of them, or `None` where the span is
    /// shorter.
    #[inline]
    #[must_use]
    pub fn read<const N: usize>(&self) -> Option<[u8; N]> {
        if self.len < N {
            return None;
        }
        let mut bytes = [0; N];
        let (words, rest) = bytes.as_chunks_mut::<4>();
        let mut from = self.base;
        for word in words {
            // SAFETY: as in `copy_to`; four of the `N` bytes that are there.
            let seen = unsafe { from.cast::<u32>().read_unaligned() };
            *word = once(seen).to_ne_bytes();
            from = from.wrapping_add(4);
        }
        for byte in rest {
            // SAFETY: likewise, one byte.
            let seen = unsafe { from.read_volatile() };
            *byte = seen;
            from = from.wrapping_add(1);
        }
        Some(bytes)
    }

    /// For the system calls of `host`, which copy out of the span.
    #[cfg(feature = "host")]
    #[inline]
    pub(crate) fn base(&self) -> *const u8 {
        self.base
    }

    /// Brings the span's first cache line closer.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.base);
    }
}

impl<'m> WriteSpan<'m> {
    /// A span over memory that its maker keeps alive for `'m`, and does not look at meanwhile.
    pub(super) const fn raw(base: *mut u8, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Private memory as a span, to receive into it together with guest memory.
    #[must_use]
    pub fn local(bytes: &'m mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// The span's length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the span has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `at` bytes and the rest; `at` beyond the end leaves the rest empty.
    #[inline]
    #[must_use]
    pub fn split(self, at: usize) -> (Self, Self) {
        let at = at.min(self.len);
        let head = Self { len: at, ..self };
        let tail =
            Self { base: self.base.wrapping_add(at), len: self.len.wrapping_sub(at), ..self };
        (head, tail)
    }

    /// For the system calls of `host`, which copy into the span.
    #[cfg(feature = "host")]
    #[inline]
    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    /// Brings the span's first cache line here, to be written.
    #[inline]
    pub fn prefetch(&self) {
        prefetch_to_write(self.base);
    }

    /// The same, for what is compared with before it is written.
    #[inline]
    pub fn prefetch_to_read(&self) {
        prefetch(self.base);
    }

    /// Copies `bytes` to the span's start; false, and nothing copied, where it is shorter.
    #[inline]
    #[must_use]
    pub fn write<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        if self.len < N {
            return false;
        }
        // SAFETY: as in `copy_from`, with a length that is known.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base, N) };
        true
    }

    /// The same, but what is there already is not written again: a line that nobody writes can stay
    /// in the caches of both sides.
    #[inline]
    #[must_use]
    pub fn write_if_new<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        if self.len < N {
            return false;
        }
        let mut there = [0; N];
        // SAFETY: as in `ReadSpan::copy_to`, with a length that is known.
        unsafe { ptr::copy_nonoverlapping(self.base, there.as_mut_ptr(), N) };
        there == *bytes || self.write(bytes)
    }

    /// Copies all of `bytes` to the span's start; false, and nothing copied, where it is shorter.
    #[inline]
    #[must_use]
    pub fn write_all(&self, bytes: &[u8]) -> bool {
        if self.len < bytes.len() {
            return false;
        }
        // SAFETY: as in `copy_from`, with a length that was looked at.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base, bytes.len()) };
        true
    }

    /// The same, by a string move if there are few: see [`super::has_string_moves`].
    #[inline]
    #[must_use]
    pub fn move_all(&self, bytes: &[u8]) -> bool {
        if bytes.len() > SHORT || self.len < bytes.len() {
            return self.write_all(bytes);
        }
        // SAFETY: as in `write_all`.
        unsafe { string_move(bytes.as_ptr(), self.base, bytes.len()) };
        true
    }

    /// Copies a frame whose first bytes were looked at: `head`, and from `frame` what is behind as
    /// many bytes. False, and nothing copied, where the span is shorter or `frame` shorter still.
    #[inline]
    #[must_use]
    pub fn write_frame(&self, head: &[u8], frame: &ReadSpan<'_>) -> bool {
        if frame.len > self.len || frame.len < head.len() {
            return false;
        }
        let rest = frame.len.wrapping_sub(head.len());
        // SAFETY: as in `copy_from`, with a length that is within the span.
        unsafe { ptr::copy_nonoverlapping(head.as_ptr(), self.base, head.len()) };
        let (from, to) = (frame.base.wrapping_add(head.len()), self.base.wrapping_add(head.len()));
        // SAFETY: as in `copy_behind`: `rest` bytes of either span, and they may overlap.
        unsafe { ptr::copy(from, to, rest) };
        true
    }

    /// Copies `bytes` to `offset`; returns the bytes copied, short at the span's end.
    #[inline]
    pub fn copy_from(&self, offset: usize, bytes: &[u8]) -> usize {
        let (_, to) = self.split(offset);
        let len = to.len.min(bytes.len());
        // SAFETY: `to` lies in memory that stays mapped for 'm and `len` is within both sides; no
        // Rust reference to it exists, since spans are the only way to guest memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to.base, len) };
        len
    }
}

impl fmt::Debug for ReadSpan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} readable bytes", self.len)
    }
}

impl fmt::Debug for WriteSpan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} writable bytes", self.len)
    }
}

/// Copies from `offset` of the spans, taken as one run, into `out`; returns the bytes copied.
#[inline]
pub fn copy_out(spans: &[ReadSpan<'_>], offset: usize, out: &mut [u8]) -> usize {
    if let [span] = spans {
        return span.copy_to(offset, out);
    }
    let (mut skip, mut done) = (offset, 0_usize);
    for span in spans {
        let Some(room) = out.get_mut(done..).filter(|room| !room.is_empty()) else { break };
        done = done.saturating_add(span.copy_to(skip, room));
        skip = skip.saturating_sub(span.len);
    }
    done
}

/// Copies `bytes` to `offset` of the spans, taken as one run; returns the bytes copied.
#[inline]
pub fn copy_in(spans: &[WriteSpan<'_>], offset: usize, bytes: &[u8]) -> usize {
    if let [span] = spans {
        return span.copy_from(offset, bytes);
    }
    let (mut skip, mut done) = (offset, 0_usize);
    for span in spans {
        let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else { break };
        done = done.saturating_add(span.copy_from(skip, rest));
        skip = skip.saturating_sub(span.len);
    }
    done
}

/// Copies what is behind the first `skip` bytes of `from` to behind the first `skip` bytes of `to`,
/// guest memory to guest memory; returns the bytes copied.
#[inline]
pub fn copy_behind(from: &[ReadSpan<'_>], to: &[WriteSpan<'_>], skip: usize) -> usize {
    let (mut from_skip, mut to_skip) = (skip, skip);
    let mut done = 0_usize;
    let mut targets = to.iter();
    let Some(mut target) = targets.next().copied() else { return 0 };
    while to_skip >= target.len && to_skip > 0 {
        to_skip = to_skip.wrapping_sub(target.len);
        let Some(next) = targets.next() else { return 0 };
        target = *next;
    }
    target = target.split(to_skip).1;
    for span in from {
        let mut rest = span.split(from_skip).1;
        from_skip = from_skip.saturating_sub(span.len);
        while rest.len > 0 {
            if target.len == 0 {
                let Some(next) = targets.next() else { return done };
                target = *next;
                continue;
            }
            let len = rest.len.min(target.len);
            // SAFETY: both runs stay mapped for their lifetimes and `len` is within both. `copy`
            // allows the overlap that a guest can bring about by posting one page twice.
            unsafe { ptr::copy(rest.base, target.base, len) };
            (rest, target) = (rest.split(len).1, target.split(len).1);
            done = done.saturating_add(len);
        }
    }
    done
}

impl AddressSpace {
    /// Copies `out.len()` bytes at `at`, which may be anything; false when part of them is not
    /// mapped, and then `out` holds a part or nothing.
    #[must_use]
    pub fn read(&self, at: GuestAddr, out: &mut [u8]) -> bool {
        let (mut at, mut rest, mut hint) = (at, out, 0);
        while !rest.is_empty() {
            let found = self.resolve(at, rest.len(), Access::Read, &mut hint);
            let Ok((base, room)) = found else { return false };
            let span = ReadSpan { base: base.as_ptr(), len: room, memory: PhantomData };
            let done = span.copy_to(0, rest);
            let Some(next) = u64::try_from(done).ok().and_then(|n| at.checked_add(n)) else {
                return false;
            };
            (at, rest) = (next, rest.get_mut(done..).unwrap_or(&mut []));
        }
        true
    }
}
