//! The fields of a node and of a peer: how each is called, and what its change does to traffic.
//! Every field is named, so that a new one can't be forgotten.

use std::fmt::Display;

use ipnet::IpNet;
use natpunch_types::{Connect, RelayPolicy};

use super::{Impact, Step, Turn};
use crate::mesh::model::{MeshConfig, SecretSource};
use crate::node::model::{NodeConfig, RemotePeer};

/// What becomes another, in words, and what that does to traffic.
type Found = Vec<(String, Impact)>;

/// `NAME OLD → NEW`, if they differ.
fn changed<T: PartialEq>(
    name: &str,
    old: &T,
    new: &T,
    show: impl Fn(&T) -> String,
    impact: Impact,
) -> Option<(String, Impact)> {
    (old != new).then(|| (format!("{name} {} → {}", show(old), show(new)), impact))
}

fn shown<T: Display>(value: &T) -> String {
    value.to_string()
}

fn or_none<T: Display>(value: &Option<T>) -> String {
    value
        .as_ref()
        .map_or_else(|| "none".to_owned(), T::to_string)
}

fn seconds(value: &Option<std::time::Duration>) -> String {
    value.map_or_else(
        || "off".to_owned(),
        |value| format!("{} s", value.as_secs()),
    )
}

/// `NAME + NEW, - OLD`, if sets differ: what goes takes its traffic with it.
fn set<T: PartialEq>(
    name: &str,
    old: &[T],
    new: &[T],
    show: impl Fn(&T) -> String,
    if_taken: Impact,
) -> Option<(String, Impact)> {
    let signed = |sign: char, of: &[T], without: &[T]| -> Vec<String> {
        let some = of.iter().filter(|item| !without.contains(item));
        some.map(|item| format!("{sign} {}", show(item))).collect()
    };
    let (added, removed) = (signed('+', new, old), signed('-', old, new));
    let impact = if removed.is_empty() {
        Impact::None
    } else {
        if_taken
    };
    let parts = [added, removed].concat();
    match parts.is_empty() {
        false => Some((format!("{name} {}", parts.join(", ")), impact)),
        true if old != new => Some((format!("{name}: another order"), Impact::None)),
        true => None,
    }
}

/// What becomes another of a peer as a node sees it.
pub(super) fn of_peer(old: &RemotePeer, new: &RemotePeer) -> Found {
    use Impact::{Interruption, None as Nothing, OtherPath, Rehandshake};
    if old == new {
        return Vec::new();
    }
    let RemotePeer {
        name: _,
        key,
        managed,
        critical,
        connect,
        // What is behind it and where it is are its allowed IPs.
        addresses: _,
        routes: _,
        allowed_ips,
        endpoint,
        // Its own function: here no key is read.
        preshared_key: _,
        relay,
        relays,
        persistent_keepalive,
        adapts_keepalive,
        listen_port,
    } = new;
    let keepalive = |(adapts, stated): &(bool, Option<std::time::Duration>)| match adapts {
        true => "as the NATs need it".to_owned(),
        false => seconds(stated),
    };
    let policy = |policy: &RelayPolicy| format!("{policy:?}").to_lowercase();
    let list = |relays: &Option<Vec<String>>| match relays {
        None => "any".to_owned(),
        Some(list) if list.is_empty() => "none".to_owned(),
        Some(list) => list.join(", "),
    };
    let relay_impact = match relay {
        RelayPolicy::Auto => Nothing,
        RelayPolicy::Only | RelayPolicy::Never => OtherPath,
    };
    let relays_impact = match relays {
        None => Nothing,
        Some(_) => OtherPath,
    };
    let kind = |managed: &bool| {
        if *managed {
            "natpunch"
        } else {
            "plain WireGuard"
        }
        .to_owned()
    };
    let yes_or_no = |is: &bool| if *is { "yes" } else { "no" }.to_owned();
    [
        changed("public key", &old.key, key, shown, Rehandshake),
        changed("runs", &old.managed, managed, kind, Nothing),
        changed("critical", &old.critical, critical, yes_or_no, Nothing),
        changed(
            "connects",
            &old.connect,
            connect,
            Connect::to_string,
            Nothing,
        ),
        set(
            "allowed IPs",
            &old.allowed_ips,
            allowed_ips,
            shown,
            Interruption,
        ),
        changed("endpoint", &old.endpoint, endpoint, or_none, Nothing),
        changed("relay", &old.relay, relay, policy, relay_impact),
        changed("relays", &old.relays, relays, list, relays_impact),
        changed(
            "keepalive",
            &(old.adapts_keepalive, old.persistent_keepalive),
            &(*adapts_keepalive, *persistent_keepalive),
            keepalive,
            Nothing,
        ),
        changed("port", &old.listen_port, listen_port, shown, Interruption),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Where the preshared key of a pair comes from, and whether that becomes another.
pub(super) fn of_preshared(
    [old, new]: [&MeshConfig; 2],
    (a, b): (&str, &str),
) -> Option<(String, Impact)> {
    let pair = match a < b {
        true => (a.to_owned(), b.to_owned()),
        false => (b.to_owned(), a.to_owned()),
    };
    let of = |mesh: &MeshConfig| {
        let own = mesh.preshared_keys.get(&pair).cloned();
        own.map(|source| (true, source))
            .or_else(|| mesh.preshared_secret.clone().map(|source| (false, source)))
    };
    let text = |source: &Option<(bool, SecretSource)>| match source {
        None => "none".to_owned(),
        Some((false, SecretSource::File(file))) => format!("by the secret in {}", file.display()),
        Some((false, SecretSource::Age(_))) => "by an encrypted secret".to_owned(),
        Some((true, SecretSource::File(file))) => format!("in {}", file.display()),
        Some((true, SecretSource::Age(_))) => "encrypted".to_owned(),
    };
    let (old, new) = (of(old), of(new));
    let is_same = match (&old, &new) {
        (Some((own, SecretSource::Age(old))), Some((still_own, SecretSource::Age(new)))) => {
            own == still_own && old.is_same(new)
        }
        (old, new) => old == new,
    };
    (!is_same).then(|| {
        let text = format!("preshared key {} → {}", text(&old), text(&new));
        (text, Impact::Rehandshake)
    })
}

/// What becomes another of a node's own settings.
pub(super) fn of_node(old: &NodeConfig, new: &NodeConfig) -> Vec<Step> {
    use Impact::{Interruption, None as Nothing, NotWhileUp};
    let NodeConfig {
        mesh,
        networks,
        lans,
        name: _,
        interface,
        // Told by its public key.
        private_key: _,
        public_key,
        listen_port,
        fwmark,
        exit_node,
        forwards,
        mtu,
        backend,
        // What it comes to for each peer is that peer's.
        persistent_keepalive: _,
        addresses,
        peers: _,
        serve,
        apply,
        punch,
        discovery,
        stun_servers,
        files: _,
        key_files: _,
        hosts,
        content_hash: _,
        mesh_hash: _,
        generation: _,
    } = new;
    let exit = |exit: &Option<crate::ExitNode>| match exit {
        None => "none".to_owned(),
        Some(exit) if exit.except.is_empty() => exit.peer.clone(),
        Some(exit) => {
            let except: Vec<String> = exit.except.iter().map(IpNet::to_string).collect();
            format!("{} but for {}", exit.peer, except.join(", "))
        }
    };
    let on = |on: &bool| if *on { "on" } else { "off" }.to_owned();
    let port = |port: &Option<u16>| port.map_or_else(|| "off".to_owned(), |port| port.to_string());
    let families = |forwards: &[bool; 2]| match forwards {
        [false, false] => "nothing".to_owned(),
        [true, false] => "IPv4".to_owned(),
        [false, true] => "IPv6".to_owned(),
        [true, true] => "IPv4 and IPv6".to_owned(),
    };
    let backend_word = |backend: &crate::Backend| format!("{backend:?}").to_lowercase();
    let instances = |node: &NodeConfig| -> Vec<String> {
        node.discovery.iter().map(|one| one.name.clone()).collect()
    };
    let (had, has) = (instances(old), instances(new));
    let mut found: Vec<(String, Impact)> = [
        changed("name of the mesh", &old.mesh, mesh, shown, NotWhileUp),
        changed("interface", &old.interface, interface, shown, NotWhileUp),
        changed("backend", &old.backend, backend, backend_word, NotWhileUp),
        changed(
            "own public key",
            &old.public_key,
            public_key,
            shown,
            Interruption,
        ),
        changed(
            "own port",
            &old.listen_port,
            listen_port,
            shown,
            Interruption,
        ),
        set(
            "own addresses",
            &old.addresses,
            addresses,
            IpNet::to_string,
            Interruption,
        ),
        changed("MTU", &old.mtu, mtu, shown, Nothing),
        changed("firewall mark", &old.fwmark, fwmark, shown, Nothing),
        changed("exit node", &old.exit_node, exit_node, exit, Interruption),
        changed("has to forward", &old.forwards, forwards, families, Nothing),
        changed("serves on port", &old.serve, serve, port, Interruption),
        set(
            "networks of the mesh",
            &old.networks,
            networks,
            shown,
            Nothing,
        ),
        set("LANs", &old.lans, lans, shown, Nothing),
        set("discovery", &had, &has, shown, Nothing),
        set(
            "STUN servers",
            &old.stun_servers,
            stun_servers,
            shown,
            Nothing,
        ),
        changed("names in the hosts file", &old.hosts, hosts, on, Nothing),
    ]
    .into_iter()
    .flatten()
    .collect();
    for instance in discovery {
        let before = old.discovery.iter().find(|one| one.name == instance.name);
        if before.is_some_and(|before| before != instance) {
            found.push((format!("settings of discovery {}", instance.name), Nothing));
        }
    }
    if old.apply != *apply {
        found.push(("how changes are applied".to_owned(), Nothing));
    }
    if old.punch != *punch {
        found.push(("punch budget".to_owned(), Nothing));
    }
    let step = |(text, impact)| Step {
        turn: Turn::Changed,
        text,
        peer: None,
        impact,
    };
    found.into_iter().map(step).collect()
}
