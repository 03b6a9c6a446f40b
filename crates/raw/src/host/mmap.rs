//! Mappings of memory files shared with another process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::check;
use crate::memory::{GuestAddr, Region, UserAddr};

/// A shared mapping of part of a file; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// Bytes between the mapping's start and the part that was asked for.
    lead: usize,
    wanted: usize,
}

// SAFETY: the mapping is plain memory of the process and belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared `Mapping` gives out no access but through `Region`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset`, shared, for reading and writing. The file must
    /// be long enough now; pages are neither reserved nor touched.
    ///
    /// # Errors
    /// When the file is too short, the range makes no sense, or the kernel refuses.
    pub fn shared(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let end = offset.checked_add(len).filter(|_| len > 0).ok_or_else(invalid)?;
        if file_len(file)? < end {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the memory file is too short",
            ));
        }
        // Huge page files want offset and length in their own page size (VU-PIT-14).
        let page = page_size(file)?;
        let lead = offset.checked_rem(page).ok_or_else(invalid)?;
        let start = offset.saturating_sub(lead);
        let span = end.saturating_sub(start).checked_next_multiple_of(page).ok_or_else(invalid)?;
        let len_all = usize::try_from(span).map_err(|_| invalid())?;
        let start = libc::off_t::try_from(start).map_err(|_| invalid())?;
        // SAFETY: a null hint lets the kernel choose a free place, so nothing mapped before is
        // replaced; the descriptor is borrowed and open.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len_all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                start,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(invalid)?;
        let lead = usize::try_from(lead).map_err(|_| invalid())?;
        let wanted = usize::try_from(len).map_err(|_| invalid())?;
        Ok(Self { base, len: len_all, lead, wanted })
    }

    /// `len` zero bytes of anonymous memory, between two pages that fault on any access: for
    /// tests, which so see a stray access at once. `len` is a whole number of pages.
    ///
    /// # Errors
    /// When `len` is 0 or no whole number of pages, or the kernel refuses.
    pub fn guarded(len: usize) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        // SAFETY: sysconf reads a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
        let page = page.map_err(|_| invalid())?;
        if len == 0 || !len.is_multiple_of(page) {
            return Err(invalid());
        }
        let guards = page.checked_mul(2).ok_or_else(invalid)?;
        let len_all = len.checked_add(guards).ok_or_else(invalid)?;
        // SAFETY: a null hint lets the kernel choose a free place, so nothing mapped before is
        // replaced.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len_all,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(invalid)?;
        let mapping = Self { base, len: len_all, lead: page, wanted: len };
        // SAFETY: one page into a mapping that is two pages longer than `len`.
        let inner = unsafe { base.add(page) };
        // SAFETY: `inner` and the `len` bytes behind it are part of the mapping just made, into
        // which nobody has a pointer yet.
        let result = unsafe {
            libc::mprotect(inner.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE)
        };
        check(result.into())?;
        Ok(mapping)
    }

    /// The mapped part as a region of guest memory that keeps the mapping.
    #[must_use]
    pub fn into_region(self, guest: GuestAddr, user: UserAddr) -> Region {
        // SAFETY: `shared` has mapped at least `lead` bytes before the wanted part.
        let base = unsafe { self.base.add(self.lead) };
        let len = self.wanted;
        // SAFETY: the wanted part lies inside the mapping, which the region owns from here on; no
        // reference to it is ever made.
        unsafe { Region::from_raw(guest, user, base, len, Arc::new(self)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of a successful mmap that nobody has unmapped; regions
        // hold this value in an `Arc`, so no pointer into it is left. Failure leaves it mapped.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A new anonymous memory file of `len` zero bytes, named for `/proc` only.
///
/// # Errors
/// When the kernel refuses.
pub fn memory_file(name: &str, len: u64) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the name is a terminated string that outlives the call.
    let number = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    check(number.into())?;
    // SAFETY: the call has just made this descriptor for us.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    let len =
        libc::off_t::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: resizing a file of our own touches no memory.
    check(unsafe { libc::ftruncate(file.as_fd().as_raw_fd(), len) }.into())?;
    Ok(file)
}

/// The device and inode of a descriptor's file: two descriptors of one file agree on them.
///
/// # Errors
/// When the descriptor cannot be examined.
pub fn identity(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = stat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn stat(file: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat fills the structure it is given.
    check(unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) }.into())?;
    // SAFETY: fstat has succeeded.
    Ok(unsafe { stat.assume_init() })
}

fn file_len(file: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(u64::try_from(stat(file)?.st_size).unwrap_or(0))
}

fn page_size(file: BorrowedFd<'_>) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the structure it is given.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), stat.as_mut_ptr()) }.into())?;
    // SAFETY: fstatfs has succeeded.
    let stat = unsafe { stat.assume_init() };
    if stat.f_type == libc::HUGETLBFS_MAGIC {
        return Ok(u64::try_from(stat.f_bsize).unwrap_or(4096));
    }
    // SAFETY: sysconf reads a constant of the system.
    Ok(u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressSpace, MemoryMap, SpanStore, copy_out};

    fn map_of(file: &OwnedFd, offset: u64, len: u64) -> Region {
        let mapping = Mapping::shared(file.as_fd(), offset, len).unwrap();
        mapping.into_region(GuestAddr(0x1000), UserAddr(0x7000))
    }

    #[test]
    fn two_mappings_of_one_file_share_their_bytes() {
        let file = memory_file("test", 8192).unwrap();
        let spaces = [map_of(&file, 0, 8192), map_of(&file, 4096, 4096)].map(|region| {
            Arc::new(AddressSpace::new(Arc::new(MemoryMap::new(vec![region]).unwrap())))
        });
        let [mut all, mut half] =
            spaces.map(|space| SpanStore::<4>::new(space, crate::Access::Both));
        assert_eq!(all.push(GuestAddr(0x2000), 5), crate::Pushed::Added(1));
        assert_eq!(half.push(GuestAddr(0x1000), 5), crate::Pushed::Added(1));
        assert_eq!(crate::copy_in(all.writable(0, 1), 0, b"hello"), 5);
        let mut seen = [0; 5];
        assert_eq!(copy_out(half.readable(0, 1), 0, &mut seen), 5);
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn a_file_shorter_than_its_region_is_refused() {
        let file = memory_file("short", 4096).unwrap();
        assert!(Mapping::shared(file.as_fd(), 0, 8192).is_err());
        assert!(Mapping::shared(file.as_fd(), 4096, 1).is_err());
        assert!(Mapping::shared(file.as_fd(), u64::MAX, 1).is_err());
        assert!(Mapping::shared(file.as_fd(), 0, 0).is_err());
    }

    #[test]
    fn guarded_memory_is_whole_pages_of_zeros() {
        assert!(Mapping::guarded(0).is_err());
        assert!(Mapping::guarded(100).is_err());
        assert!(Mapping::guarded(usize::MAX & !0xffff).is_err());
        let region = Mapping::guarded(8192).unwrap().into_region(GuestAddr(0), UserAddr(0));
        let space = AddressSpace::new(Arc::new(MemoryMap::new(vec![region]).unwrap()));
        let mut bytes = [1; 8192];
        assert!(space.read(GuestAddr(0), &mut bytes));
        assert_eq!(bytes, [0; 8192]);
    }

    #[test]
    fn a_part_that_starts_inside_a_page_can_be_mapped() {
        let file = memory_file("part", 8192).unwrap();
        assert_eq!(map_of(&file, 100, 5000).len(), 5000);
    }

    /// Two regions of a page each, one behind the other in this process and for the guest.
    fn touching() -> SpanStore<6> {
        let whole = Mapping::guarded(8192).unwrap().into_region(GuestAddr(0), UserAddr(0));
        let (base, owner) = (whole.base(), Arc::new(whole));
        let regions = [0, 4096].map(|at: u64| {
            // SAFETY: a page of the mapping, of which no reference is ever made.
            let base = unsafe { base.add(usize::try_from(at).unwrap()) };
            // SAFETY: likewise; `owner` keeps it.
            unsafe { Region::from_raw(GuestAddr(at), UserAddr(at), base, 4096, owner.clone()) }
        });
        let map = MemoryMap::new(regions.into()).unwrap();
        SpanStore::new(Arc::new(AddressSpace::new(Arc::new(map))), crate::Access::Both)
    }

    /// The lengths of what becomes of these buffers; and, written in order, they hold what the
    /// buffers themselves would.
    fn joined(buffers: &[(u64, u32)]) -> Vec<usize> {
        let written = |is_joined: bool| {
            let mut store = touching();
            for (at, len) in buffers {
                assert!(matches!(store.push(GuestAddr(*at), *len), crate::Pushed::Added(_)));
            }
            let len = store.len();
            let spans =
                if is_joined { store.writable_joined(0, len) } else { store.writable(0, len) };
            let lens: Vec<usize> = spans.iter().map(crate::WriteSpan::len).collect();
            let bytes: Vec<u8> = (0..lens.iter().sum()).map(|i| (i % 251) as u8 + 1).collect();
            assert_eq!(crate::copy_in(spans, 0, &bytes), bytes.len());
            let mut memory = vec![0; 8192];
            assert!(store.space().read(GuestAddr(0), &mut memory));
            (lens, memory)
        };
        let ((lens, memory), (_, expected)) = (written(true), written(false));
        assert!(memory == expected, "{buffers:?}");
        lens
    }

    #[test]
    fn spans_are_joined_where_one_begins_at_the_end_of_the_other() {
        assert_eq!(joined(&[(0, 12), (12, 100), (112, 8)]), [120]);
        assert_eq!(joined(&[(0, 12), (13, 100), (113, 8)]), [12, 108]);
        assert_eq!(joined(&[(100, 10), (90, 10), (100, 10)]), [10, 20]);
        assert_eq!(joined(&[(0, 10), (10, 0), (10, 10)]), [20]);
    }

    #[test]
    fn spans_that_overlap_are_not_joined() {
        assert_eq!(joined(&[(0, 100), (50, 100), (0, 100), (0, 100)]), [100; 4]);
        assert_eq!(joined(&[(0, 100), (99, 1), (100, 5)]), [100, 6]);
    }

    #[test]
    fn spans_are_not_joined_across_the_end_of_a_region_even_if_memory_goes_on() {
        assert_eq!(joined(&[(4000, 96), (4096, 100), (4196, 4)]), [96, 104]);
        assert_eq!(joined(&[(4000, 196), (4196, 4)]), [96, 104]);
        // Only the region that answered last is known.
        assert_eq!(joined(&[(5000, 10), (5010, 10), (0, 10)]), [10, 10, 10]);
    }

    #[test]
    fn without_room_behind_them_spans_come_as_they_are() {
        assert_eq!(joined(&[(0, 10), (10, 10), (20, 10), (40, 9)]), [30, 9]);
        assert_eq!(joined(&[(0, 9), (10, 9), (20, 9), (29, 9)]), [9; 4]);
        assert_eq!(joined(&[(0, 9), (9, 9), (20, 9), (30, 9), (40, 9)]), [9; 5]);
    }

    #[test]
    fn a_range_that_is_not_in_the_store_is_no_spans() {
        let mut store = touching();
        assert_eq!(store.push(GuestAddr(0), 9), crate::Pushed::Added(1));
        for (start, count) in [(0, 2), (1, 1), (0, 0), (usize::MAX, 1), (1, usize::MAX)] {
            assert!(store.writable_joined(start, count).is_empty());
        }
    }
}
