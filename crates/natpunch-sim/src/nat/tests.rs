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

#[test]
fn of_a_pool_a_host_keeps_its_address_or_gets_another_with_each_mapping() {
    for (pool, keeps) in [(Pool::Paired(4), true), (Pool::Arbitrary(4), false)] {
        let mut lab = Lab::new(NatConfig::symmetric().with_pool(pool));
        let addresses: std::collections::BTreeSet<_> = (1..40)
            .map(|port| lab.out(&format!("198.51.100.1:{port}"), 0).unwrap().ip())
            .collect();
        assert_eq!(addresses.len() == 1, keeps, "{addresses:?}");
        let all: Vec<_> = lab.nat.addresses().collect();
        assert_eq!(all.len(), 4);
        assert!(addresses.iter().all(|address| all.contains(address)));
    }
}

#[test]
fn an_answer_comes_in_at_the_address_of_the_pool_that_the_question_left_from() {
    let mut lab = Lab::new(NatConfig::symmetric().with_pool(Pool::Arbitrary(8)));
    for port in 1..20 {
        let remote = format!("198.51.100.1:{port}");
        let outside = lab.out(&remote, 0).unwrap();
        assert_eq!(lab.enter(&remote, outside, 1), Ok(address("10.0.0.2:4000")));
    }
}

#[test]
fn a_neighbour_with_the_same_port_costs_it_towards_their_servers_only() {
    let contended = NatConfig {
        allocation: Allocation::Contended {
            servers: [198, 51, 100],
        },
        ..NatConfig::home()
    };
    let mut lab = Lab::new(contended);
    let server = lab.out("198.51.100.1:1", 0).unwrap();
    assert_ne!(server.port(), 4000);
    assert_eq!(lab.out("198.51.100.1:2", 0), Ok(server));
    assert_ne!(lab.out("198.51.100.2:1", 0).unwrap().port(), 4000);
    assert_eq!(lab.out("203.0.113.9:1", 0).unwrap().port(), 4000);
    let other_port = lab.nat.outbound(
        address("10.0.0.2:4001"),
        address("198.51.100.1:1"),
        at(0),
        &mut lab.random,
    );
    assert_eq!(other_port.unwrap().port(), 4001);
    let outside = lab.nat.outside();
    lab.nat.reboot(outside, &mut lab.random);
    lab.out("203.0.113.9:1", 60).unwrap();
    assert_ne!(lab.out("198.51.100.1:1", 60).unwrap().port(), 4000);
}

#[test]
fn an_address_that_sends_too_much_unexpected_is_shut_out_for_a_while() {
    let guard = Unsolicited::Blacklist {
        per_second: 10,
        duration: at(60),
    };
    let mut lab = Lab::new(NatConfig::home().with_unsolicited(guard));
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    let inside = Ok(address("10.0.0.2:4000"));
    for second in 1..5 {
        for port in 100..110 {
            let stranger = format!("198.51.100.1:{port}");
            assert_eq!(
                lab.enter(&stranger, outside, second),
                Err(Refusal::Filtered)
            );
        }
        assert_eq!(lab.enter("198.51.100.1:1", outside, second), inside);
    }
    lab.enter("198.51.100.1:99", outside, 4).unwrap_err();
    assert_eq!(
        lab.enter("198.51.100.1:1", outside, 4),
        Err(Refusal::Blacklisted)
    );
    lab.out("198.51.100.1:1", 63).unwrap();
    assert_eq!(
        lab.enter("198.51.100.2:1", outside, 63),
        Err(Refusal::Filtered),
        "nobody else is"
    );
    assert_eq!(lab.enter("198.51.100.1:1", outside, 65), inside);
}

#[test]
fn a_full_table_evicts_what_its_policy_says() {
    for (when_full, evicts_unanswered, evicts_answered) in [
        (WhenFull::Refuse, false, false),
        (WhenFull::EvictUnanswered, true, false),
        (WhenFull::EvictAny, true, true),
    ] {
        for answered in [false, true] {
            let mut lab = Lab::new(NatConfig {
                table_size: 2,
                when_full,
                ..NatConfig::home()
            });
            for (remote, now) in [("198.51.100.1:1", 0), ("198.51.100.1:2", 1)] {
                let outside = lab.out(remote, now).unwrap();
                if answered {
                    lab.enter(remote, outside, now).unwrap();
                }
            }
            let expected = if answered {
                evicts_answered
            } else {
                evicts_unanswered
            };
            let third = lab.out("198.51.100.1:3", 2);
            assert_eq!(
                third.is_ok(),
                expected,
                "{when_full:?} {answered}: {third:?}"
            );
            let outside = address("203.0.113.1:4000");
            assert_eq!(lab.enter("198.51.100.1:1", outside, 2).is_err(), expected);
            assert!(lab.enter("198.51.100.1:2", outside, 2).is_ok());
            assert_eq!(lab.nat.most_sessions(), 2);
        }
    }
}

#[test]
fn an_icmp_error_is_let_in_for_a_session_and_ends_it_only_where_that_is_the_nats_way() {
    for icmp_closes in [false, true] {
        let mut lab = Lab::new(NatConfig {
            icmp_closes,
            ..NatConfig::home()
        });
        let outside = lab.out("198.51.100.1:1", 0).unwrap();
        lab.out("198.51.100.2:2", 0).unwrap();
        let mut error = |remote| lab.nat.inbound_error(outside, address(remote), at(1));
        assert_eq!(error("198.51.100.9:9"), Err(Refusal::Filtered));
        assert_eq!(error("198.51.100.1:1"), Ok(address("10.0.0.2:4000")));
        assert_eq!(
            lab.enter("198.51.100.1:1", outside, 1).is_err(),
            icmp_closes
        );
        assert!(lab.enter("198.51.100.2:2", outside, 1).is_ok());
    }
}

#[test]
fn without_refresh_a_session_ends_however_much_it_is_used() {
    let timers = Timers {
        refresh_outbound: false,
        refresh_inbound: false,
        ..Timers::LINUX
    };
    let mut lab = Lab::new(NatConfig {
        timers,
        ..NatConfig::home()
    });
    let outside = lab.out("198.51.100.1:1", 0).unwrap();
    for now in 1..30 {
        lab.out("198.51.100.1:1", now).unwrap();
        lab.enter("198.51.100.1:1", outside, now).unwrap();
    }
    assert!(lab.enter("198.51.100.1:1", outside, 31).is_err());
}

#[test]
fn the_mappings_of_other_hosts_come_as_a_poisson_process() {
    const ROUNDS: u32 = 10_000;
    let (flows, seconds) = (20.0, 2);
    let mut lab = Lab::new(NatConfig {
        background: 20,
        allocation: Allocation::Sequential { step: 1 },
        ..NatConfig::symmetric()
    });
    let mut taken = Vec::new();
    let mut last: Option<u16> = None;
    for round in 0..ROUNDS {
        let now = u64::from(round) * seconds;
        let port = lab.out("198.51.100.1:1", now).unwrap().port();
        // Where the range ends the sequence begins anew.
        let others = last
            .filter(|last| *last < port)
            .map(|last| f64::from(port - last) - 1.0);
        taken.extend(others);
        last = Some(port);
        // Each round has a mapping of its own.
        lab.nat.mappings.clear();
        lab.nat.owners.clear();
        lab.nat.stored = 0;
    }
    let count = taken.len() as f64;
    let mean = taken.iter().sum::<f64>() / count;
    let variance = taken.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / count;
    let expected = flows * seconds as f64;
    assert!(
        (mean - expected).abs() < 3.0 * (expected / count).sqrt(),
        "{mean}"
    );
    // Of a Poisson process they are equal; the standard error of a variance is nearly this.
    let sigma = expected * (2.0 / count).sqrt();
    assert!((variance - expected).abs() < 3.0 * sigma, "{variance}");
}
