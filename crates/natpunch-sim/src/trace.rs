//! What happened, packet by packet: text for people, a hash for machines.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::packet::{Packet, clock};

/// Events that a trace keeps; older ones are forgotten, but stay in the hash.
const KEPT: usize = 20_000;

/// What happened to a packet, or to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A host sent it.
    Sent,
    /// A host got it.
    Delivered,
    /// A router forwarded it outwards, and now it comes from here.
    SentAs(SocketAddr),
    /// A router forwarded it inwards, and now it goes here.
    ForwardedTo(SocketAddr),
    /// It is gone, and why.
    Dropped(&'static str),
    /// The link that it entered here did not carry it, and why.
    Lost(&'static str),
    /// Not a packet: something that a host did or that the scenario ordered.
    Note(String),
}

/// One line of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When, since the start.
    pub at: Duration,
    /// At which host, gateway or segment.
    pub place: Arc<str>,
    /// What happened.
    pub what: What,
    /// To which packet.
    pub packet: Option<Packet>,
}

/// The course of a run. The newest [`Entry`]s are kept; the hash covers all.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    entries: VecDeque<Entry>,
    hash: u64,
    total: u64,
}

impl Trace {
    pub(crate) fn record(
        &mut self,
        at: Duration,
        place: &Arc<str>,
        what: What,
        packet: Option<&Packet>,
    ) {
        self.total += 1;
        self.absorb(&at.as_nanos().to_le_bytes());
        self.absorb(place.as_bytes());
        if let What::Note(text) = &what {
            self.absorb(text.as_bytes());
        }
        if let Some(packet) = packet {
            self.absorb(&[packet.ttl]);
            self.absorb(&packet.destination.port().to_le_bytes());
            self.absorb(&packet.source.port().to_le_bytes());
            self.absorb(packet.payload.bytes());
        }
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            at,
            place: place.clone(),
            what,
            packet: packet.cloned(),
        });
    }

    /// FNV-1a: enough to tell two runs apart, and stable.
    fn absorb(&mut self, bytes: &[u8]) {
        let start = if self.hash == 0 {
            0xcbf2_9ce4_8422_2325
        } else {
            self.hash
        };
        self.hash = bytes.iter().fold(start, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    }

    /// A hash over every event of the run: equal for two runs of one seed.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of events of the run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The newest events.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The newest `most` events as text, one a line.
    pub fn text(&self, most: usize) -> String {
        let mut text = String::new();
        for entry in self
            .entries
            .iter()
            .skip(self.entries.len().saturating_sub(most))
        {
            let packet = entry.packet.as_ref().map(|packet| {
                format!(
                    "{} -> {} ttl {} {}",
                    packet.source, packet.destination, packet.ttl, packet.payload
                )
            });
            let what = match &entry.what {
                What::Sent => "sent".to_owned(),
                What::Delivered => "got".to_owned(),
                What::SentAs(source) => format!("sent on as {source}"),
                What::ForwardedTo(destination) => format!("forwarded to {destination}"),
                What::Dropped(why) => format!("DROPPED ({why})"),
                What::Lost(why) => format!("LOST ({why})"),
                What::Note(text) => text.clone(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} {:<12} {what} {}",
                clock(entry.at),
                entry.place,
                packet.unwrap_or_default()
            );
        }
        text
    }
}
