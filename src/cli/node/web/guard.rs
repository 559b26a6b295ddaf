//! Who may ask the page for what, and what each answer tells the browser. Pure.
//!
//! Data is for whoever has the token. It is in the fragment of the URL, which no browser sends; the
//! script sends it in a header of its own. So neither a page of others, which may not set it
//! without being asked first, nor another user of this host gets anything.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use subtle::ConstantTimeEq as _;

/// The header that the script sends the token in.
pub(super) const TOKEN_HEADER: &str = "x-natpunch-token";

/// What may read the data.
#[derive(Clone)]
pub(super) struct Token(String);

impl Token {
    /// One that nobody knows.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 24];
        getrandom::fill(&mut bytes)?;
        Ok(Self(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// What the URL has behind its `#`.
    pub(super) fn fragment(&self) -> &str {
        &self.0
    }

    /// Whether this is it. The time that this takes tells nothing of it but its length.
    fn is(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

/// What every answer says to the browser: only this page's own files, no script or style in it, in
/// no frame, kept nowhere.
const HEADERS: [(header::HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        header::HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        header::HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        header::HeaderName::from_static("permissions-policy"),
        "camera=(), geolocation=(), microphone=()",
    ),
];

/// Adds what every answer says.
pub(super) fn harden(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether a request is let in: to the page, or to its data if `is_data`.
///
/// # Errors
/// It is not; which status says so, and why.
pub(super) fn check(
    method: &Method,
    headers: &HeaderMap,
    token: &Token,
    is_data: bool,
) -> Result<(), (StatusCode, &'static str)> {
    // Another site's name that leads to this address (DNS rebinding) is not one of these.
    let mut hosts = headers.get_all(header::HOST).iter();
    let is_own = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(is_loopback),
        _ => false,
    };
    if !is_own {
        let why = "this page is at 127.0.0.1, [::1] or localhost\n";
        return Err((StatusCode::MISDIRECTED_REQUEST, why));
    }
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err((
            StatusCode::METHOD_NOT_ALLOWED,
            "nothing can be changed here\n",
        ));
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers
            .get(header::CONTENT_LENGTH)
            .is_some_and(|length| length != "0")
    {
        return Err((StatusCode::PAYLOAD_TOO_LARGE, "a question has no body\n"));
    }
    let from_elsewhere = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none");
    if !is_data {
        return Ok(());
    }
    if from_elsewhere {
        return Err((StatusCode::FORBIDDEN, "not for the pages of others\n"));
    }
    let mut given = headers.get_all(TOKEN_HEADER).iter();
    let has_token = match (given.next(), given.next()) {
        (Some(given), None) => token.is(given.as_bytes()),
        _ => false,
    };
    match has_token {
        true => Ok(()),
        false => Err((
            StatusCode::UNAUTHORIZED,
            "the token is missing or wrong: open the URL that `natpunch web` printed\n",
        )),
    }
}

/// Whether a `Host` is this host by a name that no DNS can give away. Any port: `ssh -L` may take
/// another one.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, "")) => return name == "::1",
            Some((name, port)) => (name == "::1").then_some(port.strip_prefix(':')),
            None => None,
        },
        None => match host.split_once(':') {
            None => return matches!(host, "127.0.0.1" | "localhost"),
            Some((name, port)) => matches!(name, "127.0.0.1" | "localhost").then_some(Some(port)),
        },
    };
    name.flatten()
        .is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &str, more: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        for (name, value) in more {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn status(method: &Method, headers: &HeaderMap, token: &Token, is_data: bool) -> u16 {
        check(method, headers, token, is_data)
            .err()
            .map_or(200, |(status, _)| status.as_u16())
    }

    #[test]
    fn data_is_for_whoever_has_the_token_and_the_page_for_this_host() {
        let token = Token::new().unwrap();
        let good = token.fragment().to_owned();
        assert_eq!(good.len(), 32, "192 bits");
        let own = "127.0.0.1:9470";
        let get = |more: &[(&'static str, &str)], is_data| {
            status(&Method::GET, &asked(own, more), &token, is_data)
        };
        assert_eq!(get(&[], false), 200);
        assert_eq!(get(&[], true), 401);
        assert_eq!(get(&[(TOKEN_HEADER, &good)], true), 200);
        for wrong in [
            "",
            "x",
            &good[1..],
            &format!("{good}x"),
            &good.to_uppercase(),
        ] {
            assert_eq!(get(&[(TOKEN_HEADER, wrong)], true), 401, "{wrong:?}");
        }
        let twice = [(TOKEN_HEADER, good.as_str()), (TOKEN_HEADER, good.as_str())];
        assert_eq!(get(&twice, true), 401);
        let elsewhere = [
            (TOKEN_HEADER, good.as_str()),
            ("sec-fetch-site", "cross-site"),
        ];
        assert_eq!(get(&elsewhere, true), 403);
        let body = [(TOKEN_HEADER, good.as_str()), ("content-length", "5")];
        assert_eq!(get(&body, true), 413);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            let headers = asked(own, &[(TOKEN_HEADER, &good)]);
            assert_eq!(status(&method, &headers, &token, true), 405, "{method}");
        }
    }

    #[test]
    fn a_name_that_leads_here_is_not_this_host() {
        let token = Token::new().unwrap();
        let get = |host: &str| status(&Method::GET, &asked(host, &[]), &token, false);
        for good in [
            "127.0.0.1",
            "127.0.0.1:9470",
            "localhost:8080",
            "[::1]:9470",
            "[::1]",
        ] {
            assert_eq!(get(good), 200, "{good}");
        }
        for bad in [
            "evil.example:9470",
            "127.0.0.1.evil.example",
            "localhost.evil.example:9470",
            "127.0.0.1:9470:1",
            "127.0.0.1:x",
            "[::1]x",
            "[::1",
            "0.0.0.0:9470",
            "",
        ] {
            assert_eq!(get(bad), 421, "{bad}");
        }
        assert_eq!(
            status(&Method::GET, &HeaderMap::new(), &token, false),
            421,
            "no host"
        );
    }

    #[test]
    fn every_answer_forbids_what_is_not_the_page_s_own() {
        let mut headers = HeaderMap::new();
        harden(&mut headers);
        let policy = headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none';"));
        for bad in ["unsafe", "http:", "https:", "data:", "*"] {
            assert!(!policy.contains(bad), "{bad}");
        }
        assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    }
}
