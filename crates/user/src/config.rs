//! What the guest's network looks like: addresses, services, published ports.
//!
//! ```text
//!   guest 10.0.2.15 ----- 10.0.2.0/24 -----+-- gateway 10.0.2.2   (we, to the world)
//!         ...::15    fd76:696f:6e65:7400:: +-- DNS     10.0.2.3   (we, to the host's resolver)
//! ```
//!
//! The IPv4 defaults are those that slirp's users know. All fields are public; start from
//! [`UserConfig::default`] and change what differs. [`UserConfig::check`] finds contradictions.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addr::{Ipv4Net, Ipv6Net};
use crate::lease::DNS_MAX;
use crate::policy::Allow;
use crate::ports::PortMap;

/// The guest's side of a user-mode network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserConfig {
    /// Our MAC address, one for all of our addresses.
    pub mac: [u8; 6],
    /// The IPv4 side; `None` switches IPv4 off.
    pub ipv4: Option<Ipv4Guest>,
    /// The IPv6 side; `None` switches IPv6 off.
    pub ipv6: Option<Ipv6Guest>,
    /// Bytes of the largest IP packet, told to the guest by DHCP and router advertisement;
    /// at least 1280 with IPv6, at most 65520. There is no wire, so big is fast.
    pub mtu: u16,
    /// Host name that DHCP gives to the guest.
    pub hostname: Option<String>,
    /// DNS search domains for the guest; the first is DHCP's domain name.
    pub search: Vec<String>,
    /// Where DNS queries go; empty follows the host's own resolver.
    pub dns_servers: Vec<SocketAddr>,
    /// Guest-side addresses that lead to the host's loopback; by default there is none.
    pub map_host_loopback: HostLoopback,
    /// Destinations that are open although [`crate::policy`] would refuse them.
    pub allow: Vec<Allow>,
    /// Serve DHCPv4 and DHCPv6.
    pub dhcp: bool,
    /// Send router advertisements.
    pub ra: bool,
    /// Forward DNS, and tell the guest that we do.
    pub dns: bool,
    /// Ports of the host that lead into the guest.
    pub publish: Vec<PortMap>,
}

/// The IPv4 addresses of a guest's network; all lie in `net` and differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Guest {
    /// The network, `/8` to `/30`.
    pub net: Ipv4Net,
    /// Our address as router and DHCP server.
    pub gateway: Ipv4Addr,
    /// Our address as DNS forwarder.
    pub dns: Ipv4Addr,
    /// The address that DHCP leases to the guest.
    pub guest: Ipv4Addr,
}

/// The IPv6 addresses of a guest's network; the global ones lie in `net` and differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Guest {
    /// The network; a `/64`, since guests make their own addresses in it.
    pub net: Ipv6Net,
    /// Our address as router.
    pub gateway: Ipv6Addr,
    /// Our link-local address, the source of router advertisements.
    pub link_local: Ipv6Addr,
    /// Our address as DNS forwarder.
    pub dns: Ipv6Addr,
    /// The address that DHCPv6 leases to the guest.
    pub guest: Ipv6Addr,
}

/// Guest-side addresses that stand for the host's `127.0.0.1` and `::1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLoopback {
    /// Leads to `127.0.0.1`.
    pub v4: Option<Ipv4Addr>,
    /// Leads to `::1`.
    pub v6: Option<Ipv6Addr>,
}

impl HostLoopback {
    /// The loopback address that `dst` stands for, if any.
    #[must_use]
    pub fn translate(&self, dst: IpAddr) -> Option<IpAddr> {
        match dst {
            IpAddr::V4(dst) if self.v4 == Some(dst) => Some(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(dst) if self.v6 == Some(dst) => Some(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    /// The guest-side address that stands for loopback of the same family, for a connection from
    /// the host's loopback into the guest; if there is none, use the gateway's address.
    #[must_use]
    pub fn stand_in(&self, loopback: IpAddr) -> Option<IpAddr> {
        match loopback {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }
}

impl Default for Ipv4Guest {
    /// `10.0.2.0/24`: gateway `.2`, DNS `.3`, guest `.15`.
    fn default() -> Self {
        let host = |last| Ipv4Addr::new(10, 0, 2, last);
        Self { net: Ipv4Net::around(host(0), 24), gateway: host(2), dns: host(3), guest: host(15) }
    }
}

impl Default for Ipv6Guest {
    /// `fd76:696f:6e65:7400::/64` ("vionet" in ASCII): gateway `::2`, DNS `::3`, guest `::15`.
    fn default() -> Self {
        let host = |last| Ipv6Addr::new(0xfd76, 0x696f, 0x6e65, 0x7400, 0, 0, 0, last);
        Self {
            net: Ipv6Net::around(host(0), 64),
            gateway: host(2),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
            dns: host(3),
            guest: host(0x15),
        }
    }
}

impl Default for UserConfig {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02],
            ipv4: Some(Ipv4Guest::default()),
            ipv6: Some(Ipv6Guest::default()),
            mtu: MTU_MAX,
            hostname: None,
            search: Vec::new(),
            dns_servers: Vec::new(),
            map_host_loopback: HostLoopback::default(),
            allow: Vec::new(),
            dhcp: true,
            ra: true,
            dns: true,
            publish: Vec::new(),
        }
    }
}

/// The largest MTU: 65535 rounded down to what aligns well, as on the kernel's loopback of old.
pub const MTU_MAX: u16 = 65_520;
/// The smallest MTU of an IPv6 link (RFC 8200 §5).
pub const MTU_MIN_V6: u16 = 1280;
/// The smallest MTU that leaves room for a DHCP reply (RFC 2131 §2).
pub const MTU_MIN_V4: u16 = 576;
/// Bytes of all search domains in DNS encoding; keeps DHCP replies and router advertisements small.
const SEARCH_BYTES_MAX: usize = 240;

/// A contradiction in a [`UserConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// Both families are off.
    NoFamily,
    /// The MAC address is zero or a group address.
    Mac([u8; 6]),
    /// The MTU is outside the given bounds.
    Mtu {
        /// What was asked for.
        mtu: u16,
        /// The least that works for the families switched on.
        min: u16,
    },
    /// The network cannot hold a guest.
    Net(&'static str),
    /// An address is outside of the network, reserved in it, or not of the right kind.
    Address {
        /// Which one: `gateway`, `dns`, `guest`, ...
        role: &'static str,
        /// The address.
        addr: IpAddr,
    },
    /// Two of our addresses are equal.
    SameAddress(IpAddr),
    /// A name that DNS does not know as one (RFC 1123 §2.1).
    Name(String),
    /// The search domains take too many bytes together.
    SearchTooLong,
    /// A DNS server that nobody can ask.
    DnsServer(SocketAddr),
    /// A lease of so few seconds, which a guest would renew all the time.
    LeaseTooShort(u32),
    /// More DNS servers than a lease names.
    TooManyDns(usize),
    /// Two published ranges listen to the same port of the same address.
    PublishedTwice(Box<[PortMap; 2]>),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoFamily => f.write_str("ipv4 and ipv6 are both off, switch one on"),
            Self::Mac([a, b, c, d, e, g]) => write!(
                f,
                "mac {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x} is no unicast address, \
                 take for example 52:55:0a:00:02:02"
            ),
            Self::Mtu { mtu, min } => {
                write!(f, "mtu {mtu} does not work here, take {min} to {MTU_MAX}")
            }
            Self::Net(what) => write!(f, "guest network: {what}"),
            Self::Address { role, addr } => {
                write!(f, "{role} address {addr} is not usable in the guest's network")
            }
            Self::SameAddress(addr) => {
                write!(f, "address {addr} is given to two parties, give each its own")
            }
            Self::Name(name) => write!(
                f,
                "`{name}` is no host or domain name, use letters, digits, hyphens and dots"
            ),
            Self::SearchTooLong => {
                write!(f, "search domains are longer than {SEARCH_BYTES_MAX} bytes, name fewer")
            }
            Self::DnsServer(server) => write!(f, "dns server {server} cannot be asked"),
            Self::LeaseTooShort(seconds) => {
                write!(f, "a lease of {seconds} s is too short, take 60 or more")
            }
            Self::TooManyDns(count) => {
                write!(f, "{count} dns servers, a lease names at most {DNS_MAX}")
            }
            Self::PublishedTwice(maps) => {
                let [a, b] = &**maps;
                write!(f, "published ports {a} and {b} overlap, keep one of them")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl UserConfig {
    /// Finds the first contradiction. Everything built from a configuration that passed works.
    pub fn check(&self) -> Result<(), ConfigError> {
        let [first, ..] = self.mac;
        if first & 1 == 1 || self.mac == [0; 6] {
            return Err(ConfigError::Mac(self.mac));
        }
        let min = match (&self.ipv4, &self.ipv6) {
            (None, None) => return Err(ConfigError::NoFamily),
            (_, Some(_)) => MTU_MIN_V6,
            (Some(_), None) => MTU_MIN_V4,
        };
        if !(min..=MTU_MAX).contains(&self.mtu) {
            return Err(ConfigError::Mtu { mtu: self.mtu, min });
        }
        if let Some(guest) = &self.ipv4 {
            check_v4(guest, self.map_host_loopback.v4)?;
        }
        if let Some(guest) = &self.ipv6 {
            check_v6(guest, self.map_host_loopback.v6)?;
        }
        check_names(self.hostname.as_ref(), &self.search)?;
        for server in &self.dns_servers {
            if server.ip().is_unspecified() || server.ip().is_multicast() || server.port() == 0 {
                return Err(ConfigError::DnsServer(*server));
            }
        }
        check_published(&self.publish)
    }
}

/// Host and domain names that DHCP and router advertisements can carry.
pub(crate) fn check_names(hostname: Option<&String>, search: &[String]) -> Result<(), ConfigError> {
    if let Some(bad) = hostname.into_iter().chain(search).find(|name| !is_name(name)) {
        return Err(ConfigError::Name(bad.clone()));
    }
    // In DNS encoding a name takes its length and two bytes.
    let bytes: usize =
        search.iter().fold(0, |sum, name| sum.saturating_add(name.len()).saturating_add(2));
    if bytes > SEARCH_BYTES_MAX { Err(ConfigError::SearchTooLong) } else { Ok(()) }
}

fn check_v4(guest: &Ipv4Guest, loopback: Option<Ipv4Addr>) -> Result<(), ConfigError> {
    let Ipv4Guest { net, gateway, dns, guest } = *guest;
    if !(8..=30).contains(&net.prefix_len()) {
        return Err(ConfigError::Net("an IPv4 network is /8 to /30, for example 10.0.2.0/24"));
    }
    for (role, addr) in [("gateway", gateway), ("dns", dns), ("guest", guest)] {
        let reserved = addr == net.base() || addr == net.broadcast() || addr.is_multicast();
        if reserved || !net.contains(addr) {
            return Err(ConfigError::Address { role, addr: addr.into() });
        }
    }
    if let Some(addr) = loopback
        && (addr.is_loopback() || addr.is_unspecified() || addr.is_multicast())
    {
        return Err(unreachable(addr.into()));
    }
    all_differ([Some(gateway), Some(dns), Some(guest)])?;
    all_differ([loopback, Some(dns), Some(guest)])
}

fn check_v6(guest: &Ipv6Guest, loopback: Option<Ipv6Addr>) -> Result<(), ConfigError> {
    let Ipv6Guest { net, gateway, link_local, dns, guest } = *guest;
    if net.prefix_len() != 64 {
        return Err(ConfigError::Net("an IPv6 network is a /64, for example fd00:1234::/64"));
    }
    for (role, addr) in [("gateway", gateway), ("dns", dns), ("guest", guest)] {
        if addr == net.base() || addr.is_multicast() || !net.contains(addr) {
            return Err(ConfigError::Address { role, addr: addr.into() });
        }
    }
    if !link_local.is_unicast_link_local() {
        return Err(ConfigError::Address { role: "router", addr: link_local.into() });
    }
    if let Some(addr) = loopback
        && (addr.is_loopback() || addr.is_unspecified() || addr.is_multicast())
    {
        return Err(unreachable(addr.into()));
    }
    all_differ([Some(gateway), Some(dns), Some(guest)])?;
    all_differ([loopback, Some(dns), Some(guest)])
}

/// No guest sends to such an address: it would never be answered by the host's loopback.
fn unreachable(addr: IpAddr) -> ConfigError {
    ConfigError::Address { role: "host loopback", addr }
}

fn all_differ<A: Copy + PartialEq + Into<IpAddr>>(all: [Option<A>; 3]) -> Result<(), ConfigError> {
    let [a, b, c] = all;
    for (one, other) in [(a, b), (a, c), (b, c)] {
        if let (Some(one), Some(other)) = (one, other)
            && one == other
        {
            return Err(ConfigError::SameAddress(one.into()));
        }
    }
    Ok(())
}

/// Letters, digits, hyphens and underscores in labels of 1 to 63 bytes, 253 in all.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn check_published(maps: &[PortMap]) -> Result<(), ConfigError> {
    for (at, map) in maps.iter().enumerate() {
        let clash = maps.iter().take(at).find(|earlier| earlier.overlaps(map));
        if let Some(earlier) = clash {
            return Err(ConfigError::PublishedTwice(Box::new([earlier.clone(), map.clone()])));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Protocol;
    use crate::ports::parse_ports;

    fn changed(change: impl FnOnce(&mut UserConfig)) -> Result<(), ConfigError> {
        let mut config = UserConfig::default();
        change(&mut config);
        config.check()
    }

    fn v4(change: impl FnOnce(&mut Ipv4Guest)) -> Result<(), ConfigError> {
        changed(|config| change(config.ipv4.as_mut().unwrap()))
    }

    fn v6(change: impl FnOnce(&mut Ipv6Guest)) -> Result<(), ConfigError> {
        changed(|config| change(config.ipv6.as_mut().unwrap()))
    }

    #[test]
    fn the_default_is_consistent_and_is_what_slirp_s_users_know() {
        let config = UserConfig::default();
        assert_eq!(config.check(), Ok(()));
        let guest = config.ipv4.unwrap();
        assert_eq!(guest.net.to_string(), "10.0.2.0/24");
        assert_eq!(guest.gateway.to_string(), "10.0.2.2");
        assert_eq!(guest.dns.to_string(), "10.0.2.3");
        assert_eq!(guest.guest.to_string(), "10.0.2.15");
        let guest = config.ipv6.unwrap();
        assert_eq!(guest.net.to_string(), "fd76:696f:6e65:7400::/64");
        assert_eq!(guest.guest.to_string(), "fd76:696f:6e65:7400::15");
    }

    #[test]
    fn each_contradiction_is_found() {
        use ConfigError as E;
        assert_eq!(changed(|c| (c.ipv4, c.ipv6) = (None, None)), Err(E::NoFamily));
        assert!(matches!(changed(|c| c.mac = [0; 6]), Err(E::Mac(_))));
        assert!(matches!(changed(|c| c.mac = [1, 0, 0, 0, 0, 1]), Err(E::Mac(_))));
        assert!(matches!(changed(|c| c.mtu = 1279), Err(E::Mtu { min: 1280, .. })));
        assert!(matches!(changed(|c| c.mtu = 65_521), Err(E::Mtu { .. })));
        assert_eq!(changed(|c| (c.mtu, c.ipv6) = (600, None)), Ok(()));
        assert!(matches!(v4(|g| g.gateway = Ipv4Addr::new(10, 0, 3, 1)), Err(E::Address { .. })));
        assert!(matches!(v4(|g| g.dns = Ipv4Addr::new(10, 0, 2, 255)), Err(E::Address { .. })));
        assert!(matches!(v4(|g| g.guest = g.dns), Err(E::SameAddress(_))));
        assert!(matches!(v4(|g| g.net = Ipv4Net::around(g.gateway, 31)), Err(E::Net(_))));
        assert!(matches!(v6(|g| g.net = Ipv6Net::around(g.gateway, 48)), Err(E::Net(_))));
        assert!(matches!(v6(|g| g.link_local = g.gateway), Err(E::Address { .. })));
        assert!(matches!(v6(|g| g.guest = g.gateway), Err(E::SameAddress(_))));
        let server = "0.0.0.0:53".parse().unwrap();
        assert_eq!(changed(|c| c.dns_servers = vec![server]), Err(E::DnsServer(server)));
    }

    #[test]
    fn host_loopback_may_share_the_gateway_s_address_but_no_other() {
        let with = |last| {
            let v4 = Some(Ipv4Addr::new(10, 0, 2, last));
            changed(|config| config.map_host_loopback.v4 = v4)
        };
        assert_eq!(with(2), Ok(()));
        assert_eq!(with(100), Ok(()));
        assert!(matches!(with(3), Err(ConfigError::SameAddress(_))));
        assert!(matches!(with(15), Err(ConfigError::SameAddress(_))));
    }

    #[test]
    fn host_loopback_is_mapped_to_an_address_that_guests_send_to() {
        for bad in ["127.0.0.1", "0.0.0.0", "224.0.0.1"] {
            let v4 = Some(bad.parse().unwrap());
            let result = changed(|config| config.map_host_loopback.v4 = v4);
            assert!(matches!(result, Err(ConfigError::Address { .. })), "{bad}");
        }
        for bad in ["::1", "::", "ff02::1"] {
            let v6 = Some(bad.parse().unwrap());
            let result = changed(|config| config.map_host_loopback.v6 = v6);
            assert!(matches!(result, Err(ConfigError::Address { .. })), "{bad}");
        }
    }

    #[test]
    fn names_are_those_of_dns() {
        let search = |names: &[&str]| {
            changed(|config| config.search = names.iter().map(|&name| name.to_owned()).collect())
        };
        assert_eq!(search(&["example.org", "a_b.internal"]), Ok(()));
        for bad in ["", "a..b", ".", "-a", "a b", "ä.de", "a.", &"x".repeat(64)] {
            assert_eq!(search(&[bad]), Err(ConfigError::Name(bad.to_owned())));
        }
        assert_eq!(search(&["example.org"; 30]), Err(ConfigError::SearchTooLong));
        assert!(changed(|config| config.hostname = Some("no good".into())).is_err());
    }

    #[test]
    fn a_port_cannot_be_published_twice() {
        let twice = |a: &str, b: &str| {
            let mut publish = parse_ports(a, Protocol::Tcp).unwrap();
            publish.extend(parse_ports(b, Protocol::Tcp).unwrap());
            changed(|config| config.publish = publish)
        };
        assert_eq!(twice("22", "23"), Ok(()));
        assert_eq!(twice("127.0.0.1/22", "127.0.0.2/22"), Ok(()));
        assert!(matches!(twice("20-30", "25:80"), Err(ConfigError::PublishedTwice(_))));
        assert!(matches!(twice("22", "127.0.0.1/22"), Err(ConfigError::PublishedTwice(_))));
    }
}
