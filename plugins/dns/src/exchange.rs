//! Questions and updates on their way: UDP, and TCP for what is longer (RFC 7766).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use domain::base::iana::Rcode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::query::{Answer, Query};

/// How long an answer by UDP is waited for, each time that the question is sent.
const TRIES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];
/// How long a question or an update over TCP may take.
const TCP: Duration = Duration::from_secs(5);
/// Addresses of one server that are tried.
const MOST_ADDRESSES: usize = 4;
/// Bytes of a datagram that are read: more than any server is told that it may send.
const DATAGRAM: usize = 4096;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the name server {0} does not answer: {1}")]
    Unanswered(SocketAddr, io::Error),
    #[error("the name server {0} answers {1}")]
    Refused(SocketAddr, Rcode),
    #[error("no name server is known")]
    NoServer,
}

/// Asks one server after the other, from the first on; the answer, and which server gave it. That
/// nothing is there is an answer, too.
///
/// # Errors
/// What is wrong with the last of them.
pub(crate) async fn ask(
    servers: &[SocketAddr],
    query: &Query,
) -> Result<(Answer, SocketAddr), Error> {
    let mut problem = Error::NoServer;
    for server in servers {
        let answer = match by_udp(*server, query).await {
            // Truncated (RFC 2181, 9): what there is of it is not to be used.
            Ok(answer) if answer.header().tc() => by_tcp(*server, query).await,
            other => other,
        };
        match answer.map(|answer| (answer.header().rcode(), answer)) {
            Ok((Rcode::NOERROR | Rcode::NXDOMAIN, answer)) => return Ok((answer, *server)),
            Ok((rcode, _)) => problem = Error::Refused(*server, rcode),
            Err(error) => problem = Error::Unanswered(*server, error),
        }
    }
    Err(problem)
}

async fn by_udp(server: SocketAddr, query: &Query) -> io::Result<Answer> {
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // A port of its own for each question, which a liar would have to guess (RFC 5452, 9.2).
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; DATAGRAM];
    for patience in TRIES {
        socket.send(query.bytes()).await?;
        let answer = async {
            loop {
                let length = socket.recv(&mut buffer).await?;
                let bytes = buffer.get(..length).unwrap_or_default();
                // Anything else is an answer to somebody else, or a lie.
                if let Some(answer) = query.answer(bytes) {
                    return Ok(answer);
                }
            }
        };
        if let Ok(outcome) = timeout(patience, answer).await {
            return outcome;
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

async fn by_tcp(server: SocketAddr, query: &Query) -> io::Result<Answer> {
    let bytes = exchange(server, query.bytes()).await?;
    query
        .answer(&bytes)
        .ok_or_else(|| io::Error::other("it is the answer to another question"))
}

/// Sends a message to one address of a server after the other, until one answers.
///
/// # Errors
/// That of the last.
pub(crate) async fn first(addresses: &[SocketAddr], message: &[u8]) -> io::Result<Vec<u8>> {
    let mut outcome = Err(io::Error::other("it has no address"));
    for address in addresses.iter().take(MOST_ADDRESSES) {
        outcome = exchange(*address, message).await;
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Sends a message over a TCP connection of its own, and reads the one that comes back.
///
/// # Errors
/// The connection's; or it took too long.
async fn exchange(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        // In one segment: some servers read no more at once (RFC 7766, 8).
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(message);
        stream.write_all(&framed).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    timeout(TCP, exchange).await?
}
