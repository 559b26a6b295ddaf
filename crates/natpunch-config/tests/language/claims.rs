//! That every address belongs to one peer, over random meshes: what the check says, against each
//! pair of claims looked at by itself.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;

use crate::support::{head, key, load, refusals};

/// An address (of the mesh's network) or a route, of one of three peers.
#[derive(Debug, Clone)]
struct Claim {
    peer: u8,
    net: IpNet,
}

fn claim() -> impl Strategy<Value = Claim> {
    // Few addresses, so that claims often meet.
    let lengths = prop_oneof![Just(32), Just(32), 27_u8..=32];
    (0_u8..3, 1_u8..31, lengths).prop_map(|(peer, host, length)| {
        let net = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, host), length);
        let net = IpNet::V4(net.unwrap().trunc());
        Claim { peer, net }
    })
}

/// The mesh of these claims: single addresses are addresses, wider networks are routes. Each peer
/// has one address more, that nobody else has.
fn text(claims: &[Claim]) -> String {
    let mut text = head("10.0.0.0/16", "");
    for peer in 0..3 {
        let own = claims.iter().filter(|claim| claim.peer == peer);
        let is_address = |claim: &&Claim| claim.net.prefix_len() == 32;
        let (addresses, routes): (Vec<&Claim>, Vec<&Claim>) = own.partition(is_address);
        let alone = format!("'10.0.9.{}'", peer + 1);
        let addresses = addresses
            .iter()
            .map(|claim| format!("'{}'", claim.net.addr()));
        let addresses: Vec<String> = addresses.chain([alone]).collect();
        let routes: Vec<String> = routes.iter().map(|c| format!("'{}'", c.net)).collect();
        let (_, public) = key(peer + 1);
        text += &format!(
            "[peers.p{peer}]\npublic_key = '{public}'\naddresses = [{}]\nroutes = [{}]\n",
            addresses.join(", "),
            routes.join(", ")
        );
    }
    text
}

/// Whether two claims can't both be: of two peers what overlaps, of one what is there twice.
fn clash(one: &Claim, other: &Claim) -> bool {
    let overlap = one.net.contains(&other.net) || other.net.contains(&one.net);
    if one.peer == other.peer {
        one.net == other.net
    } else {
        overlap
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn claims_are_refused_exactly_if_two_of_them_clash(
        claims in proptest::collection::vec(claim(), 0..7)
    ) {
        let text = text(&claims);
        let mut clashes = claims.iter().enumerate().flat_map(|(n, one)| {
            claims[..n].iter().map(move |other| (one, other))
        });
        let expected = clashes.any(|(one, other)| clash(one, other));
        let said = refusals(&text);
        prop_assert_eq!(!said.is_empty(), expected, "{:?}\n{}", said, text);
        for (message, line) in &said {
            // The words fit what they speak of, and point at a line of it.
            let twice = message.ends_with("is there twice");
            let two = message.contains("both have") || message.contains("overlaps");
            prop_assert!(twice || two, "{}", message);
            prop_assert!(line.contains('='), "{} at {}", message, line);
        }
    }

    #[test]
    fn each_claim_that_clashes_with_another_peers_is_spoken_of(
        claims in proptest::collection::vec(claim(), 2..5)
    ) {
        let text = text(&claims);
        let said = refusals(&text);
        for (n, one) in claims.iter().enumerate() {
            let others = claims.iter().enumerate().filter(|(m, _)| *m != n);
            let is_hit = others.map(|(_, other)| other).any(|other| clash(one, other));
            let shown = if one.net.prefix_len() == 32 {
                one.net.addr().to_string()
            } else {
                one.net.to_string()
            };
            let is_named = said.iter().any(|(message, _)| {
                message.split([' ', '`']).any(|word| word == shown)
            });
            // Around a third claim only the nearest is named.
            prop_assert!(!is_named || is_hit, "{} is innocent: {:?}", shown, said);
        }
    }
}

#[test]
fn the_second_of_two_claims_is_at_fault_and_both_are_named() {
    let claims = |first: &str, second: &str| {
        let of = |peer: u8, net: &str| Claim {
            peer,
            net: net.parse().unwrap(),
        };
        let text = text(&[of(0, first), of(1, second)]);
        let said = refusals(&text);
        assert_eq!(said.len(), 1, "{said:?}");
        said[0].clone()
    };
    let (message, line) = claims("10.0.0.5/32", "10.0.0.5/32");
    assert_eq!(message, "`p0` and `p1` both have 10.0.0.5");
    assert!(line.contains("10.0.9.2"), "{line}");
    let (message, line) = claims("10.0.0.5/32", "10.0.0.0/28");
    assert_eq!(message, "10.0.0.0/28 of `p1` overlaps 10.0.0.5 of `p0`");
    assert!(line.starts_with("routes"), "{line}");
    let (message, _) = claims("10.0.0.0/28", "10.0.0.5/32");
    assert_eq!(message, "10.0.0.5 of `p1` overlaps 10.0.0.0/28 of `p0`");
}

#[test]
fn what_to_do_depends_on_whose_the_two_claims_are() {
    let help = |first: u8, second: u8| {
        let of = |peer| Claim {
            peer,
            net: "10.0.0.5/32".parse().unwrap(),
        };
        let errors = load(&text(&[of(first), of(second)])).unwrap_err();
        let helps = errors.iter().flat_map(|error| error.helps());
        helps.map(str::to_owned).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(help(0, 0), "remove one of the two");
    assert!(help(0, 1).starts_with("WireGuard sends a packet to one peer"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn networks_of_a_mesh_are_refused_exactly_if_two_overlap(
        nets in proptest::collection::vec((0_u8..64, 18_u8..=24), 1..5)
    ) {
        let nets: Vec<Ipv4Net> = nets
            .into_iter()
            .map(|(third, length)| {
                Ipv4Net::new(Ipv4Addr::new(10, 0, third, 0), length).unwrap().trunc()
            })
            .collect();
        let expected = nets.iter().enumerate().any(|(n, one)| {
            nets[..n].iter().any(|other| one.contains(other) || other.contains(one))
        });
        let list: Vec<String> = nets.iter().map(ToString::to_string).collect();
        let address = Ipv4Addr::from(u32::from(nets[0].network()) + 1);
        let (_, public) = key(1);
        let text = format!(
            "{}[peers.a]\npublic_key = '{public}'\naddresses = ['{address}']\n",
            head(&list.join("', '"), "")
        );
        let said = refusals(&text);
        prop_assert_eq!(!said.is_empty(), expected, "{:?}\n{}", said, text);
    }
}
