//! The protocols on one UDP socket, told apart by form.
//!
//! 1. A complete STUN message (RFC 8489, 5: two zero bits, the cookie at offset 4, a length that is
//!    a multiple of four and that of the datagram) is STUN.
//! 2. natpunch's own magic and a length that its kind can have is natpunch's own rendezvous, if
//!    that is spoken.
//! 3. Exactly 64 bytes is nat-hole-punching, if that is spoken.
//! 4. Everything else is natpunch-go, if that is spoken. Its requests have 93 and 109 bytes,
//!    neither of which a STUN message can have, so the order never takes a datagram from its
//!    protocol. A request of nat-hole-punching could be taken for another protocol's with a public
//!    key made for it, by its owner alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use natpunch_core::stun;
use natpunch_plugin_nat_hole_punching::server as hole_punching;
use natpunch_plugin_natpunch_go::server as natpunch_go;
use natpunch_rendezvous::relay::Event;
use natpunch_rendezvous::server::Unsealed;
use natpunch_rendezvous::{server as rendezvous, wire};
use natpunch_types::{PeerKey, PresharedKey, Rate, SecretKey, Time, lock};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use zeroize::Zeroizing;

use crate::server::cluster::Wake;
use crate::server::counters::Count;
use crate::server::rate::RateLimiter;
use crate::server::relay;
use crate::server::settings::{Compat, Settings};
use crate::server::status;
use crate::server::store::Source;

/// The length of natpunch-go's handshake.
const HANDSHAKE: usize = 109;
/// The length of nat-hole-punching's request.
const HOLE_PUNCHING_REQUEST: usize = 64;

/// The longest answer to a STUN request: three IPv6 addresses.
const LONGEST_STUN: usize = 20 + 3 * 24;
/// STUN requests of one network that are answered by more bytes than they have, where that is
/// allowed, and how many networks are told apart at a time.
const UNPADDED_STUN: Rate = Rate::per_second(4, 16);
const UNPADDED_STUN_NETWORKS: usize = 4_096;

/// Which protocol a datagram belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Class {
    /// STUN.
    Stun,
    /// natpunch's own rendezvous.
    Rendezvous(wire::Kind),
    /// A request of nat-hole-punching.
    HolePunching,
    /// A handshake of natpunch-go: much work.
    Handshake,
    /// Another packet of natpunch-go: little work.
    NatpunchGo,
    /// None that is spoken here.
    Unknown,
}

/// What is sent back.
#[derive(Debug)]
pub(in crate::server) enum Answer {
    NatpunchGo(natpunch_go::Reply),
    Other(Vec<u8>),
}

impl AsRef<[u8]> for Answer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for Answer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::NatpunchGo(reply) => reply,
            Self::Other(bytes) => bytes,
        }
    }
}

/// The protocol servers behind all sockets: a node that registered over one is found over each.
pub(in crate::server) struct Protocols {
    rendezvous: Option<Rendezvous>,
    natpunch_go: Option<Mutex<natpunch_go::Server<ChaCha20Rng>>>,
    hole_punching: Option<Mutex<hole_punching::Server>>,
    /// The sources that may get STUN answers longer than the requests, if any.
    unpadded: Option<Mutex<RateLimiter>>,
    /// By which a client may have STUN answers sent to another port of its own.
    tokens: stun::Tokens,
}

/// The server of natpunch's own rendezvous, and the part of it that needs no lock.
pub(in crate::server) struct Rendezvous {
    server: Mutex<rendezvous::Server<ChaCha20Rng>>,
    responder: Arc<rendezvous::Responder>,
    relay: Option<Arc<relay::Ports>>,
    /// Woken when there is something to ask the store that other processes share.
    store: Option<Arc<Wake>>,
}

impl Rendezvous {
    /// The server's state.
    pub(in crate::server) fn lock(&self) -> MutexGuard<'_, rendezvous::Server<ChaCha20Rng>> {
        lock(&self.server)
    }

    /// What the rendezvous has to send, after its relay's ports have done what it says: a client
    /// that learns of an offer is expected there.
    pub(in crate::server) fn drain(
        &self,
        server: &mut rendezvous::Server<ChaCha20Rng>,
        now: Time,
    ) -> Vec<Unsealed> {
        while let Some((port, command)) = server.poll_relay_command() {
            if let Some(relay) = &self.relay {
                relay.command(port, command, now);
            }
        }
        if let Some(store) = self.store.as_ref().filter(|_| server.has_asks()) {
            store.wake();
        }
        std::iter::from_fn(|| server.poll_unsealed()).collect()
    }

    /// What is to be sent when the relay's ports have something to tell.
    pub(in crate::server) fn handle_relay_events(
        &self,
        events: &[Event],
        now: Time,
    ) -> Vec<Unsealed> {
        let mut server = self.lock();
        events
            .iter()
            .for_each(|event| server.handle_relay_event(*event, now));
        self.drain(&mut server, now)
    }
}

impl Protocols {
    /// STUN, and the protocols of the settings.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(in crate::server) fn new(
        settings: &Settings,
        private_key: SecretKey,
        rendezvous: Option<RendezvousKeys>,
        alternate_port: Option<u16>,
    ) -> std::io::Result<Self> {
        let rendezvous = match rendezvous {
            Some(keys) => {
                let allowed = settings
                    .rendezvous
                    .as_ref()
                    .and_then(|rendezvous| rendezvous.allowed.clone());
                let config = rendezvous::Config {
                    keys: std::iter::once(private_key.clone())
                        .chain(keys.next)
                        .collect(),
                    admission: rendezvous::Admission {
                        secrets: keys.secrets,
                        allowed,
                    },
                    limits: limits(settings.limits, settings.relay.is_some()),
                    alternate_port,
                };
                tracing::info!(
                    "the rendezvous takes at most {} MiB of memory",
                    config.limits.memory() >> 20
                );
                let server =
                    rendezvous::Server::new(config, random()?).map_err(std::io::Error::other)?;
                Some(Rendezvous {
                    responder: server.responder(),
                    server: Mutex::new(server),
                    relay: None,
                    store: None,
                })
            }
            None => None,
        };
        let allowed = settings.allowed_keys.clone();
        let natpunch_go = if settings.compat.contains(&Compat::NatpunchGo) {
            let config = natpunch_go::Config {
                allowed: allowed.clone(),
                ..natpunch_go::Config::new(private_key)
            };
            let server = natpunch_go::Server::new(config, random()?);
            Some(Mutex::new(server.map_err(std::io::Error::other)?))
        } else {
            None
        };
        let hole_punching = settings.compat.contains(&Compat::NatHolePunching).then(|| {
            Mutex::new(hole_punching::Server::new(hole_punching::Config {
                allowed,
                ..hole_punching::Config::default()
            }))
        });
        let unpadded = settings
            .stun_unpadded
            .then(|| Mutex::new(RateLimiter::new(UNPADDED_STUN, UNPADDED_STUN_NETWORKS)));
        Ok(Self {
            rendezvous,
            natpunch_go,
            hole_punching,
            unpadded,
            tokens: tokens()?,
        })
    }

    /// STUN and natpunch's own rendezvous for the members of a mesh, by the WireGuard key of one of
    /// them.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub(in crate::server) fn of_node(
        private_key: SecretKey,
        members: BTreeSet<PeerKey>,
        alternate_port: Option<u16>,
    ) -> std::io::Result<Self> {
        let config = rendezvous::Config {
            keys: vec![private_key],
            admission: members_only(members),
            limits: rendezvous::Limits::default(),
            alternate_port,
        };
        let server = rendezvous::Server::new(config, random()?).map_err(std::io::Error::other)?;
        let rendezvous = Rendezvous {
            responder: server.responder(),
            server: Mutex::new(server),
            relay: None,
            store: None,
        };
        Ok(Self {
            rendezvous: Some(rendezvous),
            natpunch_go: None,
            hole_punching: None,
            unpadded: None,
            tokens: tokens()?,
        })
    }

    /// Offers a relay at these UDP ports.
    pub(in crate::server) fn set_relay(&mut self, numbers: Vec<u16>, ports: Arc<relay::Ports>) {
        if let Some(rendezvous) = &mut self.rendezvous {
            rendezvous.lock().set_relay_ports(numbers);
            rendezvous.relay = Some(ports);
        }
    }

    /// Shares a store with other processes.
    pub(in crate::server) fn set_store(&mut self, wake: Arc<Wake>, shares_relays: bool) {
        if let Some(rendezvous) = &mut self.rendezvous {
            rendezvous.lock().share();
            if shares_relays {
                rendezvous.lock().share_relays();
            }
            rendezvous.store = Some(wake);
        }
    }

    /// The members of the mesh from now on; how many sessions that ends.
    pub(in crate::server) fn admit(&self, members: BTreeSet<PeerKey>, now: Time) -> usize {
        let reconfigure = |rendezvous: &Rendezvous| {
            let mut server = rendezvous.lock();
            let ended = server.reconfigure(members_only(members), rendezvous::Limits::default());
            // Nobody is told, so there is nothing to send.
            rendezvous.drain(&mut server, now);
            ended
        };
        self.rendezvous.as_ref().map_or(0, reconfigure)
    }

    /// How many clients are registered by natpunch's own rendezvous.
    pub(in crate::server) fn sessions(&self) -> usize {
        self.rendezvous
            .as_ref()
            .map_or(0, |server| server.lock().sessions())
    }

    /// Which protocol a datagram belongs to. See the [module](self) for the order.
    pub(in crate::server) fn classify(&self, payload: &[u8]) -> Class {
        if stun::is_stun(payload) {
            Class::Stun
        } else if let Some(kind) = self
            .rendezvous
            .as_ref()
            .and_then(|_| wire::Kind::of(payload))
        {
            Class::Rendezvous(kind)
        } else if self.hole_punching.is_some() && payload.len() == HOLE_PUNCHING_REQUEST {
            Class::HolePunching
        } else if self.natpunch_go.is_none() {
            Class::Unknown
        } else if payload.len() == HANDSHAKE && payload.first() == Some(&1) {
            Class::Handshake
        } else {
            Class::NatpunchGo
        }
    }

    /// The answer to a datagram of this class, if it deserves one.
    pub(in crate::server) fn handle(
        &self,
        class: Class,
        source: SocketAddr,
        payload: &[u8],
        now: Time,
    ) -> Option<Answer> {
        match class {
            Class::HolePunching => lock(self.hole_punching.as_ref()?)
                .handle_datagram(source, payload, now)
                .map(Answer::Other),
            Class::Handshake | Class::NatpunchGo => lock(self.natpunch_go.as_ref()?)
                .handle_datagram(source, payload, now)
                .map(Answer::NatpunchGo),
            Class::Stun | Class::Rendezvous(_) | Class::Unknown => None,
        }
    }

    /// The answer to a STUN request that came from `source`, from where it leaves and where it goes:
    /// to `source`, or to another port that its bearer has shown to be its own. It is not longer
    /// than the request, unless the settings allow that, and then only for a few requests of each
    /// network.
    pub(in crate::server) fn answer_stun(
        &self,
        request: &[u8],
        source: SocketAddr,
        origins: &stun::Origins,
        now: Time,
    ) -> Option<(Vec<u8>, stun::Change, SocketAddr)> {
        if let Some((answer, to)) = self.tokens.respond(request, source, now) {
            return Some((answer, stun::Change::default(), to));
        }
        let answer = stun::respond_from(request, source, origins, request.len()).or_else(|| {
            let unpadded = self
                .unpadded
                .as_ref()
                .filter(|_| request.len() < LONGEST_STUN)?;
            let is_allowed = lock(unpadded).allow(Source::of(source.ip()), now);
            is_allowed
                .then(|| stun::respond_from(request, source, origins, LONGEST_STUN))
                .flatten()
        });
        answer.map(|(answer, change)| (answer, change, source))
    }

    /// natpunch's own rendezvous, if it is spoken.
    pub(in crate::server) fn rendezvous(&self) -> Option<&Rendezvous> {
        self.rendezvous.as_ref()
    }

    /// The part of natpunch's own rendezvous that keeps nothing, if it is spoken.
    pub(in crate::server) fn responder(&self) -> Option<&rendezvous::Responder> {
        self.rendezvous
            .as_ref()
            .map(|rendezvous| &*rendezvous.responder)
    }

    /// Forgets clients that were silent for too long, also without any input.
    pub(in crate::server) fn handle_timeout(&self, now: Time) {
        if let Some(server) = &self.natpunch_go {
            lock(server).handle_timeout(now);
        }
        if let Some(server) = &self.hole_punching {
            lock(server).handle_timeout(now);
        }
    }

    /// Takes what can change while the server runs; how many sessions of natpunch's own rendezvous
    /// that ended.
    ///
    /// # Errors
    /// A key is none; nothing has changed.
    pub(in crate::server) fn reconfigure(
        &self,
        settings: &Settings,
        keys: &[SecretKey],
        secrets: Vec<PresharedKey>,
        now: Time,
    ) -> std::io::Result<usize> {
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous
                .lock()
                .set_keys(keys)
                .map_err(std::io::Error::other)?;
        }
        if let Some(server) = &self.natpunch_go {
            lock(server).set_allowed(settings.allowed_keys.clone());
        }
        if let Some(server) = &self.hole_punching {
            lock(server).set_allowed(settings.allowed_keys.clone());
        }
        let (Some(wanted), Some(rendezvous)) = (&settings.rendezvous, &self.rendezvous) else {
            return Ok(0);
        };
        let admission = rendezvous::Admission {
            secrets,
            allowed: wanted.allowed.clone(),
        };
        let mut server = rendezvous.lock();
        let ended =
            server.reconfigure(admission, limits(settings.limits, settings.relay.is_some()));
        // The relays of those who are gone end now. Nobody is told, so there is nothing to send.
        rendezvous.drain(&mut server, now);
        Ok(ended)
    }

    /// How full natpunch's own rendezvous is.
    pub(in crate::server) fn usage(&self) -> Option<status::Rendezvous> {
        let server = self.rendezvous.as_ref()?.lock();
        let limits = server.limits();
        let (relays, allocations) = server.relays();
        Some(status::Rendezvous {
            sessions: server.sessions(),
            max_sessions: limits.sessions,
            mailboxes: server.mailboxes(),
            max_mailboxes: limits.mailboxes,
            meetings: server.meetings(),
            relays,
            max_relays: limits.relays,
            allocations,
            max_memory_bytes: limits.memory(),
        })
    }

    /// What the servers counted, by name.
    pub(in crate::server) fn counters(&self) -> Vec<Count> {
        let mut counters = Vec::new();
        let mut add = |protocol, counted: &[(&'static str, u64)]| {
            counters.extend(counted.iter().map(|(event, total)| Count {
                protocol,
                event,
                total: *total,
                is_fault: false,
            }));
        };
        if let Some(server) = &self.rendezvous {
            let counted = server.lock().counters();
            add(
                "rendezvous",
                &[
                    ("welcomed", counted.welcomed),
                    ("asked for a cookie", counted.cookies),
                    ("shed", counted.shed),
                    ("registered", counted.registered),
                    ("expired", counted.expired),
                    ("revoked", counted.revoked),
                    ("records stored", counted.stored),
                    ("records pushed", counted.pushed),
                    ("pairs met", counted.met),
                    ("probed", counted.probed),
                    ("roamed", counted.roamed),
                    ("rate-limited", counted.limited),
                    ("forged", counted.forged),
                    ("replayed", counted.replayed),
                    ("not allowed", counted.not_allowed),
                    ("refused, no room", counted.full),
                    ("without session", counted.no_session),
                    ("not sent, queue full", counted.unsent),
                    ("held back, bytes out", counted.held_back),
                ],
            );
        }
        let counted = self
            .rendezvous
            .as_ref()
            .and_then(|server| server.lock().cluster_counters());
        if let Some(counted) = counted {
            add(
                "store",
                &[
                    ("connected", counted.connected),
                    ("records kept", counted.kept),
                    ("records adopted", counted.adopted),
                    ("records told", counted.told),
                    ("stale records", counted.stale),
                    ("refused", counted.refused),
                    ("pairs met between processes", counted.met),
                    ("unsaid", counted.unsaid),
                ],
            );
        }
        if let Some(relay) = self
            .rendezvous
            .as_ref()
            .and_then(|rendezvous| rendezvous.relay.as_ref())
        {
            let counted = relay.counters();
            add(
                "relay",
                &[
                    ("bound", counted.bound),
                    ("forwarded", counted.forwarded),
                    ("bytes forwarded", counted.bytes),
                    ("asked to prove their address", counted.challenged),
                    ("not carried", counted.not_carried),
                    ("not WireGuard's", counted.misshapen),
                    ("probes beyond their rate", counted.limited),
                    ("waited for a rate", counted.queued),
                    ("dropped at a pair's rate", counted.pair_rate),
                    ("dropped at a pair's bytes of the hour", counted.pair_hour),
                    ("dropped at the rate of all pairs", counted.total_rate),
                    ("refused", counted.refused),
                    ("of strangers", counted.strangers),
                ],
            );
        }
        if let Some(server) = &self.natpunch_go {
            let counted = lock(server).counters();
            add(
                "natpunch-go",
                &[
                    ("handshakes", counted.handshakes),
                    ("registered", counted.registered),
                    ("expired", counted.expired),
                    ("found", counted.found),
                    ("not known", counted.not_known),
                    ("rate-limited", counted.limited),
                    ("forged", counted.forged),
                    ("replayed", counted.replayed),
                    ("not allowed", counted.not_allowed),
                    ("refused, table full", counted.full),
                    ("without session", counted.no_session),
                ],
            );
        }
        if let Some(server) = &self.hole_punching {
            let counted = lock(server).counters();
            add(
                "nat-hole-punching",
                &[
                    ("registered", counted.registered),
                    ("expired", counted.expired),
                    ("found", counted.found),
                    ("not known", counted.not_known),
                    ("rate-limited", counted.limited),
                    ("not allowed", counted.not_allowed),
                    ("refused, table full", counted.full),
                    ("refused, alive elsewhere", counted.held),
                ],
            );
        }
        counters
    }
}

/// What natpunch's own rendezvous reads from files.
pub(in crate::server) struct RendezvousKeys {
    /// The next private key.
    pub(in crate::server) next: Option<SecretKey>,
    /// The admission secrets.
    pub(in crate::server) secrets: Vec<PresharedKey>,
}

/// The members, by their WireGuard keys.
fn members_only(members: BTreeSet<PeerKey>) -> rendezvous::Admission {
    rendezvous::Admission {
        secrets: vec![natpunch_rendezvous::node_admission()],
        allowed: Some(members),
    }
}

/// What the rendezvous may use, with a relay or without.
fn limits(limits: rendezvous::Limits, relay: bool) -> rendezvous::Limits {
    if relay {
        limits
    } else {
        rendezvous::Limits {
            relays: 0,
            ..limits
        }
    }
}

/// A generator with a seed of the system's.
pub(in crate::server) fn random() -> std::io::Result<ChaCha20Rng> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(ChaCha20Rng::from_seed(*seed))
}

/// Tokens that nobody else can make.
fn tokens() -> std::io::Result<stun::Tokens> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut()).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(stun::Tokens::new(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocols(compat: &[Compat]) -> Protocols {
        let settings = Settings {
            listen: vec![],
            key_file: "unused".into(),
            rendezvous: None,
            compat: compat.to_vec(),
            allowed_keys: None,
            http: None,
            ..Settings::default()
        };
        Protocols::new(&settings, SecretKey::from_bytes([7; 32]), None, None).unwrap()
    }

    fn source() -> SocketAddr {
        "192.0.2.1:1000".parse().unwrap()
    }

    #[test]
    fn a_protocol_that_was_not_named_is_not_spoken() {
        let request = [1; 64];
        let silent = protocols(&[Compat::NatpunchGo]);
        assert_eq!(silent.classify(&request), Class::NatpunchGo);
        assert!(
            silent
                .handle(silent.classify(&request), source(), &request, Time::ZERO)
                .is_none()
        );
        let named = protocols(&[Compat::NatHolePunching]);
        assert_eq!(named.classify(&request), Class::HolePunching);
        assert!(
            named
                .handle(Class::HolePunching, source(), &request, Time::ZERO)
                .is_some()
        );
        let mut handshake = [0; HANDSHAKE];
        handshake[0] = 1;
        assert_eq!(named.classify(&handshake), Class::Unknown);
        assert_eq!(silent.classify(&handshake), Class::Handshake);
    }

    #[test]
    fn stun_is_answered_whatever_else_is_spoken_and_never_with_more_bytes() {
        let request = stun::request(stun::TransactionId([9; 12]));
        for compat in [
            &[][..],
            &[Compat::NatpunchGo],
            &[Compat::NatpunchGo, Compat::NatHolePunching],
        ] {
            let protocols = protocols(compat);
            for source in [source(), "[2001:db8::1]:1000".parse().unwrap()] {
                assert_eq!(protocols.classify(&request), Class::Stun);
                let here = if source.is_ipv4() {
                    "192.0.2.9:1"
                } else {
                    "[2001:db8::9]:1"
                }
                .parse()
                .unwrap();
                let origins = stun::Origins {
                    here,
                    other_port: None,
                    other_ip: None,
                    other: None,
                };
                let (answer, _, to) = protocols
                    .answer_stun(&request, source, &origins, Time::ZERO)
                    .unwrap();
                assert!(answer.len() <= request.len());
                assert_eq!(to, source);
                assert!(
                    matches!(stun::parse_answer(&answer), Some((_, stun::Answer::Mapped(found))) if found == source)
                );
            }
        }
    }
}
