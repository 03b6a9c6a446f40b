//! The control queue (VIRTIO 1.4 §5.1.9.5): commands of the driver, one at a time.
//!
//! ```text
//!   chain --take--> private copy --decode--> Command --obey--> ControlState --> every pair
//!                   (command.rs)             (state.rs)             |
//!   chain <--ack, result--------------------------------------------+
//! ```
//!
//! A command is copied whole before it is looked at, judged whole before anything changes, and
//! acknowledged when it is in force: every pair is at home meanwhile.

mod command;
#[cfg(feature = "std")]
mod saved;
mod state;
mod statistics;

use alloc::boxed::Box;
use alloc::sync::Arc;

use vionet_queue::{Armed, Batch, Command as Commands, Cursor, Fault, Published, Queue};
use vionet_raw::{AddressSpace, WriteSpan, copy_in, copy_out};
use vionet_spec::control::{ERR, OK};

pub(crate) use command::{Command, Refused};
pub use state::Coalescing;
pub(crate) use state::{ControlState, World};
pub(crate) use statistics::Source;

/// The longest command, in bytes: a table of some 2700 addresses.
const REQUEST_MAX: usize = 16 << 10;

/// The live control queue. A chain that was taken stays in the batch until it is answered.
pub(crate) struct ControlLane {
    queue: Queue,
    batch: Batch<Commands>,
    request: Box<[u8]>,
    /// Bytes of the command in work; none when it is longer than any is.
    len: Option<usize>,
    /// The driver broke a rule: the queue stands still until it is stopped.
    broken: bool,
}

impl ControlLane {
    pub(crate) fn new(queue: Queue, space: Arc<AddressSpace>) -> Self {
        let request = alloc::vec![0; REQUEST_MAX].into_boxed_slice();
        Self { queue, batch: Batch::commands(space), request, len: None, broken: false }
    }

    /// Takes the next command; false when there is none and the driver has been asked for a kick.
    ///
    /// # Errors
    /// The rule that the driver has broken, once: the queue stands still from then on.
    pub(crate) fn take(&mut self) -> Result<bool, Fault> {
        if self.broken {
            return Ok(false);
        }
        self.queue.disarm();
        let taken = match self.queue.take(1, &mut self.batch) {
            Ok(0) if self.queue.arm() == Armed::WorkArrived => self.queue.take(1, &mut self.batch),
            taken => taken,
        };
        let taken = taken.inspect_err(|_| {
            self.queue.untake(&mut self.batch);
            self.broken = true;
        })?;
        if taken == 0 {
            return Ok(false);
        }
        let Some(row) = self.batch.row(0) else { return Ok(false) };
        let bytes = row.bytes().wrapping_sub(row.payload_bytes());
        let room = usize::try_from(bytes).ok().and_then(|len| self.request.get_mut(..len));
        self.len = room.map(|room| copy_out(self.batch.command(row), 0, room));
        Ok(true)
    }

    /// Whether the platform has no translation yet for the next command.
    pub(crate) fn is_untranslated(&self) -> bool {
        !self.broken && self.batch.is_empty() && self.batch.is_untranslated()
    }

    /// The command in work; `None` when it is too long to be one.
    pub(crate) fn request(&self) -> Option<&[u8]> {
        self.request.get(..self.len?)
    }

    /// Acknowledges the command in work, its result behind (NET-CTRL-04); says whether the driver
    /// wants an interrupt. A chain without room for the acknowledgement goes back as it is
    /// (NET-CTRL-06).
    pub(crate) fn answer(
        &mut self,
        done: bool,
        result: impl FnOnce(&[u8], &mut Answer<'_>),
    ) -> bool {
        let Some(row) = self.batch.row(0) else { return false };
        let mut answer = Answer { spans: self.batch.answer(row), len: 1 };
        if done && let Some(request) = self.len.and_then(|len| self.request.get(..len)) {
            result(request, &mut answer);
        }
        let Answer { spans, len } = answer;
        copy_in(spans, 0, &[if done { OK } else { ERR }]);
        self.batch.set_answered(0, u32::try_from(len).unwrap_or(u32::MAX));
        self.queue.put(&mut self.batch, 1);
        self.queue.publish() == Published::Interrupt
    }

    /// Ends the queue's life; what was taken and not answered is the driver's again.
    pub(crate) fn stop(mut self) -> Cursor {
        self.queue.untake(&mut self.batch);
        let here = self.queue.cursor();
        self.queue.stop().unwrap_or(here)
    }
}

/// Where the result of a command goes: behind the acknowledgement, as far as there is room.
pub(crate) struct Answer<'a> {
    spans: &'a [WriteSpan<'a>],
    len: usize,
}

impl Answer<'_> {
    /// Writes more of the result; what is past the driver's room is dropped (NET-STAT-08).
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let done = copy_in(self.spans, self.len, bytes);
        self.len = self.len.saturating_add(done);
    }
}
