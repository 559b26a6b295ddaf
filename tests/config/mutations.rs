//! Broken meshes, made from the examples with a seed: never a panic, and never an error without a
//! place.

use std::fs;

use natpunch::cli::report::{Severity, render};
use natpunch::config;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use tempfile::TempDir;

use crate::mutate::{mutate, pick};
use crate::support::root;

const MUTATIONS: u64 = 1000;

#[test]
fn a_thousand_broken_meshes_load_or_say_where_they_are_broken() {
    load_or_say(0..MUTATIONS);
}

#[test]
#[ignore = "ten thousand: `make mutations`"]
fn ten_thousand_broken_meshes_load_or_say_where_they_are_broken() {
    let refused = load_or_say(0..10_000);
    println!(
        "measured: of 10000 mutated meshes {refused} are refused, each with a place and help, none panics"
    );
}

/// How many were refused.
fn load_or_say(seeds: std::ops::Range<u64>) -> u64 {
    let count = seeds.end - seeds.start;
    let examples = [
        "home",
        "http",
        "plain-wireguard-peer",
        "preshared",
        "two-nodes",
        "wireguard-example",
    ]
    .map(|name| fs::read_to_string(root().join(format!("examples/configs/{name}.toml"))).unwrap());
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("mesh.toml");
    let mut refused = 0;
    for seed in seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let example = pick(&mut rng, &examples);
        let text = mutate(example, &mut rng);
        fs::write(&file, &text).unwrap();
        match config::load(&file) {
            Ok(mesh) => {
                config::lint(&mesh);
            }
            Err(errors) => {
                refused += 1;
                assert!(errors.count() > 0, "seed {seed}");
                for error in errors.iter() {
                    assert!(
                        errors.location(error).is_some(),
                        "seed {seed}: {}",
                        error.message()
                    );
                    assert!(
                        error.helps().next().is_some(),
                        "seed {seed}: no help: {}",
                        error.message()
                    );
                }
                let shown = render(&errors, Severity::Error);
                let plain = anstream::adapter::strip_str(&shown).to_string();
                assert!(
                    !plain.chars().any(|c| c.is_control() && c != '\n'),
                    "seed {seed}: {plain:?}"
                );
            }
        }
    }
    // Comments and the like may be broken without harm.
    assert!(
        refused > count / 2,
        "only {refused} of {count} were refused"
    );
    refused
}

#[test]
fn deep_nesting_is_an_error_and_no_stack_overflow() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("mesh.toml");
    for text in [
        "x = ".to_owned() + &"[".repeat(100_000),
        "x = ".to_owned() + &"{a=".repeat(100_000),
        "a.".repeat(100_000) + "b = 1",
    ] {
        fs::write(&file, text).unwrap();
        assert!(config::load(&file).is_err());
    }
}
