//! Network device layouts (VIRTIO 1.4 §5.1).

/// Bytes of the header with VERSION_1 and neither hash report nor tunnel offloads.
pub const HDR_LEN: usize = 12;
/// Bytes of the header with HASH_REPORT and without tunnel offloads.
pub const HDR_LEN_HASH: usize = 20;
/// Bytes of the header with a UDP tunnel offload, with or without HASH_REPORT.
pub const HDR_LEN_TUNNEL: usize = 24;

/// Header flag: the checksum at `csum_start + csum_offset` is still to be completed.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// Header flag: the device has validated the outermost checksum.
pub const HDR_F_DATA_VALID: u8 = 2;
/// Header flag: the checksum fields carry coalescing information.
pub const HDR_F_RSC_INFO: u8 = 4;
/// Header flag: the checksum of the outer UDP header is still to be completed.
pub const HDR_F_UDP_TUNNEL_CSUM: u8 = 8;

/// Header gso_type: an ordinary frame.
pub const HDR_GSO_NONE: u8 = 0;
/// Header gso_type: TCP over IPv4, to be segmented.
pub const HDR_GSO_TCPV4: u8 = 1;
/// Header gso_type: one UDP datagram, to be fragmented (UFO).
pub const HDR_GSO_UDP: u8 = 3;
/// Header gso_type: TCP over IPv6, to be segmented.
pub const HDR_GSO_TCPV6: u8 = 4;
/// Header gso_type: UDP datagrams, to be segmented (USO).
pub const HDR_GSO_UDP_L4: u8 = 5;
/// Bit of gso_type: the frame to be segmented is in a UDP tunnel over IPv4.
pub const HDR_GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
/// Bit of gso_type: the frame to be segmented is in a UDP tunnel over IPv6.
pub const HDR_GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
/// Bit of gso_type: a TCP segment with ECN set.
pub const HDR_GSO_ECN: u8 = 0x80;

/// Config status bit: the link is up.
pub const S_LINK_UP: u16 = 1;
/// Config status bit: the device asks the guest to announce itself.
pub const S_ANNOUNCE: u16 = 2;

/// Bytes of the device configuration (§5.1.4).
pub const CONFIG_LEN: usize = 28;
/// Offset of `mac` in the device configuration.
pub const CONFIG_MAC: usize = 0;
/// Offset of `status` in the device configuration.
pub const CONFIG_STATUS: usize = 6;
/// Offset of `max_virtqueue_pairs` in the device configuration.
pub const CONFIG_MAX_PAIRS: usize = 8;
/// Offset of `mtu` in the device configuration.
pub const CONFIG_MTU: usize = 10;

/// Offset of `speed` in the device configuration.
pub const CONFIG_SPEED: usize = 12;
/// Offset of `duplex` in the device configuration.
pub const CONFIG_DUPLEX: usize = 16;
/// Offset of `rss_max_key_size` in the device configuration.
pub const CONFIG_RSS_KEY_MAX: usize = 17;
/// Offset of `rss_max_indirection_table_length` in the device configuration.
pub const CONFIG_RSS_TABLE_MAX: usize = 18;
/// Offset of `supported_hash_types` in the device configuration.
pub const CONFIG_HASH_TYPES: usize = 20;
/// Offset of `supported_tunnel_types` in the device configuration.
pub const CONFIG_TUNNEL_TYPES: usize = 24;

/// Config speed: not known.
pub const SPEED_UNKNOWN: u32 = 0xffff_ffff;
/// The highest config speed, in Mbit/s.
pub const SPEED_MAX: u32 = 0x7fff_ffff;
/// Config duplex: both ways at once. (The normative line has the two values the other way round;
/// the field's own text and all drivers read them so.)
pub const DUPLEX_FULL: u8 = 1;
/// Config duplex: not known.
pub const DUPLEX_UNKNOWN: u8 = 0xff;

/// The smallest MTU a device may report (§5.1.4).
pub const MTU_MIN: u16 = 68;
/// Bytes of an Ethernet header without tags.
pub const ETH_HDR_LEN: usize = 14;
/// Bytes of an 802.1Q tag.
pub const VLAN_TAG_LEN: usize = 4;
/// Longest link header in front of an IP packet: Ethernet with one tag, in bytes.
pub const LINK_HDR_MAX: u32 = 18;
/// Largest frame without its virtio header: 64 KiB of IP packet, Ethernet header and one tag.
pub const FRAME_MAX: usize = 65_535 + ETH_HDR_LEN + VLAN_TAG_LEN;
/// The most queue pairs a device may have.
pub const PAIRS_MAX: u16 = 0x8000;
