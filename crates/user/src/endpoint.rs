//! The user-mode network as a host side: [`UserNet`].

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, OpenKind, RxSink, Settings,
    TxBatch, Watch,
};
use vionet_frame::header::Offloads;

use crate::config::UserConfig;
use crate::flow::{Engine, Listeners};

/// A user-mode network for one guest. Its published ports are bound for its whole life; flows
/// live as long as the guest's driver.
#[derive(Debug)]
pub struct UserNet {
    config: UserConfig,
    listeners: Arc<Listeners>,
}

impl UserNet {
    /// Checks the configuration and binds the published ports.
    ///
    /// # Errors
    /// When the configuration contradicts itself, or a port is taken.
    pub fn new(config: UserConfig) -> Result<Self, OpenError> {
        config.check().map_err(|error| OpenError {
            kind: OpenKind::Config,
            reason: format!("user-mode network: {error}"),
        })?;
        let listeners = Arc::new(Listeners::bind(&config)?);
        Ok(Self { config, listeners })
    }
}

impl Endpoint for UserNet {
    fn name(&self) -> String {
        "user".into()
    }

    fn capabilities(&self) -> Capabilities {
        let tcp = Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6;
        Capabilities {
            transmit: tcp | Offloads::ECN,
            receive: tcp,
            pairs_max: 1,
            mtu: self.config.mtu,
        }
    }

    fn open(&mut self, _settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let engine = Engine::new(&self.config, Arc::clone(&self.listeners));
        let engine = engine.map_err(|error| OpenError {
            kind: OpenKind::Host,
            reason: format!("user-mode network: {error}"),
        })?;
        Ok(vec![Box::new(UserQueue { engine })])
    }

    fn adapt(&mut self, _settings: &Settings) -> Result<(), OpenError> {
        // The engine asks each time what the guest takes.
        Ok(())
    }
}

struct UserQueue {
    engine: Engine,
}

impl EndpointQueue for UserQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let now = frames.now();
        while let Some(frame) = frames.frames().first() {
            let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
            match self.engine.input(frames.bytes(frame), len, now) {
                Ok(()) => frames.sent(1),
                Err(reason) => frames.dropped(1, reason),
            }
        }
        Ok(())
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let now = sink.now();
        self.engine.output(sink, now);
        Ok(())
    }

    fn watch(&self) -> Watch {
        Watch { readable: true, writable: false, deadline: self.engine.deadline() }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.engine.fd())
    }
}
