//! What can go wrong for a guest.

use std::time::Duration;
use std::{fmt, io};

/// Why a step of a guest failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum GuestError {
    /// The options contradict themselves or the standards.
    Options(&'static str),
    /// The back-end's socket cannot be reached.
    Connect(io::Error),
    /// The connection to the back-end failed.
    Socket(io::Error),
    /// The back-end has closed the connection.
    Closed,
    /// The back-end answered something else than was asked.
    BadReply(&'static str),
    /// The back-end refused a request.
    Refused(&'static str),
    /// The back-end lacks a feature that is needed.
    Missing(&'static str),
    /// The device broke a rule of the ring.
    Device(&'static str),
    /// A step took too long.
    Timeout(&'static str, Duration),
    /// The network refused what was tried.
    Network(&'static str),
    /// Memory or descriptors are short.
    Host(io::Error),
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Options(what) => write!(f, "the options: {what}"),
            Self::Connect(cause) => {
                write!(f, "the back-end cannot be reached: {cause}; is it running, and there?")
            }
            Self::Socket(cause) => write!(f, "the connection to the back-end failed: {cause}"),
            Self::Closed => f.write_str("the back-end has closed the connection"),
            Self::BadReply(what) => write!(f, "the back-end's answer to {what} makes no sense"),
            Self::Refused(what) => write!(f, "the back-end refused {what}"),
            Self::Missing(what) => write!(f, "the back-end does not offer {what}"),
            Self::Device(what) => write!(f, "the device broke a rule: {what}"),
            Self::Timeout(what, limit) => {
                write!(f, "{what}: nothing after {} s", limit.as_secs_f32())
            }
            Self::Network(what) => write!(f, "the network refused: {what}"),
            Self::Host(cause) => write!(f, "the built-in guest cannot be made: {cause}"),
        }
    }
}

impl std::error::Error for GuestError {}
