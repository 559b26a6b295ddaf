//! The compatible protocols, byte for byte: vectors of an independent implementation
//! (`generate.py`, in Python from the Noise specification) against ours, as server and as client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod nat_hole_punching;
mod natpunch_go;

use natpunch_types::PeerKey;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    natpunch_go: natpunch_go::Session,
    nat_hole_punching: Vec<nat_hole_punching::Exchange>,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("vectors.json"))
        .expect("vectors.json is what generate.py writes")
}

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "{hex}");
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn array(hex: &str) -> [u8; 32] {
    bytes(hex).try_into().unwrap()
}

fn key(hex: &str) -> PeerKey {
    PeerKey::from_bytes(array(hex))
}
