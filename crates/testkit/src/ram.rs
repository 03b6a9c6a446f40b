//! Guest memory between pages that fault.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vionet_raw::host::mmap::Mapping;
use vionet_raw::{
    Access, AddressSpace, GuestAddr, MemoryMap, Pushed, SpanStore, UserAddr, copy_in,
};

/// Memory of a guest, each region between two pages that no access survives.
#[derive(Clone, Debug)]
pub struct GuestRam {
    space: Arc<AddressSpace>,
}

impl GuestRam {
    /// Regions of `(guest address, bytes)`; bytes are whole pages. Regions may touch.
    ///
    /// # Panics
    /// When the regions make no memory map.
    #[must_use]
    pub fn new(regions: &[(u64, usize)]) -> Self {
        let regions = regions.iter().map(|(at, len)| {
            let mapping = Mapping::guarded(*len).expect("memory for a region");
            mapping.into_region(GuestAddr(*at), UserAddr(*at))
        });
        let map = MemoryMap::new(regions.collect()).expect("a map of the regions");
        Self { space: Arc::new(AddressSpace::new(Arc::new(map))) }
    }

    /// Memory that another process may have, too: `len` bytes of a file, at a guest address.
    ///
    /// # Panics
    /// When the file is shorter.
    #[must_use]
    pub fn shared(file: BorrowedFd<'_>, at: u64, len: u64) -> Self {
        let mapping = Mapping::shared(file, 0, len).expect("memory of a file");
        let region = mapping.into_region(GuestAddr(at), UserAddr(at));
        let map = MemoryMap::new(vec![region]).expect("a map of one region");
        Self { space: Arc::new(AddressSpace::new(Arc::new(map))) }
    }

    /// The memory that a device works on already, perhaps through other mappings of it.
    #[must_use]
    pub fn over(space: Arc<AddressSpace>) -> Self {
        Self { space }
    }

    /// What the device is to work on.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Whether all of the bytes are guest memory.
    #[must_use]
    pub fn holds(&self, at: u64, len: u32) -> bool {
        let mut at = at;
        let Some(end) = at.checked_add(u64::from(len)) else { return false };
        while at < end {
            let mut regions = self.space.map().regions().iter();
            let Some(region) = regions.find(|region| {
                region.guest().0 <= at && at - region.guest().0 < region.len() as u64
            }) else {
                return false;
            };
            at = region.guest().0 + region.len() as u64;
        }
        true
    }

    /// The bytes at `at`.
    ///
    /// # Panics
    /// When they are no guest memory.
    #[must_use]
    pub fn read(&self, at: u64, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        assert!(self.space.read(GuestAddr(at), &mut bytes), "{at:#x} len={len} is not mapped");
        bytes
    }

    /// Writes bytes at `at`.
    ///
    /// # Panics
    /// When they are no guest memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let mut store = SpanStore::<8>::new(Arc::clone(&self.space), Access::Both);
        let Pushed::Added(spans) = store.push(GuestAddr(at), bytes.len() as u32) else {
            panic!("{at:#x} len={} is not mapped", bytes.len());
        };
        assert_eq!(copy_in(store.writable(0, spans), 0, bytes), bytes.len());
    }

    /// Writes a little-endian 16-bit word at `at`.
    pub fn write_u16(&self, at: u64, word: u16) {
        self.write(at, &word.to_le_bytes());
    }

    /// The little-endian 16-bit word at `at`.
    #[must_use]
    pub fn read_u16(&self, at: u64) -> u16 {
        let bytes = self.read(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// The little-endian 32-bit word at `at`.
    #[must_use]
    pub fn read_u32(&self, at: u64) -> u32 {
        u32::from(self.read_u16(at)) | u32::from(self.read_u16(at + 2)) << 16
    }

    /// Writes a descriptor at `at`, in a table of either kind.
    pub fn write_descriptor(&self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(at, &bytes);
    }
}
