//! What a guest may send, how fast, and which address it is given: as written on the command line.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use vionet::limit::{Limit, Rate};
use vionet_frame::guard::{Guard, NetworkFault, Rule, Untagged};
use vionet_frame::parse::Mac;
use vionet_frame::vlan::{VlanId, VlanSet};
use vionet_user::Lease;
use vionet_user::addr::Ipv4Net;

/// One rule of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardRule {
    /// One that is in force or not.
    Rule(Rule),
    /// Packets may come from this network.
    Ip(IpAddr, u8),
    /// Frames may belong to this VLAN.
    Vlan(VlanId),
    /// Beside those of VLANs, frames without a tag may pass.
    Untagged,
    /// Protocols that are neither IP nor ARP may pass.
    Others,
}

impl FromStr for GuardRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once('=').map_or((text, None), |(a, b)| (a, Some(b)));
        let rule = match (word, rest) {
            ("mac", None) => Self::Rule(Rule::Mac),
            ("arp", None) => Self::Rule(Rule::Arp),
            ("nd", None) => Self::Rule(Rule::Neighbor),
            ("dhcp", None) => Self::Rule(Rule::DhcpServer),
            ("ra", None) => Self::Rule(Rule::Router),
            ("others", None) => Self::Others,
            ("ip", Some(net)) => {
                let (addr, len) = network(net).ok_or("ip=ADDR[/LEN], for example ip=10.1.0.5")?;
                Self::Ip(addr, len)
            }
            ("vlan", Some("none")) => Self::Untagged,
            ("vlan", Some(id)) => {
                let id = id.parse().ok().and_then(VlanId::new);
                Self::Vlan(id.ok_or("vlan=ID is 0 to 4095, or none for frames without a tag")?)
            }
            _ => return Err("take mac, arp, nd, dhcp, ra, ip=ADDR[/LEN], vlan=ID or others".into()),
        };
        Ok(rule)
    }
}

/// An address and the length of its network's prefix; a host's own if none is written.
fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let addr: IpAddr = addr.parse().ok()?;
    let most = if addr.is_ipv4() { 32 } else { 128 };
    let len = len.map_or(Some(most), |len| len.parse().ok())?;
    (len <= most).then_some((addr, len))
}

/// The guard of these rules for a NIC; none without rules.
///
/// # Errors
/// When there are too many networks.
pub fn guard(rules: &[GuardRule], mac: Mac) -> Result<Option<Guard>, NetworkFault> {
    if rules.is_empty() {
        return Ok(None);
    }
    let mut guard = Guard::new(mac);
    let (mut vlans, mut untagged, mut tagged) = (VlanSet::EMPTY, Untagged::Refused, false);
    for rule in rules {
        guard = match *rule {
            GuardRule::Rule(rule) => guard.with(rule),
            GuardRule::Ip(IpAddr::V4(addr), len) => guard.allow_v4(addr, len)?,
            GuardRule::Ip(IpAddr::V6(addr), len) => guard.allow_v6(addr, len)?,
            GuardRule::Others => guard.allow_others(),
            GuardRule::Vlan(id) => {
                vlans.insert(id);
                tagged = true;
                guard
            }
            GuardRule::Untagged => {
                untagged = Untagged::Allowed;
                tagged = true;
                guard
            }
        };
    }
    Ok(Some(if tagged { guard.with_vlans(vlans, untagged) } else { guard }))
}

/// A rate, and what may pass at once: `100M` and `100M:4M` in bits, `20kpps` and `20kpps:500` in
/// frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateSpec {
    /// Bytes in a second.
    Bytes(Rate),
    /// Frames in a second.
    Frames(Rate),
}

impl FromStr for RateSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            "take bits a second, as 100M or 2G, or frames, as 20kpps; behind it may stand what \
             passes at once after a rest, as in 100M:4M or 20kpps:500"
        };
        let (rate, burst) = text.split_once(':').map_or((text, None), |(a, b)| (a, Some(b)));
        let (rate, is_frames) = rate.strip_suffix("pps").map_or((rate, false), |it| (it, true));
        // Whole bytes, or frames.
        let units = |text| {
            let number = number(text)?;
            Some(if is_frames { number } else { number / 8 }).filter(|units| *units > 0)
        };
        let per_second = units(rate).ok_or_else(bad)?;
        let rate = match burst {
            Some(burst) => Rate { per_second, burst: units(burst).ok_or_else(bad)? },
            None => Rate::of(per_second),
        };
        Ok(if is_frames { Self::Frames(rate) } else { Self::Bytes(rate) })
    }
}

/// A number with its unit: `64k`, `100M`, `2G`.
fn number(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'k' | 'K' => 1000,
        'M' => 1_000_000,
        'G' => 1_000_000_000,
        _ => 1,
    };
    let digits = if unit > 1 { text.get(..text.len().checked_sub(1)?)? } else { text };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The limit of these rates; of two of a kind, the last one counts.
#[must_use]
pub fn limit(rates: &[RateSpec]) -> Limit {
    let limit = Limit::default();
    for rate in rates {
        match *rate {
            RateSpec::Bytes(rate) => limit.set_bytes(Some(rate)),
            RateSpec::Frames(rate) => limit.set_frames(Some(rate)),
        }
    }
    limit
}

/// A group of devices that share limits: `tenant,tx=1G,rx=1G,rx=200kpps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSpec {
    /// What devices name it by.
    pub name: String,
    /// What their guests may send together; nothing for no limit.
    pub transmit: Vec<RateSpec>,
    /// What they get together.
    pub receive: Vec<RateSpec>,
}

impl FromStr for GroupSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rates) = text.split_once(',').unwrap_or((text, ""));
        if name.is_empty() || name.contains('=') {
            return Err("begin with a name, as in tenant,tx=1G,rx=1G".into());
        }
        let mut group = Self { name: name.to_owned(), transmit: Vec::new(), receive: Vec::new() };
        for word in rates.split(',').filter(|word| !word.is_empty()) {
            match word.split_once('=') {
                Some(("tx", rate)) => group.transmit.push(rate.parse()?),
                Some(("rx", rate)) => group.receive.push(rate.parse()?),
                Some(_) | None => {
                    return Err(format!(
                        "`{word}`: behind the name come tx=RATE and rx=RATE, once for each rate"
                    ));
                }
            }
        }
        Ok(group)
    }
}

/// An address to lease, written `10.1.0.5/24` or, with a router, `10.1.0.5/24@10.1.0.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseSpec {
    guest: Ipv4Addr,
    net: Ipv4Net,
    router: Option<Ipv4Addr>,
}

impl FromStr for LeaseSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || "take ADDR/LEN[@ROUTER], for example 10.1.0.5/24@10.1.0.1".to_owned();
        let (own, router) = text.split_once('@').map_or((text, None), |(a, b)| (a, Some(b)));
        let (guest, len) = own.split_once('/').ok_or_else(bad)?;
        let guest = guest.parse().map_err(|_| bad())?;
        let len = len.parse().map_err(|_| bad())?;
        let net = Ipv4Net::new(guest, len).ok_or_else(bad)?;
        let router = router.map(str::parse).transpose().map_err(|_| bad())?;
        Ok(Self { guest, net, router })
    }
}

impl LeaseSpec {
    /// The lease, for packets of up to `mtu` bytes.
    #[must_use]
    pub fn lease(&self, mtu: u16, dns: Vec<Ipv4Addr>) -> Lease {
        let server = self.router.unwrap_or_else(|| self.nobody());
        let lease = Lease::new(self.net, self.guest, server, mtu);
        Lease { router: self.router, dns, ..lease }
    }

    /// Without a router, somebody has to be named as the server: the last host of the network, or
    /// the one before if that is the guest. Nothing is sent to it, the answers come from us.
    fn nobody(&self) -> Ipv4Addr {
        let last = self.net.broadcast().to_bits();
        // In a /31 both addresses are hosts' (RFC 3021).
        let hosts = if self.net.prefix_len() < 31 { [1, 2] } else { [0, 1] };
        let mut hosts =
            hosts.map(|back| Ipv4Addr::from_bits(last.saturating_sub(back))).into_iter();
        hosts.find(|host| *host != self.guest).unwrap_or(self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn rules(words: &[&str]) -> Vec<GuardRule> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn rules_are_read_and_nonsense_is_refused() {
        assert_eq!("ip=10.1.0.5".parse(), Ok(GuardRule::Ip([10, 1, 0, 5].into(), 32)));
        assert_eq!("ip=10.1.0.0/16".parse(), Ok(GuardRule::Ip([10, 1, 0, 0].into(), 16)));
        for bad in ["", "mac=1", "ip", "ip=10.1.0.5/33", "ip=x", "vlan=4096", "vlan=", "all"] {
            assert!(bad.parse::<GuardRule>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_rule_comes_into_force() {
        assert_eq!(guard(&[], MAC), Ok(None));
        let words = ["mac", "arp", "nd", "dhcp", "ra"];
        for (word, rule) in words.into_iter().zip(Rule::ALL) {
            let guard = guard(&rules(&[word]), MAC).unwrap().unwrap();
            assert_eq!(Rule::ALL.map(|one| guard.has(one)), Rule::ALL.map(|one| one == rule));
        }
        assert!(guard(&rules(&["ip=10.0.0.1"; 17]), MAC).is_err());
    }

    #[test]
    fn rates_are_read_and_nonsense_is_refused() {
        let bytes = |per_second, burst| RateSpec::Bytes(Rate { per_second, burst });
        let frames = |per_second, burst| RateSpec::Frames(Rate { per_second, burst });
        for (text, rate) in [
            ("8", bytes(1, 1)),
            ("100M", bytes(12_500_000, 1_250_000)),
            ("2G", bytes(250_000_000, 25_000_000)),
            ("64k", bytes(8000, 800)),
            ("100M:4M", bytes(12_500_000, 500_000)),
            ("1G:8", bytes(125_000_000, 1)),
            ("20kpps", frames(20_000, 2000)),
            ("1pps", frames(1, 1)),
            ("20kpps:500", frames(20_000, 500)),
            ("1Mpps:2k", frames(1_000_000, 2000)),
        ] {
            assert_eq!(text.parse(), Ok(rate), "{text}");
        }
        for bad in [
            "",
            "0",
            "7",
            "0pps",
            "pps",
            "-1M",
            "1.5M",
            "1T",
            "99999999999G",
            "M",
            "1M:",
            "1M:7",
            ":8",
            "1M:1M:1M",
            "1pps:0",
            "1pps:1pps",
            "1M:1pps",
            "µ",
        ] {
            assert!(bad.parse::<RateSpec>().is_err(), "{bad}");
        }
        let both = limit(&[frames(7, 1), bytes(9, 2), frames(5, 3)]);
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(both.rates(), [rate(9, 2), rate(5, 3)]);
    }

    #[test]
    fn groups_are_read_and_nonsense_is_refused() {
        let group: GroupSpec = "tenant,tx=1G:1M,rx=8M,rx=9pps".parse().unwrap();
        assert_eq!(group.name, "tenant");
        let rate = Rate { per_second: 125_000_000, burst: 125_000 };
        assert_eq!(group.transmit, [RateSpec::Bytes(rate)]);
        assert_eq!(group.receive, ["8M", "9pps"].map(|rate| rate.parse().unwrap()));
        assert_eq!("later".parse::<GroupSpec>().unwrap().transmit, []);
        for bad in ["", ",tx=1G", "tx=1G", "a,tx", "a,tx=", "a,up=1G", "a,tx=1G,5pps"] {
            assert!(bad.parse::<GroupSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_guard_of_vlans_passes_these_and_others_only_if_told() {
        let tagged = |id: u8| [&[0xff; 6][..], &MAC, &[0x81, 0, 0, id, 8, 0], &[0; 44]].concat();
        let plain = [&[0xff; 6][..], &MAC, &[0x88, 0xb5], &[0; 46]].concat();
        let strict = guard(&rules(&["vlan=5"]), MAC).unwrap().unwrap();
        let loose = guard(&rules(&["vlan=5", "vlan=none"]), MAC).unwrap().unwrap();
        for (guard, passes) in [(strict, [true, false, false]), (loose, [true, false, true])] {
            let frames = [&tagged(5), &tagged(6), &plain];
            assert_eq!(frames.map(|frame| guard.transmit(frame, frame.len()).is_ok()), passes);
        }
    }

    #[test]
    fn every_lease_that_is_read_contradicts_nothing() {
        for (text, server) in [
            ("10.1.0.5/24@10.1.0.1", "10.1.0.1"),
            ("10.1.0.5/24", "10.1.0.254"),
            ("10.1.0.254/24", "10.1.0.253"),
            ("10.1.0.1/30", "10.1.0.2"),
            ("10.1.0.4/31", "10.1.0.5"),
            ("10.1.0.5/8", "10.255.255.254"),
        ] {
            let lease = text.parse::<LeaseSpec>().unwrap().lease(1500, Vec::new());
            assert_eq!(lease.check(), Ok(()), "{text}");
            assert_eq!(lease.server.to_string(), server, "{text}");
            assert_eq!(lease.router.is_some(), text.contains('@'), "{text}");
        }
        for bad in ["", "10.1.0.5", "10.1.0.5/33", "10.1.0.5/24@", "::1/64", "10.1.0.5/24@x"] {
            assert!(bad.parse::<LeaseSpec>().is_err(), "{bad}");
        }
    }
}
