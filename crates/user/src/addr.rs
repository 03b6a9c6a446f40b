//! Addresses and networks: what a prefix holds, and which IPv4 address hides in an IPv6 one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An IPv4 network; bits behind the prefix are kept zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Net {
    base: u32,
    prefix_len: u8,
}

/// An IPv6 network; bits behind the prefix are kept zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv6Net {
    base: u128,
    prefix_len: u8,
}

/// A network of either family, written `10.0.0.0/8` or `fd00::/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpNet {
    /// An IPv4 network.
    V4(Ipv4Net),
    /// An IPv6 network.
    V6(Ipv6Net),
}

impl Ipv4Net {
    /// The network of `prefix_len` bits that `addr` lies in; `None` above 32 bits.
    #[must_use]
    pub const fn new(addr: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        if prefix_len > 32 { None } else { Some(Self::around(addr, prefix_len)) }
    }

    /// The same for a prefix length known to fit.
    pub(crate) const fn around(addr: Ipv4Addr, prefix_len: u8) -> Self {
        Self { base: addr.to_bits() & mask_v4(prefix_len), prefix_len }
    }

    /// Whether `addr` lies in the network.
    #[must_use]
    pub const fn contains(&self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & mask_v4(self.prefix_len) == self.base
    }

    /// The network's first address.
    #[must_use]
    pub const fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base)
    }

    /// The network mask, `255.255.255.0` for a `/24`.
    #[must_use]
    pub const fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_v4(self.prefix_len))
    }

    /// The network's last address, to which all of its hosts listen.
    #[must_use]
    pub const fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base | !mask_v4(self.prefix_len))
    }

    /// The prefix length, 0 to 32 bits.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

impl Ipv6Net {
    /// The network of `prefix_len` bits that `addr` lies in; `None` above 128 bits.
    #[must_use]
    pub const fn new(addr: Ipv6Addr, prefix_len: u8) -> Option<Self> {
        if prefix_len > 128 { None } else { Some(Self::around(addr, prefix_len)) }
    }

    /// The same for a prefix length known to fit.
    pub(crate) const fn around(addr: Ipv6Addr, prefix_len: u8) -> Self {
        Self { base: addr.to_bits() & mask_v6(prefix_len), prefix_len }
    }

    /// Whether `addr` lies in the network.
    #[must_use]
    pub const fn contains(&self, addr: Ipv6Addr) -> bool {
        addr.to_bits() & mask_v6(self.prefix_len) == self.base
    }

    /// The network's first address.
    #[must_use]
    pub const fn base(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.base)
    }

    /// The prefix length, 0 to 128 bits.
    #[must_use]
    pub const fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

impl IpNet {
    /// The network of `prefix_len` bits that `addr` lies in; `None` when the family has fewer.
    #[must_use]
    pub fn new(addr: IpAddr, prefix_len: u8) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Ipv4Net::new(addr, prefix_len).map(Self::V4),
            IpAddr::V6(addr) => Ipv6Net::new(addr, prefix_len).map(Self::V6),
        }
    }

    /// Whether `addr` lies in the network; never true across families.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self, addr) {
            (Self::V4(net), IpAddr::V4(addr)) => net.contains(addr),
            (Self::V6(net), IpAddr::V6(addr)) => net.contains(addr),
            (Self::V4(_), IpAddr::V6(_)) | (Self::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

const fn mask_v4(prefix_len: u8) -> u32 {
    !u32::MAX.unbounded_shr(widen(prefix_len))
}

const fn mask_v6(prefix_len: u8) -> u128 {
    !u128::MAX.unbounded_shr(widen(prefix_len))
}

const fn widen(byte: u8) -> u32 {
    u32::from_le_bytes([byte, 0, 0, 0])
}

/// How an IPv6 address carries an IPv4 one, as far as a translator on the way may unpack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedded {
    /// `::ffff:a.b.c.d`, `::ffff:0:a.b.c.d`, `::a.b.c.d`: a host's own notation, never on a wire
    /// (RFC 4291 §2.5.5, RFC 2765 §2.1). A socket given one of these speaks IPv4.
    Notation(Ipv4Addr),
    /// NAT64 (RFC 6052 §2.1, RFC 8215) or 6to4 (RFC 3056 §2): a real address that may end up as
    /// IPv4 behind a translator or relay. In the local-use prefix `64:ff9b:1::/48` the place of
    /// the IPv4 address depends on the site; the last 32 bits are taken.
    Translated(Ipv4Addr),
}

/// The IPv4 address inside `addr`, if it is of a kind that holds one.
#[must_use]
pub const fn embedded_ipv4(addr: Ipv6Addr) -> Option<Embedded> {
    let [.., a, b, c, d] = addr.octets();
    let last = Ipv4Addr::new(a, b, c, d);
    match addr.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => {
            Some(Embedded::Notation(last))
        }
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(Embedded::Translated(last)),
        [0x2002, high, low, ..] => {
            let [a, b] = high.to_be_bytes();
            let [c, d] = low.to_be_bytes();
            Some(Embedded::Translated(Ipv4Addr::new(a, b, c, d)))
        }
        _ => None,
    }
}

/// The solicited-node multicast address of `addr` (RFC 4291 §2.7.1).
#[must_use]
pub const fn solicited_node(addr: Ipv6Addr) -> Ipv6Addr {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits();
    Ipv6Addr::from_bits(group | (addr.to_bits() & 0x00ff_ffff))
}

/// Text that is no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseNetError(String);

impl ParseNetError {
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for ParseNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no address or network, write for example 10.0.0.0/8", self.0)
    }
}

impl std::error::Error for ParseNetError {}

impl FromStr for IpNet {
    type Err = ParseNetError;

    /// Reads `addr/len`, or `addr` alone for that one address.
    fn from_str(text: &str) -> Result<Self, ParseNetError> {
        let bad = || ParseNetError::new(text);
        let (addr, prefix_len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len.parse::<u8>().map_err(|_| bad())?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        Self::new(addr, prefix_len.unwrap_or(whole)).ok_or_else(bad)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix_len)
    }
}

impl fmt::Display for Ipv6Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix_len)
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(net) => write!(f, "{net}"),
            Self::V6(net) => write!(f, "{net}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_holds_exactly_the_addresses_of_its_prefix() {
        let net: IpNet = "10.0.2.77/24".parse().unwrap();
        assert_eq!(net.to_string(), "10.0.2.0/24");
        assert!(net.contains("10.0.2.255".parse().unwrap()));
        assert!(!net.contains("10.0.3.0".parse().unwrap()));
        assert!(!net.contains("::10.0.2.1".parse().unwrap()));
    }

    #[test]
    fn the_shortest_and_longest_prefixes_work() {
        let all: IpNet = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        let one: IpNet = "fd00::1".parse().unwrap();
        assert!(one.contains("fd00::1".parse().unwrap()));
        assert!(!one.contains("fd00::2".parse().unwrap()));
        let all: IpNet = "::/0".parse().unwrap();
        assert!(all.contains("ffff::".parse().unwrap()));
    }

    #[test]
    fn text_that_is_no_network_is_refused() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/8/8", "x"] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }

    #[test]
    fn mask_and_broadcast_follow_the_prefix() {
        let net = Ipv4Net::new(Ipv4Addr::new(10, 0, 2, 9), 24).unwrap();
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 0, 2, 255));
        assert_eq!(net.base(), Ipv4Addr::new(10, 0, 2, 0));
    }

    #[test]
    fn an_embedded_ipv4_address_is_found_in_each_notation() {
        let lo = Ipv4Addr::LOCALHOST;
        for text in ["::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1"] {
            assert_eq!(embedded_ipv4(v6(text)), Some(Embedded::Notation(lo)), "{text}");
        }
        for text in ["64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:7f00:1:5::9"]
        {
            assert_eq!(embedded_ipv4(v6(text)), Some(Embedded::Translated(lo)), "{text}");
        }
        for text in ["::", "::1", "2001:db8::1", "fe80::1", "fd76:696f:6e65:7400::2"] {
            assert_eq!(embedded_ipv4(v6(text)), None, "{text}");
        }
    }

    #[test]
    fn a_solicited_node_address_keeps_the_last_three_bytes() {
        assert_eq!(solicited_node(v6("fe80::12:34:5678")), v6("ff02::1:ff34:5678"));
    }
}
