//! A client of one server, without sockets and clocks: bytes and the time come in, bytes and
//! records come out.
//!
//! What is wanted (the tags of peers, this node's records) outlives connections; what the server
//! was asked is a [`Session`]. On a new connection each tag is subscribed to and then read, so
//! that no record falls between the two, and each of our records is stored and published.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use natpunch_plugin::{Health, Password, RecordTag, SealedRecord, Time};
use natpunch_redis::{Nonsense, Reply, Trouble, command, hello};
use natpunch_types::{backoff, spread};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;

use crate::session::{Command, Kind, Session, Todo};

/// Tags that are subscribed to, and records that are kept, each; more are left out, and said.
pub(crate) const MOST_TAGS: usize = 4_096;
/// The wait after a connection that failed: the first time, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A connection that lasted this long was good: the next failure is a first one.
const GOOD: Duration = Duration::from_secs(30);
/// The wait before a command is tried again that the server refuses.
const REFUSED: Duration = Duration::from_secs(30);
/// The time between two attempts that networks which come and go cause.
const SOONEST: Duration = Duration::from_secs(2);
/// How often all tags are read on a connection that stays. What is published comes by itself.
const READ_AGAIN: Duration = Duration::from_secs(10 * 60);

/// What a client has to know of its server.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// What the names of all keys and channels begin with.
    pub(crate) prefix: String,
    /// The user, and its password; without one nobody logs in.
    pub(crate) user: String,
    pub(crate) password: Option<Password>,
    /// The number of the database.
    pub(crate) database: u16,
    /// How long a record stays that is not stored again.
    pub(crate) lifetime: Duration,
}

impl Config {
    /// The name of a tag's key and channel.
    fn name(&self, tag: RecordTag) -> Vec<u8> {
        format!("{}{tag}", self.prefix).into_bytes()
    }

    /// A command as bytes; `None` if it is about a record that there is not.
    fn command(&self, it: Command, records: &BTreeMap<RecordTag, Arc<[u8]>>) -> Option<Vec<u8>> {
        let name = it.name().as_bytes();
        Some(match it {
            Command::Hello => {
                let password = self.password.as_ref();
                hello(password.map(|password| (self.user.as_str(), password.expose())))
            }
            Command::Select => command(&[name, self.database.to_string().as_bytes()]),
            Command::Ping => command(&[name]),
            Command::Subscribe(tag) | Command::Unsubscribe(tag) => {
                command(&[name, &self.name(tag)])
            }
            // One byte more than a record has tells what is longer, and a server that is honest
            // sends no more.
            Command::Read(tag) => {
                let last = SealedRecord::MAX.to_string();
                command(&[name, &self.name(tag), b"0", last.as_bytes()])
            }
            Command::Store(tag) => {
                let lifetime = self.lifetime.as_millis().to_string();
                let blob = records.get(&tag)?;
                command(&[name, &self.name(tag), blob, b"PX", lifetime.as_bytes()])
            }
            Command::Publish(tag) => command(&[name, &self.name(tag), records.get(&tag)?]),
        })
    }
}

/// The client.
pub(crate) struct Client {
    config: Config,
    random: ChaCha20Rng,
    link: Link,
    /// Connections that failed one after another.
    failures: u32,
    /// When the last attempt began.
    attempted: Option<Time>,
    /// What each peer left, as it was told last. Absent tags are not wanted.
    inbox: BTreeMap<RecordTag, Option<Arc<[u8]>>>,
    outbox: BTreeMap<RecordTag, Arc<[u8]>>,
    /// Whether there are more peers than are served.
    has_more: bool,
    /// Tags under which there is something else than a record.
    strange: BTreeSet<RecordTag>,
    news: VecDeque<SealedRecord>,
    trouble: Option<Trouble>,
}

enum Link {
    Down { until: Time },
    Opening,
    Up(Box<Session>),
}

impl Client {
    /// A client that has nothing to do yet.
    pub(crate) fn new(config: Config, random: ChaCha20Rng, now: Time) -> Self {
        Self {
            config,
            random,
            link: Link::Down { until: now },
            failures: 0,
            attempted: None,
            inbox: BTreeMap::new(),
            outbox: BTreeMap::new(),
            has_more: false,
            strange: BTreeSet::new(),
            news: VecDeque::new(),
            trouble: None,
        }
    }

    /// The tags under which peers leave records for this node, all of them.
    pub(crate) fn set_tags(&mut self, tags: impl IntoIterator<Item = RecordTag>) {
        let mut wanted: BTreeSet<RecordTag> = tags.into_iter().collect();
        // The tag of no pair is nobody's mailbox.
        wanted.remove(&RecordTag::NONE);
        self.has_more = wanted.len() > MOST_TAGS;
        let mut old = std::mem::take(&mut self.inbox);
        for tag in wanted.into_iter().take(MOST_TAGS) {
            let known = old.remove(&tag);
            if let (None, Link::Up(session)) = (&known, &mut self.link) {
                session.todo.of(Kind::Subscribe).insert(tag);
            }
            self.inbox.insert(tag, known.flatten());
        }
        for gone in old.into_keys() {
            self.strange.remove(&gone);
            if let Link::Up(session) = &mut self.link {
                session.forget(gone);
            }
        }
    }

    /// This node's records, all of them. Those that are no longer among them expire.
    pub(crate) fn set_records(&mut self, records: &[SealedRecord]) {
        let old = std::mem::take(&mut self.outbox);
        for record in records.iter().take(MOST_TAGS) {
            let is_new = old.get(&record.tag) != Some(&record.blob);
            if let (true, Link::Up(session)) = (is_new, &mut self.link) {
                session.todo.store.insert(record.tag);
                session.todo.publish.insert(record.tag);
            }
            self.outbox.insert(record.tag, record.blob.clone());
        }
    }

    /// Whether a connection is to be made now. What comes of it is to be said by
    /// [`Client::handle_connected`] or [`Client::handle_lost`].
    pub(crate) fn poll_connect(&mut self, now: Time) -> bool {
        match self.link {
            Link::Down { until } if until <= now => {
                self.link = Link::Opening;
                self.attempted = Some(now);
                true
            }
            _ => false,
        }
    }

    /// There is a connection.
    pub(crate) fn handle_connected(&mut self, now: Time) {
        let session = Session::new(self.config.database != 0, now);
        self.link = Link::Up(Box::new(session));
    }

    /// There is no connection any more, or none could be made.
    pub(crate) fn handle_lost(&mut self, trouble: Trouble, now: Time) {
        let was_good = matches!(&self.link, Link::Up(session) if session.ready_for(now) >= GOOD);
        if was_good {
            self.failures = 0;
        }
        let wait = self.jitter(backoff(RECONNECT, self.failures));
        self.failures = self.failures.saturating_add(1);
        self.link = Link::Down { until: now + wait };
        self.trouble = Some(trouble);
    }

    /// Another network, or the end of a sleep: what there is may be dead, and what failed may work.
    pub(crate) fn handle_network_change(&mut self, now: Time) {
        match &mut self.link {
            Link::Up(session) => session.probe(),
            Link::Down { until } => {
                let soonest = self.attempted.map_or(now, |last| (last + SOONEST).max(now));
                *until = soonest.min(*until);
            }
            // It has a deadline of its own.
            Link::Opening => {}
        }
    }

    /// Bytes from the server.
    pub(crate) fn handle_bytes(&mut self, bytes: &[u8], now: Time) {
        if let Link::Up(session) = &mut self.link {
            session.push(bytes, now);
        }
        while let Link::Up(session) = &mut self.link {
            let outcome = match session.next_reply() {
                Ok(Some(reply)) => self.handle_reply(reply, now),
                Ok(None) => return,
                Err(nonsense) => Err(Trouble::Nonsense(nonsense)),
            };
            if let Err(trouble) = outcome {
                self.handle_lost(trouble, now);
            }
        }
    }

    fn handle_reply(&mut self, reply: Reply, now: Time) -> Result<(), Trouble> {
        let Link::Up(session) = &mut self.link else {
            return Ok(());
        };
        // Confirmations of subscriptions are pushed, and answers all the same.
        if let Some(message) = message(&reply) {
            session.count_message(now)?;
            if let Some((channel, payload)) = message {
                self.handle_message(channel, payload);
            }
            return Ok(());
        }
        let Some(asked) = session.answered() else {
            return Err(Trouble::Nonsense(Nonsense::NotResp));
        };
        if let Reply::Error(words) = &reply {
            return self.handle_refusal(asked, words, now);
        }
        match (asked, reply) {
            (Command::Hello, Reply::List(_)) => self.handle_greeted(now),
            (Command::Select, Reply::Text(_)) => self.handle_ready(now),
            (Command::Subscribe(_), Reply::Push(_)) => session.allow(Kind::Subscribe),
            (Command::Unsubscribe(_), Reply::Push(_)) | (Command::Ping, Reply::Text(_)) => {}
            (Command::Read(tag), Reply::Text(blob)) => {
                session.allow(Kind::Read);
                self.strange.remove(&tag);
                self.handle_record(tag, blob);
            }
            (Command::Store(_), Reply::Text(_)) => session.allow(Kind::Store),
            (Command::Publish(_), Reply::Integer(_)) => session.allow(Kind::Publish),
            (asked, _) => return Err(Trouble::OtherAnswer(asked.name())),
        }
        Ok(())
    }

    /// A command that the server answers with an error. That of a greeting is the end; else the
    /// other commands go on, and this one is tried again later.
    fn handle_refusal(&mut self, asked: Command, words: &str, now: Time) -> Result<(), Trouble> {
        let trouble = Trouble::refused(asked.name(), &self.config.user, words);
        let wait = self.jitter(REFUSED);
        let Link::Up(session) = &mut self.link else {
            return Ok(());
        };
        match asked.refusable() {
            // Another program's list or hash has the name of this one tag.
            Some((Kind::Read, tag)) if words.starts_with("WRONGTYPE") => {
                self.strange.insert(tag);
            }
            Some((kind, tag)) => {
                session.todo.of(kind).insert(tag);
                session.refuse(kind, trouble, now + wait);
            }
            // Nothing is lost but some messages that are not heeded.
            None if matches!(asked, Command::Unsubscribe(_)) => {}
            // Nothing works without the others.
            None => return Err(trouble),
        }
        Ok(())
    }

    fn handle_greeted(&mut self, now: Time) {
        // Else the database is asked for, and its answer awaited.
        if self.config.database == 0 {
            self.handle_ready(now);
        }
    }

    fn handle_ready(&mut self, now: Time) {
        self.trouble = None;
        let (renew, read) = self.pauses();
        if let Link::Up(session) = &mut self.link {
            session.todo = Todo::default();
            session.todo.subscribe.extend(self.inbox.keys());
            session.todo.store.extend(self.outbox.keys());
            session.todo.publish.extend(self.outbox.keys());
            session.be_ready(now, now + renew, now + read);
        }
    }

    /// A message of a channel.
    fn handle_message(&mut self, channel: &[u8], payload: &[u8]) {
        let name = channel.strip_prefix(self.config.prefix.as_bytes());
        let digits = name.and_then(|name| std::str::from_utf8(name).ok());
        // Others are those of a tag that is no longer wanted, or nothing that was asked for.
        if let Some(tag) = digits.and_then(RecordTag::from_hex) {
            self.handle_record(tag, payload.to_vec());
        }
    }

    /// What was found under a tag. Nobody vouches for it: the host opens it, or can't.
    fn handle_record(&mut self, tag: RecordTag, blob: Vec<u8>) {
        let Some(known) = self.inbox.get_mut(&tag) else {
            return;
        };
        if blob.len() > SealedRecord::MAX {
            self.strange.insert(tag);
            return;
        }
        // The peer has left nothing, or the same as before.
        if blob.is_empty() || known.as_deref() == Some(&*blob) {
            return;
        }
        let blob: Arc<[u8]> = blob.into();
        *known = Some(blob.clone());
        self.news.push_back(SealedRecord { tag, blob });
    }

    /// What is due by the time alone.
    pub(crate) fn handle_timeout(&mut self, now: Time) {
        let Link::Up(session) = &mut self.link else {
            return;
        };
        if session.is_overdue(now) {
            return self.handle_lost(Trouble::Silent, now);
        }
        session.wake(now);
        let (renews, reads) = session.due(now);
        if !renews && !reads {
            return;
        }
        let (renew, read) = self.pauses();
        if let Link::Up(session) = &mut self.link {
            if renews {
                session.todo.store.extend(self.outbox.keys());
                session.renew_at = now + renew;
            }
            if reads {
                session.todo.read.extend(self.inbox.keys());
                session.read_at = now + read;
            }
        }
    }

    /// When [`Client::handle_timeout`] or [`Client::poll_connect`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        match &self.link {
            Link::Down { until } => Some(*until),
            Link::Opening => None,
            Link::Up(session) => session.poll_timeout(),
        }
    }

    /// The next command, as bytes; `None` if there is nothing to ask now.
    pub(crate) fn poll_transmit(&mut self, now: Time) -> Option<Vec<u8>> {
        let Link::Up(session) = &mut self.link else {
            return None;
        };
        loop {
            let next = session.next_command(now)?;
            // One whose record is gone meanwhile is none.
            if let Some(bytes) = self.config.command(next, &self.outbox) {
                session.ask(next, now);
                return Some(bytes);
            }
        }
    }

    /// The next record that a peer left, if it is another than before.
    pub(crate) fn poll_news(&mut self) -> Option<SealedRecord> {
        self.news.pop_front()
    }

    /// Whether there is a connection, as far as is known here.
    pub(crate) fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// How it goes; `None` before anything came of the first connection.
    pub(crate) fn health(&self) -> Option<Health> {
        let refusals = match &self.link {
            Link::Up(session) if session.is_ready() => session.refusals(),
            // Until the next one is greeted, the last problem stays.
            _ => return self.trouble.as_ref().map(|it| Health::Bad(it.to_string())),
        };
        let mut problems: Vec<String> = refusals.map(Trouble::to_string).collect();
        problems.dedup();
        if !self.strange.is_empty() {
            problems.push(format!(
                "what is under {} of the mesh's keys is no record; another program writes there: \
                 take another `prefix`",
                self.strange.len()
            ));
        }
        if self.has_more {
            problems.push(format!("only the first {MOST_TAGS} peers are served"));
        }
        if !problems.is_empty() {
            return Some(Health::Bad(problems.join("; ")));
        }
        let found = self.inbox.values().flatten().count();
        Some(Health::Good(format!(
            "{found} of {} peers' records found, {} kept there for them",
            self.inbox.len(),
            self.outbox.len()
        )))
    }

    /// How long until our records are stored again, well before they expire, and until the tags
    /// are read again.
    fn pauses(&mut self) -> (Duration, Duration) {
        (
            self.jitter(self.config.lifetime / 3),
            self.jitter(READ_AGAIN),
        )
    }

    fn jitter(&mut self, duration: Duration) -> Duration {
        spread(duration, self.random.next_u32())
    }
}

/// What a push that answers nothing says: the channel and the payload of a message, or nothing of
/// interest. `None` if it is no such push.
fn message(reply: &Reply) -> Option<Option<(&[u8], &[u8])>> {
    let Reply::Push(parts) = reply else {
        return None;
    };
    match parts.as_slice() {
        [Reply::Text(kind), ..] if matches!(&kind[..], b"subscribe" | b"unsubscribe") => None,
        [
            Reply::Text(kind),
            Reply::Text(channel),
            Reply::Text(payload),
        ] if kind == b"message" => Some(Some((channel, payload))),
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests;
