//! Developer commands of vionet, behind one entry: `cargo xtask <command>`.
//!
//! ```text
//!   test = setup + ci           what a newcomer runs, and what CI runs
//!             |     |
//!     packages    fmt tidy deny clippy docs tests loom gate count demo fuzz guests newer
//! ```
//!
//! Only the standard library is used, so the tool is built in a second and works offline.
#![forbid(unsafe_code)]

mod ci;
mod count;
mod docs;
mod fuzz;
mod gate;
mod loom;
mod newer;
mod setup;
mod shell;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
Developer commands of vionet.

usage: cargo xtask <command>        (cargo x <command> is the same)

  test                     install what the tests need, then everything CI runs
  ci                       everything CI runs, quickest first; says what it skipped and why
  setup                    install what the tests need (Debian, as root), else say what is missing
  tidy                     house rules no compiler knows: sizes, names, crate arrows, reasons
  conformance              how many requirements of each group a test shows, and which are not yet
  loom                     the rings' publish and notify protocol, in every order of two threads
  gate                     link gate: the data path links only if it can neither panic nor allocate
  count                    instructions per frame of each path, against their limits (valgrind)
  fuzz                     list the fuzz targets
  fuzz TARGET [--seconds N]
                           fuzz one target from its committed corpus (default: until it is stopped)
  docs                     rustdoc with warnings denied
  help                     this text

examples:
  cargo xtask test                     # the one command that passes all tests
  cargo xtask tidy                     # a second; run it before each commit
  cargo xtask fuzz header --seconds 60

exit codes: 0 all is well, 1 something failed, 2 the command line was not understood";

/// What a command comes to.
enum Verdict {
    Good,
    Bad,
    NotUnderstood(String),
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match dispatch(&words) {
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Bad => ExitCode::FAILURE,
        Verdict::NotUnderstood(why) => {
            eprintln!("{why}; see `cargo xtask help`");
            ExitCode::from(2)
        }
    }
}

fn dispatch(words: &[&str]) -> Verdict {
    if words.iter().any(|word| matches!(*word, "-h" | "--help")) {
        println!("{HELP}");
        return Verdict::Good;
    }
    match words {
        [] | ["help"] => {
            println!("{HELP}");
            Verdict::Good
        }
        ["test"] => told(ci::test()),
        ["ci"] => told(ci::ci()),
        ["setup"] => finished(setup::run()),
        ["tidy"] => finished(tidy::run()),
        ["conformance"] => finished(tidy::conformance()),
        ["loom"] => finished(loom::run()),
        ["gate"] => finished(gate::run()),
        ["count"] => finished(count::unable().map_or_else(count::run, Err)),
        ["docs"] => finished(docs::run()),
        ["fuzz"] => finished(fuzz::list()),
        ["fuzz", target] => finished(fuzz::run(target, None)),
        ["fuzz", target, "--seconds", seconds] => match seconds.parse() {
            Ok(seconds) => finished(fuzz::run(target, Some(seconds))),
            Err(_) => Verdict::NotUnderstood(format!("`{seconds}` is not a number of seconds")),
        },
        [other, ..] => Verdict::NotUnderstood(format!("no command `{other}` of that form")),
    }
}

fn finished(result: shell::Result) -> Verdict {
    match result {
        Ok(()) => Verdict::Good,
        Err(why) => {
            eprintln!("{why}");
            Verdict::Bad
        }
    }
}

fn told(all_passed: bool) -> Verdict {
    if all_passed { Verdict::Good } else { Verdict::Bad }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_command_is_a_usage_error() {
        assert!(matches!(dispatch(&["frobnicate"]), Verdict::NotUnderstood(_)));
        assert!(matches!(dispatch(&["ci", "now"]), Verdict::NotUnderstood(_)));
        assert!(matches!(dispatch(&["fuzz", "x", "--seconds", "y"]), Verdict::NotUnderstood(_)));
    }

    #[test]
    fn help_is_given_wherever_it_is_asked_for() {
        assert!(matches!(dispatch(&[]), Verdict::Good));
        assert!(matches!(dispatch(&["ci", "--help"]), Verdict::Good));
    }
}
