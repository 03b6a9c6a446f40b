//! Whether KVM here runs a guest's instructions or interprets them.
//!
//! KVM may have no processor with virtualization below it: inside a virtual machine without nested
//! virtualization, a kernel can still offer `/dev/kvm` and interpret what it is given, as PVM does
//! for all guests that are not made for it. The flat guest does not mind. A kernel would take
//! hours to its first word, and then trip over an instruction that the interpreter does not know.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;

use crate::failure::{Failure, Said};
use crate::kvm::Vm;
use crate::memory::GuestMemory;

/// Instructions of one count: 500 000 rounds of two.
const INSTRUCTIONS: u32 = 1_000_000;

/// Counts down, tells port 0x80, and begins again.
const COUNTS: &[u8] = &[
    0xb9, 0x20, 0xa1, 0x07, 0x00, // mov ecx, 500000
    0x49, //                         dec ecx
    0x75, 0xfd, //                   jnz -3
    0xe6, 0x80, //                   out 0x80, al
    0xeb, 0xf4, //                   jmp -12
];
const AT: u64 = 0x1000;

/// Slower than this no processor is, and no interpreter of one instruction at a time is faster.
const SLOWEST: Duration = Duration::from_nanos(60);

/// The time of an instruction, if it is one that no processor takes.
pub(crate) fn interprets() -> Result<Option<Duration>, Failure> {
    let memory = GuestMemory::new(0x1_0000)?;
    memory.write(AT, COUNTS)?;
    let vm = Vm::new(Arc::clone(memory.space()))?;
    let mut vcpu = vm.vcpu(0)?;
    vcpu.begin(AT, 0)?;
    let mut each = Duration::MAX;
    // The best of three: the first has pages to fault in, and others may want our processor.
    for _ in 0..3 {
        let start = now();
        match vcpu.run().unable("KVM runs nothing")? {
            VcpuExit::IoOut(0x80, _) => {}
            other => return Err(Failure::unable(format!("KVM cannot count to ten: {other:?}"))),
        }
        each = each.min(start.elapsed().checked_div(INSTRUCTIONS).unwrap_or_default());
        if each < SLOWEST {
            return Ok(None);
        }
    }
    Ok(Some(each))
}

#[allow(clippy::disallowed_methods, reason = "a program that measures")]
fn now() -> Instant {
    Instant::now()
}
