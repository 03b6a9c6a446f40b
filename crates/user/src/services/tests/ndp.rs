//! Neighbour discovery as the guest sees it.

use super::*;

const SOURCE_MAC: [u8; 8] = [1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];

#[test]
fn a_solicitation_for_our_address_gets_this_very_advertisement() {
    let gateway = v6("fd76:696f:6e65:7400::2");
    let reply = Net::new(&named()).ask(&solicit(gateway, guest_link_local(), &SOURCE_MAC));
    let head = [&GUEST_MAC[..], &OUR_MAC, &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]].concat();
    assert_eq!(reply[..22], head);
    assert_eq!(reply[22..38], gateway);
    assert_eq!(reply[38..54], guest_link_local());
    assert_eq!(reply[54..56], [136, 0]);
    // Router, solicited, override; target; target's MAC.
    assert_eq!(reply[58..62], [0xe0, 0, 0, 0]);
    assert_eq!(reply[62..78], gateway);
    assert_eq!(reply[78..], [&[2, 1], &OUR_MAC[..]].concat());
}

#[test]
fn a_probe_for_our_address_is_answered_to_all() {
    let dns = v6("fd76:696f:6e65:7400::3");
    let reply = Net::new(&named()).ask(&solicit(dns, [0; 16], &[]));
    assert_eq!(reply[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(reply[38..54], v6("ff02::1"));
    assert_eq!(reply[58], 0xa0, "router, not solicited, override");
}

#[test]
fn a_probe_for_the_guest_s_own_address_meets_silence_and_is_remembered() {
    let mut net = Net::new(&named());
    let own = v6("fd76:696f:6e65:7400:5054:ff:fe12:3456");
    assert_eq!(net.send(&solicit(own, [0; 16], &[])), Handled::Absorbed);
    assert_eq!(net.services.guest_v6(), Some(own.into()));
    assert_eq!(net.send(&solicit(guest_link_local(), [0; 16], &[])), Handled::Absorbed);
    assert_eq!(net.services.guest_v6(), Some(own.into()), "link-local is not for the world");
}

#[test]
fn messages_that_break_rfc_4861_are_dropped() {
    let mut net = Net::new(&named());
    let gateway = v6("fd76:696f:6e65:7400::2");
    let from = guest_link_local();
    let to = solicited(gateway);
    let message = |hop_limit, body: &[u8]| ndp_frame([from, to], hop_limit, 135, [0; 4], body);
    let mut with_code = message(255, &gateway);
    with_code[55] = 1;
    for (frame, why) in [
        (message(254, &gateway), "from beyond the link"),
        (message(255, &gateway[..15]), "too short"),
        (message(255, &[&gateway[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat()), "empty option"),
        (message(255, &[&gateway[..], &[1, 2, 0, 0, 0, 0, 0, 0]].concat()), "long option"),
        (message(255, &v6("ff02::1")), "multicast target"),
        (with_code, "code"),
        (solicit(gateway, [0; 16], &SOURCE_MAC), "a probe with its address"),
        (ndp_frame([[0; 16], gateway], 255, 135, [0; 4], &gateway), "a probe by unicast"),
        (ndp_frame([to, to], 255, 135, [0; 4], &gateway), "from a group"),
        (ndp_frame([[0; 16], v6("ff02::2")], 255, 133, [0; 4], &SOURCE_MAC), "RS"),
    ] {
        assert_eq!(net.send(&frame), Handled::Dropped(DropReason::Malformed), "{why}");
    }
    let advert = ndp_frame([from, v6("ff02::1")], 255, 134, [0; 4], &[0; 8]);
    assert_eq!(net.send(&advert), Handled::Dropped(DropReason::Unsupported));
}

/// Everything from the RA's hop limit on, for the configuration `named`.
fn advert_body() -> Vec<u8> {
    let prefix = v6("fd76:696f:6e65:7400::");
    let dns = v6("fd76:696f:6e65:7400::3");
    [
        // Hop limit 64, O flag, 9000 s; reachable and retransmission times unsaid.
        &[64, 0x40, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0][..],
        &[1, 1],
        &OUR_MAC,
        // MTU 1500.
        &[5, 1, 0, 0, 0, 0, 0x05, 0xdc],
        // Prefix /64, on-link and autonomous, 30 days valid, 7 days preferred.
        &[3, 4, 64, 0xc0, 0, 0x27, 0x8d, 0, 0, 0x09, 0x3a, 0x80, 0, 0, 0, 0],
        &prefix,
        &[25, 3, 0, 0, 0, 0, 0x23, 0x28],
        &dns,
        &[31, 4, 0, 0, 0, 0, 0x23, 0x28],
        b"\x07example\x03org\0\x03lab\0",
        &[0; 6],
    ]
    .concat()
}

#[test]
fn a_router_solicitation_gets_this_very_advertisement() {
    let mut net = Net::new(&named());
    let rs = |from, option: &[u8]| ndp_frame([from, v6("ff02::2")], 255, 133, [0; 4], option);
    let reply = net.ask(&rs(guest_link_local(), &SOURCE_MAC));
    assert_eq!(reply[..6], GUEST_MAC);
    assert_eq!(reply[21], 255);
    assert_eq!(reply[22..38], v6("fe80::2"));
    assert_eq!(reply[38..54], guest_link_local());
    assert_eq!(reply[54..56], [134, 0]);
    assert_eq!(reply[58..], advert_body());

    let reply = net.ask(&rs([0; 16], &[]));
    assert_eq!(reply[..6], [0x33, 0x33, 0, 0, 0, 1]);
    assert_eq!(reply[38..54], v6("ff02::1"));

    assert_eq!(net.services.advertise(&mut net.out), Handled::Answered);
    assert_eq!(net.fetch(), reply);
}

#[test]
fn the_advertisement_says_only_what_is_served() {
    let config = UserConfig { dhcp: false, dns: false, ..UserConfig::default() };
    let mut net = Net::new(&config);
    assert_eq!(net.services.advertise(&mut net.out), Handled::Answered);
    let advert = net.fetch();
    assert_eq!(advert[59], 0, "no O flag without DHCP");
    assert_eq!(advert.len(), 58 + 12 + 8 + 8 + 32);
    let mut net = Net::new(&UserConfig { ra: false, ..named() });
    assert_eq!(net.services.advertise(&mut net.out), Handled::NotForUs);
    let rs = ndp_frame([guest_link_local(), v6("ff02::2")], 255, 133, [0; 4], &[]);
    assert_eq!(net.send(&rs), Handled::Absorbed);
}
