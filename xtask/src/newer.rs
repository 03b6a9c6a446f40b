//! A newer QEMU and a newer Linux than the machine's own, for the tests that need them.
//!
//! ```text
//!   target/newer/apt/                 an apt that knows only the suites below
//!   target/newer/root/                their packages, unpacked and never installed
//!   target/newer/qemu-system-x86_64   starts that QEMU with its own libraries
//!   target/newer/packages             what was taken; written last, so all is there
//!   target/newer/why                  instead: why it could not be had
//! ```
//!
//! What is there stays; to fetch it anew, delete `target/newer`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::shell::{self, Result};

/// The suite that has them, and the one it builds on.
const SUITE: &str = "trixie-backports";
const BASE: &str = "trixie";
/// With all they need, so that nothing depends on what this machine has.
const PACKAGES: [&str; 2] = ["qemu-system-x86", "linux-image-amd64"];

/// Where Debian is, unless this machine's own apt knows a nearer place.
const MIRROR: &str = "http://deb.debian.org/debian/";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The libraries of the unpacked packages, and the linker that finds them there.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LINKER: &str = "lib64/ld-linux-x86-64.so.2";

/// The directory of all this; the tests find it by the variable of this name.
pub(crate) const VARIABLE: &str = "VIONET_NEWER";

pub(crate) fn directory() -> PathBuf {
    let target = shell::target_dir().join("newer");
    std::path::absolute(&target).unwrap_or(target)
}

/// Why it is not here, or nothing.
pub(crate) fn complaint() -> Option<String> {
    let directory = directory();
    if directory.join("packages").exists() {
        return None;
    }
    let why = fs::read_to_string(directory.join("why"));
    let why = why.unwrap_or_else(|_| "run `cargo xtask setup`".to_owned());
    Some(format!("no newer QEMU and Linux here: {}", why.trim()))
}

/// Fetches and unpacks it, once. A machine that cannot have it goes without: that is told here,
/// and again by the step that is then skipped.
pub(crate) fn run() -> Result {
    if complaint().is_none() {
        return Ok(());
    }
    println!("fetching {} of {SUITE}", PACKAGES.join(" and "));
    let directory = directory();
    make(&directory)?;
    let Err(why) = fetch(&directory) else { return Ok(()) };
    println!("it cannot be had: {why}");
    write(&directory.join("why"), &why)
}

fn fetch(directory: &Path) -> Result {
    for (program, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod")] {
        if !shell::has_program(program) {
            return Err(format!("there is no {program} (Debian's package {package})"));
        }
    }
    if !Path::new(KEYRING).exists() {
        return Err(format!("there is no {KEYRING} (Debian's package debian-archive-keyring)"));
    }
    let (apt, root) = (Apt::new(directory)?, directory.join("root"));
    apt.get(&["update", "-q"])?;
    let mut install = vec!["install", "-y", "-q", "--download-only", "--target-release", SUITE];
    install.extend(PACKAGES);
    apt.get(&install)?;
    lay_out(&root)?;
    let archives = apt.archives()?;
    archives.iter().try_for_each(|archive| unpack(archive, &root))?;
    index_modules(&root)?;
    let program = directory.join("qemu-system-x86_64");
    write(&program, &starter(&root))?;
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&program, executable).map_err(|e| said(&program, &e))?;
    let version = shell::output(Command::new(&program).arg("--version"))?;
    if !version.status.success() {
        return Err(format!("QEMU does not start: {}", String::from_utf8_lossy(&version.stderr)));
    }
    let taken: Vec<&str> = archives.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    for name in taken.iter().filter(|name| name.starts_with("qemu-") | name.contains("linux-")) {
        println!("  {name}");
    }
    write(&directory.join("packages"), &taken.join("\n"))?;
    archives.iter().try_for_each(|path| fs::remove_file(path).map_err(|e| said(path, &e)))
}

/// An apt with its own lists, and a machine where nothing is installed.
struct Apt {
    directory: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    fn new(directory: &Path) -> Result<Self> {
        let directory = directory.join("apt");
        for name in ["lists/partial", "archives/partial", "etc/preferences.d"] {
            make(&directory.join(name))?;
        }
        let (mirror, at) = (mirror(), directory.display());
        let sources = [BASE, SUITE]
            .map(|suite| format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n"));
        write(&directory.join("etc/sources.list"), &sources.concat())?;
        write(&directory.join("status"), "")?;
        let configuration = directory.join("apt.conf");
        let text = format!(
            "Dir::Etc \"{at}/etc\";\nDir::Etc::sourceparts \"-\";\nDir::State \"{at}\";\n\
             Dir::State::status \"{at}/status\";\nDir::Cache \"{at}\";\nDir::Log \"{at}\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"\";\n\
             APT::Update::Error-Mode \"any\";\n\
             Acquire::Languages \"none\";\nDebug::NoLocking \"true\";\n"
        );
        write(&configuration, &text)?;
        Ok(Self { directory, configuration })
    }

    fn get(&self, words: &[&str]) -> Result {
        let mut command = Command::new("apt-get");
        command.args(words).env("APT_CONFIG", &self.configuration);
        let output = shell::output(&mut command)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let first = said.lines().find(|line| line.starts_with("E:")).unwrap_or("no reason given");
        Err(format!("apt-get {}: {first}", words.first().unwrap_or(&"")))
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let directory = self.directory.join("archives");
        let entries = directory.read_dir().map_err(|e| said(&directory, &e))?;
        let paths = entries.flatten().map(|entry| entry.path());
        let mut paths: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
        paths.sort();
        Ok(paths)
    }
}

/// The mirror that this machine has packages from, if it is one of Debian.
fn mirror() -> String {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)"]);
    let known = shell::output(&mut command).map(|output| output.stdout).unwrap_or_default();
    debian_among(&String::from_utf8_lossy(&known)).to_owned()
}

fn debian_among(known: &str) -> &str {
    known.lines().find(|uri| uri.ends_with("/debian/")).unwrap_or(MIRROR)
}

/// Debian's merged `/usr`, so that every package's files come to lie in one place.
fn lay_out(root: &Path) -> Result {
    for name in ["bin", "sbin", "lib", "lib64"] {
        make(&root.join("usr").join(name))?;
        let link = root.join(name);
        if !link.exists() {
            let to = Path::new("usr").join(name);
            std::os::unix::fs::symlink(to, &link).map_err(|e| said(&link, &e))?;
        }
    }
    Ok(())
}

/// Takes the files out of a package. Not `dpkg-deb --extract`, which would replace our links.
fn unpack(archive: &Path, root: &Path) -> Result {
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--fsys-tarfile").arg(archive).stdout(Stdio::piped());
    let mut dpkg = dpkg.spawn().map_err(|e| said(archive, &e))?;
    let stream = dpkg.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--keep-directory-symlink", "--no-same-owner", "--directory"]);
    let unpacked = shell::output(tar.arg(root).stdin(stream))?;
    let read = dpkg.wait().map_err(|e| said(archive, &e))?;
    if unpacked.status.success() && read.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&unpacked.stderr).into_owned();
    Err(format!("{} cannot be unpacked: {why}", archive.display()))
}

/// Writes `modules.dep`, as installing the kernel would have.
fn index_modules(root: &Path) -> Result {
    let modules = root.join("usr/lib/modules");
    let entries = modules.read_dir().map_err(|e| said(&modules, &e))?;
    for entry in entries.flatten() {
        let mut depmod = Command::new("depmod");
        depmod.arg("-b").arg(root).arg(entry.file_name());
        depmod.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
        let output = shell::output(&mut depmod)?;
        if !output.status.success() {
            return Err(format!("depmod: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    Ok(())
}

fn starter(root: &Path) -> String {
    let root = root.display();
    format!(
        "#!/bin/sh\nroot='{root}'\nexport QEMU_MODULE_DIR=\"$root/{LIBRARIES}/qemu\"\n\
         exec \"$root/{LINKER}\" --library-path \"$root/{LIBRARIES}\" \\\n  \
         \"$root/usr/bin/qemu-system-x86_64\" -L \"$root/usr/share/qemu\" \\\n  \
         -L \"$root/usr/share/seabios\" -L \"$root/usr/lib/ipxe/qemu\" \"$@\"\n"
    )
}

fn make(directory: &Path) -> Result {
    fs::create_dir_all(directory).map_err(|e| said(directory, &e))
}

fn write(path: &Path, text: &str) -> Result {
    fs::write(path, text).map_err(|e| said(path, &e))
}

fn said(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_own_mirror_is_taken_if_it_is_one_of_debian() {
        let known = "https://deb.nodesource.com/node/\nhttp://near.example/debian/\n";
        assert_eq!(debian_among(known), "http://near.example/debian/");
        assert_eq!(debian_among("http://archive.ubuntu.com/ubuntu/\n"), MIRROR);
    }

    #[test]
    fn the_program_starts_nothing_of_this_machine_but_a_shell() {
        let text = starter(Path::new("/t/root"));
        let paths = text.split(['"', '\'', ' ']).filter(|word| word.starts_with('/'));
        assert!(paths.clone().all(|path| path.starts_with("/t/root")), "{text}");
        assert_eq!(paths.count(), 1, "all others are told from it: {text}");
    }
}
