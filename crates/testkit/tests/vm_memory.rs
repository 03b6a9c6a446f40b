//! Memory of rust-vmm's, as a map of ours.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may stop")]

use std::sync::Arc;

use vionet_raw::{AddressSpace, GuestAddr, MapError, MemoryMap};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Below a hole and behind it.
const RANGES: [(GuestAddress, usize); 2] =
    [(GuestAddress(0x1000), 0x2000), (GuestAddress(0x1_0000_0000), 0x3000)];

#[test]
fn both_see_what_either_writes_and_nothing_is_in_the_hole() {
    let theirs = Arc::new(GuestMemoryMmap::from_ranges(&RANGES).unwrap());
    let ours = AddressSpace::new(Arc::new(MemoryMap::from_vm_memory(&theirs).unwrap()));
    for at in [0x1000, 0x2ffc, 0x1_0000_0000, 0x1_0000_2ffc] {
        theirs.write_slice(b"abcd", GuestAddress(at)).unwrap();
        let mut seen = [0; 4];
        assert!(ours.read(GuestAddr(at), &mut seen), "{at:#x}");
        assert_eq!(&seen, b"abcd", "{at:#x}");
    }
    for at in [0xffe, 0x2fff, 0x3000, 0xffff_ffff, 0x1_0000_3000] {
        assert!(!ours.read(GuestAddr(at), &mut [0; 4]), "{at:#x}");
    }
    let index = ours.index(GuestAddr(0x1_0000_0004)).unwrap();
    index.store(0x1234);
    assert_eq!(theirs.read_obj::<u16>(GuestAddress(0x1_0000_0004)).unwrap(), 0x1234);
}

#[test]
fn the_memory_stays_mapped_as_long_as_the_map_is_there() {
    let theirs = Arc::new(GuestMemoryMmap::from_ranges(&RANGES).unwrap());
    theirs.write_slice(b"kept", GuestAddress(0x1800)).unwrap();
    let ours = AddressSpace::new(Arc::new(MemoryMap::from_vm_memory(&theirs).unwrap()));
    drop(theirs);
    let mut seen = [0; 4];
    assert!(ours.read(GuestAddr(0x1800), &mut seen));
    assert_eq!(&seen, b"kept");
}

#[test]
fn memory_that_may_not_be_written_makes_no_map() {
    let prot = rustix::mm::ProtFlags::READ.bits().cast_signed();
    let flags = (rustix::mm::MapFlags::PRIVATE.bits() | 0x20).cast_signed();
    let region =
        MmapRegionBuilder::new(0x1000).with_mmap_prot(prot).with_mmap_flags(flags).build().unwrap();
    let region = GuestRegionMmap::new(region, GuestAddress(0x4000)).unwrap();
    let theirs = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
    let refused = MemoryMap::from_vm_memory(&theirs).unwrap_err();
    assert_eq!(refused, MapError::NotWritable(GuestAddr(0x4000)));
    assert!(refused.to_string().contains("not mapped to be read and written"), "{refused}");
}
