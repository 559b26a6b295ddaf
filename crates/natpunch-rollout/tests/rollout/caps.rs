//! Which changes need a word, at which numbers, and what a refusal says.

use crate::support::{Instance, Version, address, login, peer, route};
use natpunch_rollout::{Login, refusals};
use natpunch_types::Consent;

fn mesh(peers: u8) -> Version {
    Version::new(1, (1..=peers).map(peer))
}

/// What the change needs a word for, and what it says.
fn needs(before: &Version, after: &Version, logins: &[Login]) -> Vec<(Consent, String)> {
    let needs = refusals(Some(&before.facts), &after.facts, logins, &[]);
    needs.into_iter().map(|n| (n.consent, n.what)).collect()
}

fn words(before: &Version, after: &Version, logins: &[Login]) -> Vec<Consent> {
    let needs = needs(before, after, logins);
    needs.into_iter().map(|(consent, _)| consent).collect()
}

#[test]
fn three_in_ten_peers_may_go_at_once_and_one_always() {
    for (before, after, expected) in [
        (10, 7, None),
        (10, 6, Some(Consent::MassRemoval)),
        (20, 14, None),
        (20, 13, Some(Consent::MassRemoval)),
        (2, 1, None),
        (3, 1, Some(Consent::MassRemoval)),
        (1, 0, Some(Consent::EmptyMesh)),
        (3, 0, Some(Consent::EmptyMesh)),
        (0, 0, None),
        (0, 5, None),
        (2, 9, None),
    ] {
        let found = words(&mesh(before), &mesh(after), &[]);
        let expected: Vec<Consent> = expected.into_iter().collect();
        assert_eq!(found, expected, "from {before} to {after}");
    }
}

#[test]
fn a_peer_is_not_removed_by_another_name_or_another_key() {
    let renamed = mesh(3).with(2, |v| {
        for peer in &mut v.facts.peers {
            peer.name.push('x');
        }
    });
    assert_eq!(words(&mesh(3), &renamed, &[]), []);
    let rekeyed = mesh(3).with(2, |v| {
        for (number, peer) in (100..).zip(&mut v.facts.peers) {
            peer.key = natpunch_types::PeerKey::from_bytes([number; 32]);
        }
    });
    assert_eq!(words(&mesh(3), &rekeyed, &[]), []);
}

#[test]
fn a_refusal_names_five_peers_and_counts_the_rest() {
    let removed = |from: u8, to: u8| needs(&mesh(from), &mesh(to), &[])[0].1.clone();
    assert_eq!(removed(7, 2), "it removes 5 of 7 peers: p3, p4, p5, p6, p7");
    assert_eq!(
        removed(9, 2),
        "it removes 7 of 9 peers: p3, p4, p5, p6, p7 and 2 more"
    );
    assert_eq!(removed(4, 0), "it removes all 4 peers");
}

#[test]
fn a_critical_peer_and_the_last_way_to_find_it_stay() {
    let critical = |change: fn(&mut Version)| {
        mesh(4).with(1, |v| {
            v.peer(4).critical = true;
            change(v);
        })
    };
    let lost = [(
        Consent::CriticalRemoval,
        "it removes critical peers, or the last way to find them: p4".to_owned(),
    )];
    let found = critical(|_| {});
    let gone = found.with(2, |v| v.facts.peers.retain(|peer| peer.name != "p4"));
    assert_eq!(needs(&found, &gone, &[]), lost);
    let no_discovery = found.with(2, |v| v.facts.node.discovery.clear());
    assert_eq!(needs(&found, &no_discovery, &[]), lost);
    let plain = found.with(2, |v| v.peer(4).managed = false);
    assert_eq!(needs(&found, &plain, &[]), lost, "it asks no discovery");
    let pinned = found.with(2, |v| {
        v.facts.node.discovery.clear();
        v.peer(4).endpoint = Some("192.0.2.1:1".into());
    });
    assert_eq!(needs(&found, &pinned, &[]), [], "the file names it");
    // What could not be found before is not lost.
    let lone = critical(|v| v.facts.node.discovery.clear());
    let still = lone.with(2, |v| v.facts.node.mtu = 1300);
    assert_eq!(needs(&lone, &still, &[]), []);
    let other = found.with(2, |v| v.facts.peers.retain(|peer| peer.name != "p1"));
    assert_eq!(needs(&found, &other, &[]), [], "p1 is not critical");
    let blind = found.with(2, |v| {
        v.facts.node.discovery.insert("rv".into(), Instance::BLIND);
    });
    assert_eq!(needs(&found, &blind, &[]), lost, "it finds no peers");
}

#[test]
fn a_login_needs_the_peer_of_the_most_exact_route() {
    let before = mesh(4).with(1, |v| {
        route(v.peer(1), "172.20.0.0/16");
        route(v.peer(2), "172.20.1.0/24");
        route(v.peer(3), "fe80::/64");
    });
    let without = |name: &str| {
        let mut after = before.clone();
        after.facts.peers.retain(|peer| peer.name != name);
        after
    };
    for (from, carrier) in [
        ("172.20.1.7", "p2"),
        ("172.20.2.7", "p1"),
        ("fe80::7%eth0", "p3"),
    ] {
        for name in ["p1", "p2", "p3", "p4"] {
            let expected: &[Consent] = if name == carrier {
                &[Consent::OperatorRemoval]
            } else {
                &[]
            };
            let found = words(&before, &without(name), &[login(from)]);
            assert_eq!(found, expected, "{from} without {name}");
        }
    }
}

#[test]
fn an_address_that_moves_takes_a_login_along_and_one_that_goes_does_not() {
    let moved = mesh(4).with(2, |v| {
        v.peer(1).addresses = vec![address(77)];
        v.peer(1).allowed_ips = vec![address(77).into()];
    });
    let gone = mesh(4).with(2, |v| {
        v.peer(1).addresses.clear();
        v.peer(1).allowed_ips.clear();
    });
    let logins = [login("10.77.0.1")];
    assert_eq!(words(&mesh(4), &moved, &logins), []);
    assert_eq!(words(&mesh(4), &gone, &logins), [Consent::OperatorRemoval]);
    // An address behind the peer does not move with one of its own.
    let behind = mesh(4).with(1, |v| route(v.peer(1), "172.20.1.0/24"));
    let logins = [login("172.20.1.7")];
    assert_eq!(words(&behind, &moved, &logins), [Consent::OperatorRemoval]);
}

#[test]
fn half_of_the_internet_is_a_default_route_and_the_routes_that_make_it_are_named() {
    let before = mesh(4).with(1, |v| route(v.peer(1), "0.0.0.0/2"));
    let after = before.with(2, |v| {
        route(v.peer(2), "64.0.0.0/3");
        route(v.peer(3), "96.0.0.0/3");
        route(v.peer(3), "10.9.0.0/16");
    });
    let said = "it sends everything, or half of everything, into the mesh: route 64.0.0.0/3, \
                96.0.0.0/3";
    assert_eq!(
        needs(&before, &after, &[]),
        [(Consent::DefaultRoute, said.to_owned())]
    );
    let less = before.with(2, |v| {
        route(v.peer(2), "64.0.0.0/3");
        route(v.peer(3), "96.0.0.0/4");
    });
    assert_eq!(needs(&before, &less, &[]), [], "less than half");
    let all = after.with(3, |v| route(v.peer(2), "0.0.0.0/0"));
    assert_eq!(words(&after, &all, &[]), [Consent::DefaultRoute], "more");
    assert_eq!(words(&all, &after, &[]), [], "and less is none");
    // Twice the same is not twice as much.
    let twice = mesh(4).with(2, |v| {
        route(v.peer(1), "0.0.0.0/2");
        route(v.peer(2), "0.0.0.0/2");
    });
    assert_eq!(words(&mesh(4), &twice, &[]), []);
}

#[test]
fn the_word_for_one_thing_is_none_for_another() {
    let after = mesh(1).with(2, |v| route(v.peer(1), "0.0.0.0/0"));
    let consents = |allow: &[Consent], file: &[Consent]| {
        let mut after = after.clone();
        after.facts.rules.allow = file.to_vec();
        let needs = refusals(Some(&mesh(5).facts), &after.facts, &[], allow);
        needs.into_iter().map(|n| n.consent).collect::<Vec<_>>()
    };
    let (removal, default) = (Consent::MassRemoval, Consent::DefaultRoute);
    assert_eq!(consents(&[], &[]), [removal, default]);
    assert_eq!(consents(&[removal], &[]), [default]);
    assert_eq!(consents(&[], &[removal]), [default]);
    assert_eq!(consents(&[default], &[removal]), []);
}
