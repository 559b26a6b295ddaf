use std::collections::BTreeSet;
use std::net::IpAddr;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::nat::stun::{Origins, respond_from};

/// A NAT as far as a trial sees it, and the server behind it.
#[derive(Clone, Copy)]
struct World {
    filtering: Filtering,
    /// Another port for each destination.
    is_hard: bool,
    is_poisoned: bool,
    /// The server's other address and its other port, if it has them.
    addresses: bool,
    ports: bool,
    /// The server's other places say nothing, though it promises it.
    is_mute: bool,
    is_v6: bool,
}

const ONE_ADDRESS: World = World {
    filtering: Filtering::AddressAndPortDependent,
    is_hard: false,
    is_poisoned: false,
    addresses: false,
    ports: true,
    is_mute: false,
    is_v6: false,
};
const TWO: World = World {
    addresses: true,
    ..ONE_ADDRESS
};

impl World {
    fn place(&self, address: u16, port: u16) -> SocketAddr {
        let ip: IpAddr = match self.is_v6 {
            false => [198, 51, 100, address as u8].into(),
            true => [0x2001, 0xdb8, 0, 0, 0, 0, 0, address].into(),
        };
        SocketAddr::new(ip, port)
    }

    /// What a trial comes to, and how many packets it sends.
    fn outcome(&self) -> (Outcome, usize) {
        let mut rng = ChaCha20Rng::from_seed([7; 32]);
        let server = self.place(1, 3478);
        let origins = Origins {
            here: server,
            other_port: self.ports.then(|| self.place(1, 3479)),
            other_ip: self.addresses.then(|| self.place(2, 3478)),
            other: (self.addresses && self.ports).then(|| self.place(2, 3479)),
        };
        let mut now = Time::from_millis(1);
        let mut trial = Trial::new(server, &mut rng, now);
        let (mut sent, mut asked) = (0, BTreeSet::new());
        // Places whose packets a router has taken for its own, by the port that they came to.
        let mut spoilt: BTreeSet<SocketAddr> = BTreeSet::new();
        while let Some(next) = trial.next_timeout() {
            now = now.max(next);
            let Some(request) = trial.handle_timeout(&mut rng, now) else {
                continue;
            };
            sent += 1;
            let Request { from, to, payload } = request;
            let is_probe = from == End::Probe;
            let (inside, base) = if is_probe { (1, 40_000) } else { (2, 50_000) };
            asked.insert((inside, to));
            let is_moved = is_probe && spoilt.contains(&to) || self.is_hard && to != server;
            let outside = match is_moved {
                true => self.place(77, base + to.port() % 100 + to.ip().is_ipv6() as u16),
                false => self.place(77, base),
            };
            if self.is_mute && to != server {
                continue;
            }
            let here = Origins {
                here: to,
                ..origins
            };
            let (answer, change) = respond_from(&payload, outside, &here, payload.len()).unwrap();
            let origin = match (change.ip, change.port) {
                (false, false) => to,
                (false, true) => here.other_port.unwrap(),
                (true, _) => here.other.unwrap(),
            };
            let known_ip = asked
                .iter()
                .any(|(by, at)| *by == inside && at.ip() == origin.ip());
            let lets_in = match self.filtering {
                Filtering::EndpointIndependent => true,
                Filtering::AddressDependent | Filtering::NotByPort => known_ip,
                Filtering::AddressAndPortDependent => asked.contains(&(inside, origin)),
            };
            if lets_in && !(self.is_mute && origin != server) {
                now += Duration::from_millis(20);
                trial.handle_answer(from, origin, &answer, &mut rng, now);
            } else if self.is_poisoned && is_probe {
                spoilt.insert(origin);
            }
        }
        (trial.outcome().unwrap(), sent)
    }
}

fn found(filtering: Filtering, poison_prone: Option<bool>) -> Outcome {
    Outcome::Found(Found {
        filtering,
        poison_prone,
    })
}

#[test]
fn each_filter_is_told_by_a_server_with_two_addresses_and_by_one_with_two_ports_as_far_as_that_goes()
 {
    use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent, NotByPort};
    for is_v6 in [false, true] {
        for (truth, by_two, by_one) in [
            (EndpointIndependent, EndpointIndependent, NotByPort),
            (AddressDependent, AddressDependent, NotByPort),
            (
                AddressAndPortDependent,
                AddressAndPortDependent,
                AddressAndPortDependent,
            ),
        ] {
            let nat = |world: World| World {
                filtering: truth,
                is_v6,
                ..world
            };
            let poison = Some(false);
            let two = nat(TWO).outcome();
            assert_eq!(two.0, found(by_two, poison), "{truth:?}");
            let one = nat(ONE_ADDRESS).outcome();
            let seen = (truth == AddressAndPortDependent).then_some(false);
            assert_eq!(one.0, found(by_one, seen), "{truth:?}");
            assert!(two.1.max(one.1) <= 12, "{} packets", two.1);
        }
    }
}

#[test]
fn a_router_that_takes_unexpected_packets_for_its_own_is_told_from_one_that_drops_them() {
    use Filtering::{AddressAndPortDependent, AddressDependent};
    for world in [ONE_ADDRESS, TWO] {
        for is_poisoned in [false, true] {
            let nat = World {
                is_poisoned,
                ..world
            };
            let expected = found(AddressAndPortDependent, Some(is_poisoned));
            assert_eq!(nat.outcome().0, expected);
        }
    }
    let by_address = World {
        filtering: AddressDependent,
        is_poisoned: true,
        ..TWO
    };
    assert_eq!(by_address.outcome().0, found(AddressDependent, Some(true)));
}

#[test]
fn a_nat_that_has_another_port_for_each_destination_is_not_taken_for_poison_prone() {
    for is_poisoned in [false, true] {
        let symmetric = World {
            is_hard: true,
            is_poisoned,
            ..ONE_ADDRESS
        };
        let expected = found(Filtering::AddressAndPortDependent, None);
        assert_eq!(symmetric.outcome().0, expected);
    }
}

#[test]
fn a_server_with_one_place_or_with_a_mute_one_tells_nothing_of_a_filter() {
    for (addresses, ports) in [(false, false), (true, false)] {
        let server = World {
            addresses,
            ports,
            ..ONE_ADDRESS
        };
        assert_eq!(server.outcome().0, Outcome::Unfit);
    }
    for world in [ONE_ADDRESS, TWO] {
        let mute = World {
            is_mute: true,
            ..world
        };
        assert_eq!(mute.outcome().0, Outcome::Unfit);
    }
}

#[test]
fn a_server_that_says_nothing_and_answers_of_others_tell_nothing() {
    let mut rng = ChaCha20Rng::from_seed([8; 32]);
    let server: SocketAddr = "198.51.100.1:3478".parse().unwrap();
    let mut now = Time::from_millis(1);
    let mut trial = Trial::new(server, &mut rng, now);
    let other: SocketAddr = "198.51.100.1:3479".parse().unwrap();
    while let Some(next) = trial.next_timeout() {
        now = now.max(next);
        if let Some(request) = trial.handle_timeout(&mut rng, now) {
            let answer = stun::respond(&request.payload, other).unwrap();
            // Right words from the wrong place, and at the wrong port.
            trial.handle_answer(End::Probe, other, &answer, &mut rng, now);
            trial.handle_answer(End::Control, server, &answer, &mut rng, now);
            // Right place, another's words.
            let guess = stun::respond(&stun::request(TransactionId([1; 12])), other).unwrap();
            trial.handle_answer(End::Probe, server, &guess, &mut rng, now);
        }
    }
    assert_eq!(trial.outcome(), Some(Outcome::Void));
}
