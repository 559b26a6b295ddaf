//! What a change does to each peer, fact by fact.

use crate::support::{Instance, Version, moment, net, peer, route};
use natpunch_rollout::{ExitFacts, Touch, effects, watched};
use natpunch_types::{PeerKey, PresharedKey, RelayPolicy, SecretKey};

/// A change of a mesh.
type Kind = fn(&mut Version);

fn base() -> Version {
    Version::new(1, [peer(1), peer(2)])
}

/// What the change does to the first peer: how it is touched, whether it is late, whether keys of
/// before may go on.
fn touched(change: impl FnOnce(&mut Version)) -> (Touch, bool, bool) {
    let before = base();
    let after = before.with(2, change);
    let effects = effects(&before.facts, &after.facts);
    let first = effects
        .iter()
        .find(|effect| effect.before.name == "p1")
        .unwrap();
    (first.touch, first.is_late, first.rekeys)
}

#[test]
fn what_the_device_and_the_kernel_do_is_shown_by_the_next_packet() {
    let shown_at_once: [(&str, Kind); 5] = [
        ("listen_port", |v| v.facts.node.listen_port = 2),
        ("fwmark", |v| v.facts.node.fwmark = 7),
        ("mtu", |v| v.facts.node.mtu = 1280),
        ("addresses", |v| {
            v.facts.node.addresses.push(net("10.77.0.201/32"));
        }),
        ("exit", |v| {
            v.facts.node.exit = Some(ExitFacts {
                peer: "p2".into(),
                table: 7,
                families: [true, true],
                except: Vec::new(),
            });
        }),
    ];
    for (what, change) in shown_at_once {
        assert_eq!(touched(change), (Touch::Node, false, false), "{what}");
    }
    let new_key = |v: &mut Version| v.facts.node.private_key = SecretKey::from_bytes([201; 32]);
    assert_eq!(touched(new_key), (Touch::Node, false, true));
}

#[test]
fn what_discovery_and_relays_do_is_shown_some_seconds_later() {
    let shown_late: [(&str, Kind); 5] = [
        ("networks", |v| {
            v.facts.node.networks.push(net("10.78.0.0/24"));
        }),
        ("lans", |v| v.facts.node.lans.push(net("192.168.7.0/24"))),
        ("discovery", |v| {
            v.facts.node.discovery.insert("rv".into(), Instance(1));
        }),
        ("stun", |v| {
            v.facts.node.stun.push("stun.example.org:3478".into());
        }),
        ("serve", |v| v.facts.node.serve = Some(51_900)),
    ];
    for (what, change) in shown_late {
        assert_eq!(touched(change), (Touch::Node, true, false), "{what}");
    }
}

#[test]
fn a_peers_entry_touches_that_peer_alone_and_what_only_the_device_does_is_shown_at_once() {
    let at_once: [(&str, Kind); 3] = [
        ("key", |v| {
            v.peer(1).key = PeerKey::from_bytes([99; 32]);
        }),
        ("route", |v| route(v.peer(1), "10.9.0.0/16")),
        ("address", |v| {
            let address = "10.77.0.77".parse().unwrap();
            v.peer(1).addresses.push(address);
            v.peer(1).allowed_ips.push(address.into());
        }),
    ];
    for (what, change) in at_once {
        assert_eq!(touched(change), (Touch::Entry, false, false), "{what}");
    }
    let psk = |v: &mut Version| {
        v.peer(1).preshared_key = Some(PresharedKey::from_bytes([1; 32]));
    };
    assert_eq!(touched(psk), (Touch::Entry, false, true));
    let late: [(&str, Kind); 5] = [
        ("relay", |v| v.peer(1).relay = RelayPolicy::Never),
        ("relays", |v| v.peer(1).relays = Some(vec!["rv".into()])),
        ("endpoint", |v| {
            v.peer(1).endpoint = Some("192.0.2.1:1".into());
        }),
        ("managed", |v| v.peer(1).managed = false),
        ("listen_port", |v| v.peer(1).listen_port = 20_001),
    ];
    for (what, change) in late {
        assert_eq!(touched(change), (Touch::Entry, true, false), "{what}");
    }
    let another: Kind = |v| v.peer(2).relay = RelayPolicy::Never;
    assert_eq!(touched(another), (Touch::Not, false, false));
}

#[test]
fn names_keepalives_and_what_makes_a_peer_critical_are_harmless() {
    let harmless: [(&str, Kind); 3] = [
        ("name", |v| v.peer(1).name = "other".into()),
        ("keepalive", |v| {
            v.peer(1).keepalive = Some(std::time::Duration::from_secs(25));
        }),
        ("critical", |v| v.peer(1).critical = true),
    ];
    for (what, change) in harmless {
        assert_eq!(touched(change), (Touch::Not, false, false), "{what}");
    }
}

#[test]
fn what_is_taken_from_a_peer_is_against_it() {
    let routed = |mut version: Version| {
        route(version.peer(1), "10.9.0.0/16");
        version.peer(1).critical = true;
        version
    };
    let before = routed(base());
    let against: [(&str, Kind); 4] = [
        ("it is removed", |v| {
            v.facts.peers.retain(|p| p.name != "p1")
        }),
        ("its route", |v| v.peer(1).allowed_ips.truncate(1)),
        ("its address", |v| {
            v.peer(1).addresses.clear();
            v.peer(1).allowed_ips.remove(0);
        }),
        ("that it is critical", |v| v.peer(1).critical = false),
    ];
    for (what, change) in against {
        let after = before.with(2, change);
        let effects = effects(&before.facts, &after.facts);
        let of = |name: &str| {
            effects
                .iter()
                .find(|e| e.before.name == name)
                .unwrap()
                .touch
        };
        assert_eq!(of("p1"), Touch::Against, "{what}");
        assert_eq!(of("p2"), Touch::Not, "{what}");
    }
    // A route to a single host is no address of the peer's own.
    let to_a_host = base().with(1, |v| route(v.peer(1), "10.9.0.7/32"));
    let without = to_a_host.with(2, |v| v.peer(1).allowed_ips.truncate(1));
    let lost = effects(&to_a_host.facts, &without.facts);
    assert_eq!(lost[0].touch, Touch::Against, "its route to a host");
    // Another address in the place of the old one is a move, which the peer has to follow.
    let moved = before.with(2, |v| {
        let address = "10.77.0.77".parse().unwrap();
        v.peer(1).addresses = vec![address];
        v.peer(1).allowed_ips = vec![address.into(), net("10.9.0.0/16")];
    });
    let effects = effects(&before.facts, &moved.facts);
    assert_eq!(effects[0].touch, Touch::Entry);
}

#[test]
fn of_the_nodes_own_changes_those_must_live_through_it_that_are_critical_after_it() {
    let must = |before: bool, after: bool| {
        let old = base().with(1, |v| v.peer(1).critical = before);
        let new = old.with(2, |v| {
            v.facts.node.mtu = 1280;
            v.peer(1).critical = after;
        });
        let watched = watched(&old.facts, &new.facts, &moment(&[1], &[]));
        watched.first().map(|watch| watch.must)
    };
    assert_eq!(must(false, false), Some(false));
    assert_eq!(must(false, true), Some(true));
    assert_eq!(must(true, true), Some(true));
    assert_eq!(must(true, false), None, "something is taken from it");
}
