//! From the command line to the host side it names.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use vionet::Endpoint;
use vionet_endpoint::{Echo, Flood, Null, PortConfig, Switch, Tap};
use vionet_raw::host::fd;
use vionet_user::config::{MTU_MAX, MTU_MIN_V4, UserConfig};
use vionet_user::policy::Protocol;
use vionet_user::ports::parse_ports;
use vionet_user::{Responder, ResponderConfig, UserNet};

use crate::cli::{EndpointSpec, LeaseSpec, Mac, NicArgs};
use crate::exit::{Code, Stop};

/// The switches of this process, by name.
pub(super) type Switches = BTreeMap<String, Switch>;

/// The endpoint that was asked for, opened as far as it can be before a guest is there.
pub(super) fn make(
    args: &NicArgs,
    mac: Mac,
    switches: &mut Switches,
) -> Result<Box<dyn Endpoint>, Stop> {
    if args.isolated && !matches!(args.endpoint, EndpointSpec::Switch(_)) {
        return Err(Stop::new(Code::Usage, "isolated belongs to endpoint switch:NAME"));
    }
    if args.endpoint != EndpointSpec::User {
        refuse_user_options(args)?;
    }
    let endpoint = open(args, mac, switches)?;
    let most = endpoint.capabilities().pairs_max;
    if args.queues > most {
        return Err(Stop::new(
            Code::Config,
            format!(
                "{} has {most} queue pair, not {}: leave --queues out, or take \
                 --endpoint user, tap:NAME or switch:NAME",
                endpoint.name(),
                args.queues
            ),
        ));
    }
    match &args.lease {
        Some(spec) => leasing(args, spec, endpoint),
        None => Ok(endpoint),
    }
}

fn open(args: &NicArgs, mac: Mac, switches: &mut Switches) -> Result<Box<dyn Endpoint>, Stop> {
    Ok(match &args.endpoint {
        EndpointSpec::User => Box::new(UserNet::new(user_config(args)?)?),
        EndpointSpec::Tap(name) => Box::new(Tap::open(name, args.queues)?),
        EndpointSpec::TapFd(number) => {
            let tap = fd::adopt(*number).map_err(|cause| {
                Stop::new(Code::Config, format!("tap-fd:{number}: {cause}; pass an open tap"))
            })?;
            Box::new(Tap::adopt(tap, *number)?)
        }
        EndpointSpec::Switch(name) => {
            let switch = switches.entry(name.clone()).or_insert_with(|| Switch::new(name));
            Box::new(switch.port(PortConfig { mac: mac.0, isolated: args.isolated })?)
        }
        EndpointSpec::Null => Box::new(Null),
        EndpointSpec::Echo => Box::new(Echo),
        EndpointSpec::Flood(len) => Box::new(Flood::new(*len).ok_or_else(|| {
            Stop::new(Code::Usage, format!("flood:{len}: a frame has 14 to 65553 bytes"))
        })?),
    })
}

/// Options of the user-mode network mean nothing elsewhere; say so instead of ignoring them.
fn refuse_user_options(args: &NicArgs) -> Result<(), Stop> {
    let given = [
        ("-t", !args.tcp_ports.is_empty()),
        ("-u", !args.udp_ports.is_empty()),
        ("--map-host-loopback", !args.map_host_loopback.is_empty()),
        ("--allow", !args.allow.is_empty()),
        ("--dns", !args.dns.is_empty() && args.lease.is_none()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => Err(Stop::new(
            Code::Usage,
            format!("{option} belongs to --endpoint user; leave it out with another endpoint"),
        )),
        None => Ok(()),
    }
}

/// The endpoint with a DHCP server in front of it. Its network has hosts that answer ARP for
/// themselves; the server is nobody's station.
fn leasing(
    args: &NicArgs,
    spec: &LeaseSpec,
    endpoint: Box<dyn Endpoint>,
) -> Result<Box<dyn Endpoint>, Stop> {
    if !matches!(
        args.endpoint,
        EndpointSpec::Tap(_) | EndpointSpec::TapFd(_) | EndpointSpec::Switch(_)
    ) {
        let line = "--lease belongs to --endpoint tap:NAME, tap-fd:N or switch:NAME; \
                    the user-mode network leases by itself";
        return Err(Stop::new(Code::Usage, line));
    }
    let dns = args.dns.iter().map(|server| match server {
        SocketAddr::V4(v4) if v4.port() == 53 => Ok(*v4.ip()),
        SocketAddr::V4(_) | SocketAddr::V6(_) => Err(Stop::new(
            Code::Usage,
            format!("--dns {server}: DHCP names IPv4 addresses with port 53 only"),
        )),
    });
    let dns: Vec<Ipv4Addr> = dns.collect::<Result<_, _>>()?;
    let mtu = endpoint.capabilities().mtu.min(args.mtu.unwrap_or(u16::MAX));
    let lease = spec.lease(mtu.clamp(MTU_MIN_V4, MTU_MAX), dns);
    let config = ResponderConfig { mac: UserConfig::default().mac, lease, arp: false };
    let responder = Responder::new(endpoint, &config);
    Ok(Box::new(responder.map_err(|cause| Stop::new(Code::Config, format!("--lease: {cause}")))?))
}

fn user_config(args: &NicArgs) -> Result<UserConfig, Stop> {
    let mut config = UserConfig { dns_servers: args.dns.clone(), ..UserConfig::default() };
    config.allow.clone_from(&args.allow);
    if let Some(mtu) = args.mtu {
        config.mtu = mtu;
    }
    for address in &args.map_host_loopback {
        match address {
            IpAddr::V4(v4) => config.map_host_loopback.v4 = Some(*v4),
            IpAddr::V6(v6) => config.map_host_loopback.v6 = Some(*v6),
        }
    }
    let specs = [(&args.tcp_ports, Protocol::Tcp), (&args.udp_ports, Protocol::Udp)];
    for (specs, protocol) in specs {
        for spec in specs {
            let ports = parse_ports(spec, protocol);
            config.publish.extend(ports.map_err(|cause| Stop::new(Code::Usage, cause))?);
        }
    }
    config.check().map_err(|cause| Stop::new(Code::Config, cause))?;
    Ok(config)
}
