//! A frame's flow: read, hashed, steered; and the commands that say how, decoded.
//!
//! The first 44 bytes are key, hash types and tunnel types; the rest is the frame, and a command.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vionet_frame::hash::{FlowHash, Hashed};
use vionet_frame::parse::{Transport, parse};
use vionet_frame::steer::{AutoSteer, RssConfig, decode_hash_config, decode_tunnel_types};
use vionet_spec::hash::{
    REPORT_NONE, REPORT_TCPV4, REPORT_TCPV6, REPORT_TCPV6_EX, REPORT_UDPV4, REPORT_UDPV6,
    REPORT_UDPV6_EX, TYPES_ALL,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((setup, frame)) = bytes.split_first_chunk::<44>() else { return };
    let [key @ .., h0, h1, t0, t1] = setup;
    let types = u32::from(u16::from_le_bytes([*h0, *h1]));
    let tunnels = u32::from(u16::from_le_bytes([*t0, *t1]));

    let hash = FlowHash::new(key, types).expect("the key is not too long").with_tunnels(tunnels);
    let Hashed { value, report } = hash.of(frame);
    match report {
        REPORT_NONE => assert_eq!(value, 0, "no hash is no number"),
        _ => assert_eq!(types >> (report - 1) & 1, 1, "what is reported was enabled"),
    }

    let outside = FlowHash::new(key, TYPES_ALL).expect("the key is not too long").of(frame);
    if let Ok(parsed) = parse(frame, frame.len()) {
        if let Some(ip) = parsed.ip() {
            assert_ne!(outside.report, REPORT_NONE, "a packet that can be read has a hash");
            let (tcp, udp) = match ip.transport {
                _ if ip.fragment.is_some() => (false, false),
                Transport::Tcp(_) => (true, false),
                Transport::Udp(_) => (false, true),
                Transport::Icmp(_) | Transport::LaterFragment => (false, false),
                // An authentication header ends the parser's walk, not the hash's.
                Transport::Other if ip.protocol == 51 => return,
                Transport::Other => (false, false),
            };
            let is_tcp = [REPORT_TCPV4, REPORT_TCPV6, REPORT_TCPV6_EX].contains(&outside.report);
            let is_udp = [REPORT_UDPV4, REPORT_UDPV6, REPORT_UDPV6_EX].contains(&outside.report);
            assert_eq!((is_tcp, is_udp), (tcp, udp), "ports count where the parser sees some");
        }
    }

    let steer = AutoSteer::new(u64::from(types));
    steer.sent(frame, 5);
    let expected = if outside.report == REPORT_NONE { 0 } else { 5 };
    assert_eq!(steer.queue_of(frame, 6, |_| true), Some(expected), "a flow comes back");
    assert!(steer.queue_of(frame, 5, |_| true).is_some_and(|pair| pair < 5), "none beyond");

    if let Ok(config) = RssConfig::decode(frame, 4) {
        assert!(config.table.queue_of(outside) < 4, "the table names enabled pairs");
        assert!((1..=4).contains(&config.transmit_pairs));
    }
    if let Ok(hash) = decode_hash_config(frame) {
        assert!(hash.of(frame).report <= REPORT_UDPV6_EX);
    }
    if let Ok(types) = decode_tunnel_types(frame) {
        assert_eq!(types & !0x1ff, 0);
    }
});
