//! Finds this machine's kernel image and takes the ELF kernel out of it.
//!
//! A bzImage is a small loader with the real kernel compressed inside. QEMU starts an ELF kernel
//! that has a PVH note directly, which under TCG leaves out the slowest part of the boot: the
//! guest unpacking its own kernel. So the kernel is unpacked here, once, and kept in the user's
//! cache. Where that fails the bzImage boots as it is.
//!
//! (Linux, `Documentation/arch/x86/boot.rst`: the fields of the real-mode header.)

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::VmError;
use super::parts::Missing;

/// Where Debian keeps kernel images.
const BOOT: &str = "/boot";
/// Where Debian keeps their modules.
const MODULES: &str = "/lib/modules";

/// A kernel image with the modules that fit to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The kernel's release, such as `6.1.0-42-amd64`.
    pub version: String,
    /// The image as installed: a bzImage.
    pub image: PathBuf,
    /// The directory that holds its `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel that is readable and has its modules.
    ///
    /// # Errors
    /// Says what is missing, and the package to install.
    pub fn find() -> Result<Self, Missing> {
        Self::find_in(Path::new(BOOT), Path::new(MODULES))
    }

    fn find_in(boot: &Path, modules: &Path) -> Result<Self, Missing> {
        let package = Some("linux-image-amd64");
        let mut found = Vec::new();
        for entry in fs::read_dir(boot).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(version) = name.to_str().and_then(|n| n.strip_prefix("vmlinuz-")) else {
                continue;
            };
            let modules = modules.join(version);
            if modules.join("modules.dep").is_file() {
                found.push(Self { version: version.to_owned(), image: entry.path(), modules });
            }
        }
        found.sort_by_key(|kernel| natural(&kernel.version));
        let Some(newest) = found.last() else {
            let what = format!("no {}/vmlinuz-* with its modules", boot.display());
            return Err(Missing { what, package });
        };
        let readable = found.iter().rev().find(|kernel| fs::File::open(&kernel.image).is_ok());
        readable.cloned().ok_or_else(|| Missing {
            what: format!("{} is not readable; chmod a+r it", newest.image.display()),
            package: None,
        })
    }

    /// The programs that unpack this kernel's modules and are not installed.
    #[must_use]
    pub fn missing_programs(&self) -> Vec<Missing> {
        let list = fs::read_to_string(self.modules.join("modules.dep")).unwrap_or_default();
        let first = list.lines().next().and_then(|line| line.split(':').next()).unwrap_or("");
        match Packing::of_name(first) {
            Some(packing) if !packing.installed() => vec![Missing {
                what: format!("no program {} to unpack kernel modules", packing.program()),
                package: Some(packing.package()),
            }],
            Some(_) | None => Vec::new(),
        }
    }

    /// The file to boot: the unpacked kernel from the user's cache, filled when need be, or the
    /// image itself where it cannot be unpacked.
    #[must_use]
    pub fn bootable(&self) -> PathBuf {
        self.unpacked().unwrap_or_else(|_| self.image.clone())
    }

    fn unpacked(&self) -> Result<PathBuf, VmError> {
        let what = || format!("read {}", self.image.display());
        let facts = fs::metadata(&self.image).map_err(VmError::io(what()))?;
        let directory = cache_directory().ok_or_else(|| VmError::Answer {
            what: "no cache directory: neither XDG_CACHE_HOME nor HOME is set".to_owned(),
        })?;
        // size and time tell a rebuilt kernel of the same version from the one we unpacked
        let name = format!("vmlinux-{}-{}-{}", self.version, facts.size(), facts.mtime());
        let kept = directory.join(name);
        if fs::metadata(&kept).is_ok_and(|kept| kept.size() > 0 && kept.uid() == own_uid()) {
            return Ok(kept);
        }
        let image = fs::read(&self.image).map_err(VmError::io(what()))?;
        let kernel = unpack(&image).map_err(|what| self.not_usable(what))?;
        if !has_pvh_note(&kernel) {
            return Err(self.not_usable("its kernel has no PVH note"));
        }
        let making = || format!("fill the cache {}", directory.display());
        fs::create_dir_all(&directory).map_err(VmError::io(making()))?;
        let partial = directory.join(format!(".{}.{}", self.version, std::process::id()));
        let kept_now = fs::write(&partial, &kernel).and_then(|()| fs::rename(&partial, &kept));
        if kept_now.is_err() {
            drop(fs::remove_file(&partial));
        }
        kept_now.map_err(VmError::io(making()))?;
        Ok(kept)
    }

    fn not_usable(&self, what: &'static str) -> VmError {
        VmError::Format { file: self.image.clone(), what }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The directory of this user's cached files.
fn cache_directory() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("vionet"))
}

/// Orders version strings as people do: runs of digits by their value.
fn natural(version: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = version;
    while !rest.is_empty() {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let after: String = rest
            .chars()
            .skip(digits.len())
            .take_while(|character| !character.is_ascii_digit())
            .collect();
        let used = digits.len().saturating_add(after.len());
        parts.push((digits.parse().unwrap_or(0), after));
        rest = rest.get(used..).unwrap_or("");
    }
    parts
}

/// The ways kernels and modules are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Xz,
    Zstd,
    Gzip,
}

impl Packing {
    /// By the file's name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once('.')?.1 {
            "xz" => Some(Self::Xz),
            "zst" => Some(Self::Zstd),
            "gz" => Some(Self::Gzip),
            _ => None,
        }
    }

    /// By the first bytes of the content.
    fn of_content(content: &[u8]) -> Option<Self> {
        [
            (&b"\xfd7zXZ\0"[..], Self::Xz),
            (&b"\x28\xb5\x2f\xfd"[..], Self::Zstd),
            (&b"\x1f\x8b"[..], Self::Gzip),
        ]
        .into_iter()
        .find_map(|(magic, packing)| content.starts_with(magic).then_some(packing))
    }

    fn program(self) -> &'static str {
        match self {
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Xz => "xz-utils",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    fn installed(self) -> bool {
        let probe = Command::new(self.program())
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        probe.is_ok_and(|status| status.success())
    }

    /// Unpacks `packed` with the program; its output is what counts, as the kernel's payload may
    /// have bytes behind its end, at which the program grumbles.
    pub(super) fn unpack(self, packed: &[u8]) -> Result<Vec<u8>, VmError> {
        let program = self.program();
        let what = || format!("unpack with the program {program}");
        let mut child = Command::new(program)
            .args(["-q", "-d", "-c"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(VmError::io(what()))?;
        let input = child.stdin.take();
        let output = std::thread::scope(|scope| {
            if let Some(mut input) = input {
                // a broken pipe shows in the output, which is then short
                scope.spawn(move || drop(input.write_all(packed)));
            }
            child.wait_with_output()
        });
        Ok(output.map_err(VmError::io(what()))?.stdout)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..)?.first_chunk().map(|field| u64::from_le_bytes(*field))?;
    usize::try_from(field).ok()
}

/// The compressed kernel inside a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    if !image.get(MAGIC..)?.starts_with(b"HdrS") {
        return None;
    }
    // no number there means 4; the boot sector comes before them
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let loader = sectors.checked_add(1)?.checked_mul(512)?;
    let offset = usize::try_from(u32_at(image, PAYLOAD_OFFSET)?).ok()?;
    let length = usize::try_from(u32_at(image, PAYLOAD_LENGTH)?).ok()?;
    let start = loader.checked_add(offset)?;
    image.get(start..start.checked_add(length)?)
}

/// The ELF kernel inside a bzImage.
fn unpack(image: &[u8]) -> Result<Vec<u8>, &'static str> {
    const ELF: &[u8] = b"\x7fELF";
    if image.starts_with(ELF) {
        return Ok(image.to_vec());
    }
    let payload = payload(image).ok_or("not an x86 bzImage")?;
    let packing = Packing::of_content(payload).ok_or("compressed in a way not known here")?;
    let packed = match packing {
        // the build appends the unpacked size for formats that do not hold it
        Packing::Xz | Packing::Zstd => payload.get(..payload.len().saturating_sub(4)),
        Packing::Gzip => Some(payload),
    };
    let kernel = packing.unpack(packed.unwrap_or(payload)).map_err(|_| "cannot be unpacked")?;
    if kernel.starts_with(ELF) { Ok(kernel) } else { Err("holds no ELF kernel") }
}

/// Whether an ELF kernel has the note by which QEMU starts it (`XEN_ELFNOTE_PHYS32_ENTRY`).
fn has_pvh_note(elf: &[u8]) -> bool {
    const PT_NOTE: u32 = 4;
    const HEADERS: usize = 32;
    const HEADER_SIZE: usize = 54;
    const HEADER_COUNT: usize = 56;
    let note = |index: u16| {
        let size = usize::from(u16_at(elf, HEADER_SIZE)?);
        let at = usize_at(elf, HEADERS)?.checked_add(size.checked_mul(usize::from(index))?)?;
        if u32_at(elf, at)? != PT_NOTE {
            return None;
        }
        let start = usize_at(elf, at.checked_add(8)?)?;
        let length = usize_at(elf, at.checked_add(32)?)?;
        elf.get(start..start.checked_add(length)?)
    };
    // type 18, then the owner's name
    let wanted = b"\x12\0\0\0Xen\0";
    (0..u16_at(elf, HEADER_COUNT).unwrap_or(0))
        .filter_map(note)
        .any(|note| note.windows(wanted.len()).any(|window| window == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_the_value_of_their_numbers() {
        let mut versions = ["6.1.0-9-amd64", "6.12.0-1-amd64", "6.1.0-42-amd64", "5.10.0-30"];
        versions.sort_by_key(|version| natural(version));
        assert_eq!(versions, ["5.10.0-30", "6.1.0-9-amd64", "6.1.0-42-amd64", "6.12.0-1-amd64"]);
    }

    #[test]
    fn the_payload_of_a_bzimage_is_where_its_header_says() {
        let mut image = vec![0; 512 * 2 + 64];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 16;
        image[0x24c] = 4;
        image[1024 + 16..1024 + 20].copy_from_slice(b"data");
        assert_eq!(payload(&image), Some(&b"data"[..]));
        image[0x24d] = 0xff;
        assert_eq!(payload(&image), None, "a length past the end");
        image[0x202] = 0;
        assert_eq!(unpack(&image), Err("not an x86 bzImage"));
    }

    #[test]
    fn a_kernel_without_its_modules_is_not_taken() {
        let root = std::env::temp_dir().join(format!("vionet-kernel-{}", std::process::id()));
        let (boot, modules) = (root.join("boot"), root.join("modules"));
        for version in ["6.1.0-9", "6.1.0-10", "6.2.0-1"] {
            fs::create_dir_all(modules.join(version)).unwrap();
            fs::create_dir_all(&boot).unwrap();
            fs::write(boot.join(format!("vmlinuz-{version}")), "x").unwrap();
        }
        let nothing = Kernel::find_in(&boot, &modules);
        assert_eq!(nothing.unwrap_err().package, Some("linux-image-amd64"));
        fs::write(modules.join("6.1.0-9/modules.dep"), "kernel/a.ko.xz:\n").unwrap();
        fs::write(modules.join("6.1.0-10/modules.dep"), "kernel/a.ko:\n").unwrap();
        let kernel = Kernel::find_in(&boot, &modules).unwrap();
        assert_eq!(kernel.version, "6.1.0-10");
        assert_eq!(kernel.missing_programs(), []);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_pvh_note_is_found_in_its_segment_only() {
        let mut elf = vec![0; 256];
        elf[32] = 64; // program headers
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 4; // PT_NOTE
        elf[64 + 8] = 200;
        elf[64 + 32] = 24;
        assert!(!has_pvh_note(&elf));
        elf[208..216].copy_from_slice(b"\x12\0\0\0Xen\0");
        assert!(has_pvh_note(&elf));
        elf[64] = 1;
        assert!(!has_pvh_note(&elf));
        assert!(!has_pvh_note(b"\x7fELF"));
    }
}
