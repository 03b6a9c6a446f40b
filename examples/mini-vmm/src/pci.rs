//! A PCI bus of two functions: a host bridge that is nothing but there, and the NIC.
//!
//! ```text
//!   ports 0xcf8, 0xcfc --> address, data --> function 0: the bridge's twelve bytes
//!   (mechanism #1)                      \--> function 1: PciNic::read_config, write_config
//!                                                          | BarMove
//!   an MMIO exit --------> region 0? -----> PciNic::read_bar, write_bar     v
//!   a kick: no exit -----> ioeventfds of the queues  <---- attach, detach
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use vionet::QueueIndex;
use vionet::transport::{BarMove, PciNic};
use vmm_sys_util::eventfd::EventFd;

use crate::failure::{Failure, Said, complain};
use crate::kvm::{self, Vm};

/// The device that the NIC is.
pub(crate) const NIC: u8 = 1;
pub(crate) const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// The last port of the data.
pub(crate) const LAST: u16 = 0xcff;

/// A host bridge by its class: Linux believes in mechanism #1 only where it finds one.
const BRIDGE: [u8; 12] = [0x86, 0x80, 0x57, 0x0d, 0, 0, 0, 0, 0, 0x00, 0x00, 0x06];

/// The bus, its bridge and the NIC on it.
pub(crate) struct Bus {
    vm: Arc<Vm>,
    nic: Arc<PciNic>,
    /// Each with its offset in the NIC's region.
    doorbells: Vec<(EventFd, u64)>,
    /// What was written to [`ADDRESS`] last. Its lock also keeps moves of the region in order.
    address: Mutex<u32>,
}

/// What an access to [`DATA`] is for.
struct Target {
    device: u8,
    register: u16,
}

impl Bus {
    pub(crate) fn new(vm: &Arc<Vm>, nic: Arc<PciNic>) -> Result<Self, Failure> {
        let mut doorbells = Vec::new();
        for index in (0..nic.queues()).map(QueueIndex) {
            if let (Some(fd), Some(offset)) = (nic.doorbell(index), nic.doorbell_offset(index)) {
                let fd = fd.try_clone().said("no descriptor for a doorbell")?;
                doorbells.push((kvm::event(fd), offset));
            }
        }
        Ok(Self { vm: Arc::clone(vm), nic, doorbells, address: Mutex::new(0) })
    }

    /// A read of the ports from [`ADDRESS`] on.
    pub(crate) fn port_in(&self, port: u16, data: &mut [u8]) {
        let address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(0xff);
        if let (ADDRESS, Ok(data)) = (port, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = address.to_le_bytes();
        }
        match target(*address, port) {
            Some(Target { device: NIC, register }) => self.nic.read_config(register, data),
            Some(Target { device: 0, register }) => {
                // Behind what it has the bridge reads 0.
                data.fill(0);
                let bytes = BRIDGE.iter().skip(register.into());
                for (to, from) in data.iter_mut().zip(bytes) {
                    *to = *from;
                }
            }
            // Nobody there: all ones.
            Some(_) | None => {}
        }
    }

    /// A write to those ports.
    pub(crate) fn port_out(&self, port: u16, data: &[u8]) {
        let mut address = self.address.lock().unwrap_or_else(PoisonError::into_inner);
        if let (ADDRESS, Ok(data)) = (port, <[u8; 4]>::try_from(data)) {
            *address = u32::from_le_bytes(data);
        } else if let Some(Target { device: NIC, register }) = target(*address, port)
            && let Some(moved) = self.nic.write_config(register, data)
        {
            self.follow(moved);
        }
    }

    /// Takes the doorbells to where the NIC's region is now.
    fn follow(&self, moved: BarMove) {
        for (doorbell, offset) in &self.doorbells {
            let at = |base: Option<u64>| base.and_then(|base| base.checked_add(*offset));
            let left = at(moved.from).map_or(Ok(()), |at| self.vm.detach(doorbell, at));
            let come = at(moved.to).map_or(Ok(()), |at| self.vm.attach(doorbell, at));
            // Without one the guest loses speed, nothing else: a kick that exits rings it as well.
            complain(left.and(come));
        }
    }

    /// A read of memory that is none. False where nothing answers.
    pub(crate) fn read(&self, at: u64, data: &mut [u8]) -> bool {
        let offset = self.offset(at);
        if let Some(offset) = offset {
            self.nic.read_bar(PciNic::BAR, offset, data);
        }
        offset.is_some()
    }

    /// A write to memory that is none. False where nothing answers.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> bool {
        let offset = self.offset(at);
        if let Some(offset) = offset {
            self.nic.write_bar(PciNic::BAR, offset, data);
        }
        offset.is_some()
    }

    fn offset(&self, at: u64) -> Option<u64> {
        let offset = at.checked_sub(self.nic.bar_address()?)?;
        (offset < PciNic::BAR_LEN).then_some(offset)
    }
}

/// Enabled in bit 31; then bus, device, function, and the register but for its two lowest bits,
/// which the port tells. (PCI Local Bus 3.0 §3.2.2.3.2)
fn target(address: u32, port: u16) -> Option<Target> {
    let [register, device, bus, enable] = address.to_le_bytes();
    let low = port.checked_sub(DATA).filter(|low| *low < 4)?;
    let is_here = enable & 0x80 != 0 && bus == 0 && device & 7 == 0;
    let register = u16::from(register & 0xfc) | low;
    is_here.then_some(Target { device: device >> 3, register })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_is_for_a_register_of_a_device_or_for_nobody() {
        let found = |address, port| target(address, port).map(|to| (to.device, to.register));
        assert_eq!(found(0x8000_0800, DATA), Some((1, 0)));
        assert_eq!(found(0x8000_0841, 0xcfe), Some((1, 0x42)));
        assert_eq!(found(0x8000_f8fc, 0xcff), Some((31, 0xff)));
        for nobody in [0x0000_0800, 0x8001_0800, 0x8000_0900] {
            assert_eq!(found(nobody, DATA), None, "off, another bus, another function");
        }
        for port in [0, ADDRESS, 0xcfb, 0xd00, u16::MAX] {
            assert_eq!(found(0x8000_0800, port), None);
        }
    }
}
