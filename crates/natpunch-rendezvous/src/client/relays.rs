//! What a client wants of the server's relay, and its bindings there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{RelayUse, Time, backoff};
use rand_core::CryptoRng;

use super::{Event, Outgoing, To, quiet, random_part};
use crate::crypto::Key;
use crate::frame::{RelayState, Request};
use crate::relay::bind::{Message, Nonce, State};
use crate::wire::{CookieBytes, Kind, Tag};

/// When a wish or a bind is said again without an answer, at first and at most.
const RESEND: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(4));
/// When a wish is said again; less by up to a quarter ...
const REFRESH: Duration = Duration::from_secs(60);
/// ... and the same of one that both sides have bound: the server keeps it for as long as they are.
const REFRESH_BOUND: Duration = Duration::from_secs(300);
/// When a wish is said again that the server had no room for, or whose allocation was lost.
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));
/// When a bound side lets itself be heard, which also keeps the NAT's mapping, unless the lifetime
/// of that is known; less by up to a fifth.
const REBIND: Duration = Duration::from_secs(25);
/// When a side that waits for the other asks how things are, at first: the server's word may have
/// been lost.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A binding without an answer for this long is none.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Ports that are remembered to be silent.
const MAX_SILENT: usize = 64;
/// Pairs of which a client wants a relay, at most.
const MAX_RELAYS: usize = 256;

#[derive(Default)]
pub(super) struct Relays {
    by_tag: BTreeMap<Tag, Relay>,
    /// Pairs that want no relay, of which the server has confirmed that it knows of no other wish.
    released: BTreeSet<Tag>,
    /// Ports that have not answered while the server did.
    silent: BTreeSet<SocketAddr>,
    /// The silence that our NAT's mappings are known to outlive.
    lifetime: Option<Duration>,
}

struct Relay {
    wants: RelayUse,
    /// When it is said (again), and how often it was without an answer.
    due: Time,
    tries: u32,
    /// The server may have heard it.
    said: bool,
    binding: Option<Binding>,
}

/// What the server offered, and how far we are with it.
struct Binding {
    to: SocketAddr,
    allocation: u64,
    key: Key,
    cookie: CookieBytes,
    nonce: Nonce,
    due: Time,
    tries: u32,
    /// Since when an answer is awaited.
    asked: Option<Time>,
    /// A challenge was answered since then.
    proved: bool,
    /// The address was told: a bind has left for it.
    told: bool,
    /// Both sides are bound.
    both: bool,
}

impl Relays {
    /// Sets what is wanted, complete; what ended with it.
    ///
    /// A pair that is named and wants no relay is released: a client of this identity that ran
    /// before may have asked for one, and the server would carry for that wish until it has
    /// expired.
    pub(super) fn set(
        &mut self,
        wanted: impl IntoIterator<Item = (Tag, RelayUse)>,
        now: Time,
    ) -> Vec<Event> {
        let wanted: BTreeMap<Tag, RelayUse> = wanted.into_iter().collect();
        let mut events = Vec::new();
        for (tag, relay) in &mut self.by_tag {
            let wants = wanted.get(tag).copied().unwrap_or_default();
            if wants != relay.wants {
                (relay.wants, relay.due, relay.tries) = (wants, now, 0);
            }
            if wants == RelayUse::Off {
                events.extend(relay.unbind(*tag));
            }
        }
        // The server has never heard of these.
        self.by_tag
            .retain(|_, relay| relay.said || relay.wants != RelayUse::Off);
        self.released
            .retain(|tag| wanted.get(tag) == Some(&RelayUse::Off));
        let (unwanted, wanted): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|(_, wants)| *wants == RelayUse::Off);
        for (tag, wants) in wanted {
            self.insert(tag, wants, now);
        }
        // Last, so that they take no place of a pair that wants one.
        for (tag, wants) in unwanted {
            if !self.released.contains(&tag) {
                self.insert(tag, wants, now);
            }
        }
        events
    }

    fn insert(&mut self, tag: Tag, wants: RelayUse, now: Time) {
        if self.by_tag.len() >= MAX_RELAYS {
            return;
        }
        self.by_tag.entry(tag).or_insert(Relay {
            wants,
            due: now,
            tries: 0,
            said: wants == RelayUse::Off,
            binding: None,
        });
    }

    /// A new session: the server may know nothing. A network change: it may see us elsewhere.
    pub(super) fn restart(&mut self, now: Time) {
        self.by_tag
            .values_mut()
            .for_each(|relay| (relay.due, relay.tries) = (now, 0));
    }

    /// The network changed: each port has to be told by a datagram from the new address.
    pub(super) fn rebind(&mut self, now: Time) {
        for binding in self
            .by_tag
            .values_mut()
            .filter_map(|relay| relay.binding.as_mut())
        {
            (binding.due, binding.tries, binding.asked) = (now, 0, None);
        }
    }

    /// A pair looks for new paths: if the NAT has forgotten the one to the relay, the port learns
    /// of it now.
    pub(super) fn rebind_pair(&mut self, tag: &Tag, now: Time) {
        let binding = self
            .by_tag
            .get_mut(tag)
            .and_then(|relay| relay.binding.as_mut());
        if let Some(binding) = binding.filter(|binding| binding.asked.is_none()) {
            (binding.due, binding.tries) = (now, 0);
        }
    }

    pub(super) fn set_mapping_lifetime(&mut self, lifetime: Option<Duration>, now: Time) {
        self.lifetime = lifetime;
        let latest = now + quiet(lifetime, REBIND);
        let bindings = self.by_tag.values_mut().filter_map(|r| r.binding.as_mut());
        for binding in bindings {
            binding.due = binding.due.min(latest);
        }
    }

    /// Wishes that are to be said again until then, and await no answer, are due now: so many at most.
    pub(super) fn bring_forward(&mut self, until: Time, most: usize, now: Time) {
        let soon = |relay: &&mut Relay| relay.tries == 0 && relay.due > now && relay.due <= until;
        let soon = self.by_tag.values_mut().filter(soon).take(most);
        soon.for_each(|relay| relay.due = now);
    }

    /// Wishes that are due, at most so many, and notes that they were said.
    pub(super) fn take_due(&mut self, most: usize, now: Time) -> Vec<Request> {
        let due = self
            .by_tag
            .iter_mut()
            .filter(|(_, relay)| relay.due <= now)
            .take(most);
        due.map(|(tag, relay)| {
            relay.due = now + backoff(RESEND, relay.tries);
            relay.tries = relay.tries.saturating_add(1);
            relay.said = true;
            Request::Relay {
                tag: *tag,
                wants: relay.wants,
            }
        })
        .collect()
    }

    /// Relay ports of the server that have answered no bind.
    pub(super) fn silent_ports(&self) -> impl Iterator<Item = SocketAddr> {
        self.silent.iter().copied()
    }

    /// When the next wish is due.
    pub(super) fn wish_due(&self) -> Option<Time> {
        self.by_tag.values().map(|relay| relay.due).min()
    }

    /// When the next bind is due.
    pub(super) fn bind_due(&self) -> Option<Time> {
        let bindings = self
            .by_tag
            .values()
            .filter_map(|relay| relay.binding.as_ref());
        bindings
            .map(|binding| {
                let dead_at = binding.asked.map(|asked| asked + DEAD_AFTER);
                dead_at.map_or(binding.due, |dead_at| binding.due.min(dead_at))
            })
            .min()
    }

    /// Binds that are due, with where the first two of a binding go, and what ended for want of an
    /// answer. `is_up`: the server itself answers.
    pub(super) fn drive(
        &mut self,
        is_up: bool,
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> (Vec<Outgoing>, Vec<Event>) {
        let (mut binds, mut events) = (Vec::new(), Vec::new());
        for (tag, relay) in &mut self.by_tag {
            let Some(binding) = &mut relay.binding else {
                continue;
            };
            if binding.asked.is_some_and(|asked| now >= asked + DEAD_AFTER) {
                if is_up && self.silent.len() < MAX_SILENT {
                    self.silent.insert(binding.to);
                }
                events.extend(relay.unbind(*tag));
                (relay.due, relay.tries) = (now, 0);
            } else if now >= binding.due {
                binds.push(binding.say(rng, now));
                // What follows on the same way finds this side bound: by the first bind, or by the
                // one with the cookie.
                if !binding.both && binding.tries <= 2 {
                    binding.told = true;
                    events.push(Event::Relay {
                        tag: *tag,
                        address: Some(binding.to),
                    });
                }
            }
        }
        (binds, events)
    }

    /// The server offers a port at this address of its own.
    pub(super) fn handle_offer(
        &mut self,
        tag: &Tag,
        to: SocketAddr,
        allocation: u64,
        key: Key,
        now: Time,
    ) -> Option<Event> {
        let relay = self
            .by_tag
            .get_mut(tag)
            .filter(|relay| relay.wants != RelayUse::Off)?;
        if relay
            .binding
            .as_ref()
            .is_some_and(|binding| binding.allocation == allocation && binding.to == to)
        {
            return None;
        }
        let event = relay.unbind(*tag);
        relay.binding = Some(Binding {
            to,
            allocation,
            key,
            cookie: CookieBytes::default(),
            nonce: Nonce::default(),
            due: now,
            tries: 0,
            asked: None,
            proved: false,
            told: false,
            both: false,
        });
        event
    }

    /// The server says how a pair's relay is; `heard`: what it heard us want.
    pub(super) fn handle_state(
        &mut self,
        tag: &Tag,
        heard: RelayUse,
        state: RelayState,
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Option<Event> {
        let relay = self.by_tag.get_mut(tag)?;
        if heard == relay.wants {
            if heard == RelayUse::Off {
                self.by_tag.remove(tag);
                self.released.insert(*tag);
                return None;
            }
            let bound = relay.binding.as_ref().is_some_and(|binding| binding.both);
            let refresh = if bound && state == RelayState::Bound {
                REFRESH_BOUND
            } else {
                REFRESH
            };
            (relay.due, relay.tries) = (now + refresh - (refresh / 4).mul_f64(random_part(rng)), 0);
        } else if relay.tries == 0 {
            // What we said before came late, and is what the server has heard last.
            relay.due = now;
        }
        match state {
            RelayState::Offered => None,
            RelayState::Bound => {
                let binding = relay.binding.as_mut().filter(|binding| !binding.both)?;
                binding.both = true;
                Some(Event::Relay {
                    tag: *tag,
                    address: Some(binding.to),
                })
            }
            RelayState::None | RelayState::Refused => {
                let had = relay.binding.is_some();
                if state == RelayState::Refused || had {
                    let retry = if had { RETRY.1 } else { RETRY.0 };
                    relay.due = now + retry - (retry / 4).mul_f64(random_part(rng));
                }
                relay.unbind(*tag)
            }
        }
    }

    /// A relay port answered.
    pub(super) fn handle_bound(
        &mut self,
        source: SocketAddr,
        payload: &[u8],
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Option<Event> {
        let rebind = quiet(self.lifetime, REBIND);
        let allocation = Message::allocation(payload)?;
        let mine = |binding: &Binding| binding.allocation == allocation && binding.to == source;
        let mut all = self.by_tag.iter_mut();
        let (tag, binding) =
            all.find_map(|(tag, relay)| Some((tag, relay.binding.as_mut().filter(|b| mine(b))?)))?;
        let answer = Message::open(&binding.key, payload)?;
        if binding.asked.is_none() || answer.nonce != binding.nonce {
            return None;
        }
        binding.cookie = answer.cookie;
        if answer.state == State::Unproven {
            // The first challenge is answered at once; after another one the client waits as if
            // there had been no answer.
            if !std::mem::replace(&mut binding.proved, true) {
                binding.due = now;
            }
            return None;
        }
        binding.asked = None;
        self.silent.remove(&source);
        if answer.state == State::Bound && !binding.both {
            // `tries` goes on, as a measure of how long the other side lets wait.
            binding.due = now + backoff((ASK_AGAIN, REBIND), binding.tries.saturating_sub(1));
            return None;
        }
        (binding.both, binding.tries) = (true, 0);
        binding.due = now + rebind - (rebind / 5).mul_f64(random_part(rng));
        Some(Event::Relay {
            tag: *tag,
            address: Some(binding.to),
        })
    }
}

impl Relay {
    /// Gives a binding up; says so if it was told.
    fn unbind(&mut self, tag: Tag) -> Option<Event> {
        let told = self.binding.take()?.told;
        told.then_some(Event::Relay { tag, address: None })
    }
}

impl Binding {
    fn say(&mut self, rng: &mut impl CryptoRng, now: Time) -> Outgoing {
        if self.asked.is_none() {
            rng.fill_bytes(&mut self.nonce);
            (self.asked, self.proved) = (Some(now), false);
        }
        self.due = now + backoff(RESEND, self.tries);
        self.tries = self.tries.saturating_add(1);
        let bind = Message {
            allocation: self.allocation,
            nonce: self.nonce,
            cookie: self.cookie,
            state: State::default(),
        };
        Outgoing {
            to: To::Address(self.to),
            payload: bind.seal(Kind::Bind, &self.key).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    const TAG: Tag = [7; 16];
    const NOW: Time = Time::from_millis(9_000);

    fn said(relays: &mut Relays, now: Time) -> Vec<RelayUse> {
        let requests = relays.take_due(9, now).into_iter();
        requests
            .filter_map(|request| {
                if let Request::Relay { wants, .. } = request {
                    Some(wants)
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn a_wish_without_an_answer_is_said_again_ever_more_seldom() {
        let mut relays = Relays::default();
        relays.set([(TAG, RelayUse::Carry)], NOW);
        let (first, most) = RESEND;
        let mut now = NOW;
        for wait in [first, first * 2, first * 4, first * 8, most, most] {
            assert_eq!(said(&mut relays, now), [RelayUse::Carry]);
            assert_eq!(said(&mut relays, now), [], "not at once");
            now += wait.min(most);
        }
    }

    #[test]
    fn a_wish_that_was_never_said_is_not_taken_back_either() {
        let mut relays = Relays::default();
        relays.set([(TAG, RelayUse::Carry)], NOW);
        relays.set([], NOW);
        assert_eq!(said(&mut relays, NOW), []);
        relays.set([(TAG, RelayUse::Carry)], NOW);
        assert_eq!(said(&mut relays, NOW), [RelayUse::Carry]);
        relays.set([], NOW);
        assert_eq!(said(&mut relays, NOW), [RelayUse::Off]);
    }

    #[test]
    fn a_pair_that_wants_no_relay_is_released_once_whoever_asked_for_it() {
        let (mut relays, mut rng) = (Relays::default(), ChaCha20Rng::from_seed([1; 32]));
        relays.set([(TAG, RelayUse::Off)], NOW);
        assert_eq!(said(&mut relays, NOW), [RelayUse::Off]);
        let later = NOW + RESEND.1;
        assert_eq!(said(&mut relays, later), [RelayUse::Off], "no answer yet");
        relays.handle_state(&TAG, RelayUse::Off, RelayState::None, &mut rng, later);
        relays.set([(TAG, RelayUse::Off)], later);
        assert_eq!(said(&mut relays, later + REFRESH), [], "it is known");
        relays.set([(TAG, RelayUse::Carry)], later);
        assert_eq!(said(&mut relays, later), [RelayUse::Carry]);
    }

    #[test]
    fn pairs_to_be_released_take_no_place_of_one_that_wants_a_relay() {
        let mut relays = Relays::default();
        let tag = |n: usize| {
            let mut tag = [0; 16];
            tag[..8].copy_from_slice(&n.to_be_bytes());
            tag
        };
        let unwanted = (0..2 * MAX_RELAYS).map(|n| (tag(n), RelayUse::Off));
        let wanted = (2 * MAX_RELAYS, RelayUse::Carry);
        relays.set(unwanted.chain([(tag(wanted.0), wanted.1)]), NOW);
        assert_eq!(relays.by_tag.len(), MAX_RELAYS);
        assert!(relays.by_tag.contains_key(&tag(wanted.0)));
    }

    #[test]
    fn a_server_that_heard_an_older_wish_last_is_told_again() {
        let (mut relays, mut rng) = (Relays::default(), ChaCha20Rng::from_seed([1; 32]));
        relays.set([(TAG, RelayUse::Standby)], NOW);
        assert_eq!(said(&mut relays, NOW), [RelayUse::Standby]);
        relays.handle_state(&TAG, RelayUse::Standby, RelayState::None, &mut rng, NOW);
        assert_eq!(said(&mut relays, NOW), []);
        // A datagram from before came late.
        relays.handle_state(&TAG, RelayUse::Carry, RelayState::None, &mut rng, NOW);
        assert_eq!(said(&mut relays, NOW), [RelayUse::Standby]);
    }
}
