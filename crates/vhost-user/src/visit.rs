//! Visits: how other threads reach the device that a server drives.
//!
//! A visitor leaves what it wants done, and the server's loop does it between two messages, as it
//! does everything else with the device: nothing is locked, and frames go on moving.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vionet::Device;

/// The most visitors that wait at a time; more are turned away.
const WAITING_MAX: usize = 16;

type Visit = Box<dyn FnOnce(&mut Device) + Send>;

/// The way to a server's device, for any thread; [`crate::Server::door`] makes one.
#[derive(Clone, Debug)]
pub struct Door {
    visits: SyncSender<Visit>,
    bell: Arc<OwnedFd>,
}

impl Door {
    /// Has something done with the device, and waits for what comes of it; `None` when the server
    /// has ended, too many wait already, or it is not done in time. It may be done later then.
    pub fn visit<R: Send + 'static>(
        &self,
        patience: Duration,
        what: impl FnOnce(&mut Device) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = sync_channel(1);
        let visit = move |device: &mut Device| {
            // The visitor may have lost patience.
            let (Ok(()) | Err(_)) = sender.try_send(what(device));
        };
        self.visits.try_send(Box::new(visit)).ok()?;
        // The counter can only be full when it is rung already.
        let (Ok(_) | Err(_)) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        receiver.recv_timeout(patience).ok()
    }
}

/// The server's side.
pub(crate) struct Visits {
    waiting: Receiver<Visit>,
    bell: Arc<OwnedFd>,
}

impl Visits {
    pub(crate) fn new() -> io::Result<(Door, Self)> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (visits, waiting) = sync_channel(WAITING_MAX);
        Ok((Door { visits, bell: Arc::clone(&bell) }, Self { waiting, bell }))
    }

    /// Readable when somebody waits.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Lets in those who wait, and not those who come meanwhile.
    pub(crate) fn admit(&self, device: &mut Device) {
        // Silent first: who comes from now on rings anew.
        let (Ok(_) | Err(_)) = rustix::io::read(&self.bell, &mut [0; 8]);
        for visit in self.waiting.try_iter().take(WAITING_MAX) {
            visit(device);
        }
    }
}
