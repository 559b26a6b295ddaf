//! Meetings: two clients that want to probe each other say so, and each is told the same moment.
//!
//! A NAT or firewall that drops unexpected packets lets a probe in once its own host has sent one
//! out. If both probes leave at the same moment, each has left before the other arrives, at any
//! distance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use natpunch_types::{PeerKey, Site, Time, Usage};

use super::session::{ClientId, Pushes};
use crate::frame::Notice;
use crate::wire::Tag;

/// How long one client waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Added to the longest way, for the jitter of the network and of the clients.
const MARGIN: Duration = Duration::from_millis(60);
/// Added where the two are at two processes, for the way through the store.
const STORE_MARGIN: Duration = Duration::from_millis(40);
/// A client counts as no further away than this, whatever round trip it states.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);
/// How long after the moment a repeated wish is taken for a copy of the earlier one.
const SETTLED: Duration = Duration::from_secs(1);
/// Wishes that wait: of all, and of one client.
const MAX_MEETINGS: usize = 65_536;
const MAX_OF_ONE: usize = 1_024;

struct Meeting {
    /// The client that asked first.
    first: Side,
    /// The site of that client, for which the meeting counts.
    site: Site,
    /// The client that asked second, and the moment.
    second: Option<(Side, Time)>,
    expires: Time,
}

#[derive(Clone, Copy)]
struct Side {
    client: ClientId,
    round_trip: Duration,
}

impl Side {
    /// The notice that makes it fire at this moment; `None` if the notice would arrive too late.
    fn fire(&self, tag: Tag, moment: Time, now: Time) -> Option<(ClientId, Notice)> {
        let arrives = now + self.round_trip / 2;
        if moment < arrives {
            return None;
        }
        let delay = moment.since(arrives);
        Some((
            self.client,
            Notice::Fire {
                tag,
                delay_ms: delay.as_millis().try_into().unwrap_or(u16::MAX),
            },
        ))
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Meetings {
    by_tag: BTreeMap<Tag, Meeting>,
    expiring: BTreeSet<(Time, Tag)>,
    clients: Usage<PeerKey>,
    /// So that however many clients one site has, others find room.
    sites: Usage<Site>,
}

impl Meetings {
    pub(super) fn len(&self) -> usize {
        self.by_tag.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_tag.is_empty()
    }

    /// Whether one waits for the other.
    pub(super) fn waits(&self, tag: &Tag) -> bool {
        self.by_tag
            .get(tag)
            .is_some_and(|meeting| meeting.second.is_none())
    }

    /// A client wants to meet the other client that names this tag. Returns the notices to send
    /// now.
    pub(super) fn meet(
        &mut self,
        (client, site): (ClientId, Site),
        tag: Tag,
        round_trip_ms: u16,
        now: Time,
    ) -> Pushes {
        self.forget(now);
        let round_trip = Duration::from_millis(round_trip_ms.into()).min(MAX_ROUND_TRIP);
        let side = Side { client, round_trip };
        let Some(meeting) = self.by_tag.get_mut(&tag) else {
            let left = MAX_MEETINGS.saturating_sub(self.by_tag.len());
            let may = self.clients.of(&client.identity) < MAX_OF_ONE;
            if may && self.sites.leaves_room(&site, left) {
                self.clients.take(client.identity);
                self.sites.take(site);
                let expires = now + PATIENCE;
                self.by_tag.insert(
                    tag,
                    Meeting {
                        first: side,
                        site,
                        second: None,
                        expires,
                    },
                );
                self.expiring.insert((expires, tag));
            }
            return Vec::new();
        };
        match &mut meeting.second {
            // The moment is fixed. A client of the two asks again, since the answer may have been
            // lost: it gets the rest of the time. A third client gets none.
            Some((second, moment)) => {
                let known = [meeting.first, *second]
                    .into_iter()
                    .find(|known| known.client.identity == client.identity);
                known
                    .and_then(|known| Side { client, ..known }.fire(tag, *moment, now))
                    .into_iter()
                    .collect()
            }
            // The first client asks again, perhaps over the other address family: it waits on.
            None if meeting.first.client.identity == client.identity => {
                meeting.first = side;
                self.expiring.remove(&(meeting.expires, tag));
                meeting.expires = now + PATIENCE;
                self.expiring.insert((meeting.expires, tag));
                Vec::new()
            }
            // The second client: both are told the moment.
            None => {
                let sides = [meeting.first, side];
                let moment = now
                    + sides
                        .iter()
                        .map(|side| side.round_trip)
                        .max()
                        .unwrap_or_default()
                        / 2
                    + MARGIN;
                meeting.second = Some((side, moment));
                self.expiring.remove(&(meeting.expires, tag));
                meeting.expires = moment + SETTLED;
                self.expiring.insert((meeting.expires, tag));
                sides
                    .iter()
                    .filter_map(|side| side.fire(tag, moment, now))
                    .collect()
            }
        }
    }

    /// A client of another process meets the one that waits here: the moment, and the notice to send
    /// now. The moment was fixed there, or is fixed here. `None`: nobody waits for that client.
    pub(super) fn meet_elsewhere(
        &mut self,
        tag: Tag,
        (other, round_trip_ms): (PeerKey, u16),
        fixed: Option<Time>,
        now: Time,
    ) -> Option<(Time, Pushes)> {
        self.forget(now);
        let meeting = self.by_tag.get_mut(&tag)?;
        if meeting.second.is_some() || meeting.first.client.identity == other {
            return None;
        }
        let client = ClientId {
            identity: other,
            v6: false,
        };
        let round_trip = Duration::from_millis(round_trip_ms.into()).min(MAX_ROUND_TRIP);
        let farthest = meeting.first.round_trip.max(round_trip);
        let latest = now + MAX_ROUND_TRIP / 2 + MARGIN + STORE_MARGIN;
        let moment = fixed.unwrap_or(now + farthest / 2 + MARGIN + STORE_MARGIN);
        let moment = moment.min(latest);
        meeting.second = Some((Side { client, round_trip }, moment));
        self.expiring.remove(&(meeting.expires, tag));
        meeting.expires = moment + SETTLED;
        self.expiring.insert((meeting.expires, tag));
        let fires = meeting.first.fire(tag, moment, now).into_iter().collect();
        Some((moment, fires))
    }

    /// The client that waits for another, and its round trip in milliseconds.
    pub(super) fn waiting(&self, tag: &Tag) -> Option<(PeerKey, u16)> {
        let meeting = self.by_tag.get(tag)?;
        let first = meeting.first;
        let round_trip = first.round_trip.as_millis().try_into();
        Some((first.client.identity, round_trip.unwrap_or(u16::MAX)))
    }

    /// Forgets the meetings of clients for which this is true.
    pub(super) fn remove_if(&mut self, is_over: impl Fn(&PeerKey) -> bool) {
        let over: Vec<Tag> = self
            .by_tag
            .iter()
            .filter(|(_, meeting)| is_over(&meeting.first.client.identity))
            .map(|(tag, _)| *tag)
            .collect();
        over.iter().for_each(|tag| self.remove(tag));
    }

    /// Forgets what is over.
    pub(super) fn forget(&mut self, now: Time) {
        while let Some((_, tag)) = self
            .expiring
            .first()
            .filter(|(expires, _)| *expires <= now)
            .copied()
        {
            self.remove(&tag);
        }
    }

    fn remove(&mut self, tag: &Tag) {
        let Some(meeting) = self.by_tag.remove(tag) else {
            return;
        };
        self.expiring.remove(&(meeting.expires, *tag));
        self.clients.give_back(&meeting.first.client.identity);
        self.sites.give_back(&meeting.site);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(n: u8) -> ClientId {
        ClientId {
            identity: PeerKey::from_bytes([n; 32]),
            v6: false,
        }
    }

    /// The client, at some address.
    fn near(client: ClientId) -> (ClientId, Site) {
        from(client, "192.0.2.1")
    }

    fn from(client: ClientId, address: &str) -> (ClientId, Site) {
        let network = natpunch_types::Network::of(address.parse().unwrap());
        (client, network.site())
    }

    fn ms(n: u64) -> Time {
        Time::from_millis(n)
    }

    fn delays(told: &[(ClientId, Notice)]) -> Vec<(ClientId, u16)> {
        let delay = |notice: &Notice| match notice {
            Notice::Fire { delay_ms, .. } => *delay_ms,
            other => panic!("{other:?}"),
        };
        told.iter()
            .map(|(client, notice)| (*client, delay(notice)))
            .collect()
    }

    #[test]
    fn both_are_told_one_moment_however_far_each_is() {
        let mut meetings = Meetings::default();
        assert!(
            meetings
                .meet(near(client(1)), [7; 16], 20, ms(0))
                .is_empty()
        );
        let told = meetings.meet(near(client(2)), [7; 16], 300, ms(4_900));
        // 150 + 60 from now, less the way to each.
        assert_eq!(delays(&told), [(client(1), 200), (client(2), 60)]);
    }

    #[test]
    fn whoever_says_it_again_is_told_the_rest_of_the_time_and_nobody_fires_twice() {
        let mut meetings = Meetings::default();
        meetings.meet(near(client(1)), [7; 16], 0, ms(0));
        meetings.meet(near(client(2)), [7; 16], 0, ms(0));
        assert_eq!(
            delays(&meetings.meet(near(client(1)), [7; 16], 0, ms(20))),
            [(client(1), 40)]
        );
        for later in [61, 500, 1_059] {
            assert!(
                meetings
                    .meet(near(client(1)), [7; 16], 0, ms(later))
                    .is_empty()
            );
            assert!(
                meetings
                    .meet(near(client(2)), [7; 16], 0, ms(later))
                    .is_empty()
            );
        }
        assert!(
            !meetings.waits(&[7; 16]),
            "nobody is told that the other one is wanted"
        );
        // A third one is no side of it.
        assert!(
            meetings
                .meet(near(client(3)), [7; 16], 0, ms(30))
                .is_empty()
        );
        // And then it is a new wish.
        assert!(
            meetings
                .meet(near(client(1)), [7; 16], 0, ms(2_000))
                .is_empty()
        );
        assert!(meetings.waits(&[7; 16]));
        assert_eq!(
            meetings.meet(near(client(2)), [7; 16], 0, ms(2_000)).len(),
            2
        );
    }

    #[test]
    fn one_alone_or_too_early_meets_nobody() {
        let mut meetings = Meetings::default();
        meetings.meet(near(client(1)), [7; 16], 0, ms(0));
        assert!(
            meetings
                .meet(
                    near(ClientId {
                        v6: true,
                        ..client(1)
                    }),
                    [7; 16],
                    0,
                    ms(1)
                )
                .is_empty(),
            "its other family"
        );
        assert!(meetings.meet(near(client(2)), [8; 16], 0, ms(1)).is_empty());
        assert!(
            meetings
                .meet(near(client(2)), [7; 16], 0, ms(5_001))
                .is_empty()
        );
        meetings.forget(ms(20_000));
        assert!(meetings.is_empty() && meetings.expiring.is_empty() && meetings.clients.len() == 0);
    }

    #[test]
    fn nobody_fills_the_table() {
        let mut meetings = Meetings::default();
        for n in 0..5_000_u16 {
            let mut tag = [0; 16];
            tag[..2].copy_from_slice(&n.to_be_bytes());
            meetings.meet(near(client(1)), tag, u16::MAX, ms(0));
        }
        assert_eq!(meetings.by_tag.len(), MAX_OF_ONE);
        meetings.meet(near(client(2)), [0xff; 16], 0, ms(0));
        let told = meetings.meet(near(client(3)), [0xff; 16], u16::MAX, ms(0));
        assert_eq!(
            delays(&told),
            [(client(2), 1_060), (client(3), 60)],
            "nobody is made to wait longer than two seconds"
        );
        meetings.remove_if(|who| *who == client(1).identity);
        assert_eq!((meetings.by_tag.len(), meetings.clients.len()), (1, 1));
    }

    #[test]
    fn the_clients_of_one_site_leave_room_for_others() {
        let mut meetings = Meetings::default();
        let numbered = |n: u32| {
            let mut bytes = [9; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            let identity = PeerKey::from_bytes(bytes);
            ClientId {
                identity,
                v6: false,
            }
        };
        let tag = |n: u32| {
            let mut tag = [0; 16];
            tag[..4].copy_from_slice(&n.to_be_bytes());
            tag
        };
        // As many clients as it takes, all of one /24.
        for n in 0..2 * MAX_MEETINGS as u32 {
            let address = format!("198.51.100.{}", n % 256);
            meetings.meet(from(numbered(n), &address), tag(n), 0, ms(0));
        }
        assert_eq!(meetings.len(), MAX_MEETINGS / 2);
        meetings.meet(near(client(1)), [7; 16], 0, ms(1));
        assert!(meetings.waits(&[7; 16]), "no room for another site");
        meetings.forget(ms(60_000));
        assert_eq!((meetings.len(), meetings.sites.len()), (0, 0));
    }
}
