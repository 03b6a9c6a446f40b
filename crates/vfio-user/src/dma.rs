//! The client's DMA regions: what the device may touch, and the map made of it.
//!
//! A region that comes without a file, or may not be both read and written, takes its place among
//! the others, and is not touched: rings and buffers lie in memory that is shared.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vionet_raw::host::mmap::Mapping;
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, Region, UserAddr};
use vionet_socket::descriptor::check_memory;

use crate::event::Refusal;
use crate::message::{DmaRegion, Range, Unmap};

#[derive(Clone)]
struct Entry {
    range: Range,
    /// Mapped, if the device may use it.
    region: Option<Region>,
}

/// The regions in force; a copy has the same memory.
#[derive(Clone)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    /// The most bytes they may have together: what is mapped takes room from everything else in
    /// this process, however little memory is behind it.
    limit: u64,
}

impl Table {
    pub(crate) fn new(limit: u64) -> Self {
        Self { entries: Vec::new(), limit }
    }

    /// Adds a region; says whether the map has changed.
    pub(crate) fn map(&mut self, new: DmaRegion, fds: &[OwnedFd]) -> Result<bool, Refusal> {
        let file = match fds {
            [] => None,
            [file] => Some(file),
            more => return Err(Refusal::Fds { wanted: 1, got: more.len() }),
        };
        let range = new.range;
        let end = range.address.checked_add(range.size).ok_or(Refusal::Overlap)?;
        if range.size == 0 {
            return Err(Refusal::Payload);
        }
        if self.entries.iter().any(|one| overlaps(one.range, range.address, end)) {
            return Err(Refusal::Overlap);
        }
        if self.entries.len() >= MemoryMap::REGIONS_MAX {
            return Err(Refusal::TooManyRegions);
        }
        let file = file.filter(|_| new.usable);
        if file.is_some() {
            self.check_total(range.size)?;
        }
        let region = file.map(|file| mapped(new, file)).transpose()?;
        let changed = region.is_some();
        self.entries.push(Entry { range, region });
        Ok(changed)
    }

    /// Removes regions; says whether the map has changed.
    pub(crate) fn unmap(&mut self, which: Unmap) -> Result<bool, Refusal> {
        let before = self.entries.len();
        let mut changed = false;
        self.entries.retain(|one| {
            let goes = match which {
                Unmap::All => true,
                Unmap::One(range) => one.range == range,
            };
            changed |= goes && one.region.is_some();
            !goes
        });
        match which {
            Unmap::One(_) if self.entries.len() == before => Err(Refusal::NotMapped),
            Unmap::One(_) | Unmap::All => Ok(changed),
        }
    }

    /// The memory of the regions in force.
    pub(crate) fn space(&self) -> Arc<AddressSpace> {
        let regions = self.entries.iter().filter_map(|one| one.region.clone()).collect();
        // They are few enough, and none lies over another.
        let map = MemoryMap::new(regions).unwrap_or_else(|_| MemoryMap::empty());
        Arc::new(AddressSpace::new(Arc::new(map)))
    }

    fn check_total(&self, more: u64) -> Result<(), Refusal> {
        let mut mapped = self.entries.iter().filter(|one| one.region.is_some());
        let total = mapped.try_fold(more, |sum, one| sum.checked_add(one.range.size));
        let fits = total.is_some_and(|total| total <= self.limit);
        if fits { Ok(()) } else { Err(Refusal::TooMuchMemory(self.limit)) }
    }
}

fn overlaps(old: Range, start: u64, end: u64) -> bool {
    old.address < end && old.address.saturating_add(old.size) > start
}

fn mapped(new: DmaRegion, file: &OwnedFd) -> Result<Region, Refusal> {
    check_memory(file)?;
    let mapping =
        Mapping::shared(file.as_fd(), new.offset, new.range.size).map_err(Refusal::Map)?;
    Ok(mapping.into_region(GuestAddr(new.range.address), UserAddr(0)))
}

#[cfg(test)]
mod tests {
    use vionet_raw::host::mmap::memory_file;

    use super::*;

    const PAGE: u64 = 4096;

    fn region(address: u64, size: u64) -> DmaRegion {
        DmaRegion { range: Range { address, size }, offset: 0, usable: true }
    }

    fn one(address: u64, size: u64) -> Unmap {
        Unmap::One(Range { address, size })
    }

    fn starts(table: &Table) -> Vec<u64> {
        table.space().map().regions().iter().map(|region| region.guest().0).collect()
    }

    #[test]
    fn regions_come_and_go_and_none_lies_over_another() {
        let file = [memory_file("dma", 8 * PAGE).unwrap()];
        let mut table = Table::new(1 << 20);
        assert!(table.map(region(PAGE, 2 * PAGE), &file).unwrap());
        for (address, size) in [(PAGE, 2 * PAGE), (0, PAGE + 1), (2 * PAGE, PAGE), (0, 8 * PAGE)] {
            let error = table.map(region(address, size), &file).unwrap_err();
            assert!(matches!(error, Refusal::Overlap), "{address:#x}: {error}");
        }
        assert!(table.map(region(0, PAGE), &file).unwrap());
        assert!(table.map(region(3 * PAGE, PAGE), &file).unwrap());
        assert_eq!(starts(&table), [0_u64, PAGE, 3 * PAGE]);
        for wrong in [one(PAGE, PAGE), one(2 * PAGE, PAGE), one(0, 3 * PAGE)] {
            assert!(matches!(table.unmap(wrong), Err(Refusal::NotMapped)));
        }
        assert!(table.unmap(one(PAGE, 2 * PAGE)).unwrap());
        assert_eq!(starts(&table), [0_u64, 3 * PAGE]);
        assert!(table.unmap(Unmap::All).unwrap());
        assert!(!table.unmap(Unmap::All).unwrap());
        assert!(starts(&table).is_empty());
    }

    #[test]
    fn what_cannot_be_used_takes_its_place_and_is_not_mapped() {
        let file = [memory_file("dma", PAGE).unwrap()];
        let mut table = Table::new(1 << 20);
        assert!(!table.map(region(0, PAGE), &[]).unwrap());
        let read_only = DmaRegion { usable: false, ..region(PAGE, PAGE) };
        assert!(!table.map(read_only, &file).unwrap());
        assert!(starts(&table).is_empty());
        assert!(matches!(table.map(region(0, PAGE), &file), Err(Refusal::Overlap)));
        assert!(!table.unmap(one(0, PAGE)).unwrap());
        assert!(table.map(region(0, PAGE), &file).unwrap());
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let file = || memory_file("dma", PAGE).unwrap();
        let mut table = Table::new(4 * PAGE);
        let offset = DmaRegion { offset: 1, ..region(0, PAGE) };
        assert!(matches!(table.map(offset, &[file()]), Err(Refusal::Map(_))));
        assert!(matches!(table.map(region(0, 2 * PAGE), &[file()]), Err(Refusal::Map(_))));
        assert!(matches!(
            table.map(region(0, 5 * PAGE), &[file()]),
            Err(Refusal::TooMuchMemory(_))
        ));
        assert!(matches!(table.map(region(0, 0), &[file()]), Err(Refusal::Payload)));
        assert!(matches!(table.map(region(PAGE, u64::MAX), &[file()]), Err(Refusal::Overlap)));
        let two = [file(), file()];
        assert!(matches!(table.map(region(0, PAGE), &two), Err(Refusal::Fds { .. })));
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        assert!(matches!(table.map(region(0, PAGE), &[pipe]), Err(Refusal::Descriptor(_))));
        assert!(starts(&table).is_empty());
        for at in 0..512 {
            table.map(region(at * PAGE, PAGE), &[]).unwrap();
        }
        assert!(matches!(table.map(region(1 << 40, PAGE), &[]), Err(Refusal::TooManyRegions)));
    }
}
