//! Registers of a device on MMIO (VIRTIO 1.4 §4.2.2), by their offsets.

/// Reads [`MAGIC`].
pub const MAGIC_VALUE: u64 = 0x000;
/// Reads [`VERSION_2`].
pub const VERSION: u64 = 0x004;
/// Reads the device's type.
pub const DEVICE_ID: u64 = 0x008;
/// Reads the vendor's number.
pub const VENDOR_ID: u64 = 0x00c;
/// Reads 32 of the offered features.
pub const DEVICE_FEATURES: u64 = 0x010;
/// Chooses which 32 offered features are read.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// Takes 32 of the driver's features.
pub const DRIVER_FEATURES: u64 = 0x020;
/// Chooses which 32 of the driver's features are written.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Chooses the queue that the queue registers are about.
pub const QUEUE_SEL: u64 = 0x030;
/// Reads the largest size of the queue; 0 if there is none.
pub const QUEUE_SIZE_MAX: u64 = 0x034;
/// Takes the size of the queue.
pub const QUEUE_SIZE: u64 = 0x038;
/// Makes the queue ready, and says whether it is.
pub const QUEUE_READY: u64 = 0x044;
/// Takes kicks.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Reads why the device interrupts.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Takes the reasons that the driver has seen.
pub const INTERRUPT_ACK: u64 = 0x064;
/// The device status.
pub const STATUS: u64 = 0x070;
/// Takes the low half of the descriptor area's address.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// Takes the high half of the descriptor area's address.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// Takes the low half of the driver area's address.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// Takes the high half of the driver area's address.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// Takes the low half of the device area's address.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// Takes the high half of the device area's address.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Reads the low half of a shared memory region's length.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// Reads the high half of a shared memory region's length.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// Reads the low half of a shared memory region's address.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// Reads the high half of a shared memory region's address.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Resets the queue, and says whether that is still going on.
pub const QUEUE_RESET: u64 = 0x0c0;
/// Reads the generation of the device configuration.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Where the device configuration begins.
pub const CONFIG: u64 = 0x100;

/// Bytes of the registers with a page for the device configuration.
pub const WINDOW_LEN: u64 = 0x1000;
/// "virt", in little-endian order.
pub const MAGIC: u32 = 0x7472_6976;
/// The version of devices that follow the standard.
pub const VERSION_2: u32 = 2;
/// What a register reads of a shared memory region that is not there.
pub const SHM_ABSENT: u32 = 0xffff_ffff;
