//! Several queue pairs: which of them carry frames and interrupt, while their number changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use vionetd::vm::Guest;

use crate::checks::SHORT;
use crate::offloads::{Far, must, value};

/// Pairs of the NIC, and processors of the guest.
pub const PAIRS: u16 = 4;

const OCTETS: usize = 256 * 1024;

/// How it is seen that a pair receives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// By its frames.
    Frames,
    /// By its interrupts: each queue has its own.
    Interrupts,
    /// By its frames, which hashes spread, so that now and then one gets none.
    Hashed,
}

/// What was counted so far: such as `rx0` and `tx3` for frames or, where the driver does not tell
/// those, kicks; `input.2` for interrupts.
type Counts = BTreeMap<String, u64>;

fn counts(guest: &mut Guest) -> Counts {
    let lines = must(guest, "traffic queues").lines;
    let pairs = lines.iter().filter_map(|line| line.split_once('='));
    pairs.map(|(name, number)| (name.to_owned(), number.parse().expect("a number"))).collect()
}

/// As many pairs carry as the guest says, whatever traffic meets the change, and the link stays.
pub fn all_numbers(guest: &mut Guest, far: &Far<'_>, by: Seen) {
    assert_eq!(value(&must(guest, "echo cpus=$(nproc)"), "cpus"), PAIRS.to_string());
    let link = link_changes(guest);
    carry(guest, far, PAIRS, by);
    for number in [2, 4, 1, 3, PAIRS] {
        let url = url(far, number);
        must(guest, &format!("traffic busy '{url}'"));
        must(guest, &format!("ethtool -L $(net nic) combined {number}"));
        let output = must(guest, "traffic calm");
        assert_eq!(value(&output, "bad"), "0", "{number} pairs: {:?}", output.lines);
        let rounds = value(&output, "rounds");
        println!("  {rounds} transfers while it changes to {number}");
        carry(guest, far, number, by);
    }
    assert_eq!(link_changes(guest), link, "the link went down");
}

/// How many frames each queue receives of one transfer each way from every processor.
pub fn arrivals(guest: &mut Guest, far: &Far<'_>) -> Vec<u64> {
    let before = counts(guest);
    // by IPv4, whose hash the driver can be told
    spread(guest, far, 0);
    let after = counts(guest);
    (0..PAIRS).map(|queue| format!("rx{queue}")).map(|name| after[&name] - before[&name]).collect()
}

fn spread(guest: &mut Guest, far: &Far<'_>, turn: u16) {
    let (url, to, sink) = (url(far, turn), far.address(turn), far.peers.sink);
    let output = must(guest, &format!("traffic spread '{url}' {to} {sink}"));
    let wanted = far.blob.start(OCTETS).sha256();
    for cpu in 0..PAIRS {
        assert_eq!(value(&output, &format!("sha256.{cpu}")), wanted);
        let got = far.peers.swallowed.recv_timeout(SHORT).expect("the sink saw the end");
        assert_eq!((got.bytes, &got.sha256), (OCTETS, &wanted), "what came to {to}");
    }
}

/// One transfer each way from every processor of the guest: exactly `number` pairs carry them.
pub fn carry(guest: &mut Guest, far: &Far<'_>, number: u16, by: Seen) {
    let before = counts(guest);
    spread(guest, far, number);
    let after = counts(guest);
    // a queue that is not in use is not counted
    let of = |counts: &Counts, name: &str| counts.get(name).copied().unwrap_or(0);
    let more = |name: String| of(&after, &name).saturating_sub(of(&before, &name));
    let mut told = String::new();
    for pair in 0..PAIRS {
        let arrived = match by {
            Seen::Interrupts => more(format!("input.{pair}")),
            Seen::Frames | Seen::Hashed => more(format!("rx{pair}")),
        };
        let left = more(format!("tx{pair}"));
        told.push_str(&format!(", {arrived} and {left}"));
        let in_use = pair < number;
        let may_miss = in_use && by == Seen::Hashed;
        let right = (may_miss || (arrived > 0) == in_use) && (left > 0) == in_use;
        assert!(right, "{number} pairs, pair {pair}: {after:?}");
    }
    let arrivals = if by == Seen::Interrupts { "interrupts for what came" } else { "frames in" };
    println!("  {number} pairs with {}; {arrivals}, and out{told}", far.address(number));
}

/// By turns over IPv4 and IPv6.
fn url(far: &Far<'_>, number: u16) -> String {
    format!("http://{}/{OCTETS}", SocketAddr::new(far.address(number), far.peers.http))
}

fn link_changes(guest: &mut Guest) -> String {
    let output = must(guest, "echo changes=$(cat /sys/class/net/$(net nic)/carrier_changes)");
    value(&output, "changes").to_owned()
}
