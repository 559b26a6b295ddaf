//! A server that is reached by a stream of TLS.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where a server takes datagrams in a stream, and what the way there asks for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Upstream {
    /// `https://HOST[:PORT]`.
    pub url: String,
    /// The certificate authorities that are believed, in PEM; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// The HTTP proxy on the way: `http://[USER:PASSWORD@]HOST[:PORT]`.
    pub proxy: Option<String>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's password is a secret.
        f.debug_struct("Upstream")
            .field("url", &self.url)
            .field("ca_file", &self.ca_file)
            .field("proxy", &self.proxy.as_ref().map(|_| "…"))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_password_is_not_printed() {
        let upstream = Upstream {
            url: "https://relay.example".to_owned(),
            ca_file: None,
            proxy: Some("http://user:hunter2@proxy:3128".to_owned()),
        };
        assert!(!format!("{upstream:?}").contains("hunter2"));
    }
}
