//! A guest's memory as rust-vmm's `vm-memory` has it, as a map of ours.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::map::{GuestAddr, MapError, MemoryMap, Region, UserAddr};

impl MemoryMap {
    /// All regions of `memory`, which stays mapped for as long as the map, or a map made of it, is
    /// used. After a change of memory (`insert_region`, `remove_region`), make another.
    ///
    /// A memory with a dirty bitmap is none of this type: what is written here is not noted there.
    ///
    /// # Errors
    /// [`MapError::NotWritable`] for a region that was mapped without leave to read and write; else
    /// as [`Self::new`].
    pub fn from_vm_memory(memory: &Arc<GuestMemoryMmap<()>>) -> Result<Self, MapError> {
        const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let regions = memory.iter().map(|region| {
            let guest = GuestAddr(region.start_addr().raw_value());
            let base = NonNull::new(region.as_ptr()).ok_or(MapError::Empty(guest))?;
            if region.prot() & READ_WRITE != READ_WRITE {
                return Err(MapError::NotWritable(guest));
            }
            let user = UserAddr(u64::try_from(base.addr().get()).unwrap_or(u64::MAX));
            let owner = Arc::clone(memory);
            // SAFETY: `size` bytes from `as_ptr` on are one mapping of the region, to be read and
            // written, which `memory` holds and only its drop unmaps. `vm-memory` makes no
            // reference to them either: it reads and writes through volatile slices.
            Ok(unsafe { Region::from_raw(guest, user, base, region.size(), owner) })
        });
        Self::new(regions.collect::<Result<Vec<_>, _>>()?)
    }
}
