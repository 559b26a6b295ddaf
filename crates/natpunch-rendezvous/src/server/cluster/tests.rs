//! Processes and a store in one thread, in virtual time.

use std::collections::BTreeSet;

use natpunch_types::PeerKey;

use super::*;
use crate::server::Limits;
use crate::server::session::{ClientId, Sender, Sessions};

const TAG: Tag = [7; 16];
/// How long the store keeps who waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// What Redis does of what is asked.
#[derive(Default)]
struct Store {
    records: BTreeMap<Tag, Record>,
    readers: BTreeMap<Tag, BTreeSet<ProcessId>>,
    waiting: BTreeMap<Tag, (Waiting, Time)>,
    hosts: BTreeMap<Tag, ProcessId>,
    /// Its clock less that of the tests.
    ahead: i64,
    is_full: bool,
    published: Vec<(ProcessId, Message)>,
    connected: BTreeSet<ProcessId>,
    /// The names of all commands.
    log: Vec<&'static str>,
}

impl Store {
    fn answer(&mut self, ask: &Ask, now: Time) -> Answer {
        self.log.push(ask.name());
        let is_write = matches!(ask.0, Question::Keep { .. } | Question::Join { .. });
        if is_write && self.is_full {
            return Answer(Reply::Refused);
        }
        Answer(match ask.0.clone() {
            Question::Clock => Reply::Clock(millis(now) + self.ahead),
            Question::Keep { tag, record } => Reply::Record(self.records.insert(tag, record)),
            Question::Find { tag } => Reply::Record(self.records.get(&tag).cloned()),
            Question::Meet { tag, who } => {
                let before = self.waiting.insert(tag, (who, now));
                let is_waiting = |(_, since): &(Waiting, Time)| now < *since + PATIENCE;
                Reply::Waiting(before.filter(is_waiting).map(|(who, _)| who))
            }
            Question::Readers { tag } | Question::Wanted { tag } => {
                let readers = self.readers.get(&tag).into_iter().flatten();
                Reply::Readers(readers.copied().collect())
            }
            Question::Join { tag, who } => {
                self.readers.entry(tag).or_default().insert(who);
                Reply::Done
            }
            Question::Leave { tag, who } => {
                self.readers.entry(tag).or_default().remove(&who);
                Reply::Done
            }
            Question::Host { tag, who } => {
                let host = self.hosts.get(&tag).copied();
                self.hosts.entry(tag).or_insert(who);
                Reply::Host(host)
            }
            Question::Free { tag } => {
                self.hosts.remove(&tag);
                Reply::Done
            }
            Question::Extend { .. } | Question::Hold { .. } => Reply::Done,
            Question::Tell { to, message } => {
                let is_there = self.connected.contains(&to);
                self.published.extend(is_there.then_some((to, message)));
                Reply::Told(is_there.into())
            }
        })
    }
}

struct Process {
    name: ProcessId,
    cluster: Cluster,
    mailboxes: Mailboxes,
    meetings: Meetings,
    relays: Relays,
    sessions: Sessions,
    limits: Limits,
    /// What its clients are told.
    told: Pushes,
}

fn sender(n: u8) -> Sender {
    Sender {
        client: ClientId {
            identity: PeerKey::from_bytes([n; 32]),
            v6: false,
        },
        address: "192.0.2.1:9".parse().unwrap(),
        secret: 0,
        ticket: 1,
    }
}

impl Process {
    fn new(name: u8) -> Self {
        Self {
            name: ProcessId([name; 8]),
            cluster: Cluster::default(),
            mailboxes: Mailboxes::default(),
            meetings: Meetings::default(),
            relays: Relays::default(),
            sessions: Sessions::default(),
            limits: Limits::default(),
            told: vec![],
        }
    }

    fn with<T>(
        &mut self,
        now: Time,
        work: impl FnOnce(&mut Cluster, &mut Mailboxes, &mut Pacer<'_>) -> T,
    ) -> T {
        let mut pacer = Pacer {
            sessions: &mut self.sessions,
            limits: &self.limits,
            now,
        };
        work(&mut self.cluster, &mut self.mailboxes, &mut pacer)
    }

    /// The client of this number leaves a record.
    fn puts(&mut self, blob: &[u8], now: Time) {
        let digest = crate::crypto::digest(blob);
        self.with(now, |cluster, mailboxes, pacer| {
            let kept = mailboxes.put(&sender(1), TAG, (digest, blob.into()), pacer, &mut vec![]);
            cluster.handle_put(TAG, kept.unwrap(), now);
        });
    }

    fn watches(&mut self, now: Time) {
        self.with(now, |cluster, mailboxes, pacer| {
            let watched = mailboxes.watch(&sender(2), TAG, [0; 8], pacer, &mut vec![]);
            watched.unwrap();
            cluster.handle_watch(TAG, now);
        });
    }

    fn has(&self, now: Time) -> Option<&[u8]> {
        self.mailboxes.record(&TAG, now).map(|(_, blob, _)| blob)
    }

    fn connects(&mut self, store: &mut Store, now: Time) {
        store.connected.insert(self.name);
        self.cluster.handle_up(self.name, Duration::ZERO, now);
    }

    fn is_cut_off(&mut self, store: &mut Store) {
        store.connected.remove(&self.name);
        self.cluster.handle_down();
        // A new connection has a new name.
        self.name.0[0] = self.name.0[0].wrapping_add(100);
    }

    fn asks(&mut self, now: Time) -> Option<Ask> {
        self.cluster.poll(&self.mailboxes, now)
    }

    fn is_answered(&mut self, ask: Ask, answer: Answer, now: Time) {
        self.with_all(now, |cluster, here, pacer, told| {
            cluster.handle_answer(ask, answer, here, pacer, told);
        });
    }

    fn hears(&mut self, message: Message, now: Time) {
        self.with_all(now, |cluster, here, pacer, told| {
            cluster.handle_message(message, here, pacer, told);
        });
    }

    fn with_all(
        &mut self,
        now: Time,
        work: impl FnOnce(&mut Cluster, &mut Here<'_>, &mut Pacer<'_>, &mut Pushes),
    ) {
        let mut pacer = Pacer {
            sessions: &mut self.sessions,
            limits: &self.limits,
            now,
        };
        let mut here = Here {
            mailboxes: &mut self.mailboxes,
            meetings: &mut self.meetings,
            relays: &mut self.relays,
        };
        work(&mut self.cluster, &mut here, &mut pacer, &mut self.told);
    }

    /// A client wants to meet another one.
    fn meets(&mut self, client: u8, mailbox: Option<Tag>, now: Time) -> Pushes {
        let who = sender(client);
        let side = (who.client, who.network().site());
        let told = self.meetings.meet(side, TAG, 20, now);
        if self.meetings.waits(&TAG) {
            self.cluster.handle_meet(TAG, &self.meetings, mailbox);
        }
        told
    }
}

/// Lets all be said that is to be said, in turn.
fn settle(processes: &mut [&mut Process], store: &mut Store, now: Time) {
    for _ in 0..10_000 {
        let mut is_quiet = true;
        for process in processes.iter_mut() {
            if let Some(ask) = process.asks(now) {
                is_quiet = false;
                let answer = store.answer(&ask, now);
                process.is_answered(ask, answer, now);
            }
        }
        for (to, message) in std::mem::take(&mut store.published) {
            is_quiet = false;
            let to = processes.iter_mut().find(|process| process.name == to);
            to.unwrap().hears(message, now);
        }
        if is_quiet {
            return;
        }
    }
    panic!("they never stop talking: {:?}", store.log);
}

fn at(seconds: u64) -> Time {
    Time::from_millis(seconds * 1_000)
}

/// Two processes that have the store.
fn two(store: &mut Store) -> [Process; 2] {
    let mut all = [1, 2].map(Process::new);
    for process in &mut all {
        process.connects(store, at(1));
    }
    let [a, b] = &mut all;
    settle(&mut [a, b], store, at(1));
    store.log.clear();
    all
}

#[test]
fn a_record_reaches_the_process_of_its_reader_whichever_comes_first() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    a.puts(b"one", at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    assert_eq!(store.log, ["SET", "SMEMBERS"]);
    store.log.clear();
    b.watches(at(3));
    settle(&mut [&mut a, &mut b], &mut store, at(3));
    assert_eq!(store.log, ["SADD", "PEXPIRE", "GET"]);
    assert_eq!(b.has(at(3)), Some(&b"one"[..]));
    store.log.clear();
    a.puts(b"two", at(4));
    settle(&mut [&mut a, &mut b], &mut store, at(4));
    assert_eq!(store.log, ["SET", "SMEMBERS", "PUBLISH"]);
    assert_eq!(b.has(at(4)), Some(&b"two"[..]));
}

#[test]
fn what_is_repeated_is_said_to_the_store_twice_in_its_lifetime_there() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    for second in (2..).step_by(250).take(8) {
        a.puts(b"one", at(second));
        b.watches(at(second));
        settle(&mut [&mut a, &mut b], &mut store, at(second));
    }
    let count = |name| store.log.iter().filter(|it| **it == name).count();
    assert_eq!([count("SET"), count("SADD")], [4, 4], "{:?}", store.log);
}

#[test]
fn a_process_that_was_cut_off_does_not_bring_back_an_old_record() {
    for is_empty in [false, true] {
        let mut store = Store::default();
        let [mut a, mut b] = two(&mut store);
        b.watches(at(2));
        a.puts(b"old", at(2));
        settle(&mut [&mut a, &mut b], &mut store, at(2));
        a.is_cut_off(&mut store);
        // The owner has gone to the other process.
        b.puts(b"new", at(10));
        settle(&mut [&mut b], &mut store, at(10));
        if is_empty {
            b.is_cut_off(&mut store);
            store.records.clear();
            store.readers.clear();
        }
        a.connects(&mut store, at(20));
        settle(&mut [&mut a], &mut store, at(20));
        if is_empty {
            b.connects(&mut store, at(21));
        }
        settle(&mut [&mut a, &mut b], &mut store, at(21));
        assert_eq!(*store.records[&TAG].blob, *b"new", "{is_empty}");
        assert_eq!(b.has(at(21)), Some(&b"new"[..]));
    }
}

#[test]
fn whoever_overwrites_a_newer_record_restores_it_and_tells_the_readers() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    let mut c = Process::new(3);
    c.connects(&mut store, at(1));
    c.watches(at(1));
    settle(&mut [&mut c], &mut store, at(1));
    // Heard earlier, but it comes to the store later.
    a.puts(b"old", at(2));
    let late: Vec<Ask> = std::iter::from_fn(|| a.asks(at(2))).collect();
    b.puts(b"new", at(3));
    settle(&mut [&mut b, &mut c], &mut store, at(3));
    for ask in late {
        let answer = store.answer(&ask, at(4));
        a.is_answered(ask, answer, at(4));
    }
    settle(&mut [&mut a, &mut b, &mut c], &mut store, at(4));
    assert_eq!(*store.records[&TAG].blob, *b"new");
    assert_eq!([a.has(at(4)), c.has(at(4))], [Some(&b"new"[..]); 2]);
}

#[test]
fn a_stamp_of_a_clock_that_was_wrong_gives_way_to_what_its_owner_says_now() {
    let mut store = Store {
        ahead: 3_600_000,
        ..Store::default()
    };
    let [mut a, mut b] = two(&mut store);
    a.puts(b"old", at(2));
    b.watches(at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    // The clock is set right, and both processes come again.
    store.ahead = 0;
    a.is_cut_off(&mut store);
    b.is_cut_off(&mut store);
    b.connects(&mut store, at(3));
    settle(&mut [&mut b], &mut store, at(3));
    b.puts(b"new", at(4));
    settle(&mut [&mut b], &mut store, at(4));
    assert_eq!(*store.records[&TAG].blob, *b"new");
    assert_eq!(b.has(at(4)), Some(&b"new"[..]));
}

#[test]
fn a_full_store_is_asked_again_and_readers_that_it_knows_are_told_meanwhile() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    b.watches(at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    store.is_full = true;
    a.puts(b"one", at(3));
    settle(&mut [&mut a, &mut b], &mut store, at(3));
    assert_eq!(b.has(at(3)), Some(&b"one"[..]), "told, though not kept");
    assert!(store.records.is_empty() && a.cluster.counters.refused == 1);
    store.log.clear();
    settle(&mut [&mut a, &mut b], &mut store, at(20));
    assert!(!store.log.contains(&"SET"), "no storm");
    store.is_full = false;
    settle(&mut [&mut a, &mut b], &mut store, at(40));
    assert_eq!(*store.records[&TAG].blob, *b"one");
}

#[test]
fn a_process_that_is_gone_is_taken_out_by_whoever_says_something_to_it() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    b.watches(at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    b.is_cut_off(&mut store);
    a.puts(b"one", at(3));
    settle(&mut [&mut a], &mut store, at(3));
    assert!(store.readers[&TAG].is_empty());
    b.connects(&mut store, at(4));
    settle(&mut [&mut a, &mut b], &mut store, at(4));
    assert_eq!(b.has(at(4)), Some(&b"one"[..]));
    assert_eq!(store.readers[&TAG].len(), 1);
}

#[test]
fn what_nobody_watches_or_leaves_any_more_is_forgotten() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    a.puts(b"one", at(2));
    b.watches(at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    for process in [&mut a, &mut b] {
        process.mailboxes.sweep(at(2_000));
        process.cluster.sweep(&process.mailboxes, at(2_000));
    }
    settle(&mut [&mut a, &mut b], &mut store, at(2_000));
    assert!(store.readers[&TAG].is_empty());
    assert!(a.cluster.entries.is_empty() && b.cluster.entries.is_empty());
}

#[test]
fn all_mailboxes_are_said_again_at_a_pace_and_each_waits_once() {
    let mut store = Store::default();
    let mut a = Process::new(1);
    for n in 0..3_000_u16 {
        let mut tag = [1; 16];
        tag[..2].copy_from_slice(&n.to_be_bytes());
        a.with(at(0), |cluster, mailboxes, pacer| {
            let kept = mailboxes.put(&sender(1), tag, ([1; 8], vec![1; 8]), pacer, &mut vec![]);
            cluster.handle_put(tag, kept.unwrap(), at(0));
            cluster.handle_put(tag, true, at(0));
        });
    }
    assert_eq!(
        a.cluster.waiting(),
        0,
        "nothing waits for a store that is away"
    );
    a.connects(&mut store, at(1));
    settle(&mut [&mut a], &mut store, at(1));
    assert_eq!(store.records.len(), 200, "the burst");
    for tenth in 11..40 {
        settle(&mut [&mut a], &mut store, Time::from_millis(tenth * 100));
    }
    assert_eq!(store.records.len(), 3_000);
}

/// The delay that a process tells its client, in milliseconds.
fn fires(told: &Pushes) -> Vec<(u8, u16)> {
    let fire = |(client, notice): &(ClientId, Notice)| match notice {
        Notice::Fire { delay_ms, .. } => Some((client.identity.as_bytes()[0], *delay_ms)),
        _ => None,
    };
    told.iter().filter_map(fire).collect()
}

#[test]
fn two_clients_at_two_processes_fire_at_one_moment_and_wake_each_other() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    b.watches(at(2));
    a.puts(b"one", at(2));
    settle(&mut [&mut a, &mut b], &mut store, at(2));
    // It waits, and the reader of its record hears of that.
    store.log.clear();
    assert!(a.meets(1, Some(TAG), at(3)).is_empty());
    settle(&mut [&mut a, &mut b], &mut store, at(3));
    assert_eq!(store.log, ["SET", "SMEMBERS", "PUBLISH"]);
    assert!(matches!(b.told[..], [(_, Notice::Wanted { tag: TAG })]));
    store.log.clear();
    b.meets(2, None, at(4));
    settle(&mut [&mut a, &mut b], &mut store, at(4));
    assert_eq!(store.log, ["SET", "PUBLISH"]);
    // 10 ms to the farther one, 60 and 40 for jitter and the store, less 10 ms to each.
    assert_eq!(fires(&a.told), [(1, 100)]);
    assert_eq!(fires(&b.told), [(2, 100)]);
    // A repetition has the rest of the time, and asks nobody.
    store.log.clear();
    let told = a.meets(1, None, Time::from_millis(4_050));
    assert_eq!(fires(&told), [(1, 50)]);
    settle(&mut [&mut a, &mut b], &mut store, Time::from_millis(4_050));
    assert!(store.log.is_empty(), "{:?}", store.log);
}

#[test]
fn a_client_meets_neither_itself_nor_one_that_has_gone() {
    let mut store = Store::default();
    let [mut a, mut b] = two(&mut store);
    a.meets(1, None, at(2));
    b.meets(1, None, at(3));
    settle(&mut [&mut a, &mut b], &mut store, at(3));
    assert!(a.told.is_empty() && b.told.is_empty());
    // The first one waits no longer.
    b.meets(2, None, at(9));
    settle(&mut [&mut a, &mut b], &mut store, at(9));
    assert!(a.told.is_empty() && b.told.is_empty());
}

#[test]
fn meetings_that_the_store_can_not_hear_of_are_left_out_and_never_pile_up() {
    let mut store = Store::default();
    let [mut a, _] = two(&mut store);
    for _ in 0..2 * MOST_URGENT {
        a.meets(1, None, at(2));
    }
    assert_eq!(a.cluster.urgent.len(), MOST_URGENT);
    a.is_cut_off(&mut store);
    assert!(a.meets(2, None, at(2)).len() == 2, "those here still meet");
    assert_eq!(a.cluster.waiting(), 0);
}

#[test]
fn nothing_is_due_before_the_store_has_said_what_time_it_is() {
    let mut store = Store::default();
    let mut a = Process::new(1);
    a.puts(b"one", at(0));
    a.connects(&mut store, at(1));
    let clock = a.asks(at(1)).unwrap();
    assert_eq!(clock.name(), "TIME");
    assert!(a.asks(at(2)).is_none());
    assert_eq!(a.cluster.next_due(at(2)), Some(at(1) + CLOCK));
    let answer = store.answer(&clock, at(2));
    a.is_answered(clock, answer, at(2));
    let due = a.cluster.next_due(at(2));
    assert!(due.is_some_and(|due| due <= at(2)), "{due:?}");
}
