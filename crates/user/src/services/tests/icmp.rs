//! Echo and errors as the guest sees them.

use super::*;

#[test]
fn our_addresses_answer_echo_with_the_same_payload() {
    let mut net = Net::new(&named());
    for ours in [GATEWAY, DNS] {
        let reply = net.ask(&ping_v4(ours, b"payload"));
        assert_eq!(reply[26..34], [ours, GUEST].concat());
        assert_eq!(reply[34..36], [0, 0]);
        assert_eq!(reply[38..], *b"\0\x07\0\x09payload");
    }
    for ours in ["fd76:696f:6e65:7400::2", "fd76:696f:6e65:7400::3", "fe80::2"] {
        let reply = net.ask(&ping_v6(v6(ours), b"payload"));
        assert_eq!(reply[22..54], [v6(ours), guest_v6()].concat());
        assert_eq!(reply[54..56], [129, 0]);
        assert_eq!(reply[58..], *b"\0\x07\0\x09payload");
    }
    assert_eq!(net.send(&ping_v4(WORLD, b"")), Handled::NotForUs);
    assert_eq!(net.send(&ping_v6(v6("2001:db8::1"), b"")), Handled::NotForUs);
}

#[test]
fn the_largest_ping_there_is_comes_back() {
    let mut net = Net::new(&named());
    let payload = vec![0xa5; 65_535 - 28];
    assert_eq!(net.ask(&ping_v4(GATEWAY, &payload))[42..], payload);
    let payload = vec![0xa5; 65_535 - 8];
    assert_eq!(net.ask(&ping_v6(v6("fe80::2"), &payload))[62..], payload);
}

#[test]
fn an_echo_that_cannot_be_answered_to_one_is_dropped() {
    let mut net = Net::new(&named());
    let ping = ping_v4(GATEWAY, b"payload");
    let mut from_group = ping.clone();
    from_group[6] |= 1;
    let mut from_multicast = ping.clone();
    from_multicast[26] = 224;
    let mut with_code = ping;
    with_code[35] = 1;
    for frame in [from_group, from_multicast, with_code] {
        assert_eq!(net.send(&frame), Handled::Dropped(DropReason::Malformed));
    }
}

#[test]
fn a_fragment_of_a_ping_is_dropped() {
    let mut frame = ping_v4(GATEWAY, b"payload");
    frame[20] = 0x20;
    let handled = Net::new(&named()).send(&frame);
    assert_eq!(handled, Handled::Dropped(DropReason::Fragment));
}

/// The error that `frame` gets: source, type and code, rest of the header, quote.
fn refused(frame: &[u8], error: IcmpError) -> (IpAddr, [u8; 2], [u8; 4], Vec<u8>) {
    let mut net = Net::new(&named());
    let parsed = parse(frame, frame.len()).unwrap();
    assert_eq!(net.services.refuse(frame, &parsed, error, &mut net.out), Handled::Answered);
    let reply = net.fetch();
    assert_eq!(reply[..6], GUEST_MAC);
    let packet = parse(&reply, reply.len()).unwrap();
    let ip = packet.ip().unwrap();
    assert_eq!(ip.addresses.destination(), parsed.ip().unwrap().addresses.source());
    let icmp = &reply[ip.l4..];
    let rest = icmp[4..8].try_into().unwrap();
    (ip.addresses.source(), [icmp[0], icmp[1]], rest, icmp[8..].to_vec())
}

#[test]
fn each_error_has_its_numbers_in_both_families() {
    let peer = v6("2001:db8::1");
    let v4_frame = udp_v4(OUR_MAC, [GUEST, WORLD], [1000, 53], b"hello");
    let v6_frame = udp_v6(OUR_MAC, [guest_v6(), peer], [1000, 53], b"hello");
    let gateway_v4 = IpAddr::from(GATEWAY);
    let gateway_v6 = IpAddr::from(v6("fd76:696f:6e65:7400::2"));
    let mtu = [0, 0, 0x05, 0xdc];
    for (error, v4, v6, rest) in [
        (IcmpError::Prohibited, [3, 13], [1, 1], [0; 4]),
        (IcmpError::HostUnreachable, [3, 1], [1, 3], [0; 4]),
        (IcmpError::TooBig { mtu: 1500 }, [3, 4], [2, 0], mtu),
        (IcmpError::TimeExceeded, [11, 0], [3, 0], [0; 4]),
    ] {
        assert_eq!(refused(&v4_frame, error), (gateway_v4, v4, rest, v4_frame[14..].to_vec()));
        assert_eq!(refused(&v6_frame, error), (gateway_v6, v6, rest, v6_frame[14..].to_vec()));
    }
    let port = IcmpError::PortUnreachable;
    assert_eq!(refused(&v4_frame, port), (WORLD.into(), [3, 3], [0; 4], v4_frame[14..].into()));
    assert_eq!(refused(&v6_frame, port), (peer.into(), [1, 4], [0; 4], v6_frame[14..].into()));
}

#[test]
fn an_error_stays_within_the_smallest_mtu_and_takes_part_of_a_frame() {
    let frame = udp_v4(OUR_MAC, [GUEST, WORLD], [1000, 53], &[7; 1400]);
    assert_eq!(refused(&frame, IcmpError::Prohibited).3.len(), 576 - 28);
    let frame = udp_v6(OUR_MAC, [guest_v6(), v6("2001:db8::1")], [1000, 53], &[7; 1400]);
    assert_eq!(refused(&frame, IcmpError::Prohibited).3.len(), 1280 - 48);
    let mut net = Net::new(&named());
    let parsed = parse(&frame[..128], frame.len()).unwrap();
    net.services.refuse(&frame[..128], &parsed, IcmpError::Prohibited, &mut net.out);
    assert_eq!(net.fetch().len(), 14 + 48 + 128 - 14);
}

#[test]
fn no_error_is_sent_about_an_error_or_a_group() {
    let icmp = |kind: Icmpv4Type| {
        let builder = PacketBuilder::ethernet2(GUEST_MAC, OUR_MAC).ipv4(GUEST, WORLD, 64);
        let mut frame = Vec::new();
        builder.icmpv4(kind).write(&mut frame, &[0; 28]).unwrap();
        frame
    };
    let icmp6 = |kind: Icmpv6Type| {
        let to = v6("2001:db8::1");
        let builder = PacketBuilder::ethernet2(GUEST_MAC, OUR_MAC).ipv6(guest_v6(), to, 64);
        let mut frame = Vec::new();
        builder.icmpv6(kind).write(&mut frame, &[0; 48]).unwrap();
        frame
    };
    let port_v4 =
        Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    let port_v6 = Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
    let mut net = Net::new(&named());
    for frame in [
        icmp(port_v4),
        icmp6(port_v6),
        udp_v4(BROADCAST, [GUEST, WORLD], [1, 2], b""),
        udp_v4(OUR_MAC, [GUEST, [224, 0, 0, 1]], [1, 2], b""),
        udp_v4(OUR_MAC, [GUEST, [255; 4]], [1, 2], b""),
        udp_v4(OUR_MAC, [[0; 4], WORLD], [1, 2], b""),
        udp_v4(OUR_MAC, [[224, 0, 0, 1], WORLD], [1, 2], b""),
        udp_v6(OUR_MAC, [guest_v6(), v6("ff02::fb")], [1, 2], b""),
        udp_v6(OUR_MAC, [[0; 16], v6("2001:db8::1")], [1, 2], b""),
        arp_request(GUEST, GATEWAY),
    ] {
        let parsed = parse(&frame, frame.len()).unwrap();
        let handled = net.services.refuse(&frame, &parsed, IcmpError::Prohibited, &mut net.out);
        assert_eq!(handled, Handled::Dropped(DropReason::NoErrorAllowed));
    }
    assert!(net.out.is_empty());
}

#[test]
fn an_error_about_a_datagram_that_is_gone_quotes_its_headers() {
    let mut net = Net::new(&named());
    let guest = SocketAddr::from((GUEST, 1000));
    let peer = SocketAddr::from((WORLD, 53));
    let mut tell = |guest, peer, reporter, error| {
        let handled = net.services.refuse_udp(guest, peer, reporter, error, &mut net.out);
        (handled, net.out.first().is_some().then(|| net.fetch()))
    };
    let unknown = Handled::Dropped(DropReason::UnknownGuest);
    assert_eq!(tell(guest, peer, None, IcmpError::PortUnreachable), (unknown, None));
    let mut net = Net::new(&named());
    net.send(&arp_request(GUEST, GATEWAY));
    net.out.clear();
    let mut tell = |guest, peer, reporter, error| {
        let handled = net.services.refuse_udp(guest, peer, reporter, error, &mut net.out);
        assert_eq!(handled, Handled::Answered);
        net.fetch()
    };
    let reply = tell(guest, peer, None, IcmpError::PortUnreachable);
    assert_eq!(reply[26..34], [WORLD, GUEST].concat());
    let quote = parse_quote(&reply[42..]);
    assert_eq!(quote, (guest, peer));
    let hop = Some([1, 2, 3, 4].into());
    assert_eq!(tell(guest, peer, hop, IcmpError::TimeExceeded)[26..30], [1, 2, 3, 4]);
    let guest = SocketAddr::from((guest_v6(), 1000));
    let peer = SocketAddr::from((v6("2001:db8::1"), 53));
    let reply = tell(guest, peer, None, IcmpError::HostUnreachable);
    assert_eq!(parse_quote(&reply[62..]), (guest, peer));
}

/// Who sent the quoted datagram, and to whom.
fn parse_quote(quote: &[u8]) -> (SocketAddr, SocketAddr) {
    let ether_type = if quote[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let frame = [&[0; 12][..], &ether_type, quote].concat();
    let parsed = parse(&frame, frame.len()).unwrap();
    let ip = parsed.ip().unwrap();
    let Transport::Udp(udp) = ip.transport else { panic!("no udp") };
    (
        SocketAddr::new(ip.addresses.source(), udp.source),
        SocketAddr::new(ip.addresses.destination(), udp.destination),
    )
}
