//! The guest's TCP/IP stack: smoltcp over our [`Nic`].

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::discovery::Heard;
use crate::error::GuestError;
use crate::nic::{FRAME_MAX, Nic, Received};

/// A [`Nic`] as smoltcp wants its devices. What goes wrong below is kept for the guest to find.
///
/// smoltcp takes frames until there are none. A device that always has one more does not keep it
/// for ever: buffers that are read go back only with [`Nic::flush`], so a round takes one ringful.
pub(crate) struct Link {
    pub(crate) nic: Nic,
    pub(crate) failed: Option<GuestError>,
    /// The largest IP packet, in bytes.
    pub(crate) mtu: u16,
    /// What frames say that smoltcp does not tell; read while the guest wants to know.
    pub(crate) heard: Option<Heard>,
    arrived: Box<[u8]>,
    leaving: Box<[u8]>,
}

impl Link {
    pub(crate) fn new(nic: Nic, mtu: u16) -> Self {
        let room = || vec![0; FRAME_MAX].into_boxed_slice();
        let (arrived, leaving) = (room(), room());
        Self { nic, failed: None, mtu, heard: None, arrived, leaving }
    }

    /// The length of the next good frame, in `arrived`. Nothing is taken that could not be
    /// answered.
    fn next(&mut self) -> Result<Option<usize>, GuestError> {
        while self.nic.can_send()? {
            match self.nic.receive(&mut self.arrived)? {
                Received::Frame(len) => return Ok(Some(len)),
                Received::Damaged => {}
                Received::Nothing => break,
            }
        }
        Ok(None)
    }

    /// What `found` holds; an error is kept, and nothing found.
    fn keep<T>(&mut self, found: Result<T, GuestError>) -> Option<T> {
        found.map_err(|error| self.failed = Some(error)).ok()
    }

    fn leaving(&mut self) -> Leaving<'_> {
        Leaving { nic: &mut self.nic, failed: &mut self.failed, room: &mut self.leaving }
    }
}

pub(crate) struct Arrived<'l>(&'l [u8]);

pub(crate) struct Leaving<'l> {
    nic: &'l mut Nic,
    failed: &'l mut Option<GuestError>,
    room: &'l mut [u8],
}

impl Device for Link {
    type RxToken<'l> = Arrived<'l>;
    type TxToken<'l> = Leaving<'l>;

    fn receive(&mut self, _now: Instant) -> Option<(Arrived<'_>, Leaving<'_>)> {
        let next = self.next();
        let len = self.keep(next)??;
        let frame = self.arrived.get(..len)?;
        if let Some(heard) = &mut self.heard {
            heard.listen(frame);
        }
        let leaving =
            Leaving { nic: &mut self.nic, failed: &mut self.failed, room: &mut self.leaving };
        Some((Arrived(frame), leaving))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Leaving<'_>> {
        let room = self.nic.can_send();
        self.keep(room)?.then(|| self.leaving())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        const ETHERNET: usize = 14;
        let mut checksum = ChecksumCapabilities::default();
        // The card verifies what arrives, and what leaves may be left open.
        let ours = if self.nic.leaves_open() { Checksum::None } else { Checksum::Tx };
        checksum.tcp = ours;
        checksum.udp = ours;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu).saturating_add(ETHERNET);
        capabilities.checksum = checksum;
        capabilities
    }
}

impl smoltcp::phy::RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl smoltcp::phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        // smoltcp keeps to the MTU that it is told; should it not, the frame goes nowhere.
        let Some(frame) = self.room.get_mut(..len) else { return write(&mut vec![0; len]) };
        let result = write(frame);
        if let Err(error) = self.nic.send(frame) {
            *self.failed = Some(error);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front_end::FrontEnd;
    use crate::model::{Device as Other, nodding};

    #[test]
    fn a_frame_that_could_not_be_answered_waits() {
        let nic = Nic::over(FrontEnd::over(nodding(u64::MAX)).unwrap()).unwrap();
        let mut link = Link::new(nic, 1500);
        let (mut rx, mut tx) = {
            let port = link.nic.port();
            let space = &port.memory.space;
            (Other::of(space, port.rx.place()), Other::of(space, port.tx.place()))
        };
        while let Some(leaving) = link.transmit(Instant::ZERO) {
            smoltcp::phy::TxToken::consume(leaving, 60, |frame| frame.fill(0));
        }
        link.nic.flush();
        let (id, descriptor) = rx.take().unwrap();
        let mut header = [0; 12];
        header[10] = 1;
        link.nic.port().memory.write(descriptor.addr, &header).unwrap();
        rx.put(id.into(), 72);
        rx.publish();
        assert!(link.receive(Instant::ZERO).is_none());
        let (id, _) = tx.take().unwrap();
        tx.put(id.into(), 0);
        tx.publish();
        assert!(link.receive(Instant::ZERO).is_some());
        assert!(link.failed.is_none());
    }
}
