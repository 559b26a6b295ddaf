//! The stream to a server: TCP, past a proxy if there is one, TLS, and WebSocket in it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_rendezvous::stream;
use natpunch_types::Upstream;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use url::Url;

use crate::proxy;

/// How long one address may take to answer.
const ADDRESS: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const MAX_ADDRESSES: usize = 4;
/// How long TLS and WebSocket may take together.
const HANDSHAKES: Duration = Duration::from_secs(10);
/// Buffers for reading and writing, each.
const BUFFER: usize = 32 << 10;

/// The stream.
pub(crate) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Makes a stream to a server; its packets have this firewall mark (0: none).
///
/// # Errors
/// What failed, for a person.
pub(crate) async fn connect(upstream: &Upstream, fwmark: u32) -> Result<Socket, String> {
    let url: Url = upstream
        .url
        .parse()
        .map_err(|error| format!("{}: {error}", upstream.url))?;
    let host = url.host_str().ok_or("the URL names no host")?.to_owned();
    // An IPv6 address stands in brackets there.
    let bare = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let tcp = match &upstream.proxy {
        None => tcp(&bare, port, fwmark)
            .await
            .map_err(|error| format!("can't connect to {host}:{port}: {error}"))?,
        Some(proxy) => through(proxy, &format!("{host}:{port}"), fwmark).await?,
    };
    let _ = tcp.set_nodelay(true);
    let mut config = natpunch_tls::client(upstream.ca_file.as_deref())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(bare).map_err(|error| format!("{host}: {error}"))?;
    let handshakes = async {
        let encrypted = connector
            .connect(name, tcp)
            .await
            .map_err(|error| format!("TLS with {host}:{port} failed: {error}"))?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_write_buffer_size(16 * BUFFER)
            .max_message_size(Some(stream::LONGEST))
            .max_frame_size(Some(stream::LONGEST));
        let request = format!("wss://{host}:{port}{}", stream::PATH);
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, encrypted, Some(config))
                .await
                .map_err(|error| format!("{host}:{port} is not a natpunch server: {error}"))?;
        Ok(socket)
    };
    timeout(HANDSHAKES, handshakes)
        .await
        .unwrap_or_else(|_| Err(format!("{host}:{port} takes too long to answer")))
}

/// A way through a proxy.
async fn through(proxy: &str, authority: &str, fwmark: u32) -> Result<TcpStream, String> {
    // Not quoted where it is wrong: it may have a password.
    let proxy: Url = proxy
        .parse()
        .map_err(|error| format!("HTTPS_PROXY is no URL: {error}"))?;
    let (Some(host), "http") = (proxy.host_str(), proxy.scheme()) else {
        return Err("HTTPS_PROXY is not an http:// URL".to_owned());
    };
    let port = proxy.port_or_known_default().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let connect = async {
        let mut tcp = tcp(bare, port, fwmark).await?;
        timeout(HANDSHAKES, proxy::connect(&mut tcp, authority, &proxy)).await??;
        Ok::<_, io::Error>(tcp)
    };
    connect
        .await
        .map_err(|error| format!("no way through the proxy {host}:{port}: {error}"))
}

/// A connection to the first address of a host that answers.
async fn tcp(host: &str, port: u16, fwmark: u32) -> io::Result<TcpStream> {
    let found = timeout(HANDSHAKES, lookup_host((host, port))).await??;
    let mut last = io::Error::other("the name has no address");
    for address in found.take(MAX_ADDRESSES) {
        match timeout(ADDRESS, dial(address, fwmark)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn dial(address: SocketAddr, fwmark: u32) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if fwmark != 0 {
        socket2::SockRef::from(&socket).set_mark(fwmark)?;
    }
    socket.connect(address).await
}
