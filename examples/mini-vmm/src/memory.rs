//! The guest's memory: a file that is mapped once for KVM and the NIC, and written to load a guest.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vionet_raw::host::mmap::{Mapping, memory_file};
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, UserAddr};

use crate::failure::{Failure, Said};

/// The first address that is no memory: above lie the NIC's registers and interrupt controllers.
pub(crate) const DEVICES: u64 = 0xc000_0000;

/// One run of memory from address 0 on.
pub(crate) struct GuestMemory {
    file: File,
    len: u64,
    space: Arc<AddressSpace>,
}

impl GuestMemory {
    /// `len` bytes of zeros.
    pub(crate) fn new(len: u64) -> Result<Self, Failure> {
        let file = memory_file("mini-vmm", len).said("no memory for the guest")?;
        let mapping = Mapping::shared(file.as_fd(), 0, len).said("no memory for the guest")?;
        // The user address is the front-end's, of which there is none here.
        let region = mapping.into_region(GuestAddr(0), UserAddr(0));
        let map = MemoryMap::new(vec![region]).said("no memory for the guest")?;
        let space = Arc::new(AddressSpace::new(Arc::new(map)));
        Ok(Self { file: file.into(), len, space })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// As the NIC and KVM want it.
    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Puts bytes into it. The mapping shows them at once, so no pointer is needed for that.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Failure> {
        let len = u64::try_from(bytes.len()).said("too much")?;
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Failure::config(format!(
                "{len} bytes at {at:#x} do not fit into {} MiB of memory; give --memory more",
                self.len >> 20
            )));
        }
        self.file.write_all_at(bytes, at).said("the guest's memory cannot be written")
    }
}
