//! The users of the relay: pairs of clients that both asked for it, and the allocation of each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Bound;
use std::time::Duration;

use natpunch_types::{PeerKey, RelayUse, Time};
use rand_core::CryptoRng;

use super::Limits;
use super::session::{ClientId, Pushes, Sender};
use super::ticket::SecretNumber;
use crate::crypto::{self, Key};
use crate::frame::{Notice, RelayState};
use crate::relay::{Command, Event, Port};
use crate::wire::Tag;
use natpunch_types::Usage;
use natpunch_types::{Network, Site};

/// How long a wish is good after it was last said.
const LIFETIME: Duration = Duration::from_secs(150);
/// When an offer is repeated while not both sides are bound.
const RESEND: [Duration; 4] = [
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1200),
    Duration::from_millis(2400),
];
/// Pairs looked through in one sweep.
const SWEEP_SIZE: usize = 4_096;

/// The clients that have asked for one pair tag, at most two.
#[derive(Default)]
struct Pair {
    sides: [Option<Side>; 2],
    lease: Option<Lease>,
}

/// One of a pair.
struct Side {
    client: ClientId,
    address: SocketAddr,
    network: Network,
    secret: SecretNumber,
    wants: RelayUse,
    expires: Time,
    /// The secret of its offers.
    key: Key,
}

/// An allocation at a port.
struct Lease {
    allocation: u64,
    /// Which port, counted from the first.
    port: usize,
    carry: bool,
    both_bound: bool,
    tries: usize,
    due: Option<Time>,
}

#[derive(Default)]
pub(super) struct Relays {
    ports: Vec<u16>,
    /// Allocations at each port.
    load: Vec<usize>,
    pairs: BTreeMap<Tag, Pair>,
    by_allocation: BTreeMap<u64, Tag>,
    /// The ports that a client uses: never one for two peers, since an address names one allocation
    /// of a port.
    used: BTreeSet<(PeerKey, usize)>,
    /// Wishes of each client, and of each network.
    clients: Usage<PeerKey>,
    networks: Usage<Network>,
    sites: Usage<Site>,
    due: BTreeSet<(Time, Tag)>,
    commands: VecDeque<(usize, Command)>,
    sweep_after: Option<Tag>,
}

impl Relays {
    /// What a pair takes, at most and with its share of all maps; also at the port.
    pub(super) const PAIR: usize = 2 * size_of::<(Tag, Pair)>() + 1_536 + Port::ALLOCATION;

    pub(super) fn set_ports(&mut self, ports: Vec<u16>) {
        self.load = vec![0; ports.len()];
        self.ports = ports;
    }

    /// Pairs where a side wants a relay.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(super) fn allocations(&self) -> usize {
        self.by_allocation.len()
    }

    pub(super) fn poll_command(&mut self) -> Option<(usize, Command)> {
        self.commands.pop_front()
    }

    /// A client says what it wants for a pair.
    pub(super) fn ask(
        &mut self,
        who: &Sender,
        tag: Tag,
        wants: RelayUse,
        limits: &Limits,
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> Pushes {
        let client = &who.client;
        let answer = |state| (*client, Notice::RelayState { tag, wants, state });
        if wants == RelayUse::Off {
            let mut told = self.withdraw(client, &tag);
            told.push(answer(RelayState::None));
            return told;
        }
        if self.ports.is_empty() || !self.note(who, tag, wants, limits, rng, now) {
            return vec![answer(RelayState::Refused)];
        }
        let mut told = Vec::new();
        let waiting = self
            .pairs
            .get(&tag)
            .is_some_and(|pair| pair.lease.is_none() && pair.is_whole(now));
        if waiting {
            if !self.allocate(&tag, rng, now) {
                return vec![answer(RelayState::Refused)];
            }
            told.extend(self.offers(&tag, Some(&client.identity)));
        }
        self.update_carry(&tag);
        told.extend(
            self.offers(&tag, None)
                .into_iter()
                .filter(|(to, _)| to.identity == client.identity),
        );
        let lease = self.pairs.get(&tag).and_then(|pair| pair.lease.as_ref());
        told.push(answer(lease.map_or(RelayState::None, Lease::state)));
        told
    }

    /// Keeps a wish; false if there is no room, or two others have this tag.
    fn note(
        &mut self,
        who: &Sender,
        tag: Tag,
        wants: RelayUse,
        limits: &Limits,
        rng: &mut impl CryptoRng,
        now: Time,
    ) -> bool {
        let (
            Sender {
                client,
                address,
                secret,
                ..
            },
            network,
        ) = (*who, who.network());
        let pair = self.pairs.get_mut(&tag);
        let known = pair.is_some();
        if let Some(pair) = pair {
            if let Some((index, side)) = pair.side_mut(&client.identity) {
                let moved = side.address != address;
                // Counted where it is now, also where there is no room for new ones: what is there
                // is never evicted.
                self.networks.give_back(&side.network);
                self.sites.give_back(&side.network.site());
                self.networks.take(network);
                self.sites.take(network.site());
                (side.client, side.address, side.network, side.secret) =
                    (client, address, network, secret);
                (side.wants, side.expires) = (wants, now + LIFETIME);
                if let Some(lease) = pair.lease.as_ref().filter(|_| moved) {
                    let allocation = lease.allocation | index as u64;
                    self.commands.push_back((
                        lease.port,
                        Command::Registered {
                            allocation,
                            address,
                        },
                    ));
                }
                return true;
            }
            // A wish that is not said any more makes room, but not one in use.
            if pair.lease.is_none()
                && let Some(gone) = pair
                    .sides
                    .iter_mut()
                    .find_map(|side| side.take_if(|side| now >= side.expires))
            {
                self.give_back(&gone);
            }
        }
        let pair = self.pairs.get(&tag);
        let left = limits.relays.saturating_sub(self.pairs.len());
        if pair.is_some_and(|pair| pair.sides.iter().all(Option::is_some))
            || !known && !self.sites.leaves_room(&network.site(), left)
            || self.clients.of(&client.identity) >= limits.relays_per_client
            || self.networks.of(&network) >= limits.relays_per_network
        {
            return false;
        }
        let (expires, key) = (now + LIFETIME, crypto::random_key(rng));
        let side = Side {
            client,
            address,
            network,
            secret,
            wants,
            expires,
            key,
        };
        if let Some(free) = self
            .pairs
            .entry(tag)
            .or_default()
            .sides
            .iter_mut()
            .find(|side| side.is_none())
        {
            *free = Some(side);
        }
        self.clients.take(client.identity);
        self.networks.take(network);
        self.sites.take(network.site());
        true
    }

    /// Finds a port that neither of the two uses yet, the one with the fewest allocations, and
    /// opens an allocation there.
    fn allocate(&mut self, tag: &Tag, rng: &mut impl CryptoRng, now: Time) -> bool {
        let Some(pair) = self.pairs.get_mut(tag) else {
            return false;
        };
        let [Some(a), Some(b)] = &pair.sides else {
            return false;
        };
        let uses = |who: &Side, port: usize| self.used.contains(&(who.client.identity, port));
        let free = self
            .load
            .iter()
            .enumerate()
            .filter(|(port, _)| !uses(a, *port) && !uses(b, *port));
        let Some(port) = free.min_by_key(|(_, load)| **load).map(|(port, _)| port) else {
            return false;
        };
        let allocation = rng.next_u64() & !1;
        if self.by_allocation.contains_key(&allocation) {
            return false; // once in 2^63 times; the client asks again
        }
        let due = RESEND.first().map(|wait| now + *wait);
        let lease = Lease {
            allocation,
            port,
            carry: false,
            both_bound: false,
            tries: 0,
            due,
        };
        let keys = [a, b].map(|side| side.key.clone());
        let registered = [a.address, b.address];
        self.used
            .extend([(a.client.identity, port), (b.client.identity, port)]);
        self.by_allocation.insert(allocation, *tag);
        self.load
            .iter_mut()
            .skip(port)
            .take(1)
            .for_each(|load| *load += 1);
        self.due.extend(due.map(|due| (due, *tag)));
        self.commands.push_back((
            port,
            Command::Open {
                allocation,
                keys,
                registered,
            },
        ));
        pair.lease = Some(lease);
        true
    }

    /// The offers to both sides, but to one.
    fn offers(&self, tag: &Tag, except: Option<&PeerKey>) -> Pushes {
        let Some(pair) = self.pairs.get(tag) else {
            return Vec::new();
        };
        let Some(lease) = &pair.lease else {
            return Vec::new();
        };
        let Some(port) = self.ports.get(lease.port).copied() else {
            return Vec::new();
        };
        let sides = pair
            .sides
            .iter()
            .enumerate()
            .filter_map(|(index, side)| Some((index as u64, side.as_ref()?)));
        sides
            .filter(|(_, side)| except.is_none_or(|except| side.client.identity != *except))
            .map(|(index, side)| {
                let (allocation, key) = (lease.allocation | index, side.key.clone());
                (
                    side.client,
                    Notice::RelayOffer {
                        tag: *tag,
                        port,
                        allocation,
                        key,
                    },
                )
            })
            .collect()
    }

    /// Tells the port whether one of the two wants WireGuard's messages carried.
    fn update_carry(&mut self, tag: &Tag) {
        let Some(pair) = self.pairs.get_mut(tag) else {
            return;
        };
        let carry = pair
            .sides
            .iter()
            .flatten()
            .any(|side| side.wants == RelayUse::Carry);
        if let Some(lease) = pair.lease.as_mut().filter(|lease| lease.carry != carry) {
            lease.carry = carry;
            self.commands.push_back((
                lease.port,
                Command::Carry {
                    allocation: lease.allocation,
                    carry,
                },
            ));
        }
    }

    /// A port has something to tell; what the two are to know.
    pub(super) fn handle_event(&mut self, event: Event) -> Pushes {
        let (Event::Bound(allocation) | Event::Over(allocation)) = event;
        let Some(tag) = self.by_allocation.get(&allocation).copied() else {
            return Vec::new();
        };
        match event {
            Event::Bound(_) => {
                let lease = self
                    .pairs
                    .get_mut(&tag)
                    .and_then(|pair| pair.lease.as_mut());
                if let Some(lease) = lease {
                    lease.both_bound = true;
                    lease.due.take().map(|due| self.due.remove(&(due, tag)));
                }
                self.tell_state(&tag)
            }
            Event::Over(_) => {
                self.end_lease(&tag);
                self.tell_state(&tag)
            }
        }
    }

    /// Whether one side of a pair waits here for the other.
    pub(super) fn waits(&self, tag: &Tag) -> bool {
        let pair = self.pairs.get(tag);
        pair.is_some_and(|pair| pair.sides.iter().any(Option::is_none))
    }

    /// Another process has the relay of this pair: what the sides here want is its business.
    pub(super) fn hand_over(&mut self, tag: &Tag) -> Vec<(ClientId, SocketAddr, RelayUse)> {
        let pair = self.pairs.get_mut(tag).filter(|pair| pair.lease.is_none());
        let sides = pair.map(|pair| pair.sides.each_mut().map(Option::take));
        let sides: Vec<Side> = sides.into_iter().flatten().flatten().collect();
        sides.iter().for_each(|side| self.give_back(side));
        self.drop_if_empty(tag);
        let wish = |side: &Side| (side.client, side.address, side.wants);
        sides.iter().map(wish).collect()
    }

    fn tell_state(&self, tag: &Tag) -> Pushes {
        let Some(pair) = self.pairs.get(tag) else {
            return Vec::new();
        };
        let state = pair.lease.as_ref().map_or(RelayState::None, Lease::state);
        let notice = |side: &Side| {
            (
                side.client,
                Notice::RelayState {
                    tag: *tag,
                    wants: side.wants,
                    state,
                },
            )
        };
        pair.sides.iter().flatten().map(notice).collect()
    }

    /// Takes back what a client wished over this family; what the other one is to know. If it uses
    /// both, what it has wished over the other one since stays.
    fn withdraw(&mut self, who: &ClientId, tag: &Tag) -> Pushes {
        let Some(pair) = self.pairs.get_mut(tag) else {
            return Vec::new();
        };
        let side = pair
            .side_mut(&who.identity)
            .filter(|(_, side)| side.client == *who);
        let Some((index, _)) = side else {
            return Vec::new();
        };
        self.end_lease(tag);
        let side = self
            .pairs
            .get_mut(tag)
            .and_then(|pair| pair.sides.get_mut(index)?.take());
        if let Some(side) = side {
            self.give_back(&side);
        }
        let told = self.tell_state(tag);
        self.drop_if_empty(tag);
        told
    }

    fn end_lease(&mut self, tag: &Tag) {
        let Some(pair) = self.pairs.get_mut(tag) else {
            return;
        };
        let Some(lease) = pair.lease.take() else {
            return;
        };
        for side in pair.sides.iter().flatten() {
            self.used.remove(&(side.client.identity, lease.port));
        }
        self.by_allocation.remove(&lease.allocation);
        self.load
            .iter_mut()
            .skip(lease.port)
            .take(1)
            .for_each(|load| *load = load.saturating_sub(1));
        lease.due.map(|due| self.due.remove(&(due, *tag)));
        self.commands.push_back((
            lease.port,
            Command::Close {
                allocation: lease.allocation,
            },
        ));
    }

    fn drop_if_empty(&mut self, tag: &Tag) {
        if self
            .pairs
            .get(tag)
            .is_some_and(|pair| pair.sides.iter().all(Option::is_none))
        {
            self.pairs.remove(tag);
        }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Offers that are to be repeated.
    pub(super) fn due(&mut self, now: Time) -> Pushes {
        let mut told = Vec::new();
        while let Some((_, tag)) = self.due.first().filter(|(due, _)| *due <= now).copied() {
            self.due.pop_first();
            let Some(lease) = self
                .pairs
                .get_mut(&tag)
                .and_then(|pair| pair.lease.as_mut())
            else {
                continue;
            };
            lease.tries += 1;
            lease.due = RESEND.get(lease.tries).map(|wait| now + *wait);
            self.due.extend(lease.due.map(|due| (due, tag)));
            told.extend(self.offers(&tag, None));
        }
        told
    }

    /// Forgets wishes that were not repeated, among the next few pairs. Allocations end at their
    /// port.
    pub(super) fn sweep(&mut self, now: Time) {
        let from = self.sweep_after.map_or(Bound::Unbounded, Bound::Excluded);
        let tags: Vec<Tag> = self
            .pairs
            .range((from, Bound::Unbounded))
            .take(SWEEP_SIZE)
            .map(|(tag, _)| *tag)
            .collect();
        self.sweep_after = (tags.len() == SWEEP_SIZE)
            .then(|| tags.last().copied())
            .flatten();
        for tag in tags {
            let Some(pair) = self.pairs.get_mut(&tag).filter(|pair| pair.lease.is_none()) else {
                continue;
            };
            let gone = pair
                .sides
                .each_mut()
                .map(|side| side.take_if(|side| now >= side.expires));
            gone.iter().flatten().for_each(|side| self.give_back(side));
            self.drop_if_empty(&tag);
        }
    }

    /// Ends the relays of clients that are no longer admitted. The other sides notice that their
    /// ports are silent.
    pub(super) fn retain(&mut self, may_stay: impl Fn(&PeerKey, SecretNumber) -> bool) {
        let may_stay = |side: &Side| may_stay(&side.client.identity, side.secret);
        let sides = self
            .pairs
            .iter()
            .flat_map(|(tag, pair)| pair.sides.iter().flatten().map(|side| (side, *tag)));
        let gone: Vec<(ClientId, Tag)> = sides
            .filter(|(side, _)| !may_stay(side))
            .map(|(side, tag)| (side.client, tag))
            .collect();
        for (who, tag) in gone {
            self.withdraw(&who, &tag);
        }
    }

    fn give_back(&mut self, side: &Side) {
        self.clients.give_back(&side.client.identity);
        self.networks.give_back(&side.network);
        self.sites.give_back(&side.network.site());
    }
}

impl Pair {
    fn side_mut(&mut self, who: &PeerKey) -> Option<(usize, &mut Side)> {
        let sides = self.sides.iter_mut().enumerate();
        sides
            .filter_map(|(index, side)| Some((index, side.as_mut()?)))
            .find(|(_, side)| side.client.identity == *who)
    }

    /// Both sides want it.
    fn is_whole(&self, now: Time) -> bool {
        self.sides
            .iter()
            .all(|side| side.as_ref().is_some_and(|side| now < side.expires))
    }
}

impl Lease {
    fn state(&self) -> RelayState {
        if self.both_bound {
            RelayState::Bound
        } else {
            RelayState::Offered
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng as _;

    use super::*;

    #[test]
    fn the_share_of_a_network_follows_a_client_that_moves() {
        let (mut relays, mut rng) = (Relays::default(), ChaCha20Rng::from_seed([1; 32]));
        relays.set_ports(vec![9_100]);
        let limits = Limits {
            relays_per_network: 1,
            ..Limits::default()
        };
        let mut ask = |n: u8, address: &str| {
            let client = ClientId {
                identity: PeerKey::from_bytes([n; 32]),
                v6: false,
            };
            let who = Sender {
                client,
                address: address.parse().unwrap(),
                secret: 1,
                ticket: 1,
            };
            let told = relays.ask(
                &who,
                [n; 16],
                RelayUse::Standby,
                &limits,
                &mut rng,
                Time::ZERO,
            );
            told.iter().all(|(_, notice)| {
                !matches!(
                    notice,
                    Notice::RelayState {
                        state: RelayState::Refused,
                        ..
                    }
                )
            })
        };
        assert!(ask(1, "192.0.2.1:1") && !ask(2, "192.0.2.1:2"));
        assert!(
            ask(1, "198.51.100.1:1"),
            "what is there is kept where it goes"
        );
        assert!(ask(2, "192.0.2.1:2") && !ask(3, "198.51.100.1:3"));
    }
}
