//! Port mappings that this node's router grants: PCP (RFC 6887), NAT-PMP (RFC 6886), UPnP IGD.
//!
//! One mapping of WireGuard's port is held as long as the node runs. It is an own address, tried by
//! peers like any other and proven by nothing else than an answer of theirs. The router is asked at
//! the start, when the network is another, when half of the mapping's life is over, and a few times
//! more where it may have forgotten: it announces a restart, or a path is lost. A network without
//! such a router costs a few packets, ever more seldom.
//!
//! PCP and NAT-PMP are ours and not a library's: what a mapping is bound to ([`pcp::Nonce`]) is
//! derived from the node's key, so that an agent that was killed renews its mapping instead of being
//! refused as a stranger, and one talk asks for both.

mod bytes;
mod nat_pmp;
mod pcp;
mod router;
mod settings;
mod talk;
mod times;
mod upnp;
mod wish;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use blake2::Blake2sMac256;
use blake2::digest::{KeyInit, Mac as _};
use natpunch_plugin::{
    Ask, BoxFuture, Discovery, Health, Host, Input, News, OwnAddressKind, PeerKey, PluginError,
};
use natpunch_types::is_global;
use tokio::time::sleep;

pub use settings::{OwnRouter, Settings};
use talk::{Granted, Outcome};
use times::Times;
use wish::{Way, Wish};

/// The first port that may be anybody's (RFC 6335, 6).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// The plugin.
#[derive(Debug)]
pub struct Plugin;

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            Run::new(&*host).work().await;
            Ok(())
        })
    }
}

/// One run of the plugin.
struct Run<'a> {
    host: &'a dyn Host,
    way: Option<Way>,
    times: Times,
    /// The mapping that the router has granted.
    held: Option<Granted>,
    /// The peers without a path.
    wanted: BTreeSet<PeerKey>,
}

type Asking = Pin<Box<dyn Future<Output = Option<Outcome>> + Send>>;

impl<'a> Run<'a> {
    fn new(host: &'a dyn Host) -> Self {
        Self {
            host,
            way: None,
            times: Times::new(host.now()),
            held: None,
            wanted: BTreeSet::new(),
        }
    }

    async fn work(mut self) {
        let host = self.host;
        let mut input = host.next();
        let ear = router::announcements();
        let mut asking: Option<Asking> = None;
        self.look_around().await;
        loop {
            let wish = self.wish();
            let may_ask = asking.is_none() && wish.is_some();
            if let Some(wish) = wish.filter(|_| may_ask && self.times.due() <= host.now()) {
                asking = Some(Box::pin(router::ask(wish)));
            }
            let wait = self.times.due().since(host.now());
            let may_wait = may_ask && asking.is_none();
            tokio::select! {
                next = &mut input => {
                    input = host.next();
                    match next {
                        Input::Ask(Ask::Peers(peers)) => {
                            let wanted = peers.iter().filter(|peer| peer.wanted);
                            self.set_wanted(wanted.map(|peer| peer.peer).collect());
                        }
                        Input::NetworkChanged => {
                            if self.look_around().await {
                                asking = None;
                            }
                        }
                        Input::Shutdown => break,
                        Input::Ask(_) | Input::Datagram { .. } | Input::FromPeer { .. } => {}
                    }
                }
                outcome = answer(&mut asking), if asking.is_some() => {
                    asking = None;
                    self.handle(outcome);
                }
                () = router::announced(ear.as_ref(), self.way.map(|way| way.router)) => {
                    tracing::debug!("the router announces itself");
                    self.times.hint(host.now());
                }
                () = sleep(wait), if may_wait => {}
            }
        }
        if let (Some(held), Some(wish)) = (self.held, self.wish()) {
            router::give_back(wish, held).await;
        }
    }

    /// Finds the way out; true if it is another than before.
    async fn look_around(&mut self) -> bool {
        let way = Way::out_of(&self.host.network()).await;
        let behind_nat = way.filter(|way| !is_global(way.own.into()));
        let now = self.host.now();
        let is_other = self.way != behind_nat;
        if is_other {
            // The mapping that the router of the network before holds ends there by itself.
            self.give_up();
            self.way = behind_nat;
        }
        // The same way may lead to a router that was started anew.
        if is_other || self.held.is_some() {
            self.times.hint(now);
        }
        match (way, behind_nat) {
            (None, _) => self.note("no router of IPv4 here".to_owned()),
            (Some(way), None) => self.note(format!("none needed: {} is no NAT's", way.own)),
            (Some(_), Some(_)) => {}
        }
        is_other
    }

    /// A peer that had a path and has none: the router may have forgotten the mapping.
    fn set_wanted(&mut self, wanted: BTreeSet<PeerKey>) {
        let before = std::mem::replace(&mut self.wanted, wanted);
        if self.held.is_some() && !self.wanted.is_subset(&before) {
            self.times.hint(self.host.now());
        }
    }

    fn wish(&self) -> Option<Wish> {
        let way = self.way?;
        let port = self.host.listen_port();
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let mut random = [0; 2];
        self.host.random(&mut random);
        Some(Wish {
            way,
            port,
            suggested: self.held.map_or(any, |held| held.external),
            other_port: u16::from_be_bytes(random) | FIRST_DYNAMIC_PORT,
            nonce: self.nonce(way.router)?,
            held: self.held.map(|held| held.by),
        })
    }

    /// The same for the same node and router, and nobody else's to know.
    fn nonce(&self, router: Ipv4Addr) -> Option<pcp::Nonce> {
        let key = self.host.private_key()?;
        let mut mac = <Blake2sMac256 as KeyInit>::new(key.expose().into());
        mac.update(b"natpunch: nonce of a PCP mapping");
        mac.update(&router.octets());
        mac.finalize().into_bytes().first_chunk().copied()
    }

    fn handle(&mut self, outcome: Option<Outcome>) {
        let (now, Some(Way { router, .. })) = (self.host.now(), self.way) else {
            return;
        };
        match outcome {
            Some(Outcome::Granted(granted)) => {
                let before = self.held.replace(granted);
                if let Some(before) = before.filter(|before| before.external != granted.external) {
                    self.tell(before, Duration::ZERO);
                }
                self.times.granted(granted.lifetime, now);
                self.tell(granted, granted.lifetime);
                self.note(format!(
                    "the router {router} maps {} to here ({})",
                    granted.external, granted.by
                ));
            }
            Some(Outcome::Useless(outside)) => {
                self.give_up();
                self.failed();
                self.note(format!(
                    "none: the router {router} is behind a NAT itself, as {outside}"
                ));
            }
            Some(Outcome::Refused(by, reason)) => {
                if self.failed() {
                    self.note(format!(
                        "none: the router {router} refuses it: {reason} ({by})"
                    ));
                }
            }
            None => {
                if self.failed() {
                    self.note(format!(
                        "none: the router {router} answers neither PCP nor NAT-PMP nor UPnP"
                    ));
                }
            }
        }
    }

    /// True if nothing is held now.
    fn failed(&mut self) -> bool {
        if self.times.failed(self.host.now()) {
            self.give_up();
        }
        self.held.is_none()
    }

    /// Takes back what was told.
    fn give_up(&mut self) {
        if let Some(held) = self.held.take() {
            self.tell(held, Duration::ZERO);
        }
        self.times.lost();
    }

    fn tell(&self, granted: Granted, lifetime: Duration) {
        self.host.tell(News::OwnAddress {
            address: SocketAddr::V4(granted.external),
            kind: OwnAddressKind::Mapped,
            lifetime,
        });
    }

    fn note(&self, note: String) {
        self.host.report(Health::Good(note));
    }
}

async fn answer(asking: &mut Option<Asking>) -> Option<Outcome> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
