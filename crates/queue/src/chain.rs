//! Chains taken from a queue: rows of a batch, over a store of spans.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use core::marker::PhantomData;

use vionet_raw::{AddressSpace, GuestAddr, Pushed, ReadSpan, SpanStore, WriteSpan};

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
}

/// Buffers that the device reads: a transmit queue.
#[derive(Debug)]
pub struct DeviceReads;
/// Buffers that the device writes: a receive queue.
#[derive(Debug)]
pub struct DeviceWrites;

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
}

/// One chain of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Position of its first span in the store.
    start: u16,
    /// Spans of its lead.
    lead_spans: u16,
    /// All of its spans.
    spans: u16,
    /// Head descriptor.
    pub(crate) id: u16,
    bytes: u32,
    lead_bytes: u32,
    pub(crate) written: u32,
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
        self.bytes.saturating_sub(self.lead_bytes)
    }

    /// Whether the chain is as long as the lead at least.
    #[inline]
    #[must_use]
    pub const fn has_lead(&self) -> bool {
        self.bytes >= self.lead_bytes
    }

    /// The bytes written to it, as set.
    #[must_use]
    pub const fn written(&self) -> u32 {
        self.written
    }

    fn end(&self) -> usize {
        usize::from(self.start).saturating_add(usize::from(self.spans))
    }

    fn payload_start(&self) -> usize {
        usize::from(self.start).saturating_add(usize::from(self.lead_spans))
    }
}

/// Chains that were taken and are owed back, oldest first.
///
/// The first `lead` bytes of each chain have spans of their own, whatever the driver's arrangement
/// of descriptors (NET-TX-23): a header can be copied without looking for it.
pub struct Batch<D: Direction> {
    store: SpanStore<SPANS_MAX>,
    rows: Box<[Row; ROWS_MAX]>,
    len: usize,
    lead: u32,
    direction: PhantomData<D>,
}

/// A chain in the making.
#[derive(Clone, Copy)]
pub(crate) struct Draft {
    start: usize,
    lead_spans: usize,
    bytes: u32,
}

impl Draft {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// Why a buffer was not added to a chain.
pub(crate) enum Refused {
    /// The store is full; the chain is tried again with an empty one.
    Full,
    Unmapped,
    TooManyBytes,
}

impl<D: Direction> Batch<D> {
    /// An empty batch of chains in `space`, each to be split behind its first `lead` bytes.
    #[must_use]
    pub fn new(space: Arc<AddressSpace>, lead: u32) -> Self {
        let rows = Box::new([Row::default(); ROWS_MAX]);
        Self { store: SpanStore::new(space), rows, len: 0, lead, direction: PhantomData }
    }

    /// How many chains the batch holds.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch holds no chain.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chain at `index`, oldest first.
    #[inline]
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Row> {
        if index < self.len { self.rows.get(index).copied() } else { None }
    }

    #[inline]
    pub(crate) fn rows(&self, count: usize) -> &[Row] {
        self.rows.get(..count.min(self.len)).unwrap_or(&[])
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.len >= ROWS_MAX
    }

    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        self.store.space()
    }

    #[inline]
    pub(crate) fn draft(&self) -> Draft {
        Draft { start: self.store.len(), lead_spans: 0, bytes: 0 }
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

    #[inline]
    fn push(&mut self, at: u64, len: u32) -> Result<usize, Refused> {
        match self.store.push(GuestAddr(at), len) {
            Pushed::Added(spans) => Ok(spans),
            Pushed::Full => Err(Refused::Full),
            Pushed::Unmapped => Err(Refused::Unmapped),
        }
    }

    /// Makes a row of the draft.
    #[inline]
    pub(crate) fn close(&mut self, draft: Draft, id: u16) {
        let narrow = |spans: usize| u16::try_from(spans).unwrap_or(u16::MAX);
        let row = Row {
            start: narrow(draft.start),
            lead_spans: narrow(draft.lead_spans),
            spans: narrow(self.store.len().saturating_sub(draft.start)),
            id,
            bytes: draft.bytes,
            lead_bytes: self.lead,
            written: 0,
        };
        if let Some(slot) = self.rows.get_mut(self.len) {
            *slot = row;
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Forgets the draft.
    #[cold]
    pub(crate) fn give_up(&mut self, draft: Draft) {
        self.store.truncate(draft.start);
    }

    /// Whether there is nothing but the draft, so that a full store means it never fits.
    pub(crate) fn is_alone(&self, draft: &Draft) -> bool {
        draft.start == 0
    }

    /// Takes out the first `count` rows and their spans.
    pub(crate) fn drop_front(&mut self, count: usize) {
        if count >= self.len {
            return self.clear();
        }
        let cut = self.rows(count).last().map_or(0, Row::end);
        self.store.drop_front(cut);
        if let Some(held) = self.rows.get_mut(..self.len) {
            held.copy_within(count.min(held.len()).., 0);
        }
        self.len = self.len.saturating_sub(count);
        let cut = u16::try_from(cut).unwrap_or(u16::MAX);
        for row in self.rows.iter_mut().take(self.len) {
            row.start = row.start.saturating_sub(cut);
        }
    }

    #[inline]
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.store.truncate(0);
    }
}

impl Batch<DeviceReads> {
    /// The lead of a chain.
    #[inline]
    #[must_use]
    pub fn lead(&self, row: Row) -> &[ReadSpan<'_>] {
        self.store.readable(usize::from(row.start), usize::from(row.lead_spans))
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
        self.store.writable(usize::from(row.start), usize::from(row.lead_spans))
    }

    /// What is behind the lead of `first`, and all of the chains after it up to `last`.
    #[inline]
    #[must_use]
    pub fn payload(&self, first: Row, last: Row) -> &[WriteSpan<'_>] {
        let start = first.payload_start();
        self.store.writable(start, last.end().saturating_sub(start))
    }

    /// Says how many bytes were written to the chain at `index`, from its first byte on.
    #[inline]
    pub fn set_written(&mut self, index: usize, bytes: u32) {
        if let Some(row) = self.rows.get_mut(index) {
            row.written = bytes;
        }
    }
}

impl<D: Direction> fmt::Debug for Batch<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chains over {:?}", self.len, self.store)
    }
}
