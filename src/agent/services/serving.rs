//! Serving the mesh, where the mesh file says so of this node (`serve`).

use std::collections::BTreeSet;
use std::time::Duration;

use natpunch_types::{Help as _, PeerKey, SecretKey};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Calls, Node, Service};
use crate::config::NodeConfig;
use crate::server::embedded::Embedded;

/// How long to wait before a server that could not be started is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The server of this node, if it serves.
#[derive(Debug, Default)]
pub(crate) struct Serving(State);

#[derive(Debug, Default)]
enum State {
    #[default]
    Off,
    On {
        wanted: Wanted,
        server: Embedded,
    },
    Failed {
        port: u16,
        problem: String,
        retry_at: Instant,
    },
}

/// What a running server can't change.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    port: u16,
    fwmark: u32,
    private_key: SecretKey,
}

/// What `status` says of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServingStatus {
    /// The UDP port; the relay's come after it.
    pub port: u16,
    /// Registered members, once for each address family.
    pub sessions: usize,
    /// Why it does not serve, if it doesn't.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The members of the mesh that may use this server.
fn members(node: &NodeConfig) -> BTreeSet<PeerKey> {
    node.peers
        .iter()
        .filter(|peer| peer.managed)
        .map(|peer| peer.key)
        .collect()
}

impl Serving {
    /// Brings the server to what the mesh file says. Tunnels don't depend on it, so what is wrong
    /// is reported and tried again, and no reason to stop.
    async fn sync(&mut self, node: &NodeConfig) {
        let wanted = node.serve.map(|port| Wanted {
            port,
            fwmark: node.fwmark,
            private_key: node.private_key.clone(),
        });
        if let (
            State::On {
                wanted: running,
                server,
            },
            Some(wanted),
        ) = (&self.0, &wanted)
            && running == wanted
        {
            server.admit(members(node));
            return;
        }
        self.end().await;
        let Some(wanted) = wanted else { return };
        let (port, key) = (wanted.port, wanted.private_key.clone());
        self.0 = match Embedded::start(port, wanted.fwmark, key, members(node)) {
            Ok(server) => {
                tracing::info!(port, "serving the mesh");
                State::On { wanted, server }
            }
            Err(error) => {
                let problem = error.in_full();
                tracing::error!("this node does not serve the mesh: {problem}");
                State::Failed {
                    port,
                    problem,
                    retry_at: Instant::now() + RETRY,
                }
            }
        };
    }

    /// Tries again to start a server that could not be started, or that has lost a thread.
    pub(crate) async fn retry(&mut self, node: &NodeConfig) {
        if let State::On { wanted, server } = &self.0
            && server.has_lost_a_thread()
        {
            let problem =
                "a thread has ended by itself, which is a bug in natpunch; the log says where"
                    .to_owned();
            tracing::error!(
                "this node does not serve the mesh for {} s: {problem}",
                RETRY.as_secs()
            );
            let failed = State::Failed {
                port: wanted.port,
                problem,
                retry_at: Instant::now() + RETRY,
            };
            if let State::On { server, .. } = std::mem::replace(&mut self.0, failed) {
                server.stop().await;
            }
        }
        if matches!(&self.0, State::Failed { retry_at, .. } if Instant::now() >= *retry_at) {
            self.sync(node).await;
        }
    }

    async fn end(&mut self) {
        if let State::On { server, .. } = std::mem::take(&mut self.0) {
            server.stop().await;
        }
    }

    fn state(&self) -> Option<ServingStatus> {
        match &self.0 {
            State::Off => None,
            State::On { wanted, server } => {
                let stuck = server.stuck();
                let error = (!stuck.is_empty()).then(|| format!("stuck: {}", stuck.join(", ")));
                Some(ServingStatus {
                    port: wanted.port,
                    sessions: server.sessions(),
                    error,
                })
            }
            State::Failed { port, problem, .. } => Some(ServingStatus {
                port: *port,
                sessions: 0,
                error: Some(problem.clone()),
            }),
        }
    }
}

impl Service for Serving {
    type Status = Option<ServingStatus>;

    fn start(_: &Calls) -> Self {
        Self::default()
    }

    async fn node_changed(&mut self, node: &Node<'_>) {
        self.sync(node.config).await;
    }

    fn status(&self) -> Self::Status {
        self.state()
    }

    async fn stop(mut self) {
        self.end().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_lost_a_thread_is_reported_and_started_again() {
        let port = std::net::UdpSocket::bind("0.0.0.0:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut node = testing::node(&testing::mesh(1, ""));
        node.serve = Some(port);
        let mut serving = Serving::default();
        serving.sync(&node).await;
        serving.retry(&node).await;
        assert_eq!(serving.status().unwrap().error, None);
        let State::On { server, .. } = &mut serving.0 else {
            panic!("{serving:?}")
        };
        server.lose_a_thread();
        serving.retry(&node).await;
        let status = serving.status().unwrap();
        assert!(status.port == port && status.error.unwrap().contains("a thread has ended"));
        tokio::time::advance(RETRY).await;
        serving.retry(&node).await;
        assert_eq!(
            serving.status().unwrap().error,
            None,
            "it has its ports again"
        );
        serving.stop().await;
    }
}
