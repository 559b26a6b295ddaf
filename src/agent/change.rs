//! What a change touches, and whether it has cut this node off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_net::echo;
use natpunch_types::{DeviceSnapshot, PeerKey};

use super::journal::{Version, Watch};
use crate::config::{NodeConfig, RemotePeer};

/// How long a peer may take to answer before a change, to count as one that answers.
const BASELINE: Duration = Duration::from_millis(600);
/// How long an echo of the checks afterwards waits.
const CHECK: Duration = Duration::from_millis(700);
/// A new preshared key shows in the next handshake only, at the latest when the session ends
/// (REJECT_AFTER_TIME is 180 s).
const NEXT_HANDSHAKE: Duration = Duration::from_secs(200);
/// Most peers that are watched: a sample is enough to know whether the node is cut off.
const MOST_WATCHED: usize = 64;
/// An echo of this many bytes passes everywhere.
const SMALL: usize = 64;

/// A version that is known to work, loaded and as text.
#[derive(Debug, Clone)]
pub(super) struct Good {
    pub(super) node: NodeConfig,
    pub(super) version: Arc<Version>,
}

/// A version that was tried and undone.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) to: [u8; 32],
    pub(super) reason: String,
    /// As this agent tried it; `None`: another one did.
    pub(super) tried: Option<Box<NodeConfig>>,
}

impl Held {
    /// What the journal says. It knows no keys.
    pub(super) fn noted(to: [u8; 32], reason: String) -> Self {
        Self {
            to,
            reason,
            tried: None,
        }
    }

    /// Whether this is the version: the same files, and the same keys and secrets as far as these
    /// are known.
    pub(super) fn is(&self, node: &NodeConfig) -> bool {
        let keys = |of: &NodeConfig| {
            of.peers
                .iter()
                .map(|peer| peer.preshared_key.clone())
                .collect::<Vec<_>>()
        };
        let same_keys = |tried: &NodeConfig| {
            tried.private_key == node.private_key
                && keys(tried) == keys(node)
                && tried.discovery == node.discovery
        };
        self.to == node.content_hash && self.tried.as_deref().is_none_or(same_keys)
    }
}

/// A peer to watch, and where it was before.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    watch: Watch,
    before: Vec<IpAddr>,
    mtu: u32,
    /// It was watched in the change before, which is not confirmed: what it answered before that
    /// counts.
    known: bool,
}

/// What `change` has to keep alive: peers of `alive` (by name) that it touches. `operators` are the
/// peers that carry a login on this host.
pub(super) fn candidates(
    before: &NodeConfig,
    after: &NodeConfig,
    alive: &BTreeSet<String>,
    operators: &BTreeSet<String>,
    earlier: &[Watch],
) -> Vec<Candidate> {
    let wide = before.public_key != after.public_key
        || before.listen_port != after.listen_port
        || before.fwmark != after.fwmark
        || before.mtu != after.mtu
        || before.addresses != after.addresses;
    let by_name: BTreeMap<&str, &RemotePeer> = after
        .peers
        .iter()
        .map(|peer| (peer.name.as_str(), peer))
        .collect();
    let by_key: BTreeMap<PeerKey, &RemotePeer> =
        after.peers.iter().map(|peer| (peer.key, peer)).collect();
    let mut found = Vec::new();
    for peer in before
        .peers
        .iter()
        .filter(|peer| alive.contains(&peer.name))
    {
        let now = by_name
            .get(peer.name.as_str())
            .or_else(|| by_key.get(&peer.key))
            .copied();
        let operator = operators.contains(&peer.name);
        let direct = match now {
            Some(now) => is_changed(peer, now),
            // Whoever removes a peer means it, unless he sits behind it.
            None if operator => true,
            None => continue,
        };
        if !direct && !wide {
            continue;
        }
        let mut watch = Watch {
            name: peer.name.clone(),
            key: now.map(|now| now.key),
            addresses: now.map(|now| now.addresses.clone()).unwrap_or_default(),
            must: direct || operator || peer.critical || now.is_some_and(|now| now.critical),
            echo: false,
            full: false,
            handshake: now.is_some_and(|now| now.preshared_key != peer.preshared_key),
        };
        let earlier = earlier.iter().find(|earlier| earlier.name == peer.name);
        if let Some(earlier) = earlier {
            (watch.echo, watch.full) = (earlier.echo, earlier.full);
        }
        found.push(Candidate {
            watch,
            before: peer.addresses.clone(),
            mtu: before.mtu,
            known: earlier.is_some(),
        });
    }
    // Those that must be there come first, so that the sample never leaves one of them out for
    // another.
    found.sort_by_key(|candidate| !candidate.watch.must);
    found.truncate(MOST_WATCHED);
    found
}

fn is_changed(before: &RemotePeer, after: &RemotePeer) -> bool {
    before.key != after.key
        || before.preshared_key != after.preshared_key
        || before.allowed_ips != after.allowed_ips
        || before.endpoint != after.endpoint
        || before.managed != after.managed
        || before.listen_port != after.listen_port
        || before.relays != after.relays
}

/// Asks the candidates while everything is as it was. Blocks for at most [`BASELINE`] twice.
pub(super) fn baseline(candidates: Vec<Candidate>) -> Vec<Watch> {
    let ask = |candidates: &[&Candidate], length: usize| {
        let targets: Vec<IpAddr> = candidates
            .iter()
            .flat_map(|candidate| candidate.before.first())
            .copied()
            .collect();
        echo(&targets, length, BASELINE)
    };
    let fresh: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| !candidate.known)
        .collect();
    let small = ask(&fresh, SMALL);
    let answering: Vec<&Candidate> = fresh
        .into_iter()
        .filter(|candidate| {
            candidate
                .before
                .first()
                .is_some_and(|ip| small.contains(ip))
        })
        .collect();
    let mtu = candidates
        .first()
        .map_or(SMALL, |candidate| candidate.mtu as usize);
    let full = ask(&answering, mtu);
    let answered =
        |set: &BTreeSet<IpAddr>, ips: &[IpAddr]| ips.first().is_some_and(|ip| set.contains(ip));
    candidates
        .into_iter()
        .map(
            |Candidate {
                 mut watch,
                 before,
                 known,
                 ..
             }| {
                if !known {
                    (watch.echo, watch.full) =
                        (answered(&small, &before), answered(&full, &before));
                }
                watch
            },
        )
        .collect()
}

/// How long the peers of a change have.
pub(super) fn window(confirm: Duration, watched: &[Watch]) -> Duration {
    if watched.iter().any(|watch| watch.handshake) {
        confirm.max(NEXT_HANDSHAKE)
    } else {
        confirm
    }
}

/// What to ask whom, to see who is back.
#[derive(Debug, Clone)]
pub(super) struct Check {
    small: Vec<IpAddr>,
    full: Vec<IpAddr>,
    mtu: usize,
}

impl Check {
    /// Asks. Blocks for about a second.
    pub(super) fn run(self) -> BTreeSet<IpAddr> {
        let mut answered = echo(&self.full, self.mtu, CHECK);
        answered.extend(echo(&self.small, SMALL, CHECK));
        answered
    }
}

/// The time between a change and the knowledge that it works.
#[derive(Debug)]
pub(super) struct Guard {
    /// The version that is tried.
    pub(super) to: [u8; 32],
    /// When it is over, since boot.
    pub(super) deadline: Duration,
    /// Whether a person has to confirm.
    pub(super) by_person: bool,
    /// Who has to be alive.
    pub(super) watched: Vec<Watch>,
    /// Where the peers of the version before were.
    pub(super) endpoints: BTreeMap<PeerKey, SocketAddr>,
    /// When it began: a confirmation has to come over a connection that is younger.
    pub(super) began: std::time::Instant,
    back: BTreeSet<String>,
    /// Handshakes and received bytes right after the change.
    seen: Option<BTreeMap<PeerKey, (Option<Duration>, u64)>>,
}

/// How a change stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not known yet.
    Wait,
    /// It works; these peers did not come back, and are not needed.
    Good(Vec<String>),
    /// It does not: why.
    Bad(String),
}

impl Guard {
    pub(super) fn new(
        to: [u8; 32],
        deadline: Duration,
        by_person: bool,
        watched: Vec<Watch>,
        endpoints: BTreeMap<PeerKey, SocketAddr>,
    ) -> Self {
        let began = std::time::Instant::now();
        Self {
            to,
            deadline,
            by_person,
            watched,
            endpoints,
            began,
            back: BTreeSet::new(),
            seen: None,
        }
    }

    /// The peers that are not back.
    pub(super) fn missing(&self) -> Vec<String> {
        self.watched
            .iter()
            .map(|watch| &watch.name)
            .filter(|name| !self.back.contains(*name))
            .cloned()
            .collect()
    }

    /// What to ask, if there is anything to learn by asking.
    pub(super) fn check(&self, mtu: u32) -> Option<Check> {
        let mut check = Check {
            small: Vec::new(),
            full: Vec::new(),
            mtu: mtu as usize,
        };
        for watch in self
            .watched
            .iter()
            .filter(|watch| !self.back.contains(&watch.name))
        {
            let list = if watch.full {
                &mut check.full
            } else {
                &mut check.small
            };
            list.extend(watch.addresses.first().filter(|_| watch.key.is_some()));
        }
        (!check.small.is_empty() || !check.full.is_empty()).then_some(check)
    }

    /// Takes the answers of a [`Check`].
    pub(super) fn answered(&mut self, answered: &BTreeSet<IpAddr>) {
        for watch in self
            .watched
            .iter()
            .filter(|watch| watch.key.is_some() && !watch.handshake)
        {
            if watch
                .addresses
                .first()
                .is_some_and(|address| answered.contains(address))
            {
                self.back.insert(watch.name.clone());
            }
        }
    }

    /// Takes what the device says. What it received shows life of those peers only that never
    /// answered an echo: a keepalive passes where nothing else does.
    pub(super) fn snapshot(&mut self, snapshot: &DeviceSnapshot) {
        let now: BTreeMap<PeerKey, _> = snapshot
            .peers
            .iter()
            .map(|peer| (peer.key, (peer.last_handshake, peer.rx_bytes)))
            .collect();
        let Some(seen) = &self.seen else {
            self.seen = Some(now);
            return;
        };
        for watch in &self.watched {
            let Some(key) = watch.key else { continue };
            let (handshake, received) = seen.get(&key).copied().unwrap_or_default();
            let Some((new_handshake, new_received)) = now.get(&key).copied() else {
                continue;
            };
            let alive = if watch.handshake {
                new_handshake.is_some() && new_handshake != handshake
            } else {
                !watch.echo && new_received > received
            };
            if alive {
                self.back.insert(watch.name.clone());
            }
        }
    }

    /// Judges, at a time since boot.
    pub(super) fn verdict(&self, now: Duration) -> Verdict {
        let missing = self.missing();
        if !self.by_person && missing.is_empty() {
            return Verdict::Good(missing);
        }
        if now < self.deadline {
            return Verdict::Wait;
        }
        if self.by_person {
            return Verdict::Bad("nobody confirmed it with `natpunch confirm`".to_owned());
        }
        let is_missing = |watch: &&Watch| !self.back.contains(&watch.name);
        let needed: Vec<&str> = self
            .watched
            .iter()
            .filter(is_missing)
            .filter(|watch| watch.must)
            .map(|watch| watch.name.as_str())
            .collect();
        if !needed.is_empty() {
            return Verdict::Bad(format!(
                "no sign of life after it from {}",
                needed.join(", ")
            ));
        }
        let others = self.watched.iter().filter(|watch| !watch.must).count();
        if missing.len() * 2 > others {
            return Verdict::Bad(format!(
                "no sign of life after it from {} of {others} peers that were alive before",
                missing.len()
            ));
        }
        Verdict::Good(missing)
    }
}

/// The peers through which somebody is logged in on this host: TCP connections to port 22 of one of
/// its mesh addresses, by who owns the other end. (A daemon does not see `SSH_CONNECTION`.)
pub(super) fn operators(node: &NodeConfig) -> BTreeSet<String> {
    let mut remotes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        remotes.extend(
            logins(&text)
                .filter(|(local, _)| node.addresses.iter().any(|own| own.addr() == *local)),
        );
    }
    let owner = |remote: &IpAddr| {
        // An exit node is allowed everything: as in WireGuard, the most exact network decides.
        let networks = node
            .peers
            .iter()
            .flat_map(|peer| peer.allowed_ips.iter().map(move |net| (net, &peer.name)));
        networks
            .filter(|(net, _)| net.contains(remote))
            .max_by_key(|(net, _)| net.prefix_len())
            .map(|(_, name)| name)
    };
    remotes
        .iter()
        .filter_map(|(_, remote)| owner(remote))
        .cloned()
        .collect()
}

/// The local and remote addresses of established connections to the port of SSH, from the kernel's
/// table: words of it are `0100007F:0016`, the address in 32-bit words of the host's byte order.
fn logins(table: &str) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    const ESTABLISHED: &str = "01";
    table.lines().skip(1).filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        let (local, port) = local.split_once(':')?;
        (state == ESTABLISHED && port == "0016")
            .then(|| Some((address(local)?, address(remote.split_once(':')?.0)?)))?
    })
}

fn address(hex: &str) -> Option<IpAddr> {
    let word = |n: usize| {
        u32::from_str_radix(hex.get(n * 8..n * 8 + 8)?, 16)
            .ok()
            .map(u32::to_ne_bytes)
    };
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n)?);
            }
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::{mesh, node};

    fn watched(
        before: &str,
        after: &str,
        alive: &[&str],
        operators: &[&str],
    ) -> Vec<(String, bool)> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let found = candidates(
            &node(before),
            &node(after),
            &set(alive),
            &set(operators),
            &[],
        );
        found
            .into_iter()
            .map(|candidate| (candidate.watch.name, candidate.watch.must))
            .collect()
    }

    fn names(list: &[(&str, bool)]) -> Vec<(String, bool)> {
        list.iter()
            .map(|(name, must)| ((*name).to_owned(), *must))
            .collect()
    }

    #[test]
    fn only_peers_that_live_and_are_touched_are_watched() {
        let before = mesh(4, "");
        let routed = before.replacen(
            "[peers.p1]\n",
            "[peers.p1]\nroutes = [\"172.20.0.0/24\"]\n",
            1,
        );
        assert_eq!(
            watched(&before, &routed, &["p1", "p2"], &[]),
            names(&[("p1", true)])
        );
        assert!(
            watched(&before, &routed, &["p2"], &[]).is_empty(),
            "p1 was not alive before"
        );
        let key = PeerKey::from_bytes([9; 32]);
        let server = format!(
            "[discovery.rv]\nplugin = \"rendezvous\"\nserver = \"rv.example.org:1\"\npublic_key = \"{key}\"\n"
        );
        let found = format!("{before}{server}");
        let listed = found.replacen("[peers.p1]\n", "[peers.p1]\nrelays = [\"rv\"]\n", 1);
        assert_eq!(
            watched(&found, &listed, &["p1", "p2"], &[]),
            names(&[("p1", true)])
        );
        assert!(
            watched(&before, &mesh(3, ""), &["p1", "p4"], &[]).is_empty(),
            "whoever removes a peer means it"
        );
    }

    #[test]
    fn a_change_of_this_nodes_own_settings_touches_every_peer() {
        let before = mesh(3, "");
        let moved = format!("{before}\n[interface]\nmtu = 1300\n");
        assert_eq!(
            watched(&before, &moved, &["p1", "p3"], &[]),
            names(&[("p1", false), ("p3", false)])
        );
        let critical = moved.replacen("[peers.p3]\n", "[peers.p3]\ncritical = true\n", 1);
        assert_eq!(
            watched(&before, &critical, &["p1", "p3"], &[]),
            names(&[("p3", true), ("p1", false)])
        );
    }

    #[test]
    fn the_peer_that_carries_a_login_is_not_removed_unnoticed() {
        assert_eq!(
            watched(&mesh(4, ""), &mesh(3, ""), &["p4"], &["p4"]),
            names(&[("p4", true)])
        );
    }

    fn guard(must: &[bool]) -> Guard {
        let watched = must.iter().enumerate().map(|(n, must)| Watch {
            name: format!("p{n}"),
            key: Some(PeerKey::from_bytes([n as u8; 32])),
            addresses: vec![IpAddr::from([10, 0, 0, n as u8])],
            must: *must,
            echo: true,
            full: false,
            handshake: false,
        });
        Guard::new(
            [1; 32],
            Duration::from_secs(10),
            false,
            watched.collect(),
            BTreeMap::new(),
        )
    }

    #[test]
    fn a_change_is_good_as_soon_as_everybody_is_back_and_bad_if_one_is_missing_that_must_be_there()
    {
        let (early, late) = (Duration::from_secs(1), Duration::from_secs(10));
        let mut guard = guard(&[true, false, false]);
        assert_eq!(guard.verdict(early), Verdict::Wait);
        guard.answered(&[IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])].into());
        assert!(matches!(guard.verdict(late), Verdict::Bad(why) if why.contains("p0")));
        guard.answered(&[IpAddr::from([10, 0, 0, 0])].into());
        assert_eq!(guard.verdict(early), Verdict::Good(vec![]));
    }

    #[test]
    fn a_peer_that_went_to_sleep_does_not_undo_a_change_of_all() {
        let late = Duration::from_secs(10);
        let mut guard = guard(&[false, false, false]);
        guard.answered(&[IpAddr::from([10, 0, 0, 0])].into());
        assert!(
            matches!(guard.verdict(late), Verdict::Bad(_)),
            "most are gone"
        );
        guard.answered(&[IpAddr::from([10, 0, 0, 1])].into());
        assert_eq!(guard.verdict(late), Verdict::Good(vec!["p2".to_owned()]));
    }

    #[test]
    fn only_a_person_can_confirm_what_a_person_has_to() {
        let mut guard = guard(&[]);
        guard.by_person = true;
        assert_eq!(guard.verdict(Duration::ZERO), Verdict::Wait);
        assert!(matches!(
            guard.verdict(Duration::from_secs(10)),
            Verdict::Bad(_)
        ));
    }

    #[test]
    fn logins_are_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
             0: 01004D0A:0016 02004D0A:D431 01 00000000\n   1: 0100007F:0016 0100007F:0001 0A 0\n   \
             2: 01004D0A:1F90 02004D0A:D431 01 0\n   3: bad\n";
        let (local, remote) = ("10.77.0.1".parse().unwrap(), "10.77.0.2".parse().unwrap());
        assert_eq!(logins(table).collect::<Vec<_>>(), [(local, remote)]);
        let mapped = "h\n 0: 0000000000000000FFFF000001004D0A:0016 0000000000000000FFFF000002004D0A:1234 01 0\n";
        assert_eq!(logins(mapped).collect::<Vec<_>>(), [(local, remote)]);
    }
}
