//! `cargo xtask fuzz`: libFuzzer with the stable compiler.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs   one target, a few lines: bytes in, nothing may stop
//!   fuzz/corpus/NAME/           inputs worth keeping, committed; only read here
//!   TARGET/fuzz/corpus/NAME/    inputs found on this machine; they stay for the next run
//!   TARGET/fuzz/artifacts/NAME/ inputs that stopped the target
//! ```
//!
//! The instrumentation is LLVM's own pass, which stable rustc passes on; only the address sanitiser
//! would need a nightly, and our unsafe code is tested against guard pages instead.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{self, Result};

/// Counters per edge, a table of their places, and the operands of comparisons.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The names of the targets, in order.
pub(crate) fn targets() -> Result<Vec<String>> {
    let folder = shell::root().join("fuzz/fuzz_targets");
    let entries = folder.read_dir().map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Prints the names of the targets.
pub(crate) fn list() -> Result {
    println!("fuzz targets: {}", targets()?.join(", "));
    Ok(())
}

/// Fuzzes one target for so many seconds, or until it is stopped.
pub(crate) fn run(target: &str, seconds: Option<u32>) -> Result {
    let known = targets()?;
    if !known.iter().any(|name| name == target) {
        return Err(format!("no fuzz target `{target}`; there are {}", known.join(", ")));
    }
    let host = host_triple()?;
    let out = shell::target_dir().join("fuzz");
    build(target, &host, &out)?;
    let found = out.join("corpus").join(target);
    let artifacts = out.join("artifacts").join(target);
    for folder in [&found, &artifacts] {
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut fuzzer = Command::new(out.join(&host).join("release").join(target));
    fuzzer.arg(&found).args(committed_corpus(target));
    fuzzer.args(["-timeout=10", "-rss_limit_mb=2048"]);
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    let result = match seconds {
        None => shell::run(&mut fuzzer),
        Some(seconds) => run_quietly(&mut fuzzer, seconds),
    };
    result.map_err(|why| {
        let folder = artifacts.display();
        format!("{why}; the input is in {folder}: mend, then add it to fuzz/corpus/{target}/")
    })
}

/// For so many seconds, telling only the sum; all that the engine said if it failed.
fn run_quietly(fuzzer: &mut Command, seconds: u32) -> Result {
    fuzzer.args(["-verbosity=0", "-print_final_stats=1"]);
    fuzzer.arg(format!("-max_total_time={seconds}"));
    println!("  fuzzing for {seconds} s");
    let output = shell::output(fuzzer)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{said}\nthe target stopped with {}", output.status));
    }
    said.lines().filter(|line| line.starts_with("stat::")).for_each(|line| println!("  {line}"));
    Ok(())
}

/// An explicit `--target` keeps the instrumentation out of build scripts.
fn build(target: &str, host: &str, out: &Path) -> Result {
    let mut command = shell::cargo(&["build", "--release", "--bin", target]);
    command.args(["--manifest-path", "fuzz/Cargo.toml", "--target", host, "--target-dir"]);
    shell::run(command.arg(out).env("RUSTFLAGS", INSTRUMENTED))
}

fn committed_corpus(target: &str) -> Option<PathBuf> {
    let folder = shell::root().join("fuzz/corpus").join(target);
    folder.is_dir().then_some(folder)
}

fn host_triple() -> Result<String> {
    let version = shell::output(Command::new("rustc").arg("-vV"))?;
    let version = String::from_utf8_lossy(&version.stdout);
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "`rustc -vV` names no host".into())
}
