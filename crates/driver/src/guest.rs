//! A guest: what a machine does with its network, step by step, each within a time limit.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, dns, icmp, tcp};
use smoltcp::wire::{
    DnsQueryType, EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet,
    Icmpv6Repr, IpAddress, IpCidr, IpEndpoint,
};

use crate::error::GuestError;
use crate::nic::Nic;
use crate::stack::Link;

/// What a guest is.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// The largest IP packet it sends, in bytes.
    pub mtu: u16,
    /// Its IPv6 address, /64, and router, to be set by hand.
    pub ipv6: Option<(Ipv6Addr, Ipv6Addr)>,
    /// How long a step may take.
    pub patience: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            mac: [0x52, 0x54, 0, 0x76, 0x69, 0x6f],
            mtu: 65_520,
            ipv6: None,
            patience: Duration::from_secs(10),
        }
    }
}

/// What DHCP has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix: u8,
    /// The way out.
    pub router: Option<Ipv4Addr>,
    /// Where names are resolved.
    pub dns: Vec<Ipv4Addr>,
}

/// Which way data goes in a measurement, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest sends.
    Transmit,
    /// The guest receives.
    Receive,
}

/// Bytes of a TCP socket's buffers, each way.
const TCP_BUFFER: usize = 4 << 20;
/// The longest sleep between two looks at the sockets.
const NAP: Duration = Duration::from_millis(50);
const PING_ID: u16 = 0x7669;

/// A running guest.
pub struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    patience: Duration,
    origin: Instant,
    next_port: u16,
    dns: Vec<IpAddress>,
}

#[allow(clippy::disallowed_methods, reason = "a guest is a program with a clock of its own")]
fn clock() -> Instant {
    Instant::now()
}

impl Guest {
    /// Attaches a guest to the back-end at `socket`.
    ///
    /// # Errors
    /// When the back-end cannot be reached or refuses.
    pub fn start(socket: &Path, options: &GuestOptions) -> Result<Self, GuestError> {
        let mut link = Link::new(Nic::attach(socket)?, options.mtu);
        let mac = HardwareAddress::Ethernet(EthernetAddress(options.mac));
        let origin = clock();
        let mut config = Config::new(mac);
        config.random_seed = u64::from(std::process::id());
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        if let Some((address, router)) = options.ipv6 {
            interface.update_ip_addrs(|all| {
                // There is room for the first address.
                let (Ok(()) | Err(_)) = all.push(IpCidr::new(IpAddress::Ipv6(address), 64));
            });
            let (Ok(_) | Err(_)) = interface.routes_mut().add_default_ipv6_route(router);
        }
        Ok(Self {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            patience: options.patience,
            origin,
            next_port: 49_152,
            dns: Vec::new(),
        })
    }

    /// Lets the stack work once and sleeps until something happens.
    fn turn(&mut self) -> Result<(), GuestError> {
        let now = self.now();
        let result = self.interface.poll(now, &mut self.link, &mut self.sockets);
        self.link.nic.flush();
        if let Some(error) = self.link.failed.take() {
            return Err(error);
        }
        if result == PollResult::SocketStateChanged {
            return Ok(());
        }
        let delay = self.interface.poll_delay(self.now(), &self.sockets);
        let delay = delay.map_or(NAP, Duration::from).min(NAP);
        if delay.is_zero() { Ok(()) } else { self.link.nic.wait(delay) }
    }

    fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// Turns until `done` has something, or patience ends.
    fn until<T>(
        &mut self,
        what: &'static str,
        mut done: impl FnMut(&mut Self) -> Result<Option<T>, GuestError>,
    ) -> Result<T, GuestError> {
        let start = clock();
        loop {
            if let Some(result) = done(self)? {
                return Ok(result);
            }
            if start.elapsed() > self.patience {
                return Err(GuestError::Timeout(what, self.patience));
            }
            self.turn()?;
        }
    }

    /// Gets an address by DHCP and configures it.
    ///
    /// # Errors
    /// When no server answers.
    pub fn lease(&mut self) -> Result<Lease, GuestError> {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let lease = self.until("waiting for a DHCP lease", |guest| {
            let socket = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
            Ok(match socket.poll() {
                Some(dhcpv4::Event::Configured(config)) => Some(Lease {
                    address: config.address.address(),
                    prefix: config.address.prefix_len(),
                    router: config.router,
                    dns: config.dns_servers.iter().copied().collect(),
                }),
                Some(dhcpv4::Event::Deconfigured) | None => None,
            })
        })?;
        self.sockets.remove(handle);
        self.interface.update_ip_addrs(|all| {
            let address = IpCidr::new(IpAddress::Ipv4(lease.address), lease.prefix);
            // There is room for one address of each family.
            let (Ok(()) | Err(_)) = all.insert(0, address);
        });
        if let Some(router) = lease.router {
            let (Ok(_) | Err(_)) = self.interface.routes_mut().add_default_ipv4_route(router);
        }
        self.dns = lease.dns.iter().map(|server| IpAddress::Ipv4(*server)).collect();
        Ok(lease)
    }

    /// Sends an echo request and waits for the reply; returns how long it took.
    ///
    /// # Errors
    /// When there is no reply.
    pub fn ping(&mut self, to: IpAddr) -> Result<Duration, GuestError> {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 2048]);
        let handle = self.sockets.add(icmp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let bound = socket.bind(icmp::Endpoint::Ident(PING_ID));
        bound.map_err(|_| GuestError::Network("an echo socket"))?;
        let start = clock();
        let result = self.send_echo(handle, to).and_then(|()| {
            self.until("waiting for an echo reply", |guest| {
                let socket = guest.sockets.get_mut::<icmp::Socket<'_>>(handle);
                let came = socket.recv().is_ok_and(|(_, from)| IpAddr::from(from) == to);
                Ok(came.then(|| start.elapsed()))
            })
        });
        self.sockets.remove(handle);
        result
    }

    fn send_echo(&mut self, handle: SocketHandle, to: IpAddr) -> Result<(), GuestError> {
        const DATA: &[u8] = b"vionet built-in guest: anybody there?";
        let caps = smoltcp::phy::Device::capabilities(&self.link).checksum;
        let source = self.interface.ipv6_addr().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let refused = |_| GuestError::Network("an echo request");
        match to {
            IpAddr::V4(_) => {
                let request = Icmpv4Repr::EchoRequest { ident: PING_ID, seq_no: 1, data: DATA };
                let room = socket.send(request.buffer_len(), to.into()).map_err(refused)?;
                request.emit(&mut Icmpv4Packet::new_unchecked(room), &caps);
            }
            IpAddr::V6(to) => {
                let request = Icmpv6Repr::EchoRequest { ident: PING_ID, seq_no: 1, data: DATA };
                let room = socket.send(request.buffer_len(), IpAddress::Ipv6(to));
                let room = room.map_err(refused)?;
                request.emit(&source, &to, &mut Icmpv6Packet::new_unchecked(room), &caps);
            }
        }
        Ok(())
    }

    /// Resolves a name with the servers of the lease.
    ///
    /// # Errors
    /// When no server answers, or none knows the name.
    pub fn resolve(&mut self, name: &str) -> Result<Vec<IpAddr>, GuestError> {
        let handle = self.sockets.add(dns::Socket::new(&self.dns, vec![]));
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(handle);
        let query = socket.start_query(context, name, DnsQueryType::A);
        let query = query.map_err(|_| GuestError::Network("a name to resolve"))?;
        let result = self.until("waiting for the name to be resolved", |guest| {
            let socket = guest.sockets.get_mut::<dns::Socket<'_>>(handle);
            match socket.get_query_result(query) {
                Ok(addresses) => Ok(Some(addresses.iter().copied().map(IpAddr::from).collect())),
                Err(dns::GetQueryResultError::Pending) => Ok(None),
                Err(dns::GetQueryResultError::Failed) => {
                    Err(GuestError::Network("the name: no server knows it"))
                }
            }
        });
        self.sockets.remove(handle);
        result
    }

    /// Opens a TCP connection.
    fn connect(&mut self, to: SocketAddr) -> Result<SocketHandle, GuestError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; TCP_BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        let handle = self.sockets.add(socket);
        self.next_port = self.next_port.checked_add(1).unwrap_or(49_152);
        let port = self.next_port;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let begun = socket.connect(context, IpEndpoint::from(to), port);
        begun.map_err(|_| GuestError::Network("a connection: no address of that family"))?;
        let opened = self.until("connecting", |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            match socket.state() {
                tcp::State::Established => Ok(Some(())),
                tcp::State::Closed => Err(GuestError::Network("the connection: refused")),
                _ => Ok(None),
            }
        });
        match opened {
            Ok(()) => Ok(handle),
            Err(error) => {
                self.sockets.remove(handle);
                Err(error)
            }
        }
    }

    /// Downloads `path` by HTTP and hands the content to `take`; returns its length and the time
    /// since the connection stood (smoltcp looks for one neighbour per second).
    ///
    /// # Errors
    /// When the server refuses, or the connection ends early.
    pub fn download(
        &mut self,
        from: SocketAddr,
        path: &str,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<(u64, Duration), GuestError> {
        let handle = self.connect(from)?;
        let start = clock();
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", from.ip());
        self.send_all(handle, request.as_bytes())?;
        let mut head = Vec::new();
        let mut body = 0_u64;
        let mut in_body = false;
        let result = loop {
            let step = self.until("downloading", |guest| {
                let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
                if !socket.can_recv() {
                    return Ok((!socket.may_recv()).then_some(None));
                }
                let got = socket.recv(|bytes| (bytes.len(), bytes.to_vec()));
                got.map(|bytes| Some(Some(bytes)))
                    .map_err(|_| GuestError::Network("the download: reset"))
            });
            let bytes = match step {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Ok((body, start.elapsed())),
                Err(error) => break Err(error),
            };
            let content = if in_body {
                bytes
            } else {
                head.extend(bytes);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    continue;
                };
                if !head.starts_with(b"HTTP/1.0 200") {
                    break Err(GuestError::Network("the download: not found"));
                }
                in_body = true;
                head.split_off(end.saturating_add(4).min(head.len()))
            };
            body = body.saturating_add(u64::try_from(content.len()).unwrap_or(0));
            take(&content);
        };
        self.close(handle);
        result
    }

    fn send_all(&mut self, handle: SocketHandle, bytes: &[u8]) -> Result<(), GuestError> {
        let mut done = 0_usize;
        self.until("sending", |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let rest = bytes.get(done..).unwrap_or(&[]);
            let sent = socket.send_slice(rest);
            done = done.saturating_add(sent.map_err(|_| GuestError::Network("the connection"))?);
            Ok((done >= bytes.len()).then_some(()))
        })
    }

    fn close(&mut self, handle: SocketHandle) {
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        // The reset is on its way, or the back-end is gone, which the next step will tell.
        let (Ok(()) | Err(_)) = self.turn();
        self.sockets.remove(handle);
    }

    /// Sends or receives as fast as it goes for `time`, to or from [`crate::Peer`]'s stream port;
    /// returns bytes per second.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn measure(
        &mut self,
        to: SocketAddr,
        direction: Direction,
        time: Duration,
    ) -> Result<f64, GuestError> {
        let handle = self.connect(to)?;
        let word: &[u8] = match direction {
            Direction::Transmit => b"S",
            Direction::Receive => b"R",
        };
        self.send_all(handle, word)?;
        let start = clock();
        let mut bytes = 0_usize;
        let mut result = Ok(());
        while result.is_ok() && start.elapsed() < time {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            let moved = match direction {
                Direction::Transmit => socket.send(|room| (room.len(), room.len())).ok(),
                Direction::Receive => socket.recv(|got| (got.len(), got.len())).ok(),
            };
            bytes = bytes.saturating_add(moved.unwrap_or(0));
            result = if moved.is_some() {
                self.turn()
            } else {
                Err(GuestError::Network("the measurement: connection lost"))
            };
        }
        if direction == Direction::Transmit {
            // What is still queued here has not gone anywhere.
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
            bytes = bytes.saturating_sub(socket.send_queue());
        }
        let seconds = start.elapsed().as_secs_f64();
        self.close(handle);
        #[expect(clippy::as_conversions, reason = "a rate for people; the loss is past 2^52 bytes")]
        result.map(|()| bytes as f64 / seconds)
    }

    /// Accepts one connection on `port` and sends back what comes, until the far end is done;
    /// returns the bytes that went round.
    ///
    /// # Errors
    /// When nobody connects.
    pub fn echo_once(&mut self, port: u16) -> Result<u64, GuestError> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 1 << 16]);
        let handle = self.sockets.add(tcp::Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        let listening = socket.listen(port);
        listening.map_err(|_| GuestError::Network("a port to listen on"))?;
        let mut round = 0_u64;
        let mut begun = false;
        let result = self.until("echoing", |guest| {
            let socket = guest.sockets.get_mut::<tcp::Socket<'_>>(handle);
            begun |= socket.may_send();
            if socket.can_recv() && socket.can_send() {
                let room = socket.send_capacity().saturating_sub(socket.send_queue());
                let got = socket.recv(|bytes| {
                    let len = bytes.len().min(room);
                    (len, bytes.get(..len).unwrap_or(&[]).to_vec())
                });
                let bytes = got.unwrap_or_default();
                let (Ok(_) | Err(_)) = socket.send_slice(&bytes);
                round = round.saturating_add(u64::try_from(bytes.len()).unwrap_or(0));
            }
            if begun && !socket.may_recv() && socket.send_queue() == 0 {
                socket.close();
                return Ok((!socket.is_open()
                    || matches!(socket.state(), tcp::State::LastAck | tcp::State::TimeWait))
                .then_some(round));
            }
            Ok(None)
        });
        // Once more, so that our FIN goes out.
        let (Ok(()) | Err(_)) = self.turn();
        self.sockets.remove(handle);
        result
    }

    /// Stops the queues in order and lets the back-end go.
    ///
    /// # Errors
    /// When the back-end does not answer.
    pub fn stop(self) -> Result<(), GuestError> {
        self.link.nic.detach()
    }
}
