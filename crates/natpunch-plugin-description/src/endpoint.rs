//! Where a server or a peer is said to be, as people write it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use natpunch_types::{AddressClass, Help, Quoted, classify};

/// `HOST:PORT`: a host name or an IP address, and a port that is not 0. An IPv6 address stands in
/// brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a text is not an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct EndpointError {
    /// What is wrong.
    pub problem: String,
    /// What to write.
    pub help: String,
}

impl Help for EndpointError {
    fn helps(&self) -> Vec<String> {
        vec![self.help.clone()]
    }
}

impl EndpointError {
    fn new(problem: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            problem: problem.into(),
            help: help.into(),
        }
    }
}

impl Endpoint {
    /// The address, if it is one and no name. Nobody has to be asked for it.
    pub fn address(&self) -> Option<SocketAddr> {
        let ip: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let no_port = |host: &str| {
            EndpointError::new(
                "the port is missing",
                format!("write \"{host}:51820\", if 51820 is its port"),
            )
        };
        if let Ok(ip) = text.parse::<IpAddr>() {
            let mut error = match ip {
                IpAddr::V4(_) => no_port(&ip.to_string()),
                IpAddr::V6(_) => no_port(&format!("[{ip}]")),
            };
            // What was meant to be the port is the last part of the address.
            if let Some((host, port)) = text.rsplit_once(':').and_then(unbracketed) {
                let other = format!("; \"[{host}]:{port}\", if {port} is");
                error.help.push_str(&other);
            }
            return Err(error);
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(no_port(&Quoted(text).to_string()));
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let number: Option<u16> = port.parse().ok().filter(|port| digits && *port != 0);
        let Some(port) = number else {
            return Err(EndpointError::new(
                format!("`{}` is not a port", Quoted(port)),
                "write a port from 1 to 65535 behind the last colon",
            ));
        };
        if let Some((host, port)) = unbracketed((host, &port.to_string())) {
            return Err(EndpointError::new(
                "an IPv6 address needs brackets before its port",
                format!("write \"[{host}]:{port}\""),
            ));
        }
        let bracketed = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let host_name = match bracketed {
            Some(inside) => inside.parse::<Ipv6Addr>().ok().map(|ip| ip.to_string()),
            None if host.parse::<Ipv4Addr>().is_ok() || is_host_name(host) => Some(host.to_owned()),
            None => None,
        };
        let host = host_name.ok_or_else(|| {
            EndpointError::new(
                format!("`{}` is not a host", Quoted(host)),
                "write \"nas.example.org:51820\", \"203.0.113.7:51820\" or \"[2001:db8::7]:51820\"",
            )
        })?;
        Ok(Self { host, port })
    }
}

/// An IPv6 address without brackets, and the port behind it.
fn unbracketed((host, port): (&str, &str)) -> Option<(Ipv6Addr, u16)> {
    let port: u16 = port.parse().ok()?;
    Some((host.parse().ok()?, port)).filter(|_| port > 0)
}

/// A name as RFC 1123 has it, in which the last label is not a number (else a mistyped IPv4 address
/// would be a name).
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let label_ok = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= 253 && !last_is_number && host.split('.').all(label_ok)
}

/// Whether a host is this one or in a network of one's own, as far as its name or address tells.
/// What goes there in plain crosses no network of others.
pub fn is_near(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        let class = classify(ip);
        return ip.is_loopback()
            || matches!(class, AddressClass::Private | AddressClass::LinkLocal);
    }
    // Special-use names: RFC 6761, RFC 6762, RFC 8375, and ICANN's for private use; a LAN's own
    // have no dot.
    let name = host.trim_end_matches('.');
    let is_below = |own: &&str| {
        name.strip_suffix(own)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    !name.contains('.')
        || ["localhost", "local", "home.arpa", "internal"]
            .iter()
            .any(is_below)
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

    #[test]
    fn what_is_no_endpoint_says_what_to_write() {
        for (text, problem, help) in [
            ("example.org", "the port is missing", "example.org:51820"),
            ("[2001:db8::1]", "not a", "[2001:db8::7]"),
            ("2001:db8::1", "the port is missing", "[2001:db8::1]:51820"),
            ("2001:db8::g:51820", "is not a host", "[2001:db8::7]:51820"),
            ("example.org:", "is not a port", "1 to 65535"),
            ("example.org:0", "is not a port", "1 to 65535"),
            ("example.org:65536", "is not a port", "1 to 65535"),
            (":51820", "is not a host", "nas.example.org"),
            ("[example.org]:1", "is not a host", "nas.example.org"),
            ("exa mple:1", "is not a host", "nas.example.org"),
            ("", "the port is missing", "51820"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err();
            assert!(error.problem.contains(problem), "{text}: {error}");
            let helps = error.help.contains(help) || problem == "not a";
            assert!(helps, "{text}: {error}");
        }
    }

    #[test]
    fn hosts_in_networks_of_ones_own_are_near() {
        for near in [
            "localhost",
            "nas",
            "nas.local",
            "db.home.arpa.",
            "db.internal",
            "127.0.0.1",
            "10.1.2.3",
            "[::1]",
            "fe80::1",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in [
            "example.org",
            "notlocal.org",
            "203.0.113.7",
            "[2001:db8::1]",
        ] {
            assert!(!is_near(far), "{far}");
        }
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let address = |text: &str| text.parse::<Endpoint>().unwrap().address();
        assert_eq!(address("[2001:db8::1]:7"), "[2001:db8::1]:7".parse().ok());
        assert_eq!(address("192.0.2.1:7"), "192.0.2.1:7".parse().ok());
        assert_eq!(address("localhost:7"), None);
    }
}
