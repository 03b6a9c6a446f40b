//! Where the structures lie in the region of registers: a page each, so that a VMM can map or trap
//! them apart.
//!
//! ```text
//!   0x0000 common   0x1000 ISR   0x2000 device   0x3000 doorbells, 4 bytes a queue
//!   0x4000 MSI-X table           0x6000 pending bits                         0x8000
//! ```

use vionet_spec::net::CONFIG_LEN;
use vionet_spec::pci::{
    COMMON_CONFIG_GENERATION, COMMON_CONFIG_VECTOR, COMMON_DEVICE_FEATURE,
    COMMON_DEVICE_FEATURE_SELECT, COMMON_DRIVER_FEATURE, COMMON_DRIVER_FEATURE_SELECT,
    COMMON_NUM_QUEUES, COMMON_QUEUE_DESC, COMMON_QUEUE_DEVICE, COMMON_QUEUE_DRIVER,
    COMMON_QUEUE_ENABLE, COMMON_QUEUE_NOTIFY_OFF, COMMON_QUEUE_RESET, COMMON_QUEUE_SELECT,
    COMMON_QUEUE_SIZE, COMMON_QUEUE_VECTOR, COMMON_STATUS, MSIX_ENTRY_LEN,
};

use crate::config::PAIRS_MAX;
use crate::transport::draft::{Area, Half};
use crate::transport::registers::Field;

pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PENDING: u64 = 0x6000;
pub(super) const BAR_LEN: u64 = 0x8000;

pub(super) const ISR_LEN: u64 = 1;
pub(super) const DEVICE_LEN: u64 = 28;
const _: () = assert!(CONFIG_LEN == 28, "as the capability says");
/// Bytes between the doorbells of two queues: room for a kick with data (PNOT-06).
pub(super) const DOORBELL_LEN: u32 = 4;

// With two queues a pair and the control queue: 1024 doorbells, 512 vectors.
const _: () = assert!(PAIRS_MAX < 0x100 && MSIX_ENTRY_LEN == 16, "every queue has its own");

/// A structure of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

/// The structure at `offset` of the region, and the offset inside it.
pub(super) fn structure(offset: u64) -> Option<(Structure, u64)> {
    let (structure, start) = match offset {
        COMMON..ISR => (Structure::Common, COMMON),
        ISR..DEVICE => (Structure::Isr, ISR),
        DEVICE..NOTIFY => (Structure::Device, DEVICE),
        NOTIFY..TABLE => (Structure::Notify, NOTIFY),
        TABLE..PENDING => (Structure::Table, TABLE),
        PENDING..BAR_LEN => (Structure::Pending, PENDING),
        _ => return None,
    };
    Some((structure, offset.saturating_sub(start)))
}

/// A register of the common configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    /// One that both buses have.
    Common(Field),
    ConfigVector,
    QueueVector,
    NotifyOff,
}

/// A register, with its first byte and its bytes.
pub(super) type Row = (u64, u64, Register);

/// Every register of the common configuration. `queue_notif_config_data` and those of
/// administration queues exist with features that are not offered: they read 0.
pub(super) const COMMON_ROWS: [Row; 20] = [
    (COMMON_DEVICE_FEATURE_SELECT, 4, Register::Common(Field::DeviceFeatureSelect)),
    (COMMON_DEVICE_FEATURE, 4, Register::Common(Field::DeviceFeature)),
    (COMMON_DRIVER_FEATURE_SELECT, 4, Register::Common(Field::DriverFeatureSelect)),
    (COMMON_DRIVER_FEATURE, 4, Register::Common(Field::DriverFeature)),
    (COMMON_CONFIG_VECTOR, 2, Register::ConfigVector),
    (COMMON_NUM_QUEUES, 2, Register::Common(Field::NumQueues)),
    (COMMON_STATUS, 1, Register::Common(Field::Status)),
    (COMMON_CONFIG_GENERATION, 1, Register::Common(Field::ConfigGeneration)),
    (COMMON_QUEUE_SELECT, 2, Register::Common(Field::QueueSelect)),
    (COMMON_QUEUE_SIZE, 2, Register::Common(Field::QueueSize)),
    (COMMON_QUEUE_VECTOR, 2, Register::QueueVector),
    (COMMON_QUEUE_ENABLE, 2, Register::Common(Field::QueueEnable)),
    (COMMON_QUEUE_NOTIFY_OFF, 2, Register::NotifyOff),
    (COMMON_QUEUE_DESC, 4, Register::Common(Field::QueueArea(Area::Descriptors, Half::Low))),
    (COMMON_QUEUE_DESC + 4, 4, Register::Common(Field::QueueArea(Area::Descriptors, Half::High))),
    (COMMON_QUEUE_DRIVER, 4, Register::Common(Field::QueueArea(Area::Driver, Half::Low))),
    (COMMON_QUEUE_DRIVER + 4, 4, Register::Common(Field::QueueArea(Area::Driver, Half::High))),
    (COMMON_QUEUE_DEVICE, 4, Register::Common(Field::QueueArea(Area::Device, Half::Low))),
    (COMMON_QUEUE_DEVICE + 4, 4, Register::Common(Field::QueueArea(Area::Device, Half::High))),
    (COMMON_QUEUE_RESET, 2, Register::Common(Field::QueueReset)),
];
