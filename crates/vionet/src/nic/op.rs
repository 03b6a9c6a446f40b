//! What is asked of the control plane, and what it answers: values, and nothing else.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;

use vionet_queue::{Cursor, Fault, QueueSetup};
use vionet_raw::AddressSpace;
use vionet_spec::feature::FeatureBits;

use crate::endpoint::{Capabilities, OpenError, Settings};
use crate::interrupt::Interrupt;
use crate::negotiate::Refusal;
use crate::pair::{Limits, PairFault, QueuePair};

/// A virtqueue of the device: receive queues are even, transmit queues odd, and the control queue
/// comes behind them (VIRTIO 1.4 §5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueIndex(pub u16);

/// A queue pair of the device, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PairIndex(pub u16);

impl QueueIndex {
    /// The pair the queue belongs to, if it is no control queue.
    #[must_use]
    pub const fn pair(self) -> PairIndex {
        PairIndex(self.0 >> 1)
    }

    /// Whether it is a receive queue, if it is no control queue.
    #[must_use]
    pub const fn is_receive(self) -> bool {
        self.0 & 1 == 0
    }

    pub(crate) fn slot(self) -> usize {
        usize::from(self.0)
    }
}

impl PairIndex {
    /// The pair's receive queue.
    #[must_use]
    pub const fn receive(self) -> QueueIndex {
        QueueIndex(self.0 << 1)
    }

    /// The pair's transmit queue.
    #[must_use]
    pub const fn transmit(self) -> QueueIndex {
        QueueIndex(self.0 << 1 | 1)
    }

    pub(crate) fn slot(self) -> usize {
        usize::from(self.0)
    }
}

/// What a queue is for; the driver's features decide it (NET-Q-03).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRole {
    /// Frames to the driver.
    Receive(PairIndex),
    /// Frames from the driver.
    Transmit(PairIndex),
    /// Commands of the driver.
    Control,
}

/// What a driver asks for, through whatever front it asked.
pub enum Op {
    /// Settle the features. Refused while a queue runs, unless they are those in force.
    Negotiate(FeatureBits),
    /// The same through a front-end, which may serve the control queue itself. Then what needs
    /// CTRL_VQ may come without it; and until the control queue is started here, what the driver
    /// commands is the front-end's to obey: as many pairs are in use as have their queues enabled,
    /// and no frame is filtered.
    NegotiateByFrontEnd(FeatureBits),
    /// Queues started from now on live in this memory.
    Memory(Arc<AddressSpace>),
    /// Bring a queue to life at a position.
    StartQueue {
        /// The queue.
        index: QueueIndex,
        /// Its size and its areas, as guest addresses.
        setup: QueueSetup,
        /// Where it goes on.
        cursor: Cursor,
    },
    /// End a queue's life; [`Nic::cursor`](super::Nic::cursor) then tells its position.
    StopQueue(QueueIndex),
    /// Let a queue move frames, or let it drop them.
    EnableQueue(QueueIndex, bool),
    /// How to interrupt the driver for a queue from now on; `None` for a driver that polls.
    SetInterrupt(QueueIndex, Option<Arc<dyn Interrupt>>),
    /// How to interrupt the driver when the device configuration has changed.
    SetConfigInterrupt(Option<Arc<dyn Interrupt>>),
    /// Send the pair out anew: something about its wiring has changed outside.
    Rewire(PairIndex),
    /// Obey what waits in the control queue, a bounded number of commands. Where more wait,
    /// [`Nic::has_commands`](super::Nic::has_commands) says so; where one waits for its
    /// translation, [`Nic::commands_due_in`](super::Nic::commands_due_in) says when to ask again.
    Commands,
    /// The link is up, or down: the driver is told, and frames move only while it is up.
    SetLink(bool),
    /// Hold the guest to these rates, or to none. They may be changed at any time without this,
    /// too; this is for a limit where there was none.
    SetLimits(Option<Limits>),
    /// Have the guest's addresses made known: the driver is asked to announce them if it can,
    /// and otherwise a RARP frame for this address is sent out.
    Announce([u8; 6]),
    /// Let go of the endpoint: its queues are dropped when this is done, and every pair stays at
    /// home until [`Self::Attach`].
    Detach,
    /// Go on in front of another endpoint, which can do this much; it is opened if the one before
    /// was. Where that is refused the pairs stay at home. With none given the link is down until
    /// there is one.
    Attach(Option<Capabilities>),
    /// Forget everything the driver has done, memory included.
    Reset,
}

/// What must now happen outside.
pub enum Effect {
    /// Open the endpoint and answer with [`Nic::opened`](super::Nic::opened).
    Open(Settings),
    /// What was agreed has changed under the open endpoint: tell it. Every pair is at home.
    Adapt(Settings),
    /// Take the pair back from its worker and answer with [`Nic::returned`](super::Nic::returned).
    Recall(PairIndex),
    /// Hand the pair to a worker.
    Start(Box<QueuePair>),
    /// Raise this interrupt, without waiting for it: the descriptor behind it is a stranger's.
    Interrupt(Arc<dyn Interrupt>),
    /// The driver has broken a rule on the control queue, which stands still from now on.
    ControlFault(PairFault),
    /// The device configuration has changed. The interrupt for it comes as an effect of its own;
    /// this is for fronts that tell their VMM.
    ConfigChanged,
    /// The operation is done, or refused with nothing changed.
    Done(Result<(), OpError>),
}

/// Effects in the order in which they must happen.
#[derive(Default)]
pub struct Effects(VecDeque<Effect>);

impl Effects {
    /// The next effect to bring about.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.0.pop_front()
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.0.push_back(effect);
    }
}

/// Why an operation was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpError {
    /// The device has no such queue.
    NoSuchQueue(QueueIndex),
    /// The features were not acceptable.
    Refused(Refusal),
    /// Features can change only while every queue is stopped.
    QueuesRunning,
    /// A queue cannot start before the features are settled.
    NotNegotiated,
    /// The queue runs already.
    AlreadyRunning(QueueIndex),
    /// The queue's geometry breaks a rule.
    Queue(QueueIndex, Fault),
    /// The host side could not be opened.
    Endpoint(OpenError),
    /// The operation before is not done yet.
    Busy,
    /// A pair was lost outside; the device serves it no more.
    PairLost(PairIndex),
    /// The endpoint carries less than the driver has been shown.
    TooSmall {
        /// Less of what: `queue pairs`, or `bytes of MTU`.
        what: &'static str,
        /// So many are shown.
        shown: u16,
        /// So many it has.
        has: u16,
    },
}

impl fmt::Display for OpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchQueue(index) => write!(f, "the device has no queue {}", index.0),
            Self::Refused(refusal) => write!(f, "features refused: {refusal}"),
            Self::QueuesRunning => f.write_str("features cannot change while a queue runs"),
            Self::NotNegotiated => f.write_str("a queue cannot start before the features are set"),
            Self::AlreadyRunning(index) => write!(f, "queue {} runs already", index.0),
            Self::Queue(index, fault) => write!(f, "queue {} cannot start: {fault}", index.0),
            Self::Endpoint(error) => write!(f, "{error}"),
            Self::Busy => f.write_str("the operation before is not done yet"),
            Self::PairLost(pair) => write!(f, "the worker of queue pair {} is lost", pair.0),
            Self::TooSmall { what, shown, has } => {
                write!(f, "the device shows {shown} {what}, and its new endpoint has {has}")
            }
        }
    }
}

impl core::error::Error for OpError {}
