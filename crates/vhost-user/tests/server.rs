//! Sockets: who may connect, who is turned away, what is left behind.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "tests may stop"
)]

mod bench;

use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

use bench::guest::Guest;
use bench::{Back, Place};
use vionet_socket::ListenError;
use vionet_vhost_user::{End, ServeError, Server};

#[test]
fn one_front_end_after_the_other_is_served() {
    let place = Place::new("turns");
    let mut back = Back::new(Server::bind(place.path()).unwrap());
    for _ in 0..3 {
        let mut front = place.connect();
        let mut guest = Guest::new();
        guest.start(&mut front);
        guest.echo("hello");
        drop(front);
        back.wait_for_text("gone");
    }
    assert_eq!(back.stop().unwrap(), End::Stopped);
    assert!(!place.path().exists(), "nothing is left behind");
}

#[test]
fn a_second_front_end_is_turned_away_and_the_first_not_disturbed() {
    let place = Place::new("second");
    let back = Back::new(Server::bind(place.path()).unwrap());
    let mut front = place.connect();
    let mut guest = Guest::new();
    guest.start(&mut front);
    assert!(place.connect().receive().is_none());
    back.wait_for_text("turned away");
    guest.echo("first come, first served");
}

#[test]
fn a_front_end_that_breaks_the_protocol_makes_room_for_the_next() {
    let place = Place::new("broken");
    let back = Back::new(Server::bind(place.path()).unwrap());
    let bad = place.connect();
    bad.send_raw(&[0xff; 12], &[]);
    assert!(bad.receive().is_none());
    let text = back.wait_for_text("connection ended");
    assert!(text.contains("another version"), "{text}");
    let cut = place.connect();
    cut.send_raw(&[1, 0, 0, 0, 1], &[]);
    drop(cut);
    back.wait_for_text("in the middle of a message");
    let mut guest = Guest::new();
    let mut front = place.connect();
    guest.start(&mut front);
    guest.echo("next");
}

#[test]
fn only_this_user_may_connect() {
    let place = Place::new("mode");
    let server = Server::bind(place.path()).unwrap();
    let mode = std::fs::metadata(place.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(server);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_respected() {
    let place = Place::new("stale");
    drop(UnixListener::bind(place.path()).unwrap());
    assert!(place.path().exists());
    let first = Server::bind(place.path()).unwrap();
    assert!(matches!(Server::bind(place.path()), Err(ServeError::Listen(ListenError::Taken(_)))));
    drop(first);
    std::fs::write(place.path(), "a file").unwrap();
    assert!(matches!(
        Server::bind(place.path()),
        Err(ServeError::Listen(ListenError::NotASocket(_)))
    ));
    assert!(place.path().exists());
}

#[test]
fn only_what_was_made_here_is_removed() {
    let place = Place::new("ours");
    let server = Server::bind(place.path()).unwrap();
    std::fs::remove_file(place.path()).unwrap();
    let other = UnixListener::bind(place.path()).unwrap();
    drop(server);
    assert!(place.path().exists());
    drop(other);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = Server::bind("/nowhere/at/all.sock".as_ref()).err().unwrap();
    assert!(error.to_string().starts_with("/nowhere/at/all.sock: "), "{error}");
    let long = format!("/tmp/{}", "x".repeat(200));
    let error = Server::bind(long.as_ref()).err().unwrap();
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn a_socket_of_another_kind_is_somebodys() {
    let place = Place::new("datagram");
    let other = std::os::unix::net::UnixDatagram::bind(place.path()).unwrap();
    assert!(matches!(Server::bind(place.path()), Err(ServeError::Listen(ListenError::Taken(_)))));
    drop(other);
    assert!(Server::bind(place.path()).is_ok(), "nobody listens there any more");
}

#[test]
fn whoever_sees_the_path_can_connect() {
    let place = Place::new("seen");
    let path = place.path().to_owned();
    let starter = std::thread::spawn(move || {
        for _ in 0..200 {
            drop(Server::bind(&path).unwrap());
        }
    });
    while !starter.is_finished() {
        if let Err(error) = UnixStream::connect(place.path()) {
            // It may have gone again, with its server, but it is never there without one.
            assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused));
            let refused = error.kind() == ErrorKind::ConnectionRefused;
            assert!(!refused || is_gone(place.path()), "nobody listens at a path that stays");
        }
    }
    starter.join().unwrap();
}

/// Whether the socket at the path goes away soon, as that of a server that is ending does.
fn is_gone(path: &std::path::Path) -> bool {
    let inode = |path| std::fs::symlink_metadata(path).map(|found| found.ino()).ok();
    let first = inode(path);
    (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        inode(path) != first || first.is_none()
    })
}

#[test]
fn of_many_that_start_at_one_path_one_serves() {
    let place = Place::new("race");
    for _ in 0..50 {
        drop(UnixListener::bind(place.path()).unwrap());
        let starters: Vec<_> = (0..8)
            .map(|_| {
                let path = place.path().to_owned();
                std::thread::spawn(move || Server::bind(&path))
            })
            .collect();
        let results: Vec<_> = starters.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        let taken = |result: &&Result<_, _>| {
            matches!(result, Err(ServeError::Listen(ListenError::Taken(_))))
        };
        assert_eq!(results.iter().filter(taken).count(), 7);
        assert!(UnixStream::connect(place.path()).is_ok(), "the one that serves has the path");
        drop(results);
        assert!(!place.path().exists());
    }
    let folder = std::fs::read_dir(place.path().parent().unwrap()).unwrap();
    let mine = format!(".{:x}-", std::process::id());
    let left = folder.flatten().filter(|file| file.file_name().to_str().unwrap().contains(&mine));
    assert_eq!(left.count(), 0);
}

#[test]
fn who_only_knocks_is_no_front_end() {
    let place = Place::new("knock");
    let mut back = Back::new(Server::bind(place.path()).unwrap().one_off());
    for _ in 0..3 {
        drop(place.connect());
        back.wait_for_text("gone");
    }
    let front = place.connect();
    front.barrier();
    drop(front);
    assert_eq!(back.end().unwrap(), End::FrontEndGone);
}

#[test]
fn an_inherited_socket_is_told_apart() {
    let place = Place::new("inherited");
    let listener = UnixListener::bind(place.path()).unwrap();
    let mut back = Back::new(Server::from_fd(listener.into()).unwrap());
    for _ in 0..2 {
        place.connect().barrier();
        back.wait_for_text("gone");
    }
    assert_eq!(back.stop().unwrap(), End::Stopped);
    let (mut back, front) = Back::pair();
    front.barrier();
    drop(front);
    assert_eq!(back.end().unwrap(), End::FrontEndGone);
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        Server::from_fd(tcp.into()),
        Err(ServeError::Listen(ListenError::Descriptor(_)))
    ));
    let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
    assert!(Server::from_fd(datagram.into()).is_err());
}

#[test]
fn it_stops_while_a_message_is_half_said() {
    let (mut back, front) = Back::pair();
    front.send_raw(&[1, 0, 0], &[]);
    back.wait_for_text("connected");
    assert_eq!(back.stop().unwrap(), End::Stopped);
}

#[test]
fn it_stops_while_a_front_end_never_pauses() {
    let (mut back, front) = Back::pair();
    let flood = std::thread::spawn(move || while front.send(3, 0, &[], &[]) {});
    for _ in 0..1000 {
        back.wait_for_text("SET_OWNER");
    }
    assert_eq!(back.stop().unwrap(), End::Stopped);
    flood.join().unwrap();
}

#[test]
fn it_stops_while_rings_run() {
    let (mut back, mut front) = Back::pair();
    let mut guest = Guest::new();
    guest.start(&mut front);
    guest.echo("hello");
    assert_eq!(back.stop().unwrap(), End::Stopped);
    let before = guest.used(1);
    guest.transmit(&[0; 60], true);
    assert!(front.is_closed());
    assert_eq!(guest.used(1), before, "VU-REC-05: memory is not touched any more");
}

#[test]
fn a_front_end_that_reads_no_replies_is_let_go() {
    let (mut back, front) = Back::pair();
    let mut sent = 0;
    while sent < 100_000 && front.send(1, 0, &[], &[]) {
        sent += 1;
    }
    assert!(sent < 100_000, "the server did not swallow them all");
    assert!(back.end().unwrap_err().to_string().contains("does not read"));
}
