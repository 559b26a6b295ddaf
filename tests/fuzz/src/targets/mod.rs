//! The entries of all fuzz targets: each takes any bytes, and panics if something is wrong.
//! libFuzzer drives them (`make fuzz`), and `cargo test --test fuzz` replays the corpora.

use std::net::SocketAddr;
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

mod core;
mod gossip;
mod others;
mod relay;
mod rendezvous;

/// What a target does with any bytes.
pub(crate) type Entry = fn(&[u8]);

/// Name and entry of each.
pub(crate) const TARGETS: [(&str, Entry); 14] = [
    ("rendezvous-wire", rendezvous::wire),
    ("rendezvous-frames", rendezvous::frames),
    ("rendezvous-client", rendezvous::client),
    ("rendezvous-server", rendezvous::server),
    ("relay-port", relay::port),
    ("core-mesh", core::mesh),
    ("stun", core::stun),
    ("natpunch-go", others::natpunch_go),
    ("nat-hole-punching", others::nat_hole_punching),
    ("uapi", others::uapi),
    ("mesh-file", others::mesh_file),
    ("http-answer", others::http_answer),
    ("redis-server", others::redis_server),
    ("gossip", gossip::peers),
];

fn rng(seed: u64) -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(seed)
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, n], 1000 + u16::from(n)))
}

/// Reads a program of operations from the fuzzer's bytes.
struct Program<'a> {
    bytes: &'a [u8],
    /// Operations so far, and at most.
    steps: u64,
    most: u64,
}

impl<'a> Program<'a> {
    /// A program of at most so many operations, so that no run takes long.
    fn new(bytes: &'a [u8], most: u64) -> Self {
        Self {
            bytes,
            steps: 0,
            most,
        }
    }

    /// The next operation; none when the bytes are used up, or there were enough of them.
    fn operation(&mut self) -> Option<u8> {
        let operation = self.next()?;
        self.steps += 1;
        (self.steps <= self.most).then_some(operation)
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or_default()
    }

    /// From a millisecond to some minutes.
    fn time(&mut self) -> Duration {
        let n = self.byte();
        Duration::from_millis(1 << (n & 0x0f) << (n >> 6)) + Duration::from_millis(n.into())
    }

    /// Up to 1,280 bytes, by a length in front.
    fn chunk(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()) * 5;
        let (chunk, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        chunk
    }
}
