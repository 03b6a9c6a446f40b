//! A front-end's session: each message to its effect, each request to its one answer.
//!
//! ```text
//!   message --> dispatch --> features   settled with the device
//!                            memory     table of regions -> map    --+
//!                            rings      see `rings`                  +--> operations on the device
//!           <-- answer:      a reply of its own, or, if asked for and agreed, 0 or 1
//! ```
//!
//! Messages are handled strictly in order, each one to its end before it is answered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vionet::{Device, Op, OpError};
use vionet_socket::Patience;
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::MTU_MIN;
use vionet_spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK};

use crate::backchannel::Backchannel;
use crate::channel::{Channel, Incoming};
use crate::event::{Event, ProtocolError};
use crate::memory::{SLOTS, Table};
use crate::message::{
    ConfigRange, Message, RegionSpec, Request, RingAddresses, RingNumber, number, reply,
};
use crate::rings::{Events, RingFd, Rings};
use crate::server::Limits;

/// Feature bit that says that messages 15 and 16 are known; never shown to a driver.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;

const PROTOCOL_F_MQ: u64 = 1;
const PROTOCOL_F_RARP: u64 = 1 << 2;
const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
const PROTOCOL_F_MTU: u64 = 1 << 4;
const PROTOCOL_F_BACKEND_REQ: u64 = 1 << 5;
const PROTOCOL_F_CONFIG: u64 = 1 << 9;
const PROTOCOL_F_RESET_DEVICE: u64 = 1 << 13;
const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
const PROTOCOL_F_STATUS: u64 = 1 << 16;

const PROTOCOL_FEATURES: u64 = PROTOCOL_F_MQ
    | PROTOCOL_F_RARP
    | PROTOCOL_F_REPLY_ACK
    | PROTOCOL_F_MTU
    | PROTOCOL_F_BACKEND_REQ
    | PROTOCOL_F_CONFIG
    | PROTOCOL_F_RESET_DEVICE
    | PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | PROTOCOL_F_STATUS;

/// Bit of the ring descriptor messages: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// The most messages handled before the server looks around again: a front-end that never pauses
/// must not keep it from stopping.
const TURN: usize = 64;

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
    patience: Patience,
    rings: Rings,
    backchannel: Backchannel,
    memory: Table,
    features: Option<u64>,
    protocol_features: u64,
    /// As the front-end has written it.
    status: u64,
    /// A queue was broken since the last reset: what the status shows beside (ST-03).
    needs_reset: bool,
    /// Whether it has sent a message yet.
    spoken: bool,
}

type Handled = Result<Answer, ProtocolError>;

impl Session {
    pub(crate) fn new(socket: OwnedFd, device: &Device, limits: Limits) -> Self {
        Self {
            channel: Channel::new(socket),
            patience: Patience::new(limits.half_message),
            rings: Rings::new(device.queues()),
            backchannel: Backchannel::default(),
            memory: Table::new(limits.mapped_bytes),
            features: None,
            protocol_features: 0,
            status: 0,
            needs_reset: false,
            spoken: false,
        }
    }

    /// Handles messages that have come, up to a bounded number.
    pub(crate) fn read(
        &mut self,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<State, ProtocolError> {
        for _ in 0..TURN {
            match self.channel.read()? {
                Incoming::Message(message) => self.handle(message, device, events)?,
                Incoming::Later => break,
                Incoming::Closed => return Ok(State::Closed),
            }
        }
        self.patience.watch(self.channel.half_said()).map_err(ProtocolError::Socket)?;
        Ok(State::Open)
    }

    /// Readable when a message has been half said for too long, unless its rest is there, too.
    pub(crate) fn stalled(&self) -> Option<BorrowedFd<'_>> {
        self.patience.fd()
    }

    /// Passes on what workers have reported.
    pub(crate) fn hear(&mut self, device: &mut Device, events: Events<'_>) {
        self.rings.hear(device, events);
        let news = self.rings.take_config_changed() | self.note_faults();
        if news && self.protocol_features & PROTOCOL_F_CONFIG != 0 {
            self.backchannel.tell_config_changed();
        }
    }

    /// Whether the driver, which is at work, has to be told of a broken queue now (ST-04).
    fn note_faults(&mut self) -> bool {
        let is_new = self.rings.take_fault_heard() && !self.needs_reset;
        self.needs_reset |= is_new;
        is_new && self.status & u64::from(DRIVER_OK) != 0
    }

    /// Closes the socket on which we could ask; whether there was one. It may have been the other
    /// end of this connection, which could not be seen to end before.
    pub(crate) fn let_go_of_backchannel(&mut self) -> bool {
        self.backchannel.replace(None)
    }

    /// Ends the session: every ring stops, memory is let go. Says whether the other side had sent
    /// any message: who only knocks to see whether somebody listens is no front-end.
    pub(crate) fn end(mut self, device: &mut Device, events: Events<'_>) -> bool {
        self.rings.end(device, events);
        self.spoken
    }

    fn handle(
        &mut self,
        message: Message,
        device: &mut Device,
        events: Events<'_>,
    ) -> Result<(), ProtocolError> {
        self.spoken = true;
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
        // An acknowledgement in place of a reply of its own would be taken for that reply.
        let may_fail = wants_ack && !request.is_some_and(Request::has_own_reply);
        match handled {
            Ok(Answer::Reply(payload)) => self.channel.send(&reply(header.id, &payload)),
            Ok(Answer::Ack) if wants_ack => self.acknowledge(header.id, 0),
            Ok(Answer::Ack) => Ok(()),
            Err(error) => {
                let error = ProtocolError::In(name, Box::new(error));
                if may_fail {
                    events(Event::MessageRefused(error));
                    self.acknowledge(header.id, 1)
                } else {
                    Err(error)
                }
            }
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
        // What a message should not have brought is closed when `fds` is dropped.
        let Message { payload, fds, .. } = message;
        let payload = payload.as_slice();
        match request {
            Request::GetFeatures => Ok(Answer::number(offered(device))),
            Request::SetFeatures => self.set_features(payload, device, events),
            Request::GetProtocolFeatures => Ok(Answer::number(PROTOCOL_FEATURES)),
            Request::SetProtocolFeatures => self.set_protocol_features(payload),
            // Rings, not pairs: what most front-ends mean, and enough for the others (VU-PIT-03).
            Request::GetQueueNum => Ok(Answer::number(u64::from(device.queues()))),
            // RESET_OWNER is obsolete: dropping state would surprise those who still send it.
            Request::SetOwner | Request::ResetOwner | Request::SetLogFd => Ok(Answer::Ack),
            Request::SetMemTable => self.set_mem_table(payload, fds, device, events),
            Request::AddMemReg => self.add_mem_reg(payload, fds, device, events),
            Request::RemMemReg => self.rem_mem_reg(payload, device, events),
            Request::GetMaxMemSlots => Ok(Answer::number(u64::try_from(SLOTS).unwrap_or(8))),
            Request::SetVringNum => ack(self.rings.set_size(ring_number(payload)?, device, events)),
            Request::SetVringAddr => {
                let addresses = RingAddresses::decode(payload).ok_or(ProtocolError::Payload)?;
                ack(self.rings.set_addresses(addresses, device, events))
            }
            Request::SetVringBase => {
                ack(self.rings.set_base(ring_number(payload)?, device, events))
            }
            Request::GetVringBase => {
                let base = self.rings.stop(ring_number(payload)?.index, device, events)?;
                Ok(Answer::Reply(base.encode().to_vec()))
            }
            Request::SetVringKick => ack(self.rings.kick(ring_fd(payload, fds)?, device, events)),
            Request::SetVringCall => ack(self.rings.call(ring_fd(payload, fds)?, device)),
            Request::SetVringErr => ack(self.rings.err(ring_fd(payload, fds)?)),
            Request::SetVringEnable => ack(self.rings.enable(ring_number(payload)?, device)),
            Request::SendRarp => send_rarp(payload, device),
            Request::SetBackendReqFd => {
                // An older one is closed.
                let (true | false) = self.backchannel.replace(Some(one(fds)?));
                Ok(Answer::Ack)
            }
            Request::NetSetMtu => net_set_mtu(payload, device),
            Request::GetConfig => get_config(payload, device),
            Request::SetConfig => set_config(payload),
            Request::ResetDevice => self.reset_device(device, events),
            Request::SetStatus => self.set_status(payload),
            Request::GetStatus => Ok(Answer::number(self.status())),
            Request::SetLogBase
            | Request::IotlbMsg
            | Request::SetVringEndian
            | Request::PostcopyAdvise
            | Request::PostcopyListen
            | Request::PostcopyEnd
            | Request::GetInflightFd
            | Request::SetInflightFd
            | Request::VringKick
            | Request::GetSharedObject
            | Request::SetDeviceStateFd
            | Request::CheckDeviceState => Err(ProtocolError::NotServed),
        }
    }

    fn set_status(&mut self, payload: &[u8]) -> Handled {
        self.status = number(payload).ok_or(ProtocolError::Payload)?;
        // 0 is how a driver resets (ST-01); what was broken before is over.
        if self.status == 0 {
            self.rings.forget_faults();
            self.needs_reset = false;
        }
        Ok(Answer::Ack)
    }

    /// What was written, and what the device has to say (ST-03).
    fn status(&self) -> u64 {
        let more = if self.needs_reset { u64::from(DEVICE_NEEDS_RESET) } else { 0 };
        self.status | more
    }

    fn set_features(&mut self, payload: &[u8], device: &mut Device, events: Events<'_>) -> Handled {
        let bits = number(payload).ok_or(ProtocolError::Payload)?;
        let surplus = bits & !offered(device);
        if surplus != 0 {
            return Err(ProtocolError::NotOffered(surplus));
        }
        let driver = FeatureBits(u128::from(bits & !F_PROTOCOL_FEATURES));
        // QEMU serves the control queue itself, and leaves in what needs it (VU-PIT-26). So does
        // Cloud Hypervisor, which leaves in the control queue's own bit, too.
        match device.apply(Op::NegotiateByFrontEnd(driver)) {
            Ok(()) => {
                if self.features != Some(bits) {
                    events(Event::Negotiated(driver));
                }
                self.features = Some(bits);
            }
            // A driver that cannot be served is no reason to lose the front-end: the next driver
            // of the same machine may be another.
            Err(error @ OpError::Refused(_)) => {
                self.features = None;
                events(Event::FeaturesRefused(error));
            }
            Err(error) => return Err(ProtocolError::Device(error)),
        }
        if bits & F_PROTOCOL_FEATURES == 0 {
            self.rings.enable_all(device)?;
        }
        ack(self.rings.agree(self.features.is_some(), device, events))
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
        let changed = self.memory.replace(&specs, fds)?;
        self.memory_changed(changed, device, events)
    }

    fn add_mem_reg(
        &mut self,
        payload: &[u8],
        fds: Vec<OwnedFd>,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        let spec = RegionSpec::single(payload).ok_or(ProtocolError::Payload)?;
        let changed = self.memory.add(spec, &one(fds)?)?;
        self.memory_changed(changed, device, events)
    }

    fn rem_mem_reg(&mut self, payload: &[u8], device: &mut Device, events: Events<'_>) -> Handled {
        let spec = RegionSpec::single(payload).ok_or(ProtocolError::Payload)?;
        let changed = self.memory.remove(spec)?;
        self.memory_changed(changed, device, events)
    }

    /// The same said twice in a row is normal (VU-PIT-21), and no reason to stop a ring.
    fn memory_changed(
        &mut self,
        changed: bool,
        device: &mut Device,
        events: Events<'_>,
    ) -> Handled {
        if changed {
            self.rings.move_to(self.memory.space()?, device, events)?;
        }
        Ok(Answer::Ack)
    }

    /// Rings and features go back to the start; memory, protocol features and the connection stay
    /// (VU-MSG-09).
    fn reset_device(&mut self, device: &mut Device, events: Events<'_>) -> Handled {
        self.features = None;
        (self.status, self.needs_reset) = (0, false);
        ack(self.rings.reset(device, events))
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// What a device may offer and this way to it does not carry.
///
/// No message resets a ring: QEMU shows the feature to the guest if it sees it here, but tells only
/// the kernel's back-end of a reset, and the guest's next size would be news to us (VU-PIT-06). A
/// ring is resized all the same by front-ends that stop it and start it anew.
const NOT_CARRIED: FeatureBits = FeatureBits::of(&[Feature::RING_RESET]);

/// The features shown to the front-end.
fn offered(device: &Device) -> u64 {
    // Bits past 63 do not fit the message; a front-end cannot ask for them.
    let low = device.offer().0 & !NOT_CARRIED.0 & u128::from(u64::MAX);
    u64::try_from(low).unwrap_or(0) | F_PROTOCOL_FEATURES
}

fn ack(done: Result<(), ProtocolError>) -> Handled {
    done.map(|()| Answer::Ack)
}

fn ring_number(payload: &[u8]) -> Result<RingNumber, ProtocolError> {
    RingNumber::decode(payload).ok_or(ProtocolError::Payload)
}

fn one(fds: Vec<OwnedFd>) -> Result<OwnedFd, ProtocolError> {
    let wrong = |fds: Vec<OwnedFd>| ProtocolError::Fds { wanted: 1, got: fds.len() };
    <[OwnedFd; 1]>::try_from(fds).map(|[fd]| fd).map_err(wrong)
}

/// The ring and its descriptor, or none if the message says that none comes (VU-MSG-04).
fn ring_fd(payload: &[u8], fds: Vec<OwnedFd>) -> Result<RingFd, ProtocolError> {
    let value = number(payload).ok_or(ProtocolError::Payload)?;
    let [index, ..] = value.to_le_bytes();
    let fd = if value & NO_FD == 0 { Some(one(fds)?) } else { None };
    Ok((u32::from(index), fd))
}

/// Announces the guest's address on the network that it has come to (VU-MSG-06).
fn send_rarp(payload: &[u8], device: &mut Device) -> Handled {
    let (mac, _) = payload.split_first_chunk().ok_or(ProtocolError::Payload)?;
    ack(device.apply(Op::Announce(*mac)).map_err(ProtocolError::Device))
}

fn net_set_mtu(payload: &[u8], device: &Device) -> Handled {
    let mtu = number(payload).ok_or(ProtocolError::Payload)?;
    let fits = (u64::from(MTU_MIN)..=u64::from(device.mtu())).contains(&mtu);
    if fits { Ok(Answer::Ack) } else { Err(ProtocolError::Value(mtu)) }
}

/// Answers with as many bytes as were asked for, or with none at all for a range that cannot be.
fn get_config(payload: &[u8], device: &Device) -> Handled {
    let range = ConfigRange::decode(payload).ok_or(ProtocolError::Payload)?;
    if !range.is_inside() {
        return Ok(Answer::Reply(Vec::new()));
    }
    // Behind our fields a front-end that asks for more reads zeroes (CFG-06).
    let config = device.config_space().into_iter().chain(std::iter::repeat(0));
    let bytes = config.skip(range.offset).take(range.size);
    Ok(Answer::Reply(range.header.into_iter().chain(bytes).collect()))
}

/// Every field is read-only for a modern driver, so writes change nothing (NET-CFG-18).
fn set_config(payload: &[u8]) -> Handled {
    let range = ConfigRange::decode(payload).ok_or(ProtocolError::Payload)?;
    let value = u64::try_from(range.offset).unwrap_or(u64::MAX);
    if range.is_inside() { Ok(Answer::Ack) } else { Err(ProtocolError::Value(value)) }
}
