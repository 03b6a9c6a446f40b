//! A packed virtqueue, driver side (VIRTIO 1.4 §2.8). A position runs from 0 to twice the size:
//! in the first lap the wrap counter is 1, in the second 0.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vionet_raw::{AddressSpace, GuestAddr, PackedDescriptor, PackedDescriptors, SharedIndex};
use vionet_spec::ring::{
    DESC_F_AVAIL, DESC_F_USED, DESC_F_WRITE, DESC_LEN, EVENT_FLAGS_DESC, EVENT_FLAGS_DISABLE,
    EVENT_FLAGS_ENABLE,
};

use super::{Loans, Shape, Used};
use crate::error::GuestError;
use crate::front_end::RingPlace;
use crate::memory::user_address;

/// The bit of a position that carries the wrap counter.
const WRAP: u16 = 1 << 15;

pub(crate) struct PackedRing {
    size: u16,
    event_idx: bool,
    flags: u16,
    ring: PackedDescriptors,
    /// Where and whether we want interrupts.
    driver: [SharedIndex; 2],
    /// Where and whether the device wants kicks.
    device: [SharedIndex; 2],
    loans: Loans,
    next_avail: u16,
    next_used: u16,
    /// The flags of the first slot that is lent and not shown: stored last, so that the device
    /// finds all or none.
    first: Option<(u16, u16)>,
    place: RingPlace,
}

impl PackedRing {
    pub(super) fn new(space: &Arc<AddressSpace>, at: u64, shape: Shape) -> Option<Self> {
        let driver = at.saturating_add(u64::from(shape.size).saturating_mul(DESC_LEN.into()));
        let device = driver.saturating_add(64);
        let event = |at: u64| {
            let [place, flags] = [at, at.saturating_add(2)].map(|at| space.index(GuestAddr(at)));
            Some([place?, flags?])
        };
        Some(Self {
            size: shape.size,
            event_idx: shape.event_idx,
            flags: if shape.writable { DESC_F_WRITE } else { 0 },
            ring: space.descriptors(GuestAddr(at), shape.size)?,
            driver: event(driver)?,
            device: event(device)?,
            loans: Loans::new(shape),
            next_avail: 0,
            next_used: 0,
            first: None,
            place: RingPlace {
                size: shape.size,
                // Slot 0 with wrap counter 1, for what is taken and for what is used.
                base: u32::from(WRAP) << 16 | u32::from(WRAP),
                descriptors: user_address(at),
                avail: user_address(driver),
                used: user_address(device),
            },
        })
    }

    pub(super) fn place(&self) -> &RingPlace {
        &self.place
    }

    /// The slot of a position, and the wrap counter of its lap.
    #[inline]
    fn slot(&self, position: u16) -> (u16, bool) {
        match position.checked_sub(self.size) {
            None => (position, true),
            Some(slot) => (slot, false),
        }
    }

    #[inline]
    fn after(&self, position: u16) -> u16 {
        let next = position.wrapping_add(1);
        // Twice the largest size is 0 here.
        if next == self.size.wrapping_mul(2) { 0 } else { next }
    }

    /// Positions from `from` forward to `to`.
    #[inline]
    fn distance(&self, from: u16, to: u16) -> u16 {
        let straight = to.wrapping_sub(from);
        if to >= from { straight } else { straight.wrapping_add(self.size.wrapping_mul(2)) }
    }

    /// A position as the standard writes it.
    #[inline]
    fn bits(&self, position: u16) -> u16 {
        let (slot, wrap) = self.slot(position);
        slot | if wrap { WRAP } else { 0 }
    }

    #[inline]
    pub(super) fn lend(&mut self, index: u16, at: u64, len: u32) {
        let (slot, wrap) = self.slot(self.next_avail);
        self.ring.slot(slot).store(PackedDescriptor { addr: at, len, id: index });
        let flags = self.flags | if wrap { DESC_F_AVAIL } else { DESC_F_USED };
        match self.first {
            None => self.first = Some((slot, flags)),
            Some(_) => self.ring.slot(slot).store_flags(flags),
        }
        self.next_avail = self.after(self.next_avail);
        self.loans.lend(index, len);
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let count = self.loans.show();
        let Some((slot, flags)) = self.first.take() else { return false };
        self.ring.slot(slot).store_flags(flags);
        fence(Ordering::SeqCst);
        let [place, wish] = &self.device;
        match wish.load_acquire() {
            EVENT_FLAGS_DISABLE => false,
            EVENT_FLAGS_DESC if self.event_idx => {
                let event = place.load();
                let slot = event & !WRAP;
                if slot >= self.size {
                    return true;
                }
                let lap = if event & WRAP == 0 { self.size } else { 0 };
                let ahead = self.distance(slot.wrapping_add(lap), self.next_avail);
                ahead.wrapping_sub(1) < count
            }
            _ => true,
        }
    }

    #[inline]
    fn is_used(&self) -> Option<u16> {
        let (slot, wrap) = self.slot(self.next_used);
        let flags = self.ring.slot(slot).flags();
        let lap = if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        (flags & (DESC_F_AVAIL | DESC_F_USED) == lap).then_some(flags)
    }

    #[inline]
    pub(super) fn used(&mut self) -> Result<Option<Used>, GuestError> {
        let used = match self.loans.next_of_run()? {
            Some(used) => used,
            None => {
                let Some(flags) = self.is_used() else { return Ok(None) };
                let (slot, _) = self.slot(self.next_used);
                let PackedDescriptor { id, len, .. } = self.ring.slot(slot).load();
                // Without WRITE there is no length (§2.8.8).
                self.loans.settle(id.into(), if flags & DESC_F_WRITE == 0 { 0 } else { len })?
            }
        };
        self.next_used = self.after(self.next_used);
        Ok(Some(used))
    }

    pub(super) fn arm(&mut self) -> bool {
        let [place, wish] = &self.driver;
        if self.event_idx {
            place.store(self.bits(self.next_used));
            wish.store_release(EVENT_FLAGS_DESC);
        } else {
            wish.store_release(EVENT_FLAGS_ENABLE);
        }
        fence(Ordering::SeqCst);
        self.is_used().is_some()
    }

    #[inline]
    pub(super) fn disarm(&mut self) {
        let [_, wish] = &self.driver;
        if wish.load() != EVENT_FLAGS_DISABLE {
            wish.store(EVENT_FLAGS_DISABLE);
        }
    }
}
