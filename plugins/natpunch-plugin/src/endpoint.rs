//! Where a server or a peer is said to be, as people write it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use natpunch_types::canonical;
use tokio::net::lookup_host;
use tokio::time::timeout;

/// `HOST:PORT`: a host name or an IP address, and a port that is not 0. An IPv6 address stands in
/// brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a text is not an [`Endpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// There is no `:PORT` at the end.
    #[error("there is no port: write HOST:PORT")]
    NoPort,
    /// What follows the last colon is not a port.
    #[error("the port is not a number from 1 to 65535")]
    BadPort,
    /// An IPv6 address without brackets.
    #[error("an IPv6 address needs brackets: write [ADDRESS]:PORT")]
    NoBrackets,
    /// Neither a name nor an address.
    #[error("the host is neither a name nor an IP address")]
    BadHost,
}

impl Endpoint {
    /// How long [`resolve`](Self::resolve) may take.
    pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

    /// Looks its addresses up, in their canonical form. An address is a name that resolves to
    /// itself.
    ///
    /// # Errors
    /// The name has none, or no name server answered in time.
    pub async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let lookup = lookup_host((self.host.as_str(), self.port));
        Ok(timeout(Self::LOOKUP_TIMEOUT, lookup)
            .await
            .map_err(io::Error::from)??
            .map(canonical)
            .collect())
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) {
            return Err(EndpointError::NoBrackets);
        }
        let (host, port) = text.rsplit_once(':').ok_or(EndpointError::NoPort)?;
        if host.starts_with('[') && !host.ends_with(']') {
            return Err(EndpointError::NoPort);
        }
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(EndpointError::BadPort)?;
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(ip) => ip
                .parse::<Ipv6Addr>()
                .map_err(|_| EndpointError::BadHost)?
                .to_string(),
            None if host.contains(':') => return Err(EndpointError::NoBrackets),
            None => host.to_owned(),
        };
        let name = |c: char| {
            c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':') || !c.is_ascii()
        };
        if host.is_empty() || host.len() > 253 || !host.chars().all(name) {
            return Err(EndpointError::BadHost);
        }
        Ok(Self { host, port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H8.
    #[test]
    fn names_and_addresses_of_both_families_are_endpoints() {
        for text in [
            "example.org:51820",
            "203.0.113.1:1",
            "[2001:db8::1]:65535",
            "my_host:7",
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    /// H8.
    #[test]
    fn what_is_no_endpoint_says_what_to_write() {
        for (text, error) in [
            ("example.org", EndpointError::NoPort),
            ("[2001:db8::1]", EndpointError::NoPort),
            ("2001:db8::1", EndpointError::NoBrackets),
            ("2001:db8::g:51820", EndpointError::NoBrackets),
            ("example.org:", EndpointError::BadPort),
            ("example.org:0", EndpointError::BadPort),
            ("example.org:65536", EndpointError::BadPort),
            (":51820", EndpointError::BadHost),
            ("[example.org]:1", EndpointError::BadHost),
            ("exa mple:1", EndpointError::BadHost),
            ("", EndpointError::NoPort),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
    }
}
