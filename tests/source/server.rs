//! A web server on loopback: git's own `http-backend`, and files with an ETag.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

/// A file that is served.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) content: Vec<u8>,
    pub(crate) etag: Option<String>,
    pub(crate) redirect: Option<String>,
}

/// What the server is to do, and what it saw.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(crate) repositories: PathBuf,
    /// By path, with the slash.
    pub(crate) pages: BTreeMap<String, Page>,
    /// Cuts what git sends off after so many bytes.
    pub(crate) cut: Option<usize>,
    /// Path and status of each answer.
    pub(crate) answers: Vec<(String, u16)>,
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) shown: Arc<Mutex<Shown>>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(repositories: PathBuf) -> Self {
        Self::start_at("127.0.0.1:0", repositories).await
    }

    pub(crate) async fn start_at(address: &str, repositories: PathBuf) -> Self {
        let shown = Arc::new(Mutex::new(Shown {
            repositories,
            ..Shown::default()
        }));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shown));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            shown,
            task,
        }
    }

    /// `git+http://` to a path on main.
    pub(crate) fn git_url(&self, path: &str) -> String {
        format!("git+http://{}/mesh.git#main:{path}", self.address)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn page(&self, path: &str, content: impl Into<Vec<u8>>, etag: Option<&str>) {
        let page = Page {
            content: content.into(),
            etag: etag.map(str::to_owned),
            redirect: None,
        };
        self.shown
            .lock()
            .unwrap()
            .pages
            .insert(path.to_owned(), page);
    }

    pub(crate) fn answers(&self) -> Vec<(String, u16)> {
        std::mem::take(&mut self.shown.lock().unwrap().answers)
    }

    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

async fn serve(State(shown): State<Arc<Mutex<Shown>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let page = shown.lock().unwrap().pages.get(&path).cloned();
    let response = match page {
        Some(page) => file(&page, request.headers()),
        None if path.contains(".git/") => backend(&shown, request).await,
        None => answer(StatusCode::NOT_FOUND, Body::empty()),
    };
    shown
        .lock()
        .unwrap()
        .answers
        .push((path, response.status().as_u16()));
    response
}

fn answer(status: StatusCode, body: Body) -> Response {
    Response::builder().status(status).body(body).unwrap()
}

fn file(page: &Page, headers: &HeaderMap) -> Response {
    if let Some(to) = &page.redirect {
        return Response::builder()
            .status(302)
            .header(header::LOCATION, to)
            .body(Body::empty())
            .unwrap();
    }
    let Some(etag) = &page.etag else {
        return answer(StatusCode::OK, page.content.clone().into());
    };
    if headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known == etag.as_str())
    {
        return answer(StatusCode::NOT_MODIFIED, Body::empty());
    }
    Response::builder()
        .header(header::ETAG, etag)
        .body(page.content.clone().into())
        .unwrap()
}

/// CGI (RFC 3875), as far as git's own program needs it.
async fn backend(shown: &Mutex<Shown>, request: Request) -> Response {
    let (root, cut) = {
        let shown = shown.lock().unwrap();
        (shown.repositories.clone(), shown.cut)
    };
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let text = |name: &str| {
        parts
            .headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
            .unwrap_or_default()
    };
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("CONTENT_TYPE", text("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&body).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap().stdout;
    let end = output
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let mut response = Response::builder();
    for line in String::from_utf8(output[..end].to_vec()).unwrap().lines() {
        let (name, value) = line.split_once(": ").unwrap();
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap().parse::<u16>().unwrap()),
            _ => response.header(name, value),
        };
    }
    let mut content = Bytes::from(output).slice(end + 4..);
    if let Some(cut) = cut.filter(|_| parts.method == "POST") {
        content.truncate(cut);
    }
    response.body(content.into()).unwrap()
}
