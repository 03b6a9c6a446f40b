//! Guest memory: the table of regions, the spans of buffers, the cells of rings.

#[cfg(feature = "vm-memory")]
mod adapt;
mod fill;
mod map;
#[cfg(loom)]
pub mod model;
mod near;
mod packed;
mod pushed;
mod ring;
mod scratch;
mod span;
mod store;
mod sync;
mod translate;

pub use fill::has_string_moves;
pub use map::{AddressSpace, GuestAddr, MapError, MemoryMap, Region, UserAddr};
pub use packed::{PackedDescriptor, PackedDescriptors};
pub use pushed::Pushed;
pub use ring::{Cell, Descriptor, SharedIndex, SharedRing, UsedElem};
pub use scratch::Scratch;
pub use span::{ReadSpan, WriteSpan, copy_behind, copy_in, copy_out};
pub use store::SpanStore;
pub use sync::fence;
pub use translate::{Access, Translate, Untranslated};

/// The same word, of which the compiler knows nothing: it cannot fetch it once more from where it
/// came, however often it is used.
#[inline]
pub(crate) fn once(word: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::asm;
        let mut word = word;
        // SAFETY: there is no instruction; the word stays in its register.
        unsafe { asm!("/* {0:e} */", inout(reg) word, options(nomem, nostack, preserves_flags)) };
        word
    }
    #[cfg(not(target_arch = "x86_64"))]
    core::hint::black_box(word)
}

/// Brings the cache line at `at` closer, where the target has an instruction for it.
#[inline]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching is a hint; it never faults and touches nothing, whatever `at` is.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Brings the cache line at `at` here to be written, and out of other caches, where the target has
/// an instruction for it.
#[inline]
pub(crate) fn prefetch_to_write(at: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::asm;
        // The intrinsic fetches to read, unless a processor is named that can do this. All of 64
        // bits take the instruction; one that knows nothing of it does nothing.
        // SAFETY: prefetching is a hint; it never faults and changes nothing, whatever `at` is.
        unsafe { asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
