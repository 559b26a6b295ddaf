//! The server's second port. A probe from the same port of ours shows how we are seen there: the same, or not.

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::Mapping;

/// When a probe is sent again; then there is no answer.
const RESEND: [Duration; 3] = [Duration::from_millis(500), Duration::from_millis(1000), Duration::from_millis(2000)];

#[derive(Default)]
pub(super) struct Alternate {
    /// Where the second port is.
    address: Option<SocketAddr>,
    /// How the first port sees us.
    observed: Option<SocketAddr>,
    due: Option<Duration>,
    tries: usize,
}

impl Alternate {
    /// The server says which port that is.
    pub(super) fn offer(&mut self, server: SocketAddr, port: u16, now: Duration) {
        let mut address = server;
        address.set_port(port);
        let address = Some(address).filter(|address| *address != server && port != 0);
        if self.address != address {
            self.address = address;
            self.start(now);
        }
    }

    /// The first port sees us here.
    pub(super) fn observe(&mut self, observed: SocketAddr, now: Duration) {
        if self.observed.replace(observed) != Some(observed) {
            self.start(now);
        }
    }

    /// What was known is not good any more.
    pub(super) fn forget(&mut self) {
        (self.observed, self.due) = (None, None);
    }

    fn start(&mut self, now: Duration) {
        self.tries = 0;
        self.due = (self.address.is_some() && self.observed.is_some()).then_some(now);
    }

    pub(super) fn next_due(&self) -> Option<Duration> {
        self.due
    }

    /// Where a probe is to go now.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<SocketAddr> {
        self.due.filter(|due| *due <= now)?;
        self.due = RESEND.get(self.tries).map(|wait| now + *wait);
        self.tries += 1;
        self.address
    }

    /// Whether a datagram may come from there.
    pub(super) fn is(&self, source: SocketAddr) -> bool {
        self.address == Some(source)
    }

    /// The second port sees us here.
    pub(super) fn answer(&mut self, seen: SocketAddr) -> Option<Mapping> {
        self.due = None;
        let same = self.observed? == seen;
        Some(if same { Mapping::EndpointIndependent } else { Mapping::EndpointDependent })
    }
}
