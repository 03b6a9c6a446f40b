//! Linux as a bzImage: where its parts go, and the tables that it finds its machine by.
//!
//! ```text
//!   0x00500    descriptors                     0x9fc00    MP table: processors, interrupts
//!   0x07000    zero page                       0x100000   the kernel, which unpacks itself
//!   0x20000    command line                    top        initramfs, whole pages
//! ```
//!
//! (Linux, `Documentation/arch/x86/boot.rst` and `zero-page.rst`; Intel, MultiProcessor
//! Specification 1.4.)
//!
//! The machine has no ACPI: an MP table of a few lines says all that it has, and Linux still reads
//! it. What it cannot say is how to power off, so a guest ends its machine by a reset.

use crate::failure::{Failure, Said};
use crate::kvm;
use crate::memory::GuestMemory;

const ZERO_PAGE: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
const COMMAND_LINE_MAX: usize = 2047;
const MP_TABLE: u64 = 0x9_fc00;
/// Below are 640 KiB without the MP table; between them and this, the PC has no memory.
const KERNEL: u64 = 0x10_0000;

/// What every guest of this machine is told, before what the user adds: where to talk; that a
/// triple fault is how it resets; how to find PCI, of which nothing tells.
pub(crate) const ALWAYS: &str =
    "console=ttyS0 reboot=t panic=-1 acpi=off pci=conf1 i8042.noaux i8042.nokbd";

/// Fields of the setup header, by their offsets in the image and in the zero page alike.
mod header {
    pub(super) const SETUP_SECTORS: usize = 0x1f1;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP: usize = 0x200;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const LOADER: usize = 0x210;
    pub(super) const LOAD_FLAGS: usize = 0x211;
    pub(super) const INITRD: usize = 0x218;
    pub(super) const INITRD_LEN: usize = 0x21c;
    pub(super) const COMMAND_LINE: usize = 0x228;
    pub(super) const INITRD_MAX: usize = 0x22c;
    pub(super) const PREFERRED: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}
/// The zero page's own: how many ranges of memory there are, and the ranges.
const E820_COUNT: usize = 0x1e8;
const E820: usize = 0x2d0;

/// Loads a kernel. Its first instruction is at the first address, and it wants the second in ESI.
pub(crate) fn load(
    memory: &GuestMemory,
    image: &[u8],
    initrd: &[u8],
    append: &str,
    cpus: u8,
) -> Result<(u64, u64), Failure> {
    let (mut page, kernel) = unpack(image).ok_or_else(|| {
        Failure::config("the kernel is no bzImage of protocol 2.10 or newer; give it as built")
    })?;
    let needed = number(&page, header::PREFERRED).saturating_add(size(&page, header::INIT_SIZE));
    let initrd_at = place_initrd(memory, initrd, &page, needed)?;
    let line = format!("{ALWAYS} {append}");
    if line.len() > COMMAND_LINE_MAX {
        return Err(Failure::config(format!(
            "--append leaves no room in {COMMAND_LINE_MAX} bytes"
        )));
    }

    // A loader without a number of its own.
    put(&mut page, header::LOADER, &[0xff]);
    put(&mut page, header::INITRD, &low(initrd_at)?);
    put(&mut page, header::INITRD_LEN, &low(length(initrd)?)?);
    put(&mut page, header::COMMAND_LINE, &low(COMMAND_LINE)?);
    let ranges = [(0, MP_TABLE), (KERNEL, memory.len().saturating_sub(KERNEL))];
    put(&mut page, E820_COUNT, &[2]);
    for (index, (start, len)) in (0_usize..).zip(ranges) {
        let mut entry = [start.to_le_bytes(), len.to_le_bytes()].concat();
        entry.extend(1_u32.to_le_bytes()); // memory
        put(&mut page, index.saturating_mul(20).saturating_add(E820), &entry);
    }

    let (gdt, descriptors) = kvm::descriptors();
    memory.write(gdt, &descriptors)?;
    memory.write(ZERO_PAGE, &page)?;
    memory.write(COMMAND_LINE, &[line.as_bytes(), &[0]].concat())?;
    memory.write(MP_TABLE, &mp_table(cpus))?;
    memory.write(KERNEL, kernel)?;
    memory.write(initrd_at, initrd)?;
    Ok((KERNEL, ZERO_PAGE))
}

/// The zero page with the image's setup header in it, and the kernel behind the real-mode code.
fn unpack(image: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let flag = image.get(header::BOOT_FLAG..)?.starts_with(&[0x55, 0xaa]);
    let magic = image.get(header::MAGIC..)?.starts_with(b"HdrS");
    let [minor, major] = image.get(header::VERSION..)?.first_chunk()?;
    let is_high = image.get(header::LOAD_FLAGS)? & 1 != 0;
    // 2.10 is the first that says how much memory it needs to unpack itself.
    if !(flag && magic && is_high && (*major, *minor) >= (2, 10)) {
        return None;
    }
    let sectors = match *image.get(header::SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let kernel = image.get(sectors.checked_add(1)?.checked_mul(512)?..)?;
    // The jump at the header's start goes over it: so it tells where the header ends.
    let over = usize::from(*image.get(header::JUMP.checked_add(1)?)?);
    let end = header::MAGIC.checked_add(over)?;
    let mut page = vec![0; 4096];
    put(&mut page, header::SETUP_SECTORS, image.get(header::SETUP_SECTORS..end)?);
    Some((page, kernel))
}

/// As high as it may lie, above everything that the kernel writes over while it unpacks itself.
fn place_initrd(
    memory: &GuestMemory,
    initrd: &[u8],
    page: &[u8],
    needed: u64,
) -> Result<u64, Failure> {
    let top = memory.len().min(size(page, header::INITRD_MAX).saturating_add(1));
    let at = top.checked_sub(length(initrd)?).map(|at| at & !0xfff);
    at.filter(|at| *at >= needed).ok_or_else(|| {
        Failure::config(format!(
            "kernel and initrd need more than {} MiB; give --memory more",
            memory.len() >> 20
        ))
    })
}

/// The floating pointer and the table behind it: processors, two buses, who interrupts where.
fn mp_table(cpus: u8) -> Vec<u8> {
    const PCI: u8 = 0;
    const ISA: u8 = 1;
    let io_apic = cpus;
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for cpu in 0..cpus {
        // Usable; the first is the one that boots. Its kind is CPUID's to tell.
        let flags = if cpu == 0 { 3 } else { 1 };
        entries.push([&[0, cpu, 0x14, flags][..], &[0; 16]].concat());
    }
    entries.push([&[1, PCI][..], b"PCI   "].concat());
    entries.push([&[1, ISA][..], b"ISA   "].concat());
    entries.push([&[2, io_apic, 0x11, 1][..], &0xfec0_0000_u32.to_le_bytes()].concat());
    for irq in 0..16 {
        entries.push(vec![3, 0, 0, 0, ISA, irq, io_apic, irq]);
    }
    // INTA of a PCI device: its number, then the pin in two bits.
    let nic = crate::pci::NIC << 2;
    entries.push(vec![3, 0, 0, 0, PCI, nic, io_apic, crate::lines::INTX_PIN]);
    // The old controller's at LINT0, NMI at LINT1, of all processors.
    entries.push(vec![4, 3, 0, 0, ISA, 0, 0, 0]);
    entries.push(vec![4, 1, 0, 0, ISA, 0, 0xff, 1]);

    let count = u16::try_from(entries.len()).unwrap_or(0);
    let body = entries.concat();
    let len = u16::try_from(body.len().saturating_add(44)).unwrap_or(0);
    let mut table = b"PCMP".to_vec();
    table.extend(len.to_le_bytes());
    table.extend([4, 0]); // specification 1.4; checksum
    table.extend(b"VIONET  MINI-VMM    ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(0xfee0_0000_u32.to_le_bytes());
    table.extend([0; 4]);
    table.extend(body);
    let sum = checksum(&table);
    put(&mut table, 7, &[sum]);

    let mut pointer = b"_MP_".to_vec();
    pointer.extend(low(MP_TABLE.saturating_add(16)).unwrap_or_default());
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]); // 16 bytes; specification 1.4; checksum
    let sum = checksum(&pointer);
    put(&mut pointer, 10, &[sum]);
    [pointer, table].concat()
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(new) {
        *to = *from;
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_le_bytes(*field))
}

fn size(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at) & 0xffff_ffff
}

fn length(bytes: &[u8]) -> Result<u64, Failure> {
    u64::try_from(bytes.len()).said("a file is too long")
}

fn low(value: u64) -> Result<[u8; 4], Failure> {
    Ok(u32::try_from(value).said("an address above 4 GiB")?.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Vec<u8> {
        let mut image = vec![0; 2048];
        put(&mut image, header::SETUP_SECTORS, &[1]);
        put(&mut image, header::BOOT_FLAG, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut image, header::MAGIC, b"HdrS\x0f\x02");
        put(&mut image, header::LOAD_FLAGS, &[1]);
        put(&mut image, header::INITRD_MAX, &0x7fff_ffff_u32.to_le_bytes());
        put(&mut image, header::PREFERRED, &0x20_0000_u64.to_le_bytes());
        put(&mut image, header::INIT_SIZE, &0x10_0000_u32.to_le_bytes());
        put(&mut image, 1024, b"kernel");
        image
    }

    #[test]
    fn parts_go_where_the_picture_says() {
        let memory = GuestMemory::new(4 << 20).unwrap();
        let (entry, page) = load(&memory, &image(), b"initrd", "quiet", 1).unwrap();
        let bytes = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            assert!(memory.space().read(vionet_raw::GuestAddr(at), &mut bytes));
            bytes
        };
        assert_eq!(bytes(entry, 6), b"kernel");
        assert_eq!(bytes((4 << 20) - 4096, 6), b"initrd");
        assert!(bytes(COMMAND_LINE, 200).starts_with(format!("{ALWAYS} quiet\0").as_bytes()));
        let page = bytes(page, 4096);
        assert_eq!(page[E820_COUNT], 2);
        assert_eq!(number(&page, E820 + 8), MP_TABLE);
        assert_eq!((number(&page, E820 + 20), number(&page, E820 + 28)), (KERNEL, 3 << 20));
        assert_eq!(size(&page, header::INITRD), (4 << 20) - 4096);
    }

    #[test]
    fn an_image_that_is_cut_off_or_too_large_is_refused() {
        let memory = GuestMemory::new(2 << 20).unwrap();
        for len in 0..1024 {
            assert!(unpack(image().get(..len).unwrap()).is_none(), "{len}");
        }
        let why = load(&memory, &image(), b"initrd", "", 1).unwrap_err().to_string();
        assert!(why.contains("give --memory more"), "{why}");
    }

    #[test]
    fn tables_of_any_number_of_processors_add_up_and_fit() {
        for cpus in 1..=32 {
            let tables = mp_table(cpus);
            assert!(tables.len() <= 1024, "there is no more room below 640 KiB");
            let (pointer, table) = tables.split_at_checked(16).unwrap();
            assert_eq!((checksum(pointer), checksum(table)), (0, 0));
            let [low, high] = [table[4], table[5]].map(usize::from);
            assert_eq!(high << 8 | low, table.len());
        }
    }
}
