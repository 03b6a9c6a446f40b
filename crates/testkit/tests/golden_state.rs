//! Saved states that are kept, one of each kind and version: they are read for ever, and written to
//! the same bytes as long as theirs is the version written.
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
    reason = "tests may stop"
)]

mod board;
#[path = "golden/hostile.rs"]
mod hostile;
#[path = "golden/scenes.rs"]
mod scenes;

use std::path::PathBuf;
use std::sync::Arc;

use hostile::{attempt, body, device, enveloped, ram, wiring};
use proptest::prelude::*;
use vionet::state::StateError;
use vionet::transport::{MmioNic, PciNic};
use vionet::{Hands, Op, State};

/// Where states are put that differ from those kept.
const NEW: &str = env!("CARGO_TARGET_TMPDIR");

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Every state that is kept, by its file's name.
fn golden() -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(folder()).unwrap().flatten();
    let named = files.map(|file| (file.file_name().into_string().unwrap(), file.path()));
    let states = named.filter(|(name, _)| name.ends_with(".bin"));
    states.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

#[test]
fn what_is_saved_today_is_what_was_saved() {
    let folder = folder();
    let mut differ = Vec::new();
    for (name, state) in scenes::all() {
        let name = format!("state-v1-{name}.bin");
        let bytes = state.encode();
        if std::fs::read(folder.join(&name)).ok().as_ref() != Some(&bytes) {
            std::fs::write(PathBuf::from(NEW).join(&name), &bytes).unwrap();
            differ.push(name);
        }
    }
    assert!(differ.is_empty(), "{differ:?} are in {NEW} now; what is out stays as it is");
}

#[test]
fn kept_states_are_restored_and_saved_to_the_same_bytes() {
    let golden = golden();
    assert!(golden.len() >= 4);
    for (name, bytes) in golden {
        let state = State::decode(&bytes).unwrap();
        let (ram, hands) = (ram(), Hands::new().unwrap());
        let device = || device(state.config(), &hands);
        let wiring = wiring(&ram, state.queue_size());
        let pci = PciNic::new(device(), &wiring).unwrap();
        let mmio = MmioNic::new(device(), &wiring).unwrap();
        pci.restore(&state).unwrap();
        mmio.restore(&state).unwrap();
        let [by_pci, by_mmio] = [pci.save().unwrap(), mmio.save().unwrap()];
        match &*name {
            name if name.contains("pci") => assert_eq!(by_pci.encode(), bytes, "{name}"),
            name if name.contains("mmio") => assert_eq!(by_mmio.encode(), bytes, "{name}"),
            name => {
                let mut device = device();
                device.apply(Op::Memory(Arc::clone(ram.space()))).unwrap();
                device.restore(&state).unwrap();
                assert_eq!(device.save().unwrap().encode(), bytes, "{name}");
            }
        }
        // There and back again, nothing is lost that both buses have.
        pci.reset().unwrap();
        pci.restore(&by_mmio).unwrap();
        mmio.reset().unwrap();
        mmio.restore(&pci.save().unwrap()).unwrap();
        assert!(mmio.save().unwrap() == by_mmio, "{name}");
    }
}

#[test]
fn bytes_that_are_no_state_are_refused_by_what_they_lack() {
    for (_, good) in golden() {
        for len in 0..good.len() {
            let error = State::decode(&good[..len]).unwrap_err();
            assert_eq!(error, if len < 8 { StateError::NoState } else { StateError::Length });
        }
        let changed = |at: usize, bit: u8| {
            let mut bytes = good.clone();
            bytes[at] ^= bit;
            State::decode(&bytes)
        };
        for at in 0..8 {
            assert_eq!(changed(at, 0x20), Err(StateError::NoState));
        }
        assert_eq!(changed(8, 2), Err(StateError::Version { version: 3, known: 1 }));
        assert_eq!(changed(13, 0x80), Err(StateError::Length));
        for at in 14..good.len() {
            assert_eq!(changed(at, 1 << (at % 8)), Err(StateError::Damaged), "{at}");
        }
        let more = [&good[..], &[0]].concat();
        assert_eq!(State::decode(&more), Err(StateError::Length));
        // With a sum that is right, something too many is still nothing of ours.
        let more = enveloped(&[body(&good), &[0]].concat());
        assert_eq!(State::decode(&more), Err(StateError::Damaged));
    }
    let long = enveloped(&vec![0; 1 << 21]);
    assert_eq!(State::decode(&long), Err(StateError::Length), "and nothing is made of it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_body_that_a_stranger_has_changed_is_refused_or_served(
        which: proptest::sample::Index,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let golden = golden();
        let mut body = body(&which.get(&golden).1).to_vec();
        for (at, value) in changes {
            let at = at.index(body.len());
            body[at] = value;
        }
        attempt(&body);
    }
}

/// What fuzzing has found worth keeping.
#[test]
fn the_committed_bodies_are_refused_or_served() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/state");
    let inputs: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().collect();
    assert!(inputs.len() >= 4);
    inputs.iter().for_each(|input| attempt(&std::fs::read(input.path()).unwrap()));
}
