//! Cells that both sides load and store: ring entries and indices.
//!
//! Every load is one atomic snapshot of a naturally aligned word (three words for a descriptor), so
//! a value is fetched once by construction (VIRTIO 1.4 §3.1, conformance row INIT-08). Indices are
//! masked or refused: a ring has no bad index.

use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;

use super::map::MemoryMap;
use super::prefetch;
use super::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A value that lives in shared memory, made of atomics of one width.
pub trait Cell: Copy + sealed::Sealed {
    /// The shared form; any bit pattern is valid.
    type Atoms: Sync;
    /// One snapshot of the cell.
    fn load(atoms: &Self::Atoms) -> Self;
    /// Stores the value; no order with other cells.
    fn store(self, atoms: &Self::Atoms);
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for super::Descriptor {}
    impl Sealed for super::UsedElem {}
}

impl Cell for u16 {
    type Atoms = AtomicU16;
    #[inline]
    fn load(atoms: &AtomicU16) -> Self {
        Self::from_le(atoms.load(Ordering::Relaxed))
    }
    #[inline]
    fn store(self, atoms: &AtomicU16) {
        atoms.store(self.to_le(), Ordering::Relaxed);
    }
}

/// A split descriptor (VIRTIO 1.4 §2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Where the chain goes on, with `DESC_F_NEXT`.
    pub next: u16,
}

impl Descriptor {
    /// The descriptor in these 16 bytes, as found in an indirect table.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 16]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
        Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// The shared form of a [`Descriptor`]: its flags are a word of their own, since most chains are
/// judged by them.
#[repr(C)]
pub struct DescriptorAtoms {
    addr: AtomicU64,
    len: AtomicU32,
    /// `flags`, then `next`.
    rest: AtomicU32,
}

const _: () = assert!(size_of::<DescriptorAtoms>() == 16, "the layout of the standard");

impl Cell for Descriptor {
    type Atoms = DescriptorAtoms;
    #[inline]
    fn load(atoms: &DescriptorAtoms) -> Self {
        let [f0, f1, n0, n1] = atoms.rest.load(Ordering::Relaxed).to_ne_bytes();
        Self {
            addr: u64::from_le(atoms.addr.load(Ordering::Relaxed)),
            len: u32::from_le(atoms.len.load(Ordering::Relaxed)),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
    #[inline]
    fn store(self, atoms: &DescriptorAtoms) {
        let ([f0, f1], [n0, n1]) = (self.flags.to_le_bytes(), self.next.to_le_bytes());
        atoms.addr.store(self.addr.to_le(), Ordering::Relaxed);
        atoms.len.store(self.len.to_le(), Ordering::Relaxed);
        atoms.rest.store(u32::from_ne_bytes([f0, f1, n0, n1]), Ordering::Relaxed);
    }
}

/// An entry of the split used ring (VIRTIO 1.4 §2.7.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct UsedElem {
    /// Head of the chain.
    pub id: u32,
    /// Bytes written to its device-writable part.
    pub len: u32,
}

impl Cell for UsedElem {
    // The used ring is aligned to 4 only, and its entries start at offset 4: two 32-bit words.
    type Atoms = [AtomicU32; 2];
    #[inline]
    fn load(atoms: &Self::Atoms) -> Self {
        let [id, len] = atoms;
        Self {
            id: u32::from_le(id.load(Ordering::Relaxed)),
            len: u32::from_le(len.load(Ordering::Relaxed)),
        }
    }
    #[inline]
    fn store(self, atoms: &Self::Atoms) {
        let [id, len] = atoms;
        id.store(self.id.to_le(), Ordering::Relaxed);
        len.store(self.len.to_le(), Ordering::Relaxed);
    }
}

/// A power-of-two array of cells shared with the other side. Indices are masked.
pub struct SharedRing<T: Cell> {
    base: NonNull<T::Atoms>,
    mask: usize,
    _map: Arc<MemoryMap>,
    cells: PhantomData<T>,
}

// SAFETY: the cells are atomics that stay mapped as long as `_map` lives; moving the handle to
// another thread changes nothing about that.
unsafe impl<T: Cell> Send for SharedRing<T> {}

impl<T: Cell> SharedRing<T> {
    /// `None` unless `size` is a power of two.
    ///
    /// # Safety
    /// `base` must be aligned for the cell's atoms and point to `size` of them inside `map`.
    pub(crate) unsafe fn from_raw(
        base: NonNull<u8>,
        size: u16,
        map: Arc<MemoryMap>,
    ) -> Option<Self> {
        let mask = size.is_power_of_two().then(|| usize::from(size).wrapping_sub(1))?;
        Some(Self { base: base.cast(), mask, _map: map, cells: PhantomData })
    }

    /// How many cells the ring has.
    #[must_use]
    pub fn size(&self) -> u16 {
        u16::try_from(self.mask.wrapping_add(1)).unwrap_or(u16::MAX)
    }

    /// The cells, to be used in a loop: where they are is read once.
    #[inline]
    #[must_use]
    pub fn cells(&self) -> Cells<'_, T> {
        Cells { base: self.base, mask: self.mask, ring: PhantomData }
    }

    /// One snapshot of the cell at `index` modulo the size.
    #[inline]
    #[must_use]
    pub fn load(&self, index: u16) -> T {
        self.cells().load(index)
    }

    /// Stores a cell at `index` modulo the size; publish with an index of its own.
    #[inline]
    pub fn store(&self, index: u16, value: T) {
        self.cells().store(index, value);
    }

    /// Snapshots of the cells from `index` on, to the ring's end.
    #[inline]
    pub fn run(&self, index: u16) -> impl Iterator<Item = T> {
        let first = usize::from(index) & self.mask;
        let count = self.mask.wrapping_sub(first).wrapping_add(1);
        // SAFETY: the masked offset is below the size that `from_raw` was promised.
        let at = unsafe { self.base.add(first) };
        // SAFETY: as in `Cells::at`, for every one from `first` to the last.
        let atoms = unsafe { core::slice::from_raw_parts(at.as_ptr(), count) };
        atoms.iter().map(T::load)
    }

    /// Brings the cell at `index` closer.
    #[inline]
    pub fn prefetch(&self, index: u16) {
        prefetch(core::ptr::from_ref(self.cells().atoms(index)).cast());
    }
}

/// The cells of a [`SharedRing`].
pub struct Cells<'r, T: Cell> {
    base: NonNull<T::Atoms>,
    mask: usize,
    ring: PhantomData<&'r SharedRing<T>>,
}

impl<T: Cell> Clone for Cells<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Cell> Copy for Cells<'_, T> {}

impl<'r, T: Cell> Cells<'r, T> {
    /// One snapshot of the cell at `index` modulo the size.
    #[inline]
    #[must_use]
    pub fn load(self, index: u16) -> T {
        T::load(self.atoms(index))
    }

    /// One snapshot of the cell at `index`, or `None` where the ring has none.
    #[inline]
    #[must_use]
    pub fn get(self, index: u16) -> Option<T> {
        let offset = usize::from(index);
        if offset > self.mask {
            return None;
        }
        // SAFETY: the offset was held to the mask.
        let atoms = unsafe { self.at(offset) };
        Some(T::load(atoms))
    }

    /// Stores a cell at `index` modulo the size; publish with an index of its own.
    #[inline]
    pub fn store(self, index: u16, value: T) {
        value.store(self.atoms(index));
    }

    #[inline]
    fn atoms(self, index: u16) -> &'r T::Atoms {
        // SAFETY: the offset is held to the mask.
        unsafe { self.at(usize::from(index) & self.mask) }
    }

    /// The cell at `offset`.
    ///
    /// # Safety
    /// `offset` must be no more than the mask.
    #[inline]
    unsafe fn at(self, offset: usize) -> &'r T::Atoms {
        // SAFETY: the offset is below the size that the ring's `from_raw` was promised.
        let at = unsafe { self.base.add(offset) };
        // SAFETY: `at` is aligned and mapped while the ring lives, which 'r borrows; atomics may
        // be shared with threads and processes that change them, and any bit pattern is valid.
        unsafe { at.as_ref() }
    }
}

impl<T: Cell> fmt::Debug for Cells<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cells of a ring of {}", self.mask.wrapping_add(1))
    }
}

impl<T: Cell> fmt::Debug for SharedRing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring of {}", self.size())
    }
}

/// A 16-bit word shared with the other side: an index, a flags word, an event word.
pub struct SharedIndex {
    base: NonNull<AtomicU16>,
    _map: Arc<MemoryMap>,
}

// SAFETY: as for `SharedRing`.
unsafe impl Send for SharedIndex {}

impl SharedIndex {
    /// # Safety
    /// `base` must be even and point to two bytes inside `map`.
    pub(crate) unsafe fn from_raw(base: NonNull<u8>, map: Arc<MemoryMap>) -> Self {
        Self { base: base.cast(), _map: map }
    }

    /// One snapshot; no order with other cells.
    #[inline]
    #[must_use]
    pub fn load(&self) -> u16 {
        u16::from_le(self.atom().load(Ordering::Relaxed))
    }

    /// One snapshot; what the other side wrote before its release store is seen after it.
    #[inline]
    #[must_use]
    pub fn load_acquire(&self) -> u16 {
        u16::from_le(self.atom().load(Ordering::Acquire))
    }

    /// Stores; no order with other cells.
    #[inline]
    pub fn store(&self, value: u16) {
        self.atom().store(value.to_le(), Ordering::Relaxed);
    }

    /// Stores after everything this side has written before.
    #[inline]
    pub fn store_release(&self, value: u16) {
        self.atom().store(value.to_le(), Ordering::Release);
    }

    #[inline]
    fn atom(&self) -> &AtomicU16 {
        // SAFETY: `base` is aligned and mapped while `_map` lives; any bit pattern is valid.
        unsafe { self.base.as_ref() }
    }
}

impl fmt::Debug for SharedIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("shared index")
    }
}
