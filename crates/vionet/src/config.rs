//! The device configuration (VIRTIO 1.4 §5.1.4): what the host decides, and how the driver sees it.

use vionet_spec::hash::{KEY_MAX, TABLE_MAX, TUNNELS_ALL, TYPES_ALL};
use vionet_spec::net::{
    CONFIG_DUPLEX, CONFIG_HASH_TYPES, CONFIG_LEN, CONFIG_MAC, CONFIG_MAX_PAIRS, CONFIG_MTU,
    CONFIG_RSS_KEY_MAX, CONFIG_RSS_TABLE_MAX, CONFIG_SPEED, CONFIG_STATUS, CONFIG_TUNNEL_TYPES,
    DUPLEX_FULL, DUPLEX_UNKNOWN, SPEED_MAX, SPEED_UNKNOWN,
};

/// The most queue pairs of a device of ours (the standard allows 0x8000).
pub const PAIRS_MAX: u16 = 128;

/// What a NIC is from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// The largest IP packet, in bytes; the endpoint's own bound where it is lower.
    pub mtu: u16,
    /// How many queue pairs the device has, 1 to [`PAIRS_MAX`]; the endpoint's own bound where it
    /// is lower.
    pub pairs: u16,
    /// The link's speed in Mbit/s, up to 2^31 - 1; full duplex then. `None`: not known.
    pub speed: Option<u32>,
    /// The driver may take another address than [`Self::mac`].
    pub mac_may_change: bool,
    /// The device stands by for a primary of the same address (STANDBY).
    pub standby: bool,
}

impl Default for NicConfig {
    /// One pair without an address of its own yet, the largest MTU.
    fn default() -> Self {
        Self {
            mac: [0; 6],
            mtu: u16::MAX,
            pairs: 1,
            speed: None,
            mac_may_change: true,
            standby: false,
        }
    }
}

const RSS_KEY_MAX: u8 = 40;
const RSS_TABLE_MAX: u16 = 128;
const _: () = assert!(KEY_MAX == 40 && TABLE_MAX == 128, "as in the configuration");

/// All fields of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigSpace {
    pub(crate) mac: [u8; 6],
    pub(crate) status: u16,
    pub(crate) pairs: u16,
    pub(crate) mtu: u16,
    pub(crate) speed: Option<u32>,
    pub(crate) rss_key_max: u8,
    pub(crate) rss_table_max: u16,
    pub(crate) hash_types: u32,
    pub(crate) tunnel_types: u32,
}

impl ConfigSpace {
    /// What the device can hash, and nothing else.
    pub(crate) const fn of_hashing() -> Self {
        Self {
            mac: [0; 6],
            status: 0,
            pairs: 0,
            mtu: 0,
            speed: None,
            rss_key_max: RSS_KEY_MAX,
            rss_table_max: RSS_TABLE_MAX,
            hash_types: TYPES_ALL,
            tunnel_types: TUNNELS_ALL,
        }
    }

    /// The bytes that the driver reads. A field keeps its offset, whatever fields there are.
    pub(crate) fn encode(&self) -> [u8; CONFIG_LEN] {
        let speed = self.speed.map_or(SPEED_UNKNOWN, |speed| speed.min(SPEED_MAX));
        let duplex = if self.speed.is_some() { DUPLEX_FULL } else { DUPLEX_UNKNOWN };
        let mut space = [0; CONFIG_LEN];
        let fields: [(usize, &[u8]); 9] = [
            (CONFIG_MAC, &self.mac),
            (CONFIG_STATUS, &self.status.to_le_bytes()),
            (CONFIG_MAX_PAIRS, &self.pairs.to_le_bytes()),
            (CONFIG_MTU, &self.mtu.to_le_bytes()),
            (CONFIG_SPEED, &speed.to_le_bytes()),
            (CONFIG_DUPLEX, &[duplex]),
            (CONFIG_RSS_KEY_MAX, &[self.rss_key_max]),
            (CONFIG_RSS_TABLE_MAX, &self.rss_table_max.to_le_bytes()),
            (CONFIG_HASH_TYPES, &self.hash_types.to_le_bytes()),
        ];
        let tunnels = self.tunnel_types.to_le_bytes();
        for (offset, bytes) in fields.into_iter().chain([(CONFIG_TUNNEL_TYPES, &tunnels[..])]) {
            for (to, from) in space.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        }
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_lies_where_the_standard_has_it() {
        let space = ConfigSpace {
            mac: [1, 2, 3, 4, 5, 6],
            status: 0x0807,
            pairs: 0x0a09,
            mtu: 0x0c0b,
            speed: Some(0x100f_0e0d),
            rss_key_max: 0x12,
            rss_table_max: 0x1413,
            hash_types: 0x1817_1615,
            tunnel_types: 0x1c1b_1a19,
        };
        let mut expected: [u8; CONFIG_LEN] =
            core::array::from_fn(|at| u8::try_from(at).unwrap() + 1);
        expected[CONFIG_DUPLEX] = DUPLEX_FULL;
        assert_eq!(space.encode(), expected);
        let unknown = ConfigSpace { speed: None, ..space }.encode();
        assert_eq!(unknown[CONFIG_SPEED..=CONFIG_DUPLEX], [0xff; 5], "NET-CFG-10, NET-CFG-11");
    }
}
