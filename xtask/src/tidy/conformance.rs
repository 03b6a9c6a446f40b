//! The conformance table names every requirement once, and tests that exist.

use std::collections::BTreeMap;
use std::path::Path;

use super::{File, Finding};

const TABLE: &str = "docs/conformance.md";
const SCENES: &str = "crates/queue/tests/scenes";

/// Families of requirements and how many rows each has.
const FAMILIES: &[(&str, usize)] =
    &[("VQR", 7), ("SPL", 20), ("SPN", 20), ("PKD", 29), ("PKN", 7), ("NDAT", 4)];

pub(super) fn check(root: &Path, files: &[File], findings: &mut Vec<Finding>) {
    let Some(table) = files.iter().find(|file| file.path == TABLE) else {
        return findings.push(finding(1, "is not there".into(), "write it"));
    };
    let mut seen = BTreeMap::new();
    for (number, line) in (1_usize..).zip(table.text.lines()) {
        let Some((row, tests)) = row_of(line) else { continue };
        if seen.insert(row.to_owned(), number).is_some() {
            findings.push(finding(number, format!("{row} stands twice"), "keep one of them"));
        }
        for test in tests.split("; ").map(str::trim) {
            if !exists(root, files, test) {
                let what = format!("{row}: there is no `{test}`");
                findings.push(finding(number, what, "name the test that shows it"));
            }
        }
    }
    for (family, count) in FAMILIES {
        for number in 1..=*count {
            let row = format!("{family}-{number:02}");
            if seen.remove(&row).is_none() {
                let what = format!("{row} is missing");
                findings.push(finding(1, what, "add the row with the test that shows it"));
            }
        }
    }
    for (row, number) in seen {
        findings.push(finding(number, format!("{row} is no requirement"), "drop the row"));
    }
}

fn finding(line: usize, what: String, mend: &'static str) -> Finding {
    Finding { path: TABLE.into(), line, what, mend }
}

/// The row's name and its tests.
fn row_of(line: &str) -> Option<(&str, &str)> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
    let (row, _, tests) = (cells.next()?, cells.next()?, cells.next()?);
    let (family, number) = row.split_once('-')?;
    let is_row = !family.is_empty()
        && family.bytes().all(|byte| byte.is_ascii_uppercase())
        && number.bytes().all(|byte| byte.is_ascii_digit());
    is_row.then_some((row, tests))
}

fn exists(root: &Path, files: &[File], test: &str) -> bool {
    if let Some(scene) = test.strip_prefix("scene ") {
        return root.join(SCENES).join(format!("{scene}.scene")).exists();
    }
    let Some((path, name)) = test.split_once("::") else { return false };
    let Some(file) = files.iter().find(|file| file.path == path) else { return false };
    let head = format!("fn {name}(");
    // A test, not a function that nobody runs.
    file.text.split("#[test]").skip(1).any(|rest| {
        rest.split_once("fn ").is_some_and(|(_, rest)| format!("fn {rest}").starts_with(&head))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    fn found(rows: &str) -> Vec<String> {
        let tests = file("a.rs", "#[test]\nfn real() {}\nfn idle() {}\n");
        let mut findings = Vec::new();
        check(Path::new("/nowhere"), &[file(TABLE, rows), tests], &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_row_that_names_no_test_or_stands_twice_is_found() {
        let all =
            found("| VQR-01 | x | a.rs::idle |\n| VQR-02 | x | a.rs::real |\n| VQR-02 | x | b |\n");
        assert!(all.contains(&"VQR-01: there is no `a.rs::idle`".into()), "{all:?}");
        assert!(all.contains(&"VQR-02 stands twice".into()));
        assert!(all.contains(&"VQR-02: there is no `b`".into()));
        assert!(!all.iter().any(|what| what.contains("real")));
    }

    #[test]
    fn a_missing_row_and_an_invented_one_are_found() {
        let all = found("| VQR-01 | x | a.rs::real |\n| VQR-77 | x | a.rs::real |\n");
        assert!(all.contains(&"VQR-77 is no requirement".into()));
        assert!(all.contains(&"PKD-29 is missing".into()));
        assert!(!all.contains(&"VQR-01 is missing".into()));
        let mut findings = Vec::new();
        check(Path::new("/nowhere"), &[], &mut findings);
        assert_eq!(findings.len(), 1, "no table at all");
    }
}
