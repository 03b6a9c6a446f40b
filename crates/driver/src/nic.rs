//! The guest's network card: frames in and out through a receive and a transmit queue.
//!
//! ```text
//!   rings | receive buffers, 256 of 16 KiB | transmit buffers, 256 of 65 KiB |  one memory file
//!           a frame takes one or several     a frame takes one
//! ```

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vionet_frame::checksum::{Sum, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, complete};
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_frame::parse::{Ip, PROTOCOL_TCP, PROTOCOL_UDP, Transport, parse};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_LEN};

use crate::error::GuestError;
use crate::front_end::{FrontEnd, RingBells};
use crate::memory::{GUEST_BASE, Memory, USER_BASE};
use crate::ring::{Ring, ring_bytes};

/// The longest frame: an Ethernet header and the longest IP packet.
pub const FRAME_MAX: usize = 65_550;

const SIZE: u16 = 256;
/// Bytes of a receive buffer; larger frames take several.
const RX_LEN: u32 = 16_384;
/// Bytes of a transmit buffer: header and the longest frame.
const TX_LEN: u32 = 66_560;
/// Bytes of the header before each frame.
const HEAD: u32 = 12;
const RX_INDEX: u32 = 0;
const TX_INDEX: u32 = 1;

/// What is chosen of a back-end's offer.
const WANTED: FeatureBits = FeatureBits::of(&[
    Feature::VERSION_1,
    Feature::EVENT_IDX,
    Feature::MRG_RXBUF,
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
    end: FrontEnd,
    memory: Memory,
    rx: Ring,
    tx: Ring,
    kicks: [OwnedFd; 2],
    call: OwnedFd,
    broken: OwnedFd,
    /// Transmit buffers that are ours.
    free: Vec<u16>,
    rx_base: u64,
    tx_base: u64,
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
    pub fn over(mut end: FrontEnd) -> Result<Self, GuestError> {
        let chosen = choose(FeatureBits(u128::from(end.offered())))?;
        let entries = u64::from(SIZE);
        let rings = ring_bytes(SIZE);
        let rx_base = GUEST_BASE.saturating_add(rings.saturating_mul(2));
        let tx_base = rx_base.saturating_add(entries.saturating_mul(u64::from(RX_LEN)));
        let top = tx_base.saturating_add(entries.saturating_mul(u64::from(TX_LEN)));
        let memory = Memory::new(top.saturating_sub(GUEST_BASE).next_multiple_of(4096))?;
        let mut rx = Ring::new(&memory.space, GUEST_BASE, SIZE, true)?;
        let tx = Ring::new(&memory.space, GUEST_BASE.saturating_add(rings), SIZE, false)?;
        for index in 0..SIZE {
            rx.lend(index, place(rx_base, index, RX_LEN), RX_LEN);
        }
        // The back-end looks when the ring is started.
        let (true | false) = rx.publish();
        let (kicks, call, broken) = ([bell()?, bell()?], bell()?, bell()?);
        end.set_features(u64::try_from(chosen.0).unwrap_or(0))?;
        end.set_memory(GUEST_BASE, USER_BASE, memory.len, memory.file.as_fd())?;
        let [rx_kick, tx_kick] = kicks.each_ref().map(AsFd::as_fd);
        let (call_fd, error) = (call.as_fd(), broken.as_fd());
        for (index, ring, kick) in [(RX_INDEX, &rx, rx_kick), (TX_INDEX, &tx, tx_kick)] {
            end.start_ring(index, ring.place(), RingBells { kick, call: call_fd, error })?;
        }
        let leaves_open = chosen.has(Feature::CSUM);
        let accepts = accepted(chosen);
        let free = (0..SIZE).rev().collect();
        let nic = Self {
            end,
            memory,
            rx,
            tx,
            kicks,
            call,
            broken,
            free,
            rx_base,
            tx_base,
            leaves_open,
            accepts,
        };
        Ok(nic)
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
        while let Some((index, len)) = self.tx.used()? {
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
        let at = place(self.tx_base, index, TX_LEN);
        self.memory.write(at, &header.encode())?;
        self.memory.write(at.saturating_add(HEAD.into()), frame)?;
        let len = u32::try_from(frame.len()).unwrap_or(0).saturating_add(HEAD);
        self.tx.lend(index, at, len);
        Ok(())
    }

    /// Makes queued frames and returned buffers visible, and kicks the device if it wants that.
    pub fn flush(&mut self) {
        let [rx_kick, tx_kick] = &self.kicks;
        if self.tx.publish() {
            ring_bell(tx_kick);
        }
        if self.rx.publish() {
            ring_bell(rx_kick);
        }
    }

    /// Takes the next received frame into `room`, which has [`FRAME_MAX`] bytes. A checksum that
    /// the device left open is completed, unless the frame is one for several segments; one that
    /// the device does not vouch for is verified.
    ///
    /// # Errors
    /// When the device breaks a rule.
    pub fn receive(&mut self, room: &mut [u8]) -> Result<Received, GuestError> {
        let Some((first, len)) = self.rx.used()? else { return Ok(Received::Nothing) };
        if len < HEAD {
            return Err(GuestError::Device("a received frame without header"));
        }
        let mut header = [0; HDR_LEN];
        self.memory.read(place(self.rx_base, first, RX_LEN), &mut header)?;
        let header = NetHeader::decode(&header);
        if header.num_buffers == 0 {
            return Err(GuestError::Device("num_buffers is 0"));
        }
        let mut end = self.take(first, HEAD, len, room, 0)?;
        for _ in 1..header.num_buffers {
            // All buffers of a frame become visible together (VIRTIO 1.4 §5.1.9.3.1).
            let next = self.rx.used()?;
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
        let at = place(self.rx_base, index, RX_LEN);
        self.memory.read(at.saturating_add(skip.into()), piece)?;
        self.rx.lend(index, at, RX_LEN);
        Ok(new_end)
    }

    /// Sleeps until the device has something for us, or `most` has gone by. While every transmit
    /// buffer is out, only one that comes back counts: a frame could not be answered.
    ///
    /// # Errors
    /// When the back-end is gone, or says that it has given up a ring.
    pub fn wait(&mut self, most: Duration) -> Result<(), GuestError> {
        self.flush();
        if if self.free.is_empty() { self.tx.arm() } else { self.rx.arm() } {
            return Ok(());
        }
        let timeout = Timespec::try_from(most).ok();
        let mut fds = [
            PollFd::new(&self.call, PollFlags::IN),
            PollFd::new(&self.broken, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN | PollFlags::RDHUP),
        ];
        // Interrupted is as good as over: our caller looks again anyway.
        let (Ok(_) | Err(_)) = poll(&mut fds, timeout.as_ref());
        let [called, broken, socket] = fds.map(|fd| !fd.revents().is_empty());
        if called {
            let (Ok(_) | Err(_)) = rustix::io::read(&self.call, &mut [0; 8]);
        }
        match (broken, socket) {
            (true, _) => Err(GuestError::Device("it has given up a ring of ours")),
            // A back-end says nothing by itself: what is readable is its end.
            (false, true) => Err(GuestError::Closed),
            (false, false) => Ok(()),
        }
    }

    /// Stops both queues, in order.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn detach(mut self) -> Result<(), GuestError> {
        self.end.stop_ring(RX_INDEX)?;
        self.end.stop_ring(TX_INDEX).map(drop)
    }
}

fn choose(offered: FeatureBits) -> Result<FeatureBits, GuestError> {
    let mut chosen = offered & WANTED;
    for missing in [Feature::VERSION_1, Feature::EVENT_IDX, Feature::MRG_RXBUF] {
        if !chosen.has(missing) {
            return Err(GuestError::Missing(missing.name().unwrap_or("a feature")));
        }
    }
    while let Some(row) = chosen.broken_dependency() {
        chosen = chosen.without(row.feature);
    }
    Ok(chosen)
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

fn bell() -> Result<OwnedFd, GuestError> {
    let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    bell.map_err(|errno| GuestError::Host(errno.into()))
}

fn ring_bell(bell: &OwnedFd) {
    // A full counter is rung already.
    let (Ok(_) | Err(_)) = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn place(base: u64, index: u16, len: u32) -> u64 {
    base.saturating_add(u64::from(index).saturating_mul(u64::from(len)))
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
    /// Where the receive and the transmit ring are.
    pub(crate) fn places(&self) -> [&crate::front_end::RingPlace; 2] {
        [self.rx.place(), self.tx.place()]
    }

    /// The memory that both sides see.
    pub(crate) fn space(&self) -> &std::sync::Arc<vionet_raw::AddressSpace> {
        &self.memory.space
    }

    /// What the device writes.
    pub(crate) fn play(&mut self, at: u64, bytes: &[u8]) {
        self.memory.write(at, bytes).unwrap();
    }
}

#[cfg(test)]
mod tests;
