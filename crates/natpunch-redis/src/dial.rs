//! A connection to the server: TCP, and TLS in it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin_description::Endpoint;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

/// How long all of it may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long one address may take to answer.
const ADDRESS: Duration = Duration::from_secs(3);
/// Addresses that are tried.
const MOST_ADDRESSES: usize = 4;

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The authorities in PEM; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
}

/// A stream of bytes, encrypted or not.
pub trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

/// The stream to a server.
pub type Stream = Box<dyn Bytes>;

/// Connects to a server, whose addresses `found` looks up.
///
/// # Errors
/// What failed, for a person.
pub async fn dial(
    server: &Endpoint,
    tls: Option<&Tls>,
    found: impl Future<Output = io::Result<Vec<SocketAddr>>>,
) -> Result<Stream, String> {
    let connect = async {
        let tcp = tcp(found).await.map_err(|error| {
            format!("can't connect: {error}; is the server there, and `url` right?")
        })?;
        let Some(tls) = tls else {
            return Ok(Box::new(tcp) as Stream);
        };
        let connector = TlsConnector::from(Arc::new(natpunch_tls::client(tls.ca_file.as_deref())?));
        let name = ServerName::try_from(server.host.clone())
            .map_err(|error| format!("no name for TLS: {error}"))?;
        let encrypted = connector.connect(name, tcp).await.map_err(|error| {
            format!("TLS failed: {error}; an authority of one's own is named by `tls_ca_file`")
        })?;
        Ok(Box::new(encrypted) as Stream)
    };
    timeout(CONNECT, connect).await.unwrap_or_else(|_| {
        Err(format!(
            "no connection within {} s; is the server there, and is it reached by TLS or without \
             as `url` says?",
            CONNECT.as_secs()
        ))
    })
}

/// A connection to the first address of a host that answers.
async fn tcp(found: impl Future<Output = io::Result<Vec<SocketAddr>>>) -> io::Result<TcpStream> {
    let found = found.await?;
    let mut last = io::Error::other("the name has no address");
    for address in found.into_iter().take(MOST_ADDRESSES) {
        match timeout(ADDRESS, connect(address)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    // A record is to be there at once.
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
