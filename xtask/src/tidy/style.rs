//! Rules for Rust files: sizes, names, first lines, reasons, `unsafe`, ignored tests.

use super::source::{self, Word};
use super::{Exception, File, Finding};

/// Lines of a file without its tests.
pub(super) const FILE_LINES: usize = 600;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Columns of a line.
const COLUMNS: usize = 100;

/// Words that name mechanics instead of meaning.
const EMPTY_WORDS: &[&str] = &["manager", "wrapper", "helper", "helpers", "ctx", "util", "utils"];

/// The crate with all `unsafe`; the link gate, which is a test artefact; what a driver of another
/// make asks of a test; and what KVM asks of an embedder.
const UNSAFE: &[&str] =
    &["crates/raw/", "gate/", "crates/testkit/tests/foreign/", "examples/mini-vmm/src/kvm.rs"];

pub(super) fn check(file: &File, exceptions: &[Exception], findings: &mut Vec<Finding>) {
    let code = source::code_of(&file.text);
    let words = source::words_of(&code);
    let mut say = |line: usize, what: String, mend: &'static str| {
        findings.push(Finding { path: file.path.clone(), line, what, mend });
    };
    sizes(file, exceptions, &words, &mut say);
    names(file, &words, &mut say);
    attributes(file, &words, &mut say);
    unsafety(file, &words, &mut say);
    if !file.text.starts_with("//!") {
        say(1, "no head".into(), "begin the file with a `//!` line that states its one duty");
    }
}

fn sizes(
    file: &File,
    exceptions: &[Exception],
    words: &[Word<'_>],
    say: &mut impl FnMut(usize, String, &'static str),
) {
    for (number, line) in (1_usize..).zip(file.text.lines()) {
        let columns = line.chars().count();
        if columns > COLUMNS && !line.contains("https://") {
            say(number, format!("{columns} columns"), "at most 100; break the line");
        }
    }
    if is_test_file(&file.path) {
        return;
    }
    let tests = source::test_lines(words);
    let is_test = |line: usize| tests.iter().any(|range| range.contains(&line));
    for function in source::functions(words) {
        if function.lines > FUNCTION_LINES && !is_test(function.line) {
            let what = format!("`{}` has {} lines", function.name, function.lines);
            say(
                function.line,
                what,
                "at most 70; split it where a name for the part offers itself",
            );
        }
    }
    let lines = (1_usize..).zip(file.text.lines()).filter(|(line, _)| !is_test(*line)).count();
    let exception = exceptions.iter().find(|exception| exception.path == file.path);
    let limit = exception.map_or(FILE_LINES, |exception| exception.lines);
    if lines > limit {
        let what = format!("{lines} lines without tests, limit {limit}");
        say(1, what, "split it by concept, or give the reason in tidy's list of exceptions");
    }
}

fn names(file: &File, words: &[Word<'_>], say: &mut impl FnMut(usize, String, &'static str)) {
    const KEYWORDS: &[&str] =
        &["struct", "enum", "trait", "type", "mod", "fn", "const", "static", "union"];
    for pair in words.windows(2) {
        let [keyword, name] = pair else { continue };
        if !KEYWORDS.contains(&keyword.text) {
            continue;
        }
        if let Some(empty) = empty_word(name.text) {
            let what = format!("`{}` says `{empty}`", name.text);
            say(name.line, what, "name what it is or promises, not its mechanics");
        }
        if keyword.text == "fn" && name.text.starts_with("get_") && !may_get(file, name.text) {
            say(name.line, format!("`{}`", name.text), "getters carry no `get_`");
        }
    }
    let stem = file.path.trim_end_matches(".rs");
    if let Some(empty) = stem.split('/').find_map(empty_word) {
        say(1, format!("the path says `{empty}`"), "name the file after its one duty");
    }
}

/// `get_mut` is std's word, a message of vhost-user keeps the name the protocol gave it, and a
/// driver of another make has its own.
fn may_get(file: &File, name: &str) -> bool {
    let others = ["crates/vhost-user/", "crates/testkit/tests/foreign/"];
    name == "get_mut" || others.iter().any(|folder| file.path.starts_with(folder))
}

/// The banned word among the words of a name, in either case style.
fn empty_word(name: &str) -> Option<&'static str> {
    let mut parts = String::new();
    for c in name.chars() {
        if c.is_uppercase() || c == '_' || c == '-' {
            parts.push(' ');
        }
        parts.extend(c.to_lowercase());
    }
    let shouted = name.to_lowercase();
    let parts = parts.split(|c: char| !c.is_alphanumeric());
    let mut words = parts.chain(shouted.split('_'));
    words.find_map(|word| EMPTY_WORDS.iter().find(|empty| **empty == word).copied())
}

fn attributes(file: &File, words: &[Word<'_>], say: &mut impl FnMut(usize, String, &'static str)) {
    let mut forbids_unsafe = false;
    for attribute in source::attributes(words) {
        // What is forbidden no file may have; where one of them may, it is denied to the others.
        let forbids = attribute.has("forbid") || has_unsafe_file(file) && attribute.has("deny");
        forbids_unsafe |= forbids && attribute.has("unsafe_code");
        if (attribute.has("allow") || attribute.has("expect")) && !attribute.has("reason") {
            say(attribute.line, "a lint is silenced".into(), "add `reason = \"...\"`");
        }
        if matches!(attribute.words, [word, ..] if word.text == "ignore") {
            let mend = "a test that nobody runs proves nothing; make it run or remove it";
            say(attribute.line, "an ignored test".into(), mend);
        }
    }
    if is_crate_root(&file.path) && !may_be_unsafe(&file.path) && !forbids_unsafe {
        say(1, "unsafe is not forbidden".into(), "add `#![forbid(unsafe_code)]`");
    }
}

fn unsafety(file: &File, words: &[Word<'_>], say: &mut impl FnMut(usize, String, &'static str)) {
    if may_be_unsafe(&file.path) {
        return;
    }
    for word in words.iter().filter(|word| word.text == "unsafe") {
        let mend = "only crates/raw has it; ask that crate for a safe function";
        say(word.line, "`unsafe`".into(), mend);
    }
}

fn may_be_unsafe(path: &str) -> bool {
    UNSAFE.iter().any(|folder| path.starts_with(folder))
}

/// Whether another file of this crate may have `unsafe`.
fn has_unsafe_file(root: &File) -> bool {
    let folder = root.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    UNSAFE.iter().any(|path| path.ends_with(".rs") && path.starts_with(folder))
}

fn is_crate_root(path: &str) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/main.rs") || path.contains("src/bin/")
}

fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.contains("/benches/") || path.ends_with("tests.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        let file = File { path: path.into(), text: text.into() };
        check(&file, &[], &mut findings);
        findings.into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        let text = "//! Counts frames.\n#![forbid(unsafe_code)]\nfn count() {}\n";
        assert!(found("crates/x/src/lib.rs", text).is_empty());
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert_eq!(found("crates/x/src/a.rs", "fn count() {}\n"), ["1: no head"]);
    }

    #[test]
    fn long_files_count_without_their_tests() {
        let code = format!("//! Long.\n{}", "fn f() {}\n".repeat(600));
        assert_eq!(found("crates/x/src/a.rs", &code), ["1: 601 lines without tests, limit 600"]);
        let tests = format!("//! Long.\n#[cfg(test)]\nmod t {{\n{}}}\n", "fn f() {}\n".repeat(600));
        assert!(found("crates/x/src/a.rs", &tests).is_empty());
    }

    #[test]
    fn long_functions_and_long_lines_are_found() {
        let text = format!("//! Long.\nfn f() {{\n{}}}\n", "g();\n".repeat(69));
        assert_eq!(found("crates/x/src/a.rs", &text), ["2: `f` has 71 lines"]);
        let text = format!("//! Long.\n// {}\n", "x".repeat(98));
        assert_eq!(found("crates/x/src/a.rs", &text), ["2: 101 columns"]);
    }

    #[test]
    fn empty_words_in_names_are_found() {
        let text = "//! Names.\nstruct QueueManager;\nfn make_helper() {}\nfn get_mac() {}\n";
        assert_eq!(
            found("crates/x/src/utils.rs", text),
            [
                "2: `QueueManager` says `manager`",
                "3: `make_helper` says `helper`",
                "4: `get_mac`",
                "1: the path says `utils`",
            ]
        );
    }

    #[test]
    fn unsafe_is_found_outside_its_crate_and_allowed_inside() {
        let text = "//! Danger.\nfn f() { unsafe { g() } }\n";
        let outside = ["1: unsafe is not forbidden", "2: `unsafe`"];
        assert_eq!(found("crates/x/src/lib.rs", text), outside);
        assert!(found("crates/raw/src/lib.rs", text).is_empty());
    }

    #[test]
    fn unsafe_may_be_denied_instead_of_forbidden_beside_a_file_that_may_have_it() {
        let text = "//! A VMM.\n#![deny(unsafe_code)]\nfn f() {}\n";
        assert!(found("examples/mini-vmm/src/main.rs", text).is_empty());
        let elsewhere = found("crates/x/src/main.rs", text);
        assert_eq!(elsewhere, ["1: unsafe is not forbidden"]);
        let text = "//! Danger.\nfn f() { unsafe { g() } }\n";
        assert!(found("examples/mini-vmm/src/kvm.rs", text).is_empty());
        assert_eq!(found("examples/mini-vmm/src/pci.rs", text), ["2: `unsafe`"]);
    }

    #[test]
    fn silenced_lints_without_a_reason_and_ignored_tests_are_found() {
        let text = "//! Quiet.\n#[allow(dead_code)]\nfn f() {}\n#[ignore = \"slow\"]\nfn g() {}\n";
        let expected = ["2: a lint is silenced", "4: an ignored test"];
        assert_eq!(found("crates/x/src/a.rs", text), expected);
    }
}
