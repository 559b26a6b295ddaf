//! One connection: what was asked and not answered yet, and what is still to be asked. Pure.
//!
//! Every command has one answer, and answers come in order; confirmations of subscriptions are
//! pushed, and count as answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use natpunch_plugin::{RecordTag, Time};
use natpunch_redis::{Nonsense, Reader, Reply, Trouble};
use natpunch_types::{Rate, RateBudget};

/// Commands that are under way at a time. A server that is busy is asked as fast as it answers.
const WINDOW: usize = 32;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take when the network has changed.
const PROBE: Duration = Duration::from_secs(3);
/// After so long without a byte the server is asked whether it is there.
const QUIET: Duration = Duration::from_secs(30);
/// Messages that are heeded. After a server's return each peer has one, and there are at most
/// [`MOST_TAGS`](crate::client::MOST_TAGS).
const MESSAGES: Rate = Rate::per_second(200, 8_192);

/// What the server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Hello,
    Select,
    Ping,
    Subscribe(RecordTag),
    Unsubscribe(RecordTag),
    Read(RecordTag),
    Store(RecordTag),
    Publish(RecordTag),
}

impl Command {
    /// The tag that it is about, and its kind, if a server may refuse it and do others.
    pub(crate) fn refusable(self) -> Option<(Kind, RecordTag)> {
        match self {
            Self::Subscribe(tag) => Some((Kind::Subscribe, tag)),
            Self::Read(tag) => Some((Kind::Read, tag)),
            Self::Store(tag) => Some((Kind::Store, tag)),
            Self::Publish(tag) => Some((Kind::Publish, tag)),
            Self::Hello | Self::Select | Self::Ping | Self::Unsubscribe(_) => None,
        }
    }

    /// What Redis calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hello => "HELLO",
            Self::Select => "SELECT",
            Self::Ping => "PING",
            Self::Subscribe(_) => "SUBSCRIBE",
            Self::Unsubscribe(_) => "UNSUBSCRIBE",
            Self::Read(_) => "GETRANGE",
            Self::Store(_) => "SET",
            Self::Publish(_) => "PUBLISH",
        }
    }
}

/// The commands that a server may refuse while it does others: each is paused by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Subscribe,
    Read,
    Store,
    Publish,
}

/// What is still to be asked: tags, of each kind.
#[derive(Debug, Default)]
pub(crate) struct Todo {
    unsubscribe: BTreeSet<RecordTag>,
    pub(crate) subscribe: BTreeSet<RecordTag>,
    pub(crate) read: BTreeSet<RecordTag>,
    pub(crate) store: BTreeSet<RecordTag>,
    pub(crate) publish: BTreeSet<RecordTag>,
}

impl Todo {
    /// Those of a kind.
    pub(crate) fn of(&mut self, kind: Kind) -> &mut BTreeSet<RecordTag> {
        match kind {
            Kind::Subscribe => &mut self.subscribe,
            Kind::Read => &mut self.read,
            Kind::Store => &mut self.store,
            Kind::Publish => &mut self.publish,
        }
    }
}

/// One connection.
pub(crate) struct Session {
    reader: Reader,
    /// What waits for an answer, and when that is overdue.
    asked: VecDeque<(Command, Time)>,
    /// What is to be asked before all else, one after another.
    greeting: VecDeque<Command>,
    /// Since when the server may be asked for more.
    ready: Option<Time>,
    pub(crate) todo: Todo,
    /// What belongs behind the command before.
    then: Option<Command>,
    subscribed: BTreeSet<RecordTag>,
    /// Kinds that are refused: why, and until when they rest. Without a time they may be tried.
    refused: BTreeMap<Kind, (Trouble, Option<Time>)>,
    /// When our records are to be stored again.
    pub(crate) renew_at: Time,
    /// When the peers' are to be read again.
    pub(crate) read_at: Time,
    heard: Time,
    /// The network has changed: is the server still there?
    is_doubtful: bool,
    messages: RateBudget,
}

impl Session {
    /// A connection that was just made. A database that is not the first has to be selected.
    pub(crate) fn new(selects: bool, now: Time) -> Self {
        let select = selects.then_some(Command::Select);
        Self {
            reader: Reader::default(),
            asked: VecDeque::new(),
            greeting: [Command::Hello].into_iter().chain(select).collect(),
            ready: None,
            todo: Todo::default(),
            then: None,
            subscribed: BTreeSet::new(),
            refused: BTreeMap::new(),
            renew_at: now,
            read_at: now,
            heard: now,
            is_doubtful: false,
            messages: RateBudget::new(MESSAGES),
        }
    }

    /// The greeting is over: the rest is due then.
    pub(crate) fn be_ready(&mut self, now: Time, renew_at: Time, read_at: Time) {
        self.ready = Some(now);
        self.renew_at = renew_at;
        self.read_at = read_at;
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// How long it has been ready.
    pub(crate) fn ready_for(&self, now: Time) -> Duration {
        self.ready.map_or(Duration::ZERO, |since| now.since(since))
    }

    pub(crate) fn push(&mut self, bytes: &[u8], now: Time) {
        self.heard = now;
        self.reader.push(bytes);
    }

    pub(crate) fn next_reply(&mut self) -> Result<Option<Reply>, Nonsense> {
        self.reader.next_reply()
    }

    /// What the next answer belongs to.
    pub(crate) fn answered(&mut self) -> Option<Command> {
        self.asked.pop_front().map(|(command, _)| command)
    }

    /// A message came.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn count_message(&mut self, now: Time) -> Result<(), Trouble> {
        self.messages.take(now).then_some(()).ok_or(Trouble::Flood)
    }

    /// Nobody waits for this tag any more.
    pub(crate) fn forget(&mut self, tag: RecordTag) {
        self.todo.subscribe.remove(&tag);
        self.todo.read.remove(&tag);
        if self.subscribed.contains(&tag) {
            self.todo.unsubscribe.insert(tag);
        }
    }

    /// Asks soon whether the server is there.
    pub(crate) fn probe(&mut self) {
        self.is_doubtful = true;
    }

    /// The server refuses a kind of commands: no more of them until then.
    pub(crate) fn refuse(&mut self, kind: Kind, trouble: Trouble, until: Time) {
        self.refused.insert(kind, (trouble, Some(until)));
    }

    /// The server does what it is asked.
    pub(crate) fn allow(&mut self, kind: Kind) {
        self.refused.remove(&kind);
    }

    /// Lets kinds that have rested be tried. One of which there is nothing to do is no trouble.
    pub(crate) fn wake(&mut self, now: Time) {
        self.refused.retain(|kind, (_, until)| {
            if until.is_some_and(|until| until <= now) {
                *until = None;
                if *kind == Kind::Store {
                    // Who came meanwhile found nothing there.
                    self.todo.publish.extend(&self.todo.store);
                }
            }
            until.is_some() || !self.todo.of(*kind).is_empty()
        });
    }

    /// What is refused now.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = &Trouble> {
        self.refused.values().map(|(trouble, _)| trouble)
    }

    /// Takes the next command that may be sent, which [`Session::ask`] is to follow if it is.
    pub(crate) fn next_command(&mut self, now: Time) -> Option<Command> {
        if self.asked.len() >= WINDOW {
            return None;
        }
        if self.ready.is_none() {
            // Each of the greeting depends on the one before.
            return self.greeting.pop_front_if(|_| self.asked.is_empty());
        }
        if let Some(then) = self.then.take() {
            return Some(then);
        }
        let is_quiet = self.asked.is_empty() && self.heard + QUIET <= now;
        if self.is_doubtful || is_quiet {
            return Some(Command::Ping);
        }
        if let Some(tag) = self.todo.unsubscribe.pop_first() {
            self.subscribed.remove(&tag);
            return Some(Command::Unsubscribe(tag));
        }
        if let Some(tag) = self.next_of(Kind::Subscribe, now) {
            self.subscribed.insert(tag);
            // What came before the subscription is read after it.
            self.todo.read.insert(tag);
            return Some(Command::Subscribe(tag));
        }
        if let Some(tag) = self.next_of(Kind::Read, now) {
            return Some(Command::Read(tag));
        }
        if let Some(tag) = self.next_of(Kind::Store, now) {
            let publishes = !self.rests(Kind::Publish, now) && self.todo.publish.remove(&tag);
            self.then = publishes.then_some(Command::Publish(tag));
            return Some(Command::Store(tag));
        }
        self.next_of(Kind::Publish, now).map(Command::Publish)
    }

    /// The command is sent now.
    pub(crate) fn ask(&mut self, command: Command, now: Time) {
        let is_probe = command == Command::Ping && std::mem::take(&mut self.is_doubtful);
        let patience = if is_probe { PROBE } else { ANSWER };
        self.asked.push_back((command, now + patience));
    }

    /// Whether an answer is overdue.
    pub(crate) fn is_overdue(&self, now: Time) -> bool {
        self.asked.iter().any(|(_, deadline)| *deadline <= now)
    }

    /// Whether our records are to be stored again, and the peers' read again.
    pub(crate) fn due(&self, now: Time) -> (bool, bool) {
        let is_ready = self.is_ready();
        (
            is_ready && self.renew_at <= now,
            is_ready && self.read_at <= now,
        )
    }

    /// When something is due by the time alone.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let overdue = self.asked.iter().map(|(_, deadline)| *deadline).min();
        let quiet = self.asked.is_empty().then(|| self.heard + QUIET);
        let rest = self.refused.values().filter_map(|(_, until)| *until).min();
        let again = self.is_ready().then(|| self.renew_at.min(self.read_at));
        [overdue, quiet, rest, again].into_iter().flatten().min()
    }

    fn next_of(&mut self, kind: Kind, now: Time) -> Option<RecordTag> {
        if self.rests(kind, now) {
            return None;
        }
        self.todo.of(kind).pop_first()
    }

    fn rests(&self, kind: Kind, now: Time) -> bool {
        let refused = self.refused.get(&kind);
        let until = refused.and_then(|(_, until)| *until);
        until.is_some_and(|until| until > now)
    }
}
