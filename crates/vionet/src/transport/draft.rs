//! A queue as the driver writes it down, and what has become of it.

use vionet_queue::{Cursor, QueueSetup};
use vionet_raw::GuestAddr;

/// Half of a 64-bit register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Low,
    High,
}

/// An area of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Area {
    Descriptors,
    Driver,
    Device,
}

/// Why a queue does not live though the driver has enabled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Refused {
    #[default]
    No,
    /// The features have no use for it, or the host failed: not the driver's fault.
    Idle,
}

/// A queue as the driver writes it down, and whether it lives.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) size: u16,
    /// The last size written was none that can be: the queue cannot be enabled.
    pub(super) wrong_size: bool,
    pub(super) areas: [u64; 3],
    /// The driver has enabled it: the draft is fixed.
    pub(super) enabled: bool,
    /// The driver waits for its reset.
    pub(super) resetting: bool,
    /// It lives, or is being started: a worker may be at it.
    pub(super) live: bool,
    pub(super) wired: bool,
    /// As the device knows it.
    pub(super) opened: bool,
    pub(super) refused: Refused,
    /// Where it goes on after a pause.
    pub(super) cursor: Option<Cursor>,
}

impl Draft {
    pub(super) fn new(size: u16) -> Self {
        Self {
            size,
            wrong_size: false,
            areas: [0; 3],
            enabled: false,
            resetting: false,
            live: false,
            wired: false,
            opened: false,
            refused: Refused::No,
            cursor: None,
        }
    }

    pub(super) fn setup(&self) -> QueueSetup {
        let [descriptors, driver, device] = self.areas.map(GuestAddr);
        QueueSetup { size: self.size, descriptors, driver, device }
    }

    /// Whether the driver may change it.
    pub(super) fn is_open(&self) -> bool {
        !self.enabled && !self.resetting && !self.live
    }

    pub(super) fn area(&self, area: Area) -> u64 {
        let [descriptors, driver, device] = self.areas;
        match area {
            Area::Descriptors => descriptors,
            Area::Driver => driver,
            Area::Device => device,
        }
    }

    pub(super) fn area_mut(&mut self, area: Area) -> &mut u64 {
        let [descriptors, driver, device] = &mut self.areas;
        match area {
            Area::Descriptors => descriptors,
            Area::Driver => driver,
            Area::Device => device,
        }
    }
}

/// The low half of an address, and the high one.
pub(super) fn halves(address: u64) -> [u32; 2] {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = address.to_le_bytes();
    [u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([b4, b5, b6, b7])]
}
