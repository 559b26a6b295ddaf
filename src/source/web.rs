//! Fetches one file from a web server, only if it changed.

use std::error::Error as _;
use std::time::Duration;

use reqwest::header::{ETAG, IF_NONE_MATCH};
use reqwest::{Client, Response, StatusCode, redirect};
use url::Url;

use super::error::SourceError;
use super::trust::Trust;
use super::{Fetched, File, MOST_FILE_BYTES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole answer.
const TIMEOUT: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 5;
const LONGEST_SIGNATURE: u64 = 4096;
/// Longer ones are not sent back.
const LONGEST_ETAG: usize = 512;

/// Fetches the file, unless it still is the version that `etag` names. `None`: it is.
///
/// # Errors
/// The server does not give it, or its signature is not one that `trust` demands.
pub(super) async fn fetch(
    url: &Url,
    trust: &Trust,
    etag: Option<&str>,
) -> Result<Option<Fetched>, SourceError> {
    // A redirect never leads from a protected connection to a plain one.
    let scheme = url.scheme().to_owned();
    let policy = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("too many redirects")
        } else if attempt.url().scheme() == scheme || attempt.url().scheme() == "https" {
            attempt.follow()
        } else {
            attempt.error("redirected away from https")
        }
    });
    let client = Client::builder()
        .user_agent(concat!("natpunch/", env!("CARGO_PKG_VERSION")))
        .redirect(policy)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| SourceError::local(format!("can't speak HTTP: {error}")))?;
    let mut request = client.get(url.clone());
    if let Some(etag) = etag {
        request = request.header(IF_NONE_MATCH, etag);
    }
    let response = request
        .send()
        .await
        .map_err(|error| unreachable(url, &error))?;
    if response.status() == StatusCode::NOT_MODIFIED && etag.is_some() {
        return Ok(None);
    }
    let response = expect_ok(url, response)?;
    let etag = response
        .headers()
        .get(ETAG)
        .and_then(|value| value.to_str().ok());
    let etag = etag
        .filter(|etag| etag.len() <= LONGEST_ETAG)
        .map(str::to_owned);
    let content = body(url, response, MOST_FILE_BYTES).await?;
    if trust.demands_signatures() {
        let mut beside = url.clone();
        beside.set_path(&format!("{}.minisig", url.path()));
        let response = client
            .get(beside.clone())
            .send()
            .await
            .map_err(|error| unreachable(&beside, &error))?;
        if response.status() == StatusCode::NOT_FOUND {
            return Err(
                SourceError::refused(format!("{url} is not signed: there is no {beside}"))
                    .help("sign it with `minisign -S` and put the signature beside it"),
            );
        }
        let signature = body(&beside, expect_ok(&beside, response)?, LONGEST_SIGNATURE).await?;
        trust.check_minisign(&content, &String::from_utf8_lossy(&signature))?;
    }
    let last = url
        .path_segments()
        .and_then(|mut segments| segments.next_back())
        .unwrap_or_default();
    let plain = |name: &str| {
        !name.starts_with('.')
            && name.ends_with(".toml")
            && name.len() <= 200
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let name = if plain(last) { last } else { "mesh.toml" }.to_owned();
    let revision = super::hex(&super::blake2(&content));
    Ok(Some(Fetched {
        revision,
        files: vec![File { name, content }],
        single: true,
        etag,
    }))
}

fn expect_ok(url: &Url, response: Response) -> Result<Response, SourceError> {
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(SourceError::unreachable(format!("{url} answers {status}"))),
    }
}

async fn body(url: &Url, mut response: Response, most: u64) -> Result<Vec<u8>, SourceError> {
    let too_long = || SourceError::refused(format!("{url} gives more than {} KiB", most >> 10));
    if response
        .content_length()
        .is_some_and(|length| length > most)
    {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| unreachable(url, &error))?
    {
        if (bytes.len() + chunk.len()) as u64 > most {
            return Err(too_long());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// reqwest's own text is about "sending a request"; what went wrong is in the errors below it.
fn unreachable(url: &Url, error: &reqwest::Error) -> SourceError {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        reason = deeper.to_string();
        cause = deeper.source();
    }
    SourceError::unreachable(format!("can't fetch {url}: {reason}"))
}
