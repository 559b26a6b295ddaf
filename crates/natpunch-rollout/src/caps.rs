//! Changes that are refused unless a person says that they are intended: the typo, the bad merge,
//! the deleted half of a file.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use natpunch_types::{Consent, PeerKey};

use crate::facts::{Facts, Finds, PeerFacts};
use crate::login::Login;

/// More peers than this many percent are not removed at once ...
const MOST_REMOVED_PERCENT: usize = 30;
/// ... but one always may be: else a mesh of three could never lose a member.
const ALWAYS_REMOVABLE: usize = 1;
/// Names that a message lists.
const SHOWN: usize = 5;

/// Why a change needs a consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The consent that is missing.
    pub consent: Consent,
    /// What the change would do.
    pub what: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (`{}`)", self.what, self.consent.word())
    }
}

/// What of a change is not consented to, by the new file or by `allowed`. Without a version before
/// it is the first version that runs here.
pub fn refusals<D: Finds>(
    before: Option<&Facts<D>>,
    after: &Facts<D>,
    logins: &[Login],
    allowed: &[Consent],
) -> Vec<Refusal> {
    let mut found = match before {
        Some(before) => needed(before, after, logins),
        // The first version removes no peer. `exit_node` in the node's own section asks for the
        // default route by name; routes that amount to one do not.
        None => default_route(&[], &routes(after)).into_iter().collect(),
    };
    found.retain(|refusal| {
        !allowed.contains(&refusal.consent) && !after.rules.allow.contains(&refusal.consent)
    });
    found
}

fn needed<D: Finds>(before: &Facts<D>, after: &Facts<D>, logins: &[Login]) -> Vec<Refusal> {
    let found = [
        removal(before, after),
        critical_removal(before, after),
        operator_removal(before, after, logins),
        default_route(&allowed_ips(before), &allowed_ips(after)),
    ];
    found.into_iter().flatten().collect()
}

fn removal<D>(before: &Facts<D>, after: &Facts<D>) -> Option<Refusal> {
    let names: BTreeSet<&str> = after.peers.iter().map(|peer| peer.name.as_str()).collect();
    let keys: BTreeSet<PeerKey> = after.peers.iter().map(|peer| peer.key).collect();
    // A peer with a new name or a new key is still there.
    let is_removed =
        |peer: &&PeerFacts| !names.contains(peer.name.as_str()) && !keys.contains(&peer.key);
    let removed: Vec<&str> = before
        .peers
        .iter()
        .filter(is_removed)
        .map(|peer| peer.name.as_str())
        .collect();
    let all = before.peers.len();
    if after.peers.is_empty() && all > 0 {
        return Some(Refusal {
            consent: Consent::EmptyMesh,
            what: format!("it removes all {all} peers"),
        });
    }
    let many = removed.len() * 100 > all * MOST_REMOVED_PERCENT;
    (removed.len() > ALWAYS_REMOVABLE && many).then(|| Refusal {
        consent: Consent::MassRemoval,
        what: format!(
            "it removes {} of {all} peers: {}",
            removed.len(),
            list(&removed)
        ),
    })
}

fn critical_removal<D: Finds>(before: &Facts<D>, after: &Facts<D>) -> Option<Refusal> {
    let is_lost = |peer: &&PeerFacts| {
        let now = after.successor(peer);
        now.is_none_or(|now| can_be_found(before, peer) && !can_be_found(after, now))
    };
    let lost: Vec<&str> = before
        .peers
        .iter()
        .filter(|peer| peer.critical)
        .filter(is_lost)
        .map(|peer| peer.name.as_str())
        .collect();
    (!lost.is_empty()).then(|| Refusal {
        consent: Consent::CriticalRemoval,
        what: format!(
            "it removes critical peers, or the last way to find them: {}",
            list(&lost)
        ),
    })
}

/// A login that comes through a peer needs that peer, and the address behind it.
fn operator_removal<D>(before: &Facts<D>, after: &Facts<D>, logins: &[Login]) -> Option<Refusal> {
    let is_lost = |login: &&Login| {
        let Some((carrier, address)) = login.carrier(before) else {
            return false;
        };
        let peer = before.peers.iter().find(|peer| peer.name == carrier);
        let Some(now) = peer.and_then(|peer| after.successor(peer)) else {
            return true;
        };
        // An address in the place of another is a move: watched, and undone if it fails.
        let moved = peer.is_some_and(|peer| {
            let gains = |new: &IpAddr| !peer.addresses.contains(new);
            peer.addresses.contains(&address) && now.addresses.iter().any(gains)
        });
        !moved && !now.allowed_ips.iter().any(|net| net.contains(&address))
    };
    let lost: Vec<String> = logins
        .iter()
        .filter(is_lost)
        .filter_map(|login| {
            let (carrier, _) = login.carrier(before)?;
            Some(format!(
                "{carrier} (`{}` from {})",
                login.user.escape_debug(),
                login.from.escape_debug()
            ))
        })
        .collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    (!lost.is_empty()).then(|| Refusal {
        consent: Consent::OperatorRemoval,
        what: format!(
            "somebody is logged in on this host through a peer that it removes or takes the way \
             from: {}",
            list(&lost)
        ),
    })
}

fn default_route(before: &[IpNet], after: &[IpNet]) -> Option<Refusal> {
    let grows = FAMILIES.into_iter().any(|internet| {
        let (was, is) = (share(before, internet), share(after, internet));
        is > was && is >= HALF
    });
    let wide: Vec<String> = after
        .iter()
        .filter(|net| !before.contains(net) && net.prefix_len() <= WIDE)
        .map(ToString::to_string)
        .collect();
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    grows.then(|| Refusal {
        consent: Consent::DefaultRoute,
        what: format!(
            "it sends everything, or half of everything, into the mesh: route {}",
            list(&wide)
        ),
    })
}

/// What global unicast addresses there are of either family (RFC 4291, 2.4).
const FAMILIES: [&str; 2] = ["0.0.0.0/0", "2000::/3"];
/// All of a family.
const ALL: u64 = 1 << 32;
const HALF: u64 = ALL / 2;
/// Routes of longer prefixes are not named in a message.
const WIDE: u8 = 8;

/// How much of the global addresses of a family some networks cover, in parts of [`ALL`].
fn share(networks: &[IpNet], internet: &str) -> u64 {
    let Ok(internet) = internet.parse::<IpNet>() else {
        return 0;
    };
    let covered: Vec<IpNet> = networks
        .iter()
        .filter_map(|net| {
            if net.contains(&internet) {
                Some(internet)
            } else {
                internet.contains(net).then_some(*net)
            }
        })
        .collect();
    let part = |net: &IpNet| {
        let bits = net.prefix_len().saturating_sub(internet.prefix_len());
        ALL.checked_shr(bits.into()).unwrap_or_default()
    };
    IpNet::aggregate(&covered).iter().map(part).sum()
}

fn allowed_ips<D>(facts: &Facts<D>) -> Vec<IpNet> {
    let peers = facts.peers.iter();
    peers.flat_map(|peer| &peer.allowed_ips).copied().collect()
}

fn routes<D>(facts: &Facts<D>) -> Vec<IpNet> {
    let peers = facts.peers.iter();
    peers.flat_map(|peer| &peer.routes).copied().collect()
}

/// Whether there is a way to learn where a peer is.
fn can_be_found<D: Finds>(facts: &Facts<D>, peer: &PeerFacts) -> bool {
    let discovered = facts.node.discovery.values().any(Finds::finds_peers);
    peer.endpoint.is_some() || (peer.managed && discovered)
}

fn list(names: &[&str]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).copied().collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 {
        shown.join(", ")
    } else {
        format!("{} and {more} more", shown.join(", "))
    }
}
