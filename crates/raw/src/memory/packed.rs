//! The descriptor ring of a packed virtqueue, which both sides read and write
//! (VIRTIO 1.4 §2.8.13).
//!
//! The flags of a descriptor say whose turn it is. So they are loaded first, and the rest only
//! behind them; they are stored last. A position is held inside the ring: there is no bad slot.

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use super::map::MemoryMap;
use super::sync::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A packed descriptor (VIRTIO 1.4 §2.8.13) without its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PackedDescriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// What the driver calls the buffer.
    pub id: u16,
}

impl PackedDescriptor {
    /// The descriptor in these 16 bytes, as found in an indirect table, and its flags.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 16]) -> (Self, u16) {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, i0, i1, f0, f1] = *bytes;
        let descriptor = Self {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            id: u16::from_le_bytes([i0, i1]),
        };
        (descriptor, u16::from_le_bytes([f0, f1]))
    }
}

#[repr(C, align(16))]
struct Atoms {
    addr: AtomicU64,
    len: AtomicU32,
    id: AtomicU16,
    flags: AtomicU16,
}

const _: () = assert!(size_of::<Atoms>() == 16, "the layout of the standard");

/// The descriptor ring, of any size from 1 on.
pub struct PackedDescriptors {
    base: NonNull<Atoms>,
    last: u16,
    _map: Arc<MemoryMap>,
}

// SAFETY: the descriptors are atomics that stay mapped as long as `_map` lives; moving the handle
// to another thread changes nothing about that.
unsafe impl Send for PackedDescriptors {}

impl PackedDescriptors {
    /// Bytes of a descriptor, and its alignment.
    pub(crate) const CELL: usize = size_of::<Atoms>();

    /// `None` when `size` is 0.
    ///
    /// # Safety
    /// `base` must be aligned to 16 and point to `size` descriptors inside `map`.
    pub(crate) unsafe fn from_raw(
        base: NonNull<u8>,
        size: u16,
        map: Arc<MemoryMap>,
    ) -> Option<Self> {
        Some(Self { base: base.cast(), last: size.checked_sub(1)?, _map: map })
    }

    /// How many descriptors the ring has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.last.wrapping_add(1)
    }

    /// A slot; the last one where there is none.
    #[inline]
    #[must_use]
    pub fn slot(&self, slot: u16) -> PackedSlot<'_> {
        // SAFETY: the offset is held below the size that `from_raw` was promised.
        let at = unsafe { self.base.add(usize::from(slot.min(self.last))) };
        // SAFETY: `at` is aligned and mapped while `_map` lives; atomics may be shared with
        // threads and processes that change them, and any bit pattern is valid.
        PackedSlot(unsafe { at.as_ref() })
    }

    /// The slots from `slot` on, to the ring's end.
    #[inline]
    pub fn run(&self, slot: u16) -> impl Iterator<Item = PackedSlot<'_>> {
        let first = slot.min(self.last);
        let count = usize::from(self.last.wrapping_sub(first)).wrapping_add(1);
        // SAFETY: the offset is held below the size that `from_raw` was promised.
        let at = unsafe { self.base.add(usize::from(first)) };
        // SAFETY: as in `slot`, for every one from `first` to the last.
        let slots = unsafe { core::slice::from_raw_parts(at.as_ptr(), count) };
        slots.iter().map(PackedSlot)
    }
}

/// A descriptor of the ring.
#[derive(Clone, Copy)]
pub struct PackedSlot<'r>(&'r Atoms);

impl PackedSlot<'_> {
    /// The flags; what the other side wrote before it stored them is seen after it.
    #[inline]
    #[must_use]
    pub fn flags(self) -> u16 {
        u16::from_le(self.0.flags.load(Ordering::Acquire))
    }

    /// The rest, each field loaded once. The flags must have been looked at before.
    #[inline]
    #[must_use]
    pub fn load(self) -> PackedDescriptor {
        PackedDescriptor {
            addr: u64::from_le(self.0.addr.load(Ordering::Relaxed)),
            len: u32::from_le(self.0.len.load(Ordering::Relaxed)),
            id: u16::from_le(self.0.id.load(Ordering::Relaxed)),
        }
    }

    /// Stores everything but the flags.
    #[inline]
    pub fn store(self, descriptor: PackedDescriptor) {
        self.0.addr.store(descriptor.addr.to_le(), Ordering::Relaxed);
        self.store_used(descriptor.id, descriptor.len);
    }

    /// Stores what the device says of a used buffer, but for the flags.
    #[inline]
    pub fn store_used(self, id: u16, len: u32) {
        self.0.len.store(len.to_le(), Ordering::Relaxed);
        self.0.id.store(id.to_le(), Ordering::Relaxed);
    }

    /// Stores the flags after everything this side has written before.
    #[inline]
    pub fn store_flags(self, flags: u16) {
        self.0.flags.store(flags.to_le(), Ordering::Release);
    }
}

impl fmt::Debug for PackedSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a slot")
    }
}

impl fmt::Debug for PackedDescriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packed ring of {}", self.size())
    }
}
