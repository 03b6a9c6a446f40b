//! `cargo xtask gate`: the link gate, and the proof that it can close.
//!
//! The crate in `gate/` links only if the optimised data path can neither panic nor allocate. A
//! gate that never closes guards nothing, so two faults are planted as well, and each must break
//! the link with the name of the function that stands for it.

use std::process::Command;

use crate::shell::{self, Result};

/// A planted fault: the feature of `gate/` that plants it, and the name the linker must miss.
const PLANTED: &[(&str, &str)] =
    &[("plant-panic", "the_datapath_can_panic"), ("plant-allocation", "the_datapath_allocates")];

/// Builds the gate clean, which must link, and with each planted fault, which must not.
pub(crate) fn run() -> Result {
    shell::run(&mut build(&[]))
        .map_err(|why| format!("{why}; what the linker calls undefined, the data path can do"))?;
    println!("  the data path links: it can neither panic nor allocate");
    for (feature, symbol) in PLANTED {
        let output = shell::output(&mut build(&["--features", feature]))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return Err(format!("the gate cannot close: it linked with {feature}"));
        }
        if !said.contains(symbol) {
            return Err(format!("the gate closed on {feature}, but not for {symbol}:\n{said}"));
        }
        println!("  with {feature} it does not link: undefined {symbol}");
    }
    Ok(())
}

fn build(more: &[&str]) -> Command {
    let mut command = shell::cargo(&["build", "--release"]);
    command.args(["--manifest-path", "gate/Cargo.toml", "--target-dir"]);
    command.arg(shell::target_dir().join("gate")).args(more);
    command
}
