//! The mesh file as written. These structs, with their doc comments, are also the JSON schema and
//! the reference manual.

use natpunch_plugin_description::AnyInstance;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use toml_edit::Item;

use super::encrypted::Encrypted;
use super::forms::{
    Allowed, Backend, Connects, DnsLabel, FilePath, FirewallMark, Generation, HostPort,
    InterfaceName, Keepalive, MeshAddress, Mtu, Network, Port, ProbesPer10Minutes, ProbesPerRound,
    ProbesPerSecond, PublicKey, Relay, Serve, Span, Word,
};
use super::reader::{KeyPath, Located, Reader, Text, Value, section};
use crate::report::error::ConfigError;
use crate::report::source::Place;

section! {
    /// A natpunch mesh: the same file on every node.
    struct RawFile {
        /// The mesh as a whole.
        #[schemars(required)]
        mesh: RawMesh,
        /// Defaults for the WireGuard interface of every node. A peer overrides any of them in
        /// `[peers.NAME.interface]`.
        interface: RawInterface,
        /// How changes of this file are applied to a running mesh; docs/operations.md explains it.
        apply: RawApply,
        /// How many probes a node may send to guessed ports of a peer's NAT; docs/nat.md explains
        /// them.
        punch: RawPunch,
        /// Secrets that this file holds encrypted with age; docs/how-to/secrets.md explains them.
        secrets: RawSecrets,
        /// Names of the peers on this host.
        names: RawNames,
        /// Discovery instances, `[discovery.NAME]`: where candidates for the peers' endpoints come
        /// from. Any number, all used at once. Endpoints in this file need no instance.
        discovery: Named<RawDiscovery>,
        /// STUN servers (RFC 8489), which tell a node the address and port that its NAT gives to
        /// WireGuard's port.
        stun: RawStun,
        /// The members of the mesh, `[peers.NAME]`; NAME is a DNS label.
        #[schemars(required)]
        peers: Named<RawPeer>,
        /// Preshared keys, `[[preshared]]`: one for a pair of peers.
        preshared: Vec<Located<RawPreshared>>,
    }
}

section! {
    /// The mesh as a whole.
    #[schemars(rename = "Mesh")]
    struct RawMesh {
        /// Name of the mesh, a DNS label. The interface is named `wg-NAME` unless `[interface]` has
        /// a `name`.
        #[schemars(required)]
        name: DnsLabel,
        /// The networks that the mesh's own addresses are taken from.
        #[schemars(required)]
        networks: Vec<Located<Network>>,
        /// A number that you raise with every change. A node that fetches the mesh from a
        /// repository or web server refuses a version whose number is not higher than that of the
        /// version it runs.
        generation: Generation,
        /// When two peers look for a path to each other: `always` is at once, and they keep it;
        /// `on-demand` is when one of them has a packet for the other. After some five minutes
        /// without any the pair rests, and costs nothing (docs/how-to/on-demand.md). A pair with a
        /// peer that is `critical`, or that has plain WireGuard, never rests. Default: `always`.
        connect: Connects,
        /// Local networks of the nodes. They configure nothing: `natpunch check` warns of a network
        /// of the mesh that clashes with one, and of a route that contains one.
        lans: Vec<Located<Network>>,
        /// File that holds one secret of the whole mesh, on every node, as `natpunch keygen` prints
        /// it; `credential:NAME` is a credential of systemd. Every pair of peers gets a preshared
        /// key of its own from it and from their public keys, so that a new peer changes no other
        /// pair. A `[[preshared]]` section wins over it.
        preshared_secret_file: FilePath,
        /// The same secret, encrypted with age to the recipients of all nodes, instead of the file.
        preshared_secret_age: Encrypted,
    }
}

section! {
    /// WireGuard interface settings.
    #[schemars(rename = "Interface")]
    struct RawInterface {
        /// Name of the interface. Default: `wg-` and the name of the mesh.
        name: InterfaceName,
        /// File that holds the node's private key in base64, as `natpunch keygen` prints it. It
        /// must be readable by its owner only. A relative path counts from the directory of the
        /// mesh file; `credential:NAME` is a credential of systemd (`LoadCredential=` in the unit).
        private_key_file: FilePath,
        /// The private key of one peer, encrypted with age to this peer's recipient, in armor, as
        /// `natpunch encrypt` prints it. Only in `[peers.NAME.interface]`.
        private_key_age: Encrypted,
        /// MTU of the interface, in bytes. Default: 1420, WireGuard's own.
        mtu: Mtu,
        /// UDP port of WireGuard. Default: the port of the node's `endpoint`; without an endpoint
        /// one that is derived from the node's public key, so that two nodes behind one NAT never
        /// collide. Write it where a router forwards another port to this one.
        listen_port: Port,
        /// Firewall mark of WireGuard's own packets; 0 is none. Default: 0.
        fwmark: FirewallMark,
        /// Which WireGuard device: `auto` is the kernel's where there is one, else the embedded
        /// `userspace` one; `external` is one that another program runs. Default: `auto`.
        backend: Backend,
        /// Seconds between WireGuard's keepalives that the node sends to every peer; 0 is off.
        /// Default: 25, and as long as the NATs of both sides allow where that is known
        /// (docs/nat.md).
        persistent_keepalive: Keepalive,
        /// Whether the node asks its router for a port mapping (PCP, NAT-PMP, UPnP), under which
        /// every peer reaches it, whatever the NATs. Default: true.
        port_mapping: bool,
    }
}

section! {
    /// How changes are applied.
    #[schemars(rename = "Apply")]
    struct RawApply {
        /// How long peers that a change touches, and that were alive before it, may take to be
        /// alive again. Otherwise the node goes back to the version before and stays there until
        /// the file changes. A number with `s`, `m` or `h`; `0s` switches this off. Default: `60s`.
        confirm: Span,
        /// Whether the node undoes changes that others made to its interface, such as by `wg set`.
        /// If false, it only reports them. Default: true.
        heal: bool,
        /// Kinds of changes that are refused without the word: `mass-removal` (of more than 30 % of
        /// the peers), `critical-removal` (of a peer with `critical = true`, or of the last way to
        /// find it), `operator-removal` (of the peer through which a person is logged in on the
        /// host), `default-route`, `empty-mesh`. Remove the word once all nodes have the change.
        allow: Vec<Located<Allowed>>,
    }
}

section! {
    /// The punch budget: bounds of what a node sends to guessed ports, for all its peers together.
    /// Each guess costs an entry in the table of a router, so these bounds protect routers.
    #[schemars(rename = "Punch")]
    struct RawPunch {
        /// Most probes to guessed ports in a second. Default: 250.
        rate: ProbesPerSecond,
        /// Most probes to guessed ports in one search for one peer. Default: 1024.
        per_round: ProbesPerRound,
        /// Most probes to guessed ports in any ten minutes; at this bound a search ends. Default:
        /// 2048.
        per_10_minutes: ProbesPer10Minutes,
        /// Whether the node guesses ports. If false, a peer with an unknown port is reached through
        /// a relay. Default: true.
        spray: bool,
    }
}

section! {
    /// Names of the peers.
    #[schemars(rename = "Names")]
    struct RawNames {
        /// Whether every node keeps the names of the other peers, `NAME.MESH` and `NAME`, in a
        /// block of its hosts file. A name that is in the file already keeps its meaning.
        /// `natpunch down` removes the block. Default: false.
        hosts: bool,
    }
}

section! {
    /// Encrypted secrets.
    #[schemars(rename = "Secrets")]
    struct RawSecrets {
        /// File of a node's own that holds its age identity, as `natpunch keygen --age` prints it,
        /// readable by its owner only. A relative path counts from the directory of the mesh file;
        /// `credential:NAME` is a credential of systemd. Default: `/etc/natpunch/age.key`.
        identity_file: FilePath,
    }
}

section! {
    /// STUN servers.
    #[schemars(rename = "Stun")]
    struct RawStun {
        /// The servers, each `HOST:PORT`.
        servers: Vec<Located<HostPort>>,
    }
}

section! {
    /// A member of the mesh.
    #[schemars(rename = "Peer")]
    struct RawPeer requires {
        public_key: "add a line: public_key = \"…\", as `natpunch pubkey < KEYFILE` prints it on \
                     that peer",
        addresses: "add a line with an address of one of `mesh.networks`: addresses = \
                    [\"10.77.0.2\"]",
    } {
        /// Its WireGuard public key, in base64.
        #[schemars(required)]
        public_key: PublicKey,
        /// Its addresses in the mesh, each inside one of `mesh.networks`.
        #[schemars(required)]
        addresses: Vec<Located<MeshAddress>>,
        /// Networks behind it that the other nodes reach through it.
        routes: Vec<Located<Network>>,
        /// True for an exit node: other nodes may send all their traffic through it, with
        /// `exit_node`. It has to forward and translate that traffic (docs/how-to/exit-node.md says
        /// how). Default: false.
        exit: bool,
        /// The name of the peer through which this one sends all its traffic, except to its own
        /// local networks. That peer has `exit = true`.
        exit_node: Word,
        /// Networks that this peer reaches outside of its exit node, such as the one that you
        /// administer it from.
        exit_except: Vec<Located<Network>>,
        /// Where it can be reached without discovery, `HOST:PORT`. It listens on this port, unless
        /// `listen_port` names another one. A host name is resolved repeatedly.
        endpoint: HostPort,
        /// False for a peer with plain WireGuard and no natpunch on it, such as a phone or a
        /// router. Default: true.
        managed: bool,
        /// True makes this node a rendezvous and relay of its mesh: its agent serves on UDP port
        /// 51900, and on the 33 ports after it (an alternate one, and those of the relay), and the
        /// other nodes use it without another setting. It needs an `endpoint` that they reach from
        /// everywhere; the ports must be open there. A number is another port. Default: false.
        serve: Serve,
        /// Whether this peer is reached, and reaches the others, through relays: `auto`, while
        /// there is no direct path; `only`, so that neither side learns the other's address;
        /// `never`. For a pair, `never` of one side wins over `only` of the other, and that over
        /// `auto`. Default: `auto`.
        relay: Relay,
        /// The relays through which this peer is reached, and reaches the others, best first: names
        /// of `[discovery.NAME]` with the plugin `rendezvous`, or of peers with `serve`. The first
        /// that works is used, also if another is nearer; a relay that is not listed is never used.
        /// If both sides of a pair have a list, the relays in both count, by the sum of their two
        /// places. Default: all, the one with the shortest round trip first.
        relays: Vec<Located<Word>>,
        /// True for a peer that must stay connected, such as the one that you administer the others
        /// from. Changes that remove it are refused, and changes that disconnect it are rolled
        /// back. Default: false.
        critical: bool,
        /// When this peer and the others look for a path to each other: `always` or `on-demand`, as in
        /// `[mesh]`. What a peer says wins over `[mesh]`; if the two sides of a pair say different
        /// things, `always` wins. Default: what `[mesh]` says.
        connect: Connects,
        /// Words of your own, for people and tools.
        tags: Vec<Located<Word>>,
        /// Seconds between WireGuard's keepalives that other nodes send to this peer; 0 is off: between
        /// public addresses an idle pair then sends nothing. Default: what the sending node's
        /// interface says.
        persistent_keepalive: Keepalive,
        /// What this peer overrides of `[interface]`.
        interface: RawInterface,
    }
}

section! {
    /// A preshared key of two peers, on top of their key pairs.
    #[schemars(rename = "Preshared")]
    struct RawPreshared requires {
        peers: "add a line: peers = [\"laptop\", \"nas\"]",
        preshared_key_file: "add a line: preshared_key_file = \"/etc/natpunch/laptop-nas.psk\", \
                             or preshared_key_age",
    } {
        /// The names of the two peers.
        #[schemars(required)]
        peers: Vec<Located<Word>>,
        /// File that holds the key in base64, on both peers; readable by its owner only. A relative
        /// path counts from the directory of the mesh file.
        preshared_key_file: FilePath,
        /// The key, encrypted with age to the recipients of the two peers, in armor, instead of the
        /// file.
        preshared_key_age: Encrypted,
    }
}

/// Entries by name, in the order of the file.
#[derive(Debug, Clone)]
pub(crate) struct Named<T>(pub(crate) Vec<(String, Located<T>)>);

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("Named{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "additionalProperties": generator.subschema_for::<T>(),
            "propertyNames": generator.subschema_for::<DnsLabel>(),
        })
    }
}

impl<T: Value> Value for Named<T> {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        let Some(table) = item.as_table_like() else {
            reader.wrong_type(item, place, path, "a table of sections with a name each");
            return None;
        };
        let mut entries = Vec::with_capacity(table.len());
        for (name, _) in table.iter() {
            if let Err(flaw) = DnsLabel::parse(name) {
                let error = ConfigError::at(
                    reader.key_place(table, name),
                    format!("bad name in [{path}]: {}", flaw.problem),
                );
                reader.report(error.label("expected a DNS label").help(flaw.help));
            }
            if let Some(entry) = reader.field::<T>(table, path, name) {
                entries.push((name.to_owned(), entry));
            }
        }
        Some(Self(entries))
    }
}

/// `[discovery.NAME]`: `plugin`, and the settings of that plugin.
#[derive(Debug, Clone)]
pub(crate) struct RawDiscovery {
    pub(crate) plugin: &'static str,
    pub(crate) settings: AnyInstance,
    /// Where its keys stand, those of its tables as `TABLE.KEY`.
    pub(crate) keys: Vec<(String, Place)>,
}

impl JsonSchema for RawDiscovery {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Discovery".into()
    }
    /// Of any plugin; [`crate::schema::schema`] puts in the forms of those that there are.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "required": ["plugin"] })
    }
}

impl Value for RawDiscovery {
    fn read(item: &Item, place: Place, path: &KeyPath<'_>, reader: &mut Reader) -> Option<Self> {
        let Some(table) = item.as_table_like() else {
            reader.wrong_type(item, place, path, "a table");
            return None;
        };
        let (plugin, settings) = super::discovery::read(table, place, path, reader)?;
        let keys = super::discovery::keys(table, reader);
        Some(Self {
            plugin,
            settings,
            keys,
        })
    }
}

/// The document as a section of its own.
pub(crate) fn read_file(document: &toml_edit::Document<&str>, reader: &mut Reader) -> RawFile {
    RawFile::read_table(document.as_table(), &KeyPath::root(""), reader)
}
