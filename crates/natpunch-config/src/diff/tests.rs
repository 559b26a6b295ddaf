//! Nodes and pairs of small meshes that become others.

use std::path::PathBuf;

use super::*;
use crate::load::load_texts;

const KEYS: [&str; 4] = [
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
    "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
];

/// A mesh of a, b and c, each with these lines more; with `head` before them.
fn mesh(head: &str, more: [&str; 3]) -> MeshConfig {
    let mut text = format!("{head}\n[mesh]\nname = 'home'\nnetworks = ['10.0.0.0/24']\n");
    for (n, (name, more)) in ["a", "b", "c"].iter().zip(more).enumerate() {
        let host = n + 1;
        let key = match more.contains("public_key") {
            true => String::new(),
            false => format!("public_key = '{}'\n", KEYS[n]),
        };
        text.push_str(&format!(
            "[peers.{name}]\n{key}addresses = ['10.0.0.{host}']\n{more}\n"
        ));
    }
    load_texts(vec![("mesh.toml".into(), text)], &[]).unwrap_or_else(|error| panic!("{error}"))
}

fn of(more: [&str; 3]) -> MeshDiff {
    diff(&mesh("", ["", "", ""]), &mesh("", more))
}

/// What a node does, a step a line.
fn steps_of<'a>(diff: &'a MeshDiff, node: &str) -> Vec<(&'a str, Impact)> {
    let group = diff
        .nodes
        .iter()
        .find(|group| group.nodes.iter().any(|one| one == node));
    let steps = group.map(|group| group.steps.iter()).into_iter().flatten();
    steps
        .map(|step| (step.text.as_str(), step.impact))
        .collect()
}

#[test]
fn equal_meshes_have_no_difference() {
    let diff = of(["", "", ""]);
    assert!(diff.is_empty());
    assert_eq!(diff.unchanged_pairs, 3);
}

#[test]
fn a_route_of_a_peer_is_a_step_of_the_others_and_a_lost_one_an_interruption() {
    let diff = of(["routes = ['192.168.1.0/24']", "", ""]);
    let gained = [("peer a: allowed IPs + 192.168.1.0/24", Impact::None)];
    assert_eq!(steps_of(&diff, "b"), gained);
    assert_eq!(
        steps_of(&diff, "a"),
        [("has to forward nothing → IPv4", Impact::None)]
    );
    let back = super::diff(
        &mesh("", ["routes = ['192.168.1.0/24']", "", ""]),
        &mesh("", ["", "", ""]),
    );
    let lost = [("peer a: allowed IPs - 192.168.1.0/24", Impact::Interruption)];
    assert_eq!(steps_of(&back, "c"), lost);
    assert_eq!(back.unchanged_pairs, 1);
    assert_eq!(
        back.pairs
            .iter()
            .map(|group| group.pairs.len())
            .sum::<usize>(),
        2
    );
}

#[test]
fn another_key_of_a_node_interrupts_it_and_is_a_handshake_of_the_others() {
    let diff = of([&format!("public_key = '{}'", KEYS[3]), "", ""]);
    let (text, impact) = steps_of(&diff, "b")[0];
    assert!(text.starts_with("peer a: public key "), "{text}");
    assert_eq!(impact, Impact::Rehandshake);
    let own = steps_of(&diff, "a");
    assert!(own.iter().any(|(text, impact)| {
        text.starts_with("own public key ") && *impact == Impact::Interruption
    }));
}

#[test]
fn a_peer_that_goes_takes_its_tunnels_and_plain_peers_have_none_with_each_other() {
    let plain = "managed = false";
    let before = mesh("", ["", plain, plain]);
    let text: Vec<(PathBuf, String)> = mesh("", ["", plain, plain]).texts();
    let without_c = text[0].1.split("[peers.c]").next().unwrap().to_owned();
    let after = load_texts(vec![("mesh.toml".into(), without_c)], &[]).unwrap();
    let diff = super::diff(&before, &after);
    assert_eq!(steps_of(&diff, "a"), [("peer c", Impact::Interruption)]);
    assert!(steps_of(&diff, "b").is_empty(), "it runs no natpunch");
    let gone = &diff.pairs[0];
    assert_eq!(
        (gone.turn, gone.impact),
        (Turn::Removed, Impact::Interruption)
    );
    assert_eq!(gone.pairs, [("a".to_owned(), "c".to_owned())]);
    assert_eq!(diff.unchanged_pairs, 1);
}

#[test]
fn a_preshared_key_that_comes_is_a_handshake_of_its_pair_only() {
    let with_key = "[[preshared]]\npeers = ['a', 'b']\npreshared_key_file = 'ab.psk'";
    let diff = super::diff(&mesh("", ["", "", ""]), &mesh(with_key, ["", "", ""]));
    let step = [(
        "peer b: preshared key none → in ab.psk",
        Impact::Rehandshake,
    )];
    assert_eq!(steps_of(&diff, "a"), step);
    assert!(steps_of(&diff, "c").is_empty());
    assert_eq!(diff.unchanged_pairs, 2);
}

#[test]
fn what_can_not_change_while_the_mesh_is_up_is_said() {
    let head = "[interface]\nname = 'wg9'";
    let diff = super::diff(&mesh("", ["", "", ""]), &mesh(head, ["", "", ""]));
    assert_eq!(
        steps_of(&diff, "a"),
        [("interface wg-home → wg9", Impact::NotWhileUp)]
    );
    assert_eq!(diff.nodes.len(), 1, "all three do the same");
}
