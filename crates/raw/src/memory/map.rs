//! The memory map: which guest addresses are mapped here, and where.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::ptr::NonNull;

use super::packed::PackedDescriptors;
use super::ring::{Cell, SharedIndex, SharedRing};
use super::translate::{Access, Translate, Untranslated};

/// An address in the guest's physical address space (or an I/O virtual address).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddr(pub u64);

/// An address in the virtual address space of the vhost-user front-end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserAddr(pub u64);

impl GuestAddr {
    /// The address `offset` bytes further on, or `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, offset: u64) -> Option<Self> {
        self.0.checked_add(offset).map(Self)
    }
}

impl fmt::Debug for GuestAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:#x}", self.0)
    }
}

impl fmt::Debug for UserAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {:#x}", self.0)
    }
}

/// A run of guest memory that is mapped in this process.
#[derive(Clone)]
pub struct Region {
    guest: GuestAddr,
    user: UserAddr,
    len: usize,
    base: NonNull<u8>,
    /// Held for its drop alone: it unmaps the memory.
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: `base` points into memory that `_owner` keeps mapped from any thread; all access to it
// goes through spans and cells, which are sound under concurrent change by others.
unsafe impl Send for Region {}
// SAFETY: as for `Send`; a shared `Region` gives out nothing but copies of its fields.
unsafe impl Sync for Region {}

impl Region {
    /// A region from a pointer of the caller's own making: for VMMs that have mapped the memory
    /// already. `user` is the address the vhost-user front-end knows it by; others pass 0.
    ///
    /// # Safety
    /// `base` to `base + len` must stay mapped for reading and writing until `owner` is dropped,
    /// and no Rust reference may be made to it meanwhile: others change it at any time.
    #[must_use]
    pub unsafe fn from_raw(
        guest: GuestAddr,
        user: UserAddr,
        base: NonNull<u8>,
        len: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { guest, user, len, base, _owner: owner }
    }

    /// The region's first guest address.
    #[must_use]
    pub fn guest(&self) -> GuestAddr {
        self.guest
    }

    /// The region's first address in the front-end.
    #[must_use]
    pub fn user(&self) -> UserAddr {
        self.user
    }

    /// The region's length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes; a map refuses such a region.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the region is mapped in this process: for KVM, VFIO or whoever else maps it by this
    /// address. No Rust reference may be made to it.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Where `at` is mapped and how many bytes of the region follow it.
    fn find(&self, at: GuestAddr) -> Option<(NonNull<u8>, usize)> {
        let offset = usize::try_from(at.0.checked_sub(self.guest.0)?).ok()?;
        let rest = self.len.checked_sub(offset).filter(|rest| *rest > 0)?;
        // SAFETY: `offset` is below `len`, so the sum stays inside the mapping of `_owner`.
        Some((unsafe { self.base.add(offset) }, rest))
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?} {} bytes", self.guest, self.user, self.len)
    }
}

/// Why a set of regions makes no memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapError {
    /// A region has no bytes.
    Empty(GuestAddr),
    /// A region goes past the end of an address space.
    PastTheEnd(GuestAddr),
    /// Two regions share guest addresses.
    GuestOverlap(GuestAddr),
    /// Two regions share front-end addresses.
    UserOverlap(UserAddr),
    /// A region was mapped without leave to read and write.
    NotWritable(GuestAddr),
    /// There are more regions than a map holds.
    TooMany(usize),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(at) => write!(f, "the memory region at {at:?} is empty"),
            Self::PastTheEnd(at) => write!(f, "the memory region at {at:?} wraps around"),
            Self::GuestOverlap(at) => write!(f, "two memory regions overlap at {at:?}"),
            Self::UserOverlap(at) => write!(f, "two memory regions overlap at {at:?}"),
            Self::NotWritable(at) => {
                write!(f, "the memory region at {at:?} is not mapped to be read and written")
            }
            Self::TooMany(n) => {
                write!(f, "{n} memory regions, but a map holds {}", MemoryMap::REGIONS_MAX)
            }
        }
    }
}

impl core::error::Error for MapError {}

/// Where guest memory is mapped. Immutable: a change of memory is a new map.
pub struct MemoryMap {
    /// Sorted by guest address, free of overlap.
    regions: Vec<Region>,
}

impl MemoryMap {
    /// The most regions a map holds (vhost-user front-ends use up to 512 slots).
    pub const REGIONS_MAX: usize = 512;

    /// A map of `regions`, in any order.
    ///
    /// # Errors
    /// When a region is empty, wraps around or overlaps another, or when there are too many.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MapError> {
        if regions.len() > Self::REGIONS_MAX {
            return Err(MapError::TooMany(regions.len()));
        }
        for region in &regions {
            let len = u64::try_from(region.len).unwrap_or(u64::MAX);
            if len == 0 {
                return Err(MapError::Empty(region.guest));
            }
            let fits = region.guest.0.checked_add(len).and(region.user.0.checked_add(len));
            fits.ok_or(MapError::PastTheEnd(region.guest))?;
        }
        super::fill::look_at_processor();
        regions.sort_by_key(|region| region.user);
        if let Some(at) = overlap(&regions, |region| region.user.0) {
            // Embedders without a front-end leave every user address 0.
            if regions.iter().any(|region| region.user.0 != 0) {
                return Err(MapError::UserOverlap(UserAddr(at)));
            }
        }
        regions.sort_by_key(|region| region.guest);
        match overlap(&regions, |region| region.guest.0) {
            Some(at) => Err(MapError::GuestOverlap(GuestAddr(at))),
            None => Ok(Self { regions }),
        }
    }

    /// A map without memory, as before a front-end has sent one.
    #[must_use]
    pub fn empty() -> Self {
        Self { regions: Vec::new() }
    }

    /// The regions, by rising guest address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The guest address of front-end address `at`, or `None` where no region has it.
    #[must_use]
    pub fn guest_of(&self, at: UserAddr) -> Option<GuestAddr> {
        self.regions.iter().find_map(|region| {
            let offset = at.0.checked_sub(region.user.0)?;
            let inside = offset < u64::try_from(region.len).unwrap_or(u64::MAX);
            inside.then(|| region.guest.checked_add(offset)).flatten()
        })
    }

    /// Where `at` is mapped and how many bytes of its region follow. `hint` is the region that
    /// answered last: buffers lie together, so it is nearly always right.
    #[inline]
    pub(crate) fn find(&self, at: GuestAddr, hint: &mut usize) -> Option<(NonNull<u8>, usize)> {
        if let Some(found) = self.regions.get(*hint).and_then(|region| region.find(at)) {
            return Some(found);
        }
        self.search(at, hint)
    }

    #[cold]
    fn search(&self, at: GuestAddr, hint: &mut usize) -> Option<(NonNull<u8>, usize)> {
        let after = self.regions.partition_point(|region| region.guest <= at);
        let index = after.checked_sub(1)?;
        *hint = index;
        self.regions.get(index)?.find(at)
    }
}

impl fmt::Debug for MemoryMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.regions).finish()
    }
}

/// The first start that lies inside the region before it; `regions` are sorted by `start`.
fn overlap(regions: &[Region], start: impl Fn(&Region) -> u64) -> Option<u64> {
    regions.windows(2).find_map(|pair| {
        let [low, high] = pair else { return None };
        let len = u64::try_from(low.len).unwrap_or(u64::MAX);
        (start(high).saturating_sub(start(low)) < len).then(|| start(high))
    })
}

/// What a device may touch: the map, and what translates on top of it.
#[derive(Debug)]
pub struct AddressSpace {
    map: Arc<MemoryMap>,
    platform: Option<Arc<dyn Translate>>,
}

impl AddressSpace {
    /// The address space of a device behind no IOMMU.
    #[must_use]
    pub fn new(map: Arc<MemoryMap>) -> Self {
        Self { map, platform: None }
    }

    /// The address space of a device whose addresses `platform` translates.
    #[must_use]
    pub fn translated(map: Arc<MemoryMap>, platform: Arc<dyn Translate>) -> Self {
        Self { map, platform: Some(platform) }
    }

    /// Whether addresses are translated.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.platform.is_some()
    }

    /// Where device address `at` is in this process, and how many of `len` bytes, one at least,
    /// follow there.
    pub(crate) fn resolve(
        &self,
        at: GuestAddr,
        len: usize,
        access: Access,
        hint: &mut usize,
    ) -> Result<(NonNull<u8>, usize), Untranslated> {
        let (at, len) = match &self.platform {
            None => (at, len),
            Some(platform) => match platform.translate(at.0, len, access)? {
                (_, 0) => return Err(Untranslated::Missing),
                (place, count) => (place, count.min(len)),
            },
        };
        let (base, room) = self.map.find(at, hint).ok_or(Untranslated::Denied)?;
        Ok((base, room.min(len)))
    }

    /// The memory map below.
    #[must_use]
    pub fn map(&self) -> &Arc<MemoryMap> {
        &self.map
    }

    /// `size` cells at `at`, with `size` a power of two; translated here, for as long as they are
    /// held, for reading and writing. `None` when they do not lie in one region, the address is
    /// not aligned, or the size is no power of two.
    #[must_use]
    pub fn ring<T: Cell>(&self, at: GuestAddr, size: u16) -> Option<SharedRing<T>> {
        let bytes = usize::from(size).checked_mul(size_of::<T>())?;
        let base = self.contiguous(at, bytes, align_of::<T::Atoms>())?;
        // SAFETY: `contiguous` has found `bytes` mapped bytes at `base`, aligned for the cells.
        unsafe { SharedRing::from_raw(base, size, Arc::clone(&self.map)) }
    }

    /// The 16-bit cell at `at`, or `None` when it is not mapped or at an odd address.
    #[must_use]
    pub fn index(&self, at: GuestAddr) -> Option<SharedIndex> {
        let base = self.contiguous(at, 2, 2)?;
        // SAFETY: `contiguous` has found two mapped bytes at an even address.
        Some(unsafe { SharedIndex::from_raw(base, Arc::clone(&self.map)) })
    }

    /// `size` packed descriptors at `at`. `None` when they do not lie in one region, the address
    /// is not aligned, or `size` is 0.
    #[must_use]
    pub fn descriptors(&self, at: GuestAddr, size: u16) -> Option<PackedDescriptors> {
        let bytes = usize::from(size).checked_mul(PackedDescriptors::CELL)?;
        let base = self.contiguous(at, bytes, PackedDescriptors::CELL)?;
        // SAFETY: `contiguous` has found `bytes` mapped bytes at `base`, aligned for descriptors.
        unsafe { PackedDescriptors::from_raw(base, size, Arc::clone(&self.map)) }
    }

    fn contiguous(&self, at: GuestAddr, bytes: usize, align: usize) -> Option<NonNull<u8>> {
        let mut hint = 0;
        let (base, mut done) = self.resolve(at, bytes, Access::Both, &mut hint).ok()?;
        // A platform answers page by page: the answers must lie one behind the other.
        while done < bytes {
            let next = at.checked_add(u64::try_from(done).ok()?)?;
            let rest = bytes.saturating_sub(done);
            let (place, more) = self.resolve(next, rest, Access::Both, &mut hint).ok()?;
            if !self.is_translated() || place.as_ptr() != base.as_ptr().wrapping_add(done) {
                return None;
            }
            done = done.saturating_add(more);
        }
        (base.align_offset(align) == 0).then_some(base)
    }
}
