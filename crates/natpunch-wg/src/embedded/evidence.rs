//! What came from a peer in truth: which of its datagrams gotatun could decrypt, and which
//! handshakes are confirmed by them.
//!
//! gotatun tells neither. It counts no bytes of keepalives, and where nobody talks they are all that
//! shows whether a path works. It dates a handshake from our own response, which may never have
//! arrived, or which the peer can't open since its preshared key is another. But of every datagram
//! that it could decrypt, and of no other, it takes the source for the peer's endpoint. So each
//! datagram gets a mark into its source address, and the mark on a peer's endpoint says which one
//! was the last that was authentic. The mark is in the flow label, which no address of ours uses
//! otherwise; [`clean`] takes it off again before anything is sent or told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_os::boot_time;
use natpunch_types::{canonical, lock};

/// Bytes that a keepalive counts: a data message with nothing in it.
pub(super) const KEEPALIVE: u64 = 32;
const INITIATION: (u8, usize) = (1, 148);
const RESPONSE: (u8, usize) = (2, 92);
const DATA: u8 = 4;

/// A datagram that was received: the upper half of the number names the handshake of ours that it
/// answers (0: none that is known), the lower half counts, so that two never look the same. Never 0
/// as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u32);

impl Mark {
    /// The mark on an endpoint; `None` on one that was set by us.
    pub(super) fn of(endpoint: SocketAddr) -> Option<Self> {
        match endpoint {
            SocketAddr::V6(v6) if v6.flowinfo() != 0 => Some(Self(v6.flowinfo())),
            _ => None,
        }
    }

    fn put_on(self, source: SocketAddr) -> SocketAddr {
        let (ip, scope) = match source {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        SocketAddrV6::new(ip, source.port(), self.0, scope).into()
    }

    fn handshake(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The address without a mark.
pub(super) fn clean(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.flowinfo() != 0 => {
            let mapped = v6.ip().to_ipv4_mapped().map(IpAddr::from);
            match mapped {
                Some(ip) => SocketAddr::new(ip, v6.port()),
                None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
            }
        }
        _ => address,
    }
}

/// A handshake message of ours, by which the peer names the session that comes of it.
#[derive(Debug, Clone, Copy)]
struct Handshake {
    index: u32,
    sent: Duration,
}

/// Marks what is received, by what was sent. Clones share one memory.
#[derive(Clone, Default)]
pub(super) struct Witness(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    /// Our last handshake messages: number N stands at N - 1. The oldest is overwritten, so that
    /// peers that are tried in vain cost no more than this.
    sent: Vec<Handshake>,
    next: u16,
    numbers: HashMap<u32, u16>,
    counter: u16,
}

impl Witness {
    /// To be called with everything before it is sent.
    pub(super) fn sending(&self, datagram: &[u8]) {
        let kind = datagram.first().map(|kind| (*kind, datagram.len()));
        if (kind == Some(INITIATION) || kind == Some(RESPONSE))
            && let Some(index) = word(datagram, 4)
        {
            lock(&self.0).remember(index, boot_time());
        }
    }

    /// Marks the sources of what was received.
    pub(super) fn mark<'a>(&self, received: impl Iterator<Item = (&'a [u8], &'a mut SocketAddr)>) {
        let mut memory = lock(&self.0);
        for (datagram, source) in received {
            *source = memory.mark(datagram).put_on(*source);
        }
    }

    /// When the handshake message was sent that an authentic datagram with this mark answers, since
    /// boot. Such a datagram confirms the handshake: its sender has the keys that came of it.
    pub(super) fn confirmed(&self, mark: Mark) -> Option<Duration> {
        let place = usize::from(mark.handshake()).checked_sub(1)?;
        lock(&self.0)
            .sent
            .get(place)
            .map(|handshake| handshake.sent)
    }
}

impl Memory {
    fn remember(&mut self, index: u32, now: Duration) {
        let handshake = Handshake { index, sent: now };
        match self.sent.get_mut(usize::from(self.next)) {
            Some(oldest) => {
                if self.numbers.get(&oldest.index) == Some(&(self.next + 1)) {
                    self.numbers.remove(&oldest.index);
                }
                *oldest = handshake;
            }
            None => self.sent.push(handshake),
        }
        self.next += 1;
        self.numbers.insert(index, self.next);
        // The last number is u16::MAX, since 0 means none.
        self.next %= u16::MAX;
    }

    fn mark(&mut self, datagram: &[u8]) -> Mark {
        self.counter = self.counter.checked_add(1).unwrap_or(1);
        let receiver = match datagram.first() {
            Some(&kind) if (kind, datagram.len()) == RESPONSE => word(datagram, 8),
            Some(&DATA) => word(datagram, 4),
            // An initiation answers nothing.
            _ => None,
        };
        let number = receiver.and_then(|index| self.numbers.get(&index));
        let number = number.copied().unwrap_or_default();
        Mark(u32::from(number) << 16 | u32::from(self.counter))
    }
}

fn word(datagram: &[u8], at: usize) -> Option<u32> {
    let bytes = datagram.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// What one peer has shown so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    mark: Option<Mark>,
    /// Bytes that gotatun counted.
    counted: u64,
    keepalives: u64,
    handshake: Option<Duration>,
}

impl Shown {
    /// Takes over what gotatun says now.
    pub(super) fn update(&mut self, endpoint: Option<SocketAddr>, counted: u64, witness: &Witness) {
        let mark = endpoint.and_then(Mark::of);
        if mark != self.mark
            && let Some(mark) = mark
        {
            // Authentic, and not one byte of content: at least one keepalive.
            if counted == self.counted {
                self.keepalives += KEEPALIVE;
            }
            // A late datagram of the session before changes nothing.
            self.handshake = self.handshake.max(witness.confirmed(mark));
        }
        (self.mark, self.counted) = (mark, counted);
    }

    /// The bytes received, those of keepalives among them.
    pub(super) fn received(&self) -> u64 {
        self.counted + self.keepalives
    }

    /// When the last confirmed handshake began, since boot. It stays when its session ends, as in
    /// the kernel.
    pub(super) fn handshake(&self) -> Option<Duration> {
        self.handshake
    }
}

/// The endpoint as others shall see it.
pub(super) fn endpoint(marked: Option<SocketAddr>) -> Option<SocketAddr> {
    marked.map(clean).map(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "192.0.2.1:1000";

    fn message(kind: (u8, usize), words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![kind.0, 0, 0, 0];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(kind.1, 0);
        bytes
    }

    /// The endpoint that gotatun would take over, if the datagram was authentic.
    fn receive(witness: &Witness, datagram: &[u8]) -> Option<SocketAddr> {
        let mut source: SocketAddr = PEER.parse().unwrap();
        witness.mark(std::iter::once((datagram, &mut source)));
        Some(source)
    }

    #[test]
    fn a_mark_is_seen_by_nobody_else() {
        let witness = Witness::default();
        for address in [PEER, "[2001:db8::1]:7", "[fe80::1%3]:9"] {
            let address: SocketAddr = address.parse().unwrap();
            let mut source = address;
            witness.mark(std::iter::once((&[4_u8; 32][..], &mut source)));
            assert!(Mark::of(source).is_some());
            assert_eq!(clean(source), address);
            assert_eq!(endpoint(Some(source)), Some(address));
            assert_eq!(Mark::of(address), None);
        }
    }

    #[test]
    fn what_gotatun_did_not_take_over_counts_for_nothing() {
        let (witness, mut shown) = (Witness::default(), Shown::default());
        let set_by_us = Some(PEER.parse().unwrap());
        for datagram in [
            &[4_u8; 32][..],
            &[1; 148],
            &[2; 92],
            &[3; 64],
            &[4; 1_000],
            &[],
        ] {
            receive(&witness, datagram);
            shown.update(set_by_us, 0, &witness);
        }
        assert_eq!((shown.received(), shown.handshake()), (0, None));
    }

    #[test]
    fn an_authentic_keepalive_counts_once() {
        let (witness, mut shown) = (Witness::default(), Shown::default());
        let endpoint = receive(&witness, &message((4, 32), &[7]));
        for _ in 0..3 {
            shown.update(endpoint, 0, &witness);
            assert_eq!(shown.received(), KEEPALIVE);
        }
        // Content is counted by gotatun itself.
        let endpoint = receive(&witness, &message((4, 128), &[7]));
        shown.update(endpoint, 96, &witness);
        assert_eq!(shown.received(), 96 + KEEPALIVE);
    }

    #[test]
    fn a_handshake_counts_when_the_peer_has_shown_that_it_has_its_keys() {
        let (witness, mut shown) = (Witness::default(), Shown::default());
        // Its initiation is authentic, and says nothing of our response.
        let endpoint = receive(&witness, &message(INITIATION, &[1]));
        witness.sending(&message(RESPONSE, &[7, 1]));
        shown.update(endpoint, 148, &witness);
        assert_eq!(shown.handshake(), None);
        let endpoint = receive(&witness, &message((4, 32), &[7]));
        shown.update(endpoint, 148, &witness);
        let first = shown.handshake();
        assert!(first.is_some());
        // As initiator: its response.
        witness.sending(&message(INITIATION, &[8]));
        let endpoint = receive(&witness, &message(RESPONSE, &[2, 8]));
        shown.update(endpoint, 240, &witness);
        let second = shown.handshake();
        assert!(second > first);
        // A late datagram of the session before.
        let endpoint = receive(&witness, &message((4, 32), &[7]));
        shown.update(endpoint, 240, &witness);
        assert_eq!(shown.handshake(), second);
    }

    #[test]
    fn the_memory_of_handshakes_is_bounded_and_keeps_the_last_ones() {
        let witness = Witness::default();
        for index in 0..70_000 {
            witness.sending(&message(INITIATION, &[index]));
        }
        let (sent, numbers) = {
            let memory = lock(&witness.0);
            (memory.sent.len(), memory.numbers.len())
        };
        assert_eq!((sent, numbers), (65_535, 65_535));
        let confirmed = |index| {
            let mark = Mark::of(receive(&witness, &message((4, 32), &[index])).unwrap());
            witness.confirmed(mark.unwrap())
        };
        assert!(confirmed(69_999).is_some() && confirmed(70_000 - 65_535).is_some());
        assert_eq!(confirmed(0), None, "forgotten");
    }
}
