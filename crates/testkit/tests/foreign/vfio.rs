//! The function at the other end of a vfio-user socket, by the client that Cloud Hypervisor has.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use vfio_user::Client;
use vionet::transport::PciNic;
use vionet_spec::pci;

use crate::bus::Function;
use crate::hal;

const BAR: u32 = 0;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const MSIX: u32 = 2;
const UNMASK: u32 = 1 | 1 << 4;
const EVENTFD_TRIGGER: u32 = 1 << 2 | 1 << 5;

pub(crate) struct Remote(Mutex<Client>);

impl Remote {
    /// Connects, maps all memory, and has the line signal an eventfd.
    pub(crate) fn connect(path: &Path, line: &OwnedFd) -> Self {
        let mut client = Client::new(path).unwrap();
        assert!(client.region(BAR).is_some_and(|region| region.size == PciNic::BAR_LEN));
        assert!(client.region(CONFIG).is_some_and(|region| region.size >= 256));
        assert!(client.region(1).is_some_and(|region| region.size == 0));
        assert_eq!(client.get_irq_info(MSIX).unwrap().count, 4);
        assert_eq!(client.get_irq_info(INTX).unwrap().count, 1);
        client.dma_map(0, hal::START, hal::LEN as u64, hal::file().as_raw_fd()).unwrap();
        client.set_irqs(INTX, EVENTFD_TRIGGER, 0, 1, &[line.as_raw_fd()]).unwrap();
        Self(Mutex::new(client))
    }

    /// The line may fire again.
    pub(crate) fn unmask(&self) {
        self.0.lock().unwrap().set_irqs(INTX, UNMASK, 0, 1, &[]).unwrap();
    }

    /// All memory goes, and the connection with it.
    pub(crate) fn leave(&self) {
        let mut client = self.0.lock().unwrap();
        client.dma_unmap(hal::START, hal::LEN as u64).unwrap();
        client.shutdown().unwrap();
    }
}

impl Function for Remote {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.0.lock().unwrap().region_read(CONFIG, offset.into(), data).unwrap();
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        self.0.lock().unwrap().region_write(CONFIG, offset.into(), data).unwrap();
    }
    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.0.lock().unwrap().region_read(BAR, offset, data).unwrap();
    }
    fn write_bar(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().region_write(BAR, offset, data).unwrap();
    }
    fn reset(&self) {
        self.0.lock().unwrap().reset().unwrap();
    }
    fn bar_address(&self) -> Option<u64> {
        let (mut command, mut address) = ([0; 2], [0; 8]);
        self.read_config(pci::HEADER_COMMAND, &mut command);
        self.read_config(pci::HEADER_BAR0, &mut address);
        let answers = u16::from_le_bytes(command) & pci::COMMAND_MEMORY != 0;
        answers.then(|| u64::from_le_bytes(address) & !0xf)
    }
}
