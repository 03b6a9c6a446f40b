//! The packed ring (VIRTIO 1.4 §2.8): one ring of descriptors that both sides write.
//!
//! ```text
//!   slot        0        1        2        3        4
//!            [used    ][ avail  ][ avail  ][ old   ][ old   ]      the lap with wrap counter 1
//!                ^         ^                  ^
//!             published   used (to be put)   avail (to be taken)
//!
//!   a slot is available when AVAIL is the wrap counter and USED is not     (PKD-03)
//!   a slot is used when both are the wrap counter
//! ```
//!
//! A list takes consecutive slots; its used descriptor is written into the first slot that is not
//! given back yet, and as many are passed over (PKD-07). Of all that was put, the flags of the
//! first slot are stored last: the driver sees the whole batch or nothing of it (PKD-12).

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vionet_raw::{
    AddressSpace, GuestAddr, PackedDescriptor, PackedDescriptors, SharedIndex, fence,
};
use vionet_spec::ring::{
    DESC_ALIGN, DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE,
    EVENT_FLAGS_DESC, EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE, SIZE_MAX, USED_ALIGN,
};

use crate::chain::{Batch, CHAIN_MAX, Direction, Draft, Left, Row};
use crate::fault::Fault;
use crate::kick::{Armed, Place, Published, is_crossed_packed};
use crate::setup::{Cursor, QueueSetup, RingFeatures};
use crate::table::Table;
use crate::walk::{Walk, add, no_room};

/// Offset of the flags in an event suppression structure.
const FLAGS_OFFSET: u64 = 2;
/// The bits of the flags that mean something.
const EVENT_FLAGS: u16 = 3;

/// The flags that say what a descriptor is.
const KIND: u16 = DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT;

pub(crate) struct PackedRing {
    size: u16,
    event_idx: bool,
    in_order: bool,
    descriptors: PackedDescriptors,
    driver_place: SharedIndex,
    driver_flags: SharedIndex,
    device_place: SharedIndex,
    device_flags: SharedIndex,
    table: Table,
    /// Next slot to take.
    avail: Place,
    /// Next slot to give back.
    used: Place,
    /// First slot that the driver does not see given back.
    published: Place,
    /// Slots taken and not put.
    taken: u16,
    /// Slots put and not published.
    put: u16,
    /// The used descriptor of slot `published`, whose flags are stored last.
    first: Option<First>,
    /// The interrupt decision has a published position to start from.
    told: bool,
    /// What the driver is told about kicks.
    wish: u16,
}

struct First {
    id: u16,
    written: u32,
}

impl PackedRing {
    pub(crate) fn new(
        setup: &QueueSetup,
        space: &Arc<AddressSpace>,
        features: RingFeatures,
        from: Cursor,
    ) -> Result<Self, Fault> {
        let QueueSetup { size, descriptors, driver, device } = *setup;
        if size == 0 || size > SIZE_MAX {
            return Err(Fault::BadSize);
        }
        let areas = [(descriptors, DESC_ALIGN), (driver, USED_ALIGN), (device, USED_ALIGN)];
        if areas.iter().any(|(at, align)| !at.0.is_multiple_of(*align)) {
            return Err(Fault::Misaligned);
        }
        let (avail, used) = (Place::from_bits(from.avail), Place::from_bits(from.used));
        if avail.slot >= size || used.slot >= size {
            return Err(Fault::BadPosition);
        }
        let index = |area: GuestAddr, offset: u64| {
            let at = area.checked_add(offset).ok_or(Fault::RingUnmapped)?;
            space.index(at).ok_or(Fault::RingUnmapped)
        };
        Ok(Self {
            size,
            event_idx: features.event_idx,
            in_order: features.in_order,
            descriptors: space.descriptors(descriptors, size).ok_or(Fault::RingUnmapped)?,
            driver_place: index(driver, 0)?,
            driver_flags: index(driver, FLAGS_OFFSET)?,
            device_place: index(device, 0)?,
            device_flags: index(device, FLAGS_OFFSET)?,
            table: Table::new(space, features.indirect),
            avail,
            used,
            published: used,
            taken: 0,
            put: 0,
            first: None,
            told: false,
            wish: EVENT_FLAGS_ENABLE,
        })
    }

    /// Old values in memory are stale (VU-PIT-12): kicks are wanted from here on.
    pub(crate) fn begun(self) -> Self {
        self.device_flags.store_release(EVENT_FLAGS_ENABLE);
        self
    }

    pub(crate) fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { avail: self.avail.bits(), used: self.published.bits() }
    }

    /// Slots that the driver does not see given back yet.
    pub(crate) fn unpublished(&self) -> usize {
        usize::from(self.put)
    }

    #[inline]
    pub(crate) fn has_work(&mut self) -> bool {
        is_available(self.descriptors.slot(self.avail.slot).flags(), self.avail.wrap)
    }

    /// Why lists were left, if some were.
    #[inline]
    pub(crate) fn take<D: Direction>(
        &mut self,
        limit: usize,
        batch: &mut Batch<D>,
    ) -> Result<Left, Fault> {
        let mut left = limit;
        while left > 0 && batch.has_free_row() {
            let singles = self.take_singles(left, batch);
            left = left.wrapping_sub(singles);
            if left == 0 || !batch.has_free_row() {
                break;
            }
            if singles > 0 && self.avail.slot == 0 {
                continue;
            }
            let Place { slot, wrap } = self.avail;
            let flags = self.descriptors.slot(slot).flags();
            if !is_available(flags, wrap) {
                return Ok(Left::Nothing);
            }
            let first = self.descriptors.slot(slot).load();
            // The driver may not make a slot available again that it has not got back.
            let free = self.free();
            let mut draft = batch.draft();
            match self.walk(first, flags, batch, &mut draft) {
                Ok((Walk::Done, id, slots)) => {
                    if slots > free {
                        batch.give_up(draft);
                        return Err(Fault::SlotsOverrun);
                    }
                    self.taken = self.taken.saturating_add(slots);
                    self.avail = self.avail.after(slots, self.size);
                    batch.close(draft, id, slots);
                }
                Ok((Walk::NoRoom, ..)) if no_room(batch, draft)? => continue,
                Ok((Walk::NoRoom, ..)) => break,
                Ok((Walk::Missing, ..)) => {
                    batch.give_up(draft);
                    return Ok(Left::Missing);
                }
                Err(fault) => {
                    batch.give_up(draft);
                    return Err(fault);
                }
            }
            left = left.wrapping_sub(1);
        }
        Ok(if left > 0 { Left::NoRoom } else { Left::Nothing })
    }

    /// Slots that the driver may make available.
    #[inline]
    fn free(&self) -> u16 {
        self.size.saturating_sub(self.taken.saturating_add(self.put))
    }

    /// Lists of one buffer, as they mostly are: up to the first other one, or the ring's end.
    #[inline]
    fn take_singles<D: Direction>(&mut self, limit: usize, batch: &mut Batch<D>) -> usize {
        let Place { slot, wrap } = self.avail;
        let lap = if wrap { DESC_F_AVAIL } else { DESC_F_USED };
        let most = self.free().min(self.size.wrapping_sub(slot));
        let most = u16::try_from(limit).map_or(most, |limit| limit.min(most));
        let buffers = self.descriptors.run(slot).map(|slot| {
            if slot.flags() & (KIND | DESC_F_AVAIL | DESC_F_USED) != lap | D::BARE {
                return None;
            }
            let PackedDescriptor { addr, len, id } = slot.load();
            Some((GuestAddr(addr), len, id))
        });
        let count = batch.add_singles(usize::from(most), buffers);
        self.taken = self.taken.wrapping_add(count);
        self.avail = self.avail.after(count, self.size);
        usize::from(count)
    }

    /// Any list: its id and its slots.
    #[inline(never)]
    fn walk<D: Direction>(
        &mut self,
        first: PackedDescriptor,
        first_flags: u16,
        batch: &mut Batch<D>,
        draft: &mut Draft,
    ) -> Result<(Walk, u16, u16), Fault> {
        if first_flags & DESC_F_INDIRECT != 0 {
            let walk = self.walk_table(first, first_flags, batch, draft)?;
            return Ok((walk, first.id, 1));
        }
        let (mut descriptor, mut flags, mut place) = (first, first_flags, self.avail);
        // A list is no longer than the ring (PKD-24), nor than what is served (PKD-21).
        for slots in 1..=self.size.min(CHAIN_MAX) {
            let PackedDescriptor { addr, len, id } = descriptor;
            match add(addr, len, flags, batch, draft)? {
                Walk::Done => {}
                stop @ (Walk::NoRoom | Walk::Missing) => return Ok((stop, id, slots)),
            }
            if flags & DESC_F_NEXT == 0 {
                return Ok((Walk::Done, id, slots));
            }
            place = place.after(1, self.size);
            flags = self.descriptors.slot(place.slot).flags();
            if !is_available(flags, place.wrap) {
                return Err(Fault::ListIncomplete);
            }
            if flags & DESC_F_INDIRECT != 0 {
                return Err(Fault::IndirectWithNext);
            }
            descriptor = self.descriptors.slot(place.slot).load();
        }
        Err(Fault::ChainTooLong)
    }

    /// A list in a table, one entry after another; of their flags only WRITE counts (PKD-08).
    fn walk_table<D: Direction>(
        &mut self,
        pointer: PackedDescriptor,
        flags: u16,
        batch: &mut Batch<D>,
        draft: &mut Draft,
    ) -> Result<Walk, Fault> {
        match self.table.open(pointer.addr, pointer.len, flags)? {
            Walk::Done => {}
            stop @ (Walk::NoRoom | Walk::Missing) => return Ok(stop),
        }
        let entries = u16::try_from(self.table.len()).unwrap_or(CHAIN_MAX);
        for entry in 0..entries {
            let (PackedDescriptor { addr, len, .. }, flags) =
                PackedDescriptor::from_bytes(self.table.entry(entry)?);
            match add(addr, len, flags, batch, draft)? {
                Walk::Done => {}
                stop @ (Walk::NoRoom | Walk::Missing) => return Ok(stop),
            }
        }
        Ok(Walk::Done)
    }

    #[inline]
    pub(crate) fn put<D: Direction>(&mut self, rows: &[Row]) {
        if self.in_order && !D::WRITABLE {
            return self.put_in_order(rows);
        }
        let mut rest = rows;
        if self.first.is_none()
            && let Some((row, others)) = rows.split_first()
        {
            self.first = Some(First { id: row.id, written: row.written });
            self.pass(row.slots());
            rest = others;
        }
        loop {
            rest = rest.get(self.put_singles(rest)..).unwrap_or(&[]);
            let Some((row, others)) = rest.split_first() else { break };
            let slot = self.descriptors.slot(self.used.slot);
            slot.store_used(row.id, row.written);
            slot.store_flags(used_flags(self.used.wrap, row.written));
            self.pass(row.slots());
            rest = others;
        }
    }

    /// Lists of one slot, up to the first other one, or the ring's end; how many.
    #[inline]
    fn put_singles(&mut self, rows: &[Row]) -> usize {
        let Place { slot, wrap } = self.used;
        let mut done = 0_u16;
        for (row, slot) in rows.iter().zip(self.descriptors.run(slot)) {
            if row.slots() != 1 {
                break;
            }
            slot.store_used(row.id, row.written);
            slot.store_flags(used_flags(wrap, row.written));
            done = done.wrapping_add(1);
        }
        self.pass(done);
        usize::from(done)
    }

    /// One used descriptor, in the first place, names the last buffer and stands for all (PKD-11).
    /// Received buffers have one each: the driver would take one passed over for full.
    #[inline]
    fn put_in_order(&mut self, rows: &[Row]) {
        for row in rows {
            self.first = Some(First { id: row.id, written: 0 });
            self.pass(row.slots());
        }
    }

    #[inline]
    fn pass(&mut self, slots: u16) {
        self.used = self.used.after(slots, self.size);
        self.taken = self.taken.saturating_sub(slots);
        self.put = self.put.saturating_add(slots);
    }

    #[inline]
    pub(crate) fn untake(&mut self, rows: &[Row]) {
        let slots = rows.iter().fold(0_u16, |sum, row| sum.saturating_add(row.slots()));
        self.taken = self.taken.saturating_sub(slots);
        self.avail = self.avail.before(slots, self.size);
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> Published {
        let Some(First { id, written }) = self.first.take() else { return Published::Quiet };
        let (old, count) = (self.published, core::mem::take(&mut self.put));
        self.descriptors.slot(old.slot).store_used(id, written);
        self.descriptors.slot(old.slot).store_flags(used_flags(old.wrap, written));
        self.published = self.used;
        fence(Ordering::SeqCst);
        let wanted = match self.driver_flags.load_acquire() & EVENT_FLAGS {
            EVENT_FLAGS_DISABLE => false,
            EVENT_FLAGS_DESC if self.event_idx => {
                let event = self.driver_place.load();
                !self.told || is_crossed_packed(event, old, count, self.size)
            }
            // What is reserved, or was not agreed, is answered with an interrupt too many.
            _ => true,
        };
        self.told = true;
        if wanted { Published::Interrupt } else { Published::Quiet }
    }

    #[inline]
    pub(crate) fn arm(&mut self) -> Armed {
        if self.event_idx {
            self.device_place.store(self.avail.bits());
            self.set_wish(EVENT_FLAGS_DESC);
        } else {
            self.set_wish(EVENT_FLAGS_ENABLE);
        }
        fence(Ordering::SeqCst);
        if self.has_work() { Armed::WorkArrived } else { Armed::Sleep }
    }

    #[inline]
    pub(crate) fn disarm(&mut self) {
        // Also with a place: one that is passed comes round again, and none is said at first.
        self.set_wish(EVENT_FLAGS_DISABLE);
    }

    #[inline]
    fn set_wish(&mut self, wish: u16) {
        if self.wish != wish {
            self.wish = wish;
            self.device_flags.store_release(wish);
        }
    }
}

#[inline]
const fn is_available(flags: u16, wrap: bool) -> bool {
    let (avail, used) = (flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0);
    avail == wrap && used != wrap
}

/// The flags of a used descriptor; WRITE says that there is something (PKD-05).
#[inline]
const fn used_flags(wrap: bool, written: u32) -> u16 {
    let lap = if wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
    lap | if written > 0 { DESC_F_WRITE } else { 0 }
}
