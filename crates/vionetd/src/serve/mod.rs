//! `vionet serve`: network devices over vhost-user and vfio-user, one or several.

mod control;
mod endpoint;
mod front;
mod limits;
mod recipe;

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tracing::{error, info, info_span, warn};
use vionet::{Device, LaneSnapshot, NicConfig, Op, WorkerOptions, Workers};
use vionet_raw::host::signal;

use crate::cli::{ControlArgs, InspectArgs, Mac, NicArgs, ServeArgs, guard};
use crate::exit::{Code, Stop};
use control::Control;
use endpoint::Switches;
use front::Front;
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
        info!("serving {} on {} as {}", nic.endpoint, nic.name, nic.mac);
        if let Some(recipe) = nic.recipe.as_ref().filter(|_| !args.quiet) {
            eprint!("{recipe}");
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
        let reach = nic.front.reach().map_err(|cause| Stop::new(Code::Failure, cause))?;
        let (name, endpoint) = (nic.name.clone(), nic.endpoint.clone());
        Ok(control::Nic { name, endpoint, reach, limits: nic.limits.clone() })
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
    let wrong = |what| Err(Stop::new(Code::Usage, what));
    match (args.nics.is_empty(), args.one.has_socket()) {
        (false, true) => wrong("give either --nic, or --socket-path, --fd or --vfio-user"),
        (false, false) => Ok(args.nics.iter().map(|spec| &spec.0).collect()),
        (true, true) => Ok(vec![&args.one]),
        (true, false) => wrong("give --socket-path, --fd, --vfio-user or --nic"),
    }
}

fn lost() -> Result<(), Stop> {
    Err(Stop::new(Code::Failure, "a control thread was lost by a defect of ours"))
}

/// A device that is ready for its front-end.
struct Served {
    name: String,
    endpoint: String,
    mac: Mac,
    /// How a VMM is attached.
    recipe: Option<String>,
    limits: NicLimits,
    front: Front,
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
        let endpoint = device.endpoint_name();
        let recipe = recipe::of(args, mac);
        let front = Front::new(args, device)?;
        Ok(Self { name: name(args), endpoint, mac, recipe, limits, front })
    }

    /// Serves one front-end after another until it is time to stop.
    fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Stop> {
        let end = self.front.run(stop);
        for (index, pair) in self.front.snapshot().pairs.iter().enumerate() {
            info!("queue pair {index}: sent {}", summary(&pair.transmit));
            info!("queue pair {index}: received {}", summary(&pair.receive));
        }
        end.map_err(|stop| stop.of(&self.name))
    }
}

/// Where it listens.
fn path(args: &NicArgs) -> Option<&Path> {
    args.socket_path.as_deref().or(args.vfio_user.as_deref())
}

/// What a device is called: its socket.
fn name(args: &NicArgs) -> String {
    match (path(args), args.fd) {
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

/// A MAC address that stays with the socket's path, in QEMU's range of local addresses.
fn default_mac(args: &NicArgs) -> Mac {
    let path = path(args).map(std::path::absolute);
    let name = path.and_then(Result::ok).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    name.as_os_str().as_bytes().hash(&mut hasher);
    args.fd.hash(&mut hasher);
    let [a, b, c, ..] = hasher.finish().to_le_bytes();
    Mac([0x52, 0x54, 0x00, a, b, c])
}

fn summary(lane: &LaneSnapshot) -> String {
    let mut text = format!("{} frames, {} bytes", lane.frames(), lane.bytes);
    for (reason, count) in lane.drops().filter(|(_, count)| *count > 0) {
        // Writing to a string cannot fail.
        let (Ok(()) | Err(_)) = write!(text, ", {count} dropped ({reason})");
    }
    text
}
