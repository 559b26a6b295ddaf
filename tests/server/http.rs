use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::process::Server;

const TAG: &str = "000102030405060708090a0b0c0d0e0f";
const OTHER: &str = "ffffffffffffffffffffffffffffffff";

fn start() -> (Server, SocketAddr) {
    let server = Server::start(&["--http", "127.0.0.1:0"]);
    let address = server.http.unwrap();
    (server, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(40)))
        .unwrap();
    stream
}

fn connect_from(local: IpAddr, address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(local, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(40)))
        .unwrap();
    socket.into()
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn read(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("an HTTP answer");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head,
        body: bytes[end + 4..].to_vec(),
    }
}

fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    stream
}

fn http(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    read(send(address, method, path, headers, body))
}

fn put(address: SocketAddr, tag: &str, body: &[u8]) -> Answer {
    http(address, "PUT", &format!("/v1/{tag}"), "", body)
}

/// A long poll that the server has received, and the status that it will end with.
pub(crate) fn long_poll_in_flight(address: SocketAddr) -> JoinHandle<u16> {
    let body = format!(r#"{{"tags": {{"{TAG}": null}}, "wait": 25}}"#);
    let stream = send(address, "POST", "/v1/poll", "", body.as_bytes());
    // The server answers on this connection after it has accepted the first one.
    assert_eq!(http(address, "GET", "/health", "", b"").status, 200);
    std::thread::sleep(Duration::from_millis(100));
    std::thread::spawn(move || read(stream).status)
}

#[test]
fn a_record_is_stored_fetched_and_named_by_an_etag() {
    let (_server, address) = start();
    let path = format!("/v1/{TAG}");
    assert_eq!(http(address, "GET", &path, "", b"").status, 404);
    assert_eq!(put(address, TAG, b"sealed").status, 204);
    let found = http(address, "GET", &path, "", b"");
    assert_eq!((found.status, &found.body[..]), (200, &b"sealed"[..]));
    let etag = found.header("etag").unwrap();
    assert_eq!(
        http(
            address,
            "GET",
            &path,
            &format!("If-None-Match: {etag}\r\n"),
            b""
        )
        .status,
        304
    );
    assert_eq!(
        http(
            address,
            "GET",
            &path,
            &format!("If-None-Match: W/{etag}, \"x\"\r\n"),
            b""
        )
        .status,
        304
    );
    put(address, TAG, b"sealed again");
    assert_eq!(
        http(
            address,
            "GET",
            &path,
            &format!("If-None-Match: {etag}\r\n"),
            b""
        )
        .body,
        b"sealed again"
    );
    assert_eq!(http(address, "GET", "/health", "", b"").status, 200);
}

#[test]
fn what_is_not_a_record_is_refused() {
    let (_server, address) = start();
    assert_eq!(put(address, TAG, &[0; 2_048]).status, 204);
    assert_eq!(put(address, TAG, &[0; 2_049]).status, 413);
    assert_eq!(put(address, TAG, b"").status, 400);
    assert_eq!(put(address, "short", b"x").status, 404);
    assert_eq!(put(address, &TAG.replace('0', "g"), b"x").status, 404);
    assert_eq!(
        http(address, "DELETE", &format!("/v1/{TAG}"), "", b"").status,
        405
    );
    assert_eq!(http(address, "POST", "/v1/poll", "", b"{").status, 400);
    assert_eq!(
        http(address, "POST", "/v1/poll", "", br#"{"tags": {"x": null}}"#).status,
        400
    );
    let many: Vec<String> = (0..257).map(|n| format!("\"{n:032x}\": null")).collect();
    let many = format!("{{\"tags\": {{{}}}}}", many.join(","));
    assert_eq!(
        http(address, "POST", "/v1/poll", "", many.as_bytes()).status,
        400
    );
    assert_eq!(
        http(address, "GET", &format!("/{}", "x".repeat(20_000)), "", b"").status / 100,
        4
    );
}

#[test]
fn a_poll_tells_what_differs_and_nothing_else() {
    let (_server, address) = start();
    put(address, TAG, b"one");
    let poll = |etag: &serde_json::Value, other: &str| {
        let body = serde_json::json!({"tags": {TAG: etag, OTHER: other}}).to_string();
        http(address, "POST", "/v1/poll", "", body.as_bytes()).json()["records"].clone()
    };
    let first = poll(&serde_json::Value::Null, "gone since");
    assert_eq!(first[TAG]["blob"], "b25l");
    assert!(
        first[OTHER].is_null() && first.as_object().unwrap().contains_key(OTHER),
        "a lost record is told as null"
    );
    let second = poll(&first[TAG]["etag"], "gone since");
    assert!(!second.as_object().unwrap().contains_key(TAG));
}

#[test]
fn a_long_poll_answers_within_100_ms_of_the_change() {
    let (_server, address) = start();
    put(address, TAG, b"old");
    let etag = http(address, "GET", &format!("/v1/{TAG}"), "", b"")
        .header("etag")
        .unwrap()
        .to_owned();
    let bare = etag.trim_matches('"');
    let by_poll = send(
        address,
        "POST",
        "/v1/poll",
        "",
        format!(r#"{{"tags": {{"{TAG}": "{bare}", "{OTHER}": null}}, "wait": 25}}"#).as_bytes(),
    );
    let by_get = send(
        address,
        "GET",
        &format!("/v1/{TAG}?wait=25"),
        &format!("If-None-Match: {etag}\r\n"),
        b"",
    );
    std::thread::sleep(Duration::from_millis(300));
    put(
        address,
        &TAG.replace('0', "1"),
        b"another record wakes nobody",
    );
    put(address, TAG, b"old");
    for early in [&by_poll, &by_get] {
        early.set_nonblocking(true).unwrap();
        assert!(
            early.peek(&mut [0]).is_err(),
            "answered although nothing changed"
        );
        early.set_nonblocking(false).unwrap();
    }
    let start = Instant::now();
    put(address, TAG, b"new");
    assert_eq!(read(by_poll).json()["records"][TAG]["blob"], "bmV3");
    assert_eq!(read(by_get).body, b"new");
    assert!(
        start.elapsed() < Duration::from_millis(100),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn a_long_poll_without_a_change_ends_in_time() {
    let (_server, address) = start();
    let start = Instant::now();
    let answer = http(
        address,
        "POST",
        "/v1/poll",
        "",
        format!(r#"{{"tags": {{"{TAG}": null}}, "wait": 1}}"#).as_bytes(),
    );
    assert_eq!(answer.json()["records"], serde_json::json!({}));
    assert!((1.0..3.0).contains(&start.elapsed().as_secs_f64()));
}

/// How long the server keeps a connection that never gets its request done.
fn life_of(address: SocketAddr, head: &str) -> Duration {
    let start = Instant::now();
    let mut stream = connect(address);
    stream.write_all(head.as_bytes()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(250)))
        .unwrap();
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return start.elapsed(),
            Err(error) if !matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {
                return start.elapsed();
            }
            _ if start.elapsed() > Duration::from_secs(60) => return start.elapsed(),
            // A byte now and then is what keeps a naive server's timer from running out.
            _ => drop(stream.write_all(b"x")),
        }
    }
}

#[test]
fn slow_heads_and_bodies_are_cut_off() {
    let (_server, address) = start();
    std::thread::scope(|scope| {
        let head = scope.spawn(|| life_of(address, "GET /health HTTP/1.1\r\nx-slow: "));
        let body = format!("PUT /v1/{TAG} HTTP/1.1\r\nhost: x\r\ncontent-length: 2000\r\n\r\n");
        let body = scope.spawn(move || life_of(address, &body));
        let idle = scope.spawn(|| life_of(address, ""));
        for (what, thread) in [("head", head), ("body", body), ("idle", idle)] {
            let life = thread.join().unwrap();
            assert!(
                life < Duration::from_secs(20),
                "a slow {what} was kept for {life:?}"
            );
        }
    });
}

#[test]
fn one_source_can_not_take_all_connections() {
    let (_server, address) = start();
    let held: Vec<TcpStream> = (0..200)
        .map(|_| connect_from([127, 0, 0, 2].into(), address))
        .collect();
    let mut refused = 0;
    for stream in &held {
        stream
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let mut stream = stream;
        refused +=
            usize::from(matches!(stream.read(&mut [0]), Ok(0)) || stream.peek(&mut [0]).is_ok());
    }
    assert_eq!(refused, 200 - 64);
    assert_eq!(
        http(address, "GET", "/health", "", b"").status,
        200,
        "another source is served"
    );
}
