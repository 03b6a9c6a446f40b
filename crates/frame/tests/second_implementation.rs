//! Parser, builders and segmentation held against a second implementation, `etherparse`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests may stop"
)]

use std::net::{Ipv4Addr, Ipv6Addr};

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
use vionet_frame::build::{
    BuildFault, Built, HEADERS_MAX, IcmpHeader, Payload, Route, TcpHeader, UdpHeader,
};
use vionet_frame::checksum::{Sum, complete};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, Request};
use vionet_frame::parse::{
    Addresses, HEAD_MAX, Ip, Network, ParseFault, Parsed, TcpFlags, Transport, parse,
};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, SEGMENTS_MAX, SegmentFault, Segments};

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const HOST: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];

/// What etherparse is to make a frame of.
#[derive(Clone, Debug)]
struct Plan {
    tags: Vec<u16>,
    v6: bool,
    ip_options: usize,
    extensions: Vec<usize>,
    traffic_class: u8,
    transport: usize,
    ports: (u16, u16),
    seq: u32,
    flags: u8,
    mss: Option<u16>,
    window_scale: Option<u8>,
    payload: Vec<u8>,
    padding: usize,
}

fn plans(payload: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Plan> {
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
    fn unpadded(&self) -> Vec<u8> {
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

    fn frame(&self) -> Vec<u8> {
        let mut frame = self.unpadded();
        frame.resize(frame.len() + self.padding, 0xee);
        frame
    }
}

/// Holds our reading of a frame against the other's; both have succeeded.
fn compare(frame: &[u8], ours: &Parsed, theirs: &SlicedPacket<'_>) {
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
fn assert_checksums(frame: &[u8]) {
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

proptest! {
    #[test]
    fn both_read_the_same_in_a_good_frame(plan in plans(many(any::<u8>(), 0..200))) {
        let frame = plan.frame();
        let ours = parse(&frame, frame.len()).unwrap();
        let theirs = SlicedPacket::from_ethernet(&frame).unwrap();
        compare(&frame, &ours, &theirs);
        let ip = ours.ip().unwrap();
        prop_assert_eq!(ip.end, frame.len() - plan.padding);
        if let Transport::Tcp(tcp) = ip.transport {
            prop_assert_eq!((tcp.mss, tcp.window_scale), (plan.mss, plan.window_scale));
        }
    }

    #[test]
    fn what_both_can_read_of_a_damaged_frame_they_read_alike(
        plan in plans(many(any::<u8>(), 0..60)),
        damage in many((0_usize..100, any::<u8>()), 1..4),
        cut in 0_usize..200
    ) {
        let mut frame = plan.frame();
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len().saturating_sub(cut).max(20));
        if let Ok(ours) = parse(&frame, frame.len()) {
            if let Some(ip) = ours.ip() {
                prop_assert!(ours.l3 < ip.l4 && ip.l4 <= ip.payload);
                prop_assert!(ip.payload + ip.payload_len <= ip.end && ip.end <= frame.len());
            }
            // The other also reads a third tag, MACsec and authentication headers.
            let theirs = SlicedPacket::from_ethernet(&frame).ok();
            let theirs = theirs.filter(|theirs| {
                let tags = ours.tags.iter().flatten().count();
                theirs.link_exts.len() == tags && ours.ip().is_none_or(|ip| ip.protocol != 51)
            });
            if let Some(theirs) = theirs {
                compare(&frame, &ours, &theirs);
            }
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in many(any::<u8>(), 0..200), more in 0_usize..100) {
        if let Ok(Parsed { network: Network::Ip(ip), .. }) = parse(&bytes, bytes.len() + more) {
            prop_assert!(ip.payload + ip.payload_len <= bytes.len() + more);
        }
    }

    #[test]
    fn the_beginning_of_a_frame_gives_the_same_or_asks_for_more(
        plan in plans(many(any::<u8>(), 0..100)), cut in 0_usize..300
    ) {
        let frame = plan.frame();
        let whole = parse(&frame, frame.len());
        let head = &frame[..cut.min(frame.len())];
        let part = parse(head, frame.len());
        prop_assert!(part == whole || part == Err(ParseFault::HeadTooShort));
        prop_assert_eq!(parse(&frame[..frame.len().min(HEAD_MAX)], frame.len()), whole);
        // The rest of a buffer, behind the frame, is not part of it.
        prop_assert_ne!(parse(&frame, cut.min(frame.len())), Err(ParseFault::HeadTooShort));
    }
}

fn route(v6: bool) -> Route {
    let addresses = if v6 {
        let source = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
        Addresses::V6 { source, destination: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x15) }
    } else {
        let source = Ipv4Addr::new(10, 0, 2, 2);
        Addresses::V4 { source, destination: Ipv4Addr::new(10, 0, 2, 15) }
    };
    Route { destination: GUEST, source: HOST, addresses, hop_limit: 64, traffic_class: 0xb9 }
}

/// The three ways to a checksum must give one frame.
fn frames_built(
    payload: &[u8],
    build: impl Fn(&mut [u8], &Payload<'_>) -> Result<Built, BuildFault>,
) -> [Vec<u8>; 3] {
    let summed = Payload::Summed { len: payload.len(), sum: Sum::of(payload) };
    [Payload::Bytes(payload), summed, Payload::Later(payload.len())].map(|how| {
        let mut room = [0xcc; HEADERS_MAX];
        let built = build(&mut room, &how).unwrap();
        assert!(room[built.len..].iter().all(|byte| *byte == 0xcc));
        let mut frame = [&room[..built.len], payload].concat();
        if let Some(at) = built.request.csum {
            assert!(matches!(how, Payload::Later(_)));
            complete(&mut frame, at).unwrap();
        }
        for len in 0..built.len {
            assert_eq!(build(&mut room[..len], &how), Err(BuildFault::NoRoom));
        }
        frame
    })
}

proptest! {
    #[test]
    fn built_frames_read_back_with_right_checksums(
        v6: bool, transport in 0..3, source: u16, destination: u16, seq: u32, flags: u8,
        mss: Option<u16>, window_scale in option::of(0_u8..14), window: u16,
        payload in many(any::<u8>(), 0..300)
    ) {
        let route = route(v6);
        let ack = !seq;
        let flags = TcpFlags(flags);
        let tcp = TcpHeader { source, destination, seq, ack, flags, window, mss, window_scale };
        let [frame, summed, later] = frames_built(&payload, |room, payload| match transport {
            0 => route.tcp(room, &tcp, payload),
            1 => route.udp(room, &UdpHeader { source, destination }, payload),
            _ => route.icmp(
                room, &IcmpHeader::echo(if v6 { 128 } else { 8 }, source, destination), payload,
            ),
        });
        prop_assert_eq!(&frame, &summed);
        prop_assert_eq!(&frame, &later);
        assert_checksums(&frame);
        let parsed = parse(&frame, frame.len()).unwrap();
        compare(&frame, &parsed, &SlicedPacket::from_ethernet(&frame).unwrap());
        prop_assert_eq!((parsed.source, parsed.destination), (HOST, GUEST));
        let ip = parsed.ip().unwrap();
        prop_assert_eq!(ip.addresses, route.addresses);
        prop_assert_eq!((ip.hop_limit, ip.traffic_class), (64, 0xb9));
        prop_assert_eq!(&frame[ip.payload..], &payload);
        match ip.transport {
            Transport::Tcp(got) => {
                prop_assert_eq!((got.seq, got.ack, got.flags), (seq, ack, flags));
                prop_assert_eq!((got.mss, got.window_scale), (mss, window_scale));
                prop_assert_eq!((got.source, got.destination), (source, destination));
                prop_assert_eq!(got.window, window);
            }
            Transport::Udp(got) => {
                prop_assert_eq!((got.source, got.destination), (source, destination));
            }
            Transport::Icmp(got) => {
                prop_assert_eq!((got.id, got.seq), (source, destination));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The frame as a driver would post it to be cut, its checksum not yet complete.
fn to_be_cut(plan: &Plan, size: u16, ecn: bool) -> (Vec<u8>, CsumAt, GsoRequest) {
    let mut frame = plan.frame();
    let parsed = parse(&frame, frame.len()).unwrap();
    let ip = parsed.ip().unwrap();
    let (kind, offset) = match (ip.transport, plan.v6) {
        (Transport::Tcp(_), false) => (Gso::TcpV4, 16),
        (Transport::Tcp(_), true) => (Gso::TcpV6, 16),
        _ => (Gso::UdpL4, 6),
    };
    let at = ip.l4 + usize::from(offset);
    frame[at..at + 2].fill(0xab);
    let csum = CsumAt { start: u16::try_from(ip.l4).unwrap(), offset };
    (frame, csum, GsoRequest { kind, size, ecn })
}

fn cut(frame: &[u8], csum: CsumAt, gso: GsoRequest) -> Result<Vec<Vec<u8>>, SegmentFault> {
    let head = &frame[..frame.len().min(SEGMENT_HEADERS_MAX)];
    let mut segments = Segments::new(head, frame.len(), csum, gso)?;
    let mut out = Vec::new();
    let mut room = [0; SEGMENT_HEADERS_MAX];
    while let Some(segment) = segments.next_into(&mut room) {
        let payload = &frame[segment.payload..][..segment.payload_len];
        let mut open = [&room[..segment.header_len], payload].concat();
        segment.complete(&mut room, Sum::of(payload));
        let whole = [&room[..segment.header_len], payload].concat();
        // Leaving the checksum open and completing it later gives the same.
        assert_eq!(segment.request(), Request { csum: Some(csum), gso: None });
        complete(&mut open, csum).unwrap();
        assert_eq!(open, whole);
        out.push(whole);
        assert!(out.len() <= SEGMENTS_MAX);
    }
    assert!(segments.next_into(&mut room).is_none());
    Ok(out)
}

proptest! {
    #[test]
    fn segments_are_right_each_and_make_up_the_frame(
        plan in plans(many(any::<u8>(), 0..5000)), udp: bool, size in 1_u16..2000, ecn: bool
    ) {
        let plan = Plan { transport: usize::from(udp), ..plan };
        let size = size.max(u16::try_from(plan.payload.len() / SEGMENTS_MAX + 1).unwrap());
        let (frame, csum, gso) = to_be_cut(&plan, size, ecn);
        let original = *parse(&frame, frame.len()).unwrap().ip().unwrap();
        let segments = match cut(&frame, csum, gso) {
            Ok(segments) => segments,
            Err(fault) => {
                prop_assert_eq!(fault, SegmentFault::HeadersTooLong);
                prop_assert!(original.payload > SEGMENT_HEADERS_MAX);
                return Ok(());
            }
        };
        let count = plan.payload.len().div_ceil(usize::from(size)).max(1);
        prop_assert_eq!(segments.len(), count);
        let mut payload = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            assert_checksums(segment);
            let parsed = parse(segment, segment.len()).unwrap();
            compare(segment, &parsed, &SlicedPacket::from_ethernet(segment).unwrap());
            let ip = parsed.ip().unwrap();
            prop_assert_eq!(ip.end, segment.len());
            let is_last = index + 1 == count;
            prop_assert!(is_last || ip.payload_len == usize::from(size));
            let transports = (ip.transport, original.transport);
            if let (Transport::Tcp(tcp), Transport::Tcp(first)) = transports {
                prop_assert_eq!(tcp.seq, first.seq.wrapping_add(payload.len() as u32));
                let mut flags = first.flags;
                if !is_last {
                    flags = flags.difference(TcpFlags::FIN | TcpFlags::PSH);
                }
                if index != 0 {
                    flags = flags.difference(TcpFlags::CWR);
                }
                prop_assert_eq!(tcp.flags, flags);
                let same = |tcp: &vionet_frame::parse::Tcp| {
                    (tcp.ack, tcp.window, tcp.mss, tcp.window_scale, tcp.source, tcp.destination)
                };
                prop_assert_eq!(same(&tcp), same(&first));
            }
            if !plan.v6 {
                let id = u16::from_be_bytes([segment[parsed.l3 + 4], segment[parsed.l3 + 5]]);
                prop_assert_eq!(id, 0xfffe_u16.wrapping_add(index as u16));
            }
            payload.extend_from_slice(&segment[ip.payload..]);
        }
        prop_assert_eq!(payload, plan.payload);
    }

    #[test]
    fn cutting_any_bytes_ends_and_stays_within_the_frame(
        plan in plans(many(any::<u8>(), 0..100)), damage in many((0_usize..120, any::<u8>()), 0..3),
        size: u16, kind in 0_usize..5, start: Option<u16>, offset: Option<u16>,
        more in 0_usize..70_000
    ) {
        let plan = Plan { transport: plan.transport % 2, ..plan };
        let (mut frame, mut csum, mut gso) = to_be_cut(&plan, size, true);
        for (at, value) in damage {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        csum.start = start.unwrap_or(csum.start);
        csum.offset = offset.unwrap_or(csum.offset);
        gso.kind = [gso.kind, Gso::TcpV4, Gso::TcpV6, Gso::Udp, Gso::None][kind];
        let frame_len = frame.len() + more;
        if let Ok(mut segments) = Segments::new(&frame, frame_len, csum, gso) {
            let mut room = [0; SEGMENT_HEADERS_MAX];
            let mut count = 0;
            while let Some(segment) = segments.next_into(&mut room) {
                prop_assert!(segment.payload + segment.payload_len <= frame_len);
                segment.complete(&mut room, Sum::ZERO);
                count += 1;
            }
            prop_assert!((1..=SEGMENTS_MAX).contains(&count));
        }
    }
}

#[test]
fn frames_that_are_not_what_was_asked_for_are_not_cut() {
    let plan = Plan {
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
        payload: vec![7; 3000],
        padding: 0,
    };
    let (frame, csum, gso) = to_be_cut(&plan, 1000, false);
    assert_eq!(cut(&frame, csum, gso).unwrap().len(), 3);
    let other = |kind| cut(&frame, csum, GsoRequest { kind, ..gso }).unwrap_err();
    for kind in [Gso::None, Gso::TcpV6, Gso::Udp, Gso::UdpL4] {
        assert_eq!(other(kind), SegmentFault::OtherKind);
    }
    for csum in [CsumAt { start: 33, ..csum }, CsumAt { offset: 6, ..csum }] {
        assert_eq!(cut(&frame, csum, gso), Err(SegmentFault::ChecksumElsewhere));
    }
    let sized = |size| cut(&frame, csum, GsoRequest { size, ..gso }).map(|segments| segments.len());
    assert_eq!(sized(0), Err(SegmentFault::TooManySegments));
    assert_eq!(sized(1), Err(SegmentFault::TooManySegments));
    assert_eq!(sized(2), Ok(1500));

    let mut fragment = frame.clone();
    fragment[20] |= 0x20;
    assert_eq!(cut(&fragment, csum, gso), Err(SegmentFault::NotWhole));
    let unreadable = cut(&frame[..1000], csum, gso);
    assert_eq!(unreadable, Err(SegmentFault::Unreadable(ParseFault::Truncated)));
    assert_eq!(
        Segments::new(&frame[..50], frame.len(), csum, gso).map(|_| ()),
        Err(SegmentFault::Unreadable(ParseFault::HeadTooShort))
    );
}
