//! The region that a store's buffers lie in.

use core::ptr;

use super::map::Region;

/// A region of a store's address space, close at hand: buffers lie together.
#[derive(Clone, Copy)]
pub(super) struct Near {
    guest: u64,
    len: usize,
    base: *mut u8,
}

impl Near {
    pub(super) const NOTHING: Self = Self { guest: 0, len: 0, base: ptr::null_mut() };

    pub(super) fn new(region: &Region) -> Self {
        Self { guest: region.guest().0, len: region.len(), base: region.base().as_ptr() }
    }

    /// Where `len` bytes at `at` are mapped, when all of them lie in this region.
    #[inline]
    pub(super) fn find(&self, at: u64, len: usize) -> Option<*mut u8> {
        let offset = usize::try_from(at.wrapping_sub(self.guest)).ok()?;
        let end = offset.checked_add(len)?;
        if end <= self.len { Some(self.base.wrapping_add(offset)) } else { None }
    }

    /// Whether `len` bytes at `base` of this process all lie in this region.
    #[inline]
    pub(super) fn holds(&self, base: *mut u8, len: usize) -> bool {
        let offset = base.addr().wrapping_sub(self.base.addr());
        offset <= self.len && len <= self.len.wrapping_sub(offset)
    }
}
