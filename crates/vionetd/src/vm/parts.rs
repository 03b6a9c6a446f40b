//! What a guest is built of, and which Debian packages bring what is not there.

use std::fmt;
use std::path::PathBuf;

use super::error::VmError;
use super::initramfs::find_busybox;
use super::kernel::Kernel;
use super::qemu::Qemu;

/// Something a guest needs that this machine lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What is not there, in words.
    pub what: String,
    /// The Debian package that brings it; `None` when no package can mend it.
    pub package: Option<&'static str>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match self.package {
            Some(package) => write!(f, " (sudo apt install {package})"),
            None => Ok(()),
        }
    }
}

/// The parts of a guest, as found on this machine.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The emulator.
    pub qemu: Qemu,
    /// The kernel with its modules.
    pub kernel: Kernel,
    /// A busybox that needs no libraries.
    pub busybox: PathBuf,
}

impl Parts {
    /// Looks for all parts.
    ///
    /// # Errors
    /// [`VmError::Missing`] with everything that is not there.
    pub fn find() -> Result<Self, VmError> {
        let qemu = Qemu::find();
        let kernel = Kernel::find();
        let busybox = find_busybox();
        let mut missing = Vec::new();
        if qemu.is_none() {
            missing.push(Missing {
                what: "no qemu-system-x86_64 that runs".to_owned(),
                package: Some("qemu-system-x86"),
            });
        }
        if busybox.is_none() {
            missing.push(Missing {
                what: "no statically linked busybox".to_owned(),
                package: Some("busybox-static"),
            });
        }
        match &kernel {
            Ok(kernel) => missing.extend(kernel.missing_programs()),
            Err(why) => missing.push(why.clone()),
        }
        match (qemu, kernel, busybox) {
            (Some(qemu), Ok(kernel), Some(busybox)) if missing.is_empty() => {
                Ok(Self { qemu, kernel, busybox })
            }
            _ => Err(VmError::Missing(missing)),
        }
    }
}

/// What is not there for a guest; empty when everything is.
#[must_use]
pub fn missing() -> Vec<Missing> {
    match Parts::find() {
        Err(VmError::Missing(list)) => list,
        Ok(_) | Err(_) => Vec::new(),
    }
}
