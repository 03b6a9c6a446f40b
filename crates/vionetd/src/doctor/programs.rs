//! The programs around vionet: QEMU with KVM, the parts of a demo guest, passt.

use std::process::{Command, Stdio};

use super::Finding;
use crate::vm::{Accel, Parts, Qemu, VmError, kvm_opens};

/// KVM: whether it really runs a kernel here.
pub(super) fn kvm() -> Finding {
    const NAME: &str = "kvm";
    const DEVICE: &str = "/dev/kvm";
    if !std::path::Path::new(DEVICE).exists() {
        let seen = format!("no {DEVICE}; guests run under TCG, ten times slower");
        let mend = "switch on virtualisation in the firmware, or nested virtualisation on the host";
        return Finding::limited(NAME, seen, mend);
    }
    if !kvm_opens() {
        let seen = format!("{DEVICE} may not be opened by you; guests run under TCG");
        return Finding::limited(NAME, seen, "sudo usermod -aG kvm $USER, then log in again");
    }
    let Ok(parts) = Parts::find() else {
        let seen = format!("{DEVICE} opens; not tried for want of QEMU or a kernel");
        return Finding::limited(NAME, seen, "sudo apt install qemu-system-x86 linux-image-amd64");
    };
    match parts.qemu.best_accel(&parts.kernel.bootable()) {
        Accel::Kvm => Finding::ok(NAME, "runs a kernel"),
        Accel::Tcg => Finding::limited(
            NAME,
            format!("{DEVICE} opens but runs no kernel; guests run under TCG"),
            "switch on nested virtualisation on the machine below",
        ),
    }
}

/// QEMU: its version, and whether it speaks vhost-user and vfio-user.
pub(super) fn qemu() -> Finding {
    const NAME: &str = "qemu";
    let Some(qemu) = Qemu::find() else {
        return Finding::missing(
            NAME,
            "no qemu-system-x86_64; other VMMs work as well",
            "sudo apt install qemu-system-x86",
        );
    };
    let (major, minor) = qemu.version;
    let program = qemu.program.as_os_str().to_string_lossy().into_owned();
    if !says(&program, &["-netdev", "help"], "vhost-user") {
        let seen = format!("QEMU {major}.{minor} was built without vhost-user");
        return Finding::missing(NAME, seen, "sudo apt install qemu-system-x86");
    }
    if qemu.needs_intx_under_tcg() {
        return Finding::limited(
            NAME,
            format!("QEMU {major}.{minor}: with vhost-user and MSI-X it crashes without KVM"),
            "without KVM add vectors=0 to -device virtio-net-pci, or use QEMU 8 or newer",
        );
    }
    match says(&program, &["-device", "help"], "vfio-user-pci") {
        true => Finding::ok(NAME, format!("QEMU {major}.{minor} with vhost-user and vfio-user")),
        false => {
            Finding::ok(NAME, format!("QEMU {major}.{minor} with vhost-user; vfio-user from 10.1"))
        }
    }
}

/// What `vionet demo --vm` builds its guest of.
pub(super) fn demo_vm() -> Finding {
    const NAME: &str = "demo-vm";
    match Parts::find() {
        Ok(parts) => {
            let (version, busybox) = (&parts.kernel.version, parts.busybox.display());
            Finding::ok(NAME, format!("Linux {version} and {busybox} make a guest"))
        }
        Err(VmError::Missing(list)) => {
            let what: Vec<&str> = list.iter().map(|missing| missing.what.as_str()).collect();
            let packages: Vec<&str> = list.iter().filter_map(|missing| missing.package).collect();
            let mend = match packages.is_empty() {
                true => "sudo chmod a+r /boot/vmlinuz-*".to_owned(),
                false => format!("sudo apt install {}", packages.join(" ")),
            };
            Finding::missing(NAME, what.join("; "), mend)
        }
        Err(error) => Finding::missing(NAME, error.to_string(), "mend what it names"),
    }
}

/// passt: another user-mode network, for comparison.
pub(super) fn passt() -> Finding {
    const NAME: &str = "passt";
    if output("passt", &["--version"]).is_none() {
        let seen = "not installed; only comparisons need it";
        return Finding::limited(NAME, seen, "sudo apt install passt");
    }
    if says("passt", &["--help"], "--vhost-user") {
        return Finding::ok(NAME, "installed, with vhost-user");
    }
    let seen = "installed, without vhost-user: no comparison over the same interface";
    Finding::limited(NAME, seen, "install passt of 2025 or newer")
}

/// What a program writes, on both of its outputs.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let both = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&both).into_owned())
}

fn says(program: &str, arguments: &[&str], word: &str) -> bool {
    output(program, arguments).is_some_and(|text| text.contains(word))
}
