//! The two ways in which a VMM meets a device: vhost-user, and vfio-user.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};
use vionet::transport::PciNic;
use vionet::{Device, Limits, Op, OpError, Report, Snapshot};
use vionet_raw::host::fd;
use vionet_socket::ListenError;
use vionet_vfio_user::{self as vfio_user, Function};
use vionet_vhost_user::{self as vhost_user, Door};

use crate::cli::NicArgs;
use crate::exit::{Code, Stop};

/// How long a device may take; it may be opening its host side.
const PATIENCE: Duration = Duration::from_secs(5);

/// A device, and who brings it to a VMM.
pub(super) enum Front {
    VhostUser { device: Box<Device>, server: vhost_user::Server },
    VfioUser { function: Function, server: vfio_user::Server },
}

impl Front {
    pub(super) fn new(args: &NicArgs, device: Device) -> Result<Self, Stop> {
        if let Some(path) = &args.vfio_user {
            let server = vfio_user::Server::bind(path).map_err(vfio_user_stop)?;
            let server = if args.one_off { server.one_off() } else { server };
            let function = Function::new(device).map_err(|why| Stop::new(Code::Failure, why))?;
            return Ok(Self::VfioUser { function, server });
        }
        let server = match (&args.socket_path, args.fd) {
            (Some(path), _) => vhost_user::Server::bind(path),
            (None, Some(number)) => vhost_user::Server::from_fd(adopt(number)?),
            (None, None) => {
                return Err(Stop::new(Code::Usage, "give --socket-path, --fd or --vfio-user"));
            }
        };
        let server = server.map_err(vhost_user_stop)?;
        let server = if args.one_off { server.one_off() } else { server };
        Ok(Self::VhostUser { device: Box::new(device), server })
    }

    /// Serves one front-end after another until it is time to stop.
    pub(super) fn run(&mut self, stop: BorrowedFd<'_>) -> Result<(), Stop> {
        match self {
            Self::VhostUser { device, server } => {
                let end = server.run(device, stop, &mut |event| vhost_user_event(&event));
                match end.map_err(vhost_user_stop)? {
                    vhost_user::End::Stopped | vhost_user::End::FrontEndGone => Ok(()),
                }
            }
            Self::VfioUser { function, server } => {
                let end = server.run(function, stop, &mut |event| vfio_user_event(&event));
                match end.map_err(vfio_user_stop)? {
                    vfio_user::End::Stopped | vfio_user::End::ClientGone => Ok(()),
                }
            }
        }
    }

    /// The device as it is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        match self {
            Self::VhostUser { device, .. } => device.snapshot(),
            Self::VfioUser { function, .. } => function.nic().snapshot(),
        }
    }

    /// A way to the device for another thread, while it is served.
    pub(super) fn reach(&mut self) -> io::Result<Reach> {
        match self {
            Self::VhostUser { server, .. } => server.door().map(Reach::Visit),
            Self::VfioUser { function, .. } => Ok(Reach::Direct(Arc::clone(function.nic()))),
        }
    }
}

/// What can be changed in a device that is served.
pub(super) enum Change {
    /// The cable is plugged in, or out.
    Link(bool),
    Limits(Option<Limits>),
    /// The guest's addresses are made known.
    Announcement,
}

/// The way to a device.
pub(super) enum Reach {
    /// Its server lets visitors in between two messages.
    Visit(Door),
    /// It lets in anybody.
    Direct(Arc<PciNic>),
}

impl Reach {
    /// The device as it is; `None` when it does not answer in time.
    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        match self {
            Self::Visit(door) => door.visit(PATIENCE, |device| device.snapshot()),
            Self::Direct(nic) => Some(nic.snapshot()),
        }
    }

    /// Changes the device; `None` when it does not answer in time.
    pub(super) fn change(&self, change: Change) -> Option<Result<(), OpError>> {
        match self {
            Self::Visit(door) => door.visit(PATIENCE, |device| {
                let op = match change {
                    Change::Link(up) => Op::SetLink(up),
                    Change::Limits(limits) => Op::SetLimits(limits),
                    Change::Announcement => Op::Announce(device.mac()),
                };
                device.apply(op)
            }),
            Self::Direct(nic) => Some(match change {
                Change::Link(up) => nic.set_link(up),
                Change::Limits(limits) => nic.set_limits(limits),
                Change::Announcement => nic.announce(),
            }),
        }
    }
}

fn adopt(number: i32) -> Result<std::os::fd::OwnedFd, Stop> {
    fd::adopt(number).map_err(|cause| {
        let what =
            format!("--fd {number}: {cause}; have whoever starts vionet pass an open socket");
        Stop::new(Code::Config, what)
    })
}

/// Why there is no socket, and the code to exit with.
pub(super) fn no_socket(cause: ListenError) -> Stop {
    let code = match &cause {
        ListenError::Taken(_) | ListenError::NotASocket(_) => Code::Config,
        ListenError::Bind(_, why) if why.kind() == io::ErrorKind::NotFound => Code::Config,
        ListenError::Denied(_) => Code::Privilege,
        _ => Code::Failure,
    };
    Stop::new(code, cause)
}

fn vhost_user_stop(cause: vhost_user::ServeError) -> Stop {
    match cause {
        vhost_user::ServeError::Listen(cause) => no_socket(cause),
        vhost_user::ServeError::Protocol(_) => Stop::new(Code::Protocol, cause),
        _ => Stop::new(Code::Failure, cause),
    }
}

fn vfio_user_stop(cause: vfio_user::ServeError) -> Stop {
    match cause {
        vfio_user::ServeError::Listen(cause) => no_socket(cause),
        vfio_user::ServeError::Protocol(_) => Stop::new(Code::Protocol, cause),
        _ => Stop::new(Code::Failure, cause),
    }
}

fn vhost_user_event(event: &vhost_user::Event) {
    use vhost_user::Event;
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

fn vfio_user_event(event: &vfio_user::Event) {
    use vfio_user::Event;
    match event {
        Event::Message { .. } => debug!("{event}"),
        Event::ProtocolError(_)
        | Event::Restless(_)
        | Event::Device(Report::Lost(_) | Report::Silent(_)) => {
            error!("{event}");
        }
        Event::Refused { .. } | Event::Device(_) | Event::NoRoom(_) => warn!("{event}"),
        _ => info!("{event}"),
    }
}
