//! The stateless responder: hellos are answered by a welcome or a cookie, and forgotten.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_noise::{Identity, split};
use natpunch_types::{PeerKey, PresharedKey};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::session::network;
use super::{Counters, Limits, read_key};
use crate::crypto::{self, Gate, Key, open_random, seal_message, seal_random, short_mac};
use crate::wire::{
    CookieBytes, HEADER_LEN, HELLO_PAYLOAD_LEN, Kind, MAC1_AT, MAC2_AT, Reader, TICKET_TEXT_LEN, WELCOME_LEN,
    put_address,
};

/// How long a ticket is good.
const TICKET_LIFETIME: Duration = Duration::from_secs(10);
/// How often the cookie secret changes; the one before it is good as long again.
const COOKIE_SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// Hellos of one network under load: in a second, and at once.
const PER_NETWORK: (f64, f64) = (20.0, 5.0);
/// Entries of the table of networks. Which entry is whose nobody can tell from outside.
const NETWORKS: usize = 8_192;

/// A handshake that waits, at its client, for the proof.
pub(super) struct Ticket {
    pub(super) from_client: Key,
    pub(super) from_server: Key,
    pub(super) identity: PeerKey,
    pub(super) session: u64,
    /// Rises from ticket to ticket.
    pub(super) number: u64,
}

/// Tokens that come back with time.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl Bucket {
    fn refill(&mut self, (rate, most): (f64, f64), now: Duration) {
        self.tokens = (self.tokens + now.saturating_sub(self.at).as_secs_f64() * rate).min(most);
        self.at = now;
    }

    fn take(&mut self) -> bool {
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

pub(super) struct Door {
    /// One for each pair of a key and a secret.
    gates: Vec<(Identity, Gate)>,
    ticket_key: Key,
    network_key: Key,
    /// The current and the previous one.
    cookie_keys: [Key; 2],
    cookie_since: Duration,
    tickets: u64,
    rate: (f64, f64),
    all: Bucket,
    networks: Box<[Bucket]>,
}

impl Door {
    pub(super) fn new(
        identities: Vec<Identity>,
        secrets: &[PresharedKey],
        limits: &Limits,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let secrets: Vec<Option<&PresharedKey>> =
            if secrets.is_empty() { vec![None] } else { secrets.iter().map(Some).collect() };
        let gates = identities
            .iter()
            .flat_map(|identity| {
                secrets.iter().map(|secret| (identity.clone(), Gate::new(&identity.public(), *secret)))
            })
            .collect();
        let rate = f64::from(limits.hellos_per_second);
        Self {
            gates,
            ticket_key: crypto::random_key(rng),
            network_key: crypto::random_key(rng),
            cookie_keys: [crypto::random_key(rng), crypto::random_key(rng)],
            cookie_since: Duration::ZERO,
            tickets: 0,
            rate: (rate, rate),
            all: Bucket { tokens: rate, at: Duration::ZERO },
            networks: vec![Bucket { tokens: PER_NETWORK.1, at: Duration::ZERO }; NETWORKS].into(),
        }
    }

    /// The key and secret that a hello was made for.
    pub(super) fn gate(&self, hello: &[u8]) -> Option<&(Identity, Gate)> {
        let (text, mac1) = (hello.get(..MAC1_AT)?, hello.get(MAC1_AT..MAC2_AT)?);
        self.gates.iter().find(|(_, gate)| crypto::equal(&gate.mac1(text), mac1))
    }

    pub(super) fn handle_hello(
        &mut self,
        source: SocketAddr,
        hello: &[u8],
        counters: &mut Counters,
        rng: &mut impl CryptoRng,
        now: Duration,
    ) -> Option<Vec<u8>> {
        let Some((identity, gate)) = self.gate(hello).cloned() else {
            counters.forged += 1;
            return None;
        };
        self.all.refill(self.rate, now);
        if self.all.tokens < self.rate.1 * 7.0 / 8.0 {
            self.rotate_cookie_keys(rng, now);
            if !self.has_cookie(source, hello) {
                counters.cookies += 1;
                return self.cookie_reply(&gate, source, hello, rng);
            }
            if !self.network_bucket(source, now).is_some_and(Bucket::take) {
                counters.shed += 1;
                return None;
            }
        }
        if !self.all.take() {
            counters.shed += 1;
            return None;
        }
        let welcome = self.welcome(&identity, &gate, source, hello, rng, now);
        match welcome {
            Some(_) => counters.welcomed += 1,
            None => counters.forged += 1,
        }
        welcome
    }

    fn welcome(
        &mut self,
        identity: &Identity,
        gate: &Gate,
        source: SocketAddr,
        hello: &[u8],
        rng: &mut impl CryptoRng,
        now: Duration,
    ) -> Option<Vec<u8>> {
        let mut handshake = identity.respond(&gate.prologue, rng).ok()?;
        let mut payload = [0; HELLO_PAYLOAD_LEN];
        let read = handshake.read_message(hello.get(HEADER_LEN..MAC1_AT)?, &mut payload).ok()?;
        if read != HELLO_PAYLOAD_LEN {
            return None;
        }
        let client: [u8; 32] = handshake.get_remote_static()?.try_into().ok()?;

        let mut header = Kind::Welcome.header().to_vec();
        let session = rng.next_u64();
        let mut inner = session.to_be_bytes().to_vec();
        put_address(&mut inner, source);
        let mut noise = [0; WELCOME_LEN];
        let length = handshake.write_message(&inner, &mut noise).ok()?;
        header.extend(noise.get(..length)?);

        let [from_client, from_server] = split(&mut handshake)?;
        self.tickets += 1;
        let mut text = Zeroizing::new(Vec::with_capacity(TICKET_TEXT_LEN));
        text.extend(from_client.iter().chain(from_server.iter()).chain(&client));
        text.extend(session.to_be_bytes());
        text.extend(self.tickets.to_be_bytes());
        text.extend(millis(now).to_be_bytes());
        let ticket = seal_random(&self.ticket_key, &place(source), &text, rng)?;
        seal_message(&from_server, 0, header, ticket)
    }

    /// `None` for anything but a ticket that this process gave to this address lately.
    pub(super) fn open_ticket(&self, source: SocketAddr, ticket: &[u8], now: Duration) -> Option<Ticket> {
        let text = open_random(&self.ticket_key, &place(source), ticket)?;
        let mut reader = Reader(&text);
        let ticket = Ticket {
            from_client: read_key(&mut reader)?,
            from_server: read_key(&mut reader)?,
            identity: PeerKey::from_bytes(reader.array()?),
            session: reader.u64()?,
            number: reader.u64()?,
        };
        let issued = Duration::from_millis(reader.u64()?);
        (now.saturating_sub(issued) <= TICKET_LIFETIME).then_some(ticket)
    }

    fn rotate_cookie_keys(&mut self, rng: &mut impl CryptoRng, now: Duration) {
        let age = now.saturating_sub(self.cookie_since);
        if age >= COOKIE_SECRET_LIFETIME {
            let [current, previous] = &mut self.cookie_keys;
            *previous = if age < COOKIE_SECRET_LIFETIME * 2 { current.clone() } else { crypto::random_key(rng) };
            *current = crypto::random_key(rng);
            self.cookie_since = now;
        }
    }

    fn has_cookie(&self, source: SocketAddr, hello: &[u8]) -> bool {
        let (Some(text), Some(mac2)) = (hello.get(..MAC2_AT), hello.get(MAC2_AT..)) else { return false };
        self.cookie_keys.iter().any(|key| crypto::equal(&crypto::mac2(&cookie(key, source), text), mac2))
    }

    fn cookie_reply(&self, gate: &Gate, source: SocketAddr, hello: &[u8], rng: &mut impl CryptoRng) -> Option<Vec<u8>> {
        let [current, _] = &self.cookie_keys;
        let mut text = cookie(current, source).to_vec();
        let mut nonce = [0; crate::wire::NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        gate.seal_cookie(&nonce, hello.get(MAC1_AT..MAC2_AT)?, &mut text)?;
        Some([&Kind::Cookie.header()[..], &nonce, &text].concat())
    }

    fn network_bucket(&mut self, source: SocketAddr, now: Duration) -> Option<&mut Bucket> {
        let hash: [u8; 8] = short_mac(&self.network_key, &[&network(source.ip()).to_be_bytes()]);
        let index = usize::try_from(u64::from_be_bytes(hash) % NETWORKS as u64).ok()?;
        let bucket = self.networks.get_mut(index)?;
        bucket.refill(PER_NETWORK, now);
        Some(bucket)
    }
}

/// What proves that somebody receives at this address.
fn cookie(key: &Key, source: SocketAddr) -> CookieBytes {
    short_mac(key, &[&place(source)])
}

fn place(address: SocketAddr) -> Vec<u8> {
    let mut place = Vec::with_capacity(crate::wire::ADDRESS_LEN);
    put_address(&mut place, address);
    place
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
