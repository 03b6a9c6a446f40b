//! Who acts on the control plane, in turns: its lock is held for steps, never while a worker is
//! waited for. So an access waits for its own step only, whatever verbs and other vCPUs wait for.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::line::Wires;
use super::plane::Plane;
use crate::endpoint::{Endpoint, OpenError};
use crate::nic::{Op, OpError};
use crate::run::{Homecomings, LATE, clock, held};

/// How long an access waits for workers.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long the embedder's own verbs wait: longer than it takes to report a silent worker.
const SETTLE_MAX: Duration = Duration::from_secs(11);

/// A worker has not given back what it works on in time, which is reported; it is waited for on,
/// and the verb is carried out when it has, or has been taken back if its name begins with `try`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled;

impl fmt::Display for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a worker of the device does not come to rest; ask again, or drop the device")
    }
}

impl std::error::Error for Unsettled {}

/// A plane that any thread may act on.
pub(super) struct Turns<W> {
    plane: Mutex<Plane<W>>,
    /// The embedder's verbs, one after the other; accesses do not wait for this one.
    verbs: Mutex<()>,
    homecomings: Arc<Homecomings>,
    attention: Arc<OwnedFd>,
}

impl<W: Wires> Turns<W> {
    pub(super) fn new(plane: Plane<W>) -> Self {
        let homecomings = Arc::clone(plane.device().homecomings());
        let attention = Arc::clone(plane.device().attention());
        Self { plane: Mutex::new(plane), verbs: Mutex::default(), homecomings, attention }
    }

    pub(super) fn attention(&self) -> BorrowedFd<'_> {
        self.attention.as_fd()
    }

    /// Looks at the plane, or acts on it, as it is.
    pub(super) fn look<R>(&self, look: impl FnOnce(&mut Plane<W>) -> R) -> R {
        look(&mut held(&self.plane))
    }

    /// A read: whoever waits for something looks here, so what can go on does.
    pub(super) fn read<R>(&self, read: impl FnOnce(&Plane<W>) -> R) -> R {
        let mut plane = held(&self.plane);
        plane.go_on();
        read(&plane)
    }

    /// A write. What was begun before is given its time, as is what this begins: not every driver
    /// polls for the end of a reset.
    pub(super) fn write<R>(&self, write: impl FnOnce(&mut Plane<W>) -> R) -> R {
        let start = clock();
        let at_rest = |plane: &mut Plane<W>| plane.is_at_rest().then_some(());
        let (Some(()) | None) = self.wait(PATIENCE, at_rest);
        let written = self.look(write);
        let (Some(()) | None) = self.wait(PATIENCE.saturating_sub(start.elapsed()), at_rest);
        written
    }

    /// Goes on until there is what `find` looks for, not longer than `patience`.
    fn wait<R>(
        &self,
        patience: Duration,
        mut find: impl FnMut(&mut Plane<W>) -> Option<R>,
    ) -> Option<R> {
        let start = clock();
        loop {
            let seen = self.homecomings.count();
            let found = self.look(|plane| {
                plane.go_on();
                find(plane)
            });
            let left = patience.saturating_sub(start.elapsed());
            if found.is_some() {
                return found;
            }
            if left.is_zero() {
                self.look(|plane| plane.look_again());
                return None;
            }
            // Not longer than until a worker is taken for stuck: looking breaks it off.
            self.homecomings.wait(seen, left.min(LATE));
        }
    }

    /// A verb of the embedder's: has something noted, and waits until it is so.
    pub(super) fn settle(&self, note: impl FnOnce(&mut Plane<W>)) -> Result<(), Unsettled> {
        let _turn = held(&self.verbs);
        self.settle_in_turn(note)
    }

    /// The same, but what does not come about in time is taken back, by what `note` has returned.
    pub(super) fn try_settle<T>(
        &self,
        note: impl FnOnce(&mut Plane<W>) -> T,
        take_back: impl FnOnce(&mut Plane<W>, T),
    ) -> Result<(), Unsettled> {
        let _turn = held(&self.verbs);
        let mut before = None;
        self.settle_in_turn(|plane| before = Some(note(plane))).inspect_err(|Unsettled| {
            if let Some(before) = before {
                self.look(|plane| take_back(plane, before));
            }
        })
    }

    fn settle_in_turn(&self, note: impl FnOnce(&mut Plane<W>)) -> Result<(), Unsettled> {
        let before = self.look(|plane| {
            note(plane);
            plane.rests()
        });
        // Once is enough: a driver that wants something new all the time keeps nobody waiting.
        let settled = |plane: &mut Plane<W>| (plane.rests() != before).then_some(());
        self.wait(SETTLE_MAX, settled).ok_or(Unsettled)
    }

    /// A verb of the embedder's that needs the plane at rest.
    pub(super) fn at_rest<R>(&self, act: impl FnOnce(&mut Plane<W>) -> R) -> Result<R, Unsettled> {
        let _turn = held(&self.verbs);
        let mut act = Some(act);
        let acted = |plane: &mut Plane<W>| {
            let act = if plane.is_at_rest() { act.take() } else { None };
            act.map(|act| act(plane))
        };
        self.wait(SETTLE_MAX, acted).ok_or(Unsettled)
    }

    /// A verb of the embedder's that is an operation.
    pub(super) fn perform(&self, op: Op) -> Result<(), OpError> {
        let _turn = held(&self.verbs);
        self.perform_in_turn(op, Plane::unask)
    }

    fn perform_in_turn(&self, op: Op, give_up: fn(&mut Plane<W>)) -> Result<(), OpError> {
        // One that was given up may be on its way still.
        self.settle_in_turn(|_| ()).map_err(|Unsettled| OpError::Busy)?;
        self.look(|plane| plane.ask(op));
        self.wait(SETTLE_MAX, Plane::answer).unwrap_or_else(|| {
            self.look(give_up);
            Err(OpError::Busy)
        })
    }

    /// Another endpoint in the place of the one there is. No lock is held while one is dropped and
    /// one is made, which may take its time.
    pub(super) fn replace_endpoint(
        &self,
        make: impl FnOnce() -> Result<Box<dyn Endpoint>, OpenError>,
    ) -> Result<(), OpError> {
        let _turn = held(&self.verbs);
        self.perform_in_turn(Op::Detach, Plane::keep_endpoint)?;
        let put = |endpoint| drop(self.look(|plane| plane.put_endpoint(endpoint)));
        put(None);
        let attached = make().map_err(OpError::Endpoint).and_then(|endpoint| {
            let capabilities = endpoint.capabilities();
            put(Some(endpoint));
            self.perform_in_turn(Op::Attach(Some(capabilities)), Plane::unask)
        });
        match &attached {
            // Queues that the one before could not open are tried again.
            Ok(()) => self.look(|plane| plane.registers.try_again()),
            Err(_) => {
                put(None);
                self.perform_in_turn(Op::Attach(None), Plane::unask)?;
            }
        }
        self.settle_in_turn(|_| ()).map_err(|Unsettled| OpError::Busy)?;
        attached
    }
}
