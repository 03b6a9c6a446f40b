//! The memory map against a plain table of bytes.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::sync::Arc;

use proptest::prelude::*;
use vionet_raw::host::mmap::Mapping;
use vionet_raw::{
    AddressSpace, Descriptor, GuestAddr, MapError, MemoryMap, PackedDescriptor, Region, UsedElem,
    UserAddr,
};

const PAGE: u64 = 4096;

fn region(guest: u64, user: u64, pages: u64) -> Region {
    let mapping = Mapping::guarded((pages * PAGE) as usize).unwrap();
    mapping.into_region(GuestAddr(guest), UserAddr(user))
}

fn space(regions: Vec<Region>) -> AddressSpace {
    AddressSpace::new(Arc::new(MemoryMap::new(regions).unwrap()))
}

#[test]
fn regions_that_share_addresses_on_either_side_are_refused() {
    let map = |a, b| MemoryMap::new(vec![a, b]).map(|_| ());
    let low = || region(0x1000, 0x10_0000, 2);
    assert_eq!(
        map(low(), region(0x2000, 0x20_0000, 1)),
        Err(MapError::GuestOverlap(GuestAddr(0x2000)))
    );
    assert_eq!(map(region(0, 0x20_0000, 2), low()), Err(MapError::GuestOverlap(GuestAddr(0x1000))));
    assert_eq!(
        map(low(), region(0x8000, 0x10_1000, 1)),
        Err(MapError::UserOverlap(UserAddr(0x10_1000)))
    );
    assert_eq!(map(low(), region(0x3000, 0x10_2000, 1)), Ok(()), "touching is not sharing");
}

#[test]
fn a_region_past_the_end_of_either_address_space_is_refused() {
    let last = u64::MAX - PAGE + 1;
    for (guest, user) in [(last, 0x1000), (0x1000, last), (u64::MAX, 0x1000)] {
        let refused = MemoryMap::new(vec![region(guest, user, 1)]).unwrap_err();
        assert_eq!(refused, MapError::PastTheEnd(GuestAddr(guest)));
    }
    assert!(MemoryMap::new(vec![region(last - PAGE, last - PAGE, 1)]).is_ok());
}

#[test]
fn a_map_holds_512_regions_and_no_more() {
    let regions = |count: u64| (0..count).map(|at| region(at * PAGE, at * PAGE, 1)).collect();
    assert!(MemoryMap::new(regions(512)).is_ok());
    assert_eq!(MemoryMap::new(regions(513)).unwrap_err(), MapError::TooMany(513));
}

#[test]
fn an_embedder_may_leave_all_user_addresses_zero() {
    let map = MemoryMap::new(vec![region(0x1000, 0, 1), region(0x8000, 0, 1)]).unwrap();
    assert_eq!(map.regions().len(), 2);
}

#[test]
fn a_ring_lies_in_one_region_is_aligned_and_a_power_of_two() {
    let space = space(vec![region(0x1000, 0, 1), region(0x2000, 0, 1)]);
    let ring = |at, size| space.ring::<Descriptor>(GuestAddr(at), size).is_some();
    assert!(ring(0x1000, 256) && ring(0x1ff0, 1));
    assert!(!ring(0x1010, 256), "it crosses into another region");
    assert!(!ring(0x1000, 0) && !ring(0x1000, 3));
    assert!(!ring(0x1004, 1), "not aligned for its atoms");
    assert!(!ring(0x0ff0, 1) && !ring(0x3000, 1) && !ring(u64::MAX, 1));
    let used = |at, size| space.ring::<UsedElem>(GuestAddr(at), size).is_some();
    assert!(used(0x1004, 4), "entries of the used ring are aligned to 4 only");
    assert!(!used(0x1002, 4));
    let index = |at| space.index(GuestAddr(at)).is_some();
    assert!(index(0x1000) && index(0x2ffe) && !index(0x1001) && !index(0x3000) && !index(0xfff));
}

#[test]
fn cells_have_the_layout_of_the_standard_and_wrap() {
    let space = space(vec![region(0, 0, 1)]);
    let ring = space.ring::<Descriptor>(GuestAddr(0), 8).unwrap();
    let descriptor = Descriptor { addr: 0x0102_0304_0506_0708, len: 9, flags: 10, next: 11 };
    ring.store(8 + 3, descriptor);
    assert_eq!(ring.load(3), descriptor, "indices are masked");
    let mut bytes = [0; 16];
    assert!(space.read(GuestAddr(48), &mut bytes));
    assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 10, 0, 11, 0]);
    assert_eq!(Descriptor::from_bytes(&bytes), descriptor);

    let used = space.ring::<UsedElem>(GuestAddr(0x104), 4).unwrap();
    used.store(u16::MAX, UsedElem { id: 0x0102, len: 0x0304 });
    assert_eq!(used.load(3), UsedElem { id: 0x0102, len: 0x0304 });
    let mut bytes = [0; 8];
    assert!(space.read(GuestAddr(0x104 + 24), &mut bytes));
    assert_eq!(bytes, [2, 1, 0, 0, 4, 3, 0, 0]);

    let index = space.index(GuestAddr(0x200)).unwrap();
    index.store_release(0x1234);
    assert_eq!((index.load(), index.load_acquire()), (0x1234, 0x1234));
    let heads = space.ring::<u16>(GuestAddr(0x200), 1).unwrap();
    assert_eq!(heads.load(9), 0x1234);
}

proptest! {
    /// Regions laid out anywhere on pages: a map is made exactly when no two share a page, and
    /// then translation agrees with a search of the list.
    #[test]
    fn a_map_is_its_list_of_regions(
        places in prop::collection::vec((0..24_u64, 1..5_u64, 0..40_u64), 0..8),
        probes in prop::collection::vec(0..30 * PAGE, 64),
    ) {
        let shared = |base: fn(&(u64, u64, u64)) -> u64| {
            let pages = places.iter().flat_map(|at| base(at)..base(at) + at.1);
            let mut pages: Vec<_> = pages.collect();
            pages.sort_unstable();
            pages.windows(2).any(|pair| pair[0] == pair[1])
        };
        let user = |place: &(u64, u64, u64)| place.2 + 1;
        let regions = places.iter().map(|at| region(at.0 * PAGE, user(at) * PAGE, at.1));
        match MemoryMap::new(regions.collect()) {
            Err(MapError::GuestOverlap(_)) => prop_assert!(shared(|at| at.0)),
            Err(MapError::UserOverlap(_)) => prop_assert!(shared(|at| at.2 + 1)),
            Err(other) => prop_assert!(false, "{other}"),
            Ok(map) => {
                prop_assert!(!shared(|at| at.0) && !shared(|at| at.2 + 1));
                let space = AddressSpace::new(Arc::new(map));
                for probe in probes {
                    let inside = |base: u64, pages| (base..base + pages).contains(&(probe / PAGE));
                    let mapped = places.iter().any(|at| inside(at.0, at.1));
                    prop_assert_eq!(space.read(GuestAddr(probe), &mut [0]), mapped);
                    let place = places.iter().find(|at| inside(user(at), at.1));
                    let guest = place.map(|at| GuestAddr(probe + at.0 * PAGE - user(at) * PAGE));
                    prop_assert_eq!(space.map().guest_of(UserAddr(probe)), guest);
                }
            }
        }
    }
}

#[test]
fn packed_descriptors_have_the_layout_of_the_standard_and_no_bad_slot() {
    let space = space(vec![region(0x1000, 0x1000, 1)]);
    assert!(space.descriptors(GuestAddr(0x1000), 0).is_none());
    assert!(space.descriptors(GuestAddr(0x1008), 3).is_none(), "PKD-22");
    assert!(space.descriptors(GuestAddr(0x1ff0), 2).is_none());
    let ring = space.descriptors(GuestAddr(0x1000), 3).unwrap();
    assert_eq!(ring.size(), 3);
    let descriptor = PackedDescriptor { addr: 0x0102_0304_0506_0708, len: 0x1112_1314, id: 0x2122 };
    ring.slot(1).store(descriptor);
    ring.slot(1).store_flags(0x3132);
    let mut bytes = [0; 16];
    assert!(space.read(GuestAddr(0x1010), &mut bytes));
    assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1, 0x14, 0x13, 0x12, 0x11, 0x22, 0x21, 0x32, 0x31]);
    assert_eq!(PackedDescriptor::from_bytes(&bytes), (descriptor, 0x3132));
    assert_eq!((ring.slot(1).load(), ring.slot(1).flags()), (descriptor, 0x3132));
    ring.slot(2).store_used(7, 9);
    assert_eq!((ring.slot(40_000).load().id, ring.slot(40_000).load().len), (7, 9), "held inside");
}
