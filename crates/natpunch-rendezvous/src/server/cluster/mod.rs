//! What a process that shares a store says to it, and makes of its answers. Pure: the shell carries
//! [`Ask`]s to the store and answers back, and has the connection.
//!
//! Nothing is locked and nothing is retried by itself. What a mailbox still has to say is a mark at
//! the mailbox, so what waits is bounded by what is here, and what was lost is said again by a walk
//! over all of them, at a pace.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::{Rate, RateBudget, Time};

use super::Pacer;
use super::mailboxes::Mailboxes;
use super::meet::Meetings;
use super::relays::Relays;
use super::session::Pushes;
use crate::cluster::{Answer, Ask, Message, ProcessId, Question, Record, Reply, Waiting, Word};
use crate::frame::{Frame as _, Notice};
use crate::wire::{Digest, Tag};

mod elsewhere;

use elsewhere::Elsewhere;

/// What a client repeats is said to the store again after this time: twice within the lifetime
/// there, since clients repeat every 225 to 300 s.
const REFRESH: Duration = Duration::from_secs(400);
/// How many mailboxes are said again in a second after a new connection.
const AGAIN: Rate = Rate::per_second(2_000, 200);
/// When what the store refused is said again.
const REFUSED: Duration = Duration::from_secs(30);
/// How often the store is asked for the time.
const CLOCK: Duration = Duration::from_secs(60);
/// A measured time that differs by less is the same.
const CLOCK_JITTER: i64 = 20;
/// How far ahead of the store's clock a record may claim to have been heard.
const CLOCK_ERROR: i64 = 100;
/// A record that was heard from its owner so lately is newer than any that claims to be from the
/// future.
const JUST_HEARD: i64 = 30_000;
/// Asks of mailboxes that are not sent yet; more come when these are.
const MOST_READY: usize = 64;
/// Meetings that wait to be said; more are not: clients repeat them.
const MOST_URGENT: usize = 4_096;
/// Mailboxes looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

/// What happened between this process and the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were made.
    pub connected: u64,
    /// Records that were kept in the store.
    pub kept: u64,
    /// Records that came from other processes and were newer.
    pub adopted: u64,
    /// Records that were told to other processes.
    pub told: u64,
    /// Older records that were found in the store or came from other processes.
    pub stale: u64,
    /// Pairs at two processes that were told a moment to fire at.
    pub met: u64,
    /// What the store refused.
    pub refused: u64,
    /// What was not said since the store was not there, or too much waited.
    pub unsaid: u64,
}

/// What this process has, beside what it knows of the store.
pub(super) struct Here<'a> {
    pub(super) mailboxes: &'a mut Mailboxes,
    pub(super) meetings: &'a mut Meetings,
    pub(super) relays: &'a mut Relays,
}

/// This process among those that share a store.
#[derive(Default)]
pub(super) struct Cluster {
    link: Option<Link>,
    entries: BTreeMap<Tag, Entry>,
    /// Mailboxes of which a client has just said something.
    fresh: VecDeque<Tag>,
    /// What is to be asked next: of meetings, which don't wait, and of mailboxes.
    urgent: VecDeque<Ask>,
    ready: VecDeque<Ask>,
    sweep_after: Option<Tag>,
    /// Whose relay is where, if clients reach the ports of all processes at one address.
    elsewhere: Option<Elsewhere>,
    pub(super) counters: Counters,
}

/// The connection that there is.
struct Link {
    me: ProcessId,
    /// What was said before is unsaid.
    since: Time,
    /// The store's clock less ours, in milliseconds, once it is known.
    offset: Option<i64>,
    /// When the store was asked for the time, and when it is to be asked again.
    asked: Time,
    ask_again: Time,
    /// The walk over all mailboxes that says them again.
    walk: Option<Walk>,
    pace: RateBudget,
}

struct Walk {
    after: Bound<Tag>,
    from: Time,
}

/// What the store was told of a mailbox.
#[derive(Default)]
struct Entry {
    /// When the record here was heard from its owner, by our clock, in milliseconds.
    heard: Option<i64>,
    /// When the store last kept it, as far as it comes from here.
    kept: Option<Time>,
    /// When it was last told that this process has watchers.
    joined: Option<Time>,
    is_queued: bool,
}

impl Link {
    /// Whether what was said then need not be said yet again.
    fn holds(&self, said: Option<Time>, now: Time) -> bool {
        said.is_some_and(|said| said >= self.since && now < said + REFRESH)
    }
}

impl Cluster {
    /// A connection is made; the process is this one in it.
    pub(super) fn handle_up(&mut self, me: ProcessId, wait: Duration, now: Time) {
        self.handle_down();
        self.counters.connected += 1;
        self.link = Some(Link {
            me,
            since: now,
            offset: None,
            asked: now,
            ask_again: now,
            walk: Some(Walk {
                after: Bound::Unbounded,
                from: now + wait,
            }),
            pace: RateBudget::new(AGAIN),
        });
    }

    /// A process that shared no relay does from now on.
    pub(super) fn share_relays(&mut self) {
        self.elsewhere = Some(Elsewhere::default());
    }

    /// The connection is gone. What waited is said again by the next one.
    pub(super) fn handle_down(&mut self) {
        self.link = None;
        self.ready.clear();
        self.urgent.clear();
        for tag in self.fresh.drain(..) {
            if let Some(entry) = self.entries.get_mut(&tag) {
                entry.is_queued = false;
            }
        }
    }

    /// Mailboxes that the store has to hear of.
    pub(super) fn waiting(&self) -> usize {
        self.fresh.len() + self.ready.len() + self.urgent.len()
    }

    /// Whether there is something to ask now.
    pub(super) fn has_work(&self) -> bool {
        let is_up = self.link.as_ref().is_some_and(|link| link.offset.is_some());
        is_up && self.waiting() > 0
    }

    /// A client left a record, which is another one than before or not.
    pub(super) fn handle_put(&mut self, tag: Tag, is_new: bool, now: Time) {
        let entry = self.entries.entry(tag).or_default();
        if is_new || entry.heard.is_none() {
            // It was heard now from its owner, so no other is newer.
            let least = entry.heard.map_or(i64::MIN, |heard| heard + 1);
            (entry.heard, entry.kept) = (Some(millis(now).max(least)), None);
        }
        match &self.link {
            Some(link) if !link.holds(entry.kept, now) => self.queue(tag),
            Some(_) => {}
            None => self.counters.unsaid += u64::from(is_new),
        }
    }

    /// A client watches a mailbox.
    pub(super) fn handle_watch(&mut self, tag: Tag, now: Time) {
        let entry = self.entries.entry(tag).or_default();
        let joined = entry.joined;
        if self
            .link
            .as_ref()
            .is_some_and(|link| !link.holds(joined, now))
        {
            self.queue(tag);
        }
    }

    /// A client waits to meet another one, which has not come here. `mailbox`: that with its record
    /// for the other one.
    pub(super) fn handle_meet(&mut self, tag: Tag, meetings: &Meetings, mailbox: Option<Tag>) {
        let (Some(link), Some((client, round_trip_ms))) = (&self.link, meetings.waiting(&tag))
        else {
            return;
        };
        let who = Waiting {
            process: link.me,
            client,
            round_trip_ms,
        };
        self.push_urgent(Question::Meet { tag, who });
        if let Some(tag) = mailbox {
            self.push_urgent(Question::Wanted { tag });
        }
    }

    /// Asks soon. What finds no room is left out: clients repeat it.
    fn push_urgent(&mut self, question: Question) {
        if self.urgent.len() < MOST_URGENT {
            self.urgent.push_back(Ask(question));
        } else {
            self.counters.unsaid += 1;
        }
    }

    /// Another process's client waits for one here, or had come before it.
    fn meet(
        &mut self,
        tag: Tag,
        other: Waiting,
        fixed: Option<i64>,
        here: &mut Here<'_>,
        told: &mut Pushes,
        now: Time,
    ) {
        let Some((me, offset)) = self
            .link
            .as_ref()
            .and_then(|link| Some((link.me, link.offset?)))
        else {
            return;
        };
        let fixed = fixed.map(|moment| {
            let local = u64::try_from(moment.saturating_sub(offset)).unwrap_or_default();
            Time::from_millis(local)
        });
        let waits = here.meetings.waiting(&tag);
        let side = (other.client, other.round_trip_ms);
        let met = here.meetings.meet_elsewhere(tag, side, fixed, now);
        let (Some((moment, fires)), Some((client, round_trip_ms))) = (met, waits) else {
            return;
        };
        told.extend(fires);
        if fixed.is_none() {
            self.counters.met += 1;
            let (to, process) = (other.process, me);
            let other = Waiting {
                process,
                client,
                round_trip_ms,
            };
            let moment = millis(moment) + offset;
            let message = Message(Word::Met { tag, other, moment });
            self.urgent.push_front(Ask(Question::Tell { to, message }));
        }
    }

    /// Each mailbox waits once, however much is said of it.
    fn queue(&mut self, tag: Tag) {
        if let Some(entry) = self.entries.get_mut(&tag)
            && !std::mem::replace(&mut entry.is_queued, true)
        {
            self.fresh.push_back(tag);
        }
    }

    /// The next thing to ask.
    pub(super) fn poll(&mut self, mailboxes: &Mailboxes, now: Time) -> Option<Ask> {
        let link = self.link.as_mut()?;
        // Also the first thing of all: nothing can be said without the store's clock.
        if now >= link.ask_again {
            (link.asked, link.ask_again) = (now, now + CLOCK);
            return Some(Ask(Question::Clock));
        }
        link.offset?;
        if let Some(urgent) = self.urgent.pop_front() {
            return Some(urgent);
        }
        while self.ready.is_empty() {
            if let Some(tag) = self.fresh.pop_front() {
                self.say(tag, false, mailboxes, now);
            } else {
                let tag = self.walk(now)?;
                self.say(tag, true, mailboxes, now);
            }
        }
        self.ready.pop_front()
    }

    /// When [`poll`](Self::poll) may have something that it has not now.
    pub(super) fn next_due(&self, now: Time) -> Option<Time> {
        let link = self.link.as_ref()?;
        // Without the store's clock nothing can be said.
        let walk = link.walk.as_ref().filter(|_| link.offset.is_some());
        let walk = walk.map(|walk| {
            let pace = link.pace.available_at().unwrap_or(now);
            walk.from.max(pace)
        });
        walk.into_iter().chain([link.ask_again]).min()
    }

    /// The next mailbox that is to be said again, if it is time.
    fn walk(&mut self, now: Time) -> Option<Tag> {
        let link = self.link.as_mut()?;
        let walk = link.walk.as_mut().filter(|walk| walk.from <= now)?;
        let next = self.entries.range((walk.after, Bound::Unbounded)).next();
        let Some((tag, _)) = next else {
            link.walk = None;
            return None;
        };
        if !link.pace.take(now) {
            return None;
        }
        walk.after = Bound::Excluded(*tag);
        Some(*tag)
    }

    /// Asks what the store is to be told of a mailbox. `again`: the store may know a newer record.
    fn say(&mut self, tag: Tag, again: bool, mailboxes: &Mailboxes, now: Time) {
        let (Some(link), Some(entry)) = (&self.link, self.entries.get_mut(&tag)) else {
            return;
        };
        entry.is_queued = false;
        let mut finds = false;
        if mailboxes.watchers(&tag, now).next().is_some() && !link.holds(entry.joined, now) {
            let who = link.me;
            // First the name, then the look: a record that is left between the two is told.
            let join = [Question::Join { tag, who }, Question::Extend { tag }];
            self.ready.extend(join.map(Ask));
            entry.joined = Some(now);
            finds = true;
        }
        let is_own = mailboxes.record(&tag, now).is_some_and(|(.., own)| own);
        let keeps = is_own && !link.holds(entry.kept, now);
        if finds || keeps && again {
            self.ready.push_back(Ask(Question::Find { tag }));
        }
        if keeps && !again {
            self.keep(tag, true, mailboxes, now);
        }
    }

    /// Lets the store keep the record here, and its readers' processes know.
    fn keep(&mut self, tag: Tag, tells: bool, mailboxes: &Mailboxes, now: Time) {
        let Some(record) = self.record(&tag, mailboxes, now) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&tag) {
            entry.kept = Some(now);
        }
        self.counters.kept += 1;
        self.ready.push_back(Ask(Question::Keep { tag, record }));
        if tells {
            self.ready.push_back(Ask(Question::Readers { tag }));
        }
    }

    /// The record here, by the store's clock.
    fn record(&self, tag: &Tag, mailboxes: &Mailboxes, now: Time) -> Option<Record> {
        let offset = self.link.as_ref()?.offset?;
        let (digest, blob, _) = mailboxes.record(tag, now)?;
        let heard = self.entries.get(tag)?.heard? + offset;
        let blob = blob.into();
        Some(Record {
            heard,
            digest,
            blob,
        })
    }

    /// The store has answered.
    pub(super) fn handle_answer(
        &mut self,
        Ask(asked): Ask,
        Answer(reply): Answer,
        here: &mut Here<'_>,
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) {
        let now = pacer.now;
        match (&asked, &reply) {
            (Question::Meet { tag, who }, Reply::Waiting(Some(other))) => {
                // One that came by another address or process is no other one.
                if other.process != who.process && other.client != who.client {
                    self.meet(*tag, *other, None, here, told, now);
                }
                return;
            }
            (Question::Wanted { tag }, Reply::Readers(processes)) => {
                let me = self.link.as_ref().map(|link| link.me);
                for to in processes.iter().copied().filter(|it| Some(*it) != me) {
                    let message = Message(Word::Wanted { tag: *tag });
                    self.push_urgent(Question::Tell { to, message });
                }
                return;
            }
            (Question::Host { tag, .. }, Reply::Host(Some(host))) => {
                self.handle_host(*tag, *host, here.relays, now);
                return;
            }
            (Question::Tell { message, .. }, Reply::Told(0)) => {
                if let Word::Wish { wish, .. } = &message.0 {
                    self.handle_host_gone(&wish.tag);
                    return;
                }
            }
            _ => {}
        }
        let mailboxes = &mut *here.mailboxes;
        match (asked, reply) {
            (asked, Reply::Refused) => self.handle_refused(&asked, now),
            (Question::Clock, Reply::Clock(there)) => self.handle_clock(there, now),
            (Question::Find { tag }, Reply::Record(found)) => {
                let is_newer = found
                    .as_ref()
                    .is_some_and(|found| self.compare(tag, found, mailboxes, pacer, told));
                let own = mailboxes.record(&tag, now).filter(|(.., own)| *own);
                let is_kept = self.entries.get(&tag).is_none_or(|entry| {
                    let link = self.link.as_ref();
                    link.is_none_or(|link| link.holds(entry.kept, now))
                });
                if let Some((digest, ..)) = own.filter(|_| !is_newer && !is_kept) {
                    // Who watched since has found it, if it was there.
                    let is_there = found.is_some_and(|found| found.digest == digest);
                    self.keep(tag, !is_there, mailboxes, now);
                }
            }
            (Question::Keep { tag, .. }, Reply::Record(Some(before))) => {
                let is_newer = self.compare(tag, &before, mailboxes, pacer, told);
                // What it took the place of was newer: that is kept again.
                if is_newer {
                    self.keep(tag, true, mailboxes, now);
                }
            }
            (Question::Readers { tag }, Reply::Readers(processes)) => {
                let Some(record) = self.record(&tag, mailboxes, now) else {
                    return;
                };
                let me = self.link.as_ref().map(|link| link.me);
                for to in processes.into_iter().filter(|it| Some(*it) != me) {
                    self.counters.told += 1;
                    let record = record.clone();
                    let message = Message(Word::Record { tag, record });
                    self.ready.push_back(Ask(Question::Tell { to, message }));
                }
            }
            // Nobody hears it any more.
            (Question::Tell { to, message }, Reply::Told(0)) => {
                if let Some(tag) = message.0.mailbox() {
                    self.ready.push_back(Ask(Question::Leave { tag, who: to }));
                }
            }
            _ => {}
        }
    }

    fn handle_refused(&mut self, asked: &Question, now: Time) {
        self.counters.refused += 1;
        let tag = match asked {
            Question::Keep { tag, .. }
            | Question::Find { tag }
            | Question::Readers { tag }
            | Question::Join { tag, .. }
            | Question::Extend { tag } => tag,
            Question::Clock
            | Question::Host { .. }
            | Question::Hold { .. }
            | Question::Free { .. }
            | Question::Wanted { .. }
            | Question::Meet { .. }
            | Question::Leave { .. }
            | Question::Tell { .. } => return,
        };
        if let Some(entry) = self.entries.get_mut(tag) {
            (entry.kept, entry.joined) = (None, None);
        }
        if let Some(link) = self.link.as_mut() {
            link.walk.get_or_insert(Walk {
                after: Bound::Unbounded,
                from: now + REFUSED,
            });
        }
    }

    fn handle_clock(&mut self, there: i64, now: Time) {
        let Some(link) = self.link.as_mut() else {
            return;
        };
        // It was read half way between.
        let here = millis(link.asked).midpoint(millis(now));
        let offset = there.saturating_sub(here);
        let is_same = |known: i64| known.abs_diff(offset) < CLOCK_JITTER as u64;
        if !link.offset.is_some_and(is_same) {
            link.offset = Some(offset);
        }
    }

    /// Another process says something.
    pub(super) fn handle_message(
        &mut self,
        Message(word): Message,
        here: &mut Here<'_>,
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) {
        let Some(link) = &self.link else {
            return;
        };
        let who = link.me;
        match word {
            Word::Record { tag, record } => {
                if here.mailboxes.watchers(&tag, pacer.now).next().is_none() {
                    self.ready.push_back(Ask(Question::Leave { tag, who }));
                }
                self.compare(tag, &record, here.mailboxes, pacer, told);
            }
            Word::Wanted { tag } => {
                let watchers = here.mailboxes.watchers(&tag, pacer.now);
                told.extend(watchers.map(|watcher| (watcher, Notice::Wanted { tag })));
            }
            Word::Notices { client, frames } => {
                let about_relays = |notice: &Notice| {
                    matches!(
                        notice,
                        Notice::RelayOffer { .. } | Notice::RelayState { .. }
                    )
                };
                let notices = Notice::decode(&frames).into_iter().filter(about_relays);
                told.extend(notices.map(|notice| (client, notice)));
            }
            // The server has taken it.
            Word::Wish { .. } => {}
            Word::Met { tag, other, moment } => {
                self.meet(tag, other, Some(moment), here, told, pacer.now);
            }
        }
    }

    /// Takes a record from elsewhere if it is newer than the one here; whether it was.
    fn compare(
        &mut self,
        tag: Tag,
        theirs: &Record,
        mailboxes: &mut Mailboxes,
        pacer: &mut Pacer<'_>,
        told: &mut Pushes,
    ) -> bool {
        let now = pacer.now;
        let Some(offset) = self.link.as_ref().and_then(|link| link.offset) else {
            return false;
        };
        let heard = theirs.heard.saturating_sub(offset);
        let ours: Option<(Digest, bool)> = mailboxes
            .record(&tag, now)
            .map(|(digest, _, own)| (digest, own));
        let entry = self.entries.get_mut(&tag);
        if let (Some((digest, is_own)), Some(entry)) = (ours, entry) {
            let own_heard = entry.heard.unwrap_or(i64::MIN);
            if digest == theirs.digest {
                entry.heard = Some(own_heard.max(heard));
                return false;
            }
            // A clock was wrong: what its owner has just said here is the newest there is.
            let is_ahead = heard > millis(now) + CLOCK_ERROR;
            if is_ahead && is_own && own_heard + JUST_HEARD > millis(now) && heard > own_heard {
                (entry.heard, entry.kept) = (Some(heard + 1), None);
                self.queue(tag);
                return false;
            }
            if heard <= own_heard {
                self.counters.stale += 1;
                return false;
            }
        }
        let is_taken = mailboxes.adopt(tag, (theirs.digest, &theirs.blob), pacer, told);
        if is_taken {
            self.counters.adopted += 1;
            let entry = self.entries.entry(tag).or_default();
            (entry.heard, entry.kept) = (Some(heard), None);
        }
        is_taken
    }

    /// Forgets mailboxes that are gone, among the next few, and says that nobody watches here what
    /// nobody does.
    pub(super) fn sweep(&mut self, mailboxes: &Mailboxes, now: Time) {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.entries.range_mut((from, Bound::Unbounded));
        let (mut last, mut over, mut count) = (None, Vec::new(), 0);
        let who = self.link.as_ref().map(|link| (link.me, link.since));
        for (tag, entry) in rest.take(SWEEP_SIZE) {
            (last, count) = (Some(*tag), count + 1);
            let is_watched = mailboxes.watchers(tag, now).next().is_some();
            if let Some((who, _)) = who.filter(|(_, since)| {
                !is_watched && entry.joined.is_some_and(|joined| joined >= *since)
            }) && self.ready.len() < MOST_READY
            {
                entry.joined = None;
                let tag = *tag;
                self.ready.push_back(Ask(Question::Leave { tag, who }));
            }
            let is_here = is_watched || mailboxes.record(tag, now).is_some();
            if !is_here && !entry.is_queued {
                over.push(*tag);
            }
        }
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.forget(now);
        }
        self.sweep_after = last.filter(|_| count == SWEEP_SIZE);
        for tag in over {
            self.entries.remove(&tag);
        }
    }
}

fn millis(time: Time) -> i64 {
    time.since_origin()
        .as_millis()
        .try_into()
        .unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
