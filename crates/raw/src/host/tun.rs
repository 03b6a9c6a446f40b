//! Tap devices: opening, adopting, offloads (Linux, `linux/if_tun.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::check;

/// The longest interface name, without its end mark.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// What the tap may hand over unfinished: a partial checksum, segments left whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TunOffloads {
    /// Frames whose checksum is still to be completed.
    pub csum: bool,
    /// Unsegmented TCP over IPv4.
    pub tso4: bool,
    /// Unsegmented TCP over IPv6.
    pub tso6: bool,
    /// Unsegmented TCP with ECN.
    pub ecn: bool,
}

/// Frames carry a virtio header.
const VNET: libc::c_int = libc::IFF_VNET_HDR;

/// An open tap queue.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    vnet_header: bool,
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() > NAME_MAX || name.bytes().any(|byte| byte == 0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Flags as an ifreq has them.
fn short(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::c_ulong, argument: *mut T) -> io::Result<()> {
    // SAFETY: every caller passes the argument type of its request, alive for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) }.into()).map(drop)
}

impl Tap {
    /// Attaches to the tap `name`, made now if there is none and the process may; frames carry
    /// the 12-byte virtio header. Non-blocking.
    ///
    /// # Errors
    /// As open(2) of `/dev/net/tun` and TUNSETIFF: `EPERM` without the right to it, `EBUSY` when
    /// another process is attached, `EINVAL` when it was made with other flags.
    pub fn open(name: &str) -> io::Result<Self> {
        // A tap that was made for several queues wants to be told so; one is taken of it.
        Self::attach(name, VNET).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => Self::attach(name, VNET | libc::IFF_MULTI_QUEUE),
            _ => Err(error),
        })
    }

    /// The same without virtio headers, as others may open a tap that they hand over.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_plain(name: &str) -> io::Result<Self> {
        Self::attach(name, 0)
    }

    /// Attaches to the tap `name` with one queue of several; call it once for each.
    ///
    /// # Errors
    /// As for [`Self::open`]; `EINVAL` also when it was not made for several queues, `E2BIG` when
    /// it has no more.
    pub fn open_queue(name: &str) -> io::Result<Self> {
        Self::attach(name, VNET | libc::IFF_MULTI_QUEUE)
    }

    fn attach(name: &str, more: libc::c_int) -> io::Result<Self> {
        let flags = libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the path is a terminated string.
        let number = unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) };
        check(number.into())?;
        // SAFETY: the call has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        let mut attach = request(name)?;
        attach.ifr_ifru.ifru_flags = short(libc::IFF_TAP | libc::IFF_NO_PI | more);
        ioctl(fd.as_fd(), libc::TUNSETIFF, &raw mut attach)?;
        Self::with_flags(fd, more)
    }

    /// Takes over an open tap queue. Whether frames carry a virtio header is the tap's affair and
    /// is asked here; such a header is set to 12 bytes.
    ///
    /// # Errors
    /// When the descriptor is no tap.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: all zeroes is a valid ifreq.
        let mut state: libc::ifreq = unsafe { std::mem::zeroed() };
        ioctl(fd.as_fd(), libc::TUNGETIFF, &raw mut state)?;
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = i32::from(unsafe { state.ifr_ifru.ifru_flags });
        if flags & libc::IFF_TAP == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a tun device, not a tap"));
        }
        // SAFETY: F_GETFL only reads flags.
        let mode = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) }.into())?;
        let mode = i32::try_from(mode).unwrap_or(0) | libc::O_NONBLOCK;
        // SAFETY: F_SETFL only sets flags.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, mode) }.into())?;
        Self::with_flags(fd, flags)
    }

    /// Lets the kernel use this queue of several, or takes it out of use: what waits in it is lost
    /// then, and reading and writing fail with `EBADFD`.
    ///
    /// # Errors
    /// `EINVAL` when that is so already, or the tap has one queue.
    pub fn set_attached(&self, attached: bool) -> io::Result<()> {
        // SAFETY: all zeroes is a valid ifreq.
        let mut state: libc::ifreq = unsafe { std::mem::zeroed() };
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        state.ifr_ifru.ifru_flags = short(flag);
        ioctl(self.fd.as_fd(), libc::TUNSETQUEUE, &raw mut state)
    }

    fn with_flags(fd: OwnedFd, flags: libc::c_int) -> io::Result<Self> {
        let tap = Self { fd, vnet_header: flags & VNET != 0 };
        if tap.vnet_header {
            tap.set_header_len()?;
        }
        Ok(tap)
    }

    fn set_header_len(&self) -> io::Result<()> {
        let mut len: libc::c_int = 12;
        ioctl(self.fd.as_fd(), libc::TUNSETVNETHDRSZ, &raw mut len)?;
        let mut little: libc::c_int = 1;
        ioctl(self.fd.as_fd(), libc::TUNSETVNETLE, &raw mut little)
    }

    /// Whether frames carry a virtio header.
    #[must_use]
    pub fn has_vnet_header(&self) -> bool {
        self.vnet_header
    }

    /// The interface's name.
    ///
    /// # Errors
    /// When the tap is gone.
    pub fn name(&self) -> io::Result<String> {
        // SAFETY: all zeroes is a valid ifreq.
        let mut state: libc::ifreq = unsafe { std::mem::zeroed() };
        ioctl(self.fd.as_fd(), libc::TUNGETIFF, &raw mut state)?;
        let bytes = state.ifr_name.iter().flat_map(|byte| byte.to_ne_bytes());
        let bytes: Vec<u8> = bytes.take_while(|byte| *byte != 0).collect();
        String::from_utf8(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Says what the kernel may hand over unfinished from now on.
    ///
    /// # Errors
    /// `EINVAL` when the kernel or the tap does not have the combination.
    pub fn set_offloads(&self, offloads: TunOffloads) -> io::Result<()> {
        let mut bits = 0;
        for (on, bit) in [
            (offloads.csum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
        ] {
            if on {
                bits |= bit;
            }
        }
        let bits = libc::c_ulong::from(bits);
        // SAFETY: TUNSETOFFLOAD takes its bits by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, bits) }.into())
            .map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The MTU of interface `name`.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub fn mtu(name: &str) -> io::Result<u16> {
    let mut state = request(name)?;
    let socket = interface_socket()?;
    ioctl(socket.as_fd(), libc::SIOCGIFMTU, ptr::from_mut(&mut state))?;
    // SAFETY: SIOCGIFMTU has filled in the MTU.
    let mtu = unsafe { state.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Whether interface `name` is administratively up.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub fn is_up(name: &str) -> io::Result<bool> {
    let mut state = request(name)?;
    let socket = interface_socket()?;
    ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, ptr::from_mut(&mut state))?;
    // SAFETY: SIOCGIFFLAGS has filled in the flags.
    let flags = i32::from(unsafe { state.ifr_ifru.ifru_flags });
    Ok(flags & libc::IFF_UP != 0)
}

fn interface_socket() -> io::Result<OwnedFd> {
    // SAFETY: a datagram socket to ask about interfaces; no memory is involved.
    let number = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(number.into())?;
    // SAFETY: the call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
