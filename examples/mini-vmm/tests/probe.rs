//! The flat guest on this machine's KVM, and the program where there is none.
//!
//! KVM need not run Linux for it: one that interprets its guests does.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may stop")]

use std::io::Write;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mini-vmm");

fn mini_vmm(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("mini-vmm starts")
}

/// Says why a test does not run; the capture of test output does not hold it back.
fn skip(why: &str) {
    writeln!(std::io::stderr(), "SKIPPED: {why}").ok();
}

/// Whether KVM is not here, or runs not even a loop: no machine can be made to have it, so CI does
/// without as well. That it interprets its guests is no hindrance.
fn skipped() -> bool {
    let output = mini_vmm(&["--kernel", "/dev/null"]);
    let why = String::from_utf8_lossy(&output.stderr);
    let broken = output.status.code() == Some(4) && !why.contains("interprets");
    if broken {
        skip(why.trim());
    }
    broken
}

#[test]
fn a_flat_guest_drives_the_nic_by_real_exits() {
    if skipped() {
        return;
    }
    let output = mini_vmm(&["--probe"]);
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    assert_eq!(complaints, "");
    for line in [
        " 1 bus      8086:0d57 at 00:00, 1af4:1041 at 00:01",
        " 2 region   00008000 bytes, now at d0000000",
        " 5 address  52:54:00:76:69:6f",
        " 7 MSI-X    a frame of 60 bytes went out and came back; both vectors have interrupted",
        " 8 line     another one, without MSI-X: the line was raised, and lowered by reading",
        " 9 reset    the device has let go of everything",
        "the guest sent 2 frames, and got 2",
    ] {
        assert!(said.contains(line), "`{line}` is not in\n{said}");
    }
}

#[test]
fn a_guest_that_waits_in_vain_says_at_which_step() {
    if skipped() {
        return;
    }
    // What comes from a network that is no echo is something else: it says that it is there.
    let output = mini_vmm(&["--probe", "--net", "user"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("NOT SO: all of it comes back"), "{said}");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert_eq!(complaints, "mini-vmm: the guest gave up at step 7\n");
}

#[test]
fn what_cannot_boot_is_refused_in_one_sentence() {
    if skipped() {
        return;
    }
    let output = mini_vmm(&["--kernel", "/dev/null"]);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let reason = match output.status.code() {
        Some(3) => "the kernel is no bzImage",
        _ => "KVM here interprets instructions",
    };
    assert!(complaints.contains(reason), "{output:?}");
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    // Asked for it anyway, it comes to the same as elsewhere.
    let output = mini_vmm(&["--kernel", "/dev/null", "--anyway"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn without_kvm_it_says_so_and_what_to_do() {
    // A mount namespace of its own, in which nothing is in /dev.
    let run = |what: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
            .args([&format!("mount -t tmpfs none /dev && exec {what}"), PROGRAM])
            .output()
    };
    if !run("true").is_ok_and(|output| output.status.success()) {
        return skip("no user namespace here to hide /dev/kvm in");
    }
    let output = run("\"$0\" --probe").expect("unshare");
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let complaints = String::from_utf8_lossy(&output.stderr);
    let expected = "mini-vmm: /dev/kvm does not open: No such file or directory (os error 2); load \
                    kvm_intel or kvm_amd; a virtual machine needs nested virtualization for it\n";
    assert_eq!(complaints, expected);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for arguments in [&[][..], &["--probe", "--kernel", "x"], &["--probe", "--net", "tap:"]] {
        assert_eq!(mini_vmm(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
