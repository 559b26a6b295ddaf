//! Where clients come in by TCP: bounded in all and of each network, and by the time that they may
//! take. A client that asks for anything but a stream gets a 404, as from any web server.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use natpunch_rendezvous::stream;
use natpunch_types::lock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::connection;
use super::tls::Tls;
use crate::server::http::{ConnectionPermit, Connections, forwarded_for};
use crate::server::worker::Shared;
use crate::server::{Backoff, stopped};

/// The handshake of TLS, and then the head of the request, may each take so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may be used that has not become a stream.
const LIFE: Duration = Duration::from_secs(30);
/// How long streams may take to end when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(1);
const MAX_HEAD: usize = 8 << 10;

/// Numbers the streams of this process.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// One address that is listened on.
pub(in crate::server) struct Listener {
    pub(in crate::server) listener: TcpListener,
    /// `None`: a reverse proxy in front of it has the certificate.
    pub(in crate::server) tls: Option<Arc<Tls>>,
    /// Reverse proxies whose word of the client's address is believed.
    pub(in crate::server) proxies: Vec<IpAddr>,
    pub(in crate::server) max_connections: usize,
}

/// What a connection has of its own.
struct Guest {
    shared: Arc<Shared>,
    ip: IpAddr,
    is_proxy: bool,
    /// Goes to the stream, if it becomes one.
    permit: Mutex<Option<ConnectionPermit>>,
    streams: Arc<Mutex<JoinSet<()>>>,
}

/// Serves a listener until it is to stop.
pub(in crate::server) async fn serve(
    listen: Listener,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    let connections_now = Arc::new(Mutex::new(Connections::default()));
    let streams = Arc::new(Mutex::new(JoinSet::new()));
    let mut connections = JoinSet::new();
    let mut backoff = Backoff::new();
    loop {
        let accepted = tokio::select! {
            accepted = listen.listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        // Those that have ended.
        while lock(&streams).try_join_next().is_some() {}
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                shared.counters.stream_accept_errors.add();
                tracing::debug!(%error, "can't accept a connection");
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        backoff.reset();
        let ip = natpunch_types::canonical_ip(peer.ip());
        let is_proxy = listen.proxies.contains(&ip);
        let permit = ConnectionPermit::take(&connections_now, ip, is_proxy, listen.max_connections);
        let Some(permit) = permit else {
            shared.counters.streams_refused.add();
            continue;
        };
        let guest = Arc::new(Guest {
            shared: shared.clone(),
            ip,
            is_proxy,
            permit: Mutex::new(Some(permit)),
            streams: streams.clone(),
        });
        let tls = listen.tls.clone();
        connections.spawn(async move {
            let _ = tcp.set_nodelay(true);
            let _ = tokio::time::timeout(LIFE, greet(tcp, tls, guest)).await;
        });
    }
    drop(listen);
    connections.shutdown().await;
    let mut streams = std::mem::take(&mut *lock(&streams));
    streams.abort_all();
    let _ = tokio::time::timeout(STOP_GRACE, async {
        while streams.join_next().await.is_some() {}
    })
    .await;
}

/// Takes requests, behind TLS if this server has the certificate.
async fn greet(tcp: TcpStream, tls: Option<Arc<Tls>>, guest: Arc<Guest>) {
    let Some(tls) = tls else {
        return take_requests(tcp, guest).await;
    };
    let handshake = tls.acceptor().accept(tcp);
    if let Ok(Ok(encrypted)) = tokio::time::timeout(DEADLINE, handshake).await {
        take_requests(encrypted, guest).await;
    }
}

async fn take_requests<S>(io: S, guest: Arc<Guest>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let answer = answer(request, &guest);
        async move { Ok::<_, Infallible>(answer) }
    });
    // Its end, whatever the reason, is the end of the connection, or the begin of the stream.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
}

/// The stream's beginning, or a 404.
fn answer(mut request: Request<Incoming>, guest: &Guest) -> Response<String> {
    let accept = accept_key(&request);
    let permit = accept.as_ref().and_then(|_| lock(&guest.permit).take());
    let (Some(accept), Some(permit)) = (accept, permit) else {
        let mut response = Response::new("not found\n".to_owned());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    };
    let host = match guest.is_proxy {
        true => forwarded_for(request.headers()).unwrap_or(guest.ip),
        false => guest.ip,
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let (shared, upgrade) = (guest.shared.clone(), hyper::upgrade::on(&mut request));
    lock(&guest.streams).spawn(async move {
        if let Ok(Ok(upgraded)) = tokio::time::timeout(DEADLINE, upgrade).await {
            connection::serve(TokioIo::new(upgraded), host, number, &shared).await;
        }
        drop(permit);
    });
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    response
}

/// What a request for a stream is answered by (RFC 6455, 4.2).
fn accept_key(request: &Request<Incoming>) -> Option<HeaderValue> {
    let names = |name, wanted: &str| {
        let values = request.headers().get_all(name).iter();
        let mut words = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        words.any(|word| word.trim().eq_ignore_ascii_case(wanted))
    };
    let is_asked = request.method() == Method::GET
        && request.uri().path() == stream::PATH
        && names(header::CONNECTION, "upgrade")
        && names(header::UPGRADE, "websocket")
        && names(header::SEC_WEBSOCKET_VERSION, "13");
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?;
    let accept = is_asked.then(|| derive_accept_key(key.as_bytes()))?;
    HeaderValue::from_str(&accept).ok()
}
