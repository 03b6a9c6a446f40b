//! No host side: what a device has whose endpoint has been taken away. Its link is down, so no
//! frame comes here.

#[cfg(feature = "std")]
use alloc::string::String;
#[cfg(feature = "std")]
use alloc::{boxed::Box, vec::Vec};

#[cfg(feature = "std")]
use crate::endpoint::{Capabilities, Endpoint, OpenError, Settings};
use crate::endpoint::{EndpointFault, EndpointQueue, RxSink, TxBatch, Watch};
use crate::stats::DropReason;

/// A queue of it.
pub(crate) struct Absent;

impl EndpointQueue for Absent {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        frames.drop_rest(DropReason::LinkDown);
        Ok(())
    }

    fn receive(&mut self, _sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch::default()
    }

    #[cfg(feature = "std")]
    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        None
    }
}

/// In the place of an endpoint that could do this much.
#[cfg(feature = "std")]
pub(crate) struct NoEndpoint(pub(crate) Capabilities);

#[cfg(feature = "std")]
impl Endpoint for NoEndpoint {
    fn name(&self) -> String {
        "none".into()
    }

    fn capabilities(&self) -> Capabilities {
        self.0
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        Ok((0..settings.pairs).map(|_| -> Box<dyn EndpointQueue> { Box::new(Absent) }).collect())
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        Ok(())
    }
}
