//! The registers that both buses have, by what they are for.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vionet::endpoint::{Endpoint, OpenError};
use vionet::state::{RestoreError, SaveError};
use vionet::transport::{BarMove, MmioNic, PciNic, Unsettled};
use vionet::{OpError, Report, Snapshot, State};
use vionet_raw::AddressSpace;
use vionet_spec::{mmio, pci};

pub(crate) trait Front: Send + Sync {
    fn status(&self) -> u8;
    fn set_status(&self, status: u8);
    /// A word of the features offered.
    fn offered(&self, word: u32) -> u32;
    fn choose(&self, word: u32, bits: u32);
    fn select(&self, queue: u32);
    fn size_max(&self) -> u32;
    fn set_size(&self, size: u32);
    fn set_areas(&self, areas: [u64; 3]);
    fn enable(&self);
    fn is_enabled(&self) -> bool;
    fn reset_queue(&self);
    fn is_resetting(&self) -> bool;
    fn kick(&self, queue: u16);
    fn generation(&self) -> u32;
    fn config(&self, at: u64, data: &mut [u8]);
    fn write_config(&self, at: u64, data: &[u8]);
    /// Why there was an interrupt; none from now on.
    fn take_reasons(&self) -> u8;
    fn doorbell(&self, queue: u16) -> Arc<OwnedFd>;
    fn tend(&self) -> Option<Report>;
    fn pause(&self) -> Result<(), Unsettled>;
    fn resume(&self) -> Result<(), Unsettled>;
    fn set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled>;
    fn set_link(&self, up: bool) -> Result<(), OpError>;
    fn turn_link(&self, up: bool) {
        self.set_link(up).unwrap();
    }
    fn announce(&self);
    fn save(&self) -> Result<State, SaveError>;
    fn restore(&self, state: &State) -> Result<(), RestoreError>;
    fn snapshot(&self) -> Snapshot;
    fn replace(
        &self,
        make: &dyn Fn() -> Result<Box<dyn Endpoint>, OpenError>,
    ) -> Result<(), OpError>;
}

pub(crate) fn get(nic: &MmioNic, offset: u64) -> u32 {
    let mut data = [0xa5; 4];
    nic.read(offset, &mut data);
    u32::from_le_bytes(data)
}

pub(crate) fn set(nic: &MmioNic, offset: u64, value: u32) {
    nic.write(offset, &value.to_le_bytes());
}

/// A register of the common configuration, little-endian.
pub(crate) fn common(nic: &PciNic, offset: u64, len: usize) -> u64 {
    let mut data = [0xa5; 8];
    nic.read_bar(0, offset, &mut data[..len]);
    data[len..].fill(0);
    u64::from_le_bytes(data)
}

pub(crate) fn set_common(nic: &PciNic, offset: u64, value: u64, len: usize) {
    nic.write_bar(0, offset, &value.to_le_bytes()[..len]);
}

pub(crate) fn config(nic: &PciNic, at: u16, len: usize) -> u32 {
    let mut data = [0xa5; 4];
    nic.read_config(at, &mut data[..len]);
    data[len..].fill(0);
    u32::from_le_bytes(data)
}

pub(crate) fn set_config(nic: &PciNic, at: u16, value: u32, len: usize) -> Option<BarMove> {
    nic.write_config(at, &value.to_le_bytes()[..len])
}

/// Where the capability with this id lies in the configuration space.
pub(crate) fn capability(nic: &PciNic, id: u8) -> u16 {
    capability_or_none(nic, id).expect("the capability")
}

/// The same, if the function answers.
pub(crate) fn capability_or_none(nic: &PciNic, id: u8) -> Option<u16> {
    let mut at = config(nic, pci::HEADER_CAPABILITIES, 1) as u16;
    for _ in 0..16 {
        if config(nic, at, 1) == u32::from(id) {
            return Some(at);
        }
        at = config(nic, at + 1, 1) as u16;
    }
    None
}

/// Lets the function answer at its region, and access memory.
pub(crate) fn switch_on(nic: &PciNic) {
    let command = pci::COMMAND_MEMORY | pci::COMMAND_MASTER;
    nic.write_config(pci::HEADER_COMMAND, &command.to_le_bytes());
}

impl Front for MmioNic {
    fn status(&self) -> u8 {
        get(self, mmio::STATUS) as u8
    }
    fn set_status(&self, status: u8) {
        set(self, mmio::STATUS, status.into());
    }
    fn offered(&self, word: u32) -> u32 {
        set(self, mmio::DEVICE_FEATURES_SEL, word);
        get(self, mmio::DEVICE_FEATURES)
    }
    fn choose(&self, word: u32, bits: u32) {
        set(self, mmio::DRIVER_FEATURES_SEL, word);
        set(self, mmio::DRIVER_FEATURES, bits);
    }
    fn select(&self, queue: u32) {
        set(self, mmio::QUEUE_SEL, queue);
    }
    fn size_max(&self) -> u32 {
        get(self, mmio::QUEUE_SIZE_MAX)
    }
    fn set_size(&self, size: u32) {
        set(self, mmio::QUEUE_SIZE, size);
    }
    fn set_areas(&self, areas: [u64; 3]) {
        let places = [mmio::QUEUE_DESC_LOW, mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DEVICE_LOW];
        for (place, area) in places.into_iter().zip(areas) {
            set(self, place, area as u32);
            set(self, place + 4, (area >> 32) as u32);
        }
    }
    fn enable(&self) {
        set(self, mmio::QUEUE_READY, 1);
    }
    fn is_enabled(&self) -> bool {
        get(self, mmio::QUEUE_READY) == 1
    }
    fn reset_queue(&self) {
        set(self, mmio::QUEUE_RESET, 1);
    }
    fn is_resetting(&self) -> bool {
        get(self, mmio::QUEUE_RESET) == 1
    }
    fn kick(&self, queue: u16) {
        set(self, mmio::QUEUE_NOTIFY, queue.into());
    }
    fn generation(&self) -> u32 {
        get(self, mmio::CONFIG_GENERATION)
    }
    fn config(&self, at: u64, data: &mut [u8]) {
        self.read(mmio::CONFIG + at, data);
    }
    fn write_config(&self, at: u64, data: &[u8]) {
        self.write(mmio::CONFIG + at, data);
    }
    fn take_reasons(&self) -> u8 {
        let reasons = get(self, mmio::INTERRUPT_STATUS);
        set(self, mmio::INTERRUPT_ACK, reasons);
        reasons as u8
    }
    fn doorbell(&self, queue: u16) -> Arc<OwnedFd> {
        Self::doorbell(self, vionet::QueueIndex(queue)).unwrap()
    }
    fn tend(&self) -> Option<Report> {
        Self::tend(self)
    }
    fn pause(&self) -> Result<(), Unsettled> {
        Self::pause(self)
    }
    fn resume(&self) -> Result<(), Unsettled> {
        Self::resume(self)
    }
    fn set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
        Self::set_memory(self, memory)
    }
    fn set_link(&self, up: bool) -> Result<(), OpError> {
        Self::set_link(self, up)
    }
    fn announce(&self) {
        Self::announce(self).unwrap();
    }
    fn save(&self) -> Result<State, SaveError> {
        Self::save(self)
    }
    fn restore(&self, state: &State) -> Result<(), RestoreError> {
        Self::restore(self, state)
    }
    fn snapshot(&self) -> Snapshot {
        Self::snapshot(self)
    }
    fn replace(
        &self,
        make: &dyn Fn() -> Result<Box<dyn Endpoint>, OpenError>,
    ) -> Result<(), OpError> {
        Self::replace_endpoint(self, make)
    }
}

pub(crate) const ISR: u64 = 0x1000;
pub(crate) const DEVICE: u64 = 0x2000;

impl Front for PciNic {
    fn status(&self) -> u8 {
        common(self, pci::COMMON_STATUS, 1) as u8
    }
    fn set_status(&self, status: u8) {
        set_common(self, pci::COMMON_STATUS, status.into(), 1);
    }
    fn offered(&self, word: u32) -> u32 {
        set_common(self, pci::COMMON_DEVICE_FEATURE_SELECT, word.into(), 4);
        common(self, pci::COMMON_DEVICE_FEATURE, 4) as u32
    }
    fn choose(&self, word: u32, bits: u32) {
        set_common(self, pci::COMMON_DRIVER_FEATURE_SELECT, word.into(), 4);
        set_common(self, pci::COMMON_DRIVER_FEATURE, bits.into(), 4);
    }
    fn select(&self, queue: u32) {
        set_common(self, pci::COMMON_QUEUE_SELECT, queue.into(), 2);
    }
    fn size_max(&self) -> u32 {
        common(self, pci::COMMON_QUEUE_SIZE, 2) as u32
    }
    fn set_size(&self, size: u32) {
        set_common(self, pci::COMMON_QUEUE_SIZE, size.into(), 2);
    }
    fn set_areas(&self, areas: [u64; 3]) {
        let places = [pci::COMMON_QUEUE_DESC, pci::COMMON_QUEUE_DRIVER, pci::COMMON_QUEUE_DEVICE];
        for (place, area) in places.into_iter().zip(areas) {
            set_common(self, place, area & 0xffff_ffff, 4);
            set_common(self, place + 4, area >> 32, 4);
        }
    }
    fn enable(&self) {
        set_common(self, pci::COMMON_QUEUE_ENABLE, 1, 2);
    }
    fn is_enabled(&self) -> bool {
        common(self, pci::COMMON_QUEUE_ENABLE, 2) == 1
    }
    fn reset_queue(&self) {
        set_common(self, pci::COMMON_QUEUE_RESET, 1, 2);
    }
    fn is_resetting(&self) -> bool {
        common(self, pci::COMMON_QUEUE_RESET, 2) == 1
    }
    fn kick(&self, queue: u16) {
        let at = self.doorbell_offset(vionet::QueueIndex(queue)).unwrap();
        set_common(self, at, queue.into(), 2);
    }
    fn generation(&self) -> u32 {
        common(self, pci::COMMON_CONFIG_GENERATION, 1) as u32
    }
    fn config(&self, at: u64, data: &mut [u8]) {
        self.read_bar(0, DEVICE + at, data);
    }
    fn write_config(&self, at: u64, data: &[u8]) {
        self.write_bar(0, DEVICE + at, data);
    }
    fn take_reasons(&self) -> u8 {
        common(self, ISR, 1) as u8
    }
    fn doorbell(&self, queue: u16) -> Arc<OwnedFd> {
        Self::doorbell(self, vionet::QueueIndex(queue)).unwrap()
    }
    fn tend(&self) -> Option<Report> {
        Self::tend(self)
    }
    fn pause(&self) -> Result<(), Unsettled> {
        Self::pause(self)
    }
    fn resume(&self) -> Result<(), Unsettled> {
        Self::resume(self)
    }
    fn set_memory(&self, memory: Arc<AddressSpace>) -> Result<(), Unsettled> {
        Self::set_memory(self, memory)
    }
    fn set_link(&self, up: bool) -> Result<(), OpError> {
        Self::set_link(self, up)
    }
    fn announce(&self) {
        Self::announce(self).unwrap();
    }
    fn save(&self) -> Result<State, SaveError> {
        Self::save(self)
    }
    fn restore(&self, state: &State) -> Result<(), RestoreError> {
        Self::restore(self, state)
    }
    fn snapshot(&self) -> Snapshot {
        Self::snapshot(self)
    }
    fn replace(
        &self,
        make: &dyn Fn() -> Result<Box<dyn Endpoint>, OpenError>,
    ) -> Result<(), OpError> {
        Self::replace_endpoint(self, make)
    }
}
