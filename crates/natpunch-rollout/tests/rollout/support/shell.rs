//! A shell that does nothing by itself: a test takes each output by its kind and answers it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use natpunch_rollout::{
    Answers, Ask, Change, Entry, Hash, Notice, Output, Refused, Rollout, Settings, Start, Watch,
};
use natpunch_types::{DevicePeer, DeviceSnapshot, PeerKey, Time};

use super::{Version, address, moment};

/// A moment, in seconds since boot.
pub(crate) fn s(seconds: u64) -> Time {
    Time::from_origin(Duration::from_secs(seconds))
}

/// The least span that the machine could tell from none.
pub(crate) const MOMENT: Duration = Duration::from_millis(1);

/// A node whose shell is the test.
pub(crate) struct Shell {
    pub(crate) rollout: Rollout<Version>,
    /// What people were told, and is not looked at yet.
    notices: Vec<Notice>,
    /// The version that the rest of the node follows.
    pub(crate) followed: Option<Hash>,
    /// Whether the mesh file is to be read again.
    reload: bool,
}

/// A version on its way to the device.
pub(crate) struct Apply {
    pub(crate) id: u64,
    pub(crate) version: Hash,
    pub(crate) endpoints: BTreeMap<PeerKey, SocketAddr>,
}

impl Shell {
    /// A node that runs a version, and whose journal says so.
    pub(crate) fn running(settings: Settings, version: &Version) -> Self {
        let start = Start {
            file: Arc::new(version.clone()),
            recorded: None,
            is_ours: true,
        };
        let resumed = Rollout::resume(settings, start, || None, Time::ZERO).unwrap();
        let mut shell = Self::of(resumed.rollout);
        shell.write_lands(Time::ZERO);
        shell
    }

    pub(crate) fn of(rollout: Rollout<Version>) -> Self {
        Self {
            rollout,
            notices: Vec::new(),
            followed: None,
            reload: false,
        }
    }

    fn next(&mut self) -> Option<Output<Version>> {
        while let Some(output) = self.rollout.poll_output() {
            match output {
                Output::Tell(notice) => self.notices.push(notice),
                Output::Follow(version) => self.followed = Some(version.hash),
                Output::Reload => self.reload = true,
                other => return Some(other),
            }
        }
        None
    }

    #[track_caller]
    pub(crate) fn ask(&mut self) -> Ask {
        match self.next() {
            Some(Output::Ask(ask)) => ask,
            other => panic!("a question is due, not {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn write(&mut self) -> (u64, Entry<Version>) {
        match self.next() {
            Some(Output::Write { id, entry }) => (id, entry),
            other => panic!("the journal is due, not {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn apply(&mut self) -> Apply {
        match self.next() {
            Some(Output::Apply {
                id,
                version,
                endpoints,
            }) => Apply {
                id,
                version: version.hash,
                endpoints,
            },
            other => panic!("the device is due, not {other:?}"),
        }
    }

    /// What people are told. Nothing else is to be done.
    #[track_caller]
    pub(crate) fn told(&mut self) -> Vec<Notice> {
        let other = self.next();
        assert!(other.is_none(), "{other:?}");
        std::mem::take(&mut self.notices)
    }

    #[track_caller]
    pub(crate) fn assert_idle(&mut self) {
        assert_eq!(self.told(), []);
    }

    /// Whether the mesh file was asked for since the last call.
    pub(crate) fn reloads(&mut self) -> bool {
        let other = self.next();
        assert!(other.is_none(), "{other:?}");
        std::mem::take(&mut self.reload)
    }

    /// The newest version of the file, at a moment when these peers are alive.
    pub(crate) fn read(
        &mut self,
        version: &Version,
        alive: &[u8],
        now: Time,
    ) -> Result<(), Refused> {
        let version = Arc::new(version.clone());
        self.rollout
            .handle_version(version, moment(alive, &[]), now)
    }

    /// Who is asked next, and of whom these answer, by packets of either size.
    #[track_caller]
    pub(crate) fn answered_by(&mut self, peers: &[u8], now: Time) -> Ask {
        let ask = self.ask();
        let answers = answers(peers, peers);
        self.rollout.handle_answers(ask.id, &answers, now);
        ask
    }

    /// The journal is written; what it says of the change.
    #[track_caller]
    pub(crate) fn write_lands(&mut self, now: Time) -> Option<Change> {
        let (id, entry) = self.write();
        self.rollout.handle_written(id, Ok(()), now);
        entry.change
    }

    #[track_caller]
    pub(crate) fn write_fails(&mut self, error: &str, now: Time) {
        let (id, _) = self.write();
        self.rollout.handle_written(id, Err(error.into()), now);
    }

    #[track_caller]
    pub(crate) fn apply_lands(&mut self, now: Time) -> Apply {
        let apply = self.apply();
        self.rollout.handle_applied(apply.id, Ok(()), now);
        apply
    }

    #[track_caller]
    pub(crate) fn apply_fails(&mut self, error: &str, now: Time) -> Apply {
        let apply = self.apply();
        let failed = Err(error.into());
        self.rollout.handle_applied(apply.id, failed, now);
        apply
    }

    /// Begins a change and makes it, all in one moment. Of the peers that it touches these are
    /// alive, and all of these answer before it.
    #[track_caller]
    pub(crate) fn make(&mut self, version: &Version, alive: &[u8], now: Time) -> Vec<Watch> {
        self.read(version, alive, now).unwrap();
        if !alive.is_empty() {
            self.answered_by(alive, now);
        }
        let watched = watched(self.write_lands(now));
        let applied = self.apply_lands(now);
        assert_eq!(applied.version, version.hash);
        watched
    }

    /// The device says where it has these peers.
    pub(crate) fn device_has(&mut self, peers: &[(u8, &str)], now: Time) {
        let peers = peers.iter().map(|(number, endpoint)| DevicePeer {
            endpoint: Some(endpoint.parse().unwrap()),
            ..DevicePeer::new(key(*number))
        });
        let snapshot = DeviceSnapshot {
            peers: peers.collect(),
            ..DeviceSnapshot::default()
        };
        self.rollout.handle_snapshot(&snapshot, now);
    }
}

pub(crate) fn key(number: u8) -> PeerKey {
    PeerKey::from_bytes([number; 32])
}

pub(crate) fn addresses(peers: &[u8]) -> Vec<IpAddr> {
    peers.iter().map(|number| address(*number)).collect()
}

/// Who answers small packets, and who full ones.
pub(crate) fn answers(small: &[u8], full: &[u8]) -> Answers {
    Answers {
        small: addresses(small).into_iter().collect(),
        full: addresses(full).into_iter().collect(),
    }
}

/// Whom the journal says to watch.
pub(crate) fn watched(change: Option<Change>) -> Vec<Watch> {
    match change {
        Some(Change::Open { watched, .. }) => watched,
        other => panic!("an open change, not {other:?}"),
    }
}

pub(crate) fn names(watched: &[Watch]) -> Vec<&str> {
    watched.iter().map(|watch| watch.name.as_str()).collect()
}
