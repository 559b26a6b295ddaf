use super::*;

const MAPPINGS: [Mapping; 3] = [
    Mapping::EndpointIndependent,
    Mapping::AddressDependent,
    Mapping::AddressAndPortDependent,
];
const FILTERINGS: [Filtering; 3] = [
    Filtering::EndpointIndependent,
    Filtering::AddressDependent,
    Filtering::AddressAndPortDependent,
];

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

struct Lab {
    nat: Nat,
    random: Random,
}

impl Lab {
    fn new(config: NatConfig) -> Self {
        let mut random = Random::new(7, 0);
        Self {
            nat: Nat::new(config, "203.0.113.1".parse().unwrap(), &mut random),
            random,
        }
    }

    fn out(&mut self, remote: &str, now: u64) -> Result<SocketAddr, Refusal> {
        self.nat.outbound(
            address("10.0.0.2:4000"),
            address(remote),
            at(now),
            &mut self.random,
        )
    }

    fn enter(&mut self, remote: &str, to: SocketAddr, now: u64) -> Result<SocketAddr, Refusal> {
        self.nat.inbound(address(remote), to, at(now))
    }
}

#[test]
fn a_mapping_is_reused_as_its_behaviour_says() {
    for mapping in MAPPINGS {
        let random = Allocation::Random {
            low: 2000,
            high: 60_000,
        };
        let mut lab = Lab::new(NatConfig::new(
            mapping,
            Filtering::AddressAndPortDependent,
            random,
        ));
        let first = lab.out("198.51.100.1:1", 0).unwrap();
        let other_port = lab.out("198.51.100.1:2", 0).unwrap();
        let other_host = lab.out("198.51.100.2:1", 0).unwrap();
        assert_eq!(lab.out("198.51.100.1:1", 1).unwrap(), first, "{mapping:?}");
        assert_eq!(
            first == other_port,
            mapping != Mapping::AddressAndPortDependent,
            "{mapping:?}"
        );
        assert_eq!(
            first == other_host,
            mapping == Mapping::EndpointIndependent,
            "{mapping:?}"
        );
    }
}

#[test]
fn a_packet_gets_in_as_the_filtering_says() {
    for filtering in FILTERINGS {
        let mut lab = Lab::new(NatConfig::new(
            Mapping::EndpointIndependent,
            filtering,
            Allocation::Preserve,
        ));
        let outside = lab.out("198.51.100.1:1", 0).unwrap();
        assert_eq!(outside.port(), 4000);
        let inside = address("10.0.0.2:4000");
        assert_eq!(lab.enter("198.51.100.1:1", outside, 1), Ok(inside));
        assert_eq!(
            lab.enter("198.51.100.1:2", outside, 1).is_ok(),
            filtering != Filtering::AddressAndPortDependent
        );
        assert_eq!(
            lab.enter("198.51.100.2:1", outside, 1).is_ok(),
            filtering == Filtering::EndpointIndependent
        );
        assert_eq!(
            lab.enter("198.51.100.1:1", address("203.0.113.1:4001"), 1),
            Err(Refusal::NoMapping)
        );
    }
}

#[test]
fn ports_are_allocated_as_configured() {
    let mapping = Mapping::AddressAndPortDependent;
    let filtering = Filtering::AddressAndPortDependent;
    let mut sequential = Lab::new(NatConfig::new(
        mapping,
        filtering,
        Allocation::Sequential { step: 2 },
    ));
    let first = sequential.out("198.51.100.1:1", 0).unwrap().port();
    assert_eq!(
        sequential.out("198.51.100.1:2", 0).unwrap().port(),
        first + 2
    );
    let mut block = Lab::new(NatConfig::new(
        mapping,
        filtering,
        Allocation::Block { size: 64 },
    ));
    let ports: Vec<_> = (1..=64)
        .map(|port| {
            block
                .out(&format!("198.51.100.1:{port}"), 0)
                .unwrap()
                .port()
        })
        .collect();
    assert_eq!(
        ports.iter().max().unwrap() - ports.iter().min().unwrap(),
        63
    );
    assert_eq!(block.out("198.51.100.1:65", 0), Err(Refusal::TableFull));
    let mut preserve = Lab::new(NatConfig::home());
    preserve.out("198.51.100.1:1", 0).unwrap();
    let second_host = preserve.nat.outbound(
        address("10.0.0.3:4000"),
        address("198.51.100.1:1"),
        at(0),
        &mut preserve.random,
    );
    assert_ne!(second_host.unwrap().port(), 4000);
}

#[test]
fn an_answer_leaves_by_the_port_at_which_the_question_came_in() {
    let random = Allocation::Random {
        low: 2000,
        high: 60_000,
    };
    let config = NatConfig::new(
        Mapping::AddressAndPortDependent,
        Filtering::EndpointIndependent,
        random,
    );
    let mut lab = Lab::new(config);
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    lab.enter("198.51.100.9:9", outside, 0).unwrap();
    assert_eq!(lab.out("198.51.100.9:9", 0), Ok(outside));
}

#[test]
fn a_session_lives_longer_once_it_was_answered() {
    let mut lab = Lab::new(NatConfig::home());
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    assert!(lab.enter("198.51.100.1:1", outside, 31).is_err());
    lab.out("198.51.100.1:1", 40).unwrap();
    lab.enter("198.51.100.1:1", outside, 41).unwrap();
    lab.enter("198.51.100.1:1", outside, 160).unwrap();
    assert!(lab.enter("198.51.100.1:1", outside, 281).is_err());
    assert_eq!(lab.nat.sessions(at(281)), 0);
}

#[test]
fn without_inbound_refresh_only_the_inside_keeps_a_session_alive() {
    let timers = Timers {
        refresh_inbound: false,
        ..Timers::LINUX
    };
    let mut lab = Lab::new(NatConfig {
        timers,
        ..NatConfig::home()
    });
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    lab.enter("198.51.100.1:1", outside, 29).unwrap();
    assert!(lab.enter("198.51.100.1:1", outside, 31).is_err());
}

#[test]
fn an_early_packet_poisons_exactly_the_session_that_was_wanted() {
    for (config, poisoned) in [
        (NatConfig::home(), false),
        (NatConfig::home().poisoned(), true),
    ] {
        let mut lab = Lab::new(config);
        let outside = lab.out("198.51.100.1:1", 0).unwrap();
        assert_eq!(
            lab.enter("198.51.100.9:9", outside, 1),
            Err(Refusal::Filtered)
        );
        let towards_peer = lab.out("198.51.100.9:9", 2).unwrap();
        assert_eq!(towards_peer != outside, poisoned);
        assert_eq!(
            lab.out("198.51.100.8:9", 2),
            Ok(outside),
            "other sessions keep the port"
        );
    }
}

#[test]
fn a_poisoned_session_heals_after_silence() {
    let mut lab = Lab::new(NatConfig::home().poisoned());
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    lab.enter("198.51.100.9:9", outside, 1).unwrap_err();
    lab.out("198.51.100.1:1", 20).unwrap();
    assert_eq!(lab.out("198.51.100.9:9", 32), Ok(outside));
}

#[test]
fn a_firewall_translates_nothing_and_lets_answers_in() {
    let mut lab = Lab::new(NatConfig::firewall());
    let inside = address("10.0.0.2:4000");
    assert_eq!(
        lab.enter("198.51.100.1:1", inside, 0),
        Err(Refusal::NoMapping)
    );
    assert_eq!(lab.out("198.51.100.1:1", 0), Ok(inside));
    assert_eq!(lab.enter("198.51.100.1:1", inside, 1), Ok(inside));
    assert!(lab.enter("198.51.100.1:2", inside, 1).is_err());
}

#[test]
fn a_full_table_refuses_and_a_reboot_empties_it() {
    let mut lab = Lab::new(NatConfig {
        table_size: 2,
        ..NatConfig::home()
    });
    lab.out("198.51.100.1:1", 0).unwrap();
    lab.out("198.51.100.1:2", 0).unwrap();
    assert_eq!(lab.out("198.51.100.1:3", 0), Err(Refusal::TableFull));
    lab.nat
        .reboot("203.0.113.2".parse().unwrap(), &mut lab.random);
    assert_eq!(
        lab.out("198.51.100.1:3", 0).unwrap().ip(),
        "203.0.113.2".parse::<IpAddr>().unwrap()
    );
}

#[test]
fn a_hairpin_shows_the_external_source() {
    let (inside_a, inside_b) = (address("10.0.0.2:4000"), address("10.0.0.3:4001"));
    let server = address("198.51.100.1:1");
    let mut lab = Lab::new(NatConfig::full_cone().with_hairpin());
    let outside_a = lab
        .nat
        .outbound(inside_a, server, at(0), &mut lab.random)
        .unwrap();
    let outside_b = lab
        .nat
        .outbound(inside_b, server, at(0), &mut lab.random)
        .unwrap();
    assert_eq!(
        lab.nat.hairpin(inside_a, outside_b, at(0), &mut lab.random),
        Ok((outside_a, inside_b))
    );
    let mut without = Lab::new(NatConfig::full_cone());
    assert_eq!(
        without
            .nat
            .hairpin(inside_a, outside_b, at(0), &mut without.random),
        Err(Refusal::NoHairpin)
    );
}
