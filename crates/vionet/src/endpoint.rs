//! Seam 1: the host side of a network device.
//!
//! An [`Endpoint`] belongs to the NIC for its whole life and may hold what is dear (a tap, bound
//! ports). Each time a driver has settled its features it is opened: it gives one
//! [`EndpointQueue`] per queue pair, which moves to the pair's worker and is dropped on reset.
//!
//! ```text
//!             one call per batch, never concurrent, never blocking
//!   TxBatch  ---- transmit() --->  +---------------+
//!   RxSink   <--- receive() -----  | EndpointQueue | ---> tap, sockets, ...
//!                                  +---------------+
//! ```
//!
//! Frames start at the Ethernet header; the virtio header never reaches an endpoint. What it
//! said reaches it checked, as a [`Request`].

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use vionet_frame::coalesce::Arrival;
use vionet_frame::hash::Hashed;
use vionet_frame::header::{Offloads, Request};

#[cfg(feature = "std")]
pub use crate::pair::{Delivery, Inlet};
pub use crate::pair::{Refused, RxSink, TxBatch, TxFrame};
use crate::time::Instant;

/// What an endpoint can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What it takes unfinished from the guest; the rest is finished in software before.
    pub transmit: Offloads,
    /// What it can hand over unfinished to the guest, if the guest agrees.
    pub receive: Offloads,
    /// The most queue pairs it serves.
    pub pairs_max: u16,
    /// The largest IP packet it carries, in bytes.
    pub mtu: u16,
}

/// What has been agreed, told to an endpoint when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What arrives unfinished: never more than the endpoint's own [`Capabilities::transmit`].
    pub transmit: Offloads,
    /// What may be handed over unfinished: never more than [`Capabilities::receive`]. The guest's
    /// side drops what exceeds it.
    pub receive: Offloads,
    /// How many queue pairs are wanted.
    pub pairs: u16,
    /// The first so many of them are in use: what arrives is for them alone.
    pub active: u16,
    /// The driver may have frames spread over pairs by a table: each pair needs an inlet.
    pub spreads: bool,
    /// The largest IP packet the guest takes that is not to be cut, in bytes.
    pub mtu: u16,
}

/// How an arriving frame is to be understood by the guest; the default is a finished frame of
/// which nothing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RxHeader {
    /// What is left open, within [`Settings::receive`].
    pub request: Request,
    /// Length of all headers as the endpoint's own parse found it, or 0.
    pub header_len: u16,
    /// The outermost checksum has been validated.
    pub validated: bool,
    /// Of how many arrived segments the frame was joined, if it was (RSC_EXT); else 0.
    pub segments: u16,
    /// The frame's hash, of what the guest has asked for; set on the guest's side.
    pub hash: Hashed,
}

impl RxHeader {
    /// The default, as a constant: a frame whose header has nothing to say costs no look at it.
    pub const PLAIN: Self = Self {
        request: Request { csum: None, gso: None, tunnel: None },
        header_len: 0,
        validated: false,
        segments: 0,
        hash: Hashed::NONE,
    };

    /// Whether the guest's header would have nothing to say, but for a hash it has asked for.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.request == Request::default() && !self.validated
    }
}

/// What an endpoint queue waits for when it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Watch {
    /// Receive when the descriptor becomes readable.
    pub readable: bool,
    /// The endpoint is full: transmit again when the descriptor becomes writable, or when
    /// receiving has made room.
    pub writable: bool,
    /// Receive at this time at the latest.
    pub deadline: Option<Instant>,
}

/// Where the remedy for an [`OpenError`] lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenKind {
    /// A right, or a feature of the kernel, is missing.
    Privilege,
    /// What was asked for does not exist or makes no sense.
    Config,
    /// The host failed otherwise: taken, full, broken.
    Host,
}

/// Why an endpoint could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenError {
    /// Where the remedy lies.
    pub kind: OpenKind,
    /// What happened and what to do, for a person.
    pub reason: String,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl core::error::Error for OpenError {}

/// A failure of the host side. It is never the guest's fault and never shown as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndpointFault {
    /// The host side is gone for good; frames are dropped and counted from now on.
    Gone,
    /// One call failed with this system error number; the next may succeed.
    Io(i32),
}

impl fmt::Display for EndpointFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the host side of the network device is gone"),
            Self::Io(errno) => write!(f, "the host side failed with system error {errno}"),
        }
    }
}

impl core::error::Error for EndpointFault {}

/// The host side of a network device.
pub trait Endpoint: Send {
    /// What the endpoint is, as the user wrote it: `user`, `tap:tap0`.
    fn name(&self) -> String;
    /// What it can do.
    fn capabilities(&self) -> Capabilities;
    /// Opens `settings.pairs` queues, in pair order. The queues of an earlier opening have been
    /// dropped before.
    ///
    /// # Errors
    /// When the host refuses; the guest then sees a device without a network.
    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError>;
    /// What was agreed has changed while the queues are open: the driver has switched receive
    /// offloads, or uses another number of pairs. None of the queues is at work meanwhile.
    ///
    /// # Errors
    /// When the host refuses; what it brings against the agreement is dropped on the guest's side.
    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError>;
}

/// The host side of one queue pair. Called once per batch, never concurrently; never blocks.
pub trait EndpointQueue: Send {
    /// Takes frames from the guest, first to last. What is neither sent nor dropped stays with
    /// the guest and comes again, once [`Watch::writable`] says so or at the next kick.
    ///
    /// # Errors
    /// When the host side failed; frames settled before that stay settled.
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault>;
    /// Delivers frames to the guest until there are none left, or no room.
    ///
    /// # Errors
    /// When the host side failed; frames delivered before that stay delivered.
    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault>;
    /// What to wait for now.
    fn watch(&self) -> Watch;
    /// The descriptor to wait on, if any. It may come while the queue is at work, and then stays.
    #[cfg(feature = "std")]
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
    /// Where others deliver into the guest's buffers, if they do: then [`Self::receive`] is never
    /// called and [`Self::fd`] not watched. Asked once, when the queue is opened.
    #[cfg(feature = "std")]
    fn inlet(&self) -> Option<alloc::sync::Arc<Inlet>> {
        None
    }
}
