//! What changes of a mesh file come to: caps, and who is watched.

use natpunch_rollout::{Login, Moment, watched};
use natpunch_types::{Consent, PeerKey};

use super::{facts, refusals};
use crate::agent::testing::{mesh, node};

fn words(before: &str, after: &str) -> Vec<&'static str> {
    refusals(Some(&node(before)), &node(after), &[])
        .iter()
        .map(|refusal| refusal.consent.word())
        .collect()
}

#[test]
fn one_peer_may_always_go_and_a_third_may_not() {
    assert!(words(&mesh(2, ""), &mesh(1, "")).is_empty());
    assert!(words(&mesh(10, ""), &mesh(7, "")).is_empty());
    assert_eq!(words(&mesh(10, ""), &mesh(6, "")), ["mass-removal"]);
    assert_eq!(words(&mesh(3, ""), &mesh(1, "")), ["mass-removal"]);
    assert_eq!(words(&mesh(3, ""), &mesh(0, "")), ["empty-mesh"]);
    assert!(
        words(&mesh(1, ""), &mesh(9, "")).is_empty(),
        "growth is free"
    );
}

#[test]
fn a_renamed_peer_is_not_removed() {
    let before = mesh(3, "");
    let after = before
        .replace("[peers.p1]", "[peers.one]")
        .replace("[peers.p2]", "[peers.two]");
    assert!(words(&before, &after).is_empty());
}

#[test]
fn a_critical_peer_stays_and_so_does_the_last_way_to_it() {
    let before = mesh(4, "critical = true\nendpoint = \"192.0.2.1:1\"\n");
    assert_eq!(
        words(
            &before,
            &mesh(3, "critical = true\nendpoint = \"192.0.2.1:1\"\n")
        ),
        ["critical-removal"]
    );
    assert_eq!(
        words(&before, &mesh(4, "critical = true\n")),
        ["critical-removal"],
        "the endpoint was all there was"
    );
    let discovery = "[discovery.web]\nplugin = \"http\"\nurl = \"https://example.org/v1\"\n";
    let found = format!("{}{discovery}", mesh(4, "critical = true\n"));
    assert!(words(&before, &found).is_empty());
    assert_eq!(
        words(&before, &mesh(3, "")),
        ["critical-removal"],
        "the word can't be taken away with the peer"
    );
}

#[test]
fn a_default_route_in_halves_is_one() {
    let half = mesh(4, "").replacen(
        "[peers.p1]\n",
        "[peers.p1]\nroutes = [\"128.0.0.0/1\"]\n",
        1,
    );
    assert_eq!(words(&mesh(4, ""), &half), ["default-route"]);
    assert!(words(&half, &half).is_empty(), "it was there before");
    let first = refusals(None, &node(&half), &[]);
    assert_eq!(first[0].consent, Consent::DefaultRoute, "also at first");
}

#[test]
fn a_word_in_the_file_or_on_the_command_line_is_enough() {
    let (before, after) = (mesh(10, ""), mesh(2, ""));
    assert!(
        words(
            &before,
            &format!("{after}[apply]\nallow = [\"mass-removal\"]\n")
        )
        .is_empty()
    );
    assert_eq!(
        words(
            &before,
            &format!("{after}[apply]\nallow = [\"empty-mesh\"]\n")
        ),
        ["mass-removal"]
    );
    assert!(refusals(Some(&node(&before)), &node(&after), &[Consent::MassRemoval]).is_empty());
}

pub(super) fn watched_of(
    before: &str,
    after: &str,
    alive: &[&str],
    logins: &[Login],
) -> Vec<(String, bool)> {
    let moment = Moment {
        alive: alive.iter().map(|name| (*name).to_owned()).collect(),
        logins: logins.to_vec(),
    };
    let found = watched(&facts(&node(before)), &facts(&node(after)), &moment);
    let found = found.into_iter().map(|watch| (watch.name, watch.must));
    found.collect()
}

fn names(list: &[(&str, bool)]) -> Vec<(String, bool)> {
    let names = list.iter().map(|(name, must)| ((*name).to_owned(), *must));
    names.collect()
}

#[test]
fn only_peers_that_live_and_are_touched_are_watched() {
    let before = mesh(4, "");
    let routed = before.replacen(
        "[peers.p1]\n",
        "[peers.p1]\nroutes = [\"172.20.0.0/24\"]\n",
        1,
    );
    assert_eq!(
        watched_of(&before, &routed, &["p1", "p2"], &[]),
        names(&[("p1", true)])
    );
    assert!(
        watched_of(&before, &routed, &["p2"], &[]).is_empty(),
        "p1 was not alive before"
    );
    let key = PeerKey::from_bytes([9; 32]);
    let server = format!(
        "[discovery.rv]\nplugin = \"rendezvous\"\nserver = \"rv.example.org:1\"\npublic_key = \"{key}\"\n"
    );
    let found = format!("{before}{server}");
    let listed = found.replacen("[peers.p1]\n", "[peers.p1]\nrelays = [\"rv\"]\n", 1);
    assert_eq!(
        watched_of(&found, &listed, &["p1", "p2"], &[]),
        names(&[("p1", true)])
    );
    assert!(
        watched_of(&before, &mesh(3, ""), &["p1", "p4"], &[]).is_empty(),
        "a peer that is removed is meant"
    );
}

#[test]
fn a_change_of_this_nodes_own_settings_touches_every_peer() {
    let before = mesh(3, "");
    let moved = format!("{before}\n[interface]\nmtu = 1300\n");
    assert_eq!(
        watched_of(&before, &moved, &["p1", "p3"], &[]),
        names(&[("p1", false), ("p3", false)])
    );
    let critical = moved.replacen("[peers.p3]\n", "[peers.p3]\ncritical = true\n", 1);
    assert_eq!(
        watched_of(&before, &critical, &["p1", "p3"], &[]),
        names(&[("p3", true), ("p1", false)])
    );
    let login = Login {
        user: "root".into(),
        from: "10.77.0.2".into(),
    };
    assert_eq!(
        watched_of(&before, &moved, &["p1", "p3"], &[login]),
        names(&[("p1", true), ("p3", false)])
    );
}
