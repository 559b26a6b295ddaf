//! Where a server is said to be, as people write it.

use natpunch_plugin_description::{Endpoint, check_server};
use url::Url;

const DEFAULT_PORT: u16 = 6379;
const EXAMPLE: &str = "write it like \"redis://redis.example.org:6379/0\"";

/// `redis://HOST[:PORT][/DATABASE]`, or `rediss://` by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server.
    pub endpoint: Endpoint,
    /// Whether it is reached by TLS.
    pub is_encrypted: bool,
    /// The number of the database.
    pub database: u16,
}

/// Why a text is no [`Address`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    /// What is wrong.
    pub problem: String,
    /// What to write.
    pub help: String,
}

impl Address {
    /// Reads one.
    ///
    /// # Errors
    /// It is none, or has a password, which is to be in a file.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let error = |problem: &str, help: &str| AddressError {
            problem: problem.to_owned(),
            help: help.to_owned(),
        };
        let url = Url::parse(text.trim()).ok();
        let url = url.filter(|url| matches!(url.scheme(), "redis" | "rediss"));
        let Some((url, host)) = url.as_ref().and_then(|url| Some((url, url.host_str()?))) else {
            return Err(error("this is no address of a Redis server", EXAMPLE));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(error(
                "a password must not be in the mesh file or a URL",
                "remove what stands before the @: write user = \"NAME\", and the password into \
                 the file that password_file names",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(error("it has a ? or a #, which mean nothing here", EXAMPLE));
        }
        let port = url.port().unwrap_or(DEFAULT_PORT);
        let endpoint = check_server("url", &format!("{host}:{port}"))
            .map_err(|flaw| error(&flaw.problem, EXAMPLE))?;
        let digits = url.path().trim_start_matches('/');
        let database = match digits {
            "" => Some(0),
            _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        let database = database.ok_or_else(|| {
            error(
                "what stands behind the host is the number of no database",
                "end it with a number such as /0, or with the port",
            )
        })?;
        Ok(Self {
            endpoint,
            is_encrypted: url.scheme() == "rediss",
            database,
        })
    }
}
