//! `vionet serve`: one network device over vhost-user.

mod endpoint;
mod recipe;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, error, info, warn};
use vionet::stats::LaneStats;
use vionet::{Device, NicConfig, WorkerOptions, Workers};
use vionet_raw::host::{fd, signal};
use vionet_vhost_user::{End, Event, ServeError, Server};

use crate::cli::{Mac, ServeArgs};
use crate::exit::{Code, Stop};

/// What a back-end program of this kind prints (vhost-user back-end conventions).
const CAPABILITIES: &str = r#"{"type": "net"}"#;

/// Runs `vionet serve` to its end.
///
/// # Errors
/// With the line to print and the code to exit with.
pub fn run(args: &ServeArgs) -> Result<(), Stop> {
    if args.print_capabilities {
        println!("{CAPABILITIES}");
        return Ok(());
    }
    let stop = signal::termination()
        .map_err(|cause| Stop::new(Code::Failure, format!("signals cannot be read: {cause}")))?;
    raise_descriptor_limit();
    let endpoint = endpoint::make(args)?;
    let mac = args.mac.unwrap_or_else(|| default_mac(args));
    let mtu = args.mtu.unwrap_or(u16::MAX);
    let poll = Duration::from_micros(args.poll_us.into());
    let workers = Workers::new(WorkerOptions { threads: None, poll });
    let config = NicConfig { mac: mac.0, mtu };
    let mut device = Device::with_workers(config, endpoint, &workers)
        .map_err(|cause| Stop::new(Code::Failure, cause))?;
    let mut server = server(args)?;
    info!("serving {} as {mac}, mtu {}", device.endpoint_name(), device.mtu());
    if let Some(path) = &args.socket_path
        && !args.quiet
    {
        eprint!("{}", recipe::text(path, mac));
    }
    let end = server.run(&mut device, stop.as_fd(), &mut |event| tell(&event));
    for (index, pair) in device.stats().enumerate() {
        info!("queue pair {index}: sent {}", summary(&pair.tx));
        info!("queue pair {index}: received {}", summary(&pair.rx));
    }
    match end {
        Ok(End::Stopped | End::FrontEndGone) => Ok(()),
        Err(cause) => Err(explain(cause)),
    }
}

/// A flow of the guest is a descriptor here, and the soft limit is made for programs that use
/// select(2): up to the hard one, as far as it goes.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        warn!("the limit of descriptors stays at {:?}: {errno}", limit.current);
    }
}

fn server(args: &ServeArgs) -> Result<Server, Stop> {
    let server = match (&args.socket_path, args.fd) {
        (Some(path), _) => Server::bind(path),
        (None, Some(number)) => {
            let socket = fd::adopt(number).map_err(|cause| {
                Stop::new(Code::Config, format!("--fd {number}: {cause}; pass an open socket"))
            })?;
            Server::from_fd(socket)
        }
        (None, None) => return Err(Stop::new(Code::Usage, "give --socket-path or --fd")),
    };
    let server = server.map_err(explain)?;
    Ok(if args.one_off { server.one_off() } else { server })
}

fn explain(cause: ServeError) -> Stop {
    let code = match &cause {
        ServeError::Protocol(_) => Code::Protocol,
        ServeError::Taken { .. } | ServeError::NotASocket { .. } => Code::Config,
        ServeError::Denied { .. } => Code::Privilege,
        _ => Code::Failure,
    };
    Stop::new(code, cause)
}

/// A MAC address that stays with the socket's path, in QEMU's range of local addresses.
fn default_mac(args: &ServeArgs) -> Mac {
    let path = args.socket_path.as_deref().map(std::path::absolute);
    let name = path.and_then(Result::ok).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    name.as_os_str().as_bytes().hash(&mut hasher);
    args.fd.hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_le_bytes();
    Mac([0x52, 0x54, 0x00, a, b, c])
}

fn tell(event: &Event) {
    match event {
        Event::Message { .. } => debug!("{event}"),
        Event::ProtocolError(_) | Event::WorkerLost(_) => error!("{event}"),
        Event::MessageRefused { .. }
        | Event::QueueFault { .. }
        | Event::HostFault { .. }
        | Event::NoRoom(_) => warn!("{event}"),
        _ => info!("{event}"),
    }
}

fn summary(lane: &LaneStats) -> String {
    let mut text = format!("{} frames, {} bytes", lane.frames.value(), lane.bytes.value());
    for (reason, count) in lane.drops().filter(|(_, count)| *count > 0) {
        // Writing to a string cannot fail.
        let (Ok(()) | Err(_)) = write!(text, ", {count} dropped ({reason})");
    }
    text
}
