//! The guest's memory: one file, shared with the back-end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vionet_raw::host::mmap::{Mapping, memory_file};
use vionet_raw::{
    Access, AddressSpace, GuestAddr, MemoryMap, Pushed, SpanStore, UserAddr, copy_in, copy_out,
};

use crate::error::GuestError;

/// Where guest memory starts for the guest; not where it starts for anybody else, so that mixing
/// up address spaces shows.
pub(crate) const GUEST_BASE: u64 = 0x4000_0000;
/// Where it starts in the front-end's address space.
pub(crate) const USER_BASE: u64 = 0x7f00_0000_0000;

/// Where the front-end has what is at guest address `at`.
pub(crate) fn user_address(at: u64) -> u64 {
    at.wrapping_sub(GUEST_BASE).wrapping_add(USER_BASE)
}

/// A guest's memory.
pub(crate) struct Memory {
    pub(crate) file: OwnedFd,
    pub(crate) len: u64,
    pub(crate) space: Arc<AddressSpace>,
    spans: SpanStore<8>,
}

impl Memory {
    pub(crate) fn new(len: u64) -> Result<Self, GuestError> {
        let file = memory_file("vionet-guest", len).map_err(GuestError::Host)?;
        let mapping = Mapping::shared(file.as_fd(), 0, len).map_err(GuestError::Host)?;
        let region = mapping.into_region(GuestAddr(GUEST_BASE), UserAddr(USER_BASE));
        let map = MemoryMap::new(vec![region]);
        let map = map.map_err(|_| GuestError::Device("the guest's own memory"))?;
        let space = Arc::new(AddressSpace::new(Arc::new(map)));
        let spans = SpanStore::new(Arc::clone(&space), Access::Both);
        Ok(Self { file, len, space, spans })
    }

    /// Copies `bytes` to guest address `at`; they must lie inside.
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), GuestError> {
        let count = self.translate(at, bytes.len())?;
        copy_in(self.spans.writable(0, count), 0, bytes);
        Ok(())
    }

    /// Copies from guest address `at` into `room`.
    pub(crate) fn read(&mut self, at: u64, room: &mut [u8]) -> Result<(), GuestError> {
        let count = self.translate(at, room.len())?;
        copy_out(self.spans.readable(0, count), 0, room);
        Ok(())
    }

    fn translate(&mut self, at: u64, len: usize) -> Result<usize, GuestError> {
        self.spans.truncate(0);
        let len = u32::try_from(len).map_err(|_| GuestError::Device("a length"))?;
        match self.spans.push(GuestAddr(at), len) {
            Pushed::Added(count) => Ok(count),
            Pushed::Full | Pushed::Unmapped | Pushed::Missing => {
                Err(GuestError::Device("an address outside of memory"))
            }
        }
    }
}
