//! The driver's ways to a device: MMIO, PCI found by walking its configuration space, and PCI
//! through the window in that space alone.

use std::sync::Arc;

use vionet::transport::{MmioNic, PciNic};
use vionet_spec::{mmio, pci};
use virtio_drivers::transport::pci::bus::{
    BarInfo, Command, ConfigurationAccess, DeviceFunction, MemoryBarType, PciRoot,
};
use virtio_drivers::transport::pci::virtio_device_type;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Registers with offsets of their own.
trait Bytes {
    fn read(&self, structure: u8, offset: u64, data: &mut [u8]);
    fn write(&self, structure: u8, offset: u64, data: &[u8]);

    fn read_32(&self, structure: u8, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.read(structure, offset, &mut data);
        u32::from_le_bytes(data)
    }
    fn read_16(&self, structure: u8, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.read(structure, offset, &mut data);
        u16::from_le_bytes(data)
    }
    fn read_8(&self, structure: u8, offset: u64) -> u8 {
        let mut data = [0];
        self.read(structure, offset, &mut data);
        data[0]
    }
    fn write_64(&self, offset: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.write(pci::CAP_COMMON, offset, &bytes[..4]);
        self.write(pci::CAP_COMMON, offset + 4, &bytes[4..]);
    }
}

/// The driver's side of MMIO.
pub(crate) struct Mmio(pub(crate) Arc<MmioNic>);

impl Mmio {
    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn set_64(&self, offset: u64, value: u64) {
        self.set(offset, value as u32);
        self.set(offset + 4, (value >> 32) as u32);
    }
}

impl Transport for Mmio {
    fn device_type(&self) -> DeviceType {
        assert_eq!(self.get(mmio::MAGIC_VALUE), mmio::MAGIC, "MMIO-01");
        assert_eq!(self.get(mmio::VERSION), 2, "MMIO-02");
        DeviceType::try_from(self.get(mmio::DEVICE_ID)).unwrap()
    }
    fn read_device_features(&mut self) -> u64 {
        self.set(mmio::DEVICE_FEATURES_SEL, 0);
        let low = self.get(mmio::DEVICE_FEATURES);
        self.set(mmio::DEVICE_FEATURES_SEL, 1);
        u64::from(low) | u64::from(self.get(mmio::DEVICE_FEATURES)) << 32
    }
    fn write_driver_features(&mut self, features: u64) {
        for (select, word) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            self.set(mmio::DRIVER_FEATURES_SEL, select as u32);
            self.set(mmio::DRIVER_FEATURES, word);
        }
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(mmio::QUEUE_SEL, queue.into());
        self.get(mmio::QUEUE_SIZE_MAX)
    }
    fn notify(&mut self, queue: u16) {
        self.set(mmio::QUEUE_NOTIFY, queue.into());
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.get(mmio::STATUS))
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.set(mmio::STATUS, status.bits());
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.set(mmio::QUEUE_SEL, queue.into());
        self.set(mmio::QUEUE_SIZE, size);
        self.set_64(mmio::QUEUE_DESC_LOW, descriptors);
        self.set_64(mmio::QUEUE_DRIVER_LOW, driver);
        self.set_64(mmio::QUEUE_DEVICE_LOW, device);
        self.set(mmio::QUEUE_READY, 1);
    }
    fn queue_unset(&mut self, queue: u16) {
        self.set(mmio::QUEUE_SEL, queue.into());
        self.set(mmio::QUEUE_READY, 0);
        while self.get(mmio::QUEUE_READY) != 0 {}
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(mmio::QUEUE_SEL, queue.into());
        self.get(mmio::QUEUE_READY) != 0
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        let reasons = self.get(mmio::INTERRUPT_STATUS);
        self.set(mmio::INTERRUPT_ACK, reasons);
        InterruptStatus::from_bits_retain(reasons)
    }
    fn read_config_generation(&self) -> u32 {
        self.get(mmio::CONFIG_GENERATION)
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        self.0.read(mmio::CONFIG + offset as u64, value.as_mut_bytes());
        Ok(value)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, at: usize, value: T) -> Result<()> {
        self.0.write(mmio::CONFIG + at as u64, value.as_bytes());
        Ok(())
    }
}

/// A function of PCI, wherever it is.
pub(crate) trait Function: Send + Sync {
    fn read_config(&self, offset: u16, data: &mut [u8]);
    fn write_config(&self, offset: u16, data: &[u8]);
    /// In the region that has the structures.
    fn read_bar(&self, offset: u64, data: &mut [u8]);
    fn write_bar(&self, offset: u64, data: &[u8]);
    /// As after power-on.
    fn reset(&self);
    /// Where the region lies, while the function answers at it.
    fn bar_address(&self) -> Option<u64>;
}

impl Function for PciNic {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        Self::read_config(self, offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        Self::write_config(self, offset, data);
    }
    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        Self::read_bar(self, Self::BAR, offset, data);
    }
    fn write_bar(&self, offset: u64, data: &[u8]) {
        Self::write_bar(self, Self::BAR, offset, data);
    }
    fn reset(&self) {
        Self::reset(self).unwrap();
    }
    fn bar_address(&self) -> Option<u64> {
        Self::bar_address(self)
    }
}

/// A bus with the device as its only function, at 0:3.0.
struct Bus(Arc<dyn Function>);

const PLACE: DeviceFunction = DeviceFunction { bus: 0, device: 3, function: 0 };

impl ConfigurationAccess for Bus {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        let mut data = [0xff; 4];
        if function == PLACE {
            self.0.read_config(offset.into(), &mut data);
        }
        u32::from_le_bytes(data)
    }
    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        assert_eq!(function, PLACE);
        self.0.write_config(offset.into(), &data.to_le_bytes());
    }
    /// Nothing about it is dangerous: it is a handle.
    unsafe fn unsafe_clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// How the structures are reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Region,
    Window,
}

/// The driver's side of PCI, as it was found on the bus.
pub(crate) struct Pci {
    nic: Arc<dyn Function>,
    /// Offset in the region and length of each structure, by its type.
    structures: [(u32, u32); 5],
    multiplier: u32,
    way: Way,
    window: u8,
}

impl Pci {
    /// Finds the device on the bus, gives it an address, and walks its capabilities.
    pub(crate) fn probe(nic: Arc<dyn Function>, way: Way) -> Self {
        // As after power-on, whoever has driven it before.
        nic.reset();
        let mut root = PciRoot::new(Bus(Arc::clone(&nic)));
        let found: Vec<_> = root.enumerate_bus(0).collect();
        assert_eq!(found.len(), 1);
        let (place, info) = &found[0];
        assert_eq!(virtio_device_type(info), Some(DeviceType::Network), "PCID-02, PCID-03");
        assert_eq!((info.class, info.subclass), (2, 0));
        let bar = root.bar_info(*place, 0).unwrap().expect("a region");
        let BarInfo::Memory { address_type, prefetchable, address, size } = bar else {
            panic!("no memory");
        };
        assert_eq!((address_type, prefetchable), (MemoryBarType::Width64, false));
        assert_eq!((address, size), (0, PciNic::BAR_LEN));
        let home = 0x40_1234_0000;
        root.set_bar_64(*place, 0, home);
        assert_eq!(nic.bar_address(), None, "it does not answer yet");
        root.set_command(*place, Command::MEMORY_SPACE | Command::BUS_MASTER);
        assert_eq!(nic.bar_address(), Some(home));
        let config = Bus(Arc::clone(&nic));
        let (mut structures, mut multiplier, mut window) = ([(0, 0); 5], 0, 0);
        for capability in root.capabilities(*place) {
            if capability.id != pci::CAPABILITY_VENDOR {
                let others = [pci::CAPABILITY_MSIX, pci::CAPABILITY_EXPRESS, pci::CAPABILITY_POWER];
                assert!(others.contains(&capability.id));
                continue;
            }
            let word = |field: u16| config.read_word(*place, capability.offset + field as u8);
            let kind = (capability.private_header >> 8) as u8;
            assert_eq!(word(pci::CAP_BAR) & 0xff, 0);
            structures[usize::from(kind) - 1] = (word(pci::CAP_OFFSET), word(pci::CAP_LENGTH));
            match kind {
                pci::CAP_NOTIFY => multiplier = word(pci::CAP_MORE),
                pci::CAP_PCI => window = capability.offset,
                _ => {}
            }
        }
        Self { nic, structures, multiplier, way, window }
    }

    fn place(&self, structure: u8, offset: u64, len: usize) -> u64 {
        let (start, room) = self.structures[usize::from(structure) - 1];
        assert!(offset + len as u64 <= room.into(), "{structure}: {offset:#x}");
        u64::from(start) + offset
    }

    fn open_window(&self, offset: u64, len: usize) {
        let at = |field: u16| u16::from(self.window) + field;
        self.nic.write_config(at(pci::CAP_BAR), &[0]);
        self.nic.write_config(at(pci::CAP_OFFSET), &(offset as u32).to_le_bytes());
        self.nic.write_config(at(pci::CAP_LENGTH), &(len as u32).to_le_bytes());
    }
}

impl Bytes for Pci {
    fn read(&self, structure: u8, offset: u64, data: &mut [u8]) {
        let at = self.place(structure, offset, data.len());
        if self.way == Way::Region {
            return self.nic.read_bar(at, data);
        }
        self.open_window(at, data.len());
        let mut word = [0xaa; 4];
        self.nic.read_config(u16::from(self.window) + pci::CAP_MORE, &mut word);
        data.copy_from_slice(&word[..data.len()]);
    }

    fn write(&self, structure: u8, offset: u64, data: &[u8]) {
        let at = self.place(structure, offset, data.len());
        if self.way == Way::Region {
            return self.nic.write_bar(at, data);
        }
        self.open_window(at, data.len());
        let mut word = [0xaa; 4];
        word[..data.len()].copy_from_slice(data);
        self.nic.write_config(u16::from(self.window) + pci::CAP_MORE, &word);
    }
}

impl Transport for Pci {
    fn device_type(&self) -> DeviceType {
        DeviceType::Network
    }
    fn read_device_features(&mut self) -> u64 {
        let word = |select: u32| {
            let at = pci::COMMON_DEVICE_FEATURE_SELECT;
            self.write(pci::CAP_COMMON, at, &select.to_le_bytes());
            u64::from(self.read_32(pci::CAP_COMMON, pci::COMMON_DEVICE_FEATURE))
        };
        word(0) | word(1) << 32
    }
    fn write_driver_features(&mut self, features: u64) {
        for (select, word) in [features as u32, (features >> 32) as u32].into_iter().enumerate() {
            let (select, word) = ((select as u32).to_le_bytes(), word.to_le_bytes());
            self.write(pci::CAP_COMMON, pci::COMMON_DRIVER_FEATURE_SELECT, &select);
            self.write(pci::CAP_COMMON, pci::COMMON_DRIVER_FEATURE, &word);
        }
    }
    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_SELECT, &queue.to_le_bytes());
        self.read_16(pci::CAP_COMMON, pci::COMMON_QUEUE_SIZE).into()
    }
    fn notify(&mut self, queue: u16) {
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_SELECT, &queue.to_le_bytes());
        let place = self.read_16(pci::CAP_COMMON, pci::COMMON_QUEUE_NOTIFY_OFF);
        let place = u64::from(place) * u64::from(self.multiplier);
        self.write(pci::CAP_NOTIFY, place, &queue.to_le_bytes());
    }
    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_retain(self.read_8(pci::CAP_COMMON, pci::COMMON_STATUS).into())
    }
    fn set_status(&mut self, status: DeviceStatus) {
        self.write(pci::CAP_COMMON, pci::COMMON_STATUS, &[status.bits() as u8]);
    }
    fn set_guest_page_size(&mut self, _: u32) {}
    fn requires_legacy_layout(&self) -> bool {
        false
    }
    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_SELECT, &queue.to_le_bytes());
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_SIZE, &(size as u16).to_le_bytes());
        self.write_64(pci::COMMON_QUEUE_DESC, descriptors);
        self.write_64(pci::COMMON_QUEUE_DRIVER, driver);
        self.write_64(pci::COMMON_QUEUE_DEVICE, device);
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_ENABLE, &1_u16.to_le_bytes());
    }
    /// The driver leaves queues alone here; it resets the device.
    fn queue_unset(&mut self, _: u16) {
        self.set_status(DeviceStatus::empty());
        while !self.get_status().is_empty() {}
    }
    fn queue_used(&mut self, queue: u16) -> bool {
        self.write(pci::CAP_COMMON, pci::COMMON_QUEUE_SELECT, &queue.to_le_bytes());
        self.read_16(pci::CAP_COMMON, pci::COMMON_QUEUE_ENABLE) == 1
    }
    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::from_bits_retain(self.read_8(pci::CAP_ISR, 0).into())
    }
    fn read_config_generation(&self) -> u32 {
        self.read_8(pci::CAP_COMMON, pci::COMMON_CONFIG_GENERATION).into()
    }
    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        let mut value = T::new_zeroed();
        for (at, byte) in (offset as u64..).zip(value.as_mut_bytes()) {
            *byte = self.read_8(pci::CAP_DEVICE, at);
        }
        Ok(value)
    }
    fn write_config_space<T: IntoBytes + Immutable>(&mut self, at: usize, value: T) -> Result<()> {
        for (at, byte) in (at as u64..).zip(value.as_bytes()) {
            self.write(pci::CAP_DEVICE, at, &[*byte]);
        }
        Ok(())
    }
}
