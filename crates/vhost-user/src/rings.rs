//! The rings of a session: what the front-end has said of each, and when one runs.
//!
//! ```text
//!            SET_VRING_KICK       size, base, addresses, features, mapped memory
//!     Idle ------------------> Waiting -----------------------------> Running
//!      ^                        ^   |                                 |     |
//!      |      its configuration |   | the device              memory or     | the driver broke
//!      |      changes           |   v refuses                 addresses     | a rule
//!      |                       Refused                        change: stop, v
//!      +-- GET_VRING_BASE, RESET_DEVICE (from any) ---+       start again  Broken
//! ```
//!
//! The messages may come in any order and any number; what counts is what is known at the end.
//! *Enabled* is a flag of its own, kept by the device: a ring that runs but is not enabled drops
//! what it is given.
//!
//! Where a ring goes on is one number on the wire, in two forms:
//!
//! ```text
//!   split     16 bits   next entry to take          what is used stands in memory: used.idx
//!   packed    31 used wrap | 30..16 used slot | 15 taken wrap | 14..0 slot taken next
//! ```

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vionet::{Device, Herald, Interrupt, Op, OpError, QueueIndex, Report};
use vionet_queue::{Cursor, Format, QueueSetup};
use vionet_raw::{AddressSpace, GuestAddr, MemoryMap, UserAddr};
use vionet_socket::descriptor;
use vionet_spec::ring::{IDX_OFFSET, SIZE_MAX};

use crate::event::{Event, ProtocolError};
use crate::message::{RingAddresses, RingNumber};

pub(crate) type Events<'e> = &'e mut dyn FnMut(Event);

/// A ring's number and the descriptor that came for it.
pub(crate) type RingFd = (u32, Option<OwnedFd>);

/// A call eventfd as the driver's interrupt, or an error eventfd as the front-end's. A full counter
/// is signalled already, and a front-end that broke its own eventfd hears nothing.
struct Call(OwnedFd);

impl Interrupt for Call {
    fn raise(&self) {
        let (Ok(_) | Err(_)) = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

/// A position as the wire has it.
const fn wire(cursor: Cursor, format: Format) -> u32 {
    let [a0, a1] = cursor.avail.to_le_bytes();
    let [u0, u1] = match format {
        Format::Split => [0, 0],
        Format::Packed => cursor.used.to_le_bytes(),
    };
    u32::from_le_bytes([a0, a1, u0, u1])
}

/// The position of a packed ring. Some front-ends know 16 bits only: with nothing in the upper ones
/// both sides are where the lower ones say.
const fn packed_position(wire: u32) -> Cursor {
    let [a0, a1, u0, u1] = wire.to_le_bytes();
    let (avail, used) = (u16::from_le_bytes([a0, a1]), u16::from_le_bytes([u0, u1]));
    Cursor { avail, used: if used == 0 { avail } else { used } }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    /// Not kicked into life.
    #[default]
    Idle,
    /// Runs as soon as everything it needs is there.
    Waiting,
    Running,
    /// The device did not take it as it is configured.
    Refused,
    /// The driver broke a rule: stands still until GET_VRING_BASE.
    Broken,
}

#[derive(Default)]
struct Ring {
    life: Life,
    size: u16,
    /// Where it goes on, as the wire has it; not known until it was said, or the ring has run.
    base: Option<u32>,
    addresses: Option<RingAddresses>,
    err: Option<Arc<dyn Interrupt>>,
}

impl Ring {
    /// Whether the device has the ring, so that its position is the device's to say.
    fn is_held(&self) -> bool {
        matches!(self.life, Life::Running | Life::Broken)
    }

    /// Something about it is new: a refusal may not hold any more.
    fn reconsider(&mut self) {
        if self.life == Life::Refused {
            self.life = Life::Waiting;
        }
    }

    /// How to start it, or `None` while something is missing.
    fn plan(&self, format: Format, space: &AddressSpace) -> Option<(QueueSetup, Cursor)> {
        if self.life != Life::Waiting || self.size == 0 {
            return None;
        }
        let guest = |at: u64| space.map().guest_of(UserAddr(at));
        let (base, addresses) = (self.base?, self.addresses?);
        let setup = QueueSetup {
            size: self.size,
            descriptors: guest(addresses.descriptors)?,
            driver: guest(addresses.avail)?,
            device: guest(addresses.used)?,
        };
        let cursor = match format {
            Format::Split => self.split_position(base, setup.device, space),
            Format::Packed => packed_position(base),
        };
        Some((setup, cursor))
    }

    /// The front-end keeps one number only; used.idx is read from memory. What was taken and not
    /// used before stays owed, and only a position that can be is believed (VU-RNG-04).
    fn split_position(&self, base: u32, device: GuestAddr, space: &AddressSpace) -> Cursor {
        let [b0, b1, _, _] = base.to_le_bytes();
        let avail = u16::from_le_bytes([b0, b1]);
        let mut index = [0; 2];
        let seen = device.checked_add(IDX_OFFSET).is_some_and(|at| space.read(at, &mut index));
        let used = u16::from_le_bytes(index);
        let behind = avail.wrapping_sub(used) <= self.size;
        Cursor { avail, used: if seen && behind { used } else { avail } }
    }
}

/// Every ring of the device, the memory they live in, and their format once features are agreed.
pub(crate) struct Rings {
    rings: Vec<Ring>,
    space: Arc<AddressSpace>,
    format: Option<Format>,
    herald: Herald,
    /// The front-end is to be told that the device configuration has changed.
    config_changed: bool,
    /// A driver has broken a rule, and that is not in the status yet.
    fault_heard: bool,
}

type Done = Result<(), ProtocolError>;

impl Rings {
    pub(crate) fn new(count: u16) -> Self {
        let rings = (0..count).map(|_| Ring::default()).collect();
        let space = Arc::new(AddressSpace::new(Arc::new(MemoryMap::empty())));
        let (config_changed, fault_heard) = (false, false);
        let herald = Herald::default();
        Self { rings, space, format: None, herald, config_changed, fault_heard }
    }

    fn ring(&mut self, index: u32) -> Result<(QueueIndex, &mut Ring), ProtocolError> {
        let narrow = u16::try_from(index).map_err(|_| ProtocolError::NoSuchRing(index))?;
        let ring = self.rings.get_mut(usize::from(narrow));
        Ok((QueueIndex(narrow), ring.ok_or(ProtocolError::NoSuchRing(index))?))
    }

    fn indices(&self) -> impl Iterator<Item = QueueIndex> + use<> {
        (0..u16::try_from(self.rings.len()).unwrap_or(u16::MAX)).map(QueueIndex)
    }

    /// Features were agreed on, or are not any more.
    pub(crate) fn agree(&mut self, agreed: bool, device: &mut Device, events: Events<'_>) -> Done {
        let format = device.negotiated().map(|agreed| agreed.ring().format);
        self.format = if agreed { format } else { None };
        self.rings.iter_mut().for_each(Ring::reconsider);
        self.start_what_can(device, events)
    }

    /// SET_VRING_NUM. Whether the size suits the ring's format is for its start to say: it is the
    /// driver's choice, and costs the driver that ring alone.
    pub(crate) fn set_size(
        &mut self,
        message: RingNumber,
        device: &mut Device,
        events: Events<'_>,
    ) -> Done {
        let (index, ring) = self.ring(message.index)?;
        let size = u16::try_from(message.number).ok();
        let size = size.filter(|size| (1..=SIZE_MAX).contains(size));
        let size = size.ok_or(ProtocolError::Value(u64::from(message.number)))?;
        if ring.is_held() && ring.size != size {
            return Err(ProtocolError::RingRunning(index.0));
        }
        ring.size = size;
        ring.reconsider();
        self.start_what_can(device, events)
    }

    /// SET_VRING_BASE. It may come before the format is known; a split ring has 16 bits.
    pub(crate) fn set_base(
        &mut self,
        message: RingNumber,
        device: &mut Device,
        events: Events<'_>,
    ) -> Done {
        let (base, format) = (message.number, self.format);
        let (index, ring) = self.ring(message.index)?;
        if format == Some(Format::Split) && u16::try_from(base).is_err() {
            return Err(ProtocolError::Value(u64::from(base)));
        }
        if ring.is_held() && ring.base != Some(base) {
            return Err(ProtocolError::RingRunning(index.0));
        }
        ring.base = Some(base);
        ring.reconsider();
        self.start_what_can(device, events)
    }

    /// SET_VRING_ADDR. A running ring goes on at its new place.
    pub(crate) fn set_addresses(
        &mut self,
        addresses: RingAddresses,
        device: &mut Device,
        events: Events<'_>,
    ) -> Done {
        let (index, ring) = self.ring(addresses.index)?;
        if ring.addresses.replace(addresses) != Some(addresses) {
            ring.reconsider();
            self.pause(index, device, events)?;
        }
        self.start_what_can(device, events)
    }

    /// GET_VRING_BASE: when this returns nothing touches the ring any more, and the position is
    /// final (VU-RNG-03). Its kick and call descriptors are let go; size, addresses and the
    /// enabled flag stay.
    pub(crate) fn stop(
        &mut self,
        index: u32,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<RingNumber, ProtocolError> {
        let (queue, ring) = self.ring(index)?;
        let was_held = ring.is_held();
        self.pause(queue, device, events)?;
        device.set_kick(queue, None).map_err(ProtocolError::Device)?;
        device.apply(Op::SetInterrupt(queue, None)).map_err(ProtocolError::Device)?;
        let format = self.format.unwrap_or(Format::Split);
        let (_, ring) = self.ring(index)?;
        ring.life = Life::Idle;
        let number = ring.base.unwrap_or(wire(Cursor::start(format), format));
        if was_held {
            events(Event::QueueStopped(queue));
        }
        Ok(RingNumber { index, number })
    }

    /// SET_VRING_KICK: the ring is to run, kicked or not: buffers may be waiting already
    /// (VU-RNG-01). Without a descriptor the device looks at it all the time (VU-RNG-02).
    pub(crate) fn kick(
        &mut self,
        (index, fd): RingFd,
        device: &mut Device,
        events: Events<'_>,
    ) -> Done {
        let (queue, ring) = self.ring(index)?;
        let fd = fd.map(descriptor::to_watch).transpose()?;
        if matches!(ring.life, Life::Idle | Life::Refused) {
            ring.life = Life::Waiting;
        }
        device.set_kick(queue, fd).map_err(ProtocolError::Device)?;
        self.start_what_can(device, events)
    }

    /// SET_VRING_CALL. The device signals the new descriptor once: a completion may have been told
    /// to the old one only (VU-MSG-05).
    pub(crate) fn call(&mut self, (index, fd): RingFd, device: &mut Device) -> Done {
        let (queue, _) = self.ring(index)?;
        let fd = fd.map(descriptor::to_signal).transpose()?;
        let call = fd.map(|fd| -> Arc<dyn Interrupt> { Arc::new(Call(fd)) });
        device.apply(Op::SetInterrupt(queue, call)).map_err(ProtocolError::Device)
    }

    /// SET_VRING_ERR.
    pub(crate) fn err(&mut self, (index, fd): RingFd) -> Done {
        let (_, ring) = self.ring(index)?;
        let fd = fd.map(descriptor::to_signal).transpose()?;
        ring.err = fd.map(|fd| -> Arc<dyn Interrupt> { Arc::new(Call(fd)) });
        Ok(())
    }

    /// SET_VRING_ENABLE; it may come before anything else (VU-PIT-01).
    pub(crate) fn enable(&mut self, message: RingNumber, device: &mut Device) -> Done {
        let (queue, _) = self.ring(message.index)?;
        let enabled = match message.number {
            0 => false,
            1 => true,
            other => return Err(ProtocolError::Value(u64::from(other))),
        };
        device.apply(Op::EnableQueue(queue, enabled)).map_err(ProtocolError::Device)
    }

    /// SET_FEATURES without bit 30 (VU-FEA-05).
    pub(crate) fn enable_all(&mut self, device: &mut Device) -> Done {
        for index in self.indices() {
            device.apply(Op::EnableQueue(index, true)).map_err(ProtocolError::Device)?;
        }
        Ok(())
    }

    /// Moves every ring over to `space`: when this returns nobody uses the memory of before
    /// (VU-MEM-08).
    pub(crate) fn move_to(
        &mut self,
        space: Arc<AddressSpace>,
        device: &mut Device,
        events: Events<'_>,
    ) -> Done {
        for index in self.indices() {
            self.pause(index, device, events)?;
        }
        self.space = Arc::clone(&space);
        device.apply(Op::Memory(space)).map_err(ProtocolError::Device)?;
        self.rings.iter_mut().for_each(Ring::reconsider);
        self.start_what_can(device, events)
    }

    /// RESET_DEVICE: rings forget what they were told but their error descriptors, which
    /// front-ends send once; memory stays (VU-MSG-09).
    pub(crate) fn reset(&mut self, device: &mut Device, events: Events<'_>) -> Done {
        self.end(device, events);
        for ring in &mut self.rings {
            *ring = Ring { err: ring.err.take(), ..Ring::default() };
        }
        self.forget_faults();
        self.format = None;
        device.apply(Op::Memory(Arc::clone(&self.space))).map_err(ProtocolError::Device)
    }

    /// Every ring stops, and the device forgets the driver and its memory.
    pub(crate) fn end(&mut self, device: &mut Device, events: Events<'_>) {
        // A reset that fails has lost a worker, and with it what there was to reset.
        let (Ok(()) | Err(_)) = device.apply(Op::Reset);
        self.hear(device, events);
    }

    /// Passes on what workers have reported. The front-end hears of a broken ring by its error
    /// descriptor; every other ring goes on (VU-RNG-12).
    pub(crate) fn hear(&mut self, device: &mut Device, events: Events<'_>) {
        while let Some(report) = device.next_report() {
            match report {
                Report::Fault(fault) => {
                    if let Some(ring) = self.rings.get_mut(usize::from(fault.queue.0)) {
                        ring.life = Life::Broken;
                        ring.err.iter().for_each(|err| self.herald.raise(err));
                    }
                    self.fault_heard = true;
                    events(Event::QueueFault(fault));
                }
                Report::Host { pair, fault } => events(Event::HostFault { pair, fault }),
                Report::Lost(pair) => events(Event::WorkerLost(pair)),
                Report::Silent(pair) => events(Event::WorkerSilent(pair)),
                Report::Endpoint(error) => events(Event::NotAdapted(error)),
                Report::ConfigChanged => self.config_changed = true,
            }
        }
    }

    /// Whether the device configuration has changed since this was asked.
    pub(crate) fn take_config_changed(&mut self) -> bool {
        std::mem::take(&mut self.config_changed)
    }

    /// Whether a driver has broken a rule since this was asked.
    pub(crate) fn take_fault_heard(&mut self) -> bool {
        std::mem::take(&mut self.fault_heard)
    }

    /// The driver starts afresh: what it has broken before is told, and over.
    pub(crate) fn forget_faults(&mut self) {
        self.fault_heard = false;
    }

    /// Takes a ring out of the device and keeps its position; one that ran waits to run again.
    fn pause(&mut self, queue: QueueIndex, device: &mut Device, events: Events<'_>) -> Done {
        let index = u32::from(queue.0);
        if !self.ring(index)?.1.is_held() {
            return Ok(());
        }
        device.apply(Op::StopQueue(queue)).map_err(ProtocolError::Device)?;
        // What its worker reported belongs to the life that has just ended, not to the next one.
        self.hear(device, events);
        let format = self.format.unwrap_or(Format::Split);
        let (_, ring) = self.ring(index)?;
        ring.base = device.cursor(queue).map(|at| wire(at, format)).or(ring.base);
        if ring.life == Life::Running {
            ring.life = Life::Waiting;
        }
        Ok(())
    }

    fn start_what_can(&mut self, device: &mut Device, events: Events<'_>) -> Done {
        let Some(format) = self.format else { return Ok(()) };
        for (index, ring) in (0..).map(QueueIndex).zip(&mut self.rings) {
            let Some((setup, cursor)) = ring.plan(format, &self.space) else { continue };
            match device.apply(Op::StartQueue { index, setup, cursor }) {
                Ok(()) => {
                    ring.life = Life::Running;
                    events(Event::QueueStarted { queue: index, size: ring.size });
                }
                // The driver's doing, or a ring that its features have no use for (VU-PIT-02): this
                // ring stands still, the connection goes on.
                Err(error @ (OpError::Queue(..) | OpError::NoSuchQueue(_))) => {
                    ring.life = Life::Refused;
                    ring.err.iter().for_each(|err| self.herald.raise(err));
                    events(Event::QueueRefused(error));
                }
                // The host's: said aloud, and tried again when something changes.
                Err(error @ OpError::Endpoint(_)) => {
                    ring.life = Life::Refused;
                    events(Event::QueueRefused(error));
                }
                Err(error) => return Err(ProtocolError::Device(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_position_is_two_slots_with_their_wrap_counters() {
        let cursor = Cursor { avail: 1 << 15 | 7, used: 5 };
        assert_eq!(wire(cursor, Format::Packed), 0x0005_8007);
        assert_eq!(packed_position(0x0005_8007), cursor);
        let start = Cursor::start(Format::Packed);
        assert_eq!(wire(start, Format::Packed), 0x8000_8000, "VU-RNG-05");
        assert_eq!(packed_position(0x8000_8000), start);
    }

    #[test]
    fn a_packed_position_of_16_bits_is_both() {
        assert_eq!(packed_position(0x8000), Cursor::start(Format::Packed));
        assert_eq!(packed_position(0x8007), Cursor { avail: 0x8007, used: 0x8007 });
        assert_eq!(packed_position(0), Cursor::default());
    }

    #[test]
    fn a_split_position_is_what_was_taken() {
        assert_eq!(wire(Cursor { avail: 65_535, used: 65_530 }, Format::Split), 65_535);
    }

    #[test]
    fn a_fault_that_is_heard_of_in_a_reset_is_not_the_next_drivers() {
        let null = Box::new(vionet_endpoint::Null);
        let mut device = Device::new(vionet::NicConfig::default(), null).unwrap();
        let mut rings = Rings::new(device.queues());
        // As when the report comes while the worker gives its pair back.
        rings.fault_heard = true;
        rings.reset(&mut device, &mut |_| {}).unwrap();
        assert!(!rings.take_fault_heard(), "ST-03");
    }
}
