//! Several devices in one process, joined by a switch.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

mod served;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use vionet_driver::{FRAME_MAX, Nic, Received};

use served::{PATIENCE, Server};

struct Guest {
    nic: Nic,
    mac: [u8; 6],
    room: Vec<u8>,
}

impl Guest {
    fn attach(server: &Server, index: usize) -> Self {
        let mac = [2, 0, 0, 0, 0, u8::try_from(index).unwrap() + 1];
        Self { nic: Nic::attach(&server.socket(index)).unwrap(), mac, room: vec![0; FRAME_MAX] }
    }

    fn send(&mut self, to: [u8; 6], number: u16) {
        let mut frame: Vec<u8> = to.iter().chain(&self.mac).chain(&[0x88, 0xb5]).copied().collect();
        frame.extend(number.to_be_bytes());
        frame.resize(60, 0);
        let start = Instant::now();
        while !self.nic.can_send().unwrap() {
            assert!(start.elapsed() < PATIENCE, "the ring stays full");
            self.nic.wait(Duration::from_millis(1)).unwrap();
        }
        self.nic.send(&mut frame).unwrap();
        self.nic.flush();
    }

    /// The number of the next frame, if one comes in time.
    fn next(&mut self, patience: Duration) -> Option<u16> {
        let start = Instant::now();
        loop {
            match self.nic.receive(&mut self.room).unwrap() {
                Received::Frame(len) => {
                    let frame = &self.room[..len];
                    assert_eq!(len, 60);
                    // The host's own stack says nothing here: every frame is one of ours.
                    assert_eq!(frame[12..14], [0x88, 0xb5]);
                    self.nic.flush();
                    return Some(u16::from_be_bytes([frame[14], frame[15]]));
                }
                _ if start.elapsed() > patience => return None,
                _ => self.nic.wait(Duration::from_millis(5)).unwrap(),
            }
        }
    }
}

const SOON: Duration = Duration::from_millis(100);

fn nic(last: u8, more: &str) -> String {
    format!("mac=02:00:00:00:00:{last:02x},endpoint=switch:lan{more}")
}

#[test]
fn guests_of_one_process_talk_over_a_switch_and_outlive_each_other() {
    let (a, b, c) = (nic(1, ""), nic(2, ""), nic(3, ",isolated"));
    let server = Server::start("switch", &[], &[&a, &b, &c, "endpoint=null"]);
    let [mut a, mut b, mut c] = [0, 1, 2].map(|index| Guest::attach(&server, index));
    for number in 0..500 {
        a.send(b.mac, number);
        assert_eq!(b.next(PATIENCE), Some(number));
        b.send(a.mac, number);
        assert_eq!(a.next(PATIENCE), Some(number));
    }
    assert_eq!(c.next(SOON), None, "what is known is not flooded");
    a.send([0xff; 6], 1000);
    assert_eq!((b.next(PATIENCE), c.next(PATIENCE)), (Some(1000), Some(1000)));
    // One vanishes in mid traffic, without a word; the others go on, and so does its successor.
    for number in 0..40 {
        a.send(b.mac, number);
    }
    drop(b);
    for number in 0..40 {
        a.send(c.mac, number);
        assert_eq!(c.next(PATIENCE), Some(number));
    }
    let mut b = Guest::attach(&server, 1);
    a.send(b.mac, 2000);
    assert_eq!(b.next(PATIENCE), Some(2000));
    server.end();
}

fn refused(args: &[&str]) -> (Option<i32>, String) {
    let output: Output =
        Command::new(env!("CARGO_BIN_EXE_vionet")).arg("serve").args(args).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_mistake_in_one_device_is_told_with_its_name_before_any_is_served() {
    let folder = std::env::temp_dir().join(format!("vionet-refused-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let same =
        |name: &str| format!("socket-path={},endpoint=switch:x,mac=02:00:00:00:00:09", path(name));
    let (code, said) = refused(&["--nic", &same("a"), "--nic", &same("b")]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&path("b")) && said.contains("02:00:00:00:00:09"), "{said}");
    assert!(!Path::new(&path("a")).exists() && !Path::new(&path("b")).exists());
    for (nic, word) in [
        ("endpoint=null", "socket-path=PATH"),
        ("socket-path=x,colour=red", "colour"),
        ("socket-path=x,endpoint=mars", "mars"),
    ] {
        let (code, said) = refused(&["--nic", nic]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(word), "{said}");
    }
    let (code, said) = refused(&["--nic", "socket-path=x,endpoint=null,isolated"]);
    assert_eq!(code, Some(2), "{said}");
    let (code, said) = refused(&[]);
    assert_eq!(code, Some(2), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}
