//! What can be done to a session's messages without the server's state: their ciphers. A server
//! that several threads share is locked only between opening and sealing.

use std::net::SocketAddr;

use super::ticket::Ticket;
use super::{Transmit, Via};
use crate::crypto::{Key, open_message, seal_in_place};
use crate::wire::{Kind, SESSION_HEADER_LEN, session_message};

/// A message of a client that was found authentic, for
/// [`Server::handle_opened`](super::Server::handle_opened).
pub struct Opened(pub(super) Message);

pub(super) enum Message {
    /// A registration: key and address are proven.
    Confirm { ticket: Box<Ticket>, text: Vec<u8> },
    /// A request in a session.
    Request {
        session: u64,
        counter: u64,
        text: Vec<u8>,
    },
    /// A probe in a session.
    Probe { session: u64, counter: u64 },
    /// A request that its session's key does not open.
    Forged,
}

/// What opens one request of a session.
pub struct Opener(pub(super) Key);

impl Opener {
    /// Opens the request that this was made for.
    pub fn open(self, payload: &[u8]) -> Opened {
        let open = || {
            let (session, counter, header, sealed) = session_message(payload)?;
            let text = open_message(&self.0, counter, header, sealed)?;
            Some(match Kind::of(payload)? {
                Kind::Probe => Message::Probe { session, counter },
                _ => Message::Request {
                    session,
                    counter,
                    text,
                },
            })
        };
        Opened(open().unwrap_or(Message::Forged))
    }
}

/// A datagram to send that has yet to be sealed, if it belongs to a session.
pub struct Unsealed {
    pub(super) via: Via,
    pub(super) destination: SocketAddr,
    pub(super) content: Content,
}

pub(super) enum Content {
    Ready(Vec<u8>),
    /// The header, and the text behind it.
    Message {
        key: Key,
        counter: u64,
        message: Vec<u8>,
    },
}

impl Unsealed {
    /// A session's message: its header, and the text behind it.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn message_mut(&mut self) -> Option<&mut Vec<u8>> {
        match &mut self.content {
            Content::Ready(_) => None,
            Content::Message { message, .. } => Some(message),
        }
    }

    /// The datagram as it goes out.
    pub fn seal(self) -> Option<Transmit> {
        let payload = match self.content {
            Content::Ready(payload) => payload,
            Content::Message {
                key,
                counter,
                message,
            } => seal_in_place(&key, counter, SESSION_HEADER_LEN, message)?,
        };
        Some(Transmit {
            via: self.via,
            destination: self.destination,
            payload,
        })
    }
}

impl From<Transmit> for Unsealed {
    fn from(
        Transmit {
            via,
            destination,
            payload,
        }: Transmit,
    ) -> Self {
        Self {
            via,
            destination,
            content: Content::Ready(payload),
        }
    }
}
