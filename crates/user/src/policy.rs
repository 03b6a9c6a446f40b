//! Where the guest may go: the one decision taken for every flow that leaves for the host.
//!
//! The guest's connections are made by a process of the host, so without a rule the guest could
//! reach what only that process is meant to reach: services bound to the host's loopback, and the
//! cloud's metadata service, which hands out credentials by source address. Both are refused, in
//! all the ways an address can be written.
//!
//! ```text
//!   mapped to the host's loopback?  -> that loopback address
//!   in the allow list?              -> as it is
//!   a notation of IPv4?             -> refused, never valid on a wire
//!   translated IPv4 (NAT64, 6to4)?  -> as the IPv4 address inside
//!   loopback, link-local, ...?      -> refused
//!   anything else                   -> as it is
//! ```
//!
//! The host's own LAN addresses stay reachable: they show what any machine beside it sees.
//! The guest network's own addresses (gateway, DNS) are served before this is asked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::addr::{Embedded, IpNet, Ipv4Net, Ipv6Net, ParseNetError, embedded_ipv4};
use crate::config::{HostLoopback, UserConfig};

/// What a flow speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP, ports count.
    Tcp,
    /// UDP, ports count.
    Udp,
    /// ICMP or ICMPv6 echo; has no port.
    Icmp,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Connect to this address of the host's world (port unchanged).
    Allow(IpAddr),
    /// Do not connect; tell the guest by [`Refusal::is_silent`].
    Refuse(Refusal),
}

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The host's loopback, or an address the host takes for it (`0.0.0.0`, `::`).
    Loopback,
    /// Addresses of the host's links.
    LinkLocal,
    /// A cloud's metadata or credential service.
    Metadata,
    /// Multicast or broadcast; not carried.
    Multicast,
    /// An IPv4 address in IPv6 notation that no wire carries.
    Notation,
    /// Inside the guest's own network, where nobody else lives.
    GuestNetwork,
    /// The configuration switches this family off.
    FamilyOff,
}

impl Refusal {
    /// Whether the guest gets no ICMP error for it: errors about multicast are forbidden
    /// (RFC 1122 §3.2.2, RFC 4443 §2.4 e).
    #[must_use]
    pub const fn is_silent(self) -> bool {
        matches!(self, Self::Multicast)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "the host's loopback is closed to the guest",
            Self::LinkLocal => "link-local addresses of the host are closed to the guest",
            Self::Metadata => "the cloud's metadata service is closed to the guest",
            Self::Multicast => "multicast and broadcast are not carried",
            Self::Notation => "an IPv4 address in IPv6 notation is not routable",
            Self::GuestNetwork => "nobody has this address in the guest's network",
            Self::FamilyOff => "this address family is switched off",
        })
    }
}

/// One line of the allow list: a network, and ports if not all.
///
/// Text forms: `10.0.0.0/8`, `127.0.0.1:8080`, `169.254.0.0/16:80-81`, `[fe80::/10]:53`, `::1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Destinations that become allowed.
    pub net: IpNet,
    /// Their TCP and UDP ports; `None` is all, and ICMP echo too.
    pub ports: Option<RangeInclusive<u16>>,
}

impl Allow {
    fn covers(&self, dst: IpAddr, protocol: Protocol, port: u16) -> bool {
        let port_fits = match &self.ports {
            None => true,
            Some(ports) => protocol != Protocol::Icmp && ports.contains(&port),
        };
        port_fits && self.net.contains(dst)
    }
}

impl From<IpNet> for Allow {
    fn from(net: IpNet) -> Self {
        Self { net, ports: None }
    }
}

impl FromStr for Allow {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let (net, ports) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((net, "")) => (net, None),
            // A tail without its colon fails as ports.
            Some((net, tail)) => (net, Some(tail.strip_prefix(':').unwrap_or("no ports"))),
            None => match text.split_once(':') {
                Some((net, ports)) if !ports.contains(':') => (net, Some(ports)),
                _ => (text, None),
            },
        };
        let net = net.parse()?;
        let Some(ports) = ports else { return Ok(Self { net, ports: None }) };
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { net, ports: Some(first..=last) }),
            _ => Err(ParseNetError::new(text)),
        }
    }
}

/// The decision, made once from the configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    allow: Vec<Allow>,
    host_loopback: HostLoopback,
    net_v4: Option<Ipv4Net>,
    net_v6: Option<Ipv6Net>,
}

impl Policy {
    /// The policy of a checked configuration.
    #[must_use]
    pub fn new(config: &UserConfig) -> Self {
        Self {
            allow: config.allow.clone(),
            host_loopback: config.map_host_loopback,
            net_v4: config.ipv4.as_ref().map(|guest| guest.net),
            net_v6: config.ipv6.as_ref().map(|guest| guest.net),
        }
    }

    /// Judges a flow of the guest to `dst`; `port` is ignored for [`Protocol::Icmp`].
    /// O(length of the allow list).
    #[must_use]
    pub fn decide(&self, dst: IpAddr, protocol: Protocol, port: u16) -> Verdict {
        if let Some(real) = self.host_loopback.translate(dst) {
            return Verdict::Allow(real);
        }
        if self.allow.iter().any(|allow| allow.covers(dst, protocol, port)) {
            return Verdict::Allow(dst);
        }
        let refusal = match dst {
            IpAddr::V4(dst) => self.refusal_v4(dst),
            IpAddr::V6(dst) => self.refusal_v6(dst, protocol, port),
        };
        refusal.map_or(Verdict::Allow(dst), Verdict::Refuse)
    }

    fn refusal_v4(&self, dst: Ipv4Addr) -> Option<Refusal> {
        match self.net_v4 {
            None => return Some(Refusal::FamilyOff),
            Some(net) if net.contains(dst) => return Some(Refusal::GuestNetwork),
            Some(_) => {}
        }
        ordinary_v4(dst)
    }

    fn refusal_v6(&self, dst: Ipv6Addr, protocol: Protocol, port: u16) -> Option<Refusal> {
        match self.net_v6 {
            None => return Some(Refusal::FamilyOff),
            Some(net) if net.contains(dst) => return Some(Refusal::GuestNetwork),
            Some(_) => {}
        }
        match embedded_ipv4(dst) {
            Some(Embedded::Notation(_)) => Some(Refusal::Notation),
            Some(Embedded::Translated(inner)) => {
                let allowed = |allow: &Allow| allow.covers(inner.into(), protocol, port);
                ordinary_v4(inner).filter(|_| !self.allow.iter().any(allowed))
            }
            None => ordinary_v6(dst),
        }
    }
}

/// Metadata services outside of the link-local range, which is refused as a whole.
const METADATA_V4: [Ipv4Addr; 2] = [
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba Cloud
    Ipv4Addr::new(168, 63, 129, 16),   // Azure's wire server
];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), // AWS instance metadata
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),  // AWS pod identity
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),  // Google Compute Engine
];

fn ordinary_v4(dst: Ipv4Addr) -> Option<Refusal> {
    let [first, ..] = dst.octets();
    match first {
        // Linux connects 0.0.0.0 to itself; the rest of 0/8 is no destination (RFC 1122 §3.2.1.3).
        0 | 127 => Some(Refusal::Loopback),
        224..=239 => Some(Refusal::Multicast),
        _ if dst.is_broadcast() => Some(Refusal::Multicast),
        _ if dst == Ipv4Addr::new(169, 254, 169, 254) => Some(Refusal::Metadata),
        _ if dst.is_link_local() => Some(Refusal::LinkLocal),
        _ if METADATA_V4.contains(&dst) => Some(Refusal::Metadata),
        _ => None,
    }
}

fn ordinary_v6(dst: Ipv6Addr) -> Option<Refusal> {
    match dst {
        _ if dst.is_loopback() || dst.is_unspecified() => Some(Refusal::Loopback),
        _ if dst.is_multicast() => Some(Refusal::Multicast),
        _ if dst.is_unicast_link_local() => Some(Refusal::LinkLocal),
        _ if METADATA_V6.contains(&dst) => Some(Refusal::Metadata),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(config: &UserConfig, dst: &str) -> Verdict {
        Policy::new(config).decide(dst.parse().unwrap(), Protocol::Tcp, 80)
    }

    fn refuses(dst: &str, why: Refusal) {
        assert_eq!(decide(&UserConfig::default(), dst), Verdict::Refuse(why), "{dst}");
    }

    fn allows(config: &UserConfig, dst: &str) {
        assert_eq!(decide(config, dst), Verdict::Allow(dst.parse().unwrap()), "{dst}");
    }

    #[test]
    fn the_world_is_open() {
        let config = UserConfig::default();
        for dst in ["1.1.1.1", "192.168.1.10", "10.0.3.1", "2606:4700::1111", "fd00::1"] {
            allows(&config, dst);
        }
    }

    #[test]
    fn the_host_s_loopback_is_closed_however_it_is_written() {
        for dst in ["127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "::1", "::"] {
            refuses(dst, Refusal::Loopback);
        }
        for dst in ["::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "::ffff:8.8.8.8"] {
            refuses(dst, Refusal::Notation);
        }
        for dst in ["64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::1", "64:ff9b::"] {
            refuses(dst, Refusal::Loopback);
        }
    }

    #[test]
    fn metadata_and_link_local_addresses_are_closed_however_they_are_written() {
        for dst in ["169.254.169.254", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::"] {
            refuses(dst, Refusal::Metadata);
        }
        for dst in ["fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16"] {
            refuses(dst, Refusal::Metadata);
        }
        for dst in ["169.254.170.2", "fe80::1", "febf::1"] {
            refuses(dst, Refusal::LinkLocal);
        }
    }

    #[test]
    fn multicast_and_broadcast_are_not_carried() {
        for dst in ["224.0.0.251", "239.255.255.250", "255.255.255.255", "ff02::fb"] {
            refuses(dst, Refusal::Multicast);
        }
        assert!(Refusal::Multicast.is_silent());
        assert!(!Refusal::Loopback.is_silent());
    }

    #[test]
    fn nobody_lives_in_the_guest_s_network() {
        for dst in ["10.0.2.77", "10.0.2.255", "10.0.2.15", "fd76:696f:6e65:7400::99"] {
            refuses(dst, Refusal::GuestNetwork);
        }
    }

    #[test]
    fn a_family_that_is_off_is_refused() {
        let config = UserConfig { ipv6: None, ..UserConfig::default() };
        assert_eq!(decide(&config, "2606:4700::1111"), Verdict::Refuse(Refusal::FamilyOff));
        let config = UserConfig { ipv4: None, ..UserConfig::default() };
        assert_eq!(decide(&config, "1.1.1.1"), Verdict::Refuse(Refusal::FamilyOff));
    }

    #[test]
    fn the_allow_list_opens_what_it_names_and_nothing_more() {
        let allow = vec!["127.0.0.1:80".parse().unwrap(), "fe80::/10".parse().unwrap()];
        let config = UserConfig { allow, ..UserConfig::default() };
        let policy = Policy::new(&config);
        let lo: IpAddr = Ipv4Addr::LOCALHOST.into();
        allows(&config, "127.0.0.1");
        allows(&config, "fe80::1");
        allows(&config, "64:ff9b::127.0.0.1");
        let closed = Verdict::Refuse(Refusal::Loopback);
        assert_eq!(policy.decide(lo, Protocol::Udp, 81), closed);
        assert_eq!(policy.decide(lo, Protocol::Icmp, 80), closed);
        assert_eq!(decide(&config, "127.0.0.2"), closed);
        assert_eq!(decide(&config, "::ffff:127.0.0.1"), Verdict::Refuse(Refusal::Notation));
    }

    #[test]
    fn a_mapped_address_leads_to_the_host_s_loopback() {
        let map_host_loopback = HostLoopback {
            v4: Some(Ipv4Addr::new(10, 0, 2, 2)),
            v6: Some("fd76:696f:6e65:7400::2".parse().unwrap()),
        };
        let config = UserConfig { map_host_loopback, ..UserConfig::default() };
        let to_v4 = Verdict::Allow(Ipv4Addr::LOCALHOST.into());
        assert_eq!(decide(&config, "10.0.2.2"), to_v4);
        let to_v6 = Verdict::Allow(Ipv6Addr::LOCALHOST.into());
        assert_eq!(decide(&config, "fd76:696f:6e65:7400::2"), to_v6);
        assert_eq!(decide(&config, "127.0.0.1"), Verdict::Refuse(Refusal::Loopback));
    }

    #[test]
    fn allow_lines_are_read_in_each_form() {
        let read = |text: &str| text.parse::<Allow>().unwrap();
        assert_eq!(read("10.0.0.0/8").ports, None);
        assert_eq!(read("127.0.0.1:8080").ports, Some(8080..=8080));
        assert_eq!(read("169.254.0.0/16:80-81").ports, Some(80..=81));
        assert_eq!(read("[fe80::/10]:53").net, "fe80::/10".parse().unwrap());
        assert_eq!(read("::1").ports, None);
        assert_eq!(read("[::1]").ports, None);
        for text in ["", "127.0.0.1:", "127.0.0.1:9-8", "[::1]80", "[::1", "127.0.0.1:70000"] {
            assert!(text.parse::<Allow>().is_err(), "{text}");
        }
    }
}
