//! Virtqueue layouts: split (VIRTIO 1.4 §2.7) and packed (§2.8).

/// The largest size of any queue.
pub const SIZE_MAX: u16 = 32_768;

/// Descriptor flag: the chain goes on (split: at `next`).
pub const DESC_F_NEXT: u16 = 1;
/// Descriptor flag: the device may write the buffer; otherwise it may read it.
pub const DESC_F_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// Packed descriptor flag: compared with the wrap counter to tell availability.
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Packed descriptor flag: compared with the wrap counter to tell use.
pub const DESC_F_USED: u16 = 1 << 15;

/// Bytes of one descriptor, split or packed.
pub const DESC_LEN: u32 = 16;
/// Alignment of the descriptor area.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the split available ring.
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the split used ring, and of both packed event structures.
pub const USED_ALIGN: u64 = 4;

/// Flags of the split available ring: the driver asks for no interrupt.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Flags of the split used ring: the device asks for no kick.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Offset of the ring behind `flags` and `idx`, in the available and in the used ring.
pub const RING_OFFSET: u64 = 4;
/// Offset of `idx`, in the available and in the used ring.
pub const IDX_OFFSET: u64 = 2;
/// Bytes of an entry of the split used ring.
pub const USED_ELEM_LEN: u64 = 8;

/// Packed event suppression: notify always.
pub const EVENT_FLAGS_ENABLE: u16 = 0;
/// Packed event suppression: notify never.
pub const EVENT_FLAGS_DISABLE: u16 = 1;
/// Packed event suppression: notify at the descriptor named (needs EVENT_IDX).
pub const EVENT_FLAGS_DESC: u16 = 2;
