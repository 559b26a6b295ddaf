//! The pairs that this client asked to meet. A moment to fire at is believed for those only, and
//! once.

use std::collections::BTreeMap;
use std::time::Duration;

use natpunch_types::Time;

use crate::wire::Tag;

/// How long the other side may take after the wish was last said: as long as the server keeps it.
const PATIENCE: Duration = Duration::from_secs(5);
/// When a wish is said again.
const RESEND: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1200)];
/// No server names a moment that is further away.
const MAX_DELAY: Duration = Duration::from_secs(3);
/// Pairs that are waited for.
const MAX_WISHES: usize = 1_024;

struct Wish {
    /// Where the other side finds our record.
    mailbox: Tag,
    since: Time,
    /// When it is said (again).
    due: Option<Time>,
    tries: usize,
}

#[derive(Default)]
pub(super) struct Wishes(BTreeMap<Tag, Wish>);

impl Wishes {
    pub(super) fn add(&mut self, tag: Tag, mailbox: Tag, now: Time) {
        self.forget(now);
        if self.0.len() < MAX_WISHES || self.0.contains_key(&tag) {
            self.0.insert(
                tag,
                Wish {
                    mailbox,
                    since: now,
                    due: Some(now),
                    tries: 0,
                },
            );
        }
    }

    /// What is due, to be said now: of which pairs, and in which mailboxes the others find our
    /// records.
    pub(super) fn take_due(&mut self, now: Time) -> Vec<(Tag, Tag)> {
        self.forget(now);
        let mut due = Vec::new();
        for (tag, wish) in &mut self.0 {
            if wish.due.is_some_and(|due| due <= now) {
                wish.due = RESEND.get(wish.tries).map(|wait| now + *wait);
                wish.tries += 1;
                wish.since = now;
                due.push((*tag, wish.mailbox));
            }
        }
        due
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.0.values().filter_map(|wish| wish.due).min()
    }

    /// The server names a moment: in how long that is, if it was waited for.
    pub(super) fn fire(&mut self, tag: &Tag, delay_ms: u16, now: Time) -> Option<Duration> {
        self.forget(now);
        let after = Duration::from_millis(delay_ms.into());
        (after <= MAX_DELAY).then_some(())?;
        self.0.remove(tag).map(|_| after)
    }

    fn forget(&mut self, now: Time) {
        self.0.retain(|_, wish| now < wish.since + PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_wishes_to_meet_so_many_and_repeats_a_wish_of_its_own_at_the_bound() {
        let tag = |n: usize| {
            let mut tag = [0; 16];
            tag[..8].copy_from_slice(&n.to_be_bytes());
            tag
        };
        let mut wishes = Wishes::default();
        for n in 0..MAX_WISHES + 1 {
            wishes.add(tag(n), [2; 16], Time::ZERO);
        }
        let said = wishes.take_due(Time::ZERO);
        assert_eq!(said.len(), MAX_WISHES);
        wishes.add(tag(0), [2; 16], Time::ZERO);
        assert_eq!(wishes.take_due(Time::ZERO), [(tag(0), [2; 16])]);
    }

    #[test]
    fn a_client_waits_as_long_as_the_server_does_after_its_last_word() {
        let ms = Time::from_millis;
        for (at, heeded) in [(6_500, true), (6_700, false)] {
            let mut wishes = Wishes::default();
            wishes.add([1; 16], [2; 16], ms(0));
            let said: Vec<_> = [0, 400, 1_600]
                .into_iter()
                .flat_map(|now| wishes.take_due(ms(now)))
                .collect();
            assert_eq!((said.len(), wishes.next_due()), (3, None));
            assert_eq!(wishes.fire(&[1; 16], 60, ms(at)).is_some(), heeded, "{at}");
        }
    }
}
