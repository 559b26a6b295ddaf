//! The stateless responder: hellos are answered by a welcome or a cookie, and forgotten.
//!
//! It is apart from the server's state, so that any number of threads can do its work at once: what
//! a hello costs, two times two Diffie-Hellman operations, is done without any lock. A hello
//! without a right mac1 takes none at all.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use natpunch_noise::Identity;
use natpunch_types::{Bucket, PeerKey, PresharedKey, Rate, Time, canonical, lock};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::seals::{Message, Opened};
use super::ticket::{SecretNumber, Ticket};
use super::{Counters, Limits, read_key};
use crate::crypto::{
    self, HelloKeys, Key, open_message, open_random, seal_message, seal_random, short_mac, split,
};
use crate::wire::{
    CONFIRM_HEADER_LEN, CookieBytes, HEADER_LEN, HELLO_PAYLOAD_LEN, Kind, MAC1_AT, MAC2_AT, Reader,
    TICKET_TEXT_LEN, WELCOME_LEN, put_address,
};
use natpunch_types::Network;

/// How long a ticket is good.
const TICKET_LIFETIME: Duration = Duration::from_secs(10);
/// How often the cookie secret changes; the one before it is good as long again.
const COOKIE_SECRET_LIFETIME: Duration = Duration::from_secs(120);
/// Hellos of one network under load: in a second, and at once.
const PER_NETWORK: Rate = Rate::per_second(20, 5);
/// The part of all hellos that may come without a proven address: one in so many.
const UNPROVEN: u64 = 8;
/// Entries of the table of networks. A secret key decides which network has which entry.
const NETWORKS: usize = 8_192;

/// How many hellos are worked on in a second, and at once.
#[derive(Debug, Clone, Copy)]
struct Rates {
    all: Rate,
    /// Of clients that have proven nothing.
    unproven: Rate,
}

impl Rates {
    fn new(limits: &Limits) -> Self {
        let all = u64::from(limits.hellos_per_second);
        let unproven = all / UNPROVEN;
        Self {
            all: Rate::per_second(all, all),
            unproven: Rate::per_second(unproven, unproven),
        }
    }
}

/// Takes one of each; nothing of either, if one has nothing left.
fn take_of_both(
    (a, rate_a): (&mut Bucket, Rate),
    (b, rate_b): (&mut Bucket, Rate),
    now: Time,
) -> bool {
    let (Some(after_a), Some(after_b)) = (a.after(rate_a, 1, now), b.after(rate_b, 1, now)) else {
        return false;
    };
    (*a, *b) = (after_a, after_b);
    true
}

/// What hellos may cost, and how addresses are proven when they cost more.
struct Meter {
    /// The current and the previous one.
    cookie_keys: [Key; 2],
    cookie_since: Time,
    rates: Rates,
    /// What is left for all.
    all: Bucket,
    /// What is left for clients that have not proven their address: an eighth, so that spoofed
    /// hellos, however many, leave the rest of the work to those with a cookie.
    unproven: Bucket,
    networks: Box<[Bucket]>,
}

/// A key of the server with a secret: what one kind of hello is made for.
#[derive(Clone)]
struct Acceptor {
    identity: Identity,
    hello_keys: HelloKeys,
    secret: SecretNumber,
}

/// What is open at the moment.
struct Acceptors {
    identities: Vec<Identity>,
    all: Arc<[Acceptor]>,
    secrets: Vec<(SecretNumber, Option<PresharedKey>)>,
    next_number: SecretNumber,
}

impl Acceptors {
    fn rebuild(&mut self) {
        let all = self.identities.iter().flat_map(|identity| {
            self.secrets.iter().map(|(number, secret)| Acceptor {
                identity: identity.clone(),
                hello_keys: HelloKeys::new(&identity.public(), secret.as_ref()),
                secret: *number,
            })
        });
        self.all = all.collect();
    }
}

/// What to do about a hello.
pub enum Incoming {
    /// Nothing.
    Ignore,
    /// Send this back: the sender has to prove its address first.
    Cookie(Vec<u8>),
    /// Pass it to [`Responder::welcome`] when there is time; it is of an admitted client, and
    /// within the limits.
    Welcome,
}

/// The stateless responder, which any number of threads may share.
pub struct Responder {
    acceptors: RwLock<Acceptors>,
    ticket_key: Key,
    network_key: Key,
    tickets: AtomicU64,
    meter: Mutex<Meter>,
    welcomed: AtomicU64,
    cookies: AtomicU64,
    shed: AtomicU64,
    forged: AtomicU64,
}

impl Responder {
    pub(super) fn new(
        identities: Vec<Identity>,
        secrets: &[PresharedKey],
        limits: &Limits,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let responder = Self {
            acceptors: RwLock::new(Acceptors {
                identities,
                all: Arc::from([]),
                secrets: Vec::new(),
                next_number: 0,
            }),
            ticket_key: crypto::random_key(rng),
            network_key: crypto::random_key(rng),
            tickets: AtomicU64::new(0),
            meter: Mutex::new(Meter {
                cookie_keys: [crypto::random_key(rng), crypto::random_key(rng)],
                cookie_since: Time::ZERO,
                rates: Rates::new(limits),
                all: Bucket::default(),
                unproven: Bucket::default(),
                networks: vec![Bucket::default(); NETWORKS].into(),
            }),
            welcomed: AtomicU64::new(0),
            cookies: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            forged: AtomicU64::new(0),
        };
        responder.set_secrets(secrets);
        responder
    }

    /// Admits clients that know one of these secrets, or all that know a public key of the
    /// server if there is none. A secret that stays keeps its number.
    pub(super) fn set_secrets(&self, secrets: &[PresharedKey]) {
        let wanted: Vec<Option<PresharedKey>> = if secrets.is_empty() {
            vec![None]
        } else {
            secrets.iter().cloned().map(Some).collect()
        };
        let mut acceptors = self
            .acceptors
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut next = acceptors.next_number;
        let mut numbered: Vec<(SecretNumber, Option<PresharedKey>)> = Vec::new();
        for secret in wanted {
            let known = acceptors
                .secrets
                .iter()
                .find(|(_, known)| same(known.as_ref(), secret.as_ref()));
            let number = known.map_or_else(
                || {
                    next = next.wrapping_add(1);
                    next
                },
                |(number, _)| *number,
            );
            numbered.push((number, secret));
        }
        (acceptors.secrets, acceptors.next_number) = (numbered, next);
        acceptors.rebuild();
    }

    /// Opens hellos to one of these keys of the server.
    pub(super) fn set_identities(&self, identities: Vec<Identity>) {
        let mut acceptors = self
            .acceptors
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        acceptors.identities = identities;
        acceptors.rebuild();
    }

    /// Whether a client that registered by this secret may stay.
    pub(super) fn admits(&self, secret: SecretNumber) -> bool {
        let acceptors = self
            .acceptors
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        acceptors
            .secrets
            .iter()
            .any(|(number, _)| *number == secret)
    }

    /// How many tickets were given so far: the number of the last one.
    pub(super) fn tickets(&self) -> u64 {
        self.tickets.load(Ordering::Relaxed)
    }

    pub(super) fn set_rate(&self, limits: &Limits) {
        self.meter().rates = Rates::new(limits);
    }

    /// What this part of the server counted.
    pub(super) fn count(&self, counters: &mut Counters) {
        counters.welcomed += self.welcomed.load(Ordering::Relaxed);
        counters.cookies += self.cookies.load(Ordering::Relaxed);
        counters.shed += self.shed.load(Ordering::Relaxed);
        counters.forged += self.forged.load(Ordering::Relaxed);
    }

    /// Never held for longer than some hashes take.
    fn meter(&self) -> MutexGuard<'_, Meter> {
        lock(&self.meter)
    }

    /// The key and secret that a hello was made for.
    fn acceptor(&self, hello: &[u8]) -> Option<Acceptor> {
        let (text, mac1) = (hello.get(..MAC1_AT)?, hello.get(MAC1_AT..MAC2_AT)?);
        let all = self
            .acceptors
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .all
            .clone();
        all.iter()
            .find(|acceptor| crypto::equal(&acceptor.hello_keys.mac1(text), mac1))
            .cloned()
    }

    /// Decides about a hello, at the cost of some hashes. Keeps nothing of it, whatever it is.
    pub fn handle_hello(
        &self,
        source: SocketAddr,
        hello: &[u8],
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Incoming {
        let source = canonical(source);
        let Some(acceptor) = self.acceptor(hello).filter(|_| source.port() != 0) else {
            self.forged.fetch_add(1, Ordering::Relaxed);
            return Incoming::Ignore;
        };
        let cookie_keys = {
            let mut meter = self.meter();
            if meter.admits_unproven(now) {
                return Incoming::Welcome;
            }
            meter.rotate_cookie_keys(rng, now);
            meter.cookie_keys.clone()
        };
        if !has_cookie(&cookie_keys, source, hello) {
            self.cookies.fetch_add(1, Ordering::Relaxed);
            return cookie_reply(&cookie_keys, &acceptor.hello_keys, source, hello, rng)
                .map_or(Incoming::Ignore, Incoming::Cookie);
        }
        if self.meter().admits_proven(self.network(source), now) {
            return Incoming::Welcome;
        }
        self.shed.fetch_add(1, Ordering::Relaxed);
        Incoming::Ignore
    }

    /// The answer to a hello that [`handle_hello`](Self::handle_hello) found worth it: four
    /// Diffie-Hellman operations.
    pub fn welcome(
        &self,
        source: SocketAddr,
        hello: &[u8],
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Option<Vec<u8>> {
        let welcome = self
            .acceptor(hello)
            .and_then(|acceptor| self.respond(&acceptor, canonical(source), hello, rng, now));
        let counter = if welcome.is_some() {
            &self.welcomed
        } else {
            &self.forged
        };
        counter.fetch_add(1, Ordering::Relaxed);
        welcome
    }

    fn respond(
        &self,
        acceptor: &Acceptor,
        source: SocketAddr,
        hello: &[u8],
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Option<Vec<u8>> {
        let mut handshake = acceptor
            .identity
            .respond(&acceptor.hello_keys.prologue, rng)
            .ok()?;
        let mut payload = [0; HELLO_PAYLOAD_LEN];
        let read = handshake
            .read_message(hello.get(HEADER_LEN..MAC1_AT)?, &mut payload)
            .ok()?;
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
        let number = self.tickets.fetch_add(1, Ordering::Relaxed) + 1;
        let mut text = Zeroizing::new(Vec::with_capacity(TICKET_TEXT_LEN));
        text.extend(from_client.iter().chain(from_server.iter()).chain(&client));
        text.extend(session.to_be_bytes());
        text.extend(number.to_be_bytes());
        // 48 bits of milliseconds, and the secret.
        text.extend((millis(now) << 16 | u64::from(acceptor.secret)).to_be_bytes());
        let ticket = seal_random(&self.ticket_key, &place(source), &text, rng)?;
        seal_message(&from_server, 0, &header, &ticket)
    }

    /// Opens a confirm, whose sender has then proven its key and address; `None` for any other.
    pub fn open_confirm(&self, source: SocketAddr, payload: &[u8], now: Time) -> Option<Opened> {
        let opened = self.open(canonical(source), payload, now);
        if opened.is_none() {
            self.forged.fetch_add(1, Ordering::Relaxed);
        }
        opened
    }

    fn open(&self, source: SocketAddr, payload: &[u8], now: Time) -> Option<Opened> {
        let (header, sealed) = payload.split_at_checked(CONFIRM_HEADER_LEN)?;
        let ticket = self.open_ticket(source, header.get(HEADER_LEN..)?, now)?;
        let text = open_message(&ticket.from_client, 0, header, sealed)?;
        Some(Opened(Message::Confirm {
            ticket: Box::new(ticket),
            text,
        }))
    }

    /// `None` for anything but a ticket that this process gave to this address lately.
    fn open_ticket(&self, source: SocketAddr, ticket: &[u8], now: Time) -> Option<Ticket> {
        let text = open_random(&self.ticket_key, &place(source), ticket)?;
        let mut reader = Reader(&text);
        let (from_client, from_server) = (read_key(&mut reader)?, read_key(&mut reader)?);
        let identity = PeerKey::from_bytes(reader.array()?);
        let (session, number, issued) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let ticket = Ticket {
            from_client,
            from_server,
            identity,
            session,
            number,
            secret: (issued & 0xffff) as SecretNumber,
        };
        let issued = Time::from_millis(issued >> 16);
        let fresh = now.since(issued) <= TICKET_LIFETIME;
        (fresh && self.admits(ticket.secret)).then_some(ticket)
    }

    /// The place of an address's network in the table. A secret key decides which networks share
    /// one.
    fn network(&self, source: SocketAddr) -> usize {
        let hash: [u8; 8] = short_mac(
            &self.network_key,
            &[&Network::of(source.ip()).bits().to_be_bytes()],
        );
        (u64::from_be_bytes(hash) % NETWORKS as u64) as usize
    }
}

impl Meter {
    /// Whether a client that has proven nothing yet may still be served.
    fn admits_unproven(&mut self, now: Time) -> bool {
        // A hello with a cookie that comes here takes of this share, too: it is as good as one
        // without.
        let (rate, of_all) = (self.rates.unproven, self.rates.all);
        take_of_both((&mut self.unproven, rate), (&mut self.all, of_all), now)
    }

    fn admits_proven(&mut self, network: usize, now: Time) -> bool {
        let Some(bucket) = self.networks.get_mut(network) else {
            return false;
        };
        take_of_both((bucket, PER_NETWORK), (&mut self.all, self.rates.all), now)
    }

    fn rotate_cookie_keys(&mut self, rng: &mut impl CryptoRng, now: Time) {
        let age = now.since(self.cookie_since);
        if age >= COOKIE_SECRET_LIFETIME {
            let [current, previous] = &mut self.cookie_keys;
            *previous = if age < COOKIE_SECRET_LIFETIME * 2 {
                current.clone()
            } else {
                crypto::random_key(rng)
            };
            *current = crypto::random_key(rng);
            self.cookie_since = now;
        }
    }
}

fn has_cookie(keys: &[Key; 2], source: SocketAddr, hello: &[u8]) -> bool {
    let (Some(text), Some(mac2)) = (hello.get(..MAC2_AT), hello.get(MAC2_AT..)) else {
        return false;
    };
    // Zeros say that there is none, and are what a flood has.
    mac2.iter().any(|byte| *byte != 0)
        && keys
            .iter()
            .any(|key| crypto::equal(&crypto::mac2(&cookie(key, source), text), mac2))
}

fn cookie_reply(
    [current, _]: &[Key; 2],
    hello_keys: &HelloKeys,
    source: SocketAddr,
    hello: &[u8],
    rng: &mut impl CryptoRng,
) -> Option<Vec<u8>> {
    let mut text = cookie(current, source).to_vec();
    let mut nonce = [0; crate::wire::NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    hello_keys.seal_cookie(&nonce, hello.get(MAC1_AT..MAC2_AT)?, &mut text)?;
    Some([&Kind::Cookie.header()[..], &nonce, &text].concat())
}

/// Compares secrets in constant time.
fn same(a: Option<&PresharedKey>, b: Option<&PresharedKey>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => crypto::equal(a.expose(), b.expose()),
        _ => false,
    }
}

/// The cookie of an address: it proves that the client receives there.
fn cookie(key: &Key, source: SocketAddr) -> CookieBytes {
    short_mac(key, &[&place(source)])
}

fn place(address: SocketAddr) -> Vec<u8> {
    let mut place = Vec::with_capacity(crate::wire::ADDRESS_LEN);
    put_address(&mut place, address);
    place
}

fn millis(time: Time) -> u64 {
    u64::try_from(time.since_origin().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn a_cookie_outlives_one_change_of_its_key_unless_nobody_came_for_so_long() {
        let mut rng = ChaCha20Rng::from_seed([0; 32]);
        let mut meter = Meter {
            cookie_keys: [crypto::random_key(&mut rng), crypto::random_key(&mut rng)],
            cookie_since: Time::ZERO,
            rates: Rates::new(&Limits::default()),
            all: Bucket::default(),
            unproven: Bucket::default(),
            networks: Box::default(),
        };
        let mut now = Time::ZERO;
        for (wait, is_kept) in [
            (COOKIE_SECRET_LIFETIME, true),
            (COOKIE_SECRET_LIFETIME * 3 / 2, true),
            (COOKIE_SECRET_LIFETIME * 2, false),
        ] {
            now += wait;
            let before = *meter.cookie_keys[0];
            meter.rotate_cookie_keys(&mut rng, now);
            assert_eq!(*meter.cookie_keys[1] == before, is_kept, "{wait:?}");
            assert_ne!(*meter.cookie_keys[0], before);
        }
    }
}
