//! The hash of a frame's flow, as the driver has asked for it (VIRTIO 1.4 §5.1.9.4.3 to .5).
//!
//! ```text
//!   head --> headers.rs --> tunnel.rs --> [packet] --> choose a type --> toeplitz.rs --> Hashed
//!            addresses,     the packet                 by what the       over addresses,
//!            ports          inside, if                 driver enabled    and ports
//!                           enabled
//! ```
//!
//! What decides are the bytes of the head alone, and no length in them is believed: a header that
//! goes beyond the head is as good as absent. Every frame gets an answer in bounded time; what no
//! enabled type fits is [`Hashed::NONE`].
//!
//! The standard leaves open: a fragment is hashed over its addresses, for only the first has ports
//! and all of a packet are to go the same way; VLAN tags, one or two, are skipped.

pub(crate) mod headers;
mod toeplitz;
mod tunnel;

use vionet_spec::hash::{
    KEY_MAX, REPORT_IPV4, REPORT_IPV6, REPORT_IPV6_EX, REPORT_NONE, TUNNELS_ALL, TYPES_ALL,
};

use self::headers::{Addresses, Packet, Ports};

pub use toeplitz::{INPUT_MAX, Toeplitz};

/// Bytes of a frame's beginning that hold all that is hashed of any usual packet: IPv6 with ports
/// in IPv6 over VXLAN, untagged, ends here. Shorter heads, and longer, are fine too.
pub const HASH_HEAD_LEN: usize = 128;

/// A frame's hash, and what it was computed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Hashed {
    /// The hash; 0 if there is none.
    pub value: u32,
    /// What was hashed, a `REPORT_` of [`vionet_spec::hash`].
    pub report: u16,
}

impl Hashed {
    /// No hash was computed.
    pub const NONE: Self = Self { value: 0, report: REPORT_NONE };

    /// The fields as they follow the first 12 bytes of the virtio header (§5.1.9; NET-HASH-11).
    #[must_use]
    pub const fn encode(self) -> [u8; 8] {
        let ([a, b, c, d], [r, s]) = (self.value.to_le_bytes(), self.report.to_le_bytes());
        [a, b, c, d, r, s, 0, 0]
    }
}

/// The types a driver has enabled, and its key: all that makes a hash of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowHash {
    toeplitz: Toeplitz,
    types: u32,
    tunnels: u32,
}

impl FlowHash {
    /// Hashes the `TYPE_`s of `types` with `key`, and tunnels from outside.
    ///
    /// A key shorter than [`vionet_spec::hash::KEY_MAX`] is used as if zeroes followed; `None` if
    /// it is longer. Unknown types are ignored.
    #[must_use]
    pub fn new(key: &[u8], types: u32) -> Option<Self> {
        let toeplitz = Toeplitz::new(key)?;
        Some(Self { toeplitz, types: types & TYPES_ALL, tunnels: 0 })
    }

    /// No hash of anything: how a device begins (NET-CTRL-HASH-02).
    #[must_use]
    pub fn disabled() -> Self {
        Self { toeplitz: Toeplitz::ZERO, types: 0, tunnels: 0 }
    }

    /// The `TYPE_`s that are hashed.
    #[must_use]
    pub const fn types(&self) -> u32 {
        self.types
    }

    /// The key, filled up with zeroes.
    #[must_use]
    pub const fn key(&self) -> &[u8; KEY_MAX] {
        self.toeplitz.key()
    }

    /// Hashes the inner headers of the `TUNNEL_`s of `tunnels` from now on, and of no others
    /// (§5.1.9.4.4; NET-IHH-03, -06).
    #[must_use]
    pub fn with_tunnels(self, tunnels: u32) -> Self {
        Self { tunnels: tunnels & TUNNELS_ALL, ..self }
    }

    /// The hash of the frame that `head` is the beginning of, or all (NET-HASH-01).
    #[must_use]
    pub fn of(&self, head: &[u8]) -> Hashed {
        if self.types == 0 {
            return Hashed::NONE;
        }
        self.of_frame(head).unwrap_or(Hashed::NONE)
    }

    #[inline]
    fn of_frame(&self, head: &[u8]) -> Option<Hashed> {
        let outer = headers::ethernet(head)?;
        // NET-IHH-01, -05: one level of tunnel is looked into.
        if self.tunnels != 0
            && let Some(tunnel) = tunnel::carried(&outer)
            && tunnel.types & self.tunnels != 0
        {
            return self.of_packet(&tunnel.packet()?);
        }
        self.of_packet(&outer)
    }

    #[inline]
    fn of_packet(&self, packet: &Packet<'_>) -> Option<Hashed> {
        let plain = packet.addresses;
        // NET-HASH-06, -07, -08: IPv6 with extension headers has types of its own, tried first.
        let (addresses, (report, ports)) = match (plain, packet.mobile) {
            (Addresses::V4(..), _) => (plain, self.choose(REPORT_IPV4, packet.ports)?),
            (Addresses::V6(..), None) => (plain, self.choose(REPORT_IPV6, packet.ports)?),
            (Addresses::V6(..), Some(mobile)) => match self.choose(REPORT_IPV6_EX, packet.ports) {
                Some(choice) => (mobile, choice),
                None => (plain, self.choose(REPORT_IPV6, packet.ports)?),
            },
        };
        // NET-HASH-10: source, destination, source port, destination port, in network order.
        let value = match addresses {
            Addresses::V4(source, destination) => {
                self.toeplitz.part(0, source)
                    ^ self.toeplitz.part(4, destination)
                    ^ ports.map_or(0, |ports| self.toeplitz.part(8, ports))
            }
            Addresses::V6(source, destination) => {
                self.toeplitz.part(0, source)
                    ^ self.toeplitz.part(16, destination)
                    ^ ports.map_or(0, |ports| self.toeplitz.part(32, ports))
            }
        };
        Some(Hashed { value, report })
    }

    /// The report and the ports to be hashed. Reports come by three: that of addresses alone is
    /// followed by that with TCP's ports and that with UDP's.
    #[inline]
    fn choose<'a>(
        &self,
        of_addresses: u16,
        ports: Ports<'a>,
    ) -> Option<(u16, Option<&'a [u8; 4]>)> {
        let (with_ports, bytes) = match ports {
            Ports::Tcp(bytes) => (of_addresses.saturating_add(1), Some(bytes)),
            Ports::Udp(bytes) => (of_addresses.saturating_add(2), Some(bytes)),
            Ports::None => (of_addresses, None),
        };
        if self.is_enabled(with_ports) {
            return Some((with_ports, bytes));
        }
        self.is_enabled(of_addresses).then_some((of_addresses, None))
    }

    /// Whether the type of a report is enabled: its bit is 1 << (report - 1) (NET-HASH-12).
    #[inline]
    fn is_enabled(&self, report: u16) -> bool {
        self.types.unbounded_shr(u32::from(report).saturating_sub(1)) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::toeplitz::PUBLISHED_KEY as KEY;
    use super::*;
    use std::vec;
    use std::vec::Vec;
    use vionet_spec::hash::*;

    /// The first packets of the published vectors: hash of addresses, and with ports.
    const V4: [u32; 2] = [0x323e_8fc2, 0x51cc_c178];
    const V6: [u32; 2] = [0x2cc1_8cd5, 0x4020_7d3d];
    const PORTS: [u8; 4] = [0x0a, 0xea, 0x06, 0xe6];
    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn ethernet(ether_type: u16, packet: &[u8]) -> Vec<u8> {
        [&[2; 12][..], &ether_type.to_be_bytes(), packet].concat()
    }

    fn v4(protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let [f0, f1] = flags.to_be_bytes();
        let fixed = [0x45, 0, len[0], len[1], 0, 0, f0, f1, 64, protocol, 0, 0];
        let ips = [66, 9, 149, 187, 161, 142, 100, 80];
        [&fixed[..], &ips, payload].concat()
    }

    fn address(text: &str) -> [u8; 16] {
        text.parse::<core::net::Ipv6Addr>().unwrap().octets()
    }

    fn v6_between(source: &str, destination: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let fixed = [0x60, 0, 0, 0, len[0], len[1], next, 64];
        [&fixed[..], &address(source), &address(destination), payload].concat()
    }

    fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
        v6_between("3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1", next, payload)
    }

    fn ports(len: usize) -> Vec<u8> {
        let mut header = vec![0; len];
        header[..4].copy_from_slice(&PORTS);
        header
    }

    fn hash(types: u32, frame: &[u8]) -> (u32, u16) {
        through(types, 0, frame)
    }

    fn through(types: u32, tunnels: u32, frame: &[u8]) -> (u32, u16) {
        let flow_hash = FlowHash::new(&KEY, types).unwrap().with_tunnels(tunnels);
        let Hashed { value, report } = flow_hash.of(frame);
        (value, report)
    }

    fn hash_v4(types: u32, protocol: u8, flags: u16, payload: &[u8]) -> (u32, u16) {
        hash(types, &ethernet(0x0800, &v4(protocol, flags, payload)))
    }

    fn hash_v6(types: u32, next: u8, payload: &[u8]) -> (u32, u16) {
        hash(types, &ethernet(0x86dd, &v6(next, payload)))
    }

    #[test]
    fn the_best_enabled_type_of_a_packet_is_reported() {
        assert_eq!(hash_v4(TYPES_ALL, TCP, 0, &ports(20)), (V4[1], REPORT_TCPV4));
        assert_eq!(hash_v4(TYPES_ALL, UDP, 0, &ports(8)), (V4[1], REPORT_UDPV4));
        assert_eq!(hash_v4(TYPES_ALL, 1, 0, &ports(8)), (V4[0], REPORT_IPV4));
        assert_eq!(hash_v4(!TYPE_TCPV4, TCP, 0, &ports(20)), (V4[0], REPORT_IPV4));
        assert_eq!(hash_v4(!TYPE_UDPV4, UDP, 0, &ports(8)), (V4[0], REPORT_IPV4));
        assert_eq!(hash_v4(!TYPE_IPV4, TCP, 0, &ports(20)), (V4[1], REPORT_TCPV4));
        assert_eq!(hash_v4(!TYPE_IPV4, 1, 0, &ports(8)), (0, REPORT_NONE));
        assert_eq!(hash_v4(TYPE_TCPV4, UDP, 0, &ports(8)), (0, REPORT_NONE));
        let of_v6 = TYPE_IPV6 | TYPE_TCPV6 | TYPE_UDPV6;
        assert_eq!(hash_v4(of_v6, TCP, 0, &ports(20)), (0, REPORT_NONE));

        assert_eq!(hash_v6(TYPES_ALL, TCP, &ports(20)), (V6[1], REPORT_TCPV6));
        assert_eq!(hash_v6(TYPES_ALL, UDP, &ports(8)), (V6[1], REPORT_UDPV6));
        assert_eq!(hash_v6(TYPES_ALL, 58, &ports(8)), (V6[0], REPORT_IPV6));
        assert_eq!(hash_v6(!TYPE_TCPV6, TCP, &ports(20)), (V6[0], REPORT_IPV6));
        assert_eq!(hash_v6(!TYPE_IPV6, 58, &ports(8)), (0, REPORT_NONE));
        let of_extended = TYPE_IP_EX | TYPE_TCP_EX | TYPE_UDP_EX;
        assert_eq!(hash_v6(of_extended, TCP, &ports(20)), (0, REPORT_NONE));
    }

    #[test]
    fn a_report_follows_from_its_type_and_has_its_place_in_the_header() {
        for bit in 0..9 {
            let enabled = FlowHash::new(&KEY, 1 << bit).unwrap();
            assert!((1..=9).all(|report| enabled.is_enabled(report) == (report == bit + 1)));
        }
        let hashed = Hashed { value: 0x1234_5678, report: REPORT_UDPV6_EX };
        assert_eq!(hashed.encode(), [0x78, 0x56, 0x34, 0x12, 9, 0, 0, 0]);
        assert_eq!(HDR_HASH_VALUE + hashed.encode().len(), HDR_LEN_HASH);
    }

    #[test]
    fn nothing_is_hashed_until_a_type_is_enabled() {
        let frame = ethernet(0x0800, &v4(TCP, 0, &ports(20)));
        assert_eq!(FlowHash::disabled().of(&frame), Hashed::NONE);
        assert_eq!(hash(0, &frame), (0, REPORT_NONE));
        assert_eq!(FlowHash::new(&[1; 41], TYPES_ALL), None);
    }

    #[test]
    fn a_fragment_is_hashed_over_its_addresses() {
        for flags in [0x2000, 0x2001, 0x0001, 0x1fff] {
            assert_eq!(hash_v4(TYPES_ALL, TCP, flags, &ports(20)), (V4[0], REPORT_IPV4));
            assert_eq!(hash_v4(TYPE_TCPV4, TCP, flags, &ports(20)), (0, REPORT_NONE));
        }
        assert_eq!(hash_v4(TYPES_ALL, TCP, 0x4000, &ports(20)), (V4[1], REPORT_TCPV4));
        let fragment = |offset: u8, types: u32| {
            let header = [TCP, 0, 0, offset, 0, 0, 0, 9];
            hash_v6(types, 44, &[&header, &ports(20)[..]].concat())
        };
        for offset in [1, 8, 9] {
            assert_eq!(fragment(offset, TYPES_ALL), (V6[0], REPORT_IPV6_EX));
            assert_eq!(fragment(offset, !TYPE_IP_EX), (V6[0], REPORT_IPV6));
        }
        assert_eq!(fragment(0, TYPES_ALL), (V6[1], REPORT_TCPV6_EX));
        assert_eq!(fragment(6, TYPES_ALL), (V6[1], REPORT_TCPV6_EX), "reserved bits do not count");
    }

    #[test]
    fn tags_are_skipped_one_or_two() {
        let packet = v4(TCP, 0, &ports(20));
        let tagged = |tags: &[u16]| {
            let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.to_be_bytes()).collect();
            hash(TYPES_ALL, &[&[2; 12][..], &tags, &[8, 0], &packet].concat())
        };
        assert_eq!(tagged(&[0x8100, 5]), (V4[1], REPORT_TCPV4));
        assert_eq!(tagged(&[0x88a8, 7, 0x8100, 0x0fff]), (V4[1], REPORT_TCPV4));
        assert_eq!(tagged(&[0x88a8, 7, 0x8100, 5, 0x8100, 6]), (0, REPORT_NONE));
    }

    #[test]
    fn ports_that_are_not_at_hand_or_not_of_the_packet_do_not_count() {
        let frame = ethernet(0x0800, &v4(TCP, 0, &ports(20)));
        assert_eq!(hash(TYPES_ALL, &frame[..38]), (V4[1], REPORT_TCPV4));
        assert_eq!(hash(TYPES_ALL, &frame[..37]), (V4[0], REPORT_IPV4));
        assert_eq!(hash(TYPES_ALL, &frame[..34]), (V4[0], REPORT_IPV4));
        assert_eq!(hash(TYPES_ALL, &frame[..33]), (0, REPORT_NONE));
        // Padding of the frame is not a header of the packet.
        for (protocol, len, report) in
            [(TCP, 19, REPORT_IPV4), (TCP, 20, REPORT_TCPV4), (UDP, 7, REPORT_IPV4), (UDP, 8, 3)]
        {
            let mut frame = ethernet(0x0800, &v4(protocol, 0, &ports(len)));
            frame.resize(80, 0);
            assert_eq!(hash(TYPES_ALL, &frame).1, report);
        }
        // A length of 0 is filled in later.
        let mut frame = frame;
        frame[16..18].fill(0);
        assert_eq!(hash(TYPES_ALL, &frame), (V4[1], REPORT_TCPV4));
    }

    #[test]
    fn options_of_ipv4_are_skipped_and_headers_that_lie_refused() {
        let mut packet = v4(TCP, 0, &[[1; 8].as_slice(), &ports(20)].concat());
        packet[0] = 0x47;
        assert_eq!(hash(TYPES_ALL, &ethernet(0x0800, &packet)), (V4[1], REPORT_TCPV4));
        for first in [0x44, 0x65, 0x00] {
            packet[0] = first;
            assert_eq!(hash(TYPES_ALL, &ethernet(0x0800, &packet)), (0, REPORT_NONE));
        }
        packet[0] = 0x45;
        assert_eq!(hash(TYPES_ALL, &ethernet(0x86dd, &packet)), (0, REPORT_NONE));
        assert_eq!(hash(TYPES_ALL, &ethernet(0x0806, &packet)), (0, REPORT_NONE));
    }

    /// Hop-by-hop options, destination options, authentication, and a routing header.
    fn extensions(last: u8) -> Vec<u8> {
        let headers = [
            &[60, 0, 5, 2, 0, 0, 0, 0][..],
            &[51, 0, 1, 4, 0, 0, 0, 0],
            &[43, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[last, 0, 0, 0, 0, 0, 0, 0],
        ];
        headers.concat()
    }

    #[test]
    fn packets_with_extension_headers_have_types_of_their_own() {
        for (last, transport, report) in [
            (TCP, ports(20), REPORT_TCPV6_EX),
            (UDP, ports(8), REPORT_UDPV6_EX),
            (58, ports(8), REPORT_IPV6_EX),
        ] {
            let payload = [extensions(last), transport].concat();
            let value = if last == 58 { V6[0] } else { V6[1] };
            assert_eq!(hash_v6(TYPES_ALL, 0, &payload), (value, report));
            // Without the type, addresses alone; without that, the plain types.
            let type_bit = 1 << (report - 1);
            let other = if last == 58 { REPORT_IPV6 } else { REPORT_IPV6_EX };
            assert_eq!(hash_v6(!type_bit, 0, &payload), (V6[0], other));
            let plain = !(TYPE_IP_EX | TYPE_TCP_EX | TYPE_UDP_EX);
            assert_eq!(hash_v6(plain, 0, &payload), (value, report - 3));
        }
    }

    #[test]
    fn addresses_of_a_mobile_node_stand_in_for_those_of_the_packet() {
        let (home, routed) = (address("3ffe:501:8::260:97ff:fe40:efab"), address("ff02::1"));
        let destination = |next: u8| [&[next, 2, 1, 2, 0, 0, 201, 16][..], &home].concat();
        let routing = |next: u8| [&[next, 2, 2, 1, 0, 0, 0, 0][..], &routed].concat();
        let mut transport = ports(20);
        transport[..4].copy_from_slice(&[0x37, 0x96, 0x12, 0x83]);
        let between = |next: u8, payload: &[u8]| {
            ethernet(0x86dd, &v6_between("2001:db8::1", "2001:db8::2", next, payload))
        };
        let both = between(43, &[routing(60), destination(TCP), transport.clone()].concat());
        // The second published packet.
        assert_eq!(hash(TYPES_ALL, &both), (0xdde5_1bbf, REPORT_TCPV6_EX));
        assert_eq!(hash(!TYPE_TCP_EX, &both), (0x0f0c_461c, REPORT_IPV6_EX));
        let plain = TYPE_TCPV6 | TYPE_IPV6;
        let direct = between(TCP, &transport);
        assert_eq!(hash(plain, &both), hash(plain, &direct));

        // One of them alone leaves the packet's own address in the other place.
        let one = ethernet(
            0x86dd,
            &v6_between(
                "3ffe:501:8::260:97ff:fe40:efab",
                "2001:db8::2",
                43,
                &[routing(TCP), transport.clone()].concat(),
            ),
        );
        assert_eq!(hash(TYPES_ALL, &one), (0xdde5_1bbf, REPORT_TCPV6_EX));
        let one = ethernet(
            0x86dd,
            &v6_between(
                "2001:db8::1",
                "ff02::1",
                60,
                &[destination(TCP), transport.clone()].concat(),
            ),
        );
        assert_eq!(hash(TYPES_ALL, &one), (0xdde5_1bbf, REPORT_TCPV6_EX));

        // All fragments of a packet have them, in front of the fragment header.
        let later = [&[TCP, 0, 0, 8, 0, 0, 0, 9][..], &[0; 24]].concat();
        let later = between(43, &[routing(60), destination(44), later].concat());
        assert_eq!(hash(TYPES_ALL, &later), (0x0f0c_461c, REPORT_IPV6_EX));

        // Routing headers of another type, and options of another kind, are skipped.
        let mut other = both;
        other[54 + 2] = 4;
        other[54 + 24 + 6] = 9;
        assert_eq!(
            hash(TYPES_ALL, &other).0,
            hash(TYPES_ALL, &direct).0,
            "the packet's own addresses"
        );
    }

    #[test]
    fn endless_extensions_end() {
        let more = [60, 0, 1, 4, 0, 0, 0, 0].repeat(64);
        assert_eq!(hash_v6(TYPES_ALL, 60, &more), (V6[0], REPORT_IPV6_EX));
        let long = [&[60, 255][..], &[0; 200]].concat();
        assert_eq!(hash_v6(TYPES_ALL, 60, &long), (V6[0], REPORT_IPV6_EX));
        let chain = |count: usize| {
            let last = [TCP, 0, 1, 4, 0, 0, 0, 0].to_vec();
            [[60, 0, 1, 4, 0, 0, 0, 0].repeat(count - 1), last, ports(20)].concat()
        };
        assert_eq!(hash_v6(TYPES_ALL, 60, &chain(7)), (V6[1], REPORT_TCPV6_EX));
        assert_eq!(hash_v6(TYPES_ALL, 60, &chain(8)), (V6[0], REPORT_IPV6_EX));
    }

    #[test]
    fn an_extension_beyond_the_packet_gives_no_address() {
        let routing = [&[TCP, 2, 2, 1, 0, 0, 0, 0][..], &[7; 16]].concat();
        let mut frame = ethernet(0x86dd, &v6(43, &routing));
        assert_ne!(hash(TYPES_ALL, &frame).0, V6[0]);
        frame[19] = 16;
        assert_eq!(hash(TYPES_ALL, &frame), (V6[0], REPORT_IPV6_EX));
    }

    fn inner_v4() -> Vec<u8> {
        v4(TCP, 0, &ports(20))
    }

    fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
        let [p0, p1] = port.to_be_bytes();
        [&[0xc0, 1, p0, p1, 0, 0, 0, 0][..], payload].concat()
    }

    fn outer(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = v4(protocol, 0, payload);
        packet[12..20].fill(9);
        ethernet(0x0800, &packet)
    }

    fn outer_v6(next: u8, payload: &[u8]) -> Vec<u8> {
        ethernet(0x86dd, &v6_between("2001:db8::1", "2001:db8::2", next, payload))
    }

    /// Every tunnel, with the types that it is of.
    fn tunnels() -> Vec<(u32, Vec<u8>)> {
        let (packet, frame) = (inner_v4(), ethernet(0x0800, &inner_v4()));
        let six = ethernet(0x86dd, &v6(TCP, &ports(20)));
        let gre = |bytes: &[u8]| [bytes, &packet[..]].concat();
        let plain = gre(&[0, 0, 8, 0]);
        let keyed = gre(&[0x20, 0, 8, 0, 1, 2, 3, 4]);
        let all = gre(&[0xb0, 0, 8, 0, 1, 1, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4]);
        let counted = [&[0x30, 0, 0x65, 0x58, 0, 1, 2, 3, 0, 0, 0, 9][..], &frame].concat();
        let nvgre = [&[0x20, 0, 0x65, 0x58, 0, 1, 2, 3][..], &frame].concat();
        let vxlan = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &frame].concat();
        let gpe = |flags: u8, next: u8, inner: &[u8]| {
            udp(4790, &[&[flags, 0, 0, next, 0, 0, 7, 0][..], inner].concat())
        };
        let geneve = [&[2, 0, 0x65, 0x58, 0, 0, 7, 0][..], &[0; 8], &frame].concat();
        let geneve_ip = [&[0, 0, 8, 0, 0, 0, 7, 0][..], &packet].concat();
        vec![
            (TUNNEL_GRE_2784, outer(47, &plain)),
            (TUNNEL_GRE_2784, outer(47, &gre(&[0x80, 0, 8, 0, 1, 1, 0, 0]))),
            (
                TUNNEL_GRE_2784 | TUNNEL_GRE_7676,
                outer(47, &[&[0, 0, 0x86, 0xdd][..], &six[14..]].concat()),
            ),
            (TUNNEL_GRE_2890, outer(47, &keyed)),
            (TUNNEL_GRE_2890, outer(47, &all)),
            (TUNNEL_GRE_2890, outer(47, &counted)),
            (TUNNEL_GRE_7676, outer_v6(47, &plain)),
            (TUNNEL_GRE_2890 | TUNNEL_GRE_7676, outer_v6(47, &keyed)),
            (TUNNEL_GRE_2890 | TUNNEL_NVGRE, outer(47, &nvgre)),
            (TUNNEL_GRE_UDP, outer(17, &udp(4754, &keyed))),
            (TUNNEL_VXLAN, outer(17, &udp(4789, &vxlan))),
            (TUNNEL_VXLAN, outer_v6(17, &udp(4789, &vxlan))),
            (TUNNEL_VXLAN_GPE, outer(17, &gpe(0x0c, 1, &packet))),
            (TUNNEL_VXLAN_GPE, outer(17, &gpe(0x0c, 2, &six[14..]))),
            (TUNNEL_VXLAN_GPE, outer(17, &gpe(0x0c, 3, &frame))),
            (TUNNEL_VXLAN_GPE, outer(17, &gpe(0x08, 0, &frame))),
            (TUNNEL_GENEVE, outer(17, &udp(6081, &geneve))),
            (TUNNEL_GENEVE, outer(17, &udp(6081, &geneve_ip))),
            (TUNNEL_IPIP, outer(4, &packet)),
        ]
    }

    #[test]
    fn the_inner_header_of_an_enabled_tunnel_is_hashed() {
        for (at, (types, frame)) in tunnels().into_iter().enumerate() {
            let outside = hash(TYPES_ALL, &frame);
            for tunnel in (0..9).map(|bit| 1 << bit) {
                let hashed = through(TYPES_ALL, tunnel, &frame);
                if types & tunnel == 0 {
                    assert_eq!(hashed, outside, "case {at}, tunnel {tunnel:#x}");
                } else {
                    let inside = [(V4[1], REPORT_TCPV4), (V6[1], REPORT_TCPV6)];
                    assert!(inside.contains(&hashed), "case {at}, tunnel {tunnel:#x}");
                }
            }
        }
    }

    #[test]
    fn an_inner_header_beyond_the_head_gives_no_hash() {
        for (at, (_, frame)) in tunnels().into_iter().enumerate() {
            // The inner packet: addresses end 20 bytes before the frame does, ports 16.
            let len = frame.len();
            let whole = through(TYPES_ALL, TUNNELS_ALL, &frame[..len - 16]);
            assert_eq!(whole, through(TYPES_ALL, TUNNELS_ALL, &frame), "case {at}");
            let addresses = through(TYPES_ALL, TUNNELS_ALL, &frame[..len - 17]);
            assert!([(V4[0], 1), (V6[0], 4)].contains(&addresses), "case {at}");
            let cut = through(TYPES_ALL, TUNNELS_ALL, &frame[..len - 21]);
            assert_eq!(cut, (0, REPORT_NONE), "case {at}");
        }
        // Options that go beyond the head, and look like a frame.
        let options = [&[0x3f, 0, 0x65, 0x58, 0, 0, 7, 0, 0, 0, 0, 0, 8, 0][..], &inner_v4()];
        let frame = outer(17, &udp(6081, &options.concat()));
        assert_eq!(through(TYPES_ALL, TUNNEL_GENEVE, &frame), (0, REPORT_NONE));
        let arp = ethernet(0x0806, &[0; 28]);
        let vxlan = udp(4789, &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &arp].concat());
        let frame = outer(17, &vxlan);
        assert_eq!(through(TYPES_ALL, TUNNEL_VXLAN, &frame), (0, REPORT_NONE));
    }

    #[test]
    fn one_level_of_tunnel_is_looked_into() {
        let mut middle = v4(4, 0, &v4(TCP, 0, &ports(20)));
        middle[12..20].fill(7);
        let frame = outer(4, &middle);
        let expected = hash(TYPES_ALL, &ethernet(0x0800, &middle));
        assert_eq!(through(TYPES_ALL, TUNNEL_IPIP, &frame), expected);
    }

    #[test]
    fn what_only_looks_like_a_tunnel_is_hashed_outside() {
        let packet = inner_v4();
        let frame = ethernet(0x0800, &packet);
        let tails = [
            // GRE: routing, version 1.
            outer(47, &[&[0x40, 0, 8, 0][..], &packet].concat()),
            outer(47, &[&[0, 1, 8, 0][..], &packet].concat()),
            // VXLAN without an identifier; VXLAN-GPE of version 1, and of the tunnel's own.
            outer(17, &udp(4789, &[&[0; 8][..], &frame].concat())),
            outer(17, &udp(4790, &[&[0x1c, 0, 0, 3, 0, 0, 0, 0][..], &frame].concat())),
            outer(17, &udp(4790, &[&[0x0d, 0, 0, 3, 0, 0, 0, 0][..], &frame].concat())),
            // Geneve of version 1, and of the tunnel's own.
            outer(17, &udp(6081, &[&[0x40, 0, 0x65, 0x58, 0, 0, 0, 0][..], &frame].concat())),
            outer(17, &udp(6081, &[&[0, 0x80, 0x65, 0x58, 0, 0, 0, 0][..], &frame].concat())),
            // Encrypted GRE in UDP, IPv4 in IPv6, IPv6 in IPv4.
            outer(17, &udp(4755, &[&[0, 0, 8, 0][..], &packet].concat())),
            outer_v6(4, &packet),
            outer(41, &v6(TCP, &ports(20))),
        ];
        for (at, frame) in tails.into_iter().enumerate() {
            let outside = hash(TYPES_ALL, &frame);
            assert_eq!(through(TYPES_ALL, TUNNELS_ALL, &frame), outside, "case {at}");
            assert_ne!(outside.1, REPORT_NONE);
        }
        let mut fragment = outer(4, &packet);
        fragment[20] = 0x20;
        let outside = hash(TYPES_ALL, &fragment);
        assert_eq!(through(TYPES_ALL, TUNNELS_ALL, &fragment), outside);
    }
}
