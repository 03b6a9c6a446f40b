//! A VMM in nine hundred lines: it boots Linux with a vionet NIC on PCI, and is made to be read.
//!
//! ```text
//!                     guest: Linux (boot.rs), or a flat program that probes (guest/flat.c)
//!      port, MMIO exits |              | kicks                        ^ MSI-X, line
//!   ====================|==============|==============================|================ KVM
//!                       v              | ioeventfd                    | irqfd  (kvm.rs)
//!     machine.rs   one thread a vCPU   |                              |
//!                       |              |                          lines.rs
//!     pci.rs       host bridge, NIC    |                              ^ route, message, level
//!                       v              v                              |
//!                  +----------------------------------------------------------+
//!                  |  PciNic: registers, queues, workers             (vionet) |
//!                  +----------------------------+-----------------------------+
//!                                               | one call per batch
//!                                          user, tap, echo
//! ```
//!
//! Read it in this order: [`nic`] below is all that an embedder does to have a NIC; `pci.rs` brings
//! the guest's accesses to it, `lines.rs` takes its interrupts away; `memory.rs` is the memory that
//! it shares with KVM. The rest is what any VMM needs: `kvm.rs`, `machine.rs`, `boot.rs`.
//!
//! What is not here: ACPI, disks, sandboxing, a life after the guest's reset. The NIC does not need
//! them.
#![deny(unsafe_code)]

mod boot;
mod failure;
mod kvm;
mod lines;
mod machine;
mod memory;
mod pci;
mod speed;

use std::io::stdin;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use vionet::endpoint::Endpoint;
use vionet::transport::{Keeper, PciNic, Wiring};
use vionet::{Device, NicConfig};
use vionet_endpoint::{Echo, Tap};
use vionet_user::UserNet;
use vionet_user::config::{HostLoopback, UserConfig};

use failure::{Exit, Failure, Said};
use kvm::Vm;
use lines::NicLines;
use machine::{Ended, Machine};
use memory::{DEVICES, GuestMemory};
use pci::Bus;

/// The flat guest, as `build.rs` has had it compiled.
const FLAT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/flat.bin"));
/// Where it was linked to run.
const FLAT_AT: u64 = 0x10_0000;

const USAGE: &str = "mini-vmm --kernel <FILE> [OPTIONS]\n       mini-vmm --probe [OPTIONS]";

const EXAMPLES: &str = "\
Examples:
  mini-vmm --probe                                a guest of our own tries the NIC, step by step
  mini-vmm --kernel /boot/vmlinuz --initrd initrd.img
  mini-vmm --kernel bzImage --net tap:tap0 --append \"root=/dev/ram0 quiet\"
  mini-vmm --kernel bzImage --append pci=nomsi    the NIC interrupts by its line

The guest ends the machine by a reset: reboot -f. Exit codes: 0 it did so, 1 something failed,
2 usage, 3 what was asked for makes no sense, 4 there is no KVM here that can do it";

/// Boots Linux on KVM with a virtio NIC on PCI.
#[derive(Debug, Parser)]
#[command(name = "mini-vmm", version, override_usage = USAGE, after_help = EXAMPLES)]
struct Arguments {
    /// Run a flat guest that drives the NIC by itself, instead of a kernel
    #[arg(long, conflicts_with_all = ["kernel", "initrd", "append"])]
    probe: bool,
    /// The kernel: a bzImage, such as /boot/vmlinuz-*
    #[arg(long, value_name = "FILE", required_unless_present = "probe")]
    kernel: Option<PathBuf>,
    /// Its initramfs
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// More of its command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512,
          value_parser = clap::value_parser!(u64).range(16..=DEVICES >> 20))]
    memory: u64,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=32))]
    cpus: u8,
    /// What is behind the NIC: user (a network without root), tap:NAME, echo [default: user; for
    /// --probe, which counts on its frames coming back, echo]
    #[arg(long, value_name = "KIND")]
    net: Option<Net>,
    /// For --net user: this address of the guest's network leads to the host's 127.0.0.1
    #[arg(long, value_name = "ADDRESS")]
    map_host_loopback: Option<Ipv4Addr>,
    /// Boot even where KVM interprets instructions: for kernels made for that
    #[arg(long)]
    anyway: bool,
}

/// A host side.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Net {
    User,
    Tap(String),
    Echo,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("tap:")) {
            ("user", _) => Ok(Self::User),
            ("echo", _) => Ok(Self::Echo),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Tap(name.into())),
            _ => Err("one of user, tap:NAME, echo".into()),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.probe { probe(&arguments) } else { boot(&arguments) };
    match ended {
        Ok(Ended::Reset | Ended::LastWord(0)) => ExitCode::SUCCESS,
        Ok(Ended::LastWord(step)) => {
            eprintln!("mini-vmm: the guest gave up at step {step}");
            Exit::Failed.into()
        }
        Err(failure) => {
            eprintln!("mini-vmm: {failure}");
            failure.exit.into()
        }
    }
}

impl Arguments {
    /// The host side asked for, or this one.
    fn endpoint(&self, default: &Net) -> Result<Box<dyn Endpoint>, Failure> {
        let map_host_loopback = HostLoopback { v4: self.map_host_loopback, v6: None };
        let config = UserConfig { map_host_loopback, ..UserConfig::default() };
        Ok(match self.net.as_ref().unwrap_or(default) {
            Net::User => Box::new(UserNet::new(config).said("no network")?),
            Net::Tap(name) => Box::new(Tap::open(name, 1).said("no network")?),
            Net::Echo => Box::new(Echo),
        })
    }
}

/// A NIC in front of `endpoint`: with memory, with somewhere for its interrupts, with a keeper.
fn nic(vm: &Arc<Vm>, endpoint: Box<dyn Endpoint>) -> Result<(Arc<PciNic>, Keeper), Failure> {
    let config = NicConfig { mac: [0x52, 0x54, 0, 0x76, 0x69, 0x6f], ..NicConfig::default() };
    let device = Device::new(config, endpoint).said("no NIC")?;
    // A vector for each queue, and one for the configuration.
    let lines = NicLines::new(vm, device.queues().saturating_add(1))?;
    let wiring = Wiring::new(Arc::clone(vm.memory()), Arc::new(lines));
    let nic = Arc::new(PciNic::new(device, &wiring).said("no NIC")?);
    // Without somebody who tends it, the driver's commands wait for an access to its registers.
    let keeper = nic.keeper(|report| eprintln!("mini-vmm: NIC: {report}"));
    Ok((nic, keeper.said("no thread for the NIC's keeper")?))
}

/// Boots a kernel, and lives as long as it does.
fn boot(arguments: &Arguments) -> Result<Ended, Failure> {
    if let Some(each) = speed::interprets()?
        && !arguments.anyway
    {
        return Err(Failure::unable(format!(
            "KVM here interprets instructions, {} ns each, and runs no common kernel; \
             `mini-vmm --probe` tries the NIC, --anyway boots a kernel made for this",
            each.as_nanos()
        )));
    }
    let kernel = read(arguments.kernel.as_deref())?;
    let initrd = read(arguments.initrd.as_deref())?;
    let memory = GuestMemory::new(arguments.memory << 20)?;
    let (entry, zero_page) =
        boot::load(&memory, &kernel, &initrd, &arguments.append, arguments.cpus)?;

    let vm = Vm::new(Arc::clone(memory.space()))?;
    let (nic, _keeper) = nic(&vm, arguments.endpoint(&Net::User)?)?;
    let machine = Machine::new(&vm, Bus::new(&vm, Arc::clone(&nic))?)?;
    machine.listen(stdin())?;
    let vcpus = (0..arguments.cpus).map(|id| vm.vcpu(id)).collect::<Result<Vec<_>, _>>()?;
    if let Some(first) = vcpus.first() {
        first.begin(entry, zero_page)?;
    }
    let ended = machine.run(vcpus)?;
    eprintln!("{}", account(&machine, &nic));
    Ok(ended)
}

/// Runs the flat guest, which says what it sees, and tells how often it left KVM for that.
fn probe(arguments: &Arguments) -> Result<Ended, Failure> {
    let memory = GuestMemory::new(arguments.memory << 20)?;
    let (gdt, descriptors) = kvm::descriptors();
    memory.write(gdt, &descriptors)?;
    memory.write(FLAT_AT, FLAT)?;

    let vm = Vm::new(Arc::clone(memory.space()))?;
    let (nic, _keeper) = nic(&vm, arguments.endpoint(&Net::Echo)?)?;
    let machine = Machine::new(&vm, Bus::new(&vm, Arc::clone(&nic))?)?;
    let vcpu = vm.vcpu(0)?;
    vcpu.begin(FLAT_AT, 0)?;
    let ended = machine.run(vec![vcpu])?;
    println!("{}", account(&machine, &nic));
    Ok(ended)
}

/// What it took: a kick is no exit, so there are far fewer of those than of frames.
fn account(machine: &Machine, nic: &PciNic) -> String {
    let total = nic.snapshot().total;
    let [sent, received] = [&total.transmit, &total.receive].map(|lane| lane.frames());
    format!("mini-vmm: {}; the guest sent {sent} frames, and got {received}", machine.exits)
}

fn read(path: Option<&Path>) -> Result<Vec<u8>, Failure> {
    let Some(path) = path else { return Ok(Vec::new()) };
    std::fs::read(path).map_err(|error| Failure::config(format!("{}: {error}", path.display())))
}
