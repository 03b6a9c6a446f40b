//! What a server has to tell its program, and how a front-end can break the protocol.

use std::{fmt, io};

use vionet::endpoint::{EndpointFault, OpenError};
use vionet::{OpError, PairFault, PairIndex, QueueIndex};
use vionet_raw::MapError;
use vionet_socket::DescriptorError;
use vionet_spec::feature::FeatureBits;

/// Something that happened, in order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A front-end has connected.
    Connected,
    /// A message has come.
    Message {
        /// Its name.
        name: &'static str,
    },
    /// Features were agreed on.
    Negotiated(FeatureBits),
    /// What the driver chose is not served; its queues stay stopped until it chooses anew.
    FeaturesRefused(OpError),
    /// A queue has come to life.
    QueueStarted {
        /// The queue.
        queue: QueueIndex,
        /// Its size.
        size: u16,
    },
    /// A queue has been stopped by the front-end.
    QueueStopped(QueueIndex),
    /// A queue could not start; it stands still until the front-end configures it anew.
    QueueRefused(OpError),
    /// A driver broke a rule of the ring; that queue stands still.
    QueueFault(PairFault),
    /// The host side of a queue pair failed.
    HostFault {
        /// The pair.
        pair: PairIndex,
        /// What happened.
        fault: EndpointFault,
    },
    /// The host side did not take a change of what was agreed with the driver.
    NotAdapted(OpenError),
    /// A worker has ended by a defect of ours; its queue pair is not served any more.
    WorkerLost(PairIndex),
    /// A worker has not answered for ten seconds; its queue pair is given up until the next reset.
    WorkerSilent(PairIndex),
    /// A message was refused, and the front-end told so; the connection goes on.
    MessageRefused(ProtocolError),
    /// The front-end broke the protocol; its connection ends.
    ProtocolError(ProtocolError),
    /// The front-end is gone.
    Disconnected,
    /// A second front-end was turned away: one is served at a time.
    TurnedAway,
    /// A front-end knocks, and the system has no descriptor or memory left for it; it is let in
    /// when there is. Told once for each that waits.
    NoRoom(io::Error),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("front-end connected"),
            Self::Message { name } => write!(f, "message {name}"),
            Self::Negotiated(bits) => write!(f, "features agreed: {bits:?}"),
            Self::FeaturesRefused(error) => write!(f, "{error}"),
            Self::QueueStarted { queue, size } => {
                write!(f, "queue {} started, {size} entries", queue.0)
            }
            Self::QueueStopped(queue) => write!(f, "queue {} stopped", queue.0),
            Self::QueueRefused(error) => write!(f, "{error}"),
            Self::QueueFault(fault) => write!(f, "the driver broke a rule: {fault}"),
            Self::HostFault { pair, fault } => write!(f, "queue pair {}: {fault}", pair.0),
            Self::NotAdapted(error) => write!(f, "{error}; what it brings unasked is dropped"),
            Self::WorkerLost(pair) => {
                write!(
                    f,
                    "the worker of queue pair {} is lost: restart vionet, report this",
                    pair.0
                )
            }
            Self::WorkerSilent(pair) => {
                write!(
                    f,
                    "the worker of queue pair {} has not answered for 10 s and is given up: see \
                     what holds its host side up, then have the guest reset the NIC",
                    pair.0
                )
            }
            Self::MessageRefused(error) => write!(f, "refused: {error}"),
            Self::ProtocolError(error) => write!(f, "connection ended: {error}"),
            Self::Disconnected => f.write_str("front-end gone, waiting for the next"),
            Self::NoRoom(cause) => {
                write!(f, "a front-end has to wait: {cause}; close something, or raise the limit")
            }
            Self::TurnedAway => f.write_str("a second front-end was turned away"),
        }
    }
}

/// How a front-end broke the protocol.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The header names another version.
    Version,
    /// A reply to nothing we asked.
    UnexpectedReply,
    /// The payload is longer than the message can have.
    TooLong,
    /// More descriptors than a message can bring.
    TooManyFds,
    /// The wrong number of descriptors.
    Fds {
        /// What the message needs.
        wanted: usize,
        /// What came.
        got: usize,
    },
    /// An unknown message, by id.
    Unknown(u32),
    /// A message of a feature that is not offered.
    NotServed,
    /// The connection ended inside a message.
    CutOff,
    /// A descriptor that is not let in.
    Descriptor(DescriptorError),
    /// The front-end has stopped in the middle of a message.
    Stalled,
    /// The payload is not what the message needs.
    Payload,
    /// A bit that was not offered.
    NotOffered(u64),
    /// No such ring.
    NoSuchRing(u32),
    /// A value that cannot be.
    Value(u64),
    /// The ring runs, and this cannot change then.
    RingRunning(u16),
    /// More memory regions than there are slots.
    TooManyRegions,
    /// More memory than a front-end may have mapped here, in bytes.
    TooMuchMemory(u64),
    /// No such memory region.
    NoSuchRegion,
    /// The regions make no map.
    Memory(MapError),
    /// A region could not be mapped.
    Map(io::Error),
    /// The device refused.
    Device(OpError),
    /// The front-end does not read its replies.
    ReplyNotTaken,
    /// The socket failed.
    Socket(io::Error),
    /// The message that went wrong, and how.
    In(&'static str, Box<Self>),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version => f.write_str("the message header has another version than 1"),
            Self::UnexpectedReply => f.write_str("a reply came although nothing was asked"),
            Self::TooLong => f.write_str("the payload is longer than the message can have"),
            Self::TooManyFds => f.write_str("more descriptors than a message can bring"),
            Self::Fds { wanted, got } => write!(f, "{wanted} descriptors needed, {got} came"),
            Self::Unknown(id) => write!(f, "message {id} is not known"),
            Self::NotServed => f.write_str("it belongs to a feature that is not offered"),
            Self::CutOff => f.write_str("the connection was closed in the middle of a message"),
            Self::Descriptor(error) => write!(f, "{error}"),
            Self::Stalled => f.write_str("a message was begun and not ended in time"),
            Self::Payload => f.write_str("the payload has not the shape of this message"),
            Self::NotOffered(bits) => write!(f, "bits {bits:#x} were not offered"),
            Self::NoSuchRing(index) => write!(f, "there is no ring {index}"),
            Self::Value(value) => write!(f, "{value} cannot be set"),
            Self::RingRunning(index) => write!(f, "ring {index} runs; stop it first"),
            Self::TooManyRegions => f.write_str("all memory slots are taken"),
            Self::TooMuchMemory(limit) => write!(f, "more than {limit} bytes of memory in all"),
            Self::NoSuchRegion => f.write_str("there is no such memory region"),
            Self::Memory(error) => write!(f, "{error}"),
            Self::Map(error) => write!(f, "memory cannot be mapped: {error}; is it shared?"),
            Self::Device(error) => write!(f, "{error}"),
            Self::ReplyNotTaken => f.write_str("the front-end does not read its replies"),
            Self::Socket(error) => write!(f, "the socket failed: {error}"),
            Self::In(message, error) => write!(f, "{message}: {error}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

impl From<DescriptorError> for ProtocolError {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}
