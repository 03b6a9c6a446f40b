//! Chains taken from a queue: rows of a batch, over a store of spans.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use vionet_raw::{Access, AddressSpace, GuestAddr, Pushed, ReadSpan, SpanStore, WriteSpan};
use vionet_spec::ring::DESC_F_WRITE;

/// The most chains in a batch.
pub const ROWS_MAX: usize = 256;
/// The most spans in a batch.
pub const SPANS_MAX: usize = 1024;
/// The most descriptors in a chain (SPL-04).
pub const CHAIN_MAX: u16 = 1024;

/// Which way the buffers of a queue go.
pub trait Direction: sealed::Sealed {
    /// Whether the device writes them.
    const WRITABLE: bool;
    /// Whether the device reads the first buffers of a chain and writes those behind.
    const MIXED: bool = false;
    /// The flags of a descriptor that is a chain by itself; none are in a queue of mixed chains.
    #[doc(hidden)]
    const BARE: u16 = if Self::MIXED {
        u16::MAX
    } else if Self::WRITABLE {
        DESC_F_WRITE
    } else {
        0
    };
}

/// Buffers that the device reads: a transmit queue.
#[derive(Debug)]
pub struct DeviceReads;
/// Buffers that the device writes: a receive queue.
#[derive(Debug)]
pub struct DeviceWrites;

/// Buffers that the device reads, then others that it writes: a control queue.
#[derive(Debug)]
pub struct Command;

impl Direction for Command {
    const WRITABLE: bool = true;
    const MIXED: bool = true;
}

impl Direction for DeviceReads {
    const WRITABLE: bool = false;
}

impl Direction for DeviceWrites {
    const WRITABLE: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::DeviceReads {}
    impl Sealed for super::DeviceWrites {}
    impl Sealed for super::Command {}
}

/// One chain of a batch.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Row {
    bytes: u32,
    /// Bytes behind the lead.
    payload_bytes: u32,
    pub(crate) written: u32,
    /// Position of its first span in the store.
    start: u16,
    /// Head descriptor in a split ring, buffer id in a packed one.
    pub(crate) id: u16,
    shape: Shape,
}

/// A chain of one buffer in one piece.
#[derive(Debug)]
pub struct Single<'b> {
    /// The lead.
    pub lead: &'b WriteSpan<'b>,
    /// What is behind it.
    pub payload: &'b WriteSpan<'b>,
    /// Bytes written to the chain, to be set; no more than it has (SPN-09).
    pub written: &'b mut u32,
}

/// What a chain is made of: a word.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
struct Shape {
    /// Spans of its lead.
    lead_spans: u16,
    /// All of its spans.
    spans: u16,
    /// Ring slots it takes.
    slots: u16,
    /// Bytes that the chain is shorter than the lead.
    missing: u16,
}

impl Shape {
    /// One buffer in one region.
    const SINGLE: Self = Self { lead_spans: 1, spans: 2, slots: 1, missing: 0 };

    /// As the word that it is.
    #[inline]
    const fn word(self) -> u64 {
        let ([l0, l1], [s0, s1]) = (self.lead_spans.to_ne_bytes(), self.spans.to_ne_bytes());
        let ([t0, t1], [m0, m1]) = (self.slots.to_ne_bytes(), self.missing.to_ne_bytes());
        u64::from_ne_bytes([l0, l1, s0, s1, t0, t1, m0, m1])
    }
}

impl Row {
    /// All bytes of the chain.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The bytes behind the lead.
    #[inline]
    #[must_use]
    pub const fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }

    /// Whether the chain is as long as the lead at least.
    #[inline]
    #[must_use]
    pub const fn has_lead(&self) -> bool {
        self.shape.missing == 0
    }

    /// The span that is the lead, when it is one.
    #[inline]
    #[must_use]
    pub const fn whole_lead(&self) -> Option<u16> {
        if self.shape.lead_spans == 1 { Some(self.start) } else { None }
    }

    /// Ring slots it takes.
    pub(crate) const fn slots(&self) -> u16 {
        self.shape.slots
    }

    /// The bytes written to it, as set.
    #[must_use]
    pub const fn written(&self) -> u32 {
        self.written
    }

    fn end(&self) -> usize {
        usize::from(self.start).saturating_add(usize::from(self.shape.spans))
    }

    fn payload_start(&self) -> usize {
        usize::from(self.start).saturating_add(usize::from(self.shape.lead_spans))
    }
}

/// Chains that were taken and are owed back, oldest first.
///
/// ```text
///   rows   [gone][gone][ 0 ][ 1 ][ 2 ] . . .      spans likewise; put() moves `first` only, and
///                first--^         end--^          what is left moves to the front for want of room
/// ```
///
/// The first `lead` bytes of each chain have spans of their own, whatever the driver's arrangement
/// of descriptors (NET-TX-23): a header can be copied without looking for it.
pub struct Batch<D: Direction> {
    store: SpanStore<SPANS_MAX>,
    rows: Box<[Row; ROWS_MAX]>,
    first: usize,
    end: usize,
    lead: u32,
    left: Left,
    translated: bool,
    direction: PhantomData<D>,
}

/// Why a take left chains in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// It did not, or was to take no more.
    Nothing,
    /// The batch had no room.
    NoRoom,
    /// The platform had no translation.
    Missing,
}

/// A chain in the making.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    start: usize,
    lead_spans: usize,
    bytes: u32,
    /// Bytes of the lead, or what the device is to read of a mixed chain.
    lead: u32,
}

impl Draft {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether a mixed chain has come to the buffers that the device writes.
    pub(crate) fn is_past_lead(&self) -> bool {
        self.bytes > self.lead
    }
}

/// Why a buffer was not added to a chain.
pub(crate) enum Refused {
    /// The store is full; the chain is tried again with an empty one.
    Full,
    Unmapped,
    /// The platform has no translation yet.
    Missing,
    TooManyBytes,
}

impl<D: Direction> Batch<D> {
    /// An empty batch of chains in `space`, each to be split behind its first `lead` bytes.
    #[must_use]
    pub fn new(space: Arc<AddressSpace>, lead: u32) -> Self {
        let rows = Box::new([Row::default(); ROWS_MAX]);
        let access = if D::WRITABLE { Access::Write } else { Access::Read };
        let (translated, left) = (space.is_translated(), Left::Nothing);
        let store = SpanStore::new(space, access);
        Self { store, rows, first: 0, end: 0, lead, left, translated, direction: PhantomData }
    }

    /// How many chains the batch holds.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.end.wrapping_sub(self.first)
    }

    /// Whether the batch holds no chain.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end == self.first
    }

    /// Whether the last take left chains in the queue for want of room here. What the driver has
    /// posted since does not count.
    #[must_use]
    pub fn is_cramped(&self) -> bool {
        self.left == Left::NoRoom
    }

    /// Whether the last take ended at a chain for which the platform has no translation yet.
    #[must_use]
    pub fn is_untranslated(&self) -> bool {
        self.left == Left::Missing
    }

    /// Whether a platform translates its addresses.
    #[inline]
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.translated
    }

    pub(crate) fn set_left(&mut self, left: Left) {
        self.left = left;
    }

    /// The chain at `index`, oldest first. It is good until the batch is taken into or put from.
    #[inline]
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Row> {
        self.rows.get(self.place(index)?).copied()
    }

    /// Where the chain at `index` is among all rows.
    #[inline]
    fn place(&self, index: usize) -> Option<usize> {
        let place = self.first.checked_add(index)?;
        (place < self.end).then_some(place)
    }

    /// The chains, oldest first.
    #[inline]
    #[must_use]
    pub fn live(&self) -> &[Row] {
        self.rows.get(self.first..self.end).unwrap_or(&[])
    }

    #[inline]
    pub(crate) fn rows(&self, count: usize) -> &[Row] {
        self.live().get(..count).unwrap_or(self.live())
    }

    /// Adds up to `limit` chains of one buffer each: address, length, id. Ends where `buffers` do,
    /// or at one that wants the general walk; returns how many.
    #[inline]
    pub(crate) fn add_singles(
        &mut self,
        limit: usize,
        buffers: impl Iterator<Item = Option<(GuestAddr, u32, u16)>>,
    ) -> u16 {
        let lead_bytes = self.lead;
        let end = self.end.saturating_add(limit).min(ROWS_MAX);
        let rows = self.rows.get_mut(self.end..end).unwrap_or(&mut []);
        if lead_bytes == 0 {
            return 0;
        }
        let shape = Shape::SINGLE;
        let add = |row: &mut Row, start, (bytes, payload_bytes), id| {
            *row = Row { bytes, payload_bytes, written: 0, start, id, shape };
        };
        let done = self.store.push_pairs(D::WRITABLE, lead_bytes, rows, buffers, add);
        self.end = self.end.wrapping_add(usize::from(done));
        done
    }

    /// Makes sure that there is a row for one more chain.
    #[inline]
    pub(crate) fn has_free_row(&mut self) -> bool {
        self.end < ROWS_MAX || self.compact()
    }

    #[inline]
    pub(crate) fn draft(&self) -> Draft {
        let lead = if D::MIXED { 0 } else { self.lead };
        Draft { start: self.store.len(), lead_spans: 0, bytes: 0, lead }
    }

    /// Adds a buffer to the draft, split where the lead ends.
    #[inline]
    pub(crate) fn extend(&mut self, draft: &mut Draft, at: u64, len: u32) -> Result<(), Refused> {
        let missing = self.lead.saturating_sub(draft.bytes);
        let total = draft.bytes.checked_add(len).ok_or(Refused::TooManyBytes)?;
        if missing == 0 {
            self.push(at, len)?;
        } else {
            let lead = missing.min(len);
            draft.lead_spans = draft.lead_spans.saturating_add(self.push(at, lead)?);
            if len > lead {
                let behind = at.checked_add(u64::from(lead)).ok_or(Refused::Unmapped)?;
                self.push(behind, len.wrapping_sub(lead))?;
            }
        }
        draft.bytes = total;
        Ok(())
    }

    /// Adds a buffer of a mixed chain.
    #[cold]
    pub(crate) fn extend_mixed(
        &mut self,
        draft: &mut Draft,
        at: u64,
        len: u32,
        writable: bool,
    ) -> Result<(), Refused> {
        let total = draft.bytes.checked_add(len).ok_or(Refused::TooManyBytes)?;
        let access = if writable { Access::Write } else { Access::Read };
        let spans = added(self.store.push_for(access, GuestAddr(at), len))?;
        draft.bytes = total;
        if !writable {
            draft.lead = total;
            draft.lead_spans = draft.lead_spans.saturating_add(spans);
        }
        Ok(())
    }

    #[inline]
    fn push(&mut self, at: u64, len: u32) -> Result<usize, Refused> {
        added(self.store.push(GuestAddr(at), len))
    }

    /// Makes a row of the draft.
    #[inline]
    pub(crate) fn close(&mut self, draft: Draft, id: u16, slots: u16) {
        let narrow = |spans: usize| u16::try_from(spans).unwrap_or(u16::MAX);
        let row = Row {
            bytes: draft.bytes,
            payload_bytes: draft.bytes.saturating_sub(draft.lead),
            written: 0,
            start: narrow(draft.start),
            id,
            shape: Shape {
                lead_spans: narrow(draft.lead_spans),
                spans: narrow(self.store.len().saturating_sub(draft.start)),
                slots,
                missing: u16::try_from(draft.lead.saturating_sub(draft.bytes)).unwrap_or(u16::MAX),
            },
        };
        if let Some(slot) = self.rows.get_mut(self.end) {
            *slot = row;
            self.end = self.end.wrapping_add(1);
        }
    }

    /// Forgets the draft.
    #[cold]
    pub(crate) fn give_up(&mut self, draft: Draft) {
        self.store.truncate(draft.start);
    }

    /// Takes out the first `count` rows and their spans.
    #[inline]
    pub(crate) fn drop_front(&mut self, count: usize) {
        self.first = self.first.saturating_add(count).min(self.end);
        if self.is_empty() {
            self.clear();
        }
    }

    /// Moves what is left to the front; false when it is there already.
    #[cold]
    pub(crate) fn compact(&mut self) -> bool {
        let Some(oldest) = self.row(0).filter(|_| self.first > 0) else { return false };
        let cut = oldest.start;
        self.store.drop_front(usize::from(cut));
        let rows = self.rows.get_mut(..self.end).unwrap_or(&mut []);
        rows.copy_within(self.first.min(rows.len()).., 0);
        (self.first, self.end) = (0, self.len());
        for row in self.rows.iter_mut().take(self.end) {
            row.start = row.start.wrapping_sub(cut);
        }
        true
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        (self.first, self.end) = (0, 0);
        self.store.truncate(0);
    }
}

#[inline]
fn added(pushed: Pushed) -> Result<usize, Refused> {
    match pushed {
        Pushed::Added(spans) => Ok(spans),
        Pushed::Full => Err(Refused::Full),
        Pushed::Unmapped => Err(Refused::Unmapped),
        Pushed::Missing => Err(Refused::Missing),
    }
}

impl Batch<Command> {
    /// An empty batch of chains in `space`, each in two parts.
    #[must_use]
    pub fn commands(space: Arc<AddressSpace>) -> Self {
        Self::new(space, 0)
    }

    /// What the device is to read.
    #[must_use]
    pub fn command(&self, row: Row) -> &[ReadSpan<'_>] {
        self.store.readable(usize::from(row.start), usize::from(row.shape.lead_spans))
    }

    /// Where the device is to answer; as long as [`Row::payload_bytes`].
    #[must_use]
    pub fn answer(&self, row: Row) -> &[WriteSpan<'_>] {
        let start = row.payload_start();
        self.store.writable(start, row.end().saturating_sub(start))
    }

    /// Says how many bytes were written to the answer of the chain at `index`.
    pub fn set_answered(&mut self, index: usize, bytes: u32) {
        if let Some(row) = self.place(index).and_then(|place| self.rows.get_mut(place)) {
            row.written = bytes.min(row.payload_bytes);
        }
    }
}

impl Batch<DeviceReads> {
    /// All spans; [`Row::whole_lead`] is a place among them.
    #[inline]
    #[must_use]
    pub fn all_spans(&self) -> &[ReadSpan<'_>] {
        self.store.readable(0, self.store.len())
    }

    /// The lead of a chain.
    #[inline]
    #[must_use]
    pub fn lead(&self, row: Row) -> &[ReadSpan<'_>] {
        self.store.readable(usize::from(row.start), usize::from(row.shape.lead_spans))
    }

    /// What is behind the lead.
    #[inline]
    #[must_use]
    pub fn payload(&self, row: Row) -> &[ReadSpan<'_>] {
        let start = row.payload_start();
        self.store.readable(start, row.end().saturating_sub(start))
    }
}

impl Batch<DeviceWrites> {
    /// The lead of a chain.
    #[inline]
    #[must_use]
    pub fn lead(&self, row: Row) -> &[WriteSpan<'_>] {
        self.store.writable(usize::from(row.start), usize::from(row.shape.lead_spans))
    }

    /// What is behind the lead of `first`, and all of the chains after it up to `last`.
    #[inline]
    #[must_use]
    pub fn payload(&self, first: Row, last: Row) -> &[WriteSpan<'_>] {
        let start = first.payload_start();
        self.store.writable(start, last.end().saturating_sub(start))
    }

    /// The same, with spans that lie one behind the other as one.
    #[inline]
    #[must_use]
    pub fn payload_joined(&mut self, first: Row, last: Row) -> &[WriteSpan<'_>] {
        let start = first.payload_start();
        self.store.writable_joined(start, last.end().saturating_sub(start))
    }

    /// The chain at `index`, if it is one buffer in one piece with room for `want` bytes behind
    /// the lead, as most are.
    #[inline]
    pub fn single(&mut self, index: usize, want: u32) -> Option<Single<'_>> {
        let row = self.place(index).and_then(|place| self.rows.get_mut(place))?;
        if row.shape.word() != Shape::SINGLE.word() {
            return None;
        }
        let [lead, payload] = self.store.writable_pair(row.start)?;
        let has_room = usize::try_from(want).is_ok_and(|want| payload.len() >= want);
        has_room.then_some(Single { lead, payload, written: &mut row.written })
    }

    /// Brings the start of the chain at `index`, and of what is behind its lead to be written.
    #[inline]
    pub fn prefetch(&self, index: usize) {
        if let Some(row) = self.row(index)
            && let Some([lead, behind]) = self.store.writable_pair(row.start)
        {
            behind.prefetch();
            lead.prefetch_to_read();
        }
    }

    /// Says how many bytes were written to the chain at `index`, from its first byte on; no more
    /// than it has (SPN-09).
    #[inline]
    pub fn set_written(&mut self, index: usize, bytes: u32) {
        if let Some(row) = self.place(index).and_then(|place| self.rows.get_mut(place)) {
            row.written = bytes.min(row.bytes);
        }
    }
}

impl<D: Direction> fmt::Debug for Batch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chains over {:?}", self.len(), self.store)
    }
}
