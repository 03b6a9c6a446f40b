//! The split ring (VIRTIO 1.4 §2.7): its three areas, and the walk of a chain.
//!
//! ```text
//!   descriptors   [addr len flags next] x size       written by the driver
//!   available     flags idx [head] x size used_event written by the driver
//!   used          flags idx [id len] x size avail_event   written by the device
//! ```

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use vionet_raw::{AddressSpace, Descriptor, GuestAddr, SharedIndex, SharedRing, UsedElem, fence};
use vionet_spec::ring::{
    AVAIL_ALIGN, AVAIL_F_NO_INTERRUPT, DESC_ALIGN, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE,
    IDX_OFFSET, RING_OFFSET, SIZE_MAX, USED_ALIGN, USED_ELEM_LEN, USED_F_NO_NOTIFY,
};

use crate::chain::{Batch, CHAIN_MAX, Direction, Draft, Left, Row};
use crate::fault::Fault;
use crate::kick::{Armed, Published, is_crossed};
use crate::setup::{Cursor, QueueSetup, RingFeatures};
use crate::table::Table;
use crate::walk::{Walk, add, no_room};

pub(crate) struct SplitRing {
    size: u16,
    event_idx: bool,
    in_order: bool,
    descriptors: SharedRing<Descriptor>,
    avail_flags: SharedIndex,
    avail_idx: SharedIndex,
    avail_ring: SharedRing<u16>,
    used_event: SharedIndex,
    used_flags: SharedIndex,
    used_idx: SharedIndex,
    used_ring: SharedRing<UsedElem>,
    avail_event: SharedIndex,
    table: Table,
    /// Next head to take.
    next_avail: u16,
    /// avail.idx as last seen.
    seen_avail: u16,
    /// Next used entry to write.
    next_used: u16,
    /// used.idx as the driver sees it.
    published: u16,
    /// The interrupt decision has a published position to start from.
    told: bool,
    /// The driver is told not to kick (without EVENT_IDX).
    quiet: bool,
}

/// The flags that say what a descriptor is.
const KIND: u16 = DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT;

impl SplitRing {
    pub(crate) fn new(
        setup: &QueueSetup,
        space: &Arc<AddressSpace>,
        features: RingFeatures,
        from: Cursor,
    ) -> Result<Self, Fault> {
        let QueueSetup { size, descriptors, driver, device } = *setup;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Fault::BadSize);
        }
        let areas = [(descriptors, DESC_ALIGN), (driver, AVAIL_ALIGN), (device, USED_ALIGN)];
        if areas.iter().any(|(at, align)| !at.0.is_multiple_of(*align)) {
            return Err(Fault::Misaligned);
        }
        let entries = u64::from(size);
        let at = |area: GuestAddr, offset: u64| area.checked_add(offset).ok_or(Fault::RingUnmapped);
        let index = |area, offset| space.index(at(area, offset)?).ok_or(Fault::RingUnmapped);
        let used_event = entries.saturating_mul(2).saturating_add(RING_OFFSET);
        let avail_event = entries.saturating_mul(USED_ELEM_LEN).saturating_add(RING_OFFSET);
        Ok(Self {
            size,
            event_idx: features.event_idx,
            in_order: features.in_order,
            descriptors: space.ring(descriptors, size).ok_or(Fault::RingUnmapped)?,
            avail_flags: index(driver, 0)?,
            avail_idx: index(driver, IDX_OFFSET)?,
            avail_ring: space.ring(at(driver, RING_OFFSET)?, size).ok_or(Fault::RingUnmapped)?,
            used_event: index(driver, used_event)?,
            used_flags: index(device, 0)?,
            used_idx: index(device, IDX_OFFSET)?,
            used_ring: space.ring(at(device, RING_OFFSET)?, size).ok_or(Fault::RingUnmapped)?,
            avail_event: index(device, avail_event)?,
            table: Table::new(space, features.indirect),
            next_avail: from.avail,
            seen_avail: from.avail,
            next_used: from.used,
            published: from.used,
            told: false,
            quiet: false,
        })
    }

    /// Old values in memory are stale (VU-PIT-12): kicks are wanted from here on.
    pub(crate) fn begun(self) -> Self {
        self.used_flags.store(0);
        self.avail_event.store(self.next_avail);
        self
    }

    pub(crate) fn has_event_idx(&self) -> bool {
        self.event_idx
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn cursor(&self) -> Cursor {
        Cursor { avail: self.next_avail, used: self.published }
    }

    /// Used entries that the driver does not see yet.
    #[inline]
    pub(crate) fn unpublished(&self) -> usize {
        usize::from(self.next_used.wrapping_sub(self.published))
    }

    /// Chains that wait; looks at avail.idx only when fewer than `wanted` have been seen.
    #[inline]
    fn waiting(&mut self, wanted: usize) -> usize {
        let seen = self.seen_avail.wrapping_sub(self.next_avail);
        if usize::from(seen) < wanted {
            self.seen_avail = self.avail_idx.load_acquire();
        }
        usize::from(self.seen_avail.wrapping_sub(self.next_avail))
    }

    #[inline]
    pub(crate) fn has_work(&mut self) -> bool {
        self.waiting(1) > 0
    }

    /// Why chains were left, if some were.
    #[inline]
    pub(crate) fn take<D: Direction>(
        &mut self,
        limit: usize,
        held: usize,
        batch: &mut Batch<D>,
    ) -> Result<Left, Fault> {
        let waiting = self.waiting(limit);
        // What the driver cannot see used yet it cannot make available again either.
        let out = held.wrapping_add(self.unpublished());
        if waiting.wrapping_add(out) > usize::from(self.size) {
            return Err(Fault::IndexJump);
        }
        let mut left = waiting.min(limit);
        while left > 0 && batch.has_free_row() {
            let singles = self.take_singles(left, batch);
            left = left.wrapping_sub(singles);
            if left == 0 || !batch.has_free_row() {
                break;
            }
            if singles > 0 && self.next_avail & self.size.wrapping_sub(1) == 0 {
                continue;
            }
            let head = self.avail_ring.load(self.next_avail);
            if head >= self.size {
                return Err(Fault::HeadOutOfRange);
            }
            let descriptor = self.descriptors.load(head);
            let mut draft = batch.draft();
            match self.walk(descriptor, batch, &mut draft) {
                Ok(Walk::Done) => batch.close(draft, head, 1),
                Ok(Walk::NoRoom) if no_room(batch, draft)? => continue,
                Ok(Walk::NoRoom) => break,
                Ok(Walk::Missing) => {
                    batch.give_up(draft);
                    return Ok(Left::Missing);
                }
                Err(fault) => {
                    batch.give_up(draft);
                    return Err(fault);
                }
            }
            self.next_avail = self.next_avail.wrapping_add(1);
            left = left.wrapping_sub(1);
        }
        Ok(if left > 0 { Left::NoRoom } else { Left::Nothing })
    }

    /// Chains of one buffer, as they mostly are, up to the first other one or the ring's end. A
    /// head outside is not judged here: the walk finds it again.
    #[inline]
    fn take_singles<D: Direction>(&mut self, limit: usize, batch: &mut Batch<D>) -> usize {
        let descriptors = self.descriptors.cells();
        let heads = self.avail_ring.run(self.next_avail);
        let buffers = heads.map(|head| {
            let Descriptor { addr, len, flags, .. } = descriptors.get(head)?;
            if flags & KIND == D::BARE { Some((GuestAddr(addr), len, head)) } else { None }
        });
        let done = batch.add_singles(limit, buffers);
        self.next_avail = self.next_avail.wrapping_add(done);
        usize::from(done)
    }

    /// Any chain.
    #[inline(never)]
    fn walk<D: Direction>(
        &mut self,
        first: Descriptor,
        batch: &mut Batch<D>,
        draft: &mut Draft,
    ) -> Result<Walk, Fault> {
        let mut descriptor = first;
        // A chain visits each descriptor of the table once at most (SPL-10, SPL-14).
        for seen in 0..self.size.min(CHAIN_MAX) {
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return self.walk_table(descriptor, CHAIN_MAX.wrapping_sub(seen), batch, draft);
            }
            let Descriptor { addr, len, flags, .. } = descriptor;
            match add(addr, len, flags, batch, draft)? {
                Walk::Done => {}
                stop @ (Walk::NoRoom | Walk::Missing) => return Ok(stop),
            }
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(Walk::Done);
            }
            if descriptor.next >= self.size {
                return Err(Fault::NextOutOfRange);
            }
            descriptor = self.descriptors.load(descriptor.next);
        }
        Err(Fault::ChainTooLong)
    }

    /// The end of a chain, up to `most` buffers: its last descriptor points to a table (SPL-18).
    fn walk_table<D: Direction>(
        &mut self,
        pointer: Descriptor,
        most: u16,
        batch: &mut Batch<D>,
        draft: &mut Draft,
    ) -> Result<Walk, Fault> {
        match self.table.open(pointer.addr, pointer.len, pointer.flags)? {
            Walk::Done => {}
            stop @ (Walk::NoRoom | Walk::Missing) => return Ok(stop),
        }
        let mut next = 0;
        for _ in 0..self.table.len().min(usize::from(most)) {
            let descriptor = Descriptor::from_bytes(self.table.entry(next)?);
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                return Err(Fault::IndirectNested);
            }
            let Descriptor { addr, len, flags, .. } = descriptor;
            match add(addr, len, flags, batch, draft)? {
                Walk::Done => {}
                stop @ (Walk::NoRoom | Walk::Missing) => return Ok(stop),
            }
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(Walk::Done);
            }
            next = descriptor.next;
        }
        // The entry it goes on to is outside, or one too many.
        self.table.entry(next).and(Err(Fault::ChainTooLong))
    }

    #[inline]
    pub(crate) fn put<D: Direction>(&mut self, rows: &[Row]) {
        if self.in_order && !D::WRITABLE {
            return self.put_in_order(rows);
        }
        let (entries, mut next) = (self.used_ring.cells(), self.next_used);
        for row in rows {
            entries.store(next, UsedElem { id: u32::from(row.id), len: row.written });
            next = next.wrapping_add(1);
        }
        self.next_used = next;
    }

    /// One entry, in the first place, names the last chain and stands for all (SPN-11). Received
    /// buffers have an entry each: the driver would take one passed over for full (SPN-12).
    #[inline]
    fn put_in_order(&mut self, rows: &[Row]) {
        let Some(last) = rows.last() else { return };
        // What is not yet published is one batch with what comes now.
        self.used_ring.store(self.published, UsedElem { id: u32::from(last.id), len: 0 });
        self.next_used = self.next_used.wrapping_add(narrow(rows.len()));
    }

    #[inline]
    pub(crate) fn untake(&mut self, rows: &[Row]) {
        let count = narrow(rows.len());
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> Published {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Published::Quiet;
        }
        self.used_idx.store_release(new);
        self.published = new;
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            !self.told || is_crossed(self.used_event.load(), old, new)
        } else {
            self.avail_flags.load() & AVAIL_F_NO_INTERRUPT == 0
        };
        self.told = true;
        if wanted { Published::Interrupt } else { Published::Quiet }
    }

    #[inline]
    pub(crate) fn arm(&mut self) -> Armed {
        if self.event_idx {
            self.avail_event.store(self.next_avail);
        } else if self.quiet {
            self.used_flags.store(0);
            self.quiet = false;
        }
        fence(Ordering::SeqCst);
        self.seen_avail = self.avail_idx.load_acquire();
        if self.seen_avail == self.next_avail { Armed::Sleep } else { Armed::WorkArrived }
    }

    #[inline]
    pub(crate) fn disarm(&mut self) {
        if !self.event_idx && !self.quiet {
            self.used_flags.store(USED_F_NO_NOTIFY);
            self.quiet = true;
        }
    }
}

/// A batch holds no more chains than a queue may have entries, so this never truncates.
#[inline]
fn narrow(rows: usize) -> u16 {
    u16::try_from(rows).unwrap_or(u16::MAX)
}
