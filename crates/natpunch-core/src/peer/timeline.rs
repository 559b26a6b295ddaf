//! The last packets to and from the peer beside WireGuard's own, for a person who asks why a path is
//! what it is.

use std::collections::VecDeque;
use std::time::Duration;

use natpunch_types::PathId;

use crate::env::Env;
use crate::{PacketKind, PacketStatus, Time, Transmit};

use super::Peer;

/// Packets that are kept of a peer.
const PACKETS: usize = 40;

/// One packet, or several guesses in a row.
#[derive(Debug)]
struct Packet {
    at: Time,
    is_sent: bool,
    kind: PacketKind,
    path: PathId,
    count: u32,
    /// How long the answer took.
    answer: Option<Duration>,
}

/// The last packets, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Timeline(VecDeque<Packet>);

impl Timeline {
    fn note(&mut self, is_sent: bool, kind: PacketKind, path: PathId, now: Time) {
        // A volley of a thousand guesses would leave nothing else to be seen.
        let last = self.0.back_mut();
        let same = |last: &&mut Packet| last.kind == kind && kind == PacketKind::Guess;
        if let Some(last) = last.filter(same) {
            (last.at, last.path) = (now, path);
            last.count = last.count.saturating_add(1);
            return;
        }
        if self.0.len() >= PACKETS {
            self.0.pop_front();
        }
        self.0.push_back(Packet {
            at: now,
            is_sent,
            kind,
            path,
            count: 1,
            answer: None,
        });
    }

    /// A packet of the peer's has come, and was authentic.
    pub(super) fn heard(&mut self, kind: PacketKind, path: PathId, now: Time) {
        self.note(false, kind, path, now);
    }

    /// The answer to a ping has come.
    pub(super) fn answered(&mut self, ping: (PathId, Time), path: PathId, now: Time) {
        let answer = Some(now.since(ping.1));
        let is_ping = |packet: &&mut Packet| {
            packet.is_sent && (packet.path, packet.at) == ping && packet.kind.is_answered()
        };
        if let Some(packet) = self.0.iter_mut().rev().find(is_ping) {
            packet.answer = answer;
        }
        self.note(false, PacketKind::Answer, path, now);
    }

    /// All of them, the newest first.
    pub(super) fn status(&self, now: Time) -> Vec<PacketStatus> {
        let packets = self.0.iter().rev();
        packets
            .map(|packet| PacketStatus {
                ago: now.since(packet.at),
                sent: packet.is_sent,
                kind: packet.kind,
                local: packet.path.local,
                address: packet.path.remote,
                count: packet.count,
                answer: packet.answer,
            })
            .collect()
    }
}

impl Peer {
    /// Sends a packet to the peer.
    pub(super) fn send(&mut self, kind: PacketKind, transmit: Transmit, env: &mut Env, now: Time) {
        self.timeline.note(true, kind, transmit.path, now);
        env.out.transmit(transmit, now);
    }

    /// The last packets to and from the peer, the newest first.
    pub(crate) fn packets(&self, now: Time) -> Vec<PacketStatus> {
        self.timeline.status(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(last: u8) -> PathId {
        PathId::wireguard(([192, 0, 2, last], 51820).into())
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn a_ping_is_told_with_the_time_that_its_answer_took() {
        let mut timeline = Timeline::default();
        timeline.note(true, PacketKind::Opener, path(1), at(1));
        timeline.note(true, PacketKind::Probe, path(1), at(2));
        timeline.note(true, PacketKind::Probe, path(2), at(2));
        timeline.answered((path(1), at(2)), path(1), at(14));
        let told = timeline.status(at(20));
        let answers: Vec<_> = told
            .iter()
            .map(|packet| (packet.kind, packet.answer))
            .collect();
        let answer = Some(Duration::from_millis(12));
        let expected = [
            (PacketKind::Answer, None),
            (PacketKind::Probe, None),
            (PacketKind::Probe, answer),
            (PacketKind::Opener, None),
        ];
        assert_eq!(answers, expected);
        assert_eq!(told[0].ago, Duration::from_millis(6));
    }

    #[test]
    fn guesses_are_counted_together_and_the_rest_has_a_bound() {
        let mut timeline = Timeline::default();
        timeline.note(true, PacketKind::Probe, path(1), at(1));
        for n in 0..255 {
            timeline.note(true, PacketKind::Guess, path(n), at(2 + u64::from(n)));
        }
        let told = timeline.status(at(999));
        assert_eq!((told.len(), told[0].count), (2, 255));
        for n in 0..255 {
            timeline.heard(PacketKind::Probe, path(n), at(1_000));
        }
        assert_eq!(timeline.status(at(2_000)).len(), PACKETS);
    }
}
