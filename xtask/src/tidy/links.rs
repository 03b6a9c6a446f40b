//! Documents name files; the files must be there.
//!
//! Looked at are links, `[text](path)`, and paths in backticks that begin in a folder of the root.

use std::path::Path;

use super::{File, Finding};

/// A path in backticks is meant as one of this tree if it begins so.
const FOLDERS: &[&str] = &["crates/", "docs/", "fuzz/", "gate/", "xtask/"];

pub(super) fn check(root: &Path, file: &File, findings: &mut Vec<Finding>) {
    let folder = root.join(&file.path).parent().map_or_else(|| root.into(), Path::to_path_buf);
    for (number, line) in (1_usize..).zip(file.text.lines()) {
        let missing_link = links(line).filter(|link| !folder.join(link).exists());
        let missing_path = paths(line).filter(|path| !root.join(path).exists());
        for path in missing_link.chain(missing_path) {
            findings.push(Finding {
                path: file.path.clone(),
                line: number,
                what: format!("`{path}` is not there"),
                mend: "name the file that has taken its place, or drop the sentence",
            });
        }
    }
}

/// The targets of links within the tree, without what follows `#`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let (target, _) = rest.split_once(')')?;
        let (path, _) = target.split_once('#').unwrap_or((target, ""));
        (!path.is_empty() && !path.contains("://") && !path.starts_with("mailto:")).then_some(path)
    })
}

/// Paths in backticks; those with a placeholder name no one file.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|text| {
        FOLDERS.iter().any(|folder| text.starts_with(folder))
            && !text.contains(['<', '*', ' ', '{'])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        let file = File { path: "README.md".into(), text: text.into() };
        check(&crate::shell::root(), &file, &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn files_that_are_gone_are_found() {
        assert_eq!(found("see [it](GONE.md#part)"), ["`GONE.md` is not there"]);
        assert_eq!(found("in `crates/gone/src`, `x`"), ["`crates/gone/src` is not there"]);
    }

    #[test]
    fn files_that_are_there_and_places_elsewhere_are_not() {
        assert!(found("[a](README.md) [b](https://example.org/x) [c](#part)").is_empty());
        assert!(found("`crates/raw` and `fuzz/corpus/<target>/` and `cargo xtask`").is_empty());
    }
}
