//! What the kernel offers: shared memory, taps, namespaces, newer socket and I/O interfaces.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{CapabilitySet, capabilities};

use super::Finding;

/// `memfd_create`: guest memory that can be shared with a back-end.
pub(super) fn memfd() -> Finding {
    const NAME: &str = "memfd";
    match memfd_create("vionet-doctor", MemfdFlags::CLOEXEC) {
        Ok(_) => Finding::ok(NAME, "guest memory can be shared"),
        Err(error) => {
            let seen = format!("memfd_create: {error}");
            Finding::missing(NAME, seen, "allow memfd_create in this container's seccomp profile")
        }
    }
}

/// Reserved huge pages: fewer page-table walks for large guests.
pub(super) fn huge_pages() -> Finding {
    const NAME: &str = "huge-pages";
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (total, free) = (field("HugePages_Total:"), field("HugePages_Free:"));
    let size = field("Hugepagesize:").unwrap_or(2048) / 1024;
    match (total, free) {
        (None, _) | (_, None) => {
            Finding::missing(NAME, "this kernel has none", "run a kernel with CONFIG_HUGETLBFS")
        }
        (Some(0), _) => {
            let seen = format!("none of {size} MiB reserved; guests use ordinary pages");
            Finding::limited(NAME, seen, "for speed: sudo sysctl vm.nr_hugepages=512")
        }
        (Some(total), Some(0)) => {
            let seen = format!("all {total} of {size} MiB are taken");
            Finding::limited(NAME, seen, "sudo sysctl vm.nr_hugepages=<more>")
        }
        (Some(total), Some(free)) => {
            Finding::ok(NAME, format!("{free} of {total} pages of {size} MiB are free"))
        }
    }
}

/// Taps: `/dev/net/tun` and the right to make interfaces.
pub(super) fn tap() -> Finding {
    const NAME: &str = "tap";
    const DEVICE: &str = "/dev/net/tun";
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let seen = format!("{DEVICE} may not be opened by you");
            return Finding::missing(NAME, seen, format!("sudo chmod 0666 {DEVICE}"));
        }
        Err(error) => {
            return Finding::missing(NAME, format!("{DEVICE}: {error}"), "sudo modprobe tun");
        }
    }
    let admin =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    if admin {
        return Finding::ok(NAME, format!("{DEVICE} opens, and you have CAP_NET_ADMIN"));
    }
    Finding::limited(
        NAME,
        format!("{DEVICE} opens; without CAP_NET_ADMIN only taps made for you can be used"),
        "sudo ip tuntap add dev vionet0 mode tap vnet_hdr user $USER",
    )
}

/// User namespaces: a sandbox and a network of one's own without root.
pub(super) fn user_namespaces() -> Finding {
    const NAME: &str = "user-namespaces";
    let tried = Command::new("unshare")
        .args(["--user", "--net", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if tried.as_ref().is_ok_and(std::process::ExitStatus::success) {
        return Finding::ok(NAME, "you can make one with a network of its own");
    }
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let sysctl = [
        ("user/max_user_namespaces", 0, "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", 0, "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            1,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ]
    .into_iter()
    .find(|(path, closed, _)| number(&format!("/proc/sys/{path}")) == Some(*closed));
    match (sysctl, tried) {
        (Some((path, closed, mend)), _) => {
            let seen = format!("closed by {} = {closed}", path.replace('/', "."));
            Finding::missing(NAME, seen, format!("sudo sysctl {mend}"))
        }
        (None, Err(_)) => Finding::limited(
            NAME,
            "not tried: no program unshare; no setting closes them",
            "sudo apt install util-linux",
        ),
        (None, Ok(_)) => Finding::missing(
            NAME,
            "refused, though no setting closes them",
            "allow unshare in this container's seccomp profile",
        ),
    }
}

/// io_uring: whether the kernel has it and lets us use it.
pub(super) fn io_uring() -> Finding {
    const NAME: &str = "io-uring";
    let setting = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match (kernel() >= (5, 19), setting.trim()) {
        (false, _) => Finding::limited(NAME, kernel_words(), "run Linux 5.19 or newer"),
        (true, "1" | "2") => {
            let seen = format!("closed by kernel.io_uring_disabled = {}", setting.trim());
            Finding::limited(NAME, seen, "sudo sysctl kernel.io_uring_disabled=0")
        }
        (true, _) => Finding::ok(NAME, format!("{}, not closed by a setting", kernel_words())),
    }
}

/// `SO_PEEK_OFF` on TCP sockets: data can stay in the host's socket until the guest has it.
pub(super) fn peek_off() -> Finding {
    const NAME: &str = "peek-off";
    if kernel() >= (6, 9) {
        return Finding::ok(NAME, format!("{} has SO_PEEK_OFF for TCP", kernel_words()));
    }
    let seen = format!("{} has no SO_PEEK_OFF for TCP", kernel_words());
    Finding::limited(NAME, seen, "for speed of the built-in network: run Linux 6.9 or newer")
}

fn kernel_words() -> String {
    let (major, minor) = kernel();
    format!("Linux {major}.{minor}")
}

/// The kernel's version: major, minor; 0 for what cannot be read.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    release(&name.release().to_string_lossy())
}

fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse().ok()).unwrap_or(0);
    (number(), number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_up_to_their_minor_number() {
        assert_eq!(release("6.1.0-42-amd64"), (6, 1));
        assert_eq!(release("6.18"), (6, 18));
        assert_eq!(release("7-rc1"), (7, 0));
        assert_eq!(release(""), (0, 0));
        assert!(kernel() > (3, 0));
    }
}
