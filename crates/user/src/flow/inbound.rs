//! Published ports: sockets that listen on the host for connections into the guest.
//!
//! They are bound once, when the network is made, so that a port that is taken is an early and
//! clear error, and stay while guests come and go.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use vionet::endpoint::{OpenError, OpenKind};

use crate::config::UserConfig;
use crate::host;
use crate::policy::Protocol;
use crate::ports::PortMap;

/// A bound socket, and where in the guest it leads.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: OwnedFd,
    pub(crate) protocol: Protocol,
    /// Address in the guest; `None` is the guest's own.
    pub(crate) to_addr: Option<IpAddr>,
    pub(crate) to_port: u16,
}

/// All published ports.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Vec<Listener>);

impl Listeners {
    pub(crate) fn bind(config: &UserConfig) -> Result<Self, OpenError> {
        let mut all = Vec::new();
        for map in &config.publish {
            for port in map.ports() {
                bind_port(map, port, config, &mut all)?;
            }
        }
        Ok(Self(all))
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Listener> {
        self.0.get(usize::try_from(index).ok()?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &Listener)> {
        (0..).zip(&self.0)
    }
}

fn bind_port(
    map: &PortMap,
    port: u16,
    config: &UserConfig,
    all: &mut Vec<Listener>,
) -> Result<(), OpenError> {
    if let Some(interface) = &map.interface {
        let reason = format!("port {port}: listening on interface {interface} alone is not served");
        return Err(OpenError { kind: OpenKind::Config, reason });
    }
    let Some(to_port) = map.target(port) else { return Ok(()) };
    let any = [
        config.ipv4.map(|_| IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        config.ipv6.map(|_| IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    ];
    let addresses = map.addr.map_or(any, |one| [Some(one), None]);
    for address in addresses.into_iter().flatten() {
        let at = SocketAddr::new(address, port);
        match host::publish(&at, map.protocol == Protocol::Tcp) {
            Ok(socket) => {
                let (protocol, to_addr) = (map.protocol, map.to_addr);
                all.push(Listener { socket, protocol, to_addr, to_port });
            }
            Err(_) if map.best_effort => {}
            // A host without IPv6 publishes on IPv4 alone.
            Err(cause) if map.addr.is_none() && is_missing_family(&cause, address) => {}
            Err(cause) => return Err(explain(&at, map.protocol, &cause)),
        }
    }
    Ok(())
}

fn is_missing_family(cause: &std::io::Error, address: IpAddr) -> bool {
    let unsupported = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    address.is_ipv6()
        && (cause.raw_os_error() == Some(unsupported)
            || cause.kind() == ErrorKind::AddrNotAvailable)
}

fn explain(at: &SocketAddr, protocol: Protocol, cause: &std::io::Error) -> OpenError {
    let option = if protocol == Protocol::Tcp { "-t" } else { "-u" };
    let port = at.port();
    let (kind, mend) = match cause.kind() {
        ErrorKind::AddrInUse => (
            OpenKind::Host,
            format!("another program has it; publish another: {option} OTHER:{port}"),
        ),
        ErrorKind::PermissionDenied => (
            OpenKind::Privilege,
            format!(
                "ports below 1024 need a right; publish a higher one: {option} {}:{port}",
                port.saturating_add(8000)
            ),
        ),
        ErrorKind::AddrNotAvailable => {
            (OpenKind::Config, "this host has no such address; see: ip address".to_owned())
        }
        _ => (OpenKind::Host, format!("choose another with {option}")),
    };
    OpenError { kind, reason: format!("host port {at} cannot be published: {cause}; {mend}") }
}
