//! Discovery through the peers that a node still has a direct path to: they carry sealed records
//! for each other, so that the loss of every server does not stop a node that moves.
//!
//! What is said, and to whom, is `natpunch-gossip`'s. Messages go from WireGuard's port to
//! WireGuard's port, sealed by the host for the peer at the other end: no port is opened, and no
//! packet passes through the tunnel.

mod settings;

use std::sync::Arc;

use natpunch_gossip::{Effect, Gossip};
use natpunch_plugin::{Ask, BoxFuture, Discovery, Health, Host, Input, News, PluginError};
use tokio::time::sleep;

pub use settings::{Peers, Settings};

/// The gossip plugin.
#[derive(Debug)]
pub struct Plugin;

impl Discovery for Plugin {
    fn run<'a>(&'a mut self, host: Arc<dyn Host>) -> BoxFuture<'a, Result<(), PluginError>> {
        Box::pin(async move {
            work(&*host).await;
            Ok(())
        })
    }
}

async fn work(host: &dyn Host) {
    let mut gossip = Gossip::new(host.own_key());
    loop {
        let due = gossip.poll_timeout();
        let wait = due.map(|due| due.since(host.now()));
        tokio::select! {
            input = host.next() => {
                let now = host.now();
                match input {
                    Input::Ask(Ask::Peers(peers)) => {
                        gossip.handle_peers(&peers, now);
                        host.report(Health::Good(health(&gossip).to_owned()));
                    }
                    Input::Ask(Ask::Records(records)) => gossip.handle_records(&records, now),
                    Input::FromPeer { peer, payload } => {
                        gossip.handle_message(peer, &payload, now);
                    }
                    Input::NetworkChanged => gossip.handle_network_change(now),
                    Input::Shutdown => return,
                    Input::Datagram { .. } | Input::Ask(Ask::Meet(_)) => {}
                }
            }
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => {
                gossip.handle_timeout(host.now());
            }
        }
        while let Some(effect) = gossip.poll_effect() {
            match effect {
                Effect::Send { to, payload } => host.send_to_peer(to, payload),
                Effect::Tell(record) => host.tell(News::Record(record)),
            }
        }
    }
}

fn health(gossip: &Gossip) -> &'static str {
    match gossip.has_helpers() {
        true => "peers with a direct path can be asked for others",
        false => "no peer can be asked yet: none has a direct path",
    }
}

#[cfg(test)]
mod tests;
