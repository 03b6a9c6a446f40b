//! Builds the guest's first and only root filesystem: busybox, the NIC's driver, `/init`, files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::cpio::{Archive, TooLong};
use super::error::VmError;
use super::kernel::{Kernel, Packing};

/// Runs as process 1 of the guest.
const INIT: &str = include_str!("init.sh");
/// `net VERB`: what a guest does with its network, answering in lines of `key=value`.
const NET: &str = include_str!("net.sh");
/// Takes over what the DHCP client learned.
const UDHCPC: &str = include_str!("udhcpc.sh");

/// The modules a guest needs for a virtio NIC and VLANs on it; what the kernel has built in is
/// simply not found.
const WANTED: [&str; 5] = ["virtio_pci", "virtio_mmio", "virtio_net", "ipv6", "8021q"];

/// Where busybox may be.
const BUSYBOX: [&str; 4] =
    ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox", "/sbin/busybox"];

/// A file for the guest, beyond what every guest has.
#[derive(Debug, Clone)]
pub struct GuestFile {
    /// Its path in the guest, without the leading slash.
    pub path: String,
    /// Its permission bits.
    pub mode: u32,
    /// Its content.
    pub content: Vec<u8>,
}

impl GuestFile {
    /// A script that the guest may run.
    #[must_use]
    pub fn script(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o755, content: text.as_bytes().to_vec() }
    }
}

/// The first busybox of this machine that needs no libraries.
#[must_use]
pub fn find_busybox() -> Option<PathBuf> {
    let fits = |path: &PathBuf| fs::read(path).is_ok_and(|content| is_static_elf(&content));
    BUSYBOX.into_iter().map(PathBuf::from).find(fits)
}

/// Whether this is a 64-bit x86 program without an interpreter, so without shared libraries.
fn is_static_elf(content: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    const EM_X86_64: u16 = 62;
    let u16_at = |at: usize| {
        let field = content.get(at..).and_then(|rest| rest.first_chunk());
        field.map(|field| u16::from_le_bytes(*field))
    };
    let u32_at = |at: usize| {
        let field = content.get(at..).and_then(|rest| rest.first_chunk());
        field.map(|field| u32::from_le_bytes(*field))
    };
    if !content.starts_with(b"\x7fELF\x02") || u16_at(18) != Some(EM_X86_64) {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (u32_at(32), u16_at(54), u16_at(56)) else {
        return false;
    };
    let Ok(table) = usize::try_from(table) else { return false };
    let kind = |index: u16| {
        let offset = usize::from(size).checked_mul(usize::from(index))?;
        u32_at(table.checked_add(offset)?)
    };
    (0..count).all(|index| kind(index).is_some_and(|kind| kind != PT_INTERP))
}

/// Builds the image: an uncompressed archive, which a TCG guest unpacks fastest. It has the modules
/// of a NIC, and these `modules` of others, which nobody loads; and it has these `files`.
///
/// # Errors
/// When a file cannot be read or unpacked, or the kernel has no virtio-net at all.
pub fn build(
    busybox: &Path,
    kernel: &Kernel,
    modules: &[&str],
    files: &[GuestFile],
) -> Result<Vec<u8>, VmError> {
    let read =
        |path: &Path| fs::read(path).map_err(VmError::io(format!("read {}", path.display())));
    let wanted = [&WANTED, modules].concat();
    let modules = Modules::read(kernel)?;
    let mut archive = Archive::new();
    base(&mut archive, &read(busybox)?).map_err(too_long)?;
    let root = format!("lib/modules/{}", kernel.version);
    let mut list = String::new();
    for module in modules.closure(&wanted) {
        let stored = read(&kernel.modules.join(module))?;
        let content = match Packing::of_name(module) {
            Some(packing) => packing.unpack(&stored)?,
            None => stored,
        };
        archive.file(&format!("{root}/{}", bare(module)), 0o644, &content).map_err(too_long)?;
        list.push_str(&modules.line(module));
    }
    archive.file(&format!("{root}/modules.dep"), 0o644, list.as_bytes()).map_err(too_long)?;
    for file in files {
        archive.file(&file.path, file.mode, &file.content).map_err(too_long)?;
    }
    archive.finish().map_err(too_long)
}

fn too_long(_: TooLong) -> VmError {
    VmError::Answer { what: TooLong.to_string() }
}

/// What every guest has: busybox under the names we use before it installs the rest, and /init.
fn base(archive: &mut Archive, busybox: &[u8]) -> Result<(), TooLong> {
    for directory in ["proc", "sys", "dev", "tmp", "run", "etc", "root", "sbin", "usr/bin"] {
        archive.directory(directory)?;
    }
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.symlink("bin/sh", "busybox")?;
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.device("dev/null", 0o666, (1, 3))?;
    archive.file("usr/bin/net", 0o755, NET.as_bytes())?;
    archive.file("etc/udhcpc.sh", 0o755, UDHCPC.as_bytes())?;
    archive.file("init", 0o755, INIT.as_bytes())
}

/// The kernel's modules: file -> the files it needs.
struct Modules {
    needs: BTreeMap<String, Vec<String>>,
}

/// The file's path without the suffix of its compression.
fn bare(module: &str) -> &str {
    match (Packing::of_name(module), module.rsplit_once('.')) {
        (Some(_), Some((bare, _))) => bare,
        (None, _) | (_, None) => module,
    }
}

/// The module's name, in which `-` and `_` are the same.
fn name(module: &str) -> String {
    let file = bare(module).rsplit('/').next().unwrap_or(module);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

impl Modules {
    fn read(kernel: &Kernel) -> Result<Self, VmError> {
        let path = kernel.modules.join("modules.dep");
        let text = fs::read_to_string(&path);
        let modules = Self::parse(&text.map_err(VmError::io(format!("read {}", path.display())))?);
        let builtin = fs::read_to_string(kernel.modules.join("modules.builtin"));
        let builtin = Self::parse(&builtin.unwrap_or_default());
        if modules.find("virtio_net").or_else(|| builtin.find("virtio_net")).is_none() {
            let what = "names no virtio_net: this kernel has no driver for our NIC";
            return Err(VmError::Format { file: path, what });
        }
        Ok(modules)
    }

    /// Reads lines of `file: needed needed`.
    fn parse(text: &str) -> Self {
        let mut needs = BTreeMap::new();
        for line in text.lines() {
            let (module, needed) = line.split_once(':').unwrap_or((line, ""));
            let needed = needed.split_whitespace().map(str::to_owned).collect();
            needs.insert(module.trim().to_owned(), needed);
        }
        Self { needs }
    }

    fn find(&self, wanted: &str) -> Option<&str> {
        self.needs.keys().map(String::as_str).find(|module| name(module) == wanted)
    }

    /// The files of these modules and of everything they need.
    fn closure(&self, wanted: &[&str]) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&str> = wanted.iter().filter_map(|name| self.find(name)).collect();
        while let Some(module) = open.pop() {
            if found.insert(module) {
                let needed = self.needs.get(module);
                open.extend(needed.into_iter().flatten().map(String::as_str));
            }
        }
        found
    }

    /// The line of the guest's own `modules.dep`, whose files are not compressed.
    fn line(&self, module: &str) -> String {
        let mut line = format!("{}:", bare(module));
        for needed in self.needs.get(module).into_iter().flatten() {
            line.push(' ');
            line.push_str(bare(needed));
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/net/a/virtio_net.ko.xz: kernel/core/failover.ko.xz k/virtio.ko.xz\n\
                       kernel/core/failover.ko.xz: k/base.ko\n\
                       k/base.ko:\nk/virtio.ko.xz:\nk/other-thing.ko.zst:\n";

    #[test]
    fn a_module_brings_what_it_needs_and_nothing_else() {
        let modules = Modules::parse(DEP);
        let closure = modules.closure(&["virtio_net", "not_there"]);
        let names: Vec<_> = closure.iter().map(|module| name(module)).collect();
        assert_eq!(names, ["base", "virtio", "failover", "virtio_net"]);
        assert_eq!(modules.find("other_thing"), Some("k/other-thing.ko.zst"));
    }

    #[test]
    fn the_guests_list_of_modules_names_files_that_are_not_compressed() {
        let modules = Modules::parse(DEP);
        let line = modules.line("kernel/net/a/virtio_net.ko.xz");
        assert_eq!(line, "kernel/net/a/virtio_net.ko: kernel/core/failover.ko k/virtio.ko\n");
    }

    #[test]
    fn modules_that_need_each_other_do_not_make_us_run_in_a_circle() {
        let modules = Modules::parse("a.ko: b.ko\nb.ko: a.ko\n");
        assert_eq!(modules.closure(&["a"]).len(), 2);
    }

    #[test]
    fn only_a_program_without_an_interpreter_is_static() {
        let mut elf = vec![0; 200];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        elf[32] = 64; // program headers
        elf[54] = 56;
        elf[56] = 2;
        elf[64] = 1;
        elf[64 + 56] = 2;
        assert!(is_static_elf(&elf));
        elf[64 + 56] = 3;
        assert!(!is_static_elf(&elf), "it has PT_INTERP");
        elf[56] = 200;
        assert!(!is_static_elf(&elf), "its table goes past its end");
        assert!(!is_static_elf(b"#!/bin/sh\n"));
    }
}
