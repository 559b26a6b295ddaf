//! The plugin host: runs each discovery instance as a task of its own, stamps the origin of what it
//! offers, bounds rate and count, and starts it again with back-off when it fails.
//!
//! A plugin never blocks the agent: what it offers goes through one bounded channel and is dropped,
//! with a count, when the agent can't keep up; what it is told is kept as the newest state, not as
//! a backlog.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_forwarder::{Forwarder, Wanted};
use natpunch_plugin::{
    Abilities, Ask, BoxFuture, Description, Discovery, Health, Host, Input, Interest, News,
    PEER_MESSAGE_MAX, PeerKey, PluginError, SealedRecord, SecretKey, SettingFlaw, StreamPort,
    Upstream,
};
use natpunch_types::{HostNetwork, InstanceName, Rate, RateBudget, Running, Time, canonical, lock};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::KeyPlaces;

/// Offers of one plugin that wait for the agent; more are dropped.
const EVENT_QUEUE: usize = 1024;
/// Datagrams that wait for a plugin; the oldest are dropped.
const DATAGRAM_QUEUE: usize = 64;
/// Messages of peers that wait for a plugin; the oldest are dropped.
const MESSAGE_QUEUE: usize = 256;
/// Peers to meet that wait for a plugin; more are not told, and come again with their next round.
const MEET_QUEUE: usize = 1024;
/// Offers that a plugin may make in one second. A mesh of 10,000 peers is looked up in a few
/// seconds.
const OFFERS: Rate = Rate::per_second(4_096, 4_096);
/// How long a plugin may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// The pauses before a failed plugin is run again.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    /// The first. Each is twice as long as the one before ...
    pub first: Duration,
    /// ... up to this. A plugin that ran for longer begins anew.
    pub longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
        }
    }
}

/// What an instance wants of the agent.
#[derive(Debug)]
pub struct PluginEvent {
    /// Which instance.
    pub from: InstanceName,
    /// Which run of this name: what a predecessor said last may still be on its way.
    pub run: u64,
    /// What.
    pub said: Said,
}

/// What an instance says or does.
#[derive(Debug)]
pub enum Said {
    /// Something for the core.
    News(News),
    /// A datagram to send from WireGuard's port, whose replies it gets.
    Send {
        /// Where to.
        destination: SocketAddr,
        /// What.
        payload: Vec<u8>,
    },
    /// A message to send to the same plugin at a peer.
    ToPeer {
        /// Whom.
        peer: PeerKey,
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
    /// The mark of packets that must not pass through the mesh, or 0.
    pub fwmark: u32,
    /// What carries datagrams where no UDP gets through.
    pub forwarder: Arc<Forwarder>,
    /// Its addresses and routers.
    pub network: HostNetwork,
}

/// One running instance of `[discovery.NAME]`.
pub struct Instance {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// The state behind a plugin's [`Host`].
struct Shared {
    name: InstanceName,
    run: u64,
    facts: NodeFacts,
    may_use_key: bool,
    abilities: Abilities,
    inbox: Mutex<Inbox>,
    wake: Notify,
    events: mpsc::Sender<PluginEvent>,
    dropped: AtomicU64,
    offers: Mutex<RateBudget>,
    health: Mutex<Health>,
    /// Where its settings stand.
    places: Mutex<KeyPlaces>,
    network: Mutex<HostNetwork>,
    /// The silence that mappings of our NAT outlive, in seconds; 0: not known.
    mapping_lifetime: AtomicU8,
}

/// The newest of everything that a plugin has not fetched yet.
#[derive(Default)]
struct Inbox {
    shutdown: bool,
    network_changed: bool,
    peers: Option<Arc<[Interest]>>,
    records: Option<Arc<[SealedRecord]>>,
    meets: BTreeSet<PeerKey>,
    messages: VecDeque<(PeerKey, Vec<u8>)>,
    datagrams: VecDeque<(SocketAddr, Vec<u8>)>,
    /// The newest state, told again to a plugin that was restarted.
    last_peers: Option<Arc<[Interest]>>,
    last_records: Option<Arc<[SealedRecord]>>,
}

impl Inbox {
    fn take(&mut self) -> Option<Input> {
        if self.shutdown {
            return Some(Input::Shutdown);
        }
        if let Some(peers) = self.peers.take() {
            return Some(Input::Ask(Ask::Peers(peers)));
        }
        if std::mem::take(&mut self.network_changed) {
            return Some(Input::NetworkChanged);
        }
        if let Some(records) = self.records.take() {
            return Some(Input::Ask(Ask::Records(records)));
        }
        if let Some(peer) = self.meets.pop_first() {
            return Some(Input::Ask(Ask::Meet(peer)));
        }
        if let Some((peer, payload)) = self.messages.pop_front() {
            return Some(Input::FromPeer { peer, payload });
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
        let admitted = lock(&self.offers).take(natpunch_net::now());
        if !admitted {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// What is wrong with settings, and where they stand.
    fn located(&self, flaws: &[SettingFlaw], places: &KeyPlaces) -> String {
        let located = flaws.iter().map(|flaw| {
            let flaw_of_file = SettingFlaw {
                key: format!("discovery.{}.{}", self.name, flaw.key),
                ..flaw.clone()
            };
            match places.of(&flaw.key) {
                Some(place) => format!("{place}: {flaw_of_file}"),
                None => flaw_of_file.to_string(),
            }
        });
        located.collect::<Vec<_>>().join("; ")
    }

    fn emit(&self, said: Said) {
        let event = PluginEvent {
            from: self.name.clone(),
            run: self.run,
            said,
        };
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

    fn network(&self) -> HostNetwork {
        lock(&self.network).clone()
    }

    fn now(&self) -> Time {
        natpunch_net::now()
    }

    fn mapping_lifetime(&self) -> Option<Duration> {
        let seconds = self.mapping_lifetime.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
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

    fn tell(&self, news: News) {
        if self.abilities.cover(&news) {
            self.emit(Said::News(canonical_in(news)));
        }
    }

    fn send_from_wireguard_port(&self, destination: SocketAddr, payload: Vec<u8>) {
        if self.abilities.wireguard_port {
            let destination = canonical(destination);
            self.emit(Said::Send {
                destination,
                payload,
            });
        }
    }

    fn send_to_peer(&self, peer: PeerKey, payload: Vec<u8>) {
        if self.abilities.peer_messages && payload.len() <= PEER_MESSAGE_MAX {
            self.emit(Said::ToPeer { peer, payload });
        }
    }

    fn open_stream<'a>(
        &'a self,
        server: &'a Upstream,
        port: u16,
    ) -> BoxFuture<'a, Result<StreamPort, String>> {
        let wanted = Wanted {
            upstream: Upstream {
                proxy: proxy(),
                ..server.clone()
            },
            wireguard_port: self.facts.listen_port,
            fwmark: self.facts.fwmark,
            port,
        };
        Box::pin(async move {
            let opened = self.facts.forwarder.open(wanted).await;
            let opened = opened.map_err(|error| error.to_string())?;
            Ok(StreamPort {
                address: opened.address,
                is_connected: opened.is_connected,
                problem: opened.problem,
            })
        })
    }

    fn random(&self, buffer: &mut [u8]) {
        super::fill_random(buffer);
    }

    fn report(&self, health: Health) {
        let mut current = lock(&self.health);
        if *current != health {
            let is_news = gist(&current) != gist(&health);
            match &health {
                Health::Good(note) if is_news => tracing::info!(discovery = %self.name, "{note}"),
                Health::Bad(problem) if is_news => {
                    tracing::warn!(discovery = %self.name, "{problem}");
                }
                Health::Good(same) | Health::Bad(same) => {
                    tracing::debug!(discovery = %self.name, "{same}");
                }
            }
            *current = health;
        }
    }
}

/// What is left of a report without its numbers. A round trip is measured again and again, and a
/// log that has a line of each is read by nobody.
fn gist(health: &Health) -> (bool, Vec<&str>) {
    let (is_good, text) = match health {
        Health::Good(note) => (true, note),
        Health::Bad(problem) => (false, problem),
    };
    let is_number = |word: &&str| {
        let bare = word.trim_matches(|c: char| c.is_ascii_punctuation());
        bare.parse::<f64>().is_ok()
    };
    let words = text.split_whitespace().filter(|word| !is_number(word));
    (is_good, words.collect())
}

/// The proxy for TLS that the environment names.
fn proxy() -> Option<String> {
    let named = ["https_proxy", "HTTPS_PROXY"];
    let mut named = named.iter().filter_map(|name| std::env::var(name).ok());
    named.find(|proxy| !proxy.is_empty())
}

/// The same with its addresses in their one form.
fn canonical_in(mut news: News) -> News {
    match &mut news {
        News::Candidate { candidate, .. } => candidate.address = canonical(candidate.address),
        News::Withdrawn { address, .. } | News::OwnAddress { address, .. } => {
            *address = canonical(*address);
        }
        News::Record(_) | News::Mapping(_) | News::Fire { .. } | News::Wanted { .. } => {}
    }
    news
}

impl Instance {
    /// Starts a plugin under this name; `run` tells it from every other of the name.
    pub fn start(
        name_and_run: (InstanceName, u64),
        about: &Description,
        plugin: Box<dyn Discovery>,
        facts: NodeFacts,
        events: mpsc::Sender<PluginEvent>,
    ) -> Self {
        Self::start_with(
            name_and_run,
            about,
            plugin,
            facts,
            events,
            Pauses::default(),
        )
    }

    /// The same with other pauses.
    pub fn start_with(
        (name, run): (InstanceName, u64),
        about: &Description,
        mut plugin: Box<dyn Discovery>,
        facts: NodeFacts,
        events: mpsc::Sender<PluginEvent>,
        pauses: Pauses,
    ) -> Self {
        let shared = Arc::new(Shared {
            name,
            run,
            network: Mutex::new(facts.network.clone()),
            facts,
            may_use_key: about.needs_private_key,
            abilities: about.abilities,
            inbox: Mutex::default(),
            wake: Notify::new(),
            events,
            dropped: AtomicU64::new(0),
            offers: Mutex::new(RateBudget::new(OFFERS)),
            health: Mutex::new(Health::Good("starting".to_owned())),
            places: Mutex::default(),
            mapping_lifetime: AtomicU8::new(0),
        });
        let host = shared.clone();
        let task = tokio::spawn(async move {
            let mut backoff = pauses.first;
            loop {
                let started = Instant::now();
                let outcome = plugin.run(host.clone()).await;
                if lock(&host.inbox).shutdown {
                    return;
                }
                let problem = match outcome {
                    Ok(()) => "stopped by itself".to_owned(),
                    Err(PluginError::Settings(flaws)) => host.located(&flaws, &lock(&host.places)),
                    Err(error) => error.to_string(),
                };
                if started.elapsed() > pauses.longest {
                    backoff = pauses.first;
                }
                host.report(Health::Bad(format!(
                    "{problem}; runs again in {} s",
                    backoff.as_secs()
                )));
                tokio::select! {
                    () = tokio::time::sleep(backoff) => {}
                    () = shutdown_told(&host) => return,
                }
                backoff = (backoff * 2).min(pauses.longest);
                let mut inbox = lock(&host.inbox);
                inbox.peers = inbox.last_peers.clone();
                inbox.records = inbox.last_records.clone();
            }
        });
        Self { shared, task }
    }

    /// Where its settings stand in the mesh file, which may change without them.
    pub fn set_places(&self, places: KeyPlaces) {
        *lock(&self.shared.places) = places;
    }

    /// Its name in the mesh file.
    pub fn name(&self) -> &InstanceName {
        &self.shared.name
    }

    /// Which run of this name it is, and what it can do.
    pub fn running(&self) -> Running {
        Running {
            abilities: self.shared.abilities,
            run: self.shared.run,
        }
    }

    /// Whether this is what it said, and not a predecessor.
    pub fn said(&self, event: &PluginEvent) -> bool {
        self.shared.name == event.from && self.shared.run == event.run
    }

    /// How it is doing, and how many of its offers were dropped.
    pub fn health(&self) -> (Health, u64) {
        (
            lock(&self.shared.health).clone(),
            self.shared.dropped.load(Ordering::Relaxed),
        )
    }

    /// A question of the core's, for this instance.
    pub fn ask(&self, ask: Ask) {
        let shared = &self.shared;
        match ask {
            Ask::Peers(peers) => {
                let peers = told_to(&shared.name, &peers);
                shared.tell(|inbox| {
                    inbox.last_peers = Some(peers.clone());
                    inbox.peers = Some(peers);
                });
            }
            Ask::Records(records) => shared.tell(|inbox| {
                inbox.last_records = Some(records.clone());
                inbox.records = Some(records);
            }),
            Ask::Meet(peer) if shared.abilities.meetings => shared.tell(|inbox| {
                if inbox.meets.len() < MEET_QUEUE {
                    inbox.meets.insert(peer);
                }
            }),
            Ask::Meet(_) => {}
        }
    }

    /// The network changed.
    pub fn tell_network_changed(&self, network: &HostNetwork) {
        *lock(&self.shared.network) = network.clone();
        self.shared.tell(|inbox| inbox.network_changed = true);
    }

    /// The silence that mappings of our NAT are known to outlive, in seconds. It looks for itself,
    /// with the next thing that it does.
    pub fn set_mapping_lifetime(&self, seconds: Option<u8>) {
        let seconds = seconds.unwrap_or_default();
        self.shared
            .mapping_lifetime
            .store(seconds, Ordering::Relaxed);
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

    /// A message of the same plugin at a peer, for an instance that exchanges such.
    pub fn tell_message(&self, peer: PeerKey, payload: &[u8]) {
        if !self.shared.abilities.peer_messages {
            return;
        }
        self.shared.tell(|inbox| {
            if inbox.messages.len() >= MESSAGE_QUEUE {
                inbox.messages.pop_front();
            }
            inbox.messages.push_back((peer, payload.to_vec()));
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

/// The peers as an instance is told of them. Where no pair lists relays, all are told the same.
fn told_to(instance: &InstanceName, peers: &Arc<[Interest]>) -> Arc<[Interest]> {
    if peers.iter().all(|peer| peer.relays.is_none()) {
        return peers.clone();
    }
    peers.iter().map(|peer| peer.told_to(instance)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use natpunch_plugin::{Candidate, CandidateKind};

    fn facts() -> NodeFacts {
        NodeFacts {
            own_key: PeerKey::from_bytes([1; 32]),
            private_key: SecretKey::from_bytes([2; 32]),
            listen_port: 20_000,
            fwmark: 0,
            forwarder: Arc::new(Forwarder::new(
                "/nonexistent".into(),
                std::path::Path::new("/nonexistent"),
                "np0",
            )),
            network: HostNetwork::default(),
        }
    }

    fn candidate(address: SocketAddr) -> News {
        News::Candidate {
            peer: PeerKey::from_bytes([3; 32]),
            candidate: Candidate {
                address,
                kind: CandidateKind::Reflexive,
                lifetime: Duration::from_secs(60),
            },
        }
    }

    #[test]
    fn a_report_in_which_only_numbers_differ_is_no_news() {
        let good = |note: &str| Health::Good(note.to_owned());
        let same = |a: &Health, b: &Health| gist(a) == gist(b);
        let before = good("registered with rv (192.0.2.1:9000, 1.2 ms; [2001:db8::1]:9000, 9 ms)");
        let after = good("registered with rv (192.0.2.1:9000, 17.0 ms; [2001:db8::1]:9000, 8 ms)");
        assert!(same(&before, &after));
        let moved = good("registered with rv (192.0.2.7:9000, 1.2 ms; [2001:db8::1]:9000, 9 ms)");
        let alone = good("registered with rv (192.0.2.1:9000, 1.2 ms)");
        let problem = Health::Bad("registered with rv (192.0.2.1:9000, 1.2 ms)".to_owned());
        assert!(!same(&before, &moved) && !same(&before, &alone) && !same(&alone, &problem));
        // An address without a port is no number.
        assert!(!same(&good("at 203.0.113.7"), &good("at 203.0.113.8")));
    }

    fn named(name: &str) -> (InstanceName, u64) {
        (InstanceName::new(name), 1)
    }

    struct Scripted<F>(F);

    impl<F> Discovery for Scripted<F>
    where
        F: FnMut(Arc<dyn Host>) -> BoxFuture<'static, Result<(), PluginError>> + Send + 'static,
    {
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
                host.tell(candidate("[::ffff:192.0.2.7]:9".parse().unwrap()));
                std::future::pending().await
            })
        });
        let _instance = Instance::start(
            named("web"),
            &Description::default(),
            Box::new(plugin),
            facts(),
            events,
        );
        let event = received.recv().await.unwrap();
        assert_eq!(event.from.as_str(), "web");
        let Said::News(News::Candidate { candidate, .. }) = event.said else {
            panic!("no candidate")
        };
        assert_eq!(candidate.address, "192.0.2.7:9".parse().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_plugin_is_run_again_with_growing_pauses_and_told_the_newest_state() {
        let (events, _received) = channel();
        let (seen, mut starts) = mpsc::unbounded_channel();
        let plugin = Scripted(move |host: Arc<dyn Host>| -> BoxFuture<'static, _> {
            let seen = seen.clone();
            Box::pin(async move {
                if matches!(host.next().await, Input::Ask(Ask::Peers(_))) {
                    let _ = seen.send(Instant::now());
                }
                Err(PluginError::Failed("no route".to_owned()))
            })
        });
        let instance = Instance::start(
            named("x"),
            &Description::default(),
            Box::new(plugin),
            facts(),
            events,
        );
        instance.ask(Ask::Peers(Arc::from([])));
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

    #[tokio::test(start_paused = true)]
    async fn a_flaw_of_a_setting_is_told_with_its_file_and_line() {
        let text = "[mesh]\nname = 'home'\nnetworks = ['10.77.0.0/16']\n[discovery.own]\n\
            plugin = 'exec'\ncommand = ['/usr/lib/natpunch/a']\nuser = 'nobody'\n\
            [discovery.own.settings]\nspeed = 1\n[peers.a]\naddresses = ['10.77.0.1']\n\
            public_key = 'hHpUIW0xoSdoCrYbgVQl2NMYlJr1qvN3Mqm2xgk5YU0='\n";
        let files = vec![("/etc/natpunch/mesh.toml".into(), text.to_owned())];
        let mesh = crate::config::load_texts(files).unwrap();
        let plugin = Scripted(|_: Arc<dyn Host>| -> BoxFuture<'static, _> {
            let flaw = |key: &str| SettingFlaw {
                key: key.to_owned(),
                problem: "is wrong".to_owned(),
                help: "mend it".to_owned(),
            };
            let flaws = vec![flaw("settings.speed"), flaw("settings.depth")];
            Box::pin(async move { Err(PluginError::Settings(flaws)) })
        });
        let instance = Instance::start(
            named("own"),
            &Description::default(),
            Box::new(plugin),
            facts(),
            channel().0,
        );
        instance.set_places(mesh.discovery[0].places.clone());
        tokio::task::yield_now().await;
        let (Health::Bad(problem), _) = instance.health() else {
            panic!("no complaint")
        };
        let expected = "/etc/natpunch/mesh.toml:9:1: `discovery.own.settings.speed` is wrong; \
            mend it; /etc/natpunch/mesh.toml:8:";
        assert!(problem.starts_with(expected), "{problem}");
    }

    #[tokio::test]
    async fn the_time_of_plugins_goes_on_in_sleep() {
        let plugin = Scripted(|_: Arc<dyn Host>| -> BoxFuture<'static, _> {
            Box::pin(std::future::pending())
        });
        let instance = Instance::start(
            named("x"),
            &Description::default(),
            Box::new(plugin),
            facts(),
            channel().0,
        );
        let before = natpunch_net::now();
        assert!((before..=before + Duration::from_secs(60)).contains(&instance.shared.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_offers_is_bounded_and_does_not_block_the_plugin() {
        let (events, mut received) = channel();
        let plugin = Scripted(|host: Arc<dyn Host>| -> BoxFuture<'static, _> {
            Box::pin(async move {
                for port in 1..=60_000u16 {
                    host.tell(candidate(SocketAddr::from(([192, 0, 2, 1], port))));
                }
                host.report(Health::Good("done".to_owned()));
                std::future::pending().await
            })
        });
        let instance = Instance::start(
            named("x"),
            &Description::default(),
            Box::new(plugin),
            facts(),
            events,
        );
        tokio::task::yield_now().await;
        let mut count = 0;
        while received.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, EVENT_QUEUE);
        assert_eq!(instance.health().1, 60_000 - EVENT_QUEUE as u64);
    }
}
