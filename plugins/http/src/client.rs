//! The requests: bounded in size and time, to one server only.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use natpunch_plugin::{RecordTag, SealedRecord};
use reqwest::header::{ETAG, HeaderMap, IF_NONE_MATCH};
use reqwest::{Response, StatusCode, redirect};
use serde::{Deserialize, Serialize};
use url::Url;

/// How long a server may hold a long poll back.
pub(crate) const LONG_POLL: Duration = Duration::from_secs(25);
/// Tags in one poll.
pub(crate) const MAX_TAGS: usize = 256;
/// Room for an answer with [`MAX_TAGS`] records of [`SealedRecord::MAX`] bytes.
const MAX_POLL_ANSWER: usize = 1 << 20;
const MAX_ETAG: usize = 128;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's time, beyond what it asks the server to wait.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 3;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The server does not offer this; asking again soon is no use.
    #[error("the server answered {0}")]
    Unsupported(StatusCode),
    /// The server refuses for now.
    #[error("the server answered {0}")]
    Refused(StatusCode),
    /// The answer is too long or makes no sense.
    #[error("the server's answer {0}")]
    Answer(&'static str),
    /// No answer. The text has no URL: tags are secrets.
    #[error("{0}")]
    Network(String),
}

impl From<reqwest::Error> for Error {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Network(text)
    }
}

/// The version of a record, as the server names it. Opaque.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Etag(String);

impl Etag {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(ETAG)?.to_str().ok()?;
        (text.len() <= MAX_ETAG).then(|| Self(text.to_owned()))
    }

    /// The form in a poll, without the quotes of the header.
    fn bare(&self) -> Self {
        Self(self.0.trim_matches('"').to_owned())
    }
}

/// What a fetch of one plain file found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fetched {
    /// No such file.
    Nothing,
    /// The file that is known already.
    Unchanged,
    /// Another content than known.
    Changed(Option<Etag>, Vec<u8>),
}

/// How a polled record differs from what was known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// It is no longer there.
    Gone,
    /// It has another content.
    Changed(Etag, Vec<u8>),
}

#[derive(Serialize)]
struct PollRequest {
    tags: BTreeMap<String, Option<Etag>>,
    wait: u64,
}

#[derive(Deserialize)]
struct PollAnswer {
    records: BTreeMap<String, Option<PollRecord>>,
}

#[derive(Deserialize)]
struct PollRecord {
    etag: String,
    blob: String,
}

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    base: Url,
    http: reqwest::Client,
}

impl Client {
    /// A client without connections.
    pub(crate) fn new(base: Url) -> Result<Self, Error> {
        let origin = base.origin();
        let same_origin = redirect::Policy::custom(move |attempt| {
            if attempt.url().origin() == origin && attempt.previous().len() <= MAX_REDIRECTS {
                attempt.follow()
            } else {
                attempt.stop()
            }
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("natpunch/", env!("CARGO_PKG_VERSION")))
            .redirect(same_origin)
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { base, http })
    }

    fn url(&self, name: &str) -> Result<Url, Error> {
        self.base
            .join(name)
            .map_err(|_| Error::Network("the URL can't be extended".to_owned()))
    }

    /// Stores a record. Returns its version, if the server names one.
    pub(crate) async fn put(&self, record: &SealedRecord) -> Result<Option<Etag>, Error> {
        let url = self.url(&record.tag.to_string())?;
        let response = self.http.put(url).body(record.blob.to_vec()).send().await?;
        if response.status().is_success() {
            return Ok(Etag::of(response.headers()).map(|etag| etag.bare()));
        }
        Err(failure(response.status()))
    }

    /// Fetches a plain file.
    pub(crate) async fn get(&self, tag: RecordTag, known: Option<&Etag>) -> Result<Fetched, Error> {
        let mut request = self.http.get(self.url(&tag.to_string())?);
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, &known.0);
        }
        let response = request.send().await?;
        match response.status() {
            StatusCode::OK => {
                let etag = Etag::of(response.headers());
                Ok(Fetched::Changed(
                    etag,
                    body(response, SealedRecord::MAX).await?,
                ))
            }
            StatusCode::NOT_MODIFIED => Ok(Fetched::Unchanged),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(Fetched::Nothing),
            other => Err(failure(other)),
        }
    }

    /// Asks for what differs from `known`, waiting up to `wait` for something to.
    pub(crate) async fn poll(
        &self,
        known: BTreeMap<RecordTag, Option<Etag>>,
        wait: Duration,
    ) -> Result<Vec<(RecordTag, Polled)>, Error> {
        let tags: BTreeMap<String, _> = known
            .iter()
            .map(|(tag, etag)| (tag.to_string(), etag.clone()))
            .collect();
        let request = PollRequest {
            tags,
            wait: wait.as_secs(),
        };
        let json = serde_json::to_vec(&request).map_err(|_| Error::Answer("can't be asked for"))?;
        let response = self
            .http
            .post(self.url("poll")?)
            .timeout(wait + TIMEOUT)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(json)
            .send()
            .await?;
        if response.status() != StatusCode::OK {
            return Err(failure(response.status()));
        }
        let bytes = body(response, MAX_POLL_ANSWER).await?;
        differing(known.into_keys(), &bytes)
    }
}

/// Reads the answer to a poll for these.
pub(crate) fn differing(
    known: impl Iterator<Item = RecordTag>,
    bytes: &[u8],
) -> Result<Vec<(RecordTag, Polled)>, Error> {
    // Some web servers answer everything with a page: no long poll there either.
    let mut answer: PollAnswer =
        serde_json::from_slice(bytes).map_err(|_| Error::Unsupported(StatusCode::OK))?;
    let mut differing = Vec::new();
    for tag in known {
        match answer.records.remove(&tag.to_string()) {
            None => {}
            Some(None) => differing.push((tag, Polled::Gone)),
            Some(Some(record)) => {
                if let Some(blob) = STANDARD
                    .decode(record.blob)
                    .ok()
                    .filter(|blob| blob.len() <= SealedRecord::MAX)
                    && record.etag.len() <= MAX_ETAG
                {
                    differing.push((tag, Polled::Changed(Etag(record.etag), blob)));
                }
            }
        }
    }
    Ok(differing)
}

fn failure(status: StatusCode) -> Error {
    match status {
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::TOO_MANY_REQUESTS
        | StatusCode::INSUFFICIENT_STORAGE => Error::Refused(status),
        StatusCode::NOT_IMPLEMENTED => Error::Unsupported(status),
        status if status.is_server_error() => Error::Refused(status),
        _ => Error::Unsupported(status),
    }
}

async fn body(mut response: Response, limit: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > limit {
            return Err(Error::Answer("is too long"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    const TAG: RecordTag = RecordTag([7; 16]);

    /// A web server that answers a request for a path with a status line and headers, and the body
    /// `found`.
    fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut path, mut length) = (String::new(), 0);
                for line in reader
                    .by_ref()
                    .lines()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                {
                    if path.is_empty() {
                        path = line.split(' ').nth(1).unwrap().to_owned();
                    } else if let Some(value) =
                        line.to_ascii_lowercase().strip_prefix("content-length: ")
                    {
                        length = value.parse().unwrap();
                    }
                }
                reader.read_exact(&mut vec![0; length]).unwrap();
                let head = answer(&path);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: 5\r\n\r\nfound"
                );
            }
        });
        address
    }

    fn client(server: SocketAddr) -> Client {
        Client::new(format!("http://{server}/v1/").parse().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_not_followed_by_any_request() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        other.set_nonblocking(true).unwrap();
        let elsewhere = other.local_addr().unwrap();
        for status in [
            "301 Moved Permanently",
            "302 Found",
            "303 See Other",
            "307 Temporary",
            "308 Permanent",
        ] {
            for location in [
                format!("http://{elsewhere}/v1/x"),
                format!("//{elsewhere}/v1/x"),
                format!("https://{elsewhere}/"),
            ] {
                let client = client(serve(move |_| format!("{status}\r\nlocation: {location}")));
                let refused =
                    |error| matches!(error, Error::Unsupported(status) if status.is_redirection());
                assert!(client.get(TAG, None).await.is_err_and(refused), "{status}");
                let record = SealedRecord {
                    tag: TAG,
                    blob: b"sealed".as_slice().into(),
                };
                assert!(client.put(&record).await.is_err_and(refused), "{status}");
                let polled = client
                    .poll(BTreeMap::from([(TAG, None)]), Duration::ZERO)
                    .await;
                assert!(polled.is_err_and(refused), "{status}");
            }
        }
        let nobody = other.accept().unwrap_err();
        assert_eq!(
            nobody.kind(),
            std::io::ErrorKind::WouldBlock,
            "the other host was asked"
        );
    }

    #[tokio::test]
    async fn a_redirect_within_the_host_is_followed_three_times() {
        let tag = TAG.to_string();
        for (hops, is_found) in [(0, true), (3, true), (4, false)] {
            let tag = tag.clone();
            let server = serve(move |path| {
                let hop = if path.ends_with(&tag) {
                    0
                } else {
                    path.trim_start_matches("/hop").parse().unwrap()
                };
                if hop == hops {
                    "200 OK".to_owned()
                } else {
                    format!("302 Found\r\nlocation: /hop{}", hop + 1)
                }
            });
            let found = client(server).get(TAG, None).await;
            assert_eq!(
                found == Ok(Fetched::Changed(None, b"found".to_vec())),
                is_found,
                "{hops}: {found:?}"
            );
        }
    }
}
