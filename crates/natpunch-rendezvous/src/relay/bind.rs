//! The two datagrams between a client and a relay port: *bind*, and the port's answer. They have
//! the same length, and both are authenticated with the key of the offer.

use crate::crypto::{self, Key, short_mac};
use crate::wire::{BIND_LEN, CookieBytes, HEADER_LEN, Kind, MAC_LEN, Reader};

/// Distinguishes one bind from those before it; its answer repeats it.
pub(crate) type Nonce = [u8; 8];

/// What the port says; zero in a bind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Prove that you are there: say it again with this cookie.
    #[default]
    Unproven,
    /// You are bound, the other side is not yet.
    Bound,
    /// Both sides are bound.
    Both,
}

/// Either datagram. The cookie is as good as the address that it proves, so it is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The allocation, and in its lowest bit whose side of it.
    pub(crate) allocation: u64,
    pub(crate) nonce: Nonce,
    /// The last cookie that the port gave for this allocation; zeros at first.
    pub(crate) cookie: CookieBytes,
    pub(crate) state: State,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            allocation,
            nonce,
            state,
            ..
        } = self;
        let fields = (allocation, nonce, state);
        f.debug_tuple("Message")
            .field(&fields)
            .finish_non_exhaustive()
    }
}

impl Message {
    /// Its bytes, as this kind.
    pub(crate) fn seal(&self, kind: Kind, key: &Key) -> [u8; BIND_LEN] {
        let state = [self.state as u8, 0, 0, 0, 0, 0, 0, 0];
        let fields: [&[u8]; 5] = [
            &kind.header(),
            &self.allocation.to_be_bytes(),
            &self.nonce,
            &self.cookie,
            &state,
        ];
        let mac: [u8; MAC_LEN] = short_mac(key, &fields);
        let mut datagram = [0; BIND_LEN];
        let bytes = fields.into_iter().flatten().chain(&mac);
        datagram
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        datagram
    }

    /// Whose datagram it is, if it is authentic.
    pub(crate) fn allocation(datagram: &[u8]) -> Option<u64> {
        Reader(datagram.get(HEADER_LEN..)?).u64()
    }

    /// Reads a datagram of a [`Kind`] that was checked; `None` unless it was made with this key.
    pub(crate) fn open(key: &Key, datagram: &[u8]) -> Option<Self> {
        let (text, mac) = datagram.split_last_chunk::<MAC_LEN>()?;
        if !crypto::equal(&short_mac::<MAC_LEN>(key, &[text]), mac) {
            return None;
        }
        let mut reader = Reader(text.get(HEADER_LEN..)?);
        let (allocation, nonce, cookie) = (reader.u64()?, reader.array()?, reader.array()?);
        let state = match reader.u8()? {
            0 => State::Unproven,
            1 => State::Bound,
            2 => State::Both,
            _ => return None,
        };
        Some(Self {
            allocation,
            nonce,
            cookie,
            state,
        })
    }
}
