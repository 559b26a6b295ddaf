use std::collections::BTreeSet;
use std::path::PathBuf;

use natpunch_plugin::{
    Abilities, Description, Discovery, Endpoint, Flaw, Instance, PeerKey, Runs, SecretFile,
    Secrets, Upstream, check_server, check_server_key,
};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::Plugin;

/// The settings of a `[discovery.NAME]` section with `plugin = "rendezvous"`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the server is: `HOST:PORT`. For several servers, write several sections.
    pub server: String,
    /// Other UDP ports on which the server listens. Where the one of `server` is silent, as in
    /// networks that let only some ports out, they are tried in this order: `[443]`.
    #[serde(default)]
    #[schemars(with = "Vec<Port>", length(max = MAX_MORE_PORTS))]
    pub more_ports: Vec<u16>,
    /// The server's public key in base64, as it prints it at its start.
    #[schemars(with = "String")]
    pub public_key: PeerKey,
    /// The server's next key, while it changes keys. The node accepts either key.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub next_public_key: Option<PeerKey>,
    /// The file with the mesh's admission secret, if the server asks for one: one line, as
    /// `natpunch keygen` prints it, readable by its owner only. An absolute path;
    /// `credential:NAME` is a credential of systemd.
    #[serde(default)]
    pub admission_secret_file: Option<PathBuf>,
    /// Whether its relay is used while two nodes have no direct path. False: it only introduces
    /// them.
    #[serde(default = "yes")]
    pub relay: bool,
    /// Where the server is reached by TLS, for networks that block UDP: `https://HOST[:PORT]`. The
    /// node changes to TLS when there is no answer by UDP, and back when there is one again. It
    /// uses the proxy in `HTTPS_PROXY` of the agent's environment.
    #[serde(default)]
    pub tls: Option<String>,
    /// A file with the certificate authorities that may have issued the server's certificate, in
    /// PEM: an absolute path. Default: those of the system.
    #[serde(default)]
    pub tls_ca_file: Option<PathBuf>,
}

/// A UDP port.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it describes numbers in the schema")]
struct Port(#[schemars(range(min = 1, max = 65535))] u16);

/// So many other ports of a server are tried: each costs five seconds where all are blocked.
const MAX_MORE_PORTS: usize = 4;

fn yes() -> bool {
    true
}

/// The key of the section that names the file of the admission secret.
pub(crate) const ADMISSION: &str = "admission_secret_file";

/// A natpunch rendezvous server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub(crate) endpoint: Endpoint,
    /// Where else it listens.
    pub(crate) more_ports: Vec<u16>,
    /// Its keys, the one that it has first.
    pub(crate) keys: Vec<PeerKey>,
    admission: Option<SecretFile>,
    pub(crate) relay: bool,
    /// The way by TLS.
    pub(crate) tls: Option<Upstream>,
    /// It is a node of the mesh, and knows this one by its WireGuard key.
    pub(crate) is_node: bool,
}

impl natpunch_plugin::Settings for Settings {
    const PLUGIN: &'static str = "rendezvous";
    const ABOUT: &'static str = "natpunch's own server: it introduces and relays";
    const ABILITIES: Abilities = Abilities {
        wireguard_port: true,
        meetings: true,
        relays: true,
        records: true,
        ..Abilities::NONE
    };
    type Instance = Server;

    fn check(self) -> Result<Server, Vec<Flaw>> {
        let key =
            |name, key: Option<&PeerKey>| key.map_or(Ok(()), |key| check_server_key(name, key));
        let endpoint = check_server("server", &self.server);
        let public_key = key("public_key", Some(&self.public_key));
        let next = key("next_public_key", self.next_public_key.as_ref());
        let admission = self
            .admission_secret_file
            .map(|path| SecretFile::new(ADMISSION, path))
            .transpose();
        let tls = check_tls(self.tls, self.tls_ca_file);
        let first_port = endpoint.as_ref().map_or(0, |endpoint| endpoint.port);
        let more_ports = check_more_ports(first_port, &self.more_ports);
        match (endpoint, public_key, next, admission, tls, more_ports) {
            (Ok(endpoint), Ok(()), Ok(()), Ok(admission), Ok(tls), Ok(())) => Ok(Server {
                endpoint,
                more_ports: self.more_ports,
                keys: [Some(self.public_key), self.next_public_key]
                    .into_iter()
                    .flatten()
                    .collect(),
                admission,
                relay: self.relay,
                tls,
                is_node: false,
            }),
            (endpoint, public_key, next, admission, tls, more_ports) => {
                let flaws = [
                    endpoint.err(),
                    public_key.err(),
                    next.err(),
                    admission.err(),
                    tls.err(),
                    more_ports.err(),
                ];
                Err(flaws.into_iter().flatten().collect())
            }
        }
    }

    fn of_node(server: &Endpoint, key: PeerKey) -> Option<Server> {
        Some(Server {
            endpoint: server.clone(),
            more_ports: Vec::new(),
            keys: vec![key],
            admission: None,
            relay: true,
            tls: None,
            is_node: true,
        })
    }
}

/// Whether a server may have these ports beside its first one.
fn check_more_ports(first: u16, ports: &[u16]) -> Result<(), Flaw> {
    let flaw = |problem| {
        Err(Flaw {
            key: "more_ports",
            problem,
            expected: "ports from 1 to 65535, at most four",
            help: "write it like more_ports = [443]".to_owned(),
        })
    };
    if ports.len() > MAX_MORE_PORTS {
        return flaw(format!("it names {} ports", ports.len()));
    }
    if ports.contains(&0) {
        return flaw("0 is no port".to_owned());
    }
    let all: BTreeSet<u16> = ports.iter().copied().chain([first]).collect();
    if all.len() <= ports.len() {
        return flaw("a port is there twice, or is the one of `server`".to_owned());
    }
    Ok(())
}

/// The way by TLS, if there is one.
fn check_tls(url: Option<String>, ca_file: Option<PathBuf>) -> Result<Option<Upstream>, Flaw> {
    let Some(text) = url else {
        return Ok(None);
    };
    let is_plain = |url: &Url| {
        let has_more = url.path() != "/" || url.query().is_some() || url.fragment().is_some();
        let has_user = !url.username().is_empty() || url.password().is_some();
        url.scheme() == "https" && url.host().is_some() && !has_more && !has_user
    };
    let url = text.parse::<Url>().ok().filter(is_plain);
    let url = url.ok_or_else(|| Flaw {
        key: "tls",
        problem: format!("`{text}` is not the https:// URL of a host"),
        expected: "https://HOST or https://HOST:PORT",
        help: "write it like tls = \"https://relay.example.net\"".to_owned(),
    })?;
    if let Some(file) = ca_file.as_ref().filter(|file| !file.is_absolute()) {
        return Err(Flaw {
            key: "tls_ca_file",
            problem: format!("`{}` is not absolute", file.display()),
            expected: "an absolute path",
            help: format!(
                "write it like tls_ca_file = \"/etc/natpunch/{}\"",
                file.display()
            ),
        });
    }
    Ok(Some(Upstream {
        url: url.as_str().trim_end_matches('/').to_owned(),
        ca_file,
        proxy: None,
    }))
}

impl Instance for Server {
    fn describe(&self) -> Description {
        Description {
            abilities: Abilities {
                wireguard_port: true,
                meetings: true,
                relays: self.relay,
                records: true,
                mappings: false,
                peer_messages: false,
            },
            finds_peers: true,
            needs_private_key: true,
            servers: vec![self.endpoint.to_string()],
            secrets: self.admission.iter().cloned().collect(),
            node: self.keys.first().copied().filter(|_| self.is_node),
            relay_is_off: (!self.relay).then_some("remove relay = false there"),
            ..Description::default()
        }
    }
}

impl Runs for Server {
    fn plugin(&self, secrets: &Secrets) -> Box<dyn Discovery> {
        Box::new(Plugin::new(self.clone(), secrets.get(ADMISSION)))
    }
}
