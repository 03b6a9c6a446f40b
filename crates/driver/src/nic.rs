//! The guest's network card: frames in and out through a receive and a transmit queue.

use std::path::Path;
use std::time::Duration;

use vionet_frame::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, complete};
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_frame::parse::{Ip, PROTOCOL_TCP, PROTOCOL_UDP, Transport, parse};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_LEN};

use crate::error::GuestError;
use crate::front_end::FrontEnd;
use crate::port::{Await, HEAD, Port, PortPlan};

/// The longest frame: an Ethernet header and the longest IP packet.
pub const FRAME_MAX: usize = 65_550;

const SIZE: u16 = 256;
/// Bytes of a receive buffer; larger frames take several.
const RX_LEN: u32 = 16_384;
/// Bytes of a transmit buffer: header and the longest frame.
const TX_LEN: u32 = 66_560;

const NEEDED: FeatureBits =
    FeatureBits::of(&[Feature::VERSION_1, Feature::EVENT_IDX, Feature::MRG_RXBUF]);
/// What is chosen besides where it is offered.
const WANTED: FeatureBits = FeatureBits::of(&[
    Feature::CSUM,
    Feature::GUEST_CSUM,
    Feature::GUEST_TSO4,
    Feature::GUEST_TSO6,
]);

/// What a look at the receive queue has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Nothing is there.
    Nothing,
    /// A frame of this many bytes; what it leaves open the device vouches for.
    Frame(usize),
    /// A frame whose checksum is wrong; it is gone.
    Damaged,
}

/// A driver with its queues running.
pub struct Nic {
    port: Port,
    /// Transmit buffers that are ours.
    free: Vec<u16>,
    leaves_open: bool,
    /// What received frames may leave open.
    accepts: Offloads,
}

impl Nic {
    /// Attaches to the back-end at `path` and starts both queues.
    ///
    /// # Errors
    /// When the back-end cannot be reached, lacks a feature that is needed, or refuses.
    pub fn attach(path: &Path) -> Result<Self, GuestError> {
        Self::over(FrontEnd::connect(path)?)
    }

    /// Starts both queues over a session that has just begun.
    ///
    /// # Errors
    /// When the back-end lacks VERSION_1, EVENT_IDX or MRG_RXBUF, or refuses.
    pub fn over(end: FrontEnd) -> Result<Self, GuestError> {
        let plan =
            PortPlan { size: SIZE, rx_len: RX_LEN, tx_len: TX_LEN, needed: NEEDED, wanted: WANTED };
        let port = Port::open(end, plan)?;
        let leaves_open = port.features.has(Feature::CSUM);
        let accepts = accepted(port.features);
        Ok(Self { port, free: (0..SIZE).rev().collect(), leaves_open, accepts })
    }

    /// Whether checksums may be left open on the way out.
    #[must_use]
    pub fn leaves_open(&self) -> bool {
        self.leaves_open
    }

    /// Whether a frame can be sent now.
    ///
    /// # Errors
    /// When the device breaks a rule.
    pub fn can_send(&mut self) -> Result<bool, GuestError> {
        while let Some((index, len)) = self.port.tx.used()? {
            if len != 0 {
                return Err(GuestError::Device("a transmit buffer is said to be written"));
            }
            self.free.push(index);
        }
        Ok(!self.free.is_empty())
    }

    /// Queues a frame for the device; [`Self::flush`] tells it. With open checksums the checksum
    /// field of TCP and UDP is left to the device.
    ///
    /// # Errors
    /// When there is no room, or the frame is longer than [`FRAME_MAX`].
    pub fn send(&mut self, frame: &mut [u8]) -> Result<(), GuestError> {
        if frame.len() > FRAME_MAX {
            return Err(GuestError::Network("the frame is too long"));
        }
        let index = self.free.pop().ok_or(GuestError::Network("no transmit buffer is free"))?;
        let header = if self.leaves_open { leave_open(frame) } else { NetHeader::default() };
        let at = self.port.tx_at(index);
        self.port.memory.write(at, &header.encode())?;
        self.port.memory.write(at.saturating_add(HEAD.into()), frame)?;
        let len = u32::try_from(frame.len()).unwrap_or(0).saturating_add(HEAD);
        self.port.tx.lend(index, at, len);
        Ok(())
    }

    /// Makes queued frames and returned buffers visible, and kicks the device if it wants that.
    pub fn flush(&mut self) {
        self.port.flush();
    }

    /// Takes the next received frame into `room`, which has [`FRAME_MAX`] bytes. A checksum that
    /// the device left open is completed, unless the frame is one for several segments; one that
    /// the device does not vouch for is verified.
    ///
    /// # Errors
    /// When the device breaks a rule.
    pub fn receive(&mut self, room: &mut [u8]) -> Result<Received, GuestError> {
        let Some((first, len)) = self.port.rx.used()? else { return Ok(Received::Nothing) };
        if len < HEAD {
            return Err(GuestError::Device("a received frame without header"));
        }
        let mut header = [0; HDR_LEN];
        self.port.memory.read(self.port.rx_at(first), &mut header)?;
        let header = NetHeader::decode(&header);
        if header.num_buffers == 0 {
            return Err(GuestError::Device("num_buffers is 0"));
        }
        let mut end = self.take(first, HEAD, len, room, 0)?;
        for _ in 1..header.num_buffers {
            // All buffers of a frame become visible together (VIRTIO 1.4 §5.1.9.3.1).
            let next = self.port.rx.used()?;
            let (index, len) = next.ok_or(GuestError::Device("num_buffers promises too much"))?;
            end = self.take(index, 0, len, room, end)?;
        }
        let frame = room.get_mut(..end).unwrap_or(&mut []);
        let len = u32::try_from(end).unwrap_or(u32::MAX);
        let request = check(&header, len, self.accepts);
        let request = request.map_err(|_| GuestError::Device("a header that was not agreed on"))?;
        let vouched = self.accepts.contains(Offloads::CSUM) && header.flags & HDR_F_DATA_VALID != 0;
        match request.csum {
            // The checksums of its segments, which will never be.
            Some(_) if request.gso.is_some() => {}
            Some(at) => {
                let done = complete(frame, at);
                done.map_err(|_| GuestError::Device("a checksum outside of its frame"))?;
            }
            None if vouched || is_sound(frame) => {}
            None => return Ok(Received::Damaged),
        }
        Ok(Received::Frame(end))
    }

    /// Copies what follows `skip` bytes of a used buffer to `end` of `room` and lends it again;
    /// returns the new end.
    fn take(
        &mut self,
        index: u16,
        skip: u32,
        len: u32,
        room: &mut [u8],
        end: usize,
    ) -> Result<usize, GuestError> {
        if len > RX_LEN {
            return Err(GuestError::Device("more bytes than the buffer has"));
        }
        let count = usize::try_from(len.saturating_sub(skip)).unwrap_or(usize::MAX);
        let new_end = end.saturating_add(count);
        let piece = room.get_mut(end..new_end);
        let piece = piece.ok_or(GuestError::Device("a frame longer than any"))?;
        let at = self.port.rx_at(index).saturating_add(skip.into());
        self.port.memory.read(at, piece)?;
        self.port.post(index);
        Ok(new_end)
    }

    /// Sleeps until the device has something for us, or `most` has gone by. While every transmit
    /// buffer is out, only one that comes back counts: a frame could not be answered.
    ///
    /// # Errors
    /// When the back-end is gone, or says that it has given up a ring.
    pub fn wait(&mut self, most: Duration) -> Result<(), GuestError> {
        self.flush();
        let queue = if self.free.is_empty() { Await::Transmit } else { Await::Receive };
        self.port.wait(queue, most)
    }

    /// Stops both queues, in order.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn detach(self) -> Result<(), GuestError> {
        self.port.close()
    }
}

fn accepted(chosen: FeatureBits) -> Offloads {
    let offload = |(feature, offload)| if chosen.has(feature) { offload } else { Offloads::NONE };
    [
        (Feature::GUEST_CSUM, Offloads::CSUM),
        (Feature::GUEST_TSO4, Offloads::TSO4),
        (Feature::GUEST_TSO6, Offloads::TSO6),
    ]
    .map(offload)
    .into_iter()
    .fold(Offloads::NONE, Offloads::union)
}

/// The sum of the pseudo header that TCP and UDP cover.
fn pseudo_header(ip: &Ip) -> Sum {
    let len = u32::try_from(ip.end.saturating_sub(ip.l4)).unwrap_or(0);
    ip.addresses.pseudo_header(ip.protocol, len)
}

/// Whether the checksum of TCP or UDP holds; true where there is none to look at.
fn is_sound(frame: &[u8]) -> bool {
    let Ok(parsed) = parse(frame, frame.len()) else { return false };
    let Some(ip) = parsed.ip().filter(|ip| ip.fragment.is_none()) else { return true };
    match ip.transport {
        Transport::Udp(udp) if udp.checksum == 0 && ip.addresses.is_v4() => true,
        Transport::Tcp(_) | Transport::Udp(_) => {
            let covered = frame.get(ip.l4..ip.end).unwrap_or(&[]);
            pseudo_header(ip).followed_by(Sum::of(covered)).checksum() == 0
        }
        Transport::Icmp(_) | Transport::LaterFragment | Transport::Other => true,
    }
}

/// Leaves the checksum of a TCP or UDP frame open: the field gets the pseudo header's sum.
fn leave_open(frame: &mut [u8]) -> NetHeader {
    let plain = NetHeader::default();
    let Ok(parsed) = parse(frame, frame.len()) else { return plain };
    let Some(ip) = parsed.ip() else { return plain };
    let csum_offset = match ip.protocol {
        PROTOCOL_TCP => TCP_CSUM_OFFSET,
        PROTOCOL_UDP => UDP_CSUM_OFFSET,
        _ => return plain,
    };
    let pseudo = pseudo_header(ip).partial();
    let at = ip.l4.saturating_add(usize::from(csum_offset));
    let field = frame.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>);
    let (Ok(csum_start), Some(field)) = (u16::try_from(ip.l4), field) else { return plain };
    *field = pseudo.to_be_bytes();
    NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start, csum_offset, ..plain }
}

#[cfg(test)]
impl Nic {
    /// The queues and the memory that both sides see.
    pub(crate) fn port(&mut self) -> &mut Port {
        &mut self.port
    }
}

#[cfg(test)]
mod tests;
