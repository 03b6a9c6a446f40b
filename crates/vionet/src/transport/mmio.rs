//! The device on MMIO (VIRTIO 1.4 §4.2): a window of registers and one interrupt line.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use vionet_raw::AddressSpace;
use vionet_spec::mmio;
use vionet_spec::net::CONFIG_LEN;
use vionet_spec::pci::{ISR_CONFIG, ISR_QUEUE, TYPE_NET};

use super::doorbell::Doorbells;
use super::draft::{Area, Half};
use super::line::{Line, Wires};
use super::plane::Plane;
use super::registers::Field;
use super::turns::{Turns, Unsettled};
use super::{Lines, Wiring, WiringError};
use crate::device::Device;
use crate::endpoint::{Endpoint, OpenError};
use crate::nic::{Op, OpError, QueueIndex};
use crate::pair::Limits;
use crate::run::Report;
use crate::snapshot::Snapshot;
use crate::state::{Bus, RestoreError, SaveError, State};

/// What `VendorID` reads: "vion", in little-endian order.
const VENDOR: u32 = 0x6e6f_6976;

/// A register of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    /// Reads the same always.
    Constant(u32),
    /// Can be read alone.
    Read(Field),
    /// Can be written alone.
    Write(Field),
    ReadWrite(Field),
    Notify,
    InterruptStatus,
    InterruptAck,
}

fn register(offset: u64) -> Option<Register> {
    use Register::{Constant, Read, ReadWrite, Write};
    Some(match offset {
        mmio::MAGIC_VALUE => Constant(mmio::MAGIC),
        mmio::VERSION => Constant(mmio::VERSION_2),
        mmio::DEVICE_ID => Constant(u32::from(TYPE_NET)),
        mmio::VENDOR_ID => Constant(VENDOR),
        mmio::DEVICE_FEATURES => Read(Field::DeviceFeature),
        mmio::DEVICE_FEATURES_SEL => Write(Field::DeviceFeatureSelect),
        mmio::DRIVER_FEATURES => Write(Field::DriverFeature),
        mmio::DRIVER_FEATURES_SEL => Write(Field::DriverFeatureSelect),
        mmio::QUEUE_SEL => Write(Field::QueueSelect),
        mmio::QUEUE_SIZE_MAX => Read(Field::QueueSizeMax),
        mmio::QUEUE_SIZE => Write(Field::QueueSize),
        mmio::QUEUE_READY => ReadWrite(Field::QueueReady),
        mmio::QUEUE_NOTIFY => Register::Notify,
        mmio::INTERRUPT_STATUS => Register::InterruptStatus,
        mmio::INTERRUPT_ACK => Register::InterruptAck,
        mmio::STATUS => ReadWrite(Field::Status),
        mmio::QUEUE_DESC_LOW => Write(Field::QueueArea(Area::Descriptors, Half::Low)),
        mmio::QUEUE_DESC_HIGH => Write(Field::QueueArea(Area::Descriptors, Half::High)),
        mmio::QUEUE_DRIVER_LOW => Write(Field::QueueArea(Area::Driver, Half::Low)),
        mmio::QUEUE_DRIVER_HIGH => Write(Field::QueueArea(Area::Driver, Half::High)),
        mmio::QUEUE_DEVICE_LOW => Write(Field::QueueArea(Area::Device, Half::Low)),
        mmio::QUEUE_DEVICE_HIGH => Write(Field::QueueArea(Area::Device, Half::High)),
        mmio::SHM_LEN_LOW | mmio::SHM_LEN_HIGH | mmio::SHM_BASE_LOW | mmio::SHM_BASE_HIGH => {
            Constant(mmio::SHM_ABSENT)
        }
        mmio::QUEUE_RESET => ReadWrite(Field::QueueReset),
        mmio::CONFIG_GENERATION => Read(Field::ConfigGeneration),
        _ => return None,
    })
}

const _: () = assert!(mmio::CONFIG + 0x20 <= MmioNic::WINDOW_LEN && CONFIG_LEN <= 0x20);

/// A NIC on MMIO. All methods may be called from any thread.
///
/// Dropping it takes every pair back from its worker, ends the workers, and drops the endpoint.
pub struct MmioNic {
    plane: Turns<Line>,
    line: Arc<Line>,
    doorbells: Arc<Doorbells>,
}

impl Wires for Line {
    fn queue(&self, _index: QueueIndex) {
        self.add(ISR_QUEUE);
    }

    fn config(&self) {
        self.add(ISR_CONFIG);
    }

    fn reset(&self) {
        self.take(u8::MAX);
    }
}

impl MmioNic {
    /// Bytes of the window: registers, and the device configuration from 0x100 on.
    pub const WINDOW_LEN: u64 = 0x200;

    /// Puts a device behind the registers of MMIO. Of [`Lines`] only `level` is used.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new(device: Device, wiring: &Wiring) -> Result<Self, WiringError> {
        let lines: Arc<dyn Lines> = Arc::clone(&wiring.lines);
        let line = Arc::new(Line::new(lines, true));
        let plane = Plane::new(device, wiring, Arc::clone(&line))?;
        let doorbells = Arc::clone(plane.doorbells());
        Ok(Self { plane: Turns::new(plane), line, doorbells })
    }

    /// A read at `offset` of the window. What is no register reads 0, as does a control register
    /// in another width than its own 32 bits (MMIO-24, MMIO-25).
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            return self.plane.read(|plane| plane.read_config(offset, data));
        }
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let value = match register(offset) {
            Some(Register::Constant(value)) => value,
            Some(Register::Read(field) | Register::ReadWrite(field)) => {
                self.plane.read(|plane| plane.read(field))
            }
            Some(Register::InterruptStatus) => u32::from(self.line.reasons()),
            Some(Register::Write(_) | Register::Notify | Register::InterruptAck) | None => 0,
        };
        *data = value.to_le_bytes();
    }

    /// A write at `offset` of the window. What cannot be written so is ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        // No field of the device configuration can be written.
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match register(offset) {
            Some(Register::Write(field) | Register::ReadWrite(field)) => {
                self.plane.write(|plane| plane.write(field, value));
            }
            Some(Register::Notify) => {
                let (Some(()) | None) = self.doorbells.kick(value);
            }
            Some(Register::InterruptAck) => {
                let [reasons, ..] = data;
                self.line.take(reasons);
            }
            Some(Register::Constant(_) | Register::Read(_) | Register::InterruptStatus) | None => {}
        }
    }
}

impl MmioNic {
    /// A reset of the machine: as if the driver had written 0 to the status, and waited.
    ///
    /// # Errors
    /// When a worker does not give its pair back within 11 seconds.
    pub fn reset(&self) -> Result<(), Unsettled> {
        self.plane.settle(Plane::reset)
    }

    /// The NIC at rest, to go on elsewhere; it stays paused.
    ///
    /// # Errors
    /// When it is not paused, or a worker does not come to rest within 11 seconds.
    pub fn save(&self) -> Result<State, SaveError> {
        let save = |plane: &mut Plane<Line>| {
            let mut body = plane.save()?;
            body.bus = Bus::Mmio { reasons: self.line.reasons() };
            Ok(State(body))
        };
        self.plane.at_rest(save).unwrap_or(Err(SaveError::Unsettled))
    }

    /// Takes a saved state, from whatever bus: into a NIC that no driver has used since it was
    /// made or reset. It is paused then; [`Self::resume`] lets it go on.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing has changed then.
    pub fn restore(&self, state: &State) -> Result<(), RestoreError> {
        let reasons = state.0.bus.checked_reasons()?;
        let restore = |plane: &mut Plane<Line>| {
            plane.restore(&state.0)?;
            self.line.restore(reasons);
            Ok(())
        };
        self.plane.at_rest(restore).unwrap_or(Err(RestoreError::Unsettled))
    }
}

impl fmt::Debug for MmioNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioNic").finish_non_exhaustive()
    }
}

super::plane::verbs!(MmioNic);
