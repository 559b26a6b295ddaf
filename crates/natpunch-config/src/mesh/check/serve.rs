//! Peers that serve: `serve = true` makes a node the rendezvous and relay of its mesh.

use std::collections::BTreeMap;

use natpunch_plugin_description::Endpoint;

use crate::file::forms::SERVE_PORTS;
use crate::file::kind::{Kind, is_kept};
use crate::file::raw::RawPeer;
use crate::mesh::model::{Discovery, InterfaceConfig, PeerConfig};
use crate::mesh::ports::{listen_port, port_of};
use crate::report::error::ConfigError;
use crate::report::source::Place;
use crate::report::wording::Quoted;

/// What the file says of a peer that serves.
pub(super) struct Server {
    name: String,
    port: u16,
    /// Where `serve` stands.
    place: Place,
    managed: Option<Place>,
    /// `HOST:PORT`, and where it stands.
    endpoint: Option<(String, Place)>,
    listen_port: Option<Place>,
}

impl Server {
    /// That of this peer, if it serves.
    pub(super) fn of(name: &str, raw: &RawPeer) -> Option<Self> {
        let serve = raw.serve.as_ref()?;
        let interface = raw.interface.as_ref().map(|interface| &interface.value);
        Some(Self {
            name: name.to_owned(),
            port: serve.value.0?,
            place: serve.place,
            managed: raw
                .managed
                .as_ref()
                .filter(|managed| !managed.value)
                .map(|managed| managed.place),
            endpoint: raw
                .endpoint
                .as_ref()
                .map(|endpoint| (endpoint.value.0.clone(), endpoint.place)),
            listen_port: interface
                .and_then(|interface| interface.listen_port.as_ref())
                .map(|port| port.place),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn host(&self) -> Option<&str> {
        self.endpoint
            .as_ref()
            .and_then(|(endpoint, _)| endpoint.rsplit_once(':'))
            .map(|(host, _)| host)
    }

    fn has(&self, port: u16) -> bool {
        (self.port..=self.last()).contains(&port)
    }

    /// The last of its ports.
    fn last(&self) -> u16 {
        self.port.saturating_add(SERVE_PORTS - 1)
    }

    fn error(&self, problem: &str) -> ConfigError {
        ConfigError::at(
            self.place,
            format!("`{}` can't serve: {problem}", Quoted(&self.name)),
        )
    }

    /// Its ports must be its own: on its host, and behind a router that forwards them.
    fn clashes(&self, peer: &PeerConfig, all: &InterfaceConfig, errors: &mut Vec<ConfigError>) {
        let (first, last) = (self.port, self.last());
        let help = format!(
            "serve at another port, such as: serve = {}",
            if self.has(51_900) { 52_900 } else { 51_900 }
        );
        if let Some((endpoint, place)) = &self.endpoint
            && let Some(port) = port_of(endpoint)
            && self.has(port)
        {
            let error = self
                .error(&format!("port {port} of its endpoint is WireGuard's"))
                .label(format!("takes the UDP ports {first} to {last}"));
            errors.push(
                error
                    .also(*place, "WireGuard's port, as the others see it")
                    .help(help),
            );
            return;
        }
        let listen = listen_port(all, peer);
        if self.has(listen) {
            let error = self
                .error(&format!("WireGuard listens on port {listen}"))
                .label(format!("takes the UDP ports {first} to {last}"));
            let error = match self.listen_port {
                Some(place) => error.also(place, "one of them is WireGuard's"),
                None => error,
            };
            errors.push(error.help(help));
        }
    }
}

/// Checks the peers that serve, and gives the discovery instance of each, named after it. `taken`:
/// the instances that the file names itself.
pub(super) fn instances(
    kinds: &[Kind],
    servers: &[Server],
    peers: &BTreeMap<String, PeerConfig>,
    all: &InterfaceConfig,
    taken: &BTreeMap<String, Place>,
    endpoint_is_known: impl Fn(&str) -> bool,
    errors: &mut Vec<ConfigError>,
) -> Vec<Discovery> {
    let mut instances = Vec::new();
    // Servers by host and first port. All take as many ports, so that those of two overlap exactly
    // if their first ones are less than that apart.
    let mut seen: BTreeMap<(&str, u16), &Server> = BTreeMap::new();
    for server in servers {
        let name = &server.name;
        if let Some(place) = server.managed {
            let error = server
                .error("it is a plain WireGuard peer")
                .label("serving is natpunch's work");
            errors.push(
                error
                    .also(place, "no natpunch on it")
                    .help("remove one of the two lines"),
            );
        }
        if let Some(place) = taken.get(name) {
            let message = format!("two discovery instances have the name `{}`", Quoted(name));
            let error = ConfigError::at(*place, message).label("one is this");
            let error = error.also(
                server.place,
                "the other is the peer of this name, which serves",
            );
            errors.push(
                error.help(
                    "name this section otherwise, or remove it: a peer that serves needs none",
                ),
            );
        } else if is_kept(kinds, name) {
            let error = server.error(&format!(
                "the name `{name}` is kept for the plugin of this name"
            ));
            errors.push(
                error
                    .label("a peer that serves is a discovery instance")
                    .help("name the peer otherwise"),
            );
        }
        let Some(host) = server.host() else {
            if !endpoint_is_known(name) {
                let error = server
                    .error("the file does not say where it is")
                    .label("the others must reach it");
                errors.push(error.help(
                    "add a line to the peer: endpoint = \"HOST:PORT\", at which the others reach \
                     its WireGuard; it serves at the same HOST",
                ));
            }
            continue;
        };
        let nearest = (host, server.port.saturating_sub(SERVE_PORTS - 1));
        let twin = seen.range(nearest..=(host, server.last())).next();
        if let Some((_, twin)) = twin {
            let message = format!(
                "`{}` and `{}` serve at the same ports of {host}",
                Quoted(&twin.name),
                Quoted(name)
            );
            let error = ConfigError::at(server.place, message);
            let error = error.label(format!(
                "takes the UDP ports {} to {}",
                server.port,
                server.last()
            ));
            let help = format!(
                "serve at other ports, such as: serve = {}",
                twin.port.saturating_add(1_000)
            );
            errors.push(error.also(twin.place, "so does this").help(help));
        }
        seen.entry((host, server.port)).or_insert(server);
        let Some(peer) = peers.get(name) else {
            continue;
        };
        server.clashes(peer, all, errors);
        // An endpoint of another form was reported where it stands.
        let address: Option<Endpoint> = format!("{host}:{}", server.port).parse().ok();
        let of_node = |kind: &Kind| {
            let instance = kind.of_node(address.as_ref()?, peer.public_key)?;
            Some(Discovery::new(name, kind.id(), instance))
        };
        instances.extend(kinds.iter().find_map(of_node));
    }
    instances
}
