//! A front-end's session: its messages, the state of its rings, its memory.
//!
//! A ring is *idle* until it has been kicked into life (SET_VRING_KICK) and everything it needs is
//! there; then it *runs* until GET_VRING_BASE. What is missing may come in any order:
//!
//! ```text
//!            kick, size, addresses, features, mapped memory
//!     idle ------------------------------------------------> running
//!       ^  <---- GET_VRING_BASE, RESET_DEVICE, disconnect ---   |
//!       |                                                       | memory table or address
//!       +--- not mapped any more: waits for the next table -----+ changed: stop, start again
//! ```
//!
//! Enabled is a flag of its own: a ring that runs but is not enabled drops what it is given.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vionet::{Device, Interrupt, Op, OpError, QueueIndex, Report};
use vionet_queue::{Cursor, QueueSetup};
use vionet_raw::{GuestAddr, UserAddr};
use vionet_spec::feature::FeatureBits;
use vionet_spec::ring::{IDX_OFFSET, SIZE_MAX};

use crate::channel::{Channel, Incoming};
use crate::event::{Event, ProtocolError};
use crate::memory::{SLOTS, Table};
use crate::message::{
    CONFIG_MAX, Fields, Message, RegionSpec, Request, RingAddresses, RingNumber, number, reply,
};

/// Feature bit that says that messages 15 and 16 are known; never shown to a driver.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

const PROTOCOL_F_MQ: u64 = 1;
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_MTU: u64 = 1 << 4;
const PROTOCOL_F_CONFIG: u64 = 1 << 9;
const PROTOCOL_F_RESET_DEVICE: u64 = 1 << 13;
const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
const PROTOCOL_F_STATUS: u64 = 1 << 16;

const PROTOCOL_FEATURES: u64 = PROTOCOL_F_MQ
    | PROTOCOL_F_REPLY_ACK
    | PROTOCOL_F_MTU
    | PROTOCOL_F_CONFIG
    | PROTOCOL_F_RESET_DEVICE
    | PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | PROTOCOL_F_STATUS;

/// Bit of the ring descriptor messages: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// A call eventfd as the driver's interrupt.
struct Call(OwnedFd);

impl Interrupt for Call {
    fn raise(&self) {
        signal(&self.0);
    }
}

fn signal(eventfd: &OwnedFd) {
    // A full counter is signalled already; a front-end that broke its own eventfd hears nothing.
    let (Ok(_) | Err(_)) = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

#[derive(Default)]
struct Ring {
    size: u16,
    base: u16,
    addresses: Option<RingAddresses>,
    /// SET_VRING_KICK has come: the ring is to run as soon as it can.
    kicked: bool,
    running: bool,
    err: Option<OwnedFd>,
}

/// What a handled message is answered with.
enum Answer {
    /// Nothing, or an acknowledgement if one was asked for.
    Ack,
    /// A reply of its own.
    Reply(Vec<u8>),
}

impl Answer {
    fn number(value: u64) -> Self {
        Self::Reply(value.to_ne_bytes().to_vec())
    }
}

/// How a session stands after reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    Closed,
}

/// One front-end's connection.
pub(crate) struct Session {
    channel: Channel,
    rings: Vec<Ring>,
    memory: Table,
    features: Option<u64>,
    protocol_features: u64,
    status: u64,
}

type Events<'e> = &'e mut dyn FnMut(Event);
type Handled = Result<Answer, ProtocolError>;

impl Session {
    pub(crate) fn new(socket: OwnedFd, device: &Device) -> Self {
        let rings = (0..device.queues()).map(|_| Ring::default()).collect();
        Self {
            channel: Channel::new(socket),
            rings,
            memory: Table::default(),
            features: None,
            protocol_features: 0,
            status: 0,
        }
    }

    /// Handles every message that has come.
    pub(crate) fn read(
        &mut self,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<State, ProtocolError> {
        loop {
            match self.channel.read()? {
                Incoming::Message(message) => self.handle(message, device, events)?,
                Incoming::Later => return Ok(State::Open),
                Incoming::Closed => return Ok(State::Closed),
            }
        }
    }

    /// Passes on what a worker has reported: the front-end hears of a broken ring by its error
    /// eventfd (VU-RNG-12).
    pub(crate) fn report(&self, report: Report, events: Events<'_>) {
        match report {
            Report::Fault(fault) => {
                let ring = self.rings.get(usize::from(fault.queue.0));
                if let Some(err) = ring.and_then(|ring| ring.err.as_ref()) {
                    signal(err);
                }
                events(Event::QueueFault(fault));
            }
            Report::Host { pair, fault } => events(Event::HostFault { pair, fault }),
            _ => {}
        }
    }

    /// Ends the session: every ring stops, memory is let go.
    pub(crate) fn end(self, device: &mut Device) {
        let (Ok(()) | Err(_)) = device.apply(Op::Reset);
    }

    fn handle(
        &mut self,
        message: Message,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<(), ProtocolError> {
        let header = message.header;
        let request = Request::of(header.id);
        let name = request.map_or("unknown message", Request::name);
        events(Event::Message { name });
        let handled = match request {
            Some(request) => self.dispatch(request, message, device, events),
            None => Err(ProtocolError::Unknown(header.id)),
        };
        // Judged after the message: SET_PROTOCOL_FEATURES itself may switch it on (VU-RPL-07).
        let wants_ack = header.need_reply && self.protocol_features & PROTOCOL_F_REPLY_ACK != 0;
        match handled {
            Ok(Answer::Reply(payload)) => self.channel.send(&reply(header.id, &payload)),
            Ok(Answer::Ack) if wants_ack => self.acknowledge(header.id, 0),
            Ok(Answer::Ack) => Ok(()),
            Err(error) if wants_ack && !has_own_reply(request) => {
                events(Event::ProtocolError(ProtocolError::In(name, Box::new(error))));
                self.acknowledge(header.id, 1)
            }
            Err(error) => Err(ProtocolError::In(name, Box::new(error))),
        }
    }

    fn acknowledge(&self, id: u32, value: u64) -> Result<(), ProtocolError> {
        self.channel.send(&reply(id, &value.to_ne_bytes()))
    }

    fn dispatch(
        &mut self,
        request: Request,
        message: Message,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let Message { payload, fds, .. } = message;
        match request {
            Request::GetFeatures => Ok(Answer::number(offered(device))),
            Request::SetFeatures => self.set_features(&payload, device, events),
            Request::GetProtocolFeatures => Ok(Answer::number(PROTOCOL_FEATURES)),
            Request::SetProtocolFeatures => self.set_protocol_features(&payload),
            Request::GetQueueNum => Ok(Answer::number(u64::from(device.queues()))),
            // RESET_OWNER is obsolete: dropping state would surprise those who still send it.
            Request::SetOwner | Request::ResetOwner | Request::SetLogFd => Ok(Answer::Ack),
            Request::SetMemTable => self.set_mem_table(&payload, fds, device, events),
            Request::AddMemReg => self.add_mem_reg(&payload, fds, device, events),
            Request::RemMemReg => self.rem_mem_reg(&payload, device, events),
            Request::GetMaxMemSlots => Ok(Answer::number(u64::try_from(SLOTS).unwrap_or(8))),
            Request::SetVringNum => self.set_vring_num(&payload),
            Request::SetVringAddr => self.set_vring_addr(&payload, device, events),
            Request::SetVringBase => self.set_vring_base(&payload),
            Request::GetVringBase => self.get_vring_base(&payload, device, events),
            Request::SetVringKick => self.set_vring_kick(&payload, fds, device, events),
            Request::SetVringCall => self.set_vring_call(&payload, fds, device),
            Request::SetVringErr => self.set_vring_err(&payload, fds),
            Request::SetVringEnable => self.set_vring_enable(&payload, device),
            Request::NetSetMtu => net_set_mtu(&payload, device),
            Request::GetConfig => get_config(&payload, device),
            // Every field is read-only for a modern driver (NET-CFG-18).
            Request::SetConfig => Ok(Answer::Ack),
            Request::ResetDevice => self.reset_device(device),
            Request::SetStatus => {
                self.status = number(&payload).ok_or(ProtocolError::Payload)?;
                Ok(Answer::Ack)
            }
            Request::GetStatus => Ok(Answer::number(self.status)),
            Request::SetLogBase | Request::SendRarp => Err(ProtocolError::Unknown(request.id())),
        }
    }

    fn set_features(&mut self, payload: &[u8], device: &mut Device, events: Events<'_>) -> Handled {
        let bits = number(payload).ok_or(ProtocolError::Payload)?;
        let surplus = bits & !offered(device);
        if surplus != 0 {
            return Err(ProtocolError::NotOffered(surplus));
        }
        let driver = FeatureBits(u128::from(bits & !F_PROTOCOL_FEATURES));
        match device.apply(Op::Negotiate(driver)) {
            Ok(()) => {
                if self.features != Some(bits) {
                    events(Event::Negotiated(driver));
                }
                self.features = Some(bits);
            }
            // A driver that cannot be served is no reason to lose the front-end: the next driver
            // of the same machine may be another.
            Err(error) => {
                self.features = None;
                events(Event::FeaturesRefused(error));
            }
        }
        if bits & F_PROTOCOL_FEATURES == 0 {
            for index in 0..device.queues() {
                let enable = Op::EnableQueue(QueueIndex(index), true);
                device.apply(enable).map_err(ProtocolError::Device)?;
            }
        }
        self.start_what_can(device, events)?;
        Ok(Answer::Ack)
    }

    fn set_protocol_features(&mut self, payload: &[u8]) -> Handled {
        let bits = number(payload).ok_or(ProtocolError::Payload)?;
        let surplus = bits & !PROTOCOL_FEATURES;
        if surplus != 0 {
            return Err(ProtocolError::NotOffered(surplus));
        }
        self.protocol_features = bits;
        Ok(Answer::Ack)
    }

    fn set_mem_table(
        &mut self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let specs = RegionSpec::table(payload).ok_or(ProtocolError::Payload)?;
        self.memory.replace(&specs, fds)?;
        self.adopt_memory(device, events)
    }

    fn add_mem_reg(
        &mut self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let spec = RegionSpec::single(payload).ok_or(ProtocolError::Payload)?;
        let [fd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|fds| ProtocolError::Fds { wanted: 1, got: fds.len() })?;
        self.memory.add(spec, &fd)?;
        self.adopt_memory(device, events)
    }

    fn rem_mem_reg(&mut self, payload: &[u8], device: &mut Device, events: Events<'_>) -> Handled {
        let spec = RegionSpec::single(payload).ok_or(ProtocolError::Payload)?;
        self.memory.remove(spec)?;
        self.adopt_memory(device, events)
    }

    /// Puts the table in force: running rings move over to it, and when this returns nobody uses
    /// the memory of before (VU-MEM-08).
    fn adopt_memory(&mut self, device: &mut Device, events: Events<'_>) -> Handled {
        let space = self.memory.space()?;
        for index in 0..device.queues() {
            self.pause(QueueIndex(index), device)?;
        }
        device.apply(Op::Memory(space)).map_err(ProtocolError::Device)?;
        self.start_what_can(device, events)?;
        Ok(Answer::Ack)
    }

    fn set_vring_num(&mut self, payload: &[u8]) -> Handled {
        let RingNumber { index, number } = ring_number(payload)?;
        let (index, ring) = self.ring(index)?;
        let size = u16::try_from(number).ok().filter(|size| (1..=SIZE_MAX).contains(size));
        let size = size.ok_or(ProtocolError::Value(u64::from(number)))?;
        if ring.running && ring.size != size {
            return Err(ProtocolError::RingRunning(index.0));
        }
        ring.size = size;
        Ok(Answer::Ack)
    }

    fn set_vring_base(&mut self, payload: &[u8]) -> Handled {
        let RingNumber { index, number } = ring_number(payload)?;
        let (index, ring) = self.ring(index)?;
        // Only split rings are offered: 16 bits, the rest is zero.
        let base = u16::try_from(number).map_err(|_| ProtocolError::Value(u64::from(number)))?;
        if ring.running {
            return Err(ProtocolError::RingRunning(index.0));
        }
        ring.base = base;
        Ok(Answer::Ack)
    }

    fn set_vring_addr(
        &mut self,
        payload: &[u8],
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let addresses = RingAddresses::decode(payload).ok_or(ProtocolError::Payload)?;
        let (index, ring) = self.ring(addresses.index)?;
        let changed = ring.addresses.replace(addresses) != Some(addresses);
        if changed {
            self.pause(index, device)?;
        }
        self.start_what_can(device, events)?;
        Ok(Answer::Ack)
    }

    fn get_vring_base(
        &mut self,
        payload: &[u8],
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let RingNumber { index, .. } = ring_number(payload)?;
        let (queue, _) = self.ring(index)?;
        self.pause(queue, device)?;
        device.set_kick(queue, None).map_err(ProtocolError::Device)?;
        device.apply(Op::SetInterrupt(queue, None)).map_err(ProtocolError::Device)?;
        let (_, ring) = self.ring(index)?;
        ring.kicked = false;
        let answer = RingNumber { index, number: u32::from(ring.base) };
        events(Event::QueueStopped(queue));
        Ok(Answer::Reply(answer.encode().to_vec()))
    }

    fn set_vring_kick(
        &mut self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let (index, fd) = ring_fd(payload, fds)?;
        let (queue, ring) = self.ring(index)?;
        ring.kicked = true;
        device.set_kick(queue, fd).map_err(ProtocolError::Device)?;
        self.start_what_can(device, events)?;
        Ok(Answer::Ack)
    }

    fn set_vring_call(
        &mut self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut Device,
    ) -> Handled {
        let (index, fd) = ring_fd(payload, fds)?;
        let (queue, _) = self.ring(index)?;
        let call = fd.map(|fd| -> Box<dyn Interrupt> { Box::new(Call(fd)) });
        device.apply(Op::SetInterrupt(queue, call)).map_err(ProtocolError::Device)?;
        Ok(Answer::Ack)
    }

    fn set_vring_err(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> Handled {
        let (index, fd) = ring_fd(payload, fds)?;
        self.ring(index)?.1.err = fd;
        Ok(Answer::Ack)
    }

    fn set_vring_enable(&mut self, payload: &[u8], device: &mut Device) -> Handled {
        let RingNumber { index, number } = ring_number(payload)?;
        let (queue, _) = self.ring(index)?;
        let enabled = match number {
            0 => false,
            1 => true,
            _ => return Err(ProtocolError::Value(u64::from(number))),
        };
        device.apply(Op::EnableQueue(queue, enabled)).map_err(ProtocolError::Device)?;
        Ok(Answer::Ack)
    }

    /// Rings stop and forget what they were given, features too; memory, protocol features and the
    /// connection stay (VU-MSG-09).
    fn reset_device(&mut self, device: &mut Device) -> Handled {
        device.apply(Op::Reset).map_err(ProtocolError::Device)?;
        self.rings
            .iter_mut()
            .for_each(|ring| *ring = Ring { err: ring.err.take(), ..Ring::default() });
        self.features = None;
        self.status = 0;
        let space = self.memory.space()?;
        device.apply(Op::Memory(space)).map_err(ProtocolError::Device)?;
        Ok(Answer::Ack)
    }

    fn ring(&mut self, index: u32) -> Result<(QueueIndex, &mut Ring), ProtocolError> {
        let narrow = u16::try_from(index).map_err(|_| ProtocolError::NoSuchRing(index))?;
        let ring = self.rings.get_mut(usize::from(narrow));
        Ok((QueueIndex(narrow), ring.ok_or(ProtocolError::NoSuchRing(index))?))
    }

    /// Stops a running ring and keeps its position.
    fn pause(&mut self, queue: QueueIndex, device: &mut Device) -> Result<(), ProtocolError> {
        let (_, ring) = self.ring(u32::from(queue.0))?;
        if ring.running {
            ring.running = false;
            device.apply(Op::StopQueue(queue)).map_err(ProtocolError::Device)?;
            ring.base = device.cursor(queue).map_or(ring.base, |cursor| cursor.avail);
        }
        Ok(())
    }

    /// Starts every ring that is to run and has all it needs.
    fn start_what_can(
        &mut self,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<(), ProtocolError> {
        if self.features.is_none() {
            return Ok(());
        }
        let space = self.memory.space()?;
        for (index, ring) in (0..).map(QueueIndex).zip(&mut self.rings) {
            if ring.running || !ring.kicked || ring.size == 0 {
                continue;
            }
            let guest = |at: u64| space.map().guest_of(UserAddr(at));
            let Some(addresses) = ring.addresses else { continue };
            let areas = [addresses.descriptors, addresses.avail, addresses.used].map(guest);
            let [Some(descriptors), Some(driver), Some(used)] = areas else { continue };
            let setup = QueueSetup { size: ring.size, descriptors, driver, device: used };
            let mut idx = [0; 2];
            let at = used.checked_add(IDX_OFFSET).unwrap_or(GuestAddr(u64::MAX));
            let seen = space.read(at, &mut idx).then(|| u16::from_le_bytes(idx));
            // What was taken and not used before stays owed; only a position that can be is
            // believed.
            let behind = |used: &u16| ring.base.wrapping_sub(*used) <= ring.size;
            let cursor =
                Cursor { avail: ring.base, used: seen.filter(behind).unwrap_or(ring.base) };
            match device.apply(Op::StartQueue { index, setup, cursor }) {
                Ok(()) => {
                    ring.running = true;
                    events(Event::QueueStarted { queue: index, size: ring.size });
                }
                // The driver's doing: this ring stands still, the connection goes on.
                Err(error @ OpError::Queue(..)) => {
                    ring.kicked = false;
                    ring.err.iter().for_each(signal);
                    events(Event::QueueRefused(error));
                }
                // The host's: said aloud, tried again when something changes.
                Err(error @ OpError::Endpoint(_)) => events(Event::QueueRefused(error)),
                Err(error) => return Err(ProtocolError::Device(error)),
            }
        }
        Ok(())
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// The features shown to the front-end.
fn offered(device: &Device) -> u64 {
    // Bits past 63 do not fit the message; a front-end cannot ask for them.
    let low = device.offer().0 & u128::from(u64::MAX);
    u64::try_from(low).unwrap_or(0) | F_PROTOCOL_FEATURES
}

/// Requests that are always answered; an acknowledgement in place of the answer would be read as
/// one (VU-RPL-01).
fn has_own_reply(request: Option<Request>) -> bool {
    matches!(
        request,
        Some(
            Request::GetFeatures
                | Request::GetProtocolFeatures
                | Request::GetVringBase
                | Request::GetQueueNum
                | Request::GetMaxMemSlots
                | Request::GetConfig
                | Request::GetStatus
        )
    )
}

fn ring_number(payload: &[u8]) -> Result<RingNumber, ProtocolError> {
    RingNumber::decode(payload).ok_or(ProtocolError::Payload)
}

/// The ring and its descriptor, or none if the message says that none comes (VU-MSG-04).
fn ring_fd(payload: &[u8], fds: Vec<OwnedFd>) -> Result<(u32, Option<OwnedFd>), ProtocolError> {
    let value = number(payload).ok_or(ProtocolError::Payload)?;
    let [index, ..] = value.to_le_bytes();
    let index = u32::from(index);
    if value & NO_FD != 0 {
        return Ok((index, None));
    }
    let [fd] = <[OwnedFd; 1]>::try_from(fds)
        .map_err(|fds| ProtocolError::Fds { wanted: 1, got: fds.len() })?;
    Ok((index, Some(fd)))
}

fn net_set_mtu(payload: &[u8], device: &Device) -> Handled {
    let mtu = number(payload).ok_or(ProtocolError::Payload)?;
    let fits = (68..=u64::from(device.mtu())).contains(&mtu);
    if fits { Ok(Answer::Ack) } else { Err(ProtocolError::Value(mtu)) }
}

fn get_config(payload: &[u8], device: &Device) -> Handled {
    let mut fields = Fields::of(payload);
    let asked = [fields.u32(), fields.u32(), fields.u32()];
    let [Some(offset), Some(size), Some(_flags)] = asked else {
        return Err(ProtocolError::Payload);
    };
    let range = usize::try_from(offset).ok().zip(usize::try_from(size).ok());
    let range = range.filter(|(offset, size)| offset.saturating_add(*size) <= CONFIG_MAX);
    let (offset, size) = range.ok_or(ProtocolError::Value(u64::from(size)))?;
    let header = payload.get(..12).unwrap_or(&[]).iter().copied();
    // Behind our fields a front-end that asks for more reads zeroes (CFG-06).
    let config = device.config_space().into_iter().chain(std::iter::repeat(0));
    Ok(Answer::Reply(header.chain(config.skip(offset).take(size)).collect()))
}
