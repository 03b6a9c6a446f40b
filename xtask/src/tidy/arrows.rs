//! Which crate may use which: the picture of ARCHITECTURE.md against the manifests.
//!
//! ```text
//!   vionetd, examples
//!     vhost-user   vfio-user   endpoint   user   driver       the outsides
//!            vionet                               the device
//!         queue    frame                          rings | what is in a frame
//!         raw      spec                           all unsafe | all numbers
//! ```

use super::{File, Finding};

/// Folder of a crate, and the crates of ours it may use. Tests and benches may use any.
const ARROWS: &[(&str, &[&str])] = &[
    ("spec", &[]),
    ("raw", &[]),
    ("frame", &["vionet-spec"]),
    ("queue", &["vionet-raw", "vionet-spec"]),
    ("vionet", &["vionet-frame", "vionet-queue", "vionet-raw", "vionet-spec"]),
    ("endpoint", &["vionet", "vionet-frame", "vionet-raw", "vionet-spec"]),
    ("user", &["vionet", "vionet-frame", "vionet-raw", "vionet-spec"]),
    ("socket", &[]),
    ("vhost-user", &["vionet", "vionet-queue", "vionet-raw", "vionet-socket", "vionet-spec"]),
    ("vfio-user", &["vionet", "vionet-raw", "vionet-socket"]),
    ("driver", &["vionet-frame", "vionet-raw", "vionet-spec"]),
    ("testkit", &["vionet", "vionet-queue", "vionet-raw", "vionet-spec"]),
];

/// Programs: they may use every crate of ours, and what [`PROGRAM_ONLY`] lists.
const PROGRAMS: &[&str] = &["vionetd", "mini-vmm"];

/// Async runtimes, log back-ends and command-line parsers: choices of a program, not of a library.
const PROGRAM_ONLY: &[&str] = &["tokio", "axum", "tracing-subscriber", "clap"];

pub(super) fn check(file: &File, findings: &mut Vec<Finding>) {
    let path = file.path.strip_prefix("crates/").or(file.path.strip_prefix("examples/"));
    let Some(folder) = path.and_then(|path| path.strip_suffix("/Cargo.toml")) else { return };
    let mut say = |line: usize, what: String, mend: &'static str| {
        findings.push(Finding { path: file.path.clone(), line, what, mend });
    };
    if !has_workspace_lints(&file.text) {
        say(1, "the lint wall is off".into(), "add `[lints]` with `workspace = true`");
    }
    if PROGRAMS.contains(&folder) {
        return;
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == folder) else {
        say(1, "a crate without arrows".into(), "add it to ARROWS in tidy and to ARCHITECTURE.md");
        return;
    };
    for (line, name) in dependencies(&file.text) {
        if name.starts_with("vionet") && !allowed.contains(&name) {
            let mend =
                "arrows go down only; move the code, or argue for the arrow in ARCHITECTURE.md";
            say(line, format!("new arrow {folder} -> {name}"), mend);
        }
        if PROGRAM_ONLY.contains(&name) {
            say(line, format!("`{name}` in a library"), "only a program chooses that");
        }
    }
}

/// Dependencies that users of the crate get, with their lines: not those of tests.
fn dependencies(manifest: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in (1_usize..).zip(manifest.lines()) {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            let (start, name) = section.rsplit_once('.').unwrap_or(("", section));
            inside = is_dependencies(name);
            if is_dependencies(start) {
                found.push((number, name)); // [dependencies.name]
            }
        } else if inside && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if !name.is_empty() {
                found.push((number, name));
            }
        }
    }
    found
}

fn is_dependencies(section: &str) -> bool {
    section == "dependencies" || section == "build-dependencies"
}

fn has_workspace_lints(manifest: &str) -> bool {
    let (_, after) = manifest.split_once("[lints]").unwrap_or_default();
    after.lines().map(str::trim).take_while(|line| !line.starts_with('[')).any(|line| {
        line.split_once('=')
            .is_some_and(|(key, value)| key.trim() == "workspace" && value.trim() == "true")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check(&File { path: path.into(), text: text.into() }, &mut findings);
        findings.into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    const LINTS: &str = "\n[lints]\nworkspace = true\n";

    #[test]
    fn an_arrow_that_is_not_in_the_picture_is_found() {
        let text = format!("[dependencies]\nvionet.workspace = true\n{LINTS}");
        assert_eq!(found("crates/queue/Cargo.toml", &text), ["2: new arrow queue -> vionet"]);
        let text = format!("[dependencies.vionet-queue]\npath = \"x\"\n{LINTS}");
        assert_eq!(found("crates/frame/Cargo.toml", &text), ["1: new arrow frame -> vionet-queue"]);
    }

    #[test]
    fn tests_and_programs_may_use_what_they_like() {
        let text = format!("[dev-dependencies]\nvionet-testkit.workspace = true\n{LINTS}");
        assert!(found("crates/queue/Cargo.toml", &text).is_empty());
        let text = format!("[dependencies]\nclap.workspace = true\nvionet.workspace = true{LINTS}");
        assert!(found("crates/vionetd/Cargo.toml", &text).is_empty());
    }

    #[test]
    fn a_library_chooses_no_runtime_and_every_crate_has_the_lints() {
        let text = "[dependencies]\ntokio = \"1\"\n";
        let expected = ["1: the lint wall is off", "2: `tokio` in a library"];
        assert_eq!(found("crates/user/Cargo.toml", text), expected);
    }

    #[test]
    fn a_crate_nobody_drew_is_found() {
        assert_eq!(found("crates/new/Cargo.toml", LINTS), ["1: a crate without arrows"]);
    }
}
