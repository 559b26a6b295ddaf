//! How far away the first router with a public address is: so far must a packet go that opens all
//! NATs of this side, and further it need not.
//!
//! Spare ports send STUN requests that end early, each with another TTL; the port tells which one
//! it was that a router reports (RFC 792). A server that answers is public itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16};
use std::time::Duration;

use natpunch_types::{IcmpError, IcmpKind, PathId, PeerKey, Travel, is_global};
use rand_core::RngCore;

use crate::gather::fresh;
use crate::nat::stun::{self, TransactionId};
use crate::ports::SourcePorts;
use crate::{Time, Transmit};

/// The longest way that is tried: more routers before the internet are not known to exist.
const FARTHEST: usize = 7;
/// How often each request is sent, since routers answer only so many; and how long the answers to
/// each are awaited.
const ROUNDS: u32 = 2;
const PATIENCE: Duration = Duration::from_millis(600);
/// When it is counted where nothing calls for haste, when anew, and when after nothing was heard.
const QUIET: Duration = Duration::from_secs(30);
const GOOD_FOR: Duration = Duration::from_secs(3_600);
/// How far openers go if it is not known, and at least and at most if it is.
const USUAL_TTL: u8 = 4;
const TTL: (u8, u8) = (3, 8);

/// The TTL of a packet that is to pass all NATs of this side and to end before the peer's: one hop
/// more than is known to be enough, since the way to a peer may be a little longer.
pub(crate) fn opener_ttl(hops: Option<NonZeroU8>) -> u8 {
    let (least, most) = TTL;
    hops.map_or(USUAL_TTL, |hops| {
        hops.get().saturating_add(1).clamp(least, most)
    })
}

#[derive(Debug)]
struct Run {
    server: SocketAddr,
    transaction: TransactionId,
    /// The port of each TTL, from 1 on.
    ports: Vec<NonZeroU16>,
    /// The place of the nearest public router, or the server, that has told.
    public: Option<usize>,
    /// The places of private routers that have told.
    private: BTreeSet<usize>,
    rounds: u32,
    next: Time,
}

/// What is known of the way out, of IPv4.
#[derive(Debug)]
pub(crate) struct Hops {
    owner: PeerKey,
    known: Option<NonZeroU8>,
    run: Option<Run>,
    due: Option<Time>,
    tried: bool,
}

impl Hops {
    /// Nothing is known. No peer may have this key.
    pub(crate) const fn new(owner: PeerKey) -> Self {
        Self {
            owner,
            known: None,
            run: None,
            due: None,
            tried: false,
        }
    }

    /// Routers up to the first one with a public address, that one included.
    pub(crate) fn known(&self) -> Option<NonZeroU8> {
        self.known
    }

    /// The network is another.
    pub(crate) fn restart(&mut self, ports: &mut SourcePorts) {
        ports.close(&self.owner, |_| false);
        *self = Self::new(self.owner);
    }

    /// Whether a spare port is one of the count's.
    pub(crate) fn has_port(&self, port: NonZeroU16) -> bool {
        let of_run = |run: &Run| run.ports.contains(&port);
        self.run.as_ref().is_some_and(of_run)
    }

    /// When something is due.
    pub(crate) fn next_timeout(&self) -> Option<Time> {
        self.run.as_ref().map(|run| run.next).or(self.due)
    }

    /// Goes on with a count, or begins one that is due. `server`: one of IPv4 that answers; `haste`:
    /// some opener may need it soon, and the count disturbs nothing.
    pub(crate) fn handle_timeout(
        &mut self,
        server: Option<SocketAddr>,
        haste: bool,
        ports: &mut SourcePorts,
        rng: &mut impl RngCore,
        now: Time,
        mut send: impl FnMut(Transmit),
    ) {
        let due = *self.due.get_or_insert(now + QUIET);
        let is_due = due <= now || haste && !self.tried;
        if let Some(server) = server.filter(|_| is_due && self.run.is_none()) {
            self.tried = true;
            self.due = Some(now + GOOD_FOR);
            self.run = Some(Run {
                server,
                transaction: fresh(rng),
                ports: ports.open(self.owner, FARTHEST, rng),
                public: None,
                private: BTreeSet::new(),
                rounds: 0,
                next: now,
            });
        } else if is_due && self.run.is_none() {
            self.due = Some(now + QUIET);
        }
        let Some(run) = self.run.as_mut().filter(|run| run.next <= now) else {
            return;
        };
        if run.rounds >= ROUNDS {
            self.conclude(ports);
            return;
        }
        run.rounds += 1;
        run.next = now + PATIENCE;
        for (ttl, port) in (1..).zip(&run.ports) {
            let path = PathId::from_port(*port, run.server);
            send(Transmit {
                travel: Travel::Ttl(ttl),
                ..Transmit::new(path, stun::request(run.transaction))
            });
        }
    }

    /// Takes what a router says of a packet.
    pub(crate) fn handle_icmp(&mut self, error: &IcmpError) {
        let Some(run) = &mut self.run else { return };
        let sent = stun::request(run.transaction);
        let is_ours = error.kind == IcmpKind::TimeExceeded
            && error.destination == run.server
            && sent.starts_with(&error.payload);
        if is_ours {
            // The server is one of IPv4. A router of IPv6 is before the NAT64, or that itself.
            let is_public = error.from.is_ipv4() && is_global(error.from);
            run.note(NonZeroU16::new(error.source_port), is_public);
        }
    }

    /// Takes an answer of the server: the packet has come that far.
    pub(crate) fn handle_answer(&mut self, path: PathId, payload: &[u8]) {
        let Some(run) = &mut self.run else { return };
        let is_ours = stun::parse_answer(payload)
            .is_some_and(|(transaction, _)| transaction == run.transaction);
        if is_ours && path.remote == run.server {
            run.note(path.pin(), is_global(path.remote.ip()));
        }
    }

    fn conclude(&mut self, ports: &mut SourcePorts) {
        let Some(run) = self.run.take() else { return };
        ports.close(&self.owner, |_| false);
        self.known = run.hops();
    }
}

impl Run {
    /// The packet of this port has come to a router, or to the server.
    fn note(&mut self, port: Option<NonZeroU16>, is_public: bool) {
        let Some(place) = self.ports.iter().position(|of| Some(*of) == port) else {
            return;
        };
        if is_public {
            self.public = Some(self.public.map_or(place, |before| before.min(place)));
        } else {
            self.private.insert(place);
        }
    }

    /// What was counted. Where a router before the public one has not told, that one may be public,
    /// too, and then openers would go too far: beyond what is usual it is not known.
    fn hops(&self) -> Option<NonZeroU8> {
        let place = self.public?;
        let hops = u8::try_from(place + 1).ok().and_then(NonZeroU8::new)?;
        let all_told = (0..place).all(|nearer| self.private.contains(&nearer));
        (all_told || hops.get() < USUAL_TTL).then_some(hops)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;
    use crate::ports::Pinning;

    const SERVER: &str = "198.51.100.1:3478";

    /// What is counted on a way with these routers before the server; a router without an address
    /// says nothing.
    fn count(way: &[Option<&str>], quoted: usize) -> Option<u8> {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let mut ports = SourcePorts::default();
        ports.pinning = Pinning::Possible;
        let mut hops = Hops::new(crate::nat::owner(4));
        let server = SERVER.parse().ok();
        let mut now = Time::from_millis(5);
        while !hops.tried || hops.run.is_some() {
            let mut out = Vec::new();
            hops.handle_timeout(server, true, &mut ports, &mut rng, now, |t| out.push(t));
            for transmit in out {
                let place = usize::from(transmit.travel.ttl().unwrap()) - 1;
                let path = transmit.path;
                match way.get(place) {
                    Some(Some(router)) => hops.handle_icmp(&IcmpError {
                        kind: IcmpKind::TimeExceeded,
                        from: router.parse().unwrap(),
                        source_port: path.pin().unwrap().get(),
                        destination: path.remote,
                        payload: transmit.payload[..quoted].to_vec(),
                    }),
                    Some(None) => {}
                    None => {
                        let seen = "203.0.113.9:7".parse().unwrap();
                        let answer = stun::respond(&transmit.payload, seen).unwrap();
                        hops.handle_answer(path, &answer);
                    }
                }
            }
            now = hops.next_timeout().unwrap();
        }
        assert!(ports.take_changed().is_none_or(|open| open.is_empty()));
        hops.known().map(NonZeroU8::get)
    }

    #[test]
    fn the_first_public_router_is_counted_though_some_on_the_way_say_nothing() {
        let home = Some("192.168.1.1");
        let carrier = Some("100.64.0.1");
        let public = Some("203.0.113.1");
        for quoted in [0, 20, 44] {
            assert_eq!(count(&[home, public, public], quoted), Some(2));
            assert_eq!(count(&[home, carrier, carrier, public], quoted), Some(4));
            assert_eq!(count(&[home, None, public], quoted), Some(3));
            assert_eq!(count(&[home, None, None, public], quoted), None);
            assert_eq!(count(&[public], quoted), Some(1));
        }
        let before_nat64 = Some("2001:470::1");
        assert_eq!(count(&[before_nat64, before_nat64, public], 0), Some(3));
        assert_eq!(count(&[home], 0), Some(2), "the server is the first");
        assert_eq!(count(&[None; 9], 0), None);
        assert_eq!(count(&[home; 9], 0), None);
    }

    #[test]
    fn what_quotes_nothing_that_was_sent_counts_for_nothing() {
        let mut rng = ChaCha20Rng::from_seed([4; 32]);
        let mut ports = SourcePorts::default();
        ports.pinning = Pinning::Possible;
        let mut hops = Hops::new(crate::nat::owner(4));
        let (server, mut now) = (SERVER.parse().unwrap(), Time::from_millis(5));
        let mut out = Vec::new();
        hops.handle_timeout(Some(server), true, &mut ports, &mut rng, now, |t| {
            out.push(t);
        });
        let sent = &out[2];
        let genuine = IcmpError {
            kind: IcmpKind::TimeExceeded,
            from: "203.0.113.1".parse().unwrap(),
            source_port: sent.path.pin().unwrap().get(),
            destination: server,
            payload: sent.payload.clone(),
        };
        let forged = [
            IcmpError {
                source_port: 51_820,
                ..genuine.clone()
            },
            IcmpError {
                destination: "198.51.100.2:3478".parse().unwrap(),
                ..genuine.clone()
            },
            IcmpError {
                payload: b"something".to_vec(),
                ..genuine.clone()
            },
            IcmpError {
                kind: IcmpKind::Prohibited,
                ..genuine
            },
        ];
        for error in &forged {
            hops.handle_icmp(error);
        }
        while hops.run.is_some() {
            now = hops.next_timeout().unwrap();
            hops.handle_timeout(Some(server), true, &mut ports, &mut rng, now, |_| ());
        }
        assert_eq!(hops.known(), None);
    }

    #[test]
    fn openers_go_one_hop_further_than_is_needed_and_never_far() {
        let ttl = |hops| opener_ttl(NonZeroU8::new(hops));
        assert_eq!([0, 1, 2, 3, 7, 15].map(ttl), [4, 3, 3, 4, 8, 8]);
    }
}
