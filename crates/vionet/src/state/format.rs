//! Version 1 of the body, field by field, as `postcard` writes it: numbers as varints but for
//! single bytes, lists with their length in front, no names and no padding.
//!
//! Nothing is taken out of this file, moved or given another meaning once it has been released:
//! what comes later is a version of its own. Lists of counters may grow at their ends.

use std::vec::Vec;

use serde::{Deserialize, Serialize};

/// A device at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) config: Config,
    /// The host has the link up.
    pub(crate) link_up: bool,
    pub(crate) generation: u8,
    pub(crate) driver: Driver,
    pub(crate) queues: Vec<Queue>,
    pub(crate) control: Control,
    pub(crate) counters: Counters,
    pub(crate) bus: Bus,
}

/// What the device is from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u16,
    pub(crate) pairs: u16,
    pub(crate) speed: Option<u32>,
    pub(crate) mac_may_change: bool,
    pub(crate) standby: bool,
}

/// What the driver has written to registers that all buses have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Driver {
    pub(crate) status: u8,
    /// Those agreed on once FEATURES_OK shows.
    pub(crate) features: u128,
    /// A bit past all that a feature can have was written.
    pub(crate) beyond: bool,
    pub(crate) device_select: u32,
    pub(crate) driver_select: u32,
    pub(crate) queue_select: u32,
    /// The largest queue size shown; 0 where there were no registers.
    pub(crate) size_max: u16,
    /// What a suspended driver sees of the configuration, and its generation.
    pub(crate) frozen: Option<([u8; 28], u8)>,
    /// The driver is to be told that the configuration has changed.
    pub(crate) config_due: bool,
}

/// A queue, as the driver has set it up, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    pub(crate) size: u16,
    /// The last size written was none that can be.
    pub(crate) wrong_size: bool,
    /// Descriptors, driver, device.
    pub(crate) areas: [u64; 3],
    pub(crate) enabled: bool,
    /// The next entry to take and to use, with their wrap counters in a packed ring; none for a
    /// queue that has never run.
    pub(crate) cursor: Option<[u16; 2]>,
}

/// What the driver's commands have set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Control {
    /// Commands are obeyed here, and not by a front-end.
    pub(crate) begun: bool,
    /// Another address than that of the configuration.
    pub(crate) mac: Option<[u8; 6]>,
    pub(crate) announce: bool,
    /// Pairs in use; 0 where it is not said here.
    pub(crate) pairs: u16,
    /// The bits of the command, if it has come.
    pub(crate) offloads: Option<u64>,
    /// Receive modes, by their command codes.
    pub(crate) modes: u8,
    pub(crate) unicast: Vec<[u8; 6]>,
    pub(crate) multicast: Vec<[u8; 6]>,
    pub(crate) vlans: Vec<u16>,
    pub(crate) hash: Option<Hash>,
    pub(crate) rss: Option<Rss>,
    pub(crate) tunnels: u32,
    /// Packets and microseconds, for receive and transmit queues.
    pub(crate) usual: [[u32; 2]; 2],
    /// The same for each queue.
    pub(crate) coalescing: Vec<[u32; 2]>,
}

/// Hash types and their key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hash {
    pub(crate) types: u32,
    pub(crate) key: Vec<u8>,
}

/// Steering by a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rss {
    pub(crate) hash: Hash,
    pub(crate) table: Vec<u16>,
    pub(crate) unclassified: u16,
}

/// All counters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Commands, those obeyed, faults.
    pub(crate) control: [u64; 3],
    /// Of each pair: receive, transmit.
    pub(crate) pairs: Vec<[Lane; 2]>,
}

/// Counters of a direction, each in the order in which it is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lane {
    pub(crate) counters: Vec<u64>,
    pub(crate) batch_sizes: Vec<u64>,
    pub(crate) wake_sizes: Vec<u64>,
    pub(crate) drops: Vec<u64>,
}

/// What is there on one bus alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Bus {
    #[default]
    None,
    Mmio {
        /// Why the line is asserted.
        reasons: u8,
    },
    Pci(Pci),
}

/// A function of PCI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pci {
    /// The bytes of the configuration space.
    pub(crate) config: Vec<u8>,
    /// The ISR status.
    pub(crate) reasons: u8,
    pub(crate) config_vector: u16,
    pub(crate) queue_vectors: Vec<u16>,
    /// The table of MSI-X, with its pending bits.
    pub(crate) vectors: Vec<Vector>,
}

/// A vector of MSI-X.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Vector {
    pub(crate) address: u64,
    pub(crate) data: u32,
    pub(crate) masked: bool,
    /// Why a message is to be sent that may not be sent yet, as in the ISR status.
    pub(crate) pending: u8,
}
