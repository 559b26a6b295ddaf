use std::fmt::Write as _;

use natpunch_picture::Links;

use super::*;

/// A mesh of so many peers at sites of ten, of which the first has an endpoint and the last is
/// plain. Each has `more` lines in its section.
fn mesh(count: usize, more: &str) -> MeshConfig {
    let mut text = String::from(
        "[mesh]\nname = \"lab\"\nnetworks = [\"10.77.0.0/16\"]\n\n[discovery.rv]\nplugin = \"rendezvous\"\n\
         server = \"rv.example:51900\"\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n",
    );
    for n in 1..=count {
        let mut key = [1; 32];
        key[8..16].copy_from_slice(&n.to_le_bytes());
        let key = natpunch_types::SecretKey::from_bytes(key).public_key();
        let (site, address) = (n % 7, format!("10.77.{}.{}", n / 250, n % 250 + 1));
        writeln!(
            text,
            "[peers.s{site}-{n}]\npublic_key = \"{key}\"\naddresses = [\"{address}\"]\n{more}"
        )
        .unwrap();
        match n {
            1 => text += "endpoint = \"198.51.100.7:51820\"\n",
            n if n == count => text += "managed = false\n",
            _ => {}
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("mesh.toml");
    std::fs::write(&path, text).unwrap();
    config::load(&path).unwrap()
}

#[test]
fn few_links_are_drawn_each_and_many_as_a_rule_with_exceptions() {
    // All pairs but those of the plain peer, which only the endpoint has.
    let few = drawn(&mesh(7, ""));
    assert_eq!(few.pairs.len(), 6 * 5 / 2 + 1);
    assert_eq!(Links::of(&few).lines.len(), few.pairs.len());
    let many = drawn(&mesh(60, ""));
    let links = Links::of(&many);
    assert_eq!(many.pairs.len(), 59 * 58 / 2 + 1);
    assert_eq!(links.lines.len(), 59, "those of the endpoint");
    assert!(draw(&many).svg().contains("The rule: "));
}

#[test]
fn a_pair_on_demand_that_nothing_wakes_has_no_line() {
    let pairs = |connect: &str, carries_records: bool| {
        let mut mesh = mesh(4, &format!("connect = \"{connect}\""));
        for instance in &mut mesh.discovery {
            instance.about.abilities.records &= carries_records;
        }
        drawn(&mesh).pairs.len()
    };
    // Those of the endpoint with all others, and that of the two other nodes.
    assert_eq!(pairs("on-demand", true), 4);
    assert_eq!(pairs("always", false), 4);
    assert_eq!(pairs("on-demand", false), 3);
}

#[test]
fn mermaid_stays_under_its_limits_whatever_the_number_of_peers() {
    for count in [3, 12, 60, 100, 101, 300, 1_000] {
        let text = mermaid::text(&drawn(&mesh(count, "")));
        assert!(text.len() < mermaid::MOST_TEXT, "{count}: {}", text.len());
        let links = text.matches(" --- ").count() + text.matches(" -.- ").count();
        assert!(links < mermaid::MOST_LINKS, "{count}: {links}");
        if count > 9 {
            assert!(text.contains("every pair of these"));
            assert_eq!(text.matches(" --- ").count(), 1, "one has an endpoint");
        }
    }
}

#[test]
fn a_tag_names_a_peer_s_site_where_its_name_does_not() {
    let drawn = drawn(&mesh(3, "tags = [\"rack-7\", \"site-oslo\"]"));
    let sites: Vec<_> = drawn
        .nodes
        .iter()
        .map(|node| node.site.as_deref())
        .collect();
    assert_eq!(sites, [Some("oslo"); 3]);
}

#[test]
fn a_hostile_name_is_text_in_mermaid_too() {
    let bad = "\"]; click p0 \"javascript:alert(1)\"\n%%<script>\u{202e}";
    let node = Node {
        name: bad.to_owned(),
        ..Node::default()
    };
    let mesh = Mesh {
        title: bad.to_owned(),
        nodes: vec![node],
        ..Mesh::default()
    };
    let text = mermaid::text(&mesh);
    assert!(
        !text.contains('\u{202e}') && !text.contains("<script"),
        "{text}"
    );
    assert_eq!(text.lines().count(), 5, "{text}");
    assert_eq!(text.matches('"').count(), 2, "{text}");
}
