//! The configuration space and the order of queues, as drivers of any choice of features see them.
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

mod bench;

use bench::{Bench, EVERYTHING, MAC};
use vionet::endpoint::Capabilities;
use vionet::{Effects, Nic, NicConfig, Op, PairIndex, QueueIndex, QueueRole};
use vionet_spec::feature::{Feature, FeatureBits};
use vionet_spec::net::{CONFIG_DUPLEX, CONFIG_LEN};

fn nic(config: NicConfig) -> Nic {
    let (transmit, receive) = (EVERYTHING, EVERYTHING);
    Nic::new(config, Capabilities { transmit, receive, pairs_max: u16::MAX, mtu: u16::MAX })
}

fn field<const N: usize>(space: &[u8; CONFIG_LEN], at: usize) -> [u8; N] {
    space[at..at + N].try_into().unwrap()
}

#[test]
fn whatever_the_host_asks_for_the_fields_stay_within_the_standard() {
    for extreme in [0, 1, 67, 1500, 0x8001, u16::MAX] {
        for speed in [None, Some(0), Some(100_000), Some(0x8000_0000), Some(u32::MAX)] {
            let config = NicConfig { pairs: extreme, mtu: extreme, speed, ..NicConfig::default() };
            let space = nic(config).config_space();
            let pairs = u16::from_le_bytes(field(&space, 8));
            assert!((1..=0x8000).contains(&pairs), "NET-CFG-01: {pairs}");
            assert!(u16::from_le_bytes(field(&space, 10)) >= 68, "NET-CFG-02");
            let told = u32::from_le_bytes(field(&space, 12));
            assert_eq!(told == u32::MAX, speed.is_none(), "NET-CFG-10");
            assert!(told <= 0x7fff_ffff || speed.is_none(), "NET-CFG-10");
            let duplex = if speed.is_none() { 0xff } else { 1 };
            assert_eq!(space[CONFIG_DUPLEX], duplex, "NET-CFG-11");
            assert!(space[17] >= 40, "NET-CFG-07");
            assert!(u16::from_le_bytes(field(&space, 18)) >= 128, "NET-CFG-08");
            assert_ne!((field(&space, 20), field(&space, 24)), ([0; 4], [0; 4]), "NET-CFG-17");
        }
    }
}

#[test]
fn mtu_and_speed_stay_what_they_are_for_a_devices_life() {
    let features = [
        Feature::MTU,
        Feature::MAC,
        Feature::STATUS,
        Feature::SPEED_DUPLEX,
        Feature::CTRL_VQ,
        Feature::CTRL_MAC_ADDR,
        Feature::GUEST_ANNOUNCE,
    ];
    let mut bench = Bench::idle(EVERYTHING);
    let before = bench.nic.config_space();
    assert_eq!((field(&before, 0), field(&before, 10)), (MAC, 1500_u16.to_le_bytes()), "CFG-01");
    bench.apply(Op::Negotiate(Bench::bits(&features))).unwrap();
    bench.start_queues();
    bench.start_control();
    let same = |bench: &Bench| {
        let now = bench.nic.config_space();
        assert_eq!(now[10..], before[10..], "NET-CFG-04, NET-CFG-12");
    };
    same(&bench);
    let steps = [Op::SetLink(false), Op::SetLink(true), Op::Announce(MAC), Op::Reset];
    for op in steps {
        let link = matches!(op, Op::Reset);
        if !link {
            assert_eq!(bench.command(&[1, 1, 2, 0, 0, 0, 0, 9], 0).0, 0);
        }
        bench.apply(op).unwrap();
        same(&bench);
    }
    assert_eq!(bench.nic.config_space(), before, "reset gives everything back");
}

#[test]
fn queues_come_in_pairs_and_the_control_queue_behind_those_that_the_driver_knows_of() {
    let roles = |features: &[Feature]| {
        let mut nic = nic(NicConfig { pairs: 3, ..NicConfig::default() });
        let bits = FeatureBits::of(features).with(Feature::VERSION_1);
        nic.apply(Op::Negotiate(bits), &mut Effects::default());
        assert_eq!(nic.negotiated().map(|agreed| agreed.bits()), Some(bits));
        (0..9).map_while(|index| nic.role(QueueIndex(index))).collect::<Vec<_>>()
    };
    let pair = |index| {
        let pair = PairIndex(index);
        [QueueRole::Receive(pair), QueueRole::Transmit(pair)]
    };
    let all = [pair(0), pair(1), pair(2)].concat();
    let control = [QueueRole::Control];
    assert_eq!(roles(&[]), pair(0), "NET-Q-01, NET-Q-04");
    assert_eq!(roles(&[Feature::CTRL_VQ]), [&pair(0)[..], &control].concat(), "NET-Q-03");
    for more in [&[Feature::MQ][..], &[Feature::RSS], &[Feature::MQ, Feature::RSS]] {
        let features = [more, &[Feature::CTRL_VQ]].concat();
        assert_eq!(roles(&features), [&all[..], &control].concat(), "NET-Q-02, NET-Q-03");
    }
}
