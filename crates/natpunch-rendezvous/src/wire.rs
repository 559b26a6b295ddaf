//! The bytes. Every datagram begins with [`MAGIC`] and a [`Kind`]; integers are big-endian.

pub(crate) use natpunch_types::wire::{ADDRESS_LEN, Reader, put_address};

/// The first three bytes of every datagram; the last is the version. WireGuard's begin with 1 to 4,
/// STUN's with two zero bits, natpunch's probes with another magic.
pub const MAGIC: [u8; 3] = natpunch_types::RENDEZVOUS_MAGIC;

/// A MAC or authentication tag.
pub(crate) const MAC_LEN: usize = 16;
/// The nonce of XChaCha20-Poly1305.
pub(crate) const NONCE_LEN: usize = 24;
/// Magic and kind.
pub(crate) const HEADER_LEN: usize = 4;
/// Header of a message in a session: magic, kind, session, counter.
pub(crate) const SESSION_HEADER_LEN: usize = HEADER_LEN + 8 + 8;

/// A hello has exactly this length, which no answer to it exceeds.
pub const HELLO_LEN: usize = 256;
/// Noise's first message in a hello: what is not header, mac1 or mac2.
pub(crate) const HELLO_NOISE_LEN: usize = HELLO_LEN - HEADER_LEN - 2 * MAC_LEN;
/// The payload of that message: zeros, reserved.
pub(crate) const HELLO_PAYLOAD_LEN: usize = HELLO_NOISE_LEN - 32 - 48 - MAC_LEN;
/// Where mac1 and mac2 of a hello begin.
pub(crate) const MAC1_AT: usize = HELLO_LEN - 2 * MAC_LEN;
pub(crate) const MAC2_AT: usize = HELLO_LEN - MAC_LEN;

/// What a ticket holds, sealed: two keys, identity, session, number, time of issue.
pub(crate) const TICKET_TEXT_LEN: usize = 64 + 32 + 8 + 8 + 8;
/// A ticket.
pub(crate) const TICKET_LEN: usize = NONCE_LEN + TICKET_TEXT_LEN + MAC_LEN;

/// Noise's second message in a welcome: ephemeral key, sealed session and observed address.
pub(crate) const WELCOME_NOISE_LEN: usize = 32 + 8 + ADDRESS_LEN + MAC_LEN;
/// A welcome has exactly this length.
pub const WELCOME_LEN: usize = HEADER_LEN + WELCOME_NOISE_LEN + TICKET_LEN + MAC_LEN;

/// A cookie, which is as long as a MAC.
pub(crate) type CookieBytes = [u8; MAC_LEN];
/// A cookie reply has exactly this length.
pub const COOKIE_LEN: usize = HEADER_LEN + NONCE_LEN + MAC_LEN + MAC_LEN;

/// Header of a confirm: magic, kind, ticket.
pub(crate) const CONFIRM_HEADER_LEN: usize = HEADER_LEN + TICKET_LEN;

/// What goes between a client and a relay port has this length, both ways: header, allocation,
/// nonce, cookie, state, MAC.
pub const BIND_LEN: usize = HEADER_LEN + 8 + 8 + MAC_LEN + 8 + MAC_LEN;
/// What goes between a client and the alternate port has this length, both ways.
pub const PROBE_LEN: usize = 96;

/// The lengths that a confirm, a request or a notice may have.
pub const CLASSES: [usize; 4] = [96, 256, 512, 1200];
/// The longest of them.
pub const MAX_DATAGRAM: usize = 1200;
/// The shortest confirm.
pub(crate) const MIN_CONFIRM: usize = 256;

/// The longest blob of a mailbox.
pub const MAX_BLOB: usize = 1024;

const _: () = {
    assert!(WELCOME_LEN <= HELLO_LEN && COOKIE_LEN <= 64);
    assert!(SESSION_HEADER_LEN + 3 + 16 + MAX_BLOB + MAC_LEN <= MAX_DATAGRAM);
};

/// The name of a mailbox, which only the two of a pair can compute.
pub type Tag = [u8; 16];
/// Names the content of a mailbox; zeros name nothing.
pub(crate) type Digest = [u8; 8];

/// What a datagram is. Each kind has one direction, so that no answer is ever answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Client: let me in.
    Hello,
    /// Server: this is how I see you; prove that you got this.
    Welcome,
    /// Server: I am busy; prove your address first.
    Cookie,
    /// Client: proof, and the first request.
    Confirm,
    /// Client: a request in a session.
    Request,
    /// Server: a message in a session.
    Notice,
    /// Client to a relay port: let my address be mine in this allocation.
    Bind,
    /// Relay port: prove that you are there, or: you are bound.
    Bound,
    /// Client to the alternate port: how do you see me?
    Probe,
    /// Alternate port: so.
    ProbeAnswer,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::Welcome,
        Self::Cookie,
        Self::Confirm,
        Self::Request,
        Self::Notice,
        Self::Bind,
        Self::Bound,
        Self::Probe,
        Self::ProbeAnswer,
    ];

    /// The kind of a datagram, if its length is one that this kind can have.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let ([magic @ .., kind], _) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let kind = *Self::ALL.get(usize::from(
            kind.checked_sub(1).filter(|_| *magic == MAGIC)?,
        ))?;
        let length = datagram.len();
        let fits = match kind {
            Self::Hello => length == HELLO_LEN,
            Self::Welcome => length == WELCOME_LEN,
            Self::Cookie => length == COOKIE_LEN,
            Self::Confirm => length >= MIN_CONFIRM && CLASSES.contains(&length),
            Self::Request | Self::Notice => CLASSES.contains(&length),
            Self::Bind | Self::Bound => length == BIND_LEN,
            Self::Probe | Self::ProbeAnswer => length == PROBE_LEN,
        };
        fits.then_some(kind)
    }

    pub(crate) fn header(self) -> [u8; HEADER_LEN] {
        let [a, b, version] = MAGIC;
        [a, b, version, self as u8 + 1]
    }

    /// Writes the header of a session's message into the room that was left for it.
    pub(crate) fn put_session_header(self, session: u64, counter: u64, message: &mut [u8]) {
        let parts = [
            &self.header()[..],
            &session.to_be_bytes(),
            &counter.to_be_bytes(),
        ];
        message
            .iter_mut()
            .zip(parts.into_iter().flatten())
            .for_each(|(to, from)| *to = *from);
    }
}

/// Takes the session header apart: session, counter, header, sealed text.
pub(crate) fn session_message(datagram: &[u8]) -> Option<(u64, u64, &[u8], &[u8])> {
    let (header, sealed) = datagram.split_at_checked(SESSION_HEADER_LEN)?;
    let mut reader = Reader(header.get(HEADER_LEN..)?);
    Some((
        u64::from_be_bytes(reader.array()?),
        u64::from_be_bytes(reader.array()?),
        header,
        sealed,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wireguard_drops_ours_and_we_drop_wireguards() {
        assert!(!(1..=4).contains(&MAGIC[0]));
        for (first, length) in [
            (1, 148),
            (2, 92),
            (3, 64),
            (4, 32),
            (4, 96),
            (4, 256),
            (4, 1200),
        ] {
            let mut packet = vec![0; length];
            packet[0] = first;
            assert_eq!(Kind::of(&packet), None);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_panics(datagram in prop::collection::vec(any::<u8>(), 0..1300)) {
            Kind::of(&datagram);
            session_message(&datagram);
        }
    }
}
