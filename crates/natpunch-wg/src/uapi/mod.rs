//! WireGuard's cross-platform configuration protocol (<https://www.wireguard.com/xplatform/>): text
//! over a Unix socket.
//!
//! It is the language of every userspace device, so natpunch speaks it on both sides:
//! [`UapiDevice`] drives an external device and the embedded one, and the embedded device's process
//! serves it, so that `wg show` works there too.
//!
//! `wireguard-control` speaks it as well, but cannot say `update_only` (a late endpoint would
//! resurrect a removed peer), starts `wireguard-go` by itself, prints to standard output and folds
//! every errno into one; hence this small client.

mod client;
pub(crate) mod codec;

pub use client::UapiDevice;
pub(crate) use client::{Client, hung, socket_path};

/// Reads a text of either side, for fuzzers: whether what was understood is said, and understood
/// again, as the same.
#[doc(hidden)]
pub fn holds(text: &str) -> bool {
    let _ = codec::parse_set(text);
    let Ok(answer) = codec::parse_get(text) else {
        return true;
    };
    let said = codec::format_get(&answer);
    codec::parse_get(&said).is_ok_and(|again| *codec::format_get(&again) == *said)
}
