//! What can be asked of a running server, put together when it is asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::beats;
use super::http;
use super::reload::Outcome;
use super::status::{Status, resident_bytes};
use super::worker::Shared;
use crate::control::{Call, Reply, Request};

/// Knows all that a status says.
pub(super) struct Monitor {
    pub(super) shared: Arc<Shared>,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) alternate_port: Option<u16>,
    pub(super) http: Option<Arc<http::App>>,
    pub(super) reloads: Outcome,
}

impl Monitor {
    pub(super) fn status(&self) -> Status {
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
            http: self.http.as_ref().map(|http| http.usage()),
            reloads: self.reloads.get(),
            events: counts.into_iter().map(Into::into).collect(),
        }
    }

    /// The threads that are stuck.
    pub(super) fn stuck(&self) -> Vec<String> {
        self.shared.stuck(beats::DEADLINE)
    }

    /// Answers what comes over the control socket.
    pub(super) async fn answer(&self, mut calls: mpsc::Receiver<Call>) {
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
