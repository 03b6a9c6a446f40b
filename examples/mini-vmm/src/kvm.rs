//! KVM: a virtual machine, its processors, and the two calls that only an embedder can vouch for.
//!
//! The only file here with `unsafe`.
#![allow(unsafe_code, reason = "KVM is given addresses and descriptors as plain numbers")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_pit_config, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use vionet_raw::{AddressSpace, Region};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::failure::{Failure, Said};

/// What a machine of ours asks of KVM.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "guest memory of ours"),
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::IrqRouting, "routes for MSI"),
    (Cap::Irqfd, "interrupts by eventfd"),
    (Cap::Ioeventfd, "kicks by eventfd"),
    (Cap::Pit2, "a timer in the kernel"),
    (Cap::ExtCpuid, "a say in what CPUID tells"),
];

/// Three pages that Intel's real mode needs, out of everybody's way.
const TSS: usize = 0xfffb_d000;

/// Where the descriptors of [`CODE`] and [`DATA`] lie.
const GDT: u64 = 0x500;
/// Selectors that Linux's 32-bit boot protocol names: flat code, flat data.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// A virtual machine with memory, interrupt controllers and a timer.
pub(crate) struct Vm {
    fd: VmFd,
    cpuid: CpuId,
    /// Mapped for as long as KVM knows of it.
    memory: Arc<AddressSpace>,
}

/// One of its processors. It holds the machine, so memory stays while a guest can run.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    _vm: Arc<Vm>,
}

impl Vm {
    /// Makes the machine, or says what is missing here and what to do.
    pub(crate) fn new(memory: Arc<AddressSpace>) -> Result<Arc<Self>, Failure> {
        let kvm = open()?;
        for (cap, what) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(Failure::unable(format!("KVM here lacks {what} ({cap:?})")));
            }
        }
        let fd = kvm.create_vm().unable("KVM makes no virtual machine")?;
        fd.set_tss_address(TSS).unable("KVM takes no address for the TSS")?;
        fd.create_irq_chip().unable("KVM makes no interrupt controller")?;
        // Without the port of the PC's speaker in the kernel, Linux cannot measure its clocks.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).unable("KVM makes no timer")?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.unable("KVM does not say what CPUID may tell")?;
        for (slot, region) in (0..).zip(memory.map().regions()) {
            map(&fd, slot, region)?;
        }
        Ok(Arc::new(Self { fd, cpuid, memory }))
    }

    pub(crate) fn memory(&self) -> &Arc<AddressSpace> {
        &self.memory
    }

    /// Its processor of this number; the first runs, others wait for the first to start them.
    pub(crate) fn vcpu(self: &Arc<Self>, id: u8) -> Result<Vcpu, Failure> {
        let fd = self.fd.create_vcpu(id.into()).unable("KVM makes no processor")?;
        let mut cpuid = self.cpuid.clone();
        for entry in cpuid.as_mut_slice() {
            // Leaves that tell the number of the local APIC: those of the host's processor do not
            // fit to the MP table.
            match entry.function {
                0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(id) << 24,
                0xb | 0x1f => entry.edx = id.into(),
                _ => {}
            }
        }
        fd.set_cpuid2(&cpuid).unable("KVM does not take its own CPUID")?;
        Ok(Vcpu { fd, _vm: Arc::clone(self) })
    }

    /// Kicks at this address ring the doorbell, and the guest does not exit for them. Of any
    /// length, and whatever is written: as [`vionet::transport::PciNic::doorbell_offset`] says.
    pub(crate) fn attach(&self, doorbell: &EventFd, address: u64) -> Result<(), Failure> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(doorbell, &address, NoDatamatch).said("no ioeventfd for a queue")
    }

    /// Undoes [`Self::attach`].
    pub(crate) fn detach(&self, doorbell: &EventFd, address: u64) -> Result<(), Failure> {
        let address = IoEventAddress::Mmio(address);
        self.fd.unregister_ioevent(doorbell, &address, NoDatamatch).said("an ioeventfd is kept")
    }

    /// An eventfd that raises this interrupt (GSI) whenever it is written to.
    pub(crate) fn irqfd(&self, gsi: u32) -> Result<EventFd, Failure> {
        let event = EventFd::new(EFD_NONBLOCK).said("no eventfd for an interrupt")?;
        self.fd.register_irqfd(&event, gsi).said("no irqfd for an interrupt")?;
        Ok(event)
    }

    /// Where every interrupt goes from now on: KVM knows the whole table or nothing.
    pub(crate) fn route(&self, table: &[kvm_irq_routing_entry]) -> Result<(), Failure> {
        let table = KvmIrqRouting::from_entries(table).said("too many routes")?;
        self.fd.set_gsi_routing(&table).said("KVM does not take the routes of interrupts")
    }

    /// Raises or lowers an interrupt line.
    pub(crate) fn line(&self, gsi: u32, asserted: bool) -> Result<(), Failure> {
        self.fd.set_irq_line(gsi, asserted).said("KVM does not take an interrupt")
    }
}

impl Vcpu {
    /// Has it begin at `entry` as Linux's 32-bit boot protocol wants it, with `argument` in ESI:
    /// flat segments, no paging, no interrupts. (Linux, `Documentation/arch/x86/boot.rst`)
    ///
    /// The 64-bit entry would spare Linux a few instructions and cost us page tables.
    pub(crate) fn begin(&self, entry: u64, argument: u64) -> Result<(), Failure> {
        let mut sregs = self.fd.get_sregs().unable("no registers of the processor")?;
        let flat =
            kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
        // Execute and read, accessed; read and write, accessed.
        sregs.cs = kvm_segment { selector: CODE, type_: 0b1011, ..flat };
        let data = kvm_segment { selector: DATA, type_: 0b0011, ..flat };
        (sregs.ds, sregs.es, sregs.fs) = (data, data, data);
        (sregs.gs, sregs.ss) = (data, data);
        (sregs.gdt.base, sregs.gdt.limit) = (GDT, 4 * 8 - 1);
        sregs.cr0 |= 1;
        self.fd.set_sregs(&sregs).unable("KVM does not take the processor's registers")?;
        let regs = kvm_regs { rip: entry, rsi: argument, rflags: 2, ..Default::default() };
        self.fd.set_regs(&regs).unable("KVM does not take the processor's registers")
    }

    /// Lets the guest run until it does something that is ours to answer.
    pub(crate) fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// Where it stands, for people who look for what went wrong.
    pub(crate) fn place(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

/// The descriptors that the selectors name, and where they are to lie.
pub(crate) fn descriptors() -> (u64, [u8; 32]) {
    let table = [0_u64, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let mut bytes = [0; 32];
    for (place, byte) in bytes.iter_mut().zip(table.iter().flat_map(|row| row.to_le_bytes())) {
        *place = byte;
    }
    (GDT, bytes)
}

/// The NIC's eventfd in the type that KVM's crates want.
pub(crate) fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: the number is that of an open eventfd, which nobody else owns any more.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

fn map(vm: &VmFd, slot: u32, region: &Region) -> Result<(), Failure> {
    let memory = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.guest().0,
        memory_size: u64::try_from(region.len()).said("too much memory")?,
        userspace_addr: u64::try_from(region.base().addr().get()).said("no such address")?,
    };
    // SAFETY: the region is mapped for as long as the memory map is held, which `Vm` does, and so
    // does every processor through it. No Rust reference is made to it: all of vionet goes through
    // `Region`, which bears that others change it.
    let done = unsafe { vm.set_user_memory_region(memory) };
    done.unable("KVM does not take the guest's memory")
}

fn open() -> Result<Kvm, Failure> {
    let kvm = Kvm::new().map_err(|error| {
        let mend = match std::io::Error::from(error).kind() {
            std::io::ErrorKind::NotFound => {
                "load kvm_intel or kvm_amd; a virtual machine needs nested virtualization for it"
            }
            std::io::ErrorKind::PermissionDenied => {
                "join its group (sudo usermod -aG kvm $USER) and log in again"
            }
            _ => "see what the kernel's log says about KVM",
        };
        Failure::unable(format!("/dev/kvm does not open: {error}; {mend}"))
    })?;
    let version = kvm.get_api_version();
    if i64::from(version) != i64::from(KVM_API_VERSION) {
        return Err(Failure::unable(format!("/dev/kvm speaks version {version}, not 12")));
    }
    Ok(kvm)
}
