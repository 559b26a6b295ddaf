//! One connection to the store: what was asked, and what an answer is to. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use natpunch_redis::{Nonsense, Reader, Reply, Trouble, command, hello};
use natpunch_rendezvous::cluster::{Answer, Ask, Keys, Message, ProcessId, Raw};
use natpunch_types::{Password, Time};

/// Commands that are under way at a time.
const WINDOW: usize = 1_024;
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// One connection.
pub(super) struct Link {
    reader: Reader,
    /// What waits for an answer, and since when.
    asked: VecDeque<(Asked, Time)>,
    database: u16,
    channel: Vec<u8>,
    me: ProcessId,
    user: String,
    is_ready: bool,
    delay: Duration,
    /// What was refused last, until something of that kind is done.
    refused: Option<(&'static str, Trouble)>,
}

enum Asked {
    Hello,
    Select,
    Subscribe,
    Ask(Box<Ask>),
}

/// What the store said.
pub(super) enum Heard {
    Answer(Ask, Answer),
    Message(Message),
}

impl Link {
    pub(super) fn new(database: u16, channel: Vec<u8>, me: ProcessId, user: &str) -> Self {
        Self {
            reader: Reader::default(),
            asked: VecDeque::new(),
            database,
            channel,
            me,
            user: user.to_owned(),
            is_ready: false,
            delay: Duration::ZERO,
            refused: None,
        }
    }

    /// The first commands, all at once.
    pub(super) fn greet(&mut self, login: Option<(&str, &Password)>, now: Time) -> Vec<u8> {
        let mut bytes = hello(login.map(|(user, password)| (user, password.expose())));
        self.asked.push_back((Asked::Hello, now));
        if self.database != 0 {
            bytes.extend(command(&[b"SELECT", self.database.to_string().as_bytes()]));
            self.asked.push_back((Asked::Select, now));
        }
        bytes.extend(command(&[b"SUBSCRIBE", &self.channel]));
        self.asked.push_back((Asked::Subscribe, now));
        bytes
    }

    /// Whether all of the greeting was answered.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// How much more may be asked now.
    pub(super) fn room(&self) -> usize {
        WINDOW.saturating_sub(self.asked.len())
    }

    pub(super) fn has_room(&self) -> bool {
        self.room() > 0
    }

    /// When the oldest answer is overdue.
    pub(super) fn deadline(&self) -> Time {
        const NEVER: Time = Time::from_nanos(u64::MAX);
        let oldest = self.asked.front();
        oldest.map_or(NEVER, |(_, asked)| *asked + ANSWER)
    }

    /// How long the last answer took.
    pub(super) fn delay(&self) -> Duration {
        self.delay
    }

    /// What the store refuses, in words.
    pub(super) fn problem(&self) -> Option<String> {
        self.refused
            .as_ref()
            .map(|(_, trouble)| trouble.to_string())
    }

    /// A command as bytes, which are to be sent now.
    pub(super) fn ask(&mut self, ask: Ask, parts: &[Vec<u8>], now: Time) -> Vec<u8> {
        self.asked.push_back((Asked::Ask(Box::new(ask)), now));
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        command(&parts)
    }

    /// Takes bytes of the store.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) fn hear(
        &mut self,
        bytes: &[u8],
        keys: &Keys,
        now: Time,
    ) -> Result<Vec<Heard>, Trouble> {
        self.reader.push(bytes);
        let mut heard = Vec::new();
        while let Some(reply) = self.reader.next_reply().map_err(Trouble::Nonsense)? {
            heard.extend(self.take(reply, keys, now)?);
        }
        Ok(heard)
    }

    fn take(&mut self, reply: Reply, keys: &Keys, now: Time) -> Result<Option<Heard>, Trouble> {
        if let Reply::Push(parts) = &reply
            && let [Reply::Text(kind), Reply::Text(_), payload] = parts.as_slice()
            && kind != b"subscribe"
        {
            // There is but one channel. What no process of the cluster has sealed is nothing.
            return Ok(match payload {
                Reply::Text(sealed) => Message::open(keys, self.me, sealed).map(Heard::Message),
                _ => None,
            });
        }
        let Some((asked, since)) = self.asked.pop_front() else {
            return Err(Trouble::Nonsense(Nonsense::NotResp));
        };
        self.delay = now.since(since);
        let refused = |name, words: &str| Trouble::refused(name, &self.user, words);
        let ask = match (asked, &reply) {
            (Asked::Ask(ask), _) => *ask,
            (Asked::Hello, Reply::List(_)) | (Asked::Select, Reply::Text(_)) => return Ok(None),
            (Asked::Subscribe, Reply::Push(_)) => {
                self.is_ready = true;
                return Ok(None);
            }
            (Asked::Hello, Reply::Error(words)) => return Err(refused("HELLO", words)),
            (Asked::Select, Reply::Error(words)) => return Err(refused("SELECT", words)),
            (Asked::Subscribe, Reply::Error(words)) => return Err(refused("SUBSCRIBE", words)),
            (Asked::Hello, _) => return Err(Trouble::OtherAnswer("HELLO")),
            (Asked::Select, _) => return Err(Trouble::OtherAnswer("SELECT")),
            (Asked::Subscribe, _) => return Err(Trouble::OtherAnswer("SUBSCRIBE")),
        };
        match &reply {
            Reply::Error(words) => {
                self.refused = Some((ask.name(), refused(ask.name(), words)));
            }
            _ => drop(self.refused.take_if(|(name, _)| *name == ask.name())),
        }
        let answer = ask.understand(raw(reply), keys);
        let answer = answer.ok_or(Trouble::OtherAnswer(ask.name()))?;
        Ok(Some(Heard::Answer(ask, answer)))
    }
}

fn raw(reply: Reply) -> Raw {
    match reply {
        Reply::Text(text) => Raw::Text(text),
        Reply::Error(_) => Raw::Refused,
        Reply::Integer(number) => Raw::Number(number),
        Reply::Null => Raw::Nothing,
        Reply::List(parts) | Reply::Push(parts) => Raw::List(
            parts
                .into_iter()
                .filter_map(|part| match part {
                    Reply::Text(text) => Some(text),
                    _ => None,
                })
                .collect(),
        ),
    }
}
