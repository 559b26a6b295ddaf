//! The links of a plugin to its server: when to resolve the name, which address to talk to, how the
//! server does.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use natpunch_types::Time;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::{BoxFuture, Endpoint, Health, Host, Input, resolve};

/// How often the server's name is resolved while all is well; while it is not, at first and at
/// most.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(5 * 60);
const RESOLVE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How many addresses of one family are tried in turn, each with its ports.
const MAX_ADDRESSES: usize = 8;

/// The address families of a server: IPv4, IPv6.
pub const FAMILIES: [usize; 2] = [0, 1];

/// The links of one run of a plugin to its server: one for each address family, each with a client
/// `C` of the protocol. All times are the host's.
pub struct Links<'a, C> {
    server: &'a Endpoint,
    host: &'a dyn Host,
    /// Ports of the server that are tried after its first one.
    more_ports: &'a [u16],
    ipv4_only: bool,
    input: BoxFuture<'a, Input>,
    /// Waits until it is time, and resolves the name.
    lookup: BoxFuture<'a, io::Result<Vec<SocketAddr>>>,
    lookup_at: Instant,
    backoff: Duration,
    /// Why there is no address.
    problem: Option<String>,
    /// What is amiss although the server answers.
    note: Option<String>,
    links: [Link<C>; 2],
}

/// The server's addresses of one family, and the client of the one in use.
pub struct Link<C> {
    /// The addresses that are tried in turn.
    pub addresses: Vec<SocketAddr>,
    /// The address in use and its client.
    pub active: Option<(SocketAddr, C)>,
    /// How the server does there.
    pub state: State,
}

/// How the server does at the address in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    /// Not known yet.
    #[default]
    Unknown,
    /// It answers, in this time if the protocol can tell.
    Up(Option<Duration>),
    /// It does not answer at this address.
    Silent(SocketAddr),
    /// It has no room for this node until this time has passed.
    Refused(Duration),
}

/// What [`Links::next`] waited for.
#[derive(Debug)]
pub enum Happened {
    /// The host said something.
    Input(Input),
    /// These families have another address of the server, or none: give them new clients by
    /// [`Links::connect`].
    Moved(Vec<(usize, Option<SocketAddr>)>),
    /// The time is over.
    Timeout,
}

impl<C> Link<C> {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// The address to try when the one in use is silent, if it is another.
    pub fn next_address(&self) -> Option<SocketAddr> {
        let (address, _) = self.active.as_ref()?;
        let at = self.addresses.iter().position(|other| other == address)?;
        let next = self.addresses.get((at + 1) % self.addresses.len())?;
        Some(*next).filter(|next| next != address)
    }
}

impl<'a, C> Links<'a, C> {
    /// Links to a server whose name is resolved at once.
    pub fn new(server: &'a Endpoint, host: &'a dyn Host) -> Self {
        Self {
            server,
            host,
            more_ports: &[],
            ipv4_only: false,
            input: host.next(),
            lookup: Box::pin(resolve(server)),
            lookup_at: Instant::now(),
            backoff: RESOLVE_BACKOFF.0,
            problem: None,
            note: None,
            links: [const {
                Link {
                    addresses: Vec::new(),
                    active: None,
                    state: State::Unknown,
                }
            }; 2],
        }
    }

    /// The same for a server that listens on these ports, too. Where the first one is silent at all
    /// of its addresses they are tried in this order.
    pub fn with_more_ports(self, more_ports: &'a [u16]) -> Self {
        Self { more_ports, ..self }
    }

    /// The same for a protocol that knows only IPv4.
    pub fn ipv4_only(self) -> Self {
        Self {
            ipv4_only: true,
            ..self
        }
    }

    /// The time now, on the clock of the host.
    pub fn now(&self) -> Time {
        self.host.now()
    }

    /// The link of a family.
    fn get(&mut self, family: usize) -> Option<&mut Link<C>> {
        self.links.get_mut(family)
    }

    /// The links of both families.
    pub fn iter(&mut self) -> impl Iterator<Item = &mut Link<C>> {
        self.links.iter_mut()
    }

    /// The client of a family, and the address of the server that it talks to.
    pub fn client(&mut self, family: usize) -> Option<&mut (SocketAddr, C)> {
        self.get(family)?.active.as_mut()
    }

    /// The clients of both families, and their addresses.
    pub fn clients(&mut self) -> impl Iterator<Item = &mut (SocketAddr, C)> {
        self.iter().filter_map(|link| link.active.as_mut())
    }

    /// Waits for what happens next, until `timeout`, if any. The wait stands still in sleep; after
    /// one comes [`Input::NetworkChanged`], and what is due can be done.
    pub async fn next(&mut self, timeout: Option<Time>) -> Happened {
        let wait = timeout.map(|at| at.since(self.now()));
        let timeout = wait.map(|wait| Instant::now() + wait);
        tokio::select! {
            input = &mut self.input => {
                self.input = self.host.next();
                if matches!(input, Input::NetworkChanged) {
                    self.look_up_by(Instant::now());
                }
                Happened::Input(input)
            }
            found = &mut self.lookup => Happened::Moved(self.handle_addresses(found)),
            () = async {
                match timeout {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            } => Happened::Timeout,
        }
    }

    /// Uses this client at this address for the family from now on.
    pub fn connect(&mut self, family: usize, active: Option<(SocketAddr, C)>) {
        if let Some(link) = self.get(family) {
            link.active = active;
        }
    }

    /// The server answers this family's client, in this time if the protocol can tell.
    pub fn up(&mut self, family: usize, round_trip: Option<Duration>) {
        self.backoff = RESOLVE_BACKOFF.0;
        if let Some(link) = self.get(family) {
            link.state = State::Up(round_trip);
        }
    }

    /// The server does not answer this family's client. The address to try next, if there is
    /// another.
    pub fn down(&mut self, family: usize) -> Option<SocketAddr> {
        self.look_up_by(Instant::now() + self.backoff);
        let link = self.get(family)?;
        link.state = State::Silent(link.active.as_ref()?.0);
        link.next_address()
    }

    /// The server has no room for this family's client until this time has passed.
    pub fn refused(&mut self, family: usize, retry_after: Duration) {
        if let Some(link) = self.get(family) {
            link.state = State::Refused(retry_after);
        }
    }

    /// Whether the server answers this family's client.
    pub fn is_up(&self, family: usize) -> bool {
        self.links.get(family).is_some_and(Link::is_up)
    }

    /// Sets what the report adds while the server answers.
    pub fn set_note(&mut self, note: Option<String>) {
        self.note = note;
    }

    /// States the health, as far as it is known. `silent` says what may be wrong if there is no
    /// answer from this address.
    pub fn report(&self, silent: impl FnOnce(SocketAddr, &C) -> String) {
        let mut up = Vec::new();
        let (mut unanswered, mut refused) = (None, None);
        for Link { active, state, .. } in &self.links {
            let Some((address, client)) = active else {
                continue;
            };
            match state {
                State::Up(Some(round_trip)) => up.push(format!(
                    "{address}, {:.1} ms",
                    round_trip.as_secs_f64() * 1e3
                )),
                State::Up(None) => up.push(address.to_string()),
                State::Silent(address) => unanswered = unanswered.or(Some((*address, client))),
                State::Refused(retry_after) => refused = Some(retry_after.as_secs()),
                State::Unknown => {}
            }
        }
        let server = self.server;
        self.host.report(if !up.is_empty() {
            let note = self
                .note
                .as_ref()
                .map_or(String::new(), |note| format!("; {note}"));
            Health::Good(format!(
                "registered with {server} ({}){note}",
                up.join("; ")
            ))
        } else if let Some(retry_after) = refused {
            Health::Bad(format!(
                "{server} has no room for this node; tries again in {retry_after} s"
            ))
        } else if let Some((address, client)) = unanswered {
            Health::Bad(silent(address, client))
        } else if let Some(problem) = &self.problem {
            Health::Bad(problem.clone())
        } else {
            return;
        });
    }

    /// Takes what the name resolves to. Returns the families whose address is another now.
    fn handle_addresses(
        &mut self,
        found: io::Result<Vec<SocketAddr>>,
    ) -> Vec<(usize, Option<SocketAddr>)> {
        let host = &self.server.host;
        let mut found = match found {
            Ok(found) => found,
            Err(error) => {
                self.problem = Some(format!(
                    "{host} can't be resolved: {error}; check the name and this host's DNS"
                ));
                self.retry_lookup();
                return Vec::new();
            }
        };
        debug!(server = %self.server, count = found.len(), "resolved");
        self.problem = None;
        if self.ipv4_only {
            found.retain(SocketAddr::is_ipv4);
        }
        let mut moved = Vec::new();
        for (family, link) in self.links.iter_mut().enumerate() {
            let of_family = found
                .iter()
                .filter(|address| usize::from(address.is_ipv6()) == family);
            link.addresses = of_family.copied().take(MAX_ADDRESSES).collect();
            let first = link.addresses.clone();
            for port in self.more_ports {
                let there = first.iter().map(|a| SocketAddr::new(a.ip(), *port));
                link.addresses.extend(there);
            }
            let stays = link
                .active
                .as_ref()
                .is_some_and(|(address, _)| link.addresses.contains(address));
            if !stays {
                link.state = State::Unknown;
                moved.push((family, link.addresses.first().copied()));
            }
        }
        if self.ipv4_only && found.is_empty() {
            self.problem = Some(format!(
                "{host} has no IPv4 address, and this protocol knows no other"
            ));
            self.retry_lookup();
        } else if self.links.iter().any(Link::is_up)
            || self.links.iter().all(|link| link.state == State::Unknown)
        {
            self.look_up_at(Instant::now() + RESOLVE_INTERVAL);
        } else {
            self.retry_lookup();
        }
        moved
    }

    fn retry_lookup(&mut self) {
        self.look_up_at(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(RESOLVE_BACKOFF.1);
    }

    /// Resolves the name at this time at the latest. A lookup that goes on is awaited.
    fn look_up_by(&mut self, at: Instant) {
        if at < self.lookup_at {
            self.look_up_at(at);
        }
    }

    fn look_up_at(&mut self, at: Instant) {
        let server = self.server;
        self.lookup_at = at;
        self.lookup = Box::pin(async move {
            sleep_until(at).await;
            resolve(server).await
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::PeerKey;
    use crate::testing::{Effect, FakeHost};

    const SERVER: &str = "rendezvous.example:9000";

    fn host() -> Arc<FakeHost> {
        FakeHost::new(PeerKey::from_bytes([1; 32]), None, 1)
    }

    fn addresses(texts: &[&str]) -> io::Result<Vec<SocketAddr>> {
        Ok(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn no_name_server() -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no name server"))
    }

    /// Gives every link that moved a client.
    fn found(links: &mut Links<'_, ()>, found: io::Result<Vec<SocketAddr>>) {
        for (family, address) in links.handle_addresses(found) {
            links.connect(family, address.map(|address| (address, ())));
        }
    }

    async fn reported(links: &Links<'_, ()>, host: &FakeHost) -> Health {
        links.report(|address, ()| format!("silent: {address}"));
        match tokio::time::timeout(Duration::from_secs(1), host.effect()).await {
            Ok(Effect::Reported(health)) => health,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_fails_does_not_hide_that_the_node_is_registered() {
        let (host, server) = (host(), SERVER.parse().unwrap());
        let mut links = Links::new(&server, &*host);
        found(&mut links, no_name_server());
        let problem = "rendezvous.example can't be resolved: no name server; check the name and this host's DNS";
        assert_eq!(
            reported(&links, &host).await,
            Health::Bad(problem.to_owned())
        );
        found(
            &mut links,
            addresses(&["192.0.2.1:9000", "[2001:db8::1]:9000"]),
        );
        links.up(0, Some(Duration::from_micros(1_250)));
        links.up(1, None);
        let good =
            "registered with rendezvous.example:9000 (192.0.2.1:9000, 1.2 ms; [2001:db8::1]:9000)";
        assert_eq!(reported(&links, &host).await, Health::Good(good.to_owned()));
        found(&mut links, no_name_server());
        links.refused(0, Duration::from_secs(9));
        let good = "registered with rendezvous.example:9000 ([2001:db8::1]:9000)";
        assert_eq!(reported(&links, &host).await, Health::Good(good.to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_port_is_blocked_the_next_one_of_the_file_is_tried_at_each_address() {
        let (host, server) = (host(), SERVER.parse().unwrap());
        let mut links = Links::new(&server, &*host).with_more_ports(&[443, 53]);
        found(
            &mut links,
            addresses(&["192.0.2.1:9000", "[2001:db8::1]:9000", "192.0.2.2:9000"]),
        );
        let mut tried = vec![links.client(0).unwrap().0.to_string()];
        for _ in 0..6 {
            let next = links.down(0).unwrap();
            links.connect(0, Some((next, ())));
            tried.push(next.to_string());
        }
        let round = [
            "192.0.2.1:9000",
            "192.0.2.2:9000",
            "192.0.2.1:443",
            "192.0.2.2:443",
            "192.0.2.1:53",
            "192.0.2.2:53",
            "192.0.2.1:9000",
        ];
        assert_eq!(tried, round);
        let next = links.down(1).unwrap();
        assert_eq!(next, "[2001:db8::1]:443".parse().unwrap());
        // A name that is looked up again leaves the port that answers.
        links.connect(1, Some((next, ())));
        links.up(1, None);
        found(&mut links, addresses(&["[2001:db8::1]:9000"]));
        assert_eq!(links.client(1).unwrap().0, next);
    }

    #[tokio::test(start_paused = true)]
    async fn the_addresses_of_a_silent_server_are_tried_in_turn_and_its_name_is_looked_up_ever_more_seldom()
     {
        let (host, server) = (host(), SERVER.parse().unwrap());
        let mut links = Links::new(&server, &*host);
        let both = || addresses(&["192.0.2.1:9000", "192.0.2.2:9000"]);
        found(&mut links, both());
        let wait = |links: &Links<'_, ()>| (links.lookup_at - Instant::now()).as_secs();
        assert_eq!(wait(&links), 300);
        let next = links.down(0).unwrap();
        assert_eq!((next, wait(&links)), ("192.0.2.2:9000".parse().unwrap(), 1));
        links.connect(0, Some((next, ())));
        assert_eq!(
            reported(&links, &host).await,
            Health::Bad("silent: 192.0.2.1:9000".to_owned())
        );
        let waits: Vec<_> = (0..8)
            .map(|_| (found(&mut links, both()), wait(&links)).1)
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(links.down(0), Some("192.0.2.1:9000".parse().unwrap()));
        assert_eq!(
            links.client(0).unwrap().0,
            next,
            "it stays with the address while the name has it"
        );
        links.up(0, None);
        found(&mut links, both());
        assert_eq!(wait(&links), 300);
        links.down(0);
        assert_eq!(wait(&links), 1, "after an answer the waits begin anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_protocol_of_ipv4_uses_no_other_address_and_says_so_if_there_is_none() {
        let (host, server) = (host(), SERVER.parse().unwrap());
        let mut links = Links::new(&server, &*host).ipv4_only();
        found(&mut links, addresses(&["[2001:db8::1]:9000"]));
        let problem = "rendezvous.example has no IPv4 address, and this protocol knows no other";
        assert_eq!(
            reported(&links, &host).await,
            Health::Bad(problem.to_owned())
        );
        found(
            &mut links,
            addresses(&["[2001:db8::1]:9000", "192.0.2.1:9000"]),
        );
        assert_eq!(
            links
                .clients()
                .map(|(address, ())| address.to_string())
                .collect::<Vec<_>>(),
            ["192.0.2.1:9000"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_of_many_addresses_costs_no_more_than_one_of_eight() {
        let (host, server) = (host(), SERVER.parse().unwrap());
        let mut links = Links::new(&server, &*host);
        found(
            &mut links,
            Ok((1..=200)
                .map(|n| SocketAddr::from(([192, 0, 2, n], 9000)))
                .collect()),
        );
        assert_eq!(links.get(0).unwrap().addresses.len(), MAX_ADDRESSES);
    }
}
