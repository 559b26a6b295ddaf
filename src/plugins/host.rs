//! The plugin host: runs each discovery instance as a task of its own, stamps the origin of what it
//! offers, bounds rate and count, and starts it again with back-off when it fails.
//!
//! A plugin never blocks the agent: what it offers goes through one bounded channel and is dropped,
//! with a count, when the agent can't keep up; what it is told is kept as the newest state, not as
//! a backlog.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use natpunch_plugin::{
    BoxFuture, Discovery, Health, Host, Input, Observation, PeerInterest, PeerKey, SealedRecord,
    SecretKey,
};
use natpunch_types::{Candidate, Mapping, Origin, RENDEZVOUS_MAGIC, canonical};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Offers of one plugin that wait for the agent; more are dropped.
const EVENT_QUEUE: usize = 1024;
/// Datagrams that wait for a plugin; the oldest are dropped.
const DATAGRAM_QUEUE: usize = 64;
/// Peers to meet that wait for a plugin; more are not told, and come again with their next round.
const MEET_QUEUE: usize = 1024;
/// Offers that a plugin may make in one second. A mesh of 10,000 peers is looked up in a few
/// seconds.
const OFFERS_PER_SECOND: u32 = 4096;
/// The first and the longest pause before a failed plugin is run again.
const RESTART_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long a plugin may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// What plugins tell the agent.
#[derive(Debug)]
pub enum PluginEvent {
    /// An address of a peer.
    Candidate {
        /// The peer.
        peer: PeerKey,
        /// The address, with its origin stamped.
        candidate: Candidate,
    },
    /// An address at which a server sees this node.
    OwnAddress {
        /// Which instance's server.
        origin: Origin,
        /// The address.
        address: SocketAddr,
        /// How long it may be believed.
        lifetime: Duration,
    },
    /// Probe the peer at the same moment as it probes this node.
    Fire {
        /// Which instance's server says so.
        origin: Origin,
        /// The peer.
        peer: PeerKey,
        /// In how long.
        after: Duration,
    },
    /// The peer wants to be probed.
    Wanted {
        /// The peer.
        peer: PeerKey,
    },
    /// How this node's NAT maps WireGuard's port.
    Mapping {
        /// Which instance's server says so.
        origin: Origin,
        /// How.
        mapping: Mapping,
    },
    /// A sealed record.
    Record {
        /// Which instance found it.
        origin: Origin,
        /// The record.
        record: SealedRecord,
    },
    /// A datagram to send from WireGuard's port.
    Send {
        /// Which instance sends it, and gets the replies.
        origin: Origin,
        /// Where to.
        destination: SocketAddr,
        /// What.
        payload: Vec<u8>,
    },
}

/// What every plugin instance may know of this node.
pub struct NodeFacts {
    /// This node's public key.
    pub own_key: PeerKey,
    /// Its private key, for plugins that authenticate with it.
    pub private_key: SecretKey,
    /// WireGuard's listen port.
    pub listen_port: u16,
}

/// One running instance of `[discovery.NAME]`.
pub struct Instance {
    origin: Origin,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// The state behind a plugin's [`Host`].
struct Shared {
    origin: Origin,
    facts: NodeFacts,
    may_use_key: bool,
    may_use_port: bool,
    inbox: Mutex<Inbox>,
    wake: Notify,
    events: mpsc::Sender<PluginEvent>,
    dropped: AtomicU64,
    meter: Mutex<Meter>,
    health: Mutex<Health>,
}

/// The newest of everything that a plugin has not fetched yet.
#[derive(Default)]
struct Inbox {
    shutdown: bool,
    network_changed: bool,
    peers: Option<Arc<[PeerInterest]>>,
    records: Option<Arc<[SealedRecord]>>,
    meets: BTreeSet<PeerKey>,
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    /// The newest state, told again to a plugin that was restarted.
    last_peers: Option<Arc<[PeerInterest]>>,
    last_records: Option<Arc<[SealedRecord]>>,
}

struct Meter {
    since: Instant,
    offers: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    fn take(&mut self) -> Option<Input> {
        if self.shutdown {
            return Some(Input::Shutdown);
        }
        if let Some(peers) = self.peers.take() {
            return Some(Input::Peers(peers));
        }
        if std::mem::take(&mut self.network_changed) {
            return Some(Input::NetworkChanged);
        }
        if let Some(records) = self.records.take() {
            return Some(Input::Records(records));
        }
        if let Some(peer) = self.meets.pop_first() {
            return Some(Input::Meet(peer));
        }
        self.datagrams
            .pop_front()
            .map(|(source, payload)| Input::Datagram { source, payload })
    }
}

impl Shared {
    fn tell(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut lock(&self.inbox));
        self.wake.notify_one();
    }

    /// Counts an offer; false when the plugin offers too much.
    fn admit(&self) -> bool {
        let mut meter = lock(&self.meter);
        let now = Instant::now();
        if now.duration_since(meter.since) >= Duration::from_secs(1) {
            *meter = Meter {
                since: now,
                offers: 0,
            };
        }
        meter.offers += 1;
        let admitted = meter.offers <= OFFERS_PER_SECOND;
        if !admitted {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn emit(&self, event: PluginEvent) {
        if self.admit() && self.events.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Host for Shared {
    fn own_key(&self) -> PeerKey {
        self.facts.own_key
    }

    fn private_key(&self) -> Option<SecretKey> {
        self.may_use_key.then(|| self.facts.private_key.clone())
    }

    fn listen_port(&self) -> u16 {
        self.facts.listen_port
    }

    fn now(&self) -> Duration {
        natpunch_net::boot_time()
    }

    fn next<'a>(&'a self) -> BoxFuture<'a, Input> {
        Box::pin(async move {
            loop {
                if let Some(input) = lock(&self.inbox).take() {
                    return input;
                }
                self.wake.notified().await;
            }
        })
    }

    fn observe(&self, observation: Observation) {
        let candidate = Candidate {
            address: canonical(observation.address),
            kind: observation.kind,
            origin: self.origin.clone(),
            lifetime: observation.lifetime,
        };
        self.emit(PluginEvent::Candidate {
            peer: observation.peer,
            candidate,
        });
    }

    fn observed_self(&self, address: SocketAddr, lifetime: Duration) {
        // Who has no port can't know how the world sees it.
        if self.may_use_port {
            let address = canonical(address);
            self.emit(PluginEvent::OwnAddress {
                origin: self.origin.clone(),
                address,
                lifetime,
            });
        }
    }

    fn fire(&self, peer: PeerKey, after: Duration) {
        if self.may_use_port {
            self.emit(PluginEvent::Fire {
                origin: self.origin.clone(),
                peer,
                after,
            });
        }
    }

    fn wanted(&self, peer: PeerKey) {
        if self.may_use_port {
            self.emit(PluginEvent::Wanted { peer });
        }
    }

    fn mapping(&self, mapping: Mapping) {
        if self.may_use_port {
            self.emit(PluginEvent::Mapping {
                origin: self.origin.clone(),
                mapping,
            });
        }
    }

    fn deliver(&self, record: SealedRecord) {
        if record.blob.len() <= SealedRecord::MAX {
            self.emit(PluginEvent::Record {
                origin: self.origin.clone(),
                record,
            });
        }
    }

    fn send_from_wireguard_port(&self, destination: SocketAddr, payload: Vec<u8>) {
        if self.may_use_port {
            let destination = canonical(destination);
            self.emit(PluginEvent::Send {
                origin: self.origin.clone(),
                destination,
                payload,
            });
        }
    }

    fn random(&self, buffer: &mut [u8]) {
        super::fill_random(buffer);
    }

    fn report(&self, health: Health) {
        let mut current = lock(&self.health);
        if *current != health {
            match &health {
                Health::Good(note) => tracing::info!(discovery = %self.origin, "{note}"),
                Health::Bad(problem) => tracing::warn!(discovery = %self.origin, "{problem}"),
            }
            *current = health;
        }
    }
}

impl Instance {
    /// Starts a plugin under the name `origin`.
    pub fn start(
        origin: Origin,
        mut plugin: Box<dyn Discovery>,
        facts: NodeFacts,
        events: mpsc::Sender<PluginEvent>,
    ) -> Self {
        let descriptor = plugin.descriptor();
        let shared = Arc::new(Shared {
            origin: origin.clone(),
            facts,
            may_use_key: descriptor.needs_private_key,
            may_use_port: descriptor.needs_wireguard_port,
            inbox: Mutex::default(),
            wake: Notify::new(),
            events,
            dropped: AtomicU64::new(0),
            meter: Mutex::new(Meter {
                since: Instant::now(),
                offers: 0,
            }),
            health: Mutex::new(Health::Good("starting".to_owned())),
        });
        let host = shared.clone();
        let task = tokio::spawn(async move {
            let mut backoff = RESTART_BACKOFF.0;
            loop {
                let started = Instant::now();
                let outcome = plugin.run(host.clone()).await;
                if lock(&host.inbox).shutdown {
                    return;
                }
                let problem = match outcome {
                    Ok(()) => "stopped by itself".to_owned(),
                    Err(error) => error.to_string(),
                };
                if started.elapsed() > RESTART_BACKOFF.1 {
                    backoff = RESTART_BACKOFF.0;
                }
                host.report(Health::Bad(format!(
                    "{problem}; runs again in {} s",
                    backoff.as_secs()
                )));
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = shutdown_told(&host) => return,
                }
                backoff = (backoff * 2).min(RESTART_BACKOFF.1);
                let mut inbox = lock(&host.inbox);
                inbox.peers = inbox.last_peers.clone();
                inbox.records = inbox.last_records.clone();
            }
        });
        Self {
            origin,
            shared,
            task,
        }
    }

    /// Its name in the mesh file.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// How it is doing, and how many of its offers were dropped.
    pub fn health(&self) -> (Health, u64) {
        (
            lock(&self.shared.health).clone(),
            self.shared.dropped.load(Ordering::Relaxed),
        )
    }

    /// The peers of interest, complete.
    pub fn tell_peers(&self, peers: Arc<[PeerInterest]>) {
        self.shared.tell(|inbox| {
            inbox.last_peers = Some(peers.clone());
            inbox.peers = Some(peers);
        });
    }

    /// The records to publish, complete.
    pub fn tell_records(&self, records: Arc<[SealedRecord]>) {
        self.shared.tell(|inbox| {
            inbox.last_records = Some(records.clone());
            inbox.records = Some(records);
        });
    }

    /// A round of probing this peer begins.
    pub fn tell_meet(&self, peer: PeerKey) {
        if self.shared.may_use_port {
            self.shared.tell(|inbox| {
                if inbox.meets.len() < MEET_QUEUE {
                    inbox.meets.insert(peer);
                }
            });
        }
    }

    /// The network changed.
    pub fn tell_network_changed(&self) {
        self.shared.tell(|inbox| inbox.network_changed = true);
    }

    /// A datagram from an address that it has sent to.
    pub fn tell_datagram(&self, source: SocketAddr, payload: Vec<u8>) {
        self.shared.tell(|inbox| {
            if inbox.datagrams.len() >= DATAGRAM_QUEUE {
                inbox.datagrams.pop_front();
            }
            inbox.datagrams.push_back((source, payload));
        });
    }

    /// Asks it to stop and waits a little; then it is aborted.
    pub async fn stop(mut self) {
        self.shared.tell(|inbox| inbox.shutdown = true);
        if tokio::time::timeout(STOP_DEADLINE, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.shared.tell(|inbox| inbox.shutdown = true);
    }
}

async fn shutdown_told(shared: &Shared) {
    loop {
        if lock(&shared.inbox).shutdown {
            return;
        }
        shared.wake.notified().await;
    }
}

/// The channel that plugins offer into.
pub fn channel() -> (mpsc::Sender<PluginEvent>, mpsc::Receiver<PluginEvent>) {
    mpsc::channel(EVENT_QUEUE)
}

/// Which instances get the datagrams of which server: for a minute after the last datagram that
/// each sent there.
///
/// One port of `natpunch serve` speaks several protocols. natpunch's own is told apart by its
/// magic; instances of the others, and several of one, each get what comes from there, and heed
/// what they can authenticate.
#[derive(Debug, Default)]
pub struct Correspondents {
    /// By the server's address, and whether the protocol is natpunch's own: who has sent there, and
    /// is heard until when.
    by_address: BTreeMap<(SocketAddr, bool), Vec<(Origin, Duration)>>,
    /// The addresses that the packet filter has to know: those of other protocols.
    filtered: usize,
}

impl Correspondents {
    /// How long replies are awaited.
    const LIFETIME: Duration = Duration::from_secs(60);
    /// The most addresses at one time that the packet filter has to know (its bound), and of all.
    const MAX: (usize, usize) = (64, 4_096);
    /// The most instances that share the datagrams of one address. The next one takes the place of
    /// the one that has sent nothing for the longest time.
    const MAX_SHARING: usize = 4;

    /// Notes that `origin` sent a datagram to `address` at `now`. True when the packet filter must
    /// learn the address, which it need not if the answers pass by their form; `None` when there is
    /// no room.
    pub fn sent(
        &mut self,
        origin: &Origin,
        address: SocketAddr,
        payload: &[u8],
        now: Duration,
    ) -> Option<bool> {
        let key = (address, payload.starts_with(&RENDEZVOUS_MAGIC));
        let is_new = !self.by_address.contains_key(&key);
        let learns = is_new && !key.1;
        if is_new && self.by_address.len() >= Self::MAX.1 || learns && self.filtered >= Self::MAX.0
        {
            return None;
        }
        self.filtered += usize::from(learns);
        // In the order in which they sent last.
        let sharing = self.by_address.entry(key).or_default();
        sharing.retain(|(known, _)| known != origin);
        if sharing.len() >= Self::MAX_SHARING {
            sharing.remove(0);
        }
        sharing.push((origin.clone(), now + Self::LIFETIME));
        Some(learns)
    }

    /// The instances that correspond with `source` in the protocol of this payload, in order of
    /// their names.
    pub fn of(&self, source: SocketAddr, payload: &[u8]) -> BTreeSet<&Origin> {
        let sharing = self
            .by_address
            .get(&(source, payload.starts_with(&RENDEZVOUS_MAGIC)));
        sharing
            .into_iter()
            .flatten()
            .map(|(origin, _)| origin)
            .collect()
    }

    /// Forgets the instances and addresses whose time is over, and returns the addresses that the
    /// packet filter knows.
    pub fn expire(&mut self, now: Duration) -> Vec<SocketAddr> {
        let over = self.by_address.extract_if(.., |_, sharing| {
            sharing.retain(|(_, until)| now < *until);
            sharing.is_empty()
        });
        let over: Vec<_> = over
            .filter(|((_, ours), _)| !ours)
            .map(|((address, _), _)| address)
            .collect();
        self.filtered -= over.len();
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use natpunch_plugin::{CandidateKind, Descriptor, PluginError};

    fn facts() -> NodeFacts {
        NodeFacts {
            own_key: PeerKey::from_bytes([1; 32]),
            private_key: SecretKey::from_bytes([2; 32]),
            listen_port: 20_000,
        }
    }

    fn descriptor() -> Descriptor {
        Descriptor {
            id: "test",
            needs_private_key: false,
            needs_wireguard_port: false,
            carries_records: false,
        }
    }

    struct Scripted<F>(F);

    impl<F> Discovery for Scripted<F>
    where
        F: FnMut(Arc<dyn Host>) -> BoxFuture<'static, Result<(), PluginError>> + Send + 'static,
    {
        fn descriptor(&self) -> Descriptor {
            descriptor()
        }
        fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
            (self.0)(host)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_plugin_cannot_name_its_own_origin_and_gets_no_key_it_did_not_declare() {
        let (events, mut received) = channel();
        let plugin = Scripted(|host: Arc<dyn Host>| -> BoxFuture<'static, _> {
            Box::pin(async move {
                assert!(host.private_key().is_none());
                host.send_from_wireguard_port("192.0.2.1:1".parse().unwrap(), vec![1]);
                host.observe(Observation {
                    peer: PeerKey::from_bytes([3; 32]),
                    address: "[::ffff:192.0.2.7]:9".parse().unwrap(),
                    kind: CandidateKind::Reflexive,
                    lifetime: Duration::from_secs(60),
                });
                std::future::pending().await
            })
        });
        let _instance = Instance::start(Origin::new("web"), Box::new(plugin), facts(), events);
        let Some(PluginEvent::Candidate { candidate, .. }) = received.recv().await else {
            panic!("no candidate")
        };
        assert_eq!(candidate.origin.as_str(), "web");
        assert_eq!(candidate.address, "192.0.2.7:9".parse().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_plugin_is_run_again_with_growing_pauses_and_told_the_newest_state() {
        let (events, _received) = channel();
        let (seen, mut starts) = mpsc::unbounded_channel();
        let plugin = Scripted(move |host: Arc<dyn Host>| -> BoxFuture<'static, _> {
            let seen = seen.clone();
            Box::pin(async move {
                if matches!(host.next().await, Input::Peers(_)) {
                    let _ = seen.send(Instant::now());
                }
                Err(PluginError::Failed("no route".to_owned()))
            })
        });
        let instance = Instance::start(Origin::new("x"), Box::new(plugin), facts(), events);
        instance.tell_peers(Arc::from([]));
        let mut times = Vec::new();
        for _ in 0..4 {
            times.push(starts.recv().await.unwrap());
        }
        let pauses: Vec<_> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs())
            .collect();
        assert_eq!(pauses, [1, 2, 4]);
        assert!(
            matches!(instance.health().0, Health::Bad(problem) if problem.contains("no route"))
        );
    }

    #[tokio::test]
    async fn the_time_of_plugins_goes_on_in_sleep() {
        let plugin = Scripted(|_: Arc<dyn Host>| -> BoxFuture<'static, _> {
            Box::pin(std::future::pending())
        });
        let instance = Instance::start(Origin::new("x"), Box::new(plugin), facts(), channel().0);
        let before = natpunch_net::boot_time();
        assert!((before..=before + Duration::from_secs(60)).contains(&instance.shared.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_offers_is_bounded_and_does_not_block_the_plugin() {
        let (events, mut received) = channel();
        let plugin = Scripted(|host: Arc<dyn Host>| -> BoxFuture<'static, _> {
            Box::pin(async move {
                for port in 1..=60_000u16 {
                    host.observe(Observation {
                        peer: PeerKey::from_bytes([3; 32]),
                        address: SocketAddr::from(([192, 0, 2, 1], port)),
                        kind: CandidateKind::Host,
                        lifetime: Duration::from_secs(60),
                    });
                }
                host.report(Health::Good("done".to_owned()));
                std::future::pending().await
            })
        });
        let instance = Instance::start(Origin::new("x"), Box::new(plugin), facts(), events);
        tokio::task::yield_now().await;
        let mut count = 0;
        while received.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, EVENT_QUEUE);
        assert_eq!(instance.health().1, 60_000 - EVENT_QUEUE as u64);
    }

    fn ours() -> Vec<u8> {
        [&RENDEZVOUS_MAGIC[..], &[7]].concat()
    }

    fn heard(known: &Correspondents, address: SocketAddr, payload: &[u8]) -> String {
        known
            .of(address, payload)
            .into_iter()
            .map(Origin::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn replies_reach_the_instance_that_asked_for_one_minute() {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        let a = Origin::new("a");
        assert_eq!(known.sent(&a, address, &[1], Duration::ZERO), Some(true));
        assert_eq!(
            known.sent(&a, address, &[1], Duration::from_secs(30)),
            Some(false)
        );
        assert!(known.expire(Duration::from_secs(60)).is_empty());
        assert_eq!(heard(&known, address, &[2]), "a");
        assert_eq!(known.expire(Duration::from_secs(90)), [address]);
        assert_eq!(heard(&known, address, &[2]), "");
        for port in 0..64 {
            known.sent(
                &a,
                SocketAddr::from(([192, 0, 2, 2], port)),
                &[1],
                Duration::ZERO,
            );
        }
        assert_eq!(
            known.sent(&a, address, &[1], Duration::ZERO),
            None,
            "no room"
        );
        assert_eq!(
            known.sent(&a, address, &ours(), Duration::ZERO),
            Some(false),
            "it passes by its form"
        );
        assert_eq!(heard(&known, address, &ours()), "a");
        assert_eq!(
            known.expire(Duration::from_secs(60)).len(),
            64,
            "only what the filter knows"
        );
        assert_eq!(heard(&known, address, &ours()), "");
        assert_eq!(
            known.sent(&a, address, &[1], Duration::ZERO),
            Some(true),
            "there is room again"
        );
    }

    #[test]
    fn two_protocols_at_one_address_are_kept_apart() {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        let (rendezvous, go) = (Origin::new("rendezvous"), Origin::new("go"));
        assert_eq!(
            known.sent(&rendezvous, address, &ours(), Duration::ZERO),
            Some(false)
        );
        assert_eq!(
            known.sent(&go, address, &[1], Duration::ZERO),
            Some(true),
            "the filter does not know it yet"
        );
        assert_eq!(heard(&known, address, &ours()), "rendezvous");
        assert_eq!(heard(&known, address, &[2]), "go");
        known.sent(&rendezvous, address, &ours(), Duration::from_secs(30));
        assert_eq!(
            known.expire(Duration::from_secs(60)),
            [address],
            "its own protocol needs no place in the filter"
        );
        assert_eq!(
            (
                heard(&known, address, &ours()),
                heard(&known, address, &[2])
            ),
            ("rendezvous".into(), "".into())
        );
        assert_eq!(
            known.sent(&go, address, &[1], Duration::from_secs(60)),
            Some(true)
        );
    }

    #[test]
    fn instances_that_share_an_address_all_hear_what_comes_from_there() {
        let mut known = Correspondents::default();
        let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
        for (payload, learns) in [(&[1][..], true), (&ours(), false)] {
            let mut sent = |name: &str, second| {
                let now = Duration::from_secs(second);
                assert_eq!(
                    known.sent(&Origin::new(name), address, payload, now),
                    Some(learns && second == 0)
                );
            };
            ["a", "b", "c"]
                .into_iter()
                .zip(0..)
                .for_each(|(name, second)| sent(name, second));
            sent("a", 10);
            assert_eq!(heard(&known, address, payload), "a b c");
        }
        assert!(known.expire(Duration::from_secs(61)).is_empty());
        assert_eq!(
            heard(&known, address, &[1]),
            "a c",
            "each is heard for its own minute"
        );
        for (name, second) in [("d", 62), ("e", 63), ("f", 64)] {
            known.sent(
                &Origin::new(name),
                address,
                &[1],
                Duration::from_secs(second),
            );
        }
        assert_eq!(heard(&known, address, &[1]), "a d e f", "no more than four");
        assert_eq!(
            known.expire(Duration::from_secs(200)),
            [address],
            "the filter knows the address once"
        );
        assert_eq!((known.filtered, known.by_address.len()), (0, 0));
    }
}
