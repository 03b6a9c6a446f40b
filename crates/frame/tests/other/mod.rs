//! The second implementation: frames that `etherparse` makes, and its reading held against ours.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::net::Ipv6Addr;

use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, NetSlice,
    PacketBuilder, SingleVlanHeader, SlicedPacket, TcpHeader as OtherTcpHeader, TcpOptionElement,
    TransportSlice, VlanHeader, VlanId, VlanSlice,
};
use proptest::collection::vec as many;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::subsequence;
use vionet_frame::checksum::complete;
use vionet_frame::header::{CsumAt, Gso, GsoRequest, Offloads, Request};
use vionet_frame::parse::{Addresses, Ip, Parsed, Transport, parse};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, SegmentFault, Segments};

pub const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const HOST: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];

/// What etherparse is to make a frame of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub tags: Vec<u16>,
    pub v6: bool,
    pub ip_options: usize,
    pub extensions: Vec<usize>,
    pub traffic_class: u8,
    pub transport: usize,
    pub ports: (u16, u16),
    pub seq: u32,
    pub flags: u8,
    pub mss: Option<u16>,
    pub window_scale: Option<u8>,
    pub payload: Vec<u8>,
    pub padding: usize,
}

pub fn plans(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Plan> {
    let below = (many(0_u16..4096, 0..=2), any::<bool>(), 0_usize..=10, any::<u8>());
    let extensions = subsequence(vec![0_usize, 1, 2, 3, 4], 0..=5);
    let tcp = (any::<u32>(), any::<u8>(), option::of(any::<u16>()), option::of(0_u8..14));
    let ports = any::<(u16, u16)>();
    (below, extensions, 0_usize..4, ports, tcp, payload, 0_usize..20).prop_map(
        |(
            (tags, v6, ip_options, traffic_class),
            extensions,
            transport,
            ports,
            tcp,
            payload,
            padding,
        )| {
            let (seq, flags, mss, window_scale) = tcp;
            Plan {
                tags,
                v6,
                ip_options,
                extensions,
                traffic_class,
                transport,
                ports,
                seq,
                flags,
                mss,
                window_scale,
                payload,
                padding,
            }
        },
    )
}

fn raw_extension(units: usize) -> Ipv6RawExtHeader {
    // Routing headers get type 0 and no segments left.
    Ipv6RawExtHeader::new_raw(IpNumber::UDP, &vec![0; 6 + 8 * units]).unwrap()
}

impl Plan {
    fn ip(&self) -> IpHeaders {
        if self.v6 {
            let mut extensions = Ipv6Extensions::default();
            let fragment = Ipv6FragmentHeader::new(IpNumber::TCP, 0.try_into().unwrap(), false, 9);
            for kind in &self.extensions {
                match kind {
                    0 => extensions.hop_by_hop_options = Some(raw_extension(0)),
                    1 => extensions.destination_options = Some(raw_extension(1)),
                    2 => {
                        extensions.routing = Some(Ipv6RoutingExtensions {
                            routing: raw_extension(2),
                            final_destination_options: self.mss.map(|_| raw_extension(0)),
                        });
                    }
                    3 => extensions.fragment = Some(fragment.clone()),
                    _ => {}
                }
            }
            let header = Ipv6Header {
                traffic_class: self.traffic_class,
                hop_limit: 61,
                source: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15).octets(),
                destination: Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6).octets(),
                ..Ipv6Header::default()
            };
            return IpHeaders::Ipv6(header, extensions);
        }
        let options = vec![1; self.ip_options * 4];
        let mut header =
            Ipv4Header::new(0, 61, IpNumber::TCP, [10, 0, 2, 15], [93, 184, 216, 34]).unwrap();
        header.options = Ipv4Options::try_from(options.as_slice()).unwrap();
        header.dscp = (self.traffic_class >> 2).try_into().unwrap();
        header.ecn = (self.traffic_class & 3).try_into().unwrap();
        header.identification = 0xfffe;
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }

    fn tcp(&self) -> OtherTcpHeader {
        let mut tcp = OtherTcpHeader::new(self.ports.0, self.ports.1, self.seq, 0x1234);
        tcp.acknowledgment_number = !self.seq;
        [tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack, tcp.urg, tcp.ece, tcp.cwr] =
            std::array::from_fn(|bit| self.flags >> bit & 1 == 1);
        let mut options = vec![TcpOptionElement::Noop];
        options.extend(self.mss.map(TcpOptionElement::MaximumSegmentSize));
        options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
        options.extend(self.window_scale.map(TcpOptionElement::WindowScale));
        options.push(TcpOptionElement::Timestamp(1, 2));
        if self.mss.is_some() || self.window_scale.is_some() {
            tcp.set_options(&options).unwrap();
        }
        tcp
    }

    /// The frame without padding, complete with checksums.
    pub fn unpadded(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(GUEST, HOST);
        let tag = |id: u16| VlanId::try_new(id).unwrap();
        let step = match self.tags.as_slice() {
            [] => ethernet.ip(self.ip()),
            [one] => {
                let header = SingleVlanHeader { vlan_id: tag(*one), ..SingleVlanHeader::default() };
                ethernet.vlan(VlanHeader::Single(header)).ip(self.ip())
            }
            [outer, inner, ..] => ethernet.double_vlan(tag(*outer), tag(*inner)).ip(self.ip()),
        };
        let mut frame = Vec::new();
        let (source, destination) = self.ports;
        match (self.transport, self.v6) {
            (0, _) => step.tcp_header(self.tcp()).write(&mut frame, &self.payload),
            (1, _) => step.udp(source, destination).write(&mut frame, &self.payload),
            (2, false) => {
                step.icmpv4_echo_request(source, destination).write(&mut frame, &self.payload)
            }
            (2, true) => {
                step.icmpv6_echo_request(source, destination).write(&mut frame, &self.payload)
            }
            // SCTP: a transport of no interest here.
            _ => step.write(&mut frame, IpNumber::from(132), &self.payload),
        }
        .unwrap();
        frame
    }

    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.unpadded();
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }
}

/// Holds our reading of a frame against the other's; both have succeeded.
pub fn compare(frame: &[u8], ours: &Parsed, theirs: &SlicedPacket<'_>) {
    let tags: Vec<u16> = ours.tags.iter().flatten().map(|tag| tag & 0xfff).collect();
    let their_tags: Vec<u16> = match theirs.vlan() {
        None => vec![],
        Some(VlanSlice::SingleVlan(tag)) => vec![tag.vlan_identifier().value()],
        Some(VlanSlice::DoubleVlan(two)) => {
            vec![two.outer.vlan_identifier().value(), two.inner.vlan_identifier().value()]
        }
    };
    assert_eq!(tags, their_tags);
    let Some(ip) = ours.ip() else {
        assert!(theirs.ip_payload().is_none());
        return;
    };
    match (ip.addresses, theirs.net.as_ref().unwrap()) {
        (Addresses::V4 { source, destination }, NetSlice::Ipv4(other)) => {
            let other = other.header();
            assert_eq!((source, destination), (other.source_addr(), other.destination_addr()));
            assert_eq!(ip.hop_limit, other.ttl());
            assert_eq!(ip.traffic_class, other.dcp().value() << 2 | other.ecn().value());
            let part = ip.fragment.map(|part| (part.offset, part.more));
            let other_part = (other.fragments_offset().value() * 8, other.more_fragments());
            assert_eq!(part.unwrap_or((0, false)), other_part);
        }
        (Addresses::V6 { source, destination }, NetSlice::Ipv6(other)) => {
            let other = other.header();
            assert_eq!((source, destination), (other.source_addr(), other.destination_addr()));
            assert_eq!(ip.hop_limit, other.hop_limit());
            assert_eq!(ip.traffic_class, other.traffic_class());
        }
        (ours, theirs) => panic!("{ours:?} is not {theirs:?}"),
    }
    let is_later_fragment = ip.transport == Transport::LaterFragment;
    if !ip.addresses.is_v4() && (ip.end == ours.l3 + 40 || is_later_fragment) {
        // The other takes a payload length of 0 for "to the end of the frame", and walks on in
        // the middle of a fragmented packet.
        return;
    }
    let payload = theirs.ip_payload().unwrap();
    assert_eq!(ip.protocol, payload.ip_number.0);
    assert_eq!(ip.fragment.is_some(), payload.fragmented);
    assert_eq!(&frame[ip.l4..ip.end], payload.payload);
    if !payload.fragmented {
        compare_transport(frame, ip, theirs);
    }
}

fn compare_transport(frame: &[u8], ip: &Ip, theirs: &SlicedPacket<'_>) {
    let payload = &frame[ip.payload..][..ip.payload_len];
    match (ip.transport, theirs.transport.as_ref()) {
        (Transport::Tcp(tcp), Some(TransportSlice::Tcp(other))) => {
            assert_eq!(tcp.source, other.source_port());
            assert_eq!(tcp.destination, other.destination_port());
            assert_eq!(
                (tcp.seq, tcp.ack),
                (other.sequence_number(), other.acknowledgment_number())
            );
            assert_eq!(tcp.window, other.window_size());
            assert_eq!(tcp.checksum, other.checksum());
            assert_eq!(tcp.header_len, other.header_slice().len());
            let flags = [
                other.fin(),
                other.syn(),
                other.rst(),
                other.psh(),
                other.ack(),
                other.urg(),
                other.ece(),
                other.cwr(),
            ];
            assert_eq!(std::array::from_fn(|bit| tcp.flags.0 >> bit & 1 == 1), flags);
            let mut options = (None, None);
            for option in other.options_iterator().map_while(Result::ok) {
                match option {
                    TcpOptionElement::MaximumSegmentSize(mss) => options.0 = Some(mss),
                    TcpOptionElement::WindowScale(shift) => options.1 = Some(shift.min(14)),
                    _ => {}
                }
            }
            // The other stops at an option whose length it does not like, we only at a lost one.
            assert!(options.0.is_none() || tcp.mss.is_some());
            assert!(options.1.is_none() || tcp.window_scale.is_some());
            assert_eq!(payload, other.payload());
        }
        (Transport::Udp(udp), Some(TransportSlice::Udp(other))) => {
            assert_eq!(udp.source, other.source_port());
            assert_eq!(udp.destination, other.destination_port());
            assert_eq!(udp.checksum, other.checksum());
            assert_eq!(payload, other.payload());
        }
        (Transport::Icmp(icmp), Some(TransportSlice::Icmpv4(other))) => {
            assert_eq!((icmp.kind, icmp.code), (other.type_u8(), other.code_u8()));
            assert_eq!(icmp.checksum, other.checksum());
        }
        (Transport::Icmp(icmp), Some(TransportSlice::Icmpv6(other))) => {
            assert_eq!((icmp.kind, icmp.code), (other.type_u8(), other.code_u8()));
            assert_eq!(icmp.checksum, other.checksum());
        }
        (Transport::Other, None) => {}
        // ICMPv6 in IPv4 and the like, and IGMP, are nothing to us.
        (Transport::Other, Some(TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_))) => {}
        (Transport::Other, Some(TransportSlice::Igmp(_))) => {}
        (ours, theirs) => panic!("{ours:?} is not {theirs:?}"),
    }
}

/// Whether all checksums of a frame hold, by the other implementation.
pub fn assert_checksums(frame: &[u8]) {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a frame the other can read");
    let transport = sliced.transport.as_ref().expect("a transport");
    match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            let (source, destination) = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let right = tcp.calc_checksum_ipv4(source, destination).unwrap();
                    assert_eq!(tcp.checksum(), right);
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), right);
                }
                TransportSlice::Icmpv4(icmp) => {
                    let right = icmp.icmp_type().calc_checksum(icmp.payload());
                    assert_eq!(icmp.checksum(), right);
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            let (source, destination) = (header.source, header.destination);
            match transport {
                TransportSlice::Tcp(tcp) => {
                    let right = tcp.calc_checksum_ipv6(source, destination).unwrap();
                    assert_eq!(tcp.checksum(), right);
                }
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
                    assert_eq!(udp.checksum(), right);
                }
                TransportSlice::Icmpv6(icmp) => {
                    assert!(icmp.is_checksum_valid(source, destination));
                }
                other => panic!("{other:?}"),
            }
        }
        NetSlice::Arp(_) => panic!("arp"),
    }
}

/// A frame with nothing special about it.
pub const PLAIN: Plan = Plan {
    tags: vec![],
    v6: false,
    ip_options: 0,
    extensions: vec![],
    traffic_class: 0,
    transport: 0,
    ports: (1, 2),
    seq: u32::MAX - 100,
    flags: 0,
    mss: None,
    window_scale: None,
    payload: vec![],
    padding: 0,
};

/// What a driver says of a TCP or UDP frame that is to be cut, and where its checksum is.
pub fn request_to_cut(frame: &[u8], size: u16, ecn: bool) -> (Request, usize) {
    let ip = *parse(frame, frame.len()).unwrap().ip().unwrap();
    let (kind, offset) = match (ip.transport, ip.addresses.is_v4()) {
        (Transport::Tcp(_), true) => (Gso::TcpV4, 16),
        (Transport::Tcp(_), false) => (Gso::TcpV6, 16),
        _ => (Gso::UdpL4, 6),
    };
    let csum = CsumAt { start: u16::try_from(ip.l4).unwrap(), offset };
    let gso = Some(GsoRequest { kind, size, ecn });
    (Request { csum: Some(csum), gso, tunnel: None }, ip.l4 + usize::from(offset))
}

/// The whole frames that a frame to be cut stands for.
pub fn cut(frame: &[u8], request: &Request) -> Result<Vec<Vec<u8>>, SegmentFault> {
    let mut segments = Segments::new(frame, request)?;
    let mut out = Vec::new();
    let mut room = [0; SEGMENT_HEADERS_MAX];
    while let Some(segment) = segments.next_into(&mut room) {
        let mut open = [&room[..segment.header_len], segment.payload].concat();
        let left = segment.finish(&mut room, Offloads::NONE);
        assert_eq!(left, Request::default());
        let whole = [&room[..segment.header_len], segment.payload].concat();
        // Leaving the checksum open and completing it later gives the same.
        assert_eq!(segment.finish(&mut room, Offloads::CSUM), segment.request());
        if let Some(csum) = segment.request().csum {
            assert_eq!(Some(csum), request.csum);
            complete(&mut open, csum).unwrap();
        }
        assert_eq!(open, whole);
        out.push(whole);
        assert!(out.len() <= SEGMENTS_MAX);
    }
    assert!(segments.next_into(&mut room).is_none());
    Ok(out)
}
