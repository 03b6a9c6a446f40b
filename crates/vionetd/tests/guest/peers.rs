//! The other ends of the guest's traffic: HTTP, a TCP sink, TFTP over UDP, a name server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::place::Place;

/// The name that our name server knows.
pub const NAME: &str = "peer.vionet.test";

/// Bytes that no error leaves the same.
#[derive(Clone)]
pub struct Blob(Arc<[u8]>);

impl Blob {
    pub fn new(size: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut words = Vec::with_capacity(size + 8);
        while words.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            words.extend_from_slice(&state.to_le_bytes());
        }
        words.truncate(size);
        Self(words.into())
    }

    /// Its first `size` bytes.
    pub fn start(&self, size: usize) -> Self {
        Self(self.0[..size].into())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn sha256(&self) -> String {
        hex(&Sha256::digest(&self.0))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a sink has swallowed.
pub struct Swallowed {
    pub bytes: usize,
    pub sha256: String,
}

/// The servers of a test, on all addresses of their place.
pub struct Peers {
    pub http: u16,
    pub sink: u16,
    pub tftp: u16,
    pub swallowed: Receiver<Swallowed>,
}

impl Peers {
    /// Starts them; HTTP serves `/N` with the first N bytes of `blob`, TFTP the same as file `N`.
    pub fn start(place: &Place, blob: &Blob) -> Self {
        let (http, sink, tftp) = place.inside(|| (listener(), listener(), udp(0)));
        let (sender, swallowed) = channel();
        let port = |address: SocketAddr| address.port();
        let peers = Self {
            http: port(http.local_addr().unwrap()),
            sink: port(sink.local_addr().unwrap()),
            tftp: port(tftp.local_addr().unwrap()),
            swallowed,
        };
        let served = blob.clone();
        each(http, move |stream| serve_file(stream, &served));
        each(sink, move |stream| swallow(stream, &sender));
        let served = blob.clone();
        std::thread::spawn(move || tftp_server(&tftp, &served));
        peers
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).expect("listen")
}

fn udp(port: u16) -> UdpSocket {
    UdpSocket::bind(("::", port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port))).expect("bind")
}

fn each(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream));
        }
    });
}

fn serve_file(stream: TcpStream, blob: &Blob) {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request).ok();
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|len| len > 2) {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let size: usize = path.trim_start_matches('/').parse().unwrap_or(0);
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {size}\r\n\r\n");
    let mut stream = reader.into_inner();
    // the guest judges what arrived
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&blob.0[..size])).ok();
}

fn swallow(mut stream: TcpStream, sender: &Sender<Swallowed>) {
    let (mut sum, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 256 * 1024]);
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        sum.update(&buffer[..len]);
        bytes += len;
    }
    sender.send(Swallowed { bytes, sha256: hex(&sum.finalize()) }).ok();
}

// --- TFTP (RFC 1350) with the block size option (RFC 2348)

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const OPTIONS: u16 = 6;

fn packet(opcode: u16, rest: &[&[u8]]) -> Vec<u8> {
    [&opcode.to_be_bytes()[..], &rest.concat()].concat()
}

/// Serves one client after the other, all from one port, so that one flow carries a transfer.
/// What is written to us must be the start of the blob: a client that sends anything else, or
/// ends short, never gets its last acknowledgement.
fn tftp_server(socket: &UdpSocket, blob: &Blob) {
    let mut buffer = vec![0; 70_000];
    loop {
        socket.set_read_timeout(None).unwrap();
        let Ok((len, client)) = socket.recv_from(&mut buffer) else { continue };
        let request = &buffer[..len];
        let opcode = u16::from_be_bytes([request[0], request[1]]);
        let words: Vec<String> = request[2..]
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let size: usize = words[0].parse().unwrap_or(0);
        let option = words.iter().position(|word| word == "blksize");
        let block = option.map_or(512, |at| words[at + 1].parse().unwrap());
        let accept = option.map(|_| packet(OPTIONS, &[b"blksize\0", words_of(block).as_bytes()]));
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        match opcode {
            READ => tftp_send(socket, client, &blob.0[..size], block, accept),
            WRITE => tftp_take(socket, client, &blob.0[..size], block, accept),
            _ => {}
        }
    }
}

fn words_of(block: usize) -> String {
    format!("{block}\0")
}

/// Sends `packet` until an answer with this opcode and block number comes.
fn ask(socket: &UdpSocket, client: SocketAddr, packet: &[u8], want: (u16, u16)) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 70_000];
    for _ in 0..5 {
        socket.send_to(packet, client).ok()?;
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let head = |at: usize| u16::from_be_bytes([buffer[at], buffer[at + 1]]);
            if from == client && len >= 4 && (head(0), head(2)) == want {
                return Some(buffer[4..len].to_vec());
            }
        }
    }
    None
}

fn tftp_send(
    socket: &UdpSocket,
    client: SocketAddr,
    content: &[u8],
    block: usize,
    accept: Option<Vec<u8>>,
) {
    if accept.is_some_and(|accept| ask(socket, client, &accept, (ACK, 0)).is_none()) {
        return;
    }
    for number in 0..=content.len() / block {
        let from = number * block;
        let data = &content[from..content.len().min(from + block)];
        let number = ((number + 1) as u16).to_be_bytes();
        let sent = packet(DATA, &[&number, data]);
        if ask(socket, client, &sent, (ACK, u16::from_be_bytes(number))).is_none() {
            return;
        }
    }
}

fn tftp_take(
    socket: &UdpSocket,
    client: SocketAddr,
    content: &[u8],
    block: usize,
    accept: Option<Vec<u8>>,
) {
    let mut answer = accept.unwrap_or_else(|| packet(ACK, &[&[0, 0]]));
    for number in 0..=content.len() / block {
        let expected = (number + 1) as u16;
        let Some(data) = ask(socket, client, &answer, (DATA, expected)) else { return };
        let from = number * block;
        if content.get(from..content.len().min(from + block)) != Some(&data) {
            return;
        }
        answer = packet(ACK, &[&expected.to_be_bytes()]);
    }
    socket.send_to(&answer, client).ok();
}

// --- a name server that knows one name (RFC 1035)

/// Answers for [`NAME`] with these addresses on port 53 of every address of `place`.
pub fn name_server(place: &Place, v4: IpAddr, v6: IpAddr) {
    let socket = place.inside(|| udp(53));
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((len, client)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..len], v4, v6) {
                socket.send_to(&answer, client).ok();
            }
        }
    });
}

fn answer(query: &[u8], v4: IpAddr, v6: IpAddr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let question = query.get(HEADER..)?;
    let end = question.iter().position(|byte| *byte == 0)? + 5;
    let question = question.get(..end)?;
    let encoded: Vec<u8> = NAME
        .split('.')
        .flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat())
        .chain([0])
        .collect();
    let known = question[..end - 4].eq_ignore_ascii_case(&encoded);
    let address = match (known, question[end - 3]) {
        (true, 1) => Some(v4),
        (true, 28) => Some(v6),
        _ => None,
    };
    let address = match address {
        Some(IpAddr::V4(v4)) => v4.octets().to_vec(),
        Some(IpAddr::V6(v6)) => v6.octets().to_vec(),
        None => Vec::new(),
    };
    // a response, recursion desired and available; error 3 for a name not known
    let flags = [0x81, if known { 0x80 } else { 0x83 }];
    let count = u8::from(!address.is_empty());
    let mut answer = [&query[..2], &flags[..], &[0, 1, 0, count, 0, 0, 0, 0], question].concat();
    if count == 1 {
        // the name of the question again, its type, class IN, 60 s
        answer.extend_from_slice(&[0xc0, 12]);
        answer.extend_from_slice(&question[end - 4..]);
        answer.extend_from_slice(&[0, 0, 0, 60, 0, address.len() as u8]);
        answer.extend_from_slice(&address);
    }
    Some(answer)
}
