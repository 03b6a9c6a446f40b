//! A guest with smoltcp's own TCP/IP stack gets its address by DHCP and pings us in both families.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests may stop"
)]

use std::collections::VecDeque;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpAddress, IpCidr,
    Ipv4Address, Ipv6Address,
};
use vionet_user::config::UserConfig;
use vionet_user::services::{Handled, ReplyBuf, Services};

const IDENT: u16 = 0x77;

/// The guest's network card: what it sends goes to the services at once.
struct Card {
    services: Services,
    out: ReplyBuf,
    answers: Vec<Handled>,
    arrived: VecDeque<Vec<u8>>,
}

struct Receive(Vec<u8>);
struct Transmit<'a>(&'a mut Card);

impl phy::RxToken for Receive {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        let Self(card) = self;
        card.answers.push(card.services.answer(&frame, &mut card.out));
        while let Some(reply) = card.out.first() {
            card.arrived.push_back(reply.to_vec());
            card.out.pop();
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Transmit<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Receive, Transmit<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((Receive(frame), Transmit(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        Some(Transmit(self))
    }

    /// smoltcp verifies every checksum of what it receives.
    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Guest {
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    now_ms: i64,
}

impl Guest {
    fn boot() -> Self {
        let config = UserConfig { mtu: 1500, ..UserConfig::default() };
        let mut card = Card {
            services: Services::new(&config).unwrap(),
            out: ReplyBuf::new(),
            answers: Vec::new(),
            arrived: VecDeque::new(),
        };
        let mac = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let interface = Interface::new(Config::new(mac.into()), &mut card, Instant::ZERO);
        Self { card, interface, sockets: SocketSet::new(Vec::new()), now_ms: 0 }
    }

    /// Lets a tenth of a second pass.
    fn step(&mut self) {
        self.now_ms += 100;
        let now = Instant::from_millis(self.now_ms);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    fn add_address(&mut self, addr: IpCidr) {
        self.interface.update_ip_addrs(|addrs| addrs.push(addr).unwrap());
    }

    fn pinger(&mut self) -> SocketHandle {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(IDENT)).unwrap();
        self.sockets.add(socket)
    }

    /// Sends an echo request and waits up to five seconds for its payload to come back.
    fn ping(&mut self, to: IpAddress, data: &[u8]) -> bool {
        let handle = self.pinger();
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        match to {
            IpAddress::Ipv4(_) => {
                let repr = Icmpv4Repr::EchoRequest { ident: IDENT, seq_no: 1, data };
                let room = socket.send(repr.buffer_len(), to).unwrap();
                repr.emit(&mut Icmpv4Packet::new_unchecked(room), &Default::default());
            }
            IpAddress::Ipv6(dst) => {
                let src = self.interface.get_source_address_ipv6(&dst);
                let repr = Icmpv6Repr::EchoRequest { ident: IDENT, seq_no: 1, data };
                let room = socket.send(repr.buffer_len(), to).unwrap();
                let packet = &mut Icmpv6Packet::new_unchecked(room);
                repr.emit(&src, &dst, packet, &Default::default());
            }
        }
        for _ in 0..50 {
            self.step();
            let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
            if let Ok((reply, from)) = socket.recv() {
                return from == to && reply.ends_with(data);
            }
        }
        false
    }
}

#[test]
fn smoltcp_s_client_gets_a_lease_and_keeps_it() {
    let mut guest = Guest::boot();
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut leases = 0;
    let day_and_a_half_ms = 36 * 3_600_000;
    while guest.now_ms < day_and_a_half_ms {
        guest.step();
        match guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            Some(dhcpv4::Event::Configured(lease)) => {
                leases += 1;
                assert_eq!(lease.address.to_string(), "10.0.2.15/24");
                assert_eq!(lease.router, Some(Ipv4Address::new(10, 0, 2, 2)));
                assert_eq!(lease.dns_servers[..], [Ipv4Address::new(10, 0, 2, 3)]);
                assert_eq!(lease.server.address, Ipv4Address::new(10, 0, 2, 2));
                let addr = lease.address;
                guest.add_address(addr.into());
                // From here on only renewals are of interest.
                guest.now_ms += 3_600_000;
            }
            Some(dhcpv4::Event::Deconfigured) if leases > 0 => panic!("the lease was lost"),
            Some(dhcpv4::Event::Deconfigured) | None => guest.now_ms += 60_000 * leases,
        }
    }
    assert_eq!(leases, 1, "one lease, renewed in silence");
    let renewals = guest.card.answers.iter().filter(|&&handled| handled == Handled::Answered);
    assert!(renewals.count() > 3, "discover, request, and renewals");
}

#[test]
fn smoltcp_s_stack_finds_and_pings_the_gateway_and_the_dns_server() {
    let mut guest = Guest::boot();
    guest.add_address(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 24));
    let prefix = |last| Ipv6Address::new(0xfd76, 0x696f, 0x6e65, 0x7400, 0, 0, 0, last);
    guest.add_address(IpCidr::new(prefix(0x15).into(), 64));
    for last in [2, 3] {
        assert!(guest.ping(IpAddress::v4(10, 0, 2, last), &[0x5a; 1000]));
        assert!(guest.ping(prefix(last.into()).into(), &[0x5a; 1000]));
    }
    assert!(!guest.ping(IpAddress::v4(10, 0, 2, 77), b"nobody"));
    assert_eq!(guest.card.services.guest_v6(), Some(prefix(0x15)));
}
