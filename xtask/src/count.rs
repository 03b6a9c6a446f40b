//! `cargo xtask count`: instructions per frame of each path, against what they may be.
//!
//! Callgrind counts, so the figure is the same whatever else the machine does. A change that makes
//! a path dearer fails here; one that makes it cheaper lowers the limit in [`CASES`], and says so.

use std::process::Command;

use crate::shell::{self, Result};

/// Each case of `crates/vionet/benches/count.rs`, and the most instructions per frame it may take.
const CASES: &[(&str, f64)] = &[
    ("ring-split", 61.0),
    ("ring-packed", 69.0),
    ("ring-receive-split", 62.0),
    ("ring-receive-packed", 69.0),
    ("transmit-split", 114.0),
    ("transmit-packed", 122.0),
    ("receive-split", 120.0),
    ("receive-packed", 130.0),
];

/// Batches of one run; each brings 32 frames.
const BATCHES: &str = "500";

/// Why it cannot be done here, if it cannot.
pub(crate) fn unable() -> Option<String> {
    let missing = !shell::has_program("valgrind");
    missing.then(|| "valgrind is not here; `apt-get install valgrind` brings it".into())
}

/// Builds the bench and counts every case.
pub(crate) fn run() -> Result {
    let program = build()?;
    let mut dearer = Vec::new();
    println!("  {:<22} {:>8} {:>8}", "instructions per frame", "counted", "at most");
    for (case, most) in CASES {
        let counted = count(&program, case)?;
        println!("  {case:<22} {counted:>8.1} {most:>8.1}");
        if counted > *most {
            dearer.push(format!("{case} takes {counted:.1} instead of {most:.1}"));
        }
    }
    if dearer.is_empty() { Ok(()) } else { Err(dearer.join(", ")) }
}

/// The path of the optimised bench.
fn build() -> std::result::Result<String, String> {
    let args = ["bench", "--package", "vionet", "--bench", "count", "--no-run", "--locked"];
    let output = shell::output(&mut shell::cargo(&args))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| line.contains("benches/count.rs ("));
    let path = line.and_then(|line| line.split_once('(')?.1.strip_suffix(')'));
    path.map(str::to_owned).ok_or_else(|| format!("the bench was not built:\n{said}"))
}

fn count(program: &str, case: &str) -> std::result::Result<f64, String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.args(["--toggle-collect=*measured*", program, case, BATCHES]);
    let output = shell::output(&mut valgrind)?;
    let (told, said) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        return Err(format!("{case} did not run under valgrind:\n{said}"));
    }
    per_frame(&told, &said).ok_or_else(|| format!("{case}: nothing was counted:\n{said}"))
}

/// From the frames that the program tells and the sum that callgrind says.
fn per_frame(told: &str, said: &str) -> Option<f64> {
    let frames: f64 = told.trim().parse().ok().filter(|frames| *frames > 0.0)?;
    let sum = said.lines().find_map(|line| line.split_once("Collected : "))?.1;
    let sum: f64 = sum.trim().parse().ok().filter(|sum| *sum > 0.0)?;
    Some(sum / frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_sum_over_frames_and_nothing_is_no_count() {
        let said = "==1== Events    : Ir\n==1== Collected : 32000\n";
        assert_eq!(per_frame("16000\n", said), Some(2.0));
        assert_eq!(per_frame("0\n", said), None);
        assert_eq!(per_frame("16000\n", "==1== Collected : 0\n"), None);
        assert_eq!(per_frame("", said), None);
    }
}
