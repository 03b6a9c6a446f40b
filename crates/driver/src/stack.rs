//! The guest's TCP/IP stack: smoltcp over our [`Nic`].

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::error::GuestError;
use crate::nic::Nic;

/// A [`Nic`] as smoltcp wants its devices. What goes wrong below is kept for the guest to find.
pub(crate) struct Link {
    pub(crate) nic: Nic,
    pub(crate) failed: Option<GuestError>,
    mtu: usize,
}

impl Link {
    pub(crate) fn new(nic: Nic, mtu: u16) -> Self {
        Self { nic, failed: None, mtu: usize::from(mtu) }
    }
}

pub(crate) struct Arrived(Vec<u8>);

pub(crate) struct Leaving<'l>(&'l mut Link);

impl Device for Link {
    type RxToken<'l> = Arrived;
    type TxToken<'l> = Leaving<'l>;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived, Leaving<'_>)> {
        match self.nic.receive() {
            Ok(frame) => frame.map(|frame| (Arrived(frame), Leaving(self))),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        match self.nic.can_send() {
            Ok(true) => Some(Leaving(self)),
            Ok(false) => None,
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        const ETHERNET: usize = 14;
        let mut checksum = ChecksumCapabilities::default();
        // The device has validated what it delivers, and completes what is left open (CSUM).
        if self.nic.leaves_open() {
            checksum.tcp = Checksum::None;
            checksum.udp = Checksum::None;
        }
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu.saturating_add(ETHERNET);
        capabilities.checksum = checksum;
        capabilities
    }
}

impl smoltcp::phy::RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl smoltcp::phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        let sent = self.0.nic.can_send().and_then(|_| self.0.nic.send(&mut frame));
        if let Err(error) = sent {
            self.0.failed = Some(error);
        }
        result
    }
}
