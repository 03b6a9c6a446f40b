//! Debian's own kernel on mini-vmm: it finds the NIC, gets a lease, pings, downloads.
//!
//! ```text
//!   KVM runs a kernel here        host: mini-vmm: Linux
//!   it does not, or is not there  host: QEMU: Linux with KVM on emulated SVM: mini-vmm: Linux
//! ```
//!
//! So the test needs no virtualization of the machine that it runs on, but half a minute. What is
//! missing for that is SKIPPED with its reason; in CI (the variable `CI` is set) it is a failure.
//! `--nocapture` shows the guest's console.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests may stop"
)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vionetd::vm::initramfs::{self, GuestFile};
use vionetd::vm::{Backend, Guest, Machine, Parts, VmError};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mini-vmm");
/// Process 1 of the guest of mini-vmm.
const GUEST: &str = include_str!("guest.sh");
/// Where the guest's download comes from: the loopback of the machine that mini-vmm runs on.
const SERVER: &str = "127.0.0.1:8099";
const BLOB: &str = "blob";
const BLOB_LEN: u32 = 4 * 1024 * 1024;
/// How often the guest asks its gateway; each request is a kick.
const PINGS: u64 = 300;

const BOOT: Duration = Duration::from_secs(60);
const VISIT: Duration = Duration::from_secs(240);

fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "cannot be skipped in CI: {why}");
    writeln!(std::io::stderr(), "SKIPPED: {why}").ok();
}

/// Something that compresses badly and is the same each time.
fn blob() -> Vec<u8> {
    let words = (0..BLOB_LEN / 4).map(|word| word.wrapping_mul(0x9e37_79b9).rotate_left(word % 31));
    words.flat_map(u32::to_le_bytes).collect()
}

/// Where mini-vmm runs: here, or one floor down.
enum Place {
    Here { directory: PathBuf, _server: Server },
    Inside(Guest),
}

/// busybox that serves the files of a directory, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Whether KVM of this machine runs a kernel: mini-vmm asks that first, and then for a kernel.
fn kvm_runs_kernels() -> bool {
    let output = Command::new(PROGRAM).args(["--kernel", "/dev/null"]).output().expect("mini-vmm");
    match output.status.code() {
        Some(3) => true,
        Some(4) => {
            let why = String::from_utf8_lossy(&output.stderr);
            writeln!(std::io::stderr(), "one floor down, since: {}", why.trim()).ok();
            false
        }
        code => panic!("{code:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

impl Place {
    fn find(parts: &Parts) -> Self {
        let script = GuestFile::script("mini", GUEST);
        let initrd = initramfs::build(&parts.busybox, &parts.kernel, &[], &[script]);
        let initrd = initrd.expect("build the guest");
        if kvm_runs_kernels() { Self::here(parts, &initrd) } else { Self::inside(parts, &initrd) }
    }

    fn here(parts: &Parts, initrd: &[u8]) -> Self {
        let name = format!("mini-vmm-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("initrd"), initrd).unwrap();
        fs::write(directory.join(BLOB), blob()).unwrap();
        fs::copy(&parts.kernel.image, directory.join("kernel")).unwrap();
        let server = Command::new(&parts.busybox)
            .args(["httpd", "-f", "-p", SERVER, "-h"])
            .arg(&directory)
            .spawn();
        Self::Here { directory, _server: Server(server.expect("busybox")) }
    }

    fn inside(parts: &Parts, initrd: &[u8]) -> Self {
        let file =
            |path: &str, content: Vec<u8>| GuestFile { path: path.into(), mode: 0o755, content };
        let mut files = with_libraries(Path::new(PROGRAM), "usr/bin/mini-vmm");
        files.push(file("initrd", initrd.to_vec()));
        files.push(file(BLOB, blob()));
        files.push(file("kernel", fs::read(&parts.kernel.image).expect("the kernel")));
        let modules = ["kvm_amd"];
        let archive = initramfs::build(&parts.busybox, &parts.kernel, &modules, &files);
        let mut machine = Machine::of_parts(parts, Backend::QemuUser, &[]).expect("a machine");
        machine.initramfs = archive.expect("build the machine that has KVM");
        machine.memory = 1024;
        // QEMU emulates AMD's virtualization, so there is KVM whatever this machine has.
        machine.accel = vionetd::vm::Accel::Tcg;
        let mut guest = Guest::boot(&machine, BOOT).expect("boot the machine that has KVM");
        guest.check("modprobe kvm_amd && [ -c /dev/kvm ]", BOOT).expect("KVM in it");
        guest.check("mini-vmm --probe", BOOT).expect("the flat guest, which asks for less");
        guest.check(&format!("httpd -p {SERVER} -h /"), BOOT).expect("a server in it");
        Self::Inside(guest)
    }

    /// Runs mini-vmm with these words, and gives all lines that came of it.
    fn run(&mut self, words: &str) -> Vec<String> {
        // Somebody at the terminal, until the pipe breaks.
        let command = |program: &str, at: &str| {
            format!(
                "while sleep 1; do echo hello; done | timeout {} {program} --kernel {at}kernel \
                 --initrd {at}initrd --memory 256 --net user --map-host-loopback 10.0.2.9 \
                 {words} 2>&1",
                VISIT.as_secs()
            )
        };
        match self {
            Self::Here { directory, .. } => {
                let output = Command::new("sh")
                    .args(["-c", &command("\"$0\"", ""), PROGRAM])
                    .current_dir(&*directory)
                    .stdin(Stdio::null())
                    .output()
                    .expect("sh");
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success(), "{}\n{said}", output.status);
                said.lines().map(str::to_owned).collect()
            }
            Self::Inside(guest) => {
                let output = guest.run(&command("mini-vmm", "/"), VISIT + BOOT);
                let output = output.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(output.status, 0, "{}", output.lines.join("\n"));
                output.lines
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Here { directory, .. } = self {
            drop(fs::remove_dir_all(directory));
        }
    }
}

/// The program and the libraries that it is linked with.
fn with_libraries(program: &Path, name: &str) -> Vec<GuestFile> {
    let file = |from: &str, to: &str| GuestFile {
        path: to.to_owned(),
        mode: 0o755,
        content: fs::read(from).unwrap_or_else(|error| panic!("{from}: {error}")),
    };
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = said.split_whitespace().filter_map(|word| word.strip_prefix('/'));
    let mut files: Vec<_> = libraries.map(|inside| file(&format!("/{inside}"), inside)).collect();
    files.push(file(program.to_str().expect("a path in UTF-8"), name));
    files
}

/// The values of `key=` among the lines; a console ends its lines with a carriage return.
fn values<'a>(lines: &'a [String], key: &str) -> Vec<&'a str> {
    let value = |line: &'a String| line.trim_end().strip_prefix(key)?.strip_prefix('=');
    lines.iter().filter_map(value).collect()
}

/// What every visit has to show.
fn check(lines: &[String], cpus: &str, sha256: &str) {
    let all = lines.join("\n");
    println!("{all}");
    let value = |key: &str| values(lines, key).first().copied().unwrap_or_default();
    assert_eq!(value("done"), "yes", "{all}");
    assert_eq!(value("cpus"), cpus, "{all}");
    assert_eq!(value("address"), "10.0.2.15", "{all}");
    assert_eq!(value("pings"), format!("{PINGS},{PINGS}"), "{all}");
    assert_eq!(value("bytes"), BLOB_LEN.to_string(), "{all}");
    assert_eq!(value("sha256"), sha256, "{all}");
    assert_eq!(value("heard"), "hello", "{all}");
}

/// How many interrupts of the NIC came by lines of `/proc/interrupts` that say this.
fn interrupts(lines: &[String], by: &str) -> u64 {
    let count = |line: &str| -> Option<u64> {
        line.contains(by).then(|| line.split_whitespace().next()?.parse().ok())?
    };
    values(lines, "interrupt").into_iter().filter_map(count).sum()
}

/// How often the guest has left KVM for an MMIO access, and how many frames it sent.
fn account(lines: &[String]) -> (u64, u64) {
    let line = lines.iter().find(|line| line.contains("left the guest")).expect("the account");
    let before = |word: &str| -> u64 {
        let (before, _) = line.split_once(word).expect(word);
        before.split_whitespace().last().and_then(|number| number.parse().ok()).expect(word)
    };
    (before(" MMIO accesses"), before(" frames"))
}

#[test]
fn linux_has_its_network_by_messages_and_by_the_line() {
    let parts = match Parts::find() {
        Ok(parts) => parts,
        Err(error @ VmError::Missing(_)) => return skip(&error.to_string()),
        Err(error) => panic!("{error}"),
    };
    let sha256 = sha256(&parts);
    let mut place = Place::find(&parts);

    let lines = place.run("--cpus 2 --append 'quiet rdinit=/mini'");
    check(&lines, "2", &sha256);
    assert!(interrupts(&lines, "PCI-MSI") > 0, "{}", lines.join("\n"));
    assert_eq!(interrupts(&lines, "IO-APIC"), 0, "{}", lines.join("\n"));
    let (mmio, sent) = account(&lines);
    // The driver's setting up takes less than two hundred, and no kick is one.
    assert!(sent > PINGS && mmio < PINGS, "{mmio} MMIO accesses, {sent} frames sent");

    let lines = place.run("--append 'quiet rdinit=/mini pci=nomsi'");
    check(&lines, "1", &sha256);
    assert_eq!(interrupts(&lines, "PCI-MSI"), 0, "{}", lines.join("\n"));
    assert!(interrupts(&lines, "IO-APIC") > 0, "{}", lines.join("\n"));
}

/// The checksum of the blob, by another program than the guest's.
fn sha256(parts: &Parts) -> String {
    let mut child = Command::new(&parts.busybox)
        .arg("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("busybox");
    child.stdin.take().unwrap().write_all(&blob()).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a sum").to_owned()
}
