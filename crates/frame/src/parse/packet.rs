//! What a frame turns out to hold: the numbers and values that reading gives and building takes.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, pseudo_header_v4, pseudo_header_v6};

/// EtherType of IPv4.
pub const ETHER_TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHER_TYPE_ARP: u16 = 0x0806;
/// EtherType of a customer tag (IEEE 802.1Q).
pub const ETHER_TYPE_VLAN: u16 = 0x8100;
/// EtherType of IPv6.
pub const ETHER_TYPE_IPV6: u16 = 0x86dd;
/// EtherType of a service tag (IEEE 802.1ad).
pub const ETHER_TYPE_SERVICE_VLAN: u16 = 0x88a8;

/// IP protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Bytes of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_LEN: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;
/// Bytes of an ICMP or ICMPv6 header.
pub const ICMP_LEN: usize = 8;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A frame, read. Offsets are from the start of the frame, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Whom the frame is for.
    pub destination: Mac,
    /// Who sent the frame.
    pub source: Mac,
    /// Tag control information of the VLAN tags, outermost first.
    pub tags: [Option<u16>; 2],
    /// EtherType after the tags.
    pub ether_type: u16,
    /// Where the network header starts.
    pub l3: usize,
    /// What is in the frame.
    pub network: Network,
}

impl Parsed {
    /// The IP packet in the frame, if there is one.
    #[must_use]
    pub const fn ip(&self) -> Option<&Ip> {
        match &self.network {
            Network::Ip(ip) => Some(ip),
            Network::Arp(_) | Network::Other => None,
        }
    }
}

/// What an Ethernet frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    /// An ARP message for IPv4 over Ethernet.
    Arp(Arp),
    /// An IP packet of either version.
    Ip(Ip),
    /// Something else; see [`Parsed::ether_type`].
    Other,
}

/// An ARP message for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Arp {
    /// 1 for a request, 2 for a reply.
    pub operation: u16,
    /// Ethernet address of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender.
    pub sender_ip: Ipv4Addr,
    /// Ethernet address of the target; anything in a request.
    pub target_mac: Mac,
    /// IPv4 address of the target.
    pub target_ip: Ipv4Addr,
}

/// Source and destination of a packet, of one version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Addresses {
    /// Of an IPv4 packet.
    V4 {
        /// Who sent the packet.
        source: Ipv4Addr,
        /// Whom the packet is for.
        destination: Ipv4Addr,
    },
    /// Of an IPv6 packet.
    V6 {
        /// Who sent the packet.
        source: Ipv6Addr,
        /// Whom the packet is for.
        destination: Ipv6Addr,
    },
}

impl Addresses {
    /// Who sent the packet.
    #[must_use]
    pub const fn source(&self) -> IpAddr {
        match *self {
            Self::V4 { source, .. } => IpAddr::V4(source),
            Self::V6 { source, .. } => IpAddr::V6(source),
        }
    }

    /// Whom the packet is for.
    #[must_use]
    pub const fn destination(&self) -> IpAddr {
        match *self {
            Self::V4 { destination, .. } => IpAddr::V4(destination),
            Self::V6 { destination, .. } => IpAddr::V6(destination),
        }
    }

    /// Whether these are IPv4 addresses; IPv6 if not.
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        matches!(self, Self::V4 { .. })
    }

    /// The addresses of a packet that goes back.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::V4 { source, destination } => {
                Self::V4 { source: destination, destination: source }
            }
            Self::V6 { source, destination } => {
                Self::V6 { source: destination, destination: source }
            }
        }
    }

    /// The sum of the pseudo header for `len` bytes of `protocol`.
    #[must_use]
    pub fn pseudo_header(&self, protocol: u8, len: u32) -> Sum {
        match *self {
            Self::V4 { source, destination } => {
                pseudo_header_v4(source, destination, protocol, len)
            }
            Self::V6 { source, destination } => {
                pseudo_header_v6(source, destination, protocol, len)
            }
        }
    }
}

/// Which part of a packet a fragment is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Fragment {
    /// What the fragments of one packet have in common.
    pub id: u32,
    /// Where this part lies in the packet's payload, in bytes.
    pub offset: u16,
    /// More parts follow.
    pub more: bool,
}

/// An IP packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ip {
    /// Source and destination.
    pub addresses: Addresses,
    /// Protocol number of what follows the IP header and its extensions.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// TOS or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// The packet is a fragment; `None` for a whole packet.
    pub fragment: Option<Fragment>,
    /// A routing header sends the packet on to addresses that are not in `addresses`.
    pub routed: bool,
    /// Where what follows the IP header and its extensions starts.
    pub l4: usize,
    /// Where the packet ends; what the frame has beyond is padding.
    pub end: usize,
    /// What follows the IP header.
    pub transport: Transport,
    /// Where the transport's payload starts: `l4` when the transport is not read.
    pub payload: usize,
    /// Bytes of the transport's payload, all within the frame.
    pub payload_len: usize,
}

/// What an IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// A TCP segment.
    Tcp(Tcp),
    /// A UDP datagram.
    Udp(Udp),
    /// An ICMP message in IPv4, or an ICMPv6 message in IPv6.
    Icmp(Icmp),
    /// A fragment other than the first, which has no transport header.
    LaterFragment,
    /// Something else; see [`Ip::protocol`].
    Other,
}

/// The flags of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(1);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(1 << 1);
    /// Reset the connection.
    pub const RST: Self = Self(1 << 2);
    /// Push the data to the reader.
    pub const PSH: Self = Self(1 << 3);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(1 << 4);
    /// The urgent pointer counts.
    pub const URG: Self = Self(1 << 5);
    /// Echo of a congestion mark.
    pub const ECE: Self = Self(1 << 6);
    /// Congestion window reduced.
    pub const CWR: Self = Self(1 << 7);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The flags in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These flags without those of `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl core::ops::BitOr for TcpFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

/// A TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Number of the first byte of payload, or of the SYN.
    pub seq: u32,
    /// Number of the next byte that the sender expects.
    pub ack: u32,
    /// The flags.
    pub flags: TcpFlags,
    /// Room at the sender, not yet scaled.
    pub window: u16,
    /// The checksum field as it stands.
    pub checksum: u16,
    /// Bytes of the header with its options, 20 to 60.
    pub header_len: usize,
    /// Option: the largest segment that the sender takes.
    pub mss: Option<u16>,
    /// Option: the sender's windows are shifted by this, at most 14 (RFC 7323 §2.3).
    pub window_scale: Option<u8>,
}

/// A UDP header (RFC 768).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The checksum field as it stands; 0 for none.
    pub checksum: u16,
}

/// An ICMP or ICMPv6 header (RFC 792, RFC 4443).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Icmp {
    /// The message's type.
    pub kind: u8,
    /// The message's code.
    pub code: u8,
    /// The checksum field as it stands.
    pub checksum: u16,
    /// Identifier of an echo; the first half of the rest in other messages.
    pub id: u16,
    /// Sequence number of an echo; the second half of the rest in other messages.
    pub seq: u16,
}
