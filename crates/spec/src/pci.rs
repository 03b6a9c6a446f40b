//! A device on PCI (VIRTIO 1.4 §4.1): identities, capabilities, the common configuration; and the
//! few registers of PCI itself that it needs (PCI Local Bus 3.0 §6).

/// Every virtio device's vendor.
pub const VENDOR_ID: u16 = 0x1af4;
/// A device that is not transitional has this plus its type.
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// The type of a network device, on any transport.
pub const TYPE_NET: u16 = 1;

/// Structure type: the common configuration.
pub const CAP_COMMON: u8 = 1;
/// Structure type: where kicks are written.
pub const CAP_NOTIFY: u8 = 2;
/// Structure type: the ISR status.
pub const CAP_ISR: u8 = 3;
/// Structure type: the device configuration.
pub const CAP_DEVICE: u8 = 4;
/// Structure type: a window into the other structures.
pub const CAP_PCI: u8 = 5;
/// Bytes of a capability that names a structure.
pub const CAP_LEN: u8 = 16;
/// Bytes of a capability that names a structure and has four more.
pub const CAP_LEN_MORE: u8 = 20;
/// Offset of `bar` in a capability.
pub const CAP_BAR: u16 = 4;
/// Offset of `offset` in a capability.
pub const CAP_OFFSET: u16 = 8;
/// Offset of `length` in a capability.
pub const CAP_LENGTH: u16 = 12;
/// Offset of `notify_off_multiplier`, or of `pci_cfg_data`, in its capability.
pub const CAP_MORE: u16 = 16;

/// No MSI-X vector.
pub const NO_VECTOR: u16 = 0xffff;
/// The most MSI-X vectors of a function.
pub const VECTORS_MAX: u16 = 0x800;
/// Bit of the ISR status: a queue has used buffers.
pub const ISR_QUEUE: u8 = 1;
/// Bit of the ISR status: the device configuration has changed.
pub const ISR_CONFIG: u8 = 2;

/// Offset of `device_feature_select` in the common configuration.
pub const COMMON_DEVICE_FEATURE_SELECT: u64 = 0x00;
/// Offset of `device_feature`.
pub const COMMON_DEVICE_FEATURE: u64 = 0x04;
/// Offset of `driver_feature_select`.
pub const COMMON_DRIVER_FEATURE_SELECT: u64 = 0x08;
/// Offset of `driver_feature`.
pub const COMMON_DRIVER_FEATURE: u64 = 0x0c;
/// Offset of `config_msix_vector`.
pub const COMMON_CONFIG_VECTOR: u64 = 0x10;
/// Offset of `num_queues`.
pub const COMMON_NUM_QUEUES: u64 = 0x12;
/// Offset of `device_status`.
pub const COMMON_STATUS: u64 = 0x14;
/// Offset of `config_generation`.
pub const COMMON_CONFIG_GENERATION: u64 = 0x15;
/// Offset of `queue_select`.
pub const COMMON_QUEUE_SELECT: u64 = 0x16;
/// Offset of `queue_size`.
pub const COMMON_QUEUE_SIZE: u64 = 0x18;
/// Offset of `queue_msix_vector`.
pub const COMMON_QUEUE_VECTOR: u64 = 0x1a;
/// Offset of `queue_enable`.
pub const COMMON_QUEUE_ENABLE: u64 = 0x1c;
/// Offset of `queue_notify_off`.
pub const COMMON_QUEUE_NOTIFY_OFF: u64 = 0x1e;
/// Offset of `queue_desc`, 64 bits.
pub const COMMON_QUEUE_DESC: u64 = 0x20;
/// Offset of `queue_driver`, 64 bits.
pub const COMMON_QUEUE_DRIVER: u64 = 0x28;
/// Offset of `queue_device`, 64 bits.
pub const COMMON_QUEUE_DEVICE: u64 = 0x30;
/// Offset of `queue_notif_config_data`.
pub const COMMON_QUEUE_NOTIF_DATA: u64 = 0x38;
/// Offset of `queue_reset`.
pub const COMMON_QUEUE_RESET: u64 = 0x3a;
/// Bytes of the common configuration of a device without administration queues.
pub const COMMON_LEN: u64 = 0x3c;

/// Offset of the command register in the configuration space.
pub const HEADER_COMMAND: u16 = 0x04;
/// Offset of the status register.
pub const HEADER_STATUS: u16 = 0x06;
/// Offset of the revision, with the class behind it.
pub const HEADER_REVISION: u16 = 0x08;
/// Offset of the first base address register.
pub const HEADER_BAR0: u16 = 0x10;
/// Offset of the subsystem's vendor, with the subsystem behind it.
pub const HEADER_SUBSYSTEM: u16 = 0x2c;
/// Offset of the pointer to the first capability.
pub const HEADER_CAPABILITIES: u16 = 0x34;
/// Offset of the interrupt line, with the interrupt pin behind it.
pub const HEADER_INTERRUPT: u16 = 0x3c;
/// Command bit: the function answers at its memory addresses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command bit: the function may access memory.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command bit: the function does not use its interrupt line.
pub const COMMAND_NO_INTX: u16 = 1 << 10;
/// Status bit: an interrupt is pending.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status bit: there are capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// What reads where nothing answers.
pub const NOTHING: u8 = 0xff;
/// Class: network controller, Ethernet.
pub const CLASS_ETHERNET: u32 = 0x02_0000;

/// Capability of PCI: power management (PCI-PM 1.2 §3.2).
pub const CAPABILITY_POWER: u8 = 0x01;
/// Bytes of it.
pub const POWER_LEN: u16 = 8;
/// Offset of its capabilities, of which the version is all that is said: 1.2.
pub const POWER_CAPABILITIES: u16 = 2;
/// The version that power management has.
pub const POWER_VERSION: u16 = 3;
/// Offset of its control and status.
pub const POWER_CONTROL: u16 = 4;
/// The power state in that: 0 is D0, 3 is D3.
pub const POWER_STATE: u16 = 0b11;
/// Bit of that: nothing is lost on the way from D3 to D0.
pub const POWER_KEEPS: u16 = 1 << 3;

/// Capability of PCI: PCI Express (PCI Express Base 4.0 §7.5.3).
pub const CAPABILITY_EXPRESS: u8 = 0x10;
/// Bytes of it in its second version.
pub const EXPRESS_LEN: u16 = 0x3c;
/// Offset of its own capabilities: version and type.
pub const EXPRESS_CAPABILITIES: u16 = 2;
/// Version 2, of an endpoint that is integrated into the root complex: it has no link.
pub const EXPRESS_INTEGRATED: u16 = 9 << 4 | 2;
/// Offset of the device's capabilities.
pub const EXPRESS_DEVICE: u16 = 4;
/// Bit of those: errors are reported by their role, as since version 1.1.
pub const EXPRESS_ROLES: u32 = 1 << 15;
/// Bit of those: the function can be reset alone.
pub const EXPRESS_FLR: u32 = 1 << 28;
/// Offset of the device's control.
pub const EXPRESS_CONTROL: u16 = 8;
/// Bits of that: which errors are reported.
pub const EXPRESS_ERRORS: u16 = 0xf;
/// Bits of that: the largest read request.
pub const EXPRESS_READ_MAX: u16 = 0b111 << 12;
/// 512 bytes, which it is at first.
pub const EXPRESS_READ_512: u16 = 0b010 << 12;
/// Bit of that: resets the function; reads 0.
pub const EXPRESS_RESET: u16 = 1 << 15;

/// Capability of PCI: the vendor's own.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability of PCI: MSI-X.
pub const CAPABILITY_MSIX: u8 = 0x11;
/// Bit of MSI-X message control: MSI-X is used.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// Bit of MSI-X message control: every vector is masked.
pub const MSIX_MASK_ALL: u16 = 1 << 14;
/// Bytes of an entry of the MSI-X table.
pub const MSIX_ENTRY_LEN: u64 = 16;
/// Where its vector control is in an entry.
pub const MSIX_ENTRY_CONTROL: u64 = 12;
/// Bit of an entry's control word: the vector is masked.
pub const MSIX_ENTRY_MASKED: u32 = 1;
