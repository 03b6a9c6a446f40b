//! Memory for a driver of another make. Its trait for that is unsafe to implement, so this file is.
//!
//! One arena of guest memory serves all tests of the process; physical addresses are offsets in it.
//! Buffers are copied in and out: the driver's own memory is no guest memory.

use std::os::fd::OwnedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::mm::{MapFlags, ProtFlags, mmap};
use vionet_raw::host::mmap::memory_file;
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, Region, UserAddr};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Physical memory begins here, so that no address is 0.
pub(crate) const START: u64 = 0x10_0000;
pub(crate) const LEN: usize = 64 << 20;

struct Arena {
    base: NonNull<u8>,
    file: OwnedFd,
    space: Arc<AddressSpace>,
    /// Pages given out and not given back, by their number.
    taken: Mutex<Vec<bool>>,
}

// SAFETY: the arena lives as long as the process; `base` is only used to make pointers into it.
unsafe impl Send for Arena {}
// SAFETY: as for `Send`.
unsafe impl Sync for Arena {}

fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| {
        let file = memory_file("arena", LEN as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: without a wish for its place, nothing mapped before is replaced.
        let base = unsafe { mmap(null_mut(), LEN, protection, MapFlags::SHARED, &file, 0) };
        let base = NonNull::new(base.unwrap().cast::<u8>()).unwrap();
        let owner = Arc::new(());
        // SAFETY: the arena is never unmapped, and no reference is made to it.
        let region = unsafe { Region::from_raw(GuestAddr(START), UserAddr(0), base, LEN, owner) };
        let map = Arc::new(MemoryMap::new(vec![region]).unwrap());
        let taken = Mutex::new(vec![false; LEN / PAGE_SIZE]);
        Arena { base, file, space: Arc::new(AddressSpace::new(map)), taken }
    })
}

/// What the device is to work on.
pub(crate) fn memory() -> Arc<AddressSpace> {
    Arc::clone(&arena().space)
}

/// The file that all of it lies in.
pub(crate) fn file() -> &'static OwnedFd {
    &arena().file
}

fn pointer(physical: PhysAddr) -> NonNull<u8> {
    let offset = usize::try_from(physical - START).unwrap();
    assert!(offset < LEN);
    // SAFETY: `offset` is inside the arena.
    unsafe { arena().base.add(offset) }
}

fn take(pages: usize) -> PhysAddr {
    let mut taken = arena().taken.lock().unwrap();
    let free = taken.windows(pages).position(|run| !run.contains(&true)).expect("room");
    taken[free..free + pages].fill(true);
    let physical = START + (free * PAGE_SIZE) as u64;
    // SAFETY: the pages belong to the arena and to nobody else.
    unsafe { pointer(physical).write_bytes(0, pages * PAGE_SIZE) };
    physical
}

fn give_back(physical: PhysAddr, pages: usize) {
    let first = usize::try_from(physical - START).unwrap() / PAGE_SIZE;
    arena().taken.lock().unwrap()[first..first + pages].fill(false);
}

/// The arena, as the driver wants it.
pub(crate) struct Ram;

// SAFETY: pages come zeroed and aligned from the arena, each given out once until it is back.
unsafe impl Hal for Ram {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let physical = take(pages);
        (physical, pointer(physical))
    }

    unsafe fn dma_dealloc(physical: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        give_back(physical, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        panic!("registers are no memory here");
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        let physical = take(buffer.len().div_ceil(PAGE_SIZE));
        let from = buffer.cast::<u8>();
        // SAFETY: the caller's buffer has so many bytes, and so have the pages just taken.
        unsafe { from.copy_to(pointer(physical), buffer.len()) };
        physical
    }

    unsafe fn unshare(physical: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let to = buffer.cast::<u8>();
            // SAFETY: as in `share`, the other way.
            unsafe { pointer(physical).copy_to(to, buffer.len()) };
        }
        give_back(physical, buffer.len().div_ceil(PAGE_SIZE));
    }
}
