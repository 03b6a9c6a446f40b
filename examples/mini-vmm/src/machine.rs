//! The machine around the processors: what each exit of the guest means.
//!
//! ```text
//!   0x3f8..0x400   serial port: the console      0xcf8, 0xcfc   PCI (pci.rs)
//!   0xf4           the guest's last word         MMIO           the NIC's region (pci.rs)
//!   a triple fault: the guest resets, and so ends
//! ```
//!
//! Interrupt controllers and the timer are KVM's; what else a PC has, Linux does without.

use std::fmt;
use std::io::{Read, Stdin, Stdout, stdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use kvm_ioctls::VcpuExit;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::failure::{Failure, Said};
use crate::kvm::{Vcpu, Vm};
use crate::pci::{self, Bus};

const SERIAL: u16 = 0x3f8;
const SERIAL_IRQ: u32 = 4;
/// A byte written here ends the machine with that code. Reading it takes a millisecond, which is
/// how a guest without a clock waits.
const LAST_WORD: u16 = 0xf4;

/// How a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It has reset its machine.
    Reset,
    /// It has said so, with a code.
    LastWord(u8),
}

/// Exits of the guest that came to us: not those that KVM has answered by itself.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    ports: AtomicU64,
    mmio: AtomicU64,
}

/// Everything that a guest reaches by an exit.
pub(crate) struct Machine {
    bus: Bus,
    serial: Mutex<Serial<Irq, NoEvents, Stdout>>,
    pub(crate) exits: Exits,
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = std::io::Error;

    fn trigger(&self) -> Result<(), std::io::Error> {
        self.0.write(1)
    }
}

impl Machine {
    pub(crate) fn new(vm: &Vm, bus: Bus) -> Result<Arc<Self>, Failure> {
        let irq = Irq(vm.irqfd(SERIAL_IRQ)?);
        let serial = Mutex::new(Serial::new(irq, stdout()));
        Ok(Arc::new(Self { bus, serial, exits: Exits::default() }))
    }

    /// Runs the guest on these processors, until one of them ends it. The others are left where
    /// they are: the process ends with the guest.
    pub(crate) fn run(self: &Arc<Self>, vcpus: Vec<Vcpu>) -> Result<Ended, Failure> {
        let (ends, end) = mpsc::channel();
        for vcpu in vcpus {
            let (machine, ends) = (Arc::clone(self), ends.clone());
            let run = move || ends.send(machine.run_one(vcpu)).is_ok();
            thread::Builder::new().name("vcpu".into()).spawn(run).said("no thread for a vCPU")?;
        }
        drop(ends);
        end.recv().said("every processor is gone")?
    }

    fn run_one(&self, mut vcpu: Vcpu) -> Result<Ended, Failure> {
        loop {
            let stray = match vcpu.run() {
                Ok(VcpuExit::IoOut(LAST_WORD, [code, ..])) => {
                    return Ok(Ended::LastWord(*code));
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.port_out(port, data)?;
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.port_in(port, data);
                    continue;
                }
                Ok(VcpuExit::MmioRead(at, data)) => {
                    self.exits.mmio.fetch_add(1, Ordering::Relaxed);
                    if !self.bus.read(at, data) {
                        data.fill(0xff);
                    }
                    continue;
                }
                Ok(VcpuExit::MmioWrite(at, data)) => {
                    self.exits.mmio.fetch_add(1, Ordering::Relaxed);
                    self.bus.write(at, data);
                    continue;
                }
                Ok(VcpuExit::Shutdown) => return Ok(Ended::Reset),
                Ok(VcpuExit::Intr) => continue,
                Ok(VcpuExit::InternalError) => "an instruction that KVM cannot emulate".into(),
                Ok(other) => format!("{other:?}"),
                // A signal came: nothing has happened to the guest.
                Err(error) if is_interrupted(error) => continue,
                Err(error) => format!("{error}"),
            };
            let at = vcpu.place();
            return Err(Failure::new(format!("KVM does not go on at {at:#x}: {stray}")));
        }
    }

    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.exits.ports.fetch_add(1, Ordering::Relaxed);
        match port {
            pci::ADDRESS..=pci::LAST => self.bus.port_in(port, data),
            LAST_WORD => thread::sleep(Duration::from_millis(1)),
            _ => match serial_register(port) {
                // Several bytes are a string instruction's, all for this register.
                Some(register) => data.fill_with(|| self.serial().read(register)),
                None => data.fill(0xff),
            },
        }
    }

    fn port_out(&self, port: u16, data: &[u8]) -> Result<(), Failure> {
        self.exits.ports.fetch_add(1, Ordering::Relaxed);
        if (pci::ADDRESS..=pci::LAST).contains(&port) {
            self.bus.port_out(port, data);
        } else if let Some(register) = serial_register(port) {
            for byte in data {
                let written = self.serial().write(register, *byte);
                written.map_err(|error| Failure::new(format!("the console fails: {error}")))?;
            }
        }
        Ok(())
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Irq, NoEvents, Stdout>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes from the terminal goes to the guest's console, as fast as it takes it.
    pub(crate) fn listen(self: &Arc<Self>, mut input: Stdin) -> Result<(), Failure> {
        let machine = Arc::clone(self);
        let pass = move || {
            let mut bytes = [0; 16];
            while let Ok(count @ 1..) = input.read(&mut bytes) {
                for byte in bytes.iter().take(count) {
                    while !matches!(machine.serial().enqueue_raw_bytes(&[*byte]), Ok(1)) {
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        };
        thread::Builder::new()
            .name("stdin".into())
            .spawn(pass)
            .said("no thread for the console")?;
        Ok(())
    }
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [ports, mmio] = [&self.ports, &self.mmio].map(|count| count.load(Ordering::Relaxed));
        write!(f, "{ports} port accesses and {mmio} MMIO accesses left the guest")
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let register = port.checked_sub(SERIAL).and_then(|register| u8::try_from(register).ok());
    register.filter(|register| *register < 8)
}

fn is_interrupted(error: kvm_ioctls::Error) -> bool {
    let kind = std::io::Error::from(error).kind();
    matches!(kind, std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock)
}
