//! A switch between the NICs of one process: guest memory to guest memory, one copy.
//!
//! ```text
//!   NIC A's worker: transmit(batch)
//!     source and destination of each frame, read once      -> what was seen is what is sent
//!     learn the source; look the destination up            (table.rs)
//!     for each port that is meant: lock its inlet once, push its frames
//! ```
//!
//! A frame that its guest would take as it is goes whole, however much of it is left to be
//! finished; for another guest it is finished and cut first. Segments of one flow that come
//! together are joined for a guest that takes them so. A guest without room loses the frame, as at
//! any switch: nobody waits for anybody. Frames to a group, or to an address that nobody has sent
//! from, go to every port but their own; isolated ports talk to the others only.

mod join;
mod port;
mod table;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vionet::PAIRS_MAX;
use vionet::endpoint::{
    Capabilities, Endpoint, EndpointQueue, Inlet, OpenError, OpenKind, Settings,
};
use vionet_frame::header::Offloads;

use port::PortQueue;
use table::{Mac, PortNumber, Table};

/// The most ports of a switch.
pub const PORTS_MAX: usize = 256;

/// A switch; a handle to it is cheap.
#[derive(Clone)]
pub struct Switch(Arc<Fabric>);

/// What a port is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The address of the NIC behind it, which no other port can send from.
    pub mac: [u8; 6],
    /// It exchanges frames only with ports that are not isolated.
    pub isolated: bool,
}

/// What all ports share.
struct Fabric {
    name: String,
    table: Table,
    ports: Mutex<Ports>,
    /// Changes with the ports: a worker looks at this once a batch.
    version: AtomicU64,
}

#[derive(Default)]
struct Ports {
    taken: Vec<bool>,
    open: Arc<[Outlet]>,
}

/// A port that is open: where frames leave the switch.
#[derive(Clone)]
struct Outlet {
    port: PortNumber,
    isolated: bool,
    /// What its guest takes unfinished.
    receive: Offloads,
    /// Of each pair, in order. Frames come in by the first that is open, which passes on what is
    /// for the others.
    inlets: Vec<Arc<Inlet>>,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let (table, ports, version) = (Table::new(), Mutex::default(), AtomicU64::new(1));
        Self(Arc::new(Fabric { name: name.into(), table, ports, version }))
    }

    /// A port, as a NIC's endpoint. It ends when it is dropped.
    ///
    /// # Errors
    /// When the switch has no port left, or the address belongs to another one.
    pub fn port(&self, config: PortConfig) -> Result<SwitchPort, OpenError> {
        let name = &self.0.name;
        let refuse = |reason| OpenError { kind: OpenKind::Config, reason };
        let number = self.0.take_port().ok_or_else(|| {
            refuse(format!("switch {name} has {PORTS_MAX} ports, and all are taken"))
        })?;
        let port = SwitchPort { fabric: Arc::clone(&self.0), number, config };
        let mac = Mac::new(config.mac);
        if mac.is_group() || !self.0.table.give(mac, number) {
            let [a, b, c, d, e, f] = config.mac;
            return Err(refuse(format!(
                "switch {name}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} is no address for \
                 a port, or another NIC has it; give each NIC a mac of its own"
            )));
        }
        Ok(port)
    }
}

impl Fabric {
    fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_port(&self) -> Option<PortNumber> {
        let mut ports = self.ports();
        let free = ports.taken.iter().position(|taken| !taken);
        let place = free.unwrap_or(ports.taken.len());
        if place >= PORTS_MAX {
            return None;
        }
        match ports.taken.get_mut(place) {
            Some(taken) => *taken = true,
            None => ports.taken.push(true),
        }
        PortNumber::try_from(place).ok()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Outlet>)) {
        let mut ports = self.ports();
        let mut open = ports.open.to_vec();
        change(&mut open);
        ports.open = open.into();
        self.version.fetch_add(1, Ordering::Release);
    }

    /// In place of what the port had: a pair that its worker has lost may have it still.
    fn attach(&self, outlet: Outlet) {
        self.change(|open| {
            open.retain(|old| old.port != outlet.port);
            open.push(outlet);
        });
    }

    /// By the inlet: by now the port may have other ones.
    fn detach(&self, inlet: &Arc<Inlet>) {
        self.change(|open| {
            for outlet in &mut *open {
                outlet.inlets.retain(|one| !Arc::ptr_eq(one, inlet));
            }
            open.retain(|outlet| !outlet.inlets.is_empty());
        });
    }

    /// The open ports, if they are not those of `version` any more.
    fn news(&self, version: &mut u64) -> Option<Arc<[Outlet]>> {
        let now = self.version.load(Ordering::Acquire);
        if now == *version {
            return None;
        }
        *version = now;
        Some(Arc::clone(&self.ports().open))
    }
}

/// One port of a switch: a NIC's endpoint.
pub struct SwitchPort {
    fabric: Arc<Fabric>,
    number: PortNumber,
    config: PortConfig,
}

impl Endpoint for SwitchPort {
    fn name(&self) -> String {
        format!("switch:{}", self.fabric.name)
    }

    fn capabilities(&self) -> Capabilities {
        let all = Offloads::ALL.difference(Offloads::UFO | Offloads::USO);
        Capabilities { transmit: all, receive: all, pairs_max: PAIRS_MAX, mtu: u16::MAX }
    }

    fn open(&mut self, settings: &Settings) -> Result<Vec<Box<dyn EndpointQueue>>, OpenError> {
        let refuse = |cause: io::Error| OpenError {
            kind: OpenKind::Host,
            reason: format!("switch {}: no descriptor for a port: {cause}", self.fabric.name),
        };
        let inlets = (0..settings.pairs).map(|_| Inlet::new().map(Arc::new));
        let inlets = inlets.collect::<io::Result<Vec<_>>>().map_err(refuse)?;
        let (port, isolated) = (self.number, self.config.isolated);
        let receive = settings.receive;
        self.fabric.attach(Outlet { port, isolated, receive, inlets: inlets.clone() });
        let queue = |inlet| -> Box<dyn EndpointQueue> {
            Box::new(PortQueue::new(Arc::clone(&self.fabric), port, isolated, inlet))
        };
        Ok(inlets.into_iter().map(queue).collect())
    }

    fn adapt(&mut self, settings: &Settings) -> Result<(), OpenError> {
        self.fabric.change(|open| {
            let mine = open.iter_mut().filter(|outlet| outlet.port == self.number);
            mine.for_each(|outlet| outlet.receive = settings.receive);
        });
        Ok(())
    }
}

impl Drop for SwitchPort {
    fn drop(&mut self) {
        self.fabric.table.forget(self.number);
        if let Some(taken) = self.fabric.ports().taken.get_mut(usize::from(self.number)) {
            *taken = false;
        }
    }
}
