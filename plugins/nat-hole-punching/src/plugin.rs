//! The plugin: a [`Client`], and the host.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Discovery, Endpoint, FAMILIES, Happened, Host, Input,
    Links, News, PeerKey, PluginError,
};

use crate::client::{Client, Event};
use crate::settings::Server;

/// How long an address is believed that the server gave.
const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Discovery through a server of WireGuard's nat-hole-punching example.
#[derive(Debug)]
pub struct Plugin {
    server: Endpoint,
}

impl Plugin {
    /// The plugin for this server.
    pub fn new(Server(server): Server) -> Self {
        Self { server }
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            let (server, host) = (&self.server, &*host);
            let links = Links::new(server, host).ipv4_only();
            Run {
                server,
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
    host: &'a dyn Host,
    peers: Vec<(PeerKey, bool)>,
    links: Links<'a, Client>,
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
        let active = address.map(|address| {
            let mut client = Client::new(self.host.own_key(), now);
            client.set_peers(self.peers.iter().copied(), now);
            (address, client)
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
                            address: address.into(),
                            kind: CandidateKind::Reflexive,
                            lifetime: LIFETIME,
                        },
                    }),
                    Event::Up => self.links.up(family, None),
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
        let server = self.server;
        self.links.report(|address, _| {
            format!(
                "no answer from {server} ({address}): is it running, and may UDP reach port {}?",
                server.port
            )
        });
    }
}

#[cfg(test)]
mod tests;
