//! Why there is no machine: a sentence for a person, and an exit code for a script.

use std::fmt::{self, Display};
use std::process::ExitCode;
use std::sync::Once;

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

/// Tells what nobody who called can mend. Once: a guest can bring about more of it than anybody
/// reads.
pub(crate) fn complain(done: Result<(), Failure>) {
    static ONCE: Once = Once::new();
    if let Err(failure) = done {
        ONCE.call_once(|| eprintln!("mini-vmm: {failure}; more of the kind is not told"));
    }
}

/// Gives an error its sentence.
pub(crate) trait Said<T> {
    /// `what` has happened, because of the error.
    fn said(self, what: &str) -> Result<T, Failure>;

    /// The same, where it is this machine that cannot.
    fn unable(self, what: &str) -> Result<T, Failure>;
}

impl<T, E: Display> Said<T> for Result<T, E> {
    fn said(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }

    fn unable(self, what: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::unable(format!("{what}: {error}")))
    }
}
