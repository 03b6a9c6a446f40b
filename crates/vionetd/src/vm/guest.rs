//! A running guest: started, spoken to line by line, and gone when dropped.

use std::fs::{self, DirBuilder, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::clock::Stopwatch;
use super::error::VmError;
use super::qemu::{Machine, files};
use super::qmp::Qmp;

/// The longest line taken from the guest; longer ones are cut into several.
const LONGEST_LINE: u64 = 16 * 1024;

/// The longest command: the guest's terminal takes 4 096 bytes a line.
const LONGEST_COMMAND: usize = 4_000;

/// The number of lines of each log that an error carries.
const LOG_LINES: usize = 25;

/// What a command in the guest wrote, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// The lines it wrote, standard error among them.
    pub lines: Vec<String>,
}

impl Output {
    /// The value of the last line `key=value`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        let found = |line: &'_ String| {
            let (name, _) = line.split_once('=')?;
            (name == key).then_some(())
        };
        let line = self.lines.iter().rev().find(|line| found(line).is_some())?;
        line.split_once('=').map(|(_, value)| value)
    }
}

/// A running guest. Dropping it ends QEMU and removes the files of the run.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    run: RunDirectory,
    commands: u64,
    boot_time: Duration,
    release: String,
}

impl Guest {
    /// Starts QEMU and waits until the guest's agent speaks.
    ///
    /// # Errors
    /// When QEMU does not start, ends, or the guest is not up within `limit`.
    pub fn boot(machine: &Machine, limit: Duration) -> Result<Self, VmError> {
        let run = RunDirectory::make()?;
        let archive = run.path.join(files::INITRAMFS);
        fs::write(&archive, &machine.initramfs).map_err(VmError::io("write the initramfs"))?;
        let log = File::create(run.path.join(files::QEMU_LOG));
        let mut child = Command::new(&machine.qemu.program)
            .args(machine.arguments(&run.path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.map_err(VmError::io("write QEMU's log"))?)
            .spawn()
            .map_err(VmError::io("start QEMU"))?;
        let input = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        let reader = child.stdout.take();
        let reader = reader.map(|output| std::thread::spawn(move || pass_lines(output, &sender)));
        let (boot_time, release) = (Duration::ZERO, String::new());
        let mut guest = Self { child, input, lines, reader, run, commands: 0, boot_time, release };
        guest.await_ready(limit)?;
        Ok(guest)
    }

    /// Waits until the guest's agent speaks, after a start or a reboot.
    ///
    /// # Errors
    /// When QEMU ends, or the guest is not up within `limit`.
    pub fn await_ready(&mut self, limit: Duration) -> Result<(), VmError> {
        let watch = Stopwatch::new(limit);
        loop {
            let line = self.line(&watch, limit, "boot")?;
            if let Some((_, words)) = line.split_once("@@READY ") {
                self.boot_time = watch.elapsed();
                self.release = words.split(' ').next().unwrap_or("").to_owned();
                return Ok(());
            }
        }
    }

    /// How long the last boot took, until the agent spoke.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The release of the kernel that runs.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Runs a command line in the guest's shell, whatever status it ends with.
    ///
    /// # Errors
    /// When the guest is gone or does not finish within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output, VmError> {
        self.send(command)?;
        let end = format!("@@END {} ", self.commands);
        let watch = Stopwatch::new(limit);
        let mut lines = Vec::new();
        loop {
            let line = self.line(&watch, limit, command)?;
            if line.contains("@@READY ") {
                return Err(VmError::Gone { log: self.logs() });
            }
            let Some((before, status)) = line.split_once(&end) else {
                lines.push(line);
                continue;
            };
            if !before.is_empty() {
                lines.push(before.to_owned());
            }
            let status = status.trim().parse().map_err(|_| VmError::Answer {
                what: format!("`{command}` ended with `{status}`"),
            })?;
            return Ok(Output { status, lines });
        }
    }

    /// Runs a command line that must end with status 0.
    ///
    /// # Errors
    /// As [`Self::run`], and when it ends with another status.
    pub fn check(&mut self, command: &str, limit: Duration) -> Result<Output, VmError> {
        let output = self.run(command, limit)?;
        if output.status == 0 {
            return Ok(output);
        }
        let output_text = tail(&output.lines.join("\n"));
        let command = command.to_owned();
        Err(VmError::Command { command, status: output.status, output: output_text })
    }

    /// Has the guest's kernel reboot at once and waits for its agent; the machine must allow it.
    ///
    /// # Errors
    /// When it is not up again within `limit`.
    pub fn reboot(&mut self, limit: Duration) -> Result<(), VmError> {
        self.send("reboot -f")?;
        self.await_ready(limit)
    }

    /// A connection to QEMU's control socket.
    ///
    /// # Errors
    /// When QEMU does not answer there.
    pub fn qmp(&self) -> Result<Qmp, VmError> {
        Qmp::connect(&self.run.path.join(files::QMP))
    }

    /// What the guest's kernel said so far.
    #[must_use]
    pub fn kernel_log(&self) -> String {
        read_lossy(&self.run.path.join(files::KERNEL_LOG))
    }

    /// Ends the guest and waits for QEMU, so that the back-end sees the connection close.
    pub fn end(mut self) {
        if let Ok(mut qmp) = self.qmp() {
            drop(qmp.quit());
        }
        self.kill();
    }

    fn send(&mut self, command: &str) -> Result<(), VmError> {
        if command.len() > LONGEST_COMMAND || command.contains('\n') {
            let what = "a command for the guest is longer than a line".to_owned();
            return Err(VmError::Answer { what });
        }
        self.commands = self.commands.wrapping_add(1);
        let line = format!("{} {command}\n", self.commands);
        let Some(input) = self.input.as_mut() else {
            return Err(VmError::Gone { log: self.logs() });
        };
        match input.write_all(line.as_bytes()).and_then(|()| input.flush()) {
            Ok(()) => Ok(()),
            Err(_) => Err(VmError::Gone { log: self.logs() }),
        }
    }

    fn line(&self, watch: &Stopwatch, limit: Duration, what: &str) -> Result<String, VmError> {
        let left = watch.left().unwrap_or(Duration::from_millis(1));
        self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                VmError::Timeout { what: what.to_owned(), limit, log: self.logs() }
            }
            RecvTimeoutError::Disconnected => VmError::Gone { log: self.logs() },
        })
    }

    fn logs(&self) -> String {
        let qemu = tail(&read_lossy(&self.run.path.join(files::QEMU_LOG)));
        let kernel = tail(&self.kernel_log());
        format!("{qemu}\n{kernel}").trim().to_owned()
    }

    fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(self.reader.take().map(JoinHandle::join));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    lines.get(from..).unwrap_or_default().join("\n")
}

/// Passes on the guest's lines until it is gone or nobody listens.
fn pass_lines(output: ChildStdout, sender: &Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        let text = String::from_utf8_lossy(&line);
        if sender.send(text.trim_end_matches(['\n', '\r']).to_owned()).is_err() {
            return;
        }
    }
}

/// A directory only we can enter, removed when dropped.
#[derive(Debug)]
struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    fn make() -> Result<Self, VmError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vionet-vm-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(VmError::io(format!("make the directory {}", path.display())))?;
        Ok(Self { path })
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_a_key_gives_its_value() {
        let lines = ["ip=1", "noise", "ip=2", "ipx=3", "url=a=b"].map(str::to_owned).to_vec();
        let output = Output { status: 0, lines };
        assert_eq!(output.value("ip"), Some("2"));
        assert_eq!(output.value("url"), Some("a=b"));
        assert_eq!(output.value("nothing"), None);
    }

    #[test]
    fn a_run_directory_is_private_and_goes_away() {
        use std::os::unix::fs::PermissionsExt;
        let run = RunDirectory::make().unwrap();
        let path = run.path.clone();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        drop(run);
        assert!(!path.exists());
    }
}
