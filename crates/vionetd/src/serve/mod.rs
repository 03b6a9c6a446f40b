//! `vionet serve`: network devices over vhost-user, one or several.

mod control;
mod endpoint;
mod limits;
mod recipe;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tracing::{debug, error, info, info_span, warn};
use vionet::{Device, LaneSnapshot, NicConfig, Op, WorkerOptions, Workers};
use vionet_raw::host::{fd, signal};
use vionet_vhost_user::{End, Event, ServeError, Server};

use crate::cli::{ControlArgs, InspectArgs, Mac, NicArgs, ServeArgs, guard};
use crate::exit::{Code, Stop};
use control::Control;
use endpoint::Switches;
use limits::{Groups, NicLimits};

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
    let nics = nics(args)?;
    let poll = Duration::from_micros(args.poll_us.into());
    let workers = Workers::new(WorkerOptions { threads: args.workers, poll });
    let groups = Groups::new(&args.limit_groups, &nics)?;
    let mut switches = Switches::new();
    let mut served = Vec::with_capacity(nics.len());
    // All of them, before the first is served: a mistake in the last one ends it here.
    for nic in nics {
        let made = Served::make(nic, &workers, &mut switches, &groups);
        served.push(made.map_err(|stop| stop.of(&name(nic)))?);
    }
    for nic in &served {
        info!("serving {} on {} as {}", nic.device.endpoint_name(), nic.name, nic.mac);
        if let Some(path) = nic.path.as_ref().filter(|_| !args.quiet) {
            eprint!("{}", recipe::text(path, nic.mac, nic.queues));
        }
    }
    let control = args.control.as_deref().map(|path| control_of(path, &mut served, groups));
    let control = control.transpose()?;
    let ends: Result<_, Stop> = std::thread::scope(|scope| {
        // Closed at the end of this, which ends the control thread.
        let _lifeline = match control {
            Some(mut control) => {
                let (ours, theirs) = control::lifeline()?;
                scope.spawn(move || control.run(&theirs));
                Some(ours)
            }
            None => None,
        };
        Ok(run_all(&mut served, stop.as_fd()))
    });
    ends?.into_iter().collect()
}

fn control_of(path: &Path, served: &mut [Served], groups: Groups) -> Result<Control, Stop> {
    let nics = served.iter_mut().map(|nic| {
        let door = nic.server.door().map_err(|cause| Stop::new(Code::Failure, cause))?;
        let endpoint = nic.device.endpoint_name();
        Ok(control::Nic { name: nic.name.clone(), endpoint, door, limits: nic.limits.clone() })
    });
    Control::listen(path, nics.collect::<Result<_, Stop>>()?, groups)
}

fn run_all(served: &mut [Served], stop: BorrowedFd<'_>) -> Vec<Result<(), Stop>> {
    match served {
        [one] => vec![one.run(stop)],
        many => std::thread::scope(|scope| {
            // One's trouble is not another's: each has a thread, and all are waited for.
            let threads: Vec<_> = many
                .iter_mut()
                .map(|nic| {
                    let span = info_span!("nic", name = %nic.name);
                    let run = move || nic.run(stop).inspect_err(|stop| error!("{stop}"));
                    scope.spawn(move || span.in_scope(run))
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
        }),
    }
}

/// Runs `vionet inspect`.
///
/// # Errors
/// When no server answers.
pub fn inspect(args: &InspectArgs) -> Result<(), Stop> {
    let answer = control::ask(&args.control, "inspect")?;
    if args.json {
        println!("{answer}");
    } else {
        let mut text = String::new();
        control::tree(&answer, 0, &mut text);
        print!("{text}");
    }
    Ok(())
}

/// Runs `vionet control`.
///
/// # Errors
/// When no server answers, or it refuses.
pub fn change(args: &ControlArgs) -> Result<(), Stop> {
    let answer = control::ask(&args.control, &args.change.line())?;
    for nic in answer.get("not_told").and_then(Value::as_array).into_iter().flatten() {
        eprintln!("{nic} was not told: it has ended, or is busy; if it goes on, do this again");
    }
    Ok(())
}

/// The devices that were asked for, one way or the other.
fn nics(args: &ServeArgs) -> Result<Vec<&NicArgs>, Stop> {
    let is_given = args.one.socket_path.is_some() || args.one.fd.is_some();
    match (args.nics.is_empty(), is_given) {
        (false, true) => Err(Stop::new(Code::Usage, "give either --nic, or --socket-path or --fd")),
        (false, false) => Ok(args.nics.iter().map(|spec| &spec.0).collect()),
        (true, true) => Ok(vec![&args.one]),
        (true, false) => Err(Stop::new(Code::Usage, "give --socket-path, --fd or --nic")),
    }
}

fn lost() -> Result<(), Stop> {
    Err(Stop::new(Code::Failure, "a control thread was lost by a defect of ours"))
}

/// A device that is ready for its front-end.
struct Served {
    name: String,
    path: Option<PathBuf>,
    mac: Mac,
    queues: u16,
    limits: NicLimits,
    device: Device,
    server: Server,
}

impl Served {
    fn make(
        args: &NicArgs,
        workers: &Workers,
        switches: &mut Switches,
        groups: &Groups,
    ) -> Result<Self, Stop> {
        let limits = groups.limits_of(args)?;
        let mac = args.mac.unwrap_or_else(|| default_mac(args));
        let endpoint = endpoint::make(args, mac, switches)?;
        let config = NicConfig {
            mac: mac.0,
            mtu: args.mtu.unwrap_or(u16::MAX),
            pairs: args.queues,
            speed: args.speed,
            mac_may_change: !args.lock_mac,
            ..NicConfig::default()
        };
        let guard = guard(&args.guard, mac.0)
            .map_err(|cause| Stop::new(Code::Config, format!("--guard: {cause}")))?;
        let device = Device::with_workers(config, endpoint, workers)
            .map_err(|cause| Stop::new(Code::Failure, cause))?;
        let mut device = guard.into_iter().fold(device, Device::guarded);
        device
            .apply(Op::SetLimits(limits.limits()))
            .map_err(|cause| Stop::new(Code::Failure, cause))?;
        let (name, path) = (name(args), args.socket_path.clone());
        Ok(Self { name, path, mac, queues: args.queues, limits, device, server: server(args)? })
    }

    /// Serves one front-end after another until it is time to stop.
    fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Stop> {
        let Self { name, device, server, .. } = self;
        let end = server.run(device, stop, &mut |event| tell(&event));
        for (index, pair) in device.snapshot().pairs.iter().enumerate() {
            info!("queue pair {index}: sent {}", summary(&pair.transmit));
            info!("queue pair {index}: received {}", summary(&pair.receive));
        }
        match end {
            Ok(End::Stopped | End::FrontEndGone) => Ok(()),
            Err(cause) => Err(explain(cause).of(name)),
        }
    }
}

/// What a device is called: its socket.
fn name(args: &NicArgs) -> String {
    match (&args.socket_path, args.fd) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(number)) => format!("fd {number}"),
        (None, None) => "no socket".into(),
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

fn server(args: &NicArgs) -> Result<Server, Stop> {
    let server = match (&args.socket_path, args.fd) {
        (Some(path), _) => Server::bind(path),
        (None, Some(number)) => {
            let socket = fd::adopt(number).map_err(|cause| {
                Stop::new(
                    Code::Config,
                    format!(
                        "--fd {number}: {cause}; have whoever starts vionet pass an open socket"
                    ),
                )
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
fn default_mac(args: &NicArgs) -> Mac {
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
        Event::ProtocolError(_) | Event::WorkerLost(_) | Event::WorkerSilent(_) => {
            error!("{event}");
        }
        Event::MessageRefused { .. }
        | Event::QueueFault { .. }
        | Event::HostFault { .. }
        | Event::NoRoom(_) => warn!("{event}"),
        _ => info!("{event}"),
    }
}

fn summary(lane: &LaneSnapshot) -> String {
    let [(_, frames), (_, bytes), ..] = lane.counters;
    let mut text = format!("{frames} frames, {bytes} bytes");
    for (reason, count) in &lane.drops {
        // Writing to a string cannot fail.
        let (Ok(()) | Err(_)) = write!(text, ", {count} dropped ({reason})");
    }
    text
}
