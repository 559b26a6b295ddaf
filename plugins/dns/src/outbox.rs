//! Which of this node's records are to be brought into the zone. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use natpunch_plugin::{RecordTag, SealedRecord, Time};

use crate::pause::Pause;
use crate::update::Changes;

/// Records of one update. Of the longest records and names they are 53 KiB, and a message has 64.
pub(crate) const MOST_IN_UPDATE: usize = 16;

/// This node's records, and what is known of them in the zone.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    entries: BTreeMap<RecordTag, Entry>,
    /// Tags under which this node put a record, and has none now.
    gone: BTreeSet<RecordTag>,
    is_under_way: bool,
    pub(crate) pause: Pause,
}

#[derive(Debug)]
struct Entry {
    blob: Arc<[u8]>,
    /// Whether the zone has it, by the server's word.
    is_there: bool,
    /// Whether one of this tag was ever sent: it may be there though no answer came.
    is_sent: bool,
}

impl Outbox {
    /// Takes the complete new set over. Records that did not change stay as they are.
    pub(crate) fn replace(&mut self, records: &[SealedRecord]) {
        let mut old = std::mem::take(&mut self.entries);
        for record in records.iter().filter(|one| one.tag != RecordTag::NONE) {
            let before = old.remove(&record.tag);
            let is_sent =
                before.as_ref().is_some_and(|entry| entry.is_sent) || self.gone.remove(&record.tag);
            let kept = before.filter(|entry| entry.blob == record.blob);
            let new = || Entry {
                blob: record.blob.clone(),
                is_there: false,
                is_sent,
            };
            self.entries.insert(record.tag, kept.unwrap_or_else(new));
        }
        // What was never sent from here is not this node's to remove.
        let sent = old.into_iter().filter(|(_, entry)| entry.is_sent);
        self.gone.extend(sent.map(|(tag, _)| tag));
    }

    /// What to change next, if anything. It is under way until it [ends](Self::ended).
    pub(crate) fn next(&mut self, now: Time) -> Option<Changes> {
        if self.is_under_way || now < self.pause.ends() {
            return None;
        }
        let mut changes = Changes::default();
        let missing = self.entries.iter_mut().filter(|(_, one)| !one.is_there);
        for (tag, entry) in missing.take(MOST_IN_UPDATE) {
            entry.is_sent = true;
            changes.put.push(SealedRecord {
                tag: *tag,
                blob: entry.blob.clone(),
            });
        }
        let room = MOST_IN_UPDATE - changes.put.len();
        changes.remove.extend(self.gone.iter().take(room));
        self.is_under_way = changes != Changes::default();
        self.is_under_way.then_some(changes)
    }

    /// When [`next`](Self::next) may have something; `None`: when an update ends, or there are
    /// other records.
    pub(crate) fn wakes(&self) -> Option<Time> {
        let is_idle = self.gone.is_empty() && self.entries.values().all(|entry| entry.is_there);
        (!self.is_under_way && !is_idle).then(|| self.pause.ends())
    }

    /// An update is over, and the zone has these changes.
    pub(crate) fn made(&mut self, changes: &Changes) {
        self.is_under_way = false;
        self.pause.over();
        for record in &changes.put {
            let entry = self.entries.get_mut(&record.tag);
            // It may be another one by now.
            if let Some(entry) = entry.filter(|entry| entry.blob == record.blob) {
                entry.is_there = true;
            }
        }
        for tag in &changes.remove {
            self.gone.remove(tag);
        }
    }

    /// An update is over, and nobody knows that the zone has it.
    pub(crate) fn failed(&mut self, random: u32, now: Time) {
        self.is_under_way = false;
        self.pause.failed(random, now);
    }

    /// How many records the zone has, and how many it should.
    pub(crate) fn there(&self) -> (usize, usize) {
        let there = self.entries.values().filter(|entry| entry.is_there);
        (there.count(), self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_millis(1_000);

    fn record(tag: u8, n: u8) -> SealedRecord {
        SealedRecord {
            tag: RecordTag([tag; 16]),
            blob: [n].into(),
        }
    }

    #[test]
    fn what_has_changed_is_put_and_the_rest_is_left_alone() {
        let mut outbox = Outbox::default();
        outbox.replace(&[record(1, 1), record(2, 1)]);
        let changes = outbox.next(NOW).unwrap();
        assert_eq!(changes.put, [record(1, 1), record(2, 1)]);
        assert_eq!(outbox.next(NOW), None, "one at a time");
        outbox.made(&changes);
        assert_eq!((outbox.next(NOW), outbox.wakes()), (None, None));
        assert_eq!(outbox.there(), (2, 2));
        outbox.replace(&[record(1, 1), record(2, 2)]);
        assert_eq!(outbox.next(NOW).unwrap().put, [record(2, 2)]);
    }

    #[test]
    fn only_what_this_node_put_is_removed() {
        let mut outbox = Outbox::default();
        outbox.replace(&[record(1, 1)]);
        // Not sent yet.
        outbox.replace(&[]);
        assert_eq!(outbox.next(NOW), None);
        outbox.replace(&[record(1, 1), record(2, 1)]);
        let changes = outbox.next(NOW).unwrap();
        // Sent, and no answer came: it may be there.
        outbox.failed(0, NOW);
        outbox.replace(&[record(2, 1)]);
        let later = outbox.pause.ends();
        let again = outbox.next(later).unwrap();
        assert_eq!(again.remove, [changes.put[0].tag]);
        assert_eq!(again.put, [record(2, 1)]);
        outbox.made(&again);
        assert_eq!(outbox.next(later), None);
    }

    #[test]
    fn a_record_that_comes_back_is_put_and_not_removed() {
        let mut outbox = Outbox::default();
        outbox.replace(&[record(1, 1)]);
        let changes = outbox.next(NOW).unwrap();
        outbox.made(&changes);
        outbox.replace(&[]);
        outbox.replace(&[record(1, 1)]);
        let changes = outbox.next(NOW).unwrap();
        assert_eq!((changes.put.len(), changes.remove.len()), (1, 0));
    }

    #[test]
    fn a_record_that_changes_while_it_is_sent_is_sent_again() {
        let mut outbox = Outbox::default();
        outbox.replace(&[record(1, 1)]);
        let changes = outbox.next(NOW).unwrap();
        outbox.replace(&[record(1, 2)]);
        outbox.made(&changes);
        assert_eq!(outbox.next(NOW).unwrap().put, [record(1, 2)]);
    }

    #[test]
    fn many_records_are_many_updates() {
        let mut outbox = Outbox::default();
        let all: Vec<_> = (1..=40).map(|n| record(n, 1)).collect();
        outbox.replace(&all);
        let mut sizes = Vec::new();
        while let Some(changes) = outbox.next(NOW) {
            sizes.push(changes.put.len());
            outbox.made(&changes);
        }
        assert_eq!(sizes, [16, 16, 8]);
    }

    #[test]
    fn a_pair_without_a_tag_has_no_record() {
        let mut outbox = Outbox::default();
        let nobody = SealedRecord {
            tag: RecordTag::NONE,
            ..record(1, 1)
        };
        outbox.replace(&[nobody]);
        assert_eq!(outbox.next(NOW), None);
    }
}
