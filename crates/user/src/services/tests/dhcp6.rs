//! DHCP for IPv6 as the guest sees it; replies are read by dhcproto.

use super::*;

const OUR_ID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 0x0a, 0, 2, 2];
const CLIENT: &[u8] = &[0, 4, 1, 2, 3, 4, 5, 6, 7, 8];
const WANTS: &[u8] = &[0xaa, 0xbb, 0xcc, 0xdd, 0, 0, 0, 0, 0, 0, 0, 0];
const ALL: &str = "ff02::1:2";

fn frame(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![kind, 0xab, 0xcd, 0xef];
    for (code, data) in options {
        message.extend(code.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(*data);
    }
    let mac = [0x33, 0x33, 0, 1, 0, 2];
    udp_v6(mac, [guest_link_local(), v6(ALL)], [546, 547], &message)
}

fn read(reply: &[u8]) -> v6::Message {
    assert_eq!(reply[..6], GUEST_MAC);
    assert_eq!(reply[22..54], [v6("fe80::2"), guest_link_local()].concat());
    assert_eq!(reply[54..58], [2, 35, 2, 34]);
    let message = v6::Message::decode(&mut Decoder::new(&reply[62..])).unwrap();
    assert_eq!(message.xid(), [0xab, 0xcd, 0xef]);
    message
}

fn leased(message: &v6::Message) -> Option<(u32, Ipv6Addr)> {
    let Some(Option6::IANA(association)) = message.opts().get(OptionCode::IANA) else {
        return None;
    };
    match association.opts.get(OptionCode::IAAddr) {
        Some(Option6::IAAddr(addr)) => Some((association.id, addr.addr)),
        _ => None,
    }
}

#[test]
fn an_information_request_gets_this_very_reply() {
    let reply = Net::new(&named()).ask(&frame(11, &[(1, CLIENT), (6, &[0, 23, 0, 24])]));
    let wanted = [
        &[7, 0xab, 0xcd, 0xef][..],
        &[0, 2, 0, 10],
        &OUR_ID,
        &[0, 1, 0, 10],
        CLIENT,
        &[0, 23, 0, 16],
        &v6("fd76:696f:6e65:7400::3"),
        &[0, 24, 0, 18],
        b"\x07example\x03org\0\x03lab\0",
    ]
    .concat();
    assert_eq!(reply[62..], wanted);
    read(&reply);
}

#[test]
fn a_solicitation_is_advertised_to_or_granted_at_once() {
    let mut net = Net::new(&named());
    let advertised = read(&net.ask(&frame(1, &[(1, CLIENT), (3, WANTS)])));
    assert_eq!(advertised.msg_type(), v6::MessageType::Advertise);
    let lease = Some((0xaabb_ccdd, guest_v6().into()));
    assert_eq!(leased(&advertised), lease);
    let granted = read(&net.ask(&frame(1, &[(1, CLIENT), (3, WANTS), (14, &[])])));
    assert_eq!(granted.msg_type(), v6::MessageType::Reply);
    assert!(granted.opts().get(OptionCode::RapidCommit).is_some());
    assert_eq!(leased(&granted), lease);
    let nothing = read(&net.ask(&frame(1, &[(1, CLIENT)])));
    assert!(matches!(nothing.opts().get(OptionCode::StatusCode),
        Some(Option6::StatusCode(code)) if code.status == v6::Status::NoAddrsAvail));
}

#[test]
fn request_renew_and_rebind_keep_the_address() {
    let mut net = Net::new(&named());
    let lease = Some((0xaabb_ccdd, guest_v6().into()));
    for kind in [3, 5] {
        let asked = frame(kind, &[(1, CLIENT), (2, &OUR_ID), (3, WANTS)]);
        assert_eq!(leased(&read(&net.ask(&asked))), lease);
    }
    assert_eq!(leased(&read(&net.ask(&frame(6, &[(1, CLIENT), (3, WANTS)])))), lease);
    for (kind, options) in [
        (4, &[(1, CLIENT)][..]),
        (8, &[(1, CLIENT), (2, &OUR_ID)]),
        (9, &[(1, CLIENT), (2, &OUR_ID)]),
    ] {
        let message = read(&net.ask(&frame(kind, options)));
        assert!(matches!(message.opts().get(OptionCode::StatusCode),
            Some(Option6::StatusCode(code)) if code.status == v6::Status::Success));
        assert!(message.opts().get(OptionCode::DomainNameServers).is_none());
    }
}

#[test]
fn messages_that_break_rfc_8415_get_no_reply() {
    let mut net = Net::new(&named());
    let other = [0, 3, 0, 1, 1, 1, 1, 1, 1, 1];
    let unsupported = Handled::Dropped(DropReason::Unsupported);
    let malformed = Handled::Dropped(DropReason::Malformed);
    for (kind, options, handled) in [
        (1, &[][..], unsupported),
        (1, &[(1, CLIENT), (2, &OUR_ID)], unsupported),
        (3, &[(1, CLIENT)], unsupported),
        (3, &[(1, CLIENT), (2, &other)], Handled::Absorbed),
        (6, &[(1, CLIENT), (2, &OUR_ID)], unsupported),
        (7, &[(1, CLIENT)], unsupported),
        (12, &[(1, CLIENT)], unsupported),
        (1, &[(1, &[])], malformed),
        (1, &[(1, &[1; 131])], malformed),
        (1, &[(1, CLIENT), (3, &[1, 2, 3])], malformed),
    ] {
        assert_eq!(net.send(&frame(kind, options)), handled, "{kind} {options:?}");
    }
    let to = [guest_link_local(), v6(ALL)];
    let with_tail = udp_v6(OUR_MAC, to, [546, 547], &[11, 1, 2, 3, 0, 14, 0, 0, 9]);
    assert_eq!(net.send(&with_tail), malformed);
    let from_nowhere = udp_v6(OUR_MAC, [[0; 16], to[1]], [546, 547], &[11, 1, 2, 3]);
    assert_eq!(net.send(&from_nowhere), malformed);
    let mut long = frame(11, &[(1, CLIENT)]);
    long[69] = 11;
    assert_eq!(net.send(&long), malformed);
}

#[test]
fn the_largest_legal_message_still_fits() {
    let config = UserConfig { search: vec!["a".repeat(63); 3], ..named() };
    let id = [7; 130];
    let message = read(&Net::new(&config).ask(&frame(1, &[(1, &id), (3, WANTS), (14, &[])])));
    assert!(message.opts().get(OptionCode::DomainSearchList).is_some());
}
