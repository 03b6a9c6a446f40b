//! What comes of adding a buffer to a store of spans.

use super::translate::Untranslated;

/// What became of a pushed buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It is in the store, as this many spans.
    Added(usize),
    /// The store has no room for it; nothing was added.
    Full,
    /// Part of it is not mapped, or not allowed; nothing was added.
    Unmapped,
    /// The platform does not know yet where part of it is; nothing was added.
    Missing,
}

impl From<Untranslated> for Pushed {
    fn from(why: Untranslated) -> Self {
        match why {
            Untranslated::Missing => Self::Missing,
            Untranslated::Denied => Self::Unmapped,
        }
    }
}
