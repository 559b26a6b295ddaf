//! The server among others that share a store with it: what the shell calls.

use std::time::Duration;

use natpunch_types::Time;
use rand_core::CryptoRng;

use super::cluster::Cluster;
use super::{ClusterCounters, Pacer, Pushes, Server};
use crate::cluster::{Answer, Ask, Message, ProcessId};

/// A process that has the store again waits for up to this long before it says all again, so that
/// not all of them do at once.
const LONGEST_WAIT_MS: u32 = 5_000;

impl<R: CryptoRng> Server<R> {
    /// Shares a store from now on. Called once.
    pub fn share(&mut self) {
        self.cluster = Some(Box::default());
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
        self.with_cluster(now, |cluster, mailboxes, pacer, told| {
            cluster.handle_answer(asked, answer, mailboxes, pacer, told);
        });
    }

    /// Another process says something.
    pub fn handle_store_message(&mut self, message: Message, now: Time) {
        self.with_cluster(now, |cluster, mailboxes, pacer, told| {
            cluster.handle_message(message, mailboxes, pacer, told);
        });
    }

    fn with_cluster(
        &mut self,
        now: Time,
        work: impl FnOnce(&mut Cluster, &mut super::Mailboxes, &mut Pacer<'_>, &mut Pushes),
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
        work(cluster, &mut self.mailboxes, &mut pacer, &mut told);
        self.tell_all(told, now);
    }
}
