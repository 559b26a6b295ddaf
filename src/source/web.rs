//! Fetches one file from a web server, only if it changed.
//!
//! What the server says decides nothing of where the request goes: a redirect stays on its host, and
//! no name leads to a link-local address, where clouds have what they tell to their machines alone.

use std::error::Error as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
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
    let from = url.clone();
    let policy = redirect::Policy::custom(move |attempt| {
        if attempt.previous().len() > MOST_REDIRECTS {
            attempt.error("too many redirects")
        } else if stays(&from, attempt.url()) {
            attempt.follow()
        } else {
            let to = attempt.url().origin().ascii_serialization();
            attempt.error(format!(
                "it redirects to {to}, and a redirect to another host is not followed"
            ))
        }
    });
    let client = Client::builder()
        .user_agent(concat!("natpunch/", env!("CARGO_PKG_VERSION")))
        .redirect(policy)
        .no_proxy()
        .dns_resolver(Arc::new(NoLinkLocal))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| {
            SourceError::local(format!("can't speak HTTP: {error}"))
                .help("install the certificates of authorities: package ca-certificates")
        })?;
    let mut request = client.get(url.clone());
    // A file that did not change may have been signed again, which is what its age goes by.
    let etag = etag.filter(|_| trust.max_age.is_none());
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
    let mut signed_at = None;
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
        signed_at = trust.check_minisign(&content, &String::from_utf8_lossy(&signature))?;
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
        signed_at,
    }))
}

/// Whether a redirect leads to where the operator sent the request: the same scheme, host and port,
/// or the same host's usual port for https instead of the one for http.
fn stays(from: &Url, to: &Url) -> bool {
    let upgraded = from.scheme() == "http"
        && to.scheme() == "https"
        && from.host() == to.host()
        && from.port().is_none()
        && to.port().is_none();
    from.origin() == to.origin() || upgraded
}

/// Resolves names by the system, and leaves out link-local addresses. Otherwise who answers for the
/// name could have this machine ask the metadata service of its cloud, 169.254.169.254.
struct NoLinkLocal;

impl Resolve for NoLinkLocal {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<_> = found
                .filter(|address| !is_link_local(address.ip()))
                .collect();
            if usable.is_empty() {
                let problem = format!("{} has link-local addresses only", name.as_str());
                return Err(problem.into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        })
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
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
    let problem = SourceError::unreachable(format!("can't fetch {url}: {reason}"));
    match error.is_redirect() {
        true => problem.help("write the URL that it redirects to, if that is where the mesh is"),
        false => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_stays_on_the_host_that_the_operator_named() {
        let stays = |from: &str, to: &str| {
            super::stays(&Url::parse(from).unwrap(), &Url::parse(to).unwrap())
        };
        for (from, to) in [
            ("https://a.example/x", "https://a.example/y"),
            ("https://a.example:8443/x", "https://a.example:8443/y"),
            ("http://a.example/x", "https://a.example/x"),
        ] {
            assert!(stays(from, to), "{from} -> {to}");
        }
        for (from, to) in [
            ("https://a.example/x", "https://b.example/x"),
            ("https://a.example/x", "http://a.example/x"),
            ("https://a.example/x", "https://169.254.169.254/latest"),
            ("https://a.example/x", "https://a.example:9000/x"),
            ("http://a.example:8080/x", "https://a.example/x"),
            ("http://127.0.0.1:1/x", "http://[::1]:1/x"),
        ] {
            assert!(!stays(from, to), "{from} -> {to}");
        }
    }

    #[test]
    fn link_local_addresses_are_told_from_private_ones() {
        let is = |text: &str| is_link_local(text.parse().unwrap());
        assert!(is("169.254.169.254") && is("fe80::1") && is("::ffff:169.254.169.254"));
        assert!(!is("10.0.0.1") && !is("127.0.0.1") && !is("fd00::1") && !is("198.51.100.1"));
    }
}
