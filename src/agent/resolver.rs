//! Host names that the core needs as addresses: the STUN servers. Resolved again from time to time,
//! since names move.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::canonical;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

const REFRESH: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
/// More servers than this say nothing new about a NAT.
const MAX_ADDRESSES: usize = 8;

/// Resolves a list of names in the background.
pub(super) struct Resolver {
    names: watch::Sender<Vec<String>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts with no names. Addresses arrive through the receiver, complete, whenever they change.
    pub(super) fn start() -> (Self, mpsc::Receiver<Vec<SocketAddr>>) {
        let (names, mut told) = watch::channel(Vec::new());
        let (found, addresses) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            let mut last = None;
            loop {
                let wanted = told.borrow_and_update().clone();
                let (resolved, complete) = resolve(&wanted).await;
                if last.as_ref() != Some(&resolved) && (complete || !resolved.is_empty()) {
                    last = Some(resolved.clone());
                    if found.send(resolved.into_iter().collect()).await.is_err() {
                        return;
                    }
                }
                let pause = if complete { REFRESH } else { RETRY };
                // A time-out is a reason to look again, as is a change; only the end of the sender
                // is not.
                if let Ok(Err(_)) = tokio::time::timeout(pause, told.changed()).await {
                    return;
                }
            }
        });
        (Self { names, task }, addresses)
    }

    /// The names to resolve from now on, as `HOST:PORT`; also resolves them again at once.
    pub(super) fn set(&self, names: Vec<String>) {
        self.names.send_replace(names);
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The addresses of all names, and whether every name had one.
async fn resolve(names: &[String]) -> (BTreeSet<SocketAddr>, bool) {
    let mut addresses = BTreeSet::new();
    let mut complete = true;
    for name in names {
        match tokio::net::lookup_host(name.as_str()).await {
            Ok(found) => addresses.extend(
                found
                    .map(canonical)
                    .take(MAX_ADDRESSES - addresses.len().min(MAX_ADDRESSES)),
            ),
            Err(error) => {
                complete = false;
                tracing::warn!(server = %name, %error, "can't resolve the STUN server");
            }
        }
    }
    (addresses, complete)
}
