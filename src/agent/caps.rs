//! Changes that are refused unless somebody says that they are meant: the typo, the bad merge, the
//! deleted half of a file.

use std::collections::BTreeSet;
use std::fmt;

use natpunch_types::Consent;

use crate::config::{DiscoverySettings, NodeConfig, RemotePeer};

/// More peers than this many percent are not removed at once ...
const MOST_REMOVED_PERCENT: usize = 30;
/// ... but one always may be: else a mesh of three could never lose a member.
const ALWAYS_REMOVABLE: usize = 1;
/// A route this short is a default route, or half of one: `0.0.0.0/1` and `128.0.0.0/1` together do
/// the same.
const DEFAULT_ROUTE: u8 = 1;
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

/// What of a change is not consented to, by the new file or by `allowed`.
pub(crate) fn refusals(
    before: &NodeConfig,
    after: &NodeConfig,
    allowed: &[Consent],
) -> Vec<Refusal> {
    let mut found = needed(before, after);
    found.retain(|refusal| {
        !allowed.contains(&refusal.consent) && !after.apply.allow.contains(&refusal.consent)
    });
    found
}

fn needed(before: &NodeConfig, after: &NodeConfig) -> Vec<Refusal> {
    let mut found = Vec::new();
    let names: BTreeSet<&str> = after.peers.iter().map(|peer| peer.name.as_str()).collect();
    let keys: BTreeSet<_> = after.peers.iter().map(|peer| peer.key).collect();
    // A peer with a new name or a new key is still there.
    let is_removed =
        |peer: &&RemotePeer| !names.contains(peer.name.as_str()) && !keys.contains(&peer.key);
    let removed: Vec<&str> = before
        .peers
        .iter()
        .filter(is_removed)
        .map(|peer| peer.name.as_str())
        .collect();
    let mut refuse = |consent, what| found.push(Refusal { consent, what });
    if after.peers.is_empty() && !before.peers.is_empty() {
        refuse(
            Consent::EmptyMesh,
            format!("it removes all {} peers", before.peers.len()),
        );
    } else if removed.len() > ALWAYS_REMOVABLE
        && removed.len() * 100 > before.peers.len() * MOST_REMOVED_PERCENT
    {
        let what = format!(
            "it removes {} of {} peers: {}",
            removed.len(),
            before.peers.len(),
            list(&removed)
        );
        refuse(Consent::MassRemoval, what);
    }
    let lost: Vec<&str> = before
        .peers
        .iter()
        .filter(|peer| peer.critical)
        .filter(|peer| {
            let now = after
                .peers
                .iter()
                .find(|other| other.name == peer.name || other.key == peer.key);
            now.is_none_or(|now| can_be_found(before, peer) && !can_be_found(after, now))
        })
        .map(|peer| peer.name.as_str())
        .collect();
    if !lost.is_empty() {
        let what = format!(
            "it removes critical peers, or the last way to find them: {}",
            list(&lost)
        );
        refuse(Consent::CriticalRemoval, what);
    }
    let added: Vec<String> = default_routes(after)
        .difference(&default_routes(before))
        .map(ToString::to_string)
        .collect();
    if !added.is_empty() {
        let what = format!(
            "it sends everything to one peer: route {}",
            added.join(", ")
        );
        refuse(Consent::DefaultRoute, what);
    }
    found
}

/// Whether there is a way to learn where a peer is.
fn can_be_found(node: &NodeConfig, peer: &RemotePeer) -> bool {
    let discovered = node
        .discovery
        .iter()
        .any(|instance| !matches!(instance.settings, DiscoverySettings::Static(_)));
    peer.endpoint.is_some() || (peer.managed && discovered)
}

fn default_routes(node: &NodeConfig) -> BTreeSet<ipnet::IpNet> {
    node.peers
        .iter()
        .flat_map(|peer| &peer.allowed_ips)
        .filter(|net| net.prefix_len() <= DEFAULT_ROUTE)
        .copied()
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{mesh, node};

    fn words(before: &str, after: &str) -> Vec<&'static str> {
        refusals(&node(before), &node(after), &[])
            .iter()
            .map(|refusal| refusal.consent.word())
            .collect()
    }

    #[test]
    fn one_peer_may_always_go_and_a_third_may_not() {
        assert!(words(&mesh(2, ""), &mesh(1, "")).is_empty());
        assert!(words(&mesh(10, ""), &mesh(7, "")).is_empty());
        assert_eq!(words(&mesh(10, ""), &mesh(6, "")), ["mass-removal"]);
        assert_eq!(words(&mesh(3, ""), &mesh(1, "")), ["mass-removal"]);
        assert_eq!(words(&mesh(3, ""), &mesh(0, "")), ["empty-mesh"]);
        assert!(
            words(&mesh(1, ""), &mesh(9, "")).is_empty(),
            "growth is free"
        );
    }

    #[test]
    fn a_renamed_peer_is_not_removed() {
        let before = mesh(3, "");
        let after = before
            .replace("[peers.p1]", "[peers.one]")
            .replace("[peers.p2]", "[peers.two]");
        assert!(words(&before, &after).is_empty());
    }

    #[test]
    fn a_critical_peer_stays_and_so_does_the_last_way_to_it() {
        let before = mesh(4, "critical = true\nendpoint = \"192.0.2.1:1\"\n");
        assert_eq!(
            words(
                &before,
                &mesh(3, "critical = true\nendpoint = \"192.0.2.1:1\"\n")
            ),
            ["critical-removal"]
        );
        assert_eq!(
            words(&before, &mesh(4, "critical = true\n")),
            ["critical-removal"],
            "the endpoint was all there was"
        );
        let discovery = "[discovery.web]\nplugin = \"http\"\nurl = \"https://example.org/v1\"\n";
        let found = format!("{}{discovery}", mesh(4, "critical = true\n"));
        assert!(words(&before, &found).is_empty());
        assert_eq!(
            words(&before, &mesh(3, "")),
            ["critical-removal"],
            "the word can't be taken away with the peer"
        );
    }

    #[test]
    fn a_default_route_in_halves_is_one() {
        let half = mesh(4, "").replacen(
            "[peers.p1]\n",
            "[peers.p1]\nroutes = [\"128.0.0.0/1\"]\n",
            1,
        );
        assert_eq!(words(&mesh(4, ""), &half), ["default-route"]);
        assert!(words(&half, &half).is_empty(), "it was there before");
    }

    #[test]
    fn a_word_in_the_file_or_on_the_command_line_is_enough() {
        let (before, after) = (mesh(10, ""), mesh(2, ""));
        assert!(
            words(
                &before,
                &format!("{after}[apply]\nallow = [\"mass-removal\"]\n")
            )
            .is_empty()
        );
        assert_eq!(
            words(
                &before,
                &format!("{after}[apply]\nallow = [\"empty-mesh\"]\n")
            ),
            ["mass-removal"]
        );
        assert!(refusals(&node(&before), &node(&after), &[Consent::MassRemoval]).is_empty());
    }
}
