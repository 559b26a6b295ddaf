//! What a process asks the store, as commands of Redis, and its answers.

use rand_core::RngCore;

use super::keys::Shelf;
use super::message::Message;
use super::{Keys, LIFETIME_MS, ProcessId, Record, Waiting};
use crate::wire::{Reader, Tag};

/// Processes of one mailbox that are looked at: its reader has one for each address family, and
/// some of before may not have been taken away yet.
const MOST_READERS: usize = 8;

/// How long a client waits for the other, in milliseconds.
const PATIENCE_MS: u64 = 5_000;

/// How long a process has the relay of a pair of which nobody says anything: as long as a wish.
const RELAY_MS: u64 = 150_000;

/// One command. Each is about one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask(pub(crate) Question);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Question {
    /// What time is it there?
    Clock,
    /// Keep this record; which one was there?
    Keep { tag: Tag, record: Record },
    /// Which record is there?
    Find { tag: Tag },
    /// Which processes have clients that watch this mailbox?
    Readers { tag: Tag },
    /// The same, to tell them that they are wanted.
    Wanted { tag: Tag },
    /// This client waits to meet the other one of its pair; who waited before?
    Meet { tag: Tag, who: Waiting },
    /// This process would have the relay of a pair; which one has it?
    Host { tag: Tag, who: ProcessId },
    /// It has it for a while more.
    Hold { tag: Tag },
    /// The process that had it is gone.
    Free { tag: Tag },
    /// This process has one.
    Join { tag: Tag, who: ProcessId },
    /// Keep that for a while.
    Extend { tag: Tag },
    /// This process has none any more.
    Leave { tag: Tag, who: ProcessId },
    /// Hand this on to a process.
    Tell { to: ProcessId, message: Message },
}

/// What a store answered, whatever protocol it came by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    /// Nothing is there.
    Nothing,
    /// A string.
    Text(Vec<u8>),
    /// A number.
    Number(i64),
    /// Several strings.
    List(Vec<Vec<u8>>),
    /// It did not do it, and says why.
    Refused,
}

/// An answer, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer(pub(crate) Reply);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Clock(i64),
    /// The record that is there, or was until now.
    Record(Option<Record>),
    Readers(Vec<ProcessId>),
    Waiting(Option<Waiting>),
    Host(Option<ProcessId>),
    /// So many connections got it.
    Told(i64),
    Done,
    Refused,
}

impl Ask {
    /// Its name for a log.
    pub fn name(&self) -> &'static str {
        match &self.0 {
            Question::Clock => "TIME",
            Question::Keep { .. } | Question::Meet { .. } | Question::Host { .. } => "SET",
            Question::Find { .. } => "GET",
            Question::Readers { .. } | Question::Wanted { .. } => "SMEMBERS",
            Question::Join { .. } => "SADD",
            Question::Extend { .. } | Question::Hold { .. } => "PEXPIRE",
            Question::Free { .. } => "DEL",
            Question::Leave { .. } => "SREM",
            Question::Tell { .. } => "PUBLISH",
        }
    }

    /// The command: its name and its arguments.
    pub fn command(&self, keys: &Keys, rng: &mut impl RngCore) -> Vec<Vec<u8>> {
        let lifetime = LIFETIME_MS.to_string().into_bytes();
        let mut parts = vec![self.name().as_bytes().to_vec()];
        match &self.0 {
            Question::Clock => {}
            Question::Keep { tag, record } => {
                let name = keys.name(Shelf::Record, tag);
                let mut text = Vec::new();
                record.put(&mut text);
                let value = keys.seal(&name, &text, rng);
                parts.extend([name, value, b"PX".to_vec(), lifetime, b"GET".to_vec()]);
            }
            Question::Find { tag } => parts.push(keys.name(Shelf::Record, tag)),
            Question::Meet { tag, who } => {
                let name = keys.name(Shelf::Meeting, tag);
                let mut text = Vec::new();
                who.put(&mut text);
                let value = keys.seal(&name, &text, rng);
                let patience = PATIENCE_MS.to_string().into_bytes();
                parts.extend([name, value, b"PX".to_vec(), patience, b"GET".to_vec()]);
            }
            Question::Host { tag, who } => {
                let (name, time) = (keys.name(Shelf::Host, tag), RELAY_MS.to_string());
                parts.extend([name, who.0.to_vec(), b"NX".to_vec(), b"PX".to_vec()]);
                parts.extend([time.into_bytes(), b"GET".to_vec()]);
            }
            Question::Hold { tag } => {
                let time = RELAY_MS.to_string().into_bytes();
                parts.extend([keys.name(Shelf::Host, tag), time]);
            }
            Question::Free { tag } => parts.push(keys.name(Shelf::Host, tag)),
            Question::Readers { tag } | Question::Wanted { tag } => {
                parts.push(keys.name(Shelf::Readers, tag))
            }
            Question::Extend { tag } => parts.extend([keys.name(Shelf::Readers, tag), lifetime]),
            Question::Join { tag, who } | Question::Leave { tag, who } => {
                parts.extend([keys.name(Shelf::Readers, tag), who.0.to_vec()]);
            }
            Question::Tell { to, message } => {
                parts.extend([keys.channel(*to), message.seal(keys, *to, rng)]);
            }
        }
        parts
    }

    /// What the store's answer to it means; `None`: it is none to that.
    pub fn understand(&self, raw: Raw, keys: &Keys) -> Option<Answer> {
        let reply = match (&self.0, raw) {
            (_, Raw::Refused) => Reply::Refused,
            (Question::Clock, Raw::List(parts)) => Reply::Clock(milliseconds(&parts)?),
            (Question::Keep { .. } | Question::Find { .. }, Raw::Nothing) => Reply::Record(None),
            (Question::Keep { tag, .. } | Question::Find { tag }, Raw::Text(sealed)) => {
                let text = keys.open(&keys.name(Shelf::Record, tag), &sealed);
                // What nobody of the cluster has sealed is not there.
                Reply::Record(text.and_then(|text| Record::read(&mut Reader(&text))))
            }
            (Question::Meet { .. }, Raw::Nothing) => Reply::Waiting(None),
            (Question::Meet { tag, .. }, Raw::Text(sealed)) => {
                let text = keys.open(&keys.name(Shelf::Meeting, tag), &sealed);
                Reply::Waiting(text.and_then(|text| Waiting::read(&mut Reader(&text))))
            }
            (Question::Readers { .. } | Question::Wanted { .. }, Raw::List(members)) => {
                Reply::Readers(
                    members
                        .iter()
                        .filter_map(|member| Some(ProcessId(member.as_slice().try_into().ok()?)))
                        .take(MOST_READERS)
                        .collect(),
                )
            }
            (Question::Host { .. }, Raw::Nothing) => Reply::Host(None),
            (Question::Host { .. }, Raw::Text(host)) => {
                Reply::Host(host.as_slice().try_into().ok().map(ProcessId))
            }
            (Question::Hold { .. } | Question::Free { .. }, Raw::Number(_)) => Reply::Done,
            (Question::Tell { .. }, Raw::Number(count)) => Reply::Told(count),
            (
                Question::Join { .. } | Question::Extend { .. } | Question::Leave { .. },
                Raw::Number(_),
            ) => Reply::Done,
            _ => return None,
        };
        Some(Answer(reply))
    }
}

/// Redis says its time as seconds and microseconds.
fn milliseconds(parts: &[Vec<u8>]) -> Option<i64> {
    let [seconds, microseconds] = parts else {
        return None;
    };
    let number = |part: &[u8]| std::str::from_utf8(part).ok()?.parse::<i64>().ok();
    let seconds = number(seconds)?.checked_mul(1_000)?;
    seconds.checked_add(number(microseconds)? / 1_000)
}
