//! The state machine of a node's versions: steady, asking, noting, applying, watching, going back.
//! docs/operations.md has the diagram; each `handle_*` method is the input on one of its arrows.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use natpunch_types::{DeviceSnapshot, PeerKey, Time};

use crate::caps::refusals;
use crate::facts::{Hash, Release};
use crate::journal::{Change, Entry, Watch, millis};
use crate::watch::{CHECK_PAUSE, Guard, Verdict, Watchers};
use crate::words::{
    Answers, Ask, ConfirmError, Moment, Notice, Open, Output, Phase, Refused, Settings,
};

/// How long after a failure the journal is written again.
const JOURNAL_RETRY: Duration = Duration::from_secs(5);
/// How long after a failure the way back is tried again.
const RETURN_RETRY: Duration = Duration::from_secs(1);
/// How long peers that a change cut off may take to be connected again once it is undone. Until
/// then they count as alive for the next change: otherwise no peer would watch it.
pub(crate) const RECOVERY: Duration = Duration::from_secs(60);
/// How long peers' answers are awaited before the question counts as lost.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// A version that was tried and undone.
#[derive(Debug)]
pub(crate) struct Held<V> {
    pub(crate) to: Hash,
    pub(crate) reason: String,
    /// As this agent tried it; `None`: another one did, and the journal knows no keys.
    pub(crate) tried: Option<Arc<V>>,
}

/// The peers that a change which is undone had to keep alive.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) watched: Vec<Watch>,
    /// Until when they count; `None`: the version before is not back yet.
    pub(crate) until: Option<Time>,
}

/// A version on its way to the device.
#[derive(Debug)]
pub(crate) struct Attempt<V> {
    version: Arc<V>,
    moment: Moment,
    watchers: Watchers,
    confirm: Duration,
    /// The endpoints of its peers, and of those of the version before.
    endpoints: BTreeMap<PeerKey, SocketAddr>,
    /// The state to return to if the attempt can't begin.
    instead: Box<State<V>>,
}

#[derive(Debug)]
pub(crate) enum State<V> {
    Steady,
    Asking {
        attempt: Attempt<V>,
        id: u64,
        until: Time,
    },
    Noting {
        attempt: Attempt<V>,
        id: u64,
        guard: Guard,
    },
    Applying {
        attempt: Attempt<V>,
        id: u64,
        guard: Guard,
    },
    Watching(Guard),
    GoingBack {
        endpoints: BTreeMap<PeerKey, SocketAddr>,
        /// The device's answer that is awaited, or when to try again.
        step: Result<u64, Time>,
    },
}

/// The journal, as far as is known.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Why it can't be written, and when to try again.
    failed: Option<(String, Time)>,
    /// A change waits for it.
    is_awaited: bool,
}

/// The state machine of a node's versions.
///
/// Feed one input by a `handle_*` method, drain `poll_output`, and call `handle_timeout` at
/// `poll_timeout`.
#[derive(Debug)]
pub struct Rollout<V> {
    pub(crate) settings: Settings,
    /// The version that is known to work: the one that runs, or the one before.
    pub(crate) good: Arc<V>,
    /// The version that runs.
    pub(crate) runs: Arc<V>,
    pub(crate) state: State<V>,
    pub(crate) held: Option<Held<V>>,
    /// The newest version, which came while the device was busy.
    next: Option<(Arc<V>, Moment)>,
    /// Since the start the mesh file differs from the version that runs. It is read again after the
    /// first snapshot of the device: a change needs to know which peers are alive.
    pub(crate) catch_up: bool,
    pub(crate) lost: Lost,
    disk: Disk,
    /// Where the device has its peers.
    endpoints: BTreeMap<PeerKey, SocketAddr>,
    last_id: u64,
    outputs: VecDeque<Output<V>>,
}

impl<V: Release> Rollout<V> {
    pub(crate) fn new(settings: Settings, good: Arc<V>, runs: Arc<V>, state: State<V>) -> Self {
        Self {
            settings,
            good,
            runs,
            state,
            held: None,
            next: None,
            catch_up: false,
            lost: Lost::default(),
            disk: Disk::default(),
            endpoints: BTreeMap::new(),
            last_id: 0,
            outputs: VecDeque::new(),
        }
    }

    /// The version that runs: the device has it, or the last one that it had.
    pub fn runs(&self) -> &Arc<V> {
        &self.runs
    }

    /// The version that is known to work.
    pub fn good(&self) -> &Arc<V> {
        &self.good
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Steady => Phase::Steady,
            State::Asking { .. } => Phase::Asking,
            State::Noting { .. } => Phase::Noting,
            State::Applying { .. } => Phase::Applying,
            State::Watching(_) => Phase::Watching,
            State::GoingBack { .. } => Phase::GoingBack,
        }
    }

    /// Whether the device is being changed, or will be without any further input.
    pub fn is_busy(&self) -> bool {
        !matches!(self.phase(), Phase::Steady | Phase::Watching)
    }

    /// Whether nothing is under way or awaited.
    pub fn is_settled(&self) -> bool {
        self.phase() == Phase::Steady && !self.catch_up && self.next.is_none()
    }

    /// The change that is not yet known to work.
    pub fn open(&self) -> Option<Open> {
        let guard = self.guard()?;
        Some(Open {
            version: guard.to,
            deadline: guard.deadline,
            by_person: guard.by_person,
            waiting_for: guard.missing(),
        })
    }

    /// The version that was undone, and why.
    pub fn held(&self) -> Option<(Hash, &str)> {
        let held = self.held.as_ref()?;
        Some((held.to, &held.reason))
    }

    /// Why the journal can't be written.
    pub fn journal_error(&self) -> Option<&str> {
        self.disk.failed.as_ref().map(|(error, _)| error.as_str())
    }

    /// Where the device has its peers.
    pub fn endpoints(&self) -> &BTreeMap<PeerKey, SocketAddr> {
        &self.endpoints
    }

    /// The change that is made and not confirmed, also while another begins.
    fn guard(&self) -> Option<&Guard> {
        match &self.state {
            State::Watching(guard) => Some(guard),
            State::Asking { attempt, .. }
            | State::Noting { attempt, .. }
            | State::Applying { attempt, .. } => match attempt.instead.as_ref() {
                State::Watching(guard) => Some(guard),
                _ => None,
            },
            State::Steady | State::GoingBack { .. } => None,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output<V>> {
        self.outputs.pop_front()
    }

    /// When to call [`Rollout::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        match &self.state {
            State::Asking { until, .. } => Some(*until),
            State::Watching(guard) => {
                let ask = guard.asked.map_or(guard.ask_at, |(_, until)| until);
                Some(guard.deadline.min(ask))
            }
            State::GoingBack { step, .. } => step.err(),
            // While a change is tried, the journal says so, and is left alone.
            State::Steady => self.disk.failed.as_ref().map(|(_, at)| *at),
            State::Noting { .. } | State::Applying { .. } => None,
        }
    }

    /// The newest version of the mesh. A version that comes while the device is busy waits.
    ///
    /// # Errors
    /// The version may not be begun; what runs stays.
    pub fn handle_version(
        &mut self,
        version: Arc<V>,
        moment: Moment,
        now: Time,
    ) -> Result<(), Refused> {
        self.disk.is_awaited = false;
        match &self.state {
            // The journal or the device is in the middle of a step. Only its answer says what a
            // later step would start from.
            State::Noting { .. }
            | State::Applying { .. }
            | State::GoingBack { step: Ok(_), .. } => {
                self.next = Some((version, moment));
                Ok(())
            }
            // No step is under way. In `GoingBack` the device has refused the version before and is
            // asked again later; a newer version may be the way out.
            State::Steady | State::Asking { .. } | State::Watching(_) | State::GoingBack { .. } => {
                self.begin(version, moment, now)
            }
        }
    }

    fn begin(&mut self, version: Arc<V>, moment: Moment, now: Time) -> Result<(), Refused> {
        match std::mem::replace(&mut self.state, State::Steady) {
            // The same version again: its question to the peers goes on.
            State::Asking { attempt, id, until } if *attempt.version == *version => {
                self.state = State::Asking { attempt, id, until };
                return Ok(());
            }
            // A newer version replaces one that was only asked about: neither journal nor device
            // know of that one.
            State::Asking { attempt, .. } => self.state = *attempt.instead,
            state => self.state = state,
        }
        // On the way back the device may have parts of any version, so `runs` proves nothing there.
        if *version == *self.runs && !matches!(self.state, State::GoingBack { .. }) {
            self.says_the_same();
            return Ok(());
        }
        if let Some(held) = self.held.as_ref().filter(|held| held.is(&version)) {
            return Err(Refused::Held(held.reason.clone()));
        }
        let (before, after) = (self.runs.facts(), version.facts());
        if let Some(what) = before.node.fixed(&after.node) {
            return Err(Refused::Fixed(what));
        }
        let needs = refusals(Some(before), after, &moment.logins, &self.settings.allow);
        if !needs.is_empty() {
            return Err(Refused::Caps(needs));
        }
        let attempt = self.attempt(version, moment, now);
        let targets = attempt.watchers.baseline();
        // Without a peer to ask, the change needs no baseline.
        if targets.is_empty() {
            self.note(attempt, now);
            return Ok(());
        }
        let id = self.next_id();
        self.outputs.push_back(Output::Ask(Ask {
            id,
            small: targets.clone(),
            full: targets,
            mtu: self.good.facts().node.mtu,
        }));
        self.state = State::Asking {
            attempt,
            id,
            until: now + ASK_DEADLINE,
        };
        Ok(())
    }

    /// The mesh file says what runs.
    fn says_the_same(&mut self) {
        // Reading a version twice does not confirm it: a change that is watched stays watched.
        if !matches!(self.state, State::Steady) {
            return;
        }
        self.tell(Notice::Good {
            version: self.runs.hash(),
            was_watched: false,
            missing: Vec::new(),
        });
        // The file has left the version that is held, so that version may be tried again later.
        if self.held.take().is_some() {
            self.write_closing();
        }
    }

    fn attempt(&mut self, version: Arc<V>, moment: Moment, now: Time) -> Attempt<V> {
        if self.lost.until.is_some_and(|until| now >= until) {
            self.lost = Lost::default();
        }
        let by_person = self.settings.confirm.is_some();
        let confirm = version.facts().rules.confirm;
        let confirm = self.settings.confirm.unwrap_or(confirm);
        // Peers that an unconfirmed or undone change had to keep alive count as alive here too:
        // otherwise a second change would drop those that the first has cut off.
        let (earlier, mut endpoints): (&[Watch], _) = match &self.state {
            State::Watching(guard) => (&guard.watched, guard.endpoints.clone()),
            State::GoingBack { endpoints, .. } => (&self.lost.watched, endpoints.clone()),
            _ => (&self.lost.watched, BTreeMap::new()),
        };
        // A person judges the change, or the file switches watching off: no peer is needed for it.
        let watchers = if by_person || confirm.is_zero() {
            Watchers::default()
        } else {
            let before = self.good.facts();
            let mut alive = moment.alive.clone();
            alive.extend(earlier.iter().map(|watch| watch.name.clone()));
            let carriers = moment.logins.iter().filter_map(|l| l.carrier(before));
            let operators = carriers.map(|(name, _)| name).collect();
            Watchers::of(before, version.facts(), &alive, &operators, earlier)
        };
        endpoints.extend(self.endpoints.clone());
        Attempt {
            version,
            moment,
            watchers,
            confirm,
            endpoints,
            instead: Box::new(std::mem::replace(&mut self.state, State::Steady)),
        }
    }

    /// Puts the change into the journal: without it there is no way back.
    fn note(&mut self, attempt: Attempt<V>, now: Time) {
        let deadline = now + attempt.watchers.window(attempt.confirm);
        let settled = now + attempt.watchers.settle(attempt.confirm);
        let guard = Guard {
            by_person: self.settings.confirm.is_some(),
            watched: attempt.watchers.watches(),
            endpoints: attempt.endpoints.clone(),
            ..Guard::new(attempt.version.hash(), deadline, settled, now)
        };
        let id = self.write(Some(Change::Open {
            to: guard.to,
            boot: self.settings.boot.clone(),
            deadline_ms: millis(deadline),
            settled_ms: millis(settled),
            by_person: guard.by_person,
            watched: guard.watched.clone(),
            endpoints: guard.endpoints.clone(),
        }));
        self.state = State::Noting { attempt, id, guard };
    }

    /// Peers answered an [`Ask`], or not.
    pub fn handle_answers(&mut self, id: u64, answers: &Answers, now: Time) {
        match std::mem::replace(&mut self.state, State::Steady) {
            State::Asking {
                mut attempt,
                id: asked,
                ..
            } if asked == id => {
                attempt.watchers.take_baseline(answers);
                self.note(attempt, now);
            }
            State::Watching(mut guard) if guard.asked.is_some_and(|(asked, _)| asked == id) => {
                guard.asked = None;
                guard.ask_at = now + CHECK_PAUSE;
                guard.take_answers(answers);
                self.state = State::Watching(guard);
                self.judge(now);
            }
            state => self.state = state,
        }
    }

    /// The journal was written, or not.
    pub fn handle_written(&mut self, id: u64, result: Result<(), String>, now: Time) {
        let error = result.err();
        match &error {
            None => {
                if self.disk.failed.take().is_some() {
                    self.tell(Notice::JournalWorks);
                }
                if std::mem::take(&mut self.disk.is_awaited) {
                    self.outputs.push_back(Output::Reload);
                }
            }
            Some(error) => {
                let known = self.disk.failed.as_ref();
                if known.is_none_or(|(known, _)| known != error) {
                    self.tell(Notice::JournalFails(error.clone()));
                }
                self.disk.failed = Some((error.clone(), now + JOURNAL_RETRY));
            }
        }
        match std::mem::replace(&mut self.state, State::Steady) {
            State::Noting {
                attempt,
                id: written,
                guard,
            } if written == id => match error {
                None => {
                    let id = self.apply(Arc::clone(&attempt.version), BTreeMap::new());
                    self.state = State::Applying { attempt, id, guard };
                }
                // Without the journal there would be no way back from the change. It is read
                // again once the disk takes writes.
                Some(error) => {
                    self.state = *attempt.instead;
                    self.disk.is_awaited = true;
                    self.tell(Notice::NotBegun(error));
                    self.begin_next(now);
                }
            },
            state => self.state = state,
        }
    }

    /// The device has the version that it was asked to take, or refuses it.
    pub fn handle_applied(&mut self, id: u64, result: Result<(), String>, now: Time) {
        match std::mem::replace(&mut self.state, State::Steady) {
            State::Applying {
                attempt,
                id: asked,
                guard,
            } if asked == id => match result {
                Ok(()) => self.changed(attempt, guard, now),
                // The device may have taken a part of the change.
                Err(error) => self.go_back(attempt.version, error, guard),
            },
            State::GoingBack {
                endpoints,
                step: Ok(asked),
            } if asked == id => match result {
                Ok(()) => {
                    self.runs = Arc::clone(&self.good);
                    self.lost.until = Some(now + RECOVERY);
                    self.tell(Notice::Back);
                    self.outputs
                        .push_back(Output::Follow(Arc::clone(&self.good)));
                }
                // The version before worked on this host, so it is tried until it works again.
                Err(error) => {
                    self.tell(Notice::CantGoBack(error));
                    self.state = State::GoingBack {
                        endpoints,
                        step: Err(now + RETURN_RETRY),
                    };
                }
            },
            // A late answer to a step that a lost device has ended.
            state => {
                self.state = state;
                return;
            }
        }
        self.begin_next(now);
    }

    fn changed(&mut self, attempt: Attempt<V>, mut guard: Guard, now: Time) {
        self.runs = attempt.version;
        self.held = None;
        self.tell(Notice::Changed);
        self.outputs
            .push_back(Output::Follow(Arc::clone(&self.runs)));
        // The change touches no peer that was alive, so it can cut none off.
        if guard.watched.is_empty() && !guard.by_person {
            self.confirm(false, Vec::new());
            return;
        }
        self.tell(Notice::Waiting {
            by_person: guard.by_person,
            peers: guard.missing(),
            left: guard.deadline.since(now),
        });
        guard.began = now;
        self.state = State::Watching(guard);
    }

    fn begin_next(&mut self, now: Time) {
        // The way back comes first: its answer begins the next version.
        if matches!(self.state, State::GoingBack { step: Ok(_), .. }) {
            return;
        }
        if let Some((version, moment)) = self.next.take()
            && let Err(refused) = self.begin(version, moment, now)
        {
            self.tell(Notice::Refused(refused));
        }
    }

    /// What the device says.
    pub fn handle_snapshot(&mut self, snapshot: &DeviceSnapshot, now: Time) {
        let rows = snapshot.peers.iter();
        self.endpoints = rows.filter_map(|p| Some((p.key, p.endpoint?))).collect();
        if let State::Watching(guard) = &mut self.state {
            guard.take_snapshot(snapshot, now);
            self.judge(now);
        }
        if std::mem::take(&mut self.catch_up) {
            self.outputs.push_back(Output::Reload);
        }
    }

    /// The device was lost, and made anew with the version that runs. A version that was on its way
    /// to the device begins again.
    pub fn handle_device_lost(&mut self, now: Time) {
        match std::mem::replace(&mut self.state, State::Steady) {
            // The new device has nothing of the attempt. A newer version, if one waits, replaces
            // it.
            State::Noting { attempt, .. } | State::Applying { attempt, .. } => {
                self.state = *attempt.instead;
                if self.next.is_none() {
                    self.next = Some((attempt.version, attempt.moment));
                }
                self.begin_next(now);
            }
            // The new device may have the version that is being undone.
            State::GoingBack { endpoints, .. } => self.apply_good(endpoints),
            // The device has the version that runs, which is all that these states need.
            state => self.state = state,
        }
    }

    /// A person says that the change is good, over a connection to the agent that was made at
    /// `connected`. It has to be younger than the change: an older connection would not prove that
    /// the person can still reach the host.
    ///
    /// # Errors
    /// Nothing waits for it, or the connection is too old.
    pub fn handle_confirm(&mut self, connected: Time) -> Result<Hash, ConfirmError> {
        match &self.state {
            State::Watching(guard) if connected <= guard.began => Err(ConfirmError::OldConnection),
            State::Watching(_) => {
                self.confirm(true, Vec::new());
                Ok(self.runs.hash())
            }
            State::Steady => Err(ConfirmError::Nothing),
            _ => Err(ConfirmError::Busy),
        }
    }

    /// The time has come that [`Rollout::poll_timeout`] named.
    pub fn handle_timeout(&mut self, now: Time) {
        match std::mem::replace(&mut self.state, State::Steady) {
            // The answers were lost. The change is made without a baseline; its peers then have to
            // show life by WireGuard's packets.
            State::Asking { attempt, until, .. } if now >= until => self.note(attempt, now),
            State::GoingBack {
                endpoints,
                step: Err(at),
            } if now >= at => self.apply_good(endpoints),
            state => self.state = state,
        }
        self.judge(now);
        self.retry_journal(now);
    }

    /// The agent ends. A last attempt to write the journal: otherwise the next agent would undo a
    /// change that was just confirmed.
    pub fn handle_stop(&mut self, now: Time) {
        self.retry_journal(now + JOURNAL_RETRY);
    }

    fn retry_journal(&mut self, now: Time) {
        if let (State::Steady, Some((_, at))) = (&self.state, &mut self.disk.failed)
            && now >= *at
        {
            *at = now + JOURNAL_RETRY;
            self.write_closing();
        }
    }

    /// Judges the change that is not confirmed yet, and asks its peers.
    fn judge(&mut self, now: Time) {
        let State::Watching(guard) = &mut self.state else {
            return;
        };
        match guard.verdict(now) {
            Verdict::Good(missing) => self.confirm(true, missing),
            Verdict::Bad(reason) => {
                let guard = guard.clone();
                self.go_back(Arc::clone(&self.runs), reason, guard);
            }
            Verdict::Wait => {
                if guard.asked.is_some_and(|(_, until)| now < until) || now < guard.ask_at {
                    return;
                }
                let (small, full) = guard.to_ask();
                // No peer has an address to ask. A person, snapshots of the device or the deadline
                // decide.
                if small.is_empty() && full.is_empty() {
                    guard.ask_at = guard.deadline;
                    return;
                }
                self.last_id += 1;
                guard.asked = Some((self.last_id, now + ASK_DEADLINE));
                self.outputs.push_back(Output::Ask(Ask {
                    id: self.last_id,
                    small,
                    full,
                    mtu: self.runs.facts().node.mtu,
                }));
            }
        }
    }

    /// The version that runs is known to work.
    fn confirm(&mut self, was_watched: bool, missing: Vec<String>) {
        self.state = State::Steady;
        self.good = Arc::clone(&self.runs);
        self.lost = Lost::default();
        self.tell(Notice::Good {
            version: self.good.hash(),
            was_watched,
            missing,
        });
        self.write_closing();
    }

    /// Begins the way back to the version that works. The journal comes first, so that the next
    /// agent goes on with the way back. If the disk refuses the write, the journal still has the
    /// open change, which leads the next agent back too.
    fn go_back(&mut self, tried: Arc<V>, reason: String, guard: Guard) {
        self.tell(Notice::Undone {
            version: tried.hash(),
            reason: reason.clone(),
        });
        self.held = Some(Held {
            to: tried.hash(),
            reason,
            tried: Some(tried),
        });
        self.lost = Lost {
            watched: guard.watched,
            until: None,
        };
        self.write_closing();
        self.apply_good(guard.endpoints);
    }

    fn apply_good(&mut self, endpoints: BTreeMap<PeerKey, SocketAddr>) {
        // A peer's endpoint from before the change is preferred to its last one, which the change
        // may have led astray.
        let mut all = self.endpoints.clone();
        all.extend(endpoints.clone());
        let id = self.apply(Arc::clone(&self.good), all);
        self.state = State::GoingBack {
            endpoints,
            step: Ok(id),
        };
    }

    fn apply(&mut self, version: Arc<V>, endpoints: BTreeMap<PeerKey, SocketAddr>) -> u64 {
        let id = self.next_id();
        self.outputs.push_back(Output::Apply {
            id,
            version,
            endpoints,
        });
        id
    }

    /// Writes the journal of a node that tries no change: the good version, and the held one.
    pub(crate) fn write_closing(&mut self) {
        let held = self.held.as_ref();
        let change = held.map(|Held { to, reason, .. }| Change::Held {
            to: *to,
            reason: reason.clone(),
        });
        self.write(change);
    }

    fn write(&mut self, change: Option<Change>) -> u64 {
        let id = self.next_id();
        let good = Arc::clone(&self.good);
        let entry = Entry { good, change };
        self.outputs.push_back(Output::Write { id, entry });
        id
    }

    pub(crate) fn tell(&mut self, notice: Notice) {
        self.outputs.push_back(Output::Tell(notice));
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

impl<V: Release> Held<V> {
    /// Whether this is the version: the same files, and the same keys and secrets as far as these
    /// are known.
    fn is(&self, version: &V) -> bool {
        let tried = self.tried.as_ref();
        self.to == version.hash() && tried.is_none_or(|tried| tried.facts() == version.facts())
    }
}
