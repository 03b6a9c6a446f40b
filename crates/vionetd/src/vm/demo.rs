//! The tour of `vionet demo --vm`: a real guest gets a lease, a name, a file, and speeds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::error::VmError;
use super::guest::{Guest, Output};
use super::initramfs;
use super::parts::Parts;
use super::qemu::{Accel, Backend, Machine};

/// How long a guest may take to boot.
const BOOT: Duration = Duration::from_secs(60);
/// How long it may take for a lease or a name.
const SHORT: Duration = Duration::from_secs(20);
/// How long one transfer may take.
const TRANSFER: Duration = Duration::from_secs(120);

/// What the guest is to do. The servers named here run on the host; addresses and the URL are as
/// the guest sees them.
#[derive(Debug, Clone)]
pub struct DemoPlan {
    /// A name to resolve.
    pub name: String,
    /// The file to download, over HTTP.
    pub url: String,
    /// Its size in octets; it must fit into the guest's memory (at most 128 MiB).
    pub size: u64,
    /// Its SHA-256, in lower-case hexadecimal.
    pub sha256: String,
    /// A TCP server that reads to the end; the guest sends it the same file.
    pub sink: SocketAddr,
}

/// What has just happened, for the one who waits.
#[derive(Debug, Clone)]
pub enum Step {
    /// A guest is being built.
    Preparing {
        /// The version of QEMU: major, minor.
        qemu: (u32, u32),
        /// The release of the kernel.
        kernel: String,
    },
    /// QEMU has been started.
    Booting {
        /// What executes the guest's instructions.
        accel: Accel,
    },
    /// The guest's first process runs.
    Booted {
        /// The time since QEMU was started.
        after: Duration,
    },
    /// The guest has its address.
    Leased(Lease),
    /// The guest asked for a name.
    Resolved {
        /// The name.
        name: String,
        /// Its addresses; none when the host's resolver does not know it or cannot be reached.
        addresses: Vec<IpAddr>,
    },
    /// The guest has the file, and its checksum is right.
    Downloaded {
        /// Octets.
        bytes: u64,
        /// The time it took.
        time: Duration,
    },
    /// The guest has sent the file back.
    Uploaded {
        /// Octets.
        bytes: u64,
        /// The time it took.
        time: Duration,
    },
}

/// The addresses a guest got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// From DHCP.
    pub address: Ipv4Addr,
    /// The length of its prefix.
    pub prefix: u8,
    /// The router.
    pub router: Option<Ipv4Addr>,
    /// The servers of names.
    pub dns: Vec<Ipv4Addr>,
    /// From router advertisements, when there were any.
    pub address6: Option<Ipv6Addr>,
    /// The IPv6 router.
    pub router6: Option<Ipv6Addr>,
}

/// What the guest saw.
#[derive(Debug, Clone)]
pub struct VmReport {
    /// The release of the kernel that ran.
    pub kernel: String,
    /// The version of QEMU: major, minor.
    pub qemu: (u32, u32),
    /// What executed the guest's instructions.
    pub accel: Accel,
    /// From the start of QEMU to the guest's first process.
    pub boot: Duration,
    /// The addresses it got.
    pub lease: Lease,
    /// The addresses of the name; none when it was not found.
    pub resolved: Vec<IpAddr>,
    /// The size of the file that went both ways, in octets.
    pub bytes: u64,
    /// The time of the download, whose checksum was right.
    pub download: Duration,
    /// The time of the upload.
    pub upload: Duration,
}

impl VmReport {
    /// Host to guest, in bits per second.
    #[must_use]
    pub fn download_rate(&self) -> f64 {
        rate(self.bytes, self.download)
    }

    /// Guest to host, in bits per second.
    #[must_use]
    pub fn upload_rate(&self) -> f64 {
        rate(self.bytes, self.upload)
    }
}

fn rate(bytes: u64, time: Duration) -> f64 {
    // through u32 KiB, which f64 holds exactly: a file of 4 TiB would not fit the guest anyway
    let kib = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
    f64::from(kib) * 8192.0 / time.as_secs_f64().max(0.001)
}

/// Boots a guest on the vhost-user back-end that listens at `socket` and has it follow `plan`;
/// `progress` hears of each step.
///
/// # Errors
/// [`VmError::Missing`] names the packages to install; the others say what the guest could not do.
pub fn run_demo(
    socket: &Path,
    plan: &DemoPlan,
    progress: &mut dyn FnMut(Step),
) -> Result<VmReport, VmError> {
    let parts = Parts::find()?;
    let qemu = parts.qemu.version;
    progress(Step::Preparing { qemu, kernel: parts.kernel.version.clone() });
    let machine = Machine::of_parts(&parts, Backend::VhostUser(socket.to_owned()), &[])?;
    let accel = machine.accel;
    progress(Step::Booting { accel });
    let mut guest = Guest::boot(&machine, BOOT)?;
    let boot = guest.boot_time();
    progress(Step::Booted { after: boot });

    let lease = lease(&mut guest)?;
    progress(Step::Leased(lease.clone()));
    let resolved = resolve(&mut guest, &plan.name)?;
    progress(Step::Resolved { name: plan.name.clone(), addresses: resolved.clone() });
    let download = download(&mut guest, plan)?;
    progress(Step::Downloaded { bytes: plan.size, time: download });
    let upload = format!("net send {} {}", plan.sink.ip(), plan.sink.port());
    let upload = seconds(&guest.check(&upload, TRANSFER)?)?;
    progress(Step::Uploaded { bytes: plan.size, time: upload });

    let kernel = guest.release().to_owned();
    guest.end();
    let bytes = plan.size;
    Ok(VmReport { kernel, qemu, accel, boot, lease, resolved, bytes, download, upload })
}

impl Machine {
    /// The machine we boot everywhere: these parts, the best accelerator, and room for a file.
    ///
    /// # Errors
    /// When the root filesystem cannot be built.
    pub fn of_parts(
        parts: &Parts,
        backend: Backend,
        files: &[initramfs::GuestFile],
    ) -> Result<Self, VmError> {
        let kernel = parts.kernel.bootable();
        Ok(Self {
            qemu: parts.qemu.clone(),
            accel: parts.qemu.best_accel(&kernel),
            initramfs: initramfs::build(&parts.busybox, &parts.kernel, &[], files)?,
            kernel,
            backend,
            memory: 384,
            cpus: 1,
            pairs: 1,
            mac: "52:54:00:76:69:6f".to_owned(),
            reboots: false,
            packed: false,
        })
    }
}

fn lease(guest: &mut Guest) -> Result<Lease, VmError> {
    let v4 = guest.check("net lease", SHORT)?;
    let v6 = guest.run("net address6", SHORT)?;
    let address6 = v6.value("address6").and_then(|text| text.split('/').next());
    let dns = v4.value("dns").unwrap_or("");
    Ok(Lease {
        address: parsed(&v4, "address")?,
        prefix: parsed(&v4, "prefix")?,
        router: v4.value("router").and_then(|text| text.parse().ok()),
        dns: dns.split_whitespace().filter_map(|text| text.parse().ok()).collect(),
        address6: address6.and_then(|text| text.parse().ok()),
        router6: v6.value("router6").and_then(|text| text.parse().ok()),
    })
}

fn resolve(guest: &mut Guest, name: &str) -> Result<Vec<IpAddr>, VmError> {
    // the name becomes a word of a command line
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if !name.bytes().all(plain) {
        return Err(VmError::Answer { what: format!("`{name}` is no name to ask for") });
    }
    let output = guest.run(&format!("net resolve {name}"), SHORT)?;
    let found = output.value("resolved").unwrap_or("");
    Ok(found.split_whitespace().filter_map(|text| text.parse().ok()).collect())
}

fn download(guest: &mut Guest, plan: &DemoPlan) -> Result<Duration, VmError> {
    let output = guest.check(&format!("net download '{}'", plan.url), TRANSFER)?;
    let bytes: u64 = parsed(&output, "bytes")?;
    if bytes != plan.size {
        let what = format!("it has {bytes} octets of the file, which has {}", plan.size);
        return Err(VmError::Answer { what });
    }
    match output.value("sha256") {
        Some(sum) if sum == plan.sha256 => seconds(&output),
        Some(_) | None => {
            let what = "the checksum of the file it got is not that of the file".to_owned();
            Err(VmError::Answer { what })
        }
    }
}

fn parsed<T: FromStr>(output: &Output, key: &str) -> Result<T, VmError> {
    let value = output.value(key).and_then(|text| text.parse().ok());
    value.ok_or_else(|| VmError::Answer { what: format!("no usable line `{key}=`") })
}

fn seconds(output: &Output) -> Result<Duration, VmError> {
    let seconds: f64 = parsed(output, "seconds")?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| VmError::Answer { what: "no usable line `seconds=`".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_bits_per_second() {
        let mib = 1024 * 1024;
        assert!((rate(mib, Duration::from_secs(1)) - 8_388_608.0).abs() < 1.0);
        assert!(rate(mib, Duration::ZERO).is_finite());
    }

    #[test]
    fn answers_that_are_no_numbers_are_refused() {
        let output = |line: &str| Output { status: 0, lines: vec![line.to_owned()] };
        assert!(seconds(&output("seconds=1.25")).is_ok());
        assert!(seconds(&output("seconds=-1")).is_err());
        assert!(seconds(&output("seconds=inf")).is_err());
        assert!(seconds(&output("")).is_err());
    }
}
