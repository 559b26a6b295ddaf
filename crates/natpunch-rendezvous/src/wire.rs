//! The bytes. Every datagram begins with [`MAGIC`] and a [`Kind`]; integers are big-endian.

use std::net::{IpAddr, SocketAddr};

use natpunch_types::canonical;

/// The first three bytes of every datagram; the last is the version. WireGuard's begin with 1 to 4, STUN's with two
/// zero bits, natpunch's probes with another magic.
pub const MAGIC: [u8; 3] = [0xd4, b'n', 1];

/// A MAC or authentication tag.
pub(crate) const MAC_LEN: usize = 16;
/// The nonce of XChaCha20-Poly1305.
pub(crate) const NONCE_LEN: usize = 24;
/// Magic and kind.
pub(crate) const HEADER_LEN: usize = 4;
/// Header of a message in a session: magic, kind, session, counter.
pub(crate) const SESSION_HEADER_LEN: usize = HEADER_LEN + 8 + 8;
/// A canonical address: IPv6 or IPv4-mapped, and the port.
pub(crate) const ADDRESS_LEN: usize = 18;

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
}

impl Kind {
    const ALL: [Self; 6] = [Self::Hello, Self::Welcome, Self::Cookie, Self::Confirm, Self::Request, Self::Notice];

    /// The kind of a datagram, if its length is one that this kind can have.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let (header, _) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let kind = Self::ALL.into_iter().find(|kind| kind.header() == *header)?;
        let length = datagram.len();
        let fits = match kind {
            Self::Hello => length == HELLO_LEN,
            Self::Welcome => length == WELCOME_LEN,
            Self::Cookie => length == COOKIE_LEN,
            Self::Confirm => length >= MIN_CONFIRM && CLASSES.contains(&length),
            Self::Request | Self::Notice => CLASSES.contains(&length),
        };
        fits.then_some(kind)
    }

    pub(crate) fn header(self) -> [u8; HEADER_LEN] {
        let [a, b, version] = MAGIC;
        [a, b, version, self as u8 + 1]
    }

    pub(crate) fn session_header(self, session: u64, counter: u64) -> Vec<u8> {
        [&self.header()[..], &session.to_be_bytes(), &counter.to_be_bytes()].concat()
    }
}

/// Takes the session header apart: session, counter, header, sealed text.
pub(crate) fn session_message(datagram: &[u8]) -> Option<(u64, u64, &[u8], &[u8])> {
    let (header, sealed) = datagram.split_at_checked(SESSION_HEADER_LEN)?;
    let mut reader = Reader(header.get(HEADER_LEN..)?);
    Some((u64::from_be_bytes(reader.array()?), u64::from_be_bytes(reader.array()?), header, sealed))
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Are you there?
    Ping,
    /// Keep this.
    Put { tag: Tag, blob: Vec<u8> },
    /// Tell me what is there, if it is not this, and whenever it changes.
    Watch { tag: Tag, have: Digest },
    /// I have got this.
    Got { tag: Tag, digest: Digest },
    /// I am here, too.
    PathResponse { token: [u8; 8] },
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
}

/// A part of a message: kind (1), length (2), body. Kind 0 and what follows it is padding.
pub(crate) trait Frame: Sized {
    fn put_body(&self, out: &mut Vec<u8>) -> u8;
    fn read_body(kind: u8, body: Reader<'_>) -> Option<Self>;

    fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0; 3];
        let kind = self.put_body(&mut frame);
        let length = (frame.len() - 3) as u16;
        for (to, from) in frame.iter_mut().zip([&[kind][..], &length.to_be_bytes()].concat()) {
            *to = from;
        }
        frame
    }

    /// The frames of a message. Unknown and malformed ones are skipped.
    fn decode(text: &[u8]) -> Vec<Self> {
        let mut reader = Reader(text);
        let mut frames = Vec::new();
        while let Some(kind) = reader.u8().filter(|kind| *kind != 0) {
            let Some(length) = reader.u16() else { break };
            let Some(body) = reader.take(length.into()) else { break };
            frames.extend(Self::read_body(kind, Reader(body)));
        }
        frames
    }
}

impl Frame for Request {
    fn put_body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Ping => 1,
            Self::Put { tag, blob } => {
                out.extend(tag);
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
        }
    }

    fn read_body(kind: u8, mut body: Reader<'_>) -> Option<Self> {
        let frame = match kind {
            1 => Self::Ping,
            2 => Self::Put { tag: body.array()?, blob: body.rest(MAX_BLOB)? },
            3 => Self::Watch { tag: body.array()?, have: body.array()? },
            4 => Self::Got { tag: body.array()?, digest: body.array()? },
            5 => Self::PathResponse { token: body.array()? },
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
        }
    }

    fn read_body(kind: u8, mut body: Reader<'_>) -> Option<Self> {
        let frame = match kind {
            1 => Self::Accepted { ping_seconds: body.u16()? },
            2 => Self::Pong { observed: body.address()? },
            3 => Self::Stored { tag: body.array()?, digest: body.array()? },
            4 => Self::Watching { tag: body.array()? },
            5 => Self::Record { tag: body.array()?, blob: body.rest(MAX_BLOB)? },
            6 => Self::PathChallenge { token: body.array()? },
            7 => Self::Full { tag: body.array()?, retry_seconds: body.u16()? },
            8 => Self::Busy { retry_seconds: body.u16()? },
            _ => return None,
        };
        body.0.is_empty().then_some(frame)
    }
}

/// Packs frames, in order, into as few texts as they fit, each padded so that with `overhead` bytes around it a datagram
/// has the length of a class, and at least `least`.
pub(crate) fn pack<F: Frame>(frames: &[F], overhead: usize, least: usize) -> Vec<Vec<u8>> {
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for frame in frames.iter().map(Frame::encode) {
        match texts.last_mut() {
            Some(text) if text.len() + frame.len() + overhead <= MAX_DATAGRAM => text.extend(frame),
            _ => texts.push(frame),
        }
    }
    for text in &mut texts {
        pad(text, overhead, least);
    }
    texts
}

/// Pads a text to its class.
pub(crate) fn pad(text: &mut Vec<u8>, overhead: usize, least: usize) {
    let needed = (text.len() + overhead).max(least);
    let class = CLASSES.into_iter().find(|class| *class >= needed).unwrap_or(MAX_DATAGRAM);
    text.resize(class.saturating_sub(overhead), 0);
}

pub(crate) fn put_address(out: &mut Vec<u8>, address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    out.extend(ip.octets());
    out.extend(address.port().to_be_bytes());
}

/// Reads what may be too short.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(crate) fn address(&mut self) -> Option<SocketAddr> {
        let ip: [u8; 16] = self.array()?;
        Some(canonical(SocketAddr::new(IpAddr::from(ip), self.u16()?)))
    }

    fn rest(&mut self, most: usize) -> Option<Vec<u8>> {
        let rest = self.take(self.0.len())?;
        (rest.len() <= most).then(|| rest.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn wireguard_drops_ours_and_we_drop_wireguards() {
        assert!(!(1..=4).contains(&MAGIC[0]));
        for (first, length) in [(1, 148), (2, 92), (3, 64), (4, 32), (4, 96), (4, 256), (4, 1200)] {
            let mut packet = vec![0; length];
            packet[0] = first;
            assert_eq!(Kind::of(&packet), None);
        }
    }

    #[test]
    fn frames_are_read_as_they_were_written() {
        let address = "192.0.2.1:7".parse().unwrap();
        let requests = vec![
            Request::Ping,
            Request::Put { tag: [1; 16], blob: vec![2; 150] },
            Request::Watch { tag: [3; 16], have: [4; 8] },
            Request::Got { tag: [5; 16], digest: [6; 8] },
            Request::PathResponse { token: [7; 8] },
        ];
        let notices = vec![
            Notice::Accepted { ping_seconds: 25 },
            Notice::Pong { observed: address },
            Notice::Stored { tag: [1; 16], digest: [2; 8] },
            Notice::Watching { tag: [3; 16] },
            Notice::Record { tag: [4; 16], blob: vec![5; MAX_BLOB] },
            Notice::PathChallenge { token: [6; 8] },
            Notice::Full { tag: [7; 16], retry_seconds: 60 },
            Notice::Busy { retry_seconds: 30 },
        ];
        let texts = pack(&requests, 36, 0);
        assert_eq!(texts.iter().flat_map(|text| Request::decode(text)).collect::<Vec<_>>(), requests);
        let texts = pack(&notices, 36, 0);
        assert!(texts.iter().all(|text| CLASSES.contains(&(text.len() + 36))));
        assert_eq!(texts.iter().flat_map(|text| Notice::decode(text)).collect::<Vec<_>>(), notices);
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
            Kind::of(&text);
        }
    }
}
