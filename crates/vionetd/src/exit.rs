//! Exit codes, and the one line that says what happened and what to do.

use std::fmt;
use std::process::ExitCode;

use vionet::endpoint::{OpenError, OpenKind};

/// How a program ends that does not end well; the number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Something failed while running.
    Failure = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// What was configured does not exist or contradicts itself.
    Config = 3,
    /// A privilege or a feature of the kernel is missing.
    Privilege = 4,
    /// The front-end broke the protocol, with `--one-off`.
    Protocol = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(match code {
            Code::Failure => 1,
            Code::Usage => 2,
            Code::Config => 3,
            Code::Privilege => 4,
            Code::Protocol => 5,
        })
    }
}

/// A reason to end, for a person.
#[derive(Clone, Debug)]
pub struct Stop {
    /// The exit code.
    pub code: Code,
    /// What happened, to what, and what to do: one line.
    pub line: String,
}

impl Stop {
    /// A reason to end.
    pub fn new(code: Code, line: impl fmt::Display) -> Self {
        Self { code, line: line.to_string() }
    }

    /// The same, with the name of what it happened to; once is enough.
    #[must_use]
    pub fn of(self, name: &str) -> Self {
        if self.line.contains(name) {
            return self;
        }
        Self { line: format!("{name}: {}", self.line), ..self }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Stop {}

impl From<OpenError> for Stop {
    fn from(error: OpenError) -> Self {
        let code = match error.kind {
            OpenKind::Privilege => Code::Privilege,
            OpenKind::Config => Code::Config,
            OpenKind::Host => Code::Failure,
        };
        Self::new(code, error)
    }
}
