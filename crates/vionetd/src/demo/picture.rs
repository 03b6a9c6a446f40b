//! The demo's report, drawn as it goes.

use std::io::{IsTerminal, stdout};
use std::net::IpAddr;
use std::time::Duration;

/// Something that has just worked.
pub(super) enum Row {
    Prepared { qemu: String, kernel: String },
    Booted(Duration),
    Attached,
    Leased(String),
    Pinged { v4: Duration, v6: Duration },
    Resolved { name: String, addresses: Vec<IpAddr> },
    Downloaded { bytes: u64, time: Duration },
    Rate { down: bool, bits_per_s: f64 },
}

pub(super) struct Picture {
    colour: bool,
    rates: Vec<(bool, f64)>,
}

/// Characters of the longest bar.
const BAR: usize = 40;

impl Picture {
    pub(super) fn begin(is_vm: bool) -> Self {
        let guest = if is_vm { "Linux in QEMU " } else { "built-in guest" };
        println!(
            "\n  +----------------+   vhost-user    +--------------+    sockets    +----------+\n  \
               | {guest} | <=============> | vionet serve | <-----------> |   host   |\n  \
               +----------------+  shared memory  +--------------+   no root     +----------+\n"
        );
        Self { colour: stdout().is_terminal(), rates: Vec::new() }
    }

    pub(super) fn step(&mut self, row: Row) {
        let (what, seen) = match row {
            Row::Prepared { qemu, kernel } => ("guest", format!("QEMU {qemu}, Linux {kernel}")),
            Row::Booted(after) => ("booted", format!("in {:.1} s", after.as_secs_f64())),
            Row::Attached => ("attached", "features agreed, both queues run".to_owned()),
            Row::Leased(address) => ("DHCP", format!("lease of {address}")),
            Row::Pinged { v4, v6 } => (
                "ping",
                format!(
                    "gateway answers: IPv4 in {} us, IPv6 in {} us",
                    v4.as_micros(),
                    v6.as_micros()
                ),
            ),
            Row::Resolved { name, addresses } => ("DNS", resolved(&name, &addresses)),
            Row::Downloaded { bytes, time } => ("download", downloaded(bytes, time)),
            Row::Rate { down, bits_per_s } => {
                self.rates.push((down, bits_per_s));
                let way = if down { "host to guest" } else { "guest to host" };
                ("TCP", format!("{way} {}", rate(bits_per_s)))
            }
        };
        let mark = if self.colour { "\x1b[32mok\x1b[0m" } else { "ok" };
        println!("  {mark}  {what:<9} {seen}");
    }

    pub(super) fn end(&self) {
        let most = self.rates.iter().fold(0.0_f64, |most, (_, rate)| most.max(*rate));
        if most > 0.0 {
            println!();
        }
        for (down, bits_per_s) in &self.rates {
            let way = if *down { "host to guest" } else { "guest to host" };
            println!("  {way} |{:<BAR$}| {}", bar(*bits_per_s, most), rate(*bits_per_s));
        }
        println!(
            "\n  Now a guest of yours:  vionet serve --socket-path vm0.sock\n  \
               It prints the flags for QEMU and Cloud Hypervisor.\n"
        );
    }
}

fn resolved(name: &str, addresses: &[IpAddr]) -> String {
    let list: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    format!("{name} is {}", if list.is_empty() { "not known".into() } else { list.join(", ") })
}

#[expect(clippy::as_conversions, reason = "figures for people")]
fn downloaded(bytes: u64, time: Duration) -> String {
    let speed = bytes as f64 * 8.0 / time.as_secs_f64();
    format!("{} MiB, SHA-256 right, {}", bytes >> 20, rate(speed))
}

fn rate(bits_per_s: f64) -> String {
    if bits_per_s >= 1e9 {
        format!("{:.2} Gbit/s", bits_per_s / 1e9)
    } else {
        format!("{:.0} Mbit/s", bits_per_s / 1e6)
    }
}

fn bar(value: f64, most: f64) -> String {
    (0..BAR).map_while(|at| is_filled(at, value / most).then_some('#')).collect()
}

#[expect(clippy::as_conversions, reason = "a place among a few dozen")]
fn is_filled(at: usize, share: f64) -> bool {
    at as f64 + 0.5 <= share * BAR as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(bar(1.0, 1.0).len(), BAR);
        assert_eq!(bar(1.0, 2.0).len(), BAR / 2);
        assert_eq!(bar(0.0, 1.0), "");
    }

    #[test]
    fn rates_have_the_unit_that_fits() {
        assert_eq!(rate(2.345e9), "2.35 Gbit/s");
        assert_eq!(rate(9.6e7), "96 Mbit/s");
    }
}
