//! The control queue's commands (VIRTIO 1.4 §5.1.9.5): classes, commands, layouts.
//!
//! ```text
//!   readable:  class u8 | command u8 | data ...
//!   writable:  ack u8   | result ...
//! ```

/// Acknowledgement: done.
pub const OK: u8 = 0;
/// Acknowledgement: refused, nothing has changed.
pub const ERR: u8 = 1;

/// Class: receive modes (§5.1.9.5.1).
pub const RX: u8 = 0;
/// Receive every frame.
pub const RX_PROMISC: u8 = 0;
/// Receive every multicast frame.
pub const RX_ALLMULTI: u8 = 1;
/// Receive every unicast frame.
pub const RX_ALLUNI: u8 = 2;
/// Receive no multicast frame.
pub const RX_NOMULTI: u8 = 3;
/// Receive no unicast frame.
pub const RX_NOUNI: u8 = 4;
/// Receive no broadcast frame.
pub const RX_NOBCAST: u8 = 5;

/// Class: MAC addresses (§5.1.9.5.2).
pub const MAC: u8 = 1;
/// The addresses to receive besides the device's own.
pub const MAC_TABLE_SET: u8 = 0;
/// The device's own address.
pub const MAC_ADDR_SET: u8 = 1;

/// Class: VLANs to receive (§5.1.9.5.3).
pub const VLAN: u8 = 2;
/// One more.
pub const VLAN_ADD: u8 = 0;
/// One less.
pub const VLAN_DEL: u8 = 1;

/// Class: announcements (§5.1.9.5.4).
pub const ANNOUNCE: u8 = 3;
/// The guest has announced itself.
pub const ANNOUNCE_ACK: u8 = 0;

/// Class: queue pairs and how frames are spread over them (§5.1.9.5.5 to 7).
pub const MQ: u8 = 4;
/// So many pairs, spread by flow.
pub const MQ_VQ_PAIRS_SET: u8 = 0;
/// Spread by hash and table.
pub const MQ_RSS_CONFIG: u8 = 1;
/// Hashes to report.
pub const MQ_HASH_CONFIG: u8 = 2;

/// Class: receive offloads (§5.1.9.5.9).
pub const GUEST_OFFLOADS: u8 = 5;
/// The offloads that are on.
pub const GUEST_OFFLOADS_SET: u8 = 0;
/// Bit of the offloads for GUEST_UDP_TUNNEL_GSO, whose feature bit is another.
pub const OFFLOAD_UDP_TUNNEL_GSO: u8 = 46;
/// Bit of the offloads for GUEST_UDP_TUNNEL_GSO_CSUM.
pub const OFFLOAD_UDP_TUNNEL_GSO_CSUM: u8 = 47;

/// Class: interrupts for several frames together (§5.1.9.5.10).
pub const NOTF_COAL: u8 = 6;
/// Of all transmit queues.
pub const NOTF_COAL_TX_SET: u8 = 0;
/// Of all receive queues.
pub const NOTF_COAL_RX_SET: u8 = 1;
/// Of one queue.
pub const NOTF_COAL_VQ_SET: u8 = 2;
/// What one queue has.
pub const NOTF_COAL_VQ_GET: u8 = 3;

/// Class: hashes of inner headers (§5.1.9.4.4).
pub const HASH_TUNNEL: u8 = 7;
/// The tunnels to look into.
pub const HASH_TUNNEL_SET: u8 = 0;

/// Class: statistics (§5.1.9.5.11).
pub const STATS: u8 = 8;
/// Which there are.
pub const STATS_QUERY: u8 = 0;
/// Their values.
pub const STATS_GET: u8 = 1;
