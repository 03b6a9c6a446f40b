//! Words that must not stand anywhere in the tree, in code, comments or documents.
//!
//! The tree stands by itself: a stranger can follow every reference in it.

use super::{File, Finding};

/// The word, and what to write instead. Split in two so that this file passes its own rule.
const BANNED: &[(&str, &str, &str)] = &[
    ("/wo", "rk/", "a path of one machine; name the file by its path in the tree"),
    ("/var/t", "mp/", "a path of one machine; use the system's temporary folder"),
    ("/home", "/", "a path of one machine; use the system's temporary folder"),
    ("issue ", "#", "tickets are not part of the tree; say the reason itself"),
    ("design", ".md", "no such file; say the reason itself or cite ARCHITECTURE.md"),
    ("landscape", ".md", "no such file; say the reason itself"),
    ("anchors", ".md", "no such file; say the reason itself"),
];

pub(super) fn check(file: &File, findings: &mut Vec<Finding>) {
    for (number, line) in (1_usize..).zip(file.text.lines()) {
        for (start, end, mend) in BANNED {
            let word = format!("{start}{end}");
            if line.contains(&word) {
                let what = format!("`{word}`");
                findings.push(Finding { path: file.path.clone(), line: number, what, mend });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_one_machine_is_found_in_any_file() {
        let text = format!("first\nsee {}{}notes\n", "/wo", "rk/");
        let mut findings = Vec::new();
        check(&File { path: "README.md".into(), text }, &mut findings);
        assert!(matches!(findings.as_slice(), [finding] if finding.line == 2));
    }
}
