//! What a server has to tell its program, how a client can break the protocol, and what it can ask
//! for in vain.

use std::{fmt, io};

use rustix::io::Errno;
use vionet::Report;
use vionet::state::{RestoreError, SaveError, StateError};
use vionet::transport::Unsettled;
use vionet_socket::DescriptorError;

/// Something that happened, in order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A client has connected.
    Connected,
    /// A message has come.
    Message {
        /// Its name.
        name: &'static str,
    },
    /// A message was refused, and the client told so; the connection goes on.
    Refused {
        /// Its name.
        name: &'static str,
        /// Why.
        why: Refusal,
    },
    /// The device has something to say: a broken rule of the driver, trouble on the host's side.
    Device(Report),
    /// The device did not come to rest when its client was gone; it is tried on.
    Restless(Unsettled),
    /// The client broke the protocol; its connection ends.
    ProtocolError(ProtocolError),
    /// The client is gone.
    Disconnected,
    /// A second client was turned away: one is served at a time.
    TurnedAway,
    /// A client knocks, and the system has no descriptor, memory or thread left for it.
    NoRoom(io::Error),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("client connected"),
            Self::Message { name } => write!(f, "message {name}"),
            Self::Refused { name, why } => write!(f, "refused: {name}: {why}"),
            Self::Device(Report::Fault(fault)) => write!(f, "the driver broke a rule: {fault}"),
            Self::Device(report) => write!(f, "{report}"),
            Self::Restless(error) => write!(f, "{error}"),
            Self::ProtocolError(error) => write!(f, "connection ended: {error}"),
            Self::Disconnected => f.write_str("client gone, waiting for the next"),
            Self::TurnedAway => f.write_str("a second client was turned away"),
            Self::NoRoom(cause) => {
                write!(f, "a client has to wait: {cause}; close something, or raise the limit")
            }
        }
    }
}

/// How a client broke the protocol: what comes next cannot be understood, or nobody listens.
#[derive(Debug)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A message that is no command: we ask nothing, so nothing is to be replied to.
    NoCommand,
    /// A message that is shorter than its header.
    TooShort,
    /// A message that is longer than was agreed.
    TooLong,
    /// More descriptors than a message can bring.
    TooManyFds,
    /// The first message is not VERSION.
    NoVersion(&'static str),
    /// Another major version than 0.
    Version(u16),
    /// A descriptor that is not let in.
    Descriptor(DescriptorError),
    /// The connection ended inside a message.
    CutOff,
    /// The client has stopped in the middle of a message.
    Stalled,
    /// The client does not read its replies.
    ReplyNotTaken,
    /// The socket failed.
    Socket(io::Error),
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand => f.write_str("a reply came although nothing was asked"),
            Self::TooShort => f.write_str("a message says it is shorter than its header"),
            Self::TooLong => f.write_str("a message is longer than was agreed"),
            Self::TooManyFds => f.write_str("more descriptors than a message can bring"),
            Self::NoVersion(name) => write!(f, "{name} came before VERSION"),
            Self::Version(major) => {
                write!(f, "the client speaks version {major} of the protocol, not 0")
            }
            Self::Descriptor(error) => write!(f, "{error}"),
            Self::CutOff => f.write_str("the connection was closed in the middle of a message"),
            Self::Stalled => f.write_str("a message was begun and not ended in time"),
            Self::ReplyNotTaken => f.write_str("the client does not read its replies"),
            Self::Socket(error) => write!(f, "the socket failed: {error}"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// Why a message was answered with an error.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// No command has this number.
    Unknown(u16),
    /// The command belongs to what this server does not offer.
    NotServed,
    /// The payload has not the shape of this command.
    Payload,
    /// Flags that are not known, or contradict each other.
    Flags(u32),
    /// The answer is longer than the client has room for.
    NoRoom,
    /// VERSION came twice, or with what is no JSON.
    Version,
    /// The device has no such region, or not these bytes in it.
    Place,
    /// The device has no such interrupt, or it cannot do that.
    Irq,
    /// The wrong number of descriptors.
    Fds {
        /// What the message needs.
        wanted: usize,
        /// What came.
        got: usize,
    },
    /// A descriptor that is not let in.
    Descriptor(DescriptorError),
    /// The region lies over another, or around the end of addresses.
    Overlap,
    /// No region has this address and size.
    NotMapped,
    /// More regions than there is room for.
    TooManyRegions,
    /// More memory than a client may have mapped here, in bytes.
    TooMuchMemory(u64),
    /// The region could not be mapped.
    Map(io::Error),
    /// A worker does not come to rest.
    Restless(Unsettled),
    /// The device has no such feature.
    Feature,
    /// This cannot be while the device is in the migration state it is in.
    State,
    /// More bytes than a saved device has.
    TooLong,
    /// The device cannot be saved.
    Save(SaveError),
    /// The bytes are no saved device.
    Saved(StateError),
    /// The saved device cannot be this one.
    Restore(RestoreError),
}

impl Refusal {
    /// What the reply says, as a number of the system.
    pub(crate) fn errno(&self) -> u32 {
        let errno = match self {
            Self::Unknown(_) | Self::NotServed => Errno::OPNOTSUPP,
            Self::Payload
            | Self::Flags(_)
            | Self::NoRoom
            | Self::Version
            | Self::Place
            | Self::Irq
            | Self::Fds { .. }
            | Self::Descriptor(_)
            | Self::State
            | Self::Saved(_)
            | Self::Restore(_) => Errno::INVAL,
            Self::Feature => Errno::NOTTY,
            Self::Overlap => Errno::EXIST,
            Self::NotMapped => Errno::NOENT,
            Self::TooManyRegions | Self::TooLong => Errno::NOSPC,
            Self::TooMuchMemory(_) => Errno::NOMEM,
            Self::Map(error) => Errno::from_io_error(error).unwrap_or(Errno::INVAL),
            Self::Restless(_) | Self::Save(_) => Errno::BUSY,
        };
        errno.raw_os_error().unsigned_abs()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "there is no command {number}"),
            Self::NotServed => f.write_str("it belongs to what is not offered"),
            Self::Payload => f.write_str("the payload has not the shape of this command"),
            Self::Flags(flags) => write!(f, "flags {flags:#x} make no sense"),
            Self::NoRoom => f.write_str("the answer is longer than the client has room for"),
            Self::Version => f.write_str("it came before, or what it says is no JSON"),
            Self::Place => f.write_str("the device has no such region, or not these bytes in it"),
            Self::Irq => f.write_str("the device has no such interrupt, or it cannot do that"),
            Self::Fds { wanted, got } => write!(f, "{wanted} descriptors needed, {got} came"),
            Self::Descriptor(error) => write!(f, "{error}"),
            Self::Overlap => f.write_str("another region is there, or addresses end before it"),
            Self::NotMapped => f.write_str("no region has this address and size"),
            Self::TooManyRegions => f.write_str("all regions are taken"),
            Self::TooMuchMemory(limit) => write!(f, "more than {limit} bytes of memory in all"),
            Self::Map(error) => write!(f, "memory cannot be mapped: {error}; is it shared?"),
            Self::Restless(error) => write!(f, "{error}"),
            Self::Feature => f.write_str("the device has no such feature"),
            Self::State => f.write_str("the device is in a state in which this cannot be"),
            Self::TooLong => f.write_str("a saved device has fewer bytes"),
            Self::Save(error) => write!(f, "{error}"),
            Self::Saved(error) => write!(f, "{error}"),
            Self::Restore(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<DescriptorError> for Refusal {
    fn from(error: DescriptorError) -> Self {
        Self::Descriptor(error)
    }
}
