//! What the WireGuard device says of one peer: the truth, which is followed and never fought.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{CandidateKind, DevicePeer, Origin, PathId};

use crate::burst::Burst;
use crate::candidates::Offer;
use crate::env::Env;
use crate::{EndpointReason, Event, Time};

use super::selection::{Check, How, Selection};
use super::{CHECK, LEARNED_LIFETIME, Peer};

/// A session is live for this long after its handshake or last traffic (WireGuard's
/// REJECT_AFTER_TIME).
pub(super) const LIVE: Duration = Duration::from_secs(180);
/// WireGuard makes new keys when it sends by keys of this age (its REKEY_AFTER_TIME), unless its
/// attempts at that have ended.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Bytes that a keepalive of WireGuard's counts.
const KEEPALIVE_LEN: u64 = 32;
/// Bytes that its initiation and its response count.
const HANDSHAKE_LEN: [u64; 2] = [148, 92];
/// An unanswered `SetEndpoint` command is forgotten after this long.
const SETTING: Duration = Duration::from_secs(5);
/// WireGuard has sent and heard nothing for this long: the peer is asked for a sign of life ...
const ASK: Duration = Duration::from_secs(3);
/// ... and if none comes though pings are answered, the path does not let WireGuard through.
const CUT_OFF: Duration = Duration::from_secs(8);

/// A WireGuard that has received nothing for this long, while the peer's has sent data for as long
/// ...
const UNHEARD: Duration = Duration::from_secs(5);
/// ... without a pause longer than this, is not reached by it.
const PAUSE: Duration = Duration::from_secs(2);

/// WireGuard's session with the peer, as far as the device shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Session {
    /// There is none, or one that is over and whose last packets were not answered.
    None,
    /// Its keys are over, and neither side has had anything to say since.
    Idle,
    /// There was a handshake or traffic lately.
    Live {
        /// The keys of the last handshake can still be used.
        keys: bool,
        /// What was sent last, or a first handshake, waits for an answer.
        waits: bool,
    },
}

impl Session {
    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Live { .. })
    }

    /// It works, or would as soon as somebody had something to say.
    pub(super) fn is_up(self) -> bool {
        self != Self::None
    }

    pub(super) fn has_keys(self) -> bool {
        matches!(self, Self::Live { keys: true, .. })
    }

    /// WireGuard has keys in use, and nothing that it sent has waited in vain.
    pub(super) fn has_fresh_keys(self) -> bool {
        let fresh = Self::Live {
            keys: true,
            waits: false,
        };
        self == fresh
    }

    /// Nothing would be gained by a handshake now: keys can still be used, or nobody waits.
    pub(super) fn needs_no_handshake(self) -> bool {
        match self {
            Self::None => false,
            Self::Idle => true,
            Self::Live { keys, waits } => keys || !waits,
        }
    }
}

/// The device's view of the peer, and when we saw it change.
#[derive(Debug, Default)]
pub(super) struct DeviceView {
    known: bool,
    /// Bytes of data that were sent since [`take_sent`](Self::take_sent).
    sent: u64,
    pub(super) endpoint: Option<SocketAddr>,
    last_handshake: Option<Duration>,
    pub(super) rx_bytes: u64,
    pub(super) tx_bytes: u64,
    pub(super) handshake_seen: Option<Time>,
    pub(super) rx_seen: Option<Time>,
    /// When it last sent anything.
    pub(super) tx_seen: Option<Time>,
    /// Interval of its persistent keepalive; `None` is off.
    pub(super) keepalive: Option<Duration>,
    /// Since when something was sent and nothing received, be it a keepalive.
    pub(super) unanswered: Option<Time>,
    /// Since when something that wants an answer was sent and nothing received: more than a
    /// keepalive.
    waiting: Option<Time>,
    /// The first and the last moment at which data was sent without a pause, on the path in use.
    sending: Option<(Time, Time)>,
    /// When it last carried data, either way.
    carried: Option<Time>,
    /// The path from another port than WireGuard's that is joined to it.
    pub(super) pin: Option<PathId>,
    /// A command that the shell has not reported on.
    setting: Option<(PathId, Time)>,
    /// Handshake and received bytes when the path in use was chosen.
    mark: (Option<Duration>, u64),
    /// What came in before the next snapshot proves nothing of the path in use: it may have come by
    /// a relay.
    marks_next: bool,
}

impl DeviceView {
    pub(super) fn session(&self, now: Time) -> Session {
        let lately = |at: Option<Time>| at.is_some_and(|at| now.since(at) < LIVE);
        let (keys, heard) = (lately(self.handshake_seen), lately(self.rx_seen));
        let waits = self.is_waiting() || self.handshake_seen.is_none();
        match (keys || heard, waits) {
            (true, waits) => Session::Live { keys, waits },
            (false, false) => Session::Idle,
            (false, true) => Session::None,
        }
    }

    /// The keys are so old that WireGuard wants new ones.
    pub(super) fn is_rekey_due(&self, now: Time) -> bool {
        self.handshake_seen
            .is_some_and(|at| now.since(at) >= REKEY_AFTER)
    }

    /// When a live session is over, unless something comes in.
    pub(super) fn live_until(&self) -> Option<Time> {
        let last = self.handshake_seen.max(self.rx_seen)?;
        Some(last + LIVE)
    }

    /// WireGuard has waited for so long that the peer is asked for a sign of life.
    pub(super) fn wants_sign_of_life(&self, now: Time) -> bool {
        self.waiting.is_some_and(|since| now.since(since) >= ASK)
    }

    /// It has carried nothing but messages of its own for this long, as far as is known.
    pub(super) fn is_quiet(&self, time: Duration, now: Time) -> bool {
        self.carried.is_none_or(|at| now.since(at) >= time)
    }

    /// It has carried data at this moment.
    pub(super) fn has_just_carried(&self, now: Time) -> bool {
        self.carried == Some(now)
    }

    /// What WireGuard sends has waited for an answer.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// It has waited for so long that its packets do not pass.
    pub(super) fn is_cut_off(&self, now: Time) -> bool {
        self.waiting
            .is_some_and(|since| now.since(since) >= CUT_OFF)
    }

    pub(super) fn has_heard_nothing(&self, now: Time) -> bool {
        self.rx_seen.is_none_or(|at| now.since(at) >= UNHEARD)
    }

    pub(super) fn has_sent_all_the_time(&self, now: Time) -> bool {
        self.sending
            .is_some_and(|(since, last)| now.since(last) <= PAUSE && now.since(since) >= UNHEARD)
    }

    /// From here on, what comes in shows something of the path in use.
    pub(super) fn mark(&mut self) {
        self.sending = None;
        self.mark = (self.last_handshake, self.rx_bytes);
    }

    /// Bytes of data that were sent since the last call.
    fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    fn has_moved_since_mark(&self) -> bool {
        self.last_handshake != self.mark.0 || self.rx_bytes > self.mark.1
    }

    /// A `SetEndpoint` goes out.
    pub(super) fn on_set(&mut self, path: PathId, now: Time) {
        self.setting = Some((path, now));
    }

    pub(super) fn is_setting(&self, now: Time) -> bool {
        self.setting
            .is_some_and(|(_, since)| now.since(since) < SETTING)
    }

    /// The peer is put to its resting endpoint, and WireGuard has no session: what the shell reports
    /// of earlier commands is of no use any more.
    pub(super) fn rest(&mut self) {
        (self.setting, self.marks_next) = (None, false);
        (self.handshake_seen, self.rx_seen) = (None, None);
        (self.unanswered, self.waiting, self.sending) = (None, None, None);
    }

    /// The shell has executed the `SetEndpoint` of this path; false if that is an old one.
    fn was_set(&mut self, path: PathId) -> bool {
        let awaited = self.setting.is_some_and(|(set, _)| set == path);
        if awaited {
            self.setting = None;
        }
        awaited
    }

    /// The device has forgotten the peer, or has made it anew. What was ordered is still under way.
    fn forget(&mut self) {
        *self = Self {
            setting: self.setting,
            pin: self.pin,
            ..Self::default()
        };
    }

    /// Takes a row over; true if authentic traffic came in since the last one. `read_at`: the wall
    /// clock at the reading.
    fn update(&mut self, row: &DevicePeer, read_at: Option<Duration>, now: Time) -> bool {
        let recreated = row.rx_bytes < self.rx_bytes
            || (self.last_handshake.is_some() && row.last_handshake.is_none());
        if recreated {
            self.forget();
        }
        let handshake = row.last_handshake.is_some() && row.last_handshake != self.last_handshake;
        let received = self.known && row.rx_bytes > self.rx_bytes;
        // What WireGuard sends without an endpoint goes nowhere, and can't be answered.
        let sent = self.known && row.tx_bytes > self.tx_bytes && row.endpoint.is_some();
        let carried = [(row.rx_bytes, self.rx_bytes), (row.tx_bytes, self.tx_bytes)]
            .iter()
            .any(|(new, old)| !is_own(new.saturating_sub(*old)));
        if self.known && carried {
            self.carried = Some(now);
        }
        let more = row.tx_bytes.saturating_sub(self.tx_bytes);
        if self.known && !is_own(more) {
            self.sent += more;
        }
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
        if self.known && row.tx_bytes > self.tx_bytes {
            self.tx_seen = Some(now);
        }
        if sent && row.tx_bytes - self.tx_bytes > KEEPALIVE_LEN {
            let going_on = self.sending.filter(|(_, last)| now.since(*last) <= PAUSE);
            self.sending = Some((going_on.map_or(now, |(since, _)| since), now));
        }
        if received || handshake {
            (self.unanswered, self.waiting) = (None, None);
        } else if sent {
            self.unanswered.get_or_insert(now);
            if row.tx_bytes - self.tx_bytes > KEEPALIVE_LEN {
                self.waiting.get_or_insert(now);
            }
        }
        let progress = self.known && (handshake || received);
        self.known = true;
        self.endpoint = row.endpoint;
        self.keepalive = row.persistent_keepalive;
        self.last_handshake = row.last_handshake;
        self.rx_bytes = row.rx_bytes;
        self.tx_bytes = row.tx_bytes;
        if std::mem::take(&mut self.marks_next) {
            self.mark();
        }
        progress
    }
}

/// So many bytes between two readings are messages of WireGuard's own, or none. Data messages are
/// multiples of 16 bytes, and those of a handshake are not. A keepalive that finds old keys begins a
/// handshake, which another one confirms.
fn is_own(bytes: u64) -> bool {
    let [initiation, response] = HANDSHAKE_LEN;
    let handshakes = [initiation, response, initiation + response];
    let with_handshake = (0..=2).any(|keepalives| {
        let others = bytes.checked_sub(keepalives * KEEPALIVE_LEN);
        others.is_some_and(|others| handshakes.contains(&others))
    });
    bytes == 0 || bytes == KEEPALIVE_LEN || with_handshake
}

impl Peer {
    /// A row of a snapshot, or its absence.
    pub(crate) fn handle_device(&mut self, row: Option<&DevicePeer>, env: &mut Env, now: Time) {
        let Some(row) = row else {
            self.device.forget();
            self.initiation.forget();
            self.response.forget();
            return;
        };
        let first_sight = !self.device.known;
        let progress = self.device.update(row, env.read_at, now);
        if progress {
            // It was answered, or the peer's own took its place: WireGuard has one handshake.
            self.initiation.forget();
        }
        self.response.on_received(row.rx_bytes);
        self.see_demand(first_sight, progress, env, now);
        if self.rests() {
            self.keep_at_rest(env, now);
        } else if self.probes() {
            if first_sight {
                self.adopt(env, now);
            } else if progress {
                self.on_traffic(env, now);
            }
            self.restore(env, now);
            if self.device.has_just_carried(now) {
                self.wake(env, now);
            }
            self.watch_traffic(env, now);
            self.order_keepalive(env, now);
            let sent = self.device.take_sent();
            self.on_data_sent(sent, now);
            self.rest_in_time(env, now);
        }
        self.decide(env, now);
    }

    /// What the device is known to have, when a reload makes a new peer of an old one.
    pub(super) fn inherit_device(&mut self, device: DeviceView, env: &mut Env, now: Time) {
        self.device = DeviceView {
            setting: None,
            ..device
        };
        self.see_demand(self.device.known, false, env, now);
        if self.probes() && !self.rests() {
            self.adopt(env, now);
        }
    }

    /// The shell's report on a `SetEndpoint`.
    pub(crate) fn handle_endpoint_set(&mut self, path: PathId, ok: bool, env: &mut Env, now: Time) {
        if !self.device.was_set(path) {
            return;
        }
        if let Some(selection) = &mut self.choice.selection
            && let Check::Running { deadline, .. } = &mut selection.check
        {
            if ok {
                // What is under way through the relay that is being left may still come in, once:
                // were the time until a snapshot discarded at each try and each sign of life, a
                // busy host would never see that WireGuard works here.
                let is_first = !std::mem::replace(&mut selection.told, true);
                self.device.marks_next = is_first && selection.how == How::ChosenOverRelay;
            } else {
                // The next try is due sooner: this one changed nothing.
                *deadline = (*deadline).min(now + CHECK / 3);
            }
        } else if ok {
            self.device.marks_next = false;
        }
        if ok {
            self.device.endpoint = Some(path.endpoint());
            self.device.pin = path.pin().map(|_| path);
            self.release_initiation(path, env, now);
        }
        if ok && path.pin().is_some() && self.choice.is_selected(path) {
            // The pin is in force: the peer's sign of life is asked for now.
            self.ping_now(path, env, now);
        }
        self.decide(env, now);
    }

    /// A device that ran before us: its session goes on as it is and is only verified by probes.
    fn adopt(&mut self, env: &mut Env, now: Time) {
        let Some(path) = self
            .device_path()
            .filter(|_| self.choice.selection.is_none())
        else {
            return;
        };
        self.learn_from_device(path, env, now);
        if self.device.handshake_seen.is_some() && self.table.get(&path).is_some() {
            self.take_over(path, How::Adopted, now);
            env.out.event(Event::Adopted {
                peer: self.spec.key,
                path,
            });
        }
    }

    /// The path that WireGuard's own packets take now. The device tells the endpoint; which port
    /// leads there, only this side knows.
    pub(super) fn device_path(&self) -> Option<PathId> {
        let endpoint = self.device.endpoint?;
        Some(self.wireguards_path(endpoint))
    }

    /// Authentic traffic came in.
    fn on_traffic(&mut self, env: &mut Env, now: Time) {
        let Some(path) = self.device_path() else {
            return;
        };
        if let Some(selection) = self.choice.selected_mut(path) {
            let works = match selection.check {
                Check::Passed => false,
                // What came in before the endpoint was set says nothing of it.
                Check::Deferred { .. } | Check::Running { .. } => {
                    self.device.has_moved_since_mark()
                }
                Check::Lost => true,
            };
            if works {
                selection.check = Check::Passed;
                self.on_connected(path, env);
            }
            return;
        }
        if self.device.is_setting(now) {
            // The device is being told to leave this endpoint.
            return;
        }
        if self.resists(path, now) {
            self.hold_on(env, now);
            return;
        }
        self.learn_from_device(path, env, now);
        if let Some(entry) = self.table.get_mut(&path) {
            entry.unblock();
            self.note_roaming(path, now);
            self.take_over(path, How::Roamed, now);
            env.out.event(Event::Roamed {
                peer: self.spec.key,
                path,
            });
            self.on_connected(path, env);
        }
    }

    /// The device has lost an endpoint that is good.
    fn restore(&mut self, env: &mut Env, now: Time) {
        if self.device.endpoint.is_some() || self.device.is_setting(now) {
            return;
        }
        let Some(selection) = &mut self.choice.selection else {
            return;
        };
        match selection.check {
            // A first handshake that the peer begins sets it.
            Check::Deferred { .. } => return,
            // Not good any more.
            Check::Lost => return,
            Check::Running { .. } | Check::Passed => {}
        }
        selection.check = Check::Running {
            tries: 1,
            deadline: now + CHECK,
        };
        let path = selection.path;
        self.device.mark();
        self.set_endpoint(path, true, EndpointReason::Restored, env, now);
    }

    fn learn_from_device(&mut self, path: PathId, env: &mut Env, now: Time) {
        let offer = Offer {
            path,
            kind: CandidateKind::PeerReflexive,
            origin: &Origin::WireGuard,
            expires: now + LEARNED_LIFETIME,
            recorded: false,
        };
        self.learn(offer, env, now);
    }

    /// Makes what WireGuard uses the path in use.
    fn take_over(&mut self, path: PathId, how: How, now: Time) {
        self.choice
            .take_over(Selection::taken_over(path, how, now), now);
        self.start_burst(path, Burst::Direct, now);
    }
}
