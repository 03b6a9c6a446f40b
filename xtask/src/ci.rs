//! `cargo xtask ci` and `cargo xtask test`: every check, quickest first, each with its time.
//!
//! A failed step does not hide the ones after it: all run, and the end says how each came out.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::shell::{self, Result, cargo};
use crate::{count, docs, fuzz, gate, loom, newer, setup, tidy};

/// How long CI fuzzes each target.
const FUZZ_SECONDS: u32 = 30;

/// One thing CI does.
struct Step {
    name: &'static str,
    /// Why it cannot be done here, if it cannot.
    unable: fn() -> Option<String>,
    run: fn() -> Result,
}

const SETUP: Step = Step { name: "setup", unable: nothing, run: setup::run };

const STEPS: &[Step] = &[
    Step { name: "fmt", unable: nothing, run: fmt },
    Step { name: "tidy", unable: nothing, run: tidy::run },
    Step { name: "deny", unable: no_cargo_deny, run: deny },
    Step { name: "clippy", unable: nothing, run: clippy },
    Step { name: "docs", unable: nothing, run: docs::run },
    Step { name: "tests", unable: nothing, run: tests },
    Step { name: "loom", unable: nothing, run: loom::run },
    Step { name: "gate", unable: nothing, run: gate::run },
    Step { name: "count", unable: count::unable, run: count::run },
    Step { name: "demo", unable: nothing, run: demo },
    Step { name: "fuzz", unable: setup::complaint, run: fuzz_all },
    Step { name: "guests", unable: setup::complaint, run: guests },
    Step { name: "newer", unable: no_newer, run: newer_guests },
];

/// Where a step ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// Installs what the tests need, then does all that CI does. True if nothing failed.
pub(crate) fn test() -> bool {
    let steps: Vec<&Step> = std::iter::once(&SETUP).chain(STEPS).collect();
    run_all(&steps)
}

/// All that CI does. True if nothing failed.
pub(crate) fn ci() -> bool {
    let steps: Vec<&Step> = STEPS.iter().collect();
    run_all(&steps)
}

fn run_all(steps: &[&Step]) -> bool {
    let start = now();
    let mut report = Vec::new();
    for (number, step) in (1_u32..).zip(steps) {
        println!("[{number}/{}] {}", steps.len(), step.name);
        let start = now();
        let outcome = attempt(step);
        println!("{}\n", line(step.name, &outcome, start.elapsed()));
        report.push((step.name, outcome, start.elapsed()));
    }
    println!("all steps, {:.0} s:", start.elapsed().as_secs_f64());
    for (name, outcome, took) in &report {
        println!("{}", line(name, outcome, *took));
    }
    println!("{}", sum(report.iter().map(|(_, outcome, _)| outcome)));
    !report.iter().any(|(_, outcome, _)| matches!(outcome, Outcome::Failed(_)))
}

fn attempt(step: &Step) -> Outcome {
    if let Some(why) = (step.unable)() {
        return Outcome::Skipped(why);
    }
    match (step.run)() {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Failed(why),
    }
}

fn line(name: &str, outcome: &Outcome, took: Duration) -> String {
    let took = took.as_secs_f64();
    match outcome {
        Outcome::Passed => format!("  {name:<8} passed  {took:7.1} s"),
        Outcome::Failed(why) => format!("  {name:<8} FAILED  {took:7.1} s  {why}"),
        Outcome::Skipped(why) => format!("  {name:<8} skipped           {why}"),
    }
}

/// The last line, in the form tools read: `N passed, N failed, N skipped`.
fn sum<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> String {
    let passed = outcomes.clone().filter(|o| matches!(o, Outcome::Passed)).count();
    let failed = outcomes.clone().filter(|o| matches!(o, Outcome::Failed(_))).count();
    let skipped = outcomes.filter(|o| matches!(o, Outcome::Skipped(_))).count();
    format!("{passed} passed, {failed} failed, {skipped} skipped")
}

fn nothing() -> Option<String> {
    None
}

/// The workspace, and the two crates that stand outside it.
fn fmt() -> Result {
    shell::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    shell::run(&mut cargo(&["fmt", "--check", "--manifest-path", "gate/Cargo.toml"]))?;
    shell::run(&mut cargo(&["fmt", "--check", "--manifest-path", "fuzz/Cargo.toml"]))
}

fn clippy() -> Result {
    let args = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    shell::run(&mut cargo(&args))
}

fn no_cargo_deny() -> Option<String> {
    let missing = setup::cargo_deny().is_none();
    missing.then(|| "cargo-deny is not here; `cargo xtask setup` builds it".into())
}

/// Advisories need the network and change by themselves, so they are no part of this.
fn deny() -> Result {
    let program = setup::cargo_deny().unwrap_or_else(|| "cargo-deny".into());
    let mut check = Command::new(program);
    check.current_dir(shell::root()).args(["check", "bans", "licenses", "sources"]);
    shell::run(&mut check)
}

fn tests() -> Result {
    shell::run(&mut cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]))
}

fn fuzz_all() -> Result {
    fuzz::targets()?.iter().try_for_each(|target| fuzz::run(target, Some(FUZZ_SECONDS)))
}

/// Real guests: under QEMU against the program as users get it, and on the example's own VMM. With
/// `CI` set, what cannot run has failed.
fn guests() -> Result {
    shell::run(guest_tests().args(["--skip", NEWER]))?;
    let args = ["test", "--release", "--locked", "--package", "mini-vmm", "--test", "linux"];
    shell::run(cargo(&args).env("CI", "1"))
}

fn no_newer() -> Option<String> {
    setup::complaint().or_else(newer::complaint)
}

/// The same for what needs a newer QEMU and a newer Linux than the machine's own.
fn newer_guests() -> Result {
    shell::run(guest_tests().arg(NEWER).env(newer::VARIABLE, newer::directory()))
}

/// The module of those tests.
const NEWER: &str = "newer::";

fn guest_tests() -> Command {
    let args = ["test", "--release", "--locked", "--package", "vionetd", "--test", "guest", "--"];
    let mut tests = cargo(&args);
    tests.env("CI", "1");
    tests
}

/// The README's first command, as it stands there.
fn demo() -> Result {
    shell::run(&mut cargo(&["run", "--release", "--", "demo"]))?;
    shell::run(&mut cargo(&["run", "--release", "-p", "vionet-endpoint", "--example", "embed"]))
}

#[allow(clippy::disallowed_methods, reason = "a program that reports how long its steps took")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_form_that_tools_read() {
        let outcomes =
            [Outcome::Passed, Outcome::Skipped("no".into()), Outcome::Passed, Outcome::Passed];
        assert_eq!(sum(outcomes.iter()), "3 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_step_that_cannot_run_is_skipped_and_one_that_errs_has_failed() {
        let unable = Step { name: "a", unable: || Some("why".into()), run: || Ok(()) };
        assert!(matches!(attempt(&unable), Outcome::Skipped(why) if why == "why"));
        let erring = Step { name: "b", unable: nothing, run: || Err("broke".into()) };
        assert!(matches!(attempt(&erring), Outcome::Failed(why) if why == "broke"));
    }
}
