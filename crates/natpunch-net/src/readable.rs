//! Hands a file descriptor to tokio's reactor, which needs `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use socket2::Socket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Types that own one file descriptor, which stays open and the same for as long as they live.
pub(crate) trait OwnsDescriptor: AsRawFd {}
impl OwnsDescriptor for Socket {}
impl OwnsDescriptor for OwnedFd {}

/// Lets tokio wait until there is something to read. Must be called within a runtime.
pub(crate) fn readable<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: `OwnsDescriptor` is private and implemented only for types whose descriptor is valid
    // until they are dropped and never changes, and `AsyncFd` owns the value.
    Ok(unsafe { AsyncFd::register_with_interest(inner, Interest::READABLE) }?)
}
