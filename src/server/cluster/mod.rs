//! The store that several processes share: the connection to Redis or Valkey. What is said there is
//! decided by [`natpunch_rendezvous::Server`].
//!
//! One connection carries commands and what other processes say. A store that is slow, full or gone
//! costs this process's own clients nothing: they are served from what is here, and all is said
//! again when the store is back.

mod link;

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use natpunch_net::Outbox;
use natpunch_plugin::resolve;
use natpunch_redis::{Connection, Moved, Trouble, dial};
use natpunch_rendezvous::cluster::Keys;
use natpunch_types::{Password, Time, backoff, lock, spread};
use rand_chacha::ChaCha20Rng;
use rand_core::RngCore as _;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::settings::StoreSettings;
use super::udp::control;
use super::worker::Shared;
use link::{Heard, Link};

/// The wait after a connection that failed: the first time, and the longest.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// A connection that lasted this long was good: the next failure is a first one.
const GOOD: Duration = Duration::from_secs(30);
/// How much is read at a time, in bytes.
const PIECE: usize = 64 << 10;

/// Wakes the task of the store when there is something to ask.
#[derive(Debug, Default)]
pub(in crate::server) struct Wake(Notify);

impl Wake {
    pub(in crate::server) fn wake(&self) {
        self.0.notify_one();
    }
}

/// How it goes, for the status.
#[derive(Debug, Default)]
pub(in crate::server) struct State {
    /// Since when there is a connection, or none.
    since: Time,
    is_up: bool,
    /// What is wrong, if something is.
    problem: Option<String>,
    /// How long the store took for the last answer.
    delay: Duration,
    /// Commands asked since the start.
    asked: u64,
}

/// What the status and the task share.
#[derive(Debug)]
pub(in crate::server) struct Outlook {
    /// The store, as the settings name it.
    pub(in crate::server) server: String,
    state: Mutex<State>,
}

impl Outlook {
    pub(in crate::server) fn new(settings: &StoreSettings) -> Arc<Self> {
        let server = settings.address.endpoint.to_string();
        let state = Mutex::default();
        Arc::new(Self { server, state })
    }

    /// What is wrong, if something is.
    pub(in crate::server) fn problem(&self) -> Option<String> {
        lock(&self.state).problem.clone()
    }

    /// What the status says.
    pub(in crate::server) fn status(&self, shared: &Shared) -> super::status::Store {
        let rendezvous = shared.protocols.rendezvous();
        let waiting = rendezvous.map_or(0, |rendezvous| rendezvous.lock().asks_waiting());
        let state = lock(&self.state);
        super::status::Store {
            server: self.server.clone(),
            connected: state.is_up,
            seconds: shared.start.now().since(state.since).as_secs(),
            problem: state.problem.clone(),
            delay_microseconds: state.delay.as_micros().try_into().unwrap_or(u64::MAX),
            asked: state.asked,
            waiting,
        }
    }
}

/// The task that has the connection.
pub(in crate::server) struct Store {
    pub(in crate::server) settings: StoreSettings,
    pub(in crate::server) password: Option<Password>,
    pub(in crate::server) keys: Keys,
    pub(in crate::server) random: ChaCha20Rng,
    /// Sockets by which what other processes say reaches clients.
    pub(in crate::server) sockets: Vec<UdpSocket>,
    pub(in crate::server) shared: Arc<Shared>,
    pub(in crate::server) outlook: Arc<Outlook>,
}

impl Store {
    /// Connects, again and again.
    pub(in crate::server) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let begun = self.shared.start.now();
            let trouble = self.connect().await;
            let now = self.shared.start.now();
            if let Some(rendezvous) = self.shared.protocols.rendezvous() {
                rendezvous.lock().handle_store_down();
            }
            if now.since(begun) >= GOOD {
                failures = 0;
            }
            self.note_down(&trouble, now);
            let wait = spread(backoff(RECONNECT, failures), self.random.next_u32());
            failures = failures.saturating_add(1);
            sleep(wait).await;
        }
    }

    /// One connection, until its end: why it ended.
    async fn connect(&mut self) -> Trouble {
        let shared = self.shared.clone();
        let Some(rendezvous) = shared.protocols.rendezvous() else {
            return std::future::pending().await;
        };
        let address = self.settings.address.clone();
        let tls = self.settings.tls.clone();
        let found = resolve(&address.endpoint);
        let mut connection = match dial(&address.endpoint, tls.as_ref(), found).await {
            Ok(stream) => Connection::new(stream),
            Err(problem) => return Trouble::Unreachable(problem),
        };
        let me = rendezvous.lock().next_process();
        let user = self.settings.user.as_str();
        let login = self.password.as_ref().map(|password| (user, password));
        let mut link = Link::new(address.database, self.keys.channel(me), me, user);
        connection.send(&link.greet(login, shared.start.now()));
        let mut buffer = vec![0; PIECE];
        let mut is_up = false;
        loop {
            let now = shared.start.now();
            if link.is_ready() && !is_up {
                is_up = true;
                rendezvous.lock().handle_store_up(me, now);
                self.note_up(now);
            }
            let due = self.ask(&mut link, &mut connection, now);
            let wait = due.min(link.deadline()).since(now);
            tokio::select! {
                moved = connection.next(&mut buffer) => match moved {
                    Moved::Wrote(Ok(())) => {}
                    Moved::Read(Ok(0)) => return Trouble::Closed,
                    Moved::Read(Ok(length)) => {
                        let bytes = buffer.get(..length).unwrap_or_default();
                        if let Err(trouble) = self.hear(&mut link, bytes) {
                            return trouble;
                        }
                    }
                    Moved::Read(Err(error)) | Moved::Wrote(Err(error)) => {
                        return Trouble::Unreachable(format!("{}: {error}", address.endpoint));
                    }
                },
                () = shared.store_wake.0.notified(), if is_up && link.has_room() => {}
                () = sleep(wait) => {}
            }
            // After what has come: an answer that was read late is none that is overdue.
            if link.deadline() <= shared.start.now() {
                return Trouble::Silent;
            }
        }
    }

    /// Asks as much as may be asked now; when there may be more, at the latest.
    fn ask(&mut self, link: &mut Link, connection: &mut Connection, now: Time) -> Time {
        const LATEST: Duration = Duration::from_secs(60);
        let Some(rendezvous) = self
            .shared
            .protocols
            .rendezvous()
            .filter(|_| link.is_ready())
        else {
            return now + LATEST;
        };
        let mut asks = Vec::new();
        let due = {
            let mut server = rendezvous.lock();
            while asks.len() < link.room() {
                let Some(ask) = server.poll_store(now) else {
                    break;
                };
                asks.push(ask);
            }
            server.poll_store_timeout(now)
        };
        for ask in asks {
            let parts = ask.command(&self.keys, &mut self.random);
            connection.send(&link.ask(ask, &parts, now));
        }
        match due {
            // What there is room for is asked when an answer makes some.
            Some(due) if link.has_room() => due.min(now + LATEST),
            _ => now + LATEST,
        }
    }

    /// Takes what the store says.
    fn hear(&mut self, link: &mut Link, bytes: &[u8]) -> Result<(), Trouble> {
        let now = self.shared.start.now();
        let heard = link.hear(bytes, &self.keys, now)?;
        {
            let mut state = lock(&self.outlook.state);
            state.asked = state.asked.saturating_add(heard.len() as u64);
            state.delay = link.delay();
            if link.is_ready() {
                state.problem = link.problem();
            }
        }
        let Some(rendezvous) = self
            .shared
            .protocols
            .rendezvous()
            .filter(|_| !heard.is_empty())
        else {
            return Ok(());
        };
        let unsealed = {
            let mut server = rendezvous.lock();
            for heard in heard {
                match heard {
                    Heard::Answer(ask, answer) => server.handle_store_answer(ask, answer, now),
                    Heard::Message(message) => server.handle_store_message(message, now),
                }
            }
            rendezvous.drain(&mut server, now)
        };
        let mut outbox = Outbox::default();
        let unsent = control::send(unsealed, &self.sockets, &self.shared, &mut outbox);
        self.shared.counters.send_errors.count(unsent);
        Ok(())
    }

    fn note_up(&self, now: Time) {
        tracing::info!("shares the store {}", self.outlook.server);
        let mut state = lock(&self.outlook.state);
        (state.is_up, state.since, state.problem) = (true, now, None);
    }

    fn note_down(&self, trouble: &Trouble, now: Time) {
        let problem = trouble.to_string();
        let mut state = lock(&self.outlook.state);
        let is_new = state.problem.as_ref() != Some(&problem);
        if std::mem::take(&mut state.is_up) {
            state.since = now;
        }
        state.problem = Some(problem.clone());
        drop(state);
        if is_new {
            let server = &self.outlook.server;
            tracing::warn!(
                "the store {server} can't be used, so only clients of this process find each other here: {problem}"
            );
        }
    }
}
