//! Doors for fuzzers.

use std::time::Duration;

use natpunch_plugin::{RecordTag, SealedRecord, Time};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

use crate::client::{Client, Config};

/// Lets a client that has one peer and one record hear these bytes from its server; how many
/// records it believes to be the peer's.
pub fn hear(bytes: &[u8]) -> usize {
    let tag = RecordTag([0xab; 16]);
    let config = Config {
        prefix: "natpunch:".to_owned(),
        user: "default".to_owned(),
        password: None,
        database: 0,
        lifetime: Duration::from_secs(3_600),
    };
    let now = Time::from_millis(1_000);
    let mut client = Client::new(config, ChaCha20Rng::from_seed([7; 32]), now);
    client.set_tags([tag]);
    client.set_records(&[SealedRecord {
        tag,
        blob: [1; 32].into(),
    }]);
    client.poll_connect(now);
    client.handle_connected(now);
    let mut told = 0;
    for piece in bytes.chunks(61) {
        while client.poll_transmit(now).is_some() {}
        client.handle_bytes(piece, now);
        while let Some(record) = client.poll_news() {
            assert!((1..=SealedRecord::MAX).contains(&record.blob.len()));
            told += 1;
        }
    }
    client.handle_timeout(now + Duration::from_secs(60));
    let _ = client.health();
    told
}
