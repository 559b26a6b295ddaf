//! Pairs whose sides are at two processes: one of the two has the relay. The other one hands on what
//! its client wants, and what its client is to know of that.
//!
//! Which of the two has it is who claimed it first. A client learns a port, and never an address:
//! the ports of all processes are at the one address at which it reached its server.

use std::collections::BTreeMap;
use std::time::Duration;

use natpunch_types::{RelayUse, Time, is_stream_address};

use super::super::relays::Relays;
use super::super::session::{ClientId, Sender};
use super::Cluster;
use crate::cluster::{Message, ProcessId, Question, Wish, Word};
use crate::frame::{Frame as _, Notice};
use crate::wire::Tag;

/// How long is remembered where a relay or a client is of which nobody says anything.
const LIFETIME: Duration = Duration::from_secs(400);
/// Pairs, and clients, that are remembered.
const MOST: usize = 8_192;

/// Relays and clients that are elsewhere.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// The process that has the relay of a pair.
    hosts: BTreeMap<Tag, Host>,
    /// The process at which a client is that uses a relay here.
    clients: BTreeMap<ClientId, (ProcessId, Time)>,
}

struct Host {
    process: ProcessId,
    /// What was said to it last.
    wish: Wish,
    said: Time,
}

impl Elsewhere {
    pub(super) fn forget(&mut self, now: Time) {
        self.hosts.retain(|_, host| now < host.said + LIFETIME);
        self.clients.retain(|_, (_, said)| now < *said + LIFETIME);
    }
}

impl Cluster {
    /// Hands on what a client wants, if another process has the relay of its pair.
    pub(in super::super) fn wishes(
        &mut self,
        who: &Sender,
        tag: Tag,
        wants: RelayUse,
        now: Time,
    ) -> bool {
        let wish = Wish {
            tag,
            client: who.client,
            address: who.address,
            wants,
        };
        let elsewhere = self.elsewhere.as_mut();
        let host = elsewhere.and_then(|elsewhere| elsewhere.hosts.get_mut(&tag));
        let (Some(host), true) = (host, self.link.is_some()) else {
            return false;
        };
        (host.wish, host.said) = (wish, now);
        let to = host.process;
        self.tell_wish(to, wish);
        true
    }

    fn tell_wish(&mut self, to: ProcessId, wish: Wish) {
        if let Some(link) = &self.link {
            let from = link.me;
            let message = Message(Word::Wish { from, wish });
            self.push_urgent(Question::Tell { to, message });
        }
    }

    /// A client here waits for the other side of its pair, which may be elsewhere.
    pub(in super::super) fn claim(&mut self, who: &Sender, tag: Tag) {
        // One that came in a stream reaches only the ports of the process that has the stream.
        let shares = self.elsewhere.is_some() && !is_stream_address(who.address.ip());
        if let Some(link) = self.link.as_ref().filter(|_| shares) {
            let who = link.me;
            self.push_urgent(Question::Host { tag, who });
        }
    }

    /// This process has the relay of a pair.
    pub(super) fn handle_host(
        &mut self,
        tag: Tag,
        process: ProcessId,
        relays: &mut Relays,
        now: Time,
    ) {
        let (Some(link), Some(elsewhere)) = (&self.link, &mut self.elsewhere) else {
            return;
        };
        if process == link.me {
            return self.push_urgent(Question::Hold { tag });
        }
        if elsewhere.hosts.len() >= MOST {
            return;
        }
        for (client, address, wants) in relays.hand_over(&tag) {
            let wish = Wish {
                tag,
                client,
                address,
                wants,
            };
            let host = Host {
                process,
                wish,
                said: now,
            };
            if let Some(elsewhere) = &mut self.elsewhere {
                elsewhere.hosts.insert(tag, host);
            }
            self.tell_wish(process, wish);
        }
    }

    /// Nobody hears what is said to the process that had the relay of a pair. The client's next wish
    /// finds another.
    pub(super) fn handle_host_gone(&mut self, tag: &Tag) {
        let elsewhere = self.elsewhere.as_mut();
        if elsewhere.is_some_and(|elsewhere| elsewhere.hosts.remove(tag).is_some()) {
            self.push_urgent(Question::Free { tag: *tag });
        }
    }

    /// A client of another process wants something of a relay here.
    pub(in super::super) fn note_client(
        &mut self,
        from: ProcessId,
        wish: &Wish,
        now: Time,
    ) -> bool {
        let Some(elsewhere) = &mut self.elsewhere else {
            return false;
        };
        let clients = &mut elsewhere.clients;
        let may = clients.len() < MOST || clients.contains_key(&wish.client);
        if may {
            clients.insert(wish.client, (from, now));
        }
        may
    }

    /// Tells a client that is not here, if it is known where it is.
    pub(in super::super) fn tell_elsewhere<'a>(
        &mut self,
        client: &ClientId,
        notices: impl Iterator<Item = &'a Notice>,
    ) {
        let elsewhere = self.elsewhere.as_ref();
        let known = elsewhere.and_then(|elsewhere| elsewhere.clients.get(client));
        if let Some((to, _)) = known {
            let (to, client) = (*to, *client);
            let frames = notices.flat_map(Notice::encode).collect();
            let message = Message(Word::Notices { client, frames });
            self.push_urgent(Question::Tell { to, message });
        }
    }

    /// Ends the relays elsewhere of clients of which this is true.
    pub(in super::super) fn withdraw(&mut self, is_over: impl Fn(&ClientId) -> bool) {
        let Some(elsewhere) = &mut self.elsewhere else {
            return;
        };
        let over = elsewhere
            .hosts
            .extract_if(.., |_, host| is_over(&host.wish.client));
        let over: Vec<Host> = over.map(|(_, host)| host).collect();
        for host in over {
            let wants = RelayUse::Off;
            self.tell_wish(host.process, Wish { wants, ..host.wish });
        }
    }
}
