//! What of vionet works on this machine, and what to do about the rest.
//!
//! Every check tries the thing itself where that is harmless (opens the device, makes the socket,
//! starts the kernel) and reads about it only where it is not. A finding is a fact with the one
//! command that mends it; nothing found is an error, so `vionet doctor` ends with status 0.

mod machine;
mod network;
mod programs;

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// The version of the JSON document; raised when a field changes its meaning.
const JSON_VERSION: u32 = 1;

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All that vionet can do with it works.
    Ok,
    /// It works with less speed or reach; the finding says what is lost.
    Limited,
    /// It is not there; what depends on it does not work.
    Missing,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Ok => "\x1b[32m",
            Self::Limited => "\x1b[33m",
            Self::Missing => "\x1b[31m",
        }
    }
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a stable word, such as `kvm`.
    pub name: &'static str,
    /// How well it works.
    pub status: Status,
    /// What was seen, in words.
    pub seen: String,
    /// What to do about it, in one line; `None` when nothing is to be done.
    pub mend: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    findings: &'a [Finding],
}

impl Finding {
    fn ok(name: &'static str, seen: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, seen: seen.into(), mend: None }
    }

    fn limited(name: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Limited, seen: seen.into(), mend: Some(mend.into()) }
    }

    fn missing(name: &'static str, seen: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Missing, seen: seen.into(), mend: Some(mend.into()) }
    }
}

/// Looks at everything; takes a few seconds where KVM is there but runs nothing.
#[must_use]
pub fn examine() -> Vec<Finding> {
    vec![
        machine::memfd(),
        network::ping(),
        network::ipv6(),
        network::resolver(),
        machine::tap(),
        machine::user_namespaces(),
        programs::qemu(),
        programs::kvm(),
        programs::demo_vm(),
        programs::passt(),
        machine::huge_pages(),
        machine::io_uring(),
        machine::peek_off(),
    ]
}

/// Writes a table for people; colour only where asked for.
///
/// # Errors
/// When `out` cannot be written to.
pub fn render(findings: &[Finding], out: &mut dyn Write, colour: bool) -> io::Result<()> {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    for Finding { name, status, seen, mend } in findings {
        let (on, off) = if colour { (status.colour(), "\x1b[0m") } else { ("", "") };
        writeln!(out, "{on}{:<7}{off}  {name:<width$}  {seen}", status.word())?;
        if let Some(mend) = mend {
            writeln!(out, "{:<7}  {:<width$}  -> {mend}", "", "")?;
        }
    }
    Ok(())
}

/// The findings as a JSON document: `{"version":1,"findings":[{"name","status","seen","mend"}]}`.
///
/// # Errors
/// When `out` cannot be written to.
pub fn render_json(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    let document = Document { version: JSON_VERSION, findings };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

/// Examines this machine and writes what it found to standard output, as a table or as JSON.
/// A reader that goes away early, as `head` does, is no error.
pub fn run(json: bool) {
    let findings = examine();
    let mut out = io::stdout().lock();
    let written = if json {
        render_json(&findings, &mut out)
    } else {
        let colour = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        render(&findings, &mut out, colour)
    };
    written.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Vec<Finding> {
        vec![
            Finding::ok("kvm", "runs a kernel"),
            Finding::missing("passt", "not installed", "sudo apt install passt"),
        ]
    }

    #[test]
    fn the_json_document_has_the_promised_fields() {
        let mut out = Vec::new();
        render_json(&two(), &mut out).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let expected = serde_json::json!({ "version": 1, "findings": [
            { "name": "kvm", "status": "ok", "seen": "runs a kernel", "mend": null },
            {
                "name": "passt", "status": "missing",
                "seen": "not installed", "mend": "sudo apt install passt",
            },
        ]});
        assert_eq!(document, expected);
    }

    #[test]
    fn the_table_has_a_line_for_what_is_to_be_done_and_colour_only_when_asked() {
        let mut plain = Vec::new();
        render(&two(), &mut plain, false).unwrap();
        let plain = String::from_utf8(plain).unwrap();
        assert_eq!(plain.lines().count(), 3);
        assert_eq!(plain.lines().last(), Some("                -> sudo apt install passt"));
        assert!(!plain.contains('\x1b'));
        let mut coloured = Vec::new();
        render(&two(), &mut coloured, true).unwrap();
        assert!(String::from_utf8(coloured).unwrap().contains("\x1b[31mmissing\x1b[0m"));
    }

    #[test]
    fn every_finding_of_this_machine_is_one_line_with_a_name_of_its_own() {
        let findings = examine();
        for (index, finding) in findings.iter().enumerate() {
            assert!(findings[..index].iter().all(|other| other.name != finding.name));
            assert!(!finding.seen.is_empty() && !finding.seen.contains('\n'), "{finding:?}");
            assert_eq!(finding.mend.is_none(), finding.status == Status::Ok, "{finding:?}");
            assert!(!finding.mend.as_ref().is_some_and(|mend| mend.contains('\n')), "{finding:?}");
        }
    }
}
