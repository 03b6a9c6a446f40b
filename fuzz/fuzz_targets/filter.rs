//! A filter, a guard and a frame: nothing stops, and what passes is what the rules say.
//!
//! ```text
//!   | rules | modes | n | n bytes: data of MAC_TABLE_SET | frame ... |
//! ```
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use vionet_frame::filter::{Filter, MacTable, RxMode, decode_address, decode_switch, decode_vlan};
use vionet_frame::guard::{Guard, Refusal, Rule, Untagged, link_local};
use vionet_frame::parse::{Mac, Network, Transport, parse};
use vionet_frame::vlan::{VlanId, VlanSet};

const OWN: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const ME: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const ME6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5);
const BOUND: u8 = 1 << 5;
const OTHERS: u8 = 1 << 6;
const VLANS: u8 = 1 << 7;
const BY_ADDRESS: u8 = 1 << 6;
const BY_VLAN: u8 = 1 << 7;

fn vlans() -> VlanSet {
    [10, 100].into_iter().filter_map(VlanId::new).collect()
}

fn guard_of(rules: u8) -> Guard {
    let mut guard = Guard::new(OWN);
    for (bit, rule) in Rule::ALL.into_iter().enumerate() {
        if rules & 1 << bit != 0 {
            guard = guard.with(rule);
        }
    }
    if rules & BOUND != 0 {
        guard = guard.allow_v4(ME, 32).and_then(|guard| guard.allow_v6(ME6, 128)).expect("fits");
    }
    if rules & OTHERS != 0 {
        guard = guard.allow_others();
    }
    if rules & VLANS != 0 {
        guard = guard.with_vlans(vlans(), Untagged::Allowed);
    }
    guard
}

/// What passes, as the frame parser reads it.
fn hold(rules: u8, guard: &Guard, frame: &[u8]) {
    let Ok(parsed) = parse(frame, frame.len()) else { return };
    let has = |rule| guard.has(rule);
    assert!(!has(Rule::Mac) || parsed.source == OWN);
    let owns = |addr: IpAddr| {
        rules & BOUND == 0 || [ME.into(), ME6.into(), link_local(OWN).into()].contains(&addr)
    };
    match &parsed.network {
        Network::Arp(message) if has(Rule::Arp) => {
            assert_eq!(message.sender_mac, OWN);
            let is_probe = message.sender_ip.is_unspecified();
            let addr = if is_probe { message.target_ip } else { message.sender_ip };
            assert!(owns(addr.into()));
        }
        Network::Ip(ip) => {
            let source = ip.addresses.source();
            assert!(owns(source) || source.is_unspecified());
            match ip.transport {
                Transport::Udp(udp) if has(Rule::DhcpServer) => {
                    assert_ne!(udp.source, if source.is_ipv4() { 67 } else { 547 });
                }
                Transport::Icmp(icmp) if source.is_ipv6() => {
                    assert!(!has(Rule::Router) || ![134, 137].contains(&icmp.kind));
                    if has(Rule::Neighbor) && icmp.kind == 136 {
                        let target = frame[ip.l4 + 8..].first_chunk::<16>().expect("judged");
                        assert!(owns(Ipv6Addr::from(*target).into()));
                    }
                }
                _ => {}
            }
        }
        _ => {}
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [rules, modes, count, rest @ ..] = bytes else { return };
    let (data, frame) = rest.split_at(rest.len().min(usize::from(*count)));

    let guard = guard_of(*rules);
    let head = &frame[..frame.len().min(guard.head_len())];
    let judged = guard.transmit(head, frame.len());
    if judged.is_ok() {
        hold(*rules, &guard, frame);
    }
    if judged != Err(Refusal::Hidden) {
        assert_eq!(guard.transmit(frame, frame.len()), judged, "more bytes change nothing");
    }
    assert_eq!(guard.receive(frame), guard.receive(head), "nor here");

    let mut filter = Filter::new(Some(OWN), modes & BY_ADDRESS != 0, modes & BY_VLAN != 0);
    *filter.vlans_mut() = vlans();
    for (bit, mode) in RxMode::ALL.into_iter().enumerate() {
        filter.set_mode(mode, modes & 1 << bit != 0);
    }
    match MacTable::decode(data) {
        Ok(table) => {
            assert_eq!(data.len() % 6, 2, "two counts and whole addresses");
            filter.set_table(table);
        }
        Err(_) => assert_eq!(filter.table(), &MacTable::default()),
    }
    let wanted = filter.accepts(frame);
    if filter.has_mode(RxMode::Promiscuous) || !filter.is_on() {
        assert_eq!(wanted, Ok(()), "NET-CTRL-RX-02");
    }
    let small = (decode_switch(data), decode_address(data), decode_vlan(data));
    assert!(small.0.is_err() || data.len() == 1);
    assert!(small.1.is_err() || data.len() == 6);
    assert!(small.2.is_err() || data.len() == 2);
});
