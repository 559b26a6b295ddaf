//! What can be asked of a running server, put together when it is asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use crate::control::{Call, Reply, Request};
use crate::server::cluster;
use crate::server::heartbeats;
use crate::server::http;
use crate::server::reload::Outcome;
use crate::server::status::{Relay, Status, resident_bytes};
use crate::server::worker::Shared;

/// Knows all that a status says.
pub(in crate::server) struct Monitor {
    pub(in crate::server) shared: Arc<Shared>,
    pub(in crate::server) listen: Vec<SocketAddr>,
    pub(in crate::server) alternate_port: Option<u16>,
    pub(in crate::server) relay: Option<Relay>,
    pub(in crate::server) http: Option<Arc<http::App>>,
    pub(in crate::server) store: Option<Arc<cluster::Outlook>>,
    pub(in crate::server) reloads: Outcome,
}

impl Monitor {
    pub(in crate::server) fn status(&self) -> Status {
        let counts = [
            self.shared.counters.read(),
            self.shared.protocols.counters(),
        ]
        .concat();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.shared.start.elapsed().as_secs(),
            listen: self.listen.clone(),
            alternate_port: self.alternate_port,
            workers: self.shared.workers,
            stuck: self.stuck(),
            handshakes_waiting: self.shared.waiting.load(Ordering::Relaxed),
            resident_bytes: resident_bytes(),
            rendezvous: self.shared.protocols.usage(),
            relay: self.relay.clone(),
            streams: self.shared.streams.count(),
            http: self.http.as_ref().map(|http| http.usage()),
            store: self.store.as_ref().map(|store| store.status(&self.shared)),
            reloads: self.reloads.get(),
            events: counts.into_iter().map(Into::into).collect(),
        }
    }

    /// What is wrong with the store that it shares, if something is.
    pub(in crate::server) fn store_problem(&self) -> Option<String> {
        self.store.as_ref()?.problem()
    }

    /// The threads that are stuck.
    pub(in crate::server) fn stuck(&self) -> Vec<String> {
        self.shared.stuck(heartbeats::DEADLINE)
    }

    /// Answers what comes over the control socket.
    pub(in crate::server) async fn answer(&self, mut calls: mpsc::Receiver<Call>) {
        while let Some(call) = calls.recv().await {
            let reply = match call.request {
                Request::Status => match serde_json::to_value(self.status()) {
                    Ok(status) => Reply::Ok(status),
                    Err(error) => Reply::Error(error.to_string()),
                },
                _ => Reply::Error(
                    "this is a server: it answers status, and no agent's requests".to_owned(),
                ),
            };
            let _ = call.answer.send(reply);
        }
    }
}
