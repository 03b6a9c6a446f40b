//! DNS for the guest: which server of the host to ask, and whose question an answer belongs to.
//!
//! ```text
//!   guest 10.0.2.15:p  --query id g--> 10.0.2.3 = we --query id r--> the host's resolver
//!                      <-answer id g--      Forwarder <-answer id r--
//! ```
//!
//! [`Resolver`] follows `/etc/resolv.conf`, so that the guest's names change with the host's
//! network, VPN included. [`Forwarder`] gives each query a random identifier of its own: answers
//! are taken only from the server asked, with that identifier and the same question. Both do no
//! network I/O; queries over TCP are ordinary flows to the same server.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::UserConfig;

/// DNS over UDP and TCP (RFC 1035 §4.2).
pub const DNS_PORT: u16 = 53;
/// The most queries under way.
pub const PENDING_MAX: usize = 512;
/// How long an answer may take; clients ask again after five seconds (resolv.conf(5)).
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

const RESOLV_CONF: &str = "/etc/resolv.conf";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// More than this of the file is not read.
const FILE_MAX: u64 = 65_536;
/// As many servers as libc uses (MAXNS).
const SERVERS_MAX: usize = 3;

/// The servers that the host itself asks.
#[derive(Debug)]
pub struct Resolver {
    /// Where they are listed; `None` if they are configured.
    file: Option<PathBuf>,
    servers: Vec<SocketAddr>,
    seen: Option<Stamp>,
    looked: Option<Instant>,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Resolver {
    /// The configured servers, or else those in `/etc/resolv.conf`.
    #[must_use]
    pub fn new(config: &UserConfig) -> Self {
        if config.dns_servers.is_empty() {
            return Self::following(Path::new(RESOLV_CONF));
        }
        let servers = config.dns_servers.clone();
        Self { file: None, servers, seen: None, looked: None }
    }

    /// The servers in a file of resolv.conf(5)'s format.
    #[must_use]
    pub fn following(file: &Path) -> Self {
        // Without any server, libc asks its own machine.
        let servers = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))];
        Self { file: Some(file.to_owned()), servers, seen: None, looked: None }
    }

    /// The servers, best first. Looks at the file at most once per second, reads it when changed;
    /// while it cannot be read, the servers stay as they were.
    pub fn servers(&mut self, now: Instant) -> &[SocketAddr] {
        let is_due = |looked| now.saturating_duration_since(looked) >= LOOK_EVERY;
        if let Some(file) = &self.file
            && self.looked.is_none_or(is_due)
        {
            self.looked = Some(now);
            let stamp = stamp(file);
            if stamp.is_some()
                && stamp != self.seen
                && let Some(text) = read(file)
            {
                self.seen = stamp;
                self.servers = parse_resolv_conf(&text, interface_index);
            }
        }
        &self.servers
    }
}

fn stamp(file: &Path) -> Option<Stamp> {
    let data = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
    Some(Stamp {
        device: data.dev(),
        inode: data.ino(),
        size: data.size(),
        modified: (data.mtime(), data.mtime_nsec()),
    })
}

fn read(file: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(file).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The kernel's number of a network interface.
fn interface_index(name: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let is_name = (1..16).contains(&name.len()) && !name.contains('/') && !name.starts_with('.');
    let path = Path::new("/sys/class/net").join(name).join("ifindex");
    if is_name { fs::read_to_string(path).ok()?.trim().parse().ok() } else { None }
}

/// The servers in a resolv.conf(5), at most three. A server on loopback comes first: it is the
/// host's own stub, which knows which network a name belongs to. `scope` turns the interface in
/// `fe80::1%eth0` into a number. Never empty: without a server it is the host itself.
pub fn parse_resolv_conf(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = Vec::with_capacity(SERVERS_MAX);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(server)) = (words.next(), words.next()) else { continue };
        match server_addr(server, &scope) {
            Some(server) if servers.len() < SERVERS_MAX && !servers.contains(&server) => {
                servers.push(server);
            }
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
    }
    servers.sort_by_key(|server| !server.ip().is_loopback());
    servers
}

fn server_addr(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    let Some((addr, interface)) = text.split_once('%') else {
        let addr: IpAddr = text.parse().ok()?;
        // libc asks the host itself then; we must say so.
        let is_host = addr == IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let addr = if is_host { Ipv4Addr::LOCALHOST.into() } else { addr };
        return Some(SocketAddr::new(addr, DNS_PORT));
    };
    let scoped = SocketAddrV6::new(addr.parse().ok()?, DNS_PORT, 0, scope(interface)?);
    Some(SocketAddr::V6(scoped))
}

/// Who asked: where the answer goes, and from which address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The guest's address and port.
    pub guest: SocketAddr,
    /// The address of ours that the guest asked.
    pub dns: IpAddr,
}

/// What to do with a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Send the message, whose identifier has been changed, to this server.
    Forward(SocketAddr),
    /// Send the first `len` bytes of the message back: they are now an answer without result.
    Fail {
        /// Length of the answer.
        len: usize,
    },
    /// Not a query; ignore it.
    Ignore,
}

/// The queries under way, at most [`PENDING_MAX`].
#[derive(Debug)]
pub struct Forwarder {
    pending: HashMap<u16, Query>,
    random: RandomState,
    count: u64,
    /// Which of the servers is asked.
    turn: usize,
    failed: u64,
}

#[derive(Debug)]
struct Query {
    asker: Asker,
    /// The guest's own identifier.
    id: u16,
    server: SocketAddr,
    question: u64,
    deadline: Instant,
}

impl Default for Forwarder {
    fn default() -> Self {
        Self::new()
    }
}

impl Forwarder {
    /// No query yet; all memory it will ever use.
    #[must_use]
    pub fn new() -> Self {
        Self {
            // With twice the room, a table that entries come to and go from never grows.
            pending: HashMap::with_capacity(PENDING_MAX.saturating_mul(2)),
            random: RandomState::new(),
            count: 0,
            turn: 0,
            failed: 0,
        }
    }

    /// Takes a query of the guest; changes `message` in place.
    pub fn ask(
        &mut self,
        asker: Asker,
        message: &mut [u8],
        servers: &[SocketAddr],
        now: Instant,
    ) -> Asked {
        let Some((header, rest)) = message.split_first_chunk_mut::<12>() else {
            return Asked::Ignore;
        };
        if is_answer(header) {
            return Asked::Ignore;
        }
        let Some(question_len) = question_len(header, rest) else {
            fail(header, Failure::Format);
            return Asked::Fail { len: 12 };
        };
        let question = self.hash(rest.get(..question_len).unwrap_or_default());
        let sent = self.server(servers).zip(self.free_id(now));
        let Some((server, id)) = sent else {
            self.failed = self.failed.saturating_add(1);
            fail(header, Failure::Server);
            return Asked::Fail { len: question_len.saturating_add(12) };
        };
        let deadline = now.checked_add(QUERY_TIMEOUT).unwrap_or(now);
        let query = Query { asker, id: replace_id(header, id), server, question, deadline };
        self.pending.insert(id, query);
        Asked::Forward(server)
    }

    /// Takes an answer that came from `from`; changes `message` in place and says for whom it is.
    /// `None`: nobody asked for this.
    pub fn answer(&mut self, from: SocketAddr, message: &mut [u8]) -> Option<Asker> {
        let (header, rest) = message.split_first_chunk_mut::<12>()?;
        let [i0, i1, ..] = *header;
        let id = u16::from_be_bytes([i0, i1]);
        let query = self.pending.get(&id)?;
        let is_from_server = from.ip() == query.server.ip() && from.port() == query.server.port();
        if !is_answer(header) || !is_from_server {
            return None;
        }
        let question = rest.get(..question_len(header, rest)?)?;
        if self.hash(question) != query.question {
            return None;
        }
        let query = self.pending.remove(&id)?;
        replace_id(header, query.id);
        Some(query.asker)
    }

    /// Forgets queries whose time is up; if there were any, the next server's turn has come.
    /// Due about once per second.
    pub fn expire(&mut self, now: Instant) {
        let before = self.pending.len();
        self.pending.retain(|_, query| query.deadline > now);
        if self.pending.len() < before {
            self.turn = self.turn.wrapping_add(1);
        }
    }

    /// Queries under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether no query is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Queries answered by ourselves so far because there was no server or no room.
    #[must_use]
    pub const fn failed(&self) -> u64 {
        self.failed
    }

    fn server(&self, servers: &[SocketAddr]) -> Option<SocketAddr> {
        servers.get(self.turn.checked_rem(servers.len())?).copied()
    }

    /// An identifier that no query has and nobody can guess; `None` when the table is full.
    fn free_id(&mut self, now: Instant) -> Option<u16> {
        if self.pending.len() >= PENDING_MAX {
            self.expire(now);
        }
        if self.pending.len() >= PENDING_MAX {
            return None;
        }
        // At most one identifier in 128 is taken: four tries in vain are rarer than lost datagrams.
        for _ in 0..4 {
            self.count = self.count.wrapping_add(1);
            let [a, b, ..] = self.random.hash_one(self.count).to_ne_bytes();
            let id = u16::from_ne_bytes([a, b]);
            if !self.pending.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// A keyed hash of a question; names are equal in upper and lower case (RFC 4343).
    fn hash(&self, question: &[u8]) -> u64 {
        let mut hasher = self.random.build_hasher();
        for byte in question {
            hasher.write_u8(byte.to_ascii_lowercase());
        }
        hasher.finish()
    }
}

/// A DNS header (RFC 1035 §4.1.1): identifier, flags, and four counts of two bytes each.
type Header = [u8; 12];

const fn is_answer(header: &Header) -> bool {
    let [_, _, flags, ..] = *header;
    flags & 0x80 != 0
}

fn replace_id(header: &mut Header, id: u16) -> u16 {
    let [i0, i1, ..] = header;
    let old = u16::from_be_bytes([*i0, *i1]);
    [*i0, *i1] = id.to_be_bytes();
    old
}

/// Length of the one question behind the header; `None` if it is not exactly one, well formed.
fn question_len(header: &Header, rest: &[u8]) -> Option<usize> {
    let [_, _, _, _, q0, q1, ..] = *header;
    if [q0, q1] != [0, 1] {
        return None;
    }
    let mut at = 0_usize;
    loop {
        let label = *rest.get(at)?;
        at = at.checked_add(1)?.checked_add(usize::from(label))?;
        match label {
            0 => break,
            1..=63 if at < 255 => {}
            _ => return None,
        }
    }
    // Type and class.
    let end = at.checked_add(4)?;
    (end <= rest.len()).then_some(end)
}

/// Why a query fails at our hands.
#[derive(Clone, Copy)]
enum Failure {
    Format,
    Server,
}

/// Makes the header that of an answer without result; with its question, if that could be read.
fn fail(header: &mut Header, failure: Failure) {
    let (code, questions) = match failure {
        Failure::Format => (1, 0),
        Failure::Server => (2, 1),
    };
    let [i0, i1, flags, ..] = *header;
    // Answer, same opcode, recursion desired as before; recursion available.
    let flags = 0x80 | (flags & 0x79);
    *header = [i0, i1, flags, 0x80 | code, 0, questions, 0, 0, 0, 0, 0, 0];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    /// A query for A of `a.b`, identifier 0x1234, recursion desired.
    const QUERY: [u8; 21] =
        *b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01";

    fn server() -> SocketAddr {
        "127.0.0.53:53".parse().unwrap()
    }

    fn asker(port: u16) -> Asker {
        Asker {
            guest: SocketAddr::from(([10, 0, 2, 15], port)),
            dns: Ipv4Addr::new(10, 0, 2, 3).into(),
        }
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn parsed(text: &str) -> Vec<String> {
        let scope = |name: &str| (name == "eth0").then_some(7);
        parse_resolv_conf(text, scope).iter().map(ToString::to_string).collect()
    }

    /// What the server makes of a query that was forwarded.
    fn answer_to(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= 0x80;
        answer
    }

    #[test]
    fn servers_are_read_from_resolv_conf() {
        let text = "# comment\nsearch x.org\nnameserver 192.168.1.1\n\
                    \x20nameserver  fe80::1%eth0 # x\nnameserver 2001:db8::1\n\
                    nameserver 8.8.8.8\noptions edns0\n";
        assert_eq!(parsed(text), ["192.168.1.1:53", "[fe80::1%7]:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn a_stub_on_loopback_comes_first() {
        let text = "nameserver 8.8.8.8\nnameserver 127.0.0.53\n";
        assert_eq!(parsed(text), ["127.0.0.53:53", "8.8.8.8:53"]);
    }

    #[test]
    fn without_a_usable_server_it_is_the_host_itself() {
        for text in
            ["", "nameserver", "nameserver x", "nameserver fe80::1%none", "nameserver 0.0.0.0"]
        {
            assert_eq!(parsed(text), ["127.0.0.1:53"], "{text}");
        }
    }

    #[test]
    fn the_file_is_read_again_when_it_changes_but_looked_at_once_per_second() {
        let path = std::env::temp_dir().join(format!("vionet-resolv-{}", std::process::id()));
        let put = |text: &str| {
            fs::remove_file(&path).ok();
            File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        };
        put("nameserver 10.9.9.9");
        let mut resolver = Resolver::following(&path);
        let start = now();
        let shown = |resolver: &mut Resolver, after_ms| {
            resolver.servers(start + Duration::from_millis(after_ms))[0].to_string()
        };
        assert_eq!(shown(&mut resolver, 0), "10.9.9.9:53");
        put("nameserver 10.9.9.10");
        assert_eq!(shown(&mut resolver, 999), "10.9.9.9:53");
        assert_eq!(shown(&mut resolver, 1000), "10.9.9.10:53");
        fs::remove_file(&path).unwrap();
        assert_eq!(shown(&mut resolver, 2000), "10.9.9.10:53");
        put("nameserver 10.9.9.11");
        assert_eq!(shown(&mut resolver, 3000), "10.9.9.11:53");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn configured_servers_stand_above_the_file() {
        let config = UserConfig { dns_servers: vec![server()], ..UserConfig::default() };
        assert_eq!(Resolver::new(&config).servers(now()), [server()]);
    }

    #[test]
    fn an_answer_finds_its_asker_with_the_guest_s_identifier() {
        let mut forwarder = Forwarder::new();
        let mut sent = Vec::new();
        for port in 1000..1100 {
            let mut query = QUERY;
            let asked = forwarder.ask(asker(port), &mut query, &[server()], now());
            assert_eq!(asked, Asked::Forward(server()));
            assert_eq!(query[2..], QUERY[2..]);
            sent.push((port, query));
        }
        for (port, query) in sent.iter().rev() {
            let mut answer = answer_to(query);
            assert_eq!(forwarder.answer(server(), &mut answer), Some(asker(*port)));
            assert_eq!(answer, answer_to(&QUERY));
            assert_eq!(forwarder.answer(server(), &mut answer_to(query)), None, "only once");
        }
        assert!(forwarder.is_empty());
    }

    #[test]
    fn an_answer_from_elsewhere_or_to_another_question_is_ignored() {
        let mut forwarder = Forwarder::new();
        let mut query = QUERY;
        forwarder.ask(asker(1), &mut query, &[server()], now());
        let other = "127.0.0.54:53".parse().unwrap();
        assert_eq!(forwarder.answer(other, &mut answer_to(&query)), None);
        let mut wrong = answer_to(&query);
        wrong[13] = b'x';
        assert_eq!(forwarder.answer(server(), &mut wrong), None);
        let mut wrong = answer_to(&query);
        wrong[0] ^= 1;
        assert_eq!(forwarder.answer(server(), &mut wrong), None);
        assert_eq!(forwarder.answer(server(), &mut query.clone()), None, "a query is no answer");
        let mut upper = answer_to(&query);
        upper[13] = b'A';
        assert_eq!(forwarder.answer(server(), &mut upper), Some(asker(1)));
    }

    #[test]
    fn identifiers_are_not_the_guest_s_and_do_not_repeat_in_order() {
        let mut forwarder = Forwarder::new();
        let ids: Vec<[u8; 2]> = (0..200)
            .map(|_| {
                let mut query = QUERY;
                forwarder.ask(asker(1), &mut query, &[server()], now());
                [query[0], query[1]]
            })
            .collect();
        let steps = ids.windows(2).filter(|pair| {
            let number = |id: [u8; 2]| u16::from_be_bytes(id);
            number(pair[1]).wrapping_sub(number(pair[0])) == 1
        });
        assert!(steps.count() < 5);
    }

    #[test]
    fn a_full_table_or_no_server_gives_servfail_until_time_makes_room() {
        let mut forwarder = Forwarder::new();
        let start = now();
        let ask = |forwarder: &mut Forwarder, servers: &[SocketAddr], at| {
            let mut query = QUERY;
            (forwarder.ask(asker(1), &mut query, servers, at), query)
        };
        let servfail =
            *b"\x12\x34\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x01b\x00\x00\x01\x00\x01";
        assert_eq!(ask(&mut forwarder, &[], start), (Asked::Fail { len: 21 }, servfail));
        for _ in 0..PENDING_MAX {
            assert_eq!(ask(&mut forwarder, &[server()], start).0, Asked::Forward(server()));
        }
        assert_eq!(ask(&mut forwarder, &[server()], start), (Asked::Fail { len: 21 }, servfail));
        assert_eq!((forwarder.len(), forwarder.failed()), (PENDING_MAX, 2));
        let later = start + QUERY_TIMEOUT;
        assert_eq!(ask(&mut forwarder, &[server()], later).0, Asked::Forward(server()));
        assert_eq!(forwarder.len(), 1);
    }

    #[test]
    fn a_server_that_stays_silent_loses_its_turn() {
        let mut forwarder = Forwarder::new();
        let servers = [server(), "8.8.8.8:53".parse().unwrap()];
        let start = now();
        let mut ask = |at| {
            forwarder.expire(at);
            forwarder.ask(asker(1), &mut QUERY.clone(), &servers, at)
        };
        assert_eq!(ask(start), Asked::Forward(servers[0]));
        assert_eq!(ask(start), Asked::Forward(servers[0]));
        assert_eq!(ask(start + QUERY_TIMEOUT), Asked::Forward(servers[1]));
        assert_eq!(ask(start + QUERY_TIMEOUT * 2), Asked::Forward(servers[0]));
    }

    #[test]
    fn what_is_no_proper_query_is_not_forwarded() {
        let mut forwarder = Forwarder::new();
        let mut ask = |message: &mut [u8]| forwarder.ask(asker(1), message, &[server()], now());
        assert_eq!(ask(&mut QUERY[..11].to_vec()), Asked::Ignore);
        assert_eq!(ask(&mut answer_to(&QUERY)), Asked::Ignore);
        let mut cut = QUERY[..20].to_vec();
        assert_eq!(ask(&mut cut), Asked::Fail { len: 12 });
        assert_eq!(cut[..12], *b"\x12\x34\x81\x81\0\0\0\0\0\0\0\0");
        for (at, byte) in [(5, 0), (5, 2), (12, 0xc0), (12, 64), (14, 200)] {
            let mut query = QUERY;
            query[at] = byte;
            assert_eq!(ask(&mut query), Asked::Fail { len: 12 }, "{at}");
        }
        // Names have at most 255 bytes (RFC 1035 §2.3.4).
        let named = |last: u8| {
            let mut query = QUERY[..12].to_vec();
            for len in [63, 63, 63, last] {
                query.push(len);
                query.extend(vec![b'x'; len.into()]);
            }
            query.extend([0, 0, 1, 0, 1]);
            query
        };
        assert_eq!(ask(&mut named(61)), Asked::Forward(server()));
        assert_eq!(ask(&mut named(62)), Asked::Fail { len: 12 });
    }

    proptest! {
        #[test]
        fn no_message_stops_the_forwarder(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            text in any::<String>(),
        ) {
            let mut forwarder = Forwarder::new();
            let sent = forwarder.ask(asker(1), &mut bytes, &[server()], now());
            if let Asked::Fail { len } = sent {
                prop_assert!(len <= bytes.len());
            }
            forwarder.answer(server(), &mut bytes);
            parse_resolv_conf(&text, |_| None);
        }
    }
}
