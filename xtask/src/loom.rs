//! `cargo xtask loom`: the publish and notify protocol of the rings under the model checker loom.
//!
//! With `--cfg loom` the cells of rings are loom's (`crates/raw/src/memory/sync.rs`), and the tests
//! in `crates/queue/tests/loom` run the real queue in every order of two threads. What is built so
//! is of use for nothing else, hence a folder of its own.

use crate::shell::{self, Result};

/// Builds and runs the proof. Optimised, since it takes tens of thousands of executions; without
/// what only a debugger reads, since building is what takes long.
pub(crate) fn run() -> Result {
    let args = ["test", "--locked", "--package", "vionet-queue", "--test", "loom", "--target-dir"];
    let mut test = shell::cargo(&args);
    test.arg(shell::target_dir().join("loom"));
    test.env("RUSTFLAGS", "--cfg loom -D warnings");
    test.env("CARGO_PROFILE_TEST_OPT_LEVEL", "2").env("CARGO_PROFILE_TEST_DEBUG", "0");
    shell::run(&mut test)
}
