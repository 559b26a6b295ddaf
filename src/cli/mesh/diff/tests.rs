//! The comparison of two small meshes, as text and as Markdown.

use super::*;
use crate::cli::shown;

const KEYS: [&str; 5] = [
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=",
    "gN65BkIKy1eCE9pP1wdc8ROUtkHLF2PfAqYdyYBz6EA=",
    "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
    "YNqHbfBQKaGvbPAZ4dRwS3Bq6YxP4JnrkZT2WKL8VUY=",
];

fn peer(n: usize, name: &str, more: &str) -> String {
    let key = KEYS[n];
    format!(
        "[peers.{name}]\npublic_key = '{key}'\naddresses = ['10.77.0.{}']\n{more}\n",
        n + 1
    )
}

fn mesh(generation: u64, peers: &[String]) -> MeshConfig {
    let head =
        format!("[mesh]\nname = 'home'\ngeneration = {generation}\nnetworks = ['10.77.0.0/24']\n");
    let text = [head, peers.concat()].concat();
    config::load_texts(vec![("mesh.toml".into(), text)]).unwrap_or_else(|error| panic!("{error}"))
}

/// A node comes, one goes, one gets a network, and one must not be relayed.
fn commit() -> Report {
    let old = mesh(
        12,
        &[
            peer(0, "attic", ""),
            peer(1, "laptop", ""),
            peer(
                2,
                "nas",
                "endpoint = 'nas.example.org:51820'\nroutes = ['192.168.8.0/24']",
            ),
            peer(3, "oslo", ""),
        ],
    );
    let new = mesh(
        13,
        &[
            peer(1, "laptop", "relay = 'never'"),
            peer(
                2,
                "nas",
                "endpoint = 'nas.example.org:51820'\nroutes = ['192.168.8.0/24', '192.168.9.0/24']",
            ),
            peer(3, "oslo", ""),
            peer(4, "porto", ""),
        ],
    );
    Report::of(&old, &new)
}

#[test]
fn the_page_about_merge_requests_shows_a_comparison_as_it_is_printed() {
    let report = commit();
    shown::assert_in("docs/how-to/git.md", "diff", &text::plain(&report));
    shown::assert_in(
        "docs/how-to/git.md",
        "diff-markdown",
        &text::markdown(&report),
    );
}

#[test]
fn half_of_a_mesh_that_goes_is_refused_by_the_nodes_that_stay() {
    let all: Vec<String> = ["a", "b", "c", "d", "e"]
        .iter()
        .enumerate()
        .map(|(n, name)| peer(n, name, ""))
        .collect();
    let report = Report::of(&mesh(1, &all), &mesh(2, &all[..2]));
    let needs = report.needs.first().unwrap();
    assert_eq!(needs.allow, "mass-removal");
    assert_eq!(needs.nodes, ["a", "b"]);
    assert!(text::plain(&report).contains("refused by a, b without --allow mass-removal"));
}

#[test]
fn what_says_the_same_in_other_words_changes_nothing() {
    let peers = [peer(0, "a", ""), peer(1, "b", "")];
    let turned = [peer(1, "b", "# a comment"), peer(0, "a", "")];
    let report = Report::of(&mesh(1, &peers), &mesh(1, &turned));
    assert!(report.diff.is_empty());
    assert!(text::plain(&report).starts_with("mesh home: nothing changes (1-"));
}

#[test]
fn nothing_of_a_mesh_file_is_markdown() {
    let text = text::markdown(&Report {
        mesh: "<script>|`*".to_owned(),
        ..commit()
    });
    assert!(
        text.starts_with("### mesh &lt;script>\\|\\`\\*: "),
        "{text}"
    );
}
