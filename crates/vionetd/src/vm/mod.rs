//! A real Linux guest from this machine's own Debian files: kernel, busybox, QEMU.
//!
//! ```text
//!   /boot/vmlinuz-V --unpack--> vmlinux --------+
//!   /lib/modules/V --resolve--> virtio_net.ko --+                vhost-user socket
//!   busybox (static) ---------> newc archive ---+--> QEMU <=========================> vionet
//!   init.sh, our files -------> "initramfs"            |
//!                                                      +-- ttyS0: kernel log, to a file
//!                                                      +-- ttyS1: the agent, line by line
//!                                                      +-- QMP:   reset, link, quit
//! ```
//!
//! The agent in the guest (`init.sh`) reads one command per line from its second serial port,
//! runs it and answers with the output and `@@END id status`; so every check is driven from here,
//! and kernel messages never tear an answer apart. A guest nobody talks to powers itself off.
//!
//! Nothing here needs root: without a usable KVM the guest runs under TCG and boots in seconds.

mod clock;
pub mod cpio;
mod demo;
mod error;
mod guest;
pub mod initramfs;
pub mod kernel;
mod parts;
mod qemu;
mod qmp;

pub use clock::{Stopwatch, now};
pub use demo::{DemoPlan, Lease, Step, VmReport, run_demo};
pub use error::VmError;
pub use guest::{Guest, Output};
pub use parts::{Missing, Parts, missing};
pub(crate) use qemu::kvm_opens;
pub use qemu::{Accel, Backend, Machine, Qemu};
pub use qmp::Qmp;
