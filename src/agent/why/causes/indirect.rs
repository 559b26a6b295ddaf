//! Why a path is direct, or is not, and what would make it so.

use natpunch_core::{
    CandidateStatus, Filtering, NatStatus, NotProbed, PathKind, PeerState, PortPattern,
};
use natpunch_types::{AddressClass, CandidateKind, Mapping, RelayPolicy, classify};

use super::{Facts, nat};

/// So many pings without an answer say more than that some were lost.
const ENOUGH: u32 = 5;

/// Both are in one LAN.
pub(super) fn lan(facts: &Facts<'_>) -> Option<String> {
    let is_fine = facts.is_connected() && facts.peer.path == PathKind::Lan;
    is_fine.then(|| "all is well: the path stays within the LAN".to_owned())
}

/// The path is direct.
pub(super) fn direct(facts: &Facts<'_>) -> Option<String> {
    if !facts.is_connected() || facts.peer.path != PathKind::Direct {
        return None;
    }
    let relay = facts
        .peer
        .candidates
        .iter()
        .find(|candidate| candidate.kind == CandidateKind::Relay && candidate.proven);
    Some(match relay {
        Some(_) => "all is well: the path is direct, and a relay is in reserve".to_owned(),
        None => "all is well: the path is direct".to_owned(),
    })
}

/// The mesh file wants nothing else.
pub(super) fn relay_only(facts: &Facts<'_>) -> Option<String> {
    if facts.peer.relay_policy != RelayPolicy::Only {
        return None;
    }
    Some(match facts.is_relayed() {
        true => "`relay = \"only\"` in the mesh file keeps this pair on the relay: take it out, and a direct path is \
                 looked for"
            .to_owned(),
        false => "`relay = \"only\"` in the mesh file allows relays alone, and none works: take it out, or add a node \
                  with `serve`"
            .to_owned(),
    })
}

/// Probes pass, WireGuard does not.
pub(super) fn blocked(facts: &Facts<'_>) -> Option<String> {
    let path = facts
        .direct()
        .find(|candidate| candidate.wireguard_blocked)?;
    Some(format!(
        "probes are answered at {} but WireGuard's handshake is not: compare the preshared keys and public keys of \
         both mesh files, else a firewall knows WireGuard by its form and drops it",
        path.address
    ))
}

/// All ways there lead into another VPN.
pub(super) fn other_tunnel(facts: &Facts<'_>) -> Option<String> {
    let mut ways = facts.direct().peekable();
    let first = ways.peek()?.address;
    let is_tunneled = |c: &CandidateStatus| c.not_probed == Some(NotProbed::BehindTunnel);
    ways.all(is_tunneled).then(|| {
        format!(
            "this host would send to {first} through another tunnel, so natpunch does not: give {}'s address a route \
             of its own outside of that VPN",
            facts.name()
        )
    })
}

/// One has only IPv6 and the other only IPv4, or there is no route.
pub(super) fn no_common_family(facts: &Facts<'_>) -> Option<String> {
    let mut ways = facts.direct().peekable();
    let first = ways.peek()?.address;
    ways.all(|c| c.not_probed.is_some()).then(|| {
        let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
        format!(
            "this host has no way to any address of {}, which are of {family}: give this host {family}, or that one \
             the other family",
            facts.name()
        )
    })
}

/// Something is being tried at this moment.
pub(super) fn under_way(facts: &Facts<'_>) -> Option<String> {
    let strategy = facts.peer.strategy.as_ref()?;
    Some(format!(
        "a direct path is looked for at this moment ({strategy}): wait for its end"
    ))
}

/// A direct path is proven, and not used yet.
pub(super) fn direct_soon(facts: &Facts<'_>) -> Option<String> {
    let proven = facts.direct().find(|candidate| candidate.proven)?;
    let why = facts.peer.relay_reason.as_deref();
    let why = why.map_or(String::new(), |reason| format!(" ({reason})"));
    facts.is_relayed().then(|| {
        format!(
            "{} answers and takes the relay's place soon{why}: wait",
            proven.address
        )
    })
}

/// Answers come, the peer's own pings do not.
pub(super) fn one_way(facts: &Facts<'_>) -> Option<String> {
    let way = facts
        .direct()
        .find(|candidate| candidate.answered && !candidate.proven)?;
    if way.answers < ENOUGH {
        return None;
    }
    Some(format!(
        "{} answers at {}, but what it sends first does not arrive: let UDP port {} in at this host's firewall",
        facts.name(),
        way.address,
        facts.own.listen_port
    ))
}

/// Both are behind one router, which does not let them see each other.
pub(super) fn same_lan(facts: &Facts<'_>) -> Option<String> {
    if facts.is_connected() && !facts.is_relayed() {
        return None;
    }
    let outside = |kind: CandidateKind| kind == CandidateKind::Reflexive;
    let own = facts.own.local.iter().filter(|local| outside(local.kind));
    let mut own = own.map(|local| local.address.ip());
    let shares = |ip| {
        facts
            .direct()
            .any(|c| outside(c.kind) && c.address.ip() == ip)
    };
    let lan = facts
        .direct()
        .find(|c| c.kind == CandidateKind::Host && c.probes >= ENOUGH && c.answers == 0)?;
    own.any(shares).then(|| {
        format!(
            "both nodes are behind one router, and {} does not answer there: let its clients reach each other \
             (client isolation of a Wi-Fi, VLANs), or let UDP port {} in at {}'s firewall",
            lan.address,
            lan.address.port(),
            facts.name()
        )
    })
}

/// Both NATs hand out another port for every destination, and neither can be guessed.
pub(super) fn both_hard(facts: &Facts<'_>) -> Option<String> {
    let (own, peer) = nats(facts)?;
    let is_hopeless = is_hard(own) && is_hard(peer) && hard_one(facts).is_none();
    if !is_hopeless {
        return None;
    }
    let forward = forward(facts);
    Some(match (facts.is_relayed(), facts.peer.relay_policy) {
        (true, _) => format!(
            "both NATs give every destination another port, which no guess gets past: {forward}"
        ),
        (false, RelayPolicy::Never) => format!(
            "both NATs give every destination another port, and `relay = \"never\"` forbids what is left: take that \
             out, or {forward}"
        ),
        (false, _) => format!(
            "both NATs give every destination another port, and no relay works: add a node with `serve`, or {forward}"
        ),
    })
}

/// One NAT is hard and has several addresses.
pub(super) fn pool(facts: &Facts<'_>) -> Option<String> {
    let (nat, whose) = hard_one(facts)?;
    nat.several_addresses.then(|| {
        format!(
            "{whose} NAT gives every destination another port on one of several addresses, which no guess gets past: {}",
            forward(facts)
        )
    })
}

/// A guess would get past the NATs, and a mesh file forbids it.
pub(super) fn no_guesses(facts: &Facts<'_>) -> Option<String> {
    let (_, whose) = hard_one(facts)?;
    let (own, peer) = nats(facts)?;
    let where_ = match (own.guesses, peer.guesses) {
        (true, true) => return None,
        (false, _) => "this node's mesh file",
        (true, false) => "the peer's mesh file",
    };
    Some(format!(
        "{whose} NAT gives every destination another port, and {where_} has `spray = false`, which forbids to guess \
         it: take that out, or {}",
        forward(facts)
    ))
}

/// A guess would get past the NATs, and the host behind the hard one has one source port only.
pub(super) fn no_pins(facts: &Facts<'_>) -> Option<String> {
    let (nat, whose) = hard_one(facts)?;
    if nat.pins {
        return None;
    }
    let host = match whose {
        "this node's" => "this host",
        _ => facts.name(),
    };
    Some(format!(
        "{whose} NAT gives every destination another port, and {host} can't use source ports beside WireGuard's: \
         install nftables (`nft` 1.0 or newer) on {host}"
    ))
}

/// A guess would get past the NATs, and the budget is used up, or something else is in the way
/// here.
pub(super) fn barred(facts: &Facts<'_>) -> Option<String> {
    let (_, whose) = hard_one(facts)?;
    let barred = facts.own.punch.barred.as_ref()?;
    Some(format!(
        "{whose} NAT gives every destination another port, and none is guessed now: {barred}"
    ))
}

/// There was not time enough yet.
pub(super) fn just_begun(facts: &Facts<'_>) -> Option<String> {
    let tried = facts
        .direct()
        .map(|candidate| candidate.probes)
        .max()
        .unwrap_or(0);
    let is_young = tried < ENOUGH && !facts.is_away();
    is_young.then(|| match facts.is_relayed() {
        true => "the search for a direct path has just begun: wait a few seconds".to_owned(),
        false => "the search for a path has just begun: wait a few seconds".to_owned(),
    })
}

/// The peer runs, neither NAT is hard, and nothing direct is answered: something drops packets.
pub(super) fn firewall(facts: &Facts<'_>) -> Option<String> {
    if !facts.runs() || facts.is_connected() && !facts.is_relayed() {
        return None;
    }
    let name = facts.name();
    let silent = |candidate: &&CandidateStatus| candidate.probes >= ENOUGH && !candidate.answered;
    let tried: Vec<_> = facts.direct().filter(silent).collect();
    let open = |c: &&&CandidateStatus| {
        c.kind == CandidateKind::Mapped
            || c.kind == CandidateKind::Host && nat::is_public(facts.peer)
    };
    let global = |c: &&&CandidateStatus| classify(c.address.ip()) == AddressClass::Global;
    let first = tried.iter().find(global).or(tried.first())?;
    if let Some(there) = tried.iter().find(open) {
        let port = there.address.port();
        return Some(format!(
            "{name} runs, and UDP to {} is not answered: let UDP port {port} in at {name}'s firewall or router",
            there.address
        ));
    }
    let port = facts.own.listen_port;
    if nat::has_public_address(facts.own) {
        return Some(format!(
            "{name} runs, and no UDP of it arrives here though this host has a public address: let UDP port {port} in \
             at this host's firewall"
        ));
    }
    let hard = hard_one(facts).map_or(
        "",
        |_| ", as where a NAT hands out ports that nobody guesses",
    );
    Some(format!(
        "{name} runs, and UDP between {} and this host is dropped{hard}: allow UDP between the two, or {}",
        first.address.ip(),
        forward(facts)
    ))
}

/// Nothing of the table: what the core says.
pub(super) fn unknown(facts: &Facts<'_>) -> Option<String> {
    let reason = facts
        .peer
        .relay_reason
        .clone()
        .or_else(|| match &facts.peer.state {
            PeerState::Waiting { reason } | PeerState::Unreachable { reason, .. } => {
                Some(reason.clone())
            }
            PeerState::Punching => Some("a path is looked for: wait a few seconds".to_owned()),
            PeerState::Resting | PeerState::Connected => None,
        });
    reason.or_else(|| Some("all is well".to_owned()))
}

/// Both NATs, if both are known and neither side is reached without one.
fn nats<'a>(facts: &Facts<'a>) -> Option<(&'a NatStatus, &'a NatStatus)> {
    if facts.is_connected() && !facts.is_relayed()
        || nat::has_public_address(facts.own)
        || nat::is_public(facts.peer)
    {
        return None;
    }
    Some((&facts.own.nat, facts.peer.nat.as_ref()?))
}

fn is_hard(nat: &NatStatus) -> bool {
    nat.mapping == Some(Mapping::EndpointDependent)
}

/// The hard NAT of a pair whose ports can be guessed, and whose it is: the other NAT is easy, or does
/// not matter, since this one lets in any port of an address that was sent to, or both go in sequence.
fn hard_one<'a>(facts: &Facts<'a>) -> Option<(&'a NatStatus, &'static str)> {
    let (own, peer) = nats(facts)?;
    let lets_in = |nat: &NatStatus| nat.filtering.is_some_and(Filtering::lets_in_any_port);
    let in_sequence = |nat: &NatStatus| nat.ports == PortPattern::Sequential;
    let is_own = match (is_hard(own), is_hard(peer)) {
        (false, false) => return None,
        (true, false) => true,
        (false, true) => false,
        (true, true) if lets_in(own) => true,
        (true, true) if lets_in(peer) => false,
        (true, true) if in_sequence(own) && in_sequence(peer) => true,
        (true, true) => return None,
    };
    Some(match is_own {
        true => (own, "this node's"),
        false => (peer, "the peer's"),
    })
}

/// The change that helps: of a router before a NAT that is hard, to be asked for a port mapping; else,
/// and always, to have the port forwarded here.
fn forward(facts: &Facts<'_>) -> String {
    let port = facts.own.listen_port;
    let forward = format!(
        "forward UDP port {port} from this node's router to this host, and write that as its `endpoint` in the mesh \
         file"
    );
    let Some((own, peer)) = nats(facts) else {
        return forward;
    };
    let has_mapping = |kind: CandidateKind| kind == CandidateKind::Mapped;
    let of_peer = facts.direct().any(|c| has_mapping(c.kind));
    let of_own = facts.own.local.iter().any(|local| has_mapping(local.kind));
    let is_refused = !facts.own.refuted.is_empty();
    let whose = match (
        is_hard(peer) && !of_peer && is_at_home(peer),
        is_hard(own) && !of_own && !is_refused && is_at_home(own),
    ) {
        (true, _) => facts.name(),
        (false, true) => "this node",
        (false, false) => return forward,
    };
    format!("enable UPnP, NAT-PMP or PCP on the router of {whose}, or {forward}")
}

/// The router at the host's site may be the only NAT: the next one has a public address, as far as is
/// known.
fn is_at_home(nat: &NatStatus) -> bool {
    nat.hops.is_none_or(|hops| hops <= 2) && !nat.several_addresses
}
