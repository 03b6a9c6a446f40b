//! The filter against a second reading of the standard's table, and the decoders against lies.

use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const OWN: Mac = [2, 0, 0, 0, 0, 1];
const OTHER: Mac = [2, 0, 0, 0, 0, 9];
const GROUP: Mac = [1, 0, 0x5e, 0, 0, 1];

fn frame(to: Mac) -> Vec<u8> {
    [&to[..], &[2, 0, 0, 0, 0, 7], &[8, 0], &[0; 46]].concat()
}

fn tagged(to: Mac, tpid: u16, id: u16) -> Vec<u8> {
    let tag = [tpid.to_be_bytes(), (0xe000 | id).to_be_bytes()].concat();
    [&to[..], &[2, 0, 0, 0, 0, 7], &tag, &[8, 0], &[0; 46]].concat()
}

fn by_address(modes: &[RxMode]) -> Filter {
    let mut filter = Filter::new(Some(OWN), true, false);
    modes.iter().for_each(|mode| filter.set_mode(*mode, true));
    filter
}

fn table(unicast: &[Mac], multicast: &[Mac]) -> Vec<u8> {
    let mut data = Vec::new();
    for list in [unicast, multicast] {
        data.extend((list.len() as u32).to_le_bytes());
        data.extend(list.as_flattened());
    }
    data
}

/// What the filter says to unicast (own, other), multicast and broadcast.
fn all_kinds(filter: &Filter) -> [bool; 4] {
    [OWN, OTHER, GROUP, BROADCAST].map(|to| filter.accepts(&frame(to)).is_ok())
}

#[test]
fn a_filter_that_is_off_accepts_everything() {
    let mut filter = Filter::default();
    RxMode::ALL.iter().for_each(|mode| filter.set_mode(*mode, true));
    filter.set_mode(RxMode::Promiscuous, false);
    assert_eq!(all_kinds(&filter), [true; 4]);
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 5)), Ok(()));
    assert_eq!(filter.accepts(&[]), Ok(()));
}

#[test]
fn after_reset_a_guest_gets_its_own_frames_and_broadcasts() {
    assert_eq!(all_kinds(&by_address(&[])), [true, false, false, true]);
    assert_eq!(by_address(&[]).accepts(&frame(OTHER)), Err(Unwanted::Unicast));
    assert_eq!(by_address(&[]).accepts(&frame(GROUP)), Err(Unwanted::Multicast));
    assert_eq!(by_address(&[]).accepts(&frame(OWN)[..13]), Err(Unwanted::TooShort));
}

#[test]
fn the_modes_win_over_each_other_as_the_standard_says() {
    use RxMode::*;
    assert_eq!(all_kinds(&by_address(&[AllMulticast])), [true, false, true, true]);
    assert_eq!(all_kinds(&by_address(&[AllUnicast])), [true, true, false, true]);
    assert_eq!(all_kinds(&by_address(&[NoMulticast, AllMulticast])), [true, false, false, true]);
    assert_eq!(all_kinds(&by_address(&[NoUnicast, AllUnicast])), [false, false, false, true]);
    assert_eq!(all_kinds(&by_address(&[NoBroadcast, AllMulticast])), [true, false, true, false]);
    let refusing = [NoUnicast, NoMulticast, NoBroadcast];
    assert_eq!(all_kinds(&by_address(&refusing)), [false; 4]);
    assert_eq!(
        all_kinds(&by_address(&[NoUnicast, NoMulticast, NoBroadcast, Promiscuous])),
        [true; 4]
    );
}

#[test]
fn a_mode_that_is_switched_off_again_leaves_no_trace() {
    for mode in RxMode::ALL {
        let mut filter = by_address(&[mode]);
        filter.set_mode(mode, false);
        assert_eq!(filter, by_address(&[]));
    }
}

#[test]
fn commands_name_the_modes_and_what_they_need() {
    let extra: Vec<bool> = (0..6).filter_map(RxMode::of_command).map(RxMode::is_extra).collect();
    assert_eq!(extra, [false, false, true, true, true, true]);
    assert_eq!(RxMode::of_command(0), Some(RxMode::Promiscuous));
    assert_eq!(RxMode::of_command(5), Some(RxMode::NoBroadcast));
    assert_eq!(RxMode::of_command(6), None);
}

#[test]
fn addresses_of_the_table_are_accepted_by_their_kind() {
    let mut filter = by_address(&[]);
    filter.set_table(MacTable::decode(&table(&[OTHER], &[GROUP])).unwrap());
    assert_eq!(all_kinds(&filter), [true; 4]);
    // A multicast address among the unicast ones is no membership.
    filter.set_table(MacTable::decode(&table(&[GROUP], &[OTHER])).unwrap());
    assert_eq!(all_kinds(&filter), [true, false, false, true]);
    filter.set_mac(OTHER);
    assert_eq!(all_kinds(&filter), [false, true, false, true]);
}

#[test]
fn a_guest_without_an_address_gets_every_unicast() {
    assert_eq!(all_kinds(&Filter::new(None, true, false)), [true, true, false, true]);
}

#[test]
fn too_many_addresses_of_a_kind_are_all_of_that_kind() {
    let many = |count: usize| (0..count).map(|n| [2, 1, 0, 0, 0, n as u8]).collect::<Vec<_>>();
    let mut filter = by_address(&[]);
    filter.set_table(MacTable::decode(&table(&many(ADDRESSES_MAX), &[])).unwrap());
    assert_eq!(all_kinds(&filter), [true, false, false, true]);
    assert_eq!(filter.accepts(&frame([2, 1, 0, 0, 0, 63])), Ok(()));
    filter.set_table(MacTable::decode(&table(&many(ADDRESSES_MAX + 1), &[])).unwrap());
    assert_eq!(all_kinds(&filter), [true, true, false, true]);
    filter.set_table(MacTable::decode(&table(&[], &many(ADDRESSES_MAX + 1))).unwrap());
    assert_eq!(all_kinds(&filter), [true, false, true, true]);
    filter.set_mode(RxMode::NoMulticast, true);
    assert_eq!(all_kinds(&filter), [true, false, false, true], "NOMULTI wins over the overflow");
}

#[test]
fn a_table_is_exactly_as_long_as_its_counts_say() {
    let good = table(&[OWN, OTHER], &[GROUP]);
    assert!(MacTable::decode(&good).is_ok());
    assert!(MacTable::decode(&[0; 8]).is_ok());
    let faults = |len: usize| MacTable::decode(&good[..len]).unwrap_err();
    assert_eq!(faults(3), CommandFault::NoCount);
    assert_eq!(faults(15), CommandFault::UnicastTooShort);
    assert_eq!(faults(16), CommandFault::NoCount);
    assert_eq!(faults(25), CommandFault::MulticastTooShort);
    let longer = [&good[..], &[0]].concat();
    assert_eq!(MacTable::decode(&longer), Err(CommandFault::Trailing));
    // 0x2aaaaaab * 6 is 2 in 32 bits.
    let overflow = [&0x2aaa_aaab_u32.to_le_bytes()[..], &[0; 2], &[0; 4]].concat();
    assert_eq!(MacTable::decode(&overflow), Err(CommandFault::UnicastTooShort));
    let most = [&u32::MAX.to_le_bytes()[..], &[0; 64]].concat();
    assert_eq!(MacTable::decode(&most), Err(CommandFault::UnicastTooShort));
}

#[test]
fn vlans_of_the_table_pass_and_others_do_not() {
    let mut filter = Filter::new(Some(OWN), false, true);
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)), Err(Unwanted::Vlan));
    assert_eq!(filter.accepts(&frame(OTHER)), Ok(()), "untagged frames are not concerned");
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 0)), Ok(()), "a priority is no VLAN");
    assert_eq!(filter.accepts(&tagged(OTHER, 0x88a8, 10)), Ok(()));
    filter.vlans_mut().insert(VlanId::new(10).unwrap());
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)), Ok(()));
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 11)), Err(Unwanted::Vlan));
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)[..15]), Err(Unwanted::TooShort));
    filter.vlans_mut().remove(VlanId::new(10).unwrap());
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)), Err(Unwanted::Vlan));
    filter.set_mode(RxMode::Promiscuous, true);
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)), Ok(()), "NET-CTRL-RX-02");
}

#[test]
fn vlan_and_address_must_both_fit() {
    let mut filter = Filter::new(Some(OWN), true, true);
    filter.vlans_mut().insert(VlanId::new(10).unwrap());
    assert_eq!(filter.accepts(&tagged(OWN, 0x8100, 10)), Ok(()));
    assert_eq!(filter.accepts(&tagged(OTHER, 0x8100, 10)), Err(Unwanted::Unicast));
    assert_eq!(filter.accepts(&tagged(OWN, 0x8100, 11)), Err(Unwanted::Vlan));
}

#[test]
fn small_commands_are_decoded_whole_or_not_at_all() {
    assert_eq!(decode_switch(&[0]), Ok(false));
    assert_eq!(decode_switch(&[1]), Ok(true));
    assert_eq!(decode_switch(&[2]), Err(CommandFault::Switch(2)));
    assert_eq!(decode_switch(&[]), Err(CommandFault::Length));
    assert_eq!(decode_switch(&[1, 0]), Err(CommandFault::Length));
    assert_eq!(decode_vlan(&[0xff, 0x0f]), Ok(VlanId::MAX));
    assert_eq!(decode_vlan(&[0, 0x10]), Err(CommandFault::VlanId(4096)));
    assert_eq!(decode_vlan(&[1]), Err(CommandFault::Length));
    assert_eq!(decode_vlan(&[1, 0, 0, 0]), Err(CommandFault::Length));
    assert_eq!(decode_address(&OTHER), Ok(OTHER));
    assert_eq!(decode_address(&OTHER[..5]), Err(CommandFault::Length));
    assert_eq!(decode_address(&GROUP), Err(CommandFault::NoStation(GROUP)));
    assert_eq!(decode_address(&[0; 6]), Err(CommandFault::NoStation([0; 6])));
}

#[test]
fn reasons_have_words_of_their_own() {
    let mut words: Vec<&str> = Unwanted::ALL.iter().map(|reason| reason.name()).collect();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Unwanted::ALL.len());
}

fn any_mac() -> impl Strategy<Value = Mac> {
    // Few enough that they meet.
    (0_u8..4, 0_u8..3)
        .prop_map(|(first, last)| if first == 3 { BROADCAST } else { [first, 0, 0, 0, 0, last] })
}

proptest! {
    /// The rows NET-CTRL-RX-02 to -17 and NET-CTRL-MAC-04, read once more.
    #[test]
    fn the_filter_is_the_standard_s_table(
        modes: [bool; 6],
        own in any_mac(),
        unicast in prop::collection::vec(any_mac(), 0..6),
        multicast in prop::collection::vec(any_mac(), 0..6),
        to in any_mac(),
    ) {
        let mut filter = Filter::new(Some(own), true, false);
        for (mode, on) in RxMode::ALL.into_iter().zip(modes) {
            filter.set_mode(mode, on);
        }
        filter.set_table(MacTable::decode(&table(&unicast, &multicast)).unwrap());
        let [promiscuous, allmulti, alluni, nomulti, nouni, nobcast] = modes;
        let wanted = promiscuous
            || match (to == BROADCAST, to[0] & 1 == 1) {
                (true, _) => !nobcast,
                (false, true) => !nomulti && (allmulti || multicast.contains(&to)),
                (false, false) => !nouni && (alluni || to == own || unicast.contains(&to)),
            };
        prop_assert_eq!(filter.accepts(&frame(to)).is_ok(), wanted);
    }

    #[test]
    fn any_data_is_a_table_or_a_fault(
        data in prop::collection::vec(prop_oneof![6 => Just(0_u8), 1 => 1_u8..4], 0..40),
    ) {
        let count = |at: usize| {
            let bytes = data.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().unwrap()) as usize)
        };
        let exact = count(0).and_then(|n| {
            let at = n.checked_mul(6)?.checked_add(4)?;
            let m = count(at)?;
            at.checked_add(4)?.checked_add(m.checked_mul(6)?)
        });
        prop_assert_eq!(MacTable::decode(&data).is_ok(), exact == Some(data.len()));
    }
}
