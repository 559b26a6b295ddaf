//! Large meshes.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use natpunch::config;
use tempfile::TempDir;

/// A mesh of this many peers, each with two addresses, a route and a tag.
fn mesh(peers: u32) -> String {
    let mut text = "[mesh]\nname = 'large'\nnetworks = ['10.64.0.0/10', 'fd77::/64']\n".to_owned();
    for n in 0..peers {
        let mut key = [7; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let (a, b, c) = (n >> 14 & 63, n >> 7 & 127, n & 127);
        writeln!(
            text,
            "[peers.node-{n}]\npublic_key = '{}'\naddresses = ['10.{}.{b}.{}', 'fd77::{:x}']\nroutes = ['172.{}.{b}.{}/32']\ntags = ['t']",
            STANDARD.encode(key),
            64 + a,
            c + 1,
            n + 1,
            16 + a % 16,
            c + 1,
        )
        .unwrap();
    }
    text
}

fn load_time(peers: u32, directory: &TempDir) -> Duration {
    let file = directory.path().join("large.toml");
    fs::write(&file, mesh(peers)).unwrap();
    let start = Instant::now();
    let mesh = config::load(&file).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(mesh.peers.len(), peers as usize);
    start.elapsed()
}

#[test]
fn loading_takes_time_in_proportion_to_the_peers() {
    let directory = TempDir::new().unwrap();
    load_time(100, &directory);
    let (small, large) = (load_time(1_000, &directory), load_time(10_000, &directory));
    println!("1,000 peers: {small:?}, 10,000 peers: {large:?}");
    // Ten times the peers: 100 times the time if anything were quadratic. Other programs use this
    // machine too.
    assert!(
        large < small * 40 + Duration::from_secs(1),
        "1,000 peers: {small:?}, 10,000 peers: {large:?}"
    );
}

#[test]
fn ten_thousand_errors_are_found_and_the_first_are_shown() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("large.toml");
    fs::write(&file, mesh(10_000).replace("tags", "tgas")).unwrap();
    let errors = config::load(&file).unwrap_err();
    assert_eq!(errors.count(), 10_000);
    let start = Instant::now();
    let shown = natpunch::cli::report::render(&errors, natpunch::cli::report::Severity::Error);
    assert!(shown.ends_with("… and 9800 more"));
    assert!(start.elapsed() < Duration::from_secs(20));
}
