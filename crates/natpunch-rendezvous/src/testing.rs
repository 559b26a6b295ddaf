//! For tests and fuzzers: both ends of a session that say what they are told to, byte for byte.
//! They hold real keys, so what they say is authentic, however wrong it is.

use std::net::SocketAddr;

use natpunch_noise::{HandshakeState, Identity};
use natpunch_types::{PeerKey, PresharedKey, SecretKey};
use rand_core::CryptoRng;

use crate::crypto::{HelloKeys, Key, open_message, seal_in_place, seal_message, split};
use crate::frame::{Frame, Notice, Request, bodies, pack, pad};
use crate::server::Unsealed;
use crate::wire::{
    CONFIRM_HEADER_LEN, HEADER_LEN, HELLO_PAYLOAD_LEN, Kind, MAC_LEN, MAC1_AT, MAX_DATAGRAM,
    SESSION_HEADER_LEN, TICKET_LEN, WELCOME_LEN, WELCOME_NOISE_LEN, put_address, session_message,
};

/// Reads a text as both sides would; whether what was understood is said and understood again as
/// the same.
pub fn frames_hold(text: &[u8]) -> bool {
    fn holds<F: Frame + PartialEq>(text: &[u8]) -> bool {
        let frames = F::decode(text);
        let again = pack(&frames, 0, 0);
        again.flat_map(|text| F::decode(&text)).collect::<Vec<_>>() == frames
    }
    holds::<Request>(text) && holds::<Notice>(text)
}

/// One end of a session.
pub struct RawSession {
    id: u64,
    ours: Key,
    theirs: Key,
    is_client: bool,
    /// The counter of the next message.
    pub counter: u64,
}

impl RawSession {
    /// A request, or a notice, with this text; padded, and cut where no datagram can be longer.
    pub fn say(&mut self, text: &[u8]) -> Vec<u8> {
        self.say_as(
            if self.is_client {
                Kind::Request
            } else {
                Kind::Notice
            },
            text,
        )
    }

    /// A message of this kind.
    pub fn say_as(&mut self, kind: Kind, text: &[u8]) -> Vec<u8> {
        let mut message = [&[0; SESSION_HEADER_LEN], text].concat();
        message.truncate(MAX_DATAGRAM - MAC_LEN);
        pad(&mut message, MAC_LEN, 0);
        let counter = self.counter;
        self.counter = self.counter.wrapping_add(1);
        kind.put_session_header(self.id, counter, &mut message);
        seal_in_place(&self.ours, counter, SESSION_HEADER_LEN, message).unwrap_or_default()
    }

    /// The text of the other end's message.
    pub fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let (id, counter, header, sealed) = session_message(datagram)?;
        (id == self.id).then_some(())?;
        open_message(&self.theirs, counter, header, sealed)
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// A client that waits for a welcome.
pub struct RawHello {
    handshake: HandshakeState,
    /// The datagram.
    pub datagram: Vec<u8>,
}

impl RawHello {
    /// A hello to the server of this key. `None` if a key is none.
    pub fn new(
        identity: &SecretKey,
        server: &PeerKey,
        admission: Option<&PresharedKey>,
        rng: &mut impl CryptoRng,
    ) -> Option<Self> {
        let hello_keys = HelloKeys::new(server, admission);
        let mut handshake = Identity::new(identity)?
            .initiate(server, &hello_keys.prologue, rng)
            .ok()?;
        let mut noise = [0; MAC1_AT];
        let length = handshake
            .write_message(&[0; HELLO_PAYLOAD_LEN], &mut noise)
            .ok()?;
        let mut datagram = Kind::Hello.header().to_vec();
        datagram.extend(noise.get(..length)?);
        let mac1 = hello_keys.mac1(&datagram);
        datagram.extend(mac1);
        datagram.extend([0; MAC_LEN]);
        Some(Self {
            handshake,
            datagram,
        })
    }

    /// The confirm to this welcome, with a text, and the session.
    pub fn confirm(mut self, welcome: &[u8], text: &[u8]) -> Option<(Vec<u8>, RawSession)> {
        let (header, sealed) = welcome.split_at_checked(HEADER_LEN + WELCOME_NOISE_LEN)?;
        let mut inner = [0; WELCOME_LEN];
        self.handshake
            .read_message(header.get(HEADER_LEN..)?, &mut inner)
            .ok()?;
        let (id, _) = inner.split_first_chunk::<8>()?;
        let [ours, theirs] = split(&mut self.handshake)?;
        let ticket = open_message(&theirs, 0, header, sealed)?;
        let mut text = text.to_vec();
        text.truncate(MAX_DATAGRAM - CONFIRM_HEADER_LEN - MAC_LEN);
        pad(
            &mut text,
            CONFIRM_HEADER_LEN + MAC_LEN,
            crate::wire::MIN_CONFIRM,
        );
        let header = [&Kind::Confirm.header()[..], &ticket].concat();
        let confirm = seal_message(&ours, 0, &header, &text)?;
        Some((
            confirm,
            RawSession {
                id: u64::from_be_bytes(*id),
                ours,
                theirs,
                is_client: true,
                counter: 1,
            },
        ))
    }
}

/// Answers a hello as the server of this key would, with any session number and observed address:
/// the client's identity, the welcome, and the session.
pub fn welcome(
    server: &SecretKey,
    admission: Option<&PresharedKey>,
    hello: &[u8],
    session: u64,
    observed: SocketAddr,
    rng: &mut impl CryptoRng,
) -> Option<(PeerKey, Vec<u8>, RawSession)> {
    let identity = Identity::new(server)?;
    let hello_keys = HelloKeys::new(&identity.public(), admission);
    let mut handshake = identity.respond(&hello_keys.prologue, rng).ok()?;
    handshake
        .read_message(hello.get(HEADER_LEN..MAC1_AT)?, &mut [0; HELLO_PAYLOAD_LEN])
        .ok()?;
    let client = PeerKey::from_bytes(handshake.get_remote_static()?.try_into().ok()?);
    let mut inner = session.to_be_bytes().to_vec();
    put_address(&mut inner, observed);
    let mut noise = [0; WELCOME_LEN];
    let length = handshake.write_message(&inner, &mut noise).ok()?;
    let mut header = Kind::Welcome.header().to_vec();
    header.extend(noise.get(..length)?);
    let [theirs, ours] = split(&mut handshake)?;
    let datagram = seal_message(&ours, 0, &header, &[0; TICKET_LEN])?;
    Some((
        client,
        datagram,
        RawSession {
            id: session,
            ours,
            theirs,
            is_client: false,
            counter: 1,
        },
    ))
}

/// Lets a server say something else than it would: edits the frames of a session's message, each
/// its kind and its body, whatever they mean. Its datagram gets no shorter.
pub fn reword(datagram: &mut Unsealed, edit: impl FnOnce(&mut Vec<(u8, Vec<u8>)>)) {
    let Some(message) = datagram.message_mut() else {
        return;
    };
    let least = message.len() + MAC_LEN;
    let text = message.get(SESSION_HEADER_LEN..).unwrap_or_default();
    let mut frames: Vec<_> = bodies(text)
        .map(|(kind, body)| (kind, body.to_vec()))
        .collect();
    edit(&mut frames);
    let frame = |(kind, body): &(u8, Vec<u8>)| {
        [&[*kind][..], &(body.len() as u16).to_be_bytes(), body].concat()
    };
    message.truncate(SESSION_HEADER_LEN);
    message.extend(frames.iter().flat_map(frame));
    pad(message, MAC_LEN, least);
}

/// A secret of a relay's side.
pub fn relay_secret(key: [u8; 32]) -> Key {
    Key::new(key)
}

/// A bind with this secret, and with a cookie that the port gave.
pub fn bind(key: [u8; 32], allocation: u64, nonce: [u8; 8], cookie: [u8; 16]) -> Vec<u8> {
    use crate::relay::bind::{Message, State};
    Message {
        allocation,
        nonce,
        cookie,
        state: State::default(),
    }
    .seal(Kind::Bind, &Key::new(key))
    .to_vec()
}
