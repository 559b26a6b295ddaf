//! Through an HTTP proxy: CONNECT (RFC 9110, 9.3.6), with basic authentication if the proxy's URL
//! has a user.

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use url::Url;

/// The longest answer of a proxy.
const LONGEST: usize = 8 << 10;

/// The request for a way to `authority`.
pub(crate) fn request(authority: &str, proxy: &Url) -> String {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if !proxy.username().is_empty() {
        let user = decoded(proxy.username());
        let password = decoded(proxy.password().unwrap_or_default());
        let credentials = STANDARD.encode([&user[..], b":", &password].concat());
        request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
    }
    request.push_str("\r\n");
    request
}

/// Asks the proxy for a way, and waits until it is there.
pub(crate) async fn connect(tcp: &mut TcpStream, authority: &str, proxy: &Url) -> io::Result<()> {
    tcp.write_all(request(authority, proxy).as_bytes()).await?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is the server's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= LONGEST {
            return Err(io::Error::other("the proxy's answer is too long"));
        }
        head.push(tcp.read_u8().await?);
    }
    check(&String::from_utf8_lossy(&head))
}

/// Whether the proxy has made the way.
fn check(head: &str) -> io::Result<()> {
    let line = head.lines().next().unwrap_or_default();
    match line.split(' ').nth(1) {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        Some("407") => Err(io::Error::other(
            "the proxy asks for a user and a password (407): HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
        )),
        _ => Err(io::Error::other(format!("the proxy refused: {line}"))),
    }
}

/// A part of a URL without its percent-encoding.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let encoded = after.split_at_checked(2).filter(|_| *first == b'%');
        let encoded = encoded.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 16).ok()?, after))
        });
        let (byte, after) = encoded.unwrap_or((*first, after));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_asked_for_the_server_with_the_user_of_its_url() {
        let proxy = |url: &str| request("relay.example:443", &url.parse().unwrap());
        assert_eq!(
            proxy("http://proxy.example:3128"),
            "CONNECT relay.example:443 HTTP/1.1\r\nHost: relay.example:443\r\n\r\n"
        );
        let with_user = proxy("http://user:p%40ss@proxy.example:3128");
        let expected = format!("Basic {}\r\n", STANDARD.encode("user:p@ss"));
        assert!(with_user.contains(&expected), "{with_user}");
    }

    #[test]
    fn a_proxy_that_does_not_make_the_way_is_quoted() {
        assert!(check("HTTP/1.1 200 Connection established\r\n\r\n").is_ok());
        let asked = check("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").unwrap_err();
        assert!(asked.to_string().contains("HTTPS_PROXY"));
        let refused = check("HTTP/1.0 403 Filtered\r\n\r\n").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the proxy refused: HTTP/1.0 403 Filtered"
        );
        assert!(check("").is_err() && check("HTTP/1.1 2000 x").is_err());
    }
}
