//! The course of packets as a Mermaid sequence diagram: the way of each packet from router to
//! router, where it was rewritten, and where and why it ended.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::packet::{Packet, Purpose, clock};
use crate::trace::{Entry, What};

/// The newest `most` legs of packets between nodes, straight or by a relay, with the notes between
/// them. `order` has the places from left to right; a place that is not in it comes last.
pub(crate) fn mermaid<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    order: &[Arc<str>],
    most: usize,
) -> String {
    let mut places: Vec<Arc<str>> = order.to_vec();
    // Where each packet was seen last.
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut lines: Vec<(Vec<usize>, String)> = Vec::new();
    for entry in entries {
        if let What::Note(text) = &entry.what {
            let all = [0, order.len().saturating_sub(1)];
            let line = format!("{} {}: {text}", clock(entry.at), entry.place);
            lines.push((
                all.to_vec(),
                format!("Note over p{},p{}: {}", all[0], all[1], plain(&line)),
            ));
            continue;
        }
        let Some(packet) = entry.packet.as_ref().filter(|packet| is_of_a_pair(packet)) else {
            continue;
        };
        let known = places.iter().position(|place| *place == entry.place);
        let here = known.unwrap_or_else(|| {
            places.push(entry.place.clone());
            places.len() - 1
        });
        let from = seen.insert(packet.id, here).unwrap_or(here);
        let (arrow, why) = match &entry.what {
            What::Sent | What::Note(_) => continue,
            What::Delivered => ("->>", String::new()),
            What::SentAs(source) => ("->>", format!(", sent on as {source}")),
            What::ForwardedTo(to) => ("->>", format!(", forwarded to {to}")),
            What::Dropped(why) | What::Lost(why) => ("-x", format!(", {why}")),
        };
        let what = format!(
            "{} {} {} to {}{why}",
            clock(entry.at),
            packet.payload,
            packet.source,
            packet.destination
        );
        lines.push((
            vec![from, here],
            format!("p{from}{arrow}p{here}: {}", plain(&what)),
        ));
    }
    let newest = &lines[lines.len().saturating_sub(most)..];
    let mut text = "sequenceDiagram\n".to_owned();
    for (number, place) in places.iter().enumerate() {
        let used = newest.iter().any(|(of, _)| of.contains(&number));
        if used {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  participant p{number} as {}", plain(place));
        }
    }
    for (_, line) in newest {
        let _ = writeln!(text, "  {line}");
    }
    text
}

fn is_of_a_pair(packet: &Packet) -> bool {
    match packet.payload.purpose() {
        Purpose::Probe | Purpose::WireGuard | Purpose::Error => true,
        Purpose::Bind | Purpose::Server | Purpose::Stun => false,
    }
}

/// Mermaid ends a line at a semicolon, and begins a character's name at a number sign.
fn plain(text: &str) -> String {
    text.replace([';', '#', '\n'], " ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::packet::Payload;

    #[test]
    fn a_packet_is_followed_from_its_sender_to_the_router_that_drops_it() {
        let packet = |source: &str| Packet {
            id: 5,
            ..Packet::new(
                source.parse().unwrap(),
                "203.0.113.2:9".parse().unwrap(),
                Payload::Raw(vec![1]),
            )
        };
        let entry = |micros, place: &str, what, source| Entry {
            at: Duration::from_micros(micros),
            place: place.into(),
            what,
            packet: Some(packet(source)),
        };
        let seen = "203.0.113.1:7".parse().unwrap();
        let note = Entry {
            packet: None,
            ..entry(4, "b", What::Note("one; two".to_owned()), "10.0.0.2:7")
        };
        let entries = [
            entry(1, "a", What::Sent, "10.0.0.2:7"),
            entry(2, "gw-a", What::SentAs(seen), "10.0.0.2:7"),
            entry(3, "gw-b", What::Dropped("filtered"), "203.0.113.1:7"),
            note,
        ];
        let order = ["a", "gw-a", "server", "gw-b", "b"].map(Arc::from);
        let chart = mermaid(entries.iter(), &order, 10);
        assert_eq!(
            chart,
            "sequenceDiagram\n  \
               participant p0 as a\n  \
               participant p1 as gw-a\n  \
               participant p3 as gw-b\n  \
               participant p4 as b\n  \
               p0->>p1: 0.000002 probe 1 B 10.0.0.2:7 to 203.0.113.2:9, sent on as 203.0.113.1:7\n  \
               p1-xp3: 0.000003 probe 1 B 203.0.113.1:7 to 203.0.113.2:9, filtered\n  \
               Note over p0,p4: 0.000004 b: one  two\n"
        );
        let last = mermaid(entries.iter(), &order, 1);
        assert!(
            last.contains("Note over") && !last.contains("filtered"),
            "{last}"
        );
    }
}
