//! What DHCP tells a guest of its network: one address, always the same.

use std::net::{IpAddr, Ipv4Addr};

use crate::addr::Ipv4Net;
use crate::config::{ConfigError, MTU_MAX, MTU_MIN_V4, UserConfig, check_names};

/// The most DNS servers that a lease names.
pub const DNS_MAX: usize = 3;
/// A day.
const LEASE_S: u32 = 86_400;

/// An address for the guest, and what belongs to it. All fields are public; start from
/// [`Lease::new`] and change what differs. [`Lease::check`] finds contradictions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The network, `/8` to `/31`.
    pub net: Ipv4Net,
    /// The guest's address, in `net`.
    pub guest: Ipv4Addr,
    /// Who leases, in `net`; often the router itself.
    pub server: Ipv4Addr,
    /// The way out of `net`, if there is one.
    pub router: Option<Ipv4Addr>,
    /// DNS servers, anywhere, at most [`DNS_MAX`].
    pub dns: Vec<Ipv4Addr>,
    /// Bytes of the largest IP packet, 576 to 65520.
    pub mtu: u16,
    /// How long the lease lasts, in seconds; at least a minute.
    pub seconds: u32,
    /// Host name for the guest.
    pub hostname: Option<String>,
    /// DNS search domains; the first is DHCP's domain name.
    pub search: Vec<String>,
}

impl Lease {
    /// A lease for a day from a server that is the router, without DNS and names.
    #[must_use]
    pub const fn new(net: Ipv4Net, guest: Ipv4Addr, router: Ipv4Addr, mtu: u16) -> Self {
        Self {
            net,
            guest,
            server: router,
            router: Some(router),
            dns: Vec::new(),
            mtu,
            seconds: LEASE_S,
            hostname: None,
            search: Vec::new(),
        }
    }

    /// The lease of a user-mode network, if it has an IPv4 side.
    pub(crate) fn of(config: &UserConfig) -> Option<Self> {
        let ipv4 = config.ipv4?;
        let lease = Self::new(ipv4.net, ipv4.guest, ipv4.gateway, config.mtu);
        let dns = if config.dns { vec![ipv4.dns] } else { Vec::new() };
        let (hostname, search) = (config.hostname.clone(), config.search.clone());
        Some(Self { dns, hostname, search, ..lease })
    }

    /// Finds the first contradiction.
    ///
    /// # Errors
    /// What it is.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(8..=31).contains(&self.net.prefix_len()) {
            return Err(ConfigError::Net("a leased network is /8 to /31, for example 10.0.2.0/24"));
        }
        if !(MTU_MIN_V4..=MTU_MAX).contains(&self.mtu) {
            return Err(ConfigError::Mtu { mtu: self.mtu, min: MTU_MIN_V4 });
        }
        if self.seconds < 60 {
            return Err(ConfigError::LeaseTooShort(self.seconds));
        }
        let router = self.router.unwrap_or(self.server);
        for (role, addr) in [("guest", self.guest), ("server", self.server), ("router", router)] {
            if !self.is_host(addr) {
                return Err(ConfigError::Address { role, addr: addr.into() });
            }
        }
        if [self.server, router].contains(&self.guest) {
            return Err(ConfigError::SameAddress(self.guest.into()));
        }
        let is_server = |addr: &&Ipv4Addr| addr.is_unspecified() || addr.is_multicast();
        if let Some(addr) = self.dns.iter().find(is_server) {
            return Err(ConfigError::Address { role: "dns", addr: IpAddr::V4(*addr) });
        }
        if self.dns.len() > DNS_MAX {
            return Err(ConfigError::TooManyDns(self.dns.len()));
        }
        check_names(self.hostname.as_ref(), &self.search)
    }

    /// Whether `addr` is a host's in the network; in a `/31` both are (RFC 3021).
    fn is_host(&self, addr: Ipv4Addr) -> bool {
        let is_reserved =
            !self.is_point_to_point() && (addr == self.net.base() || addr == self.net.broadcast());
        self.net.contains(addr) && !is_reserved && !addr.is_multicast()
    }

    /// Whether the network has no broadcast address of its own.
    pub(crate) const fn is_point_to_point(&self) -> bool {
        self.net.prefix_len() == 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: impl FnOnce(&mut Lease)) -> Result<(), ConfigError> {
        let addr = |last| Ipv4Addr::new(10, 0, 2, last);
        let mut lease = Lease::new(Ipv4Net::around(addr(0), 24), addr(15), addr(2), 1500);
        change(&mut lease);
        lease.check()
    }

    #[test]
    fn each_contradiction_is_found() {
        use ConfigError as E;
        let addr = |last| Ipv4Addr::new(10, 0, 2, last);
        assert_eq!(changed(|_| {}), Ok(()));
        assert!(matches!(changed(|l| l.net = Ipv4Net::around(addr(0), 32)), Err(E::Net(_))));
        assert!(matches!(changed(|l| l.mtu = 575), Err(E::Mtu { .. })));
        assert!(matches!(changed(|l| l.mtu = 65_521), Err(E::Mtu { .. })));
        assert_eq!(changed(|l| l.seconds = 59), Err(E::LeaseTooShort(59)));
        let wrong = |role, last| E::Address { role, addr: addr(last).into() };
        assert_eq!(changed(|l| l.guest = addr(255)), Err(wrong("guest", 255)));
        assert_eq!(changed(|l| l.server = addr(0)), Err(wrong("server", 0)));
        let outside = Ipv4Addr::new(10, 0, 3, 1);
        assert!(matches!(changed(|l| l.router = Some(outside)), Err(E::Address { .. })));
        assert!(matches!(changed(|l| l.guest = l.server), Err(E::SameAddress(_))));
        assert!(matches!(changed(|l| l.router = Some(l.guest)), Err(E::SameAddress(_))));
        assert_eq!(changed(|l| l.router = None), Ok(()));
        assert_eq!(changed(|l| l.dns = vec![Ipv4Addr::new(9, 9, 9, 9); 3]), Ok(()));
        assert_eq!(changed(|l| l.dns = vec![addr(1); 4]), Err(E::TooManyDns(4)));
        let nowhere = vec![Ipv4Addr::UNSPECIFIED];
        assert!(matches!(changed(|l| l.dns = nowhere), Err(E::Address { role: "dns", .. })));
        assert!(matches!(changed(|l| l.hostname = Some("no good".into())), Err(E::Name(_))));
    }

    #[test]
    fn a_network_of_two_has_two_hosts() {
        let two = |guest: u8, server: u8| {
            changed(|lease| {
                lease.net = Ipv4Net::around(Ipv4Addr::new(100, 64, 1, 2), 31);
                lease.guest = Ipv4Addr::new(100, 64, 1, guest);
                (lease.server, lease.router) = (Ipv4Addr::new(100, 64, 1, server), None);
            })
        };
        assert_eq!(two(3, 2), Ok(()));
        assert_eq!(two(2, 3), Ok(()));
        assert!(two(3, 4).is_err());
    }
}
