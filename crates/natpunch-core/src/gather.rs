//! This node's own candidates: its interface addresses, and how STUN and rendezvous servers see
//! WireGuard's port.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{
    Abilities, AddressClass, CandidateKind, HostNetwork, InstanceName, LinkRole, Mapping,
    OwnAddressKind, PathId, Rate, RateBudget, canonical, canonical_ip, classify, is_global, jitter,
};
use rand_core::RngCore;

use crate::candidates::SUCCESSION;
use crate::nat::stun::{self, Answer, TransactionId};
use crate::sightings::Sightings;
use crate::{Event, Time, Transmit};

/// Servers asked.
const MAX_SERVERS: usize = 16;
/// Networks into which LAN beacons are sent.
const MAX_BEACONS: usize = 8;
/// Addresses that discovery instances state, of both families.
const MAX_STATED: usize = 16;
/// What they state is believed for an hour at most.
const MAX_STATED_LIFETIME: Duration = Duration::from_secs(3600);
/// How often one instance may change what it states of one family, and how often at once: each
/// change is published, and every peer probes it. Who roams faster between networks says so himself
/// ([`Local::restart`]).
const STATED_CHANGE: Duration = Duration::from_secs(15);
const STATED_CHANGES: u64 = 4;
/// When a request is sent again without an answer (tries: one more than this).
const RESEND: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];
/// How often to ask while a peer is not connected: often enough that mappings of 30 s stay open ...
const EAGER: Duration = Duration::from_secs(25);
/// ... and when all are.
const RELAXED: Duration = Duration::from_secs(180);
/// When something went wrong, a server is asked at once, but not more often than this.
const HURRY: Duration = Duration::from_secs(5);
/// Rounds without an answer after which a server's last word is no longer believed.
const MAX_SILENT_ROUNDS: u32 = 2;
/// After so many requests in a row without an answer a server counts as silent.
const SILENT_AFTER: usize = 3;
/// Where all servers are silent and no peer is connected, this node has most likely no way out: some
/// server is asked this often whether it answers again, by a single request ...
const LOOK: Duration = Duration::from_millis(2500);
/// ... or as seldom as this part of the outage, up to [`EAGER`]: an outage lasts at most so much
/// longer, and one of days costs no more than a peer that is away.
///
/// What a server pays for that: nothing of a node that hears a peer, whatever became of the server,
/// so a server that is down hears of a few nodes only. They are spread over a look each, and the
/// server's clients, which all of them are back by, still repeat their attempts ever more seldom.
const LOOK_PART: u32 = 24;

/// One STUN server.
#[derive(Debug)]
struct Server {
    transaction: TransactionId,
    tries: usize,
    next: Time,
    /// When the last request was sent.
    asked: Option<Time>,
    silent_rounds: u32,
    mapped: Option<SocketAddr>,
}

impl Server {
    fn is_silent(&self) -> bool {
        self.silent_rounds > 0 || self.tries > SILENT_AFTER
    }

    /// Begins a round of requests.
    fn restart(&mut self, rng: &mut impl RngCore, now: Time) {
        (self.transaction, self.tries, self.next) = (fresh(rng), 0, now);
    }
}

/// How much depends on what the servers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Haste {
    /// All peers are connected.
    Relaxed,
    /// Some peer is looked for.
    Eager,
    /// No peer is connected, and some are looked for.
    Alone,
}

impl Haste {
    /// From one round of requests to the next.
    fn interval(self) -> Duration {
        match self {
            Self::Relaxed => RELAXED,
            Self::Eager | Self::Alone => EAGER,
        }
    }
}

/// What the server of one discovery instance says of us, of one family.
#[derive(Debug)]
struct Stated {
    /// What is believed, and until when.
    address: Option<(SocketAddr, Time)>,
    /// What it said last, if that is another address: believed as soon as it may change.
    newer: Option<(SocketAddr, Time)>,
    changes: RateBudget,
}

fn stated_changes() -> RateBudget {
    RateBudget::new(Rate::every(STATED_CHANGE, STATED_CHANGES))
}

/// What this node knows of itself.
#[derive(Debug, Default)]
pub(crate) struct Local {
    listen_port: u16,
    /// Addresses by which peers may reach this host, best first.
    hosts: Vec<IpAddr>,
    /// All addresses of this host.
    own: BTreeSet<IpAddr>,
    /// The routers by which it leaves its networks.
    routers: BTreeSet<IpAddr>,
    /// Whether IPv4 is reached by a NAT64 of the network.
    has_nat64: bool,
    servers: BTreeMap<SocketAddr, Server>,
    /// Since when no server answers, and no peer was connected when that was noticed.
    cut_off: Option<Time>,
    /// What each discovery instance says of us, by kind; true for IPv6.
    stated: BTreeMap<(InstanceName, OwnAddressKind, bool), Stated>,
    /// What discovery instances have found of our NAT.
    mappings: BTreeMap<InstanceName, Mapping>,
    /// What peers say of us.
    pub(crate) sightings: Sightings,
}

impl Local {
    /// Takes this host's addresses, best first; true if peers may reach it at others than before.
    /// Addresses of tunnels are left out: a path through a tunnel would depend on another network's
    /// endpoint, and of two meshes on the same hosts each would run through the other.
    pub(crate) fn set_hosts(&mut self, network: &HostNetwork, overlay: &[IpNet]) -> bool {
        let is_usable =
            |ip: IpAddr| matches!(classify(ip), AddressClass::Global | AddressClass::Private);
        let mut hosts: Vec<IpAddr> = Vec::new();
        for address in &network.addresses {
            let ip = canonical_ip(address.ip);
            let in_mesh = overlay.iter().any(|net| net.contains(&ip));
            if address.role != LinkRole::Tunnel && is_usable(ip) && !in_mesh && !hosts.contains(&ip)
            {
                hosts.push(ip);
            }
        }
        self.own = network.ips().map(canonical_ip).collect();
        self.routers = network.routers.iter().copied().map(canonical_ip).collect();
        let before = (self.published_hosts(), self.has_nat64);
        self.hosts = hosts;
        self.has_nat64 = network.nat64.is_some();
        // Only the set of addresses matters to peers, not its order.
        before != (self.published_hosts(), self.has_nat64)
    }

    fn published_hosts(&self) -> BTreeSet<SocketAddr> {
        let published = self.candidates().into_iter();
        published
            .filter(|(kind, _)| *kind == CandidateKind::Host)
            .map(|(_, address)| address)
            .collect()
    }

    /// Starts asking servers that are new; forgets those that are gone.
    pub(crate) fn set_servers(
        &mut self,
        servers: &[SocketAddr],
        rng: &mut impl RngCore,
        now: Time,
    ) {
        let wanted: BTreeSet<SocketAddr> = servers
            .iter()
            .map(|server| canonical(*server))
            .filter(|server| {
                server.port() != 0 && !server.ip().is_unspecified() && !server.ip().is_multicast()
            })
            .take(MAX_SERVERS)
            .collect();
        self.servers.retain(|server, _| wanted.contains(server));
        for server in wanted {
            self.servers.entry(server).or_insert_with(|| Server {
                transaction: fresh(rng),
                tries: 0,
                next: now,
                asked: None,
                silent_rounds: 0,
                mapped: None,
            });
        }
    }

    /// Takes what a discovery instance says of us. [`believe`](Self::believe) tells
    /// what comes of it.
    pub(crate) fn hear(
        &mut self,
        instance: &InstanceName,
        (address, kind): (SocketAddr, OwnAddressKind),
        lifetime: Duration,
        now: Time,
    ) {
        let address = canonical(address);
        let key = (instance.clone(), kind, address.is_ipv6());
        let usable = address.port() != 0
            && matches!(
                classify(address.ip()),
                AddressClass::Global | AddressClass::Private
            )
            && (self.stated.len() < MAX_STATED || self.stated.contains_key(&key));
        if !usable {
            return;
        }
        let stated = self.stated.entry(key).or_insert_with(|| Stated {
            address: None,
            newer: None,
            changes: stated_changes(),
        });
        let said = Some((address, now + lifetime.min(MAX_STATED_LIFETIME)));
        let same = stated.address.is_some_and(|(before, _)| before == address);
        (stated.address, stated.newer) = if same {
            (said, None)
        } else {
            (stated.address, said)
        };
    }

    /// What is believed from now on of what discovery instances say, and was not before.
    pub(crate) fn believe(&mut self, now: Time) -> Vec<(InstanceName, SocketAddr)> {
        let mut news = Vec::new();
        for ((origin, ..), stated) in &mut self.stated {
            if let Some((address, _)) = stated.newer
                && stated.changes.take(now)
            {
                stated.address = stated.newer.take();
                news.push((origin.clone(), address));
            }
        }
        news
    }

    /// Takes what a discovery instance has found of our NAT.
    pub(crate) fn set_mapping(&mut self, origin: &InstanceName, mapping: Mapping) {
        if self.mappings.len() < MAX_STATED || self.mappings.contains_key(origin) {
            self.mappings.insert(origin.clone(), mapping);
        }
    }

    /// An instance was replaced by one with these abilities, or by none: what it said goes, or
    /// waits for the successor to say it again. Of the NAT only words are known, which need no
    /// grace.
    pub(crate) fn succeed(
        &mut self,
        instance: &InstanceName,
        successor: Option<Abilities>,
        now: Time,
    ) {
        self.mappings.remove(instance);
        let may_say = |kind: &OwnAddressKind| {
            successor.is_some_and(|abilities| match kind {
                OwnAddressKind::Reflexive => abilities.wireguard_port,
                OwnAddressKind::Mapped => abilities.mappings,
            })
        };
        self.stated
            .retain(|(by, kind, _), _| by != instance || may_say(kind));
        for ((by, ..), stated) in &mut self.stated {
            if by == instance {
                let ends = [&mut stated.address, &mut stated.newer];
                for (_, until) in ends.into_iter().flatten() {
                    *until = (*until).min(now + SUCCESSION);
                }
            }
        }
    }

    /// How our NAT maps: one server that was shown two ports is enough.
    pub(crate) fn mapping(&self) -> Option<Mapping> {
        self.mappings.values().max().copied()
    }

    /// How the NAT maps IPv4: what a server with two ports could tell, else what servers at several
    /// addresses see together.
    pub(crate) fn mapping_v4(&self) -> Option<Mapping> {
        let seen: BTreeSet<SocketAddr> = self.mapped_v4().collect();
        let dependent = self.mapping() == Some(Mapping::EndpointDependent);
        let answered = self.mapped_v4().count();
        match (self.mapping(), seen.len()) {
            _ if dependent || seen.len() > 1 => Some(Mapping::EndpointDependent),
            (None, 1) if answered > 1 => Some(Mapping::EndpointIndependent),
            (known, _) => known,
        }
    }

    /// Servers see this node at more than one IPv4 address.
    pub(crate) fn has_pool_v4(&self) -> bool {
        self.seen_v4().len() > 1
    }

    /// At how many IPv4 addresses servers see this node.
    pub(crate) fn addresses_v4(&self) -> u8 {
        u8::try_from(self.seen_v4().len()).unwrap_or(u8::MAX)
    }

    fn seen_v4(&self) -> BTreeSet<IpAddr> {
        let reflexive = |(kind, address): (CandidateKind, SocketAddr)| {
            let seen = kind == CandidateKind::Reflexive && address.is_ipv4();
            seen.then_some(address.ip())
        };
        self.outside().filter_map(reflexive).collect()
    }

    fn mapped_v4(&self) -> impl Iterator<Item = SocketAddr> {
        let mapped = self.servers.values().filter_map(|server| server.mapped);
        mapped.filter(|address| address.is_ipv4())
    }

    /// The STUN servers of IPv4, or else of IPv6, that answer.
    pub(crate) fn servers(&self, of_v4: bool) -> impl Iterator<Item = SocketAddr> {
        let answers = move |(address, server): (&SocketAddr, &Server)| {
            let is_of = |address: SocketAddr| address.is_ipv4() == of_v4;
            let seen = server.mapped.is_some_and(is_of);
            (seen && is_of(*address)).then_some(*address)
        };
        self.servers.iter().filter_map(answers)
    }

    /// Where this node is to be found from outside of its network.
    fn outside(&self) -> impl Iterator<Item = (CandidateKind, SocketAddr)> {
        let all = self.said_of_outside();
        all.filter(|(kind, address)| !self.is_refuted(*kind, address.ip()))
    }

    /// The mappings of its router that are none to the internet, and so are not published.
    pub(crate) fn refuted(&self) -> Vec<(CandidateKind, SocketAddr)> {
        let all = self.said_of_outside();
        all.filter(|(kind, address)| self.is_refuted(*kind, address.ip()))
            .collect()
    }

    /// Servers on the internet see this node at other addresses than its router believes to have:
    /// that router is behind a NAT itself.
    fn is_refuted(&self, kind: CandidateKind, ip: IpAddr) -> bool {
        let mut seen = self
            .said_of_outside()
            .filter(|(kind, _)| *kind == CandidateKind::Reflexive)
            .map(|(_, seen)| seen.ip())
            .filter(|seen| seen.is_ipv4() == ip.is_ipv4() && is_global(*seen))
            .peekable();
        kind == CandidateKind::Mapped && seen.peek().is_some() && seen.all(|seen| seen != ip)
    }

    /// Where peers see this node, unless that tells nobody anything: of a NAT that has another port
    /// for each destination, the port towards a third is no use where servers show the address.
    fn seen_by_peers(&self) -> impl Iterator<Item = (CandidateKind, SocketAddr)> {
        let is_dependent = self.mapping_v4() == Some(Mapping::EndpointDependent);
        let is_useless = move |address: &SocketAddr| {
            let mut shown = self.outside().map(|(_, shown)| shown.ip());
            is_dependent && address.is_ipv4() && shown.any(|ip| ip == address.ip())
        };
        let seen = self.sightings.addresses().into_iter();
        seen.filter(move |address| !is_useless(address))
            .map(|address| (CandidateKind::Reflexive, address))
    }

    fn said_of_outside(&self) -> impl Iterator<Item = (CandidateKind, SocketAddr)> {
        let asked = self.servers.values().filter_map(|server| server.mapped);
        let stated = self.stated.iter().filter_map(|((_, kind, _), stated)| {
            stated.address.map(|(address, _)| ((*kind).into(), address))
        });
        asked
            .map(|address| (CandidateKind::Reflexive, address))
            .chain(stated)
    }

    /// The network is another: asks all servers anew, and believes what is stated of us at once
    /// again.
    pub(crate) fn restart(&mut self, rng: &mut impl RngCore, now: Time) {
        self.mappings.clear();
        self.sightings.forget_all();
        for stated in self.stated.values_mut() {
            stated.changes = stated_changes();
        }
        self.ask_anew(rng, now);
    }

    /// Asks all servers now.
    fn ask_anew(&mut self, rng: &mut impl RngCore, now: Time) {
        let servers = self.servers.values_mut();
        servers.for_each(|server| server.restart(rng, now));
    }

    /// A peer is connected again: if the servers were silent, they may answer, too.
    pub(crate) fn on_company(&mut self, rng: &mut impl RngCore, now: Time) {
        if self.cut_off.is_some() {
            self.ask_anew(rng, now);
        }
    }

    /// True once when a server has answered after all of them were silent and no peer was connected:
    /// this node is on the internet again.
    pub(crate) fn take_return(&mut self) -> bool {
        !self.is_all_silent() && self.cut_off.take().is_some()
    }

    fn is_all_silent(&self) -> bool {
        !self.servers.is_empty() && self.servers.values().all(Server::is_silent)
    }

    /// Whether WireGuard has this port on this host.
    pub(crate) fn is_listen_port(&self, port: u16) -> bool {
        self.listen_port == port
    }

    /// What servers saw of another port than this means nothing.
    pub(crate) fn set_listen_port(&mut self, port: u16) {
        if self.listen_port == port {
            return;
        }
        self.listen_port = port;
        for server in self.servers.values_mut() {
            server.mapped = None;
        }
    }

    /// A peer is no longer connected, and the reason may be that our NAT has a new mapping for us:
    /// asks now.
    pub(crate) fn hurry(&mut self, now: Time) {
        for server in self.servers.values_mut().filter(|server| server.tries == 0) {
            let earliest = server.asked.map_or(now, |asked| (asked + HURRY).max(now));
            server.next = server.next.min(earliest);
        }
    }

    /// An address of one of our interfaces with our port. What a STUN server says does not count:
    /// it may lie, and name a peer's address.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        address.port() == self.listen_port && self.own.contains(&address.ip())
    }

    /// Whether some STUN server has told how the world sees us.
    pub(crate) fn has_reflexive(&self) -> bool {
        self.servers.values().any(|server| server.mapped.is_some())
    }

    pub(crate) fn is_own_ip(&self, ip: IpAddr) -> bool {
        self.own.contains(&canonical_ip(ip))
    }

    /// A router by which this host leaves a network.
    pub(crate) fn is_router(&self, ip: IpAddr) -> bool {
        self.routers.contains(&ip)
    }

    /// Whether the world sees this node at this address too: a peer there is behind the same NAT.
    pub(crate) fn shares_public_ip(&self, ip: IpAddr) -> bool {
        self.outside().any(|(_, address)| address.ip() == ip)
    }

    /// Whether this host has an address of the family, as far as its addresses are known, or has a
    /// NAT64 translate for it.
    pub(crate) fn can_reach(&self, ip: IpAddr) -> bool {
        let is_translated = || self.has_nat64 && ip.is_ipv4() && is_global(ip);
        self.hosts.is_empty()
            || self.hosts.iter().any(|host| host.is_ipv4() == ip.is_ipv4())
            || is_translated()
    }

    /// Private IPv4 addresses, from which a LAN beacon is sent.
    pub(crate) fn beacon_sources(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts
            .iter()
            .copied()
            .filter(|ip| ip.is_ipv4() && classify(*ip) == AddressClass::Private)
            .take(MAX_BEACONS)
    }

    /// The addresses that a ping tells the peer, in turns: private IPv4, since nothing else can
    /// find them, global IPv6, and the rest.
    pub(crate) fn ping_hosts(&self) -> Vec<SocketAddr> {
        let mut classes = [Vec::new(), Vec::new(), Vec::new()];
        for ip in &self.hosts {
            let class = match (ip, classify(*ip)) {
                (IpAddr::V4(_), AddressClass::Private) => 0,
                (IpAddr::V6(_), AddressClass::Global) => 1,
                _ => 2,
            };
            if let Some(class) = classes.get_mut(class) {
                class.push(SocketAddr::new(*ip, self.listen_port));
            }
        }
        in_turns(&classes, crate::messages::probe::MAX_HOSTS)
    }

    /// Everything worth publishing, best first. Addresses of interfaces and those that servers see,
    /// of either family, take turns: however many there are of one class, each other one has its
    /// share of a record.
    pub(crate) fn candidates(&self) -> Vec<(CandidateKind, SocketAddr)> {
        let hosts: Vec<SocketAddr> = self
            .hosts
            .iter()
            .map(|ip| SocketAddr::new(*ip, self.listen_port))
            .collect();
        let mut outside: Vec<(CandidateKind, SocketAddr)> = Vec::new();
        let known = self.outside().chain(self.seen_by_peers());
        for (kind, address) in known.filter(|(_, at)| !hosts.contains(at)) {
            match outside.iter_mut().find(|(_, known)| *known == address) {
                // What servers see may be what the router maps.
                Some((known, _)) => *known = kind.min(*known),
                None => outside.push((kind, address)),
            }
        }
        let by_family = |all: Vec<(CandidateKind, SocketAddr)>| {
            let (v4, v6): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|(_, address)| address.is_ipv4());
            [v4, v6]
        };
        let of_hosts = hosts
            .into_iter()
            .map(|address| (CandidateKind::Host, address));
        let [host_v4, host_v6] = by_family(of_hosts.collect());
        let [outside_v4, outside_v6] = by_family(outside);
        let classes = [host_v4, host_v6, outside_v4, outside_v6];
        in_turns(&classes, crate::messages::record::MAX_CANDIDATES)
    }

    pub(crate) fn next_timeout(&self) -> Option<Time> {
        let stated = self.stated.values().flat_map(|stated| {
            let ends = [stated.address, stated.newer]
                .into_iter()
                .flatten()
                .map(|(_, until)| until);
            ends.chain(stated.newer.and_then(|_| stated.changes.available_at()))
        });
        self.servers
            .values()
            .map(|server| server.next)
            .chain(stated)
            .min()
    }

    /// Sends the requests that are due.
    pub(crate) fn handle_timeout(
        &mut self,
        haste: Haste,
        rng: &mut impl RngCore,
        now: Time,
        mut send: impl FnMut(Transmit),
    ) {
        self.stated.retain(|_, stated| {
            stated.address.take_if(|(_, until)| *until <= now);
            stated.newer.take_if(|(_, until)| *until <= now);
            stated.address.is_some() || stated.newer.is_some() || !stated.changes.is_full(now)
        });
        let cut_off = self.cut_off.filter(|_| haste == Haste::Alone);
        // Each server in turn, at moments that are not the same for any two nodes.
        let look = cut_off.map(|since| {
            let look = (now.since(since) / LOOK_PART).clamp(LOOK, EAGER);
            jitter(look, rng.next_u32())
        });
        let count = u32::try_from(self.servers.len()).unwrap_or(u32::MAX);
        let servers = self.servers.iter_mut().zip(0..);
        for ((address, server), place) in servers.filter(|((_, server), _)| server.next <= now) {
            if server.tries > RESEND.len() {
                let was_silent = server.silent_rounds > 0;
                // A look is no round: they are many more in the same time.
                if cut_off.is_none_or(|since| !was_silent || now.since(since) > EAGER) {
                    server.silent_rounds = server.silent_rounds.saturating_add(1);
                }
                if server.silent_rounds >= MAX_SILENT_ROUNDS {
                    server.mapped = None;
                }
                // A look is a round that begins with its last request.
                let (tries, wait) = match look {
                    Some(look) if !was_silent => (RESEND.len(), look * place),
                    Some(_) => (RESEND.len(), Duration::ZERO),
                    None => (0, haste.interval()),
                };
                (server.transaction, server.tries, server.next) = (fresh(rng), tries, now + wait);
                if !wait.is_zero() {
                    continue;
                }
            }
            let last = look.map_or(Duration::from_secs(1), |look| look * count);
            server.next = now + RESEND.get(server.tries).copied().unwrap_or(last);
            server.tries += 1;
            server.asked = Some(now);
            let payload = stun::request(server.transaction);
            send(Transmit::new(PathId::wireguard(*address), payload));
        }
        if haste == Haste::Alone && self.is_all_silent() {
            self.cut_off.get_or_insert(now);
        }
    }

    /// Takes an answer, if it is one of a server to our request. An unusable one voids what the
    /// server said before.
    pub(crate) fn handle_answer(
        &mut self,
        source: SocketAddr,
        payload: &[u8],
        haste: Haste,
        rng: &mut impl RngCore,
        now: Time,
    ) -> Option<Event> {
        let server = self.servers.get_mut(&source)?;
        let (transaction, answer) = stun::parse_answer(payload)?;
        if transaction != server.transaction || server.tries == 0 {
            return None;
        }
        (server.transaction, server.tries, server.silent_rounds) = (fresh(rng), 0, 0);
        server.next = now + haste.interval();
        let Answer::Mapped(address) = answer else {
            return None;
        };
        let address = canonical(address);
        let usable = address.port() != 0
            && matches!(
                classify(address.ip()),
                AddressClass::Global | AddressClass::Private
            );
        let before = std::mem::replace(&mut server.mapped, usable.then_some(address));
        (usable && before != Some(address)).then_some(Event::ReflexiveLearned {
            server: source.to_string(),
            address,
        })
    }
}

/// The first of each class, the second of each, and so on, up to so many: a class that is long
/// takes the places that others leave, and no more.
fn in_turns<T: Copy>(classes: &[Vec<T>], most: usize) -> Vec<T> {
    let longest = classes.iter().map(Vec::len).max().unwrap_or_default();
    (0..longest)
        .flat_map(|turn| classes.iter().filter_map(move |class| class.get(turn)))
        .copied()
        .take(most)
        .collect()
}

pub(crate) fn fresh(rng: &mut impl RngCore) -> TransactionId {
    let mut bytes = [0; 12];
    rng.fill_bytes(&mut bytes);
    TransactionId(bytes)
}

#[cfg(test)]
mod tests {
    use natpunch_types::HostAddress;

    use natpunch_types::Nat64;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    fn local(addresses: impl IntoIterator<Item = (String, LinkRole)>) -> Local {
        let mut local = Local::default();
        local.set_listen_port(1);
        let addresses = addresses.into_iter().map(|(ip, role)| HostAddress {
            ip: ip.parse().unwrap(),
            role,
        });
        let network = HostNetwork {
            addresses: addresses.collect(),
            routers: vec![],
            nat64: None,
        };
        local.set_hosts(&network, &[]);
        local
    }

    fn sees(local: &mut Local, origin: &str, address: &str) {
        let lifetime = Duration::from_secs(60);
        let address = address.parse().unwrap();
        let seen = (address, OwnAddressKind::Reflexive);
        local.hear(&InstanceName::new(origin), seen, lifetime, Time::ZERO);
        local.believe(Time::ZERO);
    }

    #[test]
    fn without_ipv4_a_nat64_makes_its_global_addresses_reachable_and_no_others() {
        let [global, private] = ["203.0.113.9", "192.168.7.9"].map(|ip| ip.parse().unwrap());
        let own = HostAddress {
            ip: "2001:db8::2".parse().unwrap(),
            role: LinkRole::DefaultRoute,
        };
        let mut network = HostNetwork {
            addresses: vec![own],
            ..HostNetwork::default()
        };
        let mut local = Local::default();
        local.set_hosts(&network, &[]);
        assert!(!local.can_reach(global));
        network.nat64 = Nat64::learn("64:ff9b::192.0.0.170".parse().unwrap());
        let is_news = local.set_hosts(&network, &[]);
        assert!(is_news, "candidates that were out of reach are tried");
        assert!(local.can_reach(global) && !local.can_reach(private));
    }

    #[test]
    fn two_servers_tell_how_the_nat_maps_and_one_alone_does_not() {
        let mapping = |seen: &[&str]| {
            let mut local = Local::default();
            for (n, mapped) in (1..).zip(seen) {
                let server = Server {
                    transaction: fresh(&mut ChaCha20Rng::from_seed([n; 32])),
                    tries: 0,
                    next: Time::ZERO,
                    asked: None,
                    silent_rounds: 0,
                    mapped: Some(mapped.parse().unwrap()),
                };
                let address = SocketAddr::from(([198, 51, 100, n], 3478));
                local.servers.insert(address, server);
            }
            local.mapping_v4()
        };
        assert_eq!(mapping(&["203.0.113.1:1000"]), None);
        assert_eq!(
            mapping(&["203.0.113.1:1000", "203.0.113.1:1000"]),
            Some(Mapping::EndpointIndependent)
        );
        assert_eq!(
            mapping(&["203.0.113.1:1000", "203.0.113.1:1001"]),
            Some(Mapping::EndpointDependent)
        );
    }

    /// How many requests leave in each of so many minutes, while nobody answers.
    fn unanswered(haste: Haste, minutes: u32) -> Vec<usize> {
        let (mut rng, mut local) = (ChaCha20Rng::from_seed([3; 32]), Local::default());
        let servers: Vec<SocketAddr> = (1..=4)
            .map(|n| SocketAddr::from(([198, 51, 100, n], 3478)))
            .collect();
        local.set_servers(&servers, &mut rng, Time::ZERO);
        let (mut counts, mut now) = (vec![0; minutes as usize], Time::ZERO);
        while let Some(count) = counts.get_mut((now.since(Time::ZERO).as_secs() / 60) as usize) {
            local.handle_timeout(haste, &mut rng, now, |_| *count += 1);
            now = local.next_timeout().unwrap().max(now);
        }
        counts
    }

    #[test]
    fn who_has_lost_all_servers_and_peers_looks_for_them_at_a_rate_that_falls_with_the_outage() {
        let counts = unanswered(Haste::Alone, 60);
        // A round of each, and one request every two and a half seconds whatever their number.
        assert!((35..=20 + 24).contains(&counts[0]), "{counts:?}");
        assert!((14..=20).contains(&counts[1]), "{counts:?}");
        assert!(counts[10..].iter().all(|count| *count <= 4), "{counts:?}");
        assert!(counts[10..].iter().sum::<usize>() >= 100, "{counts:?}");
    }

    #[test]
    fn who_hears_a_peer_does_not_look_for_servers_that_are_down() {
        for haste in [Haste::Relaxed, Haste::Eager] {
            let sent: usize = unanswered(haste, 10).iter().sum();
            let rounds = 1 + 600 / haste.interval().as_secs() as usize;
            assert!(sent <= rounds * 4 * 5, "{haste:?}: {sent}");
        }
    }

    #[test]
    fn who_has_the_address_at_which_servers_see_this_node_is_behind_the_same_nat() {
        let mut local = local([("192.168.1.2".to_owned(), LinkRole::DefaultRoute)]);
        sees(&mut local, "one", "203.0.113.1:1000");
        assert!(local.shares_public_ip("203.0.113.1".parse().unwrap()));
        assert!(!local.shares_public_ip("203.0.113.2".parse().unwrap()));
    }

    #[test]
    fn two_hundred_addresses_leave_room_for_what_servers_see_and_for_the_other_family() {
        let bridges = (0..200).map(|n| (format!("10.{n}.0.1"), LinkRole::Virtual));
        let lan = [
            ("192.168.1.2".to_owned(), LinkRole::DefaultRoute),
            ("2001:db8::2".to_owned(), LinkRole::DefaultRoute),
        ];
        let mut local = local(lan.into_iter().chain(bridges));
        sees(&mut local, "one", "203.0.113.1:1000");
        sees(&mut local, "two", "203.0.113.1:2000");
        let candidates = local.candidates();
        assert_eq!(candidates.len(), crate::messages::record::MAX_CANDIDATES);
        // Older versions keep the first eight of a record, or fewer.
        let first: Vec<String> = candidates
            .iter()
            .take(4)
            .map(|(_, address)| address.to_string())
            .collect();
        assert_eq!(
            first,
            [
                "192.168.1.2:1",
                "[2001:db8::2]:1",
                "203.0.113.1:1000",
                "10.0.0.1:1"
            ]
        );
        assert!(candidates.iter().any(|(_, address)| address.port() == 2000));
        assert_eq!(
            local.ping_hosts().first().map(ToString::to_string),
            Some("192.168.1.2:1".to_owned())
        );
        assert!(local.is_own("10.199.0.1:1".parse().unwrap()));
    }

    #[test]
    fn a_mapping_of_a_router_that_servers_see_elsewhere_is_not_published() {
        let mut local = local([("192.168.1.2".to_owned(), LinkRole::DefaultRoute)]);
        let mapped: SocketAddr = "203.0.113.1:4000".parse().unwrap();
        let said = (mapped, OwnAddressKind::Mapped);
        let router = InstanceName::new("port-mapping");
        local.hear(&router, said, Duration::from_secs(60), Time::ZERO);
        local.believe(Time::ZERO);
        let is_published = |local: &Local| {
            let published = local.candidates();
            let is = published.contains(&(CandidateKind::Mapped, mapped));
            assert_eq!(local.refuted().is_empty(), is);
            is
        };
        assert!(is_published(&local), "nobody says otherwise");
        sees(&mut local, "lan", "192.168.1.2:1");
        assert!(is_published(&local), "a server in the LAN sees no router");
        sees(&mut local, "one", "198.51.100.1:1000");
        assert!(!is_published(&local), "it is behind another NAT");
        sees(&mut local, "two", "203.0.113.1:1000");
        assert!(is_published(&local));
    }

    #[test]
    fn an_address_of_a_tunnel_is_told_to_nobody_and_is_still_this_nodes_own() {
        let local = local([
            ("192.168.1.2".to_owned(), LinkRole::DefaultRoute),
            ("10.8.0.2".to_owned(), LinkRole::Tunnel),
        ]);
        let tunnel: SocketAddr = "10.8.0.2:1".parse().unwrap();
        assert_eq!(local.candidates().len(), 1);
        assert!(!local.ping_hosts().contains(&tunnel));
        assert!(!local.beacon_sources().any(|ip| ip == tunnel.ip()));
        assert!(local.is_own(tunnel));
    }
}
