//! Talks to QEMU's control socket: one JSON object per line (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::clock::Stopwatch;
use super::error::VmError;

/// How long QEMU may take to open its socket, and to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A connection to QEMU's control socket.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects, waiting for the socket to appear, and greets.
    ///
    /// # Errors
    /// When QEMU does not open its socket or does not greet back.
    pub fn connect(socket: &Path) -> Result<Self, VmError> {
        let watch = Stopwatch::new(LIMIT);
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if watch.left().is_none() => {
                    return Err(VmError::io("connect to QEMU's control socket")(error));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let what = "set a time limit for QEMU's control socket";
        stream.set_read_timeout(Some(LIMIT)).map_err(VmError::io(what))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line()?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command with its arguments, an object; returns what QEMU returns.
    ///
    /// # Errors
    /// When QEMU refuses it, or the connection breaks.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, VmError> {
        let request = json!({ "execute": command, "arguments": arguments });
        let sent = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.map_err(VmError::io("write to QEMU's control socket"))?;
        loop {
            // events come in between
            let answer: Value = serde_json::from_str(&self.line()?)
                .map_err(|error| VmError::Qmp(format!("an answer is not JSON: {error}")))?;
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = answer.get("error") {
                let words = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                return Err(VmError::Qmp(format!("{command}: {words}")));
            }
        }
    }

    /// Ends QEMU at once.
    ///
    /// # Errors
    /// When the connection is already broken.
    pub fn quit(&mut self) -> Result<(), VmError> {
        self.execute("quit", json!({})).map(drop)
    }

    /// Resets the machine without telling its kernel.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn system_reset(&mut self) -> Result<(), VmError> {
        self.execute("system_reset", json!({})).map(drop)
    }

    /// Takes the NIC's link up or down.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn link(&mut self, up: bool) -> Result<(), VmError> {
        self.execute("set_link", json!({ "name": "nic0", "up": up })).map(drop)
    }

    fn line(&mut self) -> Result<String, VmError> {
        let mut line = String::new();
        let what = "read from QEMU's control socket";
        match self.stream.read_line(&mut line).map_err(VmError::io(what))? {
            0 => Err(VmError::Qmp("the control socket was closed".to_owned())),
            _ => Ok(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn events_between_a_command_and_its_answer_are_passed_over() {
        let path = std::env::temp_dir().join(format!("vionet-qmp-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut seen = Vec::new();
            let say = |stream: &mut BufReader<UnixStream>, words: &str| {
                stream.get_mut().write_all(words.as_bytes()).unwrap();
            };
            say(&mut stream, "{\"QMP\": {}}\n");
            for answer in [
                "{\"return\": {}}\n",
                "{\"event\": \"RESET\"}\n{\"return\": {\"a\": 1}}\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}}\n",
            ] {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                seen.push(line);
                say(&mut stream, answer);
            }
            seen
        });
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.execute("query", json!({ "x": 2 })).unwrap(), json!({ "a": 1 }));
        let refused = qmp.link(false).unwrap_err().to_string();
        assert!(refused.contains("no such device"), "{refused}");
        let seen = server.join().unwrap();
        assert!(seen[0].contains("qmp_capabilities"));
        assert!(seen[2].contains("\"up\":false"), "{}", seen[2]);
        std::fs::remove_file(path).unwrap();
    }
}
