//! Datagrams on their way from a stream to the thread that serves their port.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use natpunch_types::lock;

/// Datagrams that wait; newer ones are dropped.
const MAX: usize = 1_024;

/// A datagram that came in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::server) struct Arrived {
    /// For which of the thread's ports.
    pub(in crate::server) place: usize,
    /// The address that stands for the stream.
    pub(in crate::server) source: SocketAddr,
    /// The datagram.
    pub(in crate::server) payload: Vec<u8>,
}

/// What waits for one thread. Its file is readable when there is something.
pub(in crate::server) struct Mailbox {
    waiting: Mutex<VecDeque<Arrived>>,
    wake: UnixStream,
    woken: UnixStream,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// The system has no files left.
    pub(in crate::server) fn new() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self {
            waiting: Mutex::default(),
            wake,
            woken,
        })
    }

    /// Adds a datagram; false if there is no room for it.
    pub(in crate::server) fn push(&self, arrived: Arrived) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.len() >= MAX {
            return false;
        }
        waiting.push_back(arrived);
        if waiting.len() == 1 {
            // A file that can take no more has woken the thread already.
            let _ = (&self.wake).write(&[0]);
        }
        true
    }

    /// Takes all that waits.
    pub(in crate::server) fn take(&self) -> VecDeque<Arrived> {
        // First, so that what comes meanwhile wakes the thread again.
        let mut woken = [0; 64];
        while matches!((&self.woken).read(&mut woken), Ok(read) if read == woken.len()) {}
        std::mem::take(&mut *lock(&self.waiting))
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_readable(mailbox: &Mailbox) -> bool {
        let mut files = [PollFd::new(mailbox.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_mailbox_wakes_its_thread_while_something_waits_and_has_a_bound() {
        let mailbox = Mailbox::new().unwrap();
        let arrived = |place| Arrived {
            place,
            source: SocketAddr::from(([192, 0, 2, 1], 1)),
            payload: vec![],
        };
        assert!(!is_readable(&mailbox));
        let kept = (0..2 * MAX).filter(|n| mailbox.push(arrived(*n))).count();
        assert_eq!(kept, MAX);
        assert!(is_readable(&mailbox));
        let taken = mailbox.take();
        assert_eq!((taken.len(), taken.front()), (MAX, Some(&arrived(0))));
        assert!(!is_readable(&mailbox));
        assert!(mailbox.push(arrived(0)) && is_readable(&mailbox));
    }
}
