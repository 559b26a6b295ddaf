//! The server among others that share a store with it: what the shell calls.

use std::time::Duration;

use natpunch_types::Time;
use rand_core::CryptoRng;

use super::cluster::{Cluster, Here};
use super::session::Sender;
use super::ticket::ELSEWHERE;
use super::{ClusterCounters, Pacer, Pushes, Server};
use crate::cluster::{Answer, Ask, Message, ProcessId, Wish, Word};

/// A process that has the store again waits for up to this long before it says all again, so that
/// not all of them do at once.
const LONGEST_WAIT_MS: u32 = 5_000;

impl<R: CryptoRng> Server<R> {
    /// Shares a store from now on. Called once.
    pub fn share(&mut self) {
        self.cluster = Some(Box::default());
    }

    /// Shares relays, too: clients reach the relay ports of all processes at one address. Called once,
    /// after [`share`](Self::share).
    pub fn share_relays(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.share_relays();
        }
    }

    /// There is a connection to the store: who this process is in it. It must hear what is said to
    /// its channel before this is called.
    pub fn handle_store_up(&mut self, me: ProcessId, now: Time) {
        let wait = self.rng.next_u32() % LONGEST_WAIT_MS;
        if let Some(cluster) = &mut self.cluster {
            cluster.handle_up(me, Duration::from_millis(wait.into()), now);
        }
    }

    /// A name for the next connection.
    pub fn next_process(&mut self) -> ProcessId {
        let mut name = [0; 8];
        self.rng.fill_bytes(&mut name);
        ProcessId(name)
    }

    /// There is no connection to the store any more.
    pub fn handle_store_down(&mut self) {
        if let Some(cluster) = &mut self.cluster {
            cluster.handle_down();
        }
    }

    /// The next thing to ask the store.
    pub fn poll_store(&mut self, now: Time) -> Option<Ask> {
        self.cluster.as_mut()?.poll(&self.mailboxes, now)
    }

    /// When [`poll_store`](Self::poll_store) wants to be called, if nothing happens before.
    pub fn poll_store_timeout(&self, now: Time) -> Option<Time> {
        self.cluster.as_ref()?.next_due(now)
    }

    /// Whether there is something to ask the store.
    pub fn has_asks(&self) -> bool {
        self.cluster.as_ref().is_some_and(|it| it.has_work())
    }

    /// Mailboxes that the store has yet to hear of.
    pub fn asks_waiting(&self) -> usize {
        self.cluster.as_ref().map_or(0, |it| it.waiting())
    }

    /// What happened between this process and the store.
    pub fn cluster_counters(&self) -> Option<ClusterCounters> {
        self.cluster.as_ref().map(|it| it.counters)
    }

    /// The store has answered.
    pub fn handle_store_answer(&mut self, asked: Ask, answer: Answer, now: Time) {
        self.with_cluster(now, |cluster, here, pacer, told| {
            cluster.handle_answer(asked, answer, here, pacer, told);
        });
    }

    /// Another process says something.
    pub fn handle_store_message(&mut self, message: Message, now: Time) {
        if let Word::Wish { from, wish } = &message.0 {
            return self.handle_wish(*from, wish, now);
        }
        self.with_cluster(now, |cluster, here, pacer, told| {
            cluster.handle_message(message, here, pacer, told);
        });
    }

    /// A client of another process wants something of the relay here. That process has admitted it.
    fn handle_wish(&mut self, from: ProcessId, wish: &Wish, now: Time) {
        let is_allowed = self.admission.allowed.as_ref();
        let is_allowed = is_allowed.is_none_or(|list| list.contains(&wish.client.identity));
        let cluster = self.cluster.as_mut();
        if !is_allowed || !cluster.is_some_and(|it| it.note_client(from, wish, now)) {
            return;
        }
        let who = Sender {
            client: wish.client,
            address: wish.address,
            secret: ELSEWHERE,
            ticket: 0,
        };
        let (tag, wants) = (wish.tag, wish.wants);
        let (limits, rng) = (&self.limits, &mut self.rng);
        let told = self.relays.ask(&who, tag, wants, limits, rng, now);
        self.tell_all(told, now);
    }

    fn with_cluster(
        &mut self,
        now: Time,
        work: impl FnOnce(&mut Cluster, &mut Here<'_>, &mut Pacer<'_>, &mut Pushes),
    ) {
        let Some(cluster) = &mut self.cluster else {
            return;
        };
        let (sessions, limits) = (&mut self.sessions, &self.limits);
        let mut pacer = Pacer {
            sessions,
            limits,
            now,
        };
        let mut told = Vec::new();
        let mut here = Here {
            mailboxes: &mut self.mailboxes,
            meetings: &mut self.meetings,
            relays: &mut self.relays,
        };
        let before = cluster.counters.met;
        work(cluster, &mut here, &mut pacer, &mut told);
        self.counters.met += cluster.counters.met - before;
        self.tell_all(told, now);
    }
}
