use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use super::*;
use crate::nat::stun::Tokens;
use crate::ports::Pinning;

const SERVER: &str = "198.51.100.1:3478";
const HOUR: Duration = Duration::from_secs(3_600);

/// A node behind a NAT, and a server.
struct World {
    lifetimes: Lifetimes,
    ports: SourcePorts,
    rng: ChaCha20Rng,
    tokens: Option<Tokens>,
    now: Time,
    /// How long the NAT holds a mapping.
    nat: Duration,
    outside: IpAddr,
    /// The port inside and the port outside of each mapping, and its last packet.
    mappings: BTreeMap<u16, (u16, Time)>,
    sent: usize,
    most_open: usize,
    /// Nothing passes from this moment to that one.
    outage: Option<(Time, Time)>,
}

impl World {
    fn new(nat: u64) -> Self {
        let mut ports = SourcePorts::default();
        ports.pinning = Pinning::Possible;
        Self {
            lifetimes: Lifetimes::new(crate::nat::owner(0)),
            ports,
            rng: ChaCha20Rng::from_seed([3; 32]),
            tokens: Some(Tokens::new([9; 32])),
            now: Time::from_millis(1_000_000),
            nat: Duration::from_secs(nat),
            outside: "203.0.113.1".parse().unwrap(),
            mappings: BTreeMap::new(),
            sent: 0,
            most_open: 0,
            outage: None,
        }
    }

    /// The mapping of a port outside, if the NAT still has it.
    fn inside(&self, outside: u16) -> Option<u16> {
        let held = |at: Time| self.now.since(at) < self.nat;
        let found = self
            .mappings
            .iter()
            .find(|(_, (port, at))| *port == outside && held(*at));
        found.map(|(inside, _)| *inside)
    }

    fn leave(&mut self, inside: u16) -> SocketAddr {
        let fresh = 20_000 + self.sent as u16;
        let known = self.mappings.get(&inside);
        let outside = known
            .filter(|(port, _)| self.inside(*port) == Some(inside))
            .map_or(fresh, |(port, _)| *port);
        self.mappings.insert(inside, (outside, self.now));
        SocketAddr::new(self.outside, outside)
    }

    fn step(&mut self, server: SocketAddr) {
        let Self {
            lifetimes,
            ports,
            rng,
            now,
            ..
        } = self;
        let mut out = Vec::new();
        lifetimes.handle_timeout(
            || vec![server],
            true,
            ports,
            rng,
            *now,
            |transmit| out.push(transmit),
        );
        let open = self.ports.take_changed().map_or(0, |open| open.len());
        self.most_open = self.most_open.max(open);
        for transmit in out {
            self.sent += 1;
            if self
                .outage
                .is_some_and(|(from, to)| from <= self.now && self.now < to)
            {
                continue;
            }
            let source = self.leave(transmit.path.pin().unwrap().get());
            let request = &transmit.payload;
            let by_token = self
                .tokens
                .as_ref()
                .and_then(|t| t.respond(request, source, self.now));
            let answer = by_token.or_else(|| {
                let here = stun::Origins {
                    here: server,
                    other_port: None,
                    other_ip: None,
                    other: None,
                };
                let (answer, _) = stun::respond_from(request, source, &here, request.len())?;
                Some((answer, source))
            });
            let Some((answer, to)) = answer else { continue };
            let Some(inside) = self.inside(to.port()) else {
                continue;
            };
            let path = PathId::from_port(NonZeroU16::new(inside).unwrap(), server);
            let Self {
                lifetimes,
                ports,
                rng,
                now,
                ..
            } = self;
            lifetimes.handle_answer(path, &answer, ports, rng, *now);
        }
    }

    fn run(&mut self, time: Duration) {
        let (server, end) = (SERVER.parse().unwrap(), self.now + time);
        self.step(server);
        while let Some(next) = self.lifetimes.next_timeout().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.step(server);
        }
        self.now = end;
    }
}

#[test]
fn the_longest_silence_that_a_nat_outlives_is_found_within_minutes_and_few_packets() {
    for (nat, found) in [
        (10, 8),
        (15, 13),
        (20, 18),
        (30, 28),
        (35, 34),
        (60, 58),
        (65, 58),
        (90, 85),
        (120, 110),
        (3_600, 110),
    ] {
        let mut world = World::new(nat);
        world.run(Duration::from_secs(420));
        assert_eq!(world.lifetimes.known(), Some(found), "{nat} s");
        let most = if found == 110 { 4 } else { 40 };
        assert!(world.sent <= most, "{nat} s: {} packets", world.sent);
        assert_eq!(world.most_open, 2, "ports at a time");
        let open = world.ports.take_changed();
        assert!(open.is_none_or(|open| open.is_empty()), "none is left open");
    }
}

#[test]
fn nothing_is_known_of_a_nat_that_forgets_sooner_than_is_tried() {
    let mut world = World::new(5);
    world.run(HOUR);
    assert_eq!(world.lifetimes.known(), None);
}

#[test]
fn a_server_that_can_not_send_to_another_port_tells_nothing_and_is_soon_left_alone() {
    let mut world = World::new(120);
    world.tokens = None;
    world.run(HOUR);
    assert_eq!(world.lifetimes.known(), None);
    assert!(world.sent <= 8, "{} packets in an hour", world.sent);
}

#[test]
fn an_outage_during_the_silence_is_not_taken_for_a_short_lifetime() {
    let mut world = World::new(120);
    let from = world.now + Duration::from_secs(60);
    world.outage = Some((from, from + Duration::from_secs(120)));
    world.run(Duration::from_secs(300));
    assert_eq!(world.lifetimes.known(), None, "not measured yet");
    world.run(Duration::from_secs(600));
    assert_eq!(world.lifetimes.known(), Some(110));
}

#[test]
fn what_was_measured_is_remembered_of_each_network_and_forgotten_when_it_is_doubted() {
    let mut world = World::new(30);
    world.run(HOUR);
    assert_eq!(world.lifetimes.known(), Some(28));
    let elsewhere = |world: &mut World, outside: &str, nat: u64| {
        world.outside = outside.parse().unwrap();
        world.nat = Duration::from_secs(nat);
        world.mappings.clear();
        world.lifetimes.restart(&mut world.ports, world.now);
    };
    elsewhere(&mut world, "203.0.113.2", 120);
    world.run(Duration::from_secs(60));
    assert_eq!(world.lifetimes.known(), None, "another network");
    world.run(HOUR);
    assert_eq!(world.lifetimes.known(), Some(110));
    elsewhere(&mut world, "203.0.113.1", 30);
    world.run(Duration::from_secs(35));
    assert_eq!(world.lifetimes.known(), Some(28), "at home again");
    world.lifetimes.doubt(&mut world.ports, world.now);
    world.run(Duration::from_secs(35));
    assert_eq!(world.lifetimes.known(), None);
    world.nat = Duration::from_secs(15);
    world.run(HOUR);
    assert_eq!(world.lifetimes.known(), Some(13));
}

#[test]
fn what_is_known_is_tried_again_each_half_an_hour_and_measured_anew_where_it_is_not_true_any_more()
{
    let mut world = World::new(120);
    world.run(HOUR);
    world.sent = 0;
    world.run(HOUR * 10);
    assert_eq!(world.lifetimes.known(), Some(110));
    assert!(world.sent <= 84, "{} packets in ten hours", world.sent);
    world.nat = Duration::from_secs(20);
    world.run(HOUR * 2);
    assert_eq!(world.lifetimes.known(), Some(18));
}

#[test]
fn nothing_is_sent_while_nothing_is_to_be_held() {
    let mut world = World::new(120);
    let World {
        lifetimes,
        ports,
        rng,
        now,
        ..
    } = &mut world;
    let servers = vec![SERVER.parse().unwrap()];
    for seconds in 0..600 {
        let at = *now + Duration::from_secs(seconds);
        lifetimes.handle_timeout(
            || servers.clone(),
            false,
            ports,
            rng,
            at,
            |_| panic!("a packet"),
        );
    }
}
