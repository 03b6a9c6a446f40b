//! What a guest may send in whose name: addresses, VLANs, and the roles of servers and routers.
//!
//! ```text
//!   Rule::Mac          frames come from the NIC's own address, and reach it only there
//!   vlans              frames belong to these VLANs
//!   allow_v4, allow_v6 packets come from these addresses
//!   Rule::Arp          ARP speaks for the NIC's own addresses only
//!   Rule::Neighbor     neighbour discovery likewise
//!   Rule::DhcpServer   no message of a DHCP server
//!   Rule::Router       no router advertisement, no redirect
//! ```
//!
//! What is judged is a private copy of a frame's first bytes, and the copy must be what is sent:
//! the guest can change the original after the look. [`GUARD_HEAD`] bytes are enough for every
//! frame that is no attack; a frame whose decisive header lies beyond is refused if a rule needs
//! that header. The same holds for everything else that hides a packet from the rules and not from
//! its receiver: more tags, LLC and SNAP, unknown EtherTypes, cut or fragmented headers (RFC 6980,
//! RFC 7112, RFC 7113).
//!
//! A guard of the default kind, without any rule, lets everything pass and costs one branch.

mod inspect;
#[cfg(test)]
mod tests;

use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::parse::{ETHERNET_LEN, Mac, ParseFault};
use crate::vlan::VlanSet;

/// The most bytes of a frame that a guard looks at: two tags, the IPv6 header, an extension header
/// and a neighbour advertisement with its options, and some.
pub const GUARD_HEAD: usize = 128;
/// The most networks of a family that a guest's packets may come from.
pub const NETWORKS_MAX: usize = 16;

/// A rule that is either in force or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Rule {
    /// The source of what the guest sends is the NIC's own address; what it receives is for this
    /// address, a group or everybody.
    Mac,
    /// ARP names the NIC's own address as the sender's, and as its IP address one that packets may
    /// come from, or none yet (RFC 5227).
    Arp,
    /// Neighbour discovery names the NIC's own address as link-layer address, and speaks for an
    /// address that packets may come from (RFC 4861).
    Neighbor,
    /// Nothing comes from the port of a DHCP server, of either version.
    DhcpServer,
    /// No router advertisement and no redirect, of either version.
    Router,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 5] =
        [Self::Mac, Self::Arp, Self::Neighbor, Self::DhcpServer, Self::Router];

    const fn bit(self) -> u8 {
        match self {
            Self::Mac => 1,
            Self::Arp => 1 << 1,
            Self::Neighbor => 1 << 2,
            Self::DhcpServer => 1 << 3,
            Self::Router => 1 << 4,
        }
    }
}

/// What is made of frames without a VLAN, or whose tag carries a priority only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Untagged {
    /// They pass.
    Allowed,
    /// They are refused: every frame has to carry a tag.
    Refused,
}

/// Why a frame does not pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Refusal {
    /// No whole Ethernet header.
    TooShort,
    /// Sent from an address that is not the NIC's.
    SourceMac,
    /// For a station that is not the NIC (receive).
    DestinationMac,
    /// A VLAN that is not the NIC's, or none where there has to be one.
    Vlan,
    /// More tags, or other ones, than are looked behind.
    Tags,
    /// An EtherType that no rule looks into.
    EtherType,
    /// Lengths or versions contradict each other.
    Malformed,
    /// A header that a rule needs is beyond the bytes at hand, or behind too many others.
    Hidden,
    /// A fragment of which its receiver could make something that a rule forbids.
    Fragment,
    /// A packet in the name of another IP address.
    SourceIp,
    /// ARP in the name of another.
    Arp,
    /// Neighbour discovery in the name of another.
    Neighbor,
    /// A DHCP server's message.
    DhcpServer,
    /// A router advertisement.
    RouterAdvert,
    /// A redirect.
    Redirect,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::TooShort,
        Self::SourceMac,
        Self::DestinationMac,
        Self::Vlan,
        Self::Tags,
        Self::EtherType,
        Self::Malformed,
        Self::Hidden,
        Self::Fragment,
        Self::SourceIp,
        Self::Arp,
        Self::Neighbor,
        Self::DhcpServer,
        Self::RouterAdvert,
        Self::Redirect,
    ];

    /// The reason as a word for counters and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooShort => "guard-too-short",
            Self::SourceMac => "guard-source-mac",
            Self::DestinationMac => "guard-destination-mac",
            Self::Vlan => "guard-vlan",
            Self::Tags => "guard-tags",
            Self::EtherType => "guard-ethertype",
            Self::Malformed => "guard-malformed",
            Self::Hidden => "guard-hidden",
            Self::Fragment => "guard-fragment",
            Self::SourceIp => "guard-source-ip",
            Self::Arp => "guard-arp",
            Self::Neighbor => "guard-neighbor",
            Self::DhcpServer => "guard-dhcp-server",
            Self::RouterAdvert => "guard-router-advert",
            Self::Redirect => "guard-redirect",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Refusal {}

impl From<ParseFault> for Refusal {
    fn from(fault: ParseFault) -> Self {
        match fault {
            ParseFault::HeadTooShort | ParseFault::TooManyHeaders => Self::Hidden,
            ParseFault::Truncated | ParseFault::Version | ParseFault::Length => Self::Malformed,
        }
    }
}

/// Why a network cannot be allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum NetworkFault {
    /// The prefix is longer than an address.
    Prefix(u8),
    /// There are [`NETWORKS_MAX`] of this family already.
    TooMany,
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(len) => write!(f, "prefix of {len} bits is longer than the address"),
            Self::TooMany => write!(f, "more than {NETWORKS_MAX} networks of one family"),
        }
    }
}

impl core::error::Error for NetworkFault {}

/// Networks of one family, as base and mask.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Networks<A> {
    list: [(A, A); NETWORKS_MAX],
    count: usize,
}

impl<A: Copy> Networks<A> {
    fn push(&mut self, network: (A, A)) -> Result<(), NetworkFault> {
        let slot = self.list.get_mut(self.count).ok_or(NetworkFault::TooMany)?;
        *slot = network;
        self.count = self.count.saturating_add(1);
        Ok(())
    }

    #[inline]
    fn any(&self, holds: impl Fn(A, A) -> bool) -> bool {
        self.list.iter().take(self.count).any(|(base, mask)| holds(*base, *mask))
    }
}

/// The rules for one NIC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guard {
    mac: Mac,
    rules: u8,
    /// Packets come from the networks below only.
    bound: bool,
    v4: Networks<u32>,
    v6: Networks<u128>,
    vlans: Option<(VlanSet, Untagged)>,
    others: bool,
}

impl Guard {
    /// A guard for the NIC with this address, without rules: everything passes.
    #[must_use]
    pub const fn new(mac: Mac) -> Self {
        Self {
            mac,
            rules: 0,
            bound: false,
            v4: Networks { list: [(0, 0); NETWORKS_MAX], count: 0 },
            v6: Networks { list: [(0, 0); NETWORKS_MAX], count: 0 },
            vlans: None,
            others: false,
        }
    }

    /// With a rule more.
    #[must_use]
    pub const fn with(mut self, rule: Rule) -> Self {
        self.rules |= rule.bit();
        self
    }

    /// With frames of these VLANs only, by their outer tag, in both directions. Whether untagged
    /// ones pass as well is said by `untagged`.
    #[must_use]
    pub fn with_vlans(mut self, vlans: VlanSet, untagged: Untagged) -> Self {
        self.vlans = Some((vlans, untagged));
        self
    }

    /// Lets packets come from the network of `prefix_len` bits that `addr` lies in. The first
    /// network of either family closes all others in both; open are still the way to the first
    /// address (DHCP, RFC 5227, RFC 4862) and the NIC's own [`link_local`] address. For guests that
    /// make up another one (RFC 7217), allow `fe80::/64`.
    ///
    /// # Errors
    /// When the prefix is too long, or there are too many networks.
    pub fn allow_v4(mut self, addr: Ipv4Addr, prefix_len: u8) -> Result<Self, NetworkFault> {
        let host_bits = 32_u32.checked_sub(u32::from(prefix_len));
        let host_bits = host_bits.ok_or(NetworkFault::Prefix(prefix_len))?;
        let mask = u32::MAX.unbounded_shl(host_bits);
        self.v4.push((addr.to_bits() & mask, mask))?;
        self.bound = true;
        Ok(self)
    }

    /// The same for IPv6.
    ///
    /// # Errors
    /// When the prefix is too long, or there are too many networks.
    pub fn allow_v6(mut self, addr: Ipv6Addr, prefix_len: u8) -> Result<Self, NetworkFault> {
        let host_bits = 128_u32.checked_sub(u32::from(prefix_len));
        let host_bits = host_bits.ok_or(NetworkFault::Prefix(prefix_len))?;
        let mask = u128::MAX.unbounded_shl(host_bits);
        self.v6.push((addr.to_bits() & mask, mask))?;
        self.bound = true;
        Ok(self)
    }

    /// Lets protocols pass that are neither IP nor ARP. Without this they are refused as soon as a
    /// rule about packets is in force: what no rule understands may carry what it forbids. LLC is
    /// refused in any case then, since some systems take IP from it (RFC 1042).
    #[must_use]
    pub const fn allow_others(mut self) -> Self {
        self.others = true;
        self
    }

    /// The NIC's own address, which rules hold guests to. A driver must not be able to change it
    /// while [`Rule::Mac`] is in force.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether a rule is in force.
    #[must_use]
    pub const fn has(&self, rule: Rule) -> bool {
        self.rules & rule.bit() != 0
    }

    fn has_any(&self, rules: &[Rule]) -> bool {
        rules.iter().any(|rule| self.has(*rule))
    }

    /// How many bytes of a frame must be given, or all of a shorter one; 0 if none are looked at.
    #[must_use]
    pub const fn head_len(&self) -> usize {
        if self.looks_inside() {
            GUARD_HEAD
        } else if self.vlans.is_some() {
            ETHERNET_LEN + 4
        } else if self.has(Rule::Mac) {
            ETHERNET_LEN
        } else {
            0
        }
    }

    /// Whether the guest may send a frame of `len` bytes that begins with `head`.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn transmit(&self, head: &[u8], len: usize) -> Result<(), Refusal> {
        if self.is_open() { Ok(()) } else { self.judge_transmit(head, len) }
    }

    /// Whether the guest may get a frame that begins with `head`: [`Rule::Mac`] and VLANs only.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn receive(&self, head: &[u8]) -> Result<(), Refusal> {
        if self.is_open() { Ok(()) } else { self.judge_receive(head) }
    }

    #[inline]
    const fn is_open(&self) -> bool {
        self.rules == 0 && !self.bound && self.vlans.is_none()
    }

    /// Whether a rule is about what is in the frame.
    #[inline]
    const fn looks_inside(&self) -> bool {
        self.bound || self.rules & !Rule::Mac.bit() != 0
    }

    /// Whether the guest may speak for `addr`.
    #[inline]
    fn owns_v4(&self, addr: u32) -> bool {
        !self.bound || self.v4.any(|base, mask| addr & mask == base)
    }

    /// The same for IPv6.
    #[inline]
    fn owns_v6(&self, addr: u128) -> bool {
        !self.bound
            || self.v6.any(|base, mask| addr & mask == base)
            || addr == link_local(self.mac).to_bits()
    }
}

/// The link-local address that a station makes of its own address (RFC 4291 §2.5.6, appendix A).
#[must_use]
pub const fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let words = [[a ^ 2, b], [c, 0xff], [0xfe, d], [e, f]];
    let [w0, w1, w2, w3] = words;
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        u16::from_be_bytes(w0),
        u16::from_be_bytes(w1),
        u16::from_be_bytes(w2),
        u16::from_be_bytes(w3),
    )
}
