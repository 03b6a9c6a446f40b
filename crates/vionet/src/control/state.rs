//! What the driver has decided by its commands. Reset forgets it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use vionet_frame::filter::{Filter, MacTable};
use vionet_frame::hash::FlowHash;
use vionet_frame::header::Offloads;
use vionet_frame::steer::{IndirectionTable, RssConfig, decode_hash_config};
use vionet_spec::control::{OFFLOAD_UDP_TUNNEL_GSO, OFFLOAD_UDP_TUNNEL_GSO_CSUM};
use vionet_spec::feature::{Feature, FeatureBits};

use super::{Command, Refused};
use crate::config::NicConfig;
use crate::negotiate::{Negotiated, Plan};
use crate::nic::{PairIndex, QueueIndex};

/// When a queue's interrupts are due (VIRTIO 1.4 §5.1.9.5.10): after so many frames or so long
/// after the first, whichever comes first. With either at 0 every frame is due (NET-COAL-11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coalescing {
    /// Frames.
    pub max_packets: u32,
    /// Microseconds.
    pub max_usecs: u32,
}

impl Coalescing {
    pub(crate) fn decode(bytes: &[u8; 8]) -> Self {
        let [p0, p1, p2, p3, u0, u1, u2, u3] = *bytes;
        Self {
            max_packets: u32::from_le_bytes([p0, p1, p2, p3]),
            max_usecs: u32::from_le_bytes([u0, u1, u2, u3]),
        }
    }

    pub(crate) fn encode(self) -> [u8; 8] {
        let [p0, p1, p2, p3] = self.max_packets.to_le_bytes();
        let [u0, u1, u2, u3] = self.max_usecs.to_le_bytes();
        [p0, p1, p2, p3, u0, u1, u2, u3]
    }

    /// Whether interrupts are put off at all.
    pub(crate) const fn is_on(self) -> bool {
        self.max_packets != 0 && self.max_usecs != 0
    }
}

/// What a command is judged against.
pub(crate) struct World<'a> {
    pub(crate) agreed: &'a Negotiated,
    /// How many pairs the device has.
    pub(crate) pairs: u16,
    /// Whether the queue is a live receive or transmit queue.
    pub(crate) is_live: &'a dyn Fn(QueueIndex) -> bool,
}

/// All that commands can set.
#[derive(Debug)]
pub(crate) struct ControlState {
    pub(crate) mac: [u8; 6],
    /// The driver is asked to announce its addresses.
    pub(crate) announce: bool,
    /// How many pairs the driver has said it uses; `None` while it does not say so here.
    pub(crate) pairs: Option<u16>,
    /// The receive offloads that are switched on.
    pub(crate) offloads: Offloads,
    /// What the driver wants to receive.
    pub(super) filter: Filter,
    /// Hashes that are reported under automatic steering.
    pub(super) hash: Box<FlowHash>,
    /// Where frames go, and by which hash; `None` under automatic steering (NET-CTRL-MQ-10).
    pub(super) rss: Option<Box<(FlowHash, IndirectionTable)>>,
    /// Tunnels whose inner headers are hashed (NET-IHH-06).
    pub(super) tunnels: u32,
    /// For queues that start: receive, transmit.
    pub(super) usual: [Coalescing; 2],
    pub(super) coalescing: Vec<Coalescing>,
}

/// Each receive offload that can be switched: its bit in the command, the offload, its feature.
/// Linux counts GUEST_HDRLEN among them, which switches nothing: our header lengths are exact.
pub(super) const OFFLOADS: [(u8, Offloads, Feature); 10] = [
    (1, Offloads::CSUM, Feature::GUEST_CSUM),
    (7, Offloads::TSO4, Feature::GUEST_TSO4),
    (8, Offloads::TSO6, Feature::GUEST_TSO6),
    (9, Offloads::ECN, Feature::GUEST_ECN),
    (10, Offloads::UFO, Feature::GUEST_UFO),
    (54, Offloads::USO4, Feature::GUEST_USO4),
    (55, Offloads::USO6, Feature::GUEST_USO6),
    (59, Offloads::NONE, Feature::GUEST_HDRLEN),
    (OFFLOAD_UDP_TUNNEL_GSO, Offloads::TUNNEL, Feature::GUEST_UDP_TUNNEL_GSO),
    (OFFLOAD_UDP_TUNNEL_GSO_CSUM, Offloads::TUNNEL_CSUM, Feature::GUEST_UDP_TUNNEL_GSO_CSUM),
];

impl ControlState {
    /// As after reset: every offload that will be negotiated, no filter, no delays.
    pub(crate) fn new(config: &NicConfig) -> Self {
        let queues = usize::from(config.pairs).saturating_mul(2);
        Self {
            mac: config.mac,
            announce: false,
            pairs: None,
            offloads: Offloads::ALL,
            filter: Filter::default(),
            hash: Box::new(FlowHash::disabled()),
            rss: None,
            tunnels: 0,
            usual: [Coalescing::default(); 2],
            coalescing: alloc::vec![Coalescing::default(); queues],
        }
    }

    /// From now on the driver's commands are obeyed here, and what holds before the first of them
    /// is in force: one pair is in use (NET-CTRL-MQ-05), the filter's tables are empty
    /// (NET-CTRL-MAC-01).
    pub(crate) fn begin(&mut self, agreed: FeatureBits) {
        self.pairs = Some(1);
        let mac = agreed.has(Feature::MAC).then_some(self.mac);
        let (by_address, by_vlan) = (agreed.has(Feature::CTRL_RX), agreed.has(Feature::CTRL_VLAN));
        self.filter = Filter::new(mac, by_address, by_vlan);
    }

    /// Another driver comes, that has read the configuration already: what that shows stays.
    pub(crate) fn next_driver(&mut self, config: &NicConfig) {
        let Self { mac, announce, .. } = *self;
        *self = Self { mac, announce, ..Self::new(config) };
    }

    /// What the driver wants to receive.
    pub(crate) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Where frames go by their hash, unless steering is automatic.
    pub(crate) fn table(&self) -> Option<&IndirectionTable> {
        self.rss.as_ref().map(|rss| &rss.1)
    }

    /// The hash in force: that of the steering, or the one to report (NET-HASH-02, -03).
    pub(crate) fn hash(&self) -> FlowHash {
        let hash = self.rss.as_ref().map_or(&*self.hash, |rss| &rss.0);
        hash.clone().with_tunnels(self.tunnels)
    }

    /// The plan of the data path, under what was agreed and is switched on (NET-OFF-03).
    pub(crate) fn plan(&self, agreed: &Plan) -> Plan {
        Plan { receive: agreed.receive.intersection(self.offloads), ..*agreed }
    }

    /// The delays of a pair's receive and transmit queue.
    pub(crate) fn coalescing_of(&self, pair: PairIndex) -> [Coalescing; 2] {
        [pair.receive(), pair.transmit()].map(|queue| self.coalescing_of_queue(queue))
    }

    pub(crate) fn coalescing_of_queue(&self, queue: QueueIndex) -> Coalescing {
        self.coalescing.get(usize::from(queue.0)).copied().unwrap_or_default()
    }

    /// A queue whose life has ended begins with what its kind has (NET-COAL-05, NET-COAL-06).
    pub(crate) fn queue_ended(&mut self, queue: QueueIndex) {
        let [receive, transmit] = self.usual;
        if let Some(slot) = self.coalescing.get_mut(usize::from(queue.0)) {
            *slot = if queue.is_receive() { receive } else { transmit };
        }
    }

    /// Does what the command says, whole or not at all.
    pub(crate) fn obey(&mut self, command: Command<'_>, world: &World<'_>) -> Result<(), Refused> {
        match command {
            Command::SetMode(mode, on) => self.filter.set_mode(mode, on),
            Command::SetMacTable(data) => self.filter.set_table(MacTable::decode(data)?),
            Command::SetMac(mac) => {
                self.mac = mac;
                self.filter.set_mac(mac);
            }
            Command::Vlan { id, accept: true } => self.filter.vlans_mut().insert(id),
            Command::Vlan { id, accept: false } => self.filter.vlans_mut().remove(id),
            Command::AcknowledgeAnnounce => self.announce = false, // NET-CTRL-ANN-01
            Command::SetPairs(pairs) => {
                if !(1..=world.pairs).contains(&pairs) {
                    return Err(Refused::Value); // NET-CTRL-MQ-12
                }
                self.pairs = Some(pairs);
                self.rss = None;
            }
            Command::SetRss(data) => {
                let config = RssConfig::decode(data, world.pairs)?;
                let used = config.transmit_pairs.max(config.table.pairs_used());
                self.pairs = Some(used);
                self.rss = Some(Box::new((config.hash, config.table)));
            }
            Command::SetHash(data) => {
                let hash = decode_hash_config(data)?;
                if self.rss.is_some() {
                    return Err(Refused::Value); // NET-CTRL-HASH-01
                }
                *self.hash = hash;
            }
            Command::SetTunnels(bits) => self.tunnels = bits,
            Command::SetOffloads(bits) => self.offloads = offloads(bits, world)?,
            Command::CoalesceTransmit(wish) => self.coalesce_all(1, wish),
            Command::CoalesceReceive(wish) => self.coalesce_all(0, wish),
            Command::CoalesceQueue(queue, wish) => {
                let slot = self.coalescing.get_mut(usize::from(queue.0));
                let slot = slot.filter(|_| (world.is_live)(queue)).ok_or(Refused::Value)?;
                *slot = wish;
            }
            Command::ReadCoalescing(queue) if (world.is_live)(queue) => {}
            Command::ReadCoalescing(_) => return Err(Refused::Value), // NET-COAL-04
            Command::QueryStatistics | Command::ReadStatistics(_) => {}
        }
        Ok(())
    }

    fn coalesce_all(&mut self, lane: usize, wish: Coalescing) {
        if let Some(usual) = self.usual.get_mut(lane) {
            *usual = wish;
        }
        self.coalescing.iter_mut().skip(lane).step_by(2).for_each(|slot| *slot = wish);
    }
}

/// The offloads that a command switches on.
fn offloads(bits: u64, world: &World<'_>) -> Result<Offloads, Refused> {
    let mut rest = bits;
    let mut on = Offloads::NONE;
    for (bit, offload, feature) in OFFLOADS {
        let mask = 1_u64.wrapping_shl(bit.into());
        if rest & mask != 0 {
            if !world.agreed.bits().has(feature) {
                return Err(Refused::Value); // NET-OFF-05
            }
            on = on.union(offload);
            rest &= !mask;
        }
    }
    if rest == 0 { Ok(on) } else { Err(Refused::Value) }
}
