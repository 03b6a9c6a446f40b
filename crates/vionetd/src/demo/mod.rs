//! `vionet demo`: the whole path working, in half a minute, with nothing but the build.
//!
//! ```text
//!   guest (built in, or Linux in QEMU) --vhost-user--> vionet serve --sockets--> servers of ours
//!                                                      a process of its own      on the loopback
//! ```

mod picture;
mod server;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use sha2::{Digest, Sha256};
use vionet_driver::{Content, Direction, Guest, GuestError, GuestOptions, NAME, Peer};
use vionet_user::config::{Ipv4Guest, Ipv6Guest};

use crate::cli::DemoArgs;
use crate::exit::{Code, Stop};
use crate::vm::{self, DemoPlan, Step};
use picture::{Picture, Row};
use server::Server;

/// Where the guest finds the host's loopback in the demo.
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 4);
/// The most that a guest in QEMU keeps in its memory, in MiB.
const VM_SIZE_MAX: u32 = 128;

/// Runs `vionet demo` to its end.
///
/// # Errors
/// With the line to print and the code to exit with.
pub fn run(args: &DemoArgs) -> Result<(), Stop> {
    if args.size == 0 || args.seconds == 0 {
        return Err(Stop::new(Code::Usage, "--size and --seconds are at least 1"));
    }
    if args.vm && args.size > VM_SIZE_MAX {
        let line = format!("--size: a guest in QEMU holds {VM_SIZE_MAX} MiB at most");
        return Err(Stop::new(Code::Usage, line));
    }
    let missing = if args.vm { vm::missing() } else { Vec::new() };
    if !missing.is_empty() {
        return Err(Stop::new(Code::Privilege, vm::VmError::Missing(missing)));
    }
    let bytes = u64::from(args.size).saturating_mul(1 << 20);
    let peer = Peer::start(bytes)
        .map_err(|cause| Stop::new(Code::Failure, format!("the demo's servers: {cause}")))?;
    let mut picture = Picture::begin(args.vm);
    let server = Server::start(LOOPBACK, peer.dns())?;
    if args.vm {
        tour_in_qemu(&server, &peer, bytes, &mut picture)?;
    } else {
        let time = Duration::from_secs(u64::from(args.seconds));
        tour_built_in(&server, &peer, bytes, time, &mut picture)
            .map_err(|cause| Stop::new(Code::Failure, format!("demo: {cause}")))?;
    }
    server.stop()?;
    picture.end();
    Ok(())
}

/// What the guest sees of a server on the host's loopback.
fn seen_by_guest(server: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(LOOPBACK), server.port())
}

fn checksum_of(bytes: u64) -> String {
    let mut sum = Sha256::new();
    Content::new(bytes).for_each(|piece| sum.update(piece));
    hex(&sum.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tour_built_in(
    server: &Server,
    peer: &Peer,
    bytes: u64,
    time: Duration,
    picture: &mut Picture,
) -> Result<(), GuestError> {
    let ipv6 = Ipv6Guest::default();
    let options =
        GuestOptions { ipv6: Some((ipv6.guest, ipv6.gateway)), ..GuestOptions::default() };
    let mut guest = Guest::start(server.socket(), &options)?;
    picture.step(Row::Attached);
    let lease = guest.lease()?;
    picture.step(Row::Leased(format!("{}/{}", lease.address, lease.prefix)));
    let gateways = [IpAddr::V4(Ipv4Guest::default().gateway), IpAddr::V6(ipv6.gateway)];
    // The first ping of each also finds the neighbour.
    gateways.into_iter().try_for_each(|gateway| guest.ping(gateway).map(drop))?;
    let [v4, v6] = gateways.map(|gateway| guest.ping(gateway));
    let (v4, v6) = (v4?, v6?);
    picture.step(Row::Pinged { v4, v6 });
    let addresses = guest.resolve(NAME)?;
    picture.step(Row::Resolved { name: NAME.into(), addresses });
    let mut sum = Sha256::new();
    let http = seen_by_guest(peer.http());
    let (got, taken) = guest.download(http, "/file", &mut |piece| sum.update(piece))?;
    if got != bytes || hex(&sum.finalize()) != checksum_of(bytes) {
        return Err(GuestError::Network("the file: it arrived changed"));
    }
    picture.step(Row::Downloaded { bytes: got, time: taken });
    let streams = seen_by_guest(peer.streams());
    let down = guest.measure(streams, Direction::Receive, time)?;
    picture.step(Row::Rate { down: true, bits_per_s: down * 8.0 });
    let up = guest.measure(streams, Direction::Transmit, time)?;
    picture.step(Row::Rate { down: false, bits_per_s: up * 8.0 });
    guest.stop()
}

fn tour_in_qemu(
    server: &Server,
    peer: &Peer,
    bytes: u64,
    picture: &mut Picture,
) -> Result<(), Stop> {
    let plan = DemoPlan {
        name: NAME.to_owned(),
        url: format!("http://{}/file", seen_by_guest(peer.http())),
        size: bytes,
        sha256: checksum_of(bytes),
        sink: seen_by_guest(peer.streams()),
    };
    let report = vm::run_demo(server.socket(), &plan, &mut |step| match step {
        Step::Preparing { qemu: (major, minor), kernel } => {
            picture.step(Row::Prepared { qemu: format!("{major}.{minor}"), kernel });
        }
        Step::Booting { .. } => {}
        Step::Booted { after } => picture.step(Row::Booted(after)),
        Step::Leased(lease) => {
            picture.step(Row::Leased(format!("{}/{}", lease.address, lease.prefix)));
        }
        Step::Resolved { name, addresses } => picture.step(Row::Resolved { name, addresses }),
        Step::Downloaded { bytes, time } => picture.step(Row::Downloaded { bytes, time }),
        Step::Uploaded { .. } => {}
    });
    let report = report.map_err(|cause| Stop::new(Code::Failure, format!("demo: {cause}")))?;
    picture.step(Row::Rate { down: true, bits_per_s: report.download_rate() });
    picture.step(Row::Rate { down: false, bits_per_s: report.upload_rate() });
    Ok(())
}
