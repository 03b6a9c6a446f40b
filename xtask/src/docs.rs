//! `cargo xtask docs`: the crates' manuals, with every warning an error.

use crate::shell::{self, Result};

/// Builds rustdoc of our crates only; a broken link between items fails.
pub(crate) fn run() -> Result {
    shell::run(
        shell::cargo(&["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
