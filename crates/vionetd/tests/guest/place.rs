//! Where a test's server, peers and QEMU run: in a network namespace of their own, or right here.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The user and group `nobody`, who has no rights at all.
pub const NOBODY: u32 = 65_534;
pub const NOBODY_NAME: &str = "65534";

/// A network namespace, or the one we are in, and a directory for sockets and logs.
pub struct Place {
    namespace: Option<String>,
    pub directory: PathBuf,
}

impl Place {
    /// A namespace of our own; needs root.
    pub fn namespace() -> Self {
        let name = format!("vionet-{}", unique());
        ip(&["netns", "add", &name]);
        let place = Self { namespace: Some(name), directory: directory() };
        place.ip(&["link", "set", "lo", "up"]);
        place
    }

    /// The namespace we are in.
    pub fn here() -> Self {
        Self { namespace: None, directory: directory() }
    }

    /// Runs `ip` on this namespace's interfaces.
    pub fn ip(&self, arguments: &[&str]) {
        let name = self.namespace.as_deref().expect("interfaces are made in our namespace only");
        ip(&[&["-n", name], arguments].concat());
    }

    /// Calls `work` on a thread inside; sockets and processes it makes stay inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if let Some(name) = &self.namespace {
                    let file = File::open(format!("/run/netns/{name}")).expect("the namespace");
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                        .expect("enter the namespace");
                }
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A path in the directory of this place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(name) = &self.namespace {
            Command::new("ip").args(["netns", "del", name]).status().ok();
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A new directory that `nobody`, too, may write to when we are root.
fn directory() -> PathBuf {
    let path = std::env::temp_dir().join(format!("vionet-test-{}", unique()));
    fs::create_dir(&path).expect("a directory for the test");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its permissions");
    if is_root() {
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("give the directory away");
    }
    path
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the program `name` is on the path.
pub fn installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory: PathBuf| Path::new(&directory).join(name).is_file())
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("run ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
}
