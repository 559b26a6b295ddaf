//! The HTTP face of the record store.
//!
//! | request | answer |
//! |---|---|
//! | `GET /health` | 200 |
//! | `PUT /v1/TAG`, body the record | 204; 400, 413, 429 or 507 if a bound is passed |
//! | `GET /v1/TAG[?wait=SECONDS]` | 200 with the record and its `ETag`; 404; 304 if `If-None-Match` names it still |
//! | `POST /v1/poll`, `{"tags": {TAG: etag or null, …}, "wait": SECONDS}` | 200, `{"records": {TAG: {"etag", "blob"} or null, …}}` with those that differ |
//!
//! With `wait` (at most 25 s) an answer that would be "nothing new" is held back until there is
//! something new. Everything is bounded: connections in all and of each source, the time for a
//! request's head and body, the life of a connection, request rate, header and body sizes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use natpunch_net::Stopwatch;
use natpunch_types::{Rate, Time, lock};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::server::counters::Counters;
use crate::server::rate::RateLimiter;
use crate::server::settings::HttpSettings;
use crate::server::status::Records;
use crate::server::store::{Limits, Refused, Site, Source, Store, Tag, Version, Waiters};
use crate::server::{Backoff, stopped};

/// The longest wait of a long poll: below the 30 s after which middleboxes start to forget idle
/// connections.
const MAX_WAIT: Duration = Duration::from_secs(25);
/// Tags in one poll.
const MAX_TAGS: usize = 256;
/// The body of a poll: 256 tags with room to spare.
const MAX_POLL_BODY: usize = 32 << 10;
/// A request's head has to arrive within this time; also how long a connection may idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// A request's body has to arrive within this time.
const BODY_DEADLINE: Duration = Duration::from_secs(5);
/// After this time a connection is asked to close, and cut a long poll later.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
const CLOSE_GRACE: Duration = Duration::from_secs(30);
/// How long requests in flight may take to end when the server stops.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// hyper's smallest buffer; heads longer than this are refused.
const MAX_HEAD: usize = 8 << 10;
/// Connections of one source at a time.
const CONNECTIONS_PER_SOURCE: usize = 64;
/// Requests of one source per second, in the long run and at once.
const REQUESTS: Rate = Rate::per_second(100, 2_000);
/// Sources whose request rate is followed at a time.
const MAX_SOURCES: usize = 16_384;

/// What all connections share.
#[derive(Debug)]
pub(in crate::server) struct App {
    state: Mutex<Shared>,
    /// Distinguishes the versions of this run from those of an earlier one.
    boot: u32,
    start: Stopwatch,
    proxies: Vec<IpAddr>,
    max_connections: usize,
    stop: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    waiters: Waiters,
    requests: RateLimiter,
}

impl App {
    /// An empty store, to be served until `stop` becomes true, by no more connections than there
    /// may be files for.
    pub(in crate::server) fn new(
        settings: &HttpSettings,
        files: usize,
        stop: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let max_connections = settings.max_connections.min(files);
        tracing::info!("the record store takes at most {max_connections} connections");
        let mut boot = [0; 4];
        // Without randomness an old version may be taken for a new one after a restart: a change is
        // seen late, no more.
        let _ = getrandom::fill(&mut boot);
        Arc::new(Self {
            state: Mutex::new(Shared {
                store: Store::new(Limits::default()),
                waiters: Waiters::default(),
                requests: RateLimiter::new(REQUESTS, MAX_SOURCES),
            }),
            boot: u32::from_be_bytes(boot),
            start: Stopwatch::start(),
            proxies: settings.trusted_proxies.clone(),
            max_connections,
            stop,
        })
    }

    /// How full the store is.
    pub(in crate::server) fn usage(&self) -> Records {
        self.lock().store.usage()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.state)
    }

    fn now(&self) -> Time {
        self.start.now()
    }

    /// The entity tag of a version, without quotes.
    fn etag(&self, version: Version) -> String {
        format!("{:08x}-{:x}", self.boot, version.0)
    }

    /// Runs `look` until it finds something, `wait` is over or the server stops, again at each
    /// change of one of `tags`. Returns what the last look found.
    async fn look_until<T>(
        &self,
        tags: &[Tag],
        wait: Duration,
        look: impl Fn(&Store, Time) -> Option<T>,
    ) -> Option<T> {
        let found = look(&self.lock().store, self.now());
        if found.is_some() {
            return found;
        }
        if wait.is_zero() {
            return None;
        }
        // Joined before the second look, so that no change falls in between.
        let (_waiter, notify) = Waiter::join(self, tags);
        let deadline = tokio::time::sleep(wait.min(MAX_WAIT));
        tokio::pin!(deadline);
        let mut stop = self.stop.clone();
        loop {
            // Bound first: the waiter's end takes the same lock.
            let found = look(&self.lock().store, self.now());
            if found.is_some() {
                return found;
            }
            tokio::select! {
                () = notify.notified() => {}
                () = &mut deadline => return None,
                () = stopped(&mut stop) => return None,
            }
        }
    }
}

/// Takes its place among the waiters back when the request ends, also by a closed connection.
struct Waiter<'a> {
    app: &'a App,
    id: u64,
    tags: &'a [Tag],
}

impl<'a> Waiter<'a> {
    fn join(app: &'a App, tags: &'a [Tag]) -> (Self, Arc<tokio::sync::Notify>) {
        let (id, notify) = app.lock().waiters.join(tags.iter().copied());
        (Self { app, id, tags }, notify)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.app
            .lock()
            .waiters
            .leave(self.id, self.tags.iter().copied());
    }
}

/// Serves the record store on `listener` until it is to stop.
pub(in crate::server) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    counters: Arc<Counters>,
) {
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/v1/poll", post(poll))
        .route("/v1/{tag}", get(fetch).put(store))
        .with_state(app.clone());
    let expirer = tokio::spawn(expire(app.clone()));
    accept(listener, &app, &router, &counters).await;
    expirer.abort();
}

/// Drops expired records also when there are no new ones.
async fn expire(app: Arc<App>) {
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    loop {
        tick.tick().await;
        app.lock().store.expire(app.now());
    }
}

async fn accept(listener: TcpListener, app: &Arc<App>, router: &Router, counters: &Arc<Counters>) {
    let (max_connections, mut stop) = (app.max_connections, app.stop.clone());
    let connections_now = Arc::new(Mutex::new(Connections::default()));
    let mut backoff = Backoff::new();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                counters.http_accept_errors.add();
                tracing::debug!(%error, "can't accept a connection");
                tokio::time::sleep(backoff.next()).await;
                continue;
            }
        };
        backoff.reset();
        let ip = natpunch_types::canonical_ip(peer.ip());
        let is_proxy = app.proxies.contains(&ip);
        let Some(permit) = ConnectionPermit::take(&connections_now, ip, is_proxy, max_connections)
        else {
            counters.http_refused.add();
            continue;
        };
        let router = router.clone().layer(Extension(Peer(ip)));
        let stop = stop.clone();
        connections.spawn(async move {
            connection(stream, router, stop).await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(STOP_GRACE, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

/// How many connections there are, in all and of each source.
#[derive(Default)]
pub(in crate::server) struct Connections {
    all: usize,
    by_source: HashMap<Source, usize>,
    by_site: HashMap<Site, usize>,
}

/// One of the connections that there may be.
pub(in crate::server) struct ConnectionPermit {
    source: Source,
    connections_now: Arc<Mutex<Connections>>,
}

impl ConnectionPermit {
    /// A permit for a connection from there. A source has so many at most, and a site no more than
    /// are left for all others; a proxy, which speaks for many, has all that are left.
    pub(in crate::server) fn take(
        connections_now: &Arc<Mutex<Connections>>,
        ip: IpAddr,
        is_proxy: bool,
        most: usize,
    ) -> Option<Self> {
        let source = Source::of(ip);
        let mut counts = lock(connections_now);
        let left = most.saturating_sub(counts.all);
        let of_source = counts.by_source.get(&source).copied().unwrap_or_default();
        let of_site = counts
            .by_site
            .get(&source.site())
            .copied()
            .unwrap_or_default();
        let has_room = if is_proxy {
            left > 0
        } else {
            of_source < CONNECTIONS_PER_SOURCE && of_site < left
        };
        has_room.then_some(())?;
        counts.all += 1;
        counts.by_source.insert(source, of_source + 1);
        counts.by_site.insert(source.site(), of_site + 1);
        drop(counts);
        Some(Self {
            source,
            connections_now: connections_now.clone(),
        })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = lock(&self.connections_now);
        counts.all -= 1;
        discount(&mut counts.by_source, self.source);
        discount(&mut counts.by_site, self.source.site());
    }
}

fn discount<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, who: K) {
    if let Some(count) = counts.get_mut(&who) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&who);
        }
    }
}

/// Serves one connection, within the deadlines.
pub(in crate::server) async fn connection(
    stream: TcpStream,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(CONNECTION_LIFE) => {}
        () = stopped(&mut stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_GRACE, connection).await;
}

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

/// The source of a request: the other end of the connection, or the client that a trusted proxy
/// names.
fn source(app: &App, Peer(ip): Peer, headers: &HeaderMap) -> Source {
    Source::of(if app.proxies.contains(&ip) {
        forwarded_for(headers).unwrap_or(ip)
    } else {
        ip
    })
}

/// The client that a proxy names: the last of `X-Forwarded-For`, which the proxy itself has added.
pub(in crate::server) fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let named = headers.get_all("x-forwarded-for").iter().next_back()?;
    let last = named.to_str().ok()?.rsplit(',').next()?.trim();
    last.parse::<IpAddr>()
        .ok()
        .or_else(|| Some(last.parse::<SocketAddr>().ok()?.ip()))
}

/// A request that was refused.
struct Failure(StatusCode, &'static str);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, format!("{}\n", self.1)).into_response()
    }
}

const NO_TAG: Failure = Failure(StatusCode::NOT_FOUND, "a tag is 32 hexadecimal digits");

/// Counts a request of its sender.
fn admit(app: &App, peer: Peer, headers: &HeaderMap) -> Result<Source, Failure> {
    let source = source(app, peer, headers);
    if app.lock().requests.allow(source, app.now()) {
        return Ok(source);
    }
    Err(Failure(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests from this address",
    ))
}

async fn body(body: Body, limit: usize) -> Result<Bytes, Failure> {
    match tokio::time::timeout(BODY_DEADLINE, axum::body::to_bytes(body, limit)).await {
        Err(_) => Err(Failure(
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long",
        )),
        Ok(Err(_)) => Err(Failure(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is too long or broken",
        )),
        Ok(Ok(bytes)) => Ok(bytes),
    }
}

async fn store(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Path(tag): Path<String>,
    request: Request,
) -> Result<Response, Failure> {
    let tag = Tag::parse(&tag).ok_or(NO_TAG)?;
    let source = admit(&app, peer, request.headers())?;
    let blob = body(request.into_body(), Limits::default().record_bytes).await?;
    let put = {
        let mut shared = app.lock();
        let put = shared.store.put(tag, &blob, source, app.now());
        if put.is_ok_and(|put| put.changed) {
            shared.waiters.wake(tag);
        }
        put
    };
    match put {
        Ok(put) => Ok((
            StatusCode::NO_CONTENT,
            [(header::ETAG, format!("\"{}\"", app.etag(put.version)))],
        )
            .into_response()),
        Err(Refused::Empty) => Err(Failure(StatusCode::BAD_REQUEST, "the record is empty")),
        Err(Refused::TooLong(_)) => Err(Failure(
            StatusCode::PAYLOAD_TOO_LARGE,
            "the record is too long",
        )),
        Err(Refused::SourceFull) => Err(Failure(
            StatusCode::TOO_MANY_REQUESTS,
            "this address holds as many records as one may",
        )),
        Err(Refused::Full) => Err(Failure(
            StatusCode::INSUFFICIENT_STORAGE,
            "the store is full",
        )),
    }
}

async fn fetch(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    Path(tag): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let tag = Tag::parse(&tag).ok_or(NO_TAG)?;
    admit(&app, peer, &headers)?;
    let known: Vec<String> = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(|etag| {
            etag.trim()
                .trim_start_matches("W/")
                .trim_matches('"')
                .to_owned()
        })
        .collect();
    let found = app
        .look_until(&[tag], wait_of(&uri), |store, now| {
            store
                .get(tag, now)
                .filter(|(version, _)| !known.contains(&app.etag(*version)))
        })
        .await;
    const CACHE: (HeaderName, &str) = (header::CACHE_CONTROL, "no-cache");
    if let Some((version, blob)) = found {
        let etag = (header::ETAG, format!("\"{}\"", app.etag(version)));
        let kind = (header::CONTENT_TYPE, "application/octet-stream");
        return Ok(([etag], [CACHE, kind], Bytes::from_owner(blob)).into_response());
    }
    let unchanged = app.lock().store.get(tag, app.now());
    match unchanged {
        Some((version, _)) => {
            let etag = (header::ETAG, format!("\"{}\"", app.etag(version)));
            Ok((StatusCode::NOT_MODIFIED, [etag], [CACHE]).into_response())
        }
        None => Err(Failure(StatusCode::NOT_FOUND, "no such record")),
    }
}

fn wait_of(uri: &Uri) -> Duration {
    let seconds = uri
        .query()
        .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("wait=")))
        .and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// The body of a poll.
#[derive(Debug, Deserialize)]
struct PollRequest {
    tags: BTreeMap<String, Option<String>>,
    #[serde(default)]
    wait: u64,
}

/// The answer to a poll: what differs from what the request knew.
#[derive(Debug, Serialize)]
struct PollResponse {
    records: BTreeMap<String, Option<PollRecord>>,
}

#[derive(Debug, Serialize)]
struct PollRecord {
    etag: String,
    blob: String,
}

async fn poll(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Json<PollResponse>, Failure> {
    admit(&app, peer, request.headers())?;
    let bytes = body(request.into_body(), MAX_POLL_BODY).await?;
    let request: PollRequest = serde_json::from_slice(&bytes).map_err(|_| {
        Failure(
            StatusCode::BAD_REQUEST,
            r#"a poll is {"tags": {TAG: etag or null}, "wait": SECONDS}"#,
        )
    })?;
    if request.tags.len() > MAX_TAGS {
        return Err(Failure(
            StatusCode::BAD_REQUEST,
            "a poll asks for at most 256 tags",
        ));
    }
    let known = request
        .tags
        .into_iter()
        .map(|(text, etag)| Some((Tag::parse(&text)?, text, etag)))
        .collect::<Option<Vec<_>>>()
        .ok_or(Failure(
            StatusCode::BAD_REQUEST,
            "a tag is 32 hexadecimal digits",
        ))?;
    let tags: Vec<Tag> = known.iter().map(|(tag, ..)| *tag).collect();
    let found = app
        .look_until(&tags, Duration::from_secs(request.wait), |store, now| {
            let mut differing = Vec::new();
            for (tag, text, etag) in &known {
                match store.get(*tag, now) {
                    None if etag.is_some() => differing.push((text.clone(), None)),
                    Some((version, blob)) => {
                        let current = app.etag(version);
                        if etag.as_ref() != Some(&current) {
                            differing.push((text.clone(), Some((current, blob))));
                        }
                    }
                    None => {}
                }
            }
            (!differing.is_empty()).then_some(differing)
        })
        .await;
    let records = found.unwrap_or_default().into_iter().map(|(text, record)| {
        (
            text,
            record.map(|(etag, blob)| PollRecord {
                etag,
                blob: STANDARD.encode(blob),
            }),
        )
    });
    Ok(Json(PollResponse {
        records: records.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(connections_now: &Arc<Mutex<Connections>>, ip: [u8; 4]) -> Option<ConnectionPermit> {
        ConnectionPermit::take(connections_now, ip.into(), false, 768)
    }

    #[test]
    fn twelve_sources_with_all_connections_that_they_get_leave_room_for_the_next() {
        let connections_now = Arc::default();
        let mut held = Vec::new();
        for host in 1..=12 {
            held.extend((0..64).map_while(|_| take(&connections_now, [198, 51, host, 1])));
        }
        assert!(held.len() > 600);
        let next: Vec<_> = (0..64)
            .map_while(|_| take(&connections_now, [203, 0, 113, 1]))
            .collect();
        // Eleven take 64 each; of the last 64 the twelfth gets half, and the next one half of the
        // rest.
        assert_eq!(next.len(), 16);
        drop((held, next));
        let counts = connections_now.lock().unwrap();
        assert!(counts.all == 0 && counts.by_source.is_empty() && counts.by_site.is_empty());
    }

    #[test]
    fn one_site_has_half_of_the_connections_however_many_addresses_it_has() {
        let connections_now = Arc::default();
        let of = |host| {
            (0..64)
                .map_while(|_| take(&connections_now, [198, 51, 100, host]))
                .collect()
        };
        let held: Vec<Vec<ConnectionPermit>> = (1..=20).map(of).collect();
        assert_eq!(held.iter().map(Vec::len).sum::<usize>(), 384);
    }
}
