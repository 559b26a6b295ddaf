//! What the WireGuard device says of one peer: the truth, which is followed and never fought.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, DevicePeer, Origin};

use crate::burst::Burst;
use crate::env::Env;
use crate::{EndpointReason, Event, Time};

use super::{CHECK, Check, LEARNED_LIFETIME, Peer, ROAM_DEAF, Selection};

/// A session is live for this long after its handshake or last traffic (WireGuard's
/// REJECT_AFTER_TIME).
const LIVE: Duration = Duration::from_secs(180);
/// Bytes that a keepalive of WireGuard's counts.
const KEEPALIVE_LEN: u64 = 32;
/// A WireGuard that has received nothing for this long, while the peer's has sent data for as long
/// ...
const UNHEARD: Duration = Duration::from_secs(5);
/// ... without a pause longer than this, is not reached by it.
const PAUSE: Duration = Duration::from_secs(2);
/// An unanswered `SetEndpoint` command is forgotten after this long.
const SETTING: Duration = Duration::from_secs(5);

/// The device's view of the peer, and when we saw it change.
#[derive(Debug, Default)]
pub(super) struct DeviceView {
    known: bool,
    pub(super) endpoint: Option<SocketAddr>,
    last_handshake: Option<Duration>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    pub(super) handshake_seen: Option<Time>,
    pub(super) rx_seen: Option<Time>,
    /// Bytes were sent since the last ones were received.
    unanswered: bool,
    /// Since when something that wants an answer was sent: more than a keepalive.
    waiting: Option<Time>,
    /// The first and the last moment at which data was sent without a pause, on the path in use.
    sending: Option<(Time, Time)>,
    /// A command that the shell has not reported on.
    pub(super) setting: Option<(SocketAddr, Time)>,
    /// Handshake and received bytes when the path in use was chosen.
    mark: (Option<Duration>, u64),
    /// What came in before the next snapshot proves nothing of the path in use: it may have come by
    /// a relay.
    pub(super) marks_next: bool,
}

impl DeviceView {
    pub(super) fn is_live(&self, now: Time) -> bool {
        [self.handshake_seen, self.rx_seen]
            .into_iter()
            .flatten()
            .any(|at| now.since(at) < LIVE)
    }

    /// There was a session, and nobody has had anything to say since.
    pub(super) fn is_idle(&self, now: Time) -> bool {
        self.handshake_seen.is_some() && !self.unanswered && !self.is_live(now)
    }

    /// The keys of the last handshake can still be used.
    pub(super) fn has_keys(&self, now: Time) -> bool {
        self.handshake_seen.is_some_and(|at| now.since(at) < LIVE)
    }

    /// WireGuard has keys in use, and nothing that it sent has waited in vain.
    pub(super) fn has_fresh_keys(&self, now: Time) -> bool {
        !self.unanswered && self.has_keys(now)
    }

    /// There was a handshake, and its keys can still be used, or nobody wants to say anything.
    pub(super) fn needs_no_handshake(&self, now: Time) -> bool {
        self.has_keys(now) || self.handshake_seen.is_some() && !self.unanswered
    }

    /// For how long what was sent has waited for anything to come back.
    pub(super) fn unanswered_for(&self, now: Time) -> Option<Duration> {
        self.waiting.map(|since| now.since(since))
    }

    pub(super) fn has_heard_nothing(&self, now: Time) -> bool {
        self.rx_seen.is_none_or(|at| now.since(at) >= UNHEARD)
    }

    pub(super) fn has_sent_all_the_time(&self, now: Time) -> bool {
        self.sending
            .is_some_and(|(since, last)| now.since(last) <= PAUSE && now.since(since) >= UNHEARD)
    }

    pub(super) fn live_until(&self) -> Option<Time> {
        [self.handshake_seen, self.rx_seen]
            .into_iter()
            .flatten()
            .max()
            .map(|at| at + LIVE)
    }

    pub(super) fn mark(&mut self) {
        self.sending = None;
        self.mark = (self.last_handshake, self.rx_bytes);
    }

    fn has_moved_since_mark(&self) -> bool {
        self.last_handshake != self.mark.0 || self.rx_bytes > self.mark.1
    }

    fn is_setting(&self, now: Time) -> bool {
        self.setting
            .is_some_and(|(_, since)| now.since(since) < SETTING)
    }

    /// Takes a row over; true if authentic traffic came in since the last one. `read_at`: the wall
    /// clock at the reading.
    fn update(&mut self, row: &DevicePeer, read_at: Option<Duration>, now: Time) -> bool {
        let recreated = row.rx_bytes < self.rx_bytes
            || (self.last_handshake.is_some() && row.last_handshake.is_none());
        if recreated {
            *self = Self {
                setting: self.setting,
                ..Self::default()
            };
        }
        let handshake = row.last_handshake.is_some() && row.last_handshake != self.last_handshake;
        let received = self.known && row.rx_bytes > self.rx_bytes;
        let sent = self.known && row.tx_bytes > self.tx_bytes;
        if handshake && self.known {
            self.handshake_seen = Some(now);
        } else if let Some(handshake) = row.last_handshake.filter(|_| handshake) {
            // Only here the wall clock counts: whether a session that we find is one of these
            // minutes or of last week.
            let age = read_at.map_or(Duration::ZERO, |read_at| read_at.saturating_sub(handshake));
            self.handshake_seen = (age < LIVE).then(|| now - age);
        }
        if received {
            self.rx_seen = Some(now);
        }
        if sent && row.tx_bytes - self.tx_bytes > KEEPALIVE_LEN {
            let going_on = self.sending.filter(|(_, last)| now.since(*last) <= PAUSE);
            self.sending = Some((going_on.map_or(now, |(since, _)| since), now));
        }
        if received || handshake {
            (self.unanswered, self.waiting) = (false, None);
        } else if sent {
            self.unanswered = true;
            if row.tx_bytes - self.tx_bytes > KEEPALIVE_LEN {
                self.waiting.get_or_insert(now);
            }
        }
        let progress = self.known && (handshake || received);
        self.known = true;
        self.endpoint = row.endpoint;
        self.last_handshake = row.last_handshake;
        self.rx_bytes = row.rx_bytes;
        self.tx_bytes = row.tx_bytes;
        if std::mem::take(&mut self.marks_next) {
            self.mark();
        }
        progress
    }
}

impl Peer {
    /// A row of a snapshot, or its absence.
    pub(crate) fn handle_device(&mut self, row: Option<&DevicePeer>, env: &mut Env, now: Time) {
        let Some(row) = row else {
            self.device = DeviceView {
                setting: self.device.setting,
                ..DeviceView::default()
            };
            return;
        };
        let first_sight = !self.device.known;
        let progress = self.device.update(row, env.read_at, now);
        if self.probes() {
            if first_sight {
                self.adopt(env, now);
            } else if progress {
                self.on_traffic(env, now);
            }
            self.restore(env, now);
            self.watch_traffic(env, now);
        }
        self.decide(env, now);
    }

    /// What the device is known to have, when a reload makes a new peer of an old one.
    pub(super) fn inherit_device(&mut self, device: DeviceView, env: &mut Env, now: Time) {
        self.device = DeviceView {
            setting: None,
            ..device
        };
        if self.probes() {
            self.adopt(env, now);
        }
    }

    /// The shell's report on a `SetEndpoint`.
    pub(crate) fn handle_endpoint_set(
        &mut self,
        endpoint: SocketAddr,
        ok: bool,
        env: &mut Env,
        now: Time,
    ) {
        if self
            .device
            .setting
            .is_none_or(|(address, _)| address != endpoint)
        {
            return;
        }
        self.device.setting = None;
        if ok {
            self.device.endpoint = Some(endpoint);
            let checks = |selection: &Selection| matches!(selection.check, Check::Running { .. });
            self.device.marks_next = self
                .selection
                .as_ref()
                .is_some_and(|s| s.from_relay && checks(s));
        } else if let Some(Selection {
            check: Check::Running { deadline, .. },
            ..
        }) = &mut self.selection
        {
            *deadline = (*deadline).min(now + CHECK / 3);
        }
        self.decide(env, now);
    }

    /// A device that ran before us: its session goes on as it is and is only verified by probes.
    fn adopt(&mut self, env: &mut Env, now: Time) {
        let Some(address) = self.device.endpoint.filter(|_| self.selection.is_none()) else {
            return;
        };
        self.learn_from_device(address, env, now);
        if self.device.handshake_seen.is_some() && self.table.get(&address).is_some() {
            self.take_over(address, false, now);
            env.out.event(Event::Adopted {
                peer: self.spec.key,
                address,
            });
        }
    }

    /// Authentic traffic came in.
    fn on_traffic(&mut self, env: &mut Env, now: Time) {
        let Some(address) = self.device.endpoint else {
            return;
        };
        let resists = self.resists(address, now);
        match &mut self.selection {
            Some(selection) if selection.address == address => {
                let was_lost = std::mem::take(&mut selection.lost);
                let passed = selection.check != Check::Passed && self.device.has_moved_since_mark();
                if passed {
                    selection.check = Check::Passed;
                }
                if passed || was_lost {
                    self.on_connected(address, env);
                }
            }
            _ if self.device.is_setting(now) => {}
            _ if resists => self.hold_on(env, now),
            _ => {
                self.learn_from_device(address, env, now);
                if let Some(entry) = self.table.get_mut(&address) {
                    entry.unblock();
                    self.take_over(address, true, now);
                    env.out.event(Event::Roamed {
                        peer: self.spec.key,
                        address,
                    });
                    self.on_connected(address, env);
                }
            }
        }
    }

    /// The device has lost an endpoint that is good.
    fn restore(&mut self, env: &mut Env, now: Time) {
        let Some(selection) = self.selection.as_mut().filter(|selection| !selection.lost) else {
            return;
        };
        let waiting = matches!(selection.check, Check::Deferred { .. });
        if self.device.endpoint.is_some() || self.device.is_setting(now) || waiting {
            return;
        }
        let address = selection.address;
        selection.check = Check::Running {
            tries: 1,
            deadline: now + CHECK,
        };
        self.device.mark();
        self.set_endpoint(address, true, EndpointReason::Restored, env, now);
    }

    fn learn_from_device(&mut self, address: SocketAddr, env: &mut Env, now: Time) {
        self.learn(
            address,
            CandidateKind::PeerReflexive,
            &Origin::WireGuard,
            now + LEARNED_LIFETIME,
            false,
            env,
            now,
        );
    }

    /// Makes what WireGuard uses the path in use.
    fn take_over(&mut self, address: SocketAddr, roamed: bool, now: Time) {
        self.selection = Some(Selection {
            address,
            since: now,
            check: Check::Passed,
            answered: None,
            doubted: None,
            lost: false,
            roamed,
            from_relay: false,
            adopted: !roamed,
            restored: 0,
        });
        self.nominated = None;
        self.deaf_until = now + ROAM_DEAF;
        self.start_burst(address, Burst::Direct, now);
    }
}
