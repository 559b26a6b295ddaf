//! What all peers share: randomness, the identity of this run, local candidates, budgets and the
//! outbox.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use natpunch_types::{Ask, PeerKey, Rate, RateBudget, jitter};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

use crate::filter::{Rejected, admit};
use crate::gather::Local;
use crate::nat::family::PerFamily;
use crate::nat::filters::Filters;
use crate::nat::hops::Hops;
use crate::nat::lifetime::Lifetimes;
use crate::nat::profile::NatProfile;
use crate::nat::sampling::Sampler;
use crate::pacer::Pacer;
use crate::ports::SourcePorts;
use crate::status::ProbeStatus;
use crate::{Command, Event, Time, Transmit};

/// Hosts of relays that are remembered.
const MAX_RELAY_HOSTS: usize = 64;

/// What was sent lately is counted in steps of this.
const STEP: Duration = Duration::from_millis(20);

/// Effects that wait for the shell. Bounded: a shell that does not drain loses the oldest.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) transmits: VecDeque<Transmit>,
    /// How many datagrams of the last second, by when each step began.
    sent: VecDeque<(Time, u32)>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) events: VecDeque<Event>,
}

impl Outbox {
    const MAX: usize = 4096;

    pub(crate) fn transmit(&mut self, transmit: Transmit, now: Time) {
        let is_over = |(at, _): &(Time, u32)| now.since(*at) >= Duration::from_secs(1) + STEP;
        while self.sent.front().is_some_and(is_over) {
            self.sent.pop_front();
        }
        match self.sent.back_mut() {
            Some((at, count)) if now.since(*at) < STEP => *count += 1,
            _ => self.sent.push_back((now, 1)),
        }
        push(&mut self.transmits, transmit, Self::MAX);
    }

    /// Datagrams of the last second, of whatever kind.
    pub(crate) fn sent_lately(&self, now: Time) -> u32 {
        let lately = |(at, _): &&(Time, u32)| now.since(*at) < Duration::from_secs(1) + STEP;
        let steps = self.sent.iter().filter(lately);
        steps.map(|(_, count)| count).sum()
    }

    pub(crate) fn event(&mut self, event: Event) {
        push(&mut self.events, event, Self::MAX);
    }

    /// One endpoint per peer at a time: a newer one replaces what was not fetched yet.
    pub(crate) fn set_endpoint(&mut self, peer: PeerKey, command: Command) {
        self.forget_endpoint(&peer);
        self.commands.push_back(command);
    }

    /// A command takes the place of those that were not fetched yet and that it makes void.
    fn replace(&mut self, command: Command, is_void: impl Fn(&Command) -> bool) {
        self.commands.retain(|queued| !is_void(queued));
        self.commands.push_back(command);
    }

    /// The newest keepalive of a peer counts.
    pub(crate) fn keepalive(&mut self, key: PeerKey, command: Command) {
        self.replace(
            command,
            |queued| matches!(queued, Command::SetKeepalive { peer, .. } if *peer == key),
        );
    }

    /// The newest MTU of a peer counts.
    pub(crate) fn mtu(&mut self, key: PeerKey, command: Command) {
        self.replace(
            command,
            |queued| matches!(queued, Command::SetMtu { peer, .. } if *peer == key),
        );
    }

    /// A newer question takes the place of one of its kind that was not fetched yet.
    pub(crate) fn ask(&mut self, ask: Ask) {
        let is_replaced = |queued: &Command| match (queued, &ask) {
            (Command::Ask(Ask::Peers(_)), Ask::Peers(_))
            | (Command::Ask(Ask::Records(_)), Ask::Records(_)) => true,
            (Command::Ask(Ask::Meet(queued)), Ask::Meet(peer)) => queued == peer,
            _ => false,
        };
        self.commands.retain(|queued| !is_replaced(queued));
        self.commands.push_back(Command::Ask(ask));
    }

    /// A newer list takes the place of one that was not fetched yet.
    pub(crate) fn source_ports(&mut self, ports: Arc<[NonZeroU16]>) {
        self.replace(Command::SourcePorts(ports), |queued| {
            matches!(queued, Command::SourcePorts(_))
        });
    }

    /// Servers answer again.
    pub(crate) fn is_back(&mut self) {
        self.replace(Command::TellReturn, |queued| {
            matches!(queued, Command::TellReturn)
        });
    }

    /// The newest word counts.
    pub(crate) fn hear_responses(&mut self, hears: bool) {
        self.replace(Command::HearResponses(hears), |queued| {
            matches!(queued, Command::HearResponses(_))
        });
    }

    pub(crate) fn find_route(&mut self, peer: PeerKey, destination: IpAddr) {
        self.commands
            .push_back(Command::FindRoute { peer, destination });
    }

    pub(crate) fn forget_meet(&mut self, key: &PeerKey) {
        self.commands
            .retain(|queued| !matches!(queued, Command::Ask(Ask::Meet(peer)) if peer == key));
    }

    pub(crate) fn forget_endpoint(&mut self, key: &PeerKey) {
        self.commands
            .retain(|queued| !matches!(queued, Command::SetEndpoint { peer, .. } | Command::Rest { peer } if peer == key));
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    if queue.len() >= max {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// The node's budget of pings. Who finds it empty is told when to come again, each another moment:
/// so all who wait are served in turn, and nobody twice while another waits for a first time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PingBudget {
    budget: RateBudget,
    /// From one turn to the next.
    interval: Duration,
    last_turn: Time,
}

impl PingBudget {
    /// A full budget.
    pub(crate) const fn per_second(pings: u64) -> Self {
        Self {
            budget: RateBudget::new(Rate::per_second(pings, pings)),
            interval: Duration::from_micros(1_000_000 / pings),
            last_turn: Time::ZERO,
        }
    }

    /// Takes one ping; false if none is left.
    pub(crate) fn take(&mut self, now: Time) -> bool {
        self.budget.take(now)
    }

    /// Whether so many are left.
    pub(crate) fn has_left(&self, pings: u64, now: Time) -> bool {
        let mut budget = self.budget;
        budget.take_units(pings, now)
    }

    /// The earliest moment at which one may be left.
    pub(crate) fn available_at(&self) -> Option<Time> {
        self.budget.available_at()
    }

    /// Somebody waits for a turn.
    pub(crate) fn has_queue(&self, now: Time) -> bool {
        self.last_turn > now
    }

    /// When to come again, behind all who wait already.
    pub(crate) fn turn(&mut self, now: Time) -> Time {
        let free = self.available_at().unwrap_or(now).max(now);
        self.last_turn = free.max(self.last_turn + self.interval);
        self.last_turn
    }
}

/// What all peers share.
pub(crate) struct Env {
    pub(crate) rng: ChaCha20Rng,
    /// Random per start; never 0.
    pub(crate) session: u64,
    /// The highest sequence number that a peer which was removed has had of this run.
    pub(crate) sequence: u64,
    pub(crate) overlay: Vec<IpNet>,
    /// The MTU of WireGuard's interface.
    pub(crate) mtu: u32,
    pub(crate) local: Local,
    pub(crate) pings: PingBudget,
    pub(crate) pongs: RateBudget,
    /// Peers that WireGuard is told to put to rest.
    pub(crate) rests: RateBudget,
    /// Messages to plugins at peers.
    pub(crate) messages: RateBudget,
    /// Probes since the start.
    pub(crate) probes: ProbeStatus,
    pub(crate) ports: SourcePorts,
    pub(crate) sampler: Sampler,
    /// How long mappings live, and whose packets they let in.
    pub(crate) lifetimes: PerFamily<Lifetimes>,
    pub(crate) filters: PerFamily<Filters>,
    /// How far the first public router is.
    pub(crate) hops: Hops,
    pub(crate) pacer: Pacer,
    /// This node's NAT.
    pub(crate) profile: NatProfile,
    pub(crate) out: Outbox,
    /// Some discovery instance can make both sides fire at one moment.
    pub(crate) arranges: bool,
    /// Some discovery instance exchanges messages with peers.
    pub(crate) has_messages: bool,
    /// Hosts on which relays were offered, for any peer.
    pub(crate) relay_hosts: BTreeSet<IpAddr>,
    /// When other candidates than before were last published.
    pub(crate) published: Option<Time>,
    /// Before the first snapshot a session may run already that is not known here, so no endpoint
    /// is set.
    pub(crate) device_seen: bool,
    /// How much later than usual a snapshot shows what the device has done.
    pub(crate) reading_delay: Duration,
    /// The wall clock (since the Unix epoch) at the last snapshot.
    pub(crate) read_at: Option<Duration>,
}

impl Env {
    /// What was sampled just now is told with the next ping.
    pub(crate) fn note_pattern(&mut self) {
        self.profile.pattern = self.sampler.pattern();
    }

    pub(crate) fn admit(&self, address: SocketAddr) -> Result<SocketAddr, Rejected> {
        admit(address, &self.overlay, |address| self.local.is_own(address))
    }

    pub(crate) fn note_relay(&mut self, host: IpAddr) {
        if self.relay_hosts.len() < MAX_RELAY_HOSTS {
            self.relay_hosts.insert(host);
        }
    }

    pub(crate) fn is_host_of_relays(&self, ip: IpAddr) -> bool {
        self.relay_hosts.contains(&ip)
    }

    /// A duration spread over 80 to 120 % (RFC 7675, 5.1), so that peers do not fall into step.
    pub(crate) fn jitter(&mut self, duration: Duration) -> Duration {
        jitter(duration, self.rng.next_u32())
    }
}
