//! Starting other programs: where the tree is, which cargo to use, what a failure reads like.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// `Err` is one sentence for a person: what failed and what to do.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

/// The root of the tree this tool belongs to.
pub(crate) fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}

/// Where cargo builds: `CARGO_TARGET_DIR`, else `target` in the tree.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command at the root of the tree.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(args);
    command
}

/// Runs a command with our own terminal; any other end than success is an error.
pub(crate) fn run(command: &mut Command) -> Result {
    println!("  $ {}", spoken(command));
    let status = command.status().map_err(|error| could_not_start(command, &error))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", spoken(command))) }
}

/// Runs a command silently and hands over what it printed and how it ended.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().map_err(|error| could_not_start(command, &error))
}

/// Is there a program of this name on the path, or where Debian keeps those for root?
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).any(|folder| folder.join(name).is_file())
}

/// Are we root?
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.stdout.starts_with(b"0\n"))
}

fn could_not_start(command: &Command, error: &std::io::Error) -> String {
    format!("could not start {}: {error}", spoken(command))
}

fn spoken(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
