//! The plugin: one [`Client`] for each address family of the server, and the host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Discovery, Endpoint, FAMILIES, Happened, Host, Input,
    Links, News, PeerKey, PluginError, SecretKey,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use zeroize::Zeroizing;

use crate::client::{Client, Event};
use crate::settings;

/// How long an address is believed that the server gave.
const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Discovery through a natpunch-go server.
#[derive(Debug)]
pub struct Plugin {
    server: settings::Server,
}

impl Plugin {
    /// The plugin for this server.
    pub fn new(server: settings::Server) -> Self {
        Self { server }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let private_key = host.private_key().ok_or_else(|| {
                PluginError::Failed("the host gave no private key to authenticate with".to_owned())
            })?;
            let (server, host) = (&self.server.endpoint, &*host);
            let links = Links::new(server, host);
            Run {
                server,
                public_key: self.server.public_key,
                private_key,
                host,
                peers: Vec::new(),
                links,
            }
            .work()
            .await;
            Ok(())
        })
    }
}

/// One run of the plugin.
struct Run<'a> {
    server: &'a Endpoint,
    public_key: PeerKey,
    private_key: SecretKey,
    host: &'a dyn Host,
    peers: Vec<(PeerKey, bool)>,
    links: Links<'a, Client<ChaCha20Rng>>,
}

impl Run<'_> {
    async fn work(mut self) {
        loop {
            self.drain();
            self.report();
            let timeout = self
                .links
                .clients()
                .filter_map(|(_, client)| client.poll_timeout())
                .min();
            match self.links.next(timeout).await {
                Happened::Input(Input::Shutdown) => return,
                Happened::Input(input) => self.handle_input(input),
                Happened::Moved(links) => links
                    .into_iter()
                    .for_each(|(family, address)| self.connect(family, address)),
                Happened::Timeout => {}
            }
            let now = self.links.now();
            self.links
                .clients()
                .for_each(|(_, client)| client.handle_timeout(now));
        }
    }

    fn handle_input(&mut self, input: Input) {
        let now = self.links.now();
        match input {
            Input::Ask(Ask::Peers(peers)) => {
                self.peers = peers.iter().map(|peer| (peer.peer, peer.wanted)).collect();
                self.links
                    .clients()
                    .for_each(|(_, client)| client.set_peers(self.peers.iter().copied(), now));
            }
            Input::Datagram { source, payload } => {
                let source = natpunch_types::canonical(source);
                for (_, client) in self
                    .links
                    .clients()
                    .filter(|(address, _)| *address == source)
                {
                    client.handle_datagram(&payload, now);
                }
            }
            Input::NetworkChanged => self
                .links
                .clients()
                .for_each(|(_, client)| client.handle_network_change(now)),
            Input::Ask(_) | Input::FromPeer { .. } | Input::Shutdown => {}
        }
    }

    /// Uses this address of the server for the family from now on.
    fn connect(&mut self, family: usize, address: Option<SocketAddr>) {
        let now = self.links.now();
        let active = address.and_then(|address| {
            let mut seed = Zeroizing::new([0; 32]);
            self.host.random(&mut *seed);
            let unix_time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let rng = ChaCha20Rng::from_seed(*seed);
            let mut client = Client::new(&self.private_key, self.public_key, rng, unix_time, now)?;
            client.set_peers(self.peers.iter().copied(), now);
            Some((address, client))
        });
        self.links.connect(family, active);
    }

    /// Executes what the clients have to send and to say.
    fn drain(&mut self) {
        for family in FAMILIES {
            let mut next = None;
            while let Some(event) = self
                .links
                .client(family)
                .and_then(|(_, client)| client.poll_event())
            {
                match event {
                    Event::Found { peer, address } => self.host.tell(News::Candidate {
                        peer,
                        candidate: Candidate {
                            address,
                            kind: CandidateKind::Reflexive,
                            lifetime: LIFETIME,
                        },
                    }),
                    Event::Up { round_trip } => self.links.up(family, Some(round_trip)),
                    Event::Down => next = self.links.down(family),
                }
            }
            let Some((address, client)) = self.links.client(family) else {
                continue;
            };
            while let Some(payload) = client.poll_transmit() {
                self.host.send_from_wireguard_port(*address, payload);
            }
            if next.is_some() {
                self.connect(family, next);
            }
        }
    }

    fn report(&self) {
        let (server, public_key) = (self.server, self.public_key);
        self.links.report(|_, _| {
            format!(
                "no answer from {server}: is it running, may UDP reach port {}, and is its public key {public_key}?",
                server.port
            )
        });
    }
}

#[cfg(test)]
mod tests;
