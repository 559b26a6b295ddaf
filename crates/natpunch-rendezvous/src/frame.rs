//! Frames: what the sealed text of a message is made of.

use std::iter;
use std::net::SocketAddr;

use natpunch_types::RelayUse;

use crate::crypto::Key;
use crate::wire::{CLASSES, Digest, MAC_LEN, MAX_BLOB, MAX_DATAGRAM, Reader, Tag, put_address};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Are you there?
    Ping,
    /// Keep this, which has this digest.
    Put {
        tag: Tag,
        digest: Digest,
        blob: Vec<u8>,
    },
    /// Tell me what is there, if it is not this, and whenever it changes.
    Watch { tag: Tag, have: Digest },
    /// I have got this.
    Got { tag: Tag, digest: Digest },
    /// I am here, too.
    PathResponse { token: [u8; 8] },
    /// This is what we want of a relay for the pair.
    Relay { tag: Tag, wants: RelayUse },
    /// Let both sides of the pair fire at one moment; I am so far from you. If the other does not
    /// wait yet, it learns of this by my mailbox for it.
    Meet {
        tag: Tag,
        round_trip_ms: u16,
        mailbox: Tag,
    },
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// You are registered; let yourself be heard so often.
    Accepted { ping_seconds: u16 },
    /// I am here, and see you there.
    Pong { observed: SocketAddr },
    /// I keep this.
    Stored { tag: Tag, digest: Digest },
    /// I will tell you.
    Watching { tag: Tag },
    /// This is there now.
    Record { tag: Tag, blob: Vec<u8> },
    /// Are you here, too?
    PathChallenge { token: [u8; 8] },
    /// There is no room for this mailbox.
    Full { tag: Tag, retry_seconds: u16 },
    /// There is no room for you.
    Busy { retry_seconds: u16 },
    /// Bind at this port of mine with this secret.
    RelayOffer {
        tag: Tag,
        port: u16,
        allocation: u64,
        key: Key,
    },
    /// This is what I heard you want of a relay for the pair, and how that is.
    RelayState {
        tag: Tag,
        wants: RelayUse,
        state: RelayState,
    },
    /// Fire when this time has passed, and so will the other side.
    Fire { tag: Tag, delay_ms: u16 },
    /// I answer probes at this port, too.
    AlternatePort { port: u16 },
    /// You were here before: I still have all that you said.
    Continued,
    /// Whose record this mailbox holds wants to meet you now.
    Wanted { tag: Tag },
}

impl Request {
    /// Whether it is more than a sign of life: what is worth new keys soon.
    pub(crate) fn is_use(&self) -> bool {
        !matches!(self, Self::Ping | Self::PathResponse { .. })
    }
}

impl Notice {
    /// Whether it tells an address.
    pub(crate) fn is_pong(&self) -> bool {
        matches!(self, Self::Pong { .. })
    }

    /// Whether it is a mailbox's content, which its receiver acknowledges.
    pub(crate) fn is_record(&self) -> bool {
        matches!(self, Self::Record { .. })
    }

    /// Its bytes in a message, at most.
    pub(crate) fn length(&self) -> usize {
        const HEADER: usize = 3;
        HEADER
            + match self {
                Self::Record { tag, blob } => tag.len() + blob.len(),
                Self::RelayOffer { tag, key, .. } => tag.len() + 2 + 8 + key.iter().len(),
                // A tag and a digest are the longest of the others.
                _ => size_of::<Tag>() + size_of::<Digest>(),
            }
    }

    /// Whether it is more than a sign of life.
    pub(crate) fn is_use(&self) -> bool {
        !matches!(
            self,
            Self::Accepted { .. }
                | Self::Continued
                | Self::Pong { .. }
                | Self::PathChallenge { .. }
                | Self::AlternatePort { .. }
        )
    }
}

/// How the relay of a pair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RelayState {
    /// There is none: the other side did not ask, or it has ended.
    None,
    /// It was offered; not both sides are bound.
    Offered,
    /// Both sides are bound.
    Bound,
    /// There is no room for it, or this server has none.
    Refused,
}

pub(crate) fn read_use(body: &mut Reader<'_>) -> Option<RelayUse> {
    match body.u8()? {
        0 => Some(RelayUse::Off),
        1 => Some(RelayUse::Standby),
        2 => Some(RelayUse::Carry),
        _ => None,
    }
}

/// Room for most messages.
const USUAL: usize = 256;

/// The kinds and bodies of a message's frames.
pub(crate) fn bodies(text: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut reader = Reader(text);
    iter::from_fn(move || {
        let kind = reader.u8().filter(|kind| *kind != 0)?;
        let length = reader.u16()?;
        Some((kind, reader.take(length.into())?))
    })
}

/// A part of a message: kind (1), length (2), body. Kind 0 and what follows it is padding.
pub(crate) trait Frame: Sized {
    fn put_body(&self, out: &mut Vec<u8>) -> u8;
    fn read_body(kind: u8, body: Reader<'_>) -> Option<Self>;

    /// Appends it to a text.
    fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend([0; 3]);
        let kind = self.put_body(out);
        let [high, low] = ((out.len() - start - 3) as u16).to_be_bytes();
        out.iter_mut()
            .skip(start)
            .zip([kind, high, low])
            .for_each(|(to, from)| *to = from);
    }

    fn encode(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        self.put(&mut frame);
        frame
    }

    /// The frames of a message. Unknown and malformed ones are skipped.
    fn decode(text: &[u8]) -> Vec<Self> {
        bodies(text)
            .filter_map(|(kind, body)| Self::read_body(kind, Reader(body)))
            .collect()
    }
}

impl Frame for Request {
    fn put_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Ping => 1,
            Self::Put { tag, digest, blob } => {
                out.extend(tag);
                out.extend(digest);
                out.extend(blob);
                2
            }
            Self::Watch { tag, have } => {
                out.extend(tag);
                out.extend(have);
                3
            }
            Self::Got { tag, digest } => {
                out.extend(tag);
                out.extend(digest);
                4
            }
            Self::PathResponse { token } => {
                out.extend(token);
                5
            }
            Self::Relay { tag, wants } => {
                out.extend(tag);
                out.push(*wants as u8);
                6
            }
            Self::Meet {
                tag,
                round_trip_ms,
                mailbox,
            } => {
                out.extend(tag);
                out.extend(round_trip_ms.to_be_bytes());
                out.extend(mailbox);
                7
            }
        }
    }

    fn read_body(kind: u8, mut body: Reader<'_>) -> Option<Self> {
        let frame = match kind {
            1 => Self::Ping,
            2 => Self::Put {
                tag: body.array()?,
                digest: body.array()?,
                blob: body.rest(MAX_BLOB)?.to_vec(),
            },
            3 => Self::Watch {
                tag: body.array()?,
                have: body.array()?,
            },
            4 => Self::Got {
                tag: body.array()?,
                digest: body.array()?,
            },
            5 => Self::PathResponse {
                token: body.array()?,
            },
            6 => Self::Relay {
                tag: body.array()?,
                wants: read_use(&mut body)?,
            },
            7 => Self::Meet {
                tag: body.array()?,
                round_trip_ms: body.u16()?,
                mailbox: body.array()?,
            },
            _ => return None,
        };
        body.0.is_empty().then_some(frame)
    }
}

impl Frame for Notice {
    fn put_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Accepted { ping_seconds } => {
                out.extend(ping_seconds.to_be_bytes());
                1
            }
            Self::Pong { observed } => {
                put_address(out, *observed);
                2
            }
            Self::Stored { tag, digest } => {
                out.extend(tag);
                out.extend(digest);
                3
            }
            Self::Watching { tag } => {
                out.extend(tag);
                4
            }
            Self::Record { tag, blob } => {
                out.extend(tag);
                out.extend(blob);
                5
            }
            Self::PathChallenge { token } => {
                out.extend(token);
                6
            }
            Self::Full { tag, retry_seconds } => {
                out.extend(tag);
                out.extend(retry_seconds.to_be_bytes());
                7
            }
            Self::Busy { retry_seconds } => {
                out.extend(retry_seconds.to_be_bytes());
                8
            }
            Self::RelayOffer {
                tag,
                port,
                allocation,
                key,
            } => {
                out.extend(tag);
                out.extend(port.to_be_bytes());
                out.extend(allocation.to_be_bytes());
                out.extend(key.iter());
                9
            }
            Self::RelayState { tag, wants, state } => {
                out.extend(tag);
                out.extend([*wants as u8, *state as u8]);
                10
            }
            Self::Fire { tag, delay_ms } => {
                out.extend(tag);
                out.extend(delay_ms.to_be_bytes());
                11
            }
            Self::AlternatePort { port } => {
                out.extend(port.to_be_bytes());
                12
            }
            Self::Continued => 13,
            Self::Wanted { tag } => {
                out.extend(tag);
                14
            }
        }
    }

    fn read_body(kind: u8, mut body: Reader<'_>) -> Option<Self> {
        let frame = match kind {
            1 => Self::Accepted {
                ping_seconds: body.u16()?,
            },
            2 => Self::Pong {
                observed: body.address()?,
            },
            3 => Self::Stored {
                tag: body.array()?,
                digest: body.array()?,
            },
            4 => Self::Watching { tag: body.array()? },
            5 => Self::Record {
                tag: body.array()?,
                blob: body.rest(MAX_BLOB)?.to_vec(),
            },
            6 => Self::PathChallenge {
                token: body.array()?,
            },
            7 => Self::Full {
                tag: body.array()?,
                retry_seconds: body.u16()?,
            },
            8 => Self::Busy {
                retry_seconds: body.u16()?,
            },
            9 => Self::RelayOffer {
                tag: body.array()?,
                port: body.u16()?,
                allocation: body.u64()?,
                key: Key::new(body.array()?),
            },
            10 => Self::RelayState {
                tag: body.array()?,
                wants: read_use(&mut body)?,
                state: match body.u8()? {
                    0 => RelayState::None,
                    1 => RelayState::Offered,
                    2 => RelayState::Bound,
                    3 => RelayState::Refused,
                    _ => return None,
                },
            },
            11 => Self::Fire {
                tag: body.array()?,
                delay_ms: body.u16()?,
            },
            12 => Self::AlternatePort { port: body.u16()? },
            13 => Self::Continued,
            14 => Self::Wanted { tag: body.array()? },
            _ => return None,
        };
        body.0.is_empty().then_some(frame)
    }
}

/// Packs frames, in order, into as few messages as they fit, to be
/// [sealed in place](crate::crypto::seal_in_place): room for a header of this length, then the
/// text, padded so that the datagram has the length of a class, and at least `least`.
pub(crate) fn pack<'a, F: Frame + 'a>(
    frames: impl IntoIterator<Item = &'a F>,
    header_len: usize,
    least: usize,
) -> impl Iterator<Item = Vec<u8>> {
    let mut frames = frames.into_iter();
    let mut left_over = Vec::new();
    iter::from_fn(move || {
        let mut message = Vec::with_capacity(USUAL);
        message.resize(header_len, 0);
        message.append(&mut left_over);
        for frame in frames.by_ref() {
            let before = message.len();
            frame.put(&mut message);
            if before > header_len && message.len() + MAC_LEN > MAX_DATAGRAM {
                left_over = message.split_off(before);
                break;
            }
        }
        (message.len() > header_len).then(|| {
            pad(&mut message, MAC_LEN, least);
            message
        })
    })
}

/// Pads a text to its class, with so many bytes around it.
pub(crate) fn pad(text: &mut Vec<u8>, overhead: usize, least: usize) {
    let needed = (text.len() + overhead).max(least);
    let class = CLASSES
        .into_iter()
        .find(|class| *class >= needed)
        .unwrap_or(MAX_DATAGRAM);
    text.resize(class.saturating_sub(overhead), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        let address = "192.0.2.1:7".parse().unwrap();
        let requests = vec![
            Request::Ping,
            Request::Put {
                tag: [1; 16],
                digest: [2; 8],
                blob: vec![2; 150],
            },
            Request::Watch {
                tag: [3; 16],
                have: [4; 8],
            },
            Request::Got {
                tag: [5; 16],
                digest: [6; 8],
            },
            Request::PathResponse { token: [7; 8] },
            Request::Relay {
                tag: [8; 16],
                wants: RelayUse::Off,
            },
            Request::Relay {
                tag: [8; 16],
                wants: RelayUse::Standby,
            },
            Request::Relay {
                tag: [8; 16],
                wants: RelayUse::Carry,
            },
            Request::Meet {
                tag: [9; 16],
                round_trip_ms: 257,
                mailbox: [10; 16],
            },
        ];
        let notices = vec![
            Notice::Accepted { ping_seconds: 25 },
            Notice::Pong { observed: address },
            Notice::Stored {
                tag: [1; 16],
                digest: [2; 8],
            },
            Notice::Watching { tag: [3; 16] },
            Notice::Record {
                tag: [4; 16],
                blob: vec![5; MAX_BLOB],
            },
            Notice::PathChallenge { token: [6; 8] },
            Notice::Full {
                tag: [7; 16],
                retry_seconds: 60,
            },
            Notice::Busy { retry_seconds: 30 },
            Notice::RelayOffer {
                tag: [8; 16],
                port: 258,
                allocation: 259,
                key: Key::new([9; 32]),
            },
            Notice::RelayState {
                tag: [10; 16],
                wants: RelayUse::Carry,
                state: RelayState::Bound,
            },
            Notice::RelayState {
                tag: [10; 16],
                wants: RelayUse::Off,
                state: RelayState::Refused,
            },
            Notice::Fire {
                tag: [11; 16],
                delay_ms: 260,
            },
            Notice::AlternatePort { port: 261 },
            Notice::Continued,
            Notice::Wanted { tag: [12; 16] },
        ];
        let messages = pack(&requests, 20, 0);
        assert_eq!(
            messages
                .flat_map(|message| Request::decode(&message[20..]))
                .collect::<Vec<_>>(),
            requests
        );
        let messages: Vec<_> = pack(&notices, 20, 0).collect();
        assert!(
            messages.len() > 1
                && messages
                    .iter()
                    .all(|message| CLASSES.contains(&(message.len() + MAC_LEN)))
        );
        let read: Vec<_> = messages
            .iter()
            .flat_map(|message| Notice::decode(&message[20..]))
            .collect();
        assert_eq!(read, notices);
    }

    #[test]
    fn a_frame_of_another_version_is_skipped() {
        let text = [&[99, 0, 2, 1, 1][..], &Request::Ping.encode(), &[0; 9]].concat();
        assert_eq!(Request::decode(&text), [Request::Ping]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in prop::collection::vec(any::<u8>(), 0..1300)) {
            Request::decode(&text);
            Notice::decode(&text);
        }
    }
}
