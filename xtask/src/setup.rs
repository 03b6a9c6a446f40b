//! What the tests need beside Rust, and how to get it.
//!
//! [`NEEDS`] is the only list; installing, complaining and the README's sentence all come from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::newer;
use crate::shell::{self, Result};

/// One thing the tests need.
struct Need {
    package: &'static str,
    purpose: &'static str,
    present: fn() -> bool,
}

/// Debian's packages, what each is for, and how to see that it is there.
const NEEDS: &[Need] = &[
    Need {
        package: "qemu-system-x86",
        purpose: "the VMM of the guest tests",
        present: || shell::has_program("qemu-system-x86_64"),
    },
    Need {
        package: "busybox-static",
        purpose: "the guest's programs",
        present: || shell::has_program("busybox"),
    },
    Need { package: "linux-image-amd64", purpose: "the guest's kernel", present: has_kernel },
    Need {
        package: "xz-utils",
        purpose: "unpacking the kernel's modules",
        present: || shell::has_program("xz"),
    },
    Need {
        package: "zstd",
        purpose: "unpacking the kernel's modules",
        present: || shell::has_program("zstd"),
    },
    Need {
        package: "iproute2",
        purpose: "taps and network namespaces",
        present: || shell::has_program("ip"),
    },
    Need {
        package: "iputils-ping",
        purpose: "echo requests from the host",
        present: || shell::has_program("ping"),
    },
    Need {
        package: "ethtool",
        purpose: "the guest's switches of its NIC",
        present: || shell::has_program("ethtool"),
    },
    Need {
        package: "socat",
        purpose: "UDP in and out of the guest, segmented",
        present: || shell::has_program("socat"),
    },
    Need {
        package: "valgrind",
        purpose: "counting instructions",
        present: || shell::has_program("valgrind"),
    },
    Need { package: "g++", purpose: "the fuzzing engine", present: || shell::has_program("g++") },
];

/// The judge of dependencies, which Debian does not have; built once, in two minutes.
const DENY: &str = "cargo-deny";
const DENY_VERSION: &str = "0.20.2";

/// Where it is: on the path, or built beside everything else.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    if shell::has_program(DENY) {
        return Some(DENY.into());
    }
    Some(shell::target_dir().join("tools/bin").join(DENY)).filter(|path| path.exists())
}

/// Installs what is missing; quick when nothing is.
pub(crate) fn run() -> Result {
    packages()?;
    newer::run()?;
    if cargo_deny().is_some() {
        return Ok(());
    }
    println!("building {DENY} {DENY_VERSION}");
    let tools = shell::target_dir().join("tools");
    let mut install = shell::cargo(&["install", DENY, "--locked", "--version", DENY_VERSION]);
    install.arg("--root").arg(&tools).arg("--target-dir").arg(tools.join("build"));
    // Without the registry there is no judge; its step then says that it was skipped.
    if let Err(why) = shell::run(&mut install) {
        println!("{DENY} could not be built: {why}");
    }
    Ok(())
}

fn packages() -> Result {
    let missing = missing();
    if missing.is_empty() {
        println!("everything the tests need is here");
        return Ok(());
    }
    for need in &missing {
        println!("missing: {} ({})", need.package, need.purpose);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !shell::has_program("apt-get") {
        return Err(format!("this is no Debian; install the like of: {by_hand}"));
    }
    if !shell::is_root() {
        return Err(format!("run this as root: {by_hand}"));
    }
    install(&packages)?;
    match self::missing().as_slice() {
        [] => Ok(()),
        [need, ..] => Err(format!("{} is installed but still cannot be found", need.package)),
    }
}

/// The packages that are missing, in one line, or nothing.
pub(crate) fn complaint() -> Option<String> {
    let packages: Vec<&str> = missing().iter().map(|need| need.package).collect();
    if packages.is_empty() {
        return None;
    }
    Some(format!("missing {}; run `cargo xtask setup`", packages.join(" ")))
}

fn missing() -> Vec<&'static Need> {
    NEEDS.iter().filter(|need| !(need.present)()).collect()
}

/// Tries with the package lists at hand first: a fresh machine has none, a prepared one needs none.
fn install(packages: &[&str]) -> Result {
    if shell::run(&mut apt_install(packages)).is_ok() {
        return Ok(());
    }
    println!("refreshing the package lists");
    shell::run(Command::new("apt-get").args(["update", "-q"]))?;
    shell::run(&mut apt_install(packages))
}

fn apt_install(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    command
}

/// A kernel image counts only with its modules beside it.
fn has_kernel() -> bool {
    let Ok(boot) = Path::new("/boot").read_dir() else { return false };
    boot.flatten().any(|entry| {
        let name = entry.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-"));
        version.is_some_and(|version| Path::new("/lib/modules").join(version).is_dir())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_listed_once_and_says_what_it_is_for() {
        let mut packages: Vec<&str> = NEEDS.iter().map(|need| need.package).collect();
        packages.sort_unstable();
        packages.dedup();
        assert_eq!(packages.len(), NEEDS.len());
        assert!(NEEDS.iter().all(|need| !need.purpose.is_empty()));
    }
}
