//! Why a device was not saved, why bytes are no state, why a state was not restored.

use core::fmt;
use std::string::String;

use vionet_queue::Fault;

use crate::negotiate::Refusal;
use crate::nic::QueueIndex;

/// Why a device cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaveError {
    /// Registers: the device has not been paused.
    NotPaused,
    /// Without registers: this queue runs.
    Running(QueueIndex),
    /// A worker does not give back what it works on.
    Unsettled,
}

impl fmt::Display for SaveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPaused => f.write_str("a device that is not paused cannot be saved: pause it"),
            Self::Running(index) => {
                let queue = index.0;
                write!(f, "a device whose queue {queue} runs cannot be saved: stop all queues")
            }
            Self::Unsettled => {
                f.write_str("a worker of the device does not come to rest: try again, or drop it")
            }
        }
    }
}

impl core::error::Error for SaveError {}

/// Why bytes are no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// They do not begin as one.
    NoState,
    /// One of a version that this program does not know.
    Version {
        /// The version.
        version: u16,
        /// The last one that is known.
        known: u16,
    },
    /// Some are missing, or too many.
    Length,
    /// They are not those that were saved.
    Damaged,
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoState => f.write_str("this is no saved state of a vionet device"),
            Self::Version { version, known } => write!(
                f,
                "the state has version {version}, and this program knows those up to {known}: \
                 restore it with the program that saved it, or a later one"
            ),
            Self::Length => f.write_str("the state is cut short, or something follows it"),
            Self::Damaged => f.write_str("the state is damaged: it is not what was saved"),
        }
    }
}

impl core::error::Error for StateError {}

/// Why a device does not take a state. It is as it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestoreError {
    /// A driver has begun to use the device.
    InUse,
    /// A worker does not give back what it works on.
    Unsettled,
    /// The devices differ in something that the driver has been shown.
    Differs {
        /// In what.
        what: &'static str,
        /// How it was.
        saved: String,
        /// How it is here.
        here: String,
    },
    /// What was agreed is not to be had here.
    Features(Refusal),
    /// The driver's commands were obeyed by a front-end, whose part is not in the state.
    FrontEnd,
    /// Something that no driver can have brought about: which of its commands, and why not.
    Command(String),
    /// Something that no driver can have brought about: a value that this cannot have.
    Value(&'static str),
    /// A queue's rings cannot be where they are said to be.
    Queue(QueueIndex, Fault),
}

impl RestoreError {
    /// The devices differ in `what`, if they do.
    pub(crate) fn unless_same(what: &'static str, saved: String, here: String) -> Result<(), Self> {
        if saved == here { Ok(()) } else { Err(Self::Differs { what, saved, here }) }
    }

    /// This value is none, unless it is.
    pub(crate) fn unless(valid: bool, what: &'static str) -> Result<(), Self> {
        if valid { Ok(()) } else { Err(Self::Value(what)) }
    }
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse => f.write_str(
                "a state can be restored only into a device that no driver uses: reset it first",
            ),
            Self::Unsettled => {
                f.write_str("a worker of the device does not come to rest: try again, or drop it")
            }
            Self::Differs { what, saved, here } => write!(
                f,
                "the saved device has {what} {saved}, this one has {here}: make it as the state's \
                 configuration says"
            ),
            Self::Features(refusal) => write!(f, "the saved features are refused: {refusal}"),
            Self::FrontEnd => f.write_str(
                "the commands of the saved device's driver were obeyed by a front-end: restore it \
                 behind that",
            ),
            Self::Command(why) => write!(f, "the state has what no command can have set: {why}"),
            Self::Value(what) => {
                write!(f, "the state has what no driver can have brought about: {what}")
            }
            Self::Queue(index, fault) => {
                write!(f, "queue {} of the state cannot start here: {fault}", index.0)
            }
        }
    }
}

impl core::error::Error for RestoreError {}
