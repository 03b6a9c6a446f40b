//! What comes in segments and is joined, and what comes in tunnels, on its way to a guest.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod guest;
mod namespace;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use guest::{Guest, mac, tcp};
use namespace::{in_namespace, ip};
use vionet::endpoint::Endpoint;
use vionet::stats::DropReason;
use vionet_endpoint::{Switch, Tap};
use vionet_frame::header::{CsumAt, Gso, GsoRequest, NetHeader, Offloads, Request, Tunnel, check};
use vionet_frame::segment::{SEGMENT_HEADERS_MAX, Segments};
use vionet_raw::host::tun;
use vionet_spec::feature::Feature;
use vionet_spec::net::{HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO};

const TAKES: [Feature; 2] = [Feature::GUEST_CSUM, Feature::GUEST_TSO4];

fn cut(request: &Request, frame: &[u8], can: Offloads) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(frame, request).unwrap();
    let mut room = [0; SEGMENT_HEADERS_MAX];
    let mut out = Vec::new();
    while let Some(segment) = segments.next_into(&mut room) {
        segment.finish(&mut room, can);
        out.push([&room[..segment.header_len], segment.payload].concat());
    }
    out
}

/// A TCP frame of 20 segments, how it was to be cut, and the segments with their checksums left
/// open or complete.
fn stream(can: Offloads) -> (NetHeader, Vec<u8>, Vec<Vec<u8>>) {
    let (header, whole) = tcp(20_000);
    let request = check(&header, whole.len() as u32, Offloads::ALL).unwrap();
    let segments = cut(&request, &whole, can);
    (header, whole, segments)
}

fn slices(frames: &[Vec<u8>]) -> Vec<&[u8]> {
    frames.iter().map(Vec::as_slice).collect()
}

const OPEN: NetHeader =
    NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHeader::PLAIN };
const PLAIN: NetHeader = NetHeader::PLAIN;

#[test]
fn segments_from_a_guest_that_cuts_its_own_are_joined_for_one_that_takes_them_so() {
    let switch = Switch::new("lan");
    let mut sender = Guest::new(&switch, 1, false, &[Feature::CSUM]);
    for (can, said) in [(Offloads::CSUM, OPEN), (Offloads::NONE, PLAIN)] {
        let (header, whole, segments) = stream(can);
        let mut takes = Guest::new(&switch, 2, false, &TAKES);
        takes.post(32);
        sender.send_all(&said, &slices(&segments));
        let got = takes.received();
        let buffers = 1 + whole.len().saturating_sub(2048 - 12).div_ceil(2048);
        assert_eq!(got, [(NetHeader { num_buffers: buffers as u16, ..header }, whole)]);
        let stats = takes.device.stats().next().unwrap();
        assert_eq!((stats.rx.coalesced.value(), stats.rx.frames()), (1, 1));
        drop(takes);
        // One that takes whole frames only gets what was sent, complete.
        let mut plain = Guest::new(&switch, 2, false, &[Feature::GUEST_CSUM]);
        plain.post(32);
        sender.send_all(&said, &slices(&segments));
        assert_eq!(plain.frames(), segments);
    }
}

#[test]
fn a_driver_with_rsc_is_told_of_segments_and_of_no_duplicate_acknowledgements() {
    let switch = Switch::new("lan");
    let mut sender = Guest::new(&switch, 1, false, &[]);
    let features = [
        Feature::GUEST_CSUM,
        Feature::GUEST_TSO4,
        Feature::CSUM,
        Feature::HOST_TSO4,
        Feature::RSC_EXT,
    ];
    let mut takes = Guest::new(&switch, 2, false, &features);
    takes.post(32);
    let (_, _, segments) = stream(Offloads::NONE);
    // Acknowledgements without data are nobody's segments: they come as they are, each of them.
    let ack = [&tcp(0).1[..47], &[0x10], &tcp(0).1[48..]].concat();
    let mut frames = vec![ack.as_slice(), &ack, &ack];
    frames.extend(slices(&segments));
    sender.send_all(&PLAIN, &frames);
    let got = takes.received();
    assert_eq!(got.len(), 4);
    for (header, bytes) in &got[..3] {
        assert_eq!((header.flags & HDR_F_RSC_INFO, bytes), (0, &ack));
    }
    let told = got[3].0;
    assert_eq!(told.flags, HDR_F_NEEDS_CSUM | HDR_F_RSC_INFO);
    assert_eq!((told.csum_start, told.csum_offset), (20, 0));
}

#[test]
fn nothing_passes_what_was_sent_before_it_and_what_is_wrong_is_not_joined() {
    let switch = Switch::new("lan");
    let mut sender = Guest::new(&switch, 1, false, &[]);
    let mut takes = Guest::new(&switch, 2, false, &TAKES);
    takes.post(60);
    let (_, whole, mut segments) = stream(Offloads::NONE);
    let other = [&mac(2)[..], &mac(1), &[8, 6], &[7; 40]].concat();
    let mut frames = slices(&segments);
    frames.insert(10, &other);
    sender.send_all(&PLAIN, &frames);
    let got = takes.received();
    let lens: Vec<_> = got.iter().map(|(header, bytes)| (header.gso_type, bytes.len())).collect();
    assert_eq!(lens, [(1, 10_054), (0, other.len()), (1, 10_054)]);
    let payload = [&got[0].1[54..], &got[2].1[54..]].concat();
    assert_eq!(payload, whole[54..]);
    segments[7][600] ^= 1;
    sender.send_all(&PLAIN, &slices(&segments));
    let got = takes.received();
    let lens: Vec<_> = got.iter().map(|(header, bytes)| (header.gso_type, bytes.len())).collect();
    assert_eq!(lens, [(1, 7054), (0, 1054), (1, 12_054)]);
    assert_eq!(got[1], (NetHeader { num_buffers: 1, ..PLAIN }, segments[7].clone()));
}

#[test]
fn what_has_no_room_joined_goes_in_parts_until_there_is_no_room_for_those() {
    let switch = Switch::new("lan");
    let mut sender = Guest::new(&switch, 1, false, &[]);
    let mut takes = Guest::new(&switch, 2, false, &TAKES);
    takes.post(5);
    let (_, _, segments) = stream(Offloads::NONE);
    sender.send_all(&PLAIN, &slices(&segments));
    let got = takes.received();
    assert_eq!(got.len(), 5);
    for ((header, bytes), sent) in got.iter().zip(&segments) {
        assert_eq!((header.flags, bytes), (HDR_F_DATA_VALID, sent), "its checksum was looked at");
    }
    assert_eq!(takes.drops(true, DropReason::NoBuffer), 15);
}

/// A TCP frame in VXLAN to be cut, with this as outer checksum; and the sum of its pseudo header.
fn tunnelled(csum: bool, outer: Option<u16>) -> (NetHeader, Vec<u8>, u16) {
    let inner = tcp(4000).1;
    let mut vxlan = vec![8, 0, 0, 0, 0, 0, 7, 0];
    vxlan.extend(&inner);
    let mut frame = Vec::new();
    let builder = etherparse::PacketBuilder::ethernet2(mac(1), mac(2));
    builder
        .ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64)
        .udp(5000, 4789)
        .write(&mut frame, &vxlan)
        .unwrap();
    let (source, destination) = ([10, 1, 0, 1].into(), [10, 1, 0, 2].into());
    let len = frame.len() as u32 - 34;
    let pseudo = vionet_frame::checksum::pseudo_header_v4(source, destination, 17, len).partial();
    frame[40..42].copy_from_slice(&outer.unwrap_or(pseudo).to_be_bytes());
    let request = Request {
        csum: Some(CsumAt { start: 50 + 34, offset: 16 }),
        gso: Some(GsoRequest { kind: Gso::TcpV4, size: 1000, ecn: false }),
        tunnel: Some(Tunnel { outer_th_offset: 34, inner_nh_offset: 64, over_v6: false, csum }),
    };
    (request.to_header(104), frame, pseudo)
}

/// NET-RX-32, NET-RX-33: a frame goes whole only with the outer checksum that its header says.
#[test]
fn a_tunnels_outer_checksum_is_what_its_header_says_or_the_frame_comes_cut() {
    let switch = Switch::new("lan");
    let features = [
        Feature::CSUM,
        Feature::HOST_TSO4,
        Feature::HOST_TSO6,
        Feature::HOST_USO,
        Feature::HOST_UDP_TUNNEL_GSO,
        Feature::HOST_UDP_TUNNEL_GSO_CSUM,
    ];
    let mut sender = Guest::new(&switch, 1, false, &features);
    let features = [
        Feature::GUEST_CSUM,
        Feature::GUEST_TSO4,
        Feature::GUEST_TSO6,
        Feature::GUEST_USO4,
        Feature::GUEST_USO6,
        Feature::GUEST_UDP_TUNNEL_GSO,
        Feature::GUEST_UDP_TUNNEL_GSO_CSUM,
    ];
    let mut takes = Guest::new(&switch, 2, false, &features);
    takes.post(60);
    let pseudo = tunnelled(true, None).2;
    let cases = [
        (true, pseudo, true),
        (true, pseudo ^ 1, false),
        (true, 0, false),
        (false, 0, true),
        (false, pseudo, false),
        (false, 0x1234, false),
    ];
    for (csum, outer, whole) in cases {
        let (header, frame, _) = tunnelled(csum, Some(outer));
        sender.send(&header, &frame);
        let got = takes.received();
        if whole {
            assert_eq!(got.len(), 1);
            assert_eq!((got[0].0.gso_type, &got[0].1), (header.gso_type, &frame));
            continue;
        }
        assert_eq!(got.len(), 4, "cut: {csum}");
        for (header, bytes) in got {
            assert_eq!(header.gso_type, 0);
            assert_outer_is_right(bytes);
        }
    }
}

/// The outer checksum is complete once the inner one is, by somebody else's arithmetic.
fn assert_outer_is_right(mut bytes: Vec<u8>) {
    vionet_frame::checksum::complete(&mut bytes, CsumAt { start: 84, offset: 16 }).unwrap();
    let sliced = etherparse::SlicedPacket::from_ethernet(&bytes).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else { panic!("an IPv4 packet") };
    let Some(etherparse::TransportSlice::Udp(udp)) = sliced.transport else { panic!("a datagram") };
    let expected = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload());
    assert_eq!(udp.checksum(), expected.unwrap());
}

#[test]
fn a_tap_whose_kernel_cuts_has_its_segments_joined_for_a_guest_that_takes_them_so() {
    if !in_namespace(
        "a_tap_whose_kernel_cuts_has_its_segments_joined_for_a_guest_that_takes_them_so",
    ) {
        return;
    }
    ip("tuntap add dev plain mode tap");
    ip("tuntap add dev far mode tap");
    ip("link add bridge0 type bridge mcast_snooping 0");
    for name in ["plain", "far", "bridge0"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
        if name != "bridge0" {
            ip(&format!("link set {name} master bridge0"));
        }
        ip(&format!("link set {name} up"));
    }
    let far = tun::Tap::open_plain("far").unwrap();
    let plain = tun::Tap::open_plain("plain").unwrap().as_fd().try_clone_to_owned().unwrap();
    let tap = Tap::adopt(plain, 3).unwrap();
    assert!(tap.capabilities().receive.is_empty(), "a tap without virtio headers");
    let (header, whole, segments) = stream(Offloads::NONE);
    let mut guest = Guest::on(Box::new(tap), 2, &TAKES);
    let start = Instant::now();
    let wait = || {
        assert!(start.elapsed() < Duration::from_secs(20), "nothing comes");
        std::thread::sleep(Duration::from_millis(10));
    };
    // The bridge forwards a moment after its ports are up.
    let probe = [&mac(2)[..], &mac(1), &[0x88, 0xb5], &[0; 50]].concat();
    guest.post(1);
    while guest.frames().is_empty() {
        rustix::io::write(far.as_fd(), &probe).unwrap();
        guest.kick();
        wait();
    }
    // The guest has no buffers: all wait in the kernel, and so they come together.
    for segment in &segments {
        rustix::io::write(far.as_fd(), segment).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    guest.post(60);
    guest.kick();
    let mut got = Vec::new();
    while got.is_empty() {
        wait();
        got = guest.received();
        got.retain(|(_, frame)| *frame != probe);
    }
    assert_eq!(got.len(), 1);
    assert_eq!(got[0], (NetHeader { num_buffers: got[0].0.num_buffers, ..header }, whole));
}
