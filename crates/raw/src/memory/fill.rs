//! How a frame's bytes get into a guest's buffer, whose lines another core had last.
//!
//! A store waits in order for its cache line, and on some processors (measured: AMD Genoa) so few
//! lines at a time that this wait bounds a device. Their string moves do not queue so.

#[cfg(target_arch = "x86_64")]
use core::sync::atomic::{AtomicBool, Ordering};

/// What goes by a string move at most: a few lines. For more no gain was measured.
pub(super) const SHORT: usize = 256;

#[cfg(target_arch = "x86_64")]
static STRING_MOVES: AtomicBool = AtomicBool::new(false);

/// Whether short frames are better moved into a guest by [`super::WriteSpan::move_all`], on this
/// processor; never before there is a [`super::MemoryMap`].
#[inline]
#[must_use]
pub fn has_string_moves() -> bool {
    #[cfg(target_arch = "x86_64")]
    return STRING_MOVES.load(Ordering::Relaxed);
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Looks at what processor this is: when memory is mapped, and not when a frame comes.
pub(super) fn look_at_processor() {
    #[cfg(all(target_arch = "x86_64", not(any(miri, loom))))]
    {
        use core::arch::x86_64::__cpuid_count;

        /// EDX of leaf 7: short string moves are quick.
        const FSRM: u32 = 1 << 4;

        let vendor = __cpuid_count(0, 0);
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened()
            == b"AuthenticAMD";
        let is_quick = vendor.eax >= 7 && __cpuid_count(7, 0).edx & FSRM != 0;
        STRING_MOVES.store(is_amd && is_quick, Ordering::Relaxed);
    }
}

/// Copies `len` bytes by a string move.
///
/// # Safety
/// As for [`core::ptr::copy_nonoverlapping`].
#[inline]
pub(super) unsafe fn string_move(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: our caller answers for both sides; the direction flag is clear, as it always is
    // between instructions of Rust.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: our caller answers for both sides.
    unsafe {
        core::ptr::copy_nonoverlapping(from, to, len);
    }
}
