//! What can go wrong between here and a working guest.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::parts::Missing;

/// Why a guest could not be built, booted or talked to.
#[derive(Debug)]
pub enum VmError {
    /// Something this machine needs for a guest is not installed.
    Missing(Vec<Missing>),
    /// A file or program could not be used: what was tried, and the system's answer.
    Io {
        /// What was tried, such as "read /boot/vmlinuz-6.1".
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A file is not of the form expected: which one, and in what way.
    Format {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// QEMU ended before it was asked to; the ends of its messages and of the kernel's log.
    Gone {
        /// The last lines QEMU and the guest's kernel wrote.
        log: String,
    },
    /// The guest did not answer in time.
    Timeout {
        /// What it was asked.
        what: String,
        /// How long we waited.
        limit: Duration,
        /// The last lines QEMU and the guest's kernel wrote.
        log: String,
    },
    /// A command in the guest ended with a status other than 0.
    Command {
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// The last lines of its output.
        output: String,
    },
    /// The guest's answer does not hold what the host asked for.
    Answer {
        /// What is missing or wrong.
        what: String,
    },
    /// QEMU refused a QMP command: its own words.
    Qmp(String),
}

impl VmError {
    /// An [`VmError::Io`] saying what was tried; for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl fmt::Display for VmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(list) => {
                let what: Vec<&str> = list.iter().map(|m| m.what.as_str()).collect();
                let packages: Vec<&str> = list.iter().filter_map(|m| m.package).collect();
                write!(f, "cannot build a guest here: {}", what.join("; "))?;
                if packages.is_empty() {
                    return Ok(());
                }
                write!(f, "; run `sudo apt install {}`", packages.join(" "))
            }
            Self::Io { what, source } => write!(f, "cannot {what}: {source}"),
            Self::Format { file, what } => write!(f, "{}: {what}", file.display()),
            Self::Gone { log } => write!(f, "QEMU ended early; its last words:\n{log}"),
            Self::Timeout { what, limit, log } => {
                let limit = limit.as_secs();
                write!(f, "no answer from the guest in {limit} s to: {what}; its log:\n{log}")
            }
            Self::Command { command, status, output } => {
                write!(f, "in the guest, `{command}` ended with status {status}:\n{output}")
            }
            Self::Answer { what } => write!(f, "the guest's answer is not usable: {what}"),
            Self::Qmp(words) => write!(f, "QEMU refused a command: {words}"),
        }
    }
}

impl std::error::Error for VmError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Missing(_)
            | Self::Format { .. }
            | Self::Gone { .. }
            | Self::Timeout { .. }
            | Self::Command { .. }
            | Self::Answer { .. }
            | Self::Qmp(_) => None,
        }
    }
}
