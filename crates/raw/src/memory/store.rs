//! The store of spans: buffers of chains, translated, shaped like `iovec`.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::ptr;

use super::map::{AddressSpace, GuestAddr};
use super::near::Near;
use super::pushed::Pushed;
use super::span::{ReadSpan, WriteSpan};
use super::translate::Access;
use super::{prefetch, prefetch_to_write};

#[derive(Clone, Copy)]
#[repr(C)]
struct Run {
    base: *mut u8,
    len: usize,
}

/// Spans together with the map that translated them, so that none outlives it.
///
/// Holds up to `N` spans; allocated once. Positions are counted from 0 in push order.
pub struct SpanStore<const N: usize> {
    runs: Box<[Run; N]>,
    len: usize,
    hint: usize,
    /// The region that answered last; none where addresses are translated.
    near: Near,
    access: Access,
    space: Arc<AddressSpace>,
}

// SAFETY: the runs point into memory that `space` keeps mapped, whichever thread has the store.
unsafe impl<const N: usize> Send for SpanStore<N> {}

impl<const N: usize> SpanStore<N> {
    /// An empty store over `space`, for buffers to be used so.
    #[must_use]
    pub fn new(space: Arc<AddressSpace>, access: Access) -> Self {
        let runs = Box::new([Run { base: ptr::null_mut(), len: 0 }; N]);
        Self { runs, len: 0, hint: 0, near: Near::NOTHING, access, space }
    }

    /// The address space that translates.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// How many spans the store holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the store holds no span.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Translates `len` bytes at `at` and adds them: one span, or one for each region they cross.
    /// An empty buffer adds nothing.
    #[inline]
    pub fn push(&mut self, at: GuestAddr, len: u32) -> Pushed {
        let Ok(len) = usize::try_from(len) else { return Pushed::Unmapped };
        if len == 0 {
            return Pushed::Added(0);
        }
        match self.near.find(at.0, len) {
            Some(base) => self.add(base, len),
            None => self.push_far(at, len),
        }
    }

    /// The same for a buffer that is used in another way than most of this store.
    pub fn push_for(&mut self, access: Access, at: GuestAddr, len: u32) -> Pushed {
        let usual = core::mem::replace(&mut self.access, access);
        let pushed = self.push(at, len);
        self.access = usual;
        pushed
    }

    /// Adds buffers that lie in the region that answered last, each as two spans of which the
    /// first is `lead` bytes long: one for each of `slots`, which `add` fills, told the place of
    /// the first span, the bytes in all and those behind the lead, and the buffer's name. Ends at
    /// the first buffer that is not near, or no longer than its lead, or is none; returns how many
    /// were added. The first line of either span is brought closer, the second's to be written if
    /// `to_write`: the other side's core had them last, and fetching all of a batch at once is one
    /// wait.
    #[inline]
    pub fn push_pairs<T, Name>(
        &mut self,
        to_write: bool,
        lead: u32,
        slots: &mut [T],
        buffers: impl Iterator<Item = Option<(GuestAddr, u32, Name)>>,
        mut add: impl FnMut(&mut T, u16, (u32, u32), Name),
    ) -> u16 {
        let near = self.near;
        let fetch = |at: *mut u8| {
            if to_write { prefetch_to_write(at) } else { prefetch(at) }
        };
        let (Ok(head), Ok(start)) = (usize::try_from(lead), u16::try_from(self.len)) else {
            return 0;
        };
        let runs = self.runs.get_mut(usize::from(start)..).unwrap_or(&mut []);
        let (pairs, _) = runs.as_chunks_mut::<2>();
        let (mut done, mut place) = (0_u16, start);
        for ((slot, [first, second]), buffer) in slots.iter_mut().zip(pairs).zip(buffers) {
            let Some((at, len, name)) = buffer else { break };
            if len <= lead {
                break;
            }
            let rest = len.wrapping_sub(lead);
            let (Ok(bytes), Ok(behind)) = (usize::try_from(len), usize::try_from(rest)) else {
                break;
            };
            let Some(base) = near.find(at.0, bytes) else { break };
            *first = Run { base, len: head };
            let payload = base.wrapping_add(head);
            fetch(payload);
            *second = Run { base: payload, len: behind };
            // A header is mostly there already, and only read.
            prefetch(base);
            add(slot, place, (len, rest), name);
            done = done.wrapping_add(1);
            place = place.wrapping_add(2);
        }
        self.len = usize::from(place);
        done
    }

    /// A buffer that is not near, or not all of it.
    #[cold]
    fn push_far(&mut self, at: GuestAddr, len: usize) -> Pushed {
        let (base, room) = match self.space.resolve(at, len, self.access, &mut self.hint) {
            Ok(found) => found,
            Err(why) => return Pushed::from(why),
        };
        if !self.space.is_translated()
            && let Some(region) = self.space.map().regions().get(self.hint)
        {
            self.near = Near::new(region);
        }
        if room >= len {
            return self.add(base.as_ptr(), len);
        }
        self.push_across(at, len)
    }

    /// A buffer that crosses from one region into a neighbour, or from one translation to the next.
    #[cold]
    fn push_across(&mut self, at: GuestAddr, len: usize) -> Pushed {
        let before = self.len;
        let (mut at, mut rest) = (at, len);
        while rest > 0 {
            let step = match self.space.resolve(at, rest, self.access, &mut self.hint) {
                Ok((base, room)) => match self.add(base.as_ptr(), room) {
                    Pushed::Added(_) => Ok(room),
                    refused => Err(refused),
                },
                Err(why) => Err(Pushed::from(why)),
            };
            let next = step.and_then(|done| {
                let next = u64::try_from(done).ok().and_then(|done| at.checked_add(done));
                next.map(|next| (next, done)).ok_or(Pushed::Unmapped)
            });
            match next {
                Ok((next, done)) => (at, rest) = (next, rest.saturating_sub(done)),
                Err(refused) => {
                    self.len = before;
                    return refused;
                }
            }
        }
        Pushed::Added(self.len.saturating_sub(before))
    }

    #[inline]
    fn add(&mut self, base: *mut u8, len: usize) -> Pushed {
        match self.runs.get_mut(self.len) {
            Some(run) => {
                *run = Run { base, len };
                self.len = self.len.wrapping_add(1);
                Pushed::Added(1)
            }
            None => Pushed::Full,
        }
    }

    /// Keeps the first `len` spans.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Takes out the first `count` spans; the rest move to the front.
    pub fn drop_front(&mut self, count: usize) {
        let count = count.min(self.len);
        if let Some(held) = self.runs.get_mut(..self.len) {
            held.copy_within(count.min(held.len()).., 0);
        }
        self.len = self.len.wrapping_sub(count);
    }

    /// Cuts `bytes` off the front of the span at `position`; beyond its length it becomes empty.
    #[inline]
    pub fn trim(&mut self, position: usize, bytes: usize) {
        if let Some(run) = self.runs.get_mut(position) {
            let cut = bytes.min(run.len);
            *run = Run { base: run.base.wrapping_add(cut), len: run.len.wrapping_sub(cut) };
        }
    }

    /// Spans that were pushed for reading; empty when the range is not in the store.
    #[inline]
    #[must_use]
    pub fn readable(&self, start: usize, count: usize) -> &[ReadSpan<'_>] {
        let runs = self.range(start, count);
        // SAFETY: `Run` and `ReadSpan` are both `repr(C)` pairs of a pointer and a length; the
        // runs were translated by `space`, which `self` keeps mapped for the borrow's lifetime.
        unsafe { core::slice::from_raw_parts(runs.as_ptr().cast(), runs.len()) }
    }

    /// The two spans from `start` on, pushed for writing; some that were in the store before where
    /// it holds none there now.
    #[inline]
    #[must_use]
    pub fn writable_pair(&self, start: u16) -> Option<&[WriteSpan<'_>; 2]> {
        let start = usize::from(start);
        let runs = self.runs.get(start..start.wrapping_add(2)).unwrap_or(&[]);
        // SAFETY: as in `readable`, and for a run that was taken out as well: whatever was ever in
        // `runs` was translated by this `space`, or has no bytes.
        let spans = unsafe { core::slice::from_raw_parts(runs.as_ptr().cast(), runs.len()) };
        spans.first_chunk()
    }

    /// Spans that were pushed for writing; empty when the range is not in the store.
    #[inline]
    #[must_use]
    pub fn writable(&self, start: usize, count: usize) -> &[WriteSpan<'_>] {
        let runs = self.range(start, count);
        // SAFETY: as in `readable`.
        unsafe { core::slice::from_raw_parts(runs.as_ptr().cast(), runs.len()) }
    }

    /// The spans that [`Self::writable`] gives, those that lie one behind the other as one: for the
    /// kernel, which pays for each. Nothing is joined across the end of a region, whatever lies
    /// behind it in this process, and only in the region that answered last.
    ///
    /// They lie behind what the store holds; with no room left there they come as they are.
    #[inline]
    #[must_use]
    pub fn writable_joined(&mut self, start: usize, count: usize) -> &[WriteSpan<'_>] {
        let len = self.join(start, count);
        let runs = match len {
            Some(len) => self.runs.get(self.len..self.len.wrapping_add(len)).unwrap_or(&[]),
            None => self.range(start, count),
        };
        // SAFETY: as in `readable`; a joined run is what its parts are, in one region.
        unsafe { core::slice::from_raw_parts(runs.as_ptr().cast(), runs.len()) }
    }

    /// Joins spans behind what the store holds; how many they are now.
    #[inline]
    fn join(&mut self, start: usize, count: usize) -> Option<usize> {
        let near = self.near;
        let (held, free) = self.runs.split_at_mut_checked(self.len)?;
        let mut parts = held.get(start..)?.get(..count)?.iter();
        let mut done = 0_usize;
        let mut last = *parts.next()?;
        for part in parts {
            if last.base.wrapping_add(last.len) == part.base
                && near.holds(last.base, last.len)
                && near.holds(part.base, part.len)
            {
                last.len = last.len.wrapping_add(part.len);
                continue;
            }
            *free.get_mut(done)? = last;
            done = done.wrapping_add(1);
            last = *part;
        }
        *free.get_mut(done)? = last;
        Some(done.wrapping_add(1))
    }

    #[inline]
    fn range(&self, start: usize, count: usize) -> &[Run] {
        let end = start.wrapping_add(count);
        if end > self.len { &[] } else { self.runs.get(start..end).unwrap_or(&[]) }
    }
}

impl<const N: usize> fmt::Debug for SpanStore<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {N} spans", self.len)
    }
}
