//! The front-end's memory table: regions mapped here, and the map made of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vionet_raw::host::mmap::{Mapping, identity};
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, Region, UserAddr};
use vionet_socket::descriptor::check_memory;

use crate::event::ProtocolError;
use crate::message::RegionSpec;

/// How many memory slots a front-end may fill, as told by GET_MAX_MEM_SLOTS.
pub(crate) const SLOTS: usize = MemoryMap::REGIONS_MAX;

struct Slot {
    spec: RegionSpec,
    /// Device and inode of the file behind it.
    file: (u64, u64),
    region: Region,
}

/// The regions in force.
pub(crate) struct Table {
    slots: Vec<Slot>,
    /// The most bytes they may have together: what is mapped takes room from everything else in
    /// this process, however little memory is behind it.
    limit: u64,
    /// The front-end says of one region several times what it should say once.
    repeats: bool,
}

impl Table {
    pub(crate) fn new(limit: u64) -> Self {
        Self { slots: Vec::new(), limit, repeats: false }
    }

    /// Replaces the table and says whether that changed anything. Mappings that stay the same are
    /// kept: cheap, and no pause.
    pub(crate) fn replace(
        &mut self,
        specs: &[RegionSpec],
        fds: Vec<OwnedFd>,
    ) -> Result<bool, ProtocolError> {
        if specs.len() != fds.len() {
            return Err(ProtocolError::Fds { wanted: specs.len(), got: fds.len() });
        }
        self.check_total(specs.iter())?;
        let slots = specs
            .iter()
            .zip(&fds)
            .map(|(spec, fd)| self.map(*spec, fd))
            .collect::<Result<Vec<_>, _>>()?;
        check(&slots)?;
        let key = |slot: &Slot| (slot.spec, slot.file);
        let changed = !slots.iter().map(key).eq(self.slots.iter().map(key));
        self.slots = slots;
        Ok(changed)
    }

    /// Adds a region and says whether that changed anything: QEMU 7.2 adds each region once for
    /// every queue pair.
    pub(crate) fn add(&mut self, spec: RegionSpec, fd: &OwnedFd) -> Result<bool, ProtocolError> {
        let file = identity(fd.as_fd()).map_err(ProtocolError::Map)?;
        if self.slots.iter().any(|slot| slot.spec == spec && slot.file == file) {
            self.repeats = true;
            return Ok(false);
        }
        if self.slots.len() >= SLOTS {
            return Err(ProtocolError::TooManyRegions);
        }
        self.check_total(self.slots.iter().map(|slot| &slot.spec).chain([&spec]))?;
        let slot = self.map(spec, fd)?;
        self.slots.push(slot);
        let checked = check(&self.slots).inspect_err(|_| {
            self.slots.pop();
        });
        checked.map(|()| true)
    }

    /// Removes the region that matches in all but its offset (VU-MSG-10), and says whether that
    /// changed anything.
    pub(crate) fn remove(&mut self, spec: RegionSpec) -> Result<bool, ProtocolError> {
        let before = self.slots.len();
        let key = |spec: &RegionSpec| (spec.guest, spec.user, spec.size);
        self.slots.retain(|slot| key(&slot.spec) != key(&spec));
        match self.slots.len() < before {
            false if self.repeats => Ok(false),
            false => Err(ProtocolError::NoSuchRegion),
            true => Ok(true),
        }
    }

    /// The map of the regions in force.
    pub(crate) fn space(&self) -> Result<Arc<AddressSpace>, ProtocolError> {
        let regions = self.slots.iter().map(|slot| slot.region.clone()).collect();
        let map = MemoryMap::new(regions).map_err(ProtocolError::Memory)?;
        Ok(Arc::new(AddressSpace::new(Arc::new(map))))
    }

    fn check_total<'s>(
        &self,
        mut specs: impl Iterator<Item = &'s RegionSpec>,
    ) -> Result<(), ProtocolError> {
        let total = specs.try_fold(0_u64, |sum, spec| sum.checked_add(spec.size));
        let fits = total.is_some_and(|total| total <= self.limit);
        if fits { Ok(()) } else { Err(ProtocolError::TooMuchMemory(self.limit)) }
    }

    fn map(&self, spec: RegionSpec, fd: &OwnedFd) -> Result<Slot, ProtocolError> {
        check_memory(fd)?;
        let file = identity(fd.as_fd()).map_err(ProtocolError::Map)?;
        let same = |slot: &&Slot| slot.spec == spec && slot.file == file;
        if let Some(slot) = self.slots.iter().find(same) {
            return Ok(Slot { spec, file, region: slot.region.clone() });
        }
        let mapping = Mapping::shared(fd.as_fd(), spec.offset, spec.size);
        let mapping = mapping.map_err(ProtocolError::Map)?;
        let region = mapping.into_region(GuestAddr(spec.guest), UserAddr(spec.user));
        Ok(Slot { spec, file, region })
    }
}

fn check(slots: &[Slot]) -> Result<(), ProtocolError> {
    let regions = slots.iter().map(|slot| slot.region.clone()).collect();
    MemoryMap::new(regions).map(drop).map_err(ProtocolError::Memory)
}
