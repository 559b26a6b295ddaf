//! Other places of the server: its second port, and another of its addresses. A probe from the same
//! port of ours shows how we are seen there: the same, or not. The first tells a NAT that maps by
//! port, the second one that maps by address (RFC 4787, 4.1).

use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::{Mapping, Time};

/// How long the last probe is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// When a probe is sent again.
const RESEND: [Duration; 3] = [
    Duration::from_millis(500),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
];

struct Place {
    address: SocketAddr,
    due: Option<Time>,
    tries: usize,
    /// Whether it sees us where the first one does.
    same: Option<bool>,
    /// It has answered no probe.
    is_silent: bool,
}

#[derive(Default)]
pub(super) struct Alternates {
    /// The second port, which the server names.
    port: Option<Place>,
    /// Another address, which the server's name has.
    address: Option<Place>,
    /// How the first place sees us.
    observed: Option<SocketAddr>,
    /// What was said of the NAT.
    said: Option<Mapping>,
}

impl Alternates {
    fn places(&mut self) -> impl Iterator<Item = &mut Place> {
        [&mut self.port, &mut self.address].into_iter().flatten()
    }

    /// The server says which its second port is.
    pub(super) fn offer(&mut self, server: SocketAddr, port: u16, now: Time) {
        let address = Some(SocketAddr::new(server.ip(), port))
            .filter(|address| *address != server && port != 0);
        if self.port.as_ref().map(|place| place.address) != address {
            self.port = address.map(Place::new);
            self.start(now);
        }
    }

    /// Another address of the server.
    pub(super) fn set_address(&mut self, address: Option<SocketAddr>, now: Time) {
        if self.address.as_ref().map(|place| place.address) != address {
            self.address = address.map(Place::new);
            self.start(now);
        }
    }

    /// The first place sees us here.
    pub(super) fn observe(&mut self, observed: SocketAddr, now: Time) {
        if self.observed.replace(observed) != Some(observed) {
            self.start(now);
        }
    }

    /// What was known is not good any more.
    pub(super) fn forget(&mut self) {
        (self.observed, self.said) = (None, None);
        self.places().for_each(|place| place.due = None);
    }

    /// The session is gone, and with it what the server said.
    pub(super) fn end(&mut self) {
        self.forget();
        self.port = None;
    }

    fn start(&mut self, now: Time) {
        self.said = None;
        let due = self.observed.map(|_| now);
        self.places()
            .for_each(|place| (place.tries, place.due, place.same) = (0, due, None));
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        [&self.port, &self.address]
            .into_iter()
            .flatten()
            .filter_map(|place| place.due)
            .min()
    }

    /// Where a probe is to go now.
    pub(super) fn take_due(&mut self, now: Time) -> Option<SocketAddr> {
        let place = self
            .places()
            .find(|place| place.due.is_some_and(|due| due <= now))?;
        let wait = RESEND.get(place.tries).copied();
        place.tries += 1;
        if wait.is_none() && place.tries > RESEND.len() + 1 {
            (place.due, place.is_silent) = (None, true);
            return self.take_due(now);
        }
        place.due = Some(now + wait.unwrap_or(PATIENCE));
        Some(place.address)
    }

    /// The server's second port, if it answers nothing.
    pub(super) fn silent_port(&self) -> Option<SocketAddr> {
        let port = self.port.as_ref().filter(|port| port.is_silent)?;
        Some(port.address)
    }

    /// Whether a datagram may come from there.
    pub(super) fn is(&self, source: SocketAddr) -> bool {
        [&self.port, &self.address]
            .into_iter()
            .flatten()
            .any(|place| place.address == source)
    }

    /// A place sees us here; what that tells of the NAT, if it is news. One that sees us elsewhere
    /// is enough.
    pub(super) fn answer(&mut self, from: SocketAddr, seen: SocketAddr) -> Option<Mapping> {
        let observed = self.observed?;
        let place = self.places().find(|place| place.address == from)?;
        (place.due, place.same, place.is_silent) = (None, Some(observed == seen), false);
        let differs = self.places().any(|place| place.same == Some(false));
        let mapping = if differs {
            Mapping::EndpointDependent
        } else {
            Mapping::EndpointIndependent
        };
        (self.said.replace(mapping) != Some(mapping)).then_some(mapping)
    }
}

impl Place {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            due: None,
            tries: 0,
            same: None,
            is_silent: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_server_said_outlives_its_session() {
        let server: SocketAddr = "198.51.100.1:51900".parse().unwrap();
        let mut places = Alternates::default();
        places.offer(server, 51_901, Time::ZERO);
        places.observe("203.0.113.1:1000".parse().unwrap(), Time::ZERO);
        let second = places.take_due(Time::ZERO).unwrap();
        assert!(places.is(second) && places.next_due().is_some());
        places.end();
        assert!(!places.is(second), "its second port may be another's now");
        assert_eq!(
            (places.next_due(), places.take_due(Time::ZERO)),
            (None, None)
        );
    }
}
