//! The server of the demo: this very program, as a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::exit::{Code, Stop};
use crate::vm::Stopwatch;

/// How long the server may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
const NAP: Duration = Duration::from_millis(5);

/// A running `vionet serve`; ended and cleared away when dropped.
pub(super) struct Server {
    child: Child,
    folder: PathBuf,
    socket: PathBuf,
}

impl Server {
    /// Starts the server with the user-mode network; the guest reaches the host's loopback at
    /// `loopback`, and names are asked of `dns`.
    pub(super) fn start(loopback: Ipv4Addr, dns: SocketAddr) -> Result<Self, Stop> {
        let fail = |what: &str, cause: &dyn std::fmt::Display| {
            Stop::new(Code::Failure, format!("demo: {what}: {cause}"))
        };
        let folder = std::env::temp_dir().join(format!("vionet-demo-{}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|cause| fail("a folder for the socket", &cause))?;
        let socket = folder.join("demo.sock");
        let program = std::env::current_exe().map_err(|cause| fail("this program", &cause))?;
        let child = Command::new(program)
            .args(["serve", "--quiet", "--map-host-loopback", &loopback.to_string()])
            .args(["--dns", &dns.to_string(), "--socket-path"])
            .arg(&socket)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|cause| fail("starting the server", &cause))?;
        let mut server = Self { child, folder, socket };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), Stop> {
        let watch = Stopwatch::new(PATIENCE);
        while !self.socket.exists() {
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || watch.left().is_none() {
                return Err(Stop::new(Code::Failure, "demo: the server does not listen"));
            }
            thread::sleep(NAP);
        }
        Ok(())
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends the server as a user would, and sees that it ends well.
    pub(super) fn stop(mut self) -> Result<(), Stop> {
        self.terminate();
        let watch = Stopwatch::new(PATIENCE);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    let line = format!("demo: the server ended with {status}");
                    return Err(Stop::new(Code::Failure, line));
                }
                Ok(None) if watch.left().is_some() => thread::sleep(NAP),
                Ok(None) | Err(_) => {
                    return Err(Stop::new(Code::Failure, "demo: the server does not end"));
                }
            }
        }
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let (Ok(()) | Err(_)) = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After a proper stop there is nothing left to kill, and nothing to wait for.
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
        let (Ok(()) | Err(_)) = fs::remove_dir_all(&self.folder);
    }
}
