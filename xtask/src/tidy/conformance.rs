//! The conformance table names every requirement once, with its level, and tests that exist.

use std::collections::BTreeMap;
use std::path::Path;

use super::{File, Finding};

const TABLE: &str = "docs/conformance.md";
const SCENES: &str = "crates/queue/tests/scenes";

/// How many rows may say `not yet`: lower it with every one that is shown.
const NOT_YET: usize = 0;

/// Groups of requirements and how many rows each has.
const GROUPS: &[(&str, usize)] = &[
    ("ST", 8),
    ("FEAT", 9),
    ("RST", 3),
    ("CFG", 6),
    ("INIT", 9),
    ("VQR", 7),
    ("SPL", 20),
    ("SPN", 20),
    ("PKD", 29),
    ("PKN", 7),
    ("NDAT", 4),
    ("RSV", 12),
    ("NET-Q", 5),
    ("NET-DEP", 13),
    ("NET-CFG", 21),
    ("NET-HDR", 3),
    ("NET-TX", 36),
    ("NET-RXB", 5),
    ("NET-RX", 40),
    ("NET-HASH", 12),
    ("NET-IHH", 7),
    ("NET-CTRL", 6),
    ("NET-CTRL-RX", 19),
    ("NET-CTRL-MAC", 9),
    ("NET-CTRL-VLAN", 5),
    ("NET-CTRL-ANN", 3),
    ("NET-CTRL-MQ", 14),
    ("NET-CTRL-HASH", 4),
    ("NET-RSS", 11),
    ("NET-RCTX", 7),
    ("NET-OFF", 5),
    ("NET-COAL", 15),
    ("NET-STAT", 12),
    ("SUS", 11),
    ("PCID", 7),
    ("PCIL", 3),
    ("PCAP", 5),
    ("PCOM", 29),
    ("PNOT", 14),
    ("PISR", 7),
    ("PDEV", 8),
    ("PCFG", 6),
    ("MSIX", 14),
    ("MMIO", 31),
];

/// A row of the table.
struct Row<'a> {
    name: &'a str,
    level: &'a str,
    by: &'a str,
    shown: Shown<'a>,
}

/// What stands in its last cell.
enum Shown<'a> {
    By(&'a str),
    DoesNotApply,
    NotYet,
    /// A word without its reason, or nothing at all.
    Unsaid,
}

/// What is shown, group by group, and which rows are not yet.
pub(super) fn coverage(files: &[File]) -> String {
    let table = files.iter().find(|file| file.path == TABLE).map_or("", |file| &file.text);
    let rows: Vec<Row<'_>> = table.lines().filter_map(row_of).collect();
    let mut lines =
        vec!["group             MUST shown  others shown  not yet  does not apply".into()];
    lines.extend(GROUPS.iter().map(|(group, _)| {
        let is_of = |row: &&Row<'_>| row.name.rsplit_once('-').is_some_and(|of| of.0 == *group);
        line(group, &rows.iter().filter(is_of).collect::<Vec<_>>())
    }));
    lines.push(line("all", &rows.iter().collect::<Vec<_>>()));
    let is_open = |line: &&str| row_of(line).is_some_and(|row| matches!(row.shown, Shown::NotYet));
    lines.extend(table.lines().filter(is_open).map(str::to_owned));
    lines.join("\n")
}

/// How many of the rows that apply are shown, those that must be kept by themselves.
fn line(group: &str, rows: &[&Row<'_>]) -> String {
    let count = |is: &dyn Fn(&Row<'_>) -> bool| rows.iter().filter(|row| is(row)).count();
    let is_must = |row: &Row<'_>| matches!(row.level, "M" | "MN");
    let is_ours = |row: &Row<'_>| !matches!(row.shown, Shown::DoesNotApply);
    let is_shown = |row: &Row<'_>| matches!(row.shown, Shown::By(_));
    let [musts, others] = [true, false].map(|must| {
        let shown = count(&|row| is_must(row) == must && is_shown(row));
        let all = count(&|row| is_must(row) == must && is_ours(row));
        format!("{shown:>4} of {all:<4}")
    });
    let not_yet = count(&|row| matches!(row.shown, Shown::NotYet));
    let not_ours = count(&|row| !is_ours(row));
    format!("{group:<14} {musts} {others} {not_yet:>7} {not_ours:>14}")
}

pub(super) fn check(root: &Path, files: &[File], findings: &mut Vec<Finding>) {
    let Some(table) = files.iter().find(|file| file.path == TABLE) else {
        return findings.push(finding(1, "is not there".into(), "write it"));
    };
    let mut seen = BTreeMap::new();
    for (number, line) in (1_usize..).zip(table.text.lines()) {
        let Some(row) = row_of(line) else { continue };
        if seen.insert(row.name.to_owned(), number).is_some() {
            let what = format!("{} stands twice", row.name);
            findings.push(finding(number, what, "keep one of them"));
        }
        findings.extend(
            wrong(root, files, &row)
                .map(|(what, mend)| finding(number, format!("{}: {what}", row.name), mend)),
        );
    }
    for (group, count) in GROUPS {
        for number in 1..=*count {
            let row = format!("{group}-{number:02}");
            if seen.remove(&row).is_none() {
                let what = format!("{row} is missing");
                findings.push(finding(1, what, "add the row with the test that shows it"));
            }
        }
    }
    for (row, number) in seen {
        findings.push(finding(number, format!("{row} is no requirement"), "drop the row"));
    }
    let rows = table.text.lines().filter_map(row_of);
    let not_yet = rows.filter(|row| matches!(row.shown, Shown::NotYet)).count();
    if not_yet != NOT_YET {
        let what = format!("{not_yet} rows say `not yet`, and {NOT_YET} are allowed");
        findings.push(finding(1, what, "show them, and lower the number in xtask's checker"));
    }
}

/// What is wrong with a row by itself, and how to mend it.
fn wrong<'a>(
    root: &'a Path,
    files: &'a [File],
    row: &'a Row<'a>,
) -> impl Iterator<Item = (String, &'static str)> + 'a {
    let level = !matches!(row.level, "M" | "MN" | "S" | "SN" | "MAY");
    let level = level.then(|| (format!("`{}` is no level", row.level), "M, MN, S, SN or MAY"));
    let by = !matches!(row.by, "D" | "R" | "P");
    let by = by.then(|| (format!("`{}` binds nobody", row.by), "D, R or P"));
    let tests = match row.shown {
        Shown::By(tests) => tests,
        Shown::DoesNotApply | Shown::NotYet => "",
        Shown::Unsaid => " ",
    };
    let tests = tests.split("; ").filter(|test| !test.is_empty()).map(str::trim);
    let tests = tests.filter(|test| !exists(root, files, test));
    let tests = tests.map(|test| (format!("there is no `{test}`"), "name the test that shows it"));
    level.into_iter().chain(by).chain(tests)
}

fn finding(line: usize, what: String, mend: &'static str) -> Finding {
    Finding { path: TABLE.into(), line, what, mend }
}

/// The row in a line of the table.
fn row_of(line: &str) -> Option<Row<'_>> {
    let mut cells = line.strip_prefix("| ")?.strip_suffix('|')?.split('|').map(str::trim);
    let name = cells.next()?;
    let (group, number) = name.rsplit_once('-')?;
    let is_row = group.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
        && group.bytes().any(|byte| byte != b'-')
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit());
    if !is_row {
        return None;
    }
    let [level, by, _, shown] = [(); 4].map(|()| cells.next().unwrap_or_default());
    let said = |why: &str| !why.trim().is_empty();
    let shown = match (shown.strip_prefix("does not apply:"), shown.strip_prefix("not yet:")) {
        (Some(why), _) if said(why) => Shown::DoesNotApply,
        (_, Some(what)) if said(what) => Shown::NotYet,
        (None, None) if said(shown) => Shown::By(shown),
        _ => Shown::Unsaid,
    };
    Some(Row { name, level, by, shown })
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
        let all = found(
            "| VQR-01 | M | D | x | a.rs::idle |\n| VQR-02 | M | D | x | a.rs::real |\n\
             | VQR-02 | M | D | x | b |\n| VQR-03 | MN | D | x | |\n\
             | VQR-04 | M | D | x | does not apply: |\n| VQR-05 | M | D | x | not yet: |\n",
        );
        assert!(all.contains(&"VQR-01: there is no `a.rs::idle`".into()), "{all:?}");
        assert!(all.contains(&"VQR-02 stands twice".into()));
        assert!(all.contains(&"VQR-02: there is no `b`".into()));
        assert!(!all.iter().any(|what| what.contains("real")));
        for row in ["VQR-03", "VQR-04", "VQR-05"] {
            assert!(all.contains(&format!("{row}: there is no ``")), "{row}: {all:?}");
        }
    }

    #[test]
    fn a_missing_row_and_an_invented_one_are_found() {
        let all = found(
            "| VQR-01 | M | D | x | a.rs::real |\n| VQR-77 | M | D | x | a.rs::real |\n\
             | NET-CTRL-RX-20 | S | D | x | a.rs::real |\n",
        );
        assert!(all.contains(&"VQR-77 is no requirement".into()));
        assert!(all.contains(&"NET-CTRL-RX-20 is no requirement".into()));
        assert!(all.contains(&"PKD-29 is missing".into()));
        assert!(all.contains(&"NET-CTRL-RX-19 is missing".into()));
        assert!(!all.contains(&"VQR-01 is missing".into()));
        let mut findings = Vec::new();
        check(Path::new("/nowhere"), &[], &mut findings);
        assert_eq!(findings.len(), 1, "no table at all");
    }

    #[test]
    fn a_row_has_a_level_and_somebody_whom_it_binds() {
        let all = found("| VQR-01 | MUST | D | x | a.rs::real |\n| VQR-02 | M | X | x | a |\n");
        assert!(all.contains(&"VQR-01: `MUST` is no level".into()), "{all:?}");
        assert!(all.contains(&"VQR-02: `X` binds nobody".into()));
    }

    #[test]
    fn the_number_of_rows_that_are_not_yet_is_exactly_what_is_allowed() {
        let rows = |count| "| VQR-01 | M | D | x | not yet: y |\n".repeat(count);
        let told = |count| found(&rows(count)).iter().any(|what| what.contains("are allowed"));
        assert_eq!([NOT_YET, NOT_YET + 1, NOT_YET + 2].map(told), [false, true, true]);
    }

    #[test]
    fn what_is_shown_is_counted_by_group_and_level() {
        let rows = "| VQR-01 | M | D | x | a |\n| VQR-02 | MN | D | x | not yet: y |\n\
                    | VQR-03 | MAY | D | x | does not apply: z |\n| SPL-01 | S | D | x | a |\n";
        let text = coverage(&[file(TABLE, rows)]);
        let words = |start: &str| {
            let line = text.lines().find(|line| line.starts_with(start)).unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words("VQR"), "VQR 1 of 2 0 of 0 1 1");
        assert_eq!(words("SPL"), "SPL 0 of 0 1 of 1 0 0");
        assert_eq!(words("all"), "all 1 of 2 1 of 1 1 1");
        assert!(text.ends_with("not yet: y |"));
    }
}
