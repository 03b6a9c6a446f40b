//! `cargo xtask tidy`: the house rules that no compiler knows.
//!
//! ```text
//!   every file      words        no paths of somebody's machine, no numbers of tickets
//!   Rust files      style        sizes, names, first lines, reasons, unsafe, ignored tests
//!   documents       links        the files they name are there
//!   the table of     conformance  every requirement of a group has a test that is there
//!     requirements
//!   manifests       arrows       which crate may use which, lints switched on
//! ```
//!
//! The same check is a test of this crate, so a run of all tests cannot forget it. A limit yields
//! only to an entry of [`EXCEPTIONS`], which says why.

mod arrows;
mod conformance;
mod links;
mod source;
mod style;
mod words;

use std::fmt;
use std::path::{Path, PathBuf};

use crate::shell::{self, Result};

/// A broken rule: where, what, and how to mend it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
    mend: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.what, self.mend)
    }
}

/// A file of the tree: its path from the root with `/` between, and its text.
struct File {
    path: String,
    text: String,
}

/// A limit that is raised for one file, and why splitting would be worse.
struct Exception {
    path: &'static str,
    lines: usize,
    reason: &'static str,
}

/// Files that may be longer than [`style::FILE_LINES`].
const EXCEPTIONS: &[Exception] = &[];

/// Folders that hold no source.
const SKIPPED: &[&str] = &[".git", "target", "artifacts", "corpus"];

/// Checks the tree and prints what is wrong.
pub(crate) fn run() -> Result {
    let findings = check(&shell::root())?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => Err(format!("tidy found {count} things to mend")),
    }
}

/// Prints how many requirements of each group are shown, and which are not yet.
pub(crate) fn conformance() -> Result {
    let root = shell::root();
    println!("{}", conformance::coverage(&read_tree(&root)?));
    Ok(())
}

/// Every broken rule of the tree.
fn check(root: &Path) -> Result<Vec<Finding>> {
    let files = read_tree(root)?;
    let mut findings = Vec::new();
    for file in &files {
        words::check(file, &mut findings);
        if file.path.ends_with(".rs") {
            style::check(file, EXCEPTIONS, &mut findings);
        }
        if file.path.ends_with(".md") {
            links::check(root, file, &mut findings);
        }
        if file.path.ends_with("Cargo.toml") {
            arrows::check(file, &mut findings);
        }
    }
    conformance::check(root, &files, &mut findings);
    findings.extend(stale_exceptions(&files));
    findings.extend(unlisted_fuzz_targets(&files));
    Ok(findings)
}

/// Cargo finds binaries only in `src`, so each fuzz target needs its lines in the manifest.
fn unlisted_fuzz_targets(files: &[File]) -> Vec<Finding> {
    let manifest = files.iter().find(|file| file.path == "fuzz/Cargo.toml");
    let manifest = manifest.map_or("", |file| file.text.as_str());
    let is_unlisted = |file: &&File| {
        let target = file.path.strip_prefix("fuzz/");
        target.is_some_and(|path| {
            path.starts_with("fuzz_targets/") && !manifest.contains(&format!("\"{path}\""))
        })
    };
    let finding = |file: &File| Finding {
        path: file.path.clone(),
        line: 1,
        what: "a fuzz target that is never built".into(),
        mend: "give it a `[[bin]]` in fuzz/Cargo.toml",
    };
    files.iter().filter(is_unlisted).map(finding).collect()
}

/// An exception whose file is gone, or which says no reason, is itself untidy.
fn stale_exceptions(files: &[File]) -> Vec<Finding> {
    let is_stale = |exception: &&Exception| {
        exception.reason.is_empty() || !files.iter().any(|file| file.path == exception.path)
    };
    let finding = |exception: &Exception| Finding {
        path: exception.path.into(),
        line: 1,
        what: format!("exception to {} lines", exception.lines),
        mend: "its file is gone or it gives no reason; remove it from tidy's list",
    };
    EXCEPTIONS.iter().filter(is_stale).map(finding).collect()
}

fn read_tree(root: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir().map_err(|error| unreadable(&folder, &error))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_symlink() || SKIPPED.contains(&name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                files.extend(read_text(root, &path)?);
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(files)
}

/// A file that is not text is none of our business.
fn read_text(root: &Path, path: &PathBuf) -> Result<Option<File>> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    let relative = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
    Ok(String::from_utf8(bytes).ok().map(|text| File { path: relative, text }))
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let findings = check(&shell::root()).unwrap();
        let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }

    #[test]
    fn a_fuzz_target_that_is_not_in_the_manifest_is_found() {
        let file = |path: &str, text: &str| File { path: path.into(), text: text.into() };
        let manifest = file("fuzz/Cargo.toml", "path = \"fuzz_targets/a.rs\"");
        let files =
            [manifest, file("fuzz/fuzz_targets/a.rs", ""), file("fuzz/fuzz_targets/b.rs", "")];
        let findings = unlisted_fuzz_targets(&files);
        assert!(matches!(findings.as_slice(), [one] if one.path == "fuzz/fuzz_targets/b.rs"));
    }

    #[test]
    fn a_finding_reads_like_a_compiler_s_message() {
        let finding = Finding { path: "a.rs".into(), line: 7, what: "w".into(), mend: "m" };
        assert_eq!(finding.to_string(), "a.rs:7: w: m");
    }
}
