//! Published ports: which port of the host leads to which port of the guest.
//!
//! ```text
//!   [addr[%interface]/]first[-last][:[to_addr/]to_first[-to_last]]      passt's syntax
//!
//!   2222:22              host port 2222, all addresses  -> guest port 22
//!   127.0.0.1/8080:80    only on the host's loopback
//!   [::1]/8080           the same over IPv6, same port in the guest
//!   8000-8100,~8050      a range without one of its ports
//!   all / none           every port but the ephemeral ones / no port
//!   tcp::2222-:22        QEMU's `hostfwd`, one port at a time
//! ```
//!
//! A list is separated by commas. An address holds for the pieces after it too, until another is
//! given. `~` takes ports out of the whole list; a list of nothing but exclusions, or `all`, means
//! every other port, and then ports that cannot be bound are passed over in silence.
//! A map is kept as ranges: its memory does not grow with the number of ports.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::policy::Protocol;

/// Linux's default range for outgoing connections; `all` leaves it alone.
pub const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// One range of host ports that leads to a range of guest ports of equal length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMap {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address of the host to listen on; `None` is any, of both families.
    pub addr: Option<IpAddr>,
    /// Interface of the host to listen on; `None` is any.
    pub interface: Option<String>,
    /// First host port, at least 1.
    pub first: u16,
    /// Last host port, not less than `first`.
    pub last: u16,
    /// Address in the guest; `None` is the guest's own of the connection's family.
    pub to_addr: Option<IpAddr>,
    /// Guest port that `first` leads to; `last` leads equally far behind it.
    pub to_first: u16,
    /// A port that cannot be bound is no error (`all`, or only exclusions).
    pub best_effort: bool,
}

impl PortMap {
    /// The guest port that the host's `port` leads to; `None` outside of the range.
    #[must_use]
    pub fn target(&self, port: u16) -> Option<u16> {
        if !self.ports().contains(&port) {
            return None;
        }
        self.to_first.checked_add(port.checked_sub(self.first)?)
    }

    /// The host ports.
    #[must_use]
    pub const fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }

    /// Whether both would listen to one port of one address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        fn meets<T: PartialEq>(one: Option<&T>, other: Option<&T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        self.protocol == other.protocol
            && meets(self.addr.as_ref(), other.addr.as_ref())
            && meets(self.interface.as_ref(), other.interface.as_ref())
            && self.first <= other.last
            && other.first <= self.last
    }
}

impl fmt::Display for PortMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(addr) = self.addr {
            write_addr(f, addr)?;
        }
        if let Some(interface) = &self.interface {
            write!(f, "%{interface}")?;
        }
        if self.addr.is_some() || self.interface.is_some() {
            f.write_str("/")?;
        }
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        if self.to_addr.is_none() && self.to_first == self.first {
            return Ok(());
        }
        f.write_str(":")?;
        if let Some(addr) = self.to_addr {
            write_addr(f, addr)?;
            f.write_str("/")?;
        }
        write!(f, "{}", self.to_first)?;
        match self.target(self.last) {
            Some(to_last) if to_last != self.to_first => write!(f, "-{to_last}"),
            _ => Ok(()),
        }
    }
}

fn write_addr(f: &mut fmt::Formatter<'_>, addr: IpAddr) -> fmt::Result {
    match addr {
        IpAddr::V4(addr) => write!(f, "{addr}"),
        IpAddr::V6(addr) => write!(f, "[{addr}]"),
    }
}

/// A piece of a port list that cannot be understood, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortsError {
    piece: String,
    fault: &'static str,
}

impl PortsError {
    fn new(piece: &str, fault: &'static str) -> Self {
        Self { piece: piece.to_owned(), fault }
    }
}

impl fmt::Display for PortsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port `{}`: {}, write for example 127.0.0.1/2222:22", self.piece, self.fault)
    }
}

impl std::error::Error for PortsError {}

/// Reads a list in the syntax above, for one protocol. O(pieces x exclusions).
pub fn parse_ports(spec: &str, protocol: Protocol) -> Result<Vec<PortMap>, PortsError> {
    if protocol == Protocol::Icmp {
        return Err(PortsError::new(spec, "ICMP has no ports"));
    }
    if spec == "none" {
        return Ok(Vec::new());
    }
    let mut list = List::new(protocol);
    for piece in spec.split(',') {
        list.read(piece)?;
    }
    list.finish()
}

/// A list under way: what it publishes, what it excludes, and the address that holds.
struct List {
    maps: Vec<PortMap>,
    without: Vec<RangeInclusive<u16>>,
    /// A map of all ports with the address that holds.
    every: PortMap,
    has_all: bool,
}

impl List {
    const fn new(protocol: Protocol) -> Self {
        let every = PortMap {
            protocol,
            addr: None,
            interface: None,
            first: 1,
            last: u16::MAX,
            to_addr: None,
            to_first: 1,
            best_effort: true,
        };
        Self { maps: Vec::new(), without: Vec::new(), every, has_all: false }
    }

    fn read(&mut self, piece: &str) -> Result<(), PortsError> {
        if let Some(map) = hostfwd(piece, self.every.protocol) {
            self.maps.push(map?);
            return Ok(());
        }
        let ports = self.read_addr(piece)?;
        if let Some(excluded) = ports.strip_prefix('~') {
            self.without.push(range(excluded, piece)?);
            return Ok(());
        }
        match ports {
            "all" => self.has_all = true,
            "none" => return Err(PortsError::new(piece, "`none` stands alone")),
            _ => self.maps.push(self.map(ports, piece)?),
        }
        Ok(())
    }

    /// Takes `addr[%interface]/` off the piece's front and remembers it.
    fn read_addr<'p>(&mut self, piece: &'p str) -> Result<&'p str, PortsError> {
        let Some((front, ports)) = piece.split_once('/') else { return Ok(piece) };
        let (addr, interface) = match front.split_once('%') {
            Some((addr, interface)) => (addr, Some(interface)),
            None => (front, None),
        };
        let addr = match address(addr) {
            Some(addr) => Some(addr),
            None if addr.is_empty() && interface.is_some() => None,
            // `2222:10.0.2.15/22`: the slash belongs to the target.
            None if front.contains(':') && !front.starts_with('[') => return Ok(piece),
            None => return Err(PortsError::new(piece, "what stands before `/` is no IP address")),
        };
        // IFNAMSIZ is 16 with its terminating zero.
        if interface.is_some_and(|name| name.is_empty() || name.len() > 15) {
            return Err(PortsError::new(piece, "an interface name has 1 to 15 bytes"));
        }
        self.every.addr = addr;
        self.every.interface = interface.map(str::to_owned);
        Ok(ports)
    }

    fn map(&self, ports: &str, piece: &str) -> Result<PortMap, PortsError> {
        let (here, there) = match ports.split_once(':') {
            Some((here, there)) => (here, Some(there)),
            None => (ports, None),
        };
        let here = range(here, piece)?;
        let (to_addr, to) = match there.map(|there| there.rsplit_once('/').ok_or(there)) {
            None => (None, here.clone()),
            Some(Err(ports)) => (None, target_range(ports, &here, piece)?),
            Some(Ok((addr, ports))) => {
                let addr = address(addr).ok_or_else(|| {
                    PortsError::new(piece, "the guest's address is no IP address")
                })?;
                (Some(addr), target_range(ports, &here, piece)?)
            }
        };
        if let (Some(addr), Some(to_addr)) = (self.every.addr, to_addr)
            && addr.is_ipv4() != to_addr.is_ipv4()
        {
            return Err(PortsError::new(piece, "host and guest address are of different families"));
        }
        Ok(PortMap {
            first: *here.start(),
            last: *here.end(),
            to_addr,
            to_first: *to.start(),
            best_effort: false,
            ..self.every.clone()
        })
    }

    fn finish(mut self) -> Result<Vec<PortMap>, PortsError> {
        if self.has_all || self.maps.is_empty() {
            if !self.maps.is_empty() {
                return Err(PortsError::new("all", "`all` does not go with single ports"));
            }
            self.maps.push(self.every);
            self.without.push(EPHEMERAL);
        }
        for hole in &self.without {
            self.maps = self.maps.into_iter().flat_map(|map| split(map, hole)).flatten().collect();
        }
        Ok(self.maps)
    }
}

/// What is left of `map` on both sides of `hole`.
fn split(map: PortMap, hole: &RangeInclusive<u16>) -> [Option<PortMap>; 2] {
    let below = hole.start().checked_sub(1).map(|last| last.min(map.last));
    let above = hole.end().checked_add(1).map(|first| first.max(map.first));
    let part = |first: u16, last: u16| {
        let to_first = map.target(first)?;
        (first <= last).then(|| PortMap { first, last, to_first, ..map.clone() })
    };
    [below.and_then(|last| part(map.first, last)), above.and_then(|first| part(first, map.last))]
}

fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// `first[-last]`, both 1 to 65535.
fn range(text: &str, piece: &str) -> Result<RangeInclusive<u16>, PortsError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(PortsError::new(piece, "a port is a number from 1 to 65535")),
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(PortsError::new(piece, "a range ends before it begins"));
    }
    Ok(first..=last)
}

/// `to_first[-to_last]`, as long as `here`; its end may be left out.
fn target_range(
    text: &str,
    here: &RangeInclusive<u16>,
    piece: &str,
) -> Result<RangeInclusive<u16>, PortsError> {
    let given = range(text, piece)?;
    let span = here.end().saturating_sub(*here.start());
    let Some(last) = given.start().checked_add(span) else {
        return Err(PortsError::new(piece, "the guest's range runs past 65535"));
    };
    if text.contains('-') && last != *given.end() {
        return Err(PortsError::new(piece, "the two ranges differ in length"));
    }
    Ok(*given.start()..=last)
}

/// QEMU's `[tcp|udp]:[addr]:port-[addr]:port`; `None` when the piece is not of that form.
fn hostfwd(piece: &str, protocol: Protocol) -> Option<Result<PortMap, PortsError>> {
    let (name, rest) = piece.split_once(':')?;
    let named = match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        // `::1/22` is an address of ours.
        "" if !rest.contains('/') => protocol,
        _ => return None,
    };
    if named != protocol {
        let fault = "the protocol differs from that of this list";
        return Some(Err(PortsError::new(piece, fault)));
    }
    Some(hostfwd_ends(rest, piece).map(|((addr, first), (to_addr, to_first))| PortMap {
        protocol,
        addr,
        interface: None,
        first,
        last: first,
        to_addr,
        to_first,
        best_effort: false,
    }))
}

type End = (Option<IpAddr>, u16);

fn hostfwd_ends(rest: &str, piece: &str) -> Result<(End, End), PortsError> {
    let end = |text: &str| {
        let (addr, port) = text
            .rsplit_once(':')
            .ok_or_else(|| PortsError::new(piece, "each side of `-` is `[address]:port`"))?;
        let addr = match addr {
            "" => None,
            text => Some(
                address(text)
                    .ok_or_else(|| PortsError::new(piece, "the address is no IP address"))?,
            ),
        };
        Ok((addr, *range(port, piece)?.start()))
    };
    let (host, guest) = rest
        .split_once('-')
        .ok_or_else(|| PortsError::new(piece, "host and guest are separated by `-`"))?;
    Ok((end(host)?, end(guest)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(spec: &str) -> Vec<PortMap> {
        parse_ports(spec, Protocol::Tcp).unwrap()
    }

    fn shown(spec: &str) -> Vec<String> {
        tcp(spec).iter().map(PortMap::to_string).collect()
    }

    fn fault(spec: &str) -> String {
        parse_ports(spec, Protocol::Tcp).unwrap_err().to_string()
    }

    #[test]
    fn single_ports_ranges_and_targets_are_read() {
        assert_eq!(shown("22"), ["22"]);
        assert_eq!(shown("2222:22"), ["2222:22"]);
        assert_eq!(shown("22,80,8000-8010"), ["22", "80", "8000-8010"]);
        assert_eq!(shown("22-80:32-90"), ["22-80:32-90"]);
        assert_eq!(shown("22-80:32"), ["22-80:32-90"]);
        assert_eq!(tcp("22-80:32-90")[0].target(30), Some(40));
        assert_eq!(tcp("22-80:32-90")[0].target(81), None);
    }

    #[test]
    fn addresses_and_interfaces_are_read_and_hold_for_the_rest_of_the_list() {
        assert_eq!(shown("127.0.0.1/8080:80"), ["127.0.0.1/8080:80"]);
        assert_eq!(shown("[::1]/8080"), ["[::1]/8080"]);
        assert_eq!(shown("::1/8080"), ["[::1]/8080"]);
        assert_eq!(shown("192.0.2.1%eth0/22"), ["192.0.2.1%eth0/22"]);
        assert_eq!(shown("%eth0/22"), ["%eth0/22"]);
        assert_eq!(shown("127.0.0.1/22,80"), ["127.0.0.1/22", "127.0.0.1/80"]);
        assert_eq!(shown("127.0.0.1/22,%lo/80"), ["127.0.0.1/22", "%lo/80"]);
        assert_eq!(shown("2222:10.0.2.15/22"), ["2222:10.0.2.15/22"]);
        assert_eq!(shown("2222:[fd00::15]/22"), ["2222:[fd00::15]/22"]);
        assert_eq!(shown("[::1]/2222:[fd00::15]/22"), ["[::1]/2222:[fd00::15]/22"]);
    }

    #[test]
    fn exclusions_split_ranges_and_keep_targets_in_step() {
        assert_eq!(shown("2000-5000,~3000-3010"), ["2000-2999", "3011-5000"]);
        assert_eq!(shown("192.0.2.1/20-30,~25"), ["192.0.2.1/20-24", "192.0.2.1/26-30"]);
        assert_eq!(shown("20-30:120-130,~20-25"), ["26-30:126-130"]);
        assert_eq!(shown("20-30,~10-40"), [""; 0]);
        assert_eq!(shown("20-30,~10-19,~31"), ["20-30"]);
    }

    #[test]
    fn all_and_bare_exclusions_take_every_port_but_the_ephemeral_ones() {
        assert_eq!(shown("all"), ["1-32767", "61000-65535"]);
        assert_eq!(shown("~22"), ["1-21", "23-32767", "61000-65535"]);
        assert_eq!(shown("127.0.0.1/all"), ["127.0.0.1/1-32767", "127.0.0.1/61000-65535"]);
        assert!(tcp("all").iter().all(|map| map.best_effort));
        assert!(tcp("22").iter().all(|map| !map.best_effort));
        assert_eq!(tcp("none"), []);
    }

    #[test]
    fn qemu_s_hostfwd_is_read_too() {
        assert_eq!(shown("tcp::2222-:22"), ["2222:22"]);
        assert_eq!(shown("::2222-:22"), ["2222:22"]);
        assert_eq!(shown("tcp:127.0.0.1:2222-10.0.2.15:22"), ["127.0.0.1/2222:10.0.2.15/22"]);
        assert_eq!(shown("tcp:[::1]:2222-:22"), ["[::1]/2222:22"]);
        let udp = parse_ports("udp::53-:53", Protocol::Udp).unwrap();
        assert_eq!(udp[0].protocol, Protocol::Udp);
        assert!(fault("udp::53-:53").contains("protocol differs"));
    }

    #[test]
    fn an_error_names_the_piece_its_fault_and_an_example() {
        assert_eq!(
            fault("22,0,80"),
            "port `0`: a port is a number from 1 to 65535, write for example 127.0.0.1/2222:22"
        );
        for (spec, part) in [
            ("", "number from 1"),
            ("65536", "number from 1"),
            ("22,", "number from 1"),
            ("90-80", "ends before"),
            ("22-80:32-91", "differ in length"),
            ("100-200:65500", "past 65535"),
            ("localhost/22", "no IP address"),
            ("[::1/22", "no IP address"),
            ("[1.2.3.4]/22", "no IP address"),
            ("%/22", "1 to 15 bytes"),
            ("%sixteen-bytes-xx/22", "1 to 15 bytes"),
            ("127.0.0.1/22:[::1]/22", "different families"),
            ("22:x/22", "guest's address"),
            ("none,22", "stands alone"),
            ("all,22", "does not go with"),
            ("tcp:22", "separated by"),
            ("tcp:22-23", "[address]:port"),
            ("tcp:x:22-:23", "no IP address"),
        ] {
            assert!(fault(spec).contains(part), "{spec}: {}", fault(spec));
        }
        assert!(parse_ports("22", Protocol::Icmp).is_err());
    }

    #[test]
    fn a_map_of_all_ports_is_a_handful_of_ranges() {
        assert_eq!(tcp("~1000,~2000,~3000").len(), 5);
    }

    proptest! {
        #[test]
        fn no_text_stops_the_parser(spec in "[0-9a-z:/%~,.\\[\\]-]{0,40}") {
            let _ = parse_ports(&spec, Protocol::Tcp);
        }

        #[test]
        fn what_a_map_shows_reads_as_the_same_map(
            first in 1_u16..=1000, span in 0_u16..1000, to in 1_u16..=60_000,
            addr in proptest::option::of(any::<IpAddr>()),
        ) {
            let map = PortMap {
                protocol: Protocol::Udp, addr, interface: None, first, last: first + span,
                to_addr: None, to_first: to, best_effort: false,
            };
            prop_assert_eq!(parse_ports(&map.to_string(), Protocol::Udp), Ok(vec![map]));
        }

        #[test]
        fn exclusion_removes_exactly_the_excluded_ports(
            a in 1_u16..500, b in 1_u16..500, c in 1_u16..500, d in 1_u16..500,
        ) {
            let (first, last, from, to) = (a.min(b), a.max(b), c.min(d), c.max(d));
            let maps = tcp(&format!("{first}-{last}:{}-{},~{from}-{to}", first + 7, last + 7));
            for port in 1..=500_u16 {
                let found: Vec<_> = maps.iter().filter_map(|map| map.target(port)).collect();
                let wanted = (first..=last).contains(&port) && !(from..=to).contains(&port);
                prop_assert_eq!(found, if wanted { vec![port + 7] } else { vec![] });
            }
        }
    }
}
