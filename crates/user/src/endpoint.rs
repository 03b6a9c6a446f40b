//! The user-mode network as a host side: [`UserNet`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vionet::endpoint::{
    Capabilities, Endpoint, EndpointFault, EndpointQueue, OpenError, OpenKind, RxSink, Settings,
    TxBatch, Watch,
};
use vionet::{Instant, PAIRS_MAX};
use vionet_frame::header::Offloads;

use crate::config::UserConfig;
use crate::flow::{Engine, Listeners};

/// A user-mode network for one guest. Its published ports are bound for its whole life; flows
/// live as long as the guest's driver. Each comes back on the queue pair that the guest has last
/// sent it on; pairs take turns, so that more of them carry no more.
#[derive(Debug)]
pub struct UserNet {
    config: UserConfig,
    listeners: Arc<Listeners>,
    /// That of the queues that are open, if any are.
    engine: Weak<Mutex<Engine>>,
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
        Ok(Self { config, listeners, engine: Weak::new() })
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
            pairs_max: PAIRS_MAX,
            mtu: self.config.mtu,
        }
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let engine = Engine::new(&self.config, Arc::clone(&self.listeners), settings.pairs);
        let mut engine = engine.map_err(|error| OpenError {
            kind: OpenKind::Host,
            reason: format!("user-mode network: {error}"),
        })?;
        engine.use_pairs(settings.active);
        let fds: Vec<_> = (0..settings.pairs).filter_map(|pair| engine.fd(pair)).collect();
        let engine = Arc::new(Mutex::new(engine));
        self.engine = Arc::downgrade(&engine);
        let queue = |(pair, fd)| -> Box<dyn EndpointQueue> {
            Box::new(UserQueue { engine: Arc::clone(&engine), pair, fd, deadline: None })
        };
        Ok((0..).zip(fds).map(queue).collect())
    }

    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError> {
        // What the guest takes the engine asks each time.
        if let Some(engine) = self.engine.upgrade() {
            engine.lock().unwrap_or_else(PoisonError::into_inner).use_pairs(settings.active);
        }
        Ok(())
    }
}

struct UserQueue {
    engine: Arc<Mutex<Engine>>,
    pair: u16,
    fd: Arc<OwnedFd>,
    deadline: Option<Instant>,
}

impl UserQueue {
    /// Has the engine work for this pair. One that was left in the middle of its work by a worker
    /// that was lost may not be in order, and is not touched again.
    fn work(&mut self, work: impl FnOnce(&mut Engine, u16)) -> Result<(), EndpointFault> {
        let mut engine = self.engine.lock().map_err(|_| EndpointFault::Gone)?;
        work(&mut engine, self.pair);
        self.deadline = engine.deadline(self.pair);
        Ok(())
    }
}

impl EndpointQueue for UserQueue {
    fn transmit(&mut self, frames: &mut TxBatch<'_>) -> Result<(), EndpointFault> {
        let now = frames.now();
        self.work(|engine, pair| {
            while let Some(frame) = frames.frames().first() {
                let len = usize::try_from(frame.len).unwrap_or(usize::MAX);
                match engine.input(pair, frames.bytes(frame), len, now) {
                    Ok(()) => frames.sent(1),
                    Err(reason) => frames.dropped(1, reason),
                }
            }
        })
    }

    fn receive(&mut self, sink: &mut RxSink<'_>) -> Result<(), EndpointFault> {
        let now = sink.now();
        self.work(|engine, pair| engine.output(pair, sink, now))
    }

    fn watch(&self) -> Watch {
        Watch { readable: true, writable: false, deadline: self.deadline }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}
