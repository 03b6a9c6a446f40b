//! Faults on purpose: `cargo xtask gate` builds each and demands that it does not link.

/// An index nobody checks.
#[cfg(feature = "plant-panic")]
#[unsafe(no_mangle)]
pub extern "C" fn gate_planted_panic(bytes: &[u8], at: usize) -> u8 {
    bytes[at]
}

/// A copy on the heap.
#[cfg(feature = "plant-allocation")]
#[unsafe(no_mangle)]
pub extern "C" fn gate_planted_allocation(bytes: &[u8]) -> usize {
    extern crate alloc;
    let copy = alloc::vec::Vec::from(bytes);
    core::hint::black_box(copy.as_slice()).len()
}
