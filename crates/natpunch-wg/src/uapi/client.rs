//! The client side: one short connection per request, bounded in time and size.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natpunch_os::private;
use zeroize::Zeroizing;

use super::codec;
use crate::backend::BackendKind;
use crate::device::{Device, DeviceChange, DeviceState};
use crate::error::WgError;

const TIMEOUT: Duration = Duration::from_secs(10);
/// More than a device with 100,000 peers says.
const MAX_ANSWER: u64 = 64 << 20;
/// Peers per request: keeps a request, and the time for which it holds up the device, small.
const PEERS_PER_REQUEST: usize = 1_000;
/// Allowed IPs per request, for the same reason.
const NETS_PER_REQUEST: usize = 10_000;

/// Where the UAPI socket of an interface is, by convention.
pub(crate) fn socket_path(name: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{name}.sock"))
}

/// One request, one answer.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends an operation and returns the lines of the answer, without the errno, which becomes the
    /// error.
    pub(crate) fn request(&self, operation: &str, body: &str) -> io::Result<Zeroizing<String>> {
        let stream = UnixStream::connect(&self.socket)?;
        let pid = private::check_listener(&stream)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        converse(stream, operation, body).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                io::Error::new(io::ErrorKind::TimedOut, Hung { pid })
            }
            _ => error,
        })
    }
}

/// The process at the other end of a socket takes requests and does not answer them.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} did not answer within {} s; `kill -9 {pid}` ends it", TIMEOUT.as_secs())]
struct Hung {
    pid: i32,
}

/// The process that did not answer, if that is what went wrong.
pub(crate) fn hung(error: &io::Error) -> Option<i32> {
    let inner = error.get_ref()?.downcast_ref::<Hung>()?;
    Some(inner.pid)
}

fn converse(mut stream: UnixStream, operation: &str, body: &str) -> io::Result<Zeroizing<String>> {
    let request = Zeroizing::new(format!("{operation}=1\n{body}\n"));
    stream.write_all(request.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::new());
    let mut chunk = Zeroizing::new([0; 16 << 10]);
    // An answer ends with an empty line; the connection stays open.
    while !answer.ends_with(b"\n\n") {
        let n = stream.read(chunk.as_mut())?;
        if n == 0 || (answer.len() + n) as u64 > MAX_ANSWER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(chunk.get(..n).unwrap_or_default());
    }
    let text =
        std::str::from_utf8(&answer).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    let text = text.trim_end();
    let (body, errno) = text
        .rsplit_once('\n')
        .map_or(("", text), |(body, errno)| (body, errno));
    match errno
        .strip_prefix("errno=")
        .and_then(|n| n.parse::<i32>().ok())
    {
        Some(0) => Ok(Zeroizing::new(body.to_owned())),
        Some(n) => Err(io::Error::from_raw_os_error(n.saturating_abs())),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no errno at the end of the answer",
        )),
    }
}

/// A device behind a UAPI socket: external, or the embedded one by its control socket.
#[derive(Debug)]
pub struct UapiDevice {
    client: Client,
    kind: BackendKind,
}

impl UapiDevice {
    /// The external device of this name, such as wireguard-go's.
    pub fn external(name: &str) -> Self {
        Self::at(socket_path(name), BackendKind::External)
    }

    pub(crate) fn at(socket: PathBuf, kind: BackendKind) -> Self {
        Self {
            client: Client::new(socket),
            kind,
        }
    }

    fn error(&self, what: &str, error: io::Error) -> WgError {
        let place = self.client.socket.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => WgError::Gone {
                name: self
                    .client
                    .socket
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                reason: format!("no process answers at {place}"),
            },
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => WgError::Protocol {
                place: place.to_string(),
                problem: error.to_string(),
            },
            _ => WgError::io(format!("{what} by {place}"), error),
        }
    }
}

impl Device for UapiDevice {
    fn kind(&self) -> BackendKind {
        self.kind
    }

    fn get(&mut self) -> Result<DeviceState, WgError> {
        let text = self
            .client
            .request("get", "")
            .map_err(|e| self.error("read the device", e))?;
        let answer = codec::parse_get(&text).map_err(|e| WgError::Protocol {
            place: self.client.socket.display().to_string(),
            problem: e.to_string(),
        })?;
        Ok(answer.state)
    }

    fn configure(&mut self, change: &DeviceChange) -> Result<(), WgError> {
        for part in parts(change) {
            let body = codec::format_set(&part);
            self.client.request("set", &body).map_err(|e| {
                match (e.raw_os_error(), part.listen_port) {
                    (Some(libc::EADDRINUSE), Some(port)) => WgError::PortInUse(port),
                    _ => self.error("configure the device", e),
                }
            })?;
        }
        Ok(())
    }
}

/// Splits a change into requests. Changes of one peer that follow each other stay together.
fn parts(change: &DeviceChange) -> Vec<DeviceChange> {
    let mut parts = vec![DeviceChange {
        peers: Vec::new(),
        ..change.clone()
    }];
    let mut nets = 0;
    for peer in &change.peers {
        let same = |part: &DeviceChange| part.peers.last().is_some_and(|last| last.key == peer.key);
        let full = |part: &DeviceChange| {
            part.peers.len() >= PEERS_PER_REQUEST
                || (nets > 0 && nets + peer.allowed_ips.len() > NETS_PER_REQUEST)
        };
        match parts.last_mut() {
            Some(part) if !full(part) || same(part) => part.peers.push(peer.clone()),
            _ => {
                nets = 0;
                parts.push(DeviceChange {
                    peers: vec![peer.clone()],
                    ..DeviceChange::default()
                });
            }
        }
        nets += peer.allowed_ips.len();
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use natpunch_types::PeerKey;

    use super::*;
    use crate::device::{PeerAction, PeerChange};

    #[test]
    fn a_large_change_is_split_and_nothing_is_lost() {
        let key = |i: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&i.to_be_bytes());
            PeerKey::from_bytes(bytes)
        };
        let peers: Vec<_> = (0..2_500)
            .map(|i| PeerChange::new(key(i), PeerAction::Upsert))
            .collect();
        let change = DeviceChange {
            listen_port: Some(1),
            peers,
            ..DeviceChange::default()
        };
        let parts = parts(&change);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.iter().filter(|p| p.listen_port.is_some()).count(), 1);
        let joined: Vec<_> = parts.into_iter().flat_map(|p| p.peers).collect();
        assert_eq!(joined, change.peers);
    }

    #[test]
    fn removal_and_addition_of_one_peer_stay_in_one_request() {
        let mut bytes = [1; 32];
        let mut peers: Vec<_> = (0..PEERS_PER_REQUEST - 1)
            .map(|i| {
                bytes[..8].copy_from_slice(&i.to_be_bytes());
                PeerChange::remove(PeerKey::from_bytes(bytes))
            })
            .collect();
        let key = PeerKey::from_bytes([9; 32]);
        peers.extend([
            PeerChange::remove(key),
            PeerChange::new(key, PeerAction::Upsert),
        ]);
        let parts = parts(&DeviceChange {
            peers,
            ..DeviceChange::default()
        });
        assert_eq!(parts.len(), 1);
    }
}
