//! The program under test as a process: started, counted, ended.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vionetd::vm::Stopwatch;

use crate::place::{NOBODY, Place, is_root};

pub struct Server {
    child: Child,
    pub socket: PathBuf,
    log: PathBuf,
}

impl Server {
    /// Starts `vionet serve` in `place`, without any privilege when we have some to give up.
    pub fn start(place: &Place, options: &[&str]) -> Self {
        Self::start_at("--socket-path", place, options)
    }

    /// The same with the option that is given the socket.
    pub fn start_at(socket_option: &str, place: &Place, options: &[&str]) -> Self {
        let (socket, log) = (place.path("vm0.sock"), place.path("server.log"));
        let program = place.path("vionet");
        fs::copy(env!("CARGO_BIN_EXE_vionet"), &program).expect("copy the program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("its mode");
        let mut command = Command::new(&program);
        command.arg("serve").arg(socket_option).arg(&socket).args(options);
        command.stdin(Stdio::null()).stdout(File::create(&log).expect("a log"));
        command.stderr(File::options().append(true).open(&log).expect("a log"));
        command.current_dir(&place.directory).env_remove("NOTIFY_SOCKET");
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let child = place.inside(|| command.spawn().expect("start vionet"));
        let mut server = Self { child, socket, log };
        let watch = Stopwatch::new(Duration::from_secs(10));
        while !server.socket.exists() {
            let ended = server.child.try_wait().expect("look after vionet");
            assert!(ended.is_none(), "vionet ended at once: {}", server.log());
            assert!(watch.left().is_some(), "vionet makes no socket: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it holds of the system's resources now.
    pub fn holdings(&self) -> Holdings {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut descriptors = BTreeMap::new();
        for entry in fs::read_dir(proc.join("fd")).expect("its descriptors").flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let kind = target.split([':', '[']).next().unwrap_or("").to_owned();
            *descriptors.entry(kind).or_insert(0) += 1;
        }
        let maps = fs::read_to_string(proc.join("maps")).expect("its mappings");
        Holdings {
            threads: fs::read_dir(proc.join("task")).expect("its threads").count(),
            descriptors,
            mappings: maps.lines().count(),
            guest_memory: maps.lines().filter(|line| line.contains("memfd:")).count(),
        }
    }

    /// Ends it as a service manager does; it must go cleanly, and soon.
    pub fn terminate(mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("its pid");
        kill_process(pid, Signal::TERM).expect("send SIGTERM");
        let watch = Stopwatch::new(Duration::from_secs(5));
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("look after vionet") {
                break status;
            }
            assert!(watch.left().is_some(), "vionet does not heed SIGTERM: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "vionet ended with {status}: {}", self.log());
        assert!(!self.socket.exists(), "vionet leaves its socket behind");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            println!("--- vionet's log\n{}---", self.log());
        }
    }
}

/// What a process holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    pub threads: usize,
    /// Kind of descriptor -> number.
    pub descriptors: BTreeMap<String, usize>,
    pub mappings: usize,
    pub guest_memory: usize,
}

impl Holdings {
    /// Panics when `self`, taken later than `before` at the same point of a guest's life, holds
    /// more. The allocator may have mapped a little more; a leak per guest goes beyond that.
    pub fn assert_no_more_than(&self, before: &Self, when: &str) {
        assert!(self.threads <= before.threads, "{when}: threads {before} -> {self}");
        for (kind, number) in &self.descriptors {
            let allowed = before.descriptors.get(kind).copied().unwrap_or(0);
            assert!(*number <= allowed, "{when}: {kind} descriptors {before} -> {self}");
        }
        assert!(
            self.guest_memory <= before.guest_memory,
            "{when}: mappings of guest memory {before} -> {self}"
        );
        assert!(self.mappings <= before.mappings + 3, "{when}: mappings {before} -> {self}");
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, descriptors, mappings, guest_memory } = self;
        let sum: usize = descriptors.values().sum();
        write!(f, "{threads} threads, {sum} descriptors, {mappings} mappings ")?;
        write!(f, "({guest_memory} of guest memory)")
    }
}
