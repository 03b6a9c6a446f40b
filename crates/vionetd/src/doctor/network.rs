//! What the built-in network needs of the host's own: pings, IPv6, somebody to ask for names.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::Finding;

/// How long a name server may take.
const ANSWER: Duration = Duration::from_secs(1);

/// Ping sockets: the guest's echo requests beyond the gateway.
pub(super) fn ping() -> Finding {
    const NAME: &str = "ping";
    let family = AddressFamily::INET;
    let flags = SocketFlags::CLOEXEC;
    if socket_with(family, SocketType::DGRAM, flags, Some(ipproto::ICMP)).is_ok() {
        return Finding::ok(NAME, "guests can ping beyond the gateway");
    }
    let range = fs::read_to_string("/proc/sys/net/ipv4/ping_group_range").unwrap_or_default();
    let range: Vec<&str> = range.split_whitespace().collect();
    let group = rustix::process::getegid().as_raw();
    let seen = format!(
        "your group {group} is not in net.ipv4.ping_group_range = {}; only the gateway answers",
        range.join(" ")
    );
    Finding::limited(NAME, seen, "sudo sysctl net.ipv4.ping_group_range='0 2147483647'")
}

/// IPv6 on the host: sockets, and a route to the world.
pub(super) fn ipv6() -> Finding {
    const NAME: &str = "ipv6";
    let Ok(socket) = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) else {
        let seen = "the host has no IPv6; guests get it as far as the gateway";
        return Finding::missing(NAME, seen, "sudo sysctl net.ipv6.conf.all.disable_ipv6=0");
    };
    // connecting a datagram socket looks for a route and sends nothing
    let world = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    match socket.connect((world, 9)) {
        Ok(()) => Finding::ok(NAME, "the host has a route to the world"),
        Err(_) => Finding::limited(
            NAME,
            "the host has IPv6 but no default route",
            "ask your network for IPv6; guests use IPv4 meanwhile",
        ),
    }
}

/// The host's resolver: where the guest's queries for names go.
pub(super) fn resolver() -> Finding {
    const NAME: &str = "resolver";
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = servers(&text);
    let Some(first) = servers.first() else {
        let seen = "/etc/resolv.conf names no server";
        return Finding::missing(
            NAME,
            seen,
            "echo 'nameserver 9.9.9.9' | sudo tee /etc/resolv.conf",
        );
    };
    let list: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let list = list.join(", ");
    if servers.iter().any(|server| answers(*server)) {
        return Finding::ok(NAME, format!("{list}, and it answers"));
    }
    let seen = format!("no answer from {list} in {} s", ANSWER.as_secs());
    Finding::limited(NAME, seen, format!("check the way to {first}, or mend /etc/resolv.conf"))
}

/// The servers of a `resolv.conf`; a scope behind `%` is left out.
fn servers(text: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let server = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        server.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(address).collect()
}

/// Whether a server says anything to the question for the root's name servers.
fn answers(server: IpAddr) -> bool {
    const QUERY: &[u8] = b"\x76\x69\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";
    let any: IpAddr = match server {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.connect(SocketAddr::from((server, 53)))?;
        socket.send(QUERY)?;
        let mut answer = [0; 512];
        let len = socket.recv(&mut answer)?;
        Ok(len >= 12 && answer.starts_with(b"\x76\x69"))
    };
    ask().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_name_a_server_count() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\n\
                    nameserver\tfe80::1%eth0 # home\nnameserver nowhere\nnameserver\n";
        let expected: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap(), "fe80::1".parse().unwrap()];
        assert_eq!(servers(text), expected);
    }
}
