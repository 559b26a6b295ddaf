//! Host names that the core needs as addresses: the STUN servers. Resolved again from time to time,
//! since names move.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_plugin::{Endpoint, EndpointError, resolve};
use natpunch_types::Help as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

const REFRESH: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
/// More servers than this say nothing new about a NAT.
const MAX_ADDRESSES: usize = 8;

/// Resolves a list of names in the background, all at the same time, so that a name without an
/// answer does not delay the others.
pub(super) struct Resolver {
    names: watch::Sender<Vec<String>>,
    task: JoinHandle<()>,
}

impl Resolver {
    /// Starts with no names. Addresses arrive through the receiver, complete, whenever they change.
    pub(super) fn start() -> (Self, mpsc::Receiver<Vec<SocketAddr>>) {
        let (names, told) = watch::channel(Vec::new());
        let (found, addresses) = mpsc::channel(1);
        let task = tokio::spawn(run(told, found));
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

/// Works until either end of the channels is gone.
async fn run(mut told: watch::Receiver<Vec<String>>, found: mpsc::Sender<Vec<SocketAddr>>) {
    let mut known: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    let mut last = None;
    loop {
        let wanted = told.borrow_and_update().clone();
        known.retain(|name, _| wanted.contains(name));
        let mut lookups: JoinSet<_> = wanted.into_iter().map(look_up).collect();
        let mut complete = true;
        loop {
            let resolved = merged(&known);
            let is_news = last.as_ref() != Some(&resolved);
            // Nothing is worth telling once it is known that there is nothing.
            if is_news && (!resolved.is_empty() || lookups.is_empty() && complete) {
                last = Some(resolved.clone());
                if found.send(resolved.into_iter().collect()).await.is_err() {
                    return;
                }
            }
            let Some(done) = lookups.join_next().await else {
                break;
            };
            match done {
                Ok((name, Ok(addresses))) => drop(known.insert(name, addresses)),
                Ok((name, Err(error))) => {
                    complete = false;
                    tracing::warn!(server = %name, %error, "can't resolve the STUN server");
                }
                Err(_) => complete = false,
            }
        }
        let pause = if complete { REFRESH } else { RETRY };
        // A time-out is a reason to look again, as is a change; only the end of the sender is not.
        if let Ok(Err(_)) = tokio::time::timeout(pause, told.changed()).await {
            return;
        }
    }
}

async fn look_up(name: String) -> (String, Result<Vec<SocketAddr>, String>) {
    let endpoint: Result<Endpoint, EndpointError> = name.parse();
    let found = match endpoint {
        Ok(endpoint) => resolve(&endpoint).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.in_full()),
    };
    (name, found)
}

/// The addresses of all names: the first of each before the second of any.
fn merged(known: &BTreeMap<String, Vec<SocketAddr>>) -> BTreeSet<SocketAddr> {
    let rounds = (0..MAX_ADDRESSES).flat_map(|n| {
        let of_round = known.values().filter_map(move |found| found.get(n));
        of_round.copied()
    });
    let mut merged = BTreeSet::new();
    for address in rounds {
        if merged.len() < MAX_ADDRESSES {
            merged.insert(address);
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_many_addresses_takes_the_place_of_another() {
        let many = |network: u8| -> Vec<SocketAddr> {
            let address = |n: u8| SocketAddr::from(([192, 0, network, n], 3478));
            (1..=20).map(address).collect()
        };
        let known = BTreeMap::from([
            ("a".to_owned(), many(1)),
            ("b".to_owned(), many(2)),
            ("c".to_owned(), many(3)[..1].to_vec()),
        ]);
        let merged = merged(&known);
        assert_eq!(merged.len(), MAX_ADDRESSES);
        for first in known.values().map(|found| found[0]) {
            assert!(merged.contains(&first), "{first}");
        }
    }

    #[tokio::test]
    async fn an_address_waits_for_no_name() {
        let (resolver, mut found) = Resolver::start();
        let names = ["no-such-host.invalid:3478", "192.0.2.1:3478"];
        resolver.set(names.map(str::to_owned).to_vec());
        let first = found.recv().await.unwrap();
        assert_eq!(first, ["192.0.2.1:3478".parse().unwrap()]);
    }
}
