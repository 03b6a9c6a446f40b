//! DHCP for IPv4 as the guest sees it.

use super::*;

const XID: [u8; 4] = [0xca, 0xfe, 0xba, 0xbe];

/// A message of the guest's client with these options (code, data).
fn message(client_ip: [u8; 4], flags: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = [&[1, 1, 6, 0], &XID[..], &[0, 3, flags, 0], &client_ip].concat();
    message.extend([0; 12]);
    message.extend(GUEST_MAC);
    message.extend([0; 202]);
    message.extend([0x63, 0x82, 0x53, 0x63]);
    for (code, data) in options {
        message.extend([*code, data.len() as u8]);
        message.extend(*data);
    }
    message.push(255);
    message
}

fn broadcast(message: &[u8]) -> Vec<u8> {
    udp_v4(BROADCAST, [[0; 4], [255; 4]], [68, 67], message)
}

const DISCOVER: &[u8] = &[1];
const REQUEST: &[u8] = &[3];

/// The client asks for `wanted` from `server`.
fn request(wanted: Option<&[u8]>, server: Option<&[u8]>) -> Vec<u8> {
    let mut options = vec![(53, REQUEST)];
    options.extend(wanted.map(|wanted| (50, wanted)));
    options.extend(server.map(|server| (54, server)));
    broadcast(&message([0; 4], 0, &options))
}

fn with_repr<R>(frame: &[u8], look: impl FnOnce(&DhcpRepr<'_>) -> R) -> R {
    let packet = DhcpPacket::new_checked(&frame[42..]).unwrap();
    look(&DhcpRepr::parse(&packet).unwrap())
}

#[test]
fn discover_gets_this_very_offer() {
    let reply = Net::new(&named()).ask(&broadcast(&message([0; 4], 0, &[(53, DISCOVER)])));
    assert_eq!(reply[..6], GUEST_MAC);
    assert_eq!(reply[26..34], [GATEWAY, GUEST].concat());
    assert_eq!(reply[34..38], [0, 67, 0, 68]);
    let message = &reply[42..];
    assert_eq!(message[..12], [2, 1, 6, 0, 0xca, 0xfe, 0xba, 0xbe, 0, 3, 0, 0]);
    assert_eq!(message[12..28], [[0; 4], GUEST, [0; 4], [0; 4]].concat());
    assert_eq!(message[28..34], GUEST_MAC);
    assert_eq!(message[34..236], [0; 202]);
    let options = [
        &[0x63, 0x82, 0x53, 0x63][..],
        &[53, 1, 2],
        &[54, 4, 10, 0, 2, 2],
        &[3, 4, 10, 0, 2, 2],
        &[1, 4, 255, 255, 255, 0],
        &[51, 4, 0, 1, 0x51, 0x80],
        &[6, 4, 10, 0, 2, 3],
        &[26, 2, 5, 0xdc],
        &[28, 4, 10, 0, 2, 255],
        &[15, 11],
        b"example.org",
        &[12, 3],
        b"vm0",
        &[119, 18],
        b"\x07example\x03org\0\x03lab\0",
        &[255],
    ]
    .concat();
    assert_eq!(message[236..236 + options.len()], options);
    assert!(message[236 + options.len()..].iter().all(|byte| *byte == 0));
    assert!(message.len() >= 300);
}

#[test]
fn a_short_reply_is_padded_to_what_bootp_wants() {
    let config = UserConfig { dns: false, ..UserConfig::default() };
    let reply = Net::new(&config).ask(&broadcast(&message([0; 4], 0, &[(53, DISCOVER)])));
    assert_eq!(reply.len(), 42 + 300);
    with_repr(&reply, |repr| assert_eq!(repr.dns_servers, None));
}

#[test]
fn a_client_that_asks_for_broadcast_gets_it() {
    let reply = Net::new(&named()).ask(&broadcast(&message([0; 4], 0x80, &[(53, DISCOVER)])));
    assert_eq!(reply[..6], BROADCAST);
    assert_eq!(reply[30..34], [255; 4]);
    with_repr(&reply, |repr| assert!(repr.broadcast));
}

#[test]
fn a_request_is_acknowledged_refused_or_left_to_others() {
    let mut net = Net::new(&named());
    let kind = |reply: &[u8]| with_repr(reply, |repr| repr.message_type);
    let (ours, other) = (Some(&GUEST[..]), Some(&[10, 0, 2, 99][..]));
    let (us, them) = (Some(&GATEWAY[..]), Some(&[10, 0, 2, 9][..]));
    assert_eq!(kind(&net.ask(&request(ours, us))), DhcpMessageType::Ack);
    assert_eq!(kind(&net.ask(&request(ours, None))), DhcpMessageType::Ack);
    for wrong in [request(other, us), request(other, None)] {
        let reply = net.ask(&wrong);
        assert_eq!(kind(&reply), DhcpMessageType::Nak);
        assert_eq!((&reply[..6], &reply[30..34]), (&BROADCAST[..], &[255; 4][..]));
        with_repr(&reply, |repr| {
            assert_eq!(
                (repr.your_ip, repr.lease_duration, repr.router),
                (Ipv4Addr::UNSPECIFIED, None, None,)
            );
        });
    }
    assert_eq!(net.send(&request(ours, them)), Handled::Absorbed);
    assert_eq!(net.send(&request(None, us)), Handled::Dropped(DropReason::Malformed));
}

#[test]
fn renewal_and_inform_are_answered_to_the_client_s_address() {
    let mut net = Net::new(&named());
    let unicast = |message: &[u8]| udp_v4(OUR_MAC, [GUEST, GATEWAY], [68, 67], message);
    let reply = net.ask(&unicast(&message(GUEST, 0, &[(53, REQUEST)])));
    assert_eq!((&reply[..6], &reply[30..34]), (&GUEST_MAC[..], &GUEST[..]));
    with_repr(&reply, |repr| {
        assert_eq!(repr.message_type, DhcpMessageType::Ack);
        assert_eq!(repr.your_ip, Ipv4Addr::from(GUEST));
        assert_eq!(repr.lease_duration, Some(86_400));
    });
    let reply = net.ask(&unicast(&message([10, 0, 2, 50], 0, &[(53, &[8])])));
    assert_eq!(reply[30..34], [10, 0, 2, 50]);
    with_repr(&reply, |repr| {
        assert_eq!(repr.message_type, DhcpMessageType::Ack);
        assert_eq!((repr.your_ip, repr.lease_duration), (Ipv4Addr::UNSPECIFIED, None));
        assert_eq!(repr.router, Some(Ipv4Addr::from(GATEWAY)));
    });
    for silent in [4, 7] {
        let frame = unicast(&message(GUEST, 0, &[(53, &[silent])]));
        assert_eq!(net.send(&frame), Handled::Absorbed);
    }
}

#[test]
fn any_client_identifier_comes_back() {
    let mut net = Net::new(&named());
    for id in [&b"\xffabcdefgh"[..], &[1, 2, 3, 4, 5, 6, 7], &[0, b'x', b'y', 1, 1, 1, 1]] {
        let reply = net.ask(&broadcast(&message([0; 4], 0, &[(53, DISCOVER), (61, id)])));
        let option = [&[61, id.len() as u8], id].concat();
        assert!(reply.windows(option.len()).any(|bytes| bytes == option));
    }
}

#[test]
fn options_that_do_not_fit_are_left_out_unless_the_client_takes_more() {
    let search = vec!["x".repeat(60) + "." + &"y".repeat(60); 1];
    let hostname = Some("h".repeat(60));
    let config = UserConfig { search, hostname, ..UserConfig::default() };
    let id = [9; 60];
    let options: &[(u8, &[u8])] = &[(53, DISCOVER), (61, &id)];
    let has = |reply: &[u8], code: u8| {
        let packet = DhcpPacket::new_checked(&reply[42..]).unwrap();
        packet.options().any(|option| option.kind == code)
    };
    let small = Net::new(&config).ask(&broadcast(&message([0; 4], 0, options)));
    assert!(small.len() - 14 <= 576);
    assert!(has(&small, 26) && has(&small, 61) && !has(&small, 119));
    let options = [options, &[(57, &[5, 0xdc])]].concat();
    let large = Net::new(&config).ask(&broadcast(&message([0; 4], 0, &options)));
    assert!(has(&large, 119) && has(&large, 12) && has(&large, 15));
}

#[test]
fn what_is_no_client_s_message_is_dropped() {
    let mut net = Net::new(&named());
    let good = message([0; 4], 0, &[(53, DISCOVER)]);
    let mut edit = |at: usize, byte: u8, handled| {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(net.send(&broadcast(&bad)), handled, "{at}");
    };
    let malformed = Handled::Dropped(DropReason::Malformed);
    edit(0, 2, malformed);
    edit(1, 6, malformed);
    edit(2, 16, malformed);
    edit(24, 10, malformed);
    edit(28, 1, malformed);
    edit(236, 0, malformed);
    edit(242, 2, Handled::Dropped(DropReason::Unsupported));
    edit(242, 99, Handled::Dropped(DropReason::Unsupported));
    assert_eq!(net.send(&broadcast(&good[..239])), malformed);
    let elsewhere = udp_v4(OUR_MAC, [GUEST, WORLD], [68, 67], &good);
    assert_eq!(net.send(&elsewhere), Handled::NotForUs);
    let mut off = Net::new(&UserConfig { dhcp: false, ..named() });
    assert_eq!(off.send(&broadcast(&good)), Handled::NotForUs);
}
