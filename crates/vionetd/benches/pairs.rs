//! One busy device beside 255 idle ones on one worker thread, against one device alone:
//! `cargo bench -p vionetd --bench pairs`. Idle devices have a guest and running queues.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may stop"
)]

#[path = "../tests/served/mod.rs"]
mod served;

use std::time::Duration;

use served::Server;
use vionet_driver::{LoadOptions, Nic, RingFormat, Way, load};

const ROUNDS: usize = 9;
const DEVICES: usize = 256;

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!(
        "  ring    way        poll us   alone M/s   of {DEVICES} M/s   ratio   \
         spread of {ROUNDS} rounds"
    );
    for poll in ["0", "1000"] {
        let worker = ["--workers", "1", "--poll-us", poll];
        let alone = Server::start(&format!("alone-{poll}"), &worker, &["endpoint=echo"]);
        let many = vec!["endpoint=echo"; DEVICES];
        let many = Server::start(&format!("many-{poll}"), &worker, &many);
        let idle: Vec<Nic> =
            (1..DEVICES).map(|at| Nic::attach(&many.socket(at)).unwrap()).collect();
        for (format, name) in [(RingFormat::Split, "split"), (RingFormat::Packed, "packed")] {
            for (way, what) in [(Way::Transmit, "transmit"), (Way::Echo, "echo")] {
                let options = LoadOptions {
                    way,
                    format,
                    time: Duration::from_millis(500),
                    ..LoadOptions::default()
                };
                let rate = |server: &Server| {
                    load(&server.socket(0), None, &options, &mut |_| {}).unwrap().rate() / 1e6
                };
                let mut rounds: Vec<[f64; 2]> =
                    (0..ROUNDS).map(|_| [rate(&alone), rate(&many)]).collect();
                let mut ratios: Vec<f64> = rounds.iter().map(|[one, all]| all / one).collect();
                let ratio = median(&mut ratios);
                let [one, all] = [0, 1].map(|at| {
                    median(&mut rounds.iter_mut().map(|round| round[at]).collect::<Vec<_>>())
                });
                let (least, most) = (ratios[0], ratios[ROUNDS - 1]);
                println!(
                    "  {name:<7} {what:<9} {poll:>8} {one:>11.2} {all:>12.2} {ratio:>7.2}   \
                     {least:.2}..{most:.2}"
                );
            }
        }
        drop(idle);
        alone.end();
        many.end();
    }
}
