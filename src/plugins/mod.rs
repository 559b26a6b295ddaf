//! Discovery plugins: the explicit list of those built in, and the host that runs them.

pub mod correspondents;
pub mod host;
pub mod registry;

/// Fills a buffer from the operating system's generator.
///
/// A system without one can't make a nonce or a key, so there is nothing better to do than to end.
#[allow(clippy::expect_used)]
pub fn fill_random(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system has no random numbers");
}
