//! An indirect table, copied before it is believed.
//!
//! ```text
//!   guest      [0][1][2] ......... [15][16] ...... [count-1]     may lie at any address
//!   private    [0][1][2] ......... [15] .                        a piece at a time, front to back
//!                                      '-- copied
//! ```
//!
//! A chain may visit the entries in any order, and a loop comes by twice. Since an entry is read
//! from the private copy only, each byte of guest memory is fetched once at most.

use alloc::boxed::Box;
use alloc::sync::Arc;

use vionet_raw::{Access, AddressSpace, GuestAddr, Pushed, SpanStore, copy_out};
use vionet_spec::ring::{DESC_F_NEXT, DESC_LEN};

use crate::chain::CHAIN_MAX;
use crate::fault::Fault;
use crate::walk::Walk;

const ENTRIES_MAX: usize = 1024;
const _: () = assert!(CHAIN_MAX == 1024, "a chain may use all of a table");
/// Entries copied at once: most tables whole, and no more than four cache lines too many.
const PIECE: usize = 16;
/// A table may cross from region to region this often.
const SPANS_MAX: usize = 8;

/// The room for one table after another, allocated once.
pub(crate) struct Table {
    entries: Box<[[u8; 16]; ENTRIES_MAX]>,
    spans: SpanStore<SPANS_MAX>,
    count: usize,
    copied: usize,
    /// INDIRECT_DESC was negotiated.
    agreed: bool,
}

impl Table {
    pub(crate) fn new(space: &Arc<AddressSpace>, agreed: bool) -> Self {
        let entries = Box::new([[0; 16]; ENTRIES_MAX]);
        Self {
            entries,
            spans: SpanStore::new(Arc::clone(space), Access::Read),
            count: 0,
            copied: 0,
            agreed,
        }
    }

    /// Goes on to the table of `len` bytes at `at`, all of which must be mapped; `flags` are those
    /// of the descriptor that points to it. Done, or missing.
    #[inline]
    pub(crate) fn open(&mut self, at: u64, len: u32, flags: u16) -> Result<Walk, Fault> {
        if !self.agreed {
            return Err(Fault::IndirectNotAgreed);
        }
        if flags & DESC_F_NEXT != 0 {
            return Err(Fault::IndirectWithNext);
        }
        let count = usize::try_from(len.checked_div(DESC_LEN).unwrap_or(0)).unwrap_or(usize::MAX);
        if count == 0 || count > ENTRIES_MAX || !len.is_multiple_of(DESC_LEN) {
            return Err(Fault::IndirectLength);
        }
        self.spans.truncate(0);
        match self.spans.push(GuestAddr(at), len) {
            Pushed::Added(_) => {}
            Pushed::Missing => return Ok(Walk::Missing),
            Pushed::Full | Pushed::Unmapped => return Err(Fault::IndirectUnmapped),
        }
        (self.count, self.copied) = (count, 0);
        Ok(Walk::Done)
    }

    /// How many entries the table has.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The bytes of the entry at `index`.
    #[inline]
    pub(crate) fn entry(&mut self, index: u16) -> Result<&[u8; 16], Fault> {
        let index = usize::from(index);
        if index >= self.count {
            return Err(Fault::NextOutOfRange);
        }
        if index >= self.copied {
            self.copy_until(index);
        }
        self.entries.get(index).ok_or(Fault::NextOutOfRange)
    }

    /// Copies what is missing up to `index`, and the rest of a piece.
    fn copy_until(&mut self, index: usize) {
        let end = index.saturating_add(PIECE).min(self.count);
        let missing = self.entries.get_mut(self.copied..end).unwrap_or(&mut []);
        let spans = self.spans.readable(0, self.spans.len());
        copy_out(
            spans,
            self.copied.saturating_mul(size_of::<[u8; 16]>()),
            missing.as_flattened_mut(),
        );
        self.copied = end;
    }
}
