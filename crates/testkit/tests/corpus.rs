//! The ring harness over kept inputs and over random ones.
#![allow(clippy::arithmetic_side_effects, reason = "tests may stop")]

use std::path::Path;

use proptest::prelude::*;
use vionet_testkit::{Random, drive};

#[test]
fn every_kept_input_runs_to_its_end() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/ring");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let inputs: Vec<_> = files.map(|path| std::fs::read(path).unwrap()).collect();
    assert!(inputs.len() >= 20, "the kept inputs are there");
    inputs.iter().for_each(|input| drive(input));
}

#[test]
fn random_bytes_run_to_their_end() {
    let mut random = Random::new(0x51b);
    for _ in 0..3_000 {
        let len = random.below(400);
        let input: Vec<u8> = (0..len).map(|_| random.next().to_le_bytes()[0]).collect();
        drive(&input);
    }
}

proptest! {
    #[test]
    fn any_bytes_run_to_their_end(input in prop::collection::vec(any::<u8>(), 0..400)) {
        drive(&input);
    }
}
