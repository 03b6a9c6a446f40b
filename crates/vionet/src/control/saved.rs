//! What commands have set, saved; and set again, by commands that are judged as the driver's were.

use std::vec::Vec;

use vionet_frame::filter::RxMode;
use vionet_frame::hash::FlowHash;
use vionet_frame::header::Offloads;
use vionet_spec::control::{
    GUEST_OFFLOADS, GUEST_OFFLOADS_SET, HASH_TUNNEL, HASH_TUNNEL_SET, MAC, MAC_ADDR_SET,
    MAC_TABLE_SET, MQ, MQ_HASH_CONFIG, MQ_RSS_CONFIG, MQ_VQ_PAIRS_SET, NOTF_COAL, NOTF_COAL_RX_SET,
    NOTF_COAL_TX_SET, NOTF_COAL_VQ_SET, RX, VLAN, VLAN_ADD,
};
use vionet_spec::feature::{Feature, FeatureBits};

use super::state::OFFLOADS;
use super::{Coalescing, Command, ControlState, World};
use crate::config::NicConfig;
use crate::negotiate::Negotiated;
use crate::state::{Control, Hash, RestoreError, Rss};

impl ControlState {
    /// All of it, as it is left by the driver of these features.
    pub(crate) fn save(&self, config: &NicConfig, agreed: FeatureBits) -> Control {
        let modes = (0..).zip(RxMode::ALL).filter(|(_, mode)| self.filter.has_mode(*mode));
        let table = self.filter.table();
        // Without the feature MAC a filter learns the address by the command alone.
        let told = self.filter.mac().is_some() && !agreed.has(Feature::MAC);
        let rss = self.rss.as_deref().map(|(hash, table)| Rss {
            hash: saved_hash(hash),
            table: table.entries().to_vec(),
            unclassified: table.unclassified(),
        });
        Control {
            begun: self.pairs.is_some(),
            mac: Some(self.mac).filter(|mac| *mac != config.mac || told),
            announce: self.announce,
            pairs: self.pairs.unwrap_or(0),
            offloads: self.saved_offloads(),
            modes: modes.fold(0, |modes, (code, _)| modes | 1_u8.wrapping_shl(code)),
            unicast: table.unicast().collect(),
            multicast: table.multicast().collect(),
            vlans: self.filter.vlans().iter().map(|id| id.number()).collect(),
            hash: Some(saved_hash(&self.hash)).filter(|hash| !hash.is_none()),
            rss,
            tunnels: self.tunnels,
            usual: self.usual.map(saved_delay),
            coalescing: self.coalescing.iter().copied().map(saved_delay).collect(),
        }
    }

    fn saved_offloads(&self) -> Option<u64> {
        let on = OFFLOADS.iter().filter(|(_, offload, _)| {
            *offload != Offloads::NONE && self.offloads.contains(*offload)
        });
        let bits = on.fold(0, |bits, (bit, ..)| bits | 1_u64.wrapping_shl((*bit).into()));
        (self.offloads != Offloads::ALL).then_some(bits)
    }

    /// The same again, of a device of this configuration.
    ///
    /// # Errors
    /// What no command can have set.
    pub(crate) fn restore(
        saved: &Control,
        config: &NicConfig,
        agreed: Option<&Negotiated>,
    ) -> Result<Self, RestoreError> {
        let mut state = Self::new(config);
        if saved.coalescing.len() != state.coalescing.len() {
            return Err(RestoreError::Value("delays of more queues, or fewer, than there are"));
        }
        let none = Control { coalescing: saved.coalescing.clone(), ..Control::default() };
        let Some(agreed) = agreed.filter(|_| saved.begun) else {
            let idle = *saved == none && saved.coalescing.iter().all(|delay| *delay == [0; 2]);
            RestoreError::unless(idle, "what commands set, without commands")?;
            return Ok(state);
        };
        state.begin(agreed.bits());
        let world = World { agreed, pairs: config.pairs, is_live: &|_| true };
        for request in saved.commands() {
            let command = Command::decode(&request, agreed.bits());
            let obeyed = command.and_then(|command| state.obey(command, &world));
            obeyed.map_err(|why| RestoreError::Command(std::format!("{why}")))?;
        }
        let in_use = state.pairs.unwrap_or(0);
        RestoreError::unless(saved.pairs == in_use, "a number of pairs that its table denies")?;
        let asked =
            agreed.bits().has(Feature::GUEST_ANNOUNCE) && agreed.bits().has(Feature::STATUS);
        RestoreError::unless(asked || !saved.announce, "an announcement without its features")?;
        state.announce = saved.announce;
        Ok(state)
    }
}

impl Control {
    /// The commands that bring a driver's device from its beginning to this.
    fn commands(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let modes = (0..u8::BITS).filter(|code| self.modes.wrapping_shr(*code) & 1 == 1);
        let modes = modes.map(|code| command(RX, u8::try_from(code).unwrap_or(u8::MAX), &[&[1]]));
        let mac = self.mac.iter().map(|mac| command(MAC, MAC_ADDR_SET, &[mac]));
        let has_table = !self.unicast.is_empty() || !self.multicast.is_empty();
        let table = has_table.then(|| {
            let [unicast, multicast] = [&self.unicast, &self.multicast];
            let [first, second] = [counted(unicast), counted(multicast)];
            let lists = [&first[..], unicast.as_flattened(), &second, multicast.as_flattened()];
            command(MAC, MAC_TABLE_SET, &lists)
        });
        let vlans = self.vlans.iter().map(|id| command(VLAN, VLAN_ADD, &[&id.to_le_bytes()]));
        let offloads = self.offloads.iter();
        let offloads = offloads
            .map(|bits| command(GUEST_OFFLOADS, GUEST_OFFLOADS_SET, &[&bits.to_le_bytes()]));
        // A hash to report cannot be set under steering by a table: it comes first.
        let hash = self.hash.iter().map(|hash| {
            command(MQ, MQ_HASH_CONFIG, &[&hash.types.to_le_bytes(), &[0; 8], &hash.counted_key()])
        });
        let pairs = self.pairs.to_le_bytes();
        let rss = self.rss.iter().map(move |rss| rss.command(pairs));
        let by_number = self.rss.is_none() && self.pairs != 1;
        let pairs = by_number.then(|| command(MQ, MQ_VQ_PAIRS_SET, &[&pairs]));
        let tunnels = Some(self.tunnels).filter(|types| *types != 0);
        let tunnels =
            tunnels.map(|types| command(HASH_TUNNEL, HASH_TUNNEL_SET, &[&types.to_le_bytes()]));
        let steering = hash.chain(rss).chain(pairs).chain(tunnels);
        let filter = modes.chain(mac).chain(table).chain(vlans);
        filter.chain(offloads).chain(steering).chain(self.delays())
    }

    fn delays(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let codes = [NOTF_COAL_RX_SET, NOTF_COAL_TX_SET];
        let usual = self.usual.iter().zip(codes).filter(|(delay, _)| **delay != [0; 2]);
        let usual = usual.map(|(delay, code)| command(NOTF_COAL, code, &[&delay_bytes(*delay)]));
        let kinds = self.usual.iter().cycle();
        let own = (0_u16..).zip(self.coalescing.iter().zip(kinds));
        let own = own.filter(|(_, (delay, usual))| delay != usual).map(|(queue, (delay, _))| {
            let queue = [&queue.to_le_bytes()[..], &[0; 2]].concat();
            command(NOTF_COAL, NOTF_COAL_VQ_SET, &[&queue, &delay_bytes(*delay)])
        });
        usual.chain(own)
    }
}

impl Rss {
    fn command(&self, pairs: [u8; 2]) -> Vec<u8> {
        let Self { hash, table, unclassified } = self;
        let mask = u16::try_from(table.len()).unwrap_or(u16::MAX).wrapping_sub(1);
        let table: Vec<u8> = table.iter().flat_map(|pair| pair.to_le_bytes()).collect();
        let head = [&hash.types.to_le_bytes()[..], &mask.to_le_bytes()].concat();
        let rest = [&unclassified.to_le_bytes()[..], &table, &pairs, &hash.counted_key()];
        command(MQ, MQ_RSS_CONFIG, &[&head, &rest.concat()])
    }
}

impl Hash {
    /// Nothing is hashed, with no key.
    fn is_none(&self) -> bool {
        self.types == 0 && self.key.iter().all(|byte| *byte == 0)
    }

    fn counted_key(&self) -> Vec<u8> {
        let len = u8::try_from(self.key.len()).unwrap_or(u8::MAX);
        [&[len], &self.key[..]].concat()
    }
}

fn command(class: u8, code: u8, data: &[&[u8]]) -> Vec<u8> {
    [&[class, code], &data.concat()[..]].concat()
}

fn counted(list: &[[u8; 6]]) -> [u8; 4] {
    u32::try_from(list.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn saved_hash(hash: &FlowHash) -> Hash {
    Hash { types: hash.types(), key: hash.key().to_vec() }
}

fn saved_delay(delay: Coalescing) -> [u32; 2] {
    [delay.max_packets, delay.max_usecs]
}

fn delay_bytes([max_packets, max_usecs]: [u32; 2]) -> [u8; 8] {
    Coalescing { max_packets, max_usecs }.encode()
}
