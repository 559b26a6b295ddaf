//! The server inside a node's agent (`serve` of a peer in the mesh file): natpunch's own rendezvous
//! and STUN for the mesh's members alone.
//!
//! The node's WireGuard key is the server's, and the members' are their identities: all of them
//! stand in the mesh file, which every member has, so nobody needs another word. Whoever is taken
//! out of the file is taken off the list, and what was kept of it is forgotten at once.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{PeerKey, SecretKey};
use tokio::task::JoinSet;

use super::heartbeats;
use super::protocols::Protocols;
use super::relay;
use super::settings::{AlternatePort, RelaySettings};
use super::sockets::{Sockets, has_ipv6};
use super::threads::Threads;
use super::worker::Shared;
use super::{ServeError, keep};

/// How long its threads may take to end. One that is stuck keeps its ports.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// A server that runs as long as this lives.
pub struct Embedded {
    shared: Arc<Shared>,
    threads: Threads,
    /// Ends with this.
    _keeper: JoinSet<()>,
}

impl Embedded {
    /// Serves on a UDP port of all addresses, and on the one after it if that is free, with packets
    /// of this firewall mark.
    ///
    /// # Errors
    /// The port can't be listened on.
    pub fn start(
        port: u16,
        fwmark: u32,
        private_key: SecretKey,
        members: BTreeSet<PeerKey>,
    ) -> Result<Self, ServeError> {
        let mut listen = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
        // A host without IPv6 is served by IPv4.
        listen.extend(has_ipv6().then_some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))));
        // One mesh is no work for several cores.
        let sockets = Sockets::bind(&listen, AlternatePort::Next, 1, fwmark)?;
        let mut protocols = Protocols::of_node(private_key, members, sockets.alternate_port)?;
        let relay = relay::open(
            &mut protocols,
            &sockets.addresses,
            &RelaySettings::default(),
            fwmark,
        )?;
        let shared = Arc::new(Shared::new(
            protocols,
            &sockets,
            Arc::default(),
            Arc::default(),
        )?);
        let threads = Threads::start(sockets.of_workers, Some(relay), &shared)?;
        let mut keeper = JoinSet::new();
        keeper.spawn(keep(shared.clone()));
        Ok(Self {
            shared,
            threads,
            _keeper: keeper,
        })
    }

    /// These are the members from now on.
    pub fn admit(&self, members: BTreeSet<PeerKey>) {
        let ended = self
            .shared
            .protocols
            .admit(members, self.shared.start.now());
        if ended > 0 {
            tracing::info!(
                sessions = ended,
                "ended the sessions of nodes that are no longer members"
            );
        }
    }

    /// How many members are registered, once for each address family.
    pub fn sessions(&self) -> usize {
        self.shared.protocols.sessions()
    }

    /// Whether a thread of it has ended by itself: nothing that it did is done any more.
    pub fn has_lost_a_thread(&self) -> bool {
        self.threads.has_lost()
    }

    /// The threads of it that are stuck.
    pub fn stuck(&self) -> Vec<String> {
        self.shared.stuck(heartbeats::DEADLINE)
    }

    /// Stops, and lets go of the ports.
    pub async fn stop(self) {
        let threads = self.threads;
        let _ =
            tokio::time::timeout(STOP_GRACE, tokio::task::spawn_blocking(|| threads.stop())).await;
    }

    /// As if a thread had panicked.
    #[cfg(test)]
    pub(crate) fn lose_a_thread(&mut self) {
        self.threads.lose();
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use natpunch_rendezvous::client::{Client, Config, Event};
    use natpunch_types::Help as _;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;
    use tokio::net::UdpSocket;

    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_bytes([n; 32])
    }

    fn free_port() -> u16 {
        std::net::UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    }

    /// Whether a node with this key gets in within some time.
    async fn gets_in(port: u16, node: u8) -> bool {
        let config = Config {
            identity: key(node),
            servers: vec![key(1).public_key()],
            admission: Some(natpunch_rendezvous::node_admission()),
        };
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = SocketAddr::from(([127, 0, 0, 1], port));
        let start = natpunch_net::Stopwatch::start();
        let mut client = Client::new(
            config,
            server,
            ChaCha20Rng::from_seed([node; 32]),
            start.now(),
        )
        .unwrap();
        let mut buffer = [0; 2_048];
        while start.elapsed() < Duration::from_secs(2) {
            client.handle_timeout(start.now());
            while let Some(sent) = client.poll_transmit() {
                socket.send_to(&sent.payload, server).await.unwrap();
            }
            if let Ok(received) =
                tokio::time::timeout(Duration::from_millis(50), socket.recv_from(&mut buffer)).await
            {
                let (length, from) = received.unwrap();
                client.handle_datagram(from, &buffer[..length], start.now());
            }
            while let Some(event) = client.poll_event() {
                if matches!(event, Event::Up { .. }) {
                    return true;
                }
            }
        }
        false
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn members_get_in_by_their_wireguard_keys_and_nobody_else() {
        let port = free_port();
        let members = |keys: &[u8]| {
            keys.iter()
                .map(|n| key(*n).public_key())
                .collect::<BTreeSet<_>>()
        };
        let server = Embedded::start(port, 0, key(1), members(&[2])).unwrap();
        assert!(gets_in(port, 2).await);
        assert!(!gets_in(port, 3).await, "not in the mesh file");
        assert_eq!(server.sessions(), 1);
        server.admit(members(&[3]));
        assert_eq!(server.sessions(), 0, "taken out of the mesh file");
        assert!(gets_in(port, 3).await);
        server.stop().await;
        Embedded::start(port, 0, key(1), members(&[2]))
            .unwrap()
            .stop()
            .await;
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Embedded::start(port, 0, key(1), BTreeSet::new())
            .unwrap_err()
            .in_full();
        assert!(
            error.contains(&format!("0.0.0.0:{port}")) && error.contains("ss -lunp"),
            "{error}"
        );
    }
}
