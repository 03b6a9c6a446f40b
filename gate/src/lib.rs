//! The link gate: a library that links only if the data path can neither panic nor allocate.
//!
//! ```text
//!   gate_* ---> data path ---> a panic?       ---> the_datapath_can_panic   (defined nowhere)
//!                         '--> an allocation? ---> the_datapath_allocates   (defined nowhere)
//! ```
//!
//! The optimiser removes a branch to a panic or to the allocator only if it can prove that nothing
//! goes there. What is left after fat link-time optimisation refers to a function that no library
//! has, and the linker says so by name. To find the culprit, leave out entry points until it links.
//!
//! An entry point takes what it works on by reference, so that nothing is
//! known about it here, and hands back a number that depends on all the work, so that none of the
//! work is optimised away.
#![no_std]

mod entries;

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

unsafe extern "C" {
    fn the_datapath_can_panic() -> !;
    fn the_datapath_allocates() -> *mut u8;
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    // SAFETY: the function does not exist, so a library that could call it does not link.
    unsafe { the_datapath_can_panic() }
}

struct Heap;

// SAFETY: the function behind both methods does not exist, so nothing that calls them ever runs.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { the_datapath_allocates() }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {
        // SAFETY: as above.
        unsafe { the_datapath_allocates() };
    }
}

#[global_allocator]
static HEAP: Heap = Heap;
