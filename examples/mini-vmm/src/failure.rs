//! Why there is no machine: a sentence for a person, and an exit code for a script.

use std::fmt::{self, Display};
use std::process::ExitCode;

/// How the program ends; the codes are those of the program `vionet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Something failed on the way.
    Failed,
    /// What was asked for makes no sense.
    Config,
    /// This machine cannot do it: no KVM, or not one that runs this.
    Unable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Failed => 1,
            Exit::Config => 3,
            Exit::Unable => 4,
        })
    }
}

/// An end with its reason.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    why: String,
}

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, why: why.into() }
    }

    pub(crate) fn config(why: impl Into<String>) -> Self {
        Self { exit: Exit::Config, why: why.into() }
    }

    pub(crate) fn unable(why: impl Into<String>) -> Self {
        Self { exit: Exit::Unable, why: why.into() }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Gives an error its sentence.
pub(crate) trait Said<T> {
    /// `what` has happened, because of the error.
    fn said(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Display> Said<T> for Result<T, E> {
    fn said(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
