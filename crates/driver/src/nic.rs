//! The guest's network card: frames in and out through a receive and a transmit queue.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vionet_frame::checksum::{TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, complete};
use vionet_frame::header::{NetHeader, Offloads, check};
use vionet_frame::parse::{PROTOCOL_TCP, PROTOCOL_UDP, Transport, parse};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{HDR_F_NEEDS_CSUM, HDR_LEN};

use crate::error::GuestError;
use crate::front_end::FrontEnd;
use crate::memory::{GUEST_BASE, Memory};
use crate::ring::{Ring, ring_bytes};

const SIZE: u16 = 256;
/// Bytes of a receive buffer; larger frames take several.
const RX_LEN: u32 = 16_384;
/// Bytes of a transmit buffer: header and the longest frame.
const TX_LEN: u32 = 66_560;
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

/// A driver with its queues running.
pub struct Nic {
    end: FrontEnd,
    memory: Memory,
    rx: Ring,
    tx: Ring,
    kicks: [OwnedFd; 2],
    call: OwnedFd,
    free: Vec<u16>,
    rx_base: u64,
    tx_base: u64,
    leaves_open: bool,
}

impl Nic {
    /// Attaches to the back-end at `path` and starts both queues.
    ///
    /// # Errors
    /// When the back-end cannot be reached, lacks VERSION_1, or refuses.
    pub fn attach(path: &Path) -> Result<Self, GuestError> {
        let mut end = FrontEnd::connect(path)?;
        let offered = FeatureBits(u128::from(end.offered()));
        let mut chosen = offered & WANTED;
        for missing in [Feature::VERSION_1, Feature::EVENT_IDX, Feature::MRG_RXBUF] {
            if !chosen.has(missing) {
                return Err(GuestError::Missing(missing.name().unwrap_or("a feature")));
            }
        }
        while let Some(row) = chosen.broken_dependency() {
            chosen = chosen.without(row.feature);
        }
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
        let (true | false) = rx.publish();
        let bell = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|errno| GuestError::Host(errno.into()))
        };
        let (kicks, call) = ([bell()?, bell()?], bell()?);
        end.set_features(u64::try_from(chosen.0).unwrap_or(0))?;
        end.set_memory(GUEST_BASE, crate::memory::USER_BASE, memory.len, memory.file.as_fd())?;
        let [rx_kick, tx_kick] = &kicks;
        end.start_ring(RX_INDEX, rx.place(), rx_kick.as_fd(), call.as_fd())?;
        end.start_ring(TX_INDEX, tx.place(), tx_kick.as_fd(), call.as_fd())?;
        let leaves_open = chosen.has(Feature::CSUM);
        let free = (0..SIZE).rev().collect();
        Ok(Self { end, memory, rx, tx, kicks, call, free, rx_base, tx_base, leaves_open })
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
    /// When there is no room, or the frame is too long.
    pub fn send(&mut self, frame: &mut [u8]) -> Result<(), GuestError> {
        let index = self.free.pop().ok_or(GuestError::Network("no transmit buffer is free"))?;
        let header = if self.leaves_open { leave_open(frame) } else { NetHeader::default() };
        let at = place(self.tx_base, index, TX_LEN);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX).saturating_add(12);
        if len > TX_LEN {
            return Err(GuestError::Network("the frame is too long"));
        }
        self.memory.write(at, &header.encode())?;
        self.memory.write(at.saturating_add(12), frame)?;
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

    /// The next received frame, its checksum completed where the device left it open.
    ///
    /// # Errors
    /// When the device breaks a rule.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        let Some((first, len)) = self.rx.used()? else { return Ok(None) };
        let mut bytes = Vec::new();
        self.append(first, len, &mut bytes)?;
        let header = bytes.first_chunk::<HDR_LEN>().map(NetHeader::decode);
        let header = header.ok_or(GuestError::Device("a received frame without header"))?;
        for _ in 1..header.num_buffers {
            // All buffers of a frame become visible together (NET-RX-04).
            let next = self.rx.used()?;
            let (index, len) = next.ok_or(GuestError::Device("num_buffers promises too much"))?;
            self.append(index, len, &mut bytes)?;
        }
        if header.num_buffers == 0 {
            return Err(GuestError::Device("num_buffers is 0"));
        }
        let mut frame = bytes.split_off(HDR_LEN);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let request = check(&header, len, Offloads::ALL);
        let request = request.map_err(|_| GuestError::Device("a bad header"))?;
        if let Some(at) = request.csum
            && request.gso.is_none()
        {
            complete(&mut frame, at).map_err(|_| GuestError::Device("a bad checksum place"))?;
        }
        Ok(Some(frame))
    }

    fn append(&mut self, index: u16, len: u32, bytes: &mut Vec<u8>) -> Result<(), GuestError> {
        if len > RX_LEN {
            return Err(GuestError::Device("more bytes than the buffer has"));
        }
        let at = place(self.rx_base, index, RX_LEN);
        let start = bytes.len();
        let end = start.saturating_add(usize::try_from(len).unwrap_or(0));
        bytes.resize(end, 0);
        self.memory.read(at, bytes.get_mut(start..).unwrap_or(&mut []))?;
        self.rx.lend(index, at, RX_LEN);
        Ok(())
    }

    /// Sleeps until the device has something, or `most` has gone by.
    ///
    /// # Errors
    /// When the back-end is gone.
    pub fn wait(&mut self, most: Duration) -> Result<(), GuestError> {
        self.flush();
        if self.rx.arm() || self.free.is_empty() && self.tx.arm() {
            return Ok(());
        }
        let timeout = Timespec::try_from(most).ok();
        let mut fds = [
            PollFd::new(&self.call, PollFlags::IN),
            PollFd::new(&self.end, PollFlags::IN | PollFlags::RDHUP),
        ];
        let (Ok(_) | Err(_)) = poll(&mut fds, timeout.as_ref());
        let [called, socket] = fds.map(|fd| !fd.revents().is_empty());
        if called {
            let (Ok(_) | Err(_)) = rustix::io::read(&self.call, &mut [0; 8]);
        }
        // A back-end says nothing by itself: what is readable is its end.
        if socket { Err(GuestError::Closed) } else { Ok(()) }
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

fn ring_bell(bell: &OwnedFd) {
    // A full counter is rung already.
    let (Ok(_) | Err(_)) = rustix::io::write(bell, &1_u64.to_ne_bytes());
}

fn place(base: u64, index: u16, len: u32) -> u64 {
    base.saturating_add(u64::from(index).saturating_mul(u64::from(len)))
}

/// Leaves the checksum of a TCP or UDP frame open: the field gets the pseudo header's sum.
fn leave_open(frame: &mut [u8]) -> NetHeader {
    let plain = NetHeader::default();
    let Ok(parsed) = parse(frame, frame.len()) else { return plain };
    let Some(ip) = parsed.ip() else { return plain };
    let (protocol, offset) = match ip.transport {
        Transport::Tcp(_) => (PROTOCOL_TCP, TCP_CSUM_OFFSET),
        Transport::Udp(_) => (PROTOCOL_UDP, UDP_CSUM_OFFSET),
        Transport::Icmp(_) | Transport::LaterFragment | Transport::Other => return plain,
    };
    let len = u32::try_from(ip.end.saturating_sub(ip.l4)).unwrap_or(0);
    let pseudo = ip.addresses.pseudo_header(protocol, len).partial();
    let at = ip.l4.saturating_add(usize::from(offset));
    let (Ok(csum_start), Some(field)) =
        (u16::try_from(ip.l4), frame.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<2>))
    else {
        return plain;
    };
    *field = pseudo.to_be_bytes();
    NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start, csum_offset: offset, ..plain }
}
