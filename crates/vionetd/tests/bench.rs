//! `vionet bench` against `vionet serve`: what it says is what happened.
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

use serde_json::Value;
use served::Server;

const SHORT: &str = "--seconds=0.2";
const RINGS: &str = "split,split-inorder,packed,packed-inorder";

fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vionet")).arg("bench").args(args).output().unwrap()
}

/// The rows of a run that ended well.
fn rows(socket: &Path, args: &[&str]) -> Vec<Value> {
    let socket = socket.display().to_string();
    let args = [&["--json", "--socket", &socket], args].concat();
    let output = bench(&args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all["results"].as_array().unwrap().clone()
}

fn number(row: &Value, path: &str) -> f64 {
    row.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {row}"))
}

#[test]
fn every_frame_comes_back_whole_and_in_turn_over_every_ring() {
    let server = Server::start("bench-echo", &[], &["endpoint=echo"]);
    for (shape, size) in [
        (&["--size", "60+61+1518+9000"][..], "60+61+1518+9000"),
        // More frames at once than a small ring holds, and no buffer to spare.
        (&["--size", "64", "--queue-size", "4", "--burst", "64"], "64"),
        (&["--size", "32+1514", "--no-mergeable", "--no-event-idx"], "32+1514"),
    ] {
        let rows = rows(
            &server.socket(0),
            &[shape, &["--verify", "--ring", RINGS, "--way", "echo", SHORT]].concat(),
        );
        assert_eq!(rows.len(), 4);
        for row in &rows {
            assert_eq!(row["size"], size);
            assert!(number(row, "/frames_per_second/median") > 1000.0, "{row}");
            for count in ["/lost", "/disorder", "/damaged", "/foreign"] {
                assert_eq!(number(row, count), 0.0, "{count} of {row}");
            }
            let [least, p50, p99, p99_9, most] = ["least", "p50", "p99", "p99_9", "most"]
                .map(|name| number(row, &format!("/latency_us/{name}")));
            assert!(0.0 < least && least <= p50 && p50 <= p99 && p99 <= p99_9 && p99_9 <= most);
        }
    }
    // A packed ring has any size.
    let rows = rows(
        &server.socket(0),
        &[SHORT, "--queue-size", "100", "--ring", "packed", "--way", "echo", "--verify"],
    );
    assert_eq!(number(&rows[0], "/lost"), 0.0);
    server.end();
}

#[test]
fn frames_cross_a_switch_whole_and_in_turn() {
    let switch = "endpoint=switch:lan";
    let server = Server::start("bench-switch", &[], &[switch, switch]);
    let to = server.socket(1).display().to_string();
    let args = [SHORT, "--to", &to, "--ring", RINGS, "--size", "imix", "--verify"];
    for row in rows(&server.socket(0), &args) {
        assert!(number(&row, "/frames_per_second/median") > 1000.0, "{row}");
        assert_eq!(number(&row, "/lost"), 0.0, "{row}");
    }
    server.end();
}

#[test]
fn one_way_frames_are_counted_and_an_offered_rate_is_kept() {
    let nics = ["endpoint=null", "endpoint=flood:100"];
    let server = Server::start("bench-one-way", &[], &nics);
    for (index, way) in [(0, "transmit"), (1, "receive")] {
        for row in
            rows(&server.socket(index), &[SHORT, "--way", way, "--ring", RINGS, "--size", "100"])
        {
            let frames = number(&row, "/frames_per_second/median");
            assert!(frames > 1000.0, "{row}");
            let bits = number(&row, "/bits_per_second") / frames;
            assert!((bits - 800.0).abs() < 1.0, "{row}");
            assert!(row["lost"].is_null() && row["latency_us"].is_null(), "{row}");
            assert!(number(&row, "/back_end_cpus") <= 1.5, "one worker and a little: {row}");
        }
    }
    let rows = rows(&server.socket(0), &["--rate", "5000", "--seconds=1"]);
    let rate = number(&rows[0], "/frames_per_second/median");
    assert!((2500.0..5100.0).contains(&rate), "{rate} of 5000 frames per second");
    server.end();
}

#[test]
fn back_ends_are_compared_round_by_round_and_drawn() {
    let server = Server::start("bench-two", &[], &["endpoint=null", "endpoint=null"]);
    let [first, second] = [0, 1].map(|index| server.socket(index).display().to_string());
    let chart = std::env::temp_dir().join(format!("vionet-chart-{}.svg", std::process::id()));
    let drawn = chart.display().to_string();
    let output = bench(&[
        "--socket",
        &first,
        "--socket",
        &second,
        "--rounds",
        "3",
        "--seconds",
        "0.05",
        "--chart",
        &drawn,
        "--size",
        "64,1518",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(&first) && text.contains(&second), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("split")).count(), 8, "{text}");
    let svg = std::fs::read_to_string(&chart).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<rect").count() >= 7);
    std::fs::remove_file(chart).unwrap();
    server.end();
}

#[test]
fn a_mistake_is_told_with_what_to_do() {
    let server = Server::start("bench-errors", &[], &["endpoint=null"]);
    let socket = server.socket(0).display().to_string();
    for (args, code, word) in [
        (&["--socket", "/nonexistent/x.sock"][..], 1, "/nonexistent/x.sock"),
        (&["--socket", &socket, "--verify"], 2, "come back"),
        (&["--socket", &socket, "--size", "5"], 2, "32 to 65550"),
        (&["--socket", &socket, "--queue-size", "100"], 2, "power of two"),
        (&["--socket", &socket, "--to", "a", "--to", "b"], 2, "--to"),
        (&["--socket", &socket, "--cpu", "1000"], 3, "--cpu 1000"),
        (&["--socket", &socket, "--way", "sideways"], 2, "sideways"),
    ] {
        let output = bench(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(word), "{said}");
    }
    server.end();
}
