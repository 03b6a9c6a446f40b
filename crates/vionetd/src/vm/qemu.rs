//! Finds QEMU, learns whether KVM really runs here, and writes QEMU's command line.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

/// The emulator's program.
const PROGRAM: &str = "qemu-system-x86_64";

/// How long a kernel under a working KVM may take to its first word on the console.
const FIRST_WORD: Duration = Duration::from_secs(4);

/// What every guest kernel is told: its console, to end QEMU when it panics, and to leave out
/// what only costs time in a guest of seconds.
const KERNEL_LINE: &str = "console=ttyS0 quiet panic=-1 tsc=reliable cryptomgr.notests \
                           mitigations=off random.trust_cpu=on";

/// The size of a network device's configuration space (VIRTIO 1.4 §5.1.4).
const CONFIG_SIZE: usize = vionet_spec::net::CONFIG_LEN;

/// A QEMU that runs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version: major, minor.
    pub version: (u32, u32),
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// QEMU's translator; works everywhere, ten times slower.
    Tcg,
}

impl Accel {
    /// QEMU's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Who is behind the guest's NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A vhost-user back-end that listens on this socket: vionet.
    VhostUser(PathBuf),
    /// The same behind QEMU's generic vhost-user device, which leaves all to the back-end, the
    /// control queue too. QEMU 11 has it.
    VhostUserWhole(PathBuf),
    /// A vfio-user server that listens on this socket and has the whole PCI function: vionet.
    /// QEMU 10.1 has it.
    VfioUser(PathBuf),
    /// QEMU's own device with its own user-mode network, for comparison.
    QemuUser,
    /// QEMU's own device on this tap, for comparison.
    QemuTap(String),
}

/// A guest, before it is started.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The emulator.
    pub qemu: Qemu,
    /// What executes the guest's instructions.
    pub accel: Accel,
    /// The file to boot.
    pub kernel: PathBuf,
    /// The root filesystem.
    pub initramfs: Vec<u8>,
    /// Who is behind the NIC.
    pub backend: Backend,
    /// Memory in MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u16,
    /// Queue pairs of the NIC.
    pub pairs: u16,
    /// The NIC's MAC address, where the back-end is not asked for it.
    pub mac: String,
    /// Whether the guest may reboot; else QEMU ends when it tries.
    pub reboots: bool,
    /// Whether the guest is offered packed rings.
    pub packed: bool,
}

impl Qemu {
    /// The QEMU of this machine, if there is one that runs.
    #[must_use]
    pub fn find() -> Option<Self> {
        Self::at(Path::new(PROGRAM))
    }

    /// The QEMU that this program is, if it runs.
    #[must_use]
    pub fn at(program: &Path) -> Option<Self> {
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = version_of(&text)?;
        Some(Self { program: program.to_owned(), version })
    }

    /// Whether its vhost-user devices crash without KVM unless they have no MSI-X vectors.
    #[must_use]
    pub fn needs_intx_under_tcg(&self) -> bool {
        self.version < (8, 0)
    }

    /// Whether KVM really runs a kernel here: the device file opens and a kernel started on it
    /// says its first word. (Some machines have a `/dev/kvm` that runs nothing.) Asked once.
    #[must_use]
    pub fn best_accel(&self, kernel: &Path) -> Accel {
        static ANSWER: OnceLock<Accel> = OnceLock::new();
        *ANSWER.get_or_init(|| match kvm_opens() && self.kernel_speaks_under_kvm(kernel) {
            true => Accel::Kvm,
            false => Accel::Tcg,
        })
    }

    fn kernel_speaks_under_kvm(&self, kernel: &Path) -> bool {
        let child = Command::new(&self.program)
            .args(["-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "128"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-serial", "stdio", "-append", "console=ttyS0 earlyprintk=serial panic=-1"])
            .arg("-kernel")
            .arg(kernel)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else { return false };
        let (sender, receiver) = mpsc::channel();
        let reader = child.stdout.take().map(|mut output| {
            std::thread::spawn(move || {
                let spoke = output.read_exact(&mut [0; 1]).is_ok();
                sender.send(spoke).ok();
            })
        });
        let spoke = receiver.recv_timeout(FIRST_WORD).unwrap_or(false);
        drop(child.kill());
        drop(child.wait());
        drop(reader.map(std::thread::JoinHandle::join));
        spoke
    }
}

/// Whether `/dev/kvm` opens for reading and writing.
pub(crate) fn kvm_opens() -> bool {
    OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

impl Machine {
    /// QEMU's arguments; `run` is the directory of this run, which holds the archive and takes
    /// the kernel's log and the QMP socket.
    #[must_use]
    pub fn arguments(&self, run: &Path) -> Vec<OsString> {
        let mut list = Arguments(Vec::new());
        let cpu = match self.accel {
            Accel::Kvm => "host",
            Accel::Tcg => "max",
        };
        list.pair("-accel", self.accel.name());
        list.pair("-machine", "q35,memory-backend=ram");
        list.pair("-cpu", cpu);
        list.pair("-m", &self.memory.to_string());
        list.pair("-smp", &self.cpus.to_string());
        // the back-end maps the guest's memory, so it must be shared
        let memory = self.memory;
        list.pair("-object", &format!("memory-backend-memfd,id=ram,size={memory}M,share=on"));
        list.words(&["-nodefaults", "-no-user-config", "-display", "none"]);
        if !self.reboots {
            list.words(&["-no-reboot"]);
        }
        list.path("-kernel", "", &self.kernel, "");
        list.path("-initrd", "", &run.join(files::INITRAMFS), "");
        list.pair("-append", KERNEL_LINE);
        list.path("-serial", "file:", &run.join(files::KERNEL_LOG), "");
        list.pair("-serial", "stdio");
        list.path("-qmp", "unix:", &run.join(files::QMP), ",server=on,wait=off");
        self.nic(&mut list);
        list.0
    }

    fn nic(&self, list: &mut Arguments) {
        let mut device = format!("virtio-net-pci,id=nic0,netdev=net0,mac={}", self.mac);
        if self.packed {
            device.push_str(",packed=on");
        }
        if self.pairs > 1 {
            device.push_str(",mq=on");
        }
        match &self.backend {
            Backend::VhostUser(socket) => {
                list.path("-chardev", "socket,id=chr0,path=", socket, "");
                let pairs = self.pairs;
                list.pair("-netdev", &format!("vhost-user,id=net0,chardev=chr0,queues={pairs}"));
                if self.accel == Accel::Tcg && self.qemu.needs_intx_under_tcg() {
                    device.push_str(",vectors=0");
                }
            }
            Backend::VhostUserWhole(socket) => {
                list.path("-chardev", "socket,id=chr0,path=", socket, "");
                let queues = self.pairs.saturating_mul(2).saturating_add(1);
                device = format!(
                    "vhost-user-test-device-pci,id=nic0,chardev=chr0,virtio-id=1,\
                     num_vqs={queues},config_size={CONFIG_SIZE},vq_size=256"
                );
            }
            Backend::VfioUser(socket) => {
                let path = serde_json::Value::from(socket.display().to_string());
                let socket = format!(r#"{{"type":"unix","path":{path}}}"#);
                device = format!(r#"{{"driver":"vfio-user-pci","id":"nic0","socket":{socket}}}"#);
            }
            Backend::QemuUser => list.pair("-netdev", "user,id=net0"),
            Backend::QemuTap(name) => {
                let tap = format!("tap,id=net0,ifname={name},script=no,downscript=no");
                list.pair("-netdev", &tap);
            }
        }
        list.pair("-device", &device);
    }
}

/// The files of one run, in its directory.
pub(super) mod files {
    pub(in crate::vm) const INITRAMFS: &str = "initramfs.cpio";
    pub(in crate::vm) const KERNEL_LOG: &str = "kernel.log";
    pub(in crate::vm) const QEMU_LOG: &str = "qemu.log";
    pub(in crate::vm) const QMP: &str = "qmp.sock";
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.words(&[option, value]);
    }

    /// A path alone or inside a value; in a list of `key=value`, QEMU wants its commas twice.
    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let mut value = OsString::from(before);
        if before.contains('=') || !after.is_empty() {
            let doubled = path.as_os_str().as_bytes().split(|byte| *byte == b',');
            let doubled: Vec<&[u8]> = doubled.collect();
            value.push(OsString::from_vec(doubled.join(&b",,"[..])));
        } else {
            value.push(path);
        }
        value.push(after);
        self.0.push(OsString::from(option));
        self.0.push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accel: Accel, version: (u32, u32)) -> Machine {
        Machine {
            qemu: Qemu { program: PathBuf::from(PROGRAM), version },
            accel,
            kernel: PathBuf::from("/boot/vmlinuz"),
            initramfs: Vec::new(),
            backend: Backend::VhostUser(PathBuf::from("/run/vm0.sock")),
            memory: 256,
            cpus: 1,
            pairs: 1,
            mac: "52:54:00:00:00:01".to_owned(),
            reboots: false,
            packed: false,
        }
    }

    fn line(machine: &Machine) -> String {
        let words = machine.arguments(Path::new("/tmp/run"));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_version_is_read_from_what_qemu_says() {
        let said = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright";
        assert_eq!(version_of(said), Some((7, 2)));
        assert_eq!(version_of("QEMU emulator version 10.1.0"), Some((10, 1)));
        assert_eq!(version_of("command not found"), None);
    }

    #[test]
    fn old_qemu_without_kvm_gets_no_msix_vectors() {
        assert!(line(&machine(Accel::Tcg, (7, 2))).contains(",vectors=0"));
        assert!(!line(&machine(Accel::Kvm, (7, 2))).contains("vectors"));
        assert!(!line(&machine(Accel::Tcg, (9, 0))).contains("vectors"));
    }

    #[test]
    fn several_pairs_are_named_at_both_ends_of_the_nic() {
        let mut machine = machine(Accel::Tcg, (9, 0));
        (machine.pairs, machine.cpus) = (4, 2);
        let line = line(&machine);
        assert!(line.contains("chardev=chr0,queues=4"), "{line}");
        assert!(line.contains(",mq=on"), "{line}");
        assert!(line.contains("-smp 2"), "{line}");
    }

    #[test]
    fn the_generic_device_has_a_control_queue_behind_all_pairs() {
        let mut machine = machine(Accel::Tcg, (11, 1));
        machine.pairs = 4;
        machine.backend = Backend::VhostUserWhole(PathBuf::from("/run/vm0.sock"));
        let line = line(&machine);
        assert!(line.contains("socket,id=chr0,path=/run/vm0.sock"), "{line}");
        assert!(line.contains("virtio-id=1,num_vqs=9,config_size=28"), "{line}");
        assert!(!line.contains("-netdev"), "{line}");
    }

    #[test]
    fn a_whole_function_is_named_by_its_socket_alone() {
        let mut machine = machine(Accel::Tcg, (11, 1));
        machine.backend = Backend::VfioUser(PathBuf::from("/run/vm,0.sock"));
        let line = line(&machine);
        assert!(line.contains(r#""socket":{"type":"unix","path":"/run/vm,0.sock"}}"#), "{line}");
        assert!(!line.contains("netdev") && !line.contains("chardev"), "{line}");
    }

    #[test]
    fn a_comma_in_the_sockets_path_does_not_end_it() {
        let mut machine = machine(Accel::Tcg, (9, 0));
        machine.backend = Backend::VhostUser(PathBuf::from("/run/a,b.sock"));
        assert!(line(&machine).contains("path=/run/a,,b.sock"));
    }

    #[test]
    fn guest_memory_is_shared_and_the_socket_is_named() {
        let line = line(&machine(Accel::Tcg, (9, 0)));
        assert!(line.contains("-machine q35,memory-backend=ram"), "{line}");
        assert!(line.contains("memory-backend-memfd,id=ram,size=256M,share=on"), "{line}");
        assert!(line.contains("socket,id=chr0,path=/run/vm0.sock"), "{line}");
        assert!(line.contains("-no-reboot"), "{line}");
    }
}
