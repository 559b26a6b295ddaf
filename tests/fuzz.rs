//! The fuzz targets, fed what fuzzers have found before: the corpora of `tests/fuzz/corpus`, as
//! they are and a little altered. `make fuzz` looks for more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout
)]

use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore as _, SeedableRng as _};

#[path = "fuzz/src/targets/mod.rs"]
mod targets;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let files =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect()
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

/// Alters an input as a fuzzer without any feedback would.
fn alter(input: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha20Rng) {
    let below = |rng: &mut ChaCha20Rng, n: usize| rng.next_u32() as usize % n.max(1);
    for _ in 0..=below(rng, 3) {
        let at = below(rng, input.len());
        match rng.next_u32() % 6 {
            0 | 1 if !input.is_empty() => input[at] ^= 1 << below(rng, 8),
            2 if !input.is_empty() => input[at] = rng.next_u32() as u8,
            3 => input.truncate(at),
            4 => {
                let from = below(rng, other.len());
                input.splice(at..at, other[from..].iter().take(64).copied());
            }
            _ => {
                let end = (at + below(rng, 16)).min(input.len());
                input.drain(at..end);
            }
        }
        input.truncate(4096);
    }
}

/// Executions within this time, at least `least`.
fn alterations(name: &str, entry: targets::Entry, time: Duration, least: u64) -> u64 {
    let inputs = corpus(name);
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let (start, mut done) = (Instant::now(), 0);
    while done < least || start.elapsed() < time {
        let at = |rng: &mut ChaCha20Rng| rng.next_u32() as usize % inputs.len();
        let mut input = inputs[at(&mut rng)].clone();
        let other = &inputs[at(&mut rng)];
        alter(&mut input, other, &mut rng);
        let survived = catch_unwind(|| entry(&input));
        assert!(survived.is_ok(), "{name}: {input:02x?}");
        done += 1;
    }
    done
}

#[test]
fn altered_inputs_are_survived() {
    for (name, entry) in targets::TARGETS {
        alterations(name, entry, Duration::ZERO, 100);
    }
}

#[test]
#[ignore = "takes 10 s for each target: cargo test --test fuzz -- --ignored --nocapture"]
fn many_altered_inputs_are_survived() {
    for (name, entry) in targets::TARGETS {
        println!(
            "measured: {name}: {} executions",
            alterations(name, entry, Duration::from_secs(10), 0)
        );
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
