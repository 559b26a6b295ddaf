//! What keeps a peer away: it is not found, not up, or does not know this node.

use std::net::SocketAddr;

use natpunch_core::PeerState;

use super::{Facts, Finder, Kind};

/// It is on demand, and nobody has talked.
pub(super) fn at_rest(facts: &Facts<'_>) -> Option<String> {
    let rests = facts.peer.state == PeerState::Resting;
    rests.then(|| {
        let name = facts.name();
        format!(
            "nobody has talked with {name} for some minutes, and the pair is on demand: the next \
             packet, such as that of `natpunch ping {name}`, makes them look for a path"
        )
    })
}

/// It is on demand, and does not hear that it is wanted.
pub(super) fn never_woken(facts: &Facts<'_>) -> Option<String> {
    let rests = facts.peer.state == PeerState::Resting;
    let is_known = facts.named.endpoint.is_some() || !facts.peer.candidates.is_empty();
    (rests && !is_known && !facts.carries_records).then(|| {
        format!(
            "{name} is on demand, and nothing that this node says can wake it: no discovery instance here carries \
             records, and no address of {name} is known; name a server with plugin = \"rendezvous\", give one of \
             the two an endpoint, or set connect = \"always\"",
            name = facts.name()
        )
    })
}

/// What is wrong where two hosts answer probes with the peer's key.
pub(super) fn twins(facts: &Facts<'_>) -> Option<String> {
    let found = || {
        format!(
            "two hosts answer as {} in turns: they run with its private key; give one of them a key and an entry \
             of its own",
            facts.name()
        )
    };
    facts.peer.has_twins.then(found)
}

/// Its WireGuard answers, and its natpunch does not.
pub(super) fn natpunch_silent(facts: &Facts<'_>) -> Option<String> {
    let name = facts.name();
    facts.peer.probes_unanswered.then(|| {
        format!(
            "WireGuard's session with {name} is live, but its natpunch does not answer, so no better path is found: \
             see there that `natpunch apply` runs, and that the host is not off the net since a moment ago"
        )
    })
}

/// The endpoint in the file is a name, of which no address is known.
pub(super) fn unresolved(facts: &Facts<'_>) -> Option<String> {
    if !facts.is_away() || facts.has_from(Kind::File) {
        return None;
    }
    let endpoint = facts.named.endpoint?;
    let file = facts
        .finders
        .iter()
        .find(|finder| finder.kind == Kind::File)?;
    if endpoint.parse::<SocketAddr>().is_ok() {
        return None;
    }
    let why = match file.ok {
        true => String::new(),
        false => format!(" ({}: {})", file.name, file.note),
    };
    Some(format!(
        "its endpoint {endpoint} in the mesh file has no address: the name does not resolve on this host{why}"
    ))
}

/// Whether it may be that the peer does not know this node.
fn may_not_know_us(facts: &Facts<'_>) -> bool {
    // A plain peer's software does not say which peers it knows; the core names that cause.
    facts.is_away() && facts.peer.managed && !facts.was_heard() && !facts.has_from(Kind::Records)
}

fn ask(facts: &Facts<'_>) -> String {
    let key = facts.named.own_key;
    format!(
        "`natpunch status` on the peer tells; its mesh file must have this node with the public key {key}"
    )
}

/// The server that both should meet at works, and holds nothing of the peer.
pub(super) fn nothing_left(facts: &Facts<'_>) -> Option<String> {
    let meeting: Vec<&str> = facts
        .finders
        .iter()
        .filter(|finder| finder.kind == Kind::Records && finder.ok)
        .map(|finder| finder.name.as_str())
        .collect();
    if meeting.is_empty() || !may_not_know_us(facts) {
        return None;
    }
    Some(format!(
        "{} works, and the peer has left nothing for this node there: its natpunch does not run, uses other \
         servers, or has a mesh file without this node; {}",
        meeting.join(", "),
        ask(facts)
    ))
}

/// The peer was seen somewhere, and answers nothing.
pub(super) fn does_not_know_us(facts: &Facts<'_>) -> Option<String> {
    let is_known = facts.has_from(Kind::Seen) || facts.has_from(Kind::File);
    if !facts.is_unreachable() || !is_known || !may_not_know_us(facts) {
        return None;
    }
    let seen = if facts.has_from(Kind::Seen) {
        "a server has seen the peer lately, so it runs"
    } else {
        "nothing was ever heard of the peer but the endpoint in this mesh file"
    };
    Some(format!(
        "{seen}: if no firewall is in between, its mesh file does not have this node; {}",
        ask(facts)
    ))
}

/// A plain WireGuard peer that answers no handshake.
pub(super) fn plain(facts: &Facts<'_>) -> Option<String> {
    if facts.peer.managed || facts.is_connected() {
        return None;
    }
    let (name, key) = (facts.name(), facts.named.own_key);
    Some(match facts.named.endpoint {
        Some(endpoint) => format!(
            "plain WireGuard at {endpoint} does not answer: see there that it is up, that UDP reaches its port, and \
             that it has this node's public key {key}"
        ),
        None => format!(
            "{name} runs plain WireGuard and has no `endpoint` in the mesh file, so it has to call first: see there \
             that it is up and sends to this node"
        ),
    })
}

/// No server answers this host at all.
pub(super) fn servers_silent(facts: &Facts<'_>) -> Option<String> {
    let servers = || {
        facts
            .finders
            .iter()
            .filter(|finder| finder.kind != Kind::File)
    };
    let first = servers().next()?;
    if facts.is_connected() || servers().any(|finder| finder.ok) {
        return None;
    }
    let more = match servers().count() {
        1 => "the only discovery server does not help".to_owned(),
        count => format!("none of the {count} discovery servers helps"),
    };
    let Finder { name, note, .. } = first;
    Some(format!(
        "{more}, so this node and {} can't find each other; {name}: {note}",
        facts.name()
    ))
}

/// It was found, and nothing of it answers.
pub(super) fn silent(facts: &Facts<'_>) -> Option<String> {
    if !facts.is_unreachable() {
        return None;
    }
    let name = facts.name();
    let last = facts
        .peer
        .candidates
        .iter()
        .filter_map(|c| c.last_answer)
        .min();
    Some(match last {
        Some(ago) => format!(
            "{name} answered {} ago and answers nowhere now: its host is off or off the net, or its natpunch has ended; \
             look there with `natpunch status`",
            crate::words::seconds(ago.as_secs_f64())
        ),
        None => format!(
            "{name} was found and answers nowhere, not by a relay either: see there that `natpunch apply` runs \
             (`natpunch status`), and that UDP may leave its network (`natpunch doctor`)"
        ),
    })
}

/// No origin names an address of it.
pub(super) fn no_address(facts: &Facts<'_>) -> Option<String> {
    let PeerState::Waiting { .. } = facts.peer.state else {
        return None;
    };
    let name = facts.name();
    let servers = facts.finders.iter().any(|finder| finder.kind != Kind::File);
    Some(if servers {
        format!(
            "no server has an address of {name} yet: see there that `natpunch apply` runs and reaches the same servers"
        )
    } else {
        format!(
            "the mesh file says nowhere how {name} is found: give it an `endpoint`, or add a node with `serve` or a \
             discovery server"
        )
    })
}
