//! The pictures in docs/pictures are what is drawn today.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../src/sample.rs"]
#[allow(dead_code)]
mod sample;

use std::path::Path;

use natpunch_picture::draw;
// For the sample, whose root is this one here.
use natpunch_picture::{Kind, Mesh, Node, Pair, sites_of};

use sample::{of_file, of_node};

/// With the variable `BLESS` they are made.
#[test]
fn the_pictures_of_the_documents_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/pictures");
    for count in [3, 12, 60, 300] {
        for (what, mesh) in [("file", of_file(count)), ("node", of_node(count))] {
            let (path, svg) = (
                directory.join(format!("{what}-{count}.svg")),
                draw(&mesh).svg(),
            );
            if std::env::var_os("BLESS").is_some() {
                std::fs::write(&path, svg).unwrap();
                continue;
            }
            let old = std::fs::read_to_string(&path).unwrap_or_default();
            let renew = "BLESS=1 cargo test -p natpunch-picture";
            assert!(
                old == svg,
                "{what}-{count}.svg is of another version: {renew}"
            );
        }
    }
}
