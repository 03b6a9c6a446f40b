//! The real program with several devices, for tests.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A running `vionet serve`; killed and cleared away when dropped.
pub(crate) struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Serves a device for each of `nics`, at the sockets `0`, `1`, ...
    pub(crate) fn start(name: &str, options: &[&str], nics: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("vionet-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vionet"));
        command.args(["serve", "--quiet"]).args(options);
        for (index, nic) in nics.iter().enumerate() {
            let path = folder.join(index.to_string());
            command.args(["--nic", &format!("socket-path={},{nic}", path.display())]);
        }
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let server = Self { child, folder };
        let start = Instant::now();
        while !(0..nics.len()).all(|index| server.socket(index).exists()) {
            assert!(start.elapsed() < PATIENCE, "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Where device `index` listens.
    pub(crate) fn socket(&self, index: usize) -> PathBuf {
        self.folder.join(index.to_string())
    }

    /// Ends the server as a user would; it ends well and leaves nothing.
    pub(crate) fn end(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(status.success());
        assert_eq!(std::fs::read_dir(&self.folder).unwrap().count(), 0, "no socket is left");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
        let (Ok(()) | Err(_)) = std::fs::remove_dir_all(&self.folder);
    }
}
