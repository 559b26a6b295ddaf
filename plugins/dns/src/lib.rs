//! Discovery through sealed records in a DNS zone.
//!
//! Each node sends the records that its host sealed for its peers to the zone's primary server, as
//! signed dynamic updates (RFC 2136, RFC 8945), and asks for those that its peers left for it. What
//! a record is named after is its tag. Beside them a person may write a peer's addresses into the
//! zone, as SRV records (RFC 2782).
//!
//! Nothing in an answer is believed: records are opened by the host, which knows the sender's key
//! and drops one that is older than the last, and addresses are probed. So DNSSEC would add
//! nothing.

mod exchange;
mod inbox;
mod names;
mod outbox;
mod pause;
mod query;
mod servers;
mod settings;
mod text;
mod update;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use domain::base::Rtype;
use natpunch_plugin::{
    Ask, BoxFuture, Candidate, CandidateKind, Discovery, Health, Host, Input, News, PeerKey,
    PluginError, SealedRecord, Time, resolve,
};
use natpunch_types::PresharedKey;
use tokio::task::JoinSet;

use inbox::{ADDRESSES, Inbox, Turn};
use outbox::Outbox;
use query::{MOST_ADDRESSES, Place, Query};
use settings::Primary;
pub use settings::{Records, Settings};
use update::{Changes, Signer};

/// For how long a written address is offered: it outlives two failures in a row.
const LIFETIME: Duration = Duration::from_secs(4 * ADDRESSES.as_secs());

/// The dns plugin.
#[derive(Debug)]
pub struct Plugin {
    records: Records,
    /// The secret of the TSIG key, or what is wrong with its file.
    secret: Result<Option<PresharedKey>, String>,
}

impl Plugin {
    /// The plugin for this zone.
    pub fn new(records: Records, secret: Result<Option<PresharedKey>, String>) -> Self {
        Self { records, secret }
    }

    /// What signs updates, if this node makes any.
    ///
    /// # Errors
    /// It should, and has no key.
    fn signer(&self) -> Result<Option<(Signer, Primary)>, String> {
        let Some(primary) = &self.records.primary else {
            return Ok(None);
        };
        let secret = self.secret.clone()?;
        let secret = secret.ok_or("the file of the TSIG key was not read")?;
        let signer = Signer::new(self.records.zone.clone(), primary, &secret)
            .map_err(|error| format!("the TSIG key can't be used: {error}"))?;
        Ok(Some((signer, primary.clone())))
    }
}

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            // Without the key it can't be found, and still finds others.
            let (signer, publishing) = match self.signer() {
                Ok(signer) => (signer, Ok(())),
                Err(problem) => (
                    None,
                    Err(format!("this node publishes no record: {problem}")),
                ),
            };
            let mut work = Work {
                records: self.records.clone(),
                signer,
                servers: Vec::new(),
                inbox: Inbox::new(),
                outbox: Outbox::default(),
                asking: Ok(()),
                publishing,
                host,
            };
            work.find_servers();
            work.run().await;
            Ok(())
        })
    }
}

/// A plugin that runs.
struct Work {
    records: Records,
    signer: Option<(Signer, Primary)>,
    /// Those that are asked, the one that answered last before the others.
    servers: Vec<SocketAddr>,
    inbox: Inbox,
    outbox: Outbox,
    /// What last came of questions and of updates.
    asking: Result<(), String>,
    publishing: Result<(), String>,
    host: Arc<dyn Host>,
}

/// What was under way and is over.
enum Done {
    Asked(Turn, Result<Found, exchange::Error>),
    Updated(Changes, Result<(), String>),
}

/// What was found about a peer.
struct Found {
    by: SocketAddr,
    records: Vec<SealedRecord>,
    addresses: Vec<SocketAddr>,
}

impl Work {
    async fn run(&mut self) {
        // What is under way ends with it.
        let mut under_way = JoinSet::new();
        loop {
            let now = self.host.now();
            while let Some(turn) = self.inbox.next(now) {
                let asking = self.ask(turn);
                under_way.spawn(async move { Done::Asked(turn, asking.await) });
            }
            if let Some((updating, changes)) = self.update(now) {
                under_way.spawn(async move { Done::Updated(changes, updating.await) });
            }
            self.report();
            let updates = self.signer.as_ref().and_then(|_| self.outbox.wakes());
            let wakes = [self.inbox.wakes(), updates].into_iter().flatten().min();
            let wait = wakes.map(|at| at.since(now));
            tokio::select! {
                input = self.host.next() => match input {
                    Input::Ask(Ask::Peers(peers)) => self.inbox.set_peers(&peers, self.host.now()),
                    Input::Ask(Ask::Records(records)) => self.outbox.replace(&records),
                    Input::NetworkChanged => {
                        self.find_servers();
                        self.inbox.restart(self.host.now());
                        self.outbox.pause.over();
                    }
                    Input::Datagram { .. } | Input::FromPeer { .. } | Input::Ask(Ask::Meet(_)) => {}
                    Input::Shutdown => return,
                },
                Some(done) = under_way.join_next() => {
                    if let Ok(done) = done {
                        self.take_in(done);
                    }
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
    }

    /// Notes which servers are to be asked.
    fn find_servers(&mut self) {
        let listed = &self.records.servers;
        self.servers = match listed.is_empty() {
            false => listed.clone(),
            true => servers::of_system().unwrap_or_else(|error| {
                self.asking = Err(format!(
                    "/etc/resolv.conf: {error}; write the addresses of name servers as `name_servers`"
                ));
                Vec::new()
            }),
        };
    }

    /// Asks about a peer.
    fn ask(&self, turn: Turn) -> impl Future<Output = Result<Found, exchange::Error>> + use<> {
        let zone = &self.records.zone;
        let query = |name, of| Query::new(name, of, self.random_id()).ok();
        let record = turn.tag.and_then(|tag| {
            let query = query(zone.record(tag), Rtype::TXT)?;
            Some((tag, query))
        });
        let places = turn.addresses.then(|| zone.addresses(&turn.peer));
        let places = places.and_then(|name| query(name, Rtype::SRV));
        let servers = self.servers.clone();
        async move {
            let mut found = Found {
                by: servers.first().copied().ok_or(exchange::Error::NoServer)?,
                records: Vec::new(),
                addresses: Vec::new(),
            };
            if let Some((tag, query)) = record {
                let (answer, by) = exchange::ask(&servers, &query).await?;
                found.records = query.records(&answer, tag);
                found.by = by;
            }
            if let Some(query) = places {
                let (answer, by) = exchange::ask(&servers, &query).await?;
                found.addresses = addresses(query.places(&answer)).await;
                found.by = by;
            }
            Ok(found)
        }
    }

    /// Sends the next update, if there is one and this node makes any.
    fn update(
        &mut self,
        now: Time,
    ) -> Option<(impl Future<Output = Result<(), String>> + use<>, Changes)> {
        let id = self.random_id();
        let (signer, primary) = self.signer.clone()?;
        let changes = self.outbox.next(now)?;
        let zone = self.records.zone.clone();
        let what = changes.clone();
        let updating = async move {
            let update = signer
                .sign(&what, id, seconds_since_1970())
                .map_err(|error| format!("an update can't be made: {error}"))?;
            let unreachable = |error| format!("can't update {zone}: {}: {error}", primary.server);
            let addresses = resolve(&primary.server).await.map_err(unreachable)?;
            let answer = exchange::first(&addresses, &update.bytes)
                .await
                .map_err(unreachable)?;
            update
                .outcome(answer, seconds_since_1970())
                .map_err(|refusal| refusal.explain(&zone, &primary).to_string())
        };
        Some((updating, changes))
    }

    fn take_in(&mut self, done: Done) {
        let now = self.host.now();
        match done {
            Done::Asked(turn, Ok(found)) => {
                self.inbox.ended(&turn.peer);
                self.inbox.pause.over();
                self.asking = Ok(());
                self.prefer(found.by);
                for record in self.inbox.new_ones(&turn.peer, found.records) {
                    self.host.tell(News::Record(record));
                }
                self.offer(turn.peer, found.addresses);
            }
            Done::Asked(turn, Err(error)) => {
                tracing::debug!(%error, "can't ask");
                self.inbox.ended(&turn.peer);
                self.inbox.pause.failed(self.random(), now);
                self.asking = Err(format!(
                    "can't ask for records of {}: {error}",
                    self.records.zone
                ));
                // The system may have others by now.
                if self.records.servers.is_empty() {
                    self.find_servers();
                }
            }
            Done::Updated(changes, Ok(())) => {
                self.outbox.made(&changes);
                self.publishing = Ok(());
            }
            Done::Updated(_, Err(problem)) => {
                tracing::debug!(problem, "can't update");
                self.outbox.failed(self.random(), now);
                self.publishing = Err(problem);
            }
        }
    }

    /// The server that has answered is asked first.
    fn prefer(&mut self, server: SocketAddr) {
        if let Some(at) = self.servers.iter().position(|one| *one == server) {
            self.servers.rotate_left(at);
        }
    }

    fn offer(&self, peer: PeerKey, addresses: Vec<SocketAddr>) {
        for address in addresses {
            let candidate = Candidate {
                address,
                kind: CandidateKind::Mapped,
                lifetime: LIFETIME,
            };
            self.host.tell(News::Candidate { peer, candidate });
        }
    }

    /// Says how both directions are.
    fn report(&self) {
        let zone = &self.records.zone;
        let problems: Vec<&str> = [&self.asking, &self.publishing]
            .into_iter()
            .filter_map(|outcome| outcome.as_ref().err().map(String::as_str))
            .collect();
        self.host.report(if problems.is_empty() {
            let (found, peers) = self.inbox.found();
            let (there, own) = self.outbox.there();
            let published = match self.signer {
                Some(_) => format!("{there} of {own} records published"),
                None => "this node publishes none".to_owned(),
            };
            Health::Good(format!(
                "{zone}: {found} of {peers} peers' records found; {published}"
            ))
        } else {
            Health::Bad(problems.join("; "))
        });
    }

    fn random_id(&self) -> u16 {
        let mut bytes = [0; 2];
        self.host.random(&mut bytes);
        u16::from_be_bytes(bytes)
    }

    fn random(&self) -> u32 {
        let mut bytes = [0; 4];
        self.host.random(&mut bytes);
        u32::from_be_bytes(bytes)
    }
}

/// The addresses of these places: those that the answer has, else those that the system finds.
async fn addresses(places: Vec<Place>) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for place in places {
        let found = match place.addresses.is_empty() {
            false => place.addresses,
            // A host without an address is no reason to leave the others out.
            true => resolve(&place.endpoint).await.unwrap_or_default(),
        };
        addresses.extend(found);
    }
    addresses.truncate(MOST_ADDRESSES);
    addresses
}

/// By this host's clock, which TSIG compares with the server's.
fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
