//! The fuzz targets, fed what fuzzers have found before: the corpora of `tests/fuzz/corpus`, as they are and a little
//! altered. `make fuzz` looks for more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::print_stdout)]

use std::path::Path;

#[path = "fuzz/src/targets/mod.rs"]
mod targets;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn everything_that_was_found_before_is_survived() {
    for (name, entry) in targets::TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        for input in &inputs {
            entry(input);
        }
        println!("{name}: {} inputs", inputs.len());
    }
}

#[test]
fn nothing_and_short_inputs_are_survived() {
    for (_, entry) in targets::TARGETS {
        entry(&[]);
        for byte in [0, 1, 0x7f, 0xff] {
            entry(&[byte]);
            entry(&[byte; 3]);
        }
    }
}
