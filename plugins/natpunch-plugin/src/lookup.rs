//! What a host name stands for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::canonical;
use tokio::net::lookup_host;
use tokio::time::timeout;

use crate::Endpoint;

/// How long [`resolve`] may take.
pub const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks the addresses of an endpoint up, in their canonical form. An address is a name that
/// resolves to itself, without asking anybody.
///
/// # Errors
/// The name has none, or no name server answered in time.
pub async fn resolve(endpoint: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    if let Some(address) = endpoint.address() {
        return Ok(vec![canonical(address)]);
    }
    let lookup = lookup_host((endpoint.host.as_str(), endpoint.port));
    Ok(timeout(LOOKUP_TIMEOUT, lookup)
        .await
        .map_err(io::Error::from)??
        .map(canonical)
        .collect())
}
