//! `natpunch web`: the mesh as a page in a browser on this host. It asks the agent at its control
//! socket, and changes nothing.

mod answer;
mod guard;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use natpunch_types::lock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use url::form_urlencoded;

use super::agents::agent_of;
use super::live::Live;
use super::live::feed::{Feed, now_s};
use crate::cli::CliError;
use crate::cli::args::WebArgs;
use crate::control::{Client, Request as Ask, runtime_dir};

use answer::{Drawn, Now};
use guard::{Token, check, harden};

/// The agent is asked at most as often, however many look.
const INTERVAL: Duration = Duration::from_secs(2);
/// And as seldom while nobody looks, for the list of events.
const IDLE: Duration = Duration::from_secs(30);
/// Connections at a time. More wait.
const MAX_CONNECTIONS: usize = 32;
/// Questions about single peers at a time. More are refused.
const MAX_QUESTIONS: usize = 4;
/// A request's head has to arrive within this time; also how long a connection may idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// After this time a connection is closed.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Heads longer than this are refused.
const MAX_HEAD: usize = 8 << 10;
/// A peer's name in a question.
const MAX_NAME: usize = 256;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// What all connections share.
struct App {
    token: Token,
    directory: PathBuf,
    interface: String,
    state: Mutex<State>,
    /// Somebody looks.
    wanted: SyncSender<()>,
    questions: Semaphore,
}

#[derive(Default)]
struct State {
    live: Live,
    drawn: Drawn,
    /// [`Now`], for all who ask until the next status.
    now: Bytes,
}

/// Serves the page until Ctrl-C.
///
/// # Errors
/// No agent runs here, or the address can't be listened at.
pub(in crate::cli) fn run(args: &WebArgs) -> Result<ExitCode, CliError> {
    let directory = runtime_dir();
    let interface = agent_of(&directory, args.interface.as_deref())?;
    let token = Token::new().map_err(|error| CliError::new(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_QUESTIONS + 1)
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.listen).await.map_err(|error| {
            CliError::new(format!("can't listen at {}: {error}", args.listen))
                .help("choose another port, or 0 for any that is free")
        })?;
        let app = start(directory, interface, token, INTERVAL);
        let url = url(listener.local_addr()?, &app.token);
        let mut out = anstream::stdout();
        writeln!(out, "{url}")?;
        out.flush()?;
        let served = serve(listener, app);
        tokio::select! {
            () = served => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// What a browser is to open. What is behind `#` stays in it.
fn url(at: SocketAddr, token: &Token) -> String {
    format!("http://{at}/#{}", token.fragment())
}

/// Begins to ask the agent, in a thread that ends with the process or with what is returned.
fn start(directory: PathBuf, interface: String, token: Token, interval: Duration) -> Arc<App> {
    let (wanted, asked) = sync_channel(1);
    let app = Arc::new(App {
        token,
        directory: directory.clone(),
        interface: interface.clone(),
        state: Mutex::default(),
        wanted,
        questions: Semaphore::new(MAX_QUESTIONS),
    });
    let weak = Arc::downgrade(&app);
    std::thread::spawn(move || {
        let mut feed = Feed::of(&directory, &interface);
        while let Some(app) = weak.upgrade() {
            let answer = feed.ask();
            app.lock().take(answer);
            drop(app);
            std::thread::sleep(interval);
            if !is_wanted(&asked) {
                return;
            }
        }
    });
    app
}

/// Waits until somebody looks, or for a while. False: nobody ever will.
fn is_wanted(asked: &Receiver<()>) -> bool {
    use std::sync::mpsc::RecvTimeoutError;
    asked.recv_timeout(IDLE) != Err(RecvTimeoutError::Disconnected)
}

impl App {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn take(&mut self, answer: Result<super::status::view::View, String>) {
        let now = now_s();
        match answer {
            Ok(view) => {
                self.drawn.renew(&view);
                self.live.take(view, now);
            }
            Err(reason) => self.live.lose(&reason, now),
        }
        let text = serde_json::to_vec(&Now::of(&self.live, self.drawn.number, now));
        self.now = text.unwrap_or_default().into();
    }
}

async fn serve(listener: TcpListener, app: Arc<App>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let app = app.clone();
                tokio::spawn(async move {
                    let life = connection(stream, app);
                    let _ = tokio::time::timeout(CONNECTION_LIFE, life).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, app: Arc<App>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(answer(&app, &request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a browser's connection ended");
    }
}

async fn answer(app: &Arc<App>, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    let is_data = path.starts_with("/api/");
    let (status, kind, body) = match check(request.method(), request.headers(), &app.token, is_data)
    {
        Err((status, why)) => (status, TEXT, Bytes::from_static(why.as_bytes())),
        Ok(()) => content(app, path, request.uri().query().unwrap_or_default()).await,
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    harden(headers);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type Content = (StatusCode, &'static str, Bytes);

async fn content(app: &Arc<App>, path: &str, query: &str) -> Content {
    let ok = |kind, bytes| (StatusCode::OK, kind, bytes);
    let file = |kind, text: &'static str| ok(kind, Bytes::from_static(text.as_bytes()));
    match path {
        "/" => file("text/html; charset=utf-8", PAGE),
        "/page.js" => file("text/javascript; charset=utf-8", SCRIPT),
        "/page.css" => {
            let style = format!("{STYLE}{}", natpunch_picture::STYLE);
            ok("text/css; charset=utf-8", style.into())
        }
        "/favicon.ico" => (StatusCode::NO_CONTENT, TEXT, Bytes::new()),
        "/api/now" => {
            let _ = app.wanted.try_send(());
            ok(JSON, app.lock().now.clone())
        }
        "/api/picture" => ok(JSON, app.lock().drawn.json.clone().into()),
        "/api/why" => {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            match pairs.find(|(key, _)| key == "peer") {
                Some((_, peer)) if !peer.is_empty() && peer.len() <= MAX_NAME => {
                    let peer = peer.into_owned();
                    ask(app, Ask::Why { peer }).await
                }
                _ => problem(StatusCode::BAD_REQUEST, "name a peer: ?peer=NAME"),
            }
        }
        "/api/versions" => ask(app, Ask::Mesh).await,
        _ => problem(StatusCode::NOT_FOUND, "there is no such page"),
    }
}

fn problem(status: StatusCode, why: &str) -> Content {
    (status, TEXT, format!("{why}\n").into())
}

/// Asks the agent something of its own.
async fn ask(app: &Arc<App>, ask: Ask) -> Content {
    let Ok(_place) = app.questions.try_acquire() else {
        let why = "too many questions at one time: ask again";
        return problem(StatusCode::TOO_MANY_REQUESTS, why);
    };
    let (directory, interface) = (app.directory.clone(), app.interface.clone());
    let asked = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&directory, &interface)?;
        client.ask(ask)
    });
    match asked.await {
        Ok(Ok(value)) => (StatusCode::OK, JSON, value.to_string().into()),
        Ok(Err(error)) => problem(StatusCode::BAD_GATEWAY, &error.to_string()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}
