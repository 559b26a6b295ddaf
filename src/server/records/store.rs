//! The record store: sealed records by tag, in memory, bounded, expiring. Pure: the time is an
//! argument.
//!
//! The store can't tell a rightful writer from another: records are sealed end to end, tags are
//! secrets of the two peers concerned, and whoever learns a tag can at worst withhold the record
//! behind it. What the store has to defend is itself: it holds a bounded number of records and
//! bytes in all and of each source, refuses new ones when full, and never drops a live record to
//! make room.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::server::status::Records;
use natpunch_types::Time;

/// Names a record: 16 bytes, written as 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::server) struct Tag(pub [u8; 16]);

impl Tag {
    /// The tag of exactly 32 hexadecimal digits.
    pub(in crate::server) fn parse(text: &str) -> Option<Self> {
        let digits: [u8; 32] = text.as_bytes().try_into().ok()?;
        let mut tag = [0; 16];
        for (byte, pair) in tag.iter_mut().zip(digits.chunks_exact(2)) {
            let &[high, low] = pair else { return None };
            let digit = |c: u8| {
                char::from(c)
                    .to_digit(16)
                    .and_then(|digit| u8::try_from(digit).ok())
            };
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Self(tag))
    }
}

/// The source that a record counts for: an IPv4 address, or an IPv6 /64, which one subscriber has
/// at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::server) struct Source(IpAddr);

impl Source {
    /// The source that an address belongs to.
    pub(in crate::server) fn of(ip: IpAddr) -> Self {
        Self(match natpunch_types::canonical_ip(ip) {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 => v4,
        })
    }

    /// What one subscriber may have many sources of: an IPv4 /24 or an IPv6 /48.
    pub(in crate::server) fn site(self) -> Site {
        Site(match self.0 {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() >> 8 << 8)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80)),
        })
    }
}

/// The network that a source is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::server) struct Site(IpAddr);

/// Records and bytes that a site may have of those that are nearly used up.
const FEW: (usize, usize) = (16, 16 << 10);

/// What the store holds at most.
#[derive(Debug, Clone, Copy)]
pub(in crate::server) struct Limits {
    /// Records.
    pub records: usize,
    /// Bytes of all records together, without their bookkeeping (some 200 bytes each).
    pub bytes: usize,
    /// Records of one source.
    pub records_per_source: usize,
    /// Bytes of one record.
    pub record_bytes: usize,
    /// How long a record lives after it was last put.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            records: 100_000,
            bytes: 64 << 20,
            records_per_source: 4_096,
            record_bytes: 2_048,
            lifetime: Duration::from_secs(3_600),
        }
    }
}

/// A version of a record: rises with every change of any record, so no two contents ever share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::server) struct Version(pub u64);

#[derive(Debug)]
struct Entry {
    version: Version,
    blob: Arc<[u8]>,
    expires: Time,
    source: Source,
}

/// What a [`Store::put`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) struct Put {
    /// The record's version now.
    pub version: Version,
    /// The content is another one than before.
    pub changed: bool,
}

/// Why a record was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::server) enum Refused {
    /// No content.
    #[error("the record is empty")]
    Empty,
    /// Too much content.
    #[error("the record is longer than {0} bytes")]
    TooLong(usize),
    /// The source has as many records as it may.
    #[error("this address holds as many records as one may")]
    SourceFull,
    /// The store is full.
    #[error("the store is full")]
    Full,
}

/// The records.
#[derive(Debug)]
pub(in crate::server) struct Store {
    limits: Limits,
    entries: HashMap<Tag, Entry>,
    expiries: BTreeSet<(Time, Tag)>,
    sources: HashMap<Source, usize>,
    /// Records and bytes of each site.
    sites: HashMap<Site, (usize, usize)>,
    bytes: usize,
    version: u64,
}

impl Store {
    /// An empty store.
    pub(in crate::server) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            expiries: BTreeSet::new(),
            sources: HashMap::new(),
            sites: HashMap::new(),
            bytes: 0,
            version: 0,
        }
    }

    /// Stores a record, or refreshes it if the content is the same.
    ///
    /// # Errors
    /// If a bound would be passed; nothing changes then.
    pub(in crate::server) fn put(
        &mut self,
        tag: Tag,
        blob: &[u8],
        source: Source,
        now: Time,
    ) -> Result<Put, Refused> {
        self.expire(now);
        if blob.is_empty() {
            return Err(Refused::Empty);
        }
        if blob.len() > self.limits.record_bytes {
            return Err(Refused::TooLong(self.limits.record_bytes));
        }
        let old = self.entries.get(&tag);
        let old_bytes = old.map_or(0, |old| old.blob.len());
        if old.is_none_or(|old| old.source != source)
            && self
                .sources
                .get(&source)
                .is_some_and(|held| *held >= self.limits.records_per_source)
        {
            return Err(Refused::SourceFull);
        }
        if (old.is_none() && self.entries.len() >= self.limits.records)
            || self.bytes - old_bytes + blob.len() > self.limits.bytes
        {
            return Err(Refused::Full);
        }
        // A site has no more than is left for all others; what is there may be put again.
        let (site_records, site_bytes) =
            self.sites.get(&source.site()).copied().unwrap_or_default();
        let is_new = old.is_none_or(|old| old.source.site() != source.site());
        let left = self.limits.records - self.entries.len();
        let bytes_left = self.limits.bytes - self.bytes;
        if is_new
            && (site_records >= left.max(FEW.0) || site_bytes + blob.len() > bytes_left.max(FEW.1))
        {
            return Err(Refused::SourceFull);
        }
        let same = old
            .filter(|old| *old.blob == *blob)
            .map(|old| (old.version, old.blob.clone()));
        let changed = same.is_none();
        let (version, blob) = same.unwrap_or_else(|| {
            self.version += 1;
            (Version(self.version), blob.into())
        });
        self.remove(tag);
        let expires = now + self.limits.lifetime;
        self.bytes += blob.len();
        *self.sources.entry(source).or_default() += 1;
        let (records, bytes) = self.sites.entry(source.site()).or_default();
        (*records, *bytes) = (*records + 1, *bytes + blob.len());
        self.expiries.insert((expires, tag));
        self.entries.insert(
            tag,
            Entry {
                version,
                blob,
                expires,
                source,
            },
        );
        Ok(Put { version, changed })
    }

    /// The record of a tag.
    pub(in crate::server) fn get(&self, tag: Tag, now: Time) -> Option<(Version, Arc<[u8]>)> {
        let entry = self.entries.get(&tag).filter(|entry| now < entry.expires)?;
        Some((entry.version, entry.blob.clone()))
    }

    /// Forgets the records whose lifetime is over.
    pub(in crate::server) fn expire(&mut self, now: Time) {
        while let Some((_, tag)) = self
            .expiries
            .first()
            .copied()
            .filter(|(expires, _)| *expires <= now)
        {
            self.remove(tag);
        }
    }

    /// How full it is.
    pub(in crate::server) fn usage(&self) -> Records {
        let Self {
            entries,
            bytes,
            limits,
            ..
        } = self;
        Records {
            records: entries.len(),
            max_records: limits.records,
            bytes: *bytes,
            max_bytes: limits.bytes,
        }
    }

    fn remove(&mut self, tag: Tag) {
        let Some(entry) = self.entries.remove(&tag) else {
            return;
        };
        self.expiries.remove(&(entry.expires, tag));
        self.bytes -= entry.blob.len();
        if let Some(held) = self.sources.get_mut(&entry.source) {
            *held -= 1;
            if *held == 0 {
                self.sources.remove(&entry.source);
            }
        }
        let site = entry.source.site();
        if let Some((records, bytes)) = self.sites.get_mut(&site) {
            (*records, *bytes) = (*records - 1, *bytes - entry.blob.len());
            if *records == 0 {
                self.sites.remove(&site);
            }
        }
    }
}

/// The waiters, and their tags. A waiter is woken at most once for each put, by a number of its
/// own.
#[derive(Debug, Default)]
pub(in crate::server) struct Waiters {
    next: u64,
    tags: BTreeSet<(Tag, u64)>,
    notifies: BTreeMap<u64, Arc<tokio::sync::Notify>>,
}

impl Waiters {
    /// Adds a waiter; [`Waiters::leave`] takes it away again.
    pub(in crate::server) fn join(
        &mut self,
        tags: impl Iterator<Item = Tag>,
    ) -> (u64, Arc<tokio::sync::Notify>) {
        self.next += 1;
        let id = self.next;
        self.tags.extend(tags.map(|tag| (tag, id)));
        let notify = Arc::new(tokio::sync::Notify::new());
        self.notifies.insert(id, notify.clone());
        (id, notify)
    }

    /// Takes a waiter for these tags away.
    pub(in crate::server) fn leave(&mut self, id: u64, tags: impl Iterator<Item = Tag>) {
        for tag in tags {
            self.tags.remove(&(tag, id));
        }
        self.notifies.remove(&id);
    }

    /// Wakes all that wait for this tag.
    pub(in crate::server) fn wake(&self, tag: Tag) {
        for (_, id) in self.tags.range((tag, 0)..=(tag, u64::MAX)) {
            if let Some(notify) = self.notifies.get(id) {
                notify.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits {
        records: 4,
        bytes: 40,
        records_per_source: 3,
        record_bytes: 16,
        lifetime: Duration::from_secs(100),
    };

    fn tag(n: u8) -> Tag {
        Tag([n; 16])
    }

    fn source(n: u8) -> Source {
        Source::of(IpAddr::from([192, 0, n, 1]))
    }

    const fn at(seconds: u64) -> Time {
        Time::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_tag_is_32_hexadecimal_digits() {
        assert_eq!(
            Tag::parse("000102030405060708090a0b0c0d0eFf").unwrap().0[14..],
            [14, 255]
        );
        for bad in [
            "",
            "00",
            "000102030405060708090a0b0c0d0e0",
            "000102030405060708090a0b0c0d0e0g",
            "+0010203040506070809a0b0c0d0e0ff",
        ] {
            assert_eq!(Tag::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_same_content_refreshes_and_keeps_its_version() {
        let mut store = Store::new(SMALL);
        let first = store.put(tag(1), b"a", source(1), at(0)).unwrap();
        let again = store.put(tag(1), b"a", source(1), at(90)).unwrap();
        assert_eq!(
            again,
            Put {
                version: first.version,
                changed: false
            }
        );
        assert!(store.get(tag(1), at(150)).is_some(), "not refreshed");
        let other = store.put(tag(1), b"b", source(1), at(150)).unwrap();
        assert!(other.changed && other.version > first.version);
    }

    #[test]
    fn a_record_that_is_not_refreshed_expires() {
        let mut store = Store::new(SMALL);
        store.put(tag(1), b"a", source(1), at(0)).unwrap();
        assert!(store.get(tag(1), at(99)).is_some());
        assert!(store.get(tag(1), at(100)).is_none());
        store.expire(at(100));
        assert!(
            store.entries.is_empty()
                && store.sources.is_empty()
                && store.expiries.is_empty()
                && store.bytes == 0
        );
    }

    #[test]
    fn at_a_bound_new_records_are_refused_and_old_ones_kept() {
        let mut store = Store::new(SMALL);
        for n in 1..=3 {
            store.put(tag(n), b"0123456789", source(1), at(0)).unwrap();
        }
        assert_eq!(
            store.put(tag(4), b"x", source(1), at(1)),
            Err(Refused::SourceFull)
        );
        assert_eq!(
            store.put(tag(4), b"0123456789abc", source(2), at(1)),
            Err(Refused::Full),
            "bytes"
        );
        store.put(tag(4), b"0123456789", source(2), at(1)).unwrap();
        assert_eq!(
            store.put(tag(5), b"x", source(2), at(1)),
            Err(Refused::Full),
            "records"
        );
        store
            .put(tag(1), b"abcdefghij", source(1), at(1))
            .expect("an old record can still change");
        assert_eq!(
            store.put(tag(1), b"", source(1), at(1)),
            Err(Refused::Empty)
        );
        assert_eq!(
            store.put(tag(1), &[0; 17], source(1), at(1)),
            Err(Refused::TooLong(16))
        );
        assert_eq!(store.entries.len(), 4);
        store
            .put(tag(5), b"x", source(1), at(101))
            .expect("room again when the others have expired");
    }

    #[test]
    fn one_network_has_half_of_the_store_however_many_addresses_it_has() {
        let mut store = Store::new(Limits {
            records: 400,
            ..Limits::default()
        });
        let put = |store: &mut Store, n: u16, ip: [u8; 4]| {
            let [high, low] = n.to_be_bytes();
            let mut tag = [ip[1]; 16];
            (tag[0], tag[1]) = (high, low);
            store
                .put(Tag(tag), b"x", Source::of(ip.into()), at(0))
                .is_ok()
        };
        let greedy = (0..400).filter(|n| put(&mut store, *n, [198, 51, 100, *n as u8]));
        assert_eq!(greedy.count(), 200);
        let next = (0..50).filter(|n| put(&mut store, *n, [203, 0, 113, 1]));
        assert_eq!(next.count(), 50);
    }

    #[test]
    fn an_ipv6_subscriber_is_one_source() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }

    #[test]
    fn a_put_wakes_those_who_wait_for_its_tag_only() {
        let mut waiters = Waiters::default();
        let (a, wants_both) = waiters.join([tag(1), tag(2)].into_iter());
        let (_, wants_two) = waiters.join([tag(2)].into_iter());
        waiters.wake(tag(1));
        let woken = |notify: &tokio::sync::Notify| {
            let mut notified = std::pin::pin!(notify.notified());
            notified.as_mut().enable()
        };
        assert!(woken(&wants_both) && !woken(&wants_two));
        waiters.leave(a, [tag(1), tag(2)].into_iter());
        waiters.wake(tag(2));
        assert!(!woken(&wants_both) && woken(&wants_two));
        assert_eq!(waiters.tags.len(), 1);
    }
}
