//! Hashes of flows, and receive queues chosen by them (VIRTIO 1.4 §5.1.9.4.3 to .5, §5.1.9.5.5 to
//! .7).

/// Hash type: the addresses of an IPv4 packet (§5.1.9.4.3.1).
pub const TYPE_IPV4: u32 = 1 << 0;
/// Hash type: the addresses and ports of TCP over IPv4.
pub const TYPE_TCPV4: u32 = 1 << 1;
/// Hash type: the addresses and ports of UDP over IPv4.
pub const TYPE_UDPV4: u32 = 1 << 2;
/// Hash type: the addresses of an IPv6 packet.
pub const TYPE_IPV6: u32 = 1 << 3;
/// Hash type: the addresses and ports of TCP over IPv6.
pub const TYPE_TCPV6: u32 = 1 << 4;
/// Hash type: the addresses and ports of UDP over IPv6.
pub const TYPE_UDPV6: u32 = 1 << 5;
/// Hash type: the addresses of an IPv6 packet with extension headers, those of a mobile node first.
pub const TYPE_IP_EX: u32 = 1 << 6;
/// Hash type: as [`TYPE_IP_EX`], with the ports of TCP.
pub const TYPE_TCP_EX: u32 = 1 << 7;
/// Hash type: as [`TYPE_IP_EX`], with the ports of UDP.
pub const TYPE_UDP_EX: u32 = 1 << 8;
/// All hash types that the standard has.
pub const TYPES_ALL: u32 = 0x1ff;

/// Hash report: none was computed (§5.1.9.4.5). Others: type bit = 1 << (report - 1).
pub const REPORT_NONE: u16 = 0;
/// Hash report: [`TYPE_IPV4`].
pub const REPORT_IPV4: u16 = 1;
/// Hash report: [`TYPE_TCPV4`].
pub const REPORT_TCPV4: u16 = 2;
/// Hash report: [`TYPE_UDPV4`].
pub const REPORT_UDPV4: u16 = 3;
/// Hash report: [`TYPE_IPV6`].
pub const REPORT_IPV6: u16 = 4;
/// Hash report: [`TYPE_TCPV6`].
pub const REPORT_TCPV6: u16 = 5;
/// Hash report: [`TYPE_UDPV6`].
pub const REPORT_UDPV6: u16 = 6;
/// Hash report: [`TYPE_IP_EX`].
pub const REPORT_IPV6_EX: u16 = 7;
/// Hash report: [`TYPE_TCP_EX`].
pub const REPORT_TCPV6_EX: u16 = 8;
/// Hash report: [`TYPE_UDP_EX`].
pub const REPORT_UDPV6_EX: u16 = 9;

/// Tunnel type: GRE over IPv4 with neither key nor sequence number (RFC 2784; §5.1.9.4.4.2).
pub const TUNNEL_GRE_2784: u32 = 1 << 0;
/// Tunnel type: GRE with a key or a sequence number (RFC 2890).
pub const TUNNEL_GRE_2890: u32 = 1 << 1;
/// Tunnel type: GRE over IPv6, or with IPv6 inside (RFC 7676).
pub const TUNNEL_GRE_7676: u32 = 1 << 2;
/// Tunnel type: GRE in UDP (RFC 8086).
pub const TUNNEL_GRE_UDP: u32 = 1 << 3;
/// Tunnel type: VXLAN (RFC 7348).
pub const TUNNEL_VXLAN: u32 = 1 << 4;
/// Tunnel type: VXLAN with a protocol field (draft-ietf-nvo3-vxlan-gpe).
pub const TUNNEL_VXLAN_GPE: u32 = 1 << 5;
/// Tunnel type: Geneve (RFC 8926).
pub const TUNNEL_GENEVE: u32 = 1 << 6;
/// Tunnel type: IPv4 in IPv4 (RFC 2003).
pub const TUNNEL_IPIP: u32 = 1 << 7;
/// Tunnel type: NVGRE (RFC 7637).
pub const TUNNEL_NVGRE: u32 = 1 << 8;
/// All tunnel types that the standard has.
pub const TUNNELS_ALL: u32 = 0x1ff;

/// The longest key of a hash, in bytes: `rss_max_key_size`, which is at least this (§5.1.4).
pub const KEY_MAX: usize = 40;
/// The longest indirection table, in entries: `rss_max_indirection_table_length`, which is at
/// least this (§5.1.4).
pub const TABLE_MAX: usize = 128;

/// Bytes of the virtio header when a hash is reported (§5.1.9).
pub const HDR_LEN_HASH: usize = 20;
/// Offset of `hash_value` in that header; `hash_report` and two bytes of padding follow.
pub const HDR_HASH_VALUE: usize = 12;
