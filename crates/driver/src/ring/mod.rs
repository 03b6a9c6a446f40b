//! A virtqueue, driver side, one descriptor for each buffer: what both formats have in common.
//!
//! ```text
//!   used               published          lent
//!     |  the device's      |    not shown   |        positions in a ring
//!     '---- come back -----'---- publish ---'
//! ```
//!
//! The device's word is checked: what comes back must have been lent and shown. With IN_ORDER the
//! caller lends the buffers 0, 1, 2 and so on, round and round, and gets them back so; the device
//! may then name the last of several only (VIRTIO 1.4 §2.7.9, §2.8.7).

mod packed;
mod split;

use std::sync::Arc;

use vionet_raw::AddressSpace;

use crate::error::GuestError;
use crate::front_end::RingPlace;
use packed::PackedRing;
use split::SplitRing;

/// The layout of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RingFormat {
    /// VIRTIO 1.4 §2.7.
    #[default]
    Split,
    /// VIRTIO 1.4 §2.8.
    Packed,
}

/// What a ring is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) format: RingFormat,
    /// Entries; a power of two for a split ring.
    pub(crate) size: u16,
    pub(crate) event_idx: bool,
    pub(crate) in_order: bool,
    /// Whether the device writes to the buffers.
    pub(crate) writable: bool,
}

/// A buffer that came back, and the bytes written to it.
pub(crate) type Used = (u16, u32);

/// The driver's side of a virtqueue.
pub(crate) enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Bytes to keep for a ring of `size` entries in either format, its gaps included.
pub(crate) fn ring_bytes(size: u16) -> u64 {
    u64::from(size).saturating_mul(32).saturating_add(4096).next_multiple_of(4096)
}

impl Ring {
    /// A ring at guest address `at`, which has [`ring_bytes`] bytes there, all zero.
    pub(crate) fn new(
        space: &Arc<AddressSpace>,
        at: u64,
        shape: Shape,
    ) -> Result<Self, GuestError> {
        let short = || GuestError::Device("a ring outside of memory");
        match shape.format {
            RingFormat::Split => SplitRing::new(space, at, shape).map(Self::Split),
            RingFormat::Packed => PackedRing::new(space, at, shape).map(Self::Packed),
        }
        .ok_or_else(short)
    }

    pub(crate) fn place(&self) -> &RingPlace {
        match self {
            Self::Split(ring) => ring.place(),
            Self::Packed(ring) => ring.place(),
        }
    }

    /// Lends buffer `index`, which is ours, with `len` bytes at `at`; not yet visible.
    pub(crate) fn lend(&mut self, index: u16, at: u64, len: u32) {
        match self {
            Self::Split(ring) => ring.lend(index, at, len),
            Self::Packed(ring) => ring.lend(index, at, len),
        }
    }

    /// Makes what was lent visible; true when the device wants a kick for it.
    pub(crate) fn publish(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.publish(),
            Self::Packed(ring) => ring.publish(),
        }
    }

    /// The next used buffer.
    pub(crate) fn used(&mut self) -> Result<Option<Used>, GuestError> {
        match self {
            Self::Split(ring) => ring.used(),
            Self::Packed(ring) => ring.used(),
        }
    }

    /// Asks for an interrupt with the next used buffer; true when one is there already.
    pub(crate) fn arm(&mut self) -> bool {
        match self {
            Self::Split(ring) => ring.arm(),
            Self::Packed(ring) => ring.arm(),
        }
    }

    /// Wants no interrupts. One may come all the same once in a lap of the indices.
    pub(crate) fn disarm(&mut self) {
        match self {
            Self::Split(ring) => ring.disarm(),
            Self::Packed(ring) => ring.disarm(),
        }
    }
}

/// Which buffers the device has, and what it may say of them.
struct Loans {
    writable: bool,
    in_order: bool,
    /// Bytes lent with each buffer while it is out.
    out: Box<[Option<u32>]>,
    /// Buffers that the device can see.
    shown: u16,
    /// Buffers that are lent and not yet shown.
    hidden: u16,
    /// In order: the buffer that must come back next.
    oldest: u16,
    /// In order: the last of a run of buffers that came back under one name.
    run: Option<Used>,
}

impl Loans {
    fn new(shape: Shape) -> Self {
        Self {
            writable: shape.writable,
            in_order: shape.in_order,
            out: vec![None; usize::from(shape.size)].into_boxed_slice(),
            shown: 0,
            hidden: 0,
            oldest: 0,
            run: None,
        }
    }

    #[inline]
    fn lend(&mut self, index: u16, len: u32) {
        if let Some(out) = self.out.get_mut(usize::from(index)) {
            *out = Some(len);
            self.hidden = self.hidden.wrapping_add(1);
        }
    }

    /// Shows what is lent; how many are new.
    #[inline]
    fn show(&mut self) -> u16 {
        let new = std::mem::take(&mut self.hidden);
        self.shown = self.shown.wrapping_add(new);
        new
    }

    /// The next buffer of a run that has begun.
    #[inline]
    fn next_of_run(&mut self) -> Result<Option<Used>, GuestError> {
        match self.run {
            Some((id, len)) => self.settle(id.into(), len).map(Some),
            None => Ok(None),
        }
    }

    /// Takes a buffer back that the device says it has used. In order that is the oldest one, and
    /// all up to `id` follow.
    #[inline]
    fn settle(&mut self, id: u32, len: u32) -> Result<Used, GuestError> {
        const UNKNOWN: GuestError = GuestError::Device("a buffer is used that it does not have");
        let named = u16::try_from(id).map_err(|_| UNKNOWN)?;
        let index = if self.in_order { self.oldest } else { named };
        let is_out = |index| self.out.get(usize::from(index)).copied().flatten();
        is_out(named).ok_or(UNKNOWN)?;
        let lent = is_out(index).ok_or(UNKNOWN)?;
        self.shown = self.shown.checked_sub(1).ok_or(UNKNOWN)?;
        if let Some(out) = self.out.get_mut(usize::from(index)) {
            *out = None;
        }
        if self.in_order {
            let next = index.wrapping_add(1);
            self.oldest = if usize::from(next) < self.out.len() { next } else { 0 };
            self.run = (index != named).then_some((named, len));
        }
        // One that is not named is used to its end.
        let whole = if self.writable { lent } else { 0 };
        Ok((index, if index == named { len } else { whole }))
    }
}

#[cfg(test)]
mod tests;
