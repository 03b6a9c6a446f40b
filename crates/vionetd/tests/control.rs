//! A running server is looked at, and changed, over its control socket.
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

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use vionet_driver::{FRAME_MAX, Nic, Received};

use served::{PATIENCE, Server};

fn vionet(words: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_vionet")).args(words).output().unwrap();
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(said(&output.stderr)) }
}

fn inspect(control: &Path) -> Value {
    let path = control.display().to_string();
    serde_json::from_str(&vionet(&["inspect", "--json", "--control", &path]).unwrap()).unwrap()
}

/// A server with a control socket beside the sockets of its devices.
fn start(name: &str, nics: &[&str]) -> (Server, PathBuf) {
    start_with(name, &[], nics)
}

fn start_with(name: &str, options: &[&str], nics: &[&str]) -> (Server, PathBuf) {
    let control = std::env::temp_dir().join(format!("vionet-{name}-{}.ctl", std::process::id()));
    let path = control.display().to_string();
    let server = Server::start(name, &[&["--control", &path], options].concat(), nics);
    let start = Instant::now();
    while !control.exists() {
        assert!(start.elapsed() < PATIENCE, "the control socket does not appear");
        std::thread::sleep(Duration::from_millis(5));
    }
    (server, control)
}

fn echo(nic: &mut Nic) -> bool {
    let mut frame = vec![2; 60];
    assert!(nic.can_send().unwrap());
    nic.send(&mut frame).unwrap();
    nic.flush();
    let (mut room, start) = (vec![0; FRAME_MAX], Instant::now());
    while start.elapsed() < Duration::from_millis(300) {
        match nic.receive(&mut room).unwrap() {
            Received::Frame(_) => return true,
            Received::Nothing | Received::Damaged => nic.wait(Duration::from_millis(5)).unwrap(),
        }
    }
    false
}

#[test]
fn devices_are_shown_with_their_counters_with_and_without_a_guest() {
    let (server, control) = start("inspect", &["endpoint=echo,mtu=1400", "endpoint=null,queues=3"]);
    assert_eq!(std::fs::metadata(&control).unwrap().permissions().mode() & 0o777, 0o600);
    let shown = inspect(&control);
    let nics = shown["nics"].as_array().unwrap();
    assert_eq!(nics.len(), 2);
    assert_eq!(nics[0]["name"], server.socket(0).display().to_string());
    assert_eq!((&nics[0]["mtu"], &nics[0]["link"]), (&1400.into(), &"up".into()));
    assert_eq!((&nics[0]["features"], &nics[0]["endpoint"]), (&Value::Null, &"echo".into()));
    assert_eq!(nics[1]["pairs"].as_array().unwrap().len(), 3);
    let mut nic = Nic::attach(&server.socket(0)).unwrap();
    assert!(echo(&mut nic));
    let shown = inspect(&control);
    let nic0 = &shown["nics"][0];
    let lane = |name: &str| &nic0["pairs"][0][name];
    for name in ["transmit", "receive"] {
        assert_eq!((&lane(name)["frames"], &lane(name)["bytes"]), (&1.into(), &60.into()));
        assert_eq!(lane(name)["batch_sizes"][0], 1);
        assert_eq!(lane(name)["wake_sizes"][0], 1);
        assert_eq!(&shown["nics"][0]["total"][name], lane(name));
        assert_eq!(lane(name)["drops"], Value::Object(serde_json::Map::new()));
    }
    assert!(nic0["features"].as_array().unwrap().contains(&"VERSION_1".into()));
    let text = vionet(&["inspect", "--control", &control.display().to_string()]).unwrap();
    assert!(text.contains("frames 1\n") && text.contains("VERSION_1"), "{text}");
    drop(nic);
    server.end();
    assert!(!control.exists());
}

#[test]
fn a_link_goes_down_and_up_and_a_name_that_is_none_is_refused() {
    let (server, control) = start("link", &["endpoint=echo"]);
    let path = control.display().to_string();
    let name = server.socket(0).display().to_string();
    let change = |words: &[&str]| vionet(&[&["control", "--control", &path], words].concat());
    let mut nic = Nic::attach(&server.socket(0)).unwrap();
    assert!(echo(&mut nic));
    change(&["set-link", &name, "down"]).unwrap();
    assert_eq!(inspect(&control)["nics"][0]["link"], "down");
    assert!(!echo(&mut nic));
    assert_eq!(inspect(&control)["nics"][0]["pairs"][0]["transmit"]["drops"]["link-down"], 1);
    change(&["set-link", &name, "up"]).unwrap();
    assert!(echo(&mut nic));
    change(&["announce", &name]).unwrap();
    let refused = change(&["set-link", "nobody", "up"]).unwrap_err();
    assert!(refused.contains("nobody") && refused.contains(&name), "{refused}");
    drop(nic);
    server.end();
}

#[test]
fn a_limit_comes_and_goes_under_way() {
    let (server, control) = start("limit", &["endpoint=echo,limit-rx=1G"]);
    let path = control.display().to_string();
    let name = server.socket(0).display().to_string();
    let change = |words: &[&str]| vionet(&[&["control", "--control", &path], words].concat());
    let held = || inspect(&control)["nics"][0]["pairs"][0]["transmit"]["limited"].as_u64().unwrap();
    let mut nic = Nic::attach(&server.socket(0)).unwrap();
    assert!(echo(&mut nic) && held() == 0);
    // One byte in a second: the first frame takes a minute's.
    change(&["set-limit", &name, "tx", "8"]).unwrap();
    assert!(echo(&mut nic));
    assert!(!echo(&mut nic) && held() > 0);
    change(&["set-limit", &name, "tx"]).unwrap();
    assert!(echo(&mut nic), "what was held back has gone");
    change(&["set-limit", &name, "tx", "1G:8M,20kpps:500"]).unwrap();
    let limit = inspect(&control)["nics"][0]["limits"]["transmit"].clone();
    assert_eq!(
        (&limit["bits_per_second"], &limit["burst_bits"]),
        (&1_000_000_000.into(), &8_000_000.into())
    );
    assert_eq!(
        (&limit["frames_per_second"], &limit["burst_frames"]),
        (&20_000.into(), &500.into())
    );
    for bad in [&["set-limit", &name, "tx", "much"][..], &["set-limit", "nobody", "rx", "1G"]] {
        let refused = change(bad).unwrap_err();
        assert!(refused.contains("100M") || refused.contains("nobody"), "{refused}");
    }
    drop(nic);
    server.end();
}

#[test]
fn devices_of_a_group_share_a_limit_that_changes_under_way() {
    let (server, control) = start_with(
        "group",
        &["--limit-group", "tenant,rx=1G"],
        &[
            "endpoint=echo,limit-group=tenant",
            "endpoint=echo,limit-group=tenant,limit-tx=2G",
            "endpoint=echo",
        ],
    );
    let path = control.display().to_string();
    let change = |words: &[&str]| vionet(&[&["control", "--control", &path], words].concat());
    let held = |nic: usize| {
        inspect(&control)["nics"][nic]["total"]["transmit"]["limited"].as_u64().unwrap()
    };
    let names: Vec<_> = (0..3).map(|nic| server.socket(nic).display().to_string()).collect();
    let mut nics: Vec<_> = (0..3).map(|nic| Nic::attach(&server.socket(nic)).unwrap()).collect();
    let shown = inspect(&control);
    let group = &shown["limit_groups"][0];
    assert_eq!((&group["name"], &group["nics"]), (&"tenant".into(), &names[..2].into()));
    assert_eq!(group["limits"]["receive"]["bits_per_second"], 1_000_000_000);
    assert_eq!(shown["nics"][1]["limits"]["transmit"]["bits_per_second"], 2_000_000_000_u64);
    assert_eq!(shown["nics"][1]["limit_groups"], Value::from(vec!["tenant"]));
    assert!(nics.iter_mut().all(echo));
    // One byte in a second: the first frame takes a minute's.
    change(&["set-limit", "--group", "tenant", "tx", "8"]).unwrap();
    assert!(echo(&mut nics[0]));
    assert!(!echo(&mut nics[1]) && held(1) == 1 && held(0) == 0, "the group has had its frame");
    assert!(echo(&mut nics[2]), "this one is in no group");
    // Its own limit comes and goes without the group's.
    change(&["set-limit", &names[1], "tx", "9G"]).unwrap();
    change(&["set-limit", &names[1], "tx"]).unwrap();
    assert!(!echo(&mut nics[1]), "it is in the group still");
    change(&["set-limit", "--group", "tenant", "tx"]).unwrap();
    assert!(echo(&mut nics[1]), "what was held back has gone");
    let refused = change(&["set-limit", "--group", "nobody", "tx", "1G"]).unwrap_err();
    assert!(refused.contains("nobody") && refused.contains("tenant"), "{refused}");
    drop(nics);
    server.end();
}

#[test]
fn groups_that_make_no_sense_are_refused_with_what_to_do() {
    let refuse = |words: &[&str]| vionet(&[&["serve"], words].concat()).unwrap_err();
    let one = "socket-path=/nowhere/a.sock,endpoint=null";
    let member = format!("{one},limit-group=a");
    let said = refuse(&["--nic", &member]);
    assert!(said.contains("--limit-group a,tx=RATE"), "{said}");
    let said = refuse(&["--nic", one, "--limit-group", "a,tx=1G"]);
    assert!(said.contains("limit-group=a"), "{said}");
    let twice = ["--nic", &member, "--limit-group", "a,tx=1G", "--limit-group", "a,rx=1G"];
    assert!(refuse(&twice).contains("there twice"));
    let groups = ["a", "b", "c", "d"].map(|name| format!("limit-group={name}")).join(",");
    let all = ["a", "b", "c", "d"].map(|name| ["--limit-group", name]).concat();
    let said = refuse(&[&["--nic", &format!("{one},{groups}")], &all[..]].concat());
    assert!(said.contains("3 limit groups at most"), "{said}");
    assert!(refuse(&["--nic", one, "--limit-group", "a,up=1G"]).contains("tx=RATE and rx=RATE"));
}

#[test]
fn a_device_that_has_ended_does_not_hide_the_others() {
    let (server, control) = start("ended", &["endpoint=null,one-off", "endpoint=null"]);
    drop(Nic::attach(&server.socket(0)).unwrap());
    let start = Instant::now();
    loop {
        let shown = inspect(&control);
        assert_eq!(shown["nics"][1]["link"], "up");
        if shown["nics"][0]["error"].is_string() {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the first goes on");
    }
    let start = Instant::now();
    inspect(&control);
    assert!(start.elapsed() < Duration::from_secs(2), "nobody waits for what has ended");
    server.end();
}

#[test]
fn visitors_that_say_too_much_or_nothing_hold_nobody_up_for_long() {
    let (server, control) = start("rude", &["endpoint=echo"]);
    let mut silent = UnixStream::connect(&control).unwrap();
    let mut endless = UnixStream::connect(&control).unwrap();
    let start = Instant::now();
    // It may end before all of it is written.
    let (Ok(()) | Err(_)) = endless.write_all(&[b'x'; 100_000]);
    assert_eq!(inspect(&control)["nics"].as_array().unwrap().len(), 1);
    assert!(start.elapsed() < PATIENCE);
    for rude in [&mut silent, &mut endless] {
        let mut room = [0; 64];
        assert!(matches!(rude.read(&mut room), Ok(0) | Err(_)), "they get no answer");
    }
    let mut curious = UnixStream::connect(&control).unwrap();
    curious.write_all(b"make coffee\n").unwrap();
    let mut said = String::new();
    curious.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("{\"error\":"), "{said}");
    for verb in ["set-limit NIC", "set-group-limit NAME"] {
        let (word, _) = verb.split_once(' ').unwrap();
        let mut hasty = UnixStream::connect(&control).unwrap();
        hasty.write_all(format!("{word} x up 1G\n").as_bytes()).unwrap();
        let mut said = String::new();
        hasty.read_to_string(&mut said).unwrap();
        assert!(said.contains(&format!("write: {verb} tx|rx")), "{said}");
    }
    server.end();
}
