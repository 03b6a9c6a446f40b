//! A device that goes on elsewhere, or in front of another endpoint.

use std::boxed::Box;

use super::Device;
use crate::absent::NoEndpoint;
use crate::endpoint::{Endpoint, OpenError};
use crate::nic::{Op, OpError};
use crate::state::{Body, RestoreError, SaveError, State};

impl Device {
    /// The device at rest, to go on elsewhere: without registers, which its front has.
    ///
    /// # Errors
    /// When a queue runs: stop all of them first ([`Op::StopQueue`]).
    pub fn save(&self) -> Result<State, SaveError> {
        self.save_body().map(State)
    }

    pub(crate) fn save_body(&self) -> Result<Body, SaveError> {
        self.nic.save()
    }

    /// Takes a state that was saved here or behind registers, up to features, commands and
    /// counters. Starting the queues ([`State::queues`]) is its front's. Its memory has to be known
    /// ([`Op::Memory`]), and no driver may have begun.
    ///
    /// # Errors
    /// See [`RestoreError`]; nothing has changed then.
    pub fn restore(&mut self, state: &State) -> Result<(), RestoreError> {
        self.restore_body(&state.0)
    }

    pub(crate) fn restore_body(&mut self, saved: &Body) -> Result<(), RestoreError> {
        self.nic.restore(saved)
    }

    /// Puts another endpoint in the place of the one there is, under a running driver, which is
    /// shown no difference: what the new one cannot do is done in software. Every pair stands
    /// still meanwhile; the old endpoint has been dropped when `make` is called. What the guest has
    /// sent and the old one has not taken goes to the new one.
    ///
    /// # Errors
    /// What `make` says; or the new endpoint carries less than the driver has been shown, or
    /// cannot be opened. Then the device has none: its link is down until this is done again.
    pub fn replace_endpoint(
        &mut self,
        make: impl FnOnce() -> Result<Box<dyn Endpoint>, OpenError>,
    ) -> Result<(), OpError> {
        self.apply(Op::Detach)?;
        drop(self.put_endpoint(None));
        let replaced = make().map_err(OpError::Endpoint).and_then(|endpoint| {
            drop(self.put_endpoint(Some(endpoint)));
            self.apply(Op::Attach(Some(self.endpoint.capabilities())))
        });
        if replaced.is_err() {
            drop(self.put_endpoint(None));
            self.apply(Op::Attach(None))?;
        }
        replaced
    }

    /// What undoes a [`Op::Detach`].
    pub(crate) fn as_before(&self) -> Op {
        Op::Attach((!self.nic.is_absent()).then(|| self.endpoint.capabilities()))
    }

    /// Another endpoint, or none, for the one there is, whose queues are gone.
    pub(crate) fn put_endpoint(&mut self, with: Option<Box<dyn Endpoint>>) -> Box<dyn Endpoint> {
        let none = || -> Box<dyn Endpoint> { Box::new(NoEndpoint(self.endpoint.capabilities())) };
        let endpoint = with.unwrap_or_else(none);
        std::mem::replace(&mut self.endpoint, endpoint)
    }
}
