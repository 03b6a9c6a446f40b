//! A guest that lies, by hand and by chance; what passes is read again by the frame parser.

use super::*;
use crate::parse::{Addresses, Network, Transport, parse};
use crate::vlan::VlanId;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const OWN: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x57];
const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ME: [u8; 4] = [10, 0, 0, 5];
const YOU: [u8; 4] = [10, 0, 0, 6];

fn v6(text: &str) -> [u8; 16] {
    text.parse::<Ipv6Addr>().unwrap().octets()
}

fn me6() -> [u8; 16] {
    v6("fd00::5")
}

fn ethernet(from: Mac, ether_type: u16, rest: &[u8]) -> Vec<u8> {
    [&GROUP[..], &from, &ether_type.to_be_bytes(), rest].concat()
}

/// An IPv4 packet; `flags` is the field of fragment flags and offset.
fn ipv4(from: [u8; 4], protocol: u8, flags: u16, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 1]);
    header.extend(flags.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    ethernet(OWN, 0x0800, &[&header[..], &from, &[255; 4], payload].concat())
}

fn ipv6(from: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let header = [&[0x60, 0, 0, 0][..], &len, &[next, 255], &from, &v6("ff02::1")].concat();
    ethernet(OWN, 0x86dd, &[&header[..], payload].concat())
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &[0, 8, 0, 0]].concat()
}

fn arp(operation: u8, mac: Mac, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let form = [0, 1, 8, 0, 6, 4, 0, operation];
    ethernet(OWN, 0x0806, &[&form[..], &mac, &from, &[0; 6], &to].concat())
}

/// A message of neighbour discovery: its type, the fixed part behind the checksum, its options.
fn nd(kind: u8, fixed: &[u8], options: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], fixed, options].concat()
}

fn solicit(target: [u8; 16], options: &[u8]) -> Vec<u8> {
    nd(135, &[&[0; 4][..], &target].concat(), options)
}

fn advert(target: [u8; 16], options: &[u8]) -> Vec<u8> {
    nd(136, &[&[0x60, 0, 0, 0][..], &target].concat(), options)
}

fn router_advert() -> Vec<u8> {
    nd(134, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], &[])
}

fn link_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1][..], &mac].concat()
}

fn open() -> Guard {
    Guard::new(OWN)
}

fn bound() -> Guard {
    let me = Ipv6Addr::from(me6());
    open().allow_v4(Ipv4Addr::from(ME), 32).unwrap().allow_v6(me, 128).unwrap()
}

fn strict() -> Guard {
    Rule::ALL.into_iter().fold(bound(), Guard::with)
}

fn vlans(ids: &[u16], untagged: Untagged) -> Guard {
    open().with_vlans(ids.iter().filter_map(|id| VlanId::new(*id)).collect(), untagged)
}

fn tag(frame: &[u8], tpid: u16, id: u16) -> Vec<u8> {
    let tag = [tpid.to_be_bytes(), id.to_be_bytes()].concat();
    [&frame[..12], &tag, &frame[12..]].concat()
}

/// The guest sends a frame, and the device has looked at as much of it as it has to.
fn send(guard: &Guard, frame: &[u8]) -> Result<(), Refusal> {
    let head = &frame[..frame.len().min(guard.head_len())];
    guard.transmit(head, frame.len())
}

#[test]
fn without_rules_everything_passes_unseen() {
    assert_eq!(open().head_len(), 0);
    assert_eq!(open().transmit(&[], 9), Ok(()));
    assert_eq!(open().receive(&[]), Ok(()));
}

#[test]
fn the_mac_is_locked_both_ways() {
    let guard = open().with(Rule::Mac);
    assert_eq!(guard.head_len(), 14);
    assert_eq!(send(&guard, &ethernet(OWN, 0x1234, &[])), Ok(()));
    assert_eq!(send(&guard, &ethernet(OTHER, 0x1234, &[])), Err(Refusal::SourceMac));
    assert_eq!(guard.transmit(&[0; 13], 13), Err(Refusal::TooShort));
    let to = |mac: Mac| guard.receive(&[&mac[..], &OTHER, &[8, 0]].concat());
    assert_eq!([to(OWN), to(GROUP), to([0xff; 6])], [Ok(()); 3]);
    assert_eq!(to(OTHER), Err(Refusal::DestinationMac));
    assert_eq!(guard.receive(&[0; 13]), Err(Refusal::TooShort));
}

#[test]
fn vlans_are_those_of_the_nic() {
    let plain = ethernet(OWN, 0x1234, &[0; 40]);
    let forced = vlans(&[10, 4095], Untagged::Refused);
    let allowed = vlans(&[10], Untagged::Allowed);
    for (guard, untagged) in [(&forced, Err(Refusal::Vlan)), (&allowed, Ok(()))] {
        assert_eq!(send(guard, &plain), untagged);
        assert_eq!(guard.receive(&plain), untagged);
        assert_eq!(send(guard, &tag(&plain, 0x8100, 0xe000)), untagged, "a priority only");
        assert_eq!(send(guard, &tag(&plain, 0x8100, 10)), Ok(()));
        assert_eq!(send(guard, &tag(&plain, 0x88a8, 0xe00a)), Ok(()));
        assert_eq!(guard.receive(&tag(&plain, 0x8100, 10)), Ok(()));
        assert_eq!(guard.receive(&tag(&plain, 0x8100, 11)), Err(Refusal::Vlan));
        assert_eq!(send(guard, &tag(&plain, 0x8100, 11)), Err(Refusal::Vlan));
        assert_eq!(send(guard, &tag(&plain, 0x8100, 10)[..17]), Err(Refusal::Malformed));
    }
}

#[test]
fn a_tag_behind_a_tag_leads_into_no_other_vlan() {
    let plain = ethernet(OWN, 0x0800, &[0; 40]);
    let guard = vlans(&[10], Untagged::Allowed);
    let twice = |outer, id| tag(&tag(&plain, 0x8100, 20), outer, id);
    assert_eq!(send(&guard, &twice(0x8100, 10)), Err(Refusal::Tags));
    assert_eq!(send(&guard, &twice(0x8100, 0)), Err(Refusal::Tags));
    assert_eq!(send(&guard, &twice(0x88a8, 0)), Err(Refusal::Tags));
    assert_eq!(send(&guard, &twice(0x88a8, 10)), Ok(()), "a provider's tag is for this");
    assert_eq!(send(&guard, &twice(0x9100, 10)), Err(Refusal::Tags));
    let older = tag(&tag(&plain, 0x9200, 20), 0x8100, 10);
    assert_eq!(send(&guard, &older), Err(Refusal::Tags));
}

#[test]
fn packets_come_from_the_addresses_of_the_nic() {
    let guard = bound();
    assert_eq!(send(&guard, &ipv4(ME, 6, 0, &[0; 20])), Ok(()));
    assert_eq!(send(&guard, &ipv4(YOU, 6, 0, &[0; 20])), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv4([0; 4], 6, 0, &[0; 20])), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv6(me6(), 6, &[0; 20])), Ok(()));
    assert_eq!(send(&guard, &ipv6(v6("fd00::6"), 6, &[0; 20])), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv6(v6("fe80::5054:ff:fe12:3456"), 6, &[0; 20])), Ok(()));
    assert_eq!(send(&guard, &ipv6(v6("fe80::1"), 6, &[0; 20])), Err(Refusal::SourceIp));
    let nets = open().allow_v4(Ipv4Addr::new(10, 1, 2, 3), 8).unwrap();
    assert_eq!(send(&nets, &ipv4(YOU, 6, 0, &[0; 20])), Ok(()));
    assert_eq!(send(&nets, &ipv4([11, 0, 0, 1], 6, 0, &[0; 20])), Err(Refusal::SourceIp));
    assert_eq!(send(&nets, &ipv6(me6(), 6, &[0; 20])), Err(Refusal::SourceIp), "both families");
    let all = open().allow_v4(Ipv4Addr::UNSPECIFIED, 0).unwrap();
    assert_eq!(send(&all, &ipv4([11, 0, 0, 1], 6, 0, &[0; 20])), Ok(()));
}

#[test]
fn addresses_are_bound_behind_tags_too() {
    let guard = bound();
    for source in [ME, YOU] {
        let frame = ipv4(source, 6, 0, &[0; 20]);
        let expected = send(&guard, &frame);
        let once = tag(&frame, 0x8100, 0);
        let twice = tag(&once, 0x88a8, 7);
        assert_eq!([send(&guard, &once), send(&guard, &twice)], [expected; 2]);
        assert_eq!(send(&guard, &tag(&twice, 0x8100, 7)), Err(Refusal::Tags));
        assert_eq!(send(&guard, &tag(&frame, 0x9100, 7)), Err(Refusal::Tags));
    }
}

#[test]
fn networks_are_counted_and_prefixes_end_with_the_address() {
    let addr = Ipv4Addr::from(ME);
    assert_eq!(open().allow_v4(addr, 33), Err(NetworkFault::Prefix(33)));
    assert_eq!(open().allow_v6(Ipv6Addr::LOCALHOST, 129), Err(NetworkFault::Prefix(129)));
    let full = (0..NETWORKS_MAX).try_fold(open(), |guard, _| guard.allow_v4(addr, 32)).unwrap();
    assert_eq!(full.clone().allow_v4(addr, 32), Err(NetworkFault::TooMany));
    assert!(full.allow_v6(Ipv6Addr::LOCALHOST, 128).is_ok());
}

#[test]
fn a_guest_without_an_address_may_ask_for_one_and_no_more() {
    let guard = strict();
    let none = [0; 16];
    assert_eq!(send(&guard, &ipv4([0; 4], 17, 0, &udp(68, 67))), Ok(()));
    assert_eq!(send(&guard, &ipv4([0; 4], 17, 0, &udp(68, 53))), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv4([0; 4], 17, 0, &udp(69, 67))), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv4([0; 4], 17, 0x2000, &udp(68, 67))), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv6(none, 58, &solicit(me6(), &[]))), Ok(()));
    let others = ipv6(none, 58, &solicit(v6("fd00::6"), &[]));
    assert_eq!(send(&guard, &others), Err(Refusal::Neighbor), "it would spoil their address");
    assert_eq!(send(&guard, &ipv6(none, 58, &nd(133, &[0; 4], &[]))), Ok(()));
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &nd(143, &[0; 4], &[])].concat();
    assert_eq!(send(&guard, &ipv6(none, 0, &report)), Ok(()));
    assert_eq!(send(&guard, &ipv6(none, 58, &nd(128, &[0; 4], &[]))), Err(Refusal::SourceIp));
    assert_eq!(send(&guard, &ipv6(none, 17, &udp(546, 547))), Err(Refusal::SourceIp));
    let later = [&[58, 0, 0, 8, 0, 0, 0, 1][..], &[0; 8]].concat();
    assert_eq!(send(&guard, &ipv6(none, 44, &later)), Err(Refusal::SourceIp));
}

#[test]
fn arp_speaks_for_the_nic_only() {
    let guard = strict();
    for operation in [1, 2] {
        assert_eq!(send(&guard, &arp(operation, OWN, ME, YOU)), Ok(()));
        assert_eq!(send(&guard, &arp(operation, OTHER, ME, YOU)), Err(Refusal::Arp));
        assert_eq!(send(&guard, &arp(operation, OWN, YOU, ME)), Err(Refusal::Arp));
    }
    assert_eq!(send(&guard, &arp(1, OWN, [0; 4], ME)), Ok(()), "a probe");
    assert_eq!(send(&guard, &arp(1, OWN, [0; 4], YOU)), Err(Refusal::Arp));
    assert_eq!(send(&guard, &arp(2, OWN, [0; 4], ME)), Err(Refusal::Arp));
    assert_eq!(send(&guard, &arp(3, OWN, ME, ME)), Err(Refusal::Arp));
    let mut other_form = arp(1, OWN, ME, YOU);
    other_form[15] = 6;
    assert_eq!(send(&guard, &other_form), Err(Refusal::Arp));
    assert_eq!(send(&guard, &arp(1, OWN, ME, YOU)[..41]), Err(Refusal::Malformed));
    let hardware_only = open().with(Rule::Arp);
    assert_eq!(send(&hardware_only, &arp(1, OWN, YOU, ME)), Ok(()));
    assert_eq!(send(&hardware_only, &arp(1, OTHER, YOU, ME)), Err(Refusal::Arp));
    assert_eq!(send(&open().with(Rule::Router), &arp(1, OTHER, YOU, ME)), Ok(()));
}

#[test]
fn neighbour_discovery_speaks_for_the_nic_only() {
    let guard = strict();
    let (mine, theirs) = (link_option(1, OWN), link_option(1, OTHER));
    let (my_target, their_target) = (link_option(2, OWN), link_option(2, OTHER));
    let you6 = v6("fd00::6");
    let icmp = |message: &[u8]| send(&guard, &ipv6(me6(), 58, message));
    assert_eq!(icmp(&solicit(you6, &mine)), Ok(()));
    assert_eq!(icmp(&solicit(you6, &theirs)), Err(Refusal::Neighbor));
    assert_eq!(icmp(&solicit(you6, &[&mine[..], &theirs].concat())), Err(Refusal::Neighbor));
    assert_eq!(icmp(&advert(me6(), &my_target)), Ok(()));
    assert_eq!(icmp(&advert(link_local(OWN).octets(), &my_target)), Ok(()));
    assert_eq!(icmp(&advert(you6, &my_target)), Err(Refusal::Neighbor));
    assert_eq!(icmp(&advert(me6(), &their_target)), Err(Refusal::Neighbor));
    assert_eq!(icmp(&nd(133, &[0; 4], &mine)), Ok(()));
    assert_eq!(icmp(&nd(133, &[0; 4], &theirs)), Err(Refusal::Neighbor));
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    assert_eq!(icmp(&solicit(you6, &[&nonce[..], &mine].concat())), Ok(()));
    assert_eq!(icmp(&solicit(you6, &[&nonce[..], &theirs].concat())), Err(Refusal::Neighbor));
    assert_eq!(icmp(&solicit(you6, &[14, 0, 0, 0, 0, 0, 0, 0])), Err(Refusal::Malformed));
    assert_eq!(icmp(&solicit(you6, &[14, 2, 0, 0, 0, 0, 0, 0])), Err(Refusal::Malformed));
    assert_eq!(icmp(&solicit(you6, &mine[..7])), Err(Refusal::Malformed));
    assert_eq!(icmp(&solicit(you6, &[])[..23]), Err(Refusal::Malformed));
    let mut two_units = link_option(1, OWN);
    two_units[1] = 2;
    two_units.extend([0; 8]);
    assert_eq!(icmp(&solicit(you6, &two_units)), Err(Refusal::Neighbor));
    let far = [&nonce.repeat(9)[..], &theirs].concat();
    assert_eq!(icmp(&solicit(you6, &far)), Err(Refusal::Hidden), "beyond the bytes at hand");
    let lying_router = nd(134, &[0; 12], &theirs);
    let router_may = Guard::with(open(), Rule::Neighbor);
    assert_eq!(send(&router_may, &ipv6(me6(), 58, &lying_router)), Err(Refusal::Neighbor));
    assert_eq!(send(&router_may, &ipv6(me6(), 58, &router_advert())), Ok(()));
}

#[test]
fn guests_are_no_dhcp_servers_and_no_routers() {
    let guard = strict();
    assert_eq!(send(&guard, &ipv4(ME, 17, 0, &udp(67, 68))), Err(Refusal::DhcpServer));
    assert_eq!(send(&guard, &ipv4(ME, 17, 0x2000, &udp(67, 68))), Err(Refusal::DhcpServer));
    assert_eq!(send(&guard, &ipv4(ME, 17, 0, &udp(53, 67))), Ok(()));
    assert_eq!(send(&guard, &ipv4(ME, 17, 0, &udp(67, 68)[..7])), Err(Refusal::Malformed));
    assert_eq!(send(&guard, &ipv4(ME, 17, 1, &udp(67, 68))), Ok(()), "no header in there");
    assert_eq!(send(&guard, &ipv6(me6(), 17, &udp(547, 546))), Err(Refusal::DhcpServer));
    assert_eq!(send(&guard, &ipv6(me6(), 17, &udp(67, 546))), Ok(()));
    assert_eq!(send(&guard, &ipv6(me6(), 58, &router_advert())), Err(Refusal::RouterAdvert));
    assert_eq!(send(&guard, &ipv6(me6(), 58, &nd(137, &[0; 36], &[]))), Err(Refusal::Redirect));
    assert_eq!(send(&guard, &ipv6(me6(), 58, &nd(128, &[0; 4], &[]))), Ok(()));
    assert_eq!(send(&guard, &ipv4(ME, 1, 0, &[5, 1, 0, 0, 0, 0, 0, 0])), Err(Refusal::Redirect));
    let irdp = ipv4(ME, 1, 0, &[9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(send(&guard, &irdp), Err(Refusal::RouterAdvert));
    assert_eq!(send(&guard, &ipv4(ME, 1, 0, &[8, 0, 0, 0, 0, 0, 0, 0])), Ok(()));
}

#[test]
fn a_rule_that_is_not_in_force_refuses_nothing() {
    let frames = [
        (Rule::Mac, ethernet(OTHER, 0x0806, &arp(1, OWN, ME, YOU)[14..])),
        (Rule::Arp, arp(2, OWN, YOU, ME)),
        (Rule::Neighbor, ipv6(me6(), 58, &advert(v6("fd00::6"), &[]))),
        (Rule::DhcpServer, ipv4(ME, 17, 0, &udp(67, 68))),
        (Rule::Router, ipv6(me6(), 58, &router_advert())),
    ];
    for (rule, frame) in frames {
        let rest = Rule::ALL.into_iter().filter(|one| *one != rule).fold(bound(), Guard::with);
        assert_eq!(send(&rest, &frame), Ok(()), "{rule:?}");
        assert!(send(&rest.with(rule), &frame).is_err(), "{rule:?}");
    }
}

#[test]
fn fragments_hide_nothing() {
    let guard = strict();
    let first = |next: u8| vec![next, 0, 0, 1, 0, 0, 0, 9];
    let chain = |parts: &[&[u8]]| ipv6(me6(), 44, &parts.concat());
    let advert = router_advert();
    assert_eq!(send(&guard, &chain(&[&first(58), &advert])), Err(Refusal::RouterAdvert));
    let solicit = solicit(me6(), &link_option(1, OWN));
    assert_eq!(send(&guard, &chain(&[&first(58), &solicit])), Err(Refusal::Fragment), "RFC 6980");
    let options = [58, 0, 1, 4, 0, 0, 0, 0];
    let echo = nd(128, &[0; 4], &[]);
    assert_eq!(send(&guard, &chain(&[&first(58), &echo])), Ok(()));
    let buried = chain(&[&first(60), &options, &echo]);
    assert_eq!(send(&guard, &buried), Err(Refusal::Fragment));
    assert_eq!(send(&guard, &chain(&[&first(58), &echo[..4]])), Err(Refusal::Malformed));
    let atomic = [58, 0, 0, 0, 0, 0, 0, 9];
    assert_eq!(send(&guard, &chain(&[&atomic, &advert])), Err(Refusal::RouterAdvert));
    let udp_later = [17, 0, 0, 8, 0, 0, 0, 9];
    assert_eq!(send(&guard, &chain(&[&udp_later, &udp(547, 546)])), Ok(()));
}

#[test]
fn what_cannot_be_seen_does_not_pass_where_a_rule_needs_it() {
    let long = [&[58, 9, 1, 78][..], &[0; 76]].concat();
    let far = ipv6(me6(), 0, &[&long[..], &nd(128, &[0; 4], &[])].concat());
    assert_eq!(send(&strict(), &far), Err(Refusal::Hidden));
    assert_eq!(send(&bound(), &far), Ok(()), "the source can be seen");
    let many = [60, 0, 1, 4, 0, 0, 0, 0].repeat(9);
    let frame = ipv6(me6(), 60, &many);
    assert_eq!(strict().transmit(&frame, frame.len()), Err(Refusal::Hidden));
    let lying = ipv6(me6(), 6, &[0; 20]);
    assert_eq!(send(&strict(), &lying[..60]), Err(Refusal::Malformed));
}

#[test]
fn protocols_that_no_rule_reads_pass_only_if_allowed() {
    let lldp = ethernet(OWN, 0x88cc, &[0; 46]);
    let ppp = ethernet(OWN, 0x8864, &[0; 46]);
    let snap = [0xaa, 0xaa, 3, 0, 0, 0, 0x08, 0];
    let llc = ethernet(OWN, 60, &[&snap[..], &ipv4(YOU, 6, 0, &[0; 20])[14..]].concat());
    for (guard, others) in [(bound(), Err(Refusal::EtherType)), (bound().allow_others(), Ok(()))] {
        assert_eq!(send(&guard, &lldp), others);
        assert_eq!(send(&guard, &tag(&ppp, 0x8100, 1)), others);
        assert_eq!(send(&guard, &llc), Err(Refusal::EtherType));
        assert_eq!(send(&guard, &tag(&llc, 0x8100, 0)), Err(Refusal::EtherType));
    }
    assert_eq!(send(&open().with(Rule::Mac), &llc), Ok(()));
}

#[test]
fn headers_that_contradict_themselves_do_not_pass() {
    let good = ipv4(ME, 6, 0, &[0; 20]);
    for (at, value) in [(14, 0x55), (14, 0x44), (14, 0x4f), (17, 19), (16, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert_eq!(send(&strict(), &bad), Err(Refusal::Malformed), "{at} {value}");
    }
    let mut bad = ipv6(me6(), 6, &[0; 20]);
    bad[14] = 0x45;
    assert_eq!(send(&strict(), &bad), Err(Refusal::Malformed));
}

#[test]
fn the_link_local_address_is_made_as_the_rfc_does() {
    assert_eq!(link_local(OWN).octets(), v6("fe80::5054:ff:fe12:3456"));
    assert_eq!(link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]).octets(), {
        v6("fe80::3656:78ff:fe9a:bcde")
    });
}

#[test]
fn reasons_have_words_of_their_own() {
    let mut words: Vec<&str> = Refusal::ALL.iter().map(|reason| reason.name()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Refusal::ALL.len());
}

/// Extension headers: kind and length in units of 8 bytes beyond the first.
fn extensions() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((prop::sample::select(vec![0_u8, 43, 60]), 0_u8..3), 0..10)
}

/// A message behind extension headers, in a packet that is whole or the first fragment.
fn wrapped(extensions: &[(u8, u8)], fragment_at: Option<usize>, message: &[u8]) -> Vec<u8> {
    let mut kinds: Vec<u8> = extensions.iter().map(|(kind, _)| *kind).collect();
    let mut bodies: Vec<Vec<u8>> = extensions
        .iter()
        .map(|(_, units)| [&[0, *units][..], &vec![0; 6 + 8 * usize::from(*units)]].concat())
        .collect();
    if let Some(at) = fragment_at {
        let at = at.min(kinds.len());
        kinds.insert(at, 44);
        bodies.insert(at, vec![0, 0, 0, 1, 0, 0, 0, 7]);
    }
    kinds.push(58);
    for (body, next) in bodies.iter_mut().zip(&kinds[1..]) {
        body[0] = *next;
    }
    ipv6(me6(), kinds[0], &[&bodies.concat()[..], message].concat())
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let base = prop::sample::select(vec![
        ipv4(ME, 17, 0, &udp(68, 67)),
        ipv4([0; 4], 17, 0, &udp(68, 67)),
        ipv4(ME, 1, 0, &[8, 0, 0, 0, 0, 0, 0, 0]),
        ipv4(ME, 6, 0x2000, &[0; 24]),
        ipv6(me6(), 17, &udp(546, 547)),
        ipv6(me6(), 58, &solicit(me6(), &link_option(1, OWN))),
        ipv6([0; 16], 58, &solicit(me6(), &[])),
        ipv6(me6(), 58, &advert(me6(), &link_option(2, OWN))),
        ipv6(me6(), 0, &[&[58, 0, 5, 2, 0, 0, 1, 0][..], &nd(143, &[0; 4], &[])].concat()),
        ipv6(me6(), 44, &[&[58, 0, 0, 1, 0, 0, 0, 1][..], &nd(128, &[0; 4], &[])].concat()),
        arp(1, OWN, ME, YOU),
        arp(1, OWN, [0; 4], ME),
    ]);
    let values = prop_oneof![any::<u8>(), prop::sample::select(vec![0, 17, 44, 58, 60, 67, 134])];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), values), 0..3);
    (base, changes, prop::collection::vec(0_u16..3, 0..2)).prop_map(|(mut frame, changes, tags)| {
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
        }
        tags.into_iter().fold(frame, |frame, id| tag(&frame, 0x8100, id))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_wrapping_hides_a_router_advertisement(
        extensions in extensions(),
        fragment_at in prop::option::of(0_usize..10),
        tags in 0_usize..3,
    ) {
        let guard = open().with(Rule::Router);
        let mut frame = wrapped(&extensions, fragment_at, &router_advert());
        for _ in 0..tags {
            frame = tag(&frame, 0x8100, 0);
        }
        prop_assert!(send(&guard, &frame).is_err());
        prop_assert!(guard.transmit(&frame, frame.len()).is_err());
    }

    #[test]
    fn an_echo_in_the_same_wrapping_passes_if_it_can_be_seen(extensions in extensions()) {
        let guard = open().with(Rule::Router);
        let frame = wrapped(&extensions, None, &nd(128, &[0; 4], &[]));
        let is_seen = extensions.len() < 8 && frame.len() <= GUARD_HEAD;
        prop_assert_eq!(send(&guard, &frame).is_ok(), is_seen);
    }

    /// What passes is what the rules say, as the frame parser reads it.
    #[test]
    fn what_passes_is_read_as_allowed_by_the_parser(frame in any_frame()) {
        let guard = strict();
        // The guard asks less of what no rule is about.
        let (Ok(()), Ok(parsed)) = (send(&guard, &frame), parse(&frame, frame.len())) else {
            return Ok(());
        };
        prop_assert_eq!(parsed.source, OWN);
        match parsed.network {
            Network::Other => prop_assert!(false, "an unknown protocol passed"),
            Network::Arp(message) => {
                prop_assert_eq!(message.sender_mac, OWN);
                let ip = message.sender_ip.octets();
                prop_assert!(ip == ME || (ip == [0; 4] && message.target_ip.octets() == ME));
            }
            Network::Ip(ip) => {
                let is_v4 = ip.addresses.is_v4();
                let is_own = match ip.addresses {
                    Addresses::V4 { source, .. } => source.octets() == ME,
                    Addresses::V6 { source, .. } => {
                        source.octets() == me6() || source == link_local(OWN)
                    }
                };
                match ip.transport {
                    Transport::Udp(udp) => {
                        prop_assert_ne!(udp.source, if is_v4 { 67 } else { 547 });
                        prop_assert!(is_own || (is_v4 && udp.destination == 67));
                    }
                    Transport::Icmp(icmp) if is_v4 => {
                        prop_assert!(is_own && icmp.kind != 5 && icmp.kind != 9);
                    }
                    Transport::Icmp(icmp) => {
                        prop_assert!(icmp.kind != 134 && icmp.kind != 137);
                        prop_assert!(is_own || [131, 132, 133, 135, 143].contains(&icmp.kind));
                        prop_assert!(ip.fragment.is_none() || !(133..=137).contains(&icmp.kind));
                        if icmp.kind == 136 {
                            let target = &frame[ip.l4 + 8..ip.l4 + 24];
                            prop_assert!(target == me6() || target == link_local(OWN).octets());
                        }
                    }
                    Transport::Tcp(_) | Transport::LaterFragment | Transport::Other => {
                        prop_assert!(is_own);
                    }
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_judged(
        head in prop::collection::vec(any::<u8>(), 0..200),
        len in 0_usize..300,
    ) {
        let guard = strict();
        let judged = guard.transmit(&head, len);
        if len < 14 || head.len() < 14 {
            prop_assert_eq!(judged, Err(Refusal::TooShort));
        }
    }
}
