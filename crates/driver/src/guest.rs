//! A guest: what a machine does with its network, step by step, each within a time limit.
//!
//! ```text
//!   start -> lease, autoconfigure -> ping, resolve, udp_echo           probe.rs
//!                                    download, upload, measure, echo   transfer.rs
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::dhcpv4;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};

use crate::discovery::{self, Heard};
use crate::error::GuestError;
use crate::nic::Nic;
use crate::stack::Link;

/// What a guest is.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The largest IP packet it sends, in bytes, 1280 to 65520; the network may ask for less.
    pub mtu: u16,
    /// Its IPv6 address, /64, and router, to be set by hand; see also [`Guest::autoconfigure`].
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// How long a step may wait without getting on.
    pub patience: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0, 0x76, 0x69, 0x6f],
            mtu: MTU_MAX,
            ipv6: None,
            patience: Duration::from_secs(10),
        }
    }
}

/// What DHCP has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// The way out.
    pub router: Option<Ipv4Addr>,
    /// Where names are resolved.
    pub dns: Vec<Ipv4Addr>,
    /// The largest IP packet of the network, in bytes, if the server says so.
    pub mtu: Option<u16>,
}

/// What a router advertisement has given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autoconf {
    /// The guest's address, of its own making.
    pub address: Ipv6Addr,
    /// The way out: the router's link-local address.
    pub router: Ipv6Addr,
    /// The largest IP packet of the network, in bytes, if the router says so.
    pub mtu: Option<u16>,
}

const MTU_MAX: u16 = 65_520;
/// What every IPv6 link carries (RFC 8200 §5).
const MTU_MIN: u16 = 1280;
/// The longest sleep between two looks at the sockets.
const NAP: Duration = Duration::from_millis(50);
/// The shortest: smoltcp wants to send, and there is no room.
const BLINK: Duration = Duration::from_millis(1);
/// How soon a question that may have been lost is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Router, netmask, DNS and MTU (RFC 2132).
const DHCP_WANTED: &[u8] = &[1, 3, 6, 26];

/// A running guest.
pub struct Guest {
    pub(crate) link: Link,
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) dns: Vec<IpAddress>,
    mac: [u8; 6],
    ipv4: Option<Lease>,
    ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    patience: Duration,
    origin: Instant,
    last_port: u16,
}

#[allow(clippy::disallowed_methods, reason = "a guest is a program with a clock of its own")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}

impl Guest {
    /// Attaches a guest to the back-end at `socket`.
    ///
    /// # Errors
    /// When the options make no sense, or the back-end cannot be reached or refuses.
    pub fn start(socket: &Path, options: &GuestOptions) -> Result<Self, GuestError> {
        options.check()?;
        Self::with(Nic::attach(socket)?, options)
    }

    /// A guest with this card.
    ///
    /// # Errors
    /// When the options make no sense.
    pub fn with(nic: Nic, options: &GuestOptions) -> Result<Self, GuestError> {
        options.check()?;
        let mut link = Link::new(nic, options.mtu);
        let interface = interface(&mut link, options.mac, smoltcp::time::Instant::ZERO);
        let mut guest = Self {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            dns: Vec::new(),
            mac: options.mac,
            ipv4: None,
            ipv6: options.ipv6,
            patience: options.patience,
            origin: clock(),
            last_port: 49_152,
        };
        guest.configure();
        Ok(guest)
    }

    /// Makes the interface anew from what is known: smoltcp's keep the MTU that they begin with.
    fn configure(&mut self) {
        let now = self.now();
        self.interface = interface(&mut self.link, self.mac, now);
        // There is room for one address and one route of each family, and no more come.
        let (v4, v6) = (self.ipv4.clone(), self.ipv6);
        self.interface.update_ip_addrs(|all| {
            let v4 = v4.as_ref().map(|lease| (IpAddress::Ipv4(lease.address), lease.prefix));
            let v6 = v6.map(|(address, _)| (IpAddress::Ipv6(address), 64));
            for (address, prefix) in v4.into_iter().chain(v6) {
                let (Ok(()) | Err(_)) = all.push(IpCidr::new(address, prefix));
            }
        });
        if let Some(router) = v4.and_then(|lease| lease.router) {
            let (Ok(_) | Err(_)) = self.interface.routes_mut().add_default_ipv4_route(router);
        }
        if let Some((_, router)) = v6 {
            let (Ok(_) | Err(_)) = self.interface.routes_mut().add_default_ipv6_route(router);
        }
    }

    /// Takes the network's MTU if it is less than ours.
    fn limit_mtu(&mut self, mtu: Option<u16>) {
        let mtu = mtu.unwrap_or(MTU_MAX).max(MTU_MIN);
        self.link.mtu = self.link.mtu.min(mtu);
    }

    /// Lets the stack work once and sleeps until something happens.
    pub(crate) fn turn(&mut self) -> Result<(), GuestError> {
        let now = self.now();
        let result = self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.link.nic.flush();
        if let Some(error) = self.link.failed.take() {
            return Err(error);
        }
        if result == PollResult::SocketStateChanged {
            return Ok(());
        }
        let delay = self.interface.poll_delay(self.now(), &self.sockets);
        self.link.nic.wait(delay.map_or(NAP, Duration::from).clamp(BLINK, NAP))
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// Turns until `done` has something, or patience ends.
    pub(crate) fn until<T>(
        &mut self,
        what: &'static str,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, GuestError>,
    ) -> Result<T, GuestError> {
        let start = clock();
        loop {
            if let Some(result) = done(self)? {
                return Ok(result);
            }
            if start.elapsed() > self.patience {
                return Err(GuestError::Timeout(what, self.patience));
            }
            self.turn()?;
        }
    }

    /// A port that has not been used for a while.
    pub(crate) fn port(&mut self) -> u16 {
        self.last_port = self.last_port.checked_add(1).unwrap_or(49_152);
        self.last_port
    }

    /// Gets an address by DHCP and configures it.
    ///
    /// # Errors
    /// When no server answers.
    pub fn lease(&mut self) -> Result<Lease, GuestError> {
        let mut socket = dhcpv4::Socket::new();
        socket.set_parameter_request_list(DHCP_WANTED);
        let mut retry = dhcpv4::RetryConfig::default();
        retry.discover_timeout = ASK_AGAIN.into();
        retry.initial_request_timeout = ASK_AGAIN.into();
        socket.set_retry_config(retry);
        let handle = self.sockets.add(socket);
        self.link.heard = Some(Heard::default());
        let lease = self.until("waiting for a DHCP lease", |guest| {
            let socket = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
            Ok(match socket.poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(Lease {
                    address: config.address.address(),
                    prefix: config.address.prefix_len(),
                    router: config.router,
                    dns: config.dns_servers.iter().copied().collect(),
                    mtu: guest.link.heard.as_ref().and_then(|heard| heard.lease_mtu),
                }),
                Some(dhcpv4::Event::Deconfigured) | None => None,
            })
        });
        self.sockets.remove(handle);
        self.link.heard = None;
        let lease = lease?;
        self.dns = lease.dns.iter().map(|server| IpAddress::Ipv4(*server)).collect();
        self.limit_mtu(lease.mtu);
        self.ipv4 = Some(lease.clone());
        self.configure();
        Ok(lease)
    }

    /// Asks for a router and configures an IPv6 address in the prefix that it advertises, in place
    /// of the one set by hand (RFC 4862).
    ///
    /// # Errors
    /// When no router answers.
    pub fn autoconfigure(&mut self) -> Result<Autoconf, GuestError> {
        self.link.heard = Some(Heard::default());
        let mut question = discovery::router_solicitation(self.mac);
        let mut asked: Option<Instant> = None;
        let advert = self.until("waiting for a router", |guest| {
            let due = asked.is_none_or(|at| at.elapsed() > ASK_AGAIN);
            if due && guest.link.nic.can_send()? {
                guest.link.nic.send(&mut question)?;
                asked = Some(clock());
            }
            Ok(guest.link.heard.as_ref().and_then(|heard| heard.advert))
        });
        self.link.heard = None;
        let advert = advert?;
        let address = discovery::address_in(advert.prefix, self.mac);
        self.limit_mtu(advert.mtu);
        self.ipv6 = Some((address, advert.router));
        self.configure();
        Ok(Autoconf { address, router: advert.router, mtu: advert.mtu })
    }

    /// The largest IP packet that the guest sends, in bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.link.mtu
    }

    /// Stops the queues in order and lets the back-end go.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn stop(self) -> Result<(), GuestError> {
        self.link.nic.detach()
    }
}

impl GuestOptions {
    /// smoltcp takes it for granted that these hold.
    fn check(&self) -> Result<(), GuestError> {
        let [first, ..] = self.mac;
        if first & 1 != 0 || self.mac == [0; 6] {
            return Err(GuestError::Options("the MAC address is not one of a single card"));
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(GuestError::Options("the mtu must be 1280 to 65520"));
        }
        let group = |address: Ipv6Addr| address.is_multicast() || address.is_unspecified();
        if self.ipv6.is_some_and(|(address, router)| group(address) || group(router)) {
            return Err(GuestError::Options("an IPv6 address is not one of a single host"));
        }
        Ok(())
    }
}

fn interface(link: &mut Link, mac: [u8; 6], now: smoltcp::time::Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
    config.random_seed = u64::from(std::process::id());
    Interface::new(config, link, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_break_a_standard_are_refused_before_anything_happens() {
        let good = GuestOptions::default();
        good.check().unwrap();
        let v6 = |address: &str| Some((address.parse().unwrap(), "fe80::1".parse().unwrap()));
        for wrong in [
            GuestOptions { mac: [1, 0, 0, 0, 0, 0], ..good.clone() },
            GuestOptions { mac: [0; 6], ..good.clone() },
            GuestOptions { mtu: 1279, ..good.clone() },
            GuestOptions { mtu: u16::MAX, ..good.clone() },
            GuestOptions { ipv6: v6("ff02::1"), ..good.clone() },
            GuestOptions { ipv6: v6("::"), ..good.clone() },
        ] {
            let outcome = Guest::start(Path::new("/nowhere"), &wrong).err().unwrap();
            assert!(matches!(outcome, GuestError::Options(_)), "{wrong:?}");
        }
        let nowhere = Guest::start(Path::new("/nowhere"), &good).err().unwrap();
        assert!(matches!(nowhere, GuestError::Connect(_)));
    }
}
