use std::collections::BTreeSet;

use super::*;
use crate::sample::{hostile, of_file, of_node};

fn texts(picture: &Picture) -> impl Iterator<Item = &Shape> {
    let shapes = picture.shapes.iter();
    shapes.filter(|shape| shape.element == "text")
}

#[test]
fn equal_meshes_give_equal_pictures_and_every_peer_is_in_it() {
    for count in [1, 2, 3, 12, 16, 17, 60, 300] {
        for mesh in [of_file(count), of_node(count)] {
            let picture = draw(&mesh);
            assert_eq!(picture.svg(), draw(&mesh).svg());
            let shown: String = texts(&picture)
                .map(|text| text.text.clone() + "\n")
                .collect();
            for node in &mesh.nodes {
                assert!(shown.contains(&node.name), "{count}: {}", node.name);
            }
        }
    }
}

#[test]
fn the_order_in_which_peers_are_given_changes_no_place_around_the_ring() {
    let mesh = of_node(60);
    let mut turned = mesh.clone();
    let last = turned.nodes.len() - 1;
    turned.nodes.reverse();
    for pair in &mut turned.pairs {
        (pair.a, pair.b) = (last - pair.a, last - pair.b);
    }
    turned.center = mesh.center.map(|center| last - center);
    let places = |mesh: &Mesh| -> BTreeSet<String> {
        let picture = draw(mesh);
        let place = |text: &Shape| format!("{} {:?}", text.text, text.attributes);
        texts(&picture).map(place).collect()
    };
    assert_eq!(places(&mesh), places(&turned));
}

#[test]
fn every_pair_of_twelve_has_a_line_and_of_sixty_only_the_exceptions() {
    let lines = |mesh: &Mesh| {
        let shapes = draw(mesh).shapes.into_iter();
        let lines =
            shapes.filter(|shape| shape.class.starts_with("line") && !shape.about.is_empty());
        lines.count()
    };
    assert_eq!(lines(&of_file(12)), of_file(12).pairs.len());
    let mesh = of_file(60);
    let links = Links::of(&mesh);
    assert!(mesh.pairs.len() > 1_500, "{}", mesh.pairs.len());
    assert_eq!(lines(&mesh), links.lines.len());
    assert!(links.lines.len() < 160, "{}", links.lines.len());
    assert!(links.bands.len() > 5, "{:?}", links.bands);
    let notes = links.notes.join(" ");
    assert!(
        notes.contains("The rule: ") && notes.contains("drawn pair by pair"),
        "{notes}"
    );
    // From one node each peer has its own line, however many there are.
    assert_eq!(lines(&of_node(300)), 299);
}

#[test]
fn what_is_counted_is_what_there_is_and_bands_and_lines_are_all_of_it_but_the_insides_of_sites() {
    let mesh = of_file(300);
    let links = Links::of(&mesh);
    assert_eq!(links.counts.values().sum::<usize>(), mesh.pairs.len());
    let in_bands: usize = links.bands.values().sum();
    let inside = mesh.pairs.iter().enumerate().filter(|(index, pair)| {
        let site = |node: usize| mesh.nodes[node].site.as_deref();
        !links.lines.contains(index) && site(pair.a) == site(pair.b)
    });
    assert_eq!(
        in_bands + links.lines.len() + inside.count(),
        mesh.pairs.len()
    );
}

fn names_stand_apart(picture: &Picture, font: f64) {
    // Names around the ring: of neighbours the anchors are at least a line apart.
    let number = |shape: &Shape, name: &str| -> f64 {
        let found = shape.attributes.iter().find(|(own, _)| *own == name);
        found.unwrap().1.parse().unwrap()
    };
    let names: Vec<(f64, f64)> = texts(picture)
        .filter(|text| text.class.starts_with("peer"))
        .map(|text| (number(text, "x"), number(text, "y")))
        .collect();
    for (index, a) in names.iter().enumerate() {
        for b in names.iter().skip(index + 1) {
            let apart = (a.0 - b.0).hypot(a.1 - b.1);
            assert!(apart >= font, "{apart} at {a:?} and {b:?}");
        }
    }
}

#[test]
fn names_around_the_ring_don_t_touch_and_all_text_is_in_the_picture() {
    for (count, font) in [
        (17, 12.0),
        (60, 12.0),
        (130, 12.0),
        (300, 10.0),
        (1_000, 10.0),
    ] {
        for mesh in [of_file(count), of_node(count)] {
            let picture = draw(&mesh);
            names_stand_apart(&picture, font);
            for text in texts(&picture) {
                for (name, value) in &text.attributes {
                    let most = match *name {
                        "x" => picture.width,
                        "y" => picture.height,
                        _ => continue,
                    };
                    let value: f64 = value.parse().unwrap();
                    assert!((0.0..=most).contains(&value), "{count} {text:?}");
                }
            }
        }
    }
}

#[test]
fn a_hostile_name_is_text_and_nothing_else() {
    for mesh in [hostile(3), hostile(60)] {
        let svg = draw(&mesh).svg();
        for bad in [
            "<script",
            "<img",
            "\u{202e}",
            "\u{2066}",
            "\u{0}",
            "\u{1b}",
            "onload=\"",
        ] {
            assert!(!svg.contains(bad), "{bad:?}");
        }
        assert!(svg.contains("&lt;script&gt;"), "{svg}");
        // Every `<` begins an element of this crate.
        for part in svg.split('<').skip(1) {
            let names = [
                "svg", "/svg", "style", "/style", "rect", "/rect", "path", "/path", "text",
                "/text", "title", "/title",
            ];
            assert!(
                names.iter().any(|name| part.starts_with(name)),
                "<{}",
                part.chars().take(30).collect::<String>()
            );
        }
    }
}

#[test]
fn a_name_of_63_characters_is_cut_and_told_whole_on_pointing_at_it() {
    let mut mesh = of_node(60);
    let long = "x".repeat(63);
    mesh.nodes[7].name.clone_from(&long);
    let picture = draw(&mesh);
    let text = texts(&picture)
        .find(|text| text.text.starts_with("xxx"))
        .unwrap();
    assert!(text.text.chars().count() < 40 && text.text.ends_with('…'));
    assert!(text.about.contains(&long));
}

#[test]
fn indices_that_lead_nowhere_are_left_out() {
    for count in [3, 60] {
        let mut mesh = of_node(count);
        mesh.center = Some(count + 5);
        mesh.pairs.push(Pair {
            a: 0,
            b: count + 1,
            kind: Kind::Down,
            relay: Some(99),
            rtt_ms: None,
            reason: None,
        });
        mesh.pairs[0].relay = Some(99);
        assert!(!draw(&mesh).shapes.is_empty());
    }
    assert!(!draw(&Mesh::default()).svg().is_empty());
}

#[test]
fn each_kind_has_a_style_in_light_and_in_dark() {
    let (light, dark) = STYLE
        .split_once("@media (prefers-color-scheme:dark)")
        .unwrap();
    for kind in Kind::ALL {
        for style in [light, dark] {
            let class = format!(".{}", kind.word());
            assert!(style.contains(&class), "{kind}");
        }
    }
}

#[test]
fn the_tenth_of_a_site_stands_after_the_ninth() {
    let name = |name: &str| Node {
        name: name.to_owned(),
        ..Node::default()
    };
    let mesh = Mesh {
        nodes: ["oslo-10", "oslo-9", "a", "oslo-100", "b7"]
            .map(name)
            .into(),
        ..Mesh::default()
    };
    assert_eq!(sites::groups(&mesh, None)[0].nodes, [2, 4, 1, 0, 3]);
}

#[test]
fn peers_of_one_prefix_are_a_site() {
    let sites = sites_of([
        "oslo-1", "oslo-2", "laptop", "a.b.x", "a.b.y", "nas-1", "-1", "-2",
    ]);
    let sites: Vec<Option<&str>> = sites.iter().map(Option::as_deref).collect();
    let (oslo, ab) = (Some("oslo"), Some("a.b"));
    assert_eq!(sites, [oslo, oslo, None, ab, ab, None, None, None]);
}
